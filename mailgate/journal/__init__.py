"""The journal: what became of every message, and the right to deliver one of them now.

The database looks for a known Message-ID only when a call begins: two calls at the same time make two records. And
what it makes no record of (a bounce, a notice to the sender) it does again at every call (docs/odoo.md, "The same
message twice"). So who delivers a message has its lock, and its row says what the last delivery left behind:

    begun     the database may have been working on the message since then: until READ_TIMEOUT after it, nobody
              delivers it
    ending    where it is final (FOR_GOOD), the database's answer to the delivery that ``delivery`` stands for
    neither   that delivery has left nothing in the database

``recipients`` has whom the database has served under this id, or may have served, by any delivery so far: without one
of these, it does not have the message.

A row is found by a digest of URL, database and Message-ID. It lives for KEEP_DAYS after the message was seen last.
"""

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from mailgate import trusted
from mailgate.journal.rows import DIGEST_BYTES, JOURNAL, SEARCHED, WAIT_SECONDS, Row, Store, Taken
from mailgate.journal.sqlite import Sqlite
from mailgate.outcome import Ended, Outcome, Verdict
from mailgate.settings import Settings

__all__ = [
    "AMBIGUOUS",
    "FOR_GOOD",
    "JOURNAL",
    "SEARCHED",
    "WAIT_SECONDS",
    "Claim",
    "Delivery",
    "Taken",
    "attempts",
    "can_write",
    "claim",
    "could_write",
    "known",
    "look",
    "note_attempt",
    "text_of",
]

AMBIGUOUS = (Outcome.CUT_OFF, Outcome.FAILED, Outcome.IN_PROGRESS)
FOR_GOOD = (Outcome.DELIVERED, Outcome.KNOWN, Outcome.ACCEPTED, Outcome.DROPPED, Outcome.HELD)

# What is to be held and can't be is asked for once a day, in case that the operator has mended the alias.
KEEP_HELD_SECONDS = 24 * 3600
AT_ONCE_SECONDS = 0.1  # in which a second note is not worth its while
REMEMBERED_SECONDS = 5.0  # in which a server is asked once whether it can be written: every local user may ask us
MAX_CAUSE_CHARACTERS = 500
MAX_ATTEMPTS = 1_000_000  # that are looked through
DAY_SECONDS = 24 * 3600.0


def text_of(value: str) -> str:
    """Return a text as the journal keeps it: bytes that are no UTF-8 are spelled out."""
    return value if value.isascii() else os.fsencode(value).decode("utf-8", "backslashreplace")


class Delivery(NamedTuple):
    """What the journal has to know of a delivery.

    ``added``, the fields in front of the message, says for whom it is; with the queue id it tells the MTA's next try
    from another delivery of the same message, which the database is asked about. ``content`` gives a digest of the
    message itself: anybody can send another one with its id.
    """

    message_id: str
    queue_id: str
    added: bytes
    date: int | None = None  # seconds since 1970
    content: Callable[[], bytes] = bytes


