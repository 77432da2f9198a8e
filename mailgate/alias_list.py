"""The alias list: what the database says of its addresses, of all or of some.

The list takes the place of the operator's settings for addresses, so that the rules decide by it as they do by those.
Before version 17 an alias, catchall and bounce have no domain: they answer to their local-part at any.
Documentation: "Manage inbound messages", aliases, catchall, bounce and local-part based detection; docs/odoo.md, "The
list of addresses", has what each version answers.
"""

import time
from collections.abc import Iterable
from typing import Any

from mailgate.addresses import Addresses, Match, is_ours, match, named
from mailgate.database import BOUNCE, CATCHALL, FIRST_WITH_DOMAINS, Client
from mailgate.envelope import Recipient, ascii_domain, canonical_address, split_address
from mailgate.outcome import Ended, Outcome

PAGE_ROWS = 1000  # of a list in one answer: some 400 bytes each, of the megabyte that an answer may have
DOMAIN_FIELDS = ("name", "bounce_email", "catchall_email", "default_from_email")
ALIAS_FIELDS = ("alias_name", "alias_full_name", "alias_incoming_local")
ALLOWED = "mail.catchall.domain.allowed"
OLD_ALIAS_FIELDS = ("alias_name",)
# More parameters before 17. The second one has the address of notifications, or its local-part.
DOMAIN, DEFAULT_FROM = "mail.catchall.domain", "mail.default.from"
FIRST_VERSION, FIRST_WITH_ALLOWED = 14, 15

Rows = list[dict[str, Any]]


def read(client: Client, addresses: Addresses) -> Addresses:
    """Return the database's addresses; the operator's ``addresses`` say what it does not. Raises Ended."""
    number = _version(client)
    if number < FIRST_WITH_DOMAINS:
        found = _old_addresses(client, addresses, number, search(client, "mail.alias", OLD_ALIAS_FIELDS))
        is_empty = not found.local_parts
    else:
        domains = search(client, "mail.alias.domain", DOMAIN_FIELDS)
        aliases = search(client, "mail.alias", ALIAS_FIELDS)
        found = _addresses(domains, aliases, addresses.recipient_delimiter)
        found = found._replace(allowed_domains=_allowed(client, addresses))
        is_empty = not domains and not aliases
    if is_empty:  # by it, all mail would be refused
        raise Ended(Outcome.SETTINGS, "it is empty, or our user may see none of it")
    return found


def _version(client: Client) -> int:
    """Return the number of the server's version. Raises Ended, also for one whose list can't be read."""
    number = client.number()
    if number < FIRST_VERSION:
        raise Ended(Outcome.SETTINGS, f"the alias list can be read from version {FIRST_VERSION} on, not from {number}")
    return number


def ask(
    client: Client, addresses: Addresses, recipients: Iterable[Recipient], until: float = float("inf")
) -> Addresses:
    """Return what the database has of the recipients' addresses, as in its list.

    Raises Ended, also when nobody waits any more: from ``until`` on, by the monotonic clock.
    """
    if time.monotonic() > until:
        raise Ended(Outcome.NO_ANSWER, "it does not answer in time")
    local_parts, names = set(), set()
    delimiter = addresses.recipient_delimiter
    candidates = [address for recipient in recipients for address in recipient]
    for address in filter(str.isprintable, candidates):  # what is not can't be asked for, and is no alias
        local_part, domain = split_address(address.lower())
        local_parts |= {local_part, local_part.partition(delimiter)[0] if delimiter else local_part}
        names |= {domain, ascii_domain(domain)}
    term = ("alias_name", "in", sorted(local_parts))
    number = FIRST_WITH_DOMAINS if client.had_domains else _version(client)
    if number < FIRST_WITH_DOMAINS:
        return _old_addresses(client, addresses, number, search(client, "mail.alias", OLD_ALIAS_FIELDS, term))
    # by what both Odoo and mail_database store; what else of that name comes with it is the database's, too
    aliases = search(client, "mail.alias", ALIAS_FIELDS, term)
    domains = search(client, "mail.alias.domain", DOMAIN_FIELDS, ("name", "in", sorted(names)))
    found = _addresses(domains, aliases, delimiter)
    return found._replace(allowed_domains=_allowed(client, addresses)) if found.local_parts else found


def merged(addresses: Addresses, asked: Addresses) -> Addresses:
    """Return addresses with more of them; what was asked for has the allowed domains where it has local-parts."""
    return Addresses(
        alias_domains=addresses.alias_domains | asked.alias_domains,
        allowed_domains=asked.allowed_domains if asked.local_parts else addresses.allowed_domains,
        aliases=addresses.aliases | asked.aliases,
        local_parts=addresses.local_parts | asked.local_parts,
        catchall=addresses.catchall | asked.catchall,
        bounce=addresses.bounce | asked.bounce,
        recipient_delimiter=addresses.recipient_delimiter,
        is_list=True,
    )


def left_out(addresses: Addresses, listed: Addresses) -> list[str]:
    """Return the database's addresses that the operator's settings would refuse; those by local-part at its domains."""
    return [address for address in sorted(named(listed)) if not is_ours(addresses, Recipient(address))]


