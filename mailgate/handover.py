"""Give the message on standard input to the resident service over LMTP, before anything heavy is imported.

The pipe then costs little more than the start of an interpreter: this module imports what is built in, and knows of
addresses, settings and endings only what it needs. Whatever it is not sure of it leaves to the walk, with standard
input untouched: no service, no answer within a second, a message whose envelope is not plain to see. Once the service
has begun to take the message there is no way back; a broken connection then means "try again later".

Nobody has to name the service: it is looked for where it listens by default. It may serve another database than the
one this run is for, so it says which settings file it has read, and is given only what is for the same one.
"""

from __future__ import annotations

import _socket  # the half of it without enums and selectors; see mail_gateway.py
import os

from mailgate import ENV_FILE, LMTP
from mailgate.arguments import Usage, parse_arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mailgate.arguments import Arguments

FIRST_ANSWERS_SECONDS = 1.0  # that each answer may take until the service asks for the message
READ_BYTES = 2**16
NO_SERVICE = "none"  # for --service
BROKEN = b"4.4.2 no whole answer from the mail gateway service, will try again\n"

# For good are only the endings that the table of endings has (outcome.py); whatever else comes is to be tried again.
STATUSES = {b"2.0.0": os.EX_OK, b"5.1.1": os.EX_NOUSER, b"5.3.4": os.EX_DATAERR, b"5.6.0": os.EX_DATAERR}

# What LHLO says to the pipe: RCPT may have the address before the MTA's rewriting, ORCPT=rfc822;XTEXT, as in RFC 3461.
# (To announce DSN would promise more.) And which version of which settings file the service has read.
XORCPT, XSETTINGS = "XORCPT", "XSETTINGS"

# In the environment these change no database and no rule; the credentials of a unit are the last two.
_NO_SETTINGS_OF_THEIR_OWN = frozenset(
    f"MAIL_GATEWAY_{name}" for name in ("ENV_FILE", "LMTP", "PASSWORD_FILE", "JOURNAL_PASSWORD_FILE")
)

# What can stand in a path without quotes (RFC 5321, 4.1.2; RFC 6531 adds the letters that are not ASCII).
_ATOMS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.!#$%&'*+-/=?^_`{|}~@[]:")


class Silent(Exception):
    """Raised when the service does not answer, or not as LMTP has it."""


def hand_over(argv: list[str], environ: Mapping[str, str]) -> tuple[int, bytes] | None:
    """Return exit status and line, as the service has it, or None when the message is still to be delivered."""
    try:
        arguments = parse_arguments(argv)
    except Usage:
        return None
    service, version = _service(arguments, environ)
    if not service:
        return None
    sender = arguments.sender if arguments.sender is not None else environ.get("SENDER")
    pairs = _recipients(arguments.recipients, arguments.original_recipients, environ)
    if sender is None or not pairs or not all(recipient for recipient, _ in pairs) or os.isatty(0):
        return None
    sender = "" if sender.upper() == "MAILER-DAEMON" else sender.strip("<>")
    if not all(_is_plain(address) for address in [sender, *(address for pair in pairs for address in pair)]):
        return None

    connection = None
    try:
        os.fstat(0), os.fstat(1)  # what is closed would be given to the connection
        os.set_blocking(0, True)  # or a pause would look like the end of the message
        connection = _connect(service)
        answers = _greet(connection, version)
        refusals = _introduce(connection, answers, sender, pairs)
    except (OSError, Silent):
        if connection:
            connection.close()
        return None
    if len(refusals) == len(pairs) or any(answer[:1] == b"4" for answer in refusals):
        return _ending(refusals)  # nobody is left to take it, or somebody could not be served by a second message
    try:
        connection.settimeout(None)  # the deadline of the whole run ends it
        for chunk in _transparent(iter(lambda: os.read(0, READ_BYTES), b"")):
            connection.sendall(chunk)
        return _ending([answers.next() for _ in range(len(pairs) - len(refusals))])
    except (OSError, Silent):
        return os.EX_TEMPFAIL, BROKEN


