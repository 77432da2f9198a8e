"""The desk's held: what it shows, what it gives to the database once, and what it does by hand."""

import contextlib
import io
import itertools
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import desk as cast
from support.desk import Screen
from support.endpoint import Endpoint, fault, returns
from support.gateway import ENVIRONMENT, PROGRAM, coverage_environment
from support.journal import age, execute
from support.mail_database_server import ROOT, Server, served

from mailgate import settings, walk
from mailgate.database import Client
from mailgate.envelope import Envelope, Raw, Recipient, spool
from mailgate.log import Facts
from mailgate.outcome import Outcome

COUNTRIES = {"id": 4, "local_part": "countries", "domain": "example.com", "model": "res.country"}
WORLD = cast.WORLD | {"aliases": [*cast.WORLD["aliases"], COUNTRIES], "parameters": {}}
READ_TIMEOUT = 150


class Desk(cast.Desk):
    """The same, with mail that is held."""

    def send(self, count: int = 1, to: str = "broken@example.com", fields: str = "", name: str = "mail") -> None:
        """Have the gateway deliver mails in this process; each has its number."""
        config = settings.build(*settings.read({}, str(self.gateway.env_file)))
        client = Client(config)
        for number in range(count):
            with spool(io.BytesIO(message(f"{name}-{number}", fields)), config.max_size).file as file:
                raw = Raw(file, 0, file.seek(0, os.SEEK_END))
                told = Facts(f"4Xy{number}")
                verdict = walk.deliver(config, client, Envelope("ann@outside.test", (Recipient(to),)), raw, told)
                assert verdict.outcome is Outcome.HELD, verdict


def message(name: str, fields: str = "") -> bytes:
    head = f"From: Ann <ann@outside.test>\nMessage-ID: <{name}@outside.test>\nSubject: {name}\n{fields}"
    return f"{head}Date: Mon, 30 Nov 2026 09:00:00 +0000\n\nwords\n".encode()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Server]:
    with served(f"sqlite:///{tmp_path}/database.db", WORLD) as server:
        yield server


@pytest.fixture
def desk(tmp_path: Path, database: Server) -> Desk:
    return Desk(tmp_path, database.url, READ_TIMEOUT=READ_TIMEOUT)


def mend_alias(database: Server) -> None:
    database.call("mail.alias", "write", [3], {"alias_defaults": "{}"})


def subjects(database: Server) -> list[str]:
    """The subjects of all mail that is on a record, sorted."""
    return sorted(row["subject"] for row in database.search("mail.message", [("model", "!=", False)], "subject"))


# --- release --------------------------------------------------------------------------------------------------------


def test_what_is_held_is_delivered_once_and_its_file_goes(desk: Desk, database: Server) -> None:
    desk.send(3)
    assert [row["subject"] for row in desk.facts("held", "list")["held"]] == ["mail-0", "mail-1", "mail-2"]
    mend_alias(database)
    name = desk.files[1].name
    one = desk.facts("held", "release", name)["messages"]
    assert [(row["name"], row["ending"], row["record_id"], row["is_released"]) for row in one] == [
        (name, "delivered", 1, True)
    ]
    rest = desk.run("held", "release", "--all")
    assert (rest.status, rest.out.splitlines()[:2]) == (0, ["2 of 2 released.", "  delivered: 2"])
    assert (subjects(database), desk.files) == (["mail-0", "mail-1", "mail-2"], [])
    assert desk.run("held", "release", "--all") == Screen(0, "Nothing is held that this names.\n", "")


def test_a_terminal_has_colour_and_a_progress_bar_and_nothing_else_has(desk: Desk) -> None:
    desk.send()
    words = ("held", "release", "--all")
    screen = desk.run(*words)
    assert ("\x1b" in screen.out + screen.err, "Releasing" in screen.err) == (False, False)
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        desk.command(*words), stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal, cwd=ROOT,
        env=ENVIRONMENT | coverage_environment() | {"TERM": "xterm"},
    ):  # fmt: skip
        os.close(terminal)
        seen = b""
        with contextlib.suppress(OSError):  # which is how Linux tells that the other end is closed
            while more := os.read(controller, 4096):
                seen += more
    os.close(controller)
    assert re.search(rb"Releasing .*\x1b\[.*100%", seen)
    assert b"\x1b[31m" in seen.partition(b"0 of 1 released.")[2]


