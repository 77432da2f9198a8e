"""The soak: thousands of messages through Postfix while everything fails at random, and an account of every one.

usage: soak.py [--database NUMBER] [--odoo NUMBER] [--hosts NUMBER] [--hosts-odoo NUMBER] [--apart NUMBER]

How many messages go into mail_database and a real Odoo 19, by the pipe and as many by LMTP; by two hosts with one
journal into the trials' own database and Odoo; and by two hosts with a journal each (0 leaves one out).

Meanwhile the proxy in front fails in eight ways, the database server is restarted or killed, and gateway processes are
killed, or the service is. At the two hosts each message arrives at the same moment, in part for another alias, and the
services, the Postfixes and the journal's server are killed. Then the faults end, the queues are flushed, and every
message is looked for, outside, in the journal, and by the desk's audit: all must agree. The tables are written into
docs/soak.md. Needs root, Postfix, PostgreSQL, and for Odoo what tests/support/odoo needs. Exits with 1 when a message
is not as it must be, or when two hosts with a journal each double nothing.
"""

import argparse
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable

from support.accounts import AUDIT, DISAGREE, UNTOLD, account
from support.endpoint import http
from support.mail_database_server import served
from support.mta import LMTP, PIPE, ROOT, Postfix, free_port
from support.odoo.server import Odoo
from support.postgresql import PostgreSQL
from support.smtp_sink import sink
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
    hangs,
    passes,
    proxy_gives_up,
    settings_for,
    too_late,
)
from support.two_hosts import Hosts

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

