"""held release: give held messages to the database, by the walk that every message goes.

Each goes as it lies in its file, under the Message-ID that it has there, for whom it names. Its file goes only when
the database has it. At whatever moment this ends, the next release ends right:

    before the call           nothing has happened
    while it runs             the journal has noted that it began; the message waits until READ_TIMEOUT is over
    before the file goes      the journal has the database's answer to this file, or the database has the message
"""

import contextlib
import os
import signal
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from mailgate import ancestry, hold, message, walk
from mailgate.addresses import is_ours
from mailgate.admin.desk import Answer, Desk, Usage, log_of, moment
from mailgate.admin.hold_folder import File, beginnings, cause_of, facts, files, folder_of, named, with_cause
from mailgate.admin.meaning import style, word
from mailgate.admin.screen import amount, counted, say, table, words
from mailgate.arguments import Arguments
from mailgate.envelope import Raw, Recipient, envelope_of, queue_id
from mailgate.judge import TELLS_SENDER
from mailgate.log import Facts
from mailgate.outcome import Outcome, Verdict

ON_RECORD = (Outcome.DELIVERED, Outcome.KNOWN)  # the file goes
# The file moves to a folder of this name: the database has done with the message, and shows it nowhere.
ACCEPTED = "accepted"
# No message's own fault: the next one would end so, too.
STOPS = (Outcome.NO_ANSWER, Outcome.ACCESS_DENIED, Outcome.SETTINGS, Outcome.DATABASE_DOWN, Outcome.FAILED)
SAME_CAUSE = "another was just held for the same cause; named alone, it is tried"
MAX_ROWS = 20  # of a kind, on the screen

LOOP_ADVICE = (
    "As long as mail.gateway.loop.threshold counts the sender's records, the database stops it again, and tells the "
    "sender once more. Raise it, or put the sender among mail.gateway.allowed."
)


class Released(NamedTuple):
    """What became of a held message; ``cause`` is why it was held. Without a verdict it was not tried."""

    file: File
    cause: str
    verdict: Verdict | None
    why_not: str = ""

    @property
    def is_done(self) -> bool:
        """Whether the message has left the hold folder's new/."""
        return self.verdict is not None and self.verdict.outcome in (*ON_RECORD, Outcome.ACCEPTED)

    @property
    def was_told(self) -> bool:
        """Whether its sender may have been told before that his mail has failed."""
        return may_have_told(self.cause)


def may_have_told(cause: str) -> bool:
    """Tell whether the database may have told the sender of what was held for this cause."""
    return cause.startswith(walk.STOPPED_LOOP) or TELLS_SENDER.match(cause) is not None


