"""The resident service: LMTP (RFC 2033) as an MTA speaks it, over a socket, and the same endings as the pipe's."""

import contextlib
import itertools
import json
import re
import resource
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.endpoint import KEPT_ALIVE, Answer, Endpoint, Gate, Request, cut, fault, http, returns, traceback
from support.gateway import KEYS
from support.service import Client, Service, running

from mailgate.outcome import Outcome
from mailgate.service.connection import IN_MEMORY_BYTES
from mailgate.service.service import MAX_WAITING

NO_ROUTE = "ValueError: No possible route found for incoming message from a@b.test to c@example.com"


def mail(number: int = 1, text: str = "body") -> bytes:
    return f"Message-ID: <{number}@outside.test>\r\nSubject: hello\r\n\r\n{text}\r\n".encode()


def test_one_post_and_an_answer_for_each_recipient(service: Service, endpoint: Endpoint) -> None:
    with service.client() as client:
        client.dialogue("""
            c: MAIL FROM:<ann@outside.test>
            s: 250 2.0.0 OK
            c: RCPT TO:<info@example.com>
            s: 250 2.1.5 one of ours
            c: RCPT TO:<x@elsewhere.test>
            s: 550 5.1.1 no such address here
            c: RCPT TO:<jobs@example.com>
            s: 250 2.1.5 one of ours
            c: DATA
            s: 354 End data with <CR><LF>.<CR><LF>
            c: Message-ID: <1@outside.test>
            c: Subject: hello
            c:
            c: body
            c: .
            s: 250 2.0.0 delivered
            s: 250 2.0.0 delivered
        """)
    added = ["Return-Path: <ann@outside.test>", "Delivered-To: <info@example.com>, <jobs@example.com>"]
    assert endpoint.messages == ["\r\n".join([*added, ""]).encode() + mail()]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (returns(False), Outcome.ACCEPTED),
        (fault(1, traceback(NO_ROUTE, "message_process", "message_route")), Outcome.UNKNOWN_RECIPIENT),
        (http(413), Outcome.TOO_LARGE),
        (http(503), Outcome.DATABASE_DOWN),
        (fault(3, "Access Denied"), Outcome.ACCESS_DENIED),
        (cut, Outcome.CUT_OFF),
        (fault(99, "what is this"), Outcome.DATABASE_ERROR),
    ],
)
def test_an_ending_is_the_pipes(service: Service, endpoint: Endpoint, answer: Answer, outcome: Outcome) -> None:
    endpoint.answers = [answer]
    with service.client() as client:
        assert client.deliver(mail(), "info@example.com", "jobs@example.com") == [outcome.reply] * 2
    assert f"outcome={outcome.name.lower()} " in service.text()


@pytest.mark.parametrize("outcome", Outcome, ids=lambda outcome: outcome.name)
def test_a_reply_means_what_the_exit_status_means(outcome: Outcome) -> None:
    assert outcome.reply[0] == outcome.status_code[0] == {0: "2", 75: "4"}.get(outcome.exit_status, "5")


def test_what_the_service_can_do_is_said(service: Service) -> None:
    with service.client(greet=False) as client:
        client.dialogue("""
            s: 220 ...
            c: LHLO localhost
            s: 250-...
            s: 250-SIZE 100614144
            s: 250-8BITMIME
            s: 250-SMTPUTF8
            s: 250-PIPELINING
            s: 250-ENHANCEDSTATUSCODES
            s: 250-XORCPT
            s: 250-XSETTINGS ...
            s: 250 HELP
        """)


