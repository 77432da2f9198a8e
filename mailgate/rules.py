"""Match: which recipients are the database's?

The answer is the one that the database would give (an alias by its full address, or by its local-part where
local-part based detection is on; its catchall and bounce addresses), so that what it would refuse is refused
without asking it. Case never matters, a subdomain is another domain, and a domain's two spellings (müller.example and
xn--mller-kva.example) are one.

A recipient that the MTA has redirected has two addresses, and either may be the database's. A rule that names an
address settles it: the original recipient is asked first. Where only the domain speaks for both, the database has to
say which of them it knows, and the one that the MTA has made of it comes first.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from mailgate.envelope import Recipient, ascii_domain, is_address, join_address, split_address
from mailgate.settings import Settings


class Match(NamedTuple):
    """A recipient, the addresses that the database may know him by, best first, and the rule that says so.

    Without a rule they are () and "".
    """

    recipient: Recipient
    addresses: tuple[str, ...] = ()
    rule: str = ""


def _at_known_domain(settings: Settings, domain: str) -> bool:
    return domain in settings.alias_domains or domain in settings.allowed_domains


def _names_no_alias(settings: Settings) -> bool:
    return not settings.aliases and not settings.local_parts


BOUNCE = "the bounce address of an alias domain"
BOUNCE_EXTENSION = "+"  # Odoo 14 writes bounce+ID-MODEL-ID@, whatever the MTA's delimiter is

# In the order in which they are asked, each of settings, local-part and domain, both in lower case.
Rule = Callable[[Settings, str, str], bool]
ADDRESS_RULES: dict[str, Rule] = {
    "an alias by its full address": lambda settings, local_part, domain: f"{local_part}@{domain}" in settings.aliases,
    "the catchall address of an alias domain": lambda settings, local_part, domain: (
        local_part in settings.catchall and domain in settings.alias_domains
    ),
    BOUNCE: lambda settings, local_part, domain: local_part in settings.bounce and domain in settings.alias_domains,
    "an alias by its local-part": lambda settings, local_part, domain: (
        local_part in settings.local_parts and (not settings.allowed_domains or _at_known_domain(settings, domain))
    ),
}
DOMAIN_RULES: dict[str, Rule] = {
    "any address at an alias or allowed domain": lambda settings, local_part, domain: (
        _names_no_alias(settings) and _at_known_domain(settings, domain)
    ),
    "any address, for the database decides": lambda settings, local_part, domain: (
        _names_no_alias(settings) and not settings.alias_domains and not settings.allowed_domains
    ),
}

RULES = ADDRESS_RULES | DOMAIN_RULES


def match(settings: Settings, recipients: Iterable[Recipient], known: Settings | None = None) -> list[Match]:
    """Return a Match for each recipient: it matches when it or its original recipient does.

    ``known`` has the database's own addresses, where it has said them: then only these count.
    """
    matches = [_match(settings, recipient) for recipient in recipients]
    return [_among(known, match) for match in matches] if known else matches


def _among(known: Settings, match: Match) -> Match:
    found = (_find(known, match.recipient, address) for address in match.addresses)
    return next((each for each in found if each.rule), Match(match.recipient))


def choices(matches: Iterable[Match]) -> list[list[str]]:
    """Return the addresses to deliver to, best first, each choice one for each recipient that matches."""
    found = [match.addresses for match in matches if match.rule]
    count = max(map(len, found), default=1)
    return [list(dict.fromkeys(each[min(place, len(each) - 1)] for each in found)) for place in range(count)]


def _match(settings: Settings, recipient: Recipient) -> Match:
    original = _find(settings, recipient, recipient.original_recipient)
    resolved = _find(settings, recipient, recipient.address)
    if not original.rule or not resolved.rule or original.rule in ADDRESS_RULES:
        return original if original.rule else resolved
    # a rule that names only the resolved one speaks of catchall or bounce, which an MTA may make of everything
    first, second = (resolved, original) if resolved.rule in DOMAIN_RULES else (original, resolved)
    return first._replace(addresses=tuple(dict.fromkeys(first.addresses + second.addresses)))


def _find(settings: Settings, recipient: Recipient, address: str) -> Match:
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
        rule = next((name for name in rules if RULES[name](settings, *lowered)), "")
        return Match(recipient, (join_address(candidate, domain),), rule) if rule else Match(recipient)

    def base(delimiter: str) -> str:
        return (local_part.partition(delimiter)[0] if delimiter else "") or local_part

    bounce = first(base(BOUNCE_EXTENSION), [BOUNCE])
    if bounce.rule:
        whole = join_address(local_part, domain)
        return bounce._replace(addresses=tuple(dict.fromkeys((whole, *bounce.addresses))))
    found = first(local_part, ADDRESS_RULES)
    without_extension = base(settings.recipient_delimiter)
    rules = DOMAIN_RULES if without_extension == local_part else RULES  # the address has been asked for
    return found if found.rule else first(without_extension, rules)
