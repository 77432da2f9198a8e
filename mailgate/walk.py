"""The walk of one message: match, prepare, post, judge, hold.

Whoever calls it (the pipe with its one message, the service with each of its own) has read the message and its
envelope. plan.py says what would be done, and touches nothing; parts.py, whom a call serves; ``deliver()`` does it.
"""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

from mailgate import alias_list, ancestry, hold, inquiry, journal, message, parts, shapes, watched
from mailgate.addresses import Addresses, Match, is_ours, match
from mailgate.database import Client
from mailgate.envelope import Envelope, Raw, Recipient
from mailgate.judge import judge
from mailgate.log import Facts, error_text
from mailgate.outcome import Ended, Outcome, Verdict
from mailgate.plan import Plan, plan, plan_again, plan_for
from mailgate.settings import Settings

# Ambiguous tries in a row after which the database is asked whether it has the message, before it is given it again.
ASKS_AFTER_TRIES = 2
PARTS_SECONDS = 300.0  # for the calls of a message, but the last of them; a whole run has DEADLINE
# Causes of what is held though the database has read it, and ignored it.
ANSWERS_NOTICE = "it answers a notice of the database, which reads no answers"
STOPPED_LOOP = "the database stopped a loop, and has told the sender"
# Answers that the journal has to a held message are asked for again when it is released: it is to be delivered now.
ASKED_AGAIN = (Outcome.HELD, Outcome.DROPPED)
TO_BE_WAITED_FOR = (Outcome.NO_ANSWER, Outcome.CUT_OFF, Outcome.DATABASE_DOWN, Outcome.DATABASE_ERROR)


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
    held: str = ""  # the file that is released


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
    watch: Callable[[str, list[Match], Raw, str | None], None] = watched.keep,
    held: str = "",
) -> Verdict:
    """Take a message to its ending, and note in ``facts`` what the log tells of it.

    ``addresses`` decide in place of the settings' own, ``claim`` is called for journal.claim(), ``keep`` for
    hold.store(), ``watch`` for watched.keep(), and ``on_answer`` when the database has answered. ``held`` is the file
    of a held message that is released: it stays where it is, whatever the ending. Raises nothing but what a signal
    raises.
    """
    facts.model = settings.model
    deciding = addresses or settings.addresses
    try:
        facts.describe(envelope, raw.head())
        if held:
            planned = plan_again(match(deciding, envelope.recipients), raw)
        else:
            planned = plan(deciding, envelope, raw, lambda found: alias_list.settle(client, deciding, found))
        facts.unmatched, facts.posted_as = planned.unmatched, []
        facts.message_id = (os.fsdecode(ancestry.own_id(raw.head())) if planned.instead else "") or planned.message_id
        if not planned.choices[0]:
            return Verdict(Outcome.UNKNOWN_RECIPIENT, "no rule matches")
        watch(settings.hold, planned.matches, raw, envelope.sender)
        until = time.monotonic() + settings.patience
        return _ending(Job(settings, client, envelope, facts, deciding, claim, on_answer, keep, until, held), planned)
    except Ended as ended:
        return ended.verdict
    except Exception as error:  # our own bug, or a full disk
        return Verdict(Outcome.FAILED, error_text(error))


def _ending(job: Job, planned: Plan, is_last: bool = True) -> Verdict:
    """Return the ending of a message under the plan's id, and of its parts under theirs.

    Some messages go under an id of their own; see _other_id(). So does each recipient whom the call with this id has
    not served, or is not to serve; a held message stands as it was for its own call. ``is_last`` says that nothing
    comes after it.
    """
    date = ancestry.date(planned.raw.head())
    name = os.path.basename(job.held) or job.facts.queue_id
    delivery = journal.Delivery(
        planned.message_id,
        name,
        planned.added,
        date,
        lambda: ancestry.digest(planned.raw, planned.raw.head()),  # a header of a MiB is not kept meanwhile
    )
    with job.claim(job.settings, delivery, job.until) as claimed:
        other = _other_id(job, planned, claimed, date)
        mine: list[Match] = [*planned.matches] if job.held and not other else []
        apart: dict[str, list[Match]] = {}
        if not job.held and not other:
            mine, apart = parts.split(job.client, job.addresses, planned, claimed.served)
        job.facts.posted_as += [planned.message_id] * bool(mine)
        whole = planned if not apart else plan_for(mine, job.envelope, planned.raw, planned.instead)
        whole = whole if job.held else parts.with_noted(whole, claimed, job.envelope.sender)
        verdicts = [_of_call(job, whole, claimed, is_last and not apart)] if mine else []
    if other:
        return _ending(job, plan_for(planned.matches, job.envelope, planned.raw, other), is_last)
    if apart and not any(verdict.outcome.is_temporary for verdict in verdicts):
        verdicts += _of_parts(job, planned, apart, is_last)
    return _overall(verdicts)


