"""A row of the journal, and what each store of rows can do."""

import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from mailgate.outcome import Ended, Outcome

DIGEST_BYTES = 16  # of SHA-256: two of 10 ** 9 messages are taken for one with a probability of 10 ** -21
PURGED_ROWS = 8  # of each kind, after each try: more than it adds, so that the journal does not grow
WAIT_SECONDS = 5.0  # that one delivery waits for another of the same message; an MTA's process or connection is held
JOURNAL = "journal: "  # begins what is said of a journal that can't be used
PAUSE_SECONDS = 0.1  # between two tries to get the lock

# What is written of a message besides when it was seen and begun: the columns, and what each is in SQL.
VALUES = {
    "recipients": "text",  # those whom the database has served, one in each line
    "date": "integer",  # the message's Date, in seconds since 1970
    "tries": "integer",  # in a row after which nobody knew whether the database has the message
    "delivery": "blob",  # tells the MTA's next try from another delivery; null without a queue id
    "content": "blob",  # digest of a message that could not be held
    "held": "text",  # the file in which it is held
    "ending": "text",  # the name of an Outcome
    "record_id": "integer",
    "cause": "text",
}

# What is written of each try: the columns, and what each is in SQL. Lists are joined by commas.
ATTEMPT = {
    "at": "real",  # its end, in seconds since 1970, by the host's clock
    "seconds": "real",  # that it took
    "host": "text",  # whose gateway it was, where several have one journal
    "message_id": "text",
    "posted_as": "text",  # Message-IDs with which the database has been given it, where not with that one alone
    "queue_id": "text",
    "sender": "text",  # null is not known
    "recipients": "text",
    "original_recipients": "text",
    "unmatched": "text",
    "subject": "text",  # as it stands in the header
    "size": "integer",  # bytes
    "ending": "text",  # the name of an Outcome
    "model": "text",
    "record_id": "integer",
    "cause": "text",
}
# Those in which a word is looked for. Where a subject has encoded words (RFC 2047), each word may be among them.
SEARCHED = ("message_id", "queue_id", "sender", "recipients", "original_recipients", "subject")


class Row(NamedTuple):
    """What the journal says of a message.

    The ages are in seconds, by the best clock that the store has. ``begun_age`` is None where no call may be running;
    it is less than 0 where the clock was set back.
    """

    seen_age: float
    begun_age: float | None
    values: Mapping[str, Any]


def like(word: str) -> str:
    """Return the pattern, for LIKE with ! as its escape, of texts that have a word."""
    return "%" + re.sub("[!%_]", r"!\g<0>", word) + "%"


class Taken(Ended):
    """Raised when another delivery of the message runs now: it ends as IN_PROGRESS, and may be tried again at once."""

    def __init__(self) -> None:
        super().__init__(Outcome.IN_PROGRESS, "another delivery of this message runs")


class Unusable(Ended):
    """Raised where a store can't be read or written, for the reason ``text``."""

    def __init__(self, text: str) -> None:
        super().__init__(Outcome.FAILED, f"{JOURNAL}{text}")


class Store(Protocol):
    """Where rows and locks are. Each method raises Unusable, or Ended(SETTINGS) for what an operator has to mend."""

    def lock(self, digest: bytes, until: float) -> AbstractContextManager[object]:
        """Hold a message's lock, for which is waited until the monotonic clock says so. Raises Taken."""

    def read(self, digest: bytes) -> Row | None:
        """Return a message's row, None where there is none; also without its lock."""

    def write(self, digest: bytes, values: Mapping[str, Any], is_begun: bool) -> None:
        """Write a message's row; ``is_begun`` notes that a call may run from now on.

        Values that are not given stay as they are.
        """

    def append(self, attempt: Mapping[str, Any], purge_age: float) -> None:
        """Write down a try, with a value for each column of ATTEMPT.

        A few tries that are older than ``purge_age`` seconds go, and a few rows that were not seen for as long.
        """

    def attempts(self, word: str, since: float, limit: int) -> Iterable[Mapping[str, Any]]:
        """Return the tries that ended at or after ``since``, newest first, at most so many.

        With a word, those that may have it, in any case.
        """
