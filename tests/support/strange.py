"""IMAP and POP3 servers of few words, whose answers a test may change: what no real server would say."""

import re
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from email.utils import formatdate

DATE = formatdate(usegmt=True)


Change = Callable[[bytes, bytes], bytes | Iterable[bytes] | None]


class Strange:
    """A server on loopback, with the bytes of its messages; what ``change`` returns it says instead.

    ``change`` is called with each line of a client's and the usual answer to it. It may return pieces without end, or
    None to hang up.
    """

    greeting = b""

    def __init__(self, *messages: bytes, change: Change | None = None) -> None:
        self.messages = dict(enumerate(messages, 1))
        self.flags: dict[int, set[bytes]] = {uid: set() for uid in self.messages}
        self.change: Change = change or (lambda line, usual: usual)
        self.lines: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Strange":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # nobody is connected to it
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def count(self, word: bytes) -> int:
        """Return in how many lines of the clients' there was a word."""
        return sum(word in line for line in self.lines)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._talk, args=[self._listener.accept()[0]], daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        with suppress(OSError), client, client.makefile("rb") as source:
            answer = self.change(b"", self.greeting)
            while answer is not None:
                for piece in [answer] if isinstance(answer, bytes) else answer:
                    client.sendall(piece)
                line = source.readline().rstrip(b"\r\n")
                if not line:
                    return
                self.lines.append(line)
                answer = self.change(line, self.usual(line))

    def usual(self, line: bytes) -> bytes:
        raise NotImplementedError


class StrangeImap(Strange):
    tag = b""
    greeting = b"* OK [CAPABILITY IMAP4rev1 IDLE MOVE UIDPLUS] hello\r\n"
    select = b"* 1 EXISTS\r\n* OK [UIDVALIDITY 7] x\r\n* OK [PERMANENTFLAGS (\\Seen \\Deleted \\*)] x\r\n"

    def usual(self, line: bytes) -> bytes:
        tag, _, command = line.partition(b" ")
        self.tag = tag if command else self.tag  # of the command that a line without one goes on with
        verb = command.upper().removeprefix(b"UID ").partition(b" ")[0].decode().lower()
        said: bytes = getattr(self, f"_{verb}", lambda command: b"")(command)
        return said if verb == "idle" else said + self.tag + b" OK done\r\n"

    def _capability(self, command: bytes) -> bytes:
        return b"* CAPABILITY IMAP4rev1 IDLE MOVE UIDPLUS\r\n"

    def _select(self, command: bytes) -> bytes:
        return self.select

    def _search(self, command: bytes) -> bytes:
        return b"* SEARCH" + b"".join(b" %d" % uid for uid, flags in self.flags.items() if not flags) + b"\r\n"

    def _fetch(self, command: bytes) -> bytes:
        said = b""
        for uid in map(int, command.split(b" ")[2].split(b",")):
            raw = self.messages[uid]
            if b"RFC822.SIZE" in command:
                said += b"* %d FETCH (UID %d RFC822.SIZE %d)\r\n" % (uid, uid, len(raw))
            elif found := re.search(rb"<(\d+)\.(\d+)>", command):
                begin, wanted = int(found[1]), int(found[2])
                piece = raw[begin : begin + wanted]
                said += b"* %d FETCH (UID %d BODY[]<%d> {%d}\r\n%s)\r\n" % (uid, uid, begin, len(piece), piece)
        return said

    def _store(self, command: bytes) -> bytes:
        _, _, uid, _, flags = command.split(b" ", 4)
        self.flags[int(uid)] |= set(flags.strip(b"()").split())
        return b""

    def _idle(self, command: bytes) -> bytes:
        return b"+ idling\r\n"

    def _logout(self, command: bytes) -> bytes:
        return b"* BYE bye\r\n"


class StrangePop3(Strange):
    greeting = b"+OK hello\r\n"

    def usual(self, line: bytes) -> bytes:
        verb, *numbers = line.split(b" ")
        if verb == b"CAPA":
            return b"+OK\r\nUIDL\r\nTOP\r\n.\r\n"
        if verb == b"UIDL":
            return b"+OK\r\n" + b"".join(b"%d uidl-%d\r\n" % (uid, uid) for uid in self.messages) + b".\r\n"
        if verb == b"LIST":
            return (
                b"+OK\r\n" + b"".join(b"%d %d\r\n" % (uid, len(raw)) for uid, raw in self.messages.items()) + b".\r\n"
            )
        if verb in (b"RETR", b"TOP"):
            raw = self.messages[int(numbers[0])]
            return b"+OK\r\n" + (raw if verb == b"RETR" else raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n") + b".\r\n"
        if verb == b"DELE":
            self.flags[int(numbers[0])].add(b"deleted")
        return b"+OK\r\n"
