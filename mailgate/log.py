"""The log: one line of ``key=value`` for each message, always the same keys in the same order.

What is printed is public; what is here is the operator's.
"""

import contextlib
import os
import re
from collections.abc import Callable
from typing import Any

from mailgate import trusted
from mailgate.envelope import Envelope, fields, unfold
from mailgate.outcome import Outcome, Verdict

KEYS = (
    "queue_id",
    "message_id",
    "sender",
    "recipients",
    "original_recipients",
    "unmatched",
    "outcome",
    "status_code",
    "record_id",
    "model",
    "seconds",
    "cause",
)
# What an operator has to look at is an error; what he may want to know of, a notice.
PRIORITIES = {
    Outcome.DROPPED: "LOG_NOTICE",
    Outcome.HELD: "LOG_ERR",
    Outcome.SETTINGS: "LOG_ERR",
    Outcome.ACCESS_DENIED: "LOG_ERR",
    Outcome.FAILED: "LOG_ERR",
}
PRIORITY_BY_STATUS = {0: "LOG_INFO", 65: "LOG_NOTICE", 67: "LOG_NOTICE", 75: "LOG_WARNING"}
MAX_ITEMS = 50  # items of a list in JSON
MAX_VALUE_CHARACTERS = 1000  # of one value, 3000 of a list: some syslog daemons cut a line at 8 KiB


class Facts:
    """What the log tells of a message besides its ending: each attribute is a key of its line, or the journal's.

    A sender that is None is not known. ``original_recipients`` has the places of ``recipients``, and nothing where the
    MTA gave none.
    """

    def __init__(self, queue_id: str = "") -> None:
        self.queue_id = queue_id
        self.message_id = ""
        self.sender: str | None = None
        self.recipients: list[str] = []
        self.original_recipients: list[str] = []
        self.unmatched: list[str] = []
        self.model = ""
        self.subject = ""  # as it stands in the header
        self.size = 0  # bytes
        self.posted_as: list[str] = []  # Message-IDs with which the database has been given it

    def describe(self, envelope: Envelope, head: bytes) -> None:
        """Take what envelope and header say before anything is done with the message; its id as it stands there."""
        originals = [recipient.original_recipient for recipient in envelope.recipients]
        self.sender = envelope.sender
        self.recipients = [recipient.address for recipient in envelope.recipients]
        self.original_recipients = originals if any(originals) else []
        found: dict[bytes, str] = {}
        for name, field in fields(head):
            if name in (b"message-id", b"subject"):
                found.setdefault(name, os.fsdecode(unfold(field)))
        self.message_id, self.subject = found.get(b"message-id", ""), found.get(b"subject", "")


class Log:
    """Where lines go, in which form, and the secret that none of them may hold.

    ``target`` is "syslog", "stderr" or the path of a file; ``form`` is "text", or "json" for one object with the same
    keys in the same order. ``keep`` takes what is told of a message as attempt() has it, for the journal. A person at a
    terminal sees the lines too, if ``is_shown``. Its methods raise nothing: what they tell of has happened.
    """

    def __init__(
        self,
        target: str = "syslog",
        form: str = "text",
        secret: str = "",
        keep: Callable[[dict[str, Any]], None] = lambda attempt: None,
        is_shown: bool = True,
    ) -> None:
        self.target, self.form, self.secret, self.keep, self.is_shown = target, form, secret, keep, is_shown

    def message(self, facts: Facts, verdict: Verdict, seconds: float) -> None:
        """Write the line of a message that has ended, after so many seconds."""
        with contextlib.suppress(Exception):
            verdict = verdict._replace(cause=masked(verdict.cause, self.secret))
            priority = PRIORITIES.get(verdict.outcome) or PRIORITY_BY_STATUS[verdict.outcome.exit_status]
            write(self.target, priority, line(facts, verdict, seconds, self.form), self.is_shown)
        with contextlib.suppress(Exception):
            self.keep(attempt(facts, verdict, seconds))

    def event(self, text: str, priority: str) -> None:
        """Write a line about the service itself."""
        with contextlib.suppress(Exception):
            text = masked(text, self.secret)
            if self.form == "json":
                from json import dumps

                write(self.target, priority, dumps({"event": _cut(text)}))
            else:
                write(self.target, priority, f"event={quoted(text)}")


