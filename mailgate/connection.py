"""One LMTP connection (RFC 2033). aiosmtpd speaks the protocol; what it would buffer without bound is done here."""

import asyncio
import contextlib
import os
import re
import socket
import time
from collections.abc import AsyncIterator
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any

from aiosmtpd import smtp
from aiosmtpd.lmtp import LMTP

from mailgate import DEADLINE, __version__, log
from mailgate.envelope import Recipient, spool_folder
from mailgate.outcome import Outcome, Verdict

if TYPE_CHECKING:
    from mailgate.lmtp import Service

# What LHLO says to the pipe: RCPT may have the address before the MTA's rewriting, ORCPT=rfc822;XTEXT, as in RFC 3461.
# (To announce DSN would promise more.)
XORCPT = "XORCPT"
CONNECTIONS = 500  # more are turned away; an MTA has twenty by default
IN_MEMORY = 2**16  # bytes of a message; a larger one goes to a file
LOGGED = 2**16  # bytes that the log looks at for whose message it was, where that is not taken
TURN, TURNS = 0.001, 20  # a large message's chunk every so many seconds, of so many messages; small ones go between
READ = 2**16  # bytes of a connection that are kept before they are looked at
COMMAND = 2048  # bytes of a command: the 512 of RFC 5321, 4.5.3.1.4, and what its extensions add; Postfix's limit too
HELD = 20  # answers
SILENCE = 300.0  # seconds that a client may be silent (RFC 5321, 4.5.3.2.7)

STOPPING = "421 4.3.2 service stops"
FAILED = f"421 {Outcome.FAILED.line}"
# The status codes of what aiosmtpd says without one (RFC 2034, RFC 3463).
STATUS_CODES = {
    "221": "2.0.0",
    "250": "2.0.0",
    "252": "2.5.0",
    "500": "5.5.2",
    "501": "5.5.4",
    "502": "5.5.1",
    "503": "5.5.1",
    "552": "5.3.4",
    "553": "5.1.3",
    "555": "5.5.4",
}