@pytest.mark.parametrize(
    ("parameters", "taken"),
    [
        ("ORCPT=rfc822;info@example.com", "info@example.com"),
        ("orcpt=RFC822;Info+2Btag@example.com", "Info+tag@example.com"),
        ("ORCPT=rfc822;j+C3+B6rg+3D@example.com", "jörg=@example.com"),
        ("ORCPT=rfc822;+FF@example.com", "\udcff@example.com"),
    ],
)
def test_a_recipient_may_have_an_original(service: Service, endpoint: Endpoint, parameters: str, taken: str) -> None:
    with service.client() as client:
        client.dialogue(f"""
            c: MAIL FROM:<ann@outside.test>
            s: 250 2.0.0 OK
            c: RCPT TO:<x@inner.test>
            s: 550 5.1.1 no such address here
            c: RCPT TO:<x@inner.test> {parameters}
            s: 250 2.1.5 one of ours
            c: DATA
            s: 354 ...
            c: Message-ID: <1@outside.test>
            c:
            c: .
            s: 250 2.0.0 delivered
        """)
    assert f"Delivered-To: <{taken}>\r\n".encode("utf-8", "surrogateescape") in endpoint.messages[0]


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ("ORCPT=rfc822;", "555 5.5.4 "),
        ("ORCPT=rfc822;a=b@example.com", "555 5.5.4 "),
        ("ORCPT=rfc822;a+4x@example.com", "555 5.5.4 "),
        ("ORCPT=x400;info@example.com", "555 5.5.4 "),
        ("ORCPT=rfc822;info@example.com NOTIFY=NEVER", "555 5.5.4 "),
        ("ORCPT=rfc822;info@example.com+0D+0AX:y", "550 5.1.1 "),  # no address has a control character
    ],
)
def test_what_is_no_original_recipient_is_no_parameter(service: Service, parameters: str, code: str) -> None:
    with service.client() as client:
        client.dialogue(f"""
            c: MAIL FROM:<a@b.test> ORCPT=rfc822;info@example.com
            s: 555 5.5.4 ...
            c: MAIL FROM:<a@b.test>
            s: 250 2.0.0 OK
            c: RCPT TO:<x@inner.test> {parameters}
            s: {code}...
        """)


def test_every_answer_has_its_status_code(service: Service) -> None:
    """RFC 2034, 4: all but the greeting and the answer to LHLO."""
    with service.client() as client:
        client.dialogue("""
            c: NOOP
            s: 250 2.0.0 OK
            c: RSET
            s: 250 2.0.0 OK
            c: FOO
            s: 500 5.5.2 ...
            c: DATA
            s: 503 5.5.1 ...
            c: RCPT TO:<a@b>
            s: 503 5.5.1 ...
            c: MAIL
            s: 501 5.5.4 ...
            c: MAIL FROM:<a@b> X=y
            s: 555 5.5.4 ...
            c: MAIL FROM:a
            s: 553 5.1.3 ...
            c: HELO x
            s: 500 5.5.2 ...
            c: MAIL FROM:<a@b>
            s: 250 2.0.0 OK
            c: MAIL FROM:<a@b>
            s: 503 5.5.1 ...
            c: VRFY a
            s: 252 2.5.0 ...
            c: EXPN a
            s: 502 5.5.1 ...
            c: HELP
            s: 250 2.0.0 ...
            c: QUIT
            s: 221 2.0.0 Bye
        """)


def test_the_log_has_the_pipes_line_with_the_queue_id_of_the_mta(service: Service) -> None:
    """LMTP has no place for the queue id, but the MTA has just written it on top."""
    received = b"Received: from x (y [1.2.3.4])\r\n\tby mx.test (Postfix) with ESMTP id 4XyZabc12\r\n\tfor <z>; now\r\n"
    with service.client() as client:
        client.deliver(received + b"Received: by other with SMTP id OTHER99; then\r\n" + mail(), "info@example.com")
    (line,) = [line for line in service.text().splitlines() if not line.startswith("event=")]
    assert re.findall(r"(\w+)=", line)[: len(KEYS)] == KEYS
    assert line.startswith("queue_id=4XyZabc12 message_id=<1@outside.test> sender=ann@outside.test ")


def test_the_log_may_be_json(tmp_path: Path, endpoint: Endpoint) -> None:
    with running(Service(tmp_path, URL=endpoint.url, LOG_FORMAT="json")) as service, service.client() as client:
        client.deliver(mail(), "info@example.com")
        lines = [json.loads(line) for line in service.text().splitlines()]
    (facts,) = [line for line in lines if "event" not in line]
    assert list(facts) == KEYS
    assert facts["outcome"] == "delivered"
    assert facts["recipients"] == ["info@example.com"]
    assert facts["record_id"] == 7


@pytest.mark.parametrize(
    ("sender", "return_path"),
    [
        ("", b"<>"),
        ("a@b@c.test", b'<"a@b"@c.test>'),  # what the MTA took, we take
        ('"a b"@c.test', b'<"a b"@c.test>'),
        ("a..b.@c.test", b"<a..b.@c.test>"),
        ("@relay.test:a@c.test", b"<a@c.test>"),
        ("j\u00f6rg@c.test", "<j\u00f6rg@c.test>".encode()),
        ("\udcfc@c.test", b"<\xfc@c.test>"),
        ("a(b)@[127.0.0.1]", b'<"a(b)"@[127.0.0.1]>'),
    ],
)
def test_a_sender_is_taken_as_it_is(service: Service, endpoint: Endpoint, sender: str, return_path: bytes) -> None:
    with service.client() as client:
        assert client.deliver(mail(), "info@example.com", sender=sender) == ["250 2.0.0 delivered"]
    assert endpoint.messages[0].startswith(b"Return-Path: " + return_path + b"\r\n")


