"""What a caller may cost mail_database before it knows him: memory, connections, time."""

# ruff: noqa: E501  # bodies read better unbroken

import contextlib
import gzip
import os
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.mail_database_server import PASSWORD, ROOT, Server, program_with

from mail_database import calls, listen

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(f"sqlite:///{tmp_path_factory.mktemp('abuse')}/mail.db")
    yield server
    server.stop()


def peak(server: Server) -> float:
    """The most memory that the server has ever had, in MB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def connect(server: Server) -> socket.socket:
    host, port = server.url.rpartition("/")[2].split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def post(server: Server, body: bytes, path: str = "object", head: str = "") -> bytes:
    """Post a body and return the whole answer."""
    with connect(server) as connection:
        fields = f"Host: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{head}"
        connection.sendall(f"POST /xmlrpc/2/{path} HTTP/1.1\r\n{fields}\r\n".encode() + body)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def call(password: str = PASSWORD, database: str = "mydatabase", user: int = 2, size: int = 0) -> bytes:
    raw = xmlrpc.client.Binary(b"x" * size)
    values = (database, user, password, "mail.thread", "message_process", [False, raw])
    return xmlrpc.client.dumps(values, "execute_kw").encode()


DENIED = b"<string>Access Denied</string>"


@pytest.mark.parametrize(
    ("body", "path", "answer"),
    [
        (b"<a>" * 4_000_000, "object", DENIED),  # each element costs forty times its size
        (b"<methodCall><params>" + b"<param><value>x</value></param>" * 400_000, "object", DENIED),
        (call("wrong", size=9 * MEGABYTE), "object", DENIED),
        (call(user=1, size=9 * MEGABYTE), "object", DENIED),
        (call(database="other", size=9 * MEGABYTE), "object", b"does not exist"),
        (b"<a>" * 4_000_000, "common", DENIED),
        (b"x" * 12 * MEGABYTE, "object", DENIED),
        (gzip.compress(bytes(200 * MEGABYTE), mtime=0), "object", DENIED),
        (gzip.compress(b"<a>" * 4_000_000, mtime=0), "object", b"not well-formed"),  # small: it is not unpacked
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else value,
)  # fmt: skip
def test_a_stranger_costs_no_memory(server: Server, body: bytes, path: str, answer: bytes) -> None:
    before = peak(server)
    assert answer in post(server, body, path, "Content-Encoding: gzip\r\n" if body[:2] == b"\x1f\x8b" else "")
    assert peak(server) - before < 4


@pytest.mark.parametrize(
    "body",
    [
        b'<!DOCTYPE a [<!ENTITY b "' + b"x" * 1000 + b'"><!ENTITY c "' + b"&b;" * 1000 + b'">]><a>' + b"&c;" * 1000,
        b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><methodCall><methodName>&b;</methodName></methodCall>',
        b"<methodCall><methodName>version</methodName><params>" + b"<a>" * 1000,
    ],
)
def test_no_entity_is_expanded_and_no_depth_is_built(server: Server, body: bytes) -> None:
    before = peak(server)
    assert b"not well-formed" in post(server, body, "common")
    assert peak(server) - before < 4


def test_a_large_call_is_read_in_a_few_times_its_size(server: Server) -> None:
    """The message is kept as base64 and as bytes for a moment, and each for the handing over."""
    before, size = peak(server), 30
    body = call(size=size * MEGABYTE).replace(b"message_process", b"no_such_method_")
    assert b"doesn't exist" in post(server, body)
    assert peak(server) - before < 6 * size


def test_slow_clients_keep_nobody_waiting(server: Server) -> None:
    """More than the server has room for: some have said nothing, some a little, some a part of a body."""
    begun = [b"", b"POST /xmlrpc/2/object HTTP/1.1\r\nHost", b"POST / HTTP/1.1\r\nContent-Length: 9000\r\n\r\n<"]
    slow = []
    for number in range(listen.MAX_CONNECTIONS + 50):
        slow.append(connect(server))
        slow[-1].sendall(begun[number % 3])
        if number % 100 == 99:
            start = time.monotonic()
            assert server.search("res.company", [], "name")
            assert time.monotonic() - start < 5
    start = time.monotonic()
    assert server.search("res.company", [], "name")
    assert time.monotonic() - start < 5
    for connection in slow:
        connection.close()


def test_idle_clients_keep_nobody_waiting(server: Server) -> None:
    waiting = []
    try:
        for _ in range(listen.MAX_CONNECTIONS + 60):
            waiting.append(connect(server))
            waiting[-1].sendall(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
            assert waiting[-1].recv(12) == b"HTTP/1.1 404"
        begun = time.monotonic()
        assert DENIED in post(server, call("wrong"))
        assert time.monotonic() - begun < 5
    finally:
        for connection in waiting:
            connection.close()


def test_it_stops_in_bounded_time_though_nobody_reads_its_log(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(65536))
    os.set_blocking(writing, True)
    code = (  # the program, in which a thread logs something, as waitress and the workers do; it has 2 s to stop, not 10
        "import logging, sys, threading, mail_database.__main__ as program\n"
        "program.STOP_SECONDS = 2.0\n"
        "logs = lambda: (print('logging', flush=True), logging.warning('x'))\n"
        "threading.Timer(1, logs).start()\n"
        "sys.exit(program.main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, "serve", "--port", "0", "--store", f"sqlite:///{tmp_path}/mail.db"]
    environ = {"PATH": "/usr/bin:/bin", "MAIL_DATABASE_PASSWORD": PASSWORD}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=writing, cwd=ROOT, env=environ, text=True) as process:
        try:
            assert process.stdout
            url = process.stdout.readline().split()[-1]
            assert "/enter/" in process.stdout.readline()
            host, port = url.rpartition("/")[2].split(":")
            idle = [socket.create_connection((host, int(port))) for _ in range(300)]
            assert process.stdout.readline() == "logging\n"
            process.terminate()
            assert process.wait(20) == 0
            for connection in idle:
                connection.close()
        finally:
            process.kill()
            os.close(reading)
            os.close(writing)


def test_a_request_that_drips_is_cut_off(tmp_path: Path) -> None:
    """It has 15 seconds; here it is three."""
    seconds = 3.0
    program = program_with("listen.REQUEST_SECONDS", seconds)
    server = Server(f"sqlite:///{tmp_path}/mail.db", program=program)
    start = time.monotonic()
    with connect(server) as connection:
        connection.sendall(b"POST /xmlrpc/2/object HTTP/1.1\r\nContent-Length: 100000\r\n\r\n")
        connection.settimeout(0.1)
        while time.monotonic() - start < 5 * seconds:
            try:
                connection.sendall(b"<")
                if not connection.recv(100):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    assert seconds - 1 < time.monotonic() - start < 3 * seconds
    server.stop()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (call(), ("mydatabase", "2", PASSWORD)),
        (b"<?xml version='1.0'?><methodCall>\n <methodName>execute</methodName>\n <params>\n"
         b"  <param>\n<value>mydatabase</value>\n</param><param><value><i4>2</i4></value></param>"
         b"<param><value> <string>a&amp;b&#228;<![CDATA[<]]></string> </value></param>", ("mydatabase", "2", "a&b\u00e4<")),
        (b"<methodCall><params><param><value>mydatabase</value></param><param><value>2", ("mydatabase",)),
        (b"<methodCall><params><param><value><array>", ()),
        (b"<methodCall><params><param><value>" + b"x" * calls.MAX_LOGIN_BYTES + b"</value></param>", ()),
        (b"\xff", ()),
        (b"", ()),
    ],
)  # fmt: skip
def test_the_login_is_read_from_the_beginning_of_a_call(body: bytes, expected: tuple[str, ...]) -> None:
    assert calls.read_login(body) == expected