_PATH = re.compile(r'\s*<(?:@[^:>]*:)?((?:"(?:[^"\\]|\\.)*"|[^">])*)>\s*(.*)', re.DOTALL)
_ORCPT = re.compile(r"(?i:ORCPT=rfc822);((?:[!-*,-<>-~]|\+[0-9A-F]{2})+)\s*")  # RFC 3461, 4.2
_HEXCHAR = re.compile(rb"\+([0-9A-F]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_WITHOUT_CODE = re.compile(r"(\d{3}) (?![245]\.\d+\.\d+ )")


class _Limits(dict[str, int]):
    """How long a command may be: aiosmtpd's own table, which all connections share, keeps whatever it is asked for."""

    def __missing__(self, command: str) -> int:
        return COMMAND


class Transaction(smtp.Envelope):
    """Who a message is from and for, the memory that takes, and the ending of a recipient who was put off, if any."""

    memory = 0  # bytes
    put_off: Outcome | None = None

    def __init__(self) -> None:
        super().__init__()
        self.recipients: list[Recipient] = []  # in place of aiosmtpd's rcpt_tos
        self.refused: list[str] = []  # for the log, the first of them


class Connection(LMTP):
    """One connection of an MTA."""

    line_length_limit = READ  # aiosmtpd's reader is made with it
    command_size_limit = COMMAND  # before LHLO

    def __init__(self, service: "Service") -> None:
        self.command_size_limits = _Limits()
        super().__init__(
            service,
            data_size_limit=service.settings.max_size,
            enable_SMTPUTF8=True,
            hostname=socket.gethostname(),
            ident=f"mail-gateway {__version__}",
            timeout=SILENCE,
            loop=asyncio.get_running_loop(),
        )
        self.service, self.max_size = service, service.settings.max_size
        self.is_delivering = False
        self.original_recipient = ""  # of the RCPT command that is being answered
        self.held: list[str] = []  # answers that go with the next one

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.service.open.add(self)
        if not self.service.admits(transport):
            self.dismiss("421 4.7.0 not admitted")
        elif self.service.is_stopping:
            self.dismiss(STOPPING)
        elif len(self.service.open) > CONNECTIONS:
            self.dismiss("421 4.3.2 too many connections")

    def connection_lost(self, error: Exception | None) -> None:
        self.service.open.discard(self)
        super().connection_lost(error)

    @property
    def memory(self) -> int:
        """How many bytes the recipients take."""
        return getattr(self.envelope, "memory", 0)

    def dismiss(self, reply: str) -> None:
        """Say a last word, and close."""
        if self._handler_coroutine:
            self._handler_coroutine.cancel()
        if not isinstance(self.transport, asyncio.WriteTransport):
            return
        if self.transport.get_write_buffer_size():  # who doesn't read what was said won't read this either
            self.transport.abort()
        else:
            self.transport.write(f"{reply}\r\n".encode())
            self.transport.close()

    def _timeout_cb(self) -> None:
        """Close at once; aiosmtpd would wait until the client has read what was said."""
        if isinstance(self.transport, asyncio.WriteTransport):
            self.transport.abort()

    def _create_envelope(self) -> Transaction:
        return Transaction()

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        """Return the address of MAIL or RCPT and what follows it; the MTA has judged it, so all is taken that can be.

        aiosmtpd takes the email package's parser, which refuses some and rewrites others. An original recipient (see
        XORCPT) is taken off here, since aiosmtpd knows no parameter of RCPT.
        """
        found = _PATH.fullmatch(arg)
        if not found or _CONTROL.search(arg) or not found[2].isascii():
            return None, None
        original = _ORCPT.fullmatch(found[2]) if self.envelope and self.envelope.mail_from else None
        self.original_recipient = xtext(original[1]) if original else ""
        return found[1] or "<>", "" if original else found[2]

    async def push(self, status: Any) -> None:
        """Answer; a few answers to commands that came together go together, as far as they are 250."""
        reply = status if isinstance(status, str) else status.decode()
        lines = [_CONTROL.sub("?", line).encode("ascii", "replace").decode() for line in reply.split("\r\n")]
        found = _WITHOUT_CODE.match(lines[0])
        if found and found[1] in STATUS_CODES and isinstance(status, str):
            lines[0] = f"{found[1]} {STATUS_CODES[found[1]]} {lines[0][4:]}"
        self.held += lines
        is_next_there = b"\n" in self._reader._buffer  # type: ignore[attr-defined]  # no other way to know
        is_held = lines[-1].startswith("250 ") and is_next_there and not self.is_delivering and len(self.held) < HELD
        if is_held or lines[-1].startswith("250-"):
            return
        held, self.held = self.held, []
        await super().push("\r\n".join(held))
        await asyncio.sleep(0)  # thousands of commands may come at once: others have their turn between them

    async def handle_exception(self, error: Exception) -> str:
        """Close, for what comes next may be the rest of a message, and is no command."""
        if not isinstance(error, EOFError):  # the client has gone
            self.service.report(f"a connection failed: {log.where(error)}", "LOG_ERR")
        self.dismiss(FAILED)
        return FAILED

    smtp_AUTH = smtp_STARTTLS = None  # type: ignore[assignment]  # not offered, and so not known

    async def smtp_VRFY(self, arg: str) -> None:
        await self.push("252 2.5.0 RCPT will tell")

    async def smtp_DATA(self, arg: str | None) -> None:
        """Take a message to its ending; aiosmtpd would keep it in memory, and refuse long lines."""
        transaction = self.envelope
        assert isinstance(transaction, Transaction)
        refusal = ""
        if arg:
            refusal = "501 Syntax: DATA"
        elif not transaction.recipients:
            refusal = "503 Error: need RCPT command"
        elif transaction.put_off:  # the database takes a message once: a second one could not serve who was put off
            refusal = transaction.put_off.reply
        elif self.service.is_full:
            refusal = Outcome.BUSY.reply
        if refusal:
            await self.push(refusal)
            return
        await self.push("354 End data with <CR><LF>.<CR><LF>")
        began = time.monotonic()
        file = SpooledTemporaryFile(max_size=IN_MEMORY, dir=spool_folder(os.environ))
        try:
            verdict = await self._receive(file)
        except BaseException:  # the client went away
            close(file)
            raise
        if self.service.is_full:  # by now
            verdict = verdict or Verdict(Outcome.BUSY)
        self._reset_timeout(2 * DEADLINE)  # it is not for the client to speak
        self.is_delivering = True
        try:
            replies = await self._take(transaction, file, verdict, began)
            self._reset_timeout()
            await self.push("\r\n".join(replies))
        finally:
            self.is_delivering = False
            self.envelope = Transaction()
        if self.service.is_stopping:
            self.dismiss(STOPPING)

    async def _take(
        self, transaction: Transaction, file: IO[bytes], verdict: Verdict | None, began: float
    ) -> list[str]:
        try:
            return await self.service.take(transaction, file, verdict, began)
        except Exception as error:  # each recipient has an answer, or the next command's would be taken for it
            self.service.report(f"a message failed: {log.where(error)}", "LOG_ERR")
            return [Outcome.FAILED.reply] * len(transaction.recipients)

    async def _receive(self, file: IO[bytes]) -> Verdict | None:
        """Write the message to ``file`` and return why it can't be taken, if so; it is read to its end anyway."""
        verdict, is_large = None, False
        try:
            async for chunk in content(self._reader):
                self._reset_timeout()
                if not verdict:
                    verdict = self._write(chunk, file)
                del chunk
                if not is_large and file.tell() > IN_MEMORY:
                    is_large = True
                    self.service.receiving_large += 1
                if is_large:
                    await asyncio.sleep(TURN * min(self.service.receiving_large, TURNS))
        finally:
            self.service.receiving_large -= is_large
        return verdict

    def _write(self, chunk: bytes, file: IO[bytes]) -> Verdict | None:
        try:
            file.write(chunk)
            if file.tell() <= self.max_size:
                return None
            verdict = Verdict(Outcome.TOO_LARGE, f"more than {self.max_size} bytes")
        except OSError as error:  # a full disk
            verdict = Verdict(Outcome.FAILED, log.where(error))
        with contextlib.suppress(OSError):  # the space is wanted for others
            file.truncate(min(file.tell(), LOGGED))
            file.seek(0)
        return verdict


def xtext(text: str) -> str:
    """Return what xtext (RFC 3461, 4) spells, in UTF-8."""
    return _HEXCHAR.sub(lambda found: bytes.fromhex(found[1].decode()), text.encode()).decode(
        "utf-8", "surrogateescape"
    )


def close(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # a full disk: it tries to write what it could not write before
        file.close()


async def content(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield a message as it comes, up to the line with a single dot, without the dots that lines were given.

    RFC 5321, 4.5.2. Only CRLF ends a line (2.3.8): what others might take for the end of the message is part of it.
    """
    data, begun = b"\r\n", False  # the end of the line with DATA, so that every line begins in the same way
    while True:
        before = len(data)
        data += await reader.read(2**30)  # all that is there
        if len(data) == before:
            raise ConnectionResetError
        end = data.find(b"\r\n.\r\n")
        # Up to a CR among the last bytes, with which that end, or a line with a dot, may begin.
        cut = end + 2 if end >= 0 else data.find(b"\r", max(0, len(data) - 4))
        cut = cut if cut >= 0 else len(data)
        chunk, data = data[:cut].replace(b"\r\n.", b"\r\n"), data[cut:]
        if end >= 0:  # the next commands (RFC 2920, 3.1), before more of them comes
            reader.feed_data(data[3:])
        if chunk and not begun:
            chunk, begun = chunk[2:], True
        if chunk:
            yield chunk
            del chunk  # who waits for more keeps nothing: hundreds may wait
        if end >= 0:
            return
