"""The pipe gives its message to the service, and delivers it itself when there is none."""

import contextlib
import io
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.endpoint import Endpoint, Gate, fault, hang, http, returns, traceback
from support.gateway import ENVIRONMENT, LINE, Gateway, Result, write_settings
from support.service import Service, running

from mailgate import handover
from mailgate.outcome import Outcome

MESSAGE = b"Message-ID: <1@outside.test>\nSubject: hello\n\n.dot\nbody\n"
NO_ROUTE = "ValueError: No possible route found for incoming message from a@b.test to c@example.com"


def hand_over(gateway: Gateway, service: str | Path, *arguments: str, message: bytes = MESSAGE) -> Result:
    """Run the pipe with --service, for info@example.com unless the arguments say otherwise."""
    return gateway.run(
        f"--service={service}", *(arguments or ("--sender=ann@b.test", "--", "info@example.com")), message=message
    )


def test_the_service_delivers_and_the_pipe_says_so(gateway: Gateway, service: Service, endpoint: Endpoint) -> None:
    result = hand_over(gateway, service.address)
    assert (result.status, result.out, result.err, result.log) == (0, b"2.0.0 delivered\n", b"", "")
    added = b"Return-Path: <ann@b.test>\r\nDelivered-To: <info@example.com>\r\n"
    assert endpoint.messages == [added + MESSAGE.replace(b"\n", b"\r\n")]
    assert (
        "sender=ann@b.test recipients=info@example.com original_recipients= unmatched= outcome=delivered"
        in service.text()
    )


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (returns(False), Outcome.ACCEPTED),
        (fault(1, traceback(NO_ROUTE, "message_process", "message_route")), Outcome.UNKNOWN_RECIPIENT),
        (http(413), Outcome.TOO_LARGE),
        (http(500), Outcome.DATABASE_DOWN),
        (fault(3, "Access Denied"), Outcome.ACCESS_DENIED),
    ],
)
def test_an_ending_is_the_same(
    gateway: Gateway, service: Service, endpoint: Endpoint, answer: bytes, outcome: Outcome
) -> None:
    endpoint.answers = [answer]
    result = hand_over(gateway, service.address)
    assert (result.status, result.out) == (outcome.exit_status, f"{outcome.line}\n".encode())


@pytest.mark.parametrize("outcome", Outcome, ids=lambda outcome: outcome.name)
def test_every_reply_becomes_the_exit_status_of_its_row(outcome: Outcome) -> None:
    answer = outcome.reply.encode()
    expected = (outcome.exit_status, f"{outcome.line}\n".encode())
    assert handover._ending([answer]) == handover._ending([answer] * 3) == expected


def test_one_recipient_to_be_tried_again_keeps_the_message_for_all() -> None:
    delivered, unknown, down = (
        outcome.reply.encode() for outcome in (Outcome.DELIVERED, Outcome.UNKNOWN_RECIPIENT, Outcome.DATABASE_DOWN)
    )
    assert handover._ending([delivered, unknown])[0] == 0
    assert handover._ending([delivered, down, unknown])[0] == 75
    for unknown_answer in (b"nonsense", b"500 5.5.2 what?", b"554 no", b"250 fine"):
        assert handover._ending([unknown_answer]) == (75, handover.BROKEN)


def test_who_is_not_the_databases_is_left_out_and_nobody_else(
    gateway: Gateway, service: Service, endpoint: Endpoint
) -> None:
    result = hand_over(gateway, service.address, "--sender=", "--", "x@y.test", "info@example.com", "z@y.test")
    assert (result.status, result.out) == (0, b"2.0.0 delivered\n")
    assert endpoint.messages[0].startswith(b"Return-Path: <>\r\nDelivered-To: <info@example.com>\r\nMessage-ID")
    result = hand_over(gateway, service.address, "--sender=a@b", "--", "x@y.test", "z@y.test")
    assert (result.status, result.out) == (67, f"{Outcome.UNKNOWN_RECIPIENT.line}\n".encode())


