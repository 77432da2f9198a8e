"""How a message may end: the program as a process, a server on a socket, exit status, line and log."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.endpoint import Answer, Endpoint, Request, cut, drip, fault, hang, http, reset, returns, traceback
from support.gateway import ENVIRONMENT, PROGRAM, Gateway

from mailgate.outcome import Outcome

NOT_XML = http(200, b"<html>Back soon!</html>")
NONE = "TypeError: cannot marshal None unless allow_none is enabled"
NO_ROUTE = (
    "ValueError: No possible route found for incoming message from a@b.test to c@example.com "
    "(Message-Id <1@b.test>:). Create an appropriate mail.alias or force the destination model."
)
OUT_OF_RANGE = "Sun, 22 Nov 2026 10:00:00 +99999999999999"
REFUSED = 'psycopg2.OperationalError: connection to server on socket "/run/x" failed\n\tIs the server running?'
NO_DATABASE = 'psycopg2.OperationalError: connection to server failed: FATAL:  database "mydatabase" does not exist'


@pytest.mark.parametrize(
    ("answer", "ending"),
    [
        (returns(42), (0, "2.0.0", "delivered")),
        (returns(False), (0, "2.0.0", "accepted")),
        (returns(None), (0, "2.0.0", "dropped")),  # a server that allows None
        (fault(1, traceback(NONE, "dumps")), (0, "2.0.0", "dropped")),
        (fault(1, traceback(NO_ROUTE, "message_process", "message_route")), (67, "5.1.1", "unknown_recipient")),
        (http(413), (65, "5.3.4", "too_large")),
        (fault(3, "Access Denied"), (75, "4.7.0", "access_denied")),
        (fault(3, "Access denied"), (75, "4.7.0", "access_denied")),
        (fault(4, "You are not allowed to modify 'Email Aliases' records."), (75, "4.7.0", "access_denied")),
        (fault(2, "Record does not exist or has been deleted.\n(Record: res.users(9,), User: 9)"),
         (75, "4.7.0", "access_denied")),
        (http(401), (75, "4.7.0", "access_denied")),
        (http(403), (75, "4.7.0", "access_denied")),
        (fault(1, traceback(REFUSED, "execute")), (75, "4.3.2", "database_down")),
        (fault(1, traceback("psycopg2.InterfaceError: cursor already closed", "message_process", "message_new")),
         (75, "4.3.2", "database_down")),
        (fault(1, traceback("psycopg2.errors.SerializationFailure: could not serialize", "_message_route_process")),
         (75, "4.3.2", "database_down")),
        (fault(1, traceback("OSError: [Errno 28] No space left on device", "message_parse")),
         (75, "4.3.2", "database_down")),
        (http(500), (75, "4.3.2", "database_down")),
        (http(503), (75, "4.3.2", "database_down")),
        (http(429), (75, "4.3.2", "database_down")),
        (http(502), (75, "4.4.2", "cut_off")),
        (http(504), (75, "4.4.2", "cut_off")),
        (fault(1, traceback(NO_DATABASE, "execute")), (75, "4.3.5", "settings")),
        (fault(1, traceback("KeyError: 'res.users'", "execute")), (75, "4.3.5", "settings")),
        (fault(2, "Object mail.thread doesn't exist"), (75, "4.3.5", "settings")),
        (fault(1, traceback("ValueError: Mailbox unavailable - unknown target model x", "message_route")),
         (75, "4.3.5", "settings")),
        (http(301, b"", "Location: https://elsewhere.test/"), (75, "4.3.5", "settings")),
        (http(404), (75, "4.3.5", "settings")),
        # nothing says that the next message would fare any better
        (fault(1, traceback("ValueError: invalid literal for int() with base 10: 'x'", "_detect_loop_sender")),
         (75, "4.3.0", "database_error")),
        (fault(1, traceback("AttributeError: The method 'x' does not exist", "execute")),
         (75, "4.3.0", "database_error")),
        (fault(99, "what is this"), (75, "4.3.0", "database_error")),
        (NOT_XML, (75, "4.4.2", "cut_off")),
        (http(200), (75, "4.4.2", "cut_off")),
        (http(204), (75, "4.4.2", "cut_off")),
        (http(202), (75, "4.4.2", "cut_off")),
        (http(103), (75, "4.4.2", "cut_off")),
        (returns("a string"), (75, "4.4.2", "cut_off")),
        (returns(True), (75, "4.4.2", "cut_off")),
        (returns([1]), (75, "4.4.2", "cut_off")),
        (returns(-1), (75, "4.4.2", "cut_off")),
        (returns(42)[:-20], (75, "4.4.2", "cut_off")),
        (returns("x" * 2**20), (75, "4.4.2", "cut_off")),
        (b"\0\0\0 garbage \r\n\r\n", (75, "4.4.2", "cut_off")),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n", (75, "4.4.2", "cut_off")),
        (cut, (75, "4.4.2", "cut_off")),
        (reset, (75, "4.4.2", "cut_off")),
        (hang, (75, "4.4.2", "cut_off")),
    ],
)  # fmt: skip
def test_an_answer_has_its_ending(gateway: Gateway, endpoint: Endpoint, answer: Answer, ending: tuple) -> None:
    endpoint.answers = [answer]
    result = gateway.run("--queue-id", "4XyZ", "info@example.com", READ_TIMEOUT=1)
    assert result.ending == ending
    assert result.err == b""
    assert result.facts["queue_id"] == "4XyZ"
    assert result.facts["recipients"] == "info@example.com"
    assert result.facts["record_id"] == ("42" if ending[2] == "delivered" else "")
    assert result.facts["status_code"] == ending[1]


@pytest.mark.parametrize("outcome", Outcome, ids=lambda outcome: outcome.name)
def test_a_line_is_short_and_says_nothing_of_the_inside(outcome: Outcome) -> None:
    assert outcome.line.startswith(f"{outcome.status_code} ")
    assert outcome.exit_status in (0, 65, 67, 75)
    assert {"2": 0, "4": 75, "5": 65}[outcome.status_code[0]] in (outcome.exit_status, outcome.exit_status - 2)
    assert len(outcome.line) < 80


POISON = [
    (1, traceback("LookupError: unknown encoding: x-nope", "message_process", "message_parse")),
    (1, traceback("LookupError: 'rot13' is not a text encoding; use codecs.decode()")),
    (1, traceback("UnicodeError: decoding with 'idna' codec failed")),
    (1, traceback("ValueError: A string literal cannot contain NUL (0x00) characters.")),
    (1, traceback("ValueError: invalid arguments; address parts cannot contain CR or LF")),
    (1, traceback("IndexError: list index out of range")),
    (1, traceback("RecursionError: maximum recursion depth exceeded\n  [Previous line repeated 9 more times]")),
    (1, traceback("ValueError: Invalid field 'no_such_field' in 'crm.lead'", "message_new")),
    (1, traceback("ValueError: Mailbox unavailable - model res.country does not accept document creation")),
    (1, traceback("psycopg2.errors.ProgramLimitExceeded: index row requires 9024 bytes")),
    (1, traceback("KeyError: 'a module of the customer'", "message_process", "_message_route_process", "message_new")),
    (1, traceback("TypeError: 'NoneType'", "message_process", "message_parse", "get_content")),
    (2, "Record does not exist or has been deleted.\n(Record: crm.team(99999,), User: 2)"),
    (2, "Record does not exist or has been deleted.\n(Record: res.users(5,), User: 2)"),
    (2, "The operation cannot be completed: a mandatory field is not set."),
]


@pytest.mark.parametrize(("code", "text"), POISON)
def test_what_the_database_can_not_digest_is_held(
    gateway: Gateway, endpoint: Endpoint, tmp_path: Path, code: int, text: str
) -> None:
    hold = tmp_path / "held"
    hold.mkdir()
    endpoint.answers = [fault(code, text)]
    result = gateway.run("--sender", "ann@b.test", "info@example.com", HOLD=hold)
    assert result.ending == (0, "2.0.0", "held")
    (kept,) = (hold / "new").iterdir()
    assert kept.read_bytes() == endpoint.messages[0]
    assert kept.stat().st_mode & 0o777 == 0o600
    assert str(kept) in result.facts["cause"]
    assert not list((hold / "tmp").iterdir())


def test_what_can_not_be_held_stays_in_the_queue(gateway: Gateway, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.answers = [fault(*POISON[0])]
    assert gateway.run("info@example.com").ending == (75, "4.3.0", "database_error")

    hold = tmp_path / "held"
    hold.mkdir()
    (hold / "new").write_text("in the way of the folder")
    assert gateway.run("info@example.com", HOLD=hold).ending == (75, "4.3.0", "failed")


def test_an_unknown_recipient_costs_no_network_traffic_and_no_requests(gateway: Gateway, endpoint: Endpoint) -> None:
    result = gateway.run("nobody@elsewhere.test")
    assert result.ending == (67, "5.1.1", "unknown_recipient")
    assert result.facts["unmatched"] == "nobody@elsewhere.test"
    assert endpoint.connections == 0

    command = gateway.command("nobody@elsewhere.test")
    command[1:1] = ["-X", "importtime"]
    finished = subprocess.run(command, input=b"a: b\n\n", capture_output=True, env=ENVIRONMENT, check=False)
    assert finished.returncode == 67
    assert b"mailgate.addresses" in finished.stderr
    assert b"requests" not in finished.stderr


@pytest.mark.parametrize("message", [b"", b"From ann@b.test Sun Nov 22 10:00:00 2026\n"])
def test_nothing_at_all_is_not_a_message(gateway: Gateway, endpoint: Endpoint, message: bytes) -> None:
    assert gateway.run("info@example.com", message=message).ending == (65, "5.6.0", "not_a_message")
    assert endpoint.connections == 0


def test_a_message_over_the_limit_is_refused_and_one_at_the_limit_is_not(gateway: Gateway, endpoint: Endpoint) -> None:
    assert gateway.run("info@example.com", message=b"a: b\n\nc", MAX_SIZE=6).ending == (65, "5.3.4", "too_large")
    assert endpoint.connections == 0
    assert gateway.run("info@example.com", message=b"a: b\n\nc", MAX_SIZE=7).status == 0


def test_the_database_is_away(gateway: Gateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    result = gateway.run("info@example.com", URL=f"http://127.0.0.1:{port}")
    assert result.ending == (75, "4.4.1", "no_answer")
    assert "Connection refused" in result.facts["cause"]
    assert float(result.facts["seconds"]) >= 1  # the patience
    result = gateway.run("info@example.com", URL="https://database.invalid")
    assert result.ending == (75, "4.4.1", "no_answer")


def test_nobody_accepts_the_connection(gateway: Gateway) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address):  # fills the queue of the listener
            result = gateway.run(
                "info@example.com", URL=f"http://127.0.0.1:{address[1]}", CONNECT_TIMEOUT=0.3, PATIENCE=0
            )
    assert result.ending == (75, "4.4.1", "no_answer")
    assert "ConnectTimeout" in result.facts["cause"]


# --- what is retried, and what is not -------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
def test_what_never_reached_the_database_is_sent_again(gateway: Gateway, endpoint: Endpoint, status: int) -> None:
    endpoint.answers = [http(status), http(status), returns(5)]
    result = gateway.run("info@example.com", PATIENCE=30)
    assert result.ending == (0, "2.0.0", "delivered")
    assert len(endpoint.messages) == 3
    assert len(set(endpoint.messages)) == 1


@pytest.mark.parametrize(
    "answer", [http(500), http(502), http(504), cut, reset, hang, NOT_XML, fault(3, "Access Denied")]
)
def test_what_may_have_reached_the_database_is_not_sent_again(
    gateway: Gateway, endpoint: Endpoint, answer: Answer
) -> None:
    endpoint.answers = [answer, returns(5)]
    assert gateway.run("info@example.com", READ_TIMEOUT=0.5, PATIENCE=30).status == 75
    assert len(endpoint.requests) == 1


def test_retry_after_is_honoured_within_the_patience(gateway: Gateway, endpoint: Endpoint) -> None:
    endpoint.answers = [http(503, b"", "Retry-After: 2"), returns(5)]
    result = gateway.run("info@example.com", PATIENCE=30)
    assert result.status == 0
    assert float(result.facts["seconds"]) >= 2


@pytest.mark.parametrize("value", ["3600", "Fri, 31 Dec 9999 23:59:59 GMT", "9" * 500])
def test_a_retry_after_beyond_the_patience_is_for_the_mta_to_wait(
    gateway: Gateway, endpoint: Endpoint, value: str
) -> None:
    endpoint.answers = [http(503, b"", f"Retry-After: {value}"), returns(5)]
    result = gateway.run("info@example.com", PATIENCE=30)
    assert result.ending == (75, "4.3.2", "database_down")
    assert float(result.facts["seconds"]) < 10
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    "value",
    ["", "soon", "-5", "Fri, 31 Dec 1999 23:59:59 GMT", "Fri, 31 Dec 9999", "\N{SUPERSCRIPT TWO}", OUT_OF_RANGE],
)
def test_a_retry_after_that_means_nothing_is_ignored(gateway: Gateway, endpoint: Endpoint, value: str) -> None:
    endpoint.answers = [http(503, b"", f"Retry-After: {value}"), returns(5)]
    assert gateway.run("info@example.com", PATIENCE=30).status == 0


# --- the login ------------------------------------------------------------------------------------------------


def test_a_login_that_is_a_name_is_looked_up_first(gateway: Gateway, endpoint: Endpoint) -> None:
    endpoint.answers = [returns(9), returns(42)]
    assert gateway.run("info@example.com", LOGIN="robot").ending == (0, "2.0.0", "delivered")
    login, post = endpoint.requests
    assert login.path == "/xmlrpc/2/common"
    assert login.call == (("mydatabase", "robot", gateway.settings["PASSWORD"], {}), "authenticate")
    assert post.call[0][:3] == ("mydatabase", 9, gateway.settings["PASSWORD"])


@pytest.mark.parametrize(
    ("answer", "ending"),
    [
        (returns(False), (75, "4.7.0", "access_denied")),
        (returns(True), (75, "4.7.0", "access_denied")),
        (fault(3, "Access Denied"), (75, "4.7.0", "access_denied")),
        (fault(1, traceback(REFUSED)), (75, "4.3.2", "database_down")),
        # what would end a message must not end it here: nobody has seen the message yet
        (fault(1, traceback(NONE)), (75, "4.3.0", "database_error")),
        (fault(1, traceback(NO_ROUTE)), (75, "4.3.0", "database_error")),
        (fault(2, "any"), (75, "4.3.0", "database_error")),
        (http(413), (75, "4.3.0", "database_error")),
        (hang, (75, "4.4.2", "cut_off")),
    ],
)  # fmt: skip
def test_a_login_that_fails_keeps_the_mail_in_the_queue(
    gateway: Gateway, endpoint: Endpoint, tmp_path: Path, answer: Answer, ending: tuple
) -> None:
    endpoint.answers = [answer]
    assert gateway.run("info@example.com", LOGIN="robot", HOLD=tmp_path, READ_TIMEOUT=1).ending == ending
    assert len(endpoint.requests) == 1


# --- what the program is called with, and what happens to it --------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-such-option"],
        ["--sender"],
        ["--dry-run=yes"],
        ["-x"],
        ["--model", "--queue-id", "4"],
        ["--help"],
        ["--version"],
    ],
)
def test_wrong_usage_by_an_mta_keeps_the_mail_in_the_queue(
    gateway: Gateway, endpoint: Endpoint, arguments: list[str]
) -> None:
    finished = subprocess.run(
        [sys.executable, PROGRAM, *arguments], input=b"a: b\n\n", capture_output=True, env=ENVIRONMENT, check=False
    )
    assert finished.returncode == 75
    assert finished.stdout == b"4.3.5 gateway not set up correctly, will try again\n"
    assert endpoint.connections == 0


@pytest.mark.parametrize("variable", ["MAIL_CONFIG", "LOCAL_PART"])
def test_a_dry_run_by_an_mta_keeps_the_mail_in_the_queue(gateway: Gateway, variable: str) -> None:
    result = gateway.run("--dry-run", "info@example.com", environ={variable: "x", "MAIL_GATEWAY_LOG": str(gateway.log)})
    assert result.ending == (75, "4.3.5", "settings")


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--no-such-option"], 64, b"unknown option --no-such-option"),
        ([], 64, b"the message is expected on standard input"),
        (["--help"], 0, b"usage: mail_gateway.py"),
        (["--version"], 0, b"mail-gateway 0."),
    ],
)
def test_a_person_at_a_terminal_is_told(arguments: list[str], status: int, text: bytes) -> None:
    controller, terminal = os.openpty()
    with os.fdopen(terminal, "rb") as stdin:
        finished = subprocess.run(
            [sys.executable, PROGRAM, *arguments], stdin=stdin, capture_output=True, env=ENVIRONMENT, check=False
        )
    os.close(controller)
    assert finished.returncode == status
    assert text in finished.stdout + finished.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1])
@pytest.mark.parametrize("ignored", [False, True])  # Exim starts what it runs with some signals ignored
def test_a_signal_keeps_the_mail_in_the_queue(
    gateway: Gateway, endpoint: Endpoint, number: signal.Signals, ignored: bool
) -> None:
    def answer(connection: socket.socket, request: Request) -> None:
        process.send_signal(number)
        hang(connection, request)

    endpoint.answers = [answer]
    process = subprocess.Popen(
        gateway.command("info@example.com"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=ENVIRONMENT,
        preexec_fn=(lambda: signal.signal(number, signal.SIG_IGN)) if ignored else None,
    )
    out, _ = process.communicate(b"a: b\n\n", timeout=60)
    assert process.returncode == 75
    assert out.startswith(b"4.3.0 ")
    assert number.name in gateway.log.read_text()


def test_a_signal_while_the_message_is_read_keeps_it_in_the_queue(gateway: Gateway, endpoint: Endpoint) -> None:
    process = subprocess.Popen(
        gateway.command("info@example.com"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"x" * 2**20)  # more than a pipe holds: the program reads
    process.stdin.flush()
    process.terminate()
    process.stdin.close()  # or it would wait for more if the signal came just before it began to
    assert process.stdout.read().startswith(b"4.3.0 ")
    assert process.wait() == 75
    process.stdout.close()
    assert endpoint.connections == 0


def test_an_endless_answer_ends_at_the_deadline(gateway: Gateway, endpoint: Endpoint, tmp_path: Path) -> None:
    """Each byte comes in time, so only the deadline ends it; a copy of the program has a shorter one."""
    copy = copy_program(tmp_path)
    settings = copy.parent / "mailgate" / "__init__.py"
    text = settings.read_text()
    assert "DEADLINE = 840" in text
    settings.write_text(text.replace("DEADLINE = 840", "DEADLINE = 5"))
    endpoint.answers = [drip]
    command = gateway.command("info@example.com", READ_TIMEOUT=1, CONNECT_TIMEOUT=1)
    command[1] = str(copy)
    finished = subprocess.run(command, input=b"a: b\n\n", capture_output=True, env=ENVIRONMENT, check=False)
    assert finished.returncode == 75
    assert finished.stdout.startswith(b"4.4.2 ")
    assert "SIGALRM" in gateway.log.read_text()


def test_a_log_that_blocks_does_not_spoil_the_status(gateway: Gateway, endpoint: Endpoint, tmp_path: Path) -> None:
    """The mail server would kill it, and try again. Here it has a second to say what it did."""
    copy = copy_program(tmp_path)
    text = copy.read_text()
    assert "SAY_WITHIN_SECONDS = 10.0" in text
    copy.write_text(text.replace("SAY_WITHIN_SECONDS = 10.0", "SAY_WITHIN_SECONDS = 1.0"))
    log = tmp_path / "fifo"
    os.mkfifo(log)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(log, os.O_WRONLY | os.O_NONBLOCK)
    try:
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 2**16)
        command = gateway.command("info@example.com", LOG=log)
        command[1] = str(copy)
        finished = subprocess.run(
            command, input=b"a: b\n\n", capture_output=True, env=ENVIRONMENT, check=False, timeout=60
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert (finished.returncode, finished.stdout) == (0, b"2.0.0 delivered\n")


def copy_program(folder: Path) -> Path:
    """Copy the program into a folder of its own, to break it there."""
    target = folder / "program"
    target.mkdir()
    subprocess.run(["cp", "-r", PROGRAM, PROGRAM.parent / "mailgate", target], check=True)
    return target / PROGRAM.name


@pytest.mark.parametrize(
    "break_it",
    [
        "echo 'raise ImportError' > mailgate/addresses.py",
        "echo 'syntax error' >> mailgate/addresses.py",
        "echo 'raise SystemExit(0)' >> mailgate/message.py",
        "echo 'raise ImportError' > requests.py",
        "echo 'def judge(*_): raise KeyError' >> mailgate/judge.py",
        "echo 'def judge(*_): 1 / 0' >> mailgate/judge.py",
        "echo 'def judge(*_): raise MemoryError' >> mailgate/judge.py",
        "echo 'def judge(*_): raise SystemExit(0)' >> mailgate/judge.py",
    ],
)
def test_a_bug_or_a_broken_installation_keeps_the_mail_in_the_queue(
    gateway: Gateway, tmp_path: Path, break_it: str
) -> None:
    copy = copy_program(tmp_path)
    subprocess.run(break_it, shell=True, cwd=copy.parent, check=True)
    command = gateway.command("info@example.com")
    command[1] = str(copy)
    finished = subprocess.run(command, input=b"a: b\n\n", capture_output=True, env=ENVIRONMENT, check=False)
    assert finished.returncode == 75
    assert finished.stdout == b"4.3.0 mail gateway failed, will try again\n"
    assert b"Traceback" not in finished.stdout + finished.stderr


@pytest.mark.parametrize("noise", ["import warnings; warnings.warn('x')", "import logging; logging.error('x')"])
def test_what_a_library_has_to_say_is_not_for_the_mta(gateway: Gateway, tmp_path: Path, noise: str) -> None:
    copy = copy_program(tmp_path)
    with (copy.parent / "mailgate" / "message.py").open("a") as file:
        file.write(f"\ndef prepare(*_):\n    {noise}\n    return b'', ''\n")
    command = gateway.command("info@example.com")
    command[1] = str(copy)
    finished = subprocess.run(command, input=b"a: b\n\n", capture_output=True, env=ENVIRONMENT, check=False)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, b"2.0.0 delivered\n", b"")


def test_a_bug_in_the_log_changes_no_ending(gateway: Gateway, tmp_path: Path) -> None:
    copy = copy_program(tmp_path)
    subprocess.run("echo 'def line(*_): 1 / 0' >> mailgate/log.py", shell=True, cwd=copy.parent, check=True)
    command = gateway.command("info@example.com")
    command[1] = str(copy)
    finished = subprocess.run(command, input=b"a: b\n\n", capture_output=True, env=ENVIRONMENT, check=False)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, b"2.0.0 delivered\n", b"")


@pytest.mark.parametrize(
    ("redirection", "posted"),
    [
        ("<&-", 0),
        (">&-", 0),
        ("2>&-", 1),
        ("> /dev/full", 1),
        ("2> /dev/full", 1),
    ],
)
def test_a_closed_or_full_stream_never_loses_the_mail(
    gateway: Gateway, endpoint: Endpoint, redirection: str, posted: int
) -> None:
    command = gateway.command("info@example.com")
    finished = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *command],
        input=b"a: b\n\n",
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
        check=False,
    )
    harmless = redirection.startswith("2")
    assert finished.returncode == (0 if harmless else 75)
    assert len(endpoint.requests) == posted


def test_a_reader_that_went_away_keeps_the_mail_in_the_queue(gateway: Gateway) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    finished = subprocess.run(
        gateway.command("info@example.com"), input=b"a: b\n\n", stdout=writer, env=ENVIRONMENT, check=False
    )
    os.close(writer)
    assert finished.returncode == 75
    assert "Broken pipe" in gateway.log.read_text()


def test_a_full_disk_keeps_the_mail_in_the_queue(gateway: Gateway, endpoint: Endpoint) -> None:
    """A limit on the size of files stands for the full disk: the write fails in the same way."""
    finished = subprocess.run(
        ["sh", "-c", 'ulimit -f 100; exec "$@"', "sh", *gateway.command("info@example.com")],
        input=b"a: b\n\n" + b"x" * 2**22,
        capture_output=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert finished.returncode == 75
    assert finished.stdout == b"4.3.0 mail gateway failed, will try again\n"
    assert "File too large" in gateway.log.read_text()
    assert endpoint.connections == 0


def test_a_redirect_s_body_is_not_read(gateway: Gateway, endpoint: Endpoint) -> None:
    sent = 0

    def redirect(connection: socket.socket, request: Request) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 302 -\r\nLocation: /elsewhere\r\nContent-Length: 1000000000\r\n\r\n")
        with contextlib.suppress(OSError):  # the client goes away
            while sent < 100 * 2**20:
                connection.sendall(bytes(2**16))
                sent += 2**16

    endpoint.answers = [redirect]
    assert gateway.run("info@example.com").ending == (75, "4.3.5", "settings")
    assert sent < 20 * 2**20  # what we read of an answer, and what the sockets hold
