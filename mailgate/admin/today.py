"""today: what became of the mail since midnight and the day before, what waits, what is held, what fails most."""

import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from typing import Any

from mailgate.admin import hold_folder, mta
from mailgate.admin.desk import Answer, Command, Desk, moment
from mailgate.admin.meaning import style, word
from mailgate.admin.screen import brief, table, words
from mailgate.admin.trace import NO_JOURNAL, Story, stories
from mailgate.mailboxes import mailbox_of
from mailgate.outcome import Outcome

DAY_SECONDS = 86400.0
NO_MAIL = "No mail since yesterday."
MAX_ROWS = 5  # of what waits, what is held, what fails


def _midnight(now: float) -> float:
    day = time.localtime(now)
    return time.mktime((day.tm_year, day.tm_mon, day.tm_mday, 0, 0, 0, 0, 0, -1))


def _add_arguments(parser: ArgumentParser) -> None:
    mta.add_config(parser)


def _answer(desk: Desk, arguments: Namespace) -> Answer:
    midnight = _midnight(desk.now)
    has_journal = bool(desk.settings.journal)
    found = stories(desk, since_moment=_midnight(midnight - DAY_SECONDS / 2)) if has_journal else []
    new = Counter(story.outcome for story in found if story.last["at"] >= midnight)
    old = Counter(story.outcome for story in found if story.last["at"] < midnight)
    queue = _with_our_reason(mta.queue_for_us(desk, arguments.mta_config), found)
    kept = hold_folder.files(desk.settings.hold)
    failing = _failing(found)
    in_mailboxes = _in_mailboxes(found)
    of_journal = {
        "today": {word(outcome): count for outcome, count in new.items()},
        "yesterday": {word(outcome): count for outcome, count in old.items()},
        "failing": failing,
        "mailboxes": in_mailboxes,
    }
    facts = {
        **(of_journal if has_journal else dict.fromkeys(of_journal)),
        "waiting": None if queue is None else [each._asdict() for each in queue],
        "held": [hold_folder.facts(each) for each in kept],
    }
    screen = [
        *(_counted(new, old) if has_journal else [f"There is {NO_JOURNAL}."]),
        "",
        *_waiting(queue),
        "",
        *_in_mailboxes_shown(in_mailboxes),
        *_held(kept),
        *(["", *_fails(failing)] if has_journal else []),
    ]
    is_failing = any(Outcome[row["ending"].upper()].is_temporary for row in failing)
    return Answer(facts, screen, is_good=not (queue or kept or is_failing))


def _counted(new: Counter[Outcome], old: Counter[Outcome]) -> list[Any]:
    rows = [
        (words(word(outcome), style(outcome)), str(new[outcome]), str(old[outcome]))
        for outcome in Outcome
        if new[outcome] or old[outcome]
    ]
    return [table(["ending", "today", "yesterday"], rows, right=["today", "yesterday"])] if rows else [NO_MAIL]


def _with_our_reason(queue: list[mta.Waiting] | None, found: list[Story]) -> list[mta.Waiting] | None:
    """Return what waits, with what the journal says of it: the mail server knows our line only, or our exit status."""
    ours = {each["queue_id"]: each for story in found for each in story.attempts if each["queue_id"]}
    return queue and [
        each._replace(reason=f"{last['ending'].lower()}: {last['cause']}") if last else each
        for each, last in ((each, ours.get(each.queue_id)) for each in queue)
    ]


def _waiting(queue: list[mta.Waiting] | None) -> list[Any]:
    if queue is None:
        return ["In the mail server's queue: no mail server can be asked here."]
    if not queue:
        return ["In the mail server's queue: nothing."]
    rows = [
        (moment(each.since)[:16], each.queue_id, brief(", ".join(each.recipients)), brief(each.reason))
        for each in queue
    ]
    return [
        words(f"In the mail server's queue: {len(queue)}", "waits"),
        table(["since", "queue id", "for", "why"], rows[:MAX_ROWS]),
    ]


def _in_mailboxes(found: list[Story]) -> list[dict[str, Any]]:
    """Return what waits in mailboxes to be tried again: for each, how many messages, since when, and why the first."""
    groups: dict[str, list[Story]] = {}
    for story in found:
        mailbox = mailbox_of(story.last["queue_id"] or "")
        if mailbox and story.outcome.is_temporary:
            groups.setdefault(mailbox, []).append(story)
    return [
        {
            "mailbox": mailbox,
            "messages": len(those),
            "since": min(each["at"] for story in those for each in story.attempts),
            "cause": f"{word(those[-1].outcome)}: {those[-1].last['cause']}",
        }
        for mailbox, those in sorted(groups.items())
    ]


def _in_mailboxes_shown(rows: list[dict[str, Any]]) -> list[Any]:
    if not rows:
        return []
    shown = [(row["mailbox"], str(row["messages"]), moment(row["since"])[:16], brief(row["cause"])) for row in rows]
    return [
        words(f"In mailboxes: {sum(row['messages'] for row in rows)}", "waits"),
        table(["mailbox", "mails", "since", "why"], shown[:MAX_ROWS], right=["mails"]),
        "",
    ]


def _held(kept: list[hold_folder.File]) -> list[Any]:
    if not kept:
        return ["Held: nothing."]
    rows = [(moment(each.since)[:16], each.sender, brief(each.subject)) for each in kept]
    return [
        words(f"Held: {len(kept)}. mail-gateway-admin held list", "bad"),
        table(["since", "from", "subject"], rows[:MAX_ROWS]),
    ]


def _failing(found: list[Story]) -> list[dict[str, Any]]:
    """Return what has not ended well, by ending and cause: how many messages, and since when; the most first."""
    groups: dict[tuple[str, str], list[Story]] = {}
    for story in found:
        if story.outcome.exit_status:
            groups.setdefault((word(story.outcome), story.last["cause"] or ""), []).append(story)
    rows = [
        {
            "ending": ending,
            "cause": cause,
            "messages": len(those),
            "since": min(each["at"] for story in those for each in story.attempts),
        }
        for (ending, cause), those in groups.items()
    ]
    return sorted(rows, key=lambda row: (-row["messages"], row["since"]))


def _fails(failing: list[dict[str, Any]]) -> list[Any]:
    if not failing:
        return ["Failed: nothing."]
    rows = [(str(row["messages"]), row["ending"], moment(row["since"])[:16], brief(row["cause"])) for row in failing]
    return [
        words("Failed most:", "name"),
        table(["mails", "ending", "since", "cause"], rows[:MAX_ROWS], right=["mails"]),
    ]


COMMAND = Command(
    "today",
    "Tell what became of the mail since midnight and yesterday, what waits, what is held, what fails.",
    "mail-gateway-admin today",
    _add_arguments,
    _answer,
)
