"""One LMTP connection (RFC 2033). aiosmtpd speaks the protocol; what it would buffer without bound is done here.

The verbs stand in the order in which a client says them: LHLO, MAIL, RCPT, DATA; then what it may say at any time.
"""

import asyncio
import contextlib
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from aiosmtpd import smtp
from aiosmtpd.lmtp import LMTP

from mailgate import DEADLINE, __version__
from mailgate.envelope import Envelope, Recipient, spool_folder
from mailgate.handover import XORCPT, XSETTINGS
from mailgate.log import error_text
from mailgate.outcome import Outcome, Verdict
from mailgate.service.delivery import LOGGED_BYTES, Received, close, deliver
from mailgate.service.service import Service

MAX_CONNECTIONS = 500  # more are turned away; an MTA has twenty by default
SILENCE_SECONDS = 300.0  # that a client may be silent (RFC 5321, 4.5.3.2.7)
READ_BYTES = 2**16  # of a connection that are kept before they are looked at
COMMAND_BYTES = 2048  # the 512 of RFC 5321, 4.5.3.1.4, and what its extensions add; Postfix's limit too
MAX_BATCHED_REPLIES = 20
MAX_RECIPIENTS = 10_000  # of one message, as many as the MTAs' shipped settings; RFC 5321, 4.5.3.1.8, wants 100
ALL_RECIPIENTS_BYTES = 2**26  # that the recipients of all open transactions may take together
USUAL_RECIPIENTS_BYTES = 2**14  # that those of one transaction may take in any case
MAX_LOGGED_REFUSALS = 20  # recipients who were refused, in the log of a message
LOGGED_ADDRESS_CHARACTERS = 320  # of each
IN_MEMORY_BYTES = 2**16  # of a message; a larger one goes to a file
# A large message's piece is read every so many seconds, of so many messages: small ones go between.
TURN_SECONDS, MAX_TURNS = 0.001, 20

# What is said, except for the endings (outcome.py), and what aiosmtpd says without a status code (RFC 2034, RFC 3463).
NOT_ADMITTED = "421 4.7.0 not admitted"
TOO_MANY_CONNECTIONS = "421 4.3.2 too many connections"
SERVICE_STOPS = "421 4.3.2 service stops"
CONNECTION_FAILED = f"421 {Outcome.FAILED.line}"
RECIPIENT_IS_OURS = "250 2.1.5 one of ours"
RECIPIENT_IS_NOBODY = "553 5.1.3 nobody"
TOO_MANY_RECIPIENTS = "452 4.5.3 too many recipients"
DATA_SYNTAX = "501 5.5.4 Syntax: DATA"
DATA_BEFORE_RCPT = "503 5.5.1 Error: need RCPT command"
DATA_GO_AHEAD = "354 End data with <CR><LF>.<CR><LF>"
VRFY_IS_NOT_ANSWERED = "252 2.5.0 RCPT will tell"
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
        return COMMAND_BYTES


class Transaction(smtp.Envelope):
    """From MAIL to the end of DATA: whom the message is for, who was refused, and what that takes of the memory."""

    deferral: Outcome | None = None  # of a recipient who was told to come again
    recipients_bytes = 0

    def __init__(self) -> None:
        super().__init__()
        self.recipients: list[Recipient] = []  # in place of aiosmtpd's rcpt_tos
        self.refused: list[str] = []  # for the log, the first of them


