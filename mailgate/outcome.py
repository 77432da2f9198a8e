"""The table of endings: what each means to the MTA, and what a stranger may read of it.

Exit statuses are those of sysexits.h, reply codes (of the LMTP service) those of RFC 5321, status codes those of
RFC 3463. Both MTAs take 75, and no other status, for "try again later"; Postfix lets the status code at the start of
the printed line overrule the exit status, so they stand in one row.
"""

import os
from enum import Enum
from typing import NamedTuple


class Outcome(Enum):
    """How a message may end: exit status, reply code, status code, and the text after it.

    What is printed can end up in a stranger's bounce, so a text names no host, no database and no cause.
    """

    DELIVERED = 0, 250, "2.0.0", "delivered"
    KNOWN = 0, 250, "2.0.0", "known to the database already"
    ACCEPTED = 0, 250, "2.0.0", "accepted, nothing to add"
    DROPPED = 0, 250, "2.0.0", "accepted, dropped by the database"
    HELD = 0, 250, "2.0.0", "accepted, held for the postmaster"
    UNKNOWN_RECIPIENT = 67, 550, "5.1.1", "no such address here"
    TOO_LARGE = 65, 552, "5.3.4", "message too large"
    NOT_A_MESSAGE = 65, 554, "5.6.0", "not a mail message"
    IN_PROGRESS = 75, 451, "4.3.0", "the same message is being delivered, will try again"
    BUSY = 75, 451, "4.3.2", "too much mail is waiting, will try again"
    NO_ANSWER = 75, 451, "4.4.1", "no answer from the database server, will try again"
    CUT_OFF = 75, 451, "4.4.2", "no whole answer from the database server, will try again"
    ACCESS_DENIED = 75, 451, "4.7.0", "gateway not admitted to the database, will try again"
    SETTINGS = 75, 451, "4.3.5", "gateway not set up correctly, will try again"
    DATABASE_DOWN = 75, 451, "4.3.2", "database not available, will try again"
    DATABASE_ERROR = 75, 451, "4.3.0", "database could not take the message, will try again"
    FAILED = 75, 451, "4.3.0", "mail gateway failed, will try again"

    def __init__(self, exit_status: int, reply_code: int, status_code: str, text: str) -> None:
        self.exit_status = exit_status
        self.reply_code = reply_code
        self.status_code = status_code
        self.text = text

    @property
    def is_temporary(self) -> bool:
        """Whether the MTA keeps the message and tries again."""
        return self.exit_status == os.EX_TEMPFAIL

    @property
    def reply(self) -> str:
        """The answer of the LMTP service."""
        return f"{self.reply_code} {self.line}"

    @property
    def line(self) -> str:
        """The one line on standard output; Postfix reads the status code only at its very beginning."""
        return f"{self.status_code} {self.text}"


class Verdict(NamedTuple):
    """What became of a message, with what only the log may know of it."""

    outcome: Outcome
    cause: str = ""
    record_id: int | None = None


class Ended(Exception):
    """Raised where the walk can't go on."""

    def __init__(self, outcome: Outcome, cause: str = "") -> None:
        super().__init__(outcome.line, cause)
        self.verdict = Verdict(outcome, cause)
