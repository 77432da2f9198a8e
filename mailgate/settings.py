"""One frozen value from options, environment and settings file; everything wrong with it is said at once."""

import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, NamedTuple

from mailgate import DEADLINE, trusted
from mailgate.envelope import canonical_address
from mailgate.outcome import Ended, Outcome

ENV_FILE = "/etc/mail-gateway.env"
HOLD = "/var/lib/mail-gateway/held"
STATE = "/var/lib/mail-gateway/state"
PREFIX = "MAIL_GATEWAY_"
_NAME = re.compile(f"{PREFIX}[A-Z_]+")

# Odoo refuses a request body over 128 MiB (413). Base64 makes four bytes of three; 64 KiB are left for the
# call around it and for the header fields that we add.
MAX_SIZE = (128 * 2**20 - 64 * 2**10) // 4 * 3


class Secret(str):
    """A string that shows itself only to who formats it on purpose."""

    def __repr__(self) -> str:
        return "'********'"


class Settings(NamedTuple):
    """What the operator decided. Addresses are in lower case, their domains with A-labels; durations are seconds."""

    url: str
    database: str
    login: str
    password: Secret
    alias_domains: frozenset[str]
    allowed_domains: frozenset[str]
    aliases: frozenset[str]
    local_parts: frozenset[str]
    catchall: frozenset[str]
    bounce: frozenset[str]
    recipient_delimiter: str
    model: str
    max_size: int
    connect_timeout: float
    read_timeout: float
    patience: float
    ca_file: str
    hold: str
    state: str
    log: str
    log_format: str
    lmtp: str
    socket_mode: int
    clients: frozenset[str]
    socketmap: str
    workers: int
    metrics: str


def _text(value: str) -> str:
    value.encode()  # raises for bytes that were no UTF-8
    if any(character < " " or character in "\x7f\ufffe\uffff" for character in value):  # XML lacks the last two
        raise ValueError("has a control character")
    return value


def _secret(value: str) -> Secret:
    if not value:
        raise ValueError("is empty")
    return Secret(_text(value))


def _url(value: str) -> str:
    from urllib.parse import urlsplit  # 5 ms, which a run without any settings need not pay

    try:
        url = urlsplit(_text(value))
        valid = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:  # whose text would quote the value, and with it a password
        valid = False
    if not valid or "@" in url.netloc or url.query or url.fragment or " " in value:
        raise ValueError("is not a URL like https://odoo.example.com")
    return value.rstrip("/")


# A list with another separator would be one address that nobody writes to, and all mail would bounce.
_LOCAL_PART = r"[^\s@,;:<>()\[\]\"\\]+"
_DOMAIN = r"[^\W_]([\w-]*\w)?(\.[\w-]*\w)*"


def _list_of(pattern: str, what: str, canonical: Callable[[str], str] = str.lower) -> Callable[[str], frozenset[str]]:
    def convert(value: str) -> frozenset[str]:
        # canonical first: the marks of many scripts (Devanagari, Thai) are no letters for the pattern
        items = [canonical(part.strip()) for part in _text(value).split(",") if part.strip()]
        if not all(re.fullmatch(pattern, item) for item in items):
            raise ValueError(f"must be {what}, separated by commas")
        return frozenset(items)

    return convert


_domains = _list_of(_DOMAIN, "domains", canonical_address)
_aliases = _list_of(f"{_LOCAL_PART}@{_DOMAIN}", "full addresses", canonical_address)
_local_parts = _list_of(_LOCAL_PART, "local-parts")


def _delimiter(value: str) -> str:
    if len(value) != 1 or value not in "!#$%&'*+-/=?^_`{|}~":  # RFC 5322 atext, without letters and digits
        raise ValueError("must be one character like +")
    return value


def _bytes(value: str) -> int:
    if not (value.isascii() and value.isdigit()) or not 0 < int(value) < 2**40:
        raise ValueError("must be a number of bytes")
    return int(value)


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= DEADLINE:
        raise ValueError(f"must be seconds, at most {DEADLINE}")
    return seconds


def _timeout(value: str) -> float:
    if not _seconds(value):
        raise ValueError("must be more than 0 seconds")
    return float(value)


def _yes(value: str) -> bool:
    return value.lower() == "yes"


def _readable(value: str) -> str:
    with open(value, "rb") as file:
        trusted.check(value, file.fileno())
        return value


def _password_file(value: str) -> Secret:
    with open(value, "rb") as file:
        trusted.check(value, file.fileno())
        if _is_public(file):
            raise ValueError(f"{PUBLIC}: {value}")
        return _secret(file.read(64 * 2**10).decode().rstrip("\r\n"))


PUBLIC = "holds the password and can be read by every local user"


def _is_public(file: IO[bytes]) -> bool:
    return bool(os.fstat(file.fileno()).st_mode & stat.S_IROTH)


