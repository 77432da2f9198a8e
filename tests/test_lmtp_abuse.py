"""What hostile and broken clients do to the service: it answers by the RFC or closes, and serves others meanwhile."""

import asyncio
import contextlib
import itertools
import os
import pwd
import random
import re
import resource
import signal
import socket
import stat
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.endpoint import Endpoint, Gate, Request, returns
from support.service import Client, Service, running

from mailgate.journal.sqlite import FILE
from mailgate.service.__main__ import MAX_DESCRIPTORS
from mailgate.service.connection import (
    ALL_RECIPIENTS_BYTES,
    MAX_CONNECTIONS,
    MAX_RECIPIENTS,
    READ_BYTES,
    content,
)
from mailgate.service.workers import MAX_SLOW_CALLS

# What a connection may take, in MiB, whatever the client does: asyncio stops reading when more than twice READ_BYTES
# wait, and reads up to 256 KiB at a time; of what the client doesn't read, 64 KiB wait, and as much again to be joined.
# (A message that still is in memory is smaller than what can wait in its place.)
PER_CONNECTION = (2 * READ_BYTES + 2**18 + 2 * 2**16) / 2**20
# What the rest may take beyond an idle service: the workers, and what is free but not given back. (A call that was set
# aside waits for an answer, and has one piece of its message in memory.)
REST = 24
# The recipients of all messages under way, and an answer to each of them, which is shorter.
RECIPIENTS_OF_ALL = 2 * ALL_RECIPIENTS_BYTES / 2**20
# Hence no more than 24 + 128 + 500 * 0.5 = 402 MiB beyond the 34 of an idle one: the unit in systemd/ allows 512.
BOUND = REST + RECIPIENTS_OF_ALL + MAX_CONNECTIONS * PER_CONNECTION

PROMPT = 10.0  # seconds; another client's mail takes some milliseconds, but the machine is busy with the abuse, too
DELIVERED = "250 2.0.0 delivered"
# What the service may say of itself in all of this; a bug would have a line of its own.
EVENTS = re.compile(
    r'event="(mail-gateway-lmtp .* is ready|mail-gateway-lmtp has stopped|the alias list can.t be read: settings.*'
    r'|user id \d+ is not among MAIL_GATEWAY_CLIENTS)"'
)
ENVELOPE = b"MAIL FROM:<a@b.test>\r\nRCPT TO:<info@example.com>\r\nDATA\r\n"

numbers = itertools.count(1)


def mail(text: bytes = b"body") -> bytes:
    return b"Message-ID: <%d@outside.test>\r\nSubject: hello\r\n\r\n%b\r\n" % (next(numbers), text)


