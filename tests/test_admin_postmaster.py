"""The desk's postmaster: whom it tells what, once a day, and never about itself."""

import email
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from support.endpoint import Endpoint, fault
from support.gateway import ENVIRONMENT, Gateway
from support.mail_database_server import ROOT


class Desk(NamedTuple):
    """A gateway, and the programs of a mail server: a sendmail that keeps what it is given, a queue."""

    gateway: Gateway
    folder: Path

    def run(self, *arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "mailgate.admin", "--env-file", str(self.gateway.env_file), "postmaster"]
        environ = ENVIRONMENT | {"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin"}
        done = subprocess.run([*command, *arguments], capture_output=True, env=environ, cwd=ROOT, check=False)
        return done.returncode, done.stdout.decode() + done.stderr.decode()

    def program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    @property
    def mails(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.folder.glob("mail.*"))]


@pytest.fixture
def desk(tmp_path: Path, endpoint: Endpoint) -> Desk:
    (tmp_path / "held").mkdir()
    gateway = Gateway(tmp_path, URL=endpoint.url, HOLD=tmp_path / "held", PATIENCE=0, POSTMASTER="joe@outside.test")
    gateway.command()  # writes the settings
    found = Desk(gateway, tmp_path)
    found.program("sendmail", f'echo "$@" > {tmp_path}/arguments\ncat > {tmp_path}/mail.$$')
    found.program("postqueue", "")
    return found


def hold(desk: Desk, endpoint: Endpoint) -> None:
    endpoint.answers = [fault(2, "the alias is broken")]
    result = desk.gateway.run("info@example.com", message=b"Message-ID: <1@outside.test>\nSubject: hello\n\nwords\n")
    assert result.facts["outcome"] == "held"


def test_nothing_is_no_mail(desk: Desk) -> None:
    assert desk.run() == (0, "Nothing has to be told.\n")
    assert desk.mails == []


def test_what_is_held_is_told_once_a_day(desk: Desk, endpoint: Endpoint) -> None:
    hold(desk, endpoint)
    status, out = desk.run("--dry-run")
    assert (status, out.splitlines()[0], desk.mails) == (1, "Would tell joe@outside.test:", [])
    assert desk.run()[1].startswith("Told joe@outside.test:")
    (mail,) = map(email.message_from_bytes, desk.mails)
    text = str(mail.get_payload())
    assert (mail["To"], mail["Auto-Submitted"]) == ("joe@outside.test", "auto-generated")
    assert text.startswith("1 messages are held, the oldest since ")
    assert "\n  1: fault 2: the alias is broken\n" in text
    assert (desk.folder / "arguments").read_text() == "-i -f <> -- joe@outside.test\n"
    assert desk.run()[1].startswith("joe@outside.test was told within the last day:")
    assert len(desk.mails) == 1
    yesterday = time.time() - 24 * 3600
    os.utime(desk.folder / "held" / "postmaster", (yesterday, yesterday))
    desk.run()
    assert len(desk.mails) == 2


@pytest.mark.parametrize(
    ("hours", "recipient", "is_told"),
    [(5, "info@example.com", True), (1, "info@example.com", False), (5, "joe@outside.test", False)],
)
def test_what_waits_for_long_is_told_except_his_own(desk: Desk, hours: int, recipient: str, is_told: bool) -> None:
    row = {
        "queue_name": "deferred",
        "queue_id": "4Xy",
        "arrival_time": time.time() - hours * 3600,
        "sender": "ann@outside.test",
        "recipients": [{"address": recipient, "delay_reason": "4.4.1 no answer"}],
    }
    desk.program("postqueue", f"echo '{json.dumps(row)}'")
    status, out = desk.run()
    assert (status, len(desk.mails), "1: 4.4.1 no answer" in out) == (is_told, is_told, is_told)


@pytest.mark.parametrize("address", [None, "info@example.com", "-f@outside.test", "joe", "joe@x y"])
def test_wrong_settings(desk: Desk, address: str | None) -> None:
    desk.gateway.command(POSTMASTER=address)
    assert desk.run()[0] == 2


def test_without_alias_domains_any_address_may_be_told(desk: Desk, endpoint: Endpoint) -> None:
    hold(desk, endpoint)
    desk.gateway.command(ALIAS_DOMAINS=None)
    assert desk.run()[1].startswith("Told joe@outside.test:")


def test_a_mail_server_that_refuses_is_told_of_and_tried_again(desk: Desk, endpoint: Endpoint) -> None:
    hold(desk, endpoint)
    desk.program("sendmail", "echo no such thing >&2; exit 75")
    assert desk.run() == (1, "mail-gateway-admin: sendmail ended with status 75: no such thing\n")
    desk.program("sendmail", f"cat > {desk.folder}/mail.1")
    desk.run()
    assert len(desk.mails) == 1
