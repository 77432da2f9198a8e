"""The log: one line of ``key=value`` for each message, always the same keys in the same order.

What is printed is public; what is here is the operator's.
"""

import os
import re
from collections.abc import Iterable, Mapping

from mailgate.outcome import Outcome, Verdict
from mailgate.rules import Match

KEYS = (
    "queue_id",
    "message_id",
    "sender",
    "recipients",
    "unmatched",
    "outcome",
    "status_code",
    "record_id",
    "seconds",
    "cause",
)
# What an operator has to look at is an error.
PRIORITIES = {
    Outcome.HELD: "LOG_ERR",
    Outcome.SETTINGS: "LOG_ERR",
    Outcome.ACCESS_DENIED: "LOG_ERR",
    Outcome.FAILED: "LOG_ERR",
}
PRIORITY_BY_STATUS = {0: "LOG_INFO", 65: "LOG_NOTICE", 67: "LOG_NOTICE", 75: "LOG_WARNING"}
VALUE_LIMIT = 1000  # characters of one value, 3000 of a list: some syslog daemons cut a line at 8 KiB


def quoted(value: object) -> str:
    """Return a value in printable ASCII, in quotes where it needs them; None and "" are nothing at all."""
    text = "" if value is None else ",".join(value) if isinstance(value, list) else str(value)
    limit = 3 * VALUE_LIMIT if isinstance(value, list) else VALUE_LIMIT
    if len(text) > limit:
        text = f"{text[:limit]}... ({len(text)} characters)"
    if re.fullmatch(r"[!#-\[\]-~]*", text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[^ -~]", lambda match: match[0].encode("unicode_escape").decode(), escaped) + '"'


def line(facts: Mapping[str, object], verdict: Verdict, seconds: float) -> str:
    """Return the line; what is not known is empty, and no value can end the line or look like another key."""
    outcome, cause, record_id = verdict
    values = {
        **facts,
        "outcome": outcome.name.lower(),
        "status_code": outcome.status_code,
        "record_id": record_id,
        "seconds": f"{seconds:.2f}",
        "cause": cause,
    }
    return " ".join(f"{key}={quoted(values.get(key))}" for key in KEYS)


def write(target: str, outcome: Outcome, text: str) -> None:
    """Write a line to ``syslog``, to ``stderr`` or to the file of that name, and to syslog when that fails.

    A person at a terminal sees it too. Raises nothing: the message has ended, and its log can't change that.
    """
    try:
        if os.path.isabs(target):
            descriptor = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
            try:
                os.write(descriptor, f"{text}\n".encode())  # one call, so that lines of several runs don't mix
            finally:
                os.close(descriptor)
        if target == "stderr" or os.isatty(2):
            os.write(2, f"{text}\n".encode())
    except OSError as error:
        target, text = "syslog", f"{text} log={quoted(error)}"
    if not os.path.isabs(target) and target != "stderr":
        import syslog

        syslog.openlog("mail-gateway", syslog.LOG_PID, syslog.LOG_MAIL)
        syslog.syslog(getattr(syslog, PRIORITIES.get(outcome) or PRIORITY_BY_STATUS[outcome.exit_status]), text)


def where(error: BaseException) -> str:
    """Say what an exception nobody foresaw was, and where it came from, on one line."""
    traceback = error.__traceback__
    while traceback and traceback.tb_next:
        traceback = traceback.tb_next
    place = traceback and f"{os.path.basename(traceback.tb_frame.f_code.co_filename)}:{traceback.tb_lineno}"
    return f"{type(error).__name__}: {error} ({place})"


def explanation(matches: Iterable[Match]) -> bytes:
    """Return what a dry run found, a line for each recipient, for a person."""
    lines = []
    for match in matches:
        found = f"delivered as {quoted(match.address)} ({match.rule})" if match.rule else "no rule matches"
        lines.append(f"{quoted(match.recipient.address)}: {found}\n")
    return "".join(lines).encode()