def test_the_original_recipient_comes_first(gateway: Gateway, service: Service, endpoint: Endpoint) -> None:
    options = ("--sender=a@b.test", "--original-recipient=info@example.com", "--original-recipient=x@y.test")
    result = hand_over(gateway, service.address, *options, "--", "y@inner.test", "jobs@example.com")
    assert result.status == 0
    assert b"\r\nDelivered-To: <info@example.com>, <jobs@example.com>\r\n" in endpoint.messages[0]


@pytest.mark.parametrize(
    ("original", "recipient"),
    [
        ("info@example.com", "x@inner.test"),
        ("x@elsewhere.test", "info@example.com"),
        ("info@example.com", "jobs@example.com"),
        ("J=Ö+x@example.com", "x@inner.test"),
        ("info@example.com", "info@example.com"),
    ],
)
def test_pipe_and_service_decide_alike_which_of_two_addresses_it_is_for(
    gateway: Gateway, service: Service, endpoint: Endpoint, original: str, recipient: str
) -> None:
    arguments = ("--sender=a@b.test", f"--original-recipient={original}", "--", recipient)
    assert hand_over(gateway, service.address, *arguments).status == 0
    assert gateway.run(*arguments, message=MESSAGE).status == 0
    by_service, by_pipe = endpoint.messages
    assert by_service.replace(b"\r\n", b"\n") == by_pipe.replace(b"\r\n", b"\n")


def test_the_envelope_may_stand_in_the_environment(gateway: Gateway, service: Service, endpoint: Endpoint) -> None:
    environ = {"SENDER": "", "RECIPIENT": "info@example.com"}
    result = gateway.run(f"--service={service.address}", message=MESSAGE, environ=environ)
    assert (result.status, result.log) == (0, "")
    assert endpoint.messages[0].startswith(b"Return-Path: <>\r\nDelivered-To: <info@example.com>\r\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--sender=a@b", "--model=crm.lead", "--", "info@example.com"),
        ("info@example.com",),  # the sender may be in the header
        ("--sender=a@b",),  # and so may the recipients
        ("--sender=a@b", "--", "in fo@example.com", "info@example.com"),  # wants quotes
        ("--sender=a\nb@c", "--", "info@example.com"),
        ("--sender=a@b", "--original-recipient=info@example.com", "--original-recipient=", "--", "info@example.com"),
        ("--sender=a>b@c", "--", "info@example.com"),
    ],
)
def test_what_is_not_plain_the_pipe_delivers_itself(
    gateway: Gateway, service: Service, endpoint: Endpoint, arguments: tuple[str, ...]
) -> None:
    result = hand_over(gateway, service.address, *arguments, message=b"To: info@example.com\n" + MESSAGE)
    assert result.ending == (0, "2.0.0", "delivered")
    assert "outcome=" not in service.text()
    assert len(endpoint.messages) == 1


def test_wrong_usage_and_dry_runs_are_the_pipes(gateway: Gateway, service: Service, endpoint: Endpoint) -> None:
    result = hand_over(gateway, service.address, "--bogus", "info@example.com")
    assert (result.status, result.out) == (75, f"{Outcome.SETTINGS.line}\n".encode())
    assert b"Delivered-To" in hand_over(gateway, service.address, "--sender=a@b", "--dry-run", "info@example.com").out
    assert endpoint.messages == []


# --- by itself ---


def by_itself(gateway: Gateway, service: Service, *options: str, **environ: str) -> Result:
    """Run the pipe as the shipped configurations do, with the service's settings file; nobody names the service."""
    arguments = ("--env-file", str(service.env_file), *options, "--sender=ann@b.test", "--", "info@example.com")
    return gateway.run(*arguments, message=MESSAGE, environ={"MAIL_GATEWAY_LMTP": str(service.address), **environ})


