"""The desk beside a real mail server: what waits in its queue, its half of a message's story, and the audit."""

import json
import socket
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from soak import KINDS, WORLD
from support.accounts import account
from support.admin import ask
from support.endpoint import Request, http
from support.mail_database_server import served
from support.mta import EXIM, LMTP, PIPE, PYTHON, Exim, Mta, Postfix, started
from support.smtp_sink import sink
from support.trials import (
    Behind,
    Database,
    Mail,
    answers,
    cut_after,
    cut_before,
    cut_within,
    flush_all,
    passes,
    raises,
    settings_for,
)

pytestmark = pytest.mark.mta
PATH = f"/usr/bin:/bin:/usr/sbin:{Path(EXIM or '/').parent}"


@pytest.fixture(params=[Postfix, Exim])
def mta(request: pytest.FixtureRequest) -> Iterator[Mta]:
    with sink() as bounces, started(request.param, bounces, PIPE) as server:
        yield server


def test_what_waits_is_shown_with_its_reason_and_is_not_lost(mta: Mta) -> None:
    database = Database()
    try:
        database.fault = answers(http(503))
        mta.settings(**settings_for(database))
        sender, recipients, message = Mail().envelope(1)
        mta.send(sender, recipients, message)
        mta.attempt()

        def desk(*arguments: str) -> tuple[int, Any]:
            done = ask(mta.env_file, *arguments, "--json", environ={"PATH": PATH}, python=PYTHON)
            assert done.stderr == ""
            return done.returncode, json.loads(done.stdout)

        config = ("--mta-config", str(mta.config))
        status, today = desk("today", *config)
        (waiting,) = today["waiting"]
        assert status == 1
        assert (waiting["sender"], waiting["recipients"]) == (sender, list(recipients))
        assert waiting["reason"] == "database_down: HTTP 503"
        status, audit = desk("audit", *config)
        assert (status, audit["places"]["waiting"], audit["lost"]) == (0, 1, [])
        (story,) = desk("trace", waiting["queue_id"], "--mta-log", str(mta.log_path))[1]["messages"]
        assert story["attempts"][0]["queue_id"] == waiting["queue_id"]
        assert any("mail_gateway" in line or "will try again" in line for line in story["mail_server"])
        mta.clear()
        status, audit = desk("audit", *config)
        assert (status, len(audit["lost"])) == (1, 1)
    finally:
        database.close()


def test_a_test_goes_through_postfix_to_its_record_which_is_removed(tmp_path: Path) -> None:
    with (
        served(f"sqlite:///{tmp_path}/mail.db", WORLD) as server,
        sink() as bounces,
        started(Postfix, bounces, PIPE) as mta,
    ):
        mta.settings(URL=server.url)
        there = server.search("crm.lead", [], "id")
        place = f"127.0.0.1:{mta.port}"
        done = ask(mta.env_file, "send-test", "info@example.com", "--smtp", place, "--remove", "--json", python=PYTHON)
        facts = json.loads(done.stdout)
        record = f"crm.lead {facts['record']['id']}"
        assert [(leg["what"], leg["how"]) for leg in facts["legs"]] == [
            ("the mail server", "took it"),
            ("the gateway", "delivered"),
            ("all", f"it is on {record}"),
        ]
        assert (done.returncode, facts["removed"]) == (0, f"{record} is removed.")
        assert server.search("crm.lead", [], "id") == there


POISON = Mail(body=b"poison\r\n", records=(), held=1)


def test_the_audit_of_much_mail_is_its_account_to_the_message(tmp_path: Path) -> None:
    """Each is in the same place to both, and of one that is deleted, and one that is doubled, the audit names these."""
    faults = cycle([cut_before, answers(http(502)), passes, cut_after, passes, answers(http(503)), cut_within, passes])

    def flaps(database: Database, connection: socket.socket, request: Request) -> None:
        is_poison = request.is_delivery and b"poison" in request.message
        (raises("LookupError: unknown encoding: x") if is_poison else next(faults))(database, connection, request)

    sent = [mail for weight, mail in KINDS.values() for _ in range(weight)] + [POISON] * 5
    numbered = [*enumerate(sent, 1)]
    late = [*enumerate([Mail()] * 5, len(sent) + 1)]
    with (
        served(f"sqlite:///{tmp_path}/mail.db", WORLD) as server,
        sink() as bounces,
        started(Postfix, bounces, LMTP) as mta,
    ):
        database = Behind(server)
        try:
            database.time_limit, database.fault, database.questions = 2, flaps, flaps
            mta.settings(**settings_for(database))
            send_all(mta, numbered)
            flush_all(mta, 60)
            database.fault, database.questions = answers(http(503)), passes
            send_all(mta, late)
            mta.attempt()
            found = account([mta], database, bounces, numbered + late, str(mta.folder / "var/journal"))
        finally:
            database.close()
    assert found.keys() == {"delivered once", "bounced", "held", "still queued"}  # or something differs
    assert (found["held"] >= 5, found["still queued"], found.total()) == (True, 5, 110)


def send_all(mta: Mta, numbered: list[tuple[int, Mail]]) -> None:
    for number, mail in numbered:
        for _ in range(mail.copies):
            mta.send(*mail.envelope(number))