def test_a_subject_that_nobody_can_decode_is_held_and_shown(desk: Desk) -> None:
    mail = b"From: ann@outside.test\nMessage-ID: <1@outside.test>\nSubject: =?utf-8?b?a?=\n\nwords\n"
    assert desk.gateway.run("broken@example.com", message=mail).ending == (0, "2.0.0", "held")
    assert [row["subject"] for row in desk.facts("held", "list")["held"]] == ["=?utf-8?b?a?="]
    assert desk.facts("trace", "outside.test")["messages"][0]["subject"] == "=?utf-8?b?a?="


def test_without_a_hold_folder_nothing_of_the_folder_at_hand_is_released(
    desk: Desk, database: Server, tmp_path: Path
) -> None:
    own = tmp_path / "home" / "new" / "private.eml"
    own.parent.mkdir(parents=True)
    own.write_bytes(message("private", "To: info@example.com\n"))
    desk.gateway.command(HOLD=None)
    for arguments in (["list"], ["release", "--all"], ["show", "private"], ["drop", "private", "--why", "x"]):
        command, environ = desk.command("held", *arguments), ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, env=environ, cwd=tmp_path / "home", check=False)
        text = b"mail-gateway-admin: there is no hold folder: MAIL_GATEWAY_HOLD is not set\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, b"", text)
    assert (own.exists(), subjects(database)) == (True, [])


def test_a_hold_folder_that_can_not_be_read_is_not_an_empty_one(desk: Desk) -> None:
    (desk.hold / "new").write_text("in the way of the folder")
    screen = desk.run("held", "list")
    why = "Not a directory. A part of this path is a file, and must be a folder."
    assert screen == Screen(1, "", f"mail-gateway-admin: {desk.hold}/new can't be read: {why}\n")


def test_a_sender_who_had_been_told_is_named(desk: Desk, database: Server) -> None:
    desk.send()
    mend_alias(database)
    screen = desk.run("held", "release", "--all")
    assert "may have told these senders that their mail failed" in screen.out
    assert "ann@outside.test" in screen.out


def test_a_dry_run_tells_and_changes_nothing(desk: Desk, database: Server) -> None:
    desk.send(2)
    mend_alias(database)
    files = desk.files
    screen = desk.run("held", "release", "--all", "--dry-run")
    assert screen.status == 0
    assert "Would give 2 held messages to mydatabase" in screen.out
    assert screen.out.count("broken@example.com") == 2
    for what in (["drop", "--why", "no"], ["mend"], ["forward", "joe@outside.test"]):
        assert desk.run("held", what[0], files[0].name, *what[1:], "--dry-run").out.startswith("Would ")
    assert (desk.files, subjects(database)) == (files, [])
    assert sorted(path.name for path in desk.hold.iterdir()) == ["cur", "new", "tmp"]


def test_by_cause(desk: Desk, database: Server) -> None:
    desk.send(1)
    desk.send(1, "countries@example.com", name="other")
    mend_alias(database)
    screen = desk.run("held", "release", "--cause", "COLOUR field")
    assert screen.out.startswith("1 of 1 released.")
    assert subjects(database) == ["mail-0"]


def test_while_the_cause_is_there_one_is_tried_for_its_sender_may_be_told(desk: Desk, database: Server) -> None:
    desk.send(3)
    screen = desk.facts("held", "release", "--all")["messages"]
    assert [row["ending"] for row in screen] == ["held", None, None]
    assert len(desk.files) == 3
    mend_alias(database)
    assert desk.run("held", "release", "--all").status == 0
    assert subjects(database) == ["mail-0", "mail-1", "mail-2"]


@pytest.mark.parametrize(
    "names", [[], ["x", "--all"], ["x"], ["--cause", "x", "--all"], ["--all", "--recipient", "a@b"]]
)
def test_wrong_usage(desk: Desk, database: Server, names: list[str]) -> None:
    assert desk.run("held", "release", *names).status == 2


