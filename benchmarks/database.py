"""Deliveries per second at 10^3, 10^5 and 10^6 stored messages: ``python benchmarks/database.py [STORE]``."""

import resource
import sys
import tempfile
import time
from datetime import timedelta

from mail_database.delivery import process
from mail_database.routing import Fallback
from mail_database.store import key_of, messages, now, open_store, records, work

SIZES = (10**3, 10**5, 10**6)
DELIVERIES = 300
BATCH = 10_000
LIMIT = 2.0  # times as long at the largest size as at the smallest
WORLD = {
    "alias_domains": [{"id": 1, "name": "example.com", "catchall": "catchall", "bounce": "bounce"}],
    "companies": [{"id": 1, "name": "My Company", "email": "office@example.com", "alias_domain": "example.com"}],
    "aliases": [{"id": 1, "local_part": "info", "domain": "example.com", "model": "crm.lead", "defaults": {}}],
}


def main(url: str = "") -> int:
    """Fill a store step by step, deliver at each, and print the rates and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        engine = open_store(url or f"sqlite:///{folder}/mail.db")
        with work(engine) as store:
            store.load(WORLD)
            store.set_parameter("mail.gateway.loop.threshold", "1000000000")
        rates = []
        stored = 0
        for size in SIZES:
            fill(engine, stored, size)
            stored = size
            rates.append(rate(engine, size))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{size:>9,} messages: {rates[-1]:6.0f} deliveries a second, peak memory {peak:.0f} MiB", flush=True)
        engine.dispose()
    ratio = rates[0] / rates[-1]
    print(f"a delivery at {SIZES[-1]:,} takes {ratio:.2f} times one at {SIZES[0]:,}   at most {LIMIT}")
    return int(ratio > LIMIT)


def fill(engine, first: int, last: int) -> None:
    """Store messages and their records, a thousand senders', straight into the tables."""
    for start in range(first, last, BATCH):
        numbers = range(start + 1, min(start + BATCH, last) + 1)
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


def rate(engine, size: int) -> float:
    """Deliver new mails and replies in turn and return how many went in a second."""
    started = time.perf_counter()
    for number in range(DELIVERIES):
        reply = f"References: <{number % size + 1}@b.test>\n" if number % 2 else ""
        raw = f"From: a{number}@b.test\nTo: info@example.com\nMessage-ID: <new-{size}-{number}@b.test>\n{reply}\nbody\n"
        process(engine, raw.encode(), Fallback(), 2)
    return DELIVERIES / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