@pytest.mark.parametrize("size", [0, 1, 2**16, 2**16 + 1, 3 * 2**20])
def test_bytes_are_exact(service: Service, endpoint: Endpoint, size: int) -> None:
    body = (bytes(range(256)) * (size // 256 + 1))[:size].replace(b"\r", b"").replace(b"\n.\n", b"\n..\n")
    message = b"Message-ID: <1@b>\r\n\r\n.\r.\n.\r\n..\r\n" + body + b"\r\n"
    with service.client() as client:
        assert client.deliver(message, "info@example.com") == ["250 2.0.0 delivered"]
    assert endpoint.messages[0].endswith(b"<info@example.com>\r\n" + message)


def test_commands_may_come_all_at_once(service: Service, endpoint: Endpoint) -> None:
    """RFC 2920: also the next message's, right behind the last one's end."""
    with service.client() as client:
        client.dialogue("""
            c: MAIL FROM:<a@b.test>
            c: RCPT TO:<info@example.com>
            c: DATA
            c: Message-ID: <1@outside.test>
            c: Subject: hello
            c:
            c: body
            c: .
            c: MAIL FROM:<a@b.test>
            c: RCPT TO:<info@example.com>
            c: DATA
            c: Message-ID: <2@outside.test>
            c: Subject: hello
            c:
            c: body
            c: .
            c: QUIT
            s: 250 2.0.0 OK
            s: 250 2.1.5 one of ours
            s: 354 ...
            s: 250 2.0.0 delivered
            s: 250 2.0.0 OK
            s: 250 2.1.5 one of ours
            s: 354 ...
            s: 250 2.0.0 delivered
            s: 221 2.0.0 Bye
        """)
    assert [message[-len(mail()) :] for message in endpoint.messages] == [mail(1), mail(2)]


def test_commands_behind_a_large_message_keep_their_order(service: Service) -> None:
    """Also those that come while the message is being taken."""
    envelope = b"MAIL FROM:<a@b.test>\r\nRCPT TO:<info@example.com>\r\n"
    with service.client() as client:
        for number in range(10):
            client.send(envelope + b"DATA\r\n" + mail(number, "x" * 2 * IN_MEMORY_BYTES) + b".\r\n" + envelope)
            time.sleep(0.0002 * number)
            client.send(b"RCPT TO:<jobs@example.com>\r\nRSET\r\n")
            assert [client.answer()[:3] for _ in range(8)] == ["250", "250", "354", *["250"] * 5]


def test_the_connection_to_the_database_is_kept(service: Service, endpoint: Endpoint) -> None:
    endpoint.answers = [returns(7).replace(b"Connection: close", KEPT_ALIVE)]
    with service.client() as client:
        for number in range(20):
            client.deliver(mail(number), "info@example.com")
    assert len(endpoint.messages) == 20
    # the questions for the alias list, which are answered with a goodbye, have connections of their own
    assert endpoint.connections - len([1 for request in endpoint.requests if request.path.endswith("/common")]) == 1


def test_a_database_that_closed_a_kept_connection_is_connected_again(service: Service, endpoint: Endpoint) -> None:
    def answer_and_close(connection: socket.socket, request: Request) -> None:
        connection.sendall(returns(7).replace(b"Connection: close", KEPT_ALIVE))

    endpoint.answers = [answer_and_close]
    service.wait_for("from version 14 on")
    with service.client() as client:
        for number in range(5):
            assert endpoint.closed.acquire(timeout=60)  # that for the alias list, and then the last message's
            assert client.deliver(mail(number), "info@example.com") == ["250 2.0.0 delivered"]


def test_an_interim_answer_does_not_become_the_next_message_s(service: Service, endpoint: Endpoint) -> None:
    """RFC 9110, 15.2: what is meant for the first message comes later on the same connection."""

    def answer_later(connection: socket.socket, request: Request) -> None:
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        connection.recv(1)
        connection.sendall(returns(7))

    endpoint.answers = [answer_later, fault(3, "Access Denied")]
    with service.client() as client:
        assert client.deliver(mail(1), "info@example.com") == [Outcome.CUT_OFF.reply]
        assert client.deliver(mail(2), "info@example.com") == [Outcome.ACCESS_DENIED.reply]


def send(client: Client, number: int, text: str = "body") -> None:
    """Give a message and leave its answer for later."""
    client.begin("info@example.com")
    assert client.say("DATA").startswith("354 ")
    client.send(mail(number, text) + b".\r\n")


def test_no_more_calls_at_a_time_than_workers_and_none_is_lost(tmp_path: Path, endpoint: Endpoint, gate: Gate) -> None:
    with contextlib.ExitStack() as closing:
        service = closing.enter_context(running(Service(tmp_path, URL=endpoint.url, WORKERS=3)))
        clients = [closing.enter_context(service.client()) for _ in range(12)]
        for number, client in enumerate(clients):
            send(client, number)
        gate.wait_for(3)
        gate.opened.set()
        assert [client.answer() for client in clients] == ["250 2.0.0 delivered"] * 12
    assert gate.most == 3
    assert len(endpoint.messages) == 12


def test_when_too_many_wait_new_mail_is_deferred(tmp_path: Path, endpoint: Endpoint, gate: Gate) -> None:
    with contextlib.ExitStack() as closing:
        service = closing.enter_context(running(Service(tmp_path, URL=endpoint.url, WORKERS=1)))
        clients = [closing.enter_context(service.client()) for _ in range(MAX_WAITING + 1)]
        for number, client in enumerate(clients):
            send(client, number)
        gate.wait_for(1)
        late = closing.enter_context(service.client())
        late.begin("info@example.com")
        assert late.say("DATA") == Outcome.BUSY.reply
        gate.opened.set()
        assert [client.answer() for client in clients] == ["250 2.0.0 delivered"] * len(clients)
        assert late.data(mail(-1)) == ["250 2.0.0 delivered"]


def test_small_mail_passes_large_mail(tmp_path: Path, endpoint: Endpoint, gate: Gate) -> None:
    """One worker is kept free of large messages, however many there are."""
    with contextlib.ExitStack() as closing:
        service = closing.enter_context(running(Service(tmp_path, URL=endpoint.url, WORKERS=2)))
        clients = [closing.enter_context(service.client()) for _ in range(4)]
        for number, client in enumerate(clients):
            send(client, number, "large\r\n" * 2**18)
        gate.wait_for(1)
        endpoint.answers = [returns(8)]
        assert closing.enter_context(service.client()).deliver(mail(9), "info@example.com") == ["250 2.0.0 delivered"]
        gate.opened.set()
        assert [client.answer() for client in clients] == ["250 2.0.0 delivered"] * 4


def test_the_same_message_is_delivered_once_at_a_time(service: Service, endpoint: Endpoint, gate: Gate) -> None:
    with contextlib.ExitStack() as closing:
        clients = [closing.enter_context(service.client()) for _ in range(4)]
        send(clients[0], 1)
        gate.wait_for(1)
        for client in clients[1:]:
            send(client, 1)
        with ThreadPoolExecutor() as pool:
            answers = list(pool.map(Client.answer, clients[1:]))  # they have waited for as long as the patience lasts
        gate.opened.set()
        assert sorted([*answers, clients[0].answer()]) == ["250 2.0.0 delivered", *[Outcome.IN_PROGRESS.reply] * 3]
    assert gate.most == 1


def test_a_client_that_goes_before_its_message_has_a_worker_takes_it_with_him(
    tmp_path: Path, endpoint: Endpoint, gate: Gate
) -> None:
    """Nobody would hear the answer, and the MTA comes again."""
    with contextlib.ExitStack() as closing:
        service = closing.enter_context(running(Service(tmp_path, URL=endpoint.url, WORKERS=1)))
        first, second = (closing.enter_context(service.client()) for _ in range(2))
        send(first, 1)
        gate.wait_for(1)
        with service.client() as gone:
            send(gone, 2)
        send(second, 3)
        gate.opened.set()
        assert [first.answer(), second.answer()] == ["250 2.0.0 delivered"] * 2
    assert [message[-len(mail()) :] for message in endpoint.messages] == [mail(1), mail(3)]


def test_stopped_it_answers_what_is_under_way_and_turns_the_rest_away(
    tmp_path: Path, endpoint: Endpoint, gate: Gate
) -> None:
    with contextlib.ExitStack() as closing:
        service = Service(tmp_path, URL=endpoint.url, WORKERS=1)
        closing.enter_context(running(service))
        runs, waits, receives, idles = (closing.enter_context(service.client()) for _ in range(4))
        send(runs, 1)
        gate.wait_for(1)
        send(waits, 2)
        receives.begin("info@example.com")
        assert receives.say("DATA").startswith("354 ")
        service.send_signal(signal.SIGTERM)
        assert idles.answer() == "421 4.3.2 service stops"
        assert receives.answer() == "421 4.3.2 service stops"
        assert waits.answer() == Outcome.BUSY.reply
        with pytest.raises(OSError):  # noqa: PT011 whichever: nobody listens
            service.client()
        gate.opened.set()
        assert runs.answer() == "250 2.0.0 delivered"
        assert runs.answer() == "421 4.3.2 service stops"
        assert service.process
        assert service.process.wait(timeout=30) == 0
    assert len(endpoint.messages) == 1
    assert not service.address.exists()


def test_it_stops_in_order_where_no_descriptor_is_left(tmp_path: Path, endpoint: Endpoint, gate: Gate) -> None:
    """Not even for a word to systemd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind(str(tmp_path / "notify"))
        service = Service(tmp_path, URL=endpoint.url)
        service.environ = service.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with running(service), service.client() as client:
            assert service.process
            service.wait_for("from version 14 on")
            send(client, 1)
            gate.wait_for(1)
            limit = next(number for number in itertools.count() if number not in service.open_files)
            resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
            service.send_signal(signal.SIGTERM)
            while notices.recv(100) != b"READY=1":  # the last that it could say
                pass
            with contextlib.suppress(OSError):  # whichever: nobody listens any more
                while True:
                    service.client(greet=False).close()
            gate.opened.set()
            assert client.answer() == "250 2.0.0 delivered"
            assert service.process.wait(timeout=30) == 0


def test_sighup_reads_the_settings_anew_and_keeps_the_old_ones_where_they_are_wrong(service: Service) -> None:
    with service.client() as client:
        client.dialogue("""
            c: MAIL FROM:<ann@outside.test>
            s: 250 2.0.0 OK
            c: RCPT TO:<info@other.test>
            s: 550 5.1.1 no such address here
        """)
        service.write_settings(ALIAS_DOMAINS="other.test")
        service.send_signal(signal.SIGHUP)
        service.wait_for("read anew")
        client.dialogue("""
            c: RCPT TO:<info@other.test>
            s: 250 2.1.5 one of ours
        """)
        service.write_settings(ALIAS_DOMAINS="other.test", WORKERS="many")
        service.send_signal(signal.SIGHUP)
        service.wait_for("the settings stay as they were: MAIL_GATEWAY_WORKERS")
        client.dialogue("""
            c: RCPT TO:<jobs@other.test>
            s: 250 2.1.5 one of ours
            c: DATA
            s: 354 ...
            c: Subject: hello
            c:
            c: .
            s: 250 2.0.0 delivered
            s: 250 2.0.0 delivered
        """)


def test_a_full_disk_puts_the_message_off_for_each_recipient(service: Service, endpoint: Endpoint) -> None:
    """What has no answer of its own would take the next command's for it."""
    assert service.process
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (2 * IN_MEMORY_BYTES, 2 * IN_MEMORY_BYTES))
    with service.client() as client:
        client.begin("info@example.com", "jobs@example.com", "sales@example.com")
        assert client.data(mail(1, "x" * 4 * IN_MEMORY_BYTES), 3) == [Outcome.FAILED.reply] * 3
        assert client.say("NOOP") == "250 2.0.0 OK"
        assert client.deliver(mail(2), "info@example.com") == ["250 2.0.0 delivered"]
    assert len(endpoint.messages) == 1


def test_who_was_refused_is_in_the_log_of_the_message(service: Service) -> None:
    with service.client() as client:
        client.dialogue("""
            c: MAIL FROM:<ann@outside.test>
            s: 250 2.0.0 OK
            c: RCPT TO:<x@elsewhere.test>
            s: 550 5.1.1 no such address here
            c: RCPT TO:<info@example.com>
            s: 250 2.1.5 one of ours
            c: DATA
            s: 354 ...
            c: Subject: hello
            c:
            c: .
            s: 250 2.0.0 delivered
        """)
    assert (
        "recipients=info@example.com original_recipients= unmatched=x@elsewhere.test outcome=delivered"
        in service.text()
    )
