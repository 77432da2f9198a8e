"""The cast of the tests of mailboxes: a real Dovecot, and the network in front of it."""

import contextlib
import imaplib
import os
import poplib
import ssl
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs

import pytest
from support.dovecot import PASSWORD, Dovecot, Message, dovecot
from support.mta import wait_until
from support.network import Network
from support.phone import AWAY, Phone

pytestmark = pytest.mark.mailboxes

TASK = "task@example.com"
KEYWORD = "$MailGatewayDone"
SEEN, FLAGGED = "\\Seen", "\\Flagged"
# Each byte that a message may have, lines that mean something on the way, and one without an end.
MAIL = b"Subject: \xe4\r\n\r\n" + bytes({*range(1, 256)} - {*b"\r\n"}) + b"\r\n{4}\r\n.\r\n..\r\n* 7 EXISTS\r\nend"


def small(number: int) -> bytes:
    return b"Message-ID: <%d@outside.test>\r\nSubject: Hello\r\n\r\nHello\r\n" % number


@pytest.fixture(autouse=True)
def server(imap_server: Dovecot) -> Dovecot:
    """One that stays as it is."""
    return imap_server


@contextlib.contextmanager
def opened(port: int, login: str) -> Iterator[imaplib.IMAP4]:
    """Open a mailbox without TLS, and leave it in whatever state it is."""
    client = imaplib.IMAP4("127.0.0.1", port, timeout=30)
    try:
        client.login(login, PASSWORD)
        assert client.select()[0] == "OK"
        yield client
    finally:
        client.shutdown()


def fetched(client: imaplib.IMAP4, number: int = 1) -> bytes:
    """Return a mail, without a change of its flags."""
    answer, data = client.uid("FETCH", str(number), "(BODY.PEEK[])")
    assert answer == "OK"
    assert isinstance(data[0], tuple)
    return data[0][1]


# Dovecot


def test_the_bytes_of_a_mail_are_those_in_its_file_and_on_the_wire(server: Dovecot, login: str) -> None:
    server.append(login, MAIL)
    assert server.messages(login) == [Message(MAIL, frozenset())]
    with opened(server.ports["imap"], login) as client:
        assert fetched(client) == MAIL
    assert server.messages(login) == [Message(MAIL, frozenset())]


def test_flags_keywords_and_the_time_of_arrival_are_kept(server: Dovecot, login: str) -> None:
    server.append(login, small(1), small(2))
    server.append(login, small(3), folder="Archive", flags=SEEN, when=86400 * 1.5)
    with opened(server.ports["imap"], login) as client:
        client.uid("STORE", "2", "+FLAGS", f"({KEYWORD} {FLAGGED})")
        client.select("Archive", readonly=True)
        assert b'INTERNALDATE "02-Jan-1970 ' in client.uid("FETCH", "1", "(INTERNALDATE)")[1][0]
    assert [message.flags for message in server.messages(login)] == [set(), {KEYWORD, FLAGGED}]
    assert server.messages(login, "Archive") == [Message(small(3), frozenset({SEEN}))]


def test_thousands_of_mails_are_there_at_once(server: Dovecot, login: str) -> None:
    server.append(login, small(0))
    server.fill(login, [small(number) for number in range(1, 2_001)], flags="FS")
    with opened(server.ports["imap"], login) as client:
        assert len(client.uid("SEARCH", "SEEN", "FLAGGED")[1][0].split()) == 2_000
    found = server.messages(login)
    assert [message.raw for message in found] == [small(number) for number in range(2_001)]
    assert found[-1].flags == {SEEN, FLAGGED}


@pytest.mark.parametrize("protocol", ["imap", "imaps"])
def test_imap_has_tls_that_verifies(server: Dovecot, login: str, protocol: str) -> None:
    server.append(login, small(1))
    context = ssl.create_default_context(cafile=str(server.ca_file))
    if protocol == "imaps":
        client: imaplib.IMAP4 = imaplib.IMAP4_SSL("localhost", server.ports[protocol], ssl_context=context)
    else:
        client = imaplib.IMAP4("localhost", server.ports[protocol])
        client.starttls(context)
    with client:
        client.login(login, PASSWORD)
        assert client.select() == ("OK", [b"1"])
        assert fetched(client) == small(1)


