"""Match: which recipients are the database's?

The answer is the one that the database would give (an alias by its full address, or by its local-part where
local-part based detection is on; its catchall and bounce addresses), so that what it would refuse is refused
without asking it. Case never matters, and a subdomain is another domain.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from mailgate.envelope import Recipient, is_address, join_address, split_address
from mailgate.settings import Settings


class Match(NamedTuple):
    """A recipient, the address that the database will see, and the rule that says so; both "" without one."""

    recipient: Recipient
    address: str = ""
    rule: str = ""


def _at_known_domain(settings: Settings, domain: str) -> bool:
    return domain in settings.alias_domains or domain in settings.allowed_domains


def _names_no_alias(settings: Settings) -> bool:
    return not settings.aliases and not settings.local_parts


# In the order in which they are asked, each of settings, local-part and domain, the latter in lower case.
Rule = Callable[[Settings, str, str], bool]
ADDRESS_RULES: dict[str, Rule] = {
    "an alias by its full address": lambda settings, local_part, domain: f"{local_part}@{domain}" in settings.aliases,
    "the catchall address of an alias domain": lambda settings, local_part, domain: (
        local_part in settings.catchall and domain in settings.alias_domains
    ),
    "the bounce address of an alias domain": lambda settings, local_part, domain: (
        local_part in settings.bounce and domain in settings.alias_domains
    ),
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


def match(settings: Settings, recipients: Iterable[Recipient]) -> list[Match]:
    """Return a Match for each recipient.

    A recipient matches when it or its original recipient does; the original is used where both do.
    """
    return [
        Match(recipient, *(_match(settings, recipient.original_recipient) or _match(settings, recipient.address) or ()))
        for recipient in recipients
    ]


def _match(settings: Settings, address: str) -> tuple[str, str] | None:
    """Return the matching address and the rule's name.

    An address with an extension matches as it stands, by a rule for addresses, or without its extension: Odoo
    knows no extensions.
    """
    if not is_address(address):
        return None
    local_part, domain = split_address(address)
    base = local_part.partition(settings.recipient_delimiter)[0] if settings.recipient_delimiter else ""
    for candidate, rules in ((local_part, ADDRESS_RULES), (base or local_part, ADDRESS_RULES | DOMAIN_RULES)):
        for name, rule in rules.items():
            if rule(settings, candidate.lower(), domain.lower()):
                return join_address(candidate, domain), name
    return None
