"""The log: one line of ``key=value`` for each message, always the same keys in the same order.

What is printed is public; what is here is the operator's.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mailgate import trusted
from mailgate.envelope import Envelope, fields, unfold
from mailgate.outcome import Outcome, Verdict
from mailgate.rules import Match

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
ITEM_LIMIT = 50  # items of a list in JSON
VALUE_LIMIT = 1000  # characters of one value, 3000 of a list: some syslog daemons cut a line at 8 KiB


def known(envelope: Envelope, head: bytes) -> dict[str, object]:
    """Return what the log tells of a message before anything is done with it, by the keys of its line.

    The Message-ID is the header's, as it stands. ``original_recipients`` has the places of ``recipients``, and nothing
    where the MTA gave none.
    """
    originals = [recipient.original_recipient for recipient in envelope.recipients]
    return {
        "sender": envelope.sender,
        "recipients": [recipient.address for recipient in envelope.recipients],
        "original_recipients": originals if any(originals) else [],
        "message_id": next((os.fsdecode(unfold(field)) for name, field in fields(head) if name == b"message-id"), ""),
    }


def quoted(value: object) -> str:
    """Return a value in printable ASCII, in quotes where it needs them; None and "" are nothing at all."""
    text = "" if value is None else ",".join(value) if isinstance(value, list) else str(value)
    text = _cut(text, 3 * VALUE_LIMIT if isinstance(value, list) else VALUE_LIMIT)
    if re.fullmatch(r"[!#-\[\]-~]*", text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[^ -~]", lambda match: match[0].encode("unicode_escape").decode(), escaped) + '"'


def _cut(text: str, limit: int = VALUE_LIMIT) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def _short(value: object) -> object:
    if isinstance(value, list) and len(value) > ITEM_LIMIT:
        return [*map(_short, value[:ITEM_LIMIT]), f"... ({len(value)} items)"]
    return _cut(value) if isinstance(value, str) else value


def line(facts: Mapping[str, object], verdict: Verdict, seconds: float, form: str = "text") -> str:
    """Return the line; what is not known is empty, and no value can end the line or look like another key.

    ``form`` is "text", or "json" for one object with the same keys in the same order.
    """
    outcome, cause, record_id = verdict
    values = {
        **facts,
        "sender": "<>" if facts.get("sender") == "" else facts.get("sender"),  # nobody; None is not known
        "outcome": outcome.name.lower(),
        "status_code": outcome.status_code,
        "record_id": record_id,
        "seconds": round(seconds, 3),
        "cause": cause,
    }
    if form == "json":
        from json import dumps

        return dumps({key: _short(values.get(key)) for key in KEYS})
    return " ".join(f"{key}={quoted(values.get(key))}" for key in KEYS)


def write(facts: Mapping[str, Any], verdict: Verdict, seconds: float) -> None:
    """Write the line of a message to where ``facts["log"]`` says (see ``write_to``), without the secret.

    Raises nothing: the message has ended, and its log can't change that.
    """
    with contextlib.suppress(Exception):
        target, form = facts["log"]
        if facts.get("secret"):
            verdict = verdict._replace(cause=masked(verdict.cause, facts["secret"]))
        text = line(facts, verdict, seconds, form)
        write_to(target, PRIORITIES.get(verdict.outcome) or PRIORITY_BY_STATUS[verdict.outcome.exit_status], text)


def masked(text: str, secret: str) -> str:
    """Return the text without the secret where that stands alone: the password ``admin`` is no administrator's."""
    before = r"(?<!\w)" if re.match(r"\w", secret) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", secret) else ""
    return re.sub(f"{before}{re.escape(secret)}{after}", "********", text)


def event(facts: Mapping[str, Any], priority: str, text: str) -> None:
    """Write a line about the service itself. Raises nothing."""
    with contextlib.suppress(Exception):
        target, form = facts["log"]
        text = masked(text, facts["secret"])
        if form == "json":
            from json import dumps

            write_to(target, priority, dumps({"event": _cut(text)}))
        else:
            write_to(target, priority, f"event={quoted(text)}")


def write_to(target: str, priority: str, text: str) -> None:
    """Write a line to ``syslog``, to ``stderr`` or to the file of that name, and to syslog when that fails.

    A person at a terminal sees it too.
    """
    try:
        if os.path.isabs(target):
            descriptor = trusted.open_log(target)
            try:
                os.write(descriptor, f"{text}\n".encode())  # one call, so that lines of several runs don't mix
            finally:
                os.close(descriptor)
        if target == "stderr" or os.isatty(2):
            os.write(2, f"{text}\n".encode())
    except (OSError, ValueError) as error:
        target, text = "syslog", f"{text} log={quoted(f'{target}: {error}')}"
    if not os.path.isabs(target) and target != "stderr":
        import syslog

        syslog.openlog("mail-gateway", syslog.LOG_PID, syslog.LOG_MAIL)
        syslog.syslog(getattr(syslog, priority), text)


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
        known_as = ", else as ".join(map(quoted, match.addresses))
        found = f"delivered as {known_as} ({match.rule})" if match.rule else "no rule matches"
        lines.append(f"{quoted(match.recipient.address)}: {found}\n")
    return "".join(lines).encode()
