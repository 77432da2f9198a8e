"""The HTTP server, and what a caller may cost before the database knows him.

- If neither the first MAX_LOGIN_BYTES of a body nor a cookie say that its sender has logged in, the rest is received,
  as HTTP requires, and dropped.
- A request that is not complete within the seconds below, at the rate below, is cut off.
- If there are too many connections, the one whose request has been incomplete for longest is closed; if no request is
  incomplete, the one that has been idle for longest. So slow clients, however many, do not block the others.
"""

import io
import time
from collections.abc import Callable
from typing import Any

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import BaseWSGIServer, create_server

from mail_database.calls import MAX_LOGIN_BYTES

MAX_BODY_BYTES = 128 * 2**20  # Odoo's; a larger body is answered with 413
MAX_HEADER_BYTES = 2**14
THREADS = 16
MAX_CONNECTIONS = 400  # at once; each is a file, and a process has 1,024
REQUEST_SECONDS = 15.0  # for a request, in addition to the time for its body
MIN_BYTES_PER_SECOND = 2**14  # for a body
IDLE_SECONDS = 120  # between two requests


class _Dropped:
    """A buffer that keeps what it has, and takes no more."""

    def __init__(self, kept: bytes) -> None:
        self._kept = kept

    def append(self, _: bytes) -> None:
        """Drop it."""

    def __len__(self) -> int:
        return len(self._kept)

    def getfile(self) -> io.BytesIO:
        return io.BytesIO(self._kept)

    def close(self) -> None:
        """Have nothing to close."""


class _Channel(HTTPChannel):
    """A connection that has a time for each request: ``_since`` it is incomplete, or idle."""

    def __init__(self, server: Any, *arguments: Any, **named: Any) -> None:
        super().__init__(server, *arguments, **named)
        self._since, self._is_idle = time.monotonic(), False
        open_ones = [each for each in server.active_channels.values() if not each.will_close]
        others = [each for each in open_ones if each is not self and not each.requests]
        if others and len(open_ones) > MAX_CONNECTIONS:
            min(others, key=lambda channel: (channel._is_idle, channel._since)).will_close = True

    def received(self, data: bytes) -> Any:
        if self._is_idle:
            self._since, self._is_idle = time.monotonic(), False
        result = super().received(data)
        if self.request is None:  # it is complete
            self._since, self._is_idle = time.monotonic(), True
        return result

    def readable(self) -> Any:
        if not self._is_idle and not self.requests:  # asked at least once a second
            taken = self.request.body_bytes_received if self.request else 0
            if time.monotonic() - self._since > REQUEST_SECONDS + taken / MIN_BYTES_PER_SECOND:
                self.will_close = True
        return super().readable()


def listen(application: Any, allows: Callable[[str, str, bytes], bool], host: str, port: int) -> Any:
    """Return a server; ``allows`` tells by path, cookies and a body's beginning whether its sender has logged in."""

    class Request(HTTPRequestParser):
        is_judged = False

        def received(self, data: bytes) -> Any:
            consumed = super().received(data)
            if self.body_rcv is not None and not self.is_judged and len(self.body_rcv) >= MAX_LOGIN_BYTES:
                self.is_judged = True
                head = self.body_rcv.getbuf().get(MAX_LOGIN_BYTES)
                path = self.path  # type: ignore[attr-defined]  # parse_header() sets it
                if not allows(path, self.headers.get("COOKIE", ""), head):
                    self.body_rcv.getbuf().close()
                    self.body_rcv.buf = _Dropped(head)  # type: ignore[assignment]  # it has what a receiver needs
            return consumed

    sockets: dict[int, Any] = {}  # of two kinds of servers: a host name may have several addresses
    server = create_server(
        application,
        map=sockets,
        host=host,
        port=port,
        threads=THREADS,
        max_request_body_size=MAX_BODY_BYTES + 1,  # bytes from which on it answers 413
        max_request_header_size=MAX_HEADER_BYTES,
        connection_limit=MAX_CONNECTIONS + 50,
        channel_timeout=IDLE_SECONDS,
        asyncore_use_poll=True,  # select knows no more than 1,024 files
        backlog=MAX_CONNECTIONS,
        ident="mail_database",
    )
    channel = type("Channel", (_Channel,), {"parser_class": Request})
    for each in sockets.values():
        if isinstance(each, BaseWSGIServer):
            each.channel_class = channel
    return server
