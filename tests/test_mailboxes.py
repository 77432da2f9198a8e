"""Mailboxes: what is new is delivered, and only then marked; nothing is taken away, nothing doubled.

With a real Dovecot on one side, and on the other a database that makes a record of each Message-ID once.
"""

import itertools
import re
import shutil
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.admin import ask, facts
from support.authorization_server import CLIENT_ID, AuthorizationServer
from support.dovecot import Dovecot, dovecot
from support.endpoint import Endpoint, Request, fault, http, traceback
from support.mailboxes import Bare, Mailboxes, running, table
from support.mta import free_port, wait_until
from support.network import Network
from support.records import Records

from mailgate.mailboxes.box import PIECE_BYTES
from mailgate.mailboxes.fetch import POLL_SECONDS

pytestmark = pytest.mark.mailboxes

DONE, REFUSED, HELD, SEEN = "$MailGatewayDone", "$MailGatewayRefused", "$MailGatewayHeld", "\\Seen"
FAST = "from mailgate.mailboxes import fetch; fetch.POLL_SECONDS = 0.2"
QUICK = f"{FAST}; fetch.MESSAGE_PAUSES = fetch.DATABASE_PAUSES = fetch.OTHER_PAUSES = (0.1, 0.2)"
QUICK += "; fetch.TROUBLE_PAUSES = {}"
UNKNOWN = fault(1, "ValueError: No possible route found for incoming message from ann@outside.test")
BAD_ALIAS = traceback("psycopg2.errors.NotNullViolation: x", "_message_route_process")
_numbers = itertools.count(1)


def mail(number: object, to: str = "task@example.com", body: str = "hello", fields: str = "") -> bytes:
    head = f"{fields}From: ann@outside.test\r\nTo: {to}\r\nSubject: {number}\r\nMessage-ID: {id_of(number)}\r\n"
    return f"{head}\r\n{body}\r\n".encode()


def id_of(number: object) -> str:
    return f"<{number}@outside.test>"


@pytest.fixture
def server(imap_server: Dovecot) -> Dovecot:
    return imap_server


@pytest.fixture
def database(endpoint: Endpoint) -> Records:
    return Records(endpoint)


@pytest.fixture
def login() -> str:
    """A user whom no other test has."""
    return f"task{next(_numbers)}"


@pytest.fixture
def mailboxes(endpoint: Endpoint, tmp_path: Path) -> Mailboxes:
    """The program, without a mailbox yet."""
    return Mailboxes(tmp_path, URL=endpoint.url, PATIENCE=0)


def add(mailboxes: Mailboxes, server: Dovecot, login: str, protocol: str = "imaps", /, **keys: object) -> None:
    mailboxes.tables.append(table(server, login, protocol, **{"recipient": "task@example.com"} | keys))


def flags(server: Dovecot, login: str, folder: str = "INBOX") -> list[set[str]]:
    return [set(message.flags) for message in server.messages(login, folder)]


def are_marked(server: Dovecot, login: str, count: int) -> bool:
    """Tell whether so many messages are done, and no other is there."""
    try:
        return flags(server, login) == [{DONE}] * count
    except FileNotFoundError:  # a file has just got another name
        return False


def bodies(server: Dovecot, login: str, folder: str = "INBOX") -> list[bytes]:
    return [message.raw for message in server.messages(login, folder)]


# --- in order -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["imaps", "imap", "pop3s", "pop3"])
def test_mail_is_delivered_byte_for_byte_and_its_copy_stays(
    mailboxes: Mailboxes, server: Dovecot, database: Records, login: str, protocol: str
) -> None:
    long = "x" * 5000 + "\r\n.\r\n..two\r\n"
    raw = mail("bytes", body=long, fields="Received: by mx; Mon, 1 Jan 2035 00:00:00 +0000\r\n") + b"\xff\r\n"
    add(mailboxes, server, login, protocol)
    server.append(login, raw)
    assert mailboxes.run("once").returncode == 0
    assert database.messages == {id_of("bytes"): raw}
    assert bodies(server, login) == [raw]
    assert flags(server, login) == [{DONE}] if protocol.startswith("imap") else [set()]
    assert mailboxes.run("once").returncode == 0
    assert mailboxes.text().count("outcome=") == 1


def test_new_mail_is_a_record_within_two_seconds(
    mailboxes: Mailboxes, server: Dovecot, database: Records, login: str
) -> None:
    add(mailboxes, server, login)
    with running(mailboxes), server.client(login) as client:
        for number in range(3):
            assert client.append("INBOX", "", "", mail(number))[0] == "OK"
            began = time.monotonic()
            mailboxes.wait_for(f"message_id={id_of(number)}")
            assert time.monotonic() < began + 2
    assert len(database.messages) == 3