def test_a_service_that_has_read_the_same_settings_file_is_given_the_message_unasked(
    gateway: Gateway, service: Service, endpoint: Endpoint
) -> None:
    result = by_itself(gateway, service)
    assert (result.status, result.out, result.err) == (0, b"2.0.0 delivered\n", b"")
    assert endpoint.messages[0].endswith(MESSAGE.replace(b"\n", b"\r\n"))


def test_the_settings_file_may_stand_in_the_environment(gateway: Gateway, service: Service, endpoint: Endpoint) -> None:
    environ = {"MAIL_GATEWAY_ENV_FILE": str(service.env_file)}
    assert by_itself(gateway, service, "--env-file=", **environ).status == 0
    assert endpoint.messages[0].endswith(MESSAGE.replace(b"\n", b"\r\n"))


def test_of_two_databases_on_a_host_each_gets_its_own_mail(
    gateway: Gateway, service: Service, endpoint: Endpoint, tmp_path: Path
) -> None:
    """A copy of the settings at another path, or a link to another file, is the other database's."""
    other = Endpoint()
    try:
        write_settings(tmp_path / "other.env", service.settings | {"URL": other.url, "DATABASE": "other"})
        assert by_itself(gateway, service, f"--env-file={tmp_path}/other.env").status == 0
        environ = {"MAIL_GATEWAY_ENV_FILE": f"{tmp_path}/other.env"}
        assert by_itself(gateway, service, "--env-file=", **environ).status == 0
        assert (len(other.messages), endpoint.messages) == (2, [])
    finally:
        other.close()


@pytest.mark.parametrize("name", ["URL", "DATABASE", "LOGIN", "MODEL", "ALIASES", "NEW_ONE_OF_A_LATER_VERSION"])
def test_a_run_with_settings_in_its_environment_is_no_services(
    gateway: Gateway, service: Service, endpoint: Endpoint, name: str
) -> None:
    value = {"URL": endpoint.url, "LOGIN": "2", "ALIASES": "info@example.com"}.get(name, "other")
    assert by_itself(gateway, service, **{f"MAIL_GATEWAY_{name}": value}).status == 0
    assert endpoint.messages[0].endswith(MESSAGE)


def test_a_service_with_settings_in_its_environment_is_given_nothing_unasked(
    gateway: Gateway, tmp_path: Path, endpoint: Endpoint
) -> None:
    service = Service(tmp_path, URL="http://127.0.0.1:1")
    service.environ["MAIL_GATEWAY_URL"] = "http://127.0.0.1:9"  # another database's
    with running(service):
        service.write_settings(URL=endpoint.url)
        assert by_itself(gateway, service).status == 0
    assert endpoint.messages[0].endswith(MESSAGE)


def test_settings_that_have_changed_count_at_once_and_the_service_has_to_read_them(
    gateway: Gateway, service: Service, endpoint: Endpoint
) -> None:
    service.write_settings(DATABASE="another")
    assert by_itself(gateway, service).status == 0
    service.send_signal(signal.SIGHUP)
    service.wait_for("read anew")
    assert by_itself(gateway, service).status == 0
    by_pipe, by_service = endpoint.messages
    assert by_pipe.endswith(MESSAGE)
    assert by_service.endswith(MESSAGE.replace(b"\n", b"\r\n"))


@pytest.mark.parametrize("options", [("--service=none",), ("--service", "none"), ("--model=crm.lead",)])
def test_the_pipe_can_be_told_to_deliver_by_itself(
    gateway: Gateway, service: Service, endpoint: Endpoint, options: tuple[str, ...]
) -> None:
    assert by_itself(gateway, service, *options).out == b"2.0.0 delivered\n"
    assert endpoint.messages[0].endswith(MESSAGE)