def add_arguments(parser: ArgumentParser) -> None:
    """Add what `held release` takes."""
    parser.add_argument("name", nargs="?", default="", help="the file's name, or the beginning of it")
    parser.add_argument("--cause", metavar="WORDS", default="", help="all whose cause has these words")
    parser.add_argument("--all", action="store_true", help="all")
    parser.add_argument(
        "--recipient", metavar="ADDRESS", action="append", default=[], help="deliver to this address, and to no other"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.set_defaults(answer=answer)


def answer(desk: Desk, arguments: Namespace) -> Answer:
    """Release what the arguments name."""
    causes = _chosen(desk, arguments)
    if arguments.dry_run:
        return _preview(desk, causes, arguments.recipient)
    if causes:
        say(f"Giving {amount(len(causes), 'held message')} to {desk.settings.database} at {desk.settings.url}.")
    released = [*_release(desk, causes, arguments.recipient)]
    return Answer(
        {"messages": [_facts(each) for each in released]}, _screen(released), all(each.is_done for each in released)
    )


def _chosen(desk: Desk, arguments: Namespace) -> dict[File, str]:
    """Return the messages that the arguments name, with their causes. Raises Usage."""
    if sum(map(bool, (arguments.name, arguments.cause, arguments.all))) != 1:
        raise Usage("held release takes a name, --cause WORDS, or --all")
    for address in arguments.recipient:
        if not is_ours(desk.settings.addresses, Recipient(address)):
            raise Usage(f"the database has no address {address}, by the settings")
    found = [named(desk, arguments.name)] if arguments.name else files(folder_of(desk))
    causes = {file: cause_of(desk, file) for file in found}
    return {file: causes[file] for file in with_cause(causes, arguments.cause)}


# --- the work -------------------------------------------------------------------------------------------------------


def _release(desk: Desk, causes: dict[File, str], recipients: Sequence[str]) -> Iterator[Released]:
    """Yield what became of each message, in the order in which they came; a signal ends it after the one at hand."""
    still: set[tuple[str, ...]] = set()  # what the database objects to again, and may tell the sender at each time
    why_not = ""
    with _stoppable() as stopped:
        for file in counted([*causes], "Releasing"):
            cause = causes[file]
            for_whom = _for_whom(desk, file, recipients)
            kinds = [(walk.STOPPED_LOOP, file.sender), ("", cause, *for_whom)]
            why_not = "interrupted" if stopped else why_not
            if why_not or not still.isdisjoint(kinds):
                yield Released(file, cause, None, why_not or SAME_CAUSE)
                continue
            verdict = _one(desk, file, for_whom, is_redirected=bool(recipients))
            if verdict is None:
                continue
            if verdict.outcome in STOPS:
                why_not = f"not tried, after this ending: {word(verdict.outcome)}"
            if verdict.outcome is Outcome.HELD and may_have_told(verdict.cause):
                still.add(kinds[not verdict.cause.startswith(walk.STOPPED_LOOP)])
            yield Released(file, cause, verdict._replace(cause=verdict.cause.partition(hold.KEPT_AS)[0]))


@contextlib.contextmanager
def _stoppable() -> Iterator[list[int]]:
    """Give a list that has the first signal that came; the second one acts as usual."""
    stopped: list[int] = []
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def stop(number: int, frame: object) -> None:
        stopped.append(number)
        signal.signal(number, usual[signal.Signals(number)])

    for number in usual:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def _one(desk: Desk, file: File, recipients: Sequence[str], is_redirected: bool) -> Verdict | None:
    """Return what became of a message, None for one that somebody else has taken away."""
    config, started, told = desk.settings, time.monotonic(), Facts()
    try:
        opened = open(file.path, "rb")
    except FileNotFoundError:
        return None
    with opened, _as_new(Raw(opened, 0, os.fstat(opened.fileno()).st_size), is_redirected) as raw:
        arguments = Arguments()
        arguments.recipients = (*recipients,) or ("",)  # or the header would be asked
        told.queue_id, told.size = queue_id(raw.head()), raw.size
        envelope = envelope_of(arguments, {}, raw.head())
        verdict = walk.deliver(config, desk.client, envelope, raw, told, held=file.path)
        log_of(config).message(told, verdict, time.monotonic() - started)
        _clear_away(file, opened.fileno(), verdict)
    return verdict


def _for_whom(desk: Desk, file: File, recipients: Sequence[str]) -> list[str]:
    """Return for whom of ours a message is held: whom we have put in front, and whom its header names."""
    if recipients:
        return [*recipients]
    try:
        with open(file.path, "rb") as opened:
            head = Raw(opened, 0, file.size).head()
    except FileNotFoundError:  # somebody has taken it away
        return []
    named_there = dict.fromkeys([*message.delivered_to(head), *sorted(message.names(head))])
    return [address for address in named_there if is_ours(desk.settings.addresses, Recipient(address))]


@contextlib.contextmanager
def _as_new(raw: Raw, is_redirected: bool) -> Iterator[Raw]:
    """Give the message as the database will take it: an answer to none of its notices, and for others if it is so."""
    with contextlib.ExitStack() as copies:
        if ancestry.names_a_notice(raw.head()):
            raw = message.without_notices(raw)
            copies.enter_context(raw.file)
        if is_redirected:
            raw = message.without_recipients(raw)
            copies.enter_context(raw.file)
        yield raw


def _clear_away(file: File, descriptor: int, verdict: Verdict) -> None:
    """Let the file go when the database has its message; what is nowhere to be seen there is kept."""
    with contextlib.suppress(FileNotFoundError):  # somebody has done so
        is_same = os.path.samestat(os.fstat(descriptor), os.stat(file.path))  # it was not mended meanwhile
        if verdict.outcome in ON_RECORD and is_same:
            os.unlink(file.path)
        elif verdict.outcome is Outcome.ACCEPTED and is_same:
            hold.move(file.path, ACCEPTED)


# --- the screen -----------------------------------------------------------------------------------------------------


def _facts(released: Released) -> dict[str, Any]:
    """Return what became of a message for a program."""
    verdict = released.verdict
    return facts(released.file) | {
        "cause": released.cause,
        "ending": word(verdict.outcome) if verdict else None,
        "record_id": verdict.record_id if verdict else None,
        "ending_cause": verdict.cause if verdict else released.why_not,
        "is_released": released.is_done,
        "sender_was_told": released.was_told,
    }


def _preview(desk: Desk, causes: dict[File, str], recipients: Sequence[str]) -> Answer:
    """Return what would be done."""
    rows, found = [], []
    for file, cause in causes.items():
        for_whom = _for_whom(desk, file, recipients)
        rows.append((moment(file.since)[:16], file.sender, ", ".join(for_whom) or "nobody of ours: --recipient", cause))
        found.append(facts(file) | {"cause": cause, "recipients": for_whom, "sender_was_told": may_have_told(cause)})
    what = amount(len(rows), "held message")
    screen: list[Any] = [f"Would give {what} to {desk.settings.database} at {desk.settings.url}."]
    if rows:
        screen.append(table(["since", "from", "for", "held because"], rows))
    loops = sum(cause.startswith(walk.STOPPED_LOOP) for cause in causes.values())
    if loops:
        stopped = amount(loops, "of them was stopped", "of them were stopped")
        screen += ["", words(f"{stopped} as a loop. {LOOP_ADVICE}", "waits")]
    return Answer({"messages": found}, screen)


def _screen(released: Sequence[Released]) -> list[Any]:
    """Return what became of the messages: counts, what is left and why, and whom to tell."""
    if not released:
        return ["Nothing is held that this names."]
    counts = Counter(each.verdict.outcome for each in released if each.verdict)
    done, left = ([each for each in released if each.is_done is is_done] for is_done in (True, False))
    screen: list[Any] = [
        words(f"{len(done)} of {len(released)} released.", "good" if not left else "waits"),
        *(words(f"  {word(outcome)}: {count}", style(outcome)) for outcome, count in counts.items()),
    ]
    if left:
        names = beginnings(each.file.name for each in released)
        rows = [(names[each.file.name], each.verdict.cause if each.verdict else each.why_not) for each in left]
        screen += ["", table(["still held", "because"], rows[:MAX_ROWS]), *_more(rows)]
    if any(each.verdict and each.verdict.cause.startswith(walk.STOPPED_LOOP) for each in left):
        screen += ["", words(LOOP_ADVICE, "waits")]
    if counts[Outcome.ACCEPTED]:
        text = f"The database took {counts[Outcome.ACCEPTED]} of them and made no record; they are kept in {ACCEPTED}/."
        screen += ["", words(text, "waits")]
    told = [each for each in done if each.was_told]
    if told:
        text = "The database may have told these senders that their mail failed. It has arrived now: tell them."
        rows = [(each.file.sender, each.file.subject) for each in told]
        screen += ["", words(text, "waits"), table(["from", "subject"], rows[:MAX_ROWS]), *_more(rows)]
    return screen


def _more(rows: Sequence[object]) -> Iterable[str]:
    return [f"{len(rows) - MAX_ROWS} more; --json has all."] if len(rows) > MAX_ROWS else []
