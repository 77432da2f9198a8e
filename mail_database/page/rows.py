"""What the pages read: each function is a query with an index, at most a page of rows, the newest first.

A page goes on where the last one ended, by its last id (keyset): the thousandth costs what the first does.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from mail_database.routing import MODELS
from mail_database.store import Store
from mail_database.tables import attachments, messages, notices, notifications, originals, partners, records, unplaced

FAILED = ("bounce", "exception")  # of a notification: it came back, or a mail server refused it
_BECOMES = (messages, notices, unplaced)  # what comes of a mail
_LARGE = ("body", "original")  # columns that a list does not need
SEEN = "mail_database.page.seen"  # a parameter: the newest message that somebody has seen as new
MAX_COUNTED = 100  # failures and unplaced messages: from there on the bar says "99+"


def models(store: Store) -> list[str]:
    """Return the models that have records."""
    return [name for name in MODELS if of_model(store, name, None, 1)]


def of_model(store: Store, model: str, before: int | None, limit: int) -> Sequence[dict[str, Any]]:
    """Return records of a model."""
    table = partners if model == "res.partner" else records
    condition = sa.true() if table is partners else records.c.model == model
    return _newest(store, table, condition, before, limit)


def thread(store: Store, model: str, record_id: int, before: int | None, limit: int) -> Sequence[dict[str, Any]]:
    """Return messages of a record, with ``attachments`` (no contents), ``failures``, ``waiting``, ``has_original``."""
    found = _newest(
        store, messages, sa.and_(messages.c.model == model, messages.c.thread_id == record_id), before, limit, ("body",)
    )
    ids = [message["id"] for message in found]
    files = store.select(
        attachments, attachments.c.message.in_(ids), [attachments.c.id], None, 0, left_out=("content",)
    )
    kept = store.select(originals, originals.c.message.in_(ids), [originals.c.message], None, 0, left_out=("content",))
    as_they_came = {row["message"] for row in kept}
    for message in found:
        message["has_original"] = message["id"] in as_they_came
        message["attachments"] = [file for file in files if file["message"] == message["id"]]
        told = store.notifications_of(message["id"])
        message["failures"] = [row for row in told if row["status"] in FAILED]
        message["waiting"] = any(row["status"] == "ready" for row in told)
    return found


def pictures(store: Store, message_id: int, types: Sequence[str], max_bytes: int) -> Sequence[dict[str, Any]]:
    """Return a message's own pictures of these types, those that its text can name, none larger than that."""
    condition = sa.and_(
        attachments.c.message == message_id,
        attachments.c.content_id.is_not(None),
        attachments.c.mimetype.in_(types),
        attachments.c.size <= max_bytes,
    )
    return store.select(attachments, condition, [attachments.c.id], 100, 0)


def attachment(store: Store, attachment_id: int) -> dict[str, Any] | None:
    """Return a file with its content."""
    return next(iter(store.select(attachments, attachments.c.id == attachment_id, [attachments.c.id], 1, 0)), None)


def failures(store: Store, before: int | None, limit: int) -> Sequence[dict[str, Any]]:
    """Return notifications of ours that came back, each with its ``message`` and its partner's ``email``."""
    found = _newest(store, notifications, notifications.c.status.in_(FAILED), before, limit)
    about = _by_id(store, messages, [row["message"] for row in found], ("body",))
    whom = _by_id(store, partners, [row["partner_id"] for row in found])
    for row in found:
        row["message"] = about.get(row["message"])
        row["email"] = (whom.get(row["partner_id"]) or {}).get("email")
    return found


def placed_nowhere(store: Store, before: int | None, limit: int) -> Sequence[dict[str, Any]]:
    """Return what was accepted and is on no record, without the messages themselves."""
    return _newest(store, unplaced, sa.true(), before, limit, ("original",))


def new(store: Store, limit: int) -> Sequence[dict[str, Any]]:
    """Return the mails that have come since somebody last looked at what is new."""
    seen = int(store.parameter(SEEN) or 0)
    return _newest(store, messages, sa.and_(messages.c.id > seen, messages.c.kind == "email"), None, limit, _LARGE)


def see(store: Store) -> None:
    """Note that what is new has been looked at."""
    found = _newest(store, messages, sa.true(), None, 1, _LARGE)
    store.set_parameter(SEEN, str(found[0]["id"]) if found else "")


def counts(store: Store) -> dict[str, int]:
    """Return how much has failed, is new, and is placed nowhere, up to MAX_COUNTED."""
    failed = _newest(store, notifications, notifications.c.status.in_(FAILED), None, MAX_COUNTED)
    return {
        "failures": len(failed),
        "new": len(new(store, MAX_COUNTED)),
        "unplaced": len(placed_nowhere(store, None, MAX_COUNTED)),
    }


def _newest(
    store: Store, table: sa.Table, condition: Any, before: int | None, limit: int, left_out: Sequence[str] = ()
) -> list[dict[str, Any]]:
    found = condition if before is None else sa.and_(condition, table.c.id < before)
    return list(store.select(table, found, [table.c.id.desc()], limit, 0, left_out))


def _by_id(
    store: Store, table: sa.Table, ids: Sequence[int], left_out: Sequence[str] = ()
) -> dict[int, dict[str, Any]]:
    return {row["id"]: row for row in store.select(table, table.c.id.in_(ids), [table.c.id], None, 0, left_out)}


def newest_ids(store: Store) -> dict[str, int]:
    """Return the newest ids of what a mail may become, by table."""
    return {
        table.name: next((row["id"] for row in _newest(store, table, sa.true(), None, 1, _LARGE)), 0)
        for table in _BECOMES
    }


def since(store: Store, before: dict[str, int], limit: int) -> dict[str, list[dict[str, Any]]]:
    """Return what has come after these ids, by table, the newest first."""
    return {
        table.name: _newest(store, table, table.c.id > before[table.name], None, limit, _LARGE) for table in _BECOMES
    }
