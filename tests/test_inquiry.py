"""What an answer means that has several meanings, and what becomes of a message that nobody answers."""

import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.endpoint import Answer, Endpoint, Request, cut, fault, hang, http, returns
from support.gateway import ENVIRONMENT, PROGRAM, Gateway
from support.journal import age, new_database

from mailgate.inquiry import NOT_SEEN

LOOP = fault(1, "TypeError: cannot marshal None unless allow_none is enabled")
NOTICE = "References: <1-openerp-loop-detection-bounce-email@host>"
SEARCHED = b"<string>mail.message</string>"


def mail(*fields: str) -> bytes:
    head = ["From: Ann <ann@outside.test>", "Message-ID: <1@outside.test>", *fields]
    return "\n".join([*head, "", "words", ""]).encode()


def rows(messages: object, aliases: Sequence[object] = ()) -> Answer:
    """Return the answer of a database that has these messages, and these aliases that take not everybody's mail."""

    def answer(connection: socket.socket, request: Request) -> None:
        connection.sendall(returns(messages if SEARCHED in request.body else list(aliases)))

    return answer


@pytest.fixture
def gateway(endpoint: Endpoint, tmp_path: Path) -> Gateway:
    (tmp_path / "held").mkdir()
    return Gateway(tmp_path, URL=endpoint.url, PATIENCE=0, READ_TIMEOUT=5, HOLD=tmp_path / "held")


def deliver(gateway: Gateway, *fields: str, to: str = "info@example.com", sender: str = "ann@outside.test") -> str:
    result = gateway.run("--queue-id=4XyZ", f"--sender={sender}", to, message=mail(*fields))
    assert result.status == {"4": 75, "2": 0}[result.out.decode()[0]]
    return result.facts["outcome"]


def held(gateway: Gateway) -> list[Path]:
    return list((gateway.folder / "held").glob("new/*"))


def test_what_the_database_has_is_known_and_the_record_is_named(gateway: Gateway, endpoint: Endpoint) -> None:
    endpoint.answers = [returns(False)]
    endpoint.inquiry = rows([{"id": 5, "model": "crm.lead", "res_id": 42}])
    result = gateway.run("--queue-id=4XyZ", "info@example.com", message=mail())
    assert result.ending == (0, "2.0.0", "known")
    assert (result.facts["record_id"], result.facts["cause"]) == ("42", "it is on crm.lead 42")
    again = gateway.run("--queue-id=4XyZ", "info@example.com", message=mail())
    assert again.ending == (0, "2.0.0", "known")
    assert len(endpoint.messages) == 1


@pytest.mark.parametrize(
    ("arguments", "aliases"),
    [
        ({"to": "catchall@example.com"}, []),
        ({"to": "bounce+1-crm.lead-2@example.com"}, []),
        ({"sender": ""}, []),
        ({"fields": ["To: Catchall <catchall@example.com>"]}, []),
        ({"fields": ["Content-Type: multipart/report; report-type=delivery-status"]}, []),
        ({"fields": ["Auto-Submitted: auto-replied"]}, []),
        ({"fields": ["List-Id: <x.lists.test>"]}, []),
        ({}, [{"id": 1}]),
    ],
)
def test_what_may_be_a_bounce_or_told_to_its_sender_is_accepted(
    gateway: Gateway, endpoint: Endpoint, arguments: dict, aliases: list
) -> None:
    endpoint.answers = [returns(False)]
    endpoint.inquiry = rows([], aliases)
    assert deliver(gateway, *arguments.pop("fields", ()), **arguments) == "accepted"


@pytest.mark.parametrize("inquiry", [fault(4, "not allowed"), returns(5), cut, http(503)])
def test_a_database_that_can_not_be_asked_is_believed(gateway: Gateway, endpoint: Endpoint, inquiry: Answer) -> None:
    endpoint.answers = [returns(False)]
    endpoint.inquiry = inquiry
    assert deliver(gateway) == "accepted"


def test_a_question_waits_not_as_long_as_a_delivery(gateway: Gateway, endpoint: Endpoint, tmp_path: Path) -> None:
    """A message may need several, and a run has a deadline."""
    program = tmp_path / "program"
    program.mkdir()
    shutil.copytree(PROGRAM.parent / "mailgate", program / "mailgate")
    path = program / "mailgate" / "database.py"
    assert "QUESTION_SECONDS = 15.0" in path.read_text()
    path.write_text(path.read_text().replace("QUESTION_SECONDS = 15.0", "QUESTION_SECONDS = 0.5"))
    shutil.copy(PROGRAM, program)
    endpoint.answers, endpoint.inquiry = [returns(False)], hang
    command = gateway.command("info@example.com", READ_TIMEOUT=200)
    command[1] = str(program / PROGRAM.name)
    subprocess.run(command, input=mail(), env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL, timeout=100)
    assert "outcome=accepted" in gateway.log.read_text()


