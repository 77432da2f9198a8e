"""redirections: what a custom domain needs whose mail is elsewhere; watch shows a provider's validation link.

Each address of the domain is redirected to the same name in a domain whose mail comes here: the catchall and the bounce
address, and each alias. A redirection keeps sender and message as they are; forwarding does not.
"""

import contextlib
import email
import email.message
import html
import os
import re
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, NamedTuple

from mailgate import values, watched
from mailgate.addresses import Addresses, is_ours, known_everywhere, named
from mailgate.admin.addresses import MADE, SPECIAL, add_output, listed, output, writable
from mailgate.admin.desk import Answer, Command, Desk, Failed, Usage, moment, refusal, seconds_of
from mailgate.admin.screen import pairs, plain, say, table, words
from mailgate.envelope import Recipient
from mailgate.hold import decoded

FORMATS = ("table", "postfix", "exim")
POLL_SECONDS = 0.5
OLD_SECONDS = 3600.0  # then a copy that nobody has looked at goes
MAX_BYTES, MAX_LINES = 2**18, 30  # of a message, and of its text, that are looked at


class Redirection(NamedTuple):
    """An address of the custom domain, where its mail goes, and whether the database knows that address, too."""

    address: str
    target: str
    is_known: bool


def needed(found: Addresses, domain: str, to: str) -> list[Redirection]:
    """Return the redirections of a domain: catchall and bounce first."""
    everywhere = {f"{name}@{domain}" for name in known_everywhere(found)}
    addresses = {address for address in named(found) | everywhere if address.endswith(f"@{domain}")}
    special = found.catchall | found.bounce

    def is_special(address: str) -> bool:
        return address in special or address.removesuffix(domain) in special

    ordered = sorted(writable(addresses), key=lambda address: (not is_special(address), address))
    targets = {address: f"{address.rpartition('@')[0]}@{to}" for address in ordered}
    return [Redirection(address, target, is_ours(found, Recipient(target))) for address, target in targets.items()]


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=("watch",), help="show the next mail to catchall or bounce")
    parser.add_argument("--to", metavar="DOMAIN", help="whose mail comes here: mail.company-name.com")
    parser.add_argument("--domain", help="the custom domain, where the database has several")
    parser.add_argument("--format", choices=FORMATS, default="table", help="table, for a provider's form; or a file")
    parser.add_argument("--seconds", type=seconds_of, default=900.0, help="how long watch waits (900)")
    add_output(parser)


def _answer(desk: Desk, arguments: Namespace) -> Answer:
    if arguments.what:
        return _watch(desk, arguments.seconds)
    if not arguments.to:
        raise Usage("--to says in which domain the mail comes here")
    found = listed(desk)
    to, domain = _domains(found, arguments.to, arguments.domain)
    rows = needed(found, domain, to)
    unknown = [row.target for row in rows if not row.is_known]
    facts = {"domain": domain, "to": to, "redirections": [row._asdict() for row in rows]}
    if arguments.format == "table":
        if arguments.output:
            raise Usage("--output is for --format postfix and exim")
        return _table(facts, rows, unknown)
    rows = [row for row in rows if row.address[0] not in SPECIAL]
    if arguments.format == "exim":  # which does not tell the gateway what an address was before
        rows = [row if row.is_known else row._replace(target=row.address) for row in rows]
    first = f"{MADE} redirections --format {arguments.format}"
    return output(arguments, facts, first, [f"{row.address} {row.target}" for row in rows])


def _domains(found: Addresses, to: str, domain: str | None) -> tuple[str, str]:
    """Return the domain that the mail goes to, and the one that it comes from. Raises Usage."""
    try:
        (target,), given = values.domains(to), values.domains(domain or "")
    except ValueError:
        raise Usage("--to and --domain take a domain each") from None
    own = given or found.alias_domains - {target}
    if len(own) != 1:
        raise Usage(f"--domain says which: {', '.join(sorted(own)) or 'the database names none'}")
    if target in own:
        raise Usage("--to is the domain itself")
    return target, min(own)


