"""addresses: every address that the database takes now, as a list for a mail server that refuses all others.

A mail server refuses for good whom a list does not have. So an answer that can't be right never replaces one: there is
none, it is empty, or it has less than half of what the file has. The mail server goes on with the file that it has.
"""

import json
import re
import shlex
import subprocess
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any, NamedTuple

from mailgate import alias_list
from mailgate.addresses import BOUNCE_EXTENSION, Addresses, known_everywhere, named
from mailgate.admin import files
from mailgate.admin.desk import Answer, Command, Desk, Failed, as_caller
from mailgate.admin.screen import plain, say
from mailgate.outcome import Ended

MODE = 0o644  # of a new file: a mail server reads it as a user of its own
MADE = "# Made by mail-gateway-admin"  # how a table begins, so that it may be replaced
EVERYWHERE = "*"  # in the place of a domain


def listed(desk: Desk) -> Addresses:
    """Return what the database takes now. Raises Failed."""
    try:
        return alias_list.read(desk.client, desk.settings.addresses)
    except Ended as ended:
        cause = ended.verdict.cause or ended.verdict.outcome.text
        raise Failed(f"the database's addresses can't be read: {plain(cause)}") from None


# What needs quotes in an address (RFC 5322, 3.2.3), or would end a line or a key of a table: no alias has it.
_ODD = re.compile(r"[\s,;:<>()\[\]\"\\]")


def writable(addresses: set[str] | frozenset[str]) -> list[str]:
    """Return those that can stand in a table, in order; ``info@*`` is known at any domain."""
    return sorted(address for address in addresses if address.isprintable() and not _ODD.search(address))


def _plain(found: Addresses, delimiter: str) -> list[str]:
    return writable(named(found) | {f"{local_part}@{EVERYWHERE}" for local_part in known_everywhere(found)})


SPECIAL = "#*^"  # what a line or a key may not begin with, for it is a comment or an expression then


def _keys(found: Addresses) -> list[str]:
    return [address for address in writable(named(found)) if address[0] not in SPECIAL]


def _postfix(found: Addresses, delimiter: str) -> list[str]:
    """Return lines of a table of addresses (postmap(1), texthash)."""
    return [f"{address} ok" for address in _keys(found)]


def _postfix_regexp(found: Addresses, delimiter: str) -> list[str]:
    """Return lines of a table of expressions (regexp_table(5)): what no list of addresses can have."""
    return [f"/{pattern}/ ok" for pattern in _patterns(found, delimiter)]


def _exim(found: Addresses, delimiter: str) -> list[str]:
    """Return lines for a lookup by nwildlsearch: addresses, and expressions, which begin with ^."""
    return _keys(found) + _patterns(found, delimiter)


def _json(found: Addresses, delimiter: str) -> list[str]:
    """Return the lines of what --json prints, without the first one."""
    return json.dumps(facts(found), indent=2).splitlines()[1:]


def _patterns(found: Addresses, delimiter: str) -> list[str]:
    """Return expressions for what can't be a key: local-parts known everywhere, and bounce addresses as of Odoo 14.

    Postfix takes no extension off an address that it looks up among expressions.
    """
    extension = f"({_quoted(delimiter)}[^@]*)?" if delimiter else ""
    special = [f"^{_quoted(address)}$" for address in writable(named(found)) if address[0] in SPECIAL]
    everywhere = [f"^{_quoted(local_part)}{extension}@" for local_part in writable(known_everywhere(found))]
    bounces = [address.rpartition("@") for address in writable(found.bounce)]
    ends = {"": "@"} | {domain: f"@{_quoted(domain)}$" for _, _, domain in bounces if domain}
    extended = [f"^{_quoted(name)}{_quoted(BOUNCE_EXTENSION)}[^@]*{ends[domain]}" for name, _, domain in bounces]
    return [*special, *everywhere, *extended]


def _quoted(text: str) -> str:
    """Return an expression for a text, as both POSIX and Perl read it."""
    return re.sub(r"[][.^$*+?{}|()/\\]", r"\\\g<0>", text)


def facts(found: Addresses) -> dict[str, Any]:
    """Return a list for a program."""
    return {
        "addresses": sorted(named(found)),
        "everywhere": sorted(known_everywhere(found)),
        "alias_domains": sorted(found.alias_domains),
        "allowed_domains": sorted(found.allowed_domains),
        "catchall": sorted(found.catchall),
        "bounce": sorted(found.bounce),
    }


