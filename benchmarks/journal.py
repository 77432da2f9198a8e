"""What the journal costs a delivery, when it is small and when it is large: ``python benchmarks/journal.py [ROWS]``.

In SQLite, and in PostgreSQL where its programs are: there the CPU is ours, and that of our session in the server. Then
what it costs a process that a mail server starts for one message.
"""

import contextlib
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import measure
import psycopg
from page import Figure, Row, report

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.journal import execute
from support.mta import free_port
from support.postgresql import PASSWORD, USER, Impossible, PostgreSQL

from mailgate import journal
from mailgate.journal import postgresql
from mailgate.journal.rows import DIGEST_BYTES
from mailgate.journal.sqlite import FILE, LOCK, SELECT, SETTINGS, upsert
from mailgate.log import Facts, attempt
from mailgate.outcome import Outcome, Verdict
from mailgate.settings import Settings, build

SMALL = 1_000  # rows
ROUNDS, BATCH = 20, 200  # claims of a batch; their CPU is what counts
OPENING = 20  # claims before a batch, which open the journal again: a thread keeps one, and two are measured in turn
GROWTH = Figure("journal: CPU of a claim with its notes and the try, at {rows:,} rows / at 1,000", "at most", 1.3)
COST = Figure("journal: CPU of a claim with its notes, ms", "at most", 0.1)
STATEMENTS = Figure("journal: CPU of a claim with its notes / of its SQL statements alone")  # on whatever machine
TRY_COST = Figure("journal: CPU of writing down the try, ms")
ROW_BYTES = Figure("journal: bytes of a message, with its try", "at most", 400)
SERVER_GROWTH = Figure(
    "journal in PostgreSQL: CPU of a claim, ours and the server's, at {rows:,} rows / at 1,000", "at most", 1.3
)
SERVER_OURS = Figure("journal in PostgreSQL: CPU of a claim with its notes, ours alone, ms")
SERVER_WAIT = Figure("journal in PostgreSQL: time of a claim with its notes, server on this machine without fsync, ms")
SERVER_ROW_BYTES = Figure("journal in PostgreSQL: bytes of a message's row", "at most", 400)
SERVER_TRY_BYTES = Figure("journal in PostgreSQL: bytes of the row of a try", "at most", 400)
PIPE = Figure("journal: CPU of the pipe alone with it, ms more than without", "at most", 12)
HANDOVER = Figure("journal: CPU of the pipe with `--service` with it / without", "at most", 1.05)
AGE = 31 * 86400  # seconds after which a row goes, and a day
RUNS = 30  # of a process, on each way
SIZES = "select pg_total_relation_size('message'), pg_total_relation_size('attempt')"
DATE = 1796032800  # seconds since 1970
BEGUN = {"delivery": b"d" * DIGEST_BYTES, "date": DATE, "ending": None, "tries": 1, "recipients": "info@example.com"}
ENDED = BEGUN | {"ending": "DELIVERED", "record_id": 1, "cause": "", "tries": 0}
ADDED = b"Return-Path: <ann@outside.test>\nDelivered-To: <info@example.com>\n"


def main(rows: int = 1_000_000) -> int:
    """Measure both stores."""
    return report(*in_sqlite(rows), *in_postgresql(rows), *of_a_process(), is_firm=False)


def in_sqlite(rows: int) -> list[Row]:
    """Claim in turn from a small and from a large journal."""
    with tempfile.TemporaryDirectory() as folder:
        small, large = (filled(Path(folder) / f"{count}", count) for count in (SMALL, rows))
        found = [(batch(small), batch(large)) for _ in range(ROUNDS)]
        with contextlib.closing(sqlite3.connect(Path(large.journal) / FILE, isolation_level=None)) as connection:
            alone = statistics.median(statements(connection) * 1000 for _ in range(ROUNDS))
        size = sum(path.stat().st_size for path in Path(large.journal).iterdir() if path.name != LOCK)
    few, many = (statistics.median(cost.ours for cost in costs) * 1000 for costs in zip(*found, strict=True))
    ratio = statistics.median(many.ours / few.ours for few, many in found)
    claim = statistics.median(many.claim for _, many in found) * 1000
    return [
        GROWTH._replace(name=GROWTH.name.format(rows=rows)).row(ratio, f"{many:.3f} ms / {few:.3f} ms"),
        COST.row(claim),
        STATEMENTS.row(claim / alone, f"{claim:.3f} ms / {alone:.3f} ms"),
        TRY_COST.row(statistics.median(many.ours - many.claim for _, many in found) * 1000),
        ROW_BYTES.row(size / rows),
    ]


