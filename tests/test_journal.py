"""One delivery of a message at a time, and none once the database's answer is final."""

import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.endpoint import Answer, Endpoint, Gate, cut, fault, hang, http, returns, traceback
from support.gateway import ENVIRONMENT, PROGRAM, Gateway, changed
from support.journal import age, execute, new_database
from support.service import Service
from support.service import running as serving

from mailgate import journal
from mailgate.journal.rows import PURGED_ROWS
from mailgate.journal.sqlite import FILE, LOCK, _connection
from mailgate.settings import build

MESSAGE = b"Message-ID: <1@outside.test>\nSubject: hello\n\nbody\n"
OPTIONS = ("--queue-id=4XyZ", "info@example.com")
DAY = 24 * 3600


@pytest.fixture(params=["sqlite", "postgresql"])
def gateway(endpoint: Endpoint, tmp_path: Path, request: pytest.FixtureRequest) -> Gateway:
    settings = {}
    if request.param == "postgresql":
        settings = new_database(request.getfixturevalue("journal_server"), tmp_path)
    return Gateway(tmp_path, URL=endpoint.url, PATIENCE=0, **settings)


only_sqlite = pytest.mark.parametrize("gateway", ["sqlite"], indirect=True)  # what is about its files and clocks
only_postgresql = pytest.mark.parametrize("gateway", ["postgresql"], indirect=True)


def deliver(gateway: Gateway, *arguments: str, message: bytes = MESSAGE, **settings: Any) -> str:
    """Run the program and return the outcome that its log names."""
    arguments = arguments or OPTIONS
    return gateway.run(*arguments, message=message, **settings).ending[2]


def folder(gateway: Gateway) -> Path:
    return Path(str(gateway.settings["JOURNAL"]))


@contextmanager
def running(gateway: Gateway) -> Iterator[subprocess.Popen]:
    """Start the program with the message; end it with kill -9 if it still runs at the end of the block."""
    process = subprocess.Popen(
        gateway.command("--queue-id=first", "info@example.com", LOG=gateway.folder / "log of the first"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    with process:
        assert process.stdin
        process.stdin.write(MESSAGE)
        process.stdin.close()
        yield process
        process.kill()


@pytest.fixture
def gate(endpoint: Endpoint, gate: Gate) -> Gate:
    """For the first call only."""
    endpoint.answers.append(returns(False))
    return gate


def test_a_second_delivery_of_a_message_that_is_being_delivered_is_deferred(
    gateway: Gateway, endpoint: Endpoint, gate: Gate
) -> None:
    with running(gateway) as first:
        gate.wait_for(1)
        assert deliver(gateway) == "in_progress"
        assert deliver(gateway, message=MESSAGE.replace(b"<1@", b"<2@")) == "accepted"  # another message
        gate.opened.set()
        assert first.wait(60) == 0
    assert deliver(gateway) == "accepted"
    assert len(endpoint.messages) == 3


def test_a_second_delivery_waits_within_its_patience(gateway: Gateway, endpoint: Endpoint, gate: Gate) -> None:
    with running(gateway) as first:
        gate.wait_for(1)
        opener = threading.Timer(1, gate.opened.set)  # while the second one waits, or before it begins: all the same
        opener.start()
        assert deliver(gateway, PATIENCE=60) == "accepted"
        assert first.wait(60) == 0
        opener.join()
    assert len(endpoint.messages) == 2


def test_a_killed_delivery_leaves_the_message_to_nobody_until_the_database_can_not_be_working_on_it(
    gateway: Gateway, endpoint: Endpoint, gate: Gate
) -> None:
    with running(gateway) as first:
        gate.wait_for(1)
        first.kill()
    assert deliver(gateway) == "in_progress"
    gate.opened.set()
    assert len(endpoint.messages) == 1
    age(gateway.settings["JOURNAL"], 150)
    assert deliver(gateway) == "accepted"


def test_a_stopped_delivery_counts_from_its_end(gateway: Gateway, endpoint: Endpoint, gate: Gate) -> None:
    with running(gateway) as first:
        gate.wait_for(1)
        age(gateway.settings["JOURNAL"], 1000)  # as if it had been at it for so long
        first.terminate()
        assert first.wait(60) == 75
    assert deliver(gateway) == "in_progress"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (cut, "cut_off"),
        (hang, "cut_off"),
        (http(502), "cut_off"),
        (http(504), "cut_off"),
        (http(524), "cut_off"),
        (b"HTTP/1.1 200", "cut_off"),
    ],
)
def test_after_an_ambiguous_ending_the_database_is_left_alone_for_a_while(
    gateway: Gateway, endpoint: Endpoint, answer: Answer, outcome: str
) -> None:
    """Until READ_TIMEOUT after the moment at which the call may have begun at last: a busy server takes it late."""
    endpoint.answers = [answer, returns(False)]
    assert deliver(gateway, READ_TIMEOUT=2) == outcome
    assert deliver(gateway) == "in_progress"
    assert len(endpoint.messages) == 1
    age(gateway.settings["JOURNAL"], 140)
    assert deliver(gateway) == "in_progress"
    age(gateway.settings["JOURNAL"], 10)
    assert deliver(gateway) == "accepted"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (http(503), "database_down"),
        (http(429), "database_down"),
        (http(500), "database_down"),
        (http(401), "access_denied"),
        (fault(3, "Access Denied"), "access_denied"),
        (fault(1, traceback("psycopg2.OperationalError: connection to server failed")), "database_down"),
        (fault(1, "ValueError: No possible route found for incoming message from x"), "unknown_recipient"),
    ],
)
def test_after_a_clear_answer_the_database_is_asked_again(
    gateway: Gateway, endpoint: Endpoint, answer: Answer, outcome: str
) -> None:
    endpoint.answers = [answer, returns(8)]
    assert deliver(gateway) == outcome
    assert deliver(gateway) == "delivered"


