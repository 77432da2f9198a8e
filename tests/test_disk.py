"""The journal's disk is full or can only be read, it is locked or emptied: mail waits or arrives, and the log says why.

Nothing is lost or doubled over the next tries, and a service goes on when there is space again, without a restart.
"""

import itertools
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.disk import PAGE_BYTES, Disk
from support.endpoint import Endpoint, Gate, Request, fault, returns
from support.gateway import ENVIRONMENT, Gateway, Result, changed
from support.journal import age, execute
from support.mta import PACKAGES, PYTHON, USER
from support.pages import page
from support.records import Records
from support.service import Client, Service, running

from mailgate.journal.sqlite import FILE, LOCK, SUFFIXES, WAL_BYTES
from mailgate.outcome import Outcome

FULL = ("database or disk is full", "disk I/O error")  # as SQLite says it, and where the -shm file has no room
LOCKED = "database is locked"
HOLD_OFF = 150


def mail(name: object, text: str = "words") -> bytes:
    return f"From: Ann <ann@outside.test>\nMessage-ID: <{name}@outside.test>\nSubject: hello\n\n{text}\n".encode()


def deliver(gateway: Gateway, name: object, text: str = "words") -> Result:
    return gateway.run("--queue-id=4XyZ", "info@example.com", message=mail(name, text))


def say(client: Client, name: object, text: str = "words") -> str:
    """Give the service a message and return its answer."""
    (answer,) = client.deliver(mail(name, text).replace(b"\n", b"\r\n"), "info@example.com")
    return answer


def cause(log: str) -> str:
    """Return the cause in the log's last line."""
    return log.splitlines()[-1].partition(" cause=")[2].strip('"')


@pytest.fixture
def database(endpoint: Endpoint) -> Records:
    return Records(endpoint)


@pytest.fixture
def gateway(endpoint: Endpoint, disk: Disk, tmp_path: Path) -> Gateway:
    """With its journal on the disk."""
    return Gateway(tmp_path, URL=endpoint.url, PATIENCE=0, JOURNAL=disk.folder("journal"))


@pytest.fixture
def full_service(endpoint: Endpoint, database: Records, disk: Disk, tmp_path: Path) -> Iterator[Service]:
    """The service, with its journal on the disk."""
    with running(Service(tmp_path, URL=endpoint.url, PATIENCE=0, JOURNAL=disk.folder("journal"))) as service:
        yield service


def journal_of(service: Service) -> Path:
    return Path(str(service.settings["JOURNAL"]))


# --- full -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "kept"])
def test_whichever_write_finds_no_space_the_mail_waits_or_arrives(
    gateway: Gateway, database: Records, disk: Disk, is_new: bool
) -> None:
    """With one page more of space at each time, until all has its place: the tables, "begun", the ending."""
    folder = disk.path / "journal"
    deliver(gateway, "first")
    execute(folder, "pragma wal_checkpoint(truncate)")
    seen = []
    for left in itertools.count():
        if is_new:
            shutil.rmtree(folder)
            disk.folder("journal")
        disk.fill(left)
        result = deliver(gateway, left)
        disk.free()
        assert result.status == (0 if f"<{left}@outside.test>" in database.messages else 75)
        if result.status == 0 and cause(deliver(gateway, left).log) == "answered before":
            break
        seen.append(result.status)
        if result.status == 75:
            assert result.ending == (75, "4.3.0", "failed")
            assert result.facts["cause"] in [f"journal: {text}: {folder / FILE}" for text in FULL]
        else:
            assert f"journal: {FULL[0]}: {folder / FILE}; not noted that this is delivered: <{left}@" in result.log
            age(folder, HOLD_OFF)
        assert deliver(gateway, left).facts["outcome"] == ("delivered" if result.status else "known")
    assert seen == sorted(seen, reverse=True)
    assert {*seen} == {75, 0}
    assert len(database.messages) == 1 + len(seen) + 1


