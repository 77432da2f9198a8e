"""The mailboxes file: which mailboxes are read, and what becomes of their mail there; everything wrong is said at once.

It is TOML, for it has a table for each mailbox. docs/mailboxes.md lists the keys.
"""

import os
import re
import ssl
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mailgate import trusted, values
from mailgate.mailboxes import oauth
from mailgate.outcome import Ended, Outcome
from mailgate.values import Secret

if sys.version_info >= (3, 11):
    import tomllib
else:  # of which it is a copy
    import tomli as tomllib

FOLDER = "/var/lib/mail-gateway/mailboxes"
INBOX = "INBOX"  # whose case does not matter (RFC 3501, 5.1)
MAX_BYTES = 2**20  # of the file: some thousand mailboxes
IMAP, POP3 = "imap", "pop3"
# By what the URL begins with: protocol, whether TLS comes first, and the port.
SCHEMES = {
    "imaps": (IMAP, True, 993),
    "imap": (IMAP, False, 143),
    "pop3s": (POP3, True, 995),
    "pop3": (POP3, False, 110),
}
KEEP, SEEN, MOVE, DELETE = "keep", "seen", "move", "delete"
POP3_VERBS = (KEEP, DELETE)  # a maildrop has no flags and no folders


class Action(NamedTuple):
    """What is done with a message that has ended; ``folder`` is where it is moved."""

    verb: str
    folder: str = ""


class Mailbox(NamedTuple):
    """A mailbox, and what becomes of its mail. ``password`` is "" where tokens are used, and ``grant`` None else."""

    name: str
    server: str  # the URL
    login: str
    password: Secret
    grant: oauth.Grant | None
    folder: str
    recipient: str
    model: str
    done: Action
    refused: Action
    since: date | None
    ca_file: str

    @property
    def protocol(self) -> str:
        """IMAP or POP3."""
        return _protocol(self.server)

    @property
    def is_tls(self) -> bool:
        """Whether TLS comes before the first word of the protocol; else there is STARTTLS."""
        return SCHEMES[urlsplit(self.server).scheme][1]

    @property
    def host(self) -> str:
        """The server's name or address."""
        return _address(self.server)[0]

    @property
    def port(self) -> int:
        """The server's port."""
        return _address(self.server)[1]


class Mailboxes(NamedTuple):
    """The file: the folder in which is kept what must be known next time, where metrics are read, and the mailboxes."""

    folder: str
    metrics: str
    mailboxes: tuple[Mailbox, ...]


def _protocol(url: str) -> str:
    return SCHEMES[urlsplit(url).scheme][0]


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or SCHEMES[parts.scheme][2]


def _canonical(folder: str) -> str:
    return INBOX if folder.upper() == INBOX else folder


# --- values: each takes what TOML has and raises ValueError, whose text follows the key's name, or OSError ------------


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError('must be a text: "..."')
    return values.text(value)


def _name(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,63}", _text(value), re.ASCII):
        raise ValueError("must be up to 64 letters, digits, dots, hyphens and underscores, first a letter or digit")
    return str(value)


def _server(value: Any) -> str:
    try:
        parts = urlsplit(_text(value))
        valid = parts.scheme in SCHEMES and parts.hostname and parts.port != 0 and not parts.path.strip("/")
        valid = valid and not re.search(r"\s", value) and bool((parts.hostname or "").encode("idna"))
    except ValueError:
        valid = False
    if not valid or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("must be a URL like imaps://imap.example.com (or imap, pop3s, pop3)")
    return str(value).rstrip("/")


