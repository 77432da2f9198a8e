"""The trials: messages, a fault while they are delivered, and an account of every one of them afterwards.

A database plays the faults. It routes by the alias that is named, and knows a Message-ID again as Odoo does: only if
the earlier call has ended when the next one begins. So whatever delivers twice at the same time is seen to.
"""

import contextlib
import itertools
import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from email.utils import getaddresses
from types import MappingProxyType
from typing import Any, NamedTuple

import requests

from support.endpoint import Endpoint, Request, fault, http, returns, traceback
from support.mail_database_server import Server
from support.mta import Mta, wait_until
from support.odoo.server import Odoo
from support.smtp_sink import Sink

XML = {"Content-Type": "text/xml"}
ALIASES = {
    "info": "example.com",
    "jobs": "example.com",
    "info2": "second.example",
    "sales": "company.test",
    "support": "company.test",
}
NOTICED = "members"  # an alias that not everybody may write to: the sender is sent a notice, no record is made
NUMBERS = itertools.count(1)


class Mail(NamedTuple):
    """A message: who gets it, what it says, and what must become of it in the end.

    ``records`` has the alias of each record that it must make, ``bounces`` how many bounces its sender must get.
    """

    recipients: tuple[str, ...] = ("info@example.com",)
    to: str = "info@example.com"
    fields: bytes = b""
    body: bytes = b"Hello\r\n"
    sender: str | None = None  # a different one for each message
    copies: int = 1
    records: tuple[str, ...] = ("info",)
    bounces: int = 0
    notices: int = 0
    held: int = 0
    elsewhere: tuple[str, ...] = ()  # the recipients at the second of two hosts, where they are others

    def envelope(self, number: int) -> tuple[str, tuple[str, ...], bytes]:
        """Return sender, recipients and the message, which has this number."""
        sender = f"ann{number}@outside.test"
        head = f"From: Ann <{sender}>\r\nTo: {self.to}\r\nMessage-ID: <{number}@outside.test>\r\n"
        head += f"Date: Sun, 22 Nov 2026 10:00:00 +0000\r\nSubject: trial {number}\r\n"
        message = head.encode() + self.fields + b"\r\n" + self.body
        return sender if self.sender is None else self.sender, self.recipients, message


def head_of(message: bytes) -> bytes:
    return message.replace(b"\r\n", b"\n").partition(b"\n\n")[0]


def named(message: bytes) -> set[str]:
    """Return the addresses, in lower case, for which the database takes a message: those that its header names."""
    fields = re.findall(rb"(?mi)^(?:Delivered-To|To|Cc):(.*(?:\n[ \t].*)*)$", head_of(message))
    return {address.lower() for _, address in getaddresses([field.decode() for field in fields])}


def number_of(message: bytes) -> int:
    """Return the number of a message, also of one that goes under an id of the gateway's."""
    found = re.search(rb"Message-ID: <(\d+)@outside\.test>", message)
    return int(found[1]) if found else 0