def _folder(value: str) -> str:
    if not (os.path.isdir(value) and os.access(value, os.W_OK | os.X_OK)):
        raise ValueError(f"is not a folder that can be written: {value}")
    descriptor = os.open(value, os.O_RDONLY | os.O_DIRECTORY)
    try:
        trusted.check(value, descriptor)
    finally:
        os.close(descriptor)
    return value


def _own_folder(value: str) -> str:
    if os.path.isdir(value) and os.stat(value).st_uid != os.geteuid():  # what root leaves in it, nobody else could use
        raise ValueError(f"belongs to another user, who alone can run this: {value}")
    return _folder(value)


def _log(value: str) -> str:
    if value not in ("syslog", "stderr"):
        if not os.path.isabs(value):
            raise ValueError("must be syslog, stderr or the absolute path of a file")
        os.close(trusted.open_log(value))
    return value


def _one_of(*values: str) -> Callable[[str], str]:
    def convert(value: str) -> str:
        if value not in values:
            raise ValueError(f"must be {' or '.join(values)}")
        return value

    return convert


def _address(value: str) -> str:
    """Return the absolute path of a socket or file, or loopback address and port: 127.0.0.1:24, [::1]:24."""
    from ipaddress import ip_address

    if not os.path.isabs(_text(value)):
        found = re.fullmatch(r"(?:([\d.]+)|\[([\da-f:]+)\]):(\d{1,5})", value, re.ASCII)
        try:
            valid = found and ip_address(found[1] or found[2]).is_loopback and 0 < int(found[3]) < 2**16
        except ValueError:
            valid = False
        if not valid:
            raise ValueError("must be an absolute path, or an address like 127.0.0.1:24 that only this host can reach")
    return value


def _mode(value: str) -> int:
    if not re.fullmatch("0?[0-7]{3}", value):
        raise ValueError("must be a file mode like 0660")
    return int(value, 8)


def _users(value: str) -> frozenset[str]:
    from pwd import getpwnam

    users = frozenset(part.strip() for part in _text(value).split(",") if part.strip())
    for user in users:
        try:
            getpwnam(user)
        except KeyError:
            raise ValueError("names a user that does not exist") from None
    return users


def _workers(value: str) -> int:
    if not (value.isascii() and value.isdigit()) or not 0 < int(value) <= 64:
        raise ValueError("must be a number from 1 to 64")
    return int(value)


class Variable(NamedTuple):
    """One row of the table: how the text becomes a value, and the value where the variable is missing."""

    convert: Callable[[str], Any]
    default: Any = ""


REQUIRED = object()

# Each is MAIL_GATEWAY_ and this name; in Settings it has this name in lower case.
VARIABLES = {
    "URL": Variable(_url, REQUIRED),
    "DATABASE": Variable(_text, REQUIRED),
    "LOGIN": Variable(_text, REQUIRED),
    "PASSWORD": Variable(_secret),
    "PASSWORD_FILE": Variable(_password_file),
    "ALIAS_DOMAINS": Variable(_domains, frozenset()),
    "ALLOWED_DOMAINS": Variable(_domains, frozenset()),
    "ALIASES": Variable(_aliases, frozenset()),
    "LOCAL_PARTS": Variable(_local_parts, frozenset()),
    "CATCHALL": Variable(_local_parts, frozenset({"catchall"})),
    "BOUNCE": Variable(_local_parts, frozenset({"bounce"})),
    "RECIPIENT_DELIMITER": Variable(_delimiter),
    "MODEL": Variable(_text),
    "MAX_SIZE": Variable(_bytes, MAX_SIZE),
    "CONNECT_TIMEOUT": Variable(_timeout, 10.0),
    "READ_TIMEOUT": Variable(_timeout, 150.0),
    "PATIENCE": Variable(_seconds, 30.0),
    "CA_FILE": Variable(_readable),
    "ALLOW_PLAINTEXT": Variable(_yes, False),
    "HOLD": Variable(_folder),
    "STATE": Variable(_own_folder),
    "LOG": Variable(_log, "syslog"),
    "LOG_FORMAT": Variable(_one_of("text", "json"), "text"),
    # Those of the service.
    "LMTP": Variable(_address, "/run/mail-gateway/lmtp.sock"),
    "SOCKET_MODE": Variable(_mode, 0o600),
    "CLIENTS": Variable(_users, frozenset()),
    "SOCKETMAP": Variable(_address),
    "WORKERS": Variable(_workers, 2),
    "METRICS": Variable(_address),
}


def read(environ: Mapping[str, str], env_file: str = "") -> tuple[dict[str, str], list[str]]:
    """Return the variables that are set, by their names without prefix, the environment's before the file's.

    With them, what is wrong with the file. ``env_file`` is the option, which comes before MAIL_GATEWAY_ENV_FILE. A
    variable that is set to nothing counts as not set. Raises Ended(SETTINGS) for a file that can't be read.
    """
    path = env_file or environ.get(PREFIX + "ENV_FILE") or (ENV_FILE if os.path.exists(ENV_FILE) else "")
    try:
        values, wrong = _settings_file(path) if path else ({}, [])
    except (OSError, ValueError) as error:
        reason = _reason(error).removesuffix(f": {path}")  # which is not said twice
        raise Ended(Outcome.SETTINGS, f"settings file {path} {reason}") from None
    values.update((name, value) for name, value in environ.items() if value)
    ours = {name.removeprefix(PREFIX): value for name, value in values.items() if name.startswith(PREFIX) and value}
    return ours, [f"settings file {path} {reason}" for reason in wrong]


