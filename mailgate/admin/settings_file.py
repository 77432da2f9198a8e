"""settings: a settings file with the addresses that the database has; --update changes only their lines.

What the operator has written stays, in its order: comments, other settings, other programs' variables. Where he names
domains and no alias (neither ALIASES nor LOCAL_PARTS stands in the file), the database decides about the addresses in
them, and goes on to do so: a line of aliases would refuse each new one until the next update.
"""

import os
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping
from getpass import getpass
from io import StringIO
from typing import Any

from dotenv.parser import parse_stream

from mailgate import settings
from mailgate.addresses import Addresses
from mailgate.admin import files
from mailgate.admin.addresses import listed, writable
from mailgate.admin.desk import Answer, Command, Desk, Failed, Usage
from mailgate.admin.screen import say, table, words
from mailgate.settings import PREFIX, VARIABLES

MODE = 0o600  # of a new file, which may have the password
HEAD = "# Settings of the mail gateway; docs/settings.md explains each. The addresses are those of the database:\n"
HEAD += "# mail-gateway-admin settings --update brings them up to date.\n"
ASKED = {"URL": "URL of the database server", "DATABASE": "Name of the database", "LOGIN": "Login"}
DOMAINS, ALIASES, SPECIAL = ("ALIAS_DOMAINS", "ALLOWED_DOMAINS"), ("ALIASES", "LOCAL_PARTS"), ("CATCHALL", "BOUNCE")
OURS = (*DOMAINS, *ALIASES, *SPECIAL)
SECRETS = ("PASSWORD",)
MAX_SHOWN = 10  # addresses that come or go, of one setting


def values_of(found: Addresses) -> dict[str, list[str]]:
    """Return what the settings have to say for the same addresses to count as in a list.

    An Odoo before 17 knows catchall and bounce at any domain: there they count as local-parts, too.
    """
    names = {"CATCHALL": found.catchall, "BOUNCE": found.bounce}
    everywhere = {address[:-1] for address in found.catchall | found.bounce if address.endswith("@")}
    values = {
        "ALIAS_DOMAINS": found.alias_domains,
        "ALLOWED_DOMAINS": found.allowed_domains,
        "ALIASES": found.aliases,
        "LOCAL_PARTS": found.local_parts | everywhere,
        **{name: {address.rpartition("@")[0] for address in addresses} for name, addresses in names.items()},
    }
    return {name: writable({*addresses}) for name, addresses in values.items()}


# A line of the settings file: what is before the value, the value, and what is behind it (python-dotenv's rules).
_LINE = re.compile(
    r"""(\s*(?:export[^\S\r\n]+)?[^=\s]+[^\S\r\n]*=[^\S\r\n]*)('(?:\\'|[^'])*'|"(?:\\"|[^"])*"|.*?)"""
    r"""((?:[^\S\r\n]+\#[^\r\n]*)?[^\S\r\n]*(?:\r\n|\n|\r)?)""",
    re.DOTALL,
)


def updated(text: str, values: Mapping[str, Iterable[str]]) -> str:
    """Return the text of a settings file with these values; all else is as it was. Raises Failed."""
    new = {PREFIX + name: ",".join(value) for name, value in values.items()}
    for name, value in new.items():
        try:
            VARIABLES[name.removeprefix(PREFIX)].convert(value)
        except ValueError as error:
            raise Failed(f"the database's addresses can't be written: {name} {error}") from None
    pieces = []
    for binding in parse_stream(StringIO(text)):
        piece = binding.original.string
        if binding.key in new and binding.value != new[binding.key]:
            line = _LINE.fullmatch(piece)
            if not line:
                raise Failed(f"line {binding.original.line} can't be changed: {binding.key}")
            piece = f"{line[1]}{_quoted(new[binding.key])}{line[3]}"
        pieces.append(piece)
    there = {binding.key for binding in parse_stream(StringIO(text))}
    added = [name for name, value in new.items() if name not in there and _counts(name, value)]
    text = "".join(pieces)
    for name in added:
        text = _with_line(text, name, f"{name}={_quoted(new[name])}\n")
    return text


def _counts(name: str, value: str) -> bool:
    """Tell whether a line says something: the default needs none."""
    default = VARIABLES[name.removeprefix(PREFIX)].default
    return bool(value) and {*value.split(",")} != default


def _with_line(text: str, name: str, line: str) -> str:
    """Return the text with a line more: behind the example of it, the last line of an address, or all."""
    ours = "|".join(PREFIX + other for other in OURS)
    places = [*re.finditer(rf"(?m)^#[ \t]*{name}=.*\n?", text)] or [*re.finditer(rf"(?m)^(?:{ours})=.*\n?", text)]
    place = places[-1].end() if places else len(text)
    before = text[:place]
    return before + ("\n" if before and not before.endswith("\n") else "") + line + text[place:]


