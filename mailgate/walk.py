"""The walk of one message: match, prepare, post, judge, hold.

Whoever calls it (the pipe with its one message, the service with each of its own) has read the message and its
envelope. ``plan()`` says what would be done, and touches nothing; ``deliver()`` does it.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

from mailgate import alias_list, ancestry, hold, inquiry, journal, message, shapes
from mailgate.addresses import Addresses, Match, choices, is_ours, match
from mailgate.database import Client
from mailgate.envelope import Envelope, Raw, Recipient
from mailgate.judge import judge
from mailgate.log import Facts, error_text, quoted
from mailgate.outcome import Ended, Outcome, Verdict
from mailgate.settings import Settings

# Ambiguous tries in a row after which the database is asked whether it has the message, before it is given it again.
ASKS_AFTER_TRIES = 2
TO_BE_WAITED_FOR = (Outcome.NO_ANSWER, Outcome.CUT_OFF, Outcome.DATABASE_DOWN, Outcome.DATABASE_ERROR)


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
    return _planned(matches, envelope, raw)


def _planned(matches: list[Match], envelope: Envelope, raw: Raw, instead: bytes = b"") -> Plan:
    found = choices(matches)
    return Plan(matches, found, raw, *message.prepare(raw, envelope.sender, found[0], instead), instead)


def explanation(planned: Plan) -> bytes:
    """Return a plan for a person: a line for each recipient, then the fields that are put in front."""
    lines = []
    for found in planned.matches:
        known_as = ", else as ".join(map(quoted, found.addresses))
        text = f"delivered as {known_as} ({found.rule})" if found.rule else "no rule matches"
        lines.append(f"{quoted(found.recipient.address)}: {text}\n")
    return "".join(lines).encode() + planned.added


class Job(NamedTuple):
    """What a message's way to its ending needs; see deliver()."""

    settings: Settings
    client: Client
    envelope: Envelope
    facts: Facts
    addresses: Addresses
    claim: Callable[..., AbstractContextManager[journal.Claim]]
    on_answer: Callable[[], None]
    keep: Callable[[str, bytes, Raw, str], None]
    until: float  # monotonic seconds


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
    keep: Callable[[str, bytes, Raw, str], None] = hold.store,
) -> Verdict:
    """Take a message to its ending, and note in ``facts`` what the log tells of it.

    ``addresses`` decide in place of the settings' own, ``claim`` is called for journal.claim(), ``keep`` for
    hold.store(), and ``on_answer`` when the database has answered. Raises nothing but what a signal raises.
    """
    facts.model = settings.model
    deciding = addresses or settings.addresses
    try:
        facts.describe(envelope, raw.head())
        planned = plan(deciding, envelope, raw, lambda found: alias_list.settle(client, deciding, found))
        facts.unmatched, facts.message_id, facts.posted_as = planned.unmatched, planned.message_id, []
        if not planned.choices[0]:
            return Verdict(Outcome.UNKNOWN_RECIPIENT, "no rule matches")
        until = time.monotonic() + settings.patience
        return _ending(Job(settings, client, envelope, facts, deciding, claim, on_answer, keep, until), planned)
    except Ended as ended:
        return ended.verdict
    except Exception as error:  # our own bug, or a full disk
        return Verdict(Outcome.FAILED, error_text(error))


def _ending(job: Job, planned: Plan) -> Verdict:
    """Return the ending of a message under the plan's id, and of its parts under theirs.

    A message that the journal knows under another Date is another one, and goes under an id of its own. So does each
    recipient whom the call with this id has not served, or is not to serve.
    """
    if planned.instead:
        job.facts.posted_as.append(planned.message_id)
    date = ancestry.date(planned.raw.head())
    delivery = journal.Delivery(planned.message_id, job.facts.queue_id, planned.added, date)
    with job.claim(job.settings, delivery, job.until) as claimed:
        if None not in (claimed.date, date) and claimed.date != date:
            other = ancestry.derived_id(planned.message_id, str(date))
            return _ending(job, _planned(planned.matches, job.envelope, planned.raw, other))
        mine, apart = _split(job, planned, claimed)
        whole = planned if not apart else _planned(mine, job.envelope, planned.raw, planned.instead)
        verdicts = [_of_call(job, whole, claimed, is_last=not apart)] if mine else []
    if apart and not any(verdict.outcome.is_temporary for verdict in verdicts):
        verdicts += _of_parts(job, planned, apart)
    temporary = [verdict for verdict in verdicts if verdict.outcome.is_temporary]
    served = [verdict for verdict in verdicts if verdict.outcome in journal.FOR_GOOD]
    return [*temporary, *served, *verdicts][0]


def _split(job: Job, planned: Plan, claimed: journal.Claim) -> tuple[list[Match], list[Match]]:
    """Return the recipients whom a call with the plan's id serves, and those who need one of their own.

    Where the journal has noted a call with this id, it serves those of that call, and no others: the database has the
    message already, or may have it. Where it has not, an answer is kept apart from the aliases for another kind of
    record whom only the envelope names (a Bcc beside the address of the thread), for they would make a forward of it.
    """
    matches = [each for each in planned.matches if each.rule]
    if claimed.is_noted and not claimed.served:  # whom that call served is not known
        return matches, []
    apart = claimed.served if claimed.is_noted else _forwarding(job, planned)

    def is_there(each: Match) -> bool:
        return any(journal.text_of(address.lower()) in apart for address in each.addresses)

    found = [each for each in matches if is_there(each)]
    others = [each for each in matches if not is_there(each)]
    return (found, others) if claimed.is_noted else (others, found)


