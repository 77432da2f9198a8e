"""One frozen value from options, environment and settings file; everything wrong with it is said at once."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from mailgate import DEADLINE, ENV_FILE, LMTP, trusted, values
from mailgate.addresses import Addresses
from mailgate.outcome import Ended, Outcome
from mailgate.values import Secret

HOLD = "/var/lib/mail-gateway/held"
JOURNAL = "/var/lib/mail-gateway/journal"
OLD_STATE = "/var/lib/mail-gateway/state"  # an earlier version's: without a journal, what it knew would be lost
PREFIX = "MAIL_GATEWAY_"

# Odoo refuses a request body over 128 MiB (413). Base64 makes four bytes of three; 64 KiB are left for the
# call around it and for the header fields that we add.
MAX_SIZE = (128 * 2**20 - 64 * 2**10) // 4 * 3


class Variable(NamedTuple):
    """One row of the table: how the text becomes a value, and the value where the variable is missing."""

    convert: Callable[[str], Any]
    default: Any = ""


REQUIRED = object()

# Each is MAIL_GATEWAY_ and this name. In Settings, or in its addresses, it has this name in lower case.
VARIABLES = {
    "URL": Variable(values.url, REQUIRED),
    "DATABASE": Variable(values.text, REQUIRED),
    "LOGIN": Variable(values.text, REQUIRED),
    "PASSWORD": Variable(values.secret),
    "PASSWORD_FILE": Variable(values.password_file),
    "ALIAS_DOMAINS": Variable(values.domains, frozenset()),
    "ALLOWED_DOMAINS": Variable(values.domains, frozenset()),
    "ALIASES": Variable(values.full_addresses, frozenset()),
    "LOCAL_PARTS": Variable(values.local_parts, frozenset()),
    "CATCHALL": Variable(values.local_parts, frozenset({"catchall"})),
    "BOUNCE": Variable(values.local_parts, frozenset({"bounce"})),
    "RECIPIENT_DELIMITER": Variable(values.delimiter),
    "MODEL": Variable(values.text),
    "MAX_SIZE": Variable(values.byte_count, MAX_SIZE),
    "CONNECT_TIMEOUT": Variable(values.timeout, 10.0),
    "READ_TIMEOUT": Variable(values.timeout, 150.0),
    "PATIENCE": Variable(values.seconds, 30.0),
    "CA_FILE": Variable(values.readable_file),
    "ALLOW_PLAINTEXT": Variable(values.yes, False),
    "HOLD": Variable(values.folder),
    "HOLD_LOOPS": Variable(values.yes, False),
    "JOURNAL": Variable(values.journal),
    "JOURNAL_PASSWORD_FILE": Variable(values.password_file, Secret()),
    "KEEP_DAYS": Variable(values.days, 30),
    "POSTMASTER": Variable(values.mailbox),
    "LOG": Variable(values.log_target, "syslog"),
    "LOG_FORMAT": Variable(values.one_of("text", "json"), "text"),
    # Those of the service.
    "LMTP": Variable(values.socket_address, LMTP),
    "SOCKET_MODE": Variable(values.file_mode, 0o600),
    "CLIENTS": Variable(values.users, frozenset()),
    "SOCKETMAP": Variable(values.socket_address),
    "WORKERS": Variable(values.worker_count, 2),
    "METRICS": Variable(values.socket_address),
    # That of the mailboxes; what is in the file is theirs to read.
    "MAILBOXES": Variable(values.absolute_path, "/etc/mail-gateway-mailboxes.toml"),
}

# JOURNAL's name in earlier versions. It counts where the new one is not set, if its folder has nothing of theirs.
OLD_NAME = "STATE"


class Settings(NamedTuple):
    """What the operator decided; durations are seconds, sizes are bytes."""

    url: str
    database: str
    login: str
    password: Secret
    addresses: Addresses
    model: str
    max_size: int
    connect_timeout: float
    read_timeout: float
    patience: float
    ca_file: str
    hold: str
    hold_loops: bool
    journal: str
    journal_password: Secret
    keep_days: int
    postmaster: str
    log: str
    log_format: str
    lmtp: str
    socket_mode: int
    clients: frozenset[str]
    socketmap: str
    workers: int
    metrics: str
    mailboxes: str


def path_of(environ: Mapping[str, str], env_file: str = "") -> str:
    """Return the path of the settings file, "" where there is none; ``env_file`` is the option."""
    return env_file or environ.get(PREFIX + "ENV_FILE") or (ENV_FILE if os.path.exists(ENV_FILE) else "")


def read(environ: Mapping[str, str], env_file: str = "") -> tuple[dict[str, str], list[str]]:
    """Return the variables that are set, by their names without prefix, the environment's before the file's.

    With them, what is wrong with the file. ``env_file`` is the option, which comes before MAIL_GATEWAY_ENV_FILE. A
    variable that is set to nothing counts as not set. Raises Ended(SETTINGS) for a file that can't be read.
    """
    path = path_of(environ, env_file)
    try:
        found, wrong = _settings_file(path) if path else ({}, [])
    except (OSError, ValueError) as error:
        reason = values.reason(error).removesuffix(f": {path}")  # which is not said twice
        raise Ended(Outcome.SETTINGS, f"settings file {path} {reason}") from None
    found.update((name, value) for name, value in environ.items() if value)
    ours = {name.removeprefix(PREFIX): value for name, value in found.items() if name.startswith(PREFIX) and value}
    return ours, [f"settings file {path}: {reason}" for reason in wrong]


def build(variables: Mapping[str, str], wrong_file: Iterable[str] = ()) -> Settings:
    """Return the settings that the variables make; ``wrong_file`` is what is wrong with the file they come from.

    Raises Ended(SETTINGS) that names every variable which is wrong, missing or unreadable, and no secret.
    """
    built, wrong = _converted(variables)
    if not built.get("journal") and not wrong.keys() & {"JOURNAL", OLD_NAME} and os.path.exists(OLD_STATE):
        wrong["JOURNAL"] = (
            f"is not set, and {JOURNAL} is not there, which takes the place of {OLD_STATE}: run make install"
        )
    if len(variables.keys() & {"PASSWORD", "PASSWORD_FILE"}) != 1:
        wrong["PASSWORD"] = "must be given, or PASSWORD_FILE, and not both"
    wrong |= {name: reason for name, reason in _contradictions(built).items() if name not in wrong}
    causes = [*wrong_file, *(f"{PREFIX}{name} {reason}" for name, reason in wrong.items())]
    if causes:
        raise Ended(Outcome.SETTINGS, "; ".join(causes))

    built["password"] = built["password"] or built["password_file"]
    built["journal_password"] = built["journal_password_file"]
    for name in ("catchall", "bounce"):  # of each alias domain
        built[name] = frozenset(f"{local}@{domain}" for local in built[name] for domain in built["alias_domains"])
    names = built.keys() & {*Addresses._fields} - {"mailboxes"}  # as a setting, that is a file
    built["addresses"] = Addresses(**{name: built[name] for name in names})
    return Settings(**{name: built[name] for name in Settings._fields})


def _converted(variables: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the value of each variable, or its default, by its name in Settings, and what is wrong with it."""
    built: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    if OLD_NAME in variables and "JOURNAL" not in variables:
        if _is_of_earlier_version(variables[OLD_NAME]):
            wrong[OLD_NAME] = (
                f"names a folder of an earlier version: make another one for the journal, name it in {PREFIX}JOURNAL, "
                f"and remove {PREFIX}{OLD_NAME}"
            )
        else:
            variables = {"JOURNAL": variables[OLD_NAME], **variables}
    if os.path.exists(JOURNAL):  # where it is, it is used: one that can't be written is an operator's mistake
        variables = {"JOURNAL": JOURNAL, **variables}
    if trusted.may_write(HOLD):
        variables = {"HOLD": HOLD, **variables}
    for name, (convert, default) in VARIABLES.items():
        try:
            built[name.lower()] = convert(variables[name]) if name in variables else default
        except (OSError, ValueError) as error:
            wrong[name] = values.reason(error)
        else:
            if built[name.lower()] is REQUIRED:
                wrong[name] = "is missing"
    return built, wrong