def in_postgresql(rows: int) -> list[Row]:
    """Claim in turn from a small and from a large journal, in two databases of one server."""
    growth = SERVER_GROWTH._replace(name=SERVER_GROWTH.name.format(rows=rows))
    try:
        server = PostgreSQL(free_port())
    except Impossible as error:
        return [
            each.skipped(str(error)) for each in (growth, SERVER_OURS, SERVER_WAIT, SERVER_ROW_BYTES, SERVER_TRY_BYTES)
        ]
    try:
        with tempfile.TemporaryDirectory() as folder:
            small, large = (filled_on(server, Path(folder), count) for count in (SMALL, rows))
        found = [(batch(small), batch(large)) for _ in range(ROUNDS)]
        with connected(large) as connection:
            sizes = connection.execute(SIZES).fetchone() or (0, 0)
    finally:
        server.remove()
    few, many = (statistics.median(cost.all for cost in costs) * 1000 for costs in zip(*found, strict=True))
    return [
        growth.row(statistics.median(many.all / few.all for few, many in found), f"{many:.3f} ms / {few:.3f} ms"),
        SERVER_OURS.row(statistics.median(many.ours for _, many in found) * 1000),
        SERVER_WAIT.row(statistics.median(many.wall for _, many in found) * 1000),
        SERVER_ROW_BYTES.row(sizes[0] / rows),
        SERVER_TRY_BYTES.row(sizes[1] / rows),
    ]


def filled(folder: Path, rows: int) -> Settings:
    """Return the settings of a journal that has so many rows, as deliveries write them."""
    folder.mkdir()
    settings = settings_with(JOURNAL=str(folder))
    deliver(settings, 0)
    with contextlib.closing(sqlite3.connect(folder / FILE)) as connection:
        for table in "message", "attempt":
            (row,) = connection.execute(f"select * from {table}").fetchall()
            marks = ", ".join("?" * len(row))
            others = ((None, os.urandom(DIGEST_BYTES) if table == "message" else row[1], *row[2:]) for _ in range(rows))
            connection.executemany(f"insert into {table} values ({marks})", others)
        connection.commit()
        connection.execute("pragma wal_checkpoint(truncate)")  # a single large transaction, which no delivery is
    return settings


def filled_on(server: PostgreSQL, folder: Path, rows: int) -> Settings:
    """Return the settings of a journal that has so many rows, in a database of the server."""
    server.sql(f"create database journal_{rows} owner {USER}")
    password = folder / f"password-{rows}"
    password.touch(0o600)
    password.write_text(PASSWORD)
    settings = settings_with(JOURNAL=server.url(f"journal_{rows}"), JOURNAL_PASSWORD_FILE=str(password))
    deliver(settings, 0)
    with connected(settings) as connection:
        for table in "message", "attempt":
            found = connection.execute(f"select * from {table}").description or []
            columns = ", ".join(name for name, *_ in found if name != "id")
            others = columns.replace("digest", "substr(sha256(number::text::bytea), 1, 16)", 1)
            source = f"{table}, generate_series(1, {rows}) as number"
            connection.execute(f"insert into {table} ({columns}) select {others} from {source}")
            connection.execute(f"vacuum analyze {table}")
    return settings


def connected(settings: Settings) -> "psycopg.Connection":
    return psycopg.connect(settings.journal, password=PASSWORD, autocommit=True)


def settings_with(**journal: str) -> Settings:
    values = {"URL": "https://odoo.example.com", "DATABASE": "mydatabase", "LOGIN": "2", "PASSWORD": "secret"}
    return build(values | journal)


class Cost(NamedTuple):
    """The seconds that a delivery takes of the journal.

    Our CPU without writing down the try, and with it; ours and that of the server's session; all time.
    """

    claim: float
    ours: float
    all: float
    wall: float


