"""Deliveries per second at 10^3, 10^5 and 10^6 stored messages: ``benchmarks/database.py [STORE STORE STORE]``."""

import resource
import sys
import tempfile
import time
from datetime import timedelta
from statistics import median

from page import Figure, report

from mail_database.delivery import process
from mail_database.routing import Fallback
from mail_database.store import key_of, open_database, transaction
from mail_database.tables import messages, now, records
from mail_database.world import load

SIZES = (10**3, 10**5, 10**6)
ROUNDS, DELIVERIES = 10, 50
BATCH = 10_000
FIGURE = Figure(f"embedded database: time of a delivery at {SIZES[-1]:,} messages / at {SIZES[0]:,}", "at most", 2)
WORLD = {
    "alias_domains": [{"id": 1, "name": "example.com", "catchall": "catchall", "bounce": "bounce"}],
    "companies": [{"id": 1, "name": "My Company", "email": "office@example.com", "alias_domain": "example.com"}],
    "aliases": [{"id": 1, "local_part": "info", "domain": "example.com", "model": "crm.lead", "defaults": {}}],
}


def main(*urls: str) -> int:
    """Fill a store of each size, deliver to each in turn, and report the ratio of the rates."""
    with tempfile.TemporaryDirectory() as folder:
        engines = [open_database(url) for url in urls or (f"sqlite:///{folder}/{size}.db" for size in SIZES)]
        for engine, size in zip(engines, SIZES, strict=True):
            with transaction(engine) as store:
                load(store, WORLD)
                store.set_parameter("mail.gateway.loop.threshold", "1000000000")
            fill(engine, size)
        # In rounds, so that whatever else the machine does meanwhile slows down all of them.
        rounds = [[rate(engine, size, n) for engine, size in zip(engines, SIZES, strict=True)] for n in range(ROUNDS)]
        for engine in engines:
            engine.dispose()
    rates = [median(of_size) for of_size in zip(*rounds, strict=True)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    detail = ", ".join(f"{rate:.0f} a second at {size:,}" for size, rate in zip(SIZES, rates, strict=True))
    return report(FIGURE.row(rates[0] / rates[-1], f"{detail}, {peak:.0f} MiB"))


def fill(engine, size: int) -> None:
    """Store messages and their records, a thousand senders', straight into the tables."""
    for start in range(0, size, BATCH):
        numbers = range(start + 1, min(start + BATCH, size) + 1)
        with engine.begin() as connection:
            connection.execute(
                records.insert(),
                [
                    {"model": "crm.lead", "id": 10**9 + number, "name": "x", "email_from": f"a{number % 1000}@b.test",
                     "email_normalized": f"a{number % 1000}@b.test", "created": now() - timedelta(days=1)}
                    for number in numbers
                ],
            )  # fmt: skip
            connection.execute(
                messages.insert(),
                [
                    {"message_id": f"<{number}@b.test>", "message_key": key_of(f"<{number}@b.test>"),
                     "model": "crm.lead", "thread_id": 10**9 + number, "email_from": f"a{number % 1000}@b.test",
                     "subject": "x", "body": "<p>" + "some text " * 20 + "</p>"}
                    for number in numbers
                ],
            )  # fmt: skip


def rate(engine, size: int, round_number: int) -> float:
    """Deliver new mails and replies in turn and return how many went in a second."""
    started = time.perf_counter()
    for number in range(round_number * DELIVERIES, (round_number + 1) * DELIVERIES):
        reply = f"References: <{number % size + 1}@b.test>\n" if number % 2 else ""
        raw = f"From: a{number}@b.test\nTo: info@example.com\nMessage-ID: <new-{size}-{number}@b.test>\n{reply}\nbody\n"
        process(engine, raw.encode(), Fallback(), 2)
    return DELIVERIES / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