def test_a_server_that_goes_away_while_it_is_asked_again_leaves_the_message_free(
    gateway: Gateway, endpoint: Endpoint
) -> None:
    """Within one run: 503, which has not taken it, and then nobody is there."""

    def go_away(connection, request) -> None:
        endpoint.close()
        connection.sendall(http(503))

    endpoint.answers = [go_away]
    assert deliver(gateway, PATIENCE=2) == "no_answer"
    again = Endpoint(port=endpoint.port)
    try:
        assert deliver(gateway) == "delivered"
    finally:
        again.close()


def test_each_database_has_its_own_deliveries(gateway: Gateway, endpoint: Endpoint) -> None:
    assert deliver(gateway) == "delivered"
    assert deliver(gateway, DATABASE="staging") == "delivered"
    assert len(endpoint.messages) == 2


def test_a_message_id_ends_where_the_database_ends_it(gateway: Gateway, endpoint: Endpoint, gate: Gate) -> None:
    with running(gateway):
        gate.wait_for(1)
        assert deliver(gateway, message=MESSAGE.replace(b".test>", b".test> (a)")) == "in_progress"


@only_sqlite
def test_another_user_s_journal_is_a_wrong_setting(gateway: Gateway, endpoint: Endpoint) -> None:
    """What root leaves in it, the gateway's own user could not use, and its mail would wait for ever."""
    if os.geteuid():
        pytest.skip("needs root to give a folder away")
    os.chown(str(gateway.settings["JOURNAL"]), 65534, -1)
    result = gateway.run("info@example.com", message=MESSAGE)
    assert result.ending == (75, "4.3.5", "settings")
    assert "MAIL_GATEWAY_JOURNAL belongs to another user" in result.facts["cause"]


def test_a_database_that_was_not_reached_is_asked_again(gateway: Gateway, endpoint: Endpoint) -> None:
    assert deliver(gateway, URL="http://127.0.0.1:1") == "no_answer"
    assert deliver(gateway) == "delivered"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (returns(7), "delivered"),
        (returns(False), "accepted"),
        (fault(1, "TypeError: cannot marshal None unless allow_none is enabled"), "dropped"),
    ],
)
def test_what_was_answered_for_good_is_not_asked_again(
    gateway: Gateway, endpoint: Endpoint, answer: Answer, outcome: str
) -> None:
    endpoint.answers = [answer, returns(99)]
    assert deliver(gateway) == outcome
    result = gateway.run("--queue-id=4XyZ", "info@example.com", message=MESSAGE)
    assert result.ending == (0, "2.0.0", outcome)
    assert result.facts["record_id"] == ("7" if outcome == "delivered" else "")
    assert result.facts["cause"].endswith("answered before")
    assert len(endpoint.messages) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--queue-id=another", "info@example.com"],
        ["info@example.com"],  # by hand
        ["--queue-id=4XyZ", "jobs@example.com"],
        ["--queue-id=4XyZ", "info@example.com", "jobs@example.com"],
    ],
)
def test_another_delivery_of_the_same_message_is_asked_about(
    gateway: Gateway, endpoint: Endpoint, arguments: list[str]
) -> None:
    endpoint.answers = [returns(7), returns(False)]
    assert deliver(gateway) == "delivered"
    assert deliver(gateway, *arguments) == "accepted"


