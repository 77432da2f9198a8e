"""The mailboxes file: which mailboxes are read, and what becomes of their mail there; everything wrong is said at once.

It is TOML, for it has a table for each mailbox. docs/mailboxes.md lists the keys.
"""

import os
import re
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
        return SCHEMES[urlsplit(self.server).scheme][0]

    @property
    def is_tls(self) -> bool:
        """Whether TLS comes before the first word of the protocol; else there is STARTTLS."""
        return SCHEMES[urlsplit(self.server).scheme][1]

    @property
    def host(self) -> str:
        """The server's name or address."""
        return urlsplit(self.server).hostname or ""

    @property
    def port(self) -> int:
        """The server's port."""
        return urlsplit(self.server).port or SCHEMES[urlsplit(self.server).scheme][2]


class Mailboxes(NamedTuple):
    """The file: the folder in which is kept what must be known next time, where metrics are read, and the mailboxes."""

    folder: str
    metrics: str
    mailboxes: tuple[Mailbox, ...]


# --- values: each takes what TOML has and raises ValueError, whose text follows the key's name, or OSError ------------


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError('must be a text: "..."')
    return values.text(value)


def _name(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,63}", _text(value), re.ASCII):
        raise ValueError("must be letters, digits, dots and hyphens")
    return str(value)


def _server(value: Any) -> str:
    try:
        parts = urlsplit(_text(value))
        valid = parts.scheme in SCHEMES and parts.hostname and parts.port != 0 and not parts.path.strip("/")
    except ValueError:
        valid = False
    if not valid or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("must be a URL like imaps://imap.example.com (or imap, pop3s, pop3)")
    return str(value).rstrip("/")


def _file(convert: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Return a converter of a file's path; one that is not absolute is the name of one of systemd's credentials."""

    def converted(value: Any) -> Any:
        credentials = os.environ.get("CREDENTIALS_DIRECTORY")
        if not os.path.isabs(_text(value)) and not credentials:
            raise ValueError("must be an absolute path, or the name of a credential of systemd's")
        return convert(os.path.join(credentials or "", value))

    return converted


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


REQUIRED = object()
KEYS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "name": (_name, REQUIRED),
    "server": (_server, REQUIRED),
    "login": (_text, REQUIRED),
    "password_file": (_file(values.password_file), Secret()),
    "oauth": (lambda value: value, None),  # it depends on the protocol; see _mailbox()
    "folder": (_text, "INBOX"),
    "recipient": (_recipient, ""),
    "model": (_text, ""),
    "done": (_action, Action(KEEP)),
    "refused": (_action, Action(KEEP)),
    "since": (_date, None),
    "ca_file": (_file(values.readable_file), ""),
}
TOP_KEYS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "folder": (lambda value: values.own_folder(_text(value)), FOLDER),
    "metrics": (lambda value: values.socket_address(_text(value)), ""),
}


# --- the file ---------------------------------------------------------------------------------------------------------


def read(path: str) -> Mailboxes:
    """Return what a mailboxes file says. Raises Ended(SETTINGS), which names all that is wrong, and no secret."""
    try:
        with open(path, "rb") as file:
            trusted.check(path, file.fileno())
            found = tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        raise Ended(Outcome.SETTINGS, f"mailboxes file {path} is not TOML: {error}") from None
    except (OSError, ValueError) as error:
        reason = values.reason(error).removesuffix(f": {path}")
        raise Ended(Outcome.SETTINGS, f"mailboxes file {path} {reason}") from None
    built, wrong = _built(found)
    if wrong:
        raise Ended(Outcome.SETTINGS, "; ".join(f"mailboxes file {path}: {each}" for each in wrong))
    return built


def _built(found: Mapping[str, Any]) -> tuple[Mailboxes, list[str]]:
    tables = found.get("mailbox")
    top, wrong = _converted({key: value for key, value in found.items() if key != "mailbox"}, TOP_KEYS)
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        return Mailboxes("", "", ()), [*wrong, "it has no table [[mailbox]]"]
    if top.get("folder") == FOLDER and not found.get("folder"):
        wrong += _reasons(TOP_KEYS["folder"][0], FOLDER, "folder")
    mailboxes = []
    for number, table in enumerate(tables, 1):
        values_of, errors = _converted(table, KEYS)
        mailbox, more = _mailbox(values_of) if not errors else (None, [])
        label = f"mailbox {values_of.get('name') or number}"
        wrong += [f"{label}: {error}" for error in [*errors, *more]]
        mailboxes += [mailbox] if mailbox else []
    wrong += _twice(each.name for each in mailboxes)
    wrong += _twice(f"{each.server} {each.login} {each.folder}" for each in mailboxes)
    return Mailboxes(top.get("folder", ""), top.get("metrics", ""), tuple(mailboxes)), wrong


def _converted(
    found: Mapping[str, Any], keys: Mapping[str, tuple[Callable[[Any], Any], Any]]
) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a table's keys, or their defaults, and what is wrong."""
    built: dict[str, Any] = {}
    wrong = [f"{key} is not known" for key in found if key not in keys]
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


def _reasons(convert: Callable[[Any], Any], value: Any, key: str) -> list[str]:
    try:
        convert(value)
    except (OSError, ValueError) as error:
        return [f"{key} {values.reason(error)}"]
    return []


def _mailbox(built: dict[str, Any]) -> tuple[Mailbox | None, list[str]]:
    """Return a mailbox of values that are right by themselves, and what is wrong with them together."""
    wrong = []
    given, grant = built.pop("oauth"), None
    password = built.pop("password_file")
    mailbox = Mailbox(password=password, grant=None, **built)
    if bool(password) == bool(given):
        wrong.append("password_file must be given, or oauth, and not both")
    elif given:
        try:
            grant = oauth.grant(given, mailbox.protocol)
        except (OSError, ValueError) as error:
            wrong.append(f"oauth {values.reason(error)}")
    if mailbox.model and not mailbox.recipient:
        wrong.append("model needs a recipient: what no alias takes is known by it")
    for key in ("done", "refused"):
        action: Action = built[key]
        if mailbox.protocol == POP3 and action.verb not in POP3_VERBS:
            wrong.append(f'{key} must be "keep" or "delete": POP3 has no flags and no folders')
        if action.verb == MOVE and action.folder == mailbox.folder:
            wrong.append(f"{key} moves into the folder that is read")
    if mailbox.protocol == POP3 and mailbox.folder != "INBOX":
        wrong.append("folder is IMAP's: POP3 has one maildrop")
    return mailbox._replace(grant=grant), wrong


def _twice(names: Iterable[str]) -> list[str]:
    found = [*names]
    return [f"{name} stands there more than once" for name in dict.fromkeys(found) if found.count(name) > 1]