def _overall(verdicts: list[Verdict]) -> Verdict:
    """Return the ending that counts, and the causes of all: what waits, what a person has to see, what was served."""

    def rank(verdict: Verdict) -> tuple[bool, bool, bool]:
        outcome = verdict.outcome
        return not outcome.is_temporary, outcome is not Outcome.HELD, outcome not in journal.FOR_GOOD

    return min(verdicts, key=rank)._replace(cause="; ".join(verdict.cause for verdict in verdicts if verdict.cause))


def _other_id(job: Job, planned: Plan, claimed: journal.Claim, date: int | None) -> bytes:
    """Return an id in place of the plan's for a message that must not go under it, b"" for all others.

    What the journal knows under another Date is another message. What the database has read and ignored it may
    remember, and ignore again; it is made from the same id at each try, so that it is delivered once.
    """
    if None not in (claimed.date, date) and claimed.date != date:
        return ancestry.derived_id(planned.message_id, str(date))
    if job.held and _was_ignored(claimed):
        return ancestry.derived_id(planned.message_id, "ignored")
    return b""


def _was_ignored(claimed: journal.Claim) -> bool:
    """Tell whether the last word of the database on a message was that it ignores it."""
    is_over = claimed.ending in (Outcome.HELD.name, Outcome.ACCEPTED.name)
    return claimed.ending == Outcome.DROPPED.name or (
        is_over and claimed.cause.startswith((ANSWERS_NOTICE, STOPPED_LOOP))
    )


def _of_parts(job: Job, planned: Plan, apart: dict[str, list[Match]], is_last: bool) -> list[Verdict]:
    """Return the endings of a message for recipients with calls of their own, under ids made of its id and names.

    Their copy names no recipient in its header: the database has served those, and would serve them again. Nobody's
    call is begun after PARTS_SECONDS: there may be thousands, and the next try goes on where this one ends.
    """
    copy = message.without_recipients(planned.raw)
    until = job.until - job.settings.patience + PARTS_SECONDS
    try:
        verdicts: list[Verdict] = []
        for number, (name, matches) in enumerate(apart.items(), 1):
            if verdicts and time.monotonic() >= until:
                verdicts.append(Verdict(Outcome.BUSY, f"{len(apart) - len(verdicts)} other recipients must wait"))
                break
            instead = ancestry.derived_id(planned.message_id, name)
            part = plan_for(matches, job.envelope, copy, instead)
            try:
                verdict = _ending(job, part, is_last and number == len(apart))
            except Ended as ended:
                verdict = ended.verdict
            told = " ".join(filter(None, (verdict.outcome.name.lower(), str(verdict.record_id or ""), verdict.cause)))
            verdicts.append(verdict._replace(cause=f"{name} apart: {told}"))
    finally:
        copy.file.close()
    return verdicts


def _of_call(job: Job, planned: Plan, claimed: journal.Claim, is_last: bool) -> Verdict:
    """Return what the database has answered before, or says now, and note it."""
    answer = claimed.answer
    if answer and job.held and answer.outcome in ASKED_AGAIN:
        answer = None
    verdict, added = (answer, planned.added) if answer else _called(job, planned, claimed)
    if is_last:
        job.on_answer()  # it has happened, and no late signal shall say otherwise
    if answer and answer.outcome is Outcome.ACCEPTED and hold.KEPT_AS in answer.cause:  # it is kept already
        return answer._replace(outcome=Outcome.HELD)
    if verdict.outcome is Outcome.HELD and job.held:
        claimed.end(verdict, job.held)
        return verdict._replace(cause=f"{verdict.cause}{hold.KEPT_AS}{job.held}")
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
            return Verdict(Outcome.HELD, ANSWERS_NOTICE)
        if (job.settings.hold_loops or job.held) and not inquiry.answers_a_notice(head):
            return Verdict(Outcome.HELD, STOPPED_LOOP)
    return verdict


def _held(job: Job, planned: Plan, claimed: journal.Claim, verdict: Verdict) -> Verdict:
    """Keep a message that the database can't take for the postmaster; the journal knows where before it is there."""
    path, replaced = hold.new_path(job.settings.hold, planned.raw, job.envelope.sender), claimed.held
    claimed.end(verdict, path)
    job.keep(path, planned.added, planned.raw, replaced)
    verdict = verdict._replace(cause=f"{verdict.cause}{hold.KEPT_AS}{path}")
    claimed.end(verdict._replace(outcome=Outcome.ACCEPTED), path)  # for a next try: see _of_call()
    return verdict