def _is_of_earlier_version(folder: str) -> bool:
    """Tell whether an earlier version kept its notes in a folder: 256 folders, named by a byte each."""
    is_readable = os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK, effective_ids=True)
    return is_readable and any(re.fullmatch("[0-9a-f]{2}", name) for name in os.listdir(folder))


def _contradictions(built: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong with settings that are right by themselves; what could not be built is not looked at."""
    wrong = {}
    if (
        built.get("url", REQUIRED) is not REQUIRED
        and not built["allow_plaintext"]
        and values.is_plaintext(built["url"])
    ):
        wrong["URL"] = "would send the password in plain text; use https (or set ALLOW_PLAINTEXT=yes)"
    # Two calls, the login and the message, each with its connection and its answer, and all that is waited for before.
    durations = ("patience", *2 * ("connect_timeout", "read_timeout"))
    if built.keys() >= set(durations) and sum(built[name] for name in durations) > DEADLINE:
        wrong["READ_TIMEOUT"] = f"must leave PATIENCE + 2 * (CONNECT_TIMEOUT + READ_TIMEOUT) within {DEADLINE} s"
    sockets = filter(None, (built.get("lmtp"), built.get("socketmap")))
    if built.get("clients") and not all(map(os.path.isabs, sockets)):
        wrong["CLIENTS"] = "needs a Unix socket: a TCP port does not say who connects"
    return wrong


_NAME = re.compile(f"{PREFIX}[A-Z_]+")


def _settings_file(path: str) -> tuple[dict[str, str], list[str]]:
    """Return what the file sets, without interpolation (a password may contain ``${``), and what is wrong with it."""
    from io import StringIO

    from dotenv.parser import parse_stream  # 4 ms, which only a run with a settings file pays

    with open(path, "rb") as file:
        trusted.check(path, file.fileno())
        bindings = list(parse_stream(StringIO(file.read().decode("utf-8-sig"))))
        is_public = values.is_public(file)
    found = {binding.key: binding.value or "" for binding in bindings if binding.key}
    ours = [binding.key for binding in bindings if binding.key and _NAME.fullmatch(binding.key)]
    # What is misspelt would silently change what the gateway does: an operator's mistake. Only names are quoted: all
    # else may be the password.
    misspelt = [
        str(binding.original.line)
        for binding in bindings
        if binding.error or (binding.key and (binding.value is None or _is_misspelt(binding.key)))
    ]
    unknown = sorted({name for name in ours if name.removeprefix(PREFIX) not in {*VARIABLES, OLD_NAME}})
    twice = sorted({name for name in ours if ours.count(name) > 1})
    wrong = {
        values.PUBLIC: is_public and found.get(PREFIX + "PASSWORD"),
        f"line {', '.join(misspelt)} is not {PREFIX}NAME=value": misspelt,
        f"unknown setting: {', '.join(unknown)}": unknown,
        f"set more than once: {', '.join(twice)}": twice,
    }
    return found, [reason for reason, is_so in wrong.items() if is_so]


def _is_misspelt(name: str) -> bool:
    """Tell whether a name is meant for us, but does not look so; others may stand in the file for other programs."""
    return not _NAME.fullmatch(name) and ("GATEWAY" in name.upper() or name in VARIABLES)