class Connection(LMTP):
    """One connection of an MTA."""

    line_length_limit = READ_BYTES  # aiosmtpd's reader is made with it
    command_size_limit = COMMAND_BYTES  # before LHLO

    def __init__(self, service: Service) -> None:
        self.command_size_limits = _Limits()
        self.service, self.max_size = service, service.settings.max_size
        self.is_delivering = False
        self.original_recipient = ""  # of the RCPT command that is being answered
        self.batched_replies: list[str] = []  # that go with the next one
        super().__init__(
            self,  # aiosmtpd asks its handler; every verb stands here
            data_size_limit=self.max_size,
            enable_SMTPUTF8=True,
            hostname=socket.gethostname(),
            ident=f"mail-gateway {__version__}",
            timeout=SILENCE_SECONDS,
            loop=asyncio.get_running_loop(),
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, or turn away."""
        super().connection_made(transport)
        self.service.connections.add(self)
        if not self.service.admits(transport):
            self._dismiss(NOT_ADMITTED)
        elif self.service.is_closing:
            self._dismiss(SERVICE_STOPS)
        elif len(self.service.connections) > MAX_CONNECTIONS:
            self._dismiss(TOO_MANY_CONNECTIONS)

    def connection_lost(self, error: Exception | None) -> None:
        """Forget the connection."""
        self.service.forget(self)
        super().connection_lost(error)

    @property
    def recipients_bytes(self) -> int:
        """The memory that the recipients of the open transaction take."""
        return getattr(self.envelope, "recipients_bytes", 0)

    def dismiss_unless_delivering(self) -> None:
        """Close, for the service stops; a message on its way has its replies before."""
        if not self.is_delivering:
            self._dismiss(SERVICE_STOPS)

    def _dismiss(self, reply: str) -> None:
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

    # --- LHLO ---

    async def handle_EHLO(
        self, connection: LMTP, session: smtp.Session, transaction: Transaction, name: str, replies: list[str]
    ) -> list[bytes]:
        """Return what the service can do; these replies get no status code (RFC 2034, 4)."""
        session.host_name = name
        ours = ["PIPELINING", "ENHANCEDSTATUSCODES", XORCPT]
        if self.service.settings_version:
            ours.append(f"{XSETTINGS} {self.service.settings_version}")
        keywords = [*replies[:-1], *(f"250-{keyword}" for keyword in ours), replies[-1]]
        return [reply.encode() for reply in keywords]

    # --- MAIL, which aiosmtpd answers ---

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

    # --- RCPT ---

    async def handle_RCPT(
        self, connection: LMTP, session: smtp.Session, transaction: Transaction, address: str, options: list[str]
    ) -> str:
        """Return whether the database has the recipient."""
        if address == "<>":
            return RECIPIENT_IS_NOBODY
        is_crowded = (
            transaction.recipients_bytes > USUAL_RECIPIENTS_BYTES
            and self.service.recipients_bytes > ALL_RECIPIENTS_BYTES
        )
        if len(transaction.recipients) >= MAX_RECIPIENTS or is_crowded:
            transaction.deferral = Outcome.BUSY
            return TOO_MANY_RECIPIENTS
        recipient = Recipient(address, self.original_recipient)
        refusal = await self.service.directory.refusal(recipient)
        if refusal is None:
            transaction.recipients.append(recipient)
            transaction.recipients_bytes += sum(map(sys.getsizeof, recipient))
            return RECIPIENT_IS_OURS
        if refusal.is_temporary:
            transaction.deferral = refusal
        if len(transaction.refused) < MAX_LOGGED_REFUSALS:
            transaction.refused.append(address[:LOGGED_ADDRESS_CHARACTERS])
        if self.service.metrics:
            self.service.metrics.refused(refusal)
        return refusal.reply

    # --- DATA ---

    async def smtp_DATA(self, arg: str | None) -> None:
        """Take a message to its ending; aiosmtpd would keep it in memory, and refuse long lines."""
        transaction = self.envelope
        assert isinstance(transaction, Transaction)
        refusal = self._data_refusal(transaction, arg)
        if refusal:
            await self.push(refusal)
            return
        await self.push(DATA_GO_AHEAD)
        began = time.monotonic()
        file = SpooledTemporaryFile(max_size=IN_MEMORY_BYTES, dir=spool_folder(os.environ))
        try:
            verdict = await self._receive(file)
        except BaseException:  # the client went away
            close(file)
            raise
        if self.service.is_full:  # by now
            verdict = verdict or Verdict(Outcome.BUSY)
        sender = "" if transaction.mail_from == "<>" else transaction.mail_from
        envelope = Envelope(sender, tuple(transaction.recipients))
        ended = time.monotonic()
        received = Received(file, file.tell(), envelope, transaction.refused, began, ended, verdict)
        self._reset_timeout(2 * DEADLINE)  # it is not for the client to speak
        self.is_delivering = True
        try:
            replies = await self._deliver(received)
            self._reset_timeout()
            await self.push("\r\n".join(replies))
        finally:
            self.is_delivering = False
            self.envelope = Transaction()
        if self.service.is_closing:
            self._dismiss(SERVICE_STOPS)

    def _data_refusal(self, transaction: Transaction, arg: str | None) -> str:
        """Return why no message is taken now, "" when one is."""
        if arg:
            return DATA_SYNTAX
        if not transaction.recipients:
            return DATA_BEFORE_RCPT
        if transaction.deferral:  # the database takes a message once: a second one could not serve who was deferred
            return transaction.deferral.reply
        return Outcome.BUSY.reply if self.service.is_full else ""

    async def _deliver(self, received: Received) -> list[str]:
        try:
            return await deliver(self.service, received)
        except Exception as error:  # each recipient has an answer, or the next command's would be taken for it
            self.service.report(f"a message failed: {error_text(error)}", "LOG_ERR")
            return [Outcome.FAILED.reply] * len(received.envelope.recipients)

    async def _receive(self, file: IO[bytes]) -> Verdict | None:
        """Write the message to ``file`` and return why it can't be taken, if so; it is read to its end anyway."""
        verdict, is_large = None, False
        try:
            async for piece in content(self._reader):
                self._reset_timeout()
                if not verdict:
                    verdict = self._write(piece, file)
                del piece
                if not is_large and file.tell() > IN_MEMORY_BYTES:
                    is_large = True
                    self.service.receiving_large += 1
                if is_large:
                    await asyncio.sleep(TURN_SECONDS * min(self.service.receiving_large, MAX_TURNS))
        finally:
            self.service.receiving_large -= is_large
        return verdict

    def _write(self, piece: bytes, file: IO[bytes]) -> Verdict | None:
        try:
            file.write(piece)
            if file.tell() <= self.max_size:
                return None
            verdict = Verdict(Outcome.TOO_LARGE, f"more than {self.max_size} bytes")
        except OSError as error:  # a full disk
            verdict = Verdict(Outcome.FAILED, error_text(error))
        with contextlib.suppress(OSError):  # the space is wanted for others
            file.truncate(min(file.tell(), LOGGED_BYTES))
            file.seek(0)
        return verdict

    # --- the others, and the answers to all ---

    smtp_AUTH = smtp_STARTTLS = None  # type: ignore[assignment]  # not offered, and so not known

    async def smtp_VRFY(self, arg: str) -> None:
        """Tell nothing of an address."""
        await self.push(VRFY_IS_NOT_ANSWERED)

    async def push(self, status: Any) -> None:
        """Answer; a few answers to commands that came together go together, as far as they are 250."""
        reply = status if isinstance(status, str) else status.decode()
        lines = [_CONTROL.sub("?", line).encode("ascii", "replace").decode() for line in reply.split("\r\n")]
        found = _WITHOUT_CODE.match(lines[0])
        if found and found[1] in STATUS_CODES and isinstance(status, str):
            lines[0] = f"{found[1]} {STATUS_CODES[found[1]]} {lines[0][4:]}"
        self.batched_replies += lines
        is_next_there = b"\n" in self._reader._buffer  # type: ignore[attr-defined]  # no other way to know
        may_wait = lines[-1].startswith("250 ") and is_next_there and not self.is_delivering
        if lines[-1].startswith("250-") or (may_wait and len(self.batched_replies) < MAX_BATCHED_REPLIES):
            return
        replies, self.batched_replies = self.batched_replies, []
        await super().push("\r\n".join(replies))
        await asyncio.sleep(0)  # thousands of commands may come at once: others have their turn between them

    async def handle_exception(self, error: Exception) -> str:
        """Close, for what comes next may be the rest of a message, and is no command."""
        if not isinstance(error, EOFError):  # the client has gone
            self.service.report(f"a connection failed: {error_text(error)}", "LOG_ERR")
        self._dismiss(CONNECTION_FAILED)
        return CONNECTION_FAILED


def xtext(text: str) -> str:
    """Return what xtext (RFC 3461, 4) spells, in UTF-8."""
    return _HEXCHAR.sub(lambda found: bytes.fromhex(found[1].decode()), text.encode()).decode(
        "utf-8", "surrogateescape"
    )


async def content(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield a message as it comes, up to the line with a single dot, without the dots that lines were given.

    RFC 5321, 4.5.2. Only CRLF ends a line (2.3.8): what others might take for the end of the message is part of it.
    """
    data, has_begun = b"\r\n", False  # the end of the line with DATA, so that every line begins in the same way
    while True:
        before = len(data)
        data += await reader.read(2**30)  # all that is there
        if len(data) == before:
            raise ConnectionResetError
        end = data.find(b"\r\n.\r\n")
        # Up to a CR among the last bytes, with which that end, or a line with a dot, may begin.
        cut = end + 2 if end >= 0 else data.find(b"\r", max(0, len(data) - 4))
        cut = cut if cut >= 0 else len(data)
        piece, data = data[:cut].replace(b"\r\n.", b"\r\n"), data[cut:]
        if end >= 0:  # the next commands (RFC 2920, 3.1), before more of them comes
            reader.feed_data(data[3:])
        if piece and not has_begun:
            piece, has_begun = piece[2:], True
        if piece:
            yield piece
            del piece  # who waits for more keeps nothing: hundreds may wait
        if end >= 0:
            return