@pytest.mark.parametrize("protocol", ["pop3", "pop3s"])
def test_pop3_has_tls_that_verifies(server: Dovecot, login: str, protocol: str) -> None:
    server.append(login, small(1))
    context = ssl.create_default_context(cafile=str(server.ca_file))
    if protocol == "pop3s":
        client: poplib.POP3 = poplib.POP3_SSL("localhost", server.ports[protocol], context=context)
    else:
        client = poplib.POP3("localhost", server.ports[protocol])
        client.stls(context)
    client.user(login)
    client.pass_(PASSWORD)
    assert b"".join(line + b"\r\n" for line in client.retr(1)[1]) == small(1)
    client.dele(1)
    client.quit()
    assert not server.messages(login)


def test_a_certificate_that_nobody_trusts_does_not_verify(server: Dovecot) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        imaplib.IMAP4_SSL("localhost", server.ports["imaps"], ssl_context=ssl.create_default_context())


def test_a_login_fails_for_a_wrong_password_and_for_a_directory_that_is_away() -> None:
    with dovecot() as server:
        server.add_user(TASK)
        with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
            server.client(TASK, "wrong")
        server.add_user(TASK, "other!")
        with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
            server.client(TASK)
        with server.unavailable_passwords(), pytest.raises(imaplib.IMAP4.error, match="UNAVAILABLE"):
            server.client(TASK, "other!")
        server.client(TASK, "other!").logout()
        server.remove_user(TASK)
        with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
            server.client(TASK, "other!")


def test_three_run_at_a_time_start_in_two_seconds_each_and_leave_nothing() -> None:
    with contextlib.ExitStack() as running:
        began = time.monotonic()
        servers = [running.enter_context(dovecot()) for _ in range(3)]
        assert time.monotonic() - began < 6
        for number, server in enumerate(servers):
            server.add_user(TASK)
            server.append(TASK, small(number))
        assert [server.messages(TASK)[0].raw for server in servers] == [small(0), small(1), small(2)]
    assert not any(server.folder.exists() for server in servers)


def test_it_keeps_mail_and_ports_when_it_is_stopped_or_killed() -> None:
    with dovecot() as server:
        server.add_user(TASK)
        for number, end in enumerate((server.stop, server.kill), 1):
            server.append(TASK, small(number))
            with opened(server.ports["imap"], TASK) as client:
                end()
                with pytest.raises(imaplib.IMAP4.abort):
                    client.noop()
            with pytest.raises(ConnectionRefusedError):
                imaplib.IMAP4("127.0.0.1", server.ports["imap"])
            server.start()
        assert [message.raw for message in server.messages(TASK)] == [small(1), small(2)]


def test_a_mailbox_without_keywords_says_so_and_takes_none() -> None:
    with dovecot(has_keywords=False) as server:
        server.add_user(TASK)
        server.append(TASK, small(1))
        with opened(server.ports["imap"], TASK) as client:
            assert client.response("PERMANENTFLAGS")[1] == [b"(\\Deleted \\Seen)"]
            assert client.uid("STORE", "1", "+FLAGS", f"({KEYWORD})")[0] == "OK"  # a lie
            client.uid("STORE", "1", "+FLAGS", f"({SEEN})")
        assert server.messages(TASK) == [Message(small(1), frozenset({SEEN}))]


def test_a_server_without_idle_does_not_name_it(server: Dovecot, login: str) -> None:
    with opened(server.ports["imap"], login) as client:
        assert b" IDLE " in client.capability()[1][0]
    with dovecot(has_idle=False) as other:
        other.add_user(login)
        with opened(other.ports["imap"], login) as client:
            assert "IDLE" not in client.capabilities
            assert b"IDLE" not in client.capability()[1][0]


def test_a_mailbox_that_is_full_takes_no_copy() -> None:
    with dovecot(quota=20_000) as server:
        server.add_user(TASK)
        server.append(TASK, small(1) + b"0" * 15_000)
        with opened(server.ports["imap"], TASK) as client:
            client.create("Archive")
            answer, (words,) = client.uid("COPY", "1", "Archive")
            assert answer == "NO"
            assert words.startswith(b"[OVERQUOTA]")
        assert not server.messages(TASK, "Archive")


class Introspection(BaseHTTPRequestHandler):
    """Knows one token (RFC 7662)."""

    def do_POST(self) -> None:
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        is_good = asked["token"] == ["good"]
        body = b'{"active": true, "username": "task@example.com"}' if is_good else b'{"active": false}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


OAUTH = {
    "XOAUTH2": f"user={TASK}\1auth=Bearer %s\1\1",
    "OAUTHBEARER": f"n,a={TASK},\1auth=Bearer %s\1\1",  # RFC 7628
}


