"""What a person sees: records and their threads, who wrote what, what failed and why, what is placed nowhere."""

import re
from collections.abc import Iterator

from mail_database.store import Row, Store


def lines(store: Store, model: str | None = None, record_id: int | None = None) -> Iterator[str]:
    """Yield records with their threads, all of them, a model's, or one, and then what senders were told."""
    nothing = True
    for record in store.records_to_show(model, record_id):
        nothing = False
        yield f"{record['model']} {record['id']}: {record['name']}{'' if record['active'] else ' (archived)'}"
        if record["bounce_count"]:
            yield f"  mail to its address came back {record['bounce_count']} times"
        for message in store.thread(record["model"], record["id"]):
            yield from _message(message)
        yield ""
    if not model:
        for notice in store.notices_told():
            nothing = False
            yield f"told {notice['to']} ({notice['about']}, {notice['state']}): {notice['subject']}"
        number = store.count_unplaced()
        if number:
            nothing = False
            yield f"placed nowhere: {number} (show --unplaced lists them)"
    if nothing:
        yield "nothing here"


def unplaced(store: Store, key: int = 0) -> Iterator[str]:
    """Yield a line for each message that is placed nowhere; or one message, as it came."""
    nothing = True
    for row in filter(None, [store.unplaced_message(key)]) if key else store.unplaced():
        nothing = False
        yield (
            f"{row['id']}  {row['date']:%Y-%m-%d %H:%M} {row['sender'] or '(no sender)'}: "
            f"{row['subject'] or '(no subject)'} ({row['about']}: {row['reason']})"
        )
        if key:
            yield from row["original"].decode("utf-8", "replace").splitlines()
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
