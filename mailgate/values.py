"""Values: how the text of a setting becomes a value, and what is wrong with it.

Each converter takes the text and returns the value. It raises ValueError, whose text follows the setting's name in an
error ("MAIL_GATEWAY_URL is not a URL like ..."), and never quotes the value, which may be a secret. It raises OSError
for a file that can't be used.
"""

import os
import re
import stat
from collections.abc import Callable
from typing import IO

from mailgate import DEADLINE, trusted
from mailgate.envelope import canonical_address

PUBLIC = "holds the password and can be read by every local user"
MAX_PASSWORD_BYTES = 64 * 2**10


class Secret(str):
    """A string that shows itself only to who formats it on purpose."""

    def __repr__(self) -> str:
        return "'********'"


def text(value: str) -> str:
    """Return a text that can be sent to the database."""
    value.encode()  # raises for bytes that were no UTF-8
    if any(character < " " or character in "\x7f\ufffe\uffff" for character in value):  # XML lacks the last two
        raise ValueError("has a control character")
    return value


def secret(value: str) -> Secret:
    """Return a password."""
    if not value:
        raise ValueError("is empty")
    return Secret(text(value))


def url(value: str) -> str:
    """Return the URL of a database server, without a slash at its end."""
    from urllib.parse import urlsplit  # 5 ms, which a run without any settings need not pay

    try:
        parts = urlsplit(text(value))
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # whose text would quote the value, and with it a password
        valid = False
    if not valid or "@" in parts.netloc or parts.query or parts.fragment or " " in value:
        raise ValueError("is not a URL like https://odoo.example.com")
    return value.rstrip("/")


def is_plaintext(url: str) -> bool:
    """Tell whether the password would travel in plain text over more than the loopback interface."""
    from ipaddress import ip_address
    from urllib.parse import urlsplit

    scheme, host = urlsplit(url).scheme, urlsplit(url).hostname
    if scheme == "https":
        return False
    try:
        return host != "localhost" and not ip_address(host or "").is_loopback
    except ValueError:
        return True


# A list with another separator would be one address that nobody writes to, and all mail would bounce.
_LOCAL_PART = r"[^\s@,;:<>()\[\]\"\\]+"
_DOMAIN = r"[^\W_]([\w-]*\w)?(\.[\w-]*\w)*"


def _list_of(pattern: str, what: str, canonical: Callable[[str], str] = str.lower) -> Callable[[str], frozenset[str]]:
    def convert(value: str) -> frozenset[str]:
        # canonical first: the marks of many scripts (Devanagari, Thai) are no letters for the pattern
        items = [canonical(part.strip()) for part in text(value).split(",") if part.strip()]
        if not all(re.fullmatch(pattern, item) for item in items):
            raise ValueError(f"must be {what}, separated by commas")
        return frozenset(items)

    return convert


domains = _list_of(_DOMAIN, "domains", canonical_address)
full_addresses = _list_of(f"{_LOCAL_PART}@{_DOMAIN}", "full addresses", canonical_address)
local_parts = _list_of(_LOCAL_PART, "local-parts")


def delimiter(value: str) -> str:
    """Return the character between a local-part and its extension (RFC 5322 atext, no letter and no digit)."""
    if len(value) != 1 or value not in "!#$%&'*+-/=?^_`{|}~":
        raise ValueError("must be one character like +")
    return value


def byte_count(value: str) -> int:
    """Return a number of bytes."""
    if not (value.isascii() and value.isdigit()) or not 0 < int(value) < 2**40:
        raise ValueError("must be a number of bytes")
    return int(value)


def seconds(value: str) -> float:
    """Return a duration in seconds, no longer than a whole run may take."""
    try:
        duration = float(value)
    except ValueError:
        duration = -1
    if not 0 <= duration <= DEADLINE:
        raise ValueError(f"must be seconds, at most {DEADLINE}")
    return duration


def timeout(value: str) -> float:
    """Return a duration in seconds that is more than nothing."""
    if not seconds(value):
        raise ValueError("must be more than 0 seconds")
    return float(value)


def yes(value: str) -> bool:
    """Tell whether a switch is on: "yes" is, whatever else is not."""
    return value.lower() == "yes"


def readable_file(value: str) -> str:
    """Return the path of a file that can be read and that nobody else can write."""
    with open(value, "rb") as file:
        trusted.check(value, file.fileno())
        return value


def password_file(value: str) -> Secret:
    """Return the password that stands in a file, without the end of its line."""
    with open(value, "rb") as file:
        trusted.check(value, file.fileno())
        if is_public(file):
            raise ValueError(f"{PUBLIC}: {value}")
        return secret(file.read(MAX_PASSWORD_BYTES).decode().rstrip("\r\n"))


def is_public(file: IO[bytes]) -> bool:
    """Tell whether every local user can read an open file."""
    return bool(os.fstat(file.fileno()).st_mode & stat.S_IROTH)