def test_mail_that_comes_while_another_is_delivered_does_not_wait_for_the_next_look(
    mailboxes: Mailboxes, endpoint: Endpoint, server: Dovecot, login: str
) -> None:
    database = Records(endpoint)

    def answer(connection: socket.socket, request: Request) -> None:
        if not database.messages:  # the server tells of it where it answers that the first one is marked
            server.append(login, mail(2))
        database(connection, request)

    endpoint.answers = [answer]
    add(mailboxes, server, login)
    server.append(login, mail(1))
    with running(mailboxes):
        mailboxes.wait_for("outcome=delivered", 2, POLL_SECONDS / 2)
    assert [*database.messages] == [id_of(1), id_of(2)]


def test_a_server_without_idle_is_asked_again_and_again(mailboxes: Mailboxes, database: Records, login: str) -> None:
    with dovecot(has_idle=False) as server:
        add(mailboxes, server, login)
        mailboxes.runs_first(FAST)
        with running(mailboxes):
            server.append(login, mail(1))
            mailboxes.wait_for("outcome=delivered")
            server.append(login, mail(2))
            mailboxes.wait_for("outcome=delivered", 2)
        assert flags(server, login) == [{DONE}, {DONE}]


def test_who_reads_the_mailbox_first_takes_nothing_away(
    mailboxes: Mailboxes, server: Dovecot, database: Records, login: str
) -> None:
    add(mailboxes, server, login)
    server.append(login, mail(1), flags="\\Seen \\Flagged")
    assert mailboxes.run("once").returncode == 0
    assert id_of(1) in database.messages
    assert flags(server, login) == [{DONE, SEEN, "\\Flagged"}]


def test_without_keywords_what_is_new_is_what_nobody_has_seen(
    mailboxes: Mailboxes, database: Records, login: str
) -> None:
    with dovecot(has_keywords=False) as server:
        add(mailboxes, server, login)
        server.append(login, mail("seen"), flags="\\Seen")
        server.append(login, mail(1))
        assert mailboxes.run("once").returncode == 0
        assert [*database.messages] == [id_of(1)]
        assert flags(server, login) == [{SEEN}, {SEEN}]
        found = mailboxes.run("check")
        assert found.returncode == 1
        assert "the server keeps no keywords: what is new is what nobody has seen" in found.stdout


@pytest.mark.parametrize(
    ("done", "inbox", "archive"),
    [("keep", [{DONE}], []), ("seen", [{DONE, SEEN}], []), ("move:Archive", [], [{DONE}]), ("delete", [], [])],
)
def test_what_is_done_is_what_the_file_says(
    mailboxes: Mailboxes,
    server: Dovecot,
    database: Records,
    login: str,
    done: str,
    inbox: list[Any],
    archive: list[Any],
) -> None:
    add(mailboxes, server, login, done=done)
    server.append(login, mail(1))
    assert mailboxes.run("once").returncode == 0
    assert (flags(server, login), flags(server, login, "Archive")) == (inbox, archive)
    assert len(database.messages) == 1


