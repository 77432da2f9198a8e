"""Post: what is ambiguous once a request has begun to leave, and what surely never reached the database."""

import gzip
import socket
import threading
import time
from pathlib import Path

import pytest
from support.endpoint import Answer, Endpoint, fault, http, returns, traceback
from support.gateway import Gateway

AMBIGUOUS = (75, "4.4.2", "cut_off")
OK = returns(5).partition(b"\r\n\r\n")[2]
ZIPPED = gzip.compress(OK)
BOMB = gzip.compress(b"<methodResponse>" + bytes(50 * 2**20))

# Answers that a broken server or proxy gives, and that an HTTP library fails on in its own ways.
BAD = {
    "two lengths": http(200, OK, "Content-Length: 7"),
    "a list of lengths": http(200, OK).replace(b"Content-Length: ", b"Content-Length: 7, "),
    "a length that is no number": http(200, OK[:-9]).replace(b"Content-Length: ", b"Content-Length: x"),
    "a negative length": http(200, OK[:-9]).replace(b"Content-Length: ", b"Content-Length: -"),
    "a chunk of no size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + OK,
    "a chunk that breaks off": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n" + OK,
    "a status that is no number": b"HTTP/1.1 abc OK\r\n\r\n" + OK,
    "a status of five digits": b"HTTP/1.1 20000 OK\r\n\r\n" + OK,
    "a line without end": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
    "bytes in the header": b"HTTP/1.1 200 \xff\xfe\r\n\xff: \xff\r\nContent-Length: 3\r\n\r\nabc",
    "HTTP 0.9": OK,
    "an unknown encoding": http(200, ZIPPED, "Content-Encoding: br"),
    "gzip that is none": http(200, OK, "Content-Encoding: gzip"),
    "gzip that breaks off": http(200, ZIPPED[:-20], "Content-Encoding: gzip"),
    "gzip of a sea of zeros": http(200, BOMB, "Content-Encoding: gzip"),
}


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD)
def test_what_answers_badly_is_ambiguous_and_not_asked_again(
    gateway: Gateway, endpoint: Endpoint, answer: Answer
) -> None:
    endpoint.answers = [answer, returns(5)]
    message = b"Message-ID: <a@b>\n\n"
    assert gateway.run("info@example.com", message=message, PATIENCE=5).ending == AMBIGUOUS
    # nor does the mail server's next try ask, for the database may be working on it
    assert gateway.run("info@example.com", message=message).ending == (75, "4.3.0", "in_progress")
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    "kind", ["ValueError('x')", "UnicodeDecodeError('x', b'', 0, 1, 'x')", "requests.exceptions.InvalidHeader('x')",
             "requests.exceptions.ContentDecodingError('x')", "AssertionError", "MemoryError", "OSError('x')"],
)  # fmt: skip
def test_whatever_the_library_raises_after_the_body_has_begun_is_ambiguous(
    gateway: Gateway, endpoint: Endpoint, tmp_path: Path, kind: str
) -> None:
    """A library of another version: its adapter sends the request, and fails in its own way at the answer."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sitecustomize.py").write_text(
        "import requests.adapters\n"
        "send = requests.adapters.HTTPAdapter.send\n"
        "def fail(*arguments, **named):\n"
        "    send(*arguments, **named)\n"
        f"    raise {kind}\n"
        "requests.adapters.HTTPAdapter.send = fail\n"
    )
    endpoint.answers = [returns(5)]
    result = gateway.run("info@example.com", environ={"PYTHONPATH": str(tmp_path / "other")}, PATIENCE=5)
    assert result.ending == AMBIGUOUS
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("name", ["gzip", "X-GZIP"])
def test_an_answer_that_a_proxy_compresses_is_read(gateway: Gateway, endpoint: Endpoint, name: str) -> None:
    endpoint.answers = [http(200, ZIPPED, f"Content-Encoding: {name}")]
    assert gateway.run("info@example.com").ending == (0, "2.0.0", "delivered")
    no_route = fault(1, traceback("ValueError: No possible route found for incoming message"))
    endpoint.answers = [
        http(200, gzip.compress(no_route.partition(b"\r\n\r\n")[2]), f"Content-Encoding: {name}"),
    ]
    assert gateway.run("info@example.com").ending == (67, "5.1.1", "unknown_recipient")


@pytest.mark.parametrize("login", ["2", "robot"])
def test_a_stalled_tls_handshake_is_no_answer(gateway: Gateway, login: str) -> None:
    """Nothing has been sent: it is tried again within the patience, and the next run may begin at once."""
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            try:
                while True:
                    connections.append(listener.accept())
            except OSError:
                pass

        threading.Thread(target=accept, daemon=True).start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        for _ in range(2):
            began, before = time.monotonic(), len(connections)
            result = gateway.run("info@example.com", URL=url, LOGIN=login, CONNECT_TIMEOUT=0.3, PATIENCE=4)
            assert result.ending == (75, "4.4.1", "no_answer")
            assert len(connections) > before + 1
            assert time.monotonic() - began < 60
        listener.shutdown(socket.SHUT_RDWR)
    for connection, _ in connections:
        connection.close()


def test_a_failure_after_one_that_was_not_taken_is_seen_for_itself(gateway: Gateway, endpoint: Endpoint) -> None:
    """The first try was answered by 503; then nobody listens any more: nothing has reached the database."""

    def answer(connection: socket.socket, request: object) -> None:
        connection.sendall(http(503))
        endpoint.close()

    endpoint.answers = [answer]
    assert gateway.run("info@example.com", PATIENCE=2).ending == (75, "4.4.1", "no_answer")