@pytest.mark.parametrize("way", ["pipe", "service"])
@pytest.mark.parametrize("trouble", [FULL[0], LOCKED])
def test_an_ending_that_can_not_be_noted_is_asked_about_after_the_hold_off(
    endpoint: Endpoint, database: Records, disk: Disk, tmp_path: Path, way: str, trouble: str
) -> None:
    """The disk is full, or a backup has the journal, while the database answers."""
    folder = disk.folder("journal")
    gateway = Gateway(tmp_path, URL=endpoint.url, PATIENCE=0, JOURNAL=folder)
    service = Service(tmp_path, URL=endpoint.url, PATIENCE=0, JOURNAL=folder)
    options = [f"--service={service.address}"] if way == "service" else []
    backups: list[sqlite3.Connection] = []

    def answer(connection: socket.socket, request: Request) -> None:
        if trouble in FULL:
            disk.fill()
        else:
            backups.append(sqlite3.connect(folder / FILE, isolation_level=None, check_same_thread=False))
            backups[0].execute("begin immediate")
        database(connection, request)

    def run() -> Result:
        return gateway.run("--sender=", *options, "--queue-id=4XyZ", "info@example.com", message=mail(1))

    with running(service):
        endpoint.answers = [answer, database]
        result = run()
        assert (result.status, result.out) == (0, b"2.0.0 delivered\n")
        disk.free() if trouble in FULL else backups[0].close()
        log = result.log + service.text()
        assert f"journal: {trouble}: {folder / FILE}; not noted that this is delivered: <1@outside.test>" in log
        assert run().out.decode() == f"{Outcome.IN_PROGRESS.line}\n"
        age(folder, HOLD_OFF)
        assert run().out.decode() == f"{Outcome.KNOWN.line}\n"
    assert len(database.messages) == 1


NO_PAUSE = "import mailgate.journal; mailgate.journal.AT_ONCE_SECONDS = 0"


def test_a_message_that_has_left_is_waited_for_though_that_can_not_be_noted(
    endpoint: Endpoint, database: Records, disk: Disk, tmp_path: Path
) -> None:
    """The disk fills up while a large message leaves: the database's answer is worth more than a later moment."""
    service = Service(tmp_path, URL=endpoint.url, PATIENCE=0, JOURNAL=disk.folder("journal"))
    service.runs_first(NO_PAUSE)
    endpoint.on_head = lambda size: disk.fill() if size > 2**20 else None
    with running(service), service.client() as client:
        assert say(client, 1, "words\n" * 2_000_000) == "250 2.0.0 delivered"
        assert "not noted that this has left: <1@outside.test>" in service.text()
        assert "not noted that this is delivered: <1@outside.test>" in service.text()
    assert len(endpoint.messages) == 1


def test_a_service_goes_on_when_there_is_space_again(full_service: Service, database: Records, disk: Disk) -> None:
    with full_service.client() as client:
        assert say(client, "before") == "250 2.0.0 delivered"
        disk.fill()
        assert [say(client, number) for number in range(4)] == [Outcome.FAILED.reply] * 4
        assert cause(full_service.text()) == f"journal: {FULL[0]}: {journal_of(full_service) / FILE}"
        disk.free()
        assert [say(client, number) for number in range(4)] == ["250 2.0.0 delivered"] * 4
    assert len(database.messages) == 1 + 4