def test_a_file_by_hand_needs_a_recipient_and_goes_to_no_other(desk: Desk, database: Server) -> None:
    (desk.hold / "new").mkdir()
    (desk.hold / "new" / "by-hand.eml").write_bytes(message("hand", "To: jobs@example.com, broken@example.com\n"))
    assert desk.facts("held", "release", "--all")["messages"][0]["ending"] == "held"
    screen = desk.facts("held", "release", "by-hand", "--recipient", "info@example.com")
    assert screen["messages"][0]["ending"] == "delivered"
    (row,) = database.search("mail.message", [], "model", "message_id")
    assert (row["model"], row["message_id"]) == ("crm.lead", "<hand@outside.test>")
    (desk.hold / "new" / "nobody.eml").write_bytes(message("nobody"))
    assert desk.facts("held", "release", "--all")["messages"][0]["ending"] == "unknown_recipient"
    assert len(desk.files) == 1


OTHER_DATE = "Date: Mon, 23 Nov 2026 09:00:00 +0000\n"


@pytest.mark.parametrize("has_journal", [True, False])
@pytest.mark.parametrize("before", ["", OTHER_DATE])
def test_what_went_under_another_id_goes_under_it_again(
    desk: Desk, database: Server, before: str, has_journal: bool
) -> None:
    """The same Message-ID was delivered before, to another alias, or it was another message."""
    result = desk.gateway.run("info@example.com", message=message("mail-0", before))
    assert result.facts["outcome"] == "delivered"
    desk.send()
    mend_alias(database)
    if not has_journal:
        execute(desk.gateway.settings["JOURNAL"], "delete from message")
    copy = desk.files[0].read_bytes()
    path = desk.files[0]
    for _ in range(2):
        path.write_bytes(copy)
        assert desk.run("held", "release", "--all").status == 0
    assert subjects(database) == ["mail-0", "mail-0"]
    assert desk.files == []


def test_a_message_without_an_id_is_delivered_once(desk: Desk, database: Server) -> None:
    raw = b"From: Ann <ann@outside.test>\nSubject: none\nReferences: a@b\n\nwords\n"
    assert desk.gateway.run("--queue-id=4Xy", "broken@example.com", message=raw).facts["outcome"] == "held"
    mend_alias(database)
    path, copy = desk.files[0], desk.files[0].read_bytes()
    for has_journal in (True, True, False):
        path.write_bytes(copy)
        if not has_journal:
            execute(desk.gateway.settings["JOURNAL"], "delete from message")
        assert desk.run("held", "release", "--all").status == 0
    assert subjects(database) == ["none"]


# --- what the database has read and ignored -------------------------------------------------------------------------


def hold_loop(desk: Desk, database: Server) -> None:
    """Hold two mails that the database stopped as a loop."""
    database.call("ir.config_parameter", "set_param", "mail.gateway.loop.threshold", "0")
    desk.gateway.command(HOLD_LOOPS="yes")
    desk.send(2, "info@example.com")


def test_a_loop_stop_is_released_when_the_parameter_allows(desk: Desk, database: Server) -> None:
    hold_loop(desk, database)
    for _ in range(3):
        screen = desk.run("held", "release", "--all")
        assert screen.status == 1
        assert "mail.gateway.loop.threshold" in screen.out
        assert len(desk.files) == 2
    database.call("ir.config_parameter", "set_param", "mail.gateway.loop.threshold", "20")
    assert desk.run("held", "release", "--all").out.startswith("2 of 2 released.")
    assert (subjects(database), desk.files) == (["mail-0", "mail-1"], [])


def test_after_a_loop_stop_its_sender_s_other_mail_is_not_tried(desk: Desk, database: Server) -> None:
    database.call("ir.config_parameter", "set_param", "mail.gateway.loop.threshold", "2")
    desk.send(4)
    mend_alias(database)
    rows = desk.facts("held", "release", "--all")["messages"]
    assert [row["ending"] for row in rows] == ["delivered", "delivered", "held", None]
    assert rows[2]["ending_cause"] == walk.STOPPED_LOOP
    database.call("ir.config_parameter", "set_param", "mail.gateway.loop.threshold", "20")
    assert desk.run("held", "release", "--all").status == 0
    assert subjects(database) == [f"mail-{number}" for number in range(4)]