class Claim:
    """The right to deliver a message, the answer that the database gave to this delivery before, and what is known."""

    answer: Verdict | None = None
    was_ambiguous = False  # the last try: it may have taken the database long, and may do so again
    ending = ""  # the name of the last one
    cause = ""  # of that ending
    tries = 0  # in a row after which nobody knew whether the database has the message
    served: frozenset[str] = frozenset()  # recipients whom the database has served, or may have; none: it has it not
    date: int | None = None  # of the message that has served them, in seconds since 1970
    held = ""  # the file in which it is held
    _begun = 0.0  # monotonic seconds; 0 is not

    def __init__(
        self,
        note: Callable[..., None] = lambda values, is_begun: None,
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        """``note`` writes to the message's row, as Store.write(); without a journal nothing is written.

        ``report`` is told of what could not be written, and did not have to be.
        """
        self._note, self._report = note, report
        self._serving: frozenset[str] = frozenset()

    def serves(self, *recipients: str) -> None:
        """Take whom the call that comes now serves."""
        self._serving = frozenset(text_of(recipient.lower()) for recipient in recipients)

    def note_begun(self, has_left: bool = False) -> None:
        """Note that from here on the database may be working on the message. Raises Ended(FAILED).

        If it ``has_left``, nothing is raised: the answer is waited for in any case.
        """
        if time.monotonic() - self._begun < AT_ONCE_SECONDS:
            return
        try:
            recipients = _lines(self.served | self._serving)
            self._note({"ending": None, "tries": self.tries + 1, "recipients": recipients}, is_begun=True)
        except Ended as ended:
            if not has_left:
                raise
            self._report(f"{ended.verdict.cause}; not noted that this has left")
        self._begun = time.monotonic()

    def end(self, verdict: Verdict, held: str = "") -> None:
        """Note how the call ended, if there was one, what was found out since, and the file in which it is held."""
        is_final = verdict.outcome in FOR_GOOD
        if (verdict is self.answer and not held) or not (self._begun or is_final):
            return
        self._begun = 0.0  # the call is over: what goes wrong after it is no ending of its own
        cause = verdict.cause[:MAX_CAUSE_CHARACTERS]
        values = {"ending": verdict.outcome.name, "record_id": verdict.record_id, "cause": cause}
        if held:
            values["held"] = held
        if verdict.outcome not in AMBIGUOUS:
            values |= {"tries": 0, "recipients": _lines(self._served_after(verdict.outcome))}
        try:
            # up to now an ambiguous one may have begun: a busy server takes calls late
            self._note(values, is_begun=verdict.outcome in AMBIGUOUS)
        except Ended as ended:  # it has ended so, whatever becomes of the note
            self._report(f"{ended.verdict.cause}; not noted that this is {verdict.outcome.name.lower()}")

    def _served_after(self, outcome: Outcome) -> frozenset[str]:
        """Return who has been served, now that it is known what became of the call.

        Where it has made the record, the calls before it have made none. Where the database had the message already,
        this call has served nobody: only if no call is noted, it was one for the same recipients, as far as we know.
        """
        if outcome is Outcome.DELIVERED:
            return self._serving
        return self.served or (self._serving if outcome in FOR_GOOD else frozenset())


def _lines(recipients: frozenset[str]) -> str:
    return "\n".join(sorted(recipients))


@contextlib.contextmanager
def claim(
    settings: Settings, delivery: Delivery, until: float, report: Callable[[str], None] = lambda text: None
) -> Iterator[Claim]:
    """Give the right to deliver this message to its database, which nobody else then has.

    ``report`` is told of a journal that is set aside or was taken away, and of what could not be noted. Raises Taken
    when another delivery does not end before ``until`` (of the monotonic clock) and within WAIT_SECONDS,
    Ended(IN_PROGRESS) when the database may still be working on an earlier one, Ended(SETTINGS) for what an operator
    has to mend, and Ended(FAILED) when the journal can't be used.
    """
    if not settings.journal:
        yield Claim()
        return
    digest, key = _digest_of_message(settings, delivery.message_id), _key(settings, delivery)
    store = _store(settings, report)

    claimed = Claim(
        lambda values, is_begun: note(values, is_begun), lambda text: report(f"{text}: {delivery.message_id}")
    )

    def note(values: dict[str, Any], is_begun: bool) -> None:
        date = delivery.date if claimed.date is None else claimed.date
        if values.get("ending") == Outcome.HELD.name:
            values = values | {"content": delivery.content()}
        store.write(digest, _written({"delivery": key, "date": date} | values), is_begun)

    with store.lock(digest, min(until, time.monotonic() + WAIT_SECONDS)):
        row = store.read(digest)
        if row and row.begun_age is not None and row.begun_age < 0:  # the clock was set back
            store.write(digest, {}, is_begun=True)
        claimed.answer = _answer(row, key, settings.read_timeout, delivery.content)
        if row:
            _remember(claimed, row)
        try:
            yield claimed
        except BaseException as error:  # a signal, too
            claimed.end(error.verdict if isinstance(error, Ended) else Verdict(Outcome.FAILED))
            raise


@contextlib.contextmanager
def look(settings: Settings, delivery: Delivery, until: float = 0.0) -> Iterator[Claim]:
    """Give what claim() would give of a message, and neither lock nor write anything. Raises Ended as it does."""
    row = _row(settings, delivery.message_id)
    claimed = _claimed(row)
    claimed.answer = _answer(row, _key(settings, delivery), settings.read_timeout, delivery.content)
    yield claimed


def known(settings: Settings, message_id: str) -> Claim:
    """Return what the journal knows of a message, without the right to deliver it. Raises Ended."""
    return _claimed(_row(settings, message_id))


def _claimed(row: Row | None) -> Claim:
    claimed = Claim()
    if row:
        _remember(claimed, row)
    return claimed


def _row(settings: Settings, message_id: str) -> Row | None:
    """Return a message's row, which another delivery may be writing. Raises Ended."""
    if not settings.journal:
        return None
    return _store(settings, lambda text: None).read(_digest_of_message(settings, message_id))


def _key(settings: Settings, delivery: Delivery) -> bytes | None:
    """Return what tells this delivery from others of the same message, None where it can't be told."""
    for_whom = delivery.added.replace(b"\r", b"")  # by way of the service, lines have the ends of SMTP
    return _digest(f"{delivery.queue_id}\0{settings.model}\0", for_whom) if delivery.queue_id else None


def _digest(text: str, more: bytes = b"") -> bytes:
    from hashlib import sha256

    return sha256(os.fsencode(text) + more).digest()[:DIGEST_BYTES]


def _digest_of_message(settings: Settings, message_id: str) -> bytes:
    # what follows the > is no part of the id, for the database neither
    return _digest("\0".join((settings.url, settings.database, message_id.partition(">")[0])))


def can_write(settings: Settings) -> bool:
    """Tell whether the journal can be written, as far as a look tells, or a lock of a server; without one it is so."""
    folder = settings.journal
    if "://" not in folder:
        return not folder or (trusted.may_write(folder) and os.statvfs(folder).f_bavail > 0)
    try:
        with _store(settings, lambda text: None).lock(bytes(DIGEST_BYTES), until=0.0):
            return True
    except Taken:  # another host looks just now
        return True
    except Ended:
        return False


def could_write(settings: Settings) -> bool:
    """Tell what can_write() tells; of a server, what it has told in the last REMEMBERED_SECONDS, whoever asks."""
    if "://" not in settings.journal:
        return can_write(settings)
    return _could_write(settings, time.monotonic() // REMEMBERED_SECONDS)


@functools.lru_cache(maxsize=1)
def _could_write(settings: Settings, period: float) -> bool:
    return can_write(settings)


def note_attempt(settings: Settings, attempt: Mapping[str, Any]) -> None:
    """Write down how a try has ended, with a value for each column of ATTEMPT except two. Raises Ended(FAILED)."""
    if not settings.journal or attempt["cause"].startswith(JOURNAL):  # once is enough to wait for it
        return
    host = os.uname().nodename if "://" in settings.journal else ""
    written = _written({"host": host, "at": time.time(), **attempt})
    _store(settings, lambda text: None).append(written, settings.keep_days * DAY_SECONDS)


def attempts(settings: Settings, word: str = "", since: float = 0.0) -> Iterable[Mapping[str, Any]]:
    """Return the tries that may have a word and ended at or after ``since``, newest first. Raises Ended."""
    return _store(settings, lambda text: None).attempts(word, since, MAX_ATTEMPTS) if settings.journal else []


def _written(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as a store takes them."""
    return {name: text_of(value) if isinstance(value, str) else value for name, value in values.items()}


def _store(settings: Settings, report: Callable[[str], None]) -> Store:
    """Return the store that the settings name. Raises Ended(SETTINGS) where its package is missing."""
    if "://" not in settings.journal:
        return Sqlite(settings.journal, report)
    try:
        from mailgate.journal.postgresql import Postgresql  # and with it psycopg, which nobody else needs
    except ImportError:
        raise Ended(Outcome.SETTINGS, "journal needs the package psycopg") from None
    return Postgresql(settings.journal, settings.journal_password)


def _remember(claimed: Claim, row: Row) -> None:
    """Take over what the row says."""
    claimed.was_ambiguous = row.begun_age is not None
    claimed.ending, claimed.held = row.values["ending"] or "", row.values["held"] or ""
    claimed.cause = row.values["cause"] or ""
    claimed.served = frozenset((row.values["recipients"] or "").split("\n")) - {""}
    if claimed.was_ambiguous:
        claimed.tries = row.values["tries"] or 0
    if claimed.served:
        claimed.date = row.values["date"]


def _answer(
    row: Row | None, delivery: bytes | None, read_timeout: float, content: Callable[[], bytes]
) -> Verdict | None:
    """Return what the database has answered to a delivery. Raises Ended(IN_PROGRESS)."""
    if not row:
        return None
    if row.begun_age is not None:
        left = read_timeout - max(0.0, row.begun_age)
        if left > 0:
            text = f"the database may be working on an earlier delivery for {left:.0f} s more"
            raise Ended(Outcome.IN_PROGRESS, text)
        return None
    ending = next((outcome for outcome in FOR_GOOD if outcome.name == row.values["ending"]), None)
    if not delivery or not ending:
        return None
    # What is to be held is so for each delivery, but not for ever. (A moment to come: the clock was set back.)
    is_fresh = ending is Outcome.HELD and abs(row.seen_age) < KEEP_HELD_SECONDS
    is_held = is_fresh and row.values["content"] == content()
    if is_held or (ending is not Outcome.HELD and row.values["delivery"] == delivery):
        cause = row.values["cause"]
        before = f"{cause}; answered before" if cause else "answered before"
        return Verdict(ending, before, row.values["record_id"])
    return None
