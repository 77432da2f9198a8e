"""The soak: thousands of messages through Postfix while everything fails at random, and an account of every one.

usage: soak.py [--database NUMBER] [--odoo NUMBER] [--hosts NUMBER]

5,000 messages go into mail_database and 500 into a real Odoo 19, if not said otherwise (0 leaves one out), by the pipe,
and as many by LMTP. Meanwhile the proxy in front fails in eight ways, the database server is restarted or killed, and
gateway processes are killed, or the service is. Then the faults end, the queue is flushed, and every message is looked
for. Then 2,000 messages arrive at two hosts at the same moment, which have one journal in PostgreSQL; the services, the
Postfixes and the journal's server are killed meanwhile. A tenth as many do so with a real Odoo 19 behind.
The tables are written into docs/soak.md.
Needs root, Postfix, and for Odoo what tests/support/odoo needs. Exits with 1 when a message is not as it must be.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.endpoint import http
from support.mail_database_server import Server, command
from support.mta import LMTP, PIPE, ROOT, Postfix, free_port
from support.odoo.server import Odoo
from support.postgresql import PostgreSQL
from support.smtp_sink import Sink, sink
from support.trials import (
    RIGHT,
    WRONG,
    Behind,
    Database,
    Mail,
    answers,
    cut_after,
    cut_before,
    cut_within,
    ending_of,
    hangs,
    passes,
    proxy_gives_up,
    settings_for,
    too_late,
)
from support.two_hosts import Hosts, rows

REPORT = ROOT / "docs" / "soak.md"
INFO, JOBS, CATCHALL = "info@example.com", "jobs@example.com", "catchall@example.com"
HIDDEN = "Somebody <somebody@elsewhere.test>"
SENDERS = 4  # connections over which mail comes in
OVERLAPPED = "calls for one message that overlapped"
LIMIT = 5400  # seconds for each database, flushing included
OFFER = "<offer-1@example.com>"  # what replies answer

# What mail comes in, of a hundred.
KINDS = {
    "to an alias": (44, Mail()),
    "to an alias that only the envelope names": (10, Mail(to=HIDDEN)),
    "to two aliases": (10, Mail((INFO, JOBS), to=HIDDEN, records=("info", "jobs"))),
    "an answer to a mail of ours, by the catchall address": (
        10,
        Mail((CATCHALL,), to=CATCHALL, fields=f"References: {OFFER}\r\n".encode()),
    ),
    "the same message twice": (8, Mail(copies=2)),
    "from the null sender": (5, Mail(sender="")),
    "of 200 KB": (5, Mail(body=b"Hello\r\n" + (b"0123456789" * 7 + b"\r\n") * 2_800)),
    "of 3 MB": (2, Mail(body=b"Hello\r\n" + (b"0123456789" * 7 + b"\r\n") * 42_000)),
    "to an unknown address": (6, Mail(("nobody@example.com",), to=HIDDEN, records=(), bounces=1)),
}


def works_on(database: Behind, connection, request) -> None:
    """The proxy has had enough, and the database takes its time."""
    connection.sendall(http(504))
    connection.close()
    database.process(request, seconds=8)


# How the proxy treats a call, of a hundred.
FAULTS = {
    "passes on": (88, passes),
    "cuts before": (2, cut_before),
    "cuts after": (2, cut_after),
    "cuts within the answer": (2, cut_within),
    "502": (2, answers(http(502))),
    "503": (2, answers(http(503))),
    "504, and the database works on for 8 s": (1.5, works_on),
    "hangs": (0.3, hangs),
    "hangs, and the database has it later": (0.2, too_late),
}


def pick(table: dict) -> tuple:
    """Return a name and what it stands for, at random by the weights."""
    name = random.choices(list(table), [weight for weight, _ in table.values()])[0]
    return name, table[name][1]


def disturb(mta: Postfix, restart: Callable[[], object]) -> Counter[str]:
    """Kill the gateways, have the database server start anew, or do nothing: at random; return what has happened."""
    event = random.choices(["kill", "restart", ""], [4, 1, 5])[0]
    if event == "kill":
        killed = mta.kill_gateways(signal.SIGKILL)
        mta.serve()
        return Counter({"gateway processes killed": killed})
    if event == "restart":
        restart()
        return Counter({"restarts of the database server": 1})
    return Counter()


def soak(
    database: Behind, way: str, count: int, restart: Callable[[], object]
) -> tuple[Counter[str], Counter[str], Counter[str], float]:
    """Return the endings of the messages, their kinds, what has gone wrong meanwhile, and the seconds that it took.

    It is long, for it tells the story of a soak from its beginning to its end.
    """
    began = time.monotonic()
    happened: Counter[str] = Counter()
    kinds: Counter[str] = Counter()

    def fails(database, connection, request) -> None:
        name, fault = pick(FAULTS)
        happened[f"the proxy: {name}"] += 1
        fault(database, connection, request)

    mails = []
    for number in range(1, count + 1):
        kind, mail = pick(KINDS)
        kinds[kind] += 1
        mails.append((number, mail))
    waiting = list(reversed(mails))

    def send_all() -> None:
        while waiting:
            number, mail = waiting.pop()
            for _ in range(mail.copies):
                mta.send(*mail.envelope(number))

    with sink() as bounces:
        mta = Postfix(bounces.server_address[1], way)
        try:
            mta.settings(**settings_for(database))
            database.fault = fails
            senders = [threading.Thread(target=send_all) for _ in range(SENDERS)]
            for sender in senders:
                sender.start()
            # Postfix defers all for a service that failed, tried or not: so until the most of it has been tried.
            while time.monotonic() < began + LIMIT / 2 and (waiting or len(mta.queue()) > count / 20):
                time.sleep(random.uniform(1, 3))
                mta.flush()
                happened.update(disturb(mta, restart))
                print(f"\r{len(waiting)} to come, {len(mta.queue())} in the queue  ", end="", flush=True)
            for sender in senders:
                sender.join()
            database.fault = passes
            while mta.queue() and time.monotonic() < began + LIMIT:
                mta.flush()
                time.sleep(2)
                print(f"\r{len(mta.queue())} in the queue  ", end="", flush=True)
            print()
            endings = account(mta, database, bounces, mails)
            endings[OVERLAPPED] += database.overlaps
            return endings, kinds, happened, time.monotonic() - began
        finally:
            mta.stop()
            mta.remove()


def account(mta: Postfix, database: Behind, bounces: Sink, mails: list[tuple[int, Mail]]) -> Counter[str]:
    """Return how many of the messages ended in which way."""
    found = database.everything()
    told = Counter(recipient for _, recipients, _ in bounces.mails for recipient in recipients)
    queued = mta.queued_senders()
    endings: Counter[str] = Counter()
    for number, mail in mails:
        sender, _, message = mail.envelope(number)
        records = found.get(number, [])
        exact = database.is_exact(records, message.replace(b"\r\n", b"\n"))
        counts = Counter(alias for alias, _ in records) + Counter(bounce=told[sender])
        ending = "still queued" if sender in queued else ending_of(mail, counts, exact)
        endings[ending] += 1
        if ending in WRONG:
            print(f"message {number}: {ending}: {mail._replace(body=b'')} {counts}", file=sys.stderr)
    return endings


def into_mail_database(way: str, count: int) -> tuple:
    """Soak mail_database, on SQLite."""
    world = {
        "alias_domains": [{"id": 1, "name": "example.com", "catchall": "catchall", "bounce": "bounce"}],
        "companies": [{"id": 1, "name": "Company", "email": "office@example.com", "alias_domain": "example.com"}],
        "aliases": [
            {"id": 1, "local_part": "info", "domain": "example.com", "model": "crm.lead"},
            {"id": 2, "local_part": "jobs", "domain": "example.com", "model": "project.task"},
        ],
        "partners": [{"id": 3, "name": "Administrator", "email": "admin@example.com"}],
        "users": [{"id": 2, "login": "admin", "partner_id": 3}],
        "records": [{"model": "crm.lead", "id": 1, "name": "Forty chairs", "email_from": "carl@outside.test"}],
        "messages": [
            {"id": 1, "message_id": OFFER, "model": "crm.lead", "thread_id": 1, "author_id": 3, "body": "<p>Offer</p>"}
        ],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        store, path = f"sqlite:///{folder}/mail.db", Path(folder, "world.json")
        path.write_text(json.dumps(world))
        command(store, "load", str(path))
        server = Server(store)
        database = Behind(server)

        def restart() -> None:
            server.stop(kill=random.random() < 0.5)
            server.start()

        try:
            return soak(database, way, count, restart)
        finally:
            database.close()
            server.stop()


def into_odoo(way: str, count: int) -> tuple:
    """Soak a real Odoo 19."""
    server = Odoo()
    try:
        server.add_aliases()
        lead = server.call("crm.lead", "create", {"name": "Forty chairs", "email_from": "carl@outside.test"})
        offer = server.call("crm.lead", "message_post", [lead], body="Offer", message_type="comment")
        server.call("mail.message", "write", offer, {"message_id": OFFER})
        database = Behind(server)

        def restart() -> None:
            server.stop()
            server.start()

        try:
            return soak(database, way, count, restart)
        finally:
            database.close()
    finally:
        server.purge()


def by_two_hosts(database: Database, count: int) -> tuple:
    """Soak two hosts with one journal, in front of a database where calls that overlap make doubles."""
    faults = {name: row for name, row in FAULTS.items() if row[1] is not works_on} | {"504": (2, proxy_gives_up)}
    happened: Counter[str] = Counter()

    def fails(database, connection, request) -> None:
        name, fault = pick(faults)
        happened[f"the proxy: {name}"] += 1
        fault(database, connection, request)

    kinds: Counter[str] = Counter()
    mails = []
    for _ in range(count):
        kind = random.choice(["to an alias", "to an alias that only the envelope names", "to two aliases"])
        kinds[kind] += 1
        mails.append(KINDS[kind][1])
    began = time.monotonic()
    server = PostgreSQL(free_port())
    try:
        with sink() as bounces:
            hosts = Hosts(database, bounces, server)
            try:
                endings, accidents = hosts.play(mails, LIMIT, fault=fails)
                print(f"endings in the journal: {dict(rows(hosts))}")
                endings["not in the journal"] = count - rows(hosts).total()
                endings[OVERLAPPED] += database.overlaps
            finally:
                hosts.remove()
    finally:
        server.remove()
    return endings, kinds, happened + accidents, time.monotonic() - began


def by_two_hosts_into_own(count: int) -> tuple:
    """Soak them with the trials' own database."""
    database = Database()
    database.seconds = 0.1
    try:
        return by_two_hosts(database, count)
    finally:
        database.close()