def test_what_a_run_prints_of_itself_is_the_pipes(gateway: Gateway, service: Service, endpoint: Endpoint) -> None:
    assert b"Delivered-To" in by_itself(gateway, service, "--dry-run").out
    for option in "--help", "--version":
        command = gateway.command("--env-file", str(service.env_file), option)
        environ = ENVIRONMENT | {"MAIL_GATEWAY_LMTP": str(service.address)}
        said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environ, check=True).stdout
        assert b"mail-gateway" in said
    assert endpoint.messages == []


def test_where_no_service_is_the_pipe_delivers_as_ever(gateway: Gateway, endpoint: Endpoint, tmp_path: Path) -> None:
    """The safety net: no socket, a socket that nobody listens at, and one that says nothing of its settings."""
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(f"{tmp_path}/killed.sock")
    for path in ("/nonexistent/socket", f"{tmp_path}/killed.sock"):
        environ = {"MAIL_GATEWAY_LMTP": path}
        result = gateway.run("--sender=a@b", "--", "info@example.com", message=MESSAGE, environ=environ)
        assert result.out == b"2.0.0 delivered\n"
    assert [message.endswith(MESSAGE) for message in endpoint.messages] == [True, True]


def test_a_service_from_before_an_upgrade_is_given_nothing_unasked(
    gateway: Gateway, endpoint: Endpoint, other: Callable[["Script"], Path]
) -> None:
    path = other(say(b"220 x\r\n", b"250-x\r\n250-XORCPT\r\n250 y\r\n"))
    environ = {"MAIL_GATEWAY_LMTP": str(path)}
    result = gateway.run("--sender=a@b", "--", "info@example.com", message=MESSAGE, environ=environ)
    assert result.ending == (0, "2.0.0", "delivered")


# --- accidents ---

Script = Callable[[socket.socket], None]


def say_nothing(connection: socket.socket) -> None:
    connection.recv(1)  # until the other side has gone


def say(*answers: bytes) -> Script:
    """Return what gives these answers, each to a command, and then says nothing."""

    def play(connection: socket.socket) -> None:
        with connection.makefile("rb") as file:
            for answer in answers:
                connection.sendall(answer)
                if answer is not answers[-1]:
                    file.readline()
            while file.readline():
                pass

    return play


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Callable[[Script], Path]]:
    """Somebody else who listens where the service should."""
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as listener:

        def listen(script: Script) -> Path:
            def serve() -> None:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):  # the pipe has heard enough
                    script(connection)

            listener.bind(str(path))
            listener.listen()
            threading.Thread(target=serve, daemon=True).start()
            return path

        yield listen


@pytest.mark.parametrize(
    "script",
    [
        say_nothing,
        lambda connection: None,  # closes
        say(b"220 "),  # half an answer
        say(b"SSH-2.0-OpenSSH_9.2\r\n"),
        say(b"2" * 2**18),  # an answer without end
        say(b"421 4.3.2 too many connections\r\n"),
        say(b"220 x\r\n", b"500 5.5.1 what is LHLO?\r\n"),
        say(b"220 x\r\n", b"250-x\r\n250 y\r\n", b"451 4.3.0 not now\r\n"),
        say(b"220 x\r\n", b"250 x\r\n", b"250 ok\r\n", b"250 ok\r\n"),  # and then nothing
        say(b"220 x\r\n", b"250 x\r\n", b"250 ok\r\n", b"553 5.1.3 what address is this?\r\n"),
    ],
)
def test_the_pipe_delivers_itself_when_nobody_answers_as_a_service(
    gateway: Gateway, endpoint: Endpoint, other: Callable[[Script], Path], script: Script
) -> None:
    assert hand_over(gateway, other(script)).ending == (0, "2.0.0", "delivered")
    assert endpoint.messages[0].endswith(MESSAGE)


