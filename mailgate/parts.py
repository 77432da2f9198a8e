"""Parts: which recipients a call with a message's id serves, and which need calls of their own.

The database takes a message once, for whoever it was. The journal has whom it has served, or may have.
"""

from mailgate import alias_list, ancestry, inquiry, journal, message
from mailgate.addresses import BOUNCE, CATCHALL, Addresses, Match
from mailgate.database import Client
from mailgate.envelope import canonical_address
from mailgate.outcome import Ended
from mailgate.plan import Plan

FOR_NO_RECORD = (CATCHALL, BOUNCE)  # rules


def split(
    client: Client, addresses: Addresses, planned: Plan, served: frozenset[str]
) -> tuple[list[Match], dict[str, list[Match]]]:
    """Return the recipients whom a call with the plan's id serves, and the others, by what their own calls are named.

    Where the journal has noted a call with this id, it serves those of that call, and no others: the database has the
    message already, or may have it. Where it has not, an answer is kept apart from the aliases for another kind of
    record whom only the envelope names (a Bcc beside the address of the thread), for they would make a forward of it.
    A copy for the catchall or bounce address would make a notice or a bounce of what is on a record: it has no call.
    """
    ancestors = ancestry.ancestors(planned.raw.head())
    apart_at_first = frozenset() if served else _forwarding(client, planned, ancestors)
    mine: list[Match] = []
    apart: dict[str, list[Match]] = {}
    for each in filter(lambda match: match.rule, planned.matches):
        names = _names(each)
        if names[0] not in served and not served.isdisjoint(names):  # one of its addresses, which may be another's
            (settled,) = alias_list.settle(client, addresses, [each], is_new=False)
            each, names = settled, _names(settled)
        is_mine = not served.isdisjoint(names) if served else apart_at_first.isdisjoint(names)
        is_mine = is_mine or (bool(served) and each.rule in FOR_NO_RECORD and not ancestors)
        (mine if is_mine else apart.setdefault(names[0], [])).append(each)
    return _with_thread(client, planned, ancestors, mine, apart) if served and apart else (mine, apart)


def _names(each: Match) -> list[str]:
    """Return a recipient's addresses as the journal has them."""
    return [journal.text_of(address.lower()) for address in each.addresses]


def _forwarding(client: Client, planned: Plan, ancestors: list[str]) -> frozenset[str]:
    """Return which recipients would make a forward of an answer; none if the database does not say."""
    if not ancestors or len(planned.recipients) < 2:
        return frozenset()
    hidden = {*planned.recipients} - message.names(planned.raw.head())
    if not hidden:
        return frozenset()
    try:
        thread = inquiry.record_of(client, ancestors)
        found = inquiry.of_another_model(client, thread[0], hidden) if thread else set()
    except Ended:
        return frozenset()
    return frozenset() if found >= {*planned.recipients} else frozenset(found)


def _with_thread(
    client: Client, planned: Plan, ancestors: list[str], mine: list[Match], apart: dict[str, list[Match]]
) -> tuple[list[Match], dict[str, list[Match]]]:
    """Return the same for an answer, which is to be on its thread once, and not once for each recipient.

    It belongs there for all but aliases for another kind of record. So the plan's call serves these recipients too,
    where it has put the message on the thread, or will; where it has made a forward, another one serves them together.
    """
    if not ancestors:
        return mine, apart
    ours = [address for each in mine for address in each.addresses]
    try:
        thread = inquiry.record_of(client, ancestors)
        if not thread:
            return mine, apart
        forwards = inquiry.of_another_model(client, thread[0], [*apart, *ours])
        place = inquiry.record_of(client, [planned.message_id])
    except Ended:  # the database does not say
        return mine, apart
    together = [each for name, matches in apart.items() if name not in forwards for each in matches]
    others = {name: matches for name, matches in apart.items() if name in forwards}
    if place == thread or (not place and forwards.isdisjoint(map(canonical_address, ours))):
        return mine + together, others
    return mine, others | ({f"{thread[0]},{thread[1]}": together} if together else {})


def with_noted(planned: Plan, claimed: journal.Claim, sender: str | None) -> Plan:
    """Return a plan whose call is for all for whom a call with its id may have been.

    Which of these calls the database has is not known: so each must have been for all, or one would be lost.
    """
    if not claimed.served or claimed.ending in {outcome.name for outcome in journal.FOR_GOOD}:
        return planned
    found = [
        [*choice, *sorted(claimed.served - {journal.text_of(address.lower()) for address in choice})]
        for choice in planned.choices
    ]
    added, _ = message.prepare(planned.raw, sender, found[0], planned.instead)
    return planned._replace(choices=found, added=added)
