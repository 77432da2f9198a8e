"""What a person sees: records and their threads, who wrote what, what failed and why."""

import re
from collections.abc import Iterator

from mail_database.store import Row, Work


def lines(store: Work, model: str | None = None, record_id: int | None = None) -> Iterator[str]:
    """Yield records with their threads, all of them, a model's, or one, and then what senders were told."""
    nothing = True
    for record in store.shown(model, record_id):
        nothing = False
        yield f"{record['model']} {record['id']}: {record['name']}{'' if record['active'] else ' (archived)'}"
        if record["bounce_count"]:
            yield f"  mail to its address came back {record['bounce_count']} times"
        for message in store.thread(record["model"], record["id"]):
            yield from _message(message)
        yield ""
    if not model:
        for notice in store.told():
            nothing = False
            yield f"told {notice['to']} ({notice['about']}, {notice['state']}): {notice['subject']}"
    if nothing:
        yield "nothing here"


def _message(message: Row) -> Iterator[str]:
    note = " (internal note)" if message["internal_note"] else ""
    subject = message["subject"] or "(no subject)"
    yield f"  {message['date']:%Y-%m-%d %H:%M} {message['email_from']}{note}: {subject}"
    words = re.sub(r"<[^>]*>", " ", message["body"] or "").split()
    if words:
        yield f"      {' '.join(words)[:200]}"
    for attachment in message["attachments"]:
        yield f"      + {attachment['name']} ({attachment['size']} bytes)"
    for failure in message["failures"]:
        yield f"      \N{ENVELOPE} failed for {failure['email']}: {failure['reason'] or 'no error'}"
