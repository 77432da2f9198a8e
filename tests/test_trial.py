"""``make try``: one command, one link, and a mail that goes all the way; test_tour.py has the rest."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import requests
from support.page import form

ROOT = Path(__file__).parents[1]


def test_who_follows_the_link_tries_a_mail_and_sees_its_record() -> None:
    command = [sys.executable, str(ROOT / "demo/trial.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"PATH": "/usr/bin:/bin"}) as process:
        assert process.stdout
        link = process.stdout.readline().split()[-1]
        url = link.partition("/enter/")[0]
        visitor = requests.Session()
        assert "crm.lead" in visitor.get(link).text
        assert "Forty chairs" in visitor.get(f"{url}/records/crm.lead").text
        assert "Your parcel is on its way" in visitor.get(f"{url}/unplaced").text
        example = visitor.get(f"{url}/try/").text
        fields = form(visitor, f"{url}/try/") | {"sender": "ann@customer.example"}
        fields |= {"recipients": "info@mail.company-name.com", "message": "Subject: A table\n\nPlease\n"}
        assert "<textarea" in example
        tried = visitor.post(f"{url}/try/", data=fields).text
        assert "2.0.0 delivered" in tried
        record = url + re.findall(r"/records/crm.lead/\d+", tried)[0]
        visitor.post(f"{record}/write", data=form(visitor, record) | {"text": "Which colour?"})
        assert process.stdout.readline().startswith("(later")
        assert process.stdout.readline().startswith("mail to ann@customer.example: Re: A table")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
