"""``make try``: one command, one link, and a mail that goes all the way; test_tour.py has the rest."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from support.mta import wait_until
from support.page import form
from support.threads import signal_another_thread

ROOT = Path(__file__).parents[1]


def test_who_follows_the_link_tries_a_mail_and_sees_its_record() -> None:
    command = [sys.executable, str(ROOT / "demo/trial.py")]
    environ = {"PATH": "/usr/bin:/bin"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process, at_end(process):
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
        signal_another_thread(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 0


@contextlib.contextmanager
def at_end(process: "subprocess.Popen[str]") -> Iterator[None]:
    """End a process, whatever happens, or its pipes are waited for without an end."""
    try:
        yield
    finally:
        process.terminate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("is_ready", [False, True])
def test_ctrl_c_or_the_end_of_the_terminal_ends_all_of_it(
    tmp_path: Path, number: signal.Signals, is_ready: bool
) -> None:
    environ = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(ROOT / "demo/trial.py")]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environ, start_new_session=True) as process,
        at_end(process),
    ):
        assert process.stdout
        if is_ready:
            process.stdout.readline()
        else:
            wait_until(lambda: list(tmp_path.glob("*/mail.db")), "the database that is being loaded")
        os.killpg(process.pid, number)
        assert process.communicate(timeout=60)[1] == ""  # which is at its end when the last process is
        assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_customer_answers_the_writer_of_a_mail_without_reply_to() -> None:
    mail = "From: Max <max@company.example>\nTo: Ann <ann@customer.example>\nSubject: x\n\nhello\n"
    code = "import email, email.policy, sys, customers; from email.message import EmailMessage as Mail"
    code += "; mail = email.message_from_string(sys.argv[1], Mail, policy=email.policy.default)"
    code += "; print(customers.reaction(mail, 'bounce@company.example', 'ann@customer.example').recipient)"
    finished = subprocess.run(
        [sys.executable, "-c", code, mail], cwd=ROOT / "demo", capture_output=True, text=True, check=True
    )
    assert finished.stdout == "max@company.example\n"