def test_what_can_not_be_held_is_asked_for_once_a_day(gateway: Gateway, endpoint: Endpoint, tmp_path: Path) -> None:
    """Each time, Odoo would mail the sender that his message could not be accepted."""
    endpoint.answers = [fault(1, "ValueError: Invalid field 'x' on model 'crm.lead'"), returns(7)]
    copy = b"Received: from a by mx.example.com with ESMTP id another; Mon, 30 Nov 2026 09:00:01 +0000\n" + MESSAGE
    assert deliver(gateway) == "database_error"
    assert deliver(gateway, "--queue-id=another", "info@example.com", message=copy) == "database_error"
    age(gateway.settings["JOURNAL"], DAY / 2)
    assert deliver(gateway) == "database_error"
    assert len(endpoint.messages) == 1
    age(gateway.settings["JOURNAL"], DAY / 2)
    assert deliver(gateway) == "delivered"


def test_another_message_with_the_id_of_what_can_not_be_held_is_asked_for(gateway: Gateway, endpoint: Endpoint) -> None:
    """Anybody can send one, to keep somebody else's mail in the queue."""
    endpoint.answers = [fault(1, "ValueError: Invalid field 'x' on model 'crm.lead'"), returns(7)]
    assert deliver(gateway) == "database_error"
    assert deliver(gateway, "--queue-id=another", "info@example.com", message=MESSAGE + b"more\n") == "delivered"


def test_what_can_not_be_held_is_asked_for_by_hand_at_once(gateway: Gateway, endpoint: Endpoint) -> None:
    endpoint.answers = [fault(1, "ValueError: Invalid field 'x' on model 'crm.lead'"), returns(7)]
    assert deliver(gateway) == "database_error"
    assert deliver(gateway, "info@example.com") == "delivered"


def test_a_clock_that_was_set_back_asks_again_for_what_can_not_be_held(gateway: Gateway, endpoint: Endpoint) -> None:
    endpoint.answers = [fault(1, "ValueError: Invalid field 'x' on model 'crm.lead'"), returns(7)]
    assert deliver(gateway) == "database_error"
    age(gateway.settings["JOURNAL"], -DAY / 2)  # as far as it matters
    assert deliver(gateway) == "database_error"
    age(gateway.settings["JOURNAL"], -400 * DAY)
    assert deliver(gateway) == "delivered"


def test_what_could_not_be_held_is_held_when_there_is_a_folder(
    gateway: Gateway, endpoint: Endpoint, tmp_path: Path
) -> None:
    endpoint.answers = [fault(1, "ValueError: Invalid field 'x' on model 'crm.lead'"), returns(7)]
    assert deliver(gateway) == "database_error"
    hold = tmp_path / "held"
    hold.mkdir()
    result = gateway.run("--queue-id=4XyZ", "info@example.com", message=MESSAGE, HOLD=hold)
    assert result.ending == (0, "2.0.0", "held")
    assert "Invalid field" in result.facts["cause"]
    assert deliver(gateway, HOLD=hold) == "held"  # a next try, though it was told so
    assert len(list(hold.glob("new/*"))) == 1
    assert len(endpoint.messages) == 1


@only_sqlite
def test_a_clock_that_jumps_keeps_no_message_waiting(gateway: Gateway, endpoint: Endpoint, gate: Gate) -> None:
    """The clock of the boot counts, which nobody sets."""
    with running(gateway) as first:
        gate.wait_for(1)
        first.kill()
    gate.opened.set()
    for jump in (1000 * DAY, -1000 * DAY):
        execute(folder(gateway), "update message set begun = ?", time.time() + jump)
        assert deliver(gateway) == "in_progress"
    age(gateway.settings["JOURNAL"], 150)
    assert deliver(gateway) == "accepted"


