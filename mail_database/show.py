"""What a person sees: records and their threads, who wrote what, what failed and why."""

import re
from collections.abc import Iterator

from mail_database.store import Row, Work


def lines(store: Work, model: str | None = None, record_id: int | None = None) -> list[str]:
    """Return records with their threads, all of them, a model's, or one."""
    world = store.dump()
    names = {partner["id"]: partner["name"] or partner["email"] for partner in world["partners"]}
    told: list[str] = []
    for record in [*world["records"], *_partners(world["partners"], world["messages"])]:
        if (model and record["model"] != model) or (record_id and record["id"] != record_id):
            continue
        told += [f"{record['model']} {record['id']}: {record['name']}" + _archived(record)]
        if record["bounce_count"]:
            told += [f"  {record['bounce_count']} bounces"]
        for message in world["messages"]:
            if (message["model"], message["thread_id"]) == (record["model"], record["id"]):
                told += [f"  {line}" for line in _message(message, names, world["notifications"])]
        told += [""]
    if not model:
        for notice in world["notices"]:
            told += [f"told {notice['to']} ({notice['about']}, {notice['state']}): {notice['subject']}"]
    return told or ["nothing here"]


def _partners(partners: list[Row], messages: list[Row]) -> list[Row]:
    written = {message["thread_id"] for message in messages if message["model"] == "res.partner"}
    return [{**partner, "model": "res.partner"} for partner in partners if partner["id"] in written]


def _archived(record: Row) -> str:
    return "" if record["active"] else " (archived)"


def _message(message: Row, names: dict[int, str], notifications: list[Row]) -> Iterator[str]:
    note = " (internal note)" if message["internal_note"] else ""
    yield f"{message['date'][:16]} {message['email_from']}{note}: {message['subject'] or '(no subject)'}"
    text = re.sub(r"<[^>]*>", " ", message["body"] or "").split()
    if text:
        yield "    " + " ".join(text)[:200]
    for attachment in message["attachments"]:
        yield f"    + {attachment['name']} ({attachment['size']} bytes)"
    for notification in notifications:
        if notification["message"] == message["id"] and notification["status"] == "bounce":
            name = names.get(notification["partner_id"], "?")
            yield f"    \N{ENVELOPE} failed for {name}: {notification['reason'] or 'no error'}"