def _quoted(value: str) -> str:
    """Return a value as the settings file has it."""
    if re.fullmatch(r"[\w.,@+:/=-]*", value):
        return value
    if "'" not in value and "\\" not in value:
        return f"'{value}'"
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def chosen(text: str, values: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return the values that a file is to have: without aliases, where it names domains and leaves those open."""
    there = {str(binding.key).removeprefix(PREFIX) for binding in parse_stream(StringIO(text)) if binding.key}
    is_open = there & {*OURS} and not there & {*ALIASES}
    return {name: value for name, value in values.items() if not (is_open and name in ALIASES)}


def changes(text: str, new: str) -> list[tuple[str, list[str], list[str]]]:
    """Return which addresses come and go in each setting."""
    before, after = _sets(text), _sets(new)
    found = [(name, sorted(after[name] - before[name]), sorted(before[name] - after[name])) for name in OURS]
    return [row for row in found if row[1] or row[2]]


def _sets(text: str) -> dict[str, set[str]]:
    values = {binding.key: binding.value or "" for binding in parse_stream(StringIO(text)) if binding.key}
    return {name: {part.strip() for part in values.get(PREFIX + name, "").split(",")} - {""} for name in OURS}


def complete(variables: Mapping[str, str], arguments: Namespace) -> Mapping[str, str]:
    """Return the variables with what is given by options, or asked for. Raises Usage."""
    if arguments.update:
        if any(getattr(arguments, name.lower()) for name in (*ASKED, "PASSWORD_FILE")):
            raise Usage("--update asks the database that the settings file names")
        return variables
    found = dict(variables)
    for name in (*ASKED, "PASSWORD_FILE"):
        given = getattr(arguments, name.lower())
        found |= {name: given} if given else {}
    if arguments.password_file:
        found.pop("PASSWORD", None)
    for name, what in ASKED.items():
        if name not in found:
            found[name] = _asked(what, f"--{name.lower()}")
    if not found.keys() & {"PASSWORD", "PASSWORD_FILE"}:
        found["PASSWORD"] = _asked("Password or API key", "--password-file", is_secret=True)
    return found


def _asked(what: str, option: str, is_secret: bool = False) -> str:
    """Return what the operator types. Raises Usage where nobody sits at a terminal."""
    if not sys.stdin.isatty():
        raise Usage(f"{what}: {option} says it")
    if is_secret:
        return getpass(f"{what}: ")
    print(f"{what}: ", end="", file=sys.stderr, flush=True)
    return input().strip()


def _add_arguments(parser: ArgumentParser) -> None:
    for name, what in ASKED.items():
        parser.add_argument(f"--{name.lower()}", help=f"{what}; asked for where nobody says it")
    parser.add_argument("--password-file", metavar="FILE", help="a file with the password or API key")
    parser.add_argument("--output", metavar="FILE", help="write a new file; without it, the file is shown")
    parser.add_argument("--update", action="store_true", help="change the addresses in the settings file that is used")
    parser.add_argument("--force", action="store_true", help="also where less than half of the addresses would be left")
    parser.add_argument("--dry-run", action="store_true", help="only say what would change")


def _answer(desk: Desk, arguments: Namespace) -> Answer:
    path = settings.path_of(os.environ, arguments.env_file) if arguments.update else arguments.output
    if arguments.update and not path:
        raise Usage("--update needs a settings file: --env-file says which")
    if arguments.update and arguments.output:
        raise Usage("--update changes the settings file that is used, --output writes a new one")
    old = files.read(path) if path else None
    if old is not None and not arguments.update:
        raise Usage(f"{path} is there already: mail-gateway-admin --env-file {path} settings --update")
    text = (old or "").removeprefix("\ufeff") if arguments.update else _new(arguments.variables)
    new = updated(text, chosen(text, values_of(listed(desk))))
    if not path:
        return Answer({"settings": _shown(new)}, [], text=_shown(new))
    return _written(arguments, path, old, new)


def _new(variables: Mapping[str, str]) -> str:
    """Return a settings file with what is set, except the addresses."""
    names = [name for name in VARIABLES if name in variables and name not in OURS]
    return HEAD + "".join(f"{PREFIX}{name}={_quoted(variables[name])}\n" for name in names)


def _shown(text: str) -> str:
    """Return a settings file as it may be shown: without the password."""
    names = "|".join(PREFIX + name for name in SECRETS)
    return re.sub(rf"(?m)^({names})=.*$", r"\1=********", text)


def _written(arguments: Namespace, path: str, old: str | None, new: str) -> Answer:
    """Have the file written, unless that is not to be, and say what comes and goes. Raises Failed."""
    found = changes(old or "", new)
    before, after = (sum(map(len, _sets(text).values())) for text in (old or "", new))
    if 2 * after < before and not arguments.force:
        raise Failed(
            f"{path} stays as it is: it would name {after} addresses and domains, and names {before} (--force)"
        )
    is_new = old != new
    if is_new and not arguments.dry_run:
        say(f"Writing {path}.")
        files.replace(path, new, MODE)
    said = ("would be written" if arguments.dry_run else "is written") if is_new else "is as it should be"
    screen: list[Any] = [words(f"{path} {said}.")]
    if found:
        screen += [
            "",
            table(["setting", "comes", "goes"], [(name, _some(new), _some(gone)) for name, new, gone in found]),
        ]
    if is_new and not arguments.dry_run:
        screen += ["", "Now: systemctl reload mail-gateway-lmtp"]
    facts = {
        "file": path,
        "written": is_new and not arguments.dry_run,
        "changes": {name: {"comes": comes, "goes": goes} for name, comes, goes in found},
    }
    return Answer(facts, screen)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(names[:MAX_SHOWN]) + more


COMMAND = Command(
    "settings",
    "Make a settings file with the database's addresses, or bring those of one up to date.",
    "mail-gateway-admin settings --update --dry-run",
    _add_arguments,
    _answer,
    complete=complete,
)
