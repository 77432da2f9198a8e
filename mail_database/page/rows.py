"""What the pages read: each function is a query with an index, at most a page of rows, the newest first.

A page goes on where the last one ended, by its last id (keyset): the thousandth costs what the first does.
"""

import itertools
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import sqlalchemy as sa

from mail_database.page.current import id_of
from mail_database.routing import MODELS
from mail_database.store import Store
from mail_database.tables import (
    attachments,
    followers,
    messages,
    notices,
    notifications,
    originals,
    partners,
    records,
    unplaced,
)

FAILED = ("bounce", "exception")  # of a notification: it came back, or a mail server refused it
WAITING = "ready"  # it is to be sent
BECOMES = {table.name: table for table in (messages, notices, unplaced)}  # what comes of a mail
_LARGE = ("body", "original")  # columns that a list does not need
SEEN = "mail_database.page.seen"  # a parameter: the newest message that somebody has seen as new
MAX_TOLD = 1000  # notifications that failed or wait, of all messages of a page
MAX_COUNTED = 100  # failures and unplaced messages: from there on the bar says "99+"


def models(store: Store) -> list[str]:
    """Return the models that have records."""
    return [name for name in MODELS if store.has_rows(*_of_model(name))]


def of_model(store: Store, model: str, before: int | None, limit: int) -> Sequence[dict[str, Any]]:
    """Return records of a model."""
    return _newest(store, *_of_model(model), before, limit)


def with_ids(store: Store, model: str, ids: Sequence[int]) -> Sequence[dict[str, Any]]:
    """Return those records of a model, in any order."""
    table, condition = _of_model(model)
    return store.select(table, sa.and_(condition, table.c.id.in_(ids)), [], None, 0)


def _of_model(model: str) -> tuple[sa.Table, Any]:
    """Return the table of a model's records, and what a row of it must be."""
    return (partners, sa.true()) if model == "res.partner" else (records, records.c.model == model)


def following(store: Store, model: str, record_id: int, limit: int) -> Sequence[dict[str, Any]]:
    """Return the partners who follow a record, the oldest first."""
    found = (followers.c.model == model, followers.c.id == record_id)
    who = sa.select(followers.c.partner_id).where(*found).order_by(followers.c.partner_id).limit(limit)
    return store.select(partners, partners.c.id.in_(who), [partners.c.id], limit, 0)


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
    status = sa.func.coalesce(notifications.c.status, "")  # not by its index: far more have failed than are asked for
    of_these = sa.and_(notifications.c.message.in_(ids), status.in_((*FAILED, WAITING)))
    told = _with_addresses(store, store.select(notifications, of_these, [], MAX_TOLD, 0))
    for message in found:
        message["has_original"] = message["id"] in as_they_came
        message["attachments"] = [file for file in files if file["message"] == message["id"]]
        its = [row for row in told if row["message"] == message["id"]]
        message["failures"] = [row for row in its if row["status"] in FAILED]
        message["waiting"] = any(row["status"] == WAITING for row in its)
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
    of_each = [_newest(store, notifications, notifications.c.status == status, before, limit) for status in FAILED]
    found = sorted(itertools.chain(*of_each), key=itemgetter("id"), reverse=True)[:limit]
    about = _by_id(store, messages, [row["message"] for row in found], ("body",))
    for row in _with_addresses(store, found):
        row["message"] = about.get(row["message"])
    return found


def _with_addresses(store: Store, told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return notifications, each with its partner's ``email``."""
    whom = _by_id(store, partners, [row["partner_id"] for row in told])
    for row in told:
        row["email"] = (whom.get(row["partner_id"]) or {}).get("email")
    return told


def placed_nowhere(store: Store, before: int | None, limit: int) -> Sequence[dict[str, Any]]:
    """Return what was accepted and is on no record, without the messages themselves."""
    return _newest(store, unplaced, sa.true(), before, limit, ("original",))


def new(store: Store, limit: int) -> Sequence[dict[str, Any]]:
    """Return the mails that have come since somebody last looked at what is new."""
    came = store.select(originals, _is_new(store), [originals.c.message.desc()], limit, 0, left_out=("content",))
    found = _by_id(store, messages, [row["message"] for row in came], _LARGE)
    return [found[key] for key in sorted(found, reverse=True)]


def _is_new(store: Store) -> Any:
    """Return what an original must be: what came by mail has one, so that no other message is passed on the way."""
    return originals.c.message > (id_of(store.parameter(SEEN)) or 0)


def see(store: Store) -> None:
    """Note that what is new has been looked at."""
    found = _newest(store, messages, sa.true(), None, 1, _LARGE)
    store.set_parameter(SEEN, str(found[0]["id"]) if found else "")


def counts(store: Store) -> dict[str, int]:
    """Return how much has failed, is new, and is placed nowhere, up to MAX_COUNTED each."""
    return {
        "failures": sum(
            store.count_up_to(MAX_COUNTED, notifications, notifications.c.status == status) for status in FAILED
        ),
        "new": store.count_up_to(MAX_COUNTED, originals, _is_new(store)),
        "unplaced": store.count_up_to(MAX_COUNTED, unplaced, sa.true()),
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
        name: next((row["id"] for row in _newest(store, table, sa.true(), None, 1, _LARGE)), 0)
        for name, table in BECOMES.items()
    }


def since(store: Store, before: dict[str, int], limit: int) -> dict[str, list[dict[str, Any]]]:
    """Return what has come after these ids, by table, the newest first."""
    return {
        name: _newest(store, table, table.c.id > before[name], None, limit, _LARGE) for name, table in BECOMES.items()
    }