def _service(arguments: Arguments, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return where the service listens, "" for no service, and which settings it must have read, "" for any.

    The model is a run's own, and what it would print of itself is no service's to say.
    """
    if arguments.service == NO_SERVICE or arguments.model or arguments.dry_run or arguments.help or arguments.version:
        return "", ""
    if arguments.service:
        return arguments.service, ""
    version = settings_version(arguments.env_file, environ)
    return (environ.get("MAIL_GATEWAY_LMTP") or LMTP if version else ""), version


def settings_version(env_file: str, environ: Mapping[str, str]) -> str:
    """Return what tells this version of the settings file from every other one on this host, "" for no file.

    ``env_file`` is the option. Settings in the environment would come before the file's, so with any there is no
    version either. Pipe and service compare it: each has then read the same text.
    """
    ours = {name for name, value in environ.items() if name.startswith("MAIL_GATEWAY_") and value}
    if not ours <= _NO_SETTINGS_OF_THEIR_OWN:
        return ""
    try:
        status = os.stat(env_file or environ.get("MAIL_GATEWAY_ENV_FILE") or ENV_FILE)
    except (OSError, ValueError):
        return ""
    return f"{status.st_dev:x}.{status.st_ino:x}.{status.st_mtime_ns:x}"


def _recipients(
    recipients: tuple[str, ...], originals: tuple[str, ...], environ: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Return each recipient and what it was before the MTA's rewriting, the latter "" where it is not known."""
    if not recipients and not originals:
        recipients = tuple(filter(None, [environ.get("RECIPIENT")]))
        originals = tuple(filter(None, [environ.get("ORIGINAL_RECIPIENT")]))
        if recipients and recipients[0].startswith("@"):  # Exim's, for a batch
            return []
    count = max(len(recipients), len(originals))
    recipients, originals = ((addresses + ("",) * count)[:count] for addresses in (recipients, originals))
    return [(recipient or original, original) for recipient, original in zip(recipients, originals, strict=True)]


def _xtext(address: str) -> str:
    """Return an address as RFC 3461, 4, has it in a parameter; what is not ASCII in UTF-8."""
    encoded = address.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if 32 < byte < 127 and byte not in b"+=" else f"+{byte:02X}" for byte in encoded)


def _is_plain(address: str) -> bool:
    return all(character in _ATOMS or character > "\x9f" for character in address) and address.isprintable()


def _connect(service: str) -> _socket.socket:
    """Return a connection to a Unix socket's path, or to an address and port. Raises OSError and Silent."""
    host, _, port = service.rpartition(":")
    family = _socket.AF_UNIX if service.startswith("/") else _socket.AF_INET6 if "[" in host else _socket.AF_INET
    connection = _socket.socket(family, _socket.SOCK_STREAM)
    connection.settimeout(FIRST_ANSWERS_SECONDS)
    try:
        connection.connect(service if family == _socket.AF_UNIX else (host.strip("[]"), int(port)))
    except (ValueError, OverflowError):  # no number, or none of a port
        raise Silent from None
    return connection


class _Answers:
    """The answers of the service, one after the other."""

    takes_originals = False  # it has said so
    settings_version = ""  # as it has said

    def __init__(self, connection: _socket.socket) -> None:
        self.connection, self.received = connection, b""

    def next(self) -> bytes:
        """Return the last line of the next answer. Raises OSError and Silent."""
        while True:
            while b"\n" not in self.received:
                data = self.connection.recv(READ_BYTES)
                if not data or len(self.received) > READ_BYTES:
                    raise Silent
                self.received += data
            line, _, self.received = self.received.partition(b"\n")
            if not line[:3].isdigit() or line[3:4] not in (b" ", b"-"):
                raise Silent
            keyword, _, value = line[4:].strip().decode("ascii", "replace").partition(" ")
            self.takes_originals |= keyword == XORCPT
            if keyword == XSETTINGS:
                self.settings_version = value
            if line[3:4] == b" ":
                return line.rstrip(b"\r")


