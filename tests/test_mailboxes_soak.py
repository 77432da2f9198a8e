"""Two thousand mails in six mailboxes, while everything that stands around them fails at random.

The database, Dovecot, the network between and our process are killed; a person reads the same mailboxes. Then all is
calm, and each mail is looked for: on its records, in the hold folder, and in its mailbox.
"""

import json
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from soak import WORLD
from support.dovecot import USER, Dovecot, dovecot
from support.endpoint import Request, fault, traceback
from support.mail_database_server import served
from support.mailboxes import Mailboxes, table
from support.mta import wait_until
from support.network import Network
from support.odoo.server import Odoo
from support.phone import Phone
from support.trials import Behind, Fault, cut_after, cut_before, cut_within, passes, proxy_gives_up, settings_for

pytestmark = [
    pytest.mark.mailboxes,
    # imaplib leaves its socket open where no greeting comes
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

COUNT = 2000
MAX_SIZE = 300_000  # bytes
SECONDS = 900  # that it may take, calm at the end included
BAD_ALIAS = fault(1, traceback("psycopg2.errors.NotNullViolation: x", "_message_route_process"))
INFO, JOBS = "info@example.com", "jobs@example.com"
# By the login: protocol, and what else its table says.
MAILBOXES: dict[str, tuple[str, dict[str, object]]] = {
    "info": ("imaps", {"recipient": INFO}),
    "jobs": ("imap", {"recipient": JOBS, "done": "seen", "refused": "move:Refused"}),
    "both": ("imaps", {"done": "move:Archive", "refused": "move:Refused"}),  # the header tells
    "model": ("imap", {"recipient": "company@provider.test", "model": "crm.lead"}),
    "drop": ("pop3s", {"recipient": INFO}),
    "plain": ("pop3", {}),
}
BEFORE = b"Received: by mx.example.com; Tue, 3 Mar 2020 10:00:00 +0100\r\nSubject: before the first day\r\n\r\n"
FOLDERS = ("INBOX", "Archive", "Refused")
FAULTS: dict[Fault, float] = {
    passes: 90,
    cut_before: 2,
    cut_after: 2,
    cut_within: 2,
    proxy_gives_up: 2,
}
PAUSES = "from mailgate.mailboxes import fetch; fetch.POLL_SECONDS = 1.0; fetch.MESSAGE_PAUSES = (1.0, 5.0)"
PAUSES += "; fetch.DATABASE_PAUSES = fetch.OTHER_PAUSES = (0.5, 2.0); fetch.TROUBLE_PAUSES = {}"


class Kind(NamedTuple):
    """What of a hundred mails is like, and what must become of it: records, or a mark."""

    weight: float
    to: str
    records: tuple[str, ...]
    becomes: str = "done"
    body: str = "hello\r\n"


# By mailbox: most mail is for an alias.
ALIAS = {"info": "info", "jobs": "jobs", "drop": "info"}
LARGE = "x" * 70 + "\r\n"


def kinds_of(login: str) -> dict[str, Kind]:
    """Return what comes into a mailbox."""
    if login in ALIAS:
        alias = ALIAS[login]
        routable = Kind(80, f"{alias}@example.com", (alias,))
        hidden = Kind(10, "somebody@elsewhere.test", (alias,))
    elif login == "model":
        routable, hidden = Kind(80, "company@provider.test", ("info",)), Kind(10, "x@elsewhere.test", ("info",))
    else:
        routable, hidden = Kind(80, f"{INFO}, {JOBS}", ("info", "jobs")), Kind(10, JOBS, ("jobs",))
    found = {"routable": routable, "hidden": hidden}
    found["held"] = Kind(3, routable.to, (), "held", "to be held\r\n")
    found["large"] = Kind(2, routable.to, (), "refused", LARGE * (MAX_SIZE // 60))
    found["big"] = Kind(2, routable.to, routable.records, body="hello\r\n" + LARGE * 2000)
    if login not in (*ALIAS, "model"):
        found["unroutable"] = Kind(5, "nobody@example.com, x@elsewhere.test", (), "refused")
    return found


class Sent(NamedTuple):
    """A mail that lies in a mailbox: its number is in its sender and its id."""

    login: str
    kind: Kind
    raw: bytes


def mail(number: int, kind: Kind) -> bytes:
    head = f"Return-Path: <ann{number}@outside.test>\r\nFrom: Ann <ann{number}@outside.test>\r\nTo: {kind.to}\r\n"
    head += f"Message-ID: <{number}@outside.test>\r\nSubject: trial {number}\r\n\r\n"
    return head.encode() + kind.body.encode()


def deliver(server: Dovecot, login: str, number: int, raw: bytes) -> None:
    """Put a mail into a mailbox as a mail server does (maildir(5)): whole, whatever Dovecot does just now."""
    folder = server.maildir(login)
    unfinished = folder / "tmp" / f"{time.time():.6f}.{number}.soak"
    unfinished.write_bytes(raw)
    shutil.chown(unfinished, USER)
    unfinished.rename(folder / "new" / unfinished.name)


class Chaos:
    """What fails at random, until it is over."""

    def __init__(
        self, program: Mailboxes, server: Dovecot, networks: list[Network], restart: Callable[[], None]
    ) -> None:
        self.program, self.server, self.networks, self.restart = program, server, networks, restart
        self.happened: Counter[str] = Counter()
        self.events: dict[Callable[[], None], float] = {
            self.our_process_was_killed: 4,
            self.our_process_was_stopped: 1,
            self.dovecot_was_killed: 2,
            self.the_network_was_cut: 4,
            restart: 1,
        }

    def our_process_was_killed(self) -> None:
        self.program.stop(signal.SIGKILL)
        self.program.start()

    def our_process_was_stopped(self) -> None:
        self.program.stop()
        self.program.start()

    def dovecot_was_killed(self) -> None:
        self.server.kill()
        self.server.start()

    def the_network_was_cut(self) -> None:
        for network in self.networks:
            network.cut()

    def strike(self) -> None:
        event = random.choices([*self.events], [*self.events.values()])[0]
        event()
        self.happened[event.__name__.replace("_", " ")] += 1


def fails(database: Any, connection: Any, request: Request) -> None:
    """Answer a call with a message: some are held, some meet a fault."""
    if request.is_delivery and b"\r\n\r\nto be held" in request.message:
        connection.sendall(BAD_ALIAS)
        return
    random.choices([*FAULTS], [*FAULTS.values()])[0](database, connection, request)


def calm(database: Any, connection: Any, request: Request) -> None:
    if request.is_delivery and b"\r\n\r\nto be held" in request.message:
        connection.sendall(BAD_ALIAS)
    else:
        passes(database, connection, request)


def soak(database: Behind, restart: Callable[[], None], folder: Path, count: int) -> Counter[str]:
    """Return what has become of the mails; it is long, for it tells the story of a soak from beginning to end."""
    hold = folder / "hold"
    hold.mkdir()
    settings = settings_for(database) | {"HOLD": hold, "MAX_SIZE": MAX_SIZE, "ALIAS_DOMAINS": "example.com"}
    with dovecot() as server:
        program = Mailboxes(folder, **settings)
        program.runs_first(PAUSES)
        networks = []
        for login, (protocol, keys) in MAILBOXES.items():
            own = table(server, login, protocol, **keys)
            server.append(login, BEFORE, when=time.time() - 3 * 86400)
            networks.append(Network(server.ports[protocol]))
            own["server"] = f"{protocol}://localhost:{networks[-1].port}"
            program.tables.append(own)
        sent: dict[int, Sent] = {}
        phones = [Phone(partial(server.client, login), pause=0.5) for login in ("info", "both")]
        program.start()
        try:
            database.fault = database.questions = fails
            chaos = Chaos(program, server, networks, restart)
            for number in range(1, count + 1):
                login = random.choice([*MAILBOXES])
                kinds = kinds_of(login)
                name = random.choices([*kinds], [kind.weight for kind in kinds.values()])[0]
                sent[number] = Sent(login, kinds[name], mail(number, kinds[name]))
                deliver(server, login, number, sent[number].raw)
                if number % (count // 60) == 0:
                    chaos.strike()
            database.fault = database.questions = calm
            for phone in phones:
                phone.close()
            wait_until(lambda: not waiting(program, server, sent), "all mails to be marked", SECONDS)
            assert program.stop() == 0
        finally:
            assert program.process
            program.process.kill()
            program.process.wait()
            for network in networks:
                network.close()
        print(dict(chaos.happened))
        return account(server, database, sent, hold)


class Copy(NamedTuple):
    """A mail as it lies in a mailbox: its bytes, and how it is marked there."""

    raw: bytes
    mark: str


def copies(server: Dovecot, login: str) -> dict[int, Copy]:
    """Return the mails of a mailbox by their numbers. Raises FileNotFoundError while Dovecot renames a file.

    A Dovecot that is killed while it moves a mail leaves it in both folders.
    """
    found: dict[int, Copy] = {}
    for message in (each for folder in FOLDERS for each in server.messages(login, folder)):
        if b"Message-ID: <" in message.raw:
            number = number_of(message.raw)
            marks = [flag.removeprefix("$MailGateway") for flag in message.flags if flag.startswith("$MailGateway")]
            found[number] = Copy(message.raw, ",".join(marks).lower())
    return found


def number_of(raw: bytes) -> int:
    return int(raw.partition(b"Message-ID: <")[2].partition(b"@")[0])


def waiting(program: Mailboxes, server: Dovecot, sent: dict[int, Sent]) -> int:
    """Return how many mails have no mark yet; those of a maildrop are counted in the file beside it."""
    left = 0
    for login, (protocol, _) in MAILBOXES.items():
        if protocol.startswith("pop3"):
            path = program.state / f"{login}.json"
            ended = json.loads(path.read_text())["ended"] if path.exists() else {}
            marks = [mark for mark in ended.values() if mark != "old"]
            left += sum(each.login == login for each in sent.values()) - len(marks)
        else:
            try:
                left += sum(not copy.mark for copy in copies(server, login).values())
            except (FileNotFoundError, KeyError):  # a file has just got another name, or a keyword
                left += 1
    return left


def account(server: Dovecot, database: Behind, sent: dict[int, Sent], hold: Path) -> Counter[str]:
    """Return how many mails have ended as they must, and print each that has not."""
    records = database.everything()
    lie = {login: copies(server, login) for login in MAILBOXES}
    held = Counter(number_of(path.read_bytes()) for path in (hold / "new").iterdir())
    endings: Counter[str] = Counter()
    for number, (login, kind, raw) in sent.items():
        found = Counter(alias for alias, _ in records.get(number, []))
        ending = kind.becomes
        if ending == "done" and held[number] and not found:  # tried three times, each time without an answer
            ending = "held"
        copy = lie[login].get(number, Copy(b"", "gone"))
        is_right = (
            found == Counter(() if ending == "held" else kind.records)
            and held[number] == (ending == "held")
            and copy.raw == raw
            and copy.mark == ("" if MAILBOXES[login][0].startswith("pop3") else ending)
            and database.is_exact(records.get(number, []), raw.replace(b"\r\n", b"\n"))
        )
        endings[ending if is_right else "wrong"] += 1
        if not is_right:
            print(number, login, kind._replace(body=""), dict(found), held[number], copy.mark, copy.raw == raw)
    return endings


def test_into_mail_database(tmp_path: Path) -> None:
    with served(f"sqlite:///{tmp_path}/mail.db", WORLD) as server:
        database = Behind(server)

        def restart() -> None:
            server.stop(kill=random.random() < 0.5)
            server.start()

        try:
            endings = soak(database, restart, tmp_path, COUNT)
        finally:
            database.close()
    assert endings.keys() <= {"done", "refused", "held"}, endings
    assert endings.total() == COUNT


@pytest.mark.odoo
def test_into_a_real_odoo(odoo: Odoo, tmp_path: Path) -> None:
    database = Behind(odoo)

    def restart() -> None:
        odoo.stop()
        odoo.start()

    try:
        endings = soak(database, restart, tmp_path, COUNT)
    finally:
        database.close()
    assert endings.keys() <= {"done", "refused", "held"}, endings
    assert endings.total() == COUNT