def absolute_path(value: str) -> str:
    """Return an absolute path, whatever is there."""
    if not os.path.isabs(text(value)):
        raise ValueError("must be an absolute path")
    return value


def file_path(value: str) -> str:
    """Return the path of a file; one that is not absolute is the name of one of systemd's credentials."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if not os.path.isabs(text(value)) and not credentials:
        raise ValueError("must be an absolute path, or the name of a credential of systemd's")
    return os.path.join(credentials or "", value)


def folder(value: str) -> str:
    """Return the absolute path of a folder that we can write, and nobody else."""
    if not os.path.isabs(value):  # in which folder we are called is the MTA's to say
        raise ValueError("must be an absolute path")
    if not (os.path.isdir(value) and trusted.may_write(value)):
        raise ValueError(f"is not a folder that can be written: {value}")
    descriptor = os.open(value, os.O_RDONLY | os.O_DIRECTORY)
    try:
        trusted.check(value, descriptor)
    finally:
        os.close(descriptor)
    return value


def own_folder(value: str) -> str:
    """Return the path of a folder of ours: what root leaves in it, nobody else could use."""
    if os.path.isdir(value) and os.stat(value).st_uid != os.geteuid():
        raise ValueError(f"belongs to another user, who alone can run this: {value}")
    return folder(value)


_JOURNAL_URL = r"postgres(ql)?://([^:@/?#\s]+@)?[^@/?#\s]*/[^@/?#\s]+(\?[^@#\s]*)?"


def journal(value: str) -> str:
    """Return the path of a folder of ours, or the URL of a PostgreSQL database, which holds no password."""
    from urllib.parse import unquote

    if "://" not in value:
        return own_folder(value)
    if not re.fullmatch(_JOURNAL_URL, text(value)) or "password" in unquote(value.partition("?")[2]).lower():
        raise ValueError(
            "must be a folder, or a URL like postgresql://user@host/database without a password, "
            "which MAIL_GATEWAY_JOURNAL_PASSWORD_FILE gives"
        )
    return value


def log_target(value: str) -> str:
    """Return where the log goes: "syslog", "stderr" or the absolute path of a file that can be written."""
    if value not in ("syslog", "stderr"):
        if not os.path.isabs(value):
            raise ValueError("must be syslog, stderr or the absolute path of a file")
        os.close(trusted.open_log(value))
    return value


def one_of(*texts: str) -> Callable[[str], str]:
    """Return a converter that takes these texts and no other."""

    def convert(value: str) -> str:
        if value not in texts:
            raise ValueError(f"must be {' or '.join(texts)}")
        return value

    return convert


def socket_address(value: str) -> str:
    """Return the absolute path of a socket or file, or loopback address and port: 127.0.0.1:24, [::1]:24."""
    from ipaddress import ip_address

    if not os.path.isabs(text(value)):
        found = re.fullmatch(r"(?:([\d.]+)|\[([\da-f:]+)\]):(\d{1,5})", value, re.ASCII)
        try:
            valid = found and ip_address(found[1] or found[2]).is_loopback and 0 < int(found[3]) < 2**16
        except ValueError:
            valid = False
        if not valid:
            raise ValueError("must be an absolute path, or an address like 127.0.0.1:24 that only this host can reach")
    return value


def file_mode(value: str) -> int:
    """Return a file mode, of octal digits."""
    if not re.fullmatch("0?[0-7]{3}", value):
        raise ValueError("must be a file mode like 0660")
    return int(value, 8)


def users(value: str) -> frozenset[str]:
    """Return the names of users of this host, separated by commas."""
    from pwd import getpwnam

    names = frozenset(part.strip() for part in text(value).split(",") if part.strip())
    for name in names:
        try:
            getpwnam(name)
        except KeyError:
            raise ValueError("names a user that does not exist") from None
    return names


def mailbox(value: str) -> str:
    """Return an address that a program can be given as an argument."""
    if not re.fullmatch(r"[\w.+][\w.+-]*@[\w.-]+", value, re.ASCII):
        raise ValueError("must be an address: postmaster@example.com")
    return value


def days(value: str) -> int:
    """Return a number of days, no less than a mail server keeps mail in its queue (Exim: 8)."""
    if not (value.isascii() and value.isdigit()) or not 8 <= int(value) <= 3650:
        raise ValueError("must be a number of days from 8 to 3650")
    return int(value)


def worker_count(value: str) -> int:
    """Return a number of workers."""
    if not (value.isascii() and value.isdigit()) or not 0 < int(value) <= 64:
        raise ValueError("must be a number from 1 to 64")
    return int(value)


def reason(error: Exception) -> str:
    """Say what is wrong without quoting the value, as Python's own texts of these errors would."""
    if isinstance(error, OSError):
        path = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
        return f"can't be used: {os.strerror(error.errno or 0)}{path}"
    if isinstance(error, UnicodeError):
        return "is not UTF-8"
    return str(error)