@pytest.mark.parametrize(
    "address",
    [
        "/nonexistent/socket",
        "127.0.0.1:1",
        "127.0.0.1:99999",
        "127.0.0.1:-1",
        "localhost",
        "[::1]:1",
        "nonsense:x",
        "/",
    ],
)
def test_the_pipe_delivers_itself_when_there_is_no_service(gateway: Gateway, endpoint: Endpoint, address: str) -> None:
    assert hand_over(gateway, address).ending == (0, "2.0.0", "delivered")
    assert endpoint.messages[0].endswith(MESSAGE)


@pytest.mark.parametrize("says_so", [True, False])
def test_a_service_is_told_the_original_recipient_as_it_understands_it(
    gateway: Gateway, other: Callable[[Script], Path], says_so: bool
) -> None:
    """Pipe and service are not upgraded at the same moment."""
    said = []

    def listen(connection: socket.socket) -> None:
        extension = b"250-XORCPT\r\n" * says_so
        answers = [b"220 x\r\n", b"250-x\r\n%b250 HELP\r\n" % extension, b"250 2.0.0 x\r\n", b"550 5.1.1 x\r\n"]
        with connection.makefile("rb") as file:
            for answer in [*answers, b"550 5.1.1 x\r\n"]:
                connection.sendall(answer)
                said.append(file.readline())

    arguments = ("--sender=a@b.test", "--original-recipient=j=ö@b.test", "--", "x@inner.test")
    assert hand_over(gateway, other(listen), *arguments).status == 67
    recipients = [line.decode() for line in said if line.startswith(b"RCPT")]
    if says_so:
        assert recipients == ["RCPT TO:<x@inner.test> ORCPT=rfc822;j+3D+C3+B6@b.test\r\n"]
    else:
        assert recipients == ["RCPT TO:<j=ö@b.test>\r\n", "RCPT TO:<x@inner.test>\r\n"]


def test_what_the_service_was_answered_the_pipe_does_not_ask_again(
    gateway: Gateway, service: Service, endpoint: Endpoint
) -> None:
    """The service died with the answer: the next try is the pipe's, and the database would mail the sender again."""
    endpoint.answers = [returns(False), fault(1, "it was asked again")]
    message = b"Received: by mx.test (Postfix) with ESMTP id 4XyZabc12; now\n" + MESSAGE
    arguments = ("--sender=ann@b.test", "--queue-id=4XyZabc12", "--", "info@example.com")
    assert hand_over(gateway, service.address, *arguments, message=message).out == b"2.0.0 accepted, nothing to add\n"
    journal = service.settings["JOURNAL"]
    assert gateway.run(*arguments, message=message, JOURNAL=journal).ending == (0, "2.0.0", "accepted")


@pytest.mark.parametrize("end", [b"", b"25", b"250", b"nonsense\r\n", b"250-2.0.0 more\r\n"], ids=lambda end: repr(end))
def test_once_the_service_has_begun_to_take_it_a_broken_connection_means_try_again(
    gateway: Gateway, endpoint: Endpoint, other: Callable[[Script], Path], end: bytes
) -> None:
    def break_off(connection: socket.socket) -> None:
        with connection.makefile("rb") as file:
            for answer in (b"220 x\r\n", b"250 x\r\n", b"250 x\r\n", b"250 x\r\n", b"354 go on\r\n"):
                connection.sendall(answer)
                file.readline()
            while file.readline() not in (b".\r\n", b""):
                pass
            connection.sendall(end)

    result = hand_over(gateway, other(break_off))
    assert (result.status, result.out) == (75, handover.BROKEN)
    assert LINE.fullmatch(handover.BROKEN)
    assert endpoint.messages == []