def _file(convert: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Return a converter of what names a file."""
    return lambda value: convert(values.file_path(_text(value)))


def _certificates(path: str) -> str:
    """Return the path of a file with certificates."""
    values.readable_file(path)
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:  # an OSError, whose text says nothing to a person
        raise ValueError(f"has no certificate (PEM): {path}") from None
    return path


def _recipient(value: Any) -> str:
    if not re.fullmatch(r"[^\s@<>,;:]+@[^\s@<>,;:]+", _text(value)):
        raise ValueError("must be an address: task@example.com")
    return str(value)


def _action(value: Any) -> Action:
    verb, _, folder = _text(value).partition(":")
    if verb not in (KEEP, SEEN, MOVE, DELETE) or (verb == MOVE) != bool(folder):
        raise ValueError('must be "keep", "seen", "move:FOLDER" or "delete"')
    return Action(verb, folder)


def _date(value: Any) -> date:
    if not isinstance(value, date) or isinstance(value, datetime):
        raise ValueError("must be a date without quotes: 2026-11-01")
    return value


def _folder(value: Any) -> str:
    if not os.path.exists(_text(value)) and os.path.isabs(value):
        raise ValueError(f"is not there: install -d -m 700 -o mail-gateway {value}")
    return values.own_folder(value)


REQUIRED = object()
KEYS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "name": (_name, REQUIRED),
    "server": (_server, REQUIRED),
    "login": (_text, REQUIRED),
    "password_file": (_file(values.password_file), Secret()),
    "oauth": (lambda value: value, None),  # it depends on the protocol; see _grant()
    "folder": (_text, INBOX),
    "recipient": (_recipient, ""),
    "model": (_text, ""),
    "done": (_action, Action(KEEP)),
    "refused": (_action, Action(KEEP)),
    "since": (_date, None),
    "ca_file": (_file(_certificates), ""),
}
TOP_KEYS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "folder": (_folder, FOLDER),
    "metrics": (lambda value: values.socket_address(_text(value)), ""),
}


# What is said of a key that is not known where it stands.
MISPLACED = {
    **dict.fromkeys(KEYS, "it belongs below a line [[mailbox]]"),
    **dict.fromkeys(TOP_KEYS, "it belongs above the first [[mailbox]]"),
    "password": "a password stands in a file, which password_file names",
}


# --- the file ---------------------------------------------------------------------------------------------------------


def read(path: str) -> Mailboxes:
    """Return what a mailboxes file says. Raises Ended(SETTINGS), which names all that is wrong, and no secret."""
    try:
        with open(path, "rb") as file:
            trusted.check(path, file.fileno())
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"is larger than {MAX_BYTES} bytes")
        found = tomllib.loads(content.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:  # they name a place, and quote no value
        raise Ended(Outcome.SETTINGS, f"mailboxes file {path} is not TOML: {error}") from None
    except (OSError, ValueError) as error:
        reason = values.reason(error).removesuffix(f": {path}")
        raise Ended(Outcome.SETTINGS, f"mailboxes file {path} {reason}") from None
    built, wrong = _built(found)
    if wrong:
        raise Ended(Outcome.SETTINGS, "; ".join(f"mailboxes file {path}: {each}" for each in wrong))
    return built


def _built(found: Mapping[str, Any]) -> tuple[Mailboxes, list[str]]:
    top, wrong = _converted({"folder": FOLDER, **found}, TOP_KEYS)  # the default must be there, too
    tables = found.get("mailbox")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        wrong.append("it has no table [[mailbox]]")
        tables = []
    of_each = []
    for number, table in enumerate(tables, 1):
        built, errors = _converted(table, KEYS)
        errors += _contradictions(built, table)
        wrong += [f"mailbox {built.get('name', number)}: {error}" for error in errors]
        of_each.append(built)
    wrong += _twice(of_each)
    if wrong:
        return Mailboxes("", "", ()), wrong
    return Mailboxes(top["folder"], top["metrics"], tuple(map(_mailbox, of_each))), []


def _converted(
    found: Mapping[str, Any], keys: Mapping[str, tuple[Callable[[Any], Any], Any]]
) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a table's keys, or their defaults, and what is wrong."""
    built: dict[str, Any] = {}
    wrong = [_unknown(key) for key in found if key not in keys and not (key == "mailbox" and keys is TOP_KEYS)]
    for key, (convert, default) in keys.items():
        if key in found:
            try:
                built[key] = convert(found[key])
            except (OSError, ValueError) as error:
                wrong.append(f"{key} {values.reason(error)}")
        elif default is REQUIRED:
            wrong.append(f"{key} is missing")
        else:
            built[key] = default
    return built, wrong


def _unknown(key: str) -> str:
    name = key if re.fullmatch(r"[\w-]{1,40}", key, re.ASCII) else "a key in quotes"  # it may be anything
    return f"{name} is not known" + (f" here: {MISPLACED[key]}" if key in MISPLACED else "")


def _contradictions(built: dict[str, Any], table: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with values that are right by themselves; what could not be built is not looked at."""
    wrong = []
    if ("password_file" in table) == ("oauth" in table):
        wrong.append("password_file must be given, or oauth, and not both")
    elif "oauth" in table and "server" in built:
        wrong += _grant(built)
    if built.get("model") and "recipient" not in table:
        wrong.append("model needs a recipient: it is mail for this address that becomes its records")
    is_pop3 = "server" in built and _protocol(built["server"]) == POP3
    for key in ("done", "refused"):
        action: Action = built.get(key, Action(KEEP))
        if is_pop3 and action.verb not in POP3_VERBS:
            wrong.append(f'{key} must be "keep" or "delete": POP3 has no flags and no folders')
        elif action.verb == MOVE and _canonical(action.folder) == _canonical(built.get("folder", "")):
            wrong.append(f"{key} moves into the folder that is read")
    if is_pop3 and _canonical(built.get("folder", INBOX)) != INBOX:
        wrong.append("folder is IMAP's: POP3 has one maildrop")
    return wrong


def _grant(built: dict[str, Any]) -> list[str]:
    """Put a grant in the place of what says how to get it, and return what is wrong with that."""
    try:
        built["oauth"] = oauth.grant(built["oauth"], _protocol(built["server"]))
    except (OSError, ValueError) as error:
        return [f"oauth {values.reason(error)}"]
    return []


def _mailbox(built: Mapping[str, Any]) -> Mailbox:
    others = {name: built[name] for name in Mailbox._fields if name not in ("password", "grant")}
    return Mailbox(password=built["password_file"], grant=built["oauth"], **others)


def _twice(of_each: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return which mailboxes have the same name, or are the same."""
    names = [built["name"] for built in of_each if "name" in built]
    wrong = [f"more than one mailbox has the name {name}" for name in dict.fromkeys(names) if names.count(name) > 1]
    by_place: dict[tuple[Any, ...], list[str]] = {}
    for built in of_each:
        if built.keys() >= {"name", "server", "login", "folder"}:
            place = (*_address(built["server"]), built["login"], _canonical(built["folder"]))
            by_place.setdefault(place, []).append(built["name"])
    same = [dict.fromkeys(found) for found in by_place.values()]
    return wrong + [f"mailboxes {' and '.join(found)} are the same" for found in same if len(found) > 1]