def test_a_service_whose_log_of_writes_has_no_place_in_the_file_goes_on(
    full_service: Service, database: Records, disk: Disk
) -> None:
    """SQLite's checkpoint fails; until then, and when there is space again, all is noted."""
    with full_service.client() as client:
        say(client, "before")
        fill_log(journal_of(full_service), disk.pages // 4)
        disk.fill(left=20)
        delivered = 0
        while (answer := say(client, delivered)) == "250 2.0.0 delivered":
            delivered += 1
        assert answer == Outcome.FAILED.reply
        assert cause(full_service.text()) == f"journal: {FULL[0]}: {journal_of(full_service) / FILE}"
        disk.free()
        age(journal_of(full_service), HOLD_OFF)  # the last ending was not noted
        for number in range(delivered + 3):
            assert say(client, number).startswith("250 2.0.0 ")
    assert len(database.messages) == 1 + delivered + 3
    assert size(journal_of(full_service) / FILE) > disk.pages // 5  # the checkpoint
    assert execute(journal_of(full_service), "pragma integrity_check") == [{"integrity_check": "ok"}]


def fill_log(folder: Path, pages: int) -> None:
    """Write so many pages into SQLite's log of writes, which has no place in the file yet."""
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as connection:
        connection.execute("pragma wal_autocheckpoint = 0")
        connection.execute("begin")
        for _ in range(pages):
            values = (os.urandom(16), time.time(), "x" * 3000)
            connection.execute(
                "insert into message (digest, seen_first, seen_last, cause) values (?1, ?2, ?2, ?3)", values
            )
        connection.execute("commit")


def size(path: Path) -> int:
    """Return how many pages a file has."""
    return path.stat().st_size // PAGE_BYTES


@pytest.mark.parametrize("left", [0, 1, 4])
def test_what_can_not_be_held_waits_and_is_held_when_there_is_space(
    endpoint: Endpoint, disk: Disk, tmp_path: Path, left: int
) -> None:
    """The database is not asked again."""
    endpoint.answers = [fault(2, "x")]
    gateway = Gateway(tmp_path, URL=endpoint.url, PATIENCE=0, HOLD=disk.folder("held"))
    disk.fill(left)
    result = deliver(gateway, 1, "words\n" * 5000)
    assert result.ending == (75, "4.3.0", "failed")
    assert f"No space left on device: '{disk.path}/held/new/" in result.facts["cause"]
    assert [path for path in disk.path.glob("held/*/*") if path.is_file()] == []
    disk.free()
    assert deliver(gateway, 1, "words\n" * 5000).ending == (0, "2.0.0", "held")
    (held,) = disk.path.glob("held/new/*")
    assert held.read_bytes() == endpoint.messages[0]
    assert len(endpoint.messages) == 1


def test_what_can_neither_be_held_nor_noted_waits(endpoint: Endpoint, gateway: Gateway, disk: Disk) -> None:
    """The journal and the folder for held mail are on one disk, which is full when the database answers."""

    def answer(connection: socket.socket, request: Request) -> None:
        disk.fill()
        connection.sendall(fault(2, "x"))

    endpoint.answers = [answer, fault(2, "x")]
    gateway.settings["HOLD"] = disk.folder("held")
    result = deliver(gateway, 1)
    assert (result.status, result.out.decode()) == (75, f"{Outcome.FAILED.line}\n")
    assert f"No space left on device: '{disk.path}/held/new/" in cause(result.log)
    disk.free()
    assert deliver(gateway, 1).facts["outcome"] == "in_progress"
    age(gateway.settings["JOURNAL"], HOLD_OFF)
    assert deliver(gateway, 1).ending == (0, "2.0.0", "held")
    (held,) = disk.path.glob("held/new/*")
    assert held.read_bytes() == endpoint.messages[1]


@pytest.mark.parametrize("way", ["pipe", "service"])
def test_a_large_message_that_has_no_place_waits(
    endpoint: Endpoint, database: Records, disk: Disk, tmp_path: Path, way: str
) -> None:
    """Its spool is on the full disk, the journal is not."""
    text = "words\n" * 2**18
    spool = {"TMPDIR": str(disk.folder("tmp"))}
    gateway = Gateway(tmp_path, URL=endpoint.url, PATIENCE=0)
    service = Service(tmp_path, URL=endpoint.url, PATIENCE=0, JOURNAL=tmp_path / "journal")
    service.environ |= spool
    options = [f"--service={service.address}" if way == "service" else "--service=none", "--sender="]

    def run(name: str) -> bytes:
        return gateway.run(*options, "info@example.com", message=mail(name, text), environ=spool).out

    with running(service):
        assert run("before") == b"2.0.0 delivered\n"
        disk.fill(left=2)
        assert run("large").decode() == f"{Outcome.FAILED.line}\n"
        assert "No space left on device" in cause(service.text() if way == "service" else gateway.log.read_text())
        disk.free()
        assert run("large") == b"2.0.0 delivered\n"
    assert len(database.messages) == 2


# --- that can't be written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "kept"])
def test_a_disk_that_can_only_be_read_keeps_the_mail_in_the_queue(
    gateway: Gateway, database: Records, disk: Disk, is_new: bool
) -> None:
    if not is_new:
        deliver(gateway, "before")
    before = len(database.messages)
    disk.set_read_only(True)
    result = deliver(gateway, 1)
    assert result.ending == (75, "4.3.5", "settings")
    folder = disk.path / "journal"
    assert result.facts["cause"] == f"MAIL_GATEWAY_JOURNAL is not a folder that can be written: {folder}"
    assert len(database.messages) == before
    disk.set_read_only(False)
    assert deliver(gateway, 1).ending == (0, "2.0.0", "delivered")


def test_a_service_goes_on_when_its_disk_can_be_written_again(
    full_service: Service, database: Records, disk: Disk
) -> None:
    disk.set_read_only(True)
    with full_service.client() as client:
        assert [say(client, number) for number in range(2)] == [Outcome.FAILED.reply] * 2
        assert cause(full_service.text()) == f"journal: Read-only file system: {journal_of(full_service) / LOCK}"
        disk.set_read_only(False)
        assert [say(client, number) for number in range(2)] == ["250 2.0.0 delivered"] * 2
    assert len(database.messages) == 2


@pytest.fixture
def others_gateway(endpoint: Endpoint, database: Records) -> Iterator[Gateway]:
    """The program where another user can run it, with the system's Python; pytest's folders are closed to others."""
    if os.geteuid():
        pytest.skip("needs root to run the gateway as another user")
    if subprocess.run([PYTHON, "-c", f"import {', '.join(PACKAGES)}"], capture_output=True, check=False).returncode:
        pytest.skip(f"needs apt-get install {' '.join(f'python3-{name}' for name in PACKAGES)}")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        made = Gateway(folder, URL=endpoint.url, PATIENCE=0, LOG="stderr")
        made.program = changed(folder / "gateway", {})
        shutil.chown(folder / "journal", USER)
        (folder / "journal").chmod(0o700)
        yield made


def deliver_as(user: str, gateway: Gateway, name: object) -> str:
    """Run the program as a user, and return its line and its log."""
    command = gateway.command("--service=none", "--queue-id=4XyZ", "info@example.com")
    gateway.env_file.chmod(0o640)
    shutil.chown(gateway.env_file, "root", "nogroup")
    command[0] = PYTHON
    finished = subprocess.run(
        command, input=mail(name), capture_output=True, env=ENVIRONMENT, user=user, group="nogroup", check=False
    )
    return (finished.stdout + finished.stderr).decode()


def test_what_root_runs_by_hand_leaves_nothing_that_the_gateway_s_user_could_not_write(
    others_gateway: Gateway, database: Records
) -> None:
    said = deliver_as("root", others_gateway, 1)
    assert said.startswith(Outcome.SETTINGS.line)
    assert "MAIL_GATEWAY_JOURNAL belongs to another user, who alone can run this: " in said
    assert list((others_gateway.folder / "journal").iterdir()) == []
    assert deliver_as(USER, others_gateway, 1).startswith(Outcome.DELIVERED.line)
    assert len(database.messages) == 1


@pytest.mark.parametrize("name", [LOCK, *(FILE + suffix for suffix in SUFFIXES)])
def test_a_file_of_root_s_is_named(others_gateway: Gateway, database: Records, name: str) -> None:
    """It may come from a backup: the mail waits until its owner is right."""
    assert deliver_as(USER, others_gateway, 1).startswith(Outcome.DELIVERED.line)
    path = others_gateway.folder / "journal" / name
    shutil.chown(path, "root")
    said = deliver_as(USER, others_gateway, 2)
    assert said.startswith("4.3.")
    wrong = "journal: Permission denied" if name == LOCK else "journal belongs to another user"
    assert f'cause="{wrong}: {path}"' in said
    shutil.chown(path, USER)
    assert deliver_as(USER, others_gateway, 2).startswith(Outcome.DELIVERED.line)
    assert len(database.messages) == 2


# --- locked ---------------------------------------------------------------------------------------------------------


def test_while_a_backup_has_locked_the_journal_for_a_minute_a_service_defers(
    full_service: Service, database: Records, disk: Disk
) -> None:
    """Each delivery waits for it for five seconds, and the mail server comes again and again."""
    with full_service.client() as client:
        say(client, "before")
    folder, tries = journal_of(full_service), 0
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as backup:
        backup.execute("begin exclusive")
        began = time.monotonic()
        while time.monotonic() < began + 60:
            assert at_once(full_service, 4) == [Outcome.FAILED.reply] * 4
            tries += 4
        assert full_service.text().count(f'cause="journal: {LOCKED}: {folder / FILE}"') == tries
        backup.execute("rollback")
    assert at_once(full_service, 4) == ["250 2.0.0 delivered"] * 4
    assert len(database.messages) == 1 + 4


def at_once(service: Service, count: int) -> list[str]:
    """Give the service so many messages, each by a connection of its own, and return the answers."""
    answers: list[str] = []

    def run(number: int) -> None:
        with service.client() as client:
            answers.append(say(client, number))

    threads = [threading.Thread(target=run, args=[number]) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_while_somebody_reads_the_journal_mail_goes_on(full_service: Service, database: Records) -> None:
    """SQLite's log of writes grows, for the reader sees what was there before; then it is as small as ever."""
    folder = journal_of(full_service)
    log = folder / f"{FILE}-wal"
    with full_service.client() as client, closing(sqlite3.connect(folder / FILE, isolation_level=None)) as reader:
        say(client, "before")
        reader.execute("begin")
        (before,) = reader.execute("select count(*) from message").fetchone()
        fill_log(folder, 3 * WAL_BYTES // PAGE_BYTES)
        for number in range(20):
            assert say(client, number) == "250 2.0.0 delivered"
        assert reader.execute("select count(*) from message").fetchone() == (before,)
        assert log.stat().st_size > 2 * WAL_BYTES
        reader.execute("rollback")
        for number in range(20, 30):
            assert say(client, number) == "250 2.0.0 delivered"
        assert log.stat().st_size <= WAL_BYTES
    assert len(database.messages) == 1 + 30


def test_a_backup_is_whole_and_holds_nobody_up(full_service: Service, database: Records, tmp_path: Path) -> None:
    """A message comes while it is made, as docs/journal.md has it typed."""
    (statement,) = re.findall(r"`sqlite3 \S+ \"(.+ ')FILE'\"`", page("docs/journal.md"))
    answers: list[str] = []
    with full_service.client() as client, closing(sqlite3.connect(journal_of(full_service) / FILE)) as source:
        assert say(client, 1) == "250 2.0.0 delivered"

        def meanwhile(action: int, name: str | None, *_: str | None) -> int:
            if (action, name) == (sqlite3.SQLITE_INSERT, "message"):  # it copies now
                answers.append(say(client, 2))
            return sqlite3.SQLITE_OK

        source.set_authorizer(meanwhile)
        source.execute(f"{statement}{tmp_path / FILE}'")
    assert answers == ["250 2.0.0 delivered"]
    assert [row["ending"] for row in execute(tmp_path, "select ending from message")] == ["DELIVERED"]
    assert len(database.messages) == 2


# --- emptied --------------------------------------------------------------------------------------------------------


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("way", ["pipe", "service"])
def test_a_journal_that_is_emptied_during_deliveries_takes_their_endings(
    endpoint: Endpoint, tmp_path: Path, gate: Gate, way: str
) -> None:
    """Two deliveries are under way; each notes in the new one what becomes of it."""
    folder = tmp_path / "journal"
    gateway = Gateway(tmp_path, URL=endpoint.url, PATIENCE=0)
    service = Service(tmp_path, URL=endpoint.url, PATIENCE=0, JOURNAL=folder)
    options = ["--sender=", f"--service={service.address}" if way == "service" else "--service=none"]

    def command(number: int) -> list[str | bytes]:
        return gateway.command(*options, "--queue-id=4XyZ", "info@example.com", LOG=tmp_path / f"log {number}")

    with running(service):
        processes = []
        for number in range(2):
            process = subprocess.Popen(command(number), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT)
            assert process.stdin
            process.stdin.write(mail(number))
            process.stdin.close()
            processes.append(process)
        gate.wait_for(2)
        empty(folder)
        gate.opened.set()
        for process in processes:
            with process:
                assert process.stdout
                assert process.stdout.read() == b"2.0.0 delivered\n"
        endpoint.answers = [returns(99)]
        rows = execute(folder, "select ending, record_id from message")
        assert rows == [{"ending": "DELIVERED", "record_id": 7}] * 2
        logs = service.text() if way == "service" else "".join(path.read_text() for path in tmp_path.glob("log *"))
        gone = f"journal was taken away, with what it knew: another one takes its place: {folder / FILE}"
        assert logs.count(gone) == 2
    assert len(endpoint.messages) == 2
