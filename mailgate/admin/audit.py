"""audit: the proof that nothing was lost or doubled: what the journal says, looked for where it should be."""

import socket
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import Any, NamedTuple

from mailgate import journal
from mailgate.admin import files, hold_folder, mta, records
from mailgate.admin.desk import Answer, Command, Desk, moment, since
from mailgate.admin.meaning import BY_HAND, REMOVED, word
from mailgate.admin.records import Record
from mailgate.admin.screen import counted, pairs, table, words
from mailgate.admin.trace import Attempt, Story, stories
from mailgate.mailboxes import mailbox_of
from mailgate.outcome import Outcome

# Where a message must be that has ended so, as the summary names it.
PLACES = {
    Outcome.DELIVERED: "on records",
    Outcome.KNOWN: "on records",
    Outcome.ACCEPTED: "bounces and notices",
    Outcome.DROPPED: "dropped by the database, the sender told",
    Outcome.HELD: "held",
}
DROPPED_BY_HAND = "dropped by hand"
REFUSED, WAITING, UNKNOWN = "refused", "waiting", "waiting, as far as can be told"
SUMMARY = [*dict.fromkeys(PLACES.values()), DROPPED_BY_HAND, REFUSED, WAITING, UNKNOWN]
# The same, the place first that counts where copies of a message are in several.
RANKS = [WAITING, UNKNOWN, PLACES[Outcome.HELD], *dict.fromkeys(PLACES.values()), DROPPED_BY_HAND, REFUSED]
# Of calls that leave nothing in the database.
ON_NO_RECORD = {outcome.name: PLACES[outcome] for outcome in (Outcome.ACCEPTED, Outcome.DROPPED)} | {
    Outcome.UNKNOWN_RECIPIENT.name: REFUSED
}
METRICS = """\
# HELP mail_gateway_audit_lost Messages that were taken and are nowhere.
# TYPE mail_gateway_audit_lost gauge
mail_gateway_audit_lost {lost}
# HELP mail_gateway_audit_doubled Messages that the database has more often than it should.
# TYPE mail_gateway_audit_doubled gauge
mail_gateway_audit_doubled {doubled}
# HELP mail_gateway_audit_timestamp_seconds When the last audit ended, since 1970.
# TYPE mail_gateway_audit_timestamp_seconds gauge
mail_gateway_audit_timestamp_seconds {at:.0f}
"""


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--since", metavar="WHEN", default="7d", help="2d, 90m, or a date (7d)")
    mta.add_config(parser)
    parser.add_argument("--textfile", metavar="FILE", help="write the metrics there, for Prometheus' node_exporter")


class Found(NamedTuple):
    """Which messages, by their ids, are in which place; what is lost and why; what is doubled and where."""

    places: Mapping[str, list[str]]
    lost: list[tuple[Story, str]]
    doubled: list[tuple[str, list[Record]]]

    @property
    def taken(self) -> int:
        """How many messages there are in all."""
        return sum(map(len, self.places.values())) + len(self.lost)


class There(NamedTuple):
    """What is there: on records and in the hold folder, by Message-ID; the queue ids of what waits, None if unknown."""

    records: Mapping[str, list[Record]]
    held: set[str]
    queued: set[str] | None


def find(desk: Desk, since_moment: float, mta_config: str | None = None) -> Found:
    """Look for each message with a try since then. Raises Ended."""
    found = stories(desk, since_moment=since_moment)
    tries = ((story, each) for story in found for each in story.attempts if _may_be_there(each))
    ids = [*dict.fromkeys(name for story, each in tries for name in story.ids_of(each))]
    by_id: dict[str, list[Record]] = {}
    for record in records.find(desk.client, counted(ids, "Asking the database", has_lines=False)):
        by_id.setdefault(record.message_id, []).append(record)
    kept = {file.posted_id or file.message_id for file in hold_folder.files(desk.settings.hold)}
    queue = mta.queue(mta_config)
    there = There(by_id, kept, None if queue is None else {each.queue_id for each in queue})
    places: dict[str, list[str]] = {place: [] for place in SUMMARY}
    lost: list[tuple[Story, str]] = []
    for story in found:
        place, problem = _place(desk, story, there)
        if problem:
            lost.append((story, problem))
        else:
            places[place].append(story.message_id)
    doubled = [(name, rows) for name, rows in by_id.items() if len(rows) > 1 and len(rows) > _expected(desk, name)]
    return Found(places, lost, doubled)


def _answer(desk: Desk, arguments: Namespace) -> Answer:
    found = find(desk, since(arguments.since, desk.now), arguments.mta_config)
    if arguments.textfile:
        metrics = METRICS.format(lost=len(found.lost), doubled=len(found.doubled), at=desk.now)
        files.replace(arguments.textfile, metrics, mode=0o644)
    facts = {
        "taken": found.taken,
        "places": {place: len(names) for place, names in found.places.items()},
        "messages": found.places,
        "lost": [{"message_id": story.message_id, "why": why} for story, why in found.lost],
        "doubled": [{"message_id": name, "records": [*map(records.facts, rows)]} for name, rows in found.doubled],
    }
    return Answer(facts, _screen(found), is_good=not (found.lost or found.doubled))