@only_sqlite
@pytest.mark.parametrize(("ago", "outcome"), [(0, "in_progress"), (149, "in_progress"), (151, "delivered")])
def test_after_a_boot_wall_time_has_to_do(gateway: Gateway, endpoint: Endpoint, ago: float, outcome: str) -> None:
    endpoint.answers = [cut, returns(7)]
    assert deliver(gateway) == "cut_off"
    began = time.time() - ago
    execute(folder(gateway), "update message set begun = ?, begun_boot = 'before', begun_clock = 1e9", began)
    assert deliver(gateway) == outcome


@only_sqlite
def test_a_clock_that_was_set_back_at_a_boot_keeps_no_message_waiting_for_long(
    gateway: Gateway, endpoint: Endpoint
) -> None:
    endpoint.answers = [cut, returns(7)]
    assert deliver(gateway) == "cut_off"
    execute(folder(gateway), "update message set begun = begun + ?, begun_boot = 'before'", 1000 * DAY)
    assert deliver(gateway) == "in_progress"
    age(gateway.settings["JOURNAL"], 150)
    assert deliver(gateway) == "delivered"


@only_postgresql
def test_a_server_s_clock_that_was_set_back_keeps_no_message_waiting_for_long(
    gateway: Gateway, endpoint: Endpoint
) -> None:
    endpoint.answers = [cut, returns(7)]
    assert deliver(gateway) == "cut_off"
    age(gateway.settings["JOURNAL"], -1000 * DAY)
    assert deliver(gateway) == "in_progress"
    age(gateway.settings["JOURNAL"], 150)
    assert deliver(gateway) == "delivered"


@pytest.mark.parametrize("way", ["pipe", "service"])
def test_nothing_that_is_called_will_be_taken_away(gateway: Gateway, endpoint: Endpoint, way: str) -> None:
    """Python and the libraries warn of it, versions before."""
    endpoint.answers = [fault(2, "x")]
    hold = gateway.folder / "held"
    hold.mkdir()
    if way == "pipe":
        result = gateway.run(*OPTIONS, message=MESSAGE, environ={"PYTHONWARNINGS": "error"}, HOLD=hold)
        assert result.ending == (0, "2.0.0", "held")
        return
    service = Service(gateway.folder, **gateway.settings | {"HOLD": hold, "LOG": gateway.folder / "service.log"})
    service.environ["PYTHONWARNINGS"] = "error"
    with serving(service), service.client() as client:
        assert client.deliver(MESSAGE.replace(b"\n", b"\r\n"), "info@example.com") == [
            "250 2.0.0 accepted, held for the postmaster"
        ]


# --- the file -------------------------------------------------------------------------------------------------------


@only_postgresql  # SQLite puts such rows behind the others
def test_a_row_that_is_written_again_is_not_among_the_oldest(gateway: Gateway, endpoint: Endpoint) -> None:
    """Each write looks at these, and would go through all of them that it has to keep."""

    def seen_first() -> Any:
        return execute(gateway.settings["JOURNAL"], "select seen_first from message")[0]["seen_first"]

    deliver(gateway, "--queue-id=first", "info@example.com")
    written = seen_first()
    deliver(gateway, "--queue-id=second", "info@example.com")
    assert seen_first() == written
    age(gateway.settings["JOURNAL"], 2 * DAY)
    deliver(gateway, "--queue-id=third", "info@example.com")
    assert seen_first() > written


def test_rows_are_as_old_as_they_may_be(gateway: Gateway, endpoint: Endpoint) -> None:
    """Each write takes a few away, so that none takes long."""
    for number in range(PURGED_ROWS + 3):
        deliver(gateway, message=MESSAGE.replace(b"<1@", b"<a%d@" % number))
    age(gateway.settings["JOURNAL"], 9 * DAY)
    deliver(gateway, KEEP_DAYS=10)
    assert len(execute(gateway.settings["JOURNAL"], "select 1 from message")) == PURGED_ROWS + 4
    for number, left in (2, 3 + 2), (3, 3):
        deliver(gateway, message=MESSAGE.replace(b"<1@", b"<%d@" % number), KEEP_DAYS=8)
        assert len(execute(gateway.settings["JOURNAL"], "select 1 from message")) == left