@contextlib.contextmanager
def handing_over(
    gateway: Gateway, service: Service, endpoint: Endpoint, message: bytes = MESSAGE
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the pipe, and go on when the database has the message."""
    command = gateway.command(f"--service={service.address}", "--sender=a@b", "--", "info@example.com")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdin
        process.stdin.write(message)
        process.stdin.close()
        while not endpoint.messages:
            assert process.poll() is None
        yield process


def test_a_service_that_is_killed_with_the_message_leaves_it_in_the_queue(
    gateway: Gateway, tmp_path: Path, endpoint: Endpoint
) -> None:
    endpoint.answers = [hang]
    service = Service(tmp_path, URL=endpoint.url)
    service.start()
    with handing_over(gateway, service, endpoint) as process:
        service.stop(signal.SIGKILL)
        assert process.wait(timeout=60) == 75
        assert process.stdout
        assert process.stdout.read() == handover.BROKEN
    assert len(endpoint.messages) == 1


def test_after_a_pipe_that_was_killed_while_the_service_works_the_next_one_is_told_the_answer(
    gateway: Gateway, service: Service, endpoint: Endpoint, gate: Gate
) -> None:
    message = b"Received: by mx.test (Postfix) with ESMTP id 4XyZabc12; now\n" + MESSAGE
    with handing_over(gateway, service, endpoint, message) as process:
        process.kill()
    gate.opened.set()
    service.wait_for("outcome=delivered")
    assert hand_over(gateway, service.address, "--sender=a@b", "--", "info@example.com", message=message).status == 0
    assert 'cause="answered before"' in service.text()
    assert len(endpoint.messages) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_the_service_works_leaves_the_mail_in_the_queue(
    gateway: Gateway, service: Service, endpoint: Endpoint, number: signal.Signals
) -> None:
    gate = Gate()
    endpoint.answers = [gate]
    with handing_over(gateway, service, endpoint) as process:
        process.send_signal(number)
        assert process.wait(timeout=60) == 75
        assert process.stdout
        assert process.stdout.read() == b"4.3.0 mail gateway failed, will try again\n"
    gate.opened.set()


def test_a_large_message_arrives_whole(gateway: Gateway, service: Service, endpoint: Endpoint) -> None:
    body = b"".join(b"%d %s\n" % (number, b"." * (number % 70)) for number in range(100_000)) + b".\n..\n\r\n."
    assert hand_over(gateway, service.address, message=b"Subject: x\n\n" + body).status == 0
    assert endpoint.messages[0].endswith(b"\r\n\r\n" + body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") + b"\r\n")


@given(st.lists(st.sampled_from([b"a", b".", b"\r", b"\n", b"\r\n", b"\r\n.", b"..", b"\n."]).map(bytes)), st.data())
def test_lines_are_made_those_of_smtp_however_they_are_cut(parts: list[bytes], data: st.DataObject) -> None:
    """RFC 5321, 4.5.2: dots at the beginning of a line are doubled, and CRLF ends all lines, also the last."""
    message = b"".join(parts)
    file = io.BytesIO(message)
    chunks = iter(lambda: file.read(data.draw(st.integers(1, 4))), b"")
    sent = b"".join(handover._transparent(chunks))
    lines = message.replace(b"\r\n", b"\n").split(b"\n")
    expected = b"\r\n".join(b"." * line.startswith(b".") + line for line in lines)
    assert sent == (expected + b"\r\n" * bool(lines[-1])) + b".\r\n"


def test_nothing_heavy_is_imported_to_hand_over(gateway: Gateway, service: Service) -> None:
    """What it costs is close to a bare interpreter; benchmarks/cpu.py says how close."""
    command = gateway.command(f"--service={service.address}", "--sender=a@b", "--", "info@example.com")
    bare, ours = (
        {
            line.rpartition(b"|")[2].strip().decode()
            for line in subprocess.run(
                [sys.executable, "-X", "importtime", *arguments],
                input=MESSAGE,
                capture_output=True,
                env=ENVIRONMENT,
                check=True,
            ).stderr.splitlines()
        }
        for arguments in (["-c", "pass"], command[1:])
    )
    assert ours - bare - {"__future__", "_signal"} == {"_socket", "mailgate", "mailgate.arguments", "mailgate.handover"}