def _table(facts: dict[str, Any], rows: list[Redirection], unknown: list[str]) -> Answer:
    screen: list[Any] = [table(["address", "is redirected to"], [(row.address, row.target) for row in rows])]
    if unknown:
        screen += [
            "",
            words(f"The database does not know {len(unknown)} of the {len(rows)} addresses on the right.", "bad"),
            f"A provider's redirection to them would be refused. In Odoo, {facts['to']} must be an alias domain or an "
            "allowed domain of aliases with local-part based detection.",
        ]
    return Answer(facts, screen, is_good=not unknown)


def _watch(desk: Desk, seconds: float) -> Answer:
    """Return the next mail for catchall or bounce that comes within so many seconds."""
    if not desk.settings.hold:
        raise Usage("MAIL_GATEWAY_HOLD is not set, so there is no folder for a copy")
    folder = watched.folder_in(desk.settings.hold)
    say("Waiting for a mail to catchall or bounce. Ctrl-C ends it.")
    until = time.monotonic() + seconds
    try:
        while True:
            watched.watch(folder)
            for path in sorted(Path(folder, "new").glob("*.eml"), key=os.path.getmtime):
                if path.stat().st_mtime > time.time() - OLD_SECONDS:
                    return _shown(path)
                path.unlink()
            if time.monotonic() > until:
                raise Failed(f"no such mail came within {seconds:g} seconds")
            time.sleep(POLL_SECONDS)
    except OSError as error:
        raise refusal(error, path=folder) from None


def _shown(path: Path) -> Answer:
    """Return a mail for the screen, and remove its copy."""
    came = path.stat().st_mtime
    with path.open("rb") as file:
        message = email.message_from_bytes(file.read(MAX_BYTES))
    path.unlink()
    text, links = readable(message)
    facts = {
        "at": came,
        "from": decoded(str(message["From"] or "")),
        "to": decoded(str(message["To"] or "")),
        "subject": decoded(str(message["Subject"] or "")),
        "links": links,
        "text": text,
    }
    lines = [plain(line) for line in text.splitlines() if line.strip()]
    head = [("Came", moment(came)), *((name.title(), facts[name]) for name in ("from", "to", "subject"))]
    screen = [
        pairs(head),
        "",
        *map(words, lines[:MAX_LINES]),
        "",
        "Its links are above." if links else "It has no link.",
    ]
    return Answer(facts, screen, text="".join(f"{plain(link)}\n" for link in links))


_LINK = re.compile(r"https?://[^\s<>\"'\x00-\x1f\x7f]+")


def readable(message: email.message.Message) -> tuple[str, list[str]]:
    """Return the text of a mail as a person reads it, and its links in order, those of plain text first."""
    texts: dict[str, str] = {}
    for part in message.walk():
        if part.get_content_type() in ("text/plain", "text/html"):
            payload = part.get_payload(decode=True)
            charset = part.get_content_charset("utf-8")
            text = ""
            if isinstance(payload, bytes):
                text = payload.decode("utf-8", "replace")
                with contextlib.suppress(LookupError):  # a charset that nobody knows
                    text = payload.decode(charset, "replace")
            kind = part.get_content_subtype()
            texts[kind] = texts.get(kind, "") + text
    marked_up = texts.get("html", "")
    found = _LINK.findall(texts.get("plain", "")) + [html.unescape(link) for link in _LINK.findall(marked_up)]
    links = list(dict.fromkeys(link.rstrip(".,;:!?)]") for link in found))
    without_style = re.sub(r"(?is)<(style|script|head)\b.*?</\1>", "", marked_up)
    stripped = html.unescape(re.sub(r"(?s)<[^>]*>", " ", without_style))
    return texts.get("plain") or stripped, links


COMMAND = Command(
    "redirections",
    "Tell which addresses of a custom domain to redirect here; watch shows a provider's validation link.",
    "mail-gateway-admin redirections --to mail.company-name.com\n  mail-gateway-admin redirections watch",
    _add_arguments,
    _answer,
)