def test_rows_that_are_taken_up_again_are_not_in_the_way_of_others(gateway: Gateway, endpoint: Endpoint) -> None:
    messages = [MESSAGE.replace(b"<1@", b"<a%d@" % number) for number in range(2 * PURGED_ROWS)]
    for message in messages:
        deliver(gateway, message=message)
    age(gateway.settings["JOURNAL"], 9 * DAY)
    for message in messages[:PURGED_ROWS]:
        deliver(gateway, "--queue-id=another", "info@example.com", message=message, KEEP_DAYS=10)
    for number in 2, 3:
        deliver(gateway, message=MESSAGE.replace(b"<1@", b"<%d@" % number), KEEP_DAYS=8)
    assert len(execute(gateway.settings["JOURNAL"], "select 1 from message")) == PURGED_ROWS + 2


@only_sqlite
@pytest.mark.parametrize("content", [b"no journal" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_journal_is_set_aside(gateway: Gateway, endpoint: Endpoint, content: bytes) -> None:
    (folder(gateway) / FILE).write_bytes(content)
    (folder(gateway) / FILE).chmod(0o600)
    result = gateway.run("--queue-id=4XyZ", "info@example.com", message=MESSAGE)
    assert (result.status, result.out) == (0, b"2.0.0 delivered\n")
    assert "is set aside as" in result.log
    (damaged,) = folder(gateway).glob(f"{FILE}.damaged-*")
    assert damaged.read_bytes() == content
    assert deliver(gateway) == "delivered"
    assert len(endpoint.messages) == 1


@only_sqlite
def test_a_journal_that_is_damaged_in_its_midst_is_set_aside(gateway: Gateway, endpoint: Endpoint) -> None:
    deliver(gateway)
    row = (time.time(), "x" * 200)
    columns = "digest, seen_first, seen_last, cause"
    for _ in range(300):
        execute(folder(gateway), f"insert into message ({columns}) values (randomblob(16), ?1, ?1, ?2)", *row)
    execute(folder(gateway), "pragma wal_checkpoint(truncate)")
    path = folder(gateway) / FILE
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 6] = b"\xff" * 4096 * 4
    path.write_bytes(data)
    for number in range(20):
        message = MESSAGE.replace(b"<1@", b"<a%d@" % number)
        assert gateway.run("info@example.com", message=message).out == b"2.0.0 delivered\n"
    assert len(endpoint.messages) == 1 + 20
    assert list(folder(gateway).glob(f"{FILE}.damaged-*"))


def test_a_journal_of_a_newer_version_keeps_the_mail_in_the_queue(gateway: Gateway, endpoint: Endpoint) -> None:
    deliver(gateway)
    is_folder = "://" not in str(gateway.settings["JOURNAL"])
    execute(
        gateway.settings["JOURNAL"], "pragma user_version = 1000" if is_folder else "update version set number = 1000"
    )
    result = gateway.run("info@example.com", message=MESSAGE)
    assert result.ending == (75, "4.3.5", "settings")
    assert "journal is of a newer version" in result.facts["cause"]


STORES = ("journal/sqlite.py", "journal/postgresql.py")
# The same statements for both.
NEXT_VERSION = """

MIGRATIONS += (
    ("alter table message add column added text", "update message set added = cause", {statements}),
)
"""


def next_version(gateway: Gateway, *statements: str) -> Path:
    """Return a version of the program with another migration, which ends with these statements."""
    added = NEXT_VERSION.format(statements=", ".join(map(repr, statements)))
    return changed(gateway.folder / f"next{len(list(gateway.folder.iterdir()))}", dict.fromkeys(STORES, added))


def test_a_journal_of_an_older_version_is_migrated(gateway: Gateway, endpoint: Endpoint) -> None:
    """By whoever comes first, and what it knows stays known."""
    endpoint.answers = [returns(7), returns(8)]
    assert deliver(gateway) == "delivered"
    gateway.program = next_version(gateway)
    commands = [
        gateway.command(f"--queue-id=4X{number}", "info@example.com", LOG=gateway.folder / "logs")
        for number in range(4)
    ]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, env=ENVIRONMENT) for command in commands]
    for number, process in enumerate(processes):
        process.communicate(MESSAGE.replace(b"<1@", b"<a%d@" % number))
    assert [process.returncode for process in processes] == [0] * 4
    result = gateway.run(*OPTIONS, message=MESSAGE)
    assert (result.facts["record_id"], result.facts["cause"]) == ("7", "answered before")
    assert len(execute(gateway.settings["JOURNAL"], "select added from message")) == 5
    gateway.program = PROGRAM
    assert deliver(gateway) == "settings"  # it is of a newer version now