def _forwarding(job: Job, planned: Plan) -> frozenset[str]:
    """Return which recipients would make a forward of an answer; none if the database does not say."""
    head = planned.raw.head()
    ancestors = ancestry.ancestors(head)
    hidden = {*planned.recipients} - message.names(head)
    if not ancestors or len(planned.recipients) < 2 or not hidden:
        return frozenset()
    try:
        found = inquiry.of_another_model(job.client, ancestors, hidden)
    except Ended:
        return frozenset()
    return frozenset() if found >= {*planned.recipients} else frozenset(found)


def _of_parts(job: Job, planned: Plan, apart: list[Match]) -> list[Verdict]:
    """Return the endings of a message for recipients with a call each, under an id made of the message's and theirs.

    Their copy names no recipient in its header: the database has served those, and would serve them again.
    """
    copy = message.without_recipients(planned.raw)
    try:
        verdicts = []
        for each in apart:
            instead = ancestry.derived_id(planned.message_id, journal.text_of(each.addresses[0].lower()))
            verdicts.append(_ending(job, _planned([each], job.envelope, copy, instead)))
    finally:
        copy.file.close()
    return verdicts


def _of_call(job: Job, planned: Plan, claimed: journal.Claim, is_last: bool) -> Verdict:
    """Return what the database has answered before, or says now, and note it."""
    verdict, added = (claimed.answer, planned.added) if claimed.answer else _called(job, planned, claimed)
    if is_last:
        job.on_answer()  # it has happened, and no late signal shall say otherwise
    if verdict.outcome is Outcome.HELD and job.settings.hold:
        return _held(job, planned._replace(added=added), claimed, verdict)
    claimed.end(verdict)
    return Verdict(Outcome.DATABASE_ERROR, verdict.cause) if verdict.outcome is Outcome.HELD else verdict


def _called(job: Job, planned: Plan, claimed: journal.Claim) -> tuple[Verdict, bytes]:
    """Return what the database's answer means, and the fields in front of the message that it answered.

    Where it knows none of the addresses, it has stored nothing, and may know those of the next choice.
    """
    ours = [name for name in message.names(planned.raw.head()) if is_ours(job.addresses, Recipient(name))]
    claimed.serves(*planned.recipients, *ours)
    added, verdict = planned.added, _unasked(job, planned, claimed)
    if verdict:
        return verdict, added
    for number, addresses in enumerate(planned.choices):
        if number:
            added, _ = message.prepare(planned.raw, job.envelope.sender, addresses, planned.instead)
        claimed.serves(*addresses, *ours)
        verdict = judge(job.client.post(added, planned.raw, job.until, claimed.note_begun))
        if verdict.outcome is not Outcome.UNKNOWN_RECIPIENT:
            break
    assert verdict
    return _understood(job, planned, claimed, verdict), added


def _unasked(job: Job, planned: Plan, claimed: journal.Claim) -> Verdict | None:
    """Return the ending of a message that the database is not to be given again, None for all others.

    One of them would keep it busy for too long, by its header. The other has done so, as it seems: the last tries ended
    ambiguously, and before the last one of them the database answered our question for the message.
    """
    cause = shapes.too_slow(planned.raw.head())
    if cause and not job.client.reads_all_shapes():
        return Verdict(Outcome.HELD, cause)
    if claimed.tries < ASKS_AFTER_TRIES:
        return None
    try:
        known = inquiry.of_known(job.client, planned.message_id)
    except Ended as ended:
        return ended.verdict if ended.verdict.outcome in TO_BE_WAITED_FOR else None
    if known or claimed.tries == ASKS_AFTER_TRIES:
        return known
    return Verdict(Outcome.HELD, f"tried {claimed.tries} times, each time without an answer; the database has it not")


def _understood(job: Job, planned: Plan, claimed: journal.Claim, verdict: Verdict) -> Verdict:
    """Return what an answer means that has several meanings."""
    head = planned.raw.head()
    if verdict.outcome is Outcome.ACCEPTED:
        found = inquiry.of_false(
            job.client, planned.message_id, job.envelope.sender, head, job.addresses, planned.matches
        )
        if found.outcome is Outcome.IN_PROGRESS and claimed.ending == Outcome.IN_PROGRESS.name:  # asked once more
            return Verdict(Outcome.HELD, found.cause)
        return found
    if verdict.outcome is Outcome.DROPPED and job.settings.hold:
        if job.envelope.sender != "" and inquiry.answers_a_notice(head):
            return Verdict(Outcome.HELD, "it answers a notice of the database, which reads no answers")
        if job.settings.hold_loops and not inquiry.answers_a_notice(head):
            return Verdict(Outcome.HELD, "the database stopped a loop, and has told the sender")
    return verdict


def _held(job: Job, planned: Plan, claimed: journal.Claim, verdict: Verdict) -> Verdict:
    """Keep a message that the database can't take for the postmaster; the journal knows where before it is there."""
    path, replaced = hold.new_path(job.settings.hold, planned.raw, job.envelope.sender), claimed.held
    claimed.end(verdict, path)
    job.keep(path, planned.added, planned.raw, replaced)
    verdict = verdict._replace(cause=f"{verdict.cause}; kept as {path}")
    claimed.end(verdict._replace(outcome=Outcome.ACCEPTED), path)  # for a next try: it is kept already
    return verdict