class Database:
    """The server.

    ``fault`` says how it answers a call with a message, from now on, in the place of ``process``; ``questions`` how it
    answers others.
    """

    name, login, password = "mydatabase", "2", "s3cret"
    time_limit = 2  # seconds after which it surely works on no call any more
    overlaps = 0  # of calls for one message; here each makes a record of its own

    def __init__(self) -> None:
        self.mta: Mta  # whose messages are delivered
        self.records: list[tuple[str, bytes]] = []  # alias and message
        self.notices: list[bytes] = []
        self.rows: dict[str, list[dict[str, Any]]] = {}  # of mail.message, by Message-ID
        self.seconds = 0.0  # that a call takes
        self.fault: Fault = passes
        self.questions: Fault = passes
        self.start(0)

    def start(self, port: int) -> None:
        self.endpoint = Endpoint(port=port)
        self.endpoint.answers = [lambda connection, request: self.fault(self, connection, request)]
        self.endpoint.inquiry = lambda connection, request: self.questions(self, connection, request)

    @property
    def url(self) -> str:
        return self.endpoint.url

    def process(self, request: Request) -> bytes:
        """Take a message as Odoo does, or answer a question, and return the answer."""
        if not request.is_delivery:
            return returns(self.answer(*request.call[0][3:6]))
        message = request.message
        message_id = re.findall(rb"(?mi)^Message-ID: (.*)$", head_of(message))[0].decode()  # of several, the first
        if message_id in self.rows:
            return returns(False)
        threading.Event().wait(self.seconds)
        addresses = named(message)
        if f"{NOTICED}@example.com" in addresses:
            self.notices.append(message)
            return returns(False)
        aliases = [alias for alias, domain in ALIASES.items() if f"{alias.strip('2')}@{domain}" in addresses]
        if not aliases:
            return fault(1, traceback("ValueError: No possible route found for incoming message from x"))
        for alias in aliases:
            self.records.append((alias, message))
            row = {"id": len(self.records), "message_id": message_id, "model": "crm.lead", "res_id": len(self.records)}
            self.rows.setdefault(message_id, []).append(row)
        return returns(len(self.records))

    def answer(self, model: str, method: str, arguments: list[Any]) -> list[dict[str, Any]]:
        """Return the messages that have one of these ids, or the aliases of these names that differ from the others."""
        (terms,) = arguments
        (_, _, values), *more = terms
        if model == "mail.message":
            return self.messages([values] if isinstance(values, str) else values)
        return [{"id": 1}] * (NOTICED in values and more[0][0] == "alias_contact")

    def messages(self, ids: list[str]) -> list[dict[str, Any]]:
        """Return the rows of mail.message with one of these Message-IDs."""
        return [row for message_id in ids for row in self.rows.get(message_id, [])]

    def delete(self, row: dict[str, Any]) -> None:
        """Delete one of them."""
        self.rows[row["message_id"]].remove(row)

    def double(self, row: dict[str, Any]) -> None:
        """Make another one of it."""
        self.rows[row["message_id"]].append(row)

    def found(self, number: int) -> tuple[list[tuple[str, bytes]], int]:
        """Return the records that a message has made, and the number of notices about it."""
        records = [(alias, message) for alias, message in self.records if number_of(message) == number]
        return records, sum(number_of(message) == number for message in self.notices)

    def everything(self) -> dict[int, list[tuple[str, bytes]]]:
        """Return all messages that came in, by their numbers: the alias of each record, and the message."""
        found: dict[int, list[tuple[str, bytes]]] = {}
        for alias, message in self.records:
            found.setdefault(number_of(message), []).append((alias, message))
        return found

    @staticmethod
    def is_exact(records: list[tuple[str, bytes]], sent: bytes) -> bool:
        """Tell whether the end of each message is what was sent, by way of a pipe (LF) or of LMTP (CRLF).

        In a copy for who has not been served, the fields of the recipients have other names.
        """
        sent = sent.replace(b"\n", b"\r\n")
        texts = (re.sub(rb"\r?\n", b"\r\n", message) for _, message in records)
        return all(text.replace(b"\r\nX-Served-", b"\r\n").endswith(sent) for text in texts)

    def close(self) -> None:
        self.endpoint.close()