def test_a_journal_of_the_first_version_is_migrated(gateway: Gateway, endpoint: Endpoint) -> None:
    place = gateway.settings["JOURNAL"]
    version = "select number from version" if "://" in str(place) else "pragma user_version"
    gateway.program = changed(gateway.folder / "first", dict.fromkeys(STORES, "\nMIGRATIONS = MIGRATIONS[:1]\n"))
    assert deliver(gateway) == "delivered"
    assert [*execute(place, version)[0].values()] == [1]
    gateway.program = PROGRAM
    assert gateway.run(*OPTIONS, message=MESSAGE).facts["cause"] == "answered before"
    assert [*execute(place, version)[0].values()] == [2]
    assert tries(gateway, "ending", "cause") == [("DELIVERED", "answered before")]


def test_a_migration_that_fails_changes_nothing(gateway: Gateway, endpoint: Endpoint) -> None:
    """The mail waits, and the version before can still go on."""
    assert deliver(gateway) == "delivered"
    gateway.program = next_version(gateway, "update message set nothing = 1")
    result = gateway.run(*OPTIONS, message=MESSAGE)
    assert result.ending == (75, "4.3.0", "failed")
    assert result.facts["cause"].startswith("journal: ")
    assert "nothing" in result.facts["cause"]
    gateway.program = PROGRAM
    assert deliver(gateway) == "delivered"
    assert "added" not in execute(gateway.settings["JOURNAL"], "select * from message")[0]
    assert len(endpoint.messages) == 1


@only_sqlite
@pytest.mark.parametrize("taken", [[FILE], [LOCK], [FILE, LOCK, f"{FILE}-wal", f"{FILE}-shm"]], ids=" ".join)
@pytest.mark.parametrize("way", ["pipe", "service"])
def test_a_journal_that_is_deleted_is_made_anew(
    gateway: Gateway, service: Service, endpoint: Endpoint, way: str, taken: list[str]
) -> None:
    options = (
        ["info@example.com"] if way == "pipe" else [f"--service={service.address}", "--sender=", "info@example.com"]
    )
    journal = folder(gateway) if way == "pipe" else Path(str(service.settings["JOURNAL"]))
    for number in range(3):
        message = MESSAGE.replace(b"<1@", b"<a%d@" % number)
        assert gateway.run(*options, message=message).out == b"2.0.0 delivered\n"
        for name in taken:
            (journal / name).unlink(missing_ok=True)


def test_a_row_costs_no_wait_for_the_disk(tmp_path: Path) -> None:
    """With "wal", "normal" is enough to find the journal whole after a loss of power."""
    connection = _connection(str(tmp_path / FILE), lambda text: None)
    assert connection.execute("select * from pragma_journal_mode, pragma_synchronous").fetchone() == ("wal", 1)


@only_sqlite
def test_a_journal_that_is_locked_keeps_the_mail_in_the_queue(gateway: Gateway, endpoint: Endpoint) -> None:
    """A backup may hold it for a minute; a run waits for five seconds."""
    deliver(gateway)
    with closing(sqlite3.connect(folder(gateway) / FILE, isolation_level=None)) as backup:
        backup.execute("begin immediate")
        result = gateway.run("info@example.com", message=MESSAGE.replace(b"<1@", b"<2@"))
        assert result.ending == (75, "4.3.0", "failed")
        assert "journal: database is locked" in result.facts["cause"]
        assert len(endpoint.messages) == 1
        backup.execute("rollback")
    assert deliver(gateway, message=MESSAGE.replace(b"<1@", b"<2@")) == "delivered"


@only_sqlite
def test_a_journal_that_can_not_be_written_keeps_the_mail_in_the_queue(gateway: Gateway, endpoint: Endpoint) -> None:
    deliver(gateway)
    execute(folder(gateway), "pragma wal_checkpoint(truncate)")
    with closing(sqlite3.connect(folder(gateway) / FILE)) as connection:
        connection.execute("pragma journal_mode = delete")  # what may not be written can't be set to wal either
    path = folder(gateway) / FILE
    path.rename(folder(gateway) / "before")
    path.mkdir()
    result = gateway.run("info@example.com", message=MESSAGE)
    assert result.ending[0] == 75
    assert "journal" in result.facts["cause"]
    assert len(endpoint.messages) == 1


