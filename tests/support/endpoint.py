"""A database server that answers as a test wants it to, on a real socket, and keeps what it was sent."""

import contextlib
import socket
import ssl
import struct
import threading
import time
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Request(NamedTuple):
    """One request as it came in: the path, the header fields in lower case, and the body."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def call(self) -> tuple[Any, str | None]:
        """The arguments and the method of the XML-RPC call."""
        return xmlrpc.client.loads(self.body, use_builtin_types=True)

    @property
    def is_delivery(self) -> bool:
        return b"<string>message_process</string>" in self.body

    @property
    def message(self) -> bytes:
        """The message that message_process was given."""
        return self.call[0][5][1]


Answer = bytes | Callable[[socket.socket, Request], None]


def http(status: int, body: bytes = b"", *fields: str) -> bytes:
    """Return an HTTP answer."""
    head = [f"HTTP/1.1 {status} -", f"Content-Length: {len(body)}", "Connection: close", *fields, "", ""]
    return "\r\n".join(head).encode() + body


KEPT_ALIVE = b"Connection: keep-alive"


def returns(value: Any) -> bytes:
    """Return the answer of a call that comes back with a value."""
    return http(200, xmlrpc.client.dumps((value,), methodresponse=True, allow_none=True).encode())


def fault(code: int, text: str) -> bytes:
    """Return the answer of a call that fails."""
    return http(200, xmlrpc.client.dumps(xmlrpc.client.Fault(code, text), methodresponse=True).encode())


def traceback(exception: str, *functions: str, entry: str = "xmlrpc_2") -> str:
    """Return a fault's text as Odoo writes it, for an exception that was raised in the last of these functions.

    ``entry`` is the function in which the call began; an exception that was caught on its way has none.
    """
    names = [name for name in (entry, *functions) if name]
    frames = "".join(f'  File "odoo/x.py", line 1, in {name}\n    call()\n    ^^^^^^\n' for name in names)
    return f"Traceback (most recent call last):\n{frames}{exception}\n"


def hang(connection: socket.socket, request: Request) -> None:
    """Say nothing until the client has had enough."""
    connection.recv(1)


def drip(connection: socket.socket, request: Request) -> None:
    """Send an endless header, a bit at a time, for as long as the client listens."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    pause = threading.Event()
    try:
        while not pause.wait(0.05):
            connection.sendall(b"y")
    except OSError:
        pass


def cut(connection: socket.socket, request: Request) -> None:
    """Close the connection without an answer."""


def reset(connection: socket.socket, request: Request) -> None:
    """Tear the connection down."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Gate:
    """An answer that waits until the test opens the gate, and knows how many are waiting."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.lock = threading.Lock()
        self.waiting = self.most = 0

    def __call__(self, connection: socket.socket, request: Request) -> None:
        with self.lock:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
        self.opened.wait(60)
        with self.lock:
            self.waiting -= 1
        connection.sendall(returns(7))

    def wait_for(self, count: int) -> None:
        until = time.monotonic() + 30
        while self.waiting < count:
            assert time.monotonic() < until
            time.sleep(0.01)


INQUIRIES = tuple(
    b"<string>%b</string>" % name for name in (b"mail.message", b"alias_contact", b"alias_model_id.model")
)


class Endpoint:
    """The server: ``answers`` are played one after the other, the last one for good."""

    def __init__(self, certificate: Path | None = None, port: int = 0) -> None:
        self.answers: list[Answer] = [returns(7)]
        self.version: Answer = returns({"server_version_info": [13, 0]})  # which has no alias list for the service
        self.inquiry: Answer = fault(4, "not allowed")  # to where it has a message, and whose mail an alias takes
        self.requests: list[Request] = []
        self.on_head: Callable[[int], None] = lambda size: None  # when a request's header has come, not its body
        self.expected = http(100)  # what is said to who announces a body (RFC 9110, 10.1.1)
        self.connections = 0
        self.closed = threading.Semaphore(0)  # released by each connection at its end
        self._listener = socket.create_server(("127.0.0.1", port), backlog=50)
        self._tls = None
        if certificate:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def messages(self) -> list[bytes]:
        """The messages that message_process was given."""
        return [request.message for request in self.requests if request.is_delivery]

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed before
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _answer(self, request: Request) -> Answer:
        if b"<methodName>version</methodName>" in request.body:
            return self.version
        if any(word in request.body for word in INQUIRIES):
            return self.inquiry
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.ExitStack() as closing:
            closing.callback(self.closed.release)
            closing.enter_context(connection)
            try:
                if self._tls:
                    connection = closing.enter_context(self._tls.wrap_socket(connection, server_side=True))
                while request := _read(connection, self.on_head, self.expected):
                    self.requests.append(request)
                    answer = self._answer(request)
                    if callable(answer):
                        answer(connection, request)
                    else:
                        connection.sendall(answer)
                    if callable(answer) or KEPT_ALIVE not in answer:
                        return
            except OSError:  # the client went away, or doesn't trust us
                pass


def _read(connection: socket.socket, on_head: Callable[[int], None], expected: bytes) -> Request | None:
    data = bytearray()
    while b"\r\n\r\n" not in data:
        received = connection.recv(65536)
        if not received:
            return None
        data += received
    head, _, rest = bytes(data).partition(b"\r\n\r\n")
    first, *fields = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    body, size = bytearray(rest), int(headers.get("content-length", 0))
    on_head(size)
    if "expect" in headers:
        connection.sendall(expected)
    while len(body) < size:
        received = connection.recv(65536)
        if not received:
            return None
        body += received
    return Request(first.split(" ")[1], headers, bytes(body))