NOTICE = b"<7-openerp-loop-detection-bounce-email@host>"


def test_an_answer_to_a_notice_is_released_without_the_notice(tmp_path: Path, endpoint: Endpoint) -> None:
    ignored = fault(1, "TypeError: cannot marshal None unless allow_none is enabled")

    def answer(connection: Any, request: Any) -> None:
        names_it = b"\nReferences: <a@b> " + NOTICE in request.message or b"\nIn-Reply-To: " + NOTICE in request.message
        connection.sendall(ignored if names_it else returns(7))

    endpoint.answers = [answer]
    desk = Desk(tmp_path, endpoint.url, READ_TIMEOUT=READ_TIMEOUT)
    desk.send(1, fields=f"References: <a@b> {NOTICE.decode()}\nIn-Reply-To: {NOTICE.decode()}\n")
    assert desk.run("held", "release", "--all").out.startswith("1 of 1 released.")
    sent = endpoint.messages[-1]
    assert b"\nReferences: <a@b>\nX-Answered-References: <a@b> " + NOTICE in sent
    assert b"\nX-Answered-In-Reply-To: " + NOTICE in sent
    assert sent.count(b"\nMessage-ID: ") == 2
    assert b"mail-gateway.invalid" in sent.partition(b"Message-ID: <mail-0@")[0]


# --- whenever it ends -----------------------------------------------------------------------------------------------

STEPS = [
    ("walk.py", "plan_again", "after"),
    ("journal/sqlite.py", "Sqlite.read", "after"),
    ("walk.py", "_other_id", "after"),
    ("journal/__init__.py", "Claim.note_begun", "before"),
    ("journal/__init__.py", "Claim.note_begun", "after"),
    ("database.py", "_reply", "before"),
    ("database.py", "_reply", "after"),
    ("walk.py", "judge", "after"),
    ("journal/__init__.py", "Claim.end", "before"),
    ("journal/__init__.py", "Claim.end", "after"),
    ("walk.py", "deliver", "after"),
    ("log.py", "Log.message", "before"),
    ("log.py", "Log.message", "after"),
    ("admin/release.py", "_clear_away", "before"),
    ("admin/release.py", "_clear_away", "after"),
]
STEPS_OF_IDS = [step for step in STEPS if step[1] in ("_other_id", "_reply", "Claim.end", "_clear_away")]
KILLED = """

def _killed(work, when):
    def run(*arguments, **named):
        import os
        if when == "before":
            os.kill(os.getpid(), 9)
        found = work(*arguments, **named)
        os.kill(os.getpid(), 9)
        return found
    return run

"""


def kill(desk: Desk, folder: Path, step: tuple[str, str, str]) -> None:
    """Release all with a copy of the program that is killed before or after this function of it."""
    file, name, when = step
    shutil.copytree(PROGRAM.parent / "mailgate", folder / "mailgate")
    with (folder / "mailgate" / file).open("a") as source:
        source.write(f"{KILLED}\n{name} = _killed({name}, {when!r})\n")
    command = desk.command("held", "release", "--all")
    killed = subprocess.run(command, capture_output=True, env=ENVIRONMENT, cwd=folder, check=False)
    assert killed.returncode == -9, killed


def release_all(desk: Desk) -> None:
    """Release all, and again when what may have begun is over."""
    for _ in range(2):
        if desk.run("held", "release", "--all").status == 0:
            break
        age(desk.gateway.settings["JOURNAL"], READ_TIMEOUT)
    assert desk.files == []


@pytest.mark.parametrize("step", STEPS)
def test_killed_and_run_again_each_is_delivered_once(
    desk: Desk, database: Server, tmp_path: Path, step: tuple[str, str, str]
) -> None:
    desk.send(2)
    mend_alias(database)
    kill(desk, tmp_path / "copy", step)
    release_all(desk)
    assert subjects(database) == ["mail-0", "mail-1"]