@only_sqlite
def test_a_folder_that_is_gone_keeps_the_mail_in_the_queue(gateway: Gateway, endpoint: Endpoint) -> None:
    os.rmdir(str(gateway.settings["JOURNAL"]))
    result = gateway.run("info@example.com", message=MESSAGE)
    assert result.ending == (75, "4.3.5", "settings")
    assert "MAIL_GATEWAY_JOURNAL" in result.facts["cause"]
    assert deliver(gateway, JOURNAL=None) == "delivered"


@only_sqlite
def test_nobody_else_can_read_the_journal(gateway: Gateway, endpoint: Endpoint) -> None:
    deliver(gateway)
    files = list(folder(gateway).iterdir())
    assert {path.name for path in files} >= {FILE, LOCK}
    assert not any(path.stat().st_mode & 0o77 for path in files)


def tries(gateway: Gateway, *names: str) -> list[tuple[Any, ...]]:
    """Return what the journal has of the tries, oldest first."""
    rows = execute(gateway.settings["JOURNAL"], "select * from attempt order by id")
    return [tuple(row[name] for name in names) for row in rows]


def test_each_try_is_written_down(gateway: Gateway, endpoint: Endpoint) -> None:
    endpoint.answers = [http(503), returns(7)]
    options = ("--queue-id=4XyZ", "--sender=ann@outside.test", "--original-recipient=sales@example.net")
    for _ in range(2):
        deliver(gateway, *options, "info@example.com")
    assert tries(gateway, "ending", "record_id", "cause") == [("DATABASE_DOWN", None, "HTTP 503"), ("DELIVERED", 7, "")]
    names = ("message_id", "queue_id", "sender", "recipients", "original_recipients", "subject", "size", "posted_as")
    row = ("<1@outside.test>", "4XyZ", "ann@outside.test", "info@example.com", "sales@example.net", "hello")
    assert tries(gateway, *names) == [(*row, len(MESSAGE), "")] * 2
    assert all(0 < seconds < 60 for (seconds,) in tries(gateway, "seconds"))


@pytest.mark.parametrize(
    ("arguments", "settings", "ending"),
    [
        (["nobody@elsewhere.test"], {}, "UNKNOWN_RECIPIENT"),
        (["info@example.com"], {"MAX_SIZE": 10}, "TOO_LARGE"),
    ],
)
def test_what_never_gets_to_the_database_is_written_down_too(
    gateway: Gateway, endpoint: Endpoint, arguments: list[str], settings: dict[str, Any], ending: str
) -> None:
    deliver(gateway, *arguments, **settings)
    assert tries(gateway, "message_id", "ending", "recipients") == [("<1@outside.test>", ending, arguments[0])]


def test_tries_are_as_old_as_they_may_be(gateway: Gateway, endpoint: Endpoint) -> None:
    for number in range(PURGED_ROWS + 1):
        deliver(gateway, message=MESSAGE.replace(b"<1@", b"<a%d@" % number))
    execute(gateway.settings["JOURNAL"], f"update attempt set at = at - {9 * DAY}")
    deliver(gateway, KEEP_DAYS=8)
    assert len(tries(gateway)) == 1 + 1
    deliver(gateway, "--queue-id=another", "info@example.com", KEEP_DAYS=8)
    assert len(tries(gateway)) == 2


def test_a_try_has_any_text(gateway: Gateway, endpoint: Endpoint) -> None:
    message = b"Message-ID: <1@outside.test>\nSubject: \xff\xfe \xc3\xa9 %\n\nx\n"
    deliver(gateway, "--sender=\udcff@outside.test", "info@example.com", message=message)
    assert tries(gateway, "subject", "sender") == [("\\xff\\xfe é %", "\\xff@outside.test")]


def test_a_journal_that_a_service_has_left_is_not_open_any_more(tmp_path: Path) -> None:
    """It may be told of another one, again and again."""
    values = {"URL": "https://odoo.example.com", "DATABASE": "mydatabase", "LOGIN": "2", "PASSWORD": "secret"}

    def open_files(count: int) -> int:
        for number in range(count):
            folder = tmp_path / f"{count}.{number}"
            folder.mkdir(mode=0o700)
            assert not journal.known(build(values | {"JOURNAL": str(folder)}), "<1@outside.test>").ending
        return len(os.listdir("/proc/self/fd"))

    one = open_files(1)
    assert open_files(10) == one