def batch(settings: Settings) -> Cost:
    """Return what a delivery takes of the journal, where as many old rows go as new ones come."""
    grow_old(settings.journal)
    for number in range(OPENING):
        deliver(settings, number)
    sessions = [f"{session.info.backend_pid}" for each in postgresql._idle.values() for session in each]
    before = time.process_time(), sum(map(server_cpu, sessions)), time.perf_counter()
    claims = sum(deliver(settings, number) for number in range(BATCH))
    after = time.process_time(), sum(map(server_cpu, sessions)), time.perf_counter()
    ours, theirs, wall = ((end - begin) / BATCH for begin, end in zip(before, after, strict=True))
    return Cost(claims / BATCH, ours, ours + theirs, wall)


def statements(connection: "sqlite3.Connection") -> float:
    """Return the seconds of CPU of what a claim with its notes asks SQLite for, without all the rest."""
    for setting in SETTINGS:
        connection.execute(f"pragma {setting}")
    begun = upsert(("seen_last", "begun", "begun_boot", "begun_clock", *BEGUN))
    ended = upsert(("seen_last", "begun", "begun_boot", "begun_clock", *ENDED))
    before = time.process_time()
    for _ in range(BATCH):
        digest, now = os.urandom(DIGEST_BYTES), time.time()
        connection.execute(SELECT, [digest]).fetchone()
        connection.execute(begun, [digest, now, now, now, "boot", now, *BEGUN.values()])
        connection.execute(ended, [digest, now, now, None, None, None, *ENDED.values()])
    return (time.process_time() - before) / BATCH


def grow_old(store: str) -> None:
    """Make as many of the oldest rows too old as a batch writes, with the claims before it."""
    key, order, span = (
        ("digest", "seen_first", f"make_interval(secs => {AGE})") if "://" in store else ("id", "id", AGE)
    )
    execute(
        store,
        f"update message set seen_first = seen_first - {span}, seen_last = seen_last - {span}, begun = null"
        f" where {key} in (select {key} from message order by {order} limit {OPENING + BATCH})",
    )
    execute(
        store,
        f"update attempt set at = at - {AGE} where id in (select id from attempt order by id limit {OPENING + BATCH})",
    )


def server_cpu(process: str) -> float:
    """Return the seconds of CPU of one of the server's processes, as the scheduler counts them."""
    return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9


def deliver(settings: Settings, number: int) -> float:
    """Claim a message that nobody has seen, note that it is on its way, how it ends, and the try.

    Returns the seconds of our CPU before the try.
    """
    message_id = f"<{time.monotonic_ns()}.{number}@outside.test>"
    delivery = journal.Delivery(message_id, "4XyZ12345z", ADDED, DATE)
    verdict = Verdict(Outcome.DELIVERED, record_id=number)
    facts = Facts("4XyZ12345z")
    facts.message_id, facts.sender, facts.recipients = message_id, "ann@outside.test", ["info@example.com"]
    facts.subject, facts.size = "Forty chairs, and a table for them", 4096
    began = time.process_time()
    with journal.claim(settings, delivery, 0.0) as claimed:
        claimed.serves("info@example.com")
        claimed.note_begun()
        claimed.end(verdict)
    ended = time.process_time()
    journal.note_attempt(settings, attempt(facts, verdict, 0.042))
    return ended - began


def of_a_process() -> list[Row]:
    """Run the pipe alone, and handing over to a service, in turn with a journal and without one."""
    with (
        measure.stage() as one,
        measure.stage(JOURNAL="") as other,
        one.service() as with_it,
        other.service() as without,
    ):
        small = measure.message_file(one.folder, measure.SMALL)
        ways = [
            (one.pipe(), other.pipe()),
            (one.pipe("--service", with_it.address), other.pipe("--service", without.address)),
        ]
        alone, handed = (
            [[measure.run(command, small).cpu * 1000 for command in way] for _ in range(RUNS)] for way in ways
        )

    def detail(found: list[list[float]]) -> str:
        return " / ".join(f"{statistics.median(costs):.1f} ms" for costs in zip(*found, strict=True))

    return [
        PIPE.row(statistics.median(mine - its for mine, its in alone), detail(alone)),
        HANDOVER.row(statistics.median(mine / its for mine, its in handed), detail(handed)),
    ]


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