@pytest.mark.parametrize("step", STEPS_OF_IDS)
def test_killed_and_run_again_each_loop_stop_is_delivered_once(
    desk: Desk, database: Server, tmp_path: Path, step: tuple[str, str, str]
) -> None:
    hold_loop(desk, database)
    database.call("ir.config_parameter", "set_param", "mail.gateway.loop.threshold", "20")
    kill(desk, tmp_path / "copy", step)
    release_all(desk)
    assert subjects(database) == ["mail-0", "mail-1"]


def test_killed_after_a_notice_its_sender_is_not_told_again(desk: Desk, database: Server, tmp_path: Path) -> None:
    """The database answers that it is done, and would do it again (as Odoo does; mail_database remembers the id)."""
    desk.send()
    database.call("mail.alias", "write", [3], {"alias_defaults": "{}", "alias_contact": "partners"})
    kill(desk, tmp_path / "copy", ("admin/release.py", "_clear_away", "before"))
    screen = desk.facts("held", "release", "--all")["messages"]
    assert [(row["ending"], "answered before" in row["ending_cause"]) for row in screen] == [("accepted", True)]
    assert desk.files == []
    assert len([*desk.hold.glob("accepted/*")]) == 1


def test_killed_at_random_each_of_twenty_is_delivered_once(desk: Desk, database: Server) -> None:
    desk.send(20)
    mend_alias(database)
    chance = random.Random(13)
    numbers = itertools.cycle([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    until = time.monotonic() + 120
    while desk.files:
        assert time.monotonic() < until
        with subprocess.Popen(desk.command("held", "release", "--all"), env=ENVIRONMENT, cwd=ROOT) as process:
            try:
                process.wait(chance.uniform(0.5, 2.0))
            except subprocess.TimeoutExpired:
                process.send_signal(next(numbers))
        age(desk.gateway.settings["JOURNAL"], READ_TIMEOUT)
    assert subjects(database) == sorted(f"mail-{number}" for number in range(20))


def test_a_signal_ends_it_after_the_message_at_hand(tmp_path: Path, endpoint: Endpoint, gate: Any) -> None:
    endpoint.answers = [fault(2, "x")]
    desk = Desk(tmp_path, endpoint.url, READ_TIMEOUT=READ_TIMEOUT)
    desk.send(3)
    endpoint.answers = [gate]
    command = desk.command("held", "release", "--all", "--json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT, cwd=ROOT) as process:
        gate.wait_for(1)
        process.send_signal(signal.SIGINT)
        gate.opened.set()
        assert process.stdout
        rows = json.loads(process.stdout.read())["messages"]
    assert [(row["ending"], row["ending_cause"]) for row in rows] == [
        ("delivered", ""),
        (None, "interrupted"),
        (None, "interrupted"),
    ]
    assert (process.returncode, len(desk.files)) == (1, 2)


def test_while_the_database_is_away_one_is_tried(desk: Desk, database: Server) -> None:
    desk.send(3)
    database.stop()
    rows = desk.facts("held", "release", "--all")["messages"]
    assert [row["ending"] for row in rows] == ["no_answer", None, None]
    database.start()
    desk.gateway.command(URL=database.url)
    mend_alias(database)
    assert desk.run("held", "release", "--all").status == 0
    assert subjects(database) == ["mail-0", "mail-1", "mail-2"]


def test_five_hundred_in_one_command(desk: Desk, database: Server) -> None:
    database.call("ir.config_parameter", "set_param", "mail.gateway.loop.threshold", "1000")
    desk.send()
    (path,) = desk.files
    for number in range(1, 500):  # the journal does not know them
        raw = path.read_bytes().replace(b"mail-0", b"mail-%d" % number)
        path.with_name(f"{number}.eml").write_bytes(raw)
    mend_alias(database)
    screen = desk.run("held", "release", "--all")
    assert screen.out.splitlines()[:2] == ["500 of 500 released.", "  delivered: 500"]
    assert screen.err.splitlines()[1:] == [f"Releasing: {number} of 500" for number in (100, 200, 300, 400, 500)]
    assert subjects(database) == sorted(f"mail-{number}" for number in range(500))
    assert desk.files == []


# --- by hand --------------------------------------------------------------------------------------------------------


def test_what_is_mended_is_released_and_the_original_kept(tmp_path: Path, endpoint: Endpoint) -> None:
    """Its header would keep the database busy, so it is held without asking, until that is mended."""
    desk = Desk(tmp_path, endpoint.url, READ_TIMEOUT=READ_TIMEOUT)
    desk.send(1, fields=f"Content-Type: text/plain{';' * 20_000}\n")
    (path,) = desk.files
    before, since = path.read_bytes(), path.stat().st_mtime
    assert desk.facts("held", "release", "--all")["messages"][0]["ending"] == "held"
    assert endpoint.messages == []
    screen = desk.run("held", "mend", path.name, environ={"EDITOR": "sed -i s/;;*$//"})
    assert (screen.status, screen.out.partition("\n")[0].startswith("Mended.")) == (0, True)
    assert f"To deliver it: mail-gateway-admin held release {path.name}" in " ".join(screen.out.split())
    assert desk.files == [path]
    assert path.stat().st_mtime == since
    (original,) = desk.hold.glob("original/*")
    assert original.read_bytes() == before
    desk.run("held", "mend", path.name, environ={"EDITOR": "sed -i s/mail-0$/better/"})
    assert original.read_bytes() == before
    assert desk.run("held", "release", "--all").status == 0
    assert b"\nContent-Type: text/plain\n" in endpoint.messages[-1]
    assert b"\nSubject: better\n" in endpoint.messages[-1]
    assert (desk.files, [*desk.hold.glob("original/*")]) == ([], [original])


@pytest.mark.parametrize(("editor", "status"), [("true", 0), ("false", 1), ("/none", 1), ("truncate -s0", 1), ("'", 1)])
def test_what_is_not_mended_stays(desk: Desk, database: Server, editor: str, status: int) -> None:
    desk.send()
    before = desk.files[0].read_bytes()
    assert desk.run("held", "mend", desk.files[0].name, environ={"EDITOR": editor}).status == status
    assert desk.files[0].read_bytes() == before
    assert not (desk.hold / "original").exists()


def test_a_message_is_forwarded_whole_and_stays_held(desk: Desk, database: Server, tmp_path: Path) -> None:
    desk.send()
    sendmail = tmp_path / "bin" / "sendmail"
    sendmail.parent.mkdir()
    sendmail.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat > {tmp_path}/mail\n')
    sendmail.chmod(0o755)
    environ = {"PATH": f"{sendmail.parent}:/usr/bin:/bin"}
    (path,) = desk.files
    assert desk.run("held", "forward", path.name, "joe@outside.test", environ=environ).status == 0
    assert (tmp_path / "arguments").read_text() == "-i -- joe@outside.test\n"
    mail = (tmp_path / "mail").read_bytes()
    assert b"Content-Type: message/rfc822\n" in mail
    assert path.read_bytes() in mail
    assert b"Cause: fault 1: ValueError: Invalid field" in mail
    desk.gateway.command(ALIAS_DOMAINS=None)
    assert desk.run("held", "forward", path.name, "joe@outside.test", environ=environ).status == 0
    desk.gateway.command()
    for address in ("info@example.com", "-joe@outside.test", "joe"):
        assert desk.run("held", "forward", path.name, "--", address, environ=environ).status == 2
    assert desk.files == [path]


def test_what_is_dropped_is_kept_and_the_journal_says_why(desk: Desk, database: Server) -> None:
    desk.send()
    path, raw = desk.files[0], desk.files[0].read_bytes()
    assert desk.run("held", "drop", path.name).status == 2
    assert desk.run("held", "drop", path.name, "--why", "a test of ours").status == 0
    assert (desk.files, (desk.hold / "dropped" / path.name).read_bytes()) == ([], raw)
    screen = desk.run("trace", "<mail-0@outside.test>").out
    assert "by hand: a test of ours" in screen
    assert "The postmaster has dropped it" in screen
