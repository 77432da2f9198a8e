"""The resident service under load: ``python benchmarks/service.py [COUNT]``, with so many messages for its memory."""

import itertools
import multiprocessing
import os
import signal
import statistics
import sys
import time

import measure
from page import Figure, Row, report

FIRST = 1000  # messages, after which its memory is what it needs
DELAY = 0.05  # seconds that the database server takes
CONNECTIONS = (1, 2, 4, 8, 16)
WORKERS = 4  # more than the default of two, to see it grow
SECONDS = 2  # that each number of connections gets
LARGE, LARGE_AT_ONCE = 20 * 2**20, 10
ROUNDS, PROBES = 3, 30  # small messages whose delay is measured


def memory(count: int) -> Row:
    """Deliver many messages and compare the memory after all with that after the first ones."""
    figure = Figure(f"memory of the service after {count:,} messages / after {FIRST:,}", "at most", 1.05)
    with measure.stage() as stage, stage.service() as service:
        measure.deliver(service.address, FIRST, connections=4)
        before = service.memory()
        rate = measure.deliver(service.address, count - FIRST, connections=4)
        after = service.memory()
    return figure.row(after / before, f"{after:.1f} MiB / {before:.1f} MiB, {rate:.0f} messages a second")


def connections() -> Row:
    """Return how the rate grows with the connections until all workers are busy."""
    figure = Figure(
        "messages per second, a database server that takes 50 ms, from as many connections as workers on / possible",
        "at least",
        0.9,
    )
    with measure.stage(DELAY, WORKERS=WORKERS) as stage, stage.service() as service:
        possible = [min(number, WORKERS) / DELAY for number in CONNECTIONS]
        rates = [
            measure.deliver(service.address, int(rate * SECONDS), number)
            for number, rate in zip(CONNECTIONS, possible, strict=True)
        ]
    busy = [rate for number, rate in zip(CONNECTIONS, rates, strict=True) if number >= WORKERS]
    found = ", ".join(f"{rate:.0f} with {number}" for number, rate in zip(CONNECTIONS, rates, strict=True))
    return figure.row(min(busy) / max(possible), f"{found}; {max(possible):.0f}")


def send_large(address: str) -> None:
    client, message = measure.Client(address), measure.message(LARGE)
    for number in itertools.count():
        client.deliver(message.replace(b"Message-ID: <", b"Message-ID: <%d." % number, 1))


def delay() -> Row:
    """Return how long a small message takes while large ones come on other connections, one after the other.

    It is long, for its helpers share what it has started.
    """
    figure = Figure("delay of a message of 4 KiB while ten of 20 MiB are under way / alone, medians", "at most", 2)
    with measure.stage() as stage, stage.service() as service:
        client = measure.Client(service.address)
        senders = [multiprocessing.Process(target=send_large, args=[service.address]) for _ in range(LARGE_AT_ONCE)]
        for sender in senders:
            sender.start()

        def is_busy() -> bool:
            before = service.cpu()
            time.sleep(0.5)
            return service.cpu() - before > 0.02

        def delays(number: signal.Signals) -> list[float]:
            """Stop the senders, or let them go on, and return what small messages take then."""
            for sender in senders:
                os.kill(sender.pid or 0, number)
            time.sleep(0.5)
            while number == signal.SIGSTOP and is_busy():  # with what it has received
                pass
            found = []
            for _ in range(PROBES):
                message = measure.message(measure.SMALL)
                started = time.perf_counter()
                client.deliver(message)
                found.append(time.perf_counter() - started)
                time.sleep(0.02)
            return found

        try:
            delays(signal.SIGSTOP)
            rounds = [(delays(signal.SIGCONT), delays(signal.SIGSTOP)) for _ in range(ROUNDS)]
        finally:
            for sender in senders:
                sender.kill()
    ratio = statistics.median(statistics.median(one) / statistics.median(other) for one, other in rounds)
    beside, alone = (sorted(itertools.chain(*column)) for column in zip(*rounds, strict=True))
    one, other = (statistics.median(column) * 1000 for column in (beside, alone))
    slowest = statistics.quantiles(beside, n=10)[-1] * 1000
    return figure.row(ratio, f"{one:.1f} ms / {other:.1f} ms; one of ten takes {slowest:.0f} ms")


def main(count: int = 20_000) -> int:
    return report(connections(), delay(), is_firm=False) or report(memory(count))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
