"""Mailboxes on servers that are odd or hostile: nothing is lost, doubled or given up, and all is bounded."""

import base64
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.endpoint import Endpoint
from support.mailboxes import Mailboxes, running
from support.records import Records
from support.strange import DATE, Strange, StrangeImap, StrangePop3

DONE = b"$MailGatewayDone"
SECRET = "hunter2"
QUICK = "from mailgate.mailboxes import fetch; fetch.POLL_SECONDS = 0.2"
QUICK += "; fetch.MESSAGE_PAUSES = fetch.DATABASE_PAUSES = fetch.OTHER_PAUSES = (0.1, 0.2); fetch.TROUBLE_PAUSES = {}"


def mail(number: object, body: bytes = b"hello", fields: bytes = b"") -> bytes:
    head = f"From: ann@outside.test\r\nTo: task@example.com\r\nSubject: {number}\r\nMessage-ID: {id_of(number)}\r\n"
    received = f"Received: by mx.example.com; {DATE}\r\n"
    return received.encode() + fields + head.encode() + b"\r\n" + body + b"\r\n"


def id_of(number: object) -> str:
    return f"<{number}@outside.test>"


@pytest.fixture
def database(endpoint: Endpoint) -> Records:
    return Records(endpoint)


@pytest.fixture
def mailboxes(endpoint: Endpoint, tmp_path: Path) -> Mailboxes:
    found = Mailboxes(tmp_path, URL=endpoint.url, PATIENCE=0)
    found.runs_first(QUICK)
    return found


def add(mailboxes: Mailboxes, server: Strange, password: str = SECRET, **keys: object) -> None:
    path = mailboxes.folder / "secret"
    path.touch(0o600)
    path.write_text(password)
    scheme = "imap" if isinstance(server, StrangeImap) else "pop3"
    own = {"name": "task", "server": f"{scheme}://127.0.0.1:{server.port}", "login": "task", "password_file": path}
    mailboxes.tables.append(own | {"recipient": "task@example.com"} | keys)


# --- the text and its size ---


def in_pieces_of(most: int) -> Callable[[bytes, bytes], bytes]:
    """Return what gives no more than so many bytes of a message at a time (RFC 3501 lets a server do so)."""

    def change(line: bytes, usual: bytes) -> bytes:
        found = re.search(rb" BODY\[\]<(\d+)> \{\d+\}\r\n(.*)\)\r\n(.*)", usual, re.DOTALL)
        if not found:
            return usual
        begin, piece, rest = int(found[1]), found[2][:most], found[3]
        return b"* 1 FETCH (UID 1 BODY[]<%d> {%d}\r\n%s)\r\n%s" % (begin, len(piece), piece, rest)

    return change


def test_a_server_that_gives_smaller_pieces_than_it_is_asked_for(mailboxes: Mailboxes, database: Records) -> None:
    raw = mail(1, b"x" * 600_000)
    with StrangeImap(raw, change=in_pieces_of(65_536)) as server:
        add(mailboxes, server)
        assert mailboxes.run("once").returncode == 0
    assert database.messages == {id_of(1): raw}


SIZES = [b"-5", b"huge", b"NIL", b"0", b"(1 2)", b'"12"', b"99999", b"1"]


@pytest.mark.parametrize("size", SIZES)
def test_a_size_that_is_none_or_wrong(mailboxes: Mailboxes, database: Records, size: bytes) -> None:
    raw = mail(1)
    with StrangeImap(raw, mail(2)) as server:
        server.change = lambda line, usual: re.sub(rb"(UID 1 RFC822.SIZE) \d+", rb"\1 " + size, usual)
        add(mailboxes, server)
        assert mailboxes.run("once").returncode == 0
        assert server.flags == {1: {DONE}, 2: {DONE}}
    assert database.messages == {id_of(1): raw, id_of(2): mail(2)}


def test_a_text_that_is_empty_is_none(mailboxes: Mailboxes, database: Records) -> None:
    """It is not refused for good: another look may find it."""
    with StrangeImap(mail(1), mail(2)) as server:
        no_text = re.compile(rb"(UID 1 BODY\[\]<0>) \{\d+\}\r\n.*\)\r\n", re.DOTALL)
        server.change = lambda line, usual: no_text.sub(rb'\1 "")' + b"\r\n", usual)
        add(mailboxes, server)
        assert mailboxes.run("once").returncode == 1
        assert server.flags == {1: set(), 2: set()}
        assert "it does not give message 1" in mailboxes.text()
        with running(mailboxes):
            mailboxes.wait_for("outcome=delivered")
        assert server.flags == {1: set(), 2: {DONE}}


def test_what_nobody_has_asked_for_is_not_taken(mailboxes: Mailboxes, database: Records) -> None:
    with StrangeImap(mail(1), mail(2)) as server:
        told = b"* 2 FETCH (UID 2 FLAGS ())\r\n* 2 FETCH (FLAGS ())\r\n"
        server.change = lambda line, usual: (told if b"RFC822.SIZE" in line else b"") + usual
        server.flags[2] = {DONE}
        add(mailboxes, server)
        assert mailboxes.run("once").returncode == 0
    assert [*database.messages] == [id_of(1)]


# --- logging in ---


def encoded(text: str) -> bytes:
    return base64.b64encode(text.encode())


ECHOES = {
    "in a refusal": b"%(tag)s NO no such user: %(line)s\r\n",
    "at the end": b"* BYE no such user: %(line)s\r\n",
    "where it is cut": b"%(tag)s NO " + b"x" * 190 + b" %(line)s\r\n",
    "in a bad one": b"%(tag)s BAD what is " + encoded(f"\0task\0{SECRET}") + b"\r\n",
}


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
def test_a_server_that_says_the_password_again(mailboxes: Mailboxes, echo: bytes) -> None:
    with StrangeImap(mail(1)) as server:
        said = {b"tag": b"", b"line": b""}

        def change(line: bytes, usual: bytes) -> bytes:
            said.update({b"tag": line.partition(b" ")[0], b"line": line})
            return echo % said if b" LOGIN " in line else usual

        server.change = change
        add(mailboxes, server)
        found = mailboxes.run("check").stdout
        assert mailboxes.run("once").returncode == 1
    text = found + mailboxes.text()
    assert "BAD task: " in text
    assert not [each for each in (SECRET[:4], encoded(f"\0task\0{SECRET}").decode()) if each in text]


@pytest.mark.parametrize("echo", [b"-ERR no: %s\r\n", b"-ERR [SYS/TEMP] " + b"x" * 175 + b" %s\r\n"])
def test_a_maildrop_that_says_the_password_again(mailboxes: Mailboxes, echo: bytes) -> None:
    with StrangePop3(mail(1)) as server:
        server.change = lambda line, usual: echo % line if b"PASS" in line else usual
        add(mailboxes, server)
        assert mailboxes.run("once").returncode == 1
    assert "mailbox task: " in mailboxes.text()
    assert SECRET[:4] not in mailboxes.text()


@pytest.mark.parametrize("kind", [StrangeImap, StrangePop3])
def test_a_password_of_other_letters(mailboxes: Mailboxes, database: Records, kind: type[Strange]) -> None:
    password = "hünter2"
    with kind(mail(1)) as server:
        server.change = lambda line, usual: b"+ \r\n" if line.endswith(b" AUTHENTICATE PLAIN") else usual
        add(mailboxes, server, password)
        assert mailboxes.run("once").returncode == 0, mailboxes.text()
        wanted = encoded(f"\0task\0{password}") if kind is StrangeImap else f"PASS {password}".encode()
        assert wanted in server.lines
    assert [*database.messages] == [id_of(1)]
