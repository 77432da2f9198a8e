"""Addresses: those of the database, and the match of a recipient with them.

The answer is the one that the database would give (an alias by its full address, or by its local-part where
local-part based detection is on; its catchall and bounce addresses), so that what it would refuse is refused
without asking it. Case never matters, a subdomain is another domain, and a domain's two spellings (müller.example and
xn--mller-kva.example) are one.

A recipient that the MTA has redirected has two addresses, and either may be the database's:

    who says what the database has        which address counts, where both may be the database's
    the operator names the original one   the original one
    the operator names the domain only    the database has to say: first the one that the MTA has made of it
    the database's own list               the one that the MTA has made of it

In the last two rows, a catchall or bounce address comes last: an MTA may make it of every address.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from mailgate.envelope import Recipient, ascii_domain, is_address, join_address, split_address


class Addresses(NamedTuple):
    """What the database receives mail for. Addresses are in lower case, their domains with A-labels.

    ``aliases``, ``catchall`` and ``bounce`` are full addresses; a catchall or bounce address without a domain
    (``catchall@``) is known in all, as by an Odoo before 17. ``allowed_domains`` are those in which an alias is known
    by its local-part, besides the alias domains; without any, it is known in all. ``mailboxes`` are the full addresses
    of mailboxes whose mail is the database's, whatever it knows of them. Without aliases and local-parts, the domains
    alone say what is the database's, except in a list, which names all that there is.
    """

    alias_domains: frozenset[str] = frozenset()
    allowed_domains: frozenset[str] = frozenset()
    aliases: frozenset[str] = frozenset()
    local_parts: frozenset[str] = frozenset()
    catchall: frozenset[str] = frozenset()
    bounce: frozenset[str] = frozenset()
    mailboxes: frozenset[str] = frozenset()
    recipient_delimiter: str = ""
    is_list: bool = False  # the database's own, not what the operator says of it


class Match(NamedTuple):
    """A recipient, the addresses that the database may know it by, best first, and the rule that says so.

    Without a rule they are () and "".
    """

    recipient: Recipient
    addresses: tuple[str, ...] = ()
    rule: str = ""


def _at_known_domain(addresses: Addresses, domain: str) -> bool:
    return domain in addresses.alias_domains or domain in addresses.allowed_domains


def _names_no_alias(addresses: Addresses) -> bool:
    return not addresses.is_list and not addresses.aliases and not addresses.local_parts


def has(addresses: frozenset[str], local_part: str, domain: str) -> bool:
    """Tell whether an address, in lower case, is among catchall or bounce addresses."""
    return f"{local_part}@{domain}" in addresses or f"{local_part}@" in addresses


CATCHALL = "the catchall address of an alias domain"
BOUNCE = "the bounce address of an alias domain"
ANY = "any address, for the database decides"
BOUNCE_EXTENSION = "+"  # Odoo 14 writes bounce+ID-MODEL-ID@, whatever the MTA's delimiter is

# In the order in which they are asked, each of addresses, local-part and domain, both in lower case.
Rule = Callable[[Addresses, str, str], bool]
ADDRESS_RULES: dict[str, Rule] = {
    "an alias by its full address": lambda addresses, local_part, domain: f"{local_part}@{domain}" in addresses.aliases,
    CATCHALL: lambda addresses, local_part, domain: has(addresses.catchall, local_part, domain),
    BOUNCE: lambda addresses, local_part, domain: has(addresses.bounce, local_part, domain),
    "an alias by its local-part": lambda addresses, local_part, domain: (
        local_part in addresses.local_parts and (not addresses.allowed_domains or _at_known_domain(addresses, domain))
    ),
    "the address of a mailbox": lambda addresses, local_part, domain: f"{local_part}@{domain}" in addresses.mailboxes,
}
DOMAIN_RULES: dict[str, Rule] = {
    "any address at an alias or allowed domain": lambda addresses, local_part, domain: (
        _names_no_alias(addresses) and _at_known_domain(addresses, domain)
    ),
    ANY: lambda addresses, local_part, domain: (
        _names_no_alias(addresses) and not addresses.alias_domains and not addresses.allowed_domains
    ),
}

RULES = ADDRESS_RULES | DOMAIN_RULES


def match(addresses: Addresses, recipients: Iterable[Recipient]) -> list[Match]:
    """Return a Match for each recipient: it matches when it or its original recipient does."""
    return [_match(addresses, recipient) for recipient in recipients]


def is_ours(addresses: Addresses, recipient: Recipient) -> bool:
    """Tell whether a recipient is the database's: by its address, or by what that was before it was rewritten."""
    return bool(_match(addresses, recipient).rule)