def _greet(connection: _socket.socket, version: str) -> _Answers:
    """Return the answers of a service, up to that to LHLO; with a ``version``, it must have read these settings.

    Raises OSError and Silent.
    """
    answers = _Answers(connection)
    if answers.next()[:1] != b"2":
        raise Silent
    connection.sendall(b"LHLO localhost\r\n")
    if answers.next()[:1] != b"2":
        raise Silent
    if version and answers.settings_version != version:
        raise Silent  # it serves another database, or the settings have changed since it has read them
    return answers


def said_version(service: str) -> str:
    """Return which settings a service says that it has read. Raises OSError and Silent."""
    connection = _connect(service)
    try:
        return _greet(connection, "").settings_version
    finally:
        connection.close()


def _introduce(connection: _socket.socket, answers: _Answers, sender: str, pairs: list[tuple[str, str]]) -> list[bytes]:
    """Go as far as to where the service asks for the message, and return how it refused which recipients.

    Raises OSError and Silent: it has not taken the message.
    """

    def ask(*commands: str) -> list[bytes]:
        connection.sendall("".join(f"{command}\r\n" for command in commands).encode("utf-8", "surrogateescape"))
        return [answers.next() for _ in commands]

    utf8 = "" if all(address.isascii() for address in [sender, *(a for pair in pairs for a in pair)]) else " SMTPUTF8"
    mail, *first = ask(f"MAIL FROM:<{sender}> BODY=8BITMIME{utf8}", *_rcpt(pairs, answers.takes_originals))
    if mail[:1] != b"2":
        raise Silent
    refusals = []
    for answer, (recipient, original) in zip(first, pairs, strict=True):
        if answer[:1] == b"5" and original not in ("", recipient) and not answers.takes_originals:
            (answer,) = ask(f"RCPT TO:<{recipient}>")  # a recipient counts when it or its original does
        if answer[:1] == b"5" and not answer.startswith(b"550 5.1.1 "):
            raise Silent  # it does not understand the address
        if answer[:1] != b"2":
            refusals.append(answer)
    if len(refusals) < len(pairs) and not any(answer[:1] == b"4" for answer in refusals):
        (data,) = ask("DATA")
        if data[:3] != b"354":
            return [data] * len(pairs)
    return refusals


def _rcpt(pairs: list[tuple[str, str]], takes_originals: bool) -> list[str]:
    """Return a RCPT command for each pair of recipient and original recipient."""
    if not takes_originals:  # a service from before an upgrade, or no service of ours
        return [f"RCPT TO:<{original or recipient}>" for recipient, original in pairs]
    return [
        f"RCPT TO:<{recipient}>" + f" ORCPT=rfc822;{_xtext(original)}" * bool(original) for recipient, original in pairs
    ]


def _transparent(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the message with CRLF line ends and dots doubled, and the line that ends it (RFC 5321, 4.5.2)."""
    line_begins, held = True, b""
    for chunk in chunks:
        chunk = held + chunk
        held = b"\r" if chunk.endswith(b"\r") else b""  # its line feed may be in the next chunk
        chunk = chunk[: len(chunk) - len(held)]
        if line_begins and chunk.startswith(b"."):
            yield b"."
        if chunk:
            line_begins = chunk.endswith(b"\n")
            yield chunk.replace(b"\r\n", b"\n").replace(b"\n.", b"\n..").replace(b"\n", b"\r\n")
    yield held + (b"" if line_begins and not held else b"\r\n") + b".\r\n"


def _ending(answers: list[bytes]) -> tuple[int, bytes]:
    """Return exit status and line for the answers to all recipients: one that is to be tried again keeps all."""
    for first in b"4", b"2", b"5":
        for answer in answers:
            line = answer[4:]
            if answer[:1] == first and line[:5] in STATUSES:
                return STATUSES[line[:5]], line + b"\n"
            if answer[:1] == first == b"4":
                return os.EX_TEMPFAIL, line + b"\n"
    return os.EX_TEMPFAIL, BROKEN
