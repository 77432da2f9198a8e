"""The journal: what became of every message, and the right to deliver one of them now.

The database looks for a known Message-ID only when a call begins: two calls at the same time make two records. And
what it makes no record of (a bounce, a notice to the sender) it does again at every call (docs/odoo.md, "The same
message twice"). So who delivers a message has its lock, and its row says what the last delivery left behind:

    begun     the database may have been working on the message since then: until READ_TIMEOUT after it, nobody
              delivers it
    ending    where it is final (FOR_GOOD), the database's answer to the delivery that ``delivery`` stands for
    neither   the last call has not reached the database; where there are recipients, an earlier one may have

A row is found by a digest of URL, database and Message-ID. It lives for KEEP_DAYS after the message was seen last.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mailgate.journal.rows import DIGEST_BYTES, WAIT_SECONDS, Row, Store, Taken, Unusable
from mailgate.journal.sqlite import Sqlite
from mailgate.outcome import Ended, Outcome, Verdict
from mailgate.settings import Settings

__all__ = ["AMBIGUOUS", "FOR_GOOD", "WAIT_SECONDS", "Claim", "Delivery", "Taken", "can_write", "claim", "text_of"]

AMBIGUOUS = (Outcome.CUT_OFF, Outcome.FAILED, Outcome.IN_PROGRESS)
FOR_GOOD = (Outcome.DELIVERED, Outcome.KNOWN, Outcome.ACCEPTED, Outcome.DROPPED, Outcome.HELD)

# What is to be held and can't be is asked for once a day, in case that the operator has mended the alias.
KEEP_HELD_SECONDS = 24 * 3600
AT_ONCE_SECONDS = 0.1  # in which a second note is not worth its while
MAX_CAUSE_CHARACTERS = 500
DAY_SECONDS = 24 * 3600.0


def text_of(value: str) -> str:
    """Return a text as the journal keeps it: bytes that are no UTF-8 are spelled out."""
    return os.fsencode(value).decode("utf-8", "backslashreplace")


class Delivery(NamedTuple):
    """What the journal has to know of a delivery.

    ``added``, the fields in front of the message, says for whom it is; with the queue id it tells the MTA's next try
    from another delivery of the same message, which the database is asked about.
    """

    message_id: str
    queue_id: str
    added: bytes
    sender: str | None = None
    date: int | None = None  # seconds since 1970


class Claim:
    """The right to deliver a message, the answer that the database gave to this delivery before, and what is known."""

    answer: Verdict | None = None
    was_ambiguous = False  # the last try: it may have taken the database long, and may do so again
    is_noted = False  # the database has the message, or may have it
    ending = ""  # the name of the last one
    tries = 0  # in a row after which nobody knew whether the database has the message
    served: frozenset[str] = frozenset()  # recipients of the call that is noted
    date: int | None = None  # of the message that is noted, in seconds since 1970
    held = ""  # the file in which it is held
    _begun = 0.0  # monotonic seconds; 0 is not

    def __init__(self, note: Callable[..., None] = lambda values, is_begun: None) -> None:
        """``note`` writes to the message's row, as Store.write(); without a journal nothing is written."""
        self._note = note
        self._serving: frozenset[str] = frozenset()

    def serves(self, *recipients: str) -> None:
        """Take whom the call that comes now serves."""
        self._serving = frozenset(text_of(recipient.lower()) for recipient in recipients)

    def note_begun(self) -> None:
        """Note that from here on the database may be working on the message. Raises Ended(FAILED)."""
        if time.monotonic() - self._begun >= AT_ONCE_SECONDS:
            self._note({"ending": None, "tries": self.tries + 1, **self._served_with()}, is_begun=True)
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
        if is_final:
            values |= {"tries": 0, **self._served_with()}
        elif verdict.outcome not in AMBIGUOUS:
            values |= {"tries": 0, "recipients": "\n".join(sorted(self.served))}
        with contextlib.suppress(Ended):  # it has ended so, whatever becomes of the note
            # up to now an ambiguous one may have begun: a busy server takes calls late
            self._note(values, is_begun=verdict.outcome in AMBIGUOUS)

    def _served_with(self) -> dict[str, str]:
        """Return the recipients that have been served when the database has this delivery."""
        return {"recipients": "\n".join(sorted(self.served | self._serving))}