def is_surely_ours(addresses: Addresses, address: str) -> bool:
    """Tell whether an address is the database's, by what is said of its domains and aliases."""
    return _match(addresses, Recipient(address)).rule not in ("", ANY)


def named(addresses: Addresses) -> frozenset[str]:
    """Return the full addresses; what is known in several domains stands there at the alias and allowed ones."""
    domains = addresses.alias_domains | addresses.allowed_domains
    special = addresses.catchall | addresses.bounce
    names = addresses.local_parts | {address.removesuffix("@") for address in special if address.endswith("@")}
    full = addresses.aliases | {address for address in special if not address.endswith("@")}
    return full | {f"{name}@{domain}" for name in names for domain in domains}


def known_everywhere(addresses: Addresses) -> frozenset[str]:
    """Return the local-parts that are known at any domain."""
    special = {address[:-1] for address in addresses.catchall | addresses.bounce if address.endswith("@")}
    return frozenset(special) | (frozenset() if addresses.allowed_domains else addresses.local_parts)


def choices(matches: Iterable[Match]) -> list[list[str]]:
    """Return the addresses to deliver to, best first, each choice one for each recipient that matches."""
    found = [each.addresses for each in matches if each.rule]
    count = max(map(len, found), default=1)
    return [list(dict.fromkeys(each[min(place, len(each) - 1)] for each in found)) for place in range(count)]


def _match(addresses: Addresses, recipient: Recipient) -> Match:
    original = _find(addresses, recipient, recipient.original_recipient)
    resolved = _find(addresses, recipient, recipient.address)
    if not original.rule or not resolved.rule:
        return original if original.rule else resolved
    if addresses.is_list:
        return original if resolved.rule in (CATCHALL, BOUNCE) else resolved
    if original.rule in ADDRESS_RULES:
        return original
    # a rule that names only the resolved one speaks of catchall or bounce
    first, second = (resolved, original) if resolved.rule in DOMAIN_RULES else (original, resolved)
    return first._replace(addresses=tuple(dict.fromkeys(first.addresses + second.addresses)))


def _find(addresses: Addresses, recipient: Recipient, address: str) -> Match:
    """Return what the first rule that takes an address of the recipient's makes of it.

    An address with an extension matches as it stands, by a rule for addresses, or without its extension. Odoo knows
    none, except Odoo 14 in its bounce address: that one goes whole, and then without it.
    """
    if not is_address(address):
        return Match(recipient)
    local_part, domain = split_address(address)
    domain = ascii_domain(domain)

    def first(candidate: str, rules: Iterable[str]) -> Match:
        lowered = candidate.lower(), domain.lower()
        rule = next((name for name in rules if RULES[name](addresses, *lowered)), "")
        return Match(recipient, (join_address(candidate, domain),), rule) if rule else Match(recipient)

    def base(delimiter: str) -> str:
        return (local_part.partition(delimiter)[0] if delimiter else "") or local_part

    bounce = first(base(BOUNCE_EXTENSION), [BOUNCE])
    if bounce.rule:
        whole = join_address(local_part, domain)
        return bounce._replace(addresses=tuple(dict.fromkeys((whole, *bounce.addresses))))
    found = first(local_part, ADDRESS_RULES)
    without_extension = base(addresses.recipient_delimiter)
    rules = DOMAIN_RULES if without_extension == local_part else RULES  # the address has been asked for
    return found if found.rule else first(without_extension, rules)
