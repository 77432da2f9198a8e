"""How soon new mail of twenty mailboxes is a record, and what memory that takes: ``python benchmarks/mailboxes.py``.

With a real Dovecot, which tells of new mail half a second after it came, whoever waits for it (a constant of its
source): beside our time stands that of a client that does nothing but wait.
"""

import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from page import Figure, Row, report

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from support.dovecot import Dovecot, dovecot
from support.endpoint import Endpoint
from support.mailboxes import Mailboxes, running, table
from support.mta import Impossible, wait_until
from support.records import Records

MAILBOXES = 20
MAILS = 100
LARGE = 50 * 2**20  # bytes
MEDIAN = Figure("mailboxes: seconds from APPEND to record with 20 mailboxes, median", "at most", 0.5)
SLOWEST = Figure("mailboxes: seconds from APPEND to record with 20 mailboxes, 99 %", "at most", 2)
BEHIND = Figure("mailboxes: seconds from Dovecot's word of new mail to record, median of 20 mails", "at most", 0.1)
MEMORY = Figure("mailboxes: peak memory with 20 mailboxes and a mail of 50 MiB, MiB", "at most", 60)


def main() -> int:
    """Measure with a Dovecot of our own."""
    figures = (MEDIAN, SLOWEST, BEHIND, MEMORY)
    try:
        with dovecot() as server, tempfile.TemporaryDirectory() as folder:
            return report(*measured(server, Path(folder)), is_firm=False)
    except Impossible as error:
        return report(*(figure.skipped(str(error)) for figure in figures))


def measured(server: Dovecot, folder: Path) -> list[Row]:
    """Deliver from twenty mailboxes into a database that answers at once."""
    endpoint = Endpoint()
    database = Records(endpoint)
    try:
        program = Mailboxes(folder, URL=endpoint.url, MAX_SIZE=2 * LARGE)
        logins = [f"task{number}" for number in range(MAILBOXES)]
        program.tables = [table(server, login, recipient="info@example.com") for login in logins]
        clients = {login: server.client(login) for login in logins}
        with running(program):
            for number, login in enumerate(logins):
                clients[login].append("INBOX", "", "", mail(f"first{number}"))
            wait_until(lambda: len(database.messages) == MAILBOXES, "all mailboxes to be read")
            seconds = []
            for number in range(MAILS):
                seconds.append(appended(clients[random.choice(logins)], database, number))
            notices = [noticed(server, clients[logins[0]], logins[0], database, number) for number in range(20)]
            clients[logins[1]].append("INBOX", "", "", mail("large") + (b"x" * 76 + b"\r\n") * (LARGE // 78))
            wait_until(lambda: "<large@outside.test>" in database.messages, "the large mail")
            assert program.process
            status = Path(f"/proc/{program.process.pid}/status").read_text()
        for client in clients.values():
            client.shutdown()
    finally:
        endpoint.close()
    peak = next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    slowest = sorted(seconds)[int(len(seconds) * 0.99) - 1]
    behind = statistics.median(record - notice for notice, record in notices)
    waited = statistics.median(notice for notice, _ in notices)
    return [
        MEDIAN.row(statistics.median(seconds), f"Dovecot's own part is {waited:.2f}"),
        SLOWEST.row(slowest),
        BEHIND.row(behind),
        MEMORY.row(peak),
    ]


def mail(name: object) -> bytes:
    head = "From: ann@outside.test\r\nTo: info@example.com\r\nSubject: chairs\r\n"
    return f"{head}Message-ID: <{name}@outside.test>\r\n\r\nForty chairs\r\n".encode()


def appended(client, database: Records, number: object) -> float:
    """Append a mail and return the seconds until it is a record."""
    client.append("INBOX", "", "", mail(number))
    began = time.monotonic()
    wait_until(lambda: f"<{number}@outside.test>" in database.messages, "a record")
    return time.monotonic() - began


def noticed(server: Dovecot, client, login: str, database: Records, number: int) -> tuple[float, float]:
    """Append a mail and return the seconds until a client that waits is told of it, and until it is a record."""
    told: list[float] = []
    waiting = server.client(login)
    waiting.select("INBOX")
    waiting.send(b"x IDLE\r\n")
    waiting.readline()

    def wait() -> None:
        while b"EXISTS" not in waiting.readline():
            pass
        told.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    client.append("INBOX", "", "", mail(f"noticed{number}"))
    began = time.monotonic()
    wait_until(lambda: f"<noticed{number}@outside.test>" in database.messages, "a record")
    record = time.monotonic() - began
    thread.join()
    waiting.shutdown()
    return told[0] - began, record


if __name__ == "__main__":
    sys.exit(main())
