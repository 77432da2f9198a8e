"""The walk of one message: match, prepare, post, judge, hold.

Whoever calls it (the pipe with its one message, the service with each of its own) has read the message and its
envelope. ``plan()`` says what would be done, and touches nothing; ``deliver()`` does it.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

from mailgate import alias_list, hold, journal, message, shapes
from mailgate.addresses import Addresses, Match, choices, match
from mailgate.database import Client
from mailgate.envelope import Envelope, Raw
from mailgate.judge import judge
from mailgate.log import Facts, error_text, quoted
from mailgate.outcome import Ended, Outcome, Verdict
from mailgate.settings import Settings


class Plan(NamedTuple):
    """What would be done with a message.

    ``choices`` has the addresses to deliver to, best first; a later one counts where the database knows none of those
    before it. ``added`` is what is put in front of the message for the first one.
    """

    matches: list[Match]
    choices: list[list[str]]
    added: bytes
    message_id: str

    @property
    def unmatched(self) -> list[str]:
        """The recipients that no rule takes."""
        return [each.recipient.address for each in self.matches if not each.rule]


def plan(
    addresses: Addresses, envelope: Envelope, raw: Raw, settle: Callable[[list[Match]], list[Match]] | None = None
) -> Plan:
    """Return what is to be done with a message: match and prepare.

    ``settle`` may ask the database which of several addresses is meant (see alias_list.settle).
    """
    matches = match(addresses, envelope.recipients)
    if settle:
        matches = settle(matches)
    found = choices(matches)
    return Plan(matches, found, *message.prepare(raw, envelope.sender, found[0]))


def explanation(planned: Plan) -> bytes:
    """Return a plan for a person: a line for each recipient, then the fields that are put in front."""
    lines = []
    for found in planned.matches:
        known_as = ", else as ".join(map(quoted, found.addresses))
        text = f"delivered as {known_as} ({found.rule})" if found.rule else "no rule matches"
        lines.append(f"{quoted(found.recipient.address)}: {text}\n")
    return "".join(lines).encode() + planned.added


def deliver(
    settings: Settings,
    client: Client,
    envelope: Envelope,
    raw: Raw,
    facts: Facts,
    *,
    addresses: Addresses | None = None,
    claim: Callable[..., AbstractContextManager[journal.Claim]] = journal.claim,
    on_answer: Callable[[], None] = lambda: None,
) -> Verdict:
    """Take a message to its ending, and note in ``facts`` what the log tells of it.

    ``addresses`` decide in place of the settings' own, ``claim`` is called for journal.claim(), and ``on_answer`` when
    the database has answered. Raises nothing but what a signal raises. It is longer than other functions: all the steps
    stand in one place.
    """
    facts.model = settings.model
    deciding = addresses or settings.addresses
    try:
        facts.describe(envelope, raw.head())
        planned = plan(deciding, envelope, raw, lambda found: alias_list.settle(client, deciding, found))
        facts.unmatched, facts.message_id = planned.unmatched, planned.message_id
        if not planned.choices[0]:
            return Verdict(Outcome.UNKNOWN_RECIPIENT, "no rule matches")

        # unless another delivery of this message runs, or the database has answered this one already
        until = time.monotonic() + settings.patience
        with claim(settings, planned.message_id, facts.queue_id, planned.added, until) as claimed:
            verdict, added = claimed.answer or _too_slow(client, raw), planned.added
            if not verdict:
                verdict, added = _posted(client, envelope, raw, planned, until, claimed.note_begun)
            on_answer()  # it has happened, and no late signal shall say otherwise
            claimed.end(verdict)
            if verdict.outcome is Outcome.HELD:
                if not settings.hold:
                    return Verdict(Outcome.DATABASE_ERROR, verdict.cause)
                path = hold.store(settings.hold, added, raw)
                verdict = verdict._replace(cause=f"{verdict.cause}; kept as {path}")
                claimed.end(verdict._replace(outcome=Outcome.ACCEPTED))  # for a next try: it is kept already
        return verdict
    except Ended as ended:
        return ended.verdict
    except Exception as error:  # our own bug, or a full disk
        return Verdict(Outcome.FAILED, error_text(error))


def _too_slow(client: Client, raw: Raw) -> Verdict | None:
    """Return the ending of a message whose header would keep the database busy for too long."""
    cause = shapes.too_slow(raw.head())
    return Verdict(Outcome.HELD, cause) if cause and not client.reads_all_shapes() else None


def _posted(
    client: Client, envelope: Envelope, raw: Raw, planned: Plan, until: float, note_begun: Callable[[], None]
) -> tuple[Verdict, bytes]:
    """Return what the database's answer means, and the fields in front of the message that it answered.

    Where it knows none of the addresses, it has stored nothing, and may know those of the next choice.
    """
    added = planned.added
    verdict = judge(client.post(added, raw, until, note_begun))
    for addresses in planned.choices[1:]:
        if verdict.outcome is not Outcome.UNKNOWN_RECIPIENT:
            break
        added, _ = message.prepare(raw, envelope.sender, addresses)
        verdict = judge(client.post(added, raw, until, note_begun))
    return verdict, added
