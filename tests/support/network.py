"""The network between a client and a server: it counts what it carries, and cuts, stalls or changes it for a test."""

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator

from support.mta import free_port

CHUNK_BYTES = 65536
LITERAL = re.compile(rb"\{(\d+)\}\r\n\Z")  # at the end of a line: so many bytes follow as they are (RFC 3501, 4.3)


class Network:
    """A port in front of a server's port.

    ``sent`` and ``received`` are the bytes that went to the server and came from it, on all connections, of which there
    were ``connections``. ``cut_after`` is how many bytes of the server a new connection lasts.

    ``watch`` is called with what a client sends, before it goes on. With ``reads_lines``, which TLS does not bear,
    ``change`` is called with each line of an IMAP server, and what it returns goes on in its place. A message, and what
    follows it in the same answer, goes on as it is. Each of the two may raise OSError, which ends the connection.
    """

    def __init__(self, port: int, reads_lines: bool = False) -> None:
        self.behind, self.port, self.reads_lines = port, free_port(), reads_lines
        self.sent = self.received = self.connections = 0
        self.cut_after: int | None = None
        self.watch: Callable[[bytes], object] = lambda data: None
        self.change: Callable[[bytes], bytes] = lambda line: line
        self.passes = threading.Event()  # cleared while it is stalled
        self.passes.set()
        self.lock = threading.Lock()
        self.open: set[_Connection] = set()
        self._is_down = False
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=100)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def cut(self) -> int:
        """Reset all connections, on both sides, and return how many there were."""
        with self.lock:
            connections = [*self.open]
        for connection in connections:
            connection.end(reset=True)
        return len(connections)

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Cut all connections, and each new one at once, for a while."""
        with self.lock:
            self._is_down = True
        self.cut()
        try:
            yield
        finally:
            self._is_down = False

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """Carry nothing for a while, in either direction, on connections that stay open."""
        self.passes.clear()
        try:
            yield
        finally:
            self.passes.set()

    def say(self, line: bytes) -> None:
        """Put a line into each connection's stream from the server, at once or behind the answer that it is sending."""
        assert self.reads_lines
        with self.lock:
            connections = [*self.open]
        for connection in connections:
            connection.say(line)

    def close(self) -> None:
        with self.lock:
            self._is_down = True
        self.passes.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.cut()

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            connection = _Connection(self, client)
            with self.lock:
                self.connections += 1
                is_down = self._is_down
                self.open.add(connection)
            connection.begin(is_down)


class _Connection:
    """A client's connection, and the one to the server that stands for it."""

    def __init__(self, network: Network, client: socket.socket) -> None:
        self.network, self.client, self.server = network, client, socket.socket()
        self.left = network.cut_after  # bytes of the server
        self.rest = b""  # of the server, as long as its line has no end
        self.literal = 0  # bytes that are to come as they are
        self.is_within = False  # an answer, of which a part has gone on
        self.later = b""  # what say() could not put within it
        self.lock = threading.Lock()  # of what goes to the client
        self.ways = 2  # that are still carried
        self.is_over = False

    def begin(self, is_down: bool) -> None:
        """Connect to the server, and carry from now on."""
        if is_down or self.server.connect_ex(("127.0.0.1", self.network.behind)):
            self.end(reset=True)
            self._close()
            return
        for way in (self.client, self.server, self._to_server), (self.server, self.client, self._to_client):
            threading.Thread(target=self._carry, args=way, daemon=True).start()

    def end(self, reset: bool = False) -> None:
        """Let both sides end, with FIN or, where what is under way is to be lost, with RST."""
        with self.network.lock:
            if self not in self.network.open:  # it has been told
                return
            self.network.open.remove(self)
            self.is_over = True
        for side in (self.client, self.server):
            with contextlib.suppress(OSError):  # the peer has ended it
                if reset:  # is sent when the socket is closed; meanwhile who reads from it is woken
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                side.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)

    def _close(self) -> None:
        self.client.close()
        self.server.close()

    def say(self, line: bytes) -> None:
        with self.lock, contextlib.suppress(OSError):
            if self.is_within:
                self.later += line
            else:
                self.client.sendall(line)

    def _carry(self, here: socket.socket, there: socket.socket, pass_on: Callable[[bytes], None]) -> None:
        with contextlib.suppress(OSError):  # cut, or somebody has gone
            while data := here.recv(CHUNK_BYTES):
                self.network.passes.wait()
                if self.is_over:  # what was read, or came, before this thread was awake again
                    break
                pass_on(data)
        self.end()
        with self.network.lock:
            self.ways -= 1
            is_last = not self.ways
        if is_last:  # or another connection would get the number of a socket that somebody still reads
            self._close()

    def _to_server(self, data: bytes) -> None:
        self.network.watch(data)
        with self.network.lock:
            self.network.sent += len(data)
        self.server.sendall(data)

    def _to_client(self, data: bytes) -> None:
        with self.network.lock:
            self.network.received += len(data)
        if self.left is not None:
            data, self.left = data[: self.left], self.left - len(data)
        with self.lock:
            self.client.sendall(self._changed(data) if self.network.reads_lines else data)
        if self.left is not None and self.left <= 0:
            raise ConnectionError

    def _changed(self, data: bytes) -> bytes:
        """Return what of the server's stream can go on now, changed."""
        passed = b""
        self.rest += data
        while self.rest:
            if self.literal:
                passed += self.rest[: self.literal]
                self.rest, self.literal = self.rest[self.literal :], max(0, self.literal - len(self.rest))
                continue
            line, end, rest = self.rest.partition(b"\n")
            if not end:
                break
            self.rest = rest
            passed += line + end if self.is_within else self.network.change(line + end)
            found = LITERAL.search(line + end)
            self.literal = int(found[1]) if found else 0
            self.is_within = bool(found)
            if not found:
                passed += self.later
                self.later = b""
        return passed