def test_refused_held_and_too_large_mail_is_moved_and_blocks_nobody(
    endpoint: Endpoint, server: Dovecot, login: str, tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    hold.mkdir()
    mailboxes = Mailboxes(tmp_path, URL=endpoint.url, PATIENCE=0, HOLD=hold, MAX_SIZE=100_000)
    database = Records(endpoint)

    def answer(connection: socket.socket, request: Request) -> None:
        if b"Subject: unknown" in request.message:
            connection.sendall(UNKNOWN)
        elif b"Subject: held" in request.message:
            connection.sendall(fault(1, BAD_ALIAS))
        else:
            database(connection, request)

    endpoint.answers = [answer]
    with Network(server.ports["imap"]) as network:
        add(mailboxes, server, login, "imap", server=f"imap://localhost:{network.port}", refused="move:Refused")
        server.append(login, mail("unknown"), mail("large", body="x" * 10_000_000), mail("held"), mail(1))
        assert mailboxes.run("once").returncode == 0, mailboxes.text()
        assert network.received < 1_000_000
    endings = re.findall(r"outcome=(\w+)", mailboxes.text())
    assert endings == ["unknown_recipient", "too_large", "held", "delivered"]
    assert flags(server, login) == [{DONE}]
    assert sorted(map(sorted, flags(server, login, "Refused"))) == [[HELD], [REFUSED], [REFUSED]]


def test_what_is_held_and_not_marked_is_held_once_and_marked_so(
    endpoint: Endpoint, server: Dovecot, login: str, tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    hold.mkdir()
    mailboxes = Mailboxes(tmp_path, URL=endpoint.url, PATIENCE=0, HOLD=hold)
    endpoint.answers = [fault(1, BAD_ALIAS)]
    add(mailboxes, server, login)
    server.append(login, mail("held"))
    for tries in 1, 2:
        assert mailboxes.run("once").returncode == 0
        assert flags(server, login) == [{HELD}]
        assert re.findall(r"outcome=(\w+)", mailboxes.text()) == ["held"] * tries
        assert len([*hold.glob("new/*")]) == len(endpoint.messages) == 1
        with server.client(login) as client:
            client.select("INBOX")
            client.store("1", "-FLAGS", f"({HELD})")


def test_mail_that_the_header_is_to_tell_the_recipient_of(
    mailboxes: Mailboxes, server: Dovecot, database: Records, login: str
) -> None:
    """Nothing is invented: the Return-Path is the one that stands there."""
    add(mailboxes, server, login)
    del mailboxes.tables[0]["recipient"]
    head = "Return-Path: <ann@outside.test>\r\nDelivered-To: task@example.com\r\n"
    raw = mail(1, to="somebody@elsewhere.test", fields=head)
    server.append(login, raw, mail(2, to="somebody@elsewhere.test"))
    assert mailboxes.run("once").returncode == 0
    assert database.messages == {id_of(1): b"Delivered-To: <task@example.com>,\r\n" + raw}
    assert "sender=ann@outside.test recipients=task@example.com" in mailboxes.text()
    assert flags(server, login) == [{DONE}, {REFUSED}]


def test_what_no_alias_takes_becomes_a_record_of_the_model(
    mailboxes: Mailboxes, server: Dovecot, database: Records, endpoint: Endpoint, login: str
) -> None:
    """The address of the mailbox is a provider's, which the database knows nothing of."""
    add(mailboxes, server, login, model="project.task", recipient="company@provider.test")
    server.append(login, mail(1, to="company@provider.test"))
    assert mailboxes.run("once").returncode == 0
    assert id_of(1) in database.messages
    (request,) = (each for each in endpoint.requests if each.is_delivery)
    assert request.call[0][5][0] == "project.task"
    assert "model=project.task" in mailboxes.text()


def test_the_first_run_takes_nothing_older_than_its_day(
    mailboxes: Mailboxes, server: Dovecot, database: Records, login: str
) -> None:
    old = time.time() - 3 * 86400
    add(mailboxes, server, login)
    server.append(login, mail("old"), when=old)
    server.append(login, mail("new"))
    assert mailboxes.run("once").returncode == 0
    assert [*database.messages] == [id_of("new")]
    mailboxes.tables[0]["since"] = Bare(time.strftime("%Y-%m-%d", time.gmtime(old - 86400)))
    assert mailboxes.run("once").returncode == 0
    assert sorted(database.messages) == sorted([id_of("new"), id_of("old")])


def test_the_first_day_may_be_another_at_the_server(
    mailboxes: Mailboxes, server: Dovecot, database: Records, login: str
) -> None:
    """Where it is still the day before, what comes after the first look is new, and only that."""
    yesterday, kept = time.time() - 86400, mailboxes.state / f"{login}.json"
    add(mailboxes, server, login)
    server.append(login, mail("there"), when=yesterday)
    with running(mailboxes):
        wait_until(lambda: kept.exists() and re.search(r'"first": "\d', kept.read_text()), "the first look")
        server.append(login, mail("old"), when=yesterday - 86400)
        server.append(login, mail(1), when=yesterday)
        mailboxes.wait_for("outcome=")
    server.append(login, mail(2), when=yesterday)
    assert mailboxes.run("once").returncode == 0
    assert [*database.messages] == [id_of(1), id_of(2)]


def test_a_maildrop_on_its_first_day(mailboxes: Mailboxes, server: Dovecot, database: Records, login: str) -> None:
    """POP3 has no dates: the topmost Received field tells."""
    add(mailboxes, server, login, "pop3")
    received = "Received: from x by mx.example.com; Tue, 3 Mar 2020 10:00:00 +0100\r\n"
    server.append(login, mail("old", fields=received), mail("new"))
    assert mailboxes.run("once").returncode == 0
    server.append(login, mail("late", fields=received))
    assert mailboxes.run("once").returncode == 0
    assert sorted(database.messages) == sorted([id_of("new"), id_of("late")])


@pytest.mark.parametrize("done", ["keep", "delete"])
def test_a_maildrop_is_left_as_the_file_says(
    mailboxes: Mailboxes, server: Dovecot, database: Records, login: str, done: str
) -> None:
    add(mailboxes, server, login, "pop3", done=done)
    for number in range(3):
        server.append(login, mail(number))
        assert mailboxes.run("once").returncode == 0
    assert len(bodies(server, login)) == (3 if done == "keep" else 0)
    assert len(database.messages) == 3
    assert mailboxes.text().count("outcome=") == 3


# --- killed, cut, doubled -------------------------------------------------------------------------------------------


def cut_at(word: bytes) -> Callable[[bytes], None]:
    """Return what cuts the connection once, before a command goes to the server."""
    left = [word]

    def watch(data: bytes) -> None:
        if left and left[0] in data:
            left.clear()
            raise ConnectionError

    return watch


@pytest.mark.parametrize("word", [b"STORE", b"MOVE"])
def test_what_is_delivered_and_not_marked_is_no_second_record(
    mailboxes: Mailboxes, server: Dovecot, database: Records, login: str, word: bytes
) -> None:
    with Network(server.ports["imap"], reads_lines=True) as network:
        network.change = lambda line: line.replace(b" STARTTLS", b"")  # so that the test sees what is said
        network.watch = cut_at(word)
        add(mailboxes, server, login, server=f"imap://127.0.0.1:{network.port}", done="move:Archive")
        mailboxes.runs_first(QUICK)
        server.append(login, mail(1))
        with running(mailboxes):
            mailboxes.wait_for("network: ")
            mailboxes.wait_for("is read again")
            server.append(login, mail(2))
            mailboxes.wait_for(f"message_id={id_of(2)}")
        assert len(database.messages) == 2
        endings = re.findall(rf"message_id={id_of(1)}.* outcome=(\w+)", mailboxes.text())
        assert endings == (["delivered", "delivered"] if word == b"STORE" else ["delivered"])
        marked = server.messages(login) + server.messages(login, "Archive")
        assert [DONE in message.flags for message in marked] == [True, True]


def test_a_maildrop_that_is_cut_before_it_is_left(
    mailboxes: Mailboxes, server: Dovecot, database: Records, login: str
) -> None:
    """Nothing is deleted then; next time it is, without another delivery."""
    with Network(server.ports["pop3"], reads_lines=True) as network:
        network.change = lambda line: b"" if line == b"STLS\r\n" else line
        network.watch = cut_at(b"QUIT")
        add(mailboxes, server, login, server=f"pop3://127.0.0.1:{network.port}", done="delete")
        server.append(login, mail(1))
        mailboxes.run("once")
        assert len(bodies(server, login)) == 1
        assert mailboxes.run("once").returncode == 0
    assert bodies(server, login) == []
    assert mailboxes.text().count("outcome=") == 1


def test_a_process_that_is_killed_while_the_database_answers(
    endpoint: Endpoint, server: Dovecot, login: str, tmp_path: Path
) -> None:
    mailboxes = Mailboxes(tmp_path, URL=endpoint.url, PATIENCE=0, READ_TIMEOUT=2)
    database, arrived, go_on = Records(endpoint), threading.Event(), threading.Event()

    def answer(connection: socket.socket, request: Request) -> None:
        arrived.set()
        go_on.wait(60)
        database(connection, request)

    endpoint.answers = [answer, database]
    add(mailboxes, server, login)
    mailboxes.runs_first(QUICK)
    server.append(login, mail(1))
    mailboxes.start()
    assert arrived.wait(60)
    assert mailboxes.stop(signal.SIGKILL) == -signal.SIGKILL
    go_on.set()
    with running(mailboxes):
        mailboxes.wait_for("outcome=in_progress")
        mailboxes.wait_for("outcome=known")
    assert [*database.messages] == [id_of(1)]
    assert flags(server, login) == [{DONE}]


def test_two_processes_on_one_mailbox(endpoint: Endpoint, server: Dovecot, login: str, tmp_path: Path) -> None:
    """They share the journal, as two hosts do."""
    database, folders = Records(endpoint), [tmp_path / "one", tmp_path / "other"]
    both = []
    for folder in folders:
        folder.mkdir()
        both.append(Mailboxes(folder, URL=endpoint.url, PATIENCE=0, JOURNAL=folders[0] / "mailboxes-journal"))
        add(both[-1], server, login)
    with running(both[0]), running(both[1]):
        server.append(login, *(mail(number) for number in range(50)))
        wait_until(lambda: are_marked(server, login, 50), "all marks")
    assert len(database.messages) == 50
    assert sum(request.is_delivery for request in endpoint.requests) == 50


def test_a_mailbox_that_comes_from_another_server_doubles_nothing(
    mailboxes: Mailboxes, server: Dovecot, database: Records, login: str
) -> None:
    """UIDVALIDITY is another, and the keywords are lost: the journal knows the messages."""
    add(mailboxes, server, login)
    raws = [mail(number) for number in range(5)]
    server.append(login, *raws)
    assert mailboxes.run("once").returncode == 0
    with server.client(login) as client:
        client.select("INBOX")
        client.store("1:5", "-FLAGS", f"({DONE})")
    for name in ("dovecot-uidlist", "dovecot.index", "dovecot.index.log", "dovecot.index.cache"):
        (server.maildir(login) / name).unlink(missing_ok=True)
    assert mailboxes.run("once").returncode == 0
    assert len(database.messages) == 5
    assert flags(server, login) == [{DONE}] * 5
    assert mailboxes.text().count('cause="answered before"') == 5


# --- tried again ----------------------------------------------------------------------------------------------------


def test_what_is_to_be_tried_again_stays_and_the_rest_goes_on(
    mailboxes: Mailboxes, endpoint: Endpoint, server: Dovecot, database: Records, login: str
) -> None:
    is_bad = threading.Event()
    is_bad.set()

    def answer(connection: socket.socket, request: Request) -> None:
        if is_bad.is_set() and b"Subject: bad" in request.message:
            connection.sendall(fault(1, "Traceback:\npsycopg2.errors.SerializationFailure: could not serialize"))
        else:
            database(connection, request)

    endpoint.answers = [answer]
    add(mailboxes, server, login)
    mailboxes.runs_first(QUICK)
    server.append(login, mail("bad"), mail(1), mail(2))
    with running(mailboxes):
        mailboxes.wait_for("outcome=delivered", 2)
        mailboxes.wait_for("outcome=database_error", 3)
        assert flags(server, login) == [set(), {DONE}, {DONE}]
        is_bad.clear()
        mailboxes.wait_for("outcome=delivered", 3)
    assert flags(server, login) == [{DONE}] * 3


def test_while_the_database_is_away_the_mailbox_waits(
    mailboxes: Mailboxes, endpoint: Endpoint, server: Dovecot, database: Records, login: str
) -> None:
    """One message tells that; the others are not tried in vain."""
    endpoint.answers = [http(503)] * 3 + [database]
    add(mailboxes, server, login)
    mailboxes.runs_first(QUICK)
    server.append(login, *(mail(number) for number in range(20)))
    with running(mailboxes):
        mailboxes.wait_for("outcome=delivered", 20)
    assert mailboxes.text().count("outcome=database_down") == 3
    assert len(database.messages) == 20


def test_pauses_grow() -> None:
    from mailgate.mailboxes.box import Kind
    from mailgate.mailboxes.fetch import TROUBLE_PAUSES, growing

    assert [growing((2.0, 60.0), count) for count in (1, 2, 3, 5, 6, 10_000)] == [2, 4, 8, 32, 60, 60]
    assert TROUBLE_PAUSES[Kind.LOGIN][0] >= 60  # no provider locks an account for one wrong password a minute


def test_a_process_that_is_stopped_ends_what_it_has_begun(
    mailboxes: Mailboxes, endpoint: Endpoint, server: Dovecot, database: Records, login: str
) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def answer(connection: socket.socket, request: Request) -> None:
        arrived.set()
        go_on.wait(60)
        database(connection, request)

    endpoint.answers = [answer]
    add(mailboxes, server, login)
    server.append(login, mail(1), mail(2))
    mailboxes.start()
    assert arrived.wait(60)
    assert mailboxes.process
    mailboxes.process.send_signal(signal.SIGTERM)
    go_on.set()
    assert mailboxes.process.wait(60) == 0
    assert flags(server, login) == [{DONE}, set()]


# --- trouble --------------------------------------------------------------------------------------------------------


def test_a_wrong_password_is_said_once_and_mended(
    mailboxes: Mailboxes, server: Dovecot, database: Records, login: str
) -> None:
    add(mailboxes, server, login)
    server.append(login, mail(1))
    server.add_user(login, "another")
    mailboxes.runs_first(QUICK)
    with running(mailboxes):
        mailboxes.wait_for(f"mailbox {login}: login: the login is refused: ")
        server.add_user(login)
        mailboxes.wait_for("outcome=delivered")
        assert mailboxes.text().count("login: the login is refused") == 1
        assert f"mailbox {login}: is read again" in mailboxes.text()
    server.add_user(login, "another")
    found = mailboxes.run("check")
    assert (found.returncode, "BAD" in found.stdout) == (1, True)
    assert "Look at login and password_file" in found.stdout


def test_a_server_that_goes_and_comes(mailboxes: Mailboxes, database: Records, login: str) -> None:
    with dovecot() as server:
        add(mailboxes, server, login)
        mailboxes.runs_first(QUICK)
        with running(mailboxes):
            for number in range(3):
                server.append(login, mail(number))
                mailboxes.wait_for(f"message_id={id_of(number)}")
                server.kill() if number else server.stop()
                mailboxes.wait_for("network: ", number + 1)
                server.start()
                mailboxes.wait_for("is read again", number + 1)
    assert len(database.messages) == 3


def test_a_network_that_stalls(mailboxes: Mailboxes, server: Dovecot, database: Records, login: str) -> None:
    with Network(server.ports["imap"]) as network:
        add(mailboxes, server, login, server=f"imap://localhost:{network.port}")
        mailboxes.runs_first(f"{QUICK}; from mailgate.mailboxes import imap; imap.TIMEOUT_SECONDS = 1")
        with running(mailboxes):
            with network.stalled():
                mailboxes.wait_for("network: it does not answer")
            server.append(login, mail(1))
            mailboxes.wait_for("outcome=delivered")
    assert len(database.messages) == 1


@pytest.mark.parametrize("protocol", ["imaps", "imap", "pop3s", "pop3"])
def test_tls_that_does_not_verify(
    mailboxes: Mailboxes, server: Dovecot, database: Records, login: str, protocol: str
) -> None:
    add(mailboxes, server, login, protocol)
    del mailboxes.tables[0]["ca_file"]
    server.append(login, mail(1))
    found = mailboxes.run("check")
    assert "tls: its certificate does not verify: self-signed certificate" in found.stdout
    assert mailboxes.run("once").returncode == 1
    assert not database.messages


def test_a_folder_that_is_missing(mailboxes: Mailboxes, server: Dovecot, login: str) -> None:
    add(mailboxes, server, login, folder="Sales")
    found = mailboxes.run("check")
    assert f"BAD {login}: folder: folder Sales can't be opened: " in found.stdout
    assert mailboxes.run("once").returncode == 1


def test_what_can_not_be_moved_stays_and_is_marked(
    mailboxes: Mailboxes, server: Dovecot, database: Records, login: str
) -> None:
    """The folder is there, and takes nothing: its own reason is said, once."""
    add(mailboxes, server, login, done="move:Archive")
    server.append(login, mail(0), folder="Archive")
    archive = server.maildir(login, "Archive")
    for path in (archive, *archive.iterdir()):
        shutil.chown(path, "root", "root")
        path.chmod(0o500 if path.is_dir() else 0o400)
    server.append(login, mail(1))
    for _ in range(2):
        assert mailboxes.run("once").returncode == 0
    assert flags(server, login) == [{DONE}]
    assert mailboxes.text().count("outcome=delivered") == 1
    (reason,) = re.findall("stays as it is, marked: move Archive: (.*): <", mailboxes.text())
    assert reason.startswith("move failed: ")


NONSENSE = [
    b"* OK [ALERT] " + b"\xff" * 100 + b"\r\n",
    b"* 1 FETCH (FLAGS (\r\n",
    b"* 99999999999999999999 EXISTS\r\n",
    b"* BYE and then again not\r\n",
    b"nobody asked OK\r\n",
    b"* SEARCH x y z\r\n",
    b"+ go on\r\n",
]


@pytest.mark.parametrize("line", NONSENSE, ids=range(len(NONSENSE)))
def test_a_server_that_says_untagged_nonsense(
    mailboxes: Mailboxes, server: Dovecot, database: Records, login: str, line: bytes
) -> None:
    """Whatever the library makes of it: the mailbox is read again, and nothing is lost or doubled."""
    with Network(server.ports["imap"], reads_lines=True) as network:
        network.change = lambda said: said.replace(b" STARTTLS", b"")
        add(mailboxes, server, login, server=f"imap://127.0.0.1:{network.port}")
        mailboxes.runs_first(QUICK)
        with running(mailboxes):
            for number in range(3):
                server.append(login, mail(number))
                network.say(line)
                mailboxes.wait_for(f"message_id={id_of(number)}")
            wait_until(lambda: are_marked(server, login, 3), "three marks")
    assert len(database.messages) == 3
    assert "failed:" not in mailboxes.text()


def test_old_mail_costs_nothing(mailboxes: Mailboxes, server: Dovecot, database: Records, login: str) -> None:
    """50,000 messages that are done, or older than the first day, and one that is new."""
    add(mailboxes, server, login, "imap")
    server.append(login, mail("first"))
    assert mailboxes.run("once").returncode == 0
    (keyword,) = (server.maildir(login) / "dovecot-keywords").read_text().splitlines()[:1]
    assert keyword == f"0 {DONE}"
    server.fill(login, [mail(number) for number in range(50_000)], flags="Sa")
    server.append(login, mail("new"))
    with Network(server.ports["imap"]) as network:
        mailboxes.tables[0]["server"] = f"imap://localhost:{network.port}"
        assert mailboxes.run("once").returncode == 0
        assert network.sent + network.received < 20_000
    assert sorted(database.messages) == sorted([id_of("first"), id_of("new")])


def test_a_disk_on_which_nothing_can_be_kept(mailboxes: Mailboxes, server: Dovecot, login: str) -> None:
    """The first day could not be remembered: so nothing is begun, and it is said."""
    add(mailboxes, server, login)
    server.append(login, mail(1))
    (mailboxes.state / f"{login}.json").mkdir()
    assert mailboxes.run("once").returncode == 1
    assert f"mailbox {login}: disk: {mailboxes.state / f'{login}.json'}: " in mailboxes.text()
    assert flags(server, login) == [set()]


def test_its_metrics(mailboxes: Mailboxes, server: Dovecot, database: Records, login: str) -> None:
    add(mailboxes, server, login)
    add(mailboxes, server, f"{login}-away", password_file=server.folder / "wrong")
    (server.folder / "wrong").touch(0o600)
    (server.folder / "wrong").write_text("wrong")
    port = free_port()
    mailboxes.top["metrics"] = f"127.0.0.1:{port}"
    server.append(login, mail(1))
    with running(mailboxes):
        mailboxes.wait_for("outcome=delivered")
        mailboxes.wait_for("the login is refused")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            found = answer.read().decode()
    assert f'mail_gateway_mailbox_ready{{mailbox="{login}"}} 1.0' in found
    assert f'mail_gateway_mailbox_ready{{mailbox="{login}-away"}} 0.0' in found
    assert 'mail_gateway_messages_total{outcome="delivered"} 1.0' in found


def test_no_text_is_not_the_end_of_a_text(mailboxes: Mailboxes, server: Dovecot, database: Records, login: str) -> None:
    """A server answers the second piece of a message without it, once: the message is not delivered by halves."""
    raw = mail(1, body="x" * 600_000)
    left = [b" BODY[]<262144> "]

    def change(said: bytes) -> bytes:
        said = said.replace(b" STARTTLS", b"")
        if left and left[0] in said:
            return re.sub(rb" BODY\[\]<262144> \{\d+\}\r\n", b" X-GONE {%d}\r\n" % PIECE_BYTES, said)
        return said

    with Network(server.ports["imap"], reads_lines=True) as network:
        network.change = change
        add(mailboxes, server, login, server=f"imap://127.0.0.1:{network.port}")
        mailboxes.runs_first(QUICK)
        server.append(login, raw)
        with running(mailboxes):
            mailboxes.wait_for("it does not give message 1")
            assert not database.messages
            left.clear()
            mailboxes.wait_for("outcome=delivered")
    assert database.messages == {id_of(1): raw}


def test_a_message_that_the_server_can_not_give_blocks_no_other(
    mailboxes: Mailboxes, server: Dovecot, database: Records, login: str
) -> None:
    """Its connection ends whenever that one is asked for."""
    with Network(server.ports["imap"], reads_lines=True) as network:

        def watch(data: bytes) -> None:
            if b"UID FETCH 1 (BODY" in data:
                raise ConnectionError

        network.change = lambda said: said.replace(b" STARTTLS", b"")
        network.watch = watch
        add(mailboxes, server, login, server=f"imap://127.0.0.1:{network.port}")
        mailboxes.runs_first(QUICK)
        server.append(login, *(mail(number) for number in range(5)))
        with running(mailboxes):
            mailboxes.wait_for("outcome=delivered", 4)
    assert id_of(0) not in database.messages


def test_a_message_that_somebody_takes_away_meanwhile(
    mailboxes: Mailboxes, server: Dovecot, database: Records, login: str
) -> None:
    with Network(server.ports["imap"], reads_lines=True) as network:

        def watch(data: bytes) -> None:
            if b"BODY.PEEK" in data and server.messages(login):
                for path in server.maildir(login).glob("*/*"):
                    if b"Subject: gone" in path.read_bytes():
                        path.unlink()

        network.change = lambda said: said.replace(b" STARTTLS", b"")
        network.watch = watch
        add(mailboxes, server, login, server=f"imap://127.0.0.1:{network.port}")
        mailboxes.runs_first(QUICK)
        server.append(login, mail("gone"), mail(1))
        with running(mailboxes):
            mailboxes.wait_for(f"message_id={id_of(1)}")
    assert id_of(1) in database.messages


# --- the desk ---


def test_the_desk_knows_what_waits_in_a_mailbox(
    mailboxes: Mailboxes, endpoint: Endpoint, database: Records, server: Dovecot, login: str
) -> None:
    """It is in no mail server's queue, and not lost."""
    endpoint.answers = [http(503)]
    add(mailboxes, server, login)
    server.append(login, mail(1))
    assert mailboxes.run("once").returncode == 1
    today = ask(mailboxes.env_file, "today").stdout
    assert "In mailboxes: 1\n" in today
    assert re.search(rf"{login} +1 ", today)
    assert f"mailbox {login}" in ask(mailboxes.env_file, "trace", id_of(1)).stdout
    assert facts(mailboxes.env_file, "audit")["lost"] == []
    found = facts(mailboxes.env_file, "check")["findings"]
    (sentence,) = (each["sentence"] for each in found if each["code"] == "mailboxes")
    assert sentence == f"Mailbox {login}: {mailboxes.tables[0]['server']} lets us in; messages: 1, new: 1."
    server.add_user(login, "another")
    found = facts(mailboxes.env_file, "check")["findings"]
    assert [each["state"] for each in found if each["code"] == "mailboxes"] == ["bad"]


# --- tokens ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authorization() -> Iterator[AuthorizationServer]:
    with AuthorizationServer() as found:
        yield found


@pytest.fixture(scope="module")
def token_server(authorization: AuthorizationServer) -> Iterator[Dovecot]:
    with dovecot(introspection=authorization.introspection_url) as found:
        yield found


@pytest.mark.parametrize("protocol", ["imaps", "pop3s"])
def test_a_mailbox_that_a_person_has_authorized(
    mailboxes: Mailboxes,
    authorization: AuthorizationServer,
    token_server: Dovecot,
    database: Records,
    login: str,
    protocol: str,
) -> None:
    """Until the sign-in is revoked: that is said, counted, and mended by another one, while all goes on."""
    urls = f'device_url = "{authorization.device_url}", token_url = "{authorization.token_url}"'
    more = f'kind = "device", client_id = "{CLIENT_ID}", scope = "mail"'
    add(mailboxes, token_server, login, protocol, oauth=Bare(f"{{ {urls}, {more} }}"))
    del mailboxes.tables[0]["password_file"]
    port = free_port()
    mailboxes.top["metrics"] = f"127.0.0.1:{port}"
    mailboxes.runs_first(QUICK)

    def authorize() -> None:
        with mailboxes.talking("authorize", login) as process:
            assert process.stdout
            for said in process.stdout:
                if code := re.search(r"enter (\w+),", said):
                    authorization.approve(code[1], login)
            assert process.wait(60) == 0

    token_server.append(login, mail(1))
    found = mailboxes.run("check")
    assert f"mail-gateway-mailboxes authorize {login}" in found.stdout
    authorize()
    with running(mailboxes):
        mailboxes.wait_for("outcome=delivered")
        authorization.revoke(login)
        token_server.kill()
        token_server.start()
        mailboxes.wait_for(f"mailbox {login}: token: ")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert f'mail_gateway_mailbox_token_refused{{mailbox="{login}"}} 1.0' in answer.read().decode()
        authorize()
        token_server.append(login, mail(2))
        mailboxes.wait_for("outcome=delivered", 2)
    assert len(database.messages) == 2
    assert not [secret for secret in authorization.secrets if secret in mailboxes.text()]
