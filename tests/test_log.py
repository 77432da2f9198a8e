"""The log: one line for each message, whatever is in it."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.endpoint import Endpoint, fault, traceback
from support.gateway import ENVIRONMENT, PASSWORD, Gateway

from mailgate.log import KEYS, MAX_VALUE_CHARACTERS, PRIORITIES, Facts, line, masked, quoted
from mailgate.outcome import Outcome, Verdict


def test_the_line_of_a_delivered_message(gateway: Gateway, endpoint: Endpoint) -> None:
    message = b"Message-ID: <a@b>\n\n"
    result = gateway.run("--queue-id=Q1", "--sender=ann@b.test", "x@y", "info@example.com", "z@y", message=message)
    facts = result.facts
    assert 0 < float(facts.pop("seconds")) < 60
    assert facts == {
        "queue_id": "Q1",
        "message_id": "<a@b>",
        "sender": "ann@b.test",
        "recipients": "x@y,info@example.com,z@y",
        "original_recipients": "",
        "unmatched": "x@y,z@y",
        "outcome": "delivered",
        "status_code": "2.0.0",
        "record_id": "7",
        "model": "",
        "cause": "",
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        ("", ""),
        (42, "42"),
        ("a@b", "a@b"),
        (["a@b", "c@d"], "a@b,c@d"),
        ("a b", '"a b"'),
        ('a"b\\', '"a\\"b\\\\"'),
        ("a\nb\x1b\0", '"a\\nb\\x1b\\x00"'),
        ("\u00fc\udcff", '"\\xfc\\udcff"'),
        (
            "x" * (MAX_VALUE_CHARACTERS + 1),
            f'"{"x" * MAX_VALUE_CHARACTERS}... ({MAX_VALUE_CHARACTERS + 1} characters)"',
        ),
    ],
)
def test_a_value_is_printable_and_of_bounded_length(value: object, expected: str) -> None:
    assert quoted(value) == expected


@given(st.dictionaries(st.sampled_from([*vars(Facts())]), st.one_of(st.text(), st.lists(st.text()))), st.text())
def test_no_value_ends_the_line_or_looks_like_another_key(values: dict[str, object], cause: str) -> None:
    facts = Facts()
    vars(facts).update(values)
    text = line(facts, Verdict(Outcome.FAILED, cause), 0.5)
    assert text.isascii()
    assert text.isprintable()
    assert re.fullmatch(" ".join(rf'{key}=("([^"\\]|\\.)*"|[^ "\\]*)' for key in KEYS), text)


def test_what_the_database_says_is_logged_without_the_password(gateway: Gateway, endpoint: Endpoint) -> None:
    endpoint.answers = [fault(1, traceback(f"ValueError: the server repeats {PASSWORD} back"))]
    result = gateway.run("info@example.com")
    assert result.ending == (75, "4.3.0", "database_error")
    assert "the server repeats ******** back" in result.facts["cause"]


def test_the_log_may_be_standard_error_after_the_line(gateway: Gateway) -> None:
    command = gateway.command("info@example.com", LOG="stderr")
    finished = subprocess.run(
        command, input=b"a: b\n\n", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENVIRONMENT, check=False
    )
    first, second = finished.stdout.splitlines()
    assert first == b"2.0.0 delivered"  # Postfix reads the status code at the very beginning
    assert b"outcome=delivered" in second


def test_lines_are_appended_and_not_for_every_user_to_read(gateway: Gateway) -> None:
    command = gateway.command("info@example.com")
    for _ in range(2):
        subprocess.run(command, input=b"a: b\n\n", stdout=subprocess.DEVNULL, env=ENVIRONMENT, check=True)
    assert len(gateway.log.read_text().splitlines()) == 2
    assert gateway.log.stat().st_mode & 0o007 == 0


def test_a_log_that_can_not_be_written_changes_no_ending(gateway: Gateway) -> None:
    assert gateway.run("info@example.com", LOG="/dev/full").status == 0


def test_a_person_at_a_terminal_sees_the_log(gateway: Gateway) -> None:
    controller, terminal = os.openpty()
    command = gateway.command("info@example.com", PASSWORD=None)
    subprocess.run(command, input=b"a: b\n\n", stdout=subprocess.DEVNULL, stderr=terminal, env=ENVIRONMENT, check=False)
    os.close(terminal)
    assert b"MAIL_GATEWAY_PASSWORD must be given" in os.read(controller, 10_000)
    os.close(controller)


def test_a_dry_run_prints_what_matches_and_what_would_be_added(gateway: Gateway, endpoint: Endpoint) -> None:
    arguments = ("--dry-run", "--sender=ann@b.test", "--", "Info+x@example.com", "x\x1by@z", "catchall@example.com")
    result = gateway.run(*arguments, message=b"Message-ID: <a@b>\n\n", RECIPIENT_DELIMITER="+")
    assert result.status == 0
    assert result.out.decode().splitlines() == [
        "Info+x@example.com: delivered as Info@example.com (any address at an alias or allowed domain)",
        '"x\\x1by@z": no rule matches',
        "catchall@example.com: delivered as catchall@example.com (the catchall address of an alias domain)",
        "Return-Path: <ann@b.test>",
        "Delivered-To: <Info@example.com>, <catchall@example.com>",
    ]
    assert result.log == ""
    assert endpoint.connections == 0


@pytest.mark.parametrize(
    ("arguments", "message", "settings", "status", "lines"),
    [
        (["x@y"], b"a: b\n\n", {}, 67, ["x@y: no rule matches", "5.1.1 no such address here"]),
        (["x@y"], b"", {}, 65, ["5.6.0 not a mail message", '"empty input"']),
        (
            ["x@y"],
            b"a: b\n\n",
            {"URL": None},
            75,
            ["4.3.5 gateway not set", "MAIL_GATEWAY_URL is missing"],
        ),
    ],
)
def test_a_dry_run_ends_as_the_delivery_would(
    gateway: Gateway, arguments: list[str], message: bytes, settings: dict, status: int, lines: list[str]
) -> None:
    result = gateway.run("--dry-run", *arguments, message=message, **settings)
    assert result.status == status
    for text in lines:
        assert text in result.out.decode()
    assert result.log == ""


def test_a_hold_folder_gets_the_folders_of_a_maildir(gateway: Gateway, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.answers = [fault(2, "x")]
    hold = tmp_path / "held"
    hold.mkdir()
    for number in range(3):
        assert gateway.run("info@example.com", message=b"Subject: %d\n\n" % number, HOLD=hold).status == 0
        assert len(list((hold / "new").iterdir())) == number + 1
    assert sorted(path.name for path in hold.iterdir()) == ["cur", "new", "tmp"]
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in hold.iterdir())


ORIGINALS = ("--original-recipient=Sales@Example.com", "--original-recipient=")


def test_the_line_has_what_the_recipients_were_and_the_model_that_was_asked_for(gateway: Gateway) -> None:
    facts = gateway.run("--model=crm.lead", *ORIGINALS, "--", "info@example.com", "z@y").facts
    assert facts["recipients"] == "info@example.com,z@y"
    assert facts["original_recipients"] == "Sales@Example.com,"
    assert (facts["record_id"], facts["model"]) == ("7", "crm.lead")


@pytest.mark.parametrize(
    ("arguments", "sender"),
    [
        (["--sender="], "<>"),
        (["--sender=<>"], "<>"),
        (["--sender=MAILER-DAEMON"], "<>"),
        ([], ""),
        (["--sender=a@b"], "a@b"),
    ],
)
def test_nobody_is_another_sender_than_one_that_is_not_known(
    gateway: Gateway, arguments: list[str], sender: str
) -> None:
    assert gateway.run(*arguments, "info@example.com").facts["sender"] == sender


@pytest.mark.parametrize(
    ("settings", "outcome"),
    [
        ({"MAX_SIZE": 100}, "too_large"),
        ({"URL": None}, "settings"),
        ({"ALAISES": "x"}, "settings"),
        ({"HOLD": "/no/such/folder"}, "settings"),
    ],
)
def test_the_line_names_the_message_that_was_not_read_to_its_end(
    gateway: Gateway, settings: dict, outcome: str
) -> None:
    message = b"From: Ann <ann@b.test>\nMessage-ID:\n <a@b>\n\n" + b"x" * 2**21
    facts = gateway.run(
        "--sender=ann@b.test", *ORIGINALS, "--", "a@example.com", "b@example.com", message=message, **settings
    ).facts
    assert facts["outcome"] == outcome
    assert facts["message_id"] == "<a@b>"
    assert facts["sender"] == "ann@b.test"
    assert facts["recipients"] == "a@example.com,b@example.com"
    assert facts["original_recipients"] == "Sales@Example.com,"


def test_wrong_settings_and_no_message_are_wrong_settings(gateway: Gateway) -> None:
    assert gateway.run("info@example.com", message=b"", URL=None).ending == (75, "4.3.5", "settings")


@pytest.mark.parametrize("name", ["HOLD", "JOURNAL", "PASSWORD_FILE", "CA_FILE"])
def test_a_path_that_can_not_be_used_is_named(gateway: Gateway, tmp_path: Path, name: str) -> None:
    settings: dict[str, Any] = {name: tmp_path / "missing"}
    result = gateway.run("info@example.com", **settings)
    assert result.ending == (75, "4.3.5", "settings")
    assert f"{tmp_path}/missing" in result.facts["cause"]


def test_a_log_that_can_not_be_used_is_named(gateway: Gateway, tmp_path: Path) -> None:
    result = gateway.run("--dry-run", "info@example.com", LOG=tmp_path / "missing" / "log")
    assert f"MAIL_GATEWAY_LOG can't be used: No such file or directory: {tmp_path}/missing" in result.out.decode()


@pytest.mark.parametrize(
    ("secret", "text", "masked_text"),
    [
        (
            "admin",
            "the administrator admin said 'admin' (admin).",
            "the administrator ******** said '********' (********).",
        ),
        ("admin", "admin", "********"),
        ("admin", "admins, myadmin, admin_1, admin-1", "admins, myadmin, admin_1, ********-1"),
        ("$ecret", "x$ecret $ecrets", "x******** $ecrets"),
        ("a.c", "abc a.c", "abc ********"),
        ("p\u00e4ss", "p\u00e4ssen p\u00e4ss", "p\u00e4ssen ********"),
    ],
)
def test_a_secret_is_masked_where_it_stands_alone(secret: str, text: str, masked_text: str) -> None:
    assert masked(text, secret) == masked_text


def test_what_the_database_drops_is_a_notice() -> None:
    assert PRIORITIES[Outcome.DROPPED] == "LOG_NOTICE"
