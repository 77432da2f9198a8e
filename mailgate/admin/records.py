"""Where the database has messages: on which records, and how a person gets there."""

from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

from mailgate import inquiry
from mailgate.database import Client
from mailgate.outcome import Ended

PAGE_IDS = 500  # Message-IDs in one question, of some 60 bytes each


class Record(NamedTuple):
    """A record with a message on it; ``name`` and ``url`` are "" where the database does not say them.

    ``model`` is "" for a message that is on no record. ``row_id`` is the message's own.
    """

    message_id: str
    row_id: int
    model: str
    record_id: int
    name: str = ""
    url: str = ""


def find(client: Client, message_ids: Iterable[str]) -> list[Record]:
    """Return what the database has of these Message-IDs, oldest first. Raises Ended."""
    found = []
    rest = iter(dict.fromkeys(message_ids))
    while page := [*islice(rest, PAGE_IDS)]:
        fields = ["id", "message_id", "model", "res_id"]
        rows = inquiry.rows(client, "mail.message", [["message_id", "in", page]], {"fields": fields, "order": "id"})
        found += [
            Record(row["message_id"], row["id"], row.get("model") or "", row.get("res_id") or 0)
            for row in rows
            if isinstance(row.get("message_id"), str)
        ]
    return found


def named(client: Client, records: Iterable[Record]) -> list[Record]:
    """Return the records with their names, where our user may read them, and their URLs."""
    return [
        each._replace(name=_name(client, each), url=_url(client.settings.url, each)) if each.model else each
        for each in records
    ]


def _name(client: Client, record: Record) -> str:
    try:
        rows = inquiry.rows(
            client, record.model, [["id", "=", record.record_id]], {"fields": ["display_name"], "limit": 1}
        )
    except Ended:  # our user may not read it
        return ""
    return str(rows[0].get("display_name") or "") if rows else ""


def _url(server: str, record: Record) -> str:
    """Return the URL that leads to a record in every version of Odoo."""
    return f"{server}/mail/view?model={record.model}&res_id={record.record_id}"


def facts(record: Record) -> dict[str, Any]:
    """Return a record for a program."""
    return {"model": record.model, "id": record.record_id, "name": record.name, "url": record.url}
