"""Leads per second into a real Odoo 19, two at a time, on each way: ``python benchmarks/odoo.py [ROUNDS]``."""

import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import measure
from page import Figure, Row, report

sys.path.append(str(measure.ROOT / "tests"))
from support.odoo.server import Impossible, Odoo

AT_A_TIME = 2
COUNT = 20  # leads of each way in each round: short rounds, so that whatever else the machine does meets all ways
FIRST = 10  # of each way before them: Odoo compiles and caches, and so does Python
LEADS = "leads per second into Odoo 19, two at a time: "
SERVICE = Figure(f"{LEADS}the service / posting directly", "at least", 0.95)
INSTALLED = Figure(f"{LEADS}the pipe as installed / Odoo's script", "at least", 1.2)
ALONE = Figure(f"{LEADS}the pipe alone / Odoo's script")
Deliver = Callable[[bytes], object]

_numbers = itertools.count(1)


def message() -> bytes:
    """Return a mail that nobody has seen, as a mail server gives it to a program."""
    number = f"{os.getpid()}.{next(_numbers)}"
    return (
        f"From: Ann Example <ann@outside.test>\nTo: info@example.com\nSubject: chairs {number}\n"
        f"Message-ID: <{number}@outside.test>\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n\n"
        + "We need two hundred folding chairs in March.\n"
        * 20
    ).encode()


def directly(odoo: Odoo) -> Deliver:
    """Return what posts to the database and does nothing else: what the gateway adds is measured by it."""
    server = xmlrpc.client.ServerProxy(f"{odoo.url}/xmlrpc/2/object")

    def deliver(raw: bytes) -> None:
        arguments = [False, xmlrpc.client.Binary(raw)]
        assert server.execute_kw(odoo.database, 2, odoo.password, "mail.thread", "message_process", arguments)

    return deliver


def by_lmtp(address: str) -> Deliver:
    """Return what hands over to the service, on a connection that is kept."""
    client = measure.Client(address)
    return lambda raw: client.deliver(raw.replace(b"\n", b"\r\n"))


def by_program(command: measure.Command, **environ: str) -> Deliver:
    """Return what runs a program for each message, as a mail server does."""

    def deliver(raw: bytes) -> None:
        environment = measure.ENVIRONMENT | environ
        subprocess.run(command, input=raw, env=environment, cwd="/", stdout=subprocess.DEVNULL, check=True)

    return deliver


def rate(odoo: Odoo, make: Callable[[], Deliver], count: int) -> float:
    """Deliver so many messages and return how many leads they made in a second."""
    before = odoo.call("crm.lead", "search_count", [])
    numbers = iter(range(count))

    def work(deliver: Deliver) -> None:
        for _ in numbers:
            deliver(message())

    delivers = [make() for _ in range(AT_A_TIME)]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        started = time.perf_counter()
        list(pool.map(work, delivers))  # which raises what a thread has raised
        seconds = time.perf_counter() - started
    assert odoo.call("crm.lead", "search_count", []) - before == count, "each message makes a lead"
    return count / seconds


@contextlib.contextmanager
def real_odoo() -> Iterator[Odoo]:
    """Run an Odoo of its own. Raises Impossible."""
    odoo = Odoo()
    try:
        odoo.add_aliases()
        yield odoo
    finally:
        odoo.purge()


def main(rounds: int = 9) -> int:
    """Take each way in turn and report the medians of the ratios."""
    with contextlib.ExitStack() as stack:
        try:
            script = measure.odoo_script()
            odoo = stack.enter_context(real_odoo())
        except (measure.Missing, Impossible) as reason:
            return report(*(figure.skipped(f"{reason}") for figure in (SERVICE, INSTALLED, ALONE)))
        stage = stack.enter_context(measure.stage(URL=odoo.url, DATABASE=odoo.database, PASSWORD=odoo.password))
        address = stack.enter_context(stage.service()).address
        port = f"{urlsplit(odoo.url).port}"
        ways = {
            "directly": lambda: directly(odoo),
            "service": lambda: by_lmtp(address),
            "installed": lambda: by_program(stage.pipe(), MAIL_GATEWAY_LMTP=address),
            "alone": lambda: by_program(stage.pipe("--service", "none"), MAIL_GATEWAY_LMTP=address),
            "script": lambda: by_program(
                [stage.python, script, "-d", odoo.database, "-u", "2", "-p", odoo.password, "--port", port]
            ),
        }
        for way in ways.values():
            rate(odoo, way, FIRST)
        found = [{name: rate(odoo, way, COUNT) for name, way in ways.items()} for _ in range(rounds)]

    def ratio(figure: Figure, one: str, other: str) -> Row:
        median = statistics.median(rates[one] / rates[other] for rates in found)
        mine, its = (statistics.median(rates[name] for rates in found) for name in (one, other))
        return figure.row(median, f"{mine:.1f} / {its:.1f}")

    return report(
        ratio(SERVICE, "service", "directly"),
        ratio(INSTALLED, "installed", "script"),
        ratio(ALONE, "alone", "script"),
        is_firm=False,
    )


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