def build(values: Mapping[str, str], wrong_file: Iterable[str] = ()) -> Settings:
    """Return the settings that the variables make; ``wrong_file`` is what is wrong with the file they come from.

    Raises Ended(SETTINGS) that names every variable which is wrong, missing or unreadable, and no secret.
    """
    built: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    if os.path.exists(STATE):  # where it is, it is used: one that can't be written is an operator's mistake
        values = {"STATE": STATE, **values}
    if os.access(HOLD, os.W_OK | os.X_OK):
        values = {"HOLD": HOLD, **values}
    for name, (convert, default) in VARIABLES.items():
        try:
            built[name.lower()] = convert(values[name]) if name in values else default
        except (OSError, ValueError) as error:
            wrong[name] = _reason(error)
        else:
            if built[name.lower()] is REQUIRED:
                wrong[name] = "is missing"

    passwords = values.keys() & {"PASSWORD", "PASSWORD_FILE"}
    if len(passwords) != 1:
        wrong["PASSWORD"] = "must be given, or PASSWORD_FILE, and not both"
    if "URL" not in wrong and not built["allow_plaintext"] and _is_plaintext(built["url"]):
        wrong["URL"] = "would send the password in plain text; use https (or set ALLOW_PLAINTEXT=yes)"
    # Two calls, the login and the message, each with its connection and its answer, and all that is waited for before.
    if (
        not wrong.keys() & {"CONNECT_TIMEOUT", "READ_TIMEOUT", "PATIENCE"}
        and built["patience"] + 2 * (built["connect_timeout"] + built["read_timeout"]) > DEADLINE
    ):
        wrong["READ_TIMEOUT"] = f"must leave PATIENCE + 2 * (CONNECT_TIMEOUT + READ_TIMEOUT) within {DEADLINE} s"
    if built.get("clients") and not all(map(os.path.isabs, filter(None, (built.get("lmtp"), built.get("socketmap"))))):
        wrong["CLIENTS"] = "can be told apart at a socket's path only, not at a port"
    causes = [*wrong_file, *(f"{PREFIX}{name} {reason}" for name, reason in wrong.items())]
    if causes:
        raise Ended(Outcome.SETTINGS, "; ".join(causes))

    built["password"] = built["password"] or built["password_file"]
    return Settings(**{name: built[name] for name in Settings._fields})


def _settings_file(path: str) -> tuple[dict[str, str], list[str]]:
    """Return what the file sets, without interpolation (a password may contain ``${``), and what is wrong with it."""
    from io import StringIO

    from dotenv.parser import parse_stream  # 4 ms, which only a run with a settings file pays

    with open(path, "rb") as file:
        trusted.check(path, file.fileno())
        bindings = list(parse_stream(StringIO(file.read().decode("utf-8-sig"))))
        public = _is_public(file)
    values = {binding.key: binding.value or "" for binding in bindings if binding.key}
    ours = [binding.key for binding in bindings if binding.key and _NAME.fullmatch(binding.key)]
    # What is misspelt would silently change what the gateway does: an operator's mistake. Only names are quoted: all
    # else may be the password.
    lines = [
        str(binding.original.line)
        for binding in bindings
        if binding.error or (binding.key and (binding.value is None or _is_misspelt(binding.key)))
    ]
    unknown = sorted({name for name in ours if name.removeprefix(PREFIX) not in VARIABLES})
    twice = sorted({name for name in ours if ours.count(name) > 1})
    wrong = {
        PUBLIC: public and values.get(PREFIX + "PASSWORD"),
        f"has no {PREFIX}NAME=value in line {', '.join(lines)}": lines,
        f"has an unknown setting: {', '.join(unknown)}": unknown,
        f"sets more than once: {', '.join(twice)}": twice,
    }
    return values, [reason for reason, found in wrong.items() if found]


def _is_misspelt(name: str) -> bool:
    """Tell whether a name is meant for us, but does not look so; others may stand in the file for other programs."""
    return not _NAME.fullmatch(name) and ("GATEWAY" in name.upper() or name in VARIABLES)


def _is_plaintext(url: str) -> bool:
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


def _reason(error: Exception) -> str:
    """Say what is wrong without quoting the value, as Python's own texts of these errors would."""
    if isinstance(error, OSError):
        path = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
        return f"can't be used: {os.strerror(error.errno or 0)}{path}"
    if isinstance(error, UnicodeError):
        return "is not UTF-8"
    return str(error)