@pytest.mark.parametrize("mechanism", OAUTH)
def test_a_token_lets_in_as_long_as_it_is_active(mechanism: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Introspection) as http:
        thread = Thread(target=http.serve_forever, args=[0.05])
        thread.start()
        with dovecot(introspection=f"http://127.0.0.1:{http.server_port}/introspect") as server:
            server.add_user(TASK)
            server.append(TASK, small(1))  # a password still does
            for token, is_let_in in [("good", True), ("revoked", False)]:
                client = imaplib.IMAP4("127.0.0.1", server.ports["imap"])
                assert f"AUTH={mechanism}" in client.capabilities
                answers = iter([(OAUTH[mechanism] % token).encode(), b""])  # the second to why it is refused
                with contextlib.nullcontext() if is_let_in else pytest.raises(imaplib.IMAP4.error):
                    client.authenticate(mechanism, lambda _, answers=answers: next(answers))  # type: ignore[misc]
                    assert client.select() == ("OK", [b"1"])
                client.shutdown()
        http.shutdown()
        thread.join()


# the network


def test_it_counts_what_it_carries_and_changes_nothing(server: Dovecot, login: str) -> None:
    server.append(login, MAIL)
    with Network(server.ports["imaps"]) as network:
        context = ssl.create_default_context(cafile=str(server.ca_file))
        with imaplib.IMAP4_SSL("localhost", network.port, ssl_context=context) as client:
            client.login(login, PASSWORD)
            client.select()
            received, sent = network.received, network.sent
            assert fetched(client) == MAIL
        assert network.connections == 1
        assert len(MAIL) < network.received - received < len(MAIL) + 1000
        assert 0 < network.sent - sent < 500


def test_cut_connections_break_and_new_ones_are_carried(server: Dovecot, login: str) -> None:
    with Network(server.ports["imap"]) as network:
        with opened(network.port, login) as first, opened(network.port, login) as second:
            assert network.cut() == 2
            for client in (first, second):
                with pytest.raises((imaplib.IMAP4.abort, ConnectionError)):
                    client.noop()
        with network.down(), pytest.raises((imaplib.IMAP4.abort, ConnectionError)):
            imaplib.IMAP4("127.0.0.1", network.port)
        with opened(network.port, login) as client:
            assert client.noop()[0] == "OK"
            assert network.cut() == 1


def test_a_stalled_network_carries_nothing_until_it_is_over(server: Dovecot, login: str) -> None:
    with Network(server.ports["imap"]) as network, opened(network.port, login) as client:
        with network.stalled():
            client.send(b"x1 NOOP\r\n")
            client.sock.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.sock.recv(1)
        client.sock.settimeout(30)
        assert client.sock.recv(100).startswith(b"x1 OK")


def test_a_connection_is_cut_after_so_many_bytes(server: Dovecot, login: str) -> None:
    server.append(login, MAIL * 1000)
    with Network(server.ports["imap"]) as network:
        network.cut_after = 50_000
        with opened(network.port, login) as client:
            network.cut_after = None
            client.send(b"x1 FETCH 1 (BODY.PEEK[])\r\n")
            received = 0
            with contextlib.suppress(ConnectionError):
                while data := client.sock.recv(65536):
                    received += len(data)
        assert 40_000 < received < 50_000  # all that was said before is in the 50,000
        with opened(network.port, login) as client:
            assert fetched(client) == MAIL * 1000


def test_what_a_client_says_can_cut_its_connection_before_the_server_has_it(server: Dovecot, login: str) -> None:
    server.append(login, small(1))

    def refuse_store(data: bytes) -> None:
        if b"STORE" in data:
            raise ConnectionError

    with Network(server.ports["imap"]) as network, opened(network.port, login) as client:
        network.watch = refuse_store
        with pytest.raises((imaplib.IMAP4.abort, ConnectionError)):
            client.uid("STORE", "1", "+FLAGS", f"({SEEN})")
    assert server.messages(login) == [Message(small(1), frozenset())]


def test_an_answer_can_cut_the_connection_when_the_server_has_done_it(server: Dovecot, login: str) -> None:
    server.append(login, small(1))

    def lose_store(line: bytes) -> bytes:
        if b"OK Store completed" in line:
            raise ConnectionError
        return line

    with Network(server.ports["imap"], reads_lines=True) as network, opened(network.port, login) as client:
        network.change = lose_store
        with pytest.raises((imaplib.IMAP4.abort, ConnectionError)):
            client.uid("STORE", "1", "+FLAGS", f"({SEEN})")
    wait_until(lambda: server.messages(login) == [Message(small(1), frozenset({SEEN}))], "the flag", 5)