def _may_be_there(attempt: Attempt) -> bool:
    """Tell whether the database may have a message after a try."""
    outcome = Outcome[attempt["ending"]]
    return outcome in PLACES or outcome.is_temporary


def _place(desk: Desk, story: Story, there: There) -> tuple[str, str]:
    """Return where a message is, and what is wrong with that, "" for nothing; of its tries, the first of RANKS counts.

    It may have come in several copies, and anybody may send its id again: so each try must have left what its ending
    says. A temporary ending counts only if it is the last for these recipients of a queue id. What was held is looked
    for until the desk releases or drops it, which it notes with the message's queue id, or none. What came before a
    send-test removed its record is over.
    """
    found: list[tuple[str, str]] = []
    later: set[tuple[str, ...]] = set()
    done: set[str] = set()  # queue ids
    for each in reversed(story.attempts):
        outcome, delivery = Outcome[each["ending"]], (each["host"], each["queue_id"], each["recipients"] or "")
        is_held = outcome is Outcome.HELD
        is_over = delivery in later if outcome.is_temporary else is_held and not done.isdisjoint((each["queue_id"], ""))
        if not is_over:
            place, problem = _place_of_try(desk, story, each, outcome, there)
            is_by_hand = place == PLACES[Outcome.DROPPED] and (each["cause"] or "").startswith(BY_HAND)
            found.append((DROPPED_BY_HAND if is_by_hand else place, problem))
        later.add(delivery)
        if outcome in PLACES and not is_held:
            done.add(each["queue_id"])
        if each["cause"] == REMOVED:
            break
    return min(found, key=lambda place: (not place[1], RANKS.index(place[0])))


def _place_of_try(desk: Desk, story: Story, attempt: Attempt, outcome: Outcome, there: There) -> tuple[str, str]:
    """Return where a try has left a message, and what is wrong with that, "" for nothing."""
    queue_id, ids = attempt["queue_id"], story.ids_of(attempt)
    if not _may_be_there(attempt):
        return REFUSED, ""
    is_here = attempt["host"] in ("", socket.gethostname())
    is_told = is_here and queue_id and not mailbox_of(queue_id) and there.queued is not None
    if outcome.is_temporary and is_told and queue_id in (there.queued or ()):
        return WAITING, ""
    # Of several calls, or none that was noted, the rows know the endings.
    knows = len(ids) > 1 or outcome.is_temporary
    places = {name: _place_of_id(desk, name, outcome, there, knows) for name in ids}
    missing = [name for name, place in places.items() if not place]
    if not missing:
        return min(places.values(), key=RANKS.index), ""
    if outcome.is_temporary and not is_told:
        return UNKNOWN, ""
    if outcome.is_temporary:
        return WAITING, f"{word(outcome)}, and it is in the queue no more: given up, or deleted"
    if outcome is Outcome.HELD and PLACES[outcome] not in places.values():
        return PLACES[outcome], "its file is not in the hold folder" if is_here else ""
    return PLACES[outcome], f"the database has no message {', '.join(missing)}"


def _place_of_id(desk: Desk, name: str, outcome: Outcome, there: There, knows: bool) -> str:
    """Return where the message with an id is, "" for nowhere; what is on no record by its ending need not be there.

    That is the ending of its own call where the journal ``knows`` it, else the one of the try.
    """
    if name in there.held:  # somebody has to look at it, also where another copy is on its record
        return PLACES[Outcome.HELD]
    if name in there.records:
        return PLACES[Outcome.DELIVERED]
    ending = journal.known(desk.settings, name).ending if knows else outcome.name
    return ON_NO_RECORD.get(ending, "")


def _expected(desk: Desk, message_id: str) -> int:
    """Return on how many records a message may be: one for each recipient whom the database has served."""
    return max(1, len(journal.known(desk.settings, message_id).served))


def _screen(found: Found) -> list[Any]:
    lost, doubled = found.lost, found.doubled
    rows: list[tuple[str, Any]] = [("taken", f"{found.taken:,}")]
    rows += [(place, f"{len(names):,}") for place, names in found.places.items() if names]
    rows += [("lost", words(len(lost), "bad" if lost else "good"))]
    rows += [("doubled", words(len(doubled), "bad" if doubled else "good"))]
    screen: list[Any] = [pairs(rows)]
    if lost:
        named = [(moment(story.last["at"])[:16], story.message_id, why) for story, why in lost]
        screen += ["", words("Lost:", "bad"), table(["last try", "message", "why"], named)]
    if doubled:
        places = [(name, ", ".join(f"{row.model} {row.record_id}" for row in those)) for name, those in doubled]
        screen += ["", words("Doubled:", "bad"), table(["message", "records"], places)]
    return screen


COMMAND = Command(
    "audit",
    "Look for each message that was taken: on its record, held, in the queue; name what is lost or doubled.",
    "mail-gateway-admin audit --since 30d",
    _add_arguments,
    _answer,
)