# What comes in at both of two hosts at the same moment, of a hundred.
APART = Mail((INFO,), to=HIDDEN, elsewhere=(JOBS,), records=("info", "jobs"))
AT_BOTH = {
    "to an alias": (20, Mail()),
    "to an alias that only the envelope names": (20, Mail(to=HIDDEN)),
    "to two aliases": (20, Mail((INFO, JOBS), to=HIDDEN, records=("info", "jobs"))),
    "for another alias at each host, named by the envelope alone": (20, APART),
    "for another alias at each host, both named by To": (10, APART._replace(to=f"{INFO}, {JOBS}")),
    "for another alias at each host, one of them named by To": (10, APART._replace(to=INFO)),
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
            database.fault = database.questions = fails
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
            database.fault = database.questions = passes
            while mta.queue() and time.monotonic() < began + LIMIT:
                mta.flush()
                time.sleep(2)
                print(f"\r{len(mta.queue())} in the queue  ", end="", flush=True)
            print()
            endings = account([mta], database, bounces, mails, str(mta.folder / "var/journal"))
            endings[OVERLAPPED] += database.overlaps
            return endings, kinds, happened, time.monotonic() - began
        finally:
            mta.stop()
            mta.remove()


# Of mail_database.
WORLD = {
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


def into_mail_database(way: str, count: int) -> tuple:
    """Soak mail_database, on SQLite."""
    with tempfile.TemporaryDirectory() as folder, served(f"sqlite:///{folder}/mail.db", WORLD) as server:
        database = Behind(server)

        def restart() -> None:
            server.stop(kill=random.random() < 0.5)
            server.start()

        try:
            return soak(database, way, count, restart)
        finally:
            database.close()


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


def by_two_hosts(database: Database, count: int, server: PostgreSQL | None) -> tuple:
    """Soak two hosts, with one journal on this server or each with its own."""
    faults = {name: row for name, row in FAULTS.items() if row[1] is not works_on} | {"504": (2, proxy_gives_up)}
    happened: Counter[str] = Counter()

    def fails(database, connection, request) -> None:
        name, fault = pick(faults)
        happened[f"the proxy: {name}"] += 1
        fault(database, connection, request)

    chosen = [pick(AT_BOTH) for _ in range(count)]
    began = time.monotonic()
    with sink() as bounces:
        hosts = Hosts(database, bounces, server)
        try:
            endings, accidents = hosts.play([mail for _, mail in chosen], LIMIT, fault=fails)
        finally:
            hosts.remove()
    endings[OVERLAPPED] += database.overlaps
    return endings, Counter(kind for kind, _ in chosen), happened + accidents, time.monotonic() - began


def by_two_hosts_into_own(count: int, journal_server: PostgreSQL | None) -> tuple:
    """Soak them with the trials' own database, in which calls that overlap make doubles."""
    database = Database()
    database.seconds = 0.1
    try:
        return by_two_hosts(database, count, journal_server)
    finally:
        database.close()


def by_two_hosts_into_odoo(count: int, journal_server: PostgreSQL) -> tuple:
    """Soak them with a real Odoo 19."""
    server = Odoo()
    try:
        server.add_aliases()
        database = Behind(server)
        try:
            return by_two_hosts(database, count, journal_server)
        finally:
            database.close()
    finally:
        server.purge()


HOSTS_APART = "two hosts, a journal each"
BECAME = ("delivered once", "bounced", "held", *WRONG[:-1])
SEEN = (OVERLAPPED, DISAGREE, UNTOLD, AUDIT)


def table(results: dict[str, tuple]) -> str:
    """Return the tables of the report."""
    lines = []
    for title, place in [("what came in", 1), ("what went wrong meanwhile", 2), ("what became of the messages", 0)]:
        lines += ["", f"| {title} | {' | '.join(results)} |", "|---|" + "--:|" * len(results)]
        found = [result[place] for result in results.values()]
        names = BECAME if not place else sorted({name for counts in found for name in counts})
        for name in names:
            lines.append(f"| {name} | {' | '.join(str(counts[name]) for counts in found)} |")
        if place != 2:
            totals = (sum(counts[name] for name in names) for counts in found)
            lines.append(f"| all | {' | '.join(map(str, totals))} |")
        for name in SEEN if not place else ():
            lines.append(f"| {name} | {' | '.join(str(counts[name]) for counts in found)} |")
    lines.append(f"| minutes | {' | '.join(f'{result[3] / 60:.0f}' for result in results.values())} |")
    return "\n".join(lines[1:]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"database": 5000, "odoo": 500, "hosts": 2000, "hosts-odoo": 2000, "apart": 200}
    for name, number in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=number, metavar="NUMBER")
    options = parser.parse_args()
    journal_server = PostgreSQL(free_port())
    try:
        results = run(options, journal_server)
    finally:
        journal_server.remove()
    tables = table(results)
    print(tables)
    if all(getattr(options, name.replace("-", "_")) == number for name, number in numbers.items()):
        head, _, _ = REPORT.read_text().partition("| what came in")
        REPORT.write_text(head + tables)
    return int(not all(is_right(name, endings) for name, (endings, *_) in results.items()))


def run(options: argparse.Namespace, journal_server: PostgreSQL) -> dict[str, tuple]:
    """Return the results of each part, by its name; they are printed as they come."""
    parts = {
        f"mail_database, {PIPE}": (options.database, lambda count: into_mail_database(PIPE, count)),
        f"mail_database, {LMTP}": (options.database, lambda count: into_mail_database(LMTP, count)),
        f"Odoo 19, {PIPE}": (options.odoo, lambda count: into_odoo(PIPE, count)),
        f"Odoo 19, {LMTP}": (options.odoo, lambda count: into_odoo(LMTP, count)),
        "two hosts": (options.hosts, lambda count: by_two_hosts_into_own(count, journal_server)),
        "two hosts, Odoo 19": (options.hosts_odoo, lambda count: by_two_hosts_into_odoo(count, journal_server)),
        HOSTS_APART: (options.apart, lambda count: by_two_hosts_into_own(count, None)),
    }
    results = {}
    for name, (count, play) in parts.items():
        if count:
            results[name] = play(count)
            print(table({name: results[name]}), flush=True)
    return results


def is_right(name: str, endings: Counter[str]) -> bool:
    """Tell whether a part went as it must: of two hosts with a journal each, that is to double."""
    if name == HOSTS_APART:
        return endings["doubled"] > 0
    return (+endings).keys() <= set(RIGHT)


if __name__ == "__main__":
    raise SystemExit(main())
