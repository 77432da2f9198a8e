"""audit: the proof that nothing was lost or doubled: what the journal says, looked for where it should be."""

import socket
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from mailgate import journal
from mailgate.admin import files, hold_folder, mta, records
from mailgate.admin.desk import Answer, Command, Desk, moment, since
from mailgate.admin.meaning import word
from mailgate.admin.records import Record
from mailgate.admin.screen import pairs, table, words
from mailgate.admin.trace import Story, stories
from mailgate.outcome import Outcome

# Where a message must be that has ended so, as the summary names it.
PLACES = {
    Outcome.DELIVERED: "on records",
    Outcome.KNOWN: "on records",
    Outcome.ACCEPTED: "bounces and notices",
    Outcome.DROPPED: "dropped by the database, the sender told",
    Outcome.HELD: "held",
}
REFUSED, WAITING, UNKNOWN = "refused", "waiting", "waiting, as far as can be told"
SUMMARY = [*dict.fromkeys(PLACES.values()), REFUSED, WAITING, UNKNOWN]
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
    """How many messages were taken, how many are in which place, what is lost and why, what is doubled and where."""

    taken: int
    counts: Mapping[str, int]
    lost: list[tuple[Story, str]]
    doubled: list[tuple[str, list[Record]]]


def find(desk: Desk, since_moment: float, mta_config: str | None = None) -> Found:
    """Look for each message with a try since then. Raises Ended."""
    found = stories(desk, since_moment=since_moment)
    ids = [name for story in found if PLACES.get(_outcome(story)) == "on records" for name in story.ids]
    by_id: dict[str, list[Record]] = {}
    for record in records.find(desk.client, ids):
        by_id.setdefault(record.message_id, []).append(record)
    kept = {name for file in hold_folder.files(desk.settings.hold) for name in (file.message_id, file.posted_id)}
    queue = mta.queue(mta_config)
    queued = None if queue is None else {each.queue_id for each in queue}
    counts: Counter[str] = Counter()
    lost: list[tuple[Story, str]] = []
    for story in found:
        place, problem = _place(story, by_id, kept, queued)
        counts[place] += not problem
        lost += [(story, problem)] * bool(problem)
    doubled = [(name, rows) for name, rows in by_id.items() if len(rows) > 1 and len(rows) > _expected(desk, name)]
    return Found(len(found), counts, lost, doubled)


def _answer(desk: Desk, arguments: Namespace) -> Answer:
    found = find(desk, since(arguments.since, desk.now), arguments.mta_config)
    if arguments.textfile:
        metrics = METRICS.format(lost=len(found.lost), doubled=len(found.doubled), at=desk.now)
        files.replace(arguments.textfile, metrics, mode=0o644)
    facts = {
        "taken": found.taken,
        "places": {place: found.counts[place] for place in SUMMARY},
        "lost": [{"message_id": story.message_id, "why": why} for story, why in found.lost],
        "doubled": [{"message_id": name, "records": [*map(records.facts, rows)]} for name, rows in found.doubled],
    }
    return Answer(facts, _screen(*found), is_good=not (found.lost or found.doubled))


def _place(story: Story, by_id: Mapping[str, list[Record]], kept: set[str], queued: set[str] | None) -> tuple[str, str]:
    """Return where a message must be, and what is wrong with that, "" for nothing."""
    outcome, last = _outcome(story), story.last
    if outcome.is_temporary:
        if queued is None or not last["queue_id"] or last["host"] not in ("", socket.gethostname()):
            return UNKNOWN, ""
        is_there = last["queue_id"] in queued
        return WAITING, "" if is_there else f"{word(outcome)}, and it is in the queue no more: given up, or deleted"
    place = PLACES.get(outcome, REFUSED)
    if place == "held" and kept.isdisjoint(story.ids):
        return place, "its file is not in the hold folder"
    missing = [name for name in story.ids if name not in by_id] if place == "on records" else []
    return place, f"the database has no message {', '.join(missing)}" if missing else ""


def _outcome(story: Story) -> Outcome:
    """Return the ending that counts: the last with which the message was taken, for anybody may send its id again."""
    endings = (Outcome[each["ending"]] for each in reversed(story.attempts))
    return next((outcome for outcome in endings if not outcome.exit_status), story.outcome)


def _expected(desk: Desk, message_id: str) -> int:
    """Return on how many records a message may be: one for each recipient whom the database has served."""
    return max(1, len(journal.known(desk.settings, message_id).served))


def _screen(
    taken: int,
    counts: Mapping[str, int],
    lost: list[tuple[Story, str]],
    doubled: list[tuple[str, list[Record]]],
) -> list[Any]:
    rows: list[tuple[str, Any]] = [("taken", f"{taken:,}")]
    rows += [(place, f"{counts[place]:,}") for place in SUMMARY if counts[place]]
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
