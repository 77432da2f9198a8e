"""A mailbox as the fetcher sees it, whatever the protocol: what is new, its bytes, and how each message is marked."""

import base64
import errno
import imaplib
import poplib
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from enum import Enum
from typing import IO, Any, NamedTuple, Protocol

from mailgate import values
from mailgate.log import masked
from mailgate.mailboxes import oauth
from mailgate.mailboxes.config import Mailbox

TIMEOUT_SECONDS = 60.0  # that a server may be silent
# Of one answer, or somebody could have all memory, and time without end. It is what half a million messages may need.
MAX_ANSWER_BYTES = 2**26
MAX_ANSWER_SECONDS = 3600.0
LINE_BYTES = 64  # that a line needs besides its own
LONG_LINE = "a line of its answer is too long"
PIECE_BYTES = 2**18  # of a message that is asked for at a time
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LARGEST_SIZE = 2**62  # that the journal can keep


class Bounds:
    """What one answer of a server may take. It is a class, for it counts."""

    def __init__(self) -> None:
        self.begin()

    def begin(self, most: int = MAX_ANSWER_BYTES) -> None:
        """Begin with another answer, of so many bytes at most."""
        self.left, self.until = most, time.monotonic() + MAX_ANSWER_SECONDS

    def take(self, count: int) -> None:
        """Take so many bytes of the answer. Raises Trouble where it has no end."""
        self.left -= count
        if self.left < 0 or time.monotonic() > self.until:
            raise Trouble(Kind.ANSWER, "its answer has no end")


class Kind(Enum):
    """What is wrong with a mailbox: the names are those of the metric, and of the headings in docs/mailboxes.md."""

    NETWORK = "network"
    TLS = "tls"
    LOGIN = "login"
    TOKEN = "token"
    FOLDER = "folder"
    ANSWER = "answer"
    DISK = "disk"
    FAILED = "failed"


class Trouble(Exception):
    """Raised where a mailbox can't be read now; the text says why, and holds no secret."""

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Mark(Enum):
    """What has become of a message: the keyword that it bears, so that it is not taken again."""

    DONE = "$MailGatewayDone"
    REFUSED = "$MailGatewayRefused"
    HELD = "$MailGatewayHeld"


class Item(NamedTuple):
    """A message that lies in the mailbox: what the server calls it, and how many bytes it says that it has."""

    uid: str
    size: int


class Box(Protocol):
    """An open mailbox, with so many messages, of which none is new that came before a day. Methods raise Trouble."""

    message_count: int
    since: date

    def new(self) -> list[Item]:
        """Return what is new, oldest first."""

    def fetch(self, item: Item, file: IO[bytes], limit: int) -> bool:
        """Write the first bytes of a message, about ``limit`` at most, to a file, and leave no trace in the mailbox.

        Returns False for a message that is there no more.
        """

    def mark(self, item: Item, mark: Mark) -> str:
        """Mark a message, and move or delete it; return what could not be done, "" for nothing."""

    def wait(self, seconds: float, is_over: Callable[[], bool]) -> bool:
        """Wait until there may be something new, at most so long, or until ``is_over``.

        Returns False at once where what is new shows itself only when the mailbox is opened anew.
        """

    def leave(self) -> None:
        """Leave in order. Raises nothing: what has not been done then is done next time."""

    def close(self) -> None:
        """End the connection at once, without a word. Raises nothing."""


@contextmanager
def understood() -> Iterator[None]:
    """Raise Trouble for all that a connection, a server and the libraries that read its answers may do."""
    try:
        yield
    except Trouble:
        raise
    except oauth.NotAuthorized as error:
        raise Trouble(Kind.TOKEN, str(error)) from None
    except oauth.Unreachable as error:
        raise Trouble(Kind.NETWORK, str(error)) from None
    except ssl.SSLCertVerificationError as error:
        raise Trouble(Kind.TLS, f"its certificate does not verify: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise Trouble(Kind.TLS, f"TLS fails: {error.reason or error}") from None
    except TimeoutError:
        raise Trouble(Kind.NETWORK, "it does not answer") from None
    except (OSError, imaplib.IMAP4.abort, EOFError) as error:
        raise _lost(error) from None
    except (imaplib.IMAP4.error, poplib.error_proto) as error:
        raise Trouble(Kind.ANSWER, f"it says: {said(error)}") from None
    except Exception as error:  # an answer may break each of the parsers that see it, and each in its own way
        what = f"{type(error).__name__}: {said(error)}"
        raise Trouble(Kind.ANSWER, f"it answers what can't be understood: {what}") from None


def _lost(error: Exception) -> Trouble:
    """Return what is raised where a connection is lost, or the disk is full to which its bytes go."""
    text = isinstance(error, OSError) and error.strerror
    if isinstance(error, OSError) and error.errno in FULL:  # a socket says none of these
        return Trouble(Kind.DISK, f"the spool: {text}")
    return Trouble(Kind.NETWORK, text or f"the connection is lost: {said(error)}")


def size_of(told: Any) -> int:
    """Return how many bytes a message has by the word of a server, 0 where that is no such number."""
    try:
        return min(max(0, int(told)), LARGEST_SIZE)
    except (TypeError, ValueError):
        return 0


def said(error: object) -> str:
    """Return what a server has said, in printable characters and short."""
    text = str(error).removeprefix("b'").removesuffix("'")
    return "".join(character if character.isprintable() else "?" for character in text)[:200]


def tls_context(mailbox: Mailbox) -> ssl.SSLContext:
    """Return what verifies the server's certificate and name."""
    return ssl.create_default_context(cafile=mailbox.ca_file or None)


def check_plaintext(mailbox: Mailbox) -> None:
    """Raise Trouble for a server without STARTTLS, except on this machine."""
    if values.is_plaintext(mailbox.server):
        raise Trouble(Kind.TLS, "it offers no STARTTLS, and the password would go in plain text")


def refused(mailbox: Mailbox, error: Exception) -> Trouble:
    """Return what is raised for a login that the server refuses."""
    kind = Kind.TOKEN if mailbox.grant else Kind.LOGIN
    return Trouble(kind, f"the login is refused: {said(error)}")


@contextmanager
def hidden(word: str) -> Iterator[None]:
    """Keep a password or token out of what a server says in answer to it, as it stands or in base64."""

    def without(found: re.Match[str]) -> str:
        with suppress(ValueError):
            if word.encode() in base64.b64decode(found[0] + "==="):
                return "********"
        return found[0]

    try:
        yield
    except (imaplib.IMAP4.error, poplib.error_proto) as error:
        text = error.args[0].decode("utf-8", "replace") if isinstance(error.args[0], bytes) else str(error)
        raise type(error)(masked(re.sub(r"[\w+/]{8,}", without, text, flags=re.ASCII), word)) from None


def sign_in(
    log_in: Callable[[str], object], token: Callable[[str], str], refusal: type[Exception] | tuple[type[Exception], ...]
) -> None:
    """Log in with a token, and with another one after a ``refusal``: it may have been revoked before its time."""
    first = token("")
    try:
        log_in(first)
    except refusal:
        log_in(token(first))