class Behind(Database):
    """The faults before a real database server: what it answers is passed on, and its records count."""

    time_limit = 20  # after a start, Odoo takes some seconds for its first answer
    ASKING = threading.Lock()  # one question at a time, of all who ask the server
    MODELS = MappingProxyType({"crm.lead": "info", "project.task": "jobs"})

    def __init__(self, server: Odoo | Server) -> None:
        super().__init__()
        self.server, self.name, self.password = server, server.database, server.password
        self.lock, self.running, self.overlaps = threading.Lock(), list[bytes](), 0

    def process(self, request: Request, seconds: float = 0) -> bytes:
        """Pass a call on, after so many seconds; overlapping ones for a message are counted, for they may be hidden."""
        if not request.is_delivery:
            return self.passed_on(request)
        found = re.search(rb"(?mi)^Message-ID: .*$", request.message)
        message_id = found[0] if found else b""
        with self.lock:
            self.overlaps += message_id in self.running
            self.running.append(message_id)
        try:
            threading.Event().wait(seconds)
            return self.passed_on(request)
        finally:
            with self.lock:
                self.running.remove(message_id)

    def passed_on(self, request: Request) -> bytes:
        try:
            reply = requests.post(self.server.url + request.path, request.body, headers=XML, timeout=300)
        except requests.RequestException:
            return http(502)
        return http(reply.status_code, reply.content)

    def everything(self) -> dict[int, list[tuple[str, bytes]]]:
        """Return all messages that came in, by their numbers: the alias of each record, and the text."""
        domain = ["|", ("message_id", "like", "@outside.test>"), ("message_id", "like", "@mail-gateway.invalid>")]
        found: dict[int, list[tuple[str, bytes]]] = {}
        with self.ASKING:
            messages = self.server.search("mail.message", domain, "email_from", "model", "body")
        for message in messages:
            record = (self.MODELS[message["model"]], message["body"].encode())
            (number,) = re.findall(r"ann(\d+)@", message["email_from"])
            found.setdefault(int(number), []).append(record)
        return found

    def found(self, number: int) -> tuple[list[tuple[str, bytes]], int]:
        return self.everything().get(number, []), 0

    def messages(self, ids: list[str]) -> list[dict[str, Any]]:
        return self.server.search("mail.message", [("message_id", "in", ids)], "message_id", "model", "res_id", "body")

    def delete(self, row: dict[str, Any]) -> None:
        self.server.call("mail.message", "unlink", [row["id"]])

    def double(self, row: dict[str, Any]) -> None:
        self.server.call("mail.message", "create", {name: value for name, value in row.items() if name != "id"})

    @staticmethod
    def is_exact(records: list[tuple[str, bytes]], sent: bytes) -> bool:
        """Tell whether the first line of the text is what was sent, in Latin-1: the database makes HTML of the rest."""
        line = sent.partition(b"\n\n")[2].partition(b"\n")[0].decode("latin-1")
        return all(line in body.decode() for _, body in records)


Fault = Callable[[Any, socket.socket, Request], None]  # the database (one of these), the connection, the request


def passes(database: Database, connection: socket.socket, request: Request) -> None:
    """No fault: the message is processed, then the answer is sent."""
    connection.sendall(database.process(request))


def answers(answer: bytes) -> Fault:
    """Answer so, without having taken the message."""
    return lambda database, connection, request: connection.sendall(answer)


def raises(exception: str) -> Fault:
    return answers(fault(1, traceback(exception)))


def hangs(database: Database, connection: socket.socket, request: Request) -> None:
    connection.recv(1)


def too_late(database: Database, connection: socket.socket, request: Request) -> None:
    """The client has had enough, and only then the message is processed."""
    connection.recv(1)
    database.process(request)


def cut_before(database: Database, connection: socket.socket, request: Request) -> None:
    """The connection breaks, and the database does not have the message."""


def cut_after(database: Database, connection: socket.socket, request: Request) -> None:
    """The connection breaks, and the database has the message."""
    database.process(request)


def cut_within(database: Database, connection: socket.socket, request: Request) -> None:
    connection.sendall(database.process(request)[:-30])


def proxy_gives_up(database: Database, connection: socket.socket, request: Request) -> None:
    """The proxy has had enough, and the database works on."""
    connection.sendall(http(504))
    connection.close()
    database.process(request)


def killed_before(database: Database, connection: socket.socket, request: Request) -> None:
    database.mta.kill_gateways(signal.SIGKILL)


def killed_after(database: Database, connection: socket.socket, request: Request) -> None:
    database.process(request)
    database.mta.kill_gateways(signal.SIGKILL)


def terminated(database: Database, connection: socket.socket, request: Request) -> None:
    database.process(request)
    database.mta.kill_gateways(signal.SIGTERM)
    connection.recv(1)


Step = Callable[[Mta, Any], object]  # the mail server and the database (one of these)


class Trial(NamedTuple):
    """Messages, and what goes wrong while they are delivered: ``fault``, and what ``begin`` does and ``end`` mends."""

    name: str
    mails: tuple[Mail, ...] = (Mail(),)
    fault: Fault = passes
    begin: Step = lambda mta, database: None
    end: Step = lambda mta, database: None
    waits: bool = False  # whether all mail must still be in the queue before the fault ends
    settings: Mapping[str, object] = MappingProxyType({})
    seconds: float = 0.0  # that a call of the database takes


# How a message may end: as it must, and otherwise.
NOT_KEPT = "not kept in the queue"
RIGHT = ("delivered once", "bounced", "noticed", "held", "dropped")
WRONG = (
    "doubled",
    "partly delivered",
    "bounced though deliverable",
    "vanished",
    "still queued",
    "bytes changed",
    NOT_KEPT,
)


