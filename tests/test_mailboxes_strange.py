"""Mailboxes on servers that are odd or hostile: nothing is lost, doubled or given up, and all is bounded."""

import base64
import itertools
import re
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from support.endpoint import Endpoint
from support.mailboxes import Bare, Mailboxes, running
from support.mta import wait_until
from support.records import Records
from support.strange import DATE, Strange, StrangeImap, StrangePop3
from support.threads import signal_another_thread

from mailgate.mailboxes.fetch import POLL_SECONDS

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


# --- what may come at any time, and what never ends ---


@pytest.mark.parametrize("is_before", [True, False], ids=["before", "in one piece with it"])
def test_word_of_new_mail_as_the_server_begins_to_idle(
    mailboxes: Mailboxes, database: Records, is_before: bool
) -> None:
    with StrangeImap(mail(1), mail(2)) as server:
        hidden = [server.flags.pop(2)]

        def change(line: bytes, usual: bytes) -> bytes:
            if line.endswith(b" IDLE") and hidden:
                server.flags[2] = hidden.pop()
                word = b"* 2 EXISTS\r\n* OK so it is\r\n"
                return word + usual if is_before else usual + word
            return usual

        server.change = change
        add(mailboxes, server)
        mailboxes.runs_first("from mailgate.mailboxes import fetch")
        with running(mailboxes):
            mailboxes.wait_for("outcome=delivered", 2, POLL_SECONDS / 2)
    assert "answer: " not in mailboxes.text()


def test_a_server_that_refuses_to_idle_is_asked_again_and_again(mailboxes: Mailboxes, database: Records) -> None:
    with StrangeImap(mail(1), mail(2)) as server:
        server.flags[2] = {DONE}
        server.change = lambda line, usual: line[:5] + b" NO not now\r\n" if line.endswith(b" IDLE") else usual
        add(mailboxes, server)
        with running(mailboxes):
            mailboxes.wait_for("outcome=delivered")
            server.flags[2] = set()
            mailboxes.wait_for("outcome=delivered", 2)
        assert server.count(b"LOGIN") == 1
    assert "answer: " not in mailboxes.text()


def test_who_hangs_up_refuses_nothing(mailboxes: Mailboxes) -> None:
    """Neither the folder nor the login, for which the pause would be long."""
    with StrangeImap(mail(1)) as imap, StrangePop3(mail(1)) as pop3:
        imap.change = lambda line, usual: b"* BYE too many of you\r\n" if b"SELECT" in line else usual
        pop3.change = lambda line, usual: None if b"PASS" in line else usual
        add(mailboxes, imap)
        add(mailboxes, pop3, name="drop")
        assert mailboxes.run("once").returncode == 1
    assert mailboxes.text().count(": network: ") == 2


ENDLESS = [
    (StrangeImap, b"", b"* OK hello {99999999999}\r\n"),
    (StrangeImap, b"SEARCH", b"* 1 FETCH (%s)\r\n" % (b"x" * 10_000)),
    (StrangeImap, b"LOGIN", b"* OK wait" + b"x" * 100_000),
    (StrangeImap, b"BODY", b"* 1 FETCH (UID 1 BODY[]<0> {9999999999}\r\n" + b"x" * 100_000),
    (StrangeImap, b"IDLE", b"* OK %s\r\n" % (b"x" * 10_000)),
    (StrangePop3, b"", b"+OK" + b"x" * 100_000),
    (StrangePop3, b"CAPA", b"+OK %s\r\n" % (b"x" * 1000)),
    (StrangePop3, b"UIDL", b"+OK %s\r\n" % (b"x" * 1000)),
    (StrangePop3, b"LIST", b"+OK %s\r\n" % (b"x" * 1000)),
    (StrangePop3, b"TOP", b"+OK\r\n" + b"x" * 100_000),
    (StrangePop3, b"RETR", b"+OK\r\n" + b"x" * 100_000),
]


@pytest.mark.parametrize(("kind", "word", "said"), ENDLESS)
def test_an_answer_without_end_is_left(mailboxes: Mailboxes, kind: type[Strange], word: bytes, said: bytes) -> None:
    """Or it would take all memory."""
    with kind(mail(1)) as server:

        def change(line: bytes, usual: bytes) -> Iterable[bytes]:
            return itertools.repeat(said) if (word in line if word else not line) else [usual]

        server.change = change
        add(mailboxes, server)
        with running(mailboxes):
            mailboxes.wait_for("mailbox task: answer: ")
    assert re.search("answer: (a line of its answer is too long|its answer has no end)", mailboxes.text())


# --- a maildrop ---


def test_uidls_that_repeat_lose_nothing(mailboxes: Mailboxes, database: Records) -> None:
    with StrangePop3(mail(1), mail(2), mail(3)) as server:
        server.change = lambda line, usual: usual.replace(b"uidl-2", b"uidl-1")
        add(mailboxes, server)
        for _ in range(2):
            assert mailboxes.run("once").returncode == 0
    assert [*database.messages] == [id_of(1), id_of(2), id_of(3)]
    assert mailboxes.text().count("outcome=") == 3


def test_a_message_without_a_uidl(mailboxes: Mailboxes, database: Records) -> None:
    with StrangePop3(mail(1), mail(2)) as server:
        server.change = lambda line, usual: usual.replace(b" uidl-2", b"")
        add(mailboxes, server)
        assert mailboxes.run("once").returncode == 1
    assert "answer: it has no UIDL for message 2, by which it is known again" in mailboxes.text()