def by_two_hosts_into_odoo(count: int) -> tuple:
    """Soak them with a real Odoo 19."""
    server = Odoo()
    try:
        server.add_aliases()
        database = Behind(server)
        try:
            return by_two_hosts(database, count)
        finally:
            database.close()
    finally:
        server.purge()


def table(results: dict[str, tuple]) -> str:
    """Return the tables of the report."""
    lines = []
    for title, place in [("what came in", 1), ("what went wrong meanwhile", 2), ("what became of the messages", 0)]:
        lines += ["", f"| {title} | {' | '.join(results)} |", "|---|" + "--:|" * len(results)]
        names = {name: None for result in results.values() for name in sorted(result[place])}
        if not place:
            names = dict.fromkeys((*RIGHT[:2], *WRONG[:5], OVERLAPPED))
        for name in names:
            lines.append(f"| {name} | {' | '.join(str(result[place][name]) for result in results.values())} |")
        if place != 2:  # overlaps are none when all is right
            lines.append(f"| all | {' | '.join(str(result[place].total()) for result in results.values())} |")
    lines.append(f"| minutes | {' | '.join(f'{result[3] / 60:.0f}' for result in results.values())} |")
    return "\n".join(lines[1:]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", type=int, default=5000, metavar="NUMBER")
    parser.add_argument("--odoo", type=int, default=500, metavar="NUMBER")
    parser.add_argument("--hosts", type=int, default=2000, metavar="NUMBER")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for name, soak_it, count in [
        ("mail_database", into_mail_database, options.database),
        ("Odoo 19", into_odoo, options.odoo),
    ]:
        results |= {f"{name}, {way}": soak_it(way, count) for way in (PIPE, LMTP) if count}
    for name, soak_both, count in [
        ("two hosts", by_two_hosts_into_own, options.hosts),
        ("two hosts, Odoo 19", by_two_hosts_into_odoo, options.hosts // 10),
    ]:
        if count:
            results[name] = soak_both(count)
    tables = table(results)
    print(tables)
    if (options.database, options.odoo, options.hosts) == (5000, 500, 2000):
        head, _, _ = REPORT.read_text().partition("| what came in")
        REPORT.write_text(head + tables)
    return int(any((+endings).keys() - set(RIGHT) for endings, *_ in results.values()))


if __name__ == "__main__":
    raise SystemExit(main())