def test_nonsense_comes_between_lines_and_never_within_a_message(server: Dovecot, login: str) -> None:
    server.append(login, MAIL * 100)
    nonsense = b"* NONSENSE 7 {x\r\n* 999 EXPUNGE\r\n"
    with Network(server.ports["imap"], reads_lines=True) as network, opened(network.port, login) as client:
        network.change = lambda line: nonsense + line
        client.send(b"x1 UID FETCH 1 (BODY.PEEK[])\r\n")
        read = client.file.read(len(nonsense))
        assert read == nonsense
        head = client.file.readline()
        assert head == b"* 1 FETCH (UID 1 BODY[] {%d}\r\n" % len(MAIL * 100)
        assert client.file.read(len(MAIL * 100)) == MAIL * 100
        assert client.file.readline() == b")\r\n"
        assert client.file.read(len(nonsense)) == nonsense
        assert client.readline()[:5] == b"x1 OK"


def test_a_line_is_said_while_the_server_says_nothing(server: Dovecot, login: str) -> None:
    with Network(server.ports["imap"], reads_lines=True) as network, opened(network.port, login) as client:
        client.send(b"x1 IDLE\r\n")
        assert client.readline() == b"+ idling\r\n"
        network.say(b"* BYE I am tired\r\n")
        assert client.readline() == b"* BYE I am tired\r\n"


def test_a_server_can_be_shown_as_another(server: Dovecot, login: str) -> None:
    server.append(login, small(1))
    with Network(server.ports["imap"], reads_lines=True) as network:
        network.change = lambda line: line.replace(b" \\*)", b")").replace(b" IDLE", b"")
        with opened(network.port, login) as client:
            assert "IDLE" not in client.capabilities
            assert b"\\*" not in client.response("PERMANENTFLAGS")[1][0]


def test_connections_leave_no_open_file(server: Dovecot, login: str) -> None:
    with Network(server.ports["imap"]) as network:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            with opened(network.port, login):
                network.cut()
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, "the connections to be closed", 10)


# the phone


def test_a_phone_sees_flags_moves_and_idles_and_loses_nothing(server: Dovecot, login: str) -> None:
    server.append(login, *map(small, range(5)), flags=KEYWORD)
    with Phone(lambda: server.client(login), pause=0.01) as phone:
        wait_until(lambda: len(phone.done) == 5 and min(phone.done.values()) > 1, "the phone to do everything", 30)
        server.append(login, *map(small, range(5, 10)))
    assert phone.done.keys() == {"see", "flag", "put aside", "bring back", "idle"}
    assert not server.messages(login, AWAY)
    messages = {message.raw: message.flags for message in server.messages(login)}
    assert messages.keys() == {small(number) for number in range(10)}
    assert len(server.messages(login)) == 10
    assert all((KEYWORD in messages[small(number)]) == (number < 5) for number in range(10))
    assert any(SEEN in flags for flags in messages.values())


def test_a_mail_that_was_moved_and_came_back_has_another_uid_and_the_same_keywords(server: Dovecot, login: str) -> None:
    server.append(login, small(1), flags=KEYWORD)
    with opened(server.ports["imap"], login) as client:
        client.create(AWAY)
        for source, target in [("INBOX", AWAY), (AWAY, "INBOX")]:
            client.select(source)
            assert client.uid("MOVE", "1", target)[0] == "OK"
        client.select("INBOX")
        assert client.uid("SEARCH", "KEYWORD", KEYWORD)[1] == [b"2"]
    assert server.messages(login) == [Message(small(1), frozenset({KEYWORD}))]


def test_a_phone_goes_on_when_the_server_was_away() -> None:
    with dovecot() as server:
        server.add_user(TASK)
        server.append(TASK, *map(small, range(5)))
        with Phone(lambda: server.client(TASK), pause=0.01) as phone:
            wait_until(lambda: phone.done["idle"], "the phone to read", 30)
            server.kill()
            wait_until(lambda: phone.done["lost the connection"] > 1, "the phone to miss it", 30)
            server.start()
            before = phone.done["idle"]
            wait_until(lambda: phone.done["idle"] > before, "the phone to read again", 30)
        assert {message.raw for message in server.messages(TASK)} == {small(number) for number in range(5)}