@pytest.fixture(autouse=True, scope="module")
def _descriptors() -> Iterator[None]:
    """Allow the test as many as it lets the service have to do with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Watched:
    """The service under abuse, with its figures."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.socketmap = service.folder / "socketmap.sock"
        self.serve_another()  # and with it what is loaded when it is first needed
        self.memory = service.memory
        self.descriptors = self.count_descriptors()

    @property
    def process(self) -> Path:
        assert self.service.process
        return Path(f"/proc/{self.service.process.pid}")

    def count_descriptors(self) -> int:
        """Return how many files are open, without those of the journal, of which each thread keeps three."""
        names = []
        for descriptor in self.service.open_files:
            with contextlib.suppress(FileNotFoundError):
                names.append(os.readlink(self.process / "fd" / str(descriptor)))
        journal = [name for name in names if f"/{FILE}" in name]
        assert len(journal) <= 3 * (int(f"{self.service.settings.get('WORKERS', 2)}") + MAX_SLOW_CALLS + 1)
        return len(names) - len(journal)

    def peak(self) -> float:
        """Return the most memory that it ever had, beyond that when idle, in MiB."""
        status = (self.process / "status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1024 - self.memory

    def serve_another(self) -> None:
        """Deliver somebody else's message, in time."""
        began = time.monotonic()
        with self.service.client() as client:
            client.socket.settimeout(2 * PROMPT)
            assert client.deliver(mail(), "info@example.com") == [DELIVERED]
        assert time.monotonic() - began < PROMPT

    def client(self, greet: bool = True) -> Client:
        return self.service.client(greet)

    def wait_until_all_have_gone(self) -> None:
        """Wait until no more files are open than before; some connections to the database may be kept."""
        until = time.monotonic() + 30
        while (now := self.count_descriptors()) > self.descriptors + 4:
            assert time.monotonic() < until, f"{self.descriptors} -> {now}"
            time.sleep(0.02)


@contextlib.contextmanager
def watching(folder: Path, url: str) -> Iterator[Watched]:
    """Run the service; at its end nothing may be left open, others are served, and it has no bug to tell of."""
    service = Service(folder, URL=url, SOCKETMAP=folder / "socketmap.sock")
    with running(service):
        watched = Watched(service)
        yield watched
        watched.wait_until_all_have_gone()
        watched.serve_another()
    events = [line for line in service.text().splitlines() if line.startswith("event=")]
    assert [line for line in events if not EVENTS.fullmatch(line)] == []


@pytest.fixture
def watched(tmp_path: Path, endpoint: Endpoint, capfd: pytest.CaptureFixture[str]) -> Iterator[Watched]:
    with watching(tmp_path, endpoint.url) as service:
        yield service
    assert "Traceback" not in capfd.readouterr().err


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One for all rows of the tables."""
    endpoint = Endpoint()
    with watching(tmp_path_factory.mktemp("shared"), endpoint.url) as service:
        yield service
    endpoint.close()


def connect(address: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(address))
    except OSError:
        connection.close()
        raise
    return connection


# --- abuse that goes on -------------------------------------------------------------------------------------------


class Pump(contextlib.ExitStack):
    """A client that sends something over and over again and reads what it is answered; sent away, it comes again."""

    def __init__(self, address: Path, head: bytes, piece: bytes) -> None:
        super().__init__()
        self.address, self.head, self.piece = address, head, piece
        self.sent = 0
        self.connection: socket.socket | None = None
        self.stopped = threading.Event()
        pool = self.enter_context(ThreadPoolExecutor())
        self.callback(self.stop)
        pool.submit(self._send)

    def stop(self) -> None:
        self.stopped.set()
        if self.connection:
            with contextlib.suppress(OSError):  # closed already
                self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self) -> None:
        while not self.stopped.is_set():
            with connect(self.address) as self.connection, contextlib.suppress(OSError):
                threading.Thread(target=self._read, args=[self.connection], daemon=True).start()
                self.connection.sendall(self.head)
                while not self.stopped.is_set():
                    self.connection.sendall(self.piece)
                    self.sent += len(self.piece)

    def _read(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while connection.recv(2**16):
                pass

    def wait_for(self, size: int) -> None:
        """Wait until so many bytes have been taken."""
        until = time.monotonic() + 60
        while self.sent < size:
            assert time.monotonic() < until, self.sent
            time.sleep(0.01)


QUESTIONS = b"18:x info@example.com," * 5000
GARBAGE = random.Random(1).randbytes(2**18)
MIB = 2**20


@pytest.mark.parametrize("clients", [1, 4])
@pytest.mark.parametrize(
    ("head", "piece", "size"),
    [
        pytest.param(b"", b"\n" * 2**16, 2**17, id="empty lines"),
        pytest.param(b"LHLO x\r\n", b"NOOP\r\n" * 10000, 2**18, id="commands"),
        pytest.param(b"LHLO x\r\nMAIL FROM:<>\r\n", b"RCPT TO:<info@example.com>\r\n" * 2000, MIB, id="recipients"),
        pytest.param(b"", GARBAGE, 4 * MIB, id="garbage"),
        pytest.param(b"", b"x" * MIB, 100 * MIB, id="a command without end"),
        pytest.param(b"LHLO x\r\n" + ENVELOPE, b"x" * MIB, 100 * MIB, id="a line without end in DATA"),
        pytest.param(b"LHLO x\r\n" + ENVELOPE, b"\r\n.." * 2**18, 100 * MIB, id="a message without end"),
    ],
)
def test_others_are_served_while_a_client_sends_without_end(
    watched: Watched, head: bytes, piece: bytes, size: int, clients: int
) -> None:
    with contextlib.ExitStack() as closing:
        pumps = [closing.enter_context(Pump(watched.service.address, head, piece)) for _ in range(clients)]
        for pump in pumps:
            pump.wait_for(size // clients)
        watched.serve_another()
        watched.serve_another()
    assert watched.peak() < REST + clients * PER_CONNECTION


def test_others_are_served_while_the_socketmap_is_flooded(watched: Watched) -> None:
    with contextlib.ExitStack() as closing:
        pumps = [
            closing.enter_context(Pump(watched.socketmap, b"", piece))
            for piece in [
                b"18:x info@example.com," * 5000,
                b"18:x info@example.com," * 5000,
                GARBAGE,
                b"999999999:" * 2000,
            ]
        ]
        for pump in pumps[:2]:
            pump.wait_for(2**18)
        watched.serve_another()
    assert watched.peak() < REST + len(pumps) * PER_CONNECTION


def test_who_is_still_connected_when_the_service_stops_is_no_error(tmp_path: Path, endpoint: Endpoint) -> None:
    """Postfix keeps its connection for a while."""
    service = Service(tmp_path, URL=endpoint.url, SOCKETMAP=tmp_path / "socketmap.sock")
    with socket.socket(socket.AF_UNIX) as client, running(service):
        client.connect(str(service.settings["SOCKETMAP"]))
        client.sendall(b"18:x info@example.com,")
        assert client.recv(100).endswith(b",")
    events = [line for line in service.text().splitlines() if line.startswith("event=")]
    assert [line for line in events if not EVENTS.fullmatch(line)] == []


# --- many at once -------------------------------------------------------------------------------------------------


def in_data(text: bytes) -> Callable[[Watched, Client], None]:
    def begin(watched: Watched, client: Client) -> None:
        client.send(b"LHLO x\r\n" + ENVELOPE)
        while not client.answer().startswith("354 "):
            pass
        client.send(text)

    return begin


def reading_nothing(watched: Watched, client: Client) -> None:
    client.socket.settimeout(0.0)
    with contextlib.suppress(BlockingIOError):
        while True:
            client.send(b"NOOP\r\n" * 1000)


def with_long_recipients(watched: Watched, client: Client) -> None:
    """Of letters for which Python takes four bytes each, and as many as are taken."""
    client.send(b"LHLO x\r\nMAIL FROM:<>\r\n")
    client.send(b"RCPT TO:<%b\xf0\x9f\x98\x80@example.com>\r\n" % (b"x" * 2000) * 150)
    codes = Counter(client.answer()[:3] for _ in range(153))
    assert codes.keys() <= {"220", "250", "452"}
    assert codes["250"] > 2  # LHLO's and MAIL's: a message with few recipients is always taken


@pytest.mark.parametrize(
    ("begin", "count", "each"),
    [
        pytest.param(lambda watched, client: None, 200, 32, id="say nothing"),
        pytest.param(lambda watched, client: client.send(b"LHLO"), 200, 32, id="say half a command"),
        pytest.param(in_data(b"x" * 60000), MAX_CONNECTIONS - 1, 128, id="are in the midst of DATA"),
        pytest.param(in_data(b"x" * 200000), MAX_CONNECTIONS - 1, 32, id="are in the midst of a larger message"),
        pytest.param(reading_nothing, 200, 512, id="read no answers"),
        pytest.param(with_long_recipients, 200, 288, id="have long recipients"),
    ],
)
def test_others_are_served_while_many_clients(
    watched: Watched, begin: Callable[[Watched, Client], None], count: int, each: int
) -> None:
    """``each`` is what a client may cost, in KiB."""
    assert each <= PER_CONNECTION * 1024
    with contextlib.ExitStack() as closing:
        for _ in range(count):
            begin(watched, closing.enter_context(watched.client(greet=False)))
        watched.serve_another()
        assert watched.peak() < REST + count * each / 1024


def test_others_are_served_while_thousands_wait_at_the_socketmap(watched: Watched) -> None:
    """More than the service has descriptors for: those beyond a bound are turned away."""
    assert watched.service.process
    resource.prlimit(watched.service.process.pid, resource.RLIMIT_NOFILE, (MAX_DESCRIPTORS, MAX_DESCRIPTORS))
    with contextlib.ExitStack() as closing:
        for _ in range(MAX_DESCRIPTORS + 400):
            closing.enter_context(connect(watched.socketmap))
        watched.serve_another()
        assert watched.count_descriptors() < 2 * MAX_CONNECTIONS
    assert watched.peak() < BOUND


def test_more_connections_than_the_service_takes_are_turned_away_until_others_go(watched: Watched) -> None:
    with contextlib.ExitStack() as closing:
        clients = [closing.enter_context(watched.client()) for _ in range(MAX_CONNECTIONS)]
        for _ in range(20):
            with watched.client(greet=False) as client:
                assert client.answer() == "421 4.3.2 too many connections"
                assert client.answer() == ""
        assert clients[0].deliver(mail(), "info@example.com") == [DELIVERED]
        assert clients.pop().say("QUIT").startswith("221 ")
        until = time.monotonic() + PROMPT
        while True:
            with watched.client(greet=False) as client:
                if client.answer().startswith("220 "):
                    break
            assert time.monotonic() < until
    assert watched.peak() < BOUND


def test_a_byte_at_a_time_is_a_message_too(watched: Watched, endpoint: Endpoint) -> None:
    message = mail(b".a\r.\n.\r\r\n..")
    sent = ENVELOPE + message.replace(b"\r\n.", b"\r\n..") + b".\r\n"
    with watched.client() as client:
        for number, byte in enumerate(sent):
            client.send(bytes([byte]))
            if number % 20 == 0:
                watched.serve_another()
        assert [client.answer()[:3] for _ in range(4)] == ["250", "250", "354", "250"]
    assert endpoint.messages[-1].endswith(b"\r\n" + message)


def test_too_many_recipients_are_deferred(watched: Watched) -> None:
    """RFC 5321, 4.5.3.1.10: 452 for those beyond; the database takes a message once, so nobody gets it this time."""
    with watched.client() as client, ThreadPoolExecutor() as pool:
        answers = pool.submit(lambda: Counter(client.answer()[:9] for _ in range(MAX_RECIPIENTS + 9002)))
        client.send(b"MAIL FROM:<>\r\n" + b"RCPT TO:<i@example.com>\r\n" * (MAX_RECIPIENTS + 9000) + b"DATA\r\n")
        watched.serve_another()
        assert answers.result() == {"250 2.0.0": 1, "250 2.1.5": MAX_RECIPIENTS, "452 4.5.3": 9000, "451 4.3.2": 1}
        assert client.say("RSET").startswith("250 ")
        assert client.deliver(mail(), "info@example.com") == [DELIVERED]
    assert watched.peak() < REST + PER_CONNECTION


def test_as_many_recipients_as_may_be_get_a_message(watched: Watched, endpoint: Endpoint) -> None:
    with watched.client() as client:
        recipients = [f"a{number}@example.com" for number in range(MAX_RECIPIENTS)]
        assert client.deliver(mail(), *recipients) == [DELIVERED] * MAX_RECIPIENTS
    assert endpoint.messages[-1].count(b"\r\n <a") == MAX_RECIPIENTS


def test_lines_of_100_mb(watched: Watched, endpoint: Endpoint) -> None:
    """In a message they are as good as others (the database splits no lines); as a command they are too long."""
    with watched.client() as client:
        client.send(b"NOOP ")
        for _ in range(100):
            client.send(b"x" * 10**6)
        watched.serve_another()
        assert client.say("") == "500 5.5.2 Command line too long"
        client.begin("info@example.com")
        assert client.say("DATA").startswith("354 ")
        client.send(mail()[:-2])
        for _ in range(100):
            client.send(b"x" * 10**6)
        watched.serve_another()
        client.send(b"\r\n.\r\n")
        assert client.answer() == DELIVERED
    assert len(endpoint.requests[-1].body) > 4 / 3 * 10**8
    assert watched.peak() < REST + PER_CONNECTION


def test_unknown_commands_are_forgotten(watched: Watched) -> None:
    with watched.client() as client:
        for number in range(1000):
            assert client.say(f"{number}".ljust(READ_BYTES - 10, "A")) == "500 5.5.2 Command line too long"
    assert watched.peak() < REST + PER_CONNECTION


def test_calls_that_are_set_aside_fit_into_the_rest(watched: Watched, endpoint: Endpoint) -> None:
    """A megabyte of each header is looked at."""
    count = MAX_SLOW_CALLS + 2  # WORKERS
    gate = Gate()
    endpoint.answers = [gate]
    with contextlib.ExitStack() as closing:
        clients = [closing.enter_context(watched.client()) for _ in range(count)]
        for client in clients:
            client.begin("info@example.com")
            assert client.say("DATA").startswith("354 ")
            client.send(b"X: " + (b"x" * 70 + b"\r\n ") * 13_000 + b"\r\n" + mail() + b".\r\n")
        gate.wait_for(count)
        endpoint.answers = [returns(7)]
        gate.opened.set()
        assert [client.answer() for client in clients] == [DELIVERED] * count
    assert watched.peak() < REST + PER_CONNECTION


def test_who_goes_leaves_nothing_behind(watched: Watched) -> None:
    """Neither memory nor descriptors, wherever he goes: the fixture counts the latter."""
    for begin in [in_data(b"x" * 200000), in_data(b"x" * 200000 + b"\r\n.\r"), reading_nothing] * 2:
        with contextlib.ExitStack() as closing:
            for _ in range(100):
                begin(watched, closing.enter_context(watched.client(greet=False)))
        watched.wait_until_all_have_gone()
    assert watched.peak() < REST + 100 * PER_CONNECTION


# --- those who go, and those who don't ----------------------------------------------------------------------------


def test_who_goes_in_the_midst_of_data_has_sent_nothing(watched: Watched, endpoint: Endpoint) -> None:
    before = len(endpoint.messages)
    for cut in [b"", b".", b".\r", b"\r\n.\r", b"\r\n."]:
        with watched.client() as client:
            client.begin("info@example.com")
            assert client.say("DATA").startswith("354 ")
            client.send(mail(b"gone") + cut)
    watched.wait_until_all_have_gone()
    watched.serve_another()
    assert len(endpoint.messages) == before + 1


def test_who_goes_while_the_database_works_gets_its_answer_at_the_next_try(
    watched: Watched, endpoint: Endpoint
) -> None:
    received, opened = threading.Event(), threading.Event()

    def wait(connection: socket.socket, request: Request) -> None:
        received.set()
        opened.wait(60)
        connection.sendall(returns(7))

    before = len(endpoint.messages)
    message = b"Received: from x by y (Postfix) with ESMTP id 4XyZabc12; now\r\n" + mail()
    endpoint.answers = [wait, returns(8)]
    with watched.client() as client:
        client.begin("info@example.com")
        assert client.say("DATA").startswith("354 ")
        client.send(message + b".\r\n")
        assert received.wait(60)
    watched.serve_another()
    opened.set()
    watched.service.wait_for("queue_id=4XyZabc12 ")
    with watched.client() as client:
        assert client.deliver(message, "info@example.com") == ["250 2.0.0 delivered"]
    assert len(endpoint.messages) == before + 2


def test_who_reads_nothing_or_asks_all_the_time_does_not_keep_the_service_from_stopping(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    service = Service(tmp_path, URL=endpoint.url, SOCKETMAP=tmp_path / "socketmap.sock")
    with running(service), contextlib.ExitStack() as closing:
        watched = Watched(service)
        for _ in range(20):
            reading_nothing(watched, closing.enter_context(service.client(greet=False)))
            closing.enter_context(connect(watched.socketmap)).sendall(QUESTIONS[: 2**15])
        watched.serve_another()
        service.send_signal(signal.SIGTERM)
        assert service.process
        assert service.process.wait(timeout=PROMPT) == 0


def test_who_reads_nothing_is_cut_off_when_his_time_is_up(tmp_path: Path, endpoint: Endpoint) -> None:
    """The time is five minutes; here it is a second."""
    service = Service(tmp_path, URL=endpoint.url)
    service.runs_first("from mailgate.service import connection; connection.SILENCE_SECONDS = 1.0")
    with running(service), service.client() as client, service.client() as silent:
        watched = Watched(service)
        reading_nothing(watched, client)
        assert silent.answer() == ""
        until = time.monotonic() + PROMPT
        while watched.count_descriptors() > watched.descriptors - 2:
            assert time.monotonic() < until
            time.sleep(0.02)


def test_what_is_left_of_a_message_that_failed_is_no_command(tmp_path: Path, endpoint: Endpoint) -> None:
    """Nothing is known that fails so, except a lack of memory."""
    service = Service(tmp_path, URL=endpoint.url)
    service.runs_first("from mailgate.service.connection import Connection; Connection._write = None")
    with running(service), service.client() as client:
        client.send(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<info@example.com>\r\nRCPT TO:<jobs@example.com>\r\nDATA\r\n")
        client.send(mail() + b"NOOP\r\nFOO\r\nDATA\r\n" * 10_000)
        assert [client.answer()[:4] for _ in range(5)] == ["250 ", "250 ", "250 ", "354 ", "421 "]
        with contextlib.suppress(ConnectionResetError):
            assert client.answer() == ""
        service.wait_for("a connection failed: TypeError", 1)
    assert service.text().count("a connection failed") == 1
    assert not endpoint.messages


def test_who_says_his_last_word_when_he_is_answered_is_let_go(watched: Watched, endpoint: Endpoint) -> None:
    for number in range(50):
        with watched.client() as client:

            def shut_down(connection: socket.socket, request: Request, client: Client = client) -> None:
                connection.sendall(returns(7))
                time.sleep(random.uniform(0, 0.003))
                with contextlib.suppress(OSError):
                    client.socket.shutdown(socket.SHUT_WR)

            endpoint.answers = [shut_down]
            client.begin("info@example.com")
            assert client.say("DATA").startswith("354 ")
            client.send(mail(b"%d" % number) + b".\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert client.answer() in (DELIVERED, "")
                assert client.answer()[:4] in ("421 ", "")
                assert client.answer() == ""
    endpoint.answers = [returns(7)]


# --- what is said -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (b"HELO x", "500 5.5.2 "),  # RFC 2033, 4.1
        (b"EHLO x", "500 5.5.2 "),
        (b"LHLO", "501 5.5.4 "),
        (b"LHLO \xff", "250-"),
        (b"BDAT 10 LAST", "500 5.5.2 "),
        (b"STARTTLS", "500 5.5.2 "),
        (b"AUTH PLAIN AAAA", "500 5.5.2 "),
        (b"DATA", "503 5.5.1 "),
        (b"RCPT TO:<info@example.com>", "503 5.5.1 "),
        (b"VRFY info", "252 2.5.0 "),
        (b"VRFY", "252 2.5.0 "),
        (b"VRFY \xff\x00\rx", "252 2.5.0 "),
        (b"EXPN info", "502 5.5.1 "),
        (b"HELP", "250 2.0.0 "),
        (b"HELP \xff", "501 5.5.4 "),
        (b"RSET x", "501 5.5.4 "),
        (b"QUIT x", "501 5.5.4 "),
        (b"NOOP \x00\xff\r", "250 2.0.0 "),
        (b"", "500 5.5.2 "),
        (b"\x00", "500 5.5.2 "),
        (b"\xff\xfe", "500 5.5.2 "),
        (b"A\x00B\rC\x1b", "500 5.5.2 "),
        (b"MAIL", "501 5.5.4 "),
        (b"MAIL FROM:a@b.test", "553 5.1.3 "),
        (b"MAIL FROM:<a@b.test", "553 5.1.3 "),
        (b"MAIL FROM:<<a@b.test>>", "501 5.5.4 "),
        (b"MAIL FROM:<a@b.test> SIZE=\xc2\xb2", "553 5.1.3 "),
        (b"MAIL FROM:<a@b.test> SIZE=-1", "501 5.5.4 "),
        (b"MAIL FROM:<a@b.test> SIZE=" + b"9" * 1900, "552 5.3.4 "),
        (b"MAIL FROM:<a@b.test> BODY=BINARYMIME", "501 5.5.4 "),
        (b"MAIL FROM:<a@b.test> RET=HDRS", "555 5.5.4 "),
        (b"MAIL FROM:<a\x00@b.test>", "553 5.1.3 "),
        (b"MAIL FROM:<a\rX-Injected: 1\r@b.test>", "553 5.1.3 "),
        (b"MAIL FROM:<%b@b.test>" % (b"a" * 4000), "500 5.5.2 "),
        (b"MAIL FROM:<%b@b.test>" % (b'"' * 1999), "553 5.1.3 "),
        (b"MAIL FROM:<%b@b.test>" % (b"a" * 1000), "250 2.0.0 "),
        (b"MAIL FROM:<\xff@b.test>", "250 2.0.0 "),  # the MTA took it
    ],
)
def test_a_command_gets_the_answer_of_the_rfc(shared: Watched, command: bytes, answer: str) -> None:
    with shared.client() as client:
        client.send(command + b"\r\n")
        reply = client.answer()
        assert reply.startswith(answer)
        assert re.fullmatch(r"[ -~\n]*", reply)
        assert client.say("RSET") == "250 2.0.0 OK"


def test_no_command_comes_out_of_its_order(watched: Watched) -> None:
    with watched.client(greet=False) as client:
        client.dialogue("""
            s: 220 ...
            c: MAIL FROM:<a@b.test>
            s: 503 5.5.1 ...
        """)
        assert client.say("LHLO x").startswith("250-")
        # RFC 2033, 4.2: no DATA while nobody has been accepted
        client.dialogue("""
            c: MAIL FROM:<a@b.test>
            s: 250 2.0.0 OK
            c: RCPT TO:<info@elsewhere.test>
            s: 550 5.1.1 no such address here
            c: DATA
            s: 503 5.5.1 ...
            c: MAIL FROM:<c@b.test>
            s: 503 5.5.1 ...
            c: RCPT TO:<info@example.com>
            s: 250 2.1.5 one of ours
            c: DATA now
            s: 501 5.5.4 ...
            c: DATA
            s: 354 ...
            c: Subject: hello
            c:
            c: .
            s: 250 2.0.0 delivered
            c: RCPT TO:<info@example.com>
            s: 503 5.5.1 ...
            c: MAIL FROM:<a@b.test>
            s: 250 2.0.0 OK
            c: RCPT TO:<info@example.com>
            s: 250 2.1.5 one of ours
        """)
        assert client.say("LHLO x").startswith("250-")  # as RSET: RFC 5321, 4.1.4
        client.dialogue("""
            c: DATA
            s: 503 5.5.1 ...
        """)


@pytest.mark.parametrize("recipient", ["", "\0@example.com", "info@example.com\r", "info\x1b@example.com"])
def test_what_is_no_address_is_nobodys(shared: Watched, recipient: str) -> None:
    with shared.client() as client:
        (answer,) = client.begin(recipient)
    assert answer.startswith("553 5.1.3 ")


def test_who_speaks_something_else_is_soon_sent_away(watched: Watched) -> None:
    with watched.client(greet=False) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n" * 10)
        answers = list(iter(client.answer, ""))
    assert 5 < len(answers) < 12
    assert answers[-1] == "502 5.5.1 Too many unrecognized commands, goodbye."


# --- size ---------------------------------------------------------------------------------------------------------


def test_what_is_too_large_is_refused_for_each_recipient_behind_its_end(tmp_path: Path, endpoint: Endpoint) -> None:
    """RFC 1870: at MAIL where its size is said; and RFC 2033, 4.2."""
    with running(Service(tmp_path, URL=endpoint.url, MAX_SIZE=100_000)) as service, service.client() as client:
        client.dialogue("""
            c: MAIL FROM:<a@b.test> SIZE=100001
            s: 552 5.3.4 ...
            c: MAIL FROM:<a@b.test> SIZE=100000
            s: 250 2.0.0 OK
            c: RSET
            s: 250 2.0.0 OK
        """)
        fits = mail()[:-2].ljust(99_998, b"x") + b"\r\n"
        assert client.deliver(fits, "info@example.com") == [DELIVERED]
        before = len(endpoint.requests)
        for larger in [b"x" + fits, fits * 100]:
            answers = client.deliver(larger, "info@example.com", "jobs@example.com")
            assert answers == ["552 5.3.4 message too large"] * 2
        assert len(endpoint.requests) == before
        assert client.deliver(mail(), "info@example.com") == [DELIVERED]


def test_the_log_names_the_message_that_was_too_large(tmp_path: Path, endpoint: Endpoint) -> None:
    with running(Service(tmp_path, URL=endpoint.url, MAX_SIZE=100_000)) as service, service.client() as client:
        for size in (100_001, 3_000_000):
            head = (
                b"Received: from x by mx.test (Postfix) with ESMTP id 4ZkXq91NbZ; Sun, 22 Nov 2026 10:00:00 +0000\r\n"
            )
            message = head + b"Message-ID: <%d@b.test>\r\n" % size + b"\r\n" + b"x" * size + b"\r\n"
            assert (
                client.deliver(message, "info@example.com", "jobs@example.com") == ["552 5.3.4 message too large"] * 2
            )
            service.wait_for(
                f"queue_id=4ZkXq91NbZ message_id=<{size}@b.test> sender=ann@outside.test "
                "recipients=info@example.com,jobs@example.com original_recipients= unmatched= outcome=too_large "
            )


def test_messages_that_end_all_at_once_all_arrive_once(watched: Watched, endpoint: Endpoint) -> None:
    """As many as may wait; beyond that, test_lmtp.py has the answer."""
    before = len(endpoint.messages)
    count = 100
    with contextlib.ExitStack() as closing:
        clients = [closing.enter_context(watched.client()) for _ in range(count)]
        messages = [mail(b"x" * 60000) for _ in clients]
        for client, message in zip(clients, messages, strict=True):
            client.begin("info@example.com")
            assert client.say("DATA").startswith("354 ")
            client.send(message)
        for client in clients:
            client.send(b".\r\n")
        assert [client.answer() for client in clients] == [DELIVERED] * count
    ids = Counter(re.findall(rb"<\d+@outside.test>", b"".join(endpoint.messages[before:])))
    assert ids == {message.split()[1]: 1 for message in messages}


# --- smuggling ----------------------------------------------------------------------------------------------------


def unstuffed(sent: bytes) -> tuple[bytes, bytes]:
    """Return the message that was sent, and what stands behind it: RFC 5321, 4.5.2, line by line."""
    lines = sent.split(b"\r\n")
    end = lines.index(b".")
    message = b"".join(line.removeprefix(b".") + b"\r\n" for line in lines[:end])
    return message, b"\r\n".join(lines[end + 1 :])


@pytest.mark.parametrize(
    "between",
    [
        b"\n.\n",
        b"\n.\r\n",
        b"\r\n.\n",
        b"\r.\r",
        b"\r.\r\n",
        b"\r\n.\r",
        b"\r.\n",
        b"\n.\r",
        b"\r\n.\r\r\n",
        b"\r\r\n.\r\r\n",
        b"\r\n..\r\n",
        b"\r\n. \r\n",
        b"\r\n.\x00\r\n",
        b"\r\n\x00.\r\n",
        b"\x85.\x85",
        b"\xe2\x80\xa8.\xe2\x80\xa8",  # what Unicode calls a line separator
        b"\x0b.\x0c",
    ],
)
def test_no_message_is_smuggled_in_another(watched: Watched, endpoint: Endpoint, between: bytes) -> None:
    """Nothing but CRLF.CRLF ends a message, and what is between arrives byte for byte."""
    before = len(endpoint.messages)
    sent = mail() + b"first" + between + ENVELOPE + mail(b"second") + b".\r\n"
    with watched.client() as client:
        client.begin("info@example.com")
        assert client.say("DATA").startswith("354 ")
        client.send(sent + b"NOOP\r\n")
        assert [client.answer() for _ in range(2)] == [DELIVERED, "250 2.0.0 OK"]
    (arrived,) = endpoint.messages[before:]
    message, rest = unstuffed(sent)
    assert arrived.endswith(b"Delivered-To: <info@example.com>\r\n" + message)
    assert rest == b""


@given(
    st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"..", b"a", b"\r\n.\r\n"])).map(b"".join),
    st.lists(st.sampled_from([b"\r\n", b".", b"NOOP", b"\r\n.\r\n"])).map(b"".join),
    st.data(),
)
def test_a_message_is_the_same_however_it_is_split(text: bytes, behind: bytes, data: st.DataObject) -> None:
    sent = text + b"\r\n.\r\n" + behind
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sent) - 1))))

    async def receive() -> tuple[bytes, bytes]:
        reader = asyncio.StreamReader()

        async def feed() -> None:
            for start, end in itertools.pairwise([0, *cuts, len(sent)]):
                reader.feed_data(sent[start:end])
                await asyncio.sleep(0)  # its turn

        feeding = asyncio.create_task(feed())
        message = b"".join([chunk async for chunk in content(reader)])
        await feeding
        reader.feed_eof()
        return message, await reader.read()

    assert asyncio.run(receive()) == unstuffed(sent)


# --- the socketmap ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"18:x info@example.com,", b"19:OK info@example.com,"),
        (b"18:x info@example.com,20:x info@elsewhere.com,", b"19:OK info@example.com,9:NOTFOUND ,"),
        (b"14:x @example.com,", b"9:NOTFOUND ,"),
        (b"0:,", b"9:NOTFOUND ,"),
        (b"15:x \xff@example.com,", b"16:OK \xff@example.com,"),
        (b"15:x \x00@example.com,", b"9:NOTFOUND ,"),
        (b"21:x info@example.com\r\n,", b""),
        (b"1000:x %b@example.com," % (b"a" * 986), b"1001:OK %b@example.com," % (b"a" * 986)),
        (b"1001:x %b@example.com," % (b"a" * 987), b""),
        (b"99999999999999999999:x", b""),
        (b"0" * 2**16, b""),
        (b"18:x info@example.com;", b""),
        (b":,", b""),
        (b"-1:,", b""),
        (b"\xc2\xb2:ab,", b""),
        (b"LHLO x\r\n", b""),
        (GARBAGE, b""),
    ],
)
def test_a_netstring_is_answered_and_anything_else_ends_the_connection(
    shared: Watched, request_: bytes, answer: bytes
) -> None:
    shared.service.wait_for("alias list")
    with connect(shared.socketmap) as connection:
        connection.settimeout(PROMPT)
        with contextlib.suppress(BrokenPipeError):  # it is closed before all has been sent
            connection.sendall(request_)
            connection.shutdown(socket.SHUT_WR)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while received := connection.recv(2**16):
                found += received
    assert found == answer


# --- who may use the sockets --------------------------------------------------------------------------------------


@pytest.fixture
def public(endpoint: Endpoint) -> Iterator[Service]:
    """The service in a folder that everybody can enter."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Service(Path(folder), URL=endpoint.url, SOCKETMAP=f"{folder}/socketmap.sock")


@contextlib.contextmanager
def user(name: str) -> Iterator[None]:
    """Be another user for a while."""
    entry, groups = pwd.getpwnam(name), os.getgroups()
    os.setgroups([])
    os.setegid(entry.pw_gid)
    os.seteuid(entry.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def talk(service: Service, name: str) -> tuple[str, bytes]:
    """Return what another user is told by both sockets."""
    with user(name), service.client(greet=False) as client, connect(service.folder / "socketmap.sock") as socketmap:
        greeting, answer = client.answer(), b""
        socketmap.settimeout(PROMPT)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            socketmap.sendall(b"18:x info@example.com,")
            answer = socketmap.recv(100)
    return greeting, answer


SERVED = b"19:OK info@example.com,"


@pytest.mark.parametrize("mode", ["0600", "0660", "0666"])
def test_the_sockets_have_the_mode_that_is_set(public: Service, mode: str) -> None:
    with running(public, SOCKET_MODE=mode):
        for name in ["lmtp.sock", "socketmap.sock"]:
            assert stat.S_IMODE((public.folder / name).stat().st_mode) == int(mode, 8)
            with user("nobody"), contextlib.ExitStack() as closing:
                if mode != "0666":
                    closing.enter_context(pytest.raises(PermissionError))
                connect(public.folder / name).close()
        assert talk(public, "root")[1] == SERVED


def test_the_users_that_are_named_are_served_and_no_others(public: Service) -> None:
    """As the kernel knows them, so that even root can't pretend to be the mail server."""
    with running(public, SOCKET_MODE="0666", CLIENTS="nobody, daemon"):
        for name in ["nobody", "daemon"]:
            greeting, answer = talk(public, name)
            assert greeting.startswith("220 ")
            assert answer == SERVED
        assert talk(public, "root") == ("421 4.7.0 not admitted", b"")
        public.wait_for("user id 0 is not among MAIL_GATEWAY_CLIENTS", 2)
