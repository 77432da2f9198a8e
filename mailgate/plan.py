"""The plan: what would be done with a message, as a value that a dry run, explain() and the walk share."""

from collections.abc import Callable
from typing import NamedTuple

from mailgate import ancestry, journal, message
from mailgate.addresses import Addresses, Match, choices, match
from mailgate.envelope import Envelope, Raw
from mailgate.log import quoted


class Plan(NamedTuple):
    """What would be done with a message.

    ``choices`` has the addresses to deliver to, best first; a later one counts where the database knows none of those
    before it. ``added`` is what is put in front of the message for the first one. ``instead`` is an id in place of the
    message's own.
    """

    matches: list[Match]
    choices: list[list[str]]
    raw: Raw
    added: bytes
    message_id: str
    instead: bytes = b""

    @property
    def unmatched(self) -> list[str]:
        """The recipients that no rule takes."""
        return [each.recipient.address for each in self.matches if not each.rule]

    @property
    def recipients(self) -> tuple[str, ...]:
        """The addresses to deliver to, as the journal has them."""
        return tuple(journal.text_of(address.lower()) for address in self.choices[0])


def plan(
    addresses: Addresses, envelope: Envelope, raw: Raw, settle: Callable[[list[Match]], list[Match]] | None = None
) -> Plan:
    """Return what is to be done with a message: match and prepare.

    ``settle`` may ask the database which of several addresses is meant (see alias_list.settle).
    """
    matches = match(addresses, envelope.recipients)
    if settle:
        matches = settle(matches)
    return plan_for(matches, envelope, raw)


def plan_for(matches: list[Match], envelope: Envelope, raw: Raw, instead: bytes = b"") -> Plan:
    """Return what is to be done with a message for these recipients; ``instead`` is as Plan has it."""
    found = choices(matches)
    return Plan(matches, found, raw, *message.prepare(raw, envelope.sender, found[0], instead), instead)


def plan_again(matches: list[Match], raw: Raw) -> Plan:
    """Return what is to be done with a held message: it goes as it stands; only who is named nowhere is added."""
    head = raw.head()
    found, instead = choices(matches), ancestry.id_as_posted(head)
    named = {address.lower() for address in message.delivered_to(head)}
    lacking = [address for address in found[0] if address.lower() not in named]
    return Plan(matches, found, raw, *message.prepare(raw, None, lacking, instead), instead)


def explanation(planned: Plan) -> bytes:
    """Return a plan for a person: a line for each recipient, then the fields that are put in front."""
    lines = []
    for found in planned.matches:
        known_as = ", else as ".join(map(quoted, found.addresses))
        text = f"delivered as {known_as} ({found.rule})" if found.rule else "no rule matches"
        lines.append(f"{quoted(found.recipient.address)}: {text}\n")
    return "".join(lines).encode() + planned.added