OLD = b"Received: by mx.example.com; Tue, 3 Mar 2020 10:00:00 +0100\r\n"


@pytest.mark.parametrize("answer", [b"-ERR unknown command\r\n", None], ids=["no TOP", "TOP"])
def test_the_first_day_of_an_odd_maildrop(mailboxes: Mailboxes, database: Records, answer: bytes | None) -> None:
    """It may have no TOP, which RFC 1939 leaves to it, and lines that are longer than poplib takes."""
    long = b"X-Long: " + b"x" * 5000 + b"\r\n"
    with StrangePop3(mail(1, fields=long), OLD + mail("old", fields=long), mail(2)) as server:
        server.change = lambda line, usual: answer if answer and line.startswith(b"TOP") else usual
        add(mailboxes, server)
        assert mailboxes.run("once").returncode == 0, mailboxes.text()
    assert [*database.messages] == [id_of(1), id_of(2)]


@pytest.mark.parametrize("listed", [b"1 huge\r\n2\r\n", b"1 -5\r\n", b"", b"\xff \xff\r\n\r\n", b"2 99\r\n1 99\r\n"])
def test_sizes_of_a_maildrop_that_are_none(mailboxes: Mailboxes, database: Records, listed: bytes) -> None:
    with StrangePop3(mail(1), mail(2)) as server:
        server.change = lambda line, usual: b"+OK\r\n" + listed + b".\r\n" if line == b"LIST" else usual
        add(mailboxes, server)
        assert mailboxes.run("once").returncode == 0, mailboxes.text()
    assert [*database.messages] == [id_of(1), id_of(2)]


def test_a_maildrop_that_is_empty_for_a_moment(mailboxes: Mailboxes, database: Records) -> None:
    """What came before the first day is still old."""
    with StrangePop3(mail(1), OLD + mail("old")) as server:
        add(mailboxes, server)
        for usual in (True, False, True):
            server.change = lambda line, said: said if usual or line != b"UIDL" else b"+OK\r\n.\r\n"  # noqa: B023  # it is called in the loop
            assert mailboxes.run("once").returncode == 0
    assert mailboxes.text().count("outcome=") == 1


# --- this host ---


def test_a_mail_that_the_spool_has_no_room_for_blocks_no_other(mailboxes: Mailboxes, database: Records) -> None:
    with StrangeImap(mail("large", b"x" * 8_000_000), mail(1)) as server:
        add(mailboxes, server)
        mailboxes.runs_first(f"{QUICK}; import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**22, 2**22))")
        with running(mailboxes):
            mailboxes.wait_for("mailbox task: disk: the spool: File too large")
            mailboxes.wait_for("outcome=delivered")
    assert [*database.messages] == [id_of(1)]


DAMAGED = ['{"since": 5}', "[" * 100_000, "{}", '{"since": "x"}', '{"since": "2026-11-01", "ended": []}', ""]
DAMAGED += [
    '{"since": "2026-11-01", "ended": {"a": "WEIRD"}}',
    '{"since": "2026-11-01", "ended": {"a": []}}',
    "\0" * 99,
]


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_said_and_kept(mailboxes: Mailboxes, text: str) -> None:
    path = mailboxes.state / "task.json"
    path.touch(0o600)
    path.write_text(text)
    with StrangePop3(mail(1)) as server:
        add(mailboxes, server)
        assert mailboxes.run("check").stdout.startswith(f"BAD task: disk: {path}: ")
        assert mailboxes.run("once").returncode == 1
    assert f"mailbox task: disk: {path}: " in mailboxes.text()
    assert path.read_text() == text


def test_a_server_that_does_not_keep_the_marks(mailboxes: Mailboxes, database: Records) -> None:
    """It says that it does. The message is not looked at each time, and that is said once."""
    with StrangeImap(mail(1)) as server:

        def change(line: bytes, usual: bytes) -> bytes:
            server.flags[1] = set()
            return usual

        server.change = change
        add(mailboxes, server)
        mailboxes.runs_first(f"{QUICK}; fetch.MESSAGE_PAUSES = (600, 600)")
        with running(mailboxes):
            wait_until(lambda: server.count(b"SEARCH") > 5, "some looks")
        assert server.count(b"STORE") == 1
    assert mailboxes.text().count("the server does not keep our marks") == 1


def test_a_first_day_that_has_not_come(mailboxes: Mailboxes) -> None:
    with StrangeImap(mail(1)) as imap, StrangePop3(mail(1)) as pop3:
        add(mailboxes, imap, since=Bare("2199-01-01"))
        add(mailboxes, pop3, name="drop", since=Bare("2199-01-01"))
        found = mailboxes.run("check")
    assert found.returncode == 1
    assert found.stdout.count("nothing is taken that came before 2199-01-01, and that day has not come") == 2


def test_a_message_of_nothing_is_refused_by_the_name_of_its_mailbox(mailboxes: Mailboxes) -> None:
    with StrangeImap(b"", mail(1)) as server:
        add(mailboxes, server)
        mailboxes.run("once")
        assert server.flags[1] == {b"$MailGatewayRefused"}
    assert re.search(r"queue_id=task\.0+ .* outcome=not_a_message", mailboxes.text())


# --- the process ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_another_thread_gets_stops_it_too(mailboxes: Mailboxes, number: signal.Signals) -> None:
    with StrangeImap() as server:
        add(mailboxes, server)
        mailboxes.start()
        assert mailboxes.process
        try:
            signal_another_thread(mailboxes.process.pid, number)
            assert mailboxes.process.wait(60) == 0
        finally:
            mailboxes.process.kill()