def quoted(value: object) -> str:
    """Return a value in printable ASCII, in quotes where it needs them; None and "" are nothing at all."""
    text = "" if value is None else ",".join(value) if isinstance(value, list) else str(value)
    text = _cut(text, 3 * MAX_VALUE_CHARACTERS if isinstance(value, list) else MAX_VALUE_CHARACTERS)
    if re.fullmatch(r"[!#-\[\]-~]*", text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[^ -~]", lambda match: match[0].encode("unicode_escape").decode(), escaped) + '"'


def _cut(text: str, limit: int = MAX_VALUE_CHARACTERS) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def _short(value: object) -> object:
    if isinstance(value, list) and len(value) > MAX_ITEMS:
        return [*map(_short, value[:MAX_ITEMS]), f"... ({len(value)} items)"]
    return _cut(value) if isinstance(value, str) else value


def line(facts: Facts, verdict: Verdict, seconds: float, form: str = "text") -> str:
    """Return the line; what is not known is empty, and no value can end the line or look like another key."""
    outcome, cause, record_id = verdict
    values = {
        **vars(facts),
        "sender": "<>" if facts.sender == "" else facts.sender,
        "outcome": outcome.name.lower(),
        "status_code": outcome.status_code,
        "record_id": record_id,
        "seconds": round(seconds, 3),
        "cause": cause,
    }
    if form == "json":
        from json import dumps

        return dumps({key: _short(values[key]) for key in KEYS})
    return " ".join(f"{key}={quoted(values[key])}" for key in KEYS)


def attempt(facts: Facts, verdict: Verdict, seconds: float) -> dict[str, Any]:
    """Return what the journal keeps of a message that has ended, by the names of its columns."""
    posted_as = [] if facts.posted_as == [facts.message_id] else facts.posted_as
    told = {name: _cut(",".join(value)) if isinstance(value, list) else value for name, value in vars(facts).items()}
    ending = {"ending": verdict.outcome.name, "record_id": verdict.record_id, "cause": _cut(verdict.cause)}
    shown = {"posted_as": ",".join(posted_as), "subject": _cut(facts.subject), "seconds": round(seconds, 3)}
    return told | ending | shown


def masked(text: str, secret: str) -> str:
    """Return the text without the secret where that stands alone: the password ``admin`` is no administrator's."""
    if not secret:
        return text
    before = r"(?<!\w)" if re.match(r"\w", secret) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", secret) else ""
    return re.sub(f"{before}{re.escape(secret)}{after}", "********", text)


def write(target: str, priority: str, text: str, is_shown: bool = True) -> None:
    """Write a line to ``syslog``, to ``stderr`` or to the file of that name, and to syslog when that fails.

    A person at a terminal sees it too, if it ``is_shown``.
    """
    try:
        if os.path.isabs(target):
            descriptor = trusted.open_log(target)
            try:
                os.write(descriptor, f"{text}\n".encode())  # one call, so that lines of several runs don't mix
            finally:
                os.close(descriptor)
        if target == "stderr" or (is_shown and os.isatty(2)):
            os.write(2, f"{text}\n".encode())
    except (OSError, ValueError) as error:
        target, text = "syslog", f"{text} log={quoted(f'{target}: {error}')}"
    if not os.path.isabs(target) and target != "stderr":
        import syslog

        syslog.openlog("mail-gateway", syslog.LOG_PID, syslog.LOG_MAIL)
        syslog.syslog(getattr(syslog, priority), text)


def error_text(error: BaseException) -> str:
    """Say what an exception nobody foresaw was, and where it came from, on one line."""
    traceback = error.__traceback__
    while traceback and traceback.tb_next:
        traceback = traceback.tb_next
    place = traceback and f"{os.path.basename(traceback.tb_frame.f_code.co_filename)}:{traceback.tb_lineno}"
    return f"{type(error).__name__}: {error} ({place})"
