"""What the journal costs a delivery, when it is small and when it is large: ``python benchmarks/journal.py [ROWS]``."""

import contextlib
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

from page import Figure, report

sys.path.insert(0, str(Path(__file__).parents[1]))

from mailgate import journal
from mailgate.journal.rows import DIGEST_BYTES
from mailgate.journal.sqlite import FILE, LOCK
from mailgate.outcome import Outcome, Verdict
from mailgate.settings import Settings, build

SMALL = 1_000  # rows
ROUNDS, BATCH = 20, 200  # claims of a batch; their CPU is what counts
GROWTH = Figure("journal: CPU of a claim with its notes, at {rows:,} rows / at 1,000", "at most", 1.3)
COST = Figure("journal: CPU of a claim with its notes, ms", "at most", 0.1)
ROW_BYTES = Figure("journal: bytes of a row", "at most", 400)
DATE = "Sun, 29 Nov 2026 10:00:00 +0000"
ADDED = b"Return-Path: <ann@outside.test>\nDelivered-To: <info@example.com>\n"


def main(rows: int = 1_000_000) -> int:
    """Claim in turn from a small and from a large journal."""
    with tempfile.TemporaryDirectory() as folder:
        small, large = (filled(Path(folder) / f"{count}", count) for count in (SMALL, rows))
        batch(small), batch(large)  # what is opened at first use
        found = [(batch(small), batch(large)) for _ in range(ROUNDS)]
        size = sum(path.stat().st_size for path in Path(large.journal).iterdir() if path.name != LOCK)
    few, many = (statistics.median(costs) * 1000 for costs in zip(*found, strict=True))
    ratio = statistics.median(many / few for few, many in found)
    return report(
        GROWTH._replace(name=GROWTH.name.format(rows=rows)).row(ratio, f"{many:.3f} ms / {few:.3f} ms"),
        COST.row(many),
        ROW_BYTES.row(size / rows),
    )


def filled(folder: Path, rows: int) -> Settings:
    """Return the settings of a journal that has so many rows, as deliveries write them."""
    folder.mkdir()
    values = {"URL": "https://odoo.example.com", "DATABASE": "mydatabase", "LOGIN": "2", "PASSWORD": "secret"}
    settings = build(values | {"JOURNAL": str(folder)})
    deliver(settings, 0)
    with contextlib.closing(sqlite3.connect(folder / FILE)) as connection:
        (row,) = connection.execute("select * from message").fetchall()
        marks = ", ".join("?" * len(row))
        others = ((os.urandom(DIGEST_BYTES), *row[1:]) for _ in range(rows))
        connection.executemany(f"insert into message values ({marks})", others)
        connection.commit()
    return settings


def batch(settings: Settings) -> float:
    """Return the seconds of CPU that a delivery takes of the journal."""
    before = time.process_time()
    for number in range(BATCH):
        deliver(settings, number)
    return (time.process_time() - before) / BATCH


def deliver(settings: Settings, number: int) -> None:
    """Claim a message that nobody has seen, note that it is on its way, and how it ends."""
    message_id = f"<{time.monotonic_ns()}.{number}@outside.test>"
    delivery = journal.Delivery(message_id, "4XyZ12345z", ADDED, "ann@outside.test", ("info@example.com",), DATE)
    with journal.claim(settings, delivery, 0.0) as claimed:
        claimed.note_begun()
        claimed.end(Verdict(Outcome.DELIVERED, record_id=number))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
