"""The desk's postmaster: whom it tells what, once a day, and never about itself."""

import email
import json
import os
import time
from pathlib import Path

import pytest
from support.desk import FATES, WORLD, Desk
from support.endpoint import Endpoint, fault
from support.mail_database_server import served


@pytest.fixture
def desk(tmp_path: Path, endpoint: Endpoint) -> Desk:
    """With a sendmail that keeps what it is given, and an empty queue."""
    found = Desk(tmp_path, endpoint.url, POSTMASTER="joe@outside.test")
    found.program("sendmail", f'echo "$@" > {tmp_path}/arguments\ncat > {tmp_path}/mail.$$')
    found.program("postqueue", "")
    return found


def run(desk: Desk, *arguments: str) -> tuple[int, str]:
    screen = desk.run("postmaster", *arguments)
    return screen.status, screen.out + screen.err


def mails(desk: Desk) -> list[bytes]:
    return [path.read_bytes() for path in sorted(desk.folder.glob("mail.*"))]


def hold(desk: Desk, endpoint: Endpoint) -> None:
    endpoint.answers = [fault(2, "the alias is broken")]
    result = desk.gateway.run("info@example.com", message=b"Message-ID: <1@outside.test>\nSubject: hello\n\nwords\n")
    assert result.facts["outcome"] == "held"


def test_nothing_is_no_mail(desk: Desk) -> None:
    assert run(desk) == (0, "Nothing has to be told.\n")
    assert mails(desk) == []


def test_what_is_held_is_told_once_a_day(desk: Desk, endpoint: Endpoint) -> None:
    hold(desk, endpoint)
    status, out = run(desk, "--dry-run")
    assert (status, out.splitlines()[0], mails(desk)) == (1, "Would tell joe@outside.test:", [])
    assert run(desk)[1].startswith("Told joe@outside.test:")
    (mail,) = map(email.message_from_bytes, mails(desk))
    text = str(mail.get_payload())
    assert (mail["To"], mail["Auto-Submitted"]) == ("joe@outside.test", "auto-generated")
    assert text.startswith("1 message is held, the oldest since ")
    assert "\n  1: fault 2: the alias is broken\n" in text
    assert (desk.folder / "arguments").read_text() == "-i -f <> -- joe@outside.test\n"
    assert run(desk)[1].startswith("joe@outside.test was told within the last day:")
    assert len(mails(desk)) == 1
    yesterday = time.time() - 24 * 3600
    os.utime(desk.folder / "held" / "postmaster", (yesterday, yesterday))
    run(desk)
    assert len(mails(desk)) == 2


@pytest.mark.parametrize(
    ("hours", "recipient", "is_told"),
    [
        (5, "info@example.com", True),
        (1, "info@example.com", False),
        (5, "joe@outside.test", False),
        (5, "ann@outside.test", False),
    ],
)
def test_what_waits_for_us_and_for_long_is_told(desk: Desk, hours: int, recipient: str, is_told: bool) -> None:
    row = {
        "queue_name": "deferred",
        "queue_id": "4Xy",
        "arrival_time": time.time() - hours * 3600,
        "sender": "ann@outside.test",
        "recipients": [{"address": recipient, "delay_reason": "4.4.1 no answer"}],
    }
    desk.program("postqueue", f"echo '{json.dumps(row)}'")
    status, out = run(desk)
    assert (status, len(mails(desk)), "1: 4.4.1 no answer" in out) == (is_told, is_told, is_told)
    assert ("1 message waits in the mail server's queue" in out) is is_told


def test_what_is_lost_or_doubled_is_told(tmp_path: Path) -> None:
    with served(f"sqlite:///{tmp_path}/mail.db", WORLD) as server:
        desk = Desk(tmp_path, server.url, POSTMASTER="joe@outside.test")
        desk.program("postqueue", "")
        for number, name in enumerate(["one", "two", "three"]):
            desk.deliver(FATES[0]._replace(name=name, sender=f"{name}@outside.test"), number)
        *lost, last = server.search("mail.message", [["message_id", "like", "@outside.test"]], "message_id", "res_id")
        server.call("mail.message", "unlink", [row["id"] for row in lost])
        values = {"message_id": last["message_id"], "model": "crm.lead", "res_id": last["res_id"], "body": "words"}
        server.call("mail.message", "create", values)
        told = ["2 messages are lost, 1 doubled: mail-gateway-admin audit"]
        told += [f"  <{name}@outside.test>" for name in ("two", "one", "three")]  # the newest first; doubled ones last
        assert run(desk, "--dry-run") == (1, "\n".join(["Would tell joe@outside.test:", *told, ""]))


@pytest.mark.parametrize("address", [None, "info@example.com", "-f@outside.test", "joe", "joe@x y"])
def test_wrong_settings(desk: Desk, address: str | None) -> None:
    desk.gateway.command(POSTMASTER=address)
    assert run(desk)[0] == 2


def test_without_alias_domains_any_address_may_be_told(desk: Desk, endpoint: Endpoint) -> None:
    hold(desk, endpoint)
    desk.gateway.command(ALIAS_DOMAINS=None)
    assert run(desk)[1].startswith("Told joe@outside.test:")


def test_a_mail_server_that_refuses_is_told_of_and_tried_again(desk: Desk, endpoint: Endpoint) -> None:
    hold(desk, endpoint)
    desk.program("sendmail", "echo no such thing >&2; exit 75")
    said = "Mailing joe@outside.test what is to be told.\n"
    assert run(desk) == (1, f"{said}mail-gateway-admin: sendmail ended with status 75: no such thing\n")
    desk.program("sendmail", f"cat > {desk.folder}/mail.1")
    run(desk)
    assert len(mails(desk)) == 1
