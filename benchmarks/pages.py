"""What the database's pages cost at 10^6 messages, and what they take from deliveries: ``benchmarks/pages.py [SIZE]``.

The CPU is that of the server's process, with the store in it (SQLite), for an answer over HTTP.
"""

import contextlib
import itertools
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from page import Figure, report

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import requests
from support.large import fill
from support.mail_database_server import Server
from support.page import entered, form

from mail_database.store import open_database

SIZE = 10**6  # messages
ROUNDS, REQUESTS = 5, 5  # of each page
RUNS, RUN_SECONDS = 12, 3.0  # of deliveries, without browsers and with them in turn: short, so that noise meets both
WATCH_SECONDS = 10.0  # of browsers alone
BROWSERS, LOOK_SECONDS = 5, 2.0  # a look is as often as page.js does it
LIMIT_MS = 100.0
# {old} is an id far back, where there are a tenth as many; {far} one of messages.
PAGES = [
    *("/", "/records/crm.lead", "/records/crm.lead?before={old}", "/records/res.partner"),
    *("/records/crm.lead/1", "/records/crm.lead/1?before={far}", "/records/crm.lead/{old}", "/messages/5/text"),
    *("/discuss", "/discuss?before={old}", "/unplaced", "/unplaced?before={old}", "/unplaced/10", "/unplaced/10/text"),
    *("/try/", "/setup/", "/setup/aliases/1"),
]
SEARCHES = {
    "rare": "number{old}1",
    "common": "order",
    "common, far back": "order&before={old}",
    "a beginning": "num",
    "two common": "red+chair",
    "two common that never meet": "table+chair",
    "six beginnings": "ord+num+ann+cust+exa+cha",
    "a number": "{old}",
}
LOOKED_AT = ["/records/crm.lead/1", "/discuss", "/records/crm.lead", "/unplaced", "/"]  # by a browser each
OF_PAGES = Figure("pages: CPU of the dearest page at {:,} messages / 100 ms", "at most", 1)
OF_SEARCHES = Figure("pages: CPU of the dearest search at {:,} messages / 100 ms", "at most", 1)
SHARE = Figure(f"pages: CPU of {BROWSERS} browsers open at {{:,}} messages / one core", "at most", 0.05)
RATE = Figure(f"pages: deliveries per second with {BROWSERS} browsers open / with none", "at least", 0.95)


def main(size: int = SIZE) -> int:
    """Fill a store, serve it, ask for each page, and deliver with and without browsers."""
    with tempfile.TemporaryDirectory() as folder, served(f"sqlite:///{folder}/mail.db", size) as server:
        visitor = entered(server)
        visitor.post(f"{server.url}/developer", data=form(visitor, f"{server.url}/"))
        old, far = size // 20 + 1, size // 2
        pages = {path: milliseconds(server, visitor, path.format(old=old, far=far)) for path in PAGES}
        searches = {
            name: milliseconds(server, visitor, f"/records/crm.lead?find={words.format(old=old)}")
            for name, words in SEARCHES.items()
        }
        share = SHARE._replace(name=SHARE.name.format(size)).row(cpu_of_browsers(server, visitor))
        status = report(dearest(OF_PAGES, size, pages), dearest(OF_SEARCHES, size, searches))
        rates = [(rate(server, visitor, 0), rate(server, visitor, BROWSERS)) for _ in range(RUNS)]
    pairs = sorted(those / none for none, those in rates)
    detail = f"median of {RUNS} pairs, the middle half from {pairs[RUNS // 4]:.2f} to {pairs[-RUNS // 4 - 1]:.2f}"
    return report(share, RATE.row(median(pairs), detail), is_firm=False) or status


@contextlib.contextmanager
def served(store: str, size: int) -> Iterator[Server]:
    """Serve a store with so many messages."""
    began = time.monotonic()
    engine = open_database(store)
    fill(engine, size)
    engine.dispose()
    print(f"filled in {time.monotonic() - began:.0f} seconds", flush=True)
    server = Server(store)
    try:
        server.call("ir.config_parameter", "set_param", "mail.gateway.loop.threshold", str(10**9))
        yield server
    finally:
        server.stop()


def milliseconds(server: Server, visitor: requests.Session, path: str) -> float:
    """Return the CPU of an answer, the median of several rounds."""
    found = []
    for _ in range(ROUNDS):
        began = cpu_seconds(server.process.pid)
        for _ in range(REQUESTS):
            answer = visitor.get(server.url + path, allow_redirects=False)
            assert answer.status_code == 200, path
        found.append((cpu_seconds(server.process.pid) - began) / REQUESTS * 1000)
    print(f"{median(found):6.1f} ms  {path}", flush=True)
    return median(found)


def cpu_seconds(process: int) -> float:
    """Return the CPU that a process has taken, as the kernel's scheduler counts it for each thread."""
    return sum(
        int(Path(f"/proc/{process}/task/{thread}/schedstat").read_text().split()[0]) / 1e9
        for thread in os.listdir(f"/proc/{process}/task")
    )


def dearest(figure: Figure, size: int, costs: dict[str, float]):
    name, most = max(costs.items(), key=lambda item: item[1])
    detail = f"{name}: {most:.1f} ms; the median of {len(costs)}: {median(costs.values()):.1f} ms"
    return figure._replace(name=figure.name.format(size)).row(most / LIMIT_MS, detail)


def cpu_of_browsers(server: Server, visitor: requests.Session) -> float:
    """Return the seconds of CPU that open browsers take of the server in a second: deliveries go without them."""
    with looking(server, visitor, BROWSERS):
        before, began = cpu_seconds(server.process.pid), time.monotonic()
        time.sleep(WATCH_SECONDS)
        return (cpu_seconds(server.process.pid) - before) / (time.monotonic() - began)


def rate(server: Server, visitor: requests.Session, browsers: int) -> float:
    """Deliver for a while, new mails and replies in turn, and return how many went in a second."""
    with looking(server, visitor, browsers):
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < RUN_SECONDS:
            number = next(_numbers)
            reply = f"References: <{number}@outside.test>\r\n" if number % 2 else ""
            sender = f"From: Bob <bob{number}@outside.test>\r\nTo: info@example.com\r\n{reply}"
            subject = f"Subject: Forty red chairs {number}\r\nMessage-ID: <new-{number}@outside.test>\r\n"
            assert server.deliver(f"{sender}{subject}\r\nbody\r\n".encode())
            count += 1
        return count / (time.perf_counter() - began)


_numbers = itertools.count(1)


@contextlib.contextmanager
def looking(server: Server, visitor: requests.Session, browsers: int) -> Iterator[None]:
    """Have so many browsers open meanwhile, in a process of their own."""
    urls = [server.url + path for path in LOOKED_AT[:browsers]]
    process = multiprocessing.get_context("fork").Process(target=look, args=[urls, visitor.cookies], daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def look(urls: list[str], cookies: requests.cookies.RequestsCookieJar) -> None:
    """Look at each of these pages again and again, not all at the same moment."""

    def go_on(place: int, url: str) -> None:
        browser = requests.Session()
        browser.cookies.update(cookies)
        time.sleep(place * LOOK_SECONDS / BROWSERS)
        while True:
            browser.get(url).raise_for_status()
            time.sleep(LOOK_SECONDS)

    threads = [threading.Thread(target=go_on, args=each) for each in enumerate(urls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
