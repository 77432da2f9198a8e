"""A mailbox's mail: what is new is delivered, and only then is it marked, moved or deleted.

    it ends as                 in the mailbox it is
    taken by the database      marked as done, and what "done" says
    refused, too large         marked as refused, and what "refused" says
    held for the postmaster    marked as held, and what "refused" says: the database has it not yet
    to be tried again          untouched, and tried again after a pause that grows; the rest goes on

Where the database itself is not to be had, the whole mailbox waits. Nothing is ever given up.
"""

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from tempfile import SpooledTemporaryFile
from typing import Any, NamedTuple

from mailgate import ancestry, journal, walk
from mailgate.arguments import Arguments
from mailgate.database import Client
from mailgate.envelope import (
    SPOOL_IN_MEMORY_BYTES,
    Envelope,
    Raw,
    Recipient,
    canonical_address,
    envelope_of,
    spool_folder,
    spooled,
)
from mailgate.log import Facts, Log, error_text
from mailgate.mailboxes import DIGEST_DIGITS, kept, oauth, queue_id
from mailgate.mailboxes.box import Box, Item, Kind, Mark, Trouble
from mailgate.mailboxes.config import IMAP, Mailbox
from mailgate.mailboxes.imap import Imap
from mailgate.mailboxes.pop3 import OLD, Pop3
from mailgate.outcome import Ended, Outcome, Verdict
from mailgate.settings import Settings

POLL_SECONDS = 60.0  # between two looks, also where the server tells what is new: its word may be lost
LOGGED_BYTES = 2**16  # of a message that is not taken: the log looks there for its Message-ID
# The database is not to be had, whatever the message: the mailbox waits.
OF_THE_DATABASE = (
    Outcome.NO_ANSWER,
    Outcome.ACCESS_DENIED,
    Outcome.SETTINGS,
    Outcome.DATABASE_DOWN,
    Outcome.BUSY,
)
MAX_FAILURES = 3  # in a row of other kinds, after which it waits as well
# Pauses grow from the first to the second. A login that is refused may lock the account, so it waits longer.
DATABASE_PAUSES = (2.0, 60.0)
MESSAGE_PAUSES = (10.0, 1800.0)
TROUBLE_PAUSES = {Kind.NETWORK: (2.0, 120.0), Kind.LOGIN: (60.0, 3600.0), Kind.TOKEN: (60.0, 900.0)}
OTHER_PAUSES = (10.0, 600.0)
LOST_MARKS = "answer: the server does not keep our marks: what has ended is new again, and only the journal knows it"
SAID_AGAIN_SECONDS = 3600.0  # after which a trouble that lasts is said once more


class Shared(NamedTuple):
    """What all mailboxes of the process share. ``told`` is called with each message that has ended."""

    settings: Settings
    folder: str
    log: Log
    workers: threading.Semaphore  # as many calls to the database run at a time
    is_over: threading.Event
    told: Callable[[Outcome, int, Mapping[str, float]], None] = lambda outcome, size, seconds: None


class Later(NamedTuple):
    """When a message is to be tried again, in monotonic seconds, and how often it was tried."""

    due: float
    tries: int


class State:
    """What is known of a mailbox while the process runs, for its metrics as well."""

    def __init__(self) -> None:
        self.later: dict[str, Later] = {}  # by uid
        self.marked: dict[str, int] = {}  # by uid, how often it has ended, as long as it is new all the same
        self.waiting = 0  # messages that are new, and have not ended yet
        self.read_at = 0.0  # when it was read last without trouble, in seconds since 1970
        self.trouble: Kind | None = None
        self.failures = 0  # to read it, in a row
        self.rounds_cut = 0  # in a row, for the database was not to be had
        self.lost_marks_said = False
        self.said, self.said_until = "", 0.0  # the last trouble, and until when it is not said again

    def found(self, items: list[Item]) -> list[Item]:
        """Take what is new, and return what is due of it."""
        self.trouble, self.failures, self.said = None, 0, ""
        self.read_at, self.waiting = time.time(), len(items)
        uids = {item.uid for item in items}
        self.later = {uid: later for uid, later in self.later.items() if uid in uids}
        now = time.monotonic()
        self.marked = {uid: count for uid, count in self.marked.items() if uid in uids}
        for uid, count in self.marked.items():  # the server has not kept the mark
            self.later.setdefault(uid, Later(now + growing(MESSAGE_PAUSES, count), count))
        return [item for item in items if item.uid not in self.later or self.later[item.uid].due <= now]

    def put_off(self, item: Item) -> None:
        """Have a message tried again after a pause."""
        tries = self.later[item.uid].tries + 1 if item.uid in self.later else 1
        self.later[item.uid] = Later(time.monotonic() + growing(MESSAGE_PAUSES, tries), tries)

    def ended(self, item: Item) -> None:
        """Take leave of a message."""
        self.waiting -= 1
        self.later.pop(item.uid, None)

    def has_mark(self, item: Item) -> None:
        """Note that a message was marked."""
        self.marked[item.uid] = self.marked.get(item.uid, 0) + 1

    def next_look(self) -> float:
        """Return the seconds until the next look."""
        due = min((later.due for later in self.later.values()), default=float("inf"))
        return max(0.0, min(POLL_SECONDS, due - time.monotonic()))


