"""What the database says of its addresses: the whole list, or of some.

The list takes the place of the operator's ALIASES, LOCAL_PARTS, CATCHALL and BOUNCE, so that the rules decide by it as
they do by those. Documentation: "Manage inbound messages", aliases, catchall, bounce and local-part based detection.
"""

import time
from collections.abc import Iterable
from typing import Any

from mailgate import rules
from mailgate.database import Client
from mailgate.envelope import Recipient, ascii_domain, canonical_address, split_address
from mailgate.outcome import Ended, Outcome
from mailgate.rules import Match
from mailgate.settings import Settings

PAGE = 1000  # rows of a list in one answer: some 400 bytes each, of the megabyte that an answer may have
LISTS = ("alias_domains", "allowed_domains", "aliases", "local_parts", "catchall", "bounce")  # of Settings
WITH_DOMAIN = LISTS[:3]  # the others are of local-parts
DOMAIN_FIELDS = ("name", "bounce_email", "catchall_email", "default_from_email")
ALIAS_FIELDS = ("alias_name", "alias_full_name", "alias_incoming_local")
ALLOWED = "mail.catchall.domain.allowed"
FIRST_VERSION = 17  # the documentation that this follows; before it, an alias answers to its local-part anywhere

Rows = list[dict[str, Any]]


def read(client: Client, settings: Settings) -> Settings:
    """Return the settings with the database's addresses in place of the operator's. Raises Ended."""
    version = client.version(time.monotonic())
    number = version.get("server_version_info", [0])[0] if isinstance(version, dict) else 0
    if isinstance(number, int) and number < FIRST_VERSION:
        raise Ended(Outcome.SETTINGS, f"the alias list can be read from version {FIRST_VERSION} on, not from {number}")
    domains = _search(client, "mail.alias.domain", DOMAIN_FIELDS)
    aliases = _search(client, "mail.alias", ALIAS_FIELDS)
    lists: dict[str, Any] = _lists(domains, aliases, _allowed(client, settings))
    return settings._replace(**lists)


def ask(
    client: Client, settings: Settings, recipients: Iterable[Recipient], until: float = float("inf")
) -> dict[str, frozenset[str]]:
    """Return what the database has of the recipients' addresses, as in its list.

    Raises Ended, also when nobody waits any more: from ``until`` on, by the monotonic clock.
    """
    if time.monotonic() > until:
        raise Ended(Outcome.NO_ANSWER, "it does not answer in time")
    local_parts, names = set(), set()
    delimiter = settings.recipient_delimiter
    addresses = [address for recipient in recipients for address in recipient]
    for address in filter(str.isprintable, addresses):  # what is not can't be asked for, and is no alias
        local_part, domain = split_address(address.lower())
        local_parts |= {local_part, local_part.partition(delimiter)[0] if delimiter else local_part}
        names |= {domain, ascii_domain(domain)}
    # by what both Odoo and mail_database store; what else of that name comes with it is the database's, too
    aliases = _search(client, "mail.alias", ALIAS_FIELDS, ("alias_name", "in", sorted(local_parts)))
    domains = _search(client, "mail.alias.domain", DOMAIN_FIELDS, ("name", "in", sorted(names)))
    lists = _lists(domains, aliases, frozenset())
    if lists["local_parts"]:
        return {**lists, "allowed_domains": _allowed(client, settings)}
    del lists["allowed_domains"]
    return lists


def _search(client: Client, model: str, fields: tuple[str, ...], *terms: tuple[str, str, Any]) -> Rows:
    """Return the rows that the terms allow, page by page. Raises Ended."""
    rows: Rows = []
    while True:
        last = rows[-1]["id"] if rows else 0
        options = {"fields": ("id", *fields), "order": "id", "limit": PAGE}
        page = client.execute(model, "search_read", [[("id", ">", last), *terms]], options, time.monotonic())
        wanted = {"id", *fields}
        if not isinstance(page, list) or not all(isinstance(row, dict) and row.keys() >= wanted for row in page):
            raise Ended(Outcome.CUT_OFF, f"what {model} answers is no list of addresses")
        ids = [last, *(row["id"] for row in page)]
        if ids != sorted(set(ids)):  # or it would never end
            raise Ended(Outcome.CUT_OFF, f"what {model} answers is not in the order that was asked for")
        rows += page
        if len(page) < PAGE:
            return rows


def _allowed(client: Client, settings: Settings) -> frozenset[str]:
    """Return the allowed domains, the database's and the operator's. Raises Ended."""
    try:
        value = client.execute("ir.config_parameter", "get_param", [ALLOWED], {}, time.monotonic())
    except Ended as ended:  # an administrator's to read; without it, the settings' count
        if ended.verdict.outcome is not Outcome.ACCESS_DENIED:
            raise
        value = ""
    return settings.allowed_domains | {part.strip() for part in str(value or "").split(",")} - {""}


def _lists(domains: Rows, aliases: Rows, allowed: frozenset[str]) -> dict[str, frozenset[str]]:
    """Return the lists of LISTS."""
    # An answer to a notification goes to the thread even where it is sent to the notification's own address.
    addresses = [row[field] for row in domains for field in ("bounce_email", "catchall_email", "default_from_email")]
    addresses = [address for address in addresses if address and "@" in address]
    addresses += [row["alias_full_name"] for row in aliases if "@" in (row["alias_full_name"] or "")]
    bounces = [row["bounce_email"] for row in domains if row["bounce_email"]]
    lists: tuple[Iterable[str], ...] = (
        (row["name"] for row in domains),
        allowed,
        addresses,
        (row["alias_name"] for row in aliases if row["alias_name"] and row["alias_incoming_local"]),
        (),  # among the addresses: each domain has its own
        (split_address(bounce)[0] for bounce in bounces),  # here too, for those with an extension
    )
    return {
        name: frozenset(map(canonical_address if name in WITH_DOMAIN else str.lower, items))
        for name, items in zip(LISTS, lists, strict=True)
    }


def merged(settings: Settings, lists: dict[str, frozenset[str]]) -> Settings:
    """Return the settings with more in their lists; the allowed domains are whole where they are there."""
    more: dict[str, Any] = {name: getattr(settings, name) | items for name, items in lists.items()}
    return settings._replace(**{**more, "allowed_domains": lists.get("allowed_domains", settings.allowed_domains)})


def settled(client: Client, settings: Settings, matches: list[Match]) -> list[Match]:
    """Return the matches without doubt about which address it is, as far as the database says.

    For a message to one recipient its refusal would say so; one to several is not refused for one of them.
    """
    in_doubt = [match.recipient for match in matches if len(match.addresses) > 1]
    if not in_doubt or sum(bool(match.rule) for match in matches) < 2:
        return matches
    try:
        known = merged(settings, ask(client, settings, in_doubt))
    except Ended:  # it is too old, or our user may not ask: then what is likely is tried first
        return matches
    found = rules.match(settings, [match.recipient for match in matches], known)
    return [new if len(match.addresses) > 1 and new.rule else match for match, new in zip(matches, found, strict=True)]