def test_what_is_nowhere_waits_is_asked_for_once_more_and_is_held(gateway: Gateway, endpoint: Endpoint) -> None:
    endpoint.answers = [returns(False)]
    endpoint.inquiry = rows([])
    assert [deliver(gateway) for _ in range(3)] == ["in_progress"] * 3
    assert len(endpoint.messages) == 1
    age(gateway.settings["JOURNAL"], 5)
    assert deliver(gateway) == "held"
    assert NOT_SEEN in gateway.log.read_text().splitlines()[-1]
    assert len(endpoint.messages) == 2
    assert deliver(gateway) == "held"  # a next try, though it was told so
    assert len(held(gateway)) == 1


def test_what_is_nowhere_for_a_moment_is_delivered(gateway: Gateway, endpoint: Endpoint) -> None:
    endpoint.answers = [returns(False), returns(7)]
    endpoint.inquiry = rows([])
    assert deliver(gateway) == "in_progress"
    age(gateway.settings["JOURNAL"], 5)
    assert deliver(gateway) == "delivered"


@pytest.mark.parametrize(
    ("fields", "sender", "settings", "outcome"),
    [
        ([], "ann@outside.test", {}, "dropped"),
        ([], "ann@outside.test", {"HOLD_LOOPS": "yes"}, "held"),
        ([NOTICE], "ann@outside.test", {}, "held"),
        ([NOTICE.replace("References", "In-Reply-To")], "ann@outside.test", {}, "held"),
        ([NOTICE], "", {}, "dropped"),
        ([NOTICE, "Auto-Submitted: auto-replied"], "ann@outside.test", {}, "dropped"),
        ([NOTICE, "Auto-Submitted: no"], "ann@outside.test", {}, "held"),
        ([NOTICE, "Precedence: bulk"], "ann@outside.test", {}, "dropped"),
        ([NOTICE], "ann@outside.test", {"HOLD": None}, "dropped"),
    ],
)
def test_a_person_s_answer_to_a_notice_is_held(
    gateway: Gateway, endpoint: Endpoint, fields: list[str], sender: str, settings: dict, outcome: str
) -> None:
    endpoint.answers = [LOOP]
    gateway.settings |= settings
    assert deliver(gateway, *fields, sender=sender) == outcome
    assert len(held(gateway)) == (outcome == "held")


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_a_message_that_is_never_answered_is_held_after_three_tries(
    gateway: Gateway, endpoint: Endpoint, request: pytest.FixtureRequest, store: str
) -> None:
    if store == "postgresql":
        gateway.settings |= new_database(request.getfixturevalue("journal_server"), gateway.folder)
    endpoint.answers = [cut]
    endpoint.inquiry = rows([])
    for _ in range(3):
        assert deliver(gateway) == "cut_off"
        age(gateway.settings["JOURNAL"], 5)
    result = gateway.run("--queue-id=4XyZ", "info@example.com", message=mail("Subject: Grüße, K\u00f6ln"))
    assert result.ending == (0, "2.0.0", "held")
    assert "tried 3 times" in result.facts["cause"]
    assert len(endpoint.messages) == 3


def test_while_the_database_does_not_answer_mail_waits(gateway: Gateway, endpoint: Endpoint) -> None:
    """A proxy says 502 for hours: this is no message's fault."""
    endpoint.answers = [http(502)]
    endpoint.inquiry = http(502)
    for _ in range(6):
        assert deliver(gateway) == "cut_off"
        age(gateway.settings["JOURNAL"], 5)
    assert len(endpoint.messages) == 2
    endpoint.inquiry, endpoint.answers = rows([]), [returns(7)]
    assert deliver(gateway) == "delivered"
    assert held(gateway) == []


def test_a_message_that_the_database_has_after_all_is_known(gateway: Gateway, endpoint: Endpoint) -> None:
    endpoint.answers = [cut]
    endpoint.inquiry = rows([{"id": 5, "model": "crm.lead", "res_id": 42}])
    for _ in range(2):
        assert deliver(gateway) == "cut_off"
        age(gateway.settings["JOURNAL"], 5)
    assert deliver(gateway) == "known"
    assert len(endpoint.messages) == 2


# --- the hold folder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "sender", "name"),
    [
        ("An order: 200 chairs", "ann@outside.test", "_ann@outside.test_An-order-200-chairs_"),
        ("=?utf-8?q?K=C3=B6ln?=", "ann@outside.test", "_ann@outside.test_Koln_"),
        ("=?nope?q?K=C3=B6ln?= ../../etc", "", "_nobody_"),
        ("x" * 500, "ann@outside.test", f"_ann@outside.test_{'x' * 40}_"),
    ],
)
def test_a_held_file_s_name_can_be_read(
    gateway: Gateway, endpoint: Endpoint, subject: str, sender: str, name: str
) -> None:
    endpoint.answers = [fault(2, "x")]
    assert deliver(gateway, f"Subject: {subject}", sender=sender) == "held"
    (path,) = held(gateway)
    assert name in path.name
    assert path.suffix == ".eml"
    assert path.name.isascii()


def test_a_second_hold_of_a_message_takes_the_place_of_the_first(gateway: Gateway, endpoint: Endpoint) -> None:
    endpoint.answers = [fault(2, "x")]
    assert deliver(gateway) == "held"
    (first,) = held(gateway)
    result = gateway.run("--queue-id=by-hand", "info@example.com", message=mail())
    assert result.ending == (0, "2.0.0", "held")
    (second,) = held(gateway)
    assert first != second