def run(mailbox: Mailbox, shared: Shared, state: State) -> None:
    """Read a mailbox until the process is over, whatever happens to it."""
    client = client_of(mailbox, shared)
    while not shared.is_over.is_set():
        try:
            with opened(mailbox, shared.folder) as box:
                pause = read(box, mailbox, shared, state, client)
                while box.wait(pause, shared.is_over.is_set) and not shared.is_over.is_set():
                    pause = read(box, mailbox, shared, state, client)
        except Trouble as trouble:
            pause = tell(mailbox, shared, state, trouble.kind, str(trouble))
        except Exception as error:  # our own bug, or a full disk: another try may go better, and the others go on
            pause = tell(mailbox, shared, state, Kind.FAILED, error_text(error))
        shared.is_over.wait(pause)


def run_once(mailbox: Mailbox, shared: Shared, state: State) -> None:
    """Read a mailbox once."""
    try:
        with opened(mailbox, shared.folder) as box:
            read(box, mailbox, shared, state, client_of(mailbox, shared))
    except Trouble as trouble:
        tell(mailbox, shared, state, trouble.kind, str(trouble))
    except Exception as error:  # as in run()
        tell(mailbox, shared, state, Kind.FAILED, error_text(error))


def client_of(mailbox: Mailbox, shared: Shared) -> Client:
    """Return the database as a mailbox's mail goes to it: with its model, on connections of its own, which are kept."""
    return Client(shared.settings._replace(model=mailbox.model or shared.settings.model))


def gauges(states: Mapping[str, State]) -> dict[str, tuple[str, Callable[[], dict[str, float]]]]:
    """Return what is measured of the mailboxes, as metrics.Metrics takes it: for each, by its name."""

    def each(value: Callable[[State], float]) -> Callable[[], dict[str, float]]:
        return lambda: {name: value(state) for name, state in states.items()}

    return {
        "mailbox_ready": ("1 while the mailbox can be read, else 0", each(lambda state: not state.trouble)),
        "mailbox_token_refused": (
            "1 while the token of the mailbox is refused: it must be authorized anew",
            each(lambda state: state.trouble is Kind.TOKEN),
        ),
        "mailbox_waiting_messages": ("New messages that have not ended yet", each(lambda state: state.waiting)),
        "mailbox_read_timestamp_seconds": (
            "When the mailbox was read last, since 1970; 0 is never",
            each(lambda state: state.read_at),
        ),
    }


def tell(mailbox: Mailbox, shared: Shared, state: State, kind: Kind, text: str) -> float:
    """Log what is wrong with a mailbox, if that is news, and return the seconds until the next try."""
    state.failures += 1
    state.trouble = kind
    pause = growing(TROUBLE_PAUSES.get(kind, OTHER_PAUSES), state.failures)
    if text != state.said or time.monotonic() > state.said_until:
        state.said, state.said_until = text, time.monotonic() + SAID_AGAIN_SECONDS
        shared.log.event(f"mailbox {mailbox.name}: {kind.value}: {text}", "LOG_ERR")
    return pause


def tell_lost_marks(mailbox: Mailbox, shared: Shared, state: State) -> None:
    """Log that the server does not keep the marks, if that is news; the journal knows the messages."""
    if not state.lost_marks_said:
        state.lost_marks_said = True
        shared.log.event(f"mailbox {mailbox.name}: {LOST_MARKS}", "LOG_WARNING")


def growing(pauses: tuple[float, float], count: int) -> float:
    """Return the pause after so many failures in a row: the first one given, doubled each time up to the second."""
    shortest, longest = pauses
    return min(longest, shortest * 2.0 ** min(count - 1, 20))


def read(box: Box, mailbox: Mailbox, shared: Shared, state: State, client: Client) -> float:
    """Deliver what is new, and return the seconds until the next look. Raises Trouble."""
    items = box.new()
    if state.trouble:
        shared.log.event(f"mailbox {mailbox.name}: is read again", "LOG_INFO")
    failures, due = 0, state.found(items)  # failures in a row
    if state.marked:
        tell_lost_marks(mailbox, shared, state)
    for item in due:
        if shared.is_over.is_set():
            return 0.0
        try:
            verdict = deliver(box, item, mailbox, shared, client)
        except Exception:  # it may be this message, which the server can't give: the others go first next time
            state.put_off(item)
            raise
        if verdict is None or not verdict.outcome.is_temporary:
            failures = 0
            state.ended(item)
            if verdict:
                state.has_mark(item)
            continue
        failures += 1
        if verdict.outcome not in OF_THE_DATABASE:
            state.put_off(item)
        if verdict.outcome in OF_THE_DATABASE or failures == MAX_FAILURES:
            state.rounds_cut += 1
            return growing(DATABASE_PAUSES, state.rounds_cut)
    state.rounds_cut = 0
    return state.next_look()