@contextlib.contextmanager
def claim(
    settings: Settings, delivery: Delivery, until: float, report: Callable[[str], None] = lambda text: None
) -> Iterator[Claim]:
    """Give the right to deliver this message to its database, which nobody else then has.

    ``report`` is told of a journal that is set aside. Raises Taken when another delivery does not end before ``until``
    (of the monotonic clock) and within WAIT_SECONDS, Ended(IN_PROGRESS) when the database may still be working on an
    earlier one, Ended(SETTINGS) for what an operator has to mend, and Ended(FAILED) when the journal can't be used.
    """
    if not settings.journal:
        yield Claim()
        return
    from hashlib import sha256

    def digest_of(text: str, more: bytes = b"") -> bytes:
        return sha256(os.fsencode(text) + more).digest()[:DIGEST_BYTES]

    # what follows the > is no part of the id, for the database neither
    digest = digest_of("\0".join((settings.url, settings.database, delivery.message_id.partition(">")[0])))
    for_whom = delivery.added.replace(b"\r", b"")  # by way of the service, lines have the ends of SMTP
    key = digest_of(f"{delivery.queue_id}\0{settings.model}\0", for_whom) if delivery.queue_id else None
    store = _store(settings, report)

    claimed = Claim(lambda values, is_begun: note(values, is_begun))

    def note(values: dict[str, Any], is_begun: bool) -> None:
        known = {"queue_id": delivery.queue_id, "delivery": key, "model": settings.model}
        date = delivery.date if claimed.date is None else claimed.date
        known |= {"sender": delivery.sender, "date": date} | values
        written = {name: text_of(value) if isinstance(value, str) else value for name, value in known.items()}
        purge_age = 0.0 if is_begun else settings.keep_days * DAY_SECONDS
        try:
            store.write(digest, written, is_begun, purge_age)
        except Unusable as error:
            raise Ended(Outcome.FAILED, f"journal: {error}") from None

    try:
        with store.lock(digest, min(until, time.monotonic() + WAIT_SECONDS)):
            row = store.read(digest)
            if row and row.begun_age is not None and row.begun_age < 0:  # the clock was set back
                store.write(digest, {}, is_begun=True)
            claimed.answer = _answer(row, key, settings.read_timeout)
            if row:
                _remember(claimed, row)
            try:
                yield claimed
            except BaseException as error:  # a signal, too
                claimed.end(error.verdict if isinstance(error, Ended) else Verdict(Outcome.FAILED))
                raise
    except Unusable as error:
        raise Ended(Outcome.FAILED, f"journal: {error}") from None


def can_write(settings: Settings) -> bool:
    """Tell whether the journal can be written, as far as a look tells, or a lock of a server; without one it is so."""
    if "://" not in settings.journal:
        return not settings.journal or os.access(settings.journal, os.W_OK | os.X_OK)
    try:
        with _store(settings, lambda text: None).lock(bytes(DIGEST_BYTES), until=0.0):
            return True
    except Taken:  # another host looks just now
        return True
    except (Ended, Unusable):
        return False


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
    """Take over what the row says.

    What ended clearly, and not for good, the database has not got from that call; where there are recipients, it may
    have it from an earlier one.
    """
    claimed.was_ambiguous = row.begun_age is not None
    claimed.ending, claimed.held = row.values["ending"] or "", row.values["held"] or ""
    served = frozenset((row.values["recipients"] or "").split("\n")) - {""}
    is_final = claimed.ending in {outcome.name for outcome in FOR_GOOD}
    claimed.is_noted = claimed.was_ambiguous or is_final or bool(served)
    if claimed.was_ambiguous:
        claimed.tries = row.values["tries"] or 0
    if claimed.is_noted:
        claimed.date, claimed.served = row.values["date"], served


def _answer(row: Row | None, delivery: bytes | None, read_timeout: float) -> Verdict | None:
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
    is_held = ending is Outcome.HELD and abs(row.seen_age) < KEEP_HELD_SECONDS
    if is_held or (ending is not Outcome.HELD and row.values["delivery"] == delivery):
        cause = row.values["cause"]
        before = f"{cause}; answered before" if cause else "answered before"
        return Verdict(ending, before, row.values["record_id"])
    return None