def play(mta: Mta, database: Database, sink: Sink, trial: Trial, seconds: float = 60) -> Counter[str]:
    """Play a trial and return how many of its messages ended in which way, at most ``seconds`` after the fault."""
    mta.settings(**settings_for(database) | dict(trial.settings))
    database.mta, database.fault, database.seconds = mta, trial.fault, trial.seconds
    trial.begin(mta, database)
    sent = [(next(NUMBERS), mail) for mail in trial.mails]
    for number, mail in sent:
        copies = [threading.Thread(target=mta.send, args=mail.envelope(number)) for _ in range(mail.copies)]
        for copy in copies:
            copy.start()
        for copy in copies:
            copy.join()
    mta.attempt()
    waiting = len(mta.queue())
    database.fault = passes
    trial.end(mta, database)
    flush_all(mta, seconds)
    account = sum((account_of(mta, database, sink, number, mail) for number, mail in sent), Counter())
    if trial.waits and waiting < len(sent):
        account[NOT_KEPT] += len(sent) - waiting
    return account


def settings_for(database: Database) -> dict[str, object]:
    """Return the gateway's settings for a database, impatient enough for tests."""
    access = {"URL": database.url, "DATABASE": database.name, "LOGIN": database.login, "PASSWORD": database.password}
    patience: dict[str, object] = {"READ_TIMEOUT": database.time_limit, "CONNECT_TIMEOUT": 2, "PATIENCE": 0}
    return patience | access | {"RECIPIENT_DELIMITER": "+"}


def flush_all(mta: Mta, seconds: float) -> None:
    """Try all mail until the queue is empty, or time is over: the account will say what is left."""

    def is_empty() -> bool:
        mta.serve()
        mta.attempt()
        if mta.queue():
            mta.flush()
        return not mta.queue()

    with contextlib.suppress(AssertionError):
        wait_until(is_empty, "an empty queue", seconds)


def account_of(mta: Mta, database: Database, sink: Sink, number: int, mail: Mail) -> Counter[str]:
    """Return what became of one message."""
    records, notices = database.found(number)
    sender, _, message = mail.envelope(number)
    bounces = sum(sender in recipients for _, recipients, _ in sink.mails if sender)
    held = sum(b"<%d@outside.test>" % number in text for text in mta.held())
    if mta.queue():
        return Counter(["still queued"])
    exact = database.is_exact(records, message.replace(b"\r\n", b"\n"))
    found = Counter(alias for alias, _ in records) + Counter(bounce=bounces, notice=notices, held=held)
    return Counter([ending_of(mail, found, exact)])


def ending_of(mail: Mail, found: Counter[str], exact: bool) -> str:
    """Return how a message has ended, of which this was found: the aliases of records, bounces, notices, mail held."""
    expected = Counter(mail.records) + Counter(bounce=mail.bounces, notice=mail.notices, held=mail.held)
    if found["bounce"] > expected["bounce"]:
        return "bounced though deliverable"
    if found - expected:
        return "doubled"
    if expected - found:
        return "partly delivered" if found else "vanished"
    if not exact:
        return "bytes changed"
    names = {"bounce": "bounced", "notice": "noticed", "held": "held"}
    return next((name for kind, name in names.items() if found[kind]), "delivered once" if found else "dropped")


def is_right(account: Counter[str]) -> bool:
    return account.keys() <= set(RIGHT)


def table(accounts: list[tuple[str, str, Counter[str]]]) -> list[str]:
    """Return the lines of a table: what was tried with which mail server, and what became of the messages."""
    if not accounts:
        return []
    columns = [name for name in (*RIGHT, *WRONG) if name in RIGHT or any(name in account for *_, account in accounts)]
    lines = ["| trial | mail server | " + " | ".join(columns) + " |", "|---|---|" + "--:|" * len(columns)]
    for mta, trial, account in accounts:
        lines.append(f"| {trial} | {mta} | " + " | ".join(str(account[name] or "") for name in columns) + " |")
    total = sum((account for *_, account in accounts), Counter())
    return [*lines, "| all | | " + " | ".join(str(total[name]) for name in columns) + " |"]