def deliver(box: Box, item: Item, mailbox: Mailbox, shared: Shared, client: Client) -> Verdict | None:
    """Take a message to its ending, mark it if that is one, and return it; None for a message that is gone.

    Raises Trouble.
    """
    began = time.monotonic()
    facts, settings = Facts(queue_id(mailbox.name, b"0" * DIGEST_DIGITS)), client.settings
    facts.size = item.size
    is_large = item.size > settings.max_size
    with SpooledTemporaryFile(max_size=SPOOL_IN_MEMORY_BYTES, dir=spool_folder(os.environ)) as file:
        if not box.fetch(item, file, LOGGED_BYTES if is_large else settings.max_size + 1):
            return None
        fetched = time.monotonic()
        try:
            raw = spooled(file)
            envelope = envelope_for(mailbox, raw)
            # by its digest it is known again in this mailbox, whatever number the server gives it
            facts.queue_id = queue_id(mailbox.name, ancestry.digest(raw, raw.head()))
            if is_large or raw.size > settings.max_size:
                facts.describe(envelope, raw.head())
                raise Ended(Outcome.TOO_LARGE, f"more than {settings.max_size} bytes")
            with shared.workers:
                verdict = _walked(mailbox, shared, client, envelope, raw, facts)
        except Ended as ended:  # an empty message, too
            verdict = ended.verdict
    ended_at = time.monotonic()
    shared.log.message(facts, verdict, ended_at - began)
    shared.told(verdict.outcome, item.size, {"receive": fetched - began, "deliver": ended_at - fetched})
    if not verdict.outcome.is_temporary:
        left = box.mark(item, mark_of(verdict.outcome))
        if left:
            shared.log.event(
                f"mailbox {mailbox.name}: stays as it is, marked: {left}: {facts.message_id}", "LOG_WARNING"
            )
    return verdict


def _walked(mailbox: Mailbox, shared: Shared, client: Client, envelope: Envelope, raw: Raw, facts: Facts) -> Verdict:
    """Return the ending of the walk."""
    addresses = client.settings.addresses
    if mailbox.recipient:
        addresses = addresses._replace(mailboxes=frozenset({canonical_address(mailbox.recipient)}))
    report = functools.partial(shared.log.event, priority="LOG_ERR")
    claim = functools.partial(journal.claim, report=report)
    return walk.deliver(client.settings, client, envelope, raw, facts, addresses=addresses, claim=claim)


def envelope_for(mailbox: Mailbox, raw: Raw) -> Envelope:
    """Return who a message is from and for: the mailbox's own recipient, else those that the header names."""
    found = envelope_of(Arguments(), {}, raw.head())
    return found._replace(recipients=(Recipient(mailbox.recipient),)) if mailbox.recipient else found


def mark_of(outcome: Outcome) -> Mark:
    """Return how a message is marked that has ended so."""
    if outcome is Outcome.HELD:
        return Mark.HELD
    return Mark.REFUSED if outcome.exit_status else Mark.DONE


@contextlib.contextmanager
def opened(mailbox: Mailbox, folder: str, keeps: bool = True) -> Iterator[Box]:
    """Open a mailbox; what must be known of it next time is kept beside, if that is wanted. Raises Trouble."""
    path = os.path.join(folder, f"{mailbox.name}.json")
    with _on_disk(path):
        before = _before(path)
        # "first" is Imap's; of a maildrop: marks by UIDL, and whether those of the first day are among them
        known: dict[str, Any] = {"since": date.today().isoformat(), "first": "", "ended": {}, "knows_old": False} | (
            before or {}
        )
        since = mailbox.since or date.fromisoformat(known["since"])

    def keep() -> None:
        if keeps and known != before:
            with _on_disk(path):
                kept.replace(path, known)

    if not before:
        keep()  # or the first day would be another one next time

    def token(refused: str) -> str:
        assert mailbox.grant
        return oauth.access_token(mailbox.name, mailbox.grant, folder, refused)

    if mailbox.protocol == IMAP:
        imap = Imap(mailbox, since, token)
        known["first"] = known["first"] or imap.next
        imap.first = "" if mailbox.since else known["first"]
        keep()  # or it would be a later one after a kill
        box: Box = imap
    else:
        box = Pop3(mailbox, since, token, {**known["ended"]}, is_first=not known["knows_old"])
        known |= {"ended": box.ended, "knows_old": True}
    try:
        yield box
        box.leave()
    except BaseException:  # a signal, too
        box.close()
        raise
    finally:
        keep()


def _before(path: str) -> dict[str, Any] | None:
    """Return what was kept of a mailbox, None for nothing. Raises OSError, and ValueError for what is not ours."""
    found = kept.read(path)
    if found is None:
        return None
    since, first, ended = found.get("since"), found.get("first", ""), found.get("ended")
    marks = [OLD, *Mark.__members__]
    if (
        not isinstance(since, str)
        or not isinstance(first, str)
        or not isinstance(ended, dict)
        or not all(mark in marks for mark in ended.values())
    ):
        raise ValueError("is none of ours")
    return found


@contextlib.contextmanager
def _on_disk(path: str) -> Iterator[None]:
    """Raise Trouble for what can't be read or kept."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).removesuffix(f": {path}")
        raise Trouble(Kind.DISK, f"{path}: {reason}") from None