class Format(NamedTuple):
    """A format: what it is for, its first line, and what makes the others of a list and the settings' delimiter."""

    summary: str
    first: str
    lines: Callable[[Addresses, str], list[str]]


FORMATS = {
    "plain": Format("an address in each line; info@* is known at any domain", "", _plain),
    "json": Format("what --json prints", "{", _json),
    "postfix": Format("a texthash table for relay_recipient_maps", f"{MADE} addresses --format postfix", _postfix),
    "postfix-regexp": Format(
        "a regexp table to be named behind it: local-part based detection",
        f"{MADE} addresses --format postfix-regexp",
        _postfix_regexp,
    ),
    "exim": Format("a file for MAIL_GATEWAY_RECIPIENTS (nwildlsearch)", f"{MADE} addresses --format exim", _exim),
}


def text_of(first: str, lines: list[str]) -> str:
    """Return a file: its first line, where it has one, and the others."""
    return "".join(f"{line}\n" for line in [*filter(None, [first]), *lines])


def objection(old: str | None, first: str, lines: list[str]) -> str:
    """Return why a file may not be replaced by these lines, ``""`` where nothing is to be said against it."""
    if not lines:
        return "there would be no address in it"
    if not old:
        return ""
    if not old.startswith(first):
        return "what is there was not made by this command"
    before = sum(bool(line.strip()) and not line.startswith("#") for line in old.splitlines())
    if 2 * len(lines) < before:
        return f"it would have {len(lines)} addresses, and has {before}"
    return ""


def _add_arguments(parser: ArgumentParser) -> None:
    summaries = "; ".join(f"{name}: {each.summary}" for name, each in FORMATS.items())
    parser.add_argument("--format", choices=FORMATS, default="plain", help=summaries)
    add_output(parser)


def add_output(parser: ArgumentParser) -> None:
    """Add the options of a command that makes a file."""
    parser.add_argument("--output", metavar="FILE", help="put it into this file's place, in one step")
    parser.add_argument("--then", metavar="COMMAND", help="run it when the file was replaced: 'postfix reload'")
    parser.add_argument("--force", action="store_true", help="also where the answer looks wrong")
    parser.add_argument("--dry-run", action="store_true", help="only say whether the file would be replaced")


def _answer(desk: Desk, arguments: Namespace) -> Answer:
    found = listed(desk)
    if arguments.output and desk.settings.model and not arguments.force:
        raise Failed(
            f"MAIL_GATEWAY_MODEL takes what no alias takes, and by a list that would be refused; {arguments.output} "
            "stays as it is (--force)"
        )
    chosen = FORMATS[arguments.format]
    delimiter = desk.settings.addresses.recipient_delimiter
    return output(arguments, facts(found), chosen.first, chosen.lines(found, delimiter))


def output(arguments: Namespace, found: dict[str, Any], first: str, lines: list[str]) -> Answer:
    """Return the lines to be printed, or have them replace a file, and say so. Raises Failed."""
    text = text_of(first, lines)
    path = arguments.output
    if not path:
        return Answer(found, [], text=text)
    old = files.read(path)
    wrong = objection(old, first, lines)
    if wrong and not arguments.force:
        raise Failed(f"{path} stays as it is: {wrong} (--force)")
    is_new = old != text
    if is_new and not arguments.dry_run:
        say(f"Replacing {path}{f', then running: {arguments.then}' if arguments.then else '.'}")
        files.replace(path, text, MODE)
        _run(arguments.then)
    said = ("would be replaced" if arguments.dry_run else "is replaced") if is_new else "is as it should be"
    return Answer(
        found | {"file": path, "replaced": is_new and not arguments.dry_run}, [f"{path} {said}: {len(lines)}"]
    )


def _run(command: str | None) -> None:
    """Run a command as who started the desk; what it prints is his to read. Raises Failed."""
    if not command:
        return
    with as_caller():
        try:
            status = subprocess.run(shlex.split(command), stdin=subprocess.DEVNULL, check=False).returncode
        except (OSError, ValueError) as error:
            raise Failed(f"the file is replaced, but {command!r} can't be run: {error}") from None
    if status:
        raise Failed(f"the file is replaced, but {command!r} ended with status {status}")


COMMAND = Command(
    "addresses",
    "List every address that the database takes now, also as a table for Postfix or Exim.",
    "mail-gateway-admin addresses --format postfix --output /etc/postfix/mail-gateway/recipients",
    _add_arguments,
    _answer,
)
