"""Read a provider's report in JSON: which recipients it says have failed, and which message that was.

The forms are those of Amazon SES, by itself or wrapped by SNS, and of SendGrid, Mailgun, Postmark, Mandrill,
SparkPost and Mailjet, as their documentation of webhooks has them. They differ in words, not in kind: an object that
has a recipient belongs to the nearest event around it. Lists of destinations are no such objects: they name nobody.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

EVENT_KEYS = (
    "notificationtype",
    "eventtype",
    "event",
    "type",
    "recordtype",
)
# Events by which a recipient has failed; others (deliveries, delays, complaints) tell of no failure.
FAILED_EVENTS = {"bounce", "bounced", "hard_bounce", "hardbounce", "failed", "dropped", "rejected", "reject"}
EVENTS = FAILED_EVENTS | {
    "complaint", "delivery", "deliverydelay", "deferred", "delivered", "soft_bounce", "softbounce", "delay",
    "accepted", "spam", "spamreport", "spamcomplaint", "open", "opened", "click", "clicked", "blocked", "autoresponder",
    "processed", "transient", "spamnotification", "addresschange", "challengeverification", "virusnotification",
    "unsubscribe",
}  # fmt: skip
RECIPIENT_KEYS = ("emailaddress", "email", "recipient", "rcpt_to", "rcptto")
STATUS_KEYS = ("status", "bounced_address_status", "error_code", "code")
REASON_KEYS = ("diagnosticcode", "reason", "description", "diag", "raw_reason", "error")
ID_KEYS = ("messageid", "message-id", "smtp-id", "message_id")

MAX_OBJECT_DEPTH = 12  # of objects within each other
JSON_START = re.compile(r"^[ \t]*(?=[{\[])", re.MULTILINE)
MAX_JSON_STARTS = 4  # places where a text may begin to be JSON


class Event(NamedTuple):
    """A recipient, whether he failed, and the report's own words."""

    recipient: str
    is_failure: bool
    status: str
    diagnostic: str


class Events(NamedTuple):
    """What a provider reports. Message-IDs are in brackets."""

    events: tuple[Event, ...]
    message_ids: tuple[str, ...]


def read_events(text: str) -> Events | None:
    """Return the events of a text that is a provider's report in JSON, None when it is none."""
    for place, start in enumerate(JSON_START.finditer(text)):
        if place == MAX_JSON_STARTS:
            return None
        try:
            value = _DECODER.raw_decode(text, start.end())[0]
        except (ValueError, RecursionError):
            continue
        kinds: list[str] = []
        ids: list[str] = []
        events = tuple(_events(value, "", kinds, ids, MAX_OBJECT_DEPTH))
        if kinds:
            return Events(events, tuple(dict.fromkeys(ids)))
    return None


def _events(value: Any, kind: str, kinds: list[str], ids: list[str], depth: int) -> Iterator[Event]:
    """Yield the recipients in a value; the kinds of events, and ids, are added to their lists."""
    if depth == 0:
        return
    if isinstance(value, list):
        for each in value:
            yield from _events(each, kind, kinds, ids, depth - 1)
    if not isinstance(value, dict):
        return
    found = {key.lower(): each for key, each in value.items()}
    own = next((event for key in EVENT_KEYS if (event := _word(found, key).lower()) in EVENTS), "")
    if _word(found, "severity").lower() == "temporary":  # Mailgun
        own = "deferred"
    if own:
        kinds.append(own)
    kind = own or kind
    ids += _ids(found)
    yield from _own_event(found, kind)
    message = found.get("message")
    if isinstance(message, str) and message.lstrip().startswith("{"):  # SNS has the report as a text within its own
        with contextlib.suppress(ValueError, RecursionError):
            value = {**value, "Message": _DECODER.raw_decode(message.lstrip())[0]}
    for each in value.values():
        if isinstance(each, (dict, list)):
            yield from _events(each, kind, kinds, ids, depth - 1)


def _own_event(found: dict[str, Any], kind: str) -> Iterator[Event]:
    """Yield the event of a kind that an object itself describes, if it names a recipient."""
    recipient = next((_word(found, key) for key in RECIPIENT_KEYS if "@" in _word(found, key)), "")
    if recipient and kind:
        status = next((word for key in STATUS_KEYS if (word := _word(found, key))), "")
        reason = next((word for key in REASON_KEYS if (word := _word(found, key))), "")
        action = _word(found, "action").lower()
        is_failure = kind in FAILED_EVENTS and action not in ("delayed", "delivered", "relayed", "expanded")
        yield Event(recipient, is_failure, status, reason)


def _word(found: dict[str, Any], key: str) -> str:
    value = found.get(key)
    return value.strip() if isinstance(value, str) else ""


def _ids(found: dict[str, Any]) -> Iterator[str]:
    is_header = _word(found, "name").lower() == "message-id"  # {"name": "Message-ID", "value": ...}
    for value in [_word(found, "value")] * is_header + [_word(found, key) for key in ID_KEYS]:
        if "@" in value:
            yield value if value.startswith("<") else f"<{value}>"


# Numbers stay text: long ones take quadratic time. Line ends in texts are what mail does to long lines.
_DECODER = json.JSONDecoder(strict=False, parse_int=str, parse_float=str)