def settle(client: Client, addresses: Addresses, matches: list[Match], is_new: bool = True) -> list[Match]:
    """Return the matches without doubt about which address it is, as far as the database says.

    For a new message to one recipient its refusal would say so; one to several is not refused for one of them.
    """
    in_doubt = [each.recipient for each in matches if len(each.addresses) > 1]
    if not in_doubt or (is_new and sum(bool(each.rule) for each in matches) < 2):
        return matches
    try:
        known = merged(addresses, ask(client, addresses, in_doubt))
    except Ended:  # it is too old, or our user may not ask: then what is likely is tried first
        return matches
    found = match(known, [each.recipient for each in matches])
    return [new if len(old.addresses) > 1 and new.rule else old for old, new in zip(matches, found, strict=True)]


def search(client: Client, model: str, fields: tuple[str, ...], *terms: tuple[str, str, Any]) -> Rows:
    """Return the rows that the terms allow, by their ids, page by page. Raises Ended."""
    rows: Rows = []
    while True:
        last = rows[-1]["id"] if rows else 0
        options = {"fields": ("id", *fields), "order": "id", "limit": PAGE_ROWS}
        page = client.execute(model, "search_read", [[("id", ">", last), *terms]], options, time.monotonic())
        wanted = {"id", *fields}
        if not isinstance(page, list) or not all(_is_row(row, wanted) for row in page):
            raise Ended(Outcome.CUT_OFF, f"what {model} answers is no list of addresses")
        ids = [last, *(row["id"] for row in page)]
        if ids != sorted(set(ids)):  # or it would never end
            raise Ended(Outcome.CUT_OFF, f"what {model} answers is not in the order that was asked for")
        rows += page
        if len(page) < PAGE_ROWS:
            return rows


def _is_row(row: object, wanted: set[str]) -> bool:
    return isinstance(row, dict) and row.keys() >= wanted and isinstance(row["id"], int)


def _allowed(client: Client, addresses: Addresses) -> frozenset[str]:
    """Return the database's allowed domains, the operator's where it does not tell them. Raises Ended."""
    try:
        value = client.execute("ir.config_parameter", "get_param", [ALLOWED], {}, time.monotonic())
    except Ended as ended:  # an administrator's to read
        if ended.verdict.outcome is not Outcome.ACCESS_DENIED:
            raise
        return addresses.allowed_domains
    return _domains(value)


def _domains(value: object) -> frozenset[str]:
    """Return the domains of a parameter, which has commas between them."""
    return frozenset(canonical_address(part.strip()) for part in str(value or "").split(",")) - {""}


def _old_addresses(client: Client, addresses: Addresses, number: int, aliases: Rows) -> Addresses:
    """Return the addresses that rows of an Odoo before 17, and its parameters, name. Raises Ended.

    A list without catchall and bounce would refuse them, so one whose parameters our user may not read is none. Its
    domains are the operator's to name, except the one in a parameter; from 15 on, that and the allowed ones bound where
    aliases are known, if both are set.
    """
    keys = (CATCHALL, BOUNCE, DOMAIN, ALLOWED, DEFAULT_FROM)
    rows = search(client, "ir.config_parameter", ("key", "value"), ("key", "in", keys))
    parameters = {row["key"]: str(row["value"] or "").strip().lower() for row in rows}
    own = _domains(parameters.get(DOMAIN))
    allowed = _domains(parameters.get(ALLOWED)) if own and number >= FIRST_WITH_ALLOWED else frozenset()
    catchall, bounce = ({f"{parameters[key]}@"} if parameters.get(key) else set() for key in (CATCHALL, BOUNCE))
    domains = own if allowed else own | addresses.alias_domains
    sender = parameters.get(DEFAULT_FROM, "")
    senders = [sender] if "@" in sender else [f"{sender}@{domain}" for domain in domains if sender]
    return Addresses(
        alias_domains=domains,
        allowed_domains=allowed,
        aliases=frozenset(map(canonical_address, senders)),
        local_parts=frozenset(str(row["alias_name"]).lower() for row in aliases if row["alias_name"]),
        catchall=frozenset(catchall),
        bounce=frozenset(bounce),
        recipient_delimiter=addresses.recipient_delimiter,
        is_list=True,
    )


def _addresses(domains: Rows, aliases: Rows, delimiter: str) -> Addresses:
    """Return the addresses that rows of the database name, without the allowed domains."""

    def canonical(values: Iterable[object]) -> frozenset[str]:
        return frozenset(canonical_address(str(value)) for value in values if value and "@" in str(value))

    # An answer to a notification goes to the thread even where it is sent to the notification's own address.
    notifications = [row["default_from_email"] for row in domains]
    return Addresses(
        alias_domains=frozenset(canonical_address(row["name"]) for row in domains),
        aliases=canonical([*(row["alias_full_name"] for row in aliases), *notifications]),
        local_parts=frozenset(
            row["alias_name"].lower() for row in aliases if row["alias_name"] and row["alias_incoming_local"]
        ),
        catchall=canonical(row["catchall_email"] for row in domains),
        bounce=canonical(row["bounce_email"] for row in domains),
        recipient_delimiter=delimiter,
        is_list=True,
    )
