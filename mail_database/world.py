"""Everything that is stored, in and out as JSON: the world that ``load`` reads and ``dump`` prints.

A world is a dictionary of lists, one for each table of LISTS, whose items have the names of the columns. It differs
from the tables in a few points: an alias has ``parent`` (``model`` and ``id``) for two columns; a message has its
``attachments`` and, where it came by mail, its ``original``; dates are ISO 8601 text in UTC; an original, which is
bytes, is text with a character U+0000 to U+00FF for each byte (latin-1). A dump leaves out the contents of attachments:
``load`` reads them from the original again. ``parameters`` and ``counters`` are dictionaries, ``allowed_senders`` and
``deliveries`` lists of text, and ``about`` is a remark. No world has the table ``words``: it follows from the names and
addresses.
"""

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from mail_database import tables
from mail_database.addresses import normalize
from mail_database.message import parse
from mail_database.store import Row, Store, key_of

LISTS = {
    "alias_domains": tables.alias_domains,
    "companies": tables.companies,
    "aliases": tables.aliases,
    "partners": tables.partners,
    "users": tables.users,
    "records": tables.records,
    "followers": tables.followers,
    "messages": tables.messages,
    "notifications": tables.notifications,
    "notices": tables.notices,
    "unplaced": tables.unplaced,
}
OTHERS = {"about", "parameters", "allowed_senders", "counters", "deliveries"}
TYPES = {sa.String: (str,), sa.Boolean: (bool,), sa.Integer: (int,)}  # of columns, and what they take
DERIVED = {"email_normalized", "message_key", "bytes_so_far"}  # columns that follow from others; no world has them


def is_new(store: Store) -> bool:
    """Tell whether nothing has been put into the database yet."""
    return not any(store.has_rows(table) for table in LISTS.values())


def set_up(store: Store, domain: str) -> None:
    """Give a new database what a new Odoo has: a company with an alias domain, catchall and bounce ready."""
    if is_new(store):
        load(
            store,
            {
                "alias_domains": [{"id": 1, "name": domain, "catchall": "catchall", "bounce": "bounce"}],
                "companies": [{"id": 1, "name": "My Company", "email": f"info@{domain}", "alias_domain": domain}],
                "partners": [
                    {"id": 1, "name": "My Company", "email": f"info@{domain}"},
                    {"id": 2, "name": "OdooBot", "email": f"odoobot@{domain}", "active": False},
                    {"id": 3, "name": "Administrator", "email": f"admin@{domain}"},
                ],
                "users": [{"id": 2, "login": "admin", "partner_id": 3}],
            },
        )


def load(store: Store, world: Mapping[str, Any]) -> None:
    """Add what a world names. Raises KeyError, TypeError or ValueError where it is none."""
    unknown = world.keys() - LISTS.keys() - OTHERS
    if unknown:
        raise ValueError(f"no such list: {', '.join(sorted(unknown))}")
    for name, table in LISTS.items():
        for item in world.get(name, []):
            _load(store, name, table, dict(item))
    for key, value in world.get("parameters", {}).items():
        store.set_parameter(key, str(value))
    for email in world.get("allowed_senders", []):
        store.insert(tables.allowed_senders, {"email": normalize(email)})
    for key in world.get("deliveries", []):
        store.insert(tables.deliveries, {"message_key": key})
    store.continue_ids(world.get("counters", {}))


def _check(name: str, table: sa.Table, item: Mapping[str, Any]) -> None:
    """Raise ValueError for a column that the table does not have, or a value of another type: SQLite takes any."""
    for key, value in item.items():
        if key not in table.c:
            raise ValueError(f"an item of {name} has no {key!r}")
        kind = next((kinds for column, kinds in TYPES.items() if isinstance(table.c[key].type, column)), (object,))
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and bool not in kind)):
            raise ValueError(f"{key!r} of an item of {name} can't be {value!r:.40}")


def _load(store: Store, name: str, table: sa.Table, item: dict[str, Any]) -> None:
    """Add one item of a list."""
    for column in table.c:
        if isinstance(column.type, sa.DateTime) and column.name in item:
            item[column.name] = datetime.fromisoformat(item[column.name])
    if name == "unplaced":
        store.keep_unplaced(**item | {"original": item["original"].encode("latin-1")})
        return
    if name == "aliases":
        parent = item.pop("parent", None) or {}
        item |= {"parent_model": parent["model"], "parent_id": parent["id"]} if parent else {}
        item |= {key: item[key].lower() for key in ("local_part", "domain") if item.get(key)}
    if name == "messages":
        item["message_key"] = key_of(item.get("message_id") or "")
    if "email_normalized" in table.c:
        item["email_normalized"] = normalize(item.get("email", item.get("email_from")) or "")
    attachments, original = item.pop("attachments", []), item.pop("original", None)
    _check(name, table, item)
    store.insert(table, item)
    raw = original.encode("latin-1") if original is not None else b""
    contents = _contents(raw) if attachments and raw else {}
    for attachment in attachments:
        _check("attachments", tables.attachments, attachment)
        content = contents.get(attachment.get("sha1"))
        store.insert(tables.attachments, {"content": content, "message": item["id"], **attachment})
    if original is not None:
        store.keep_original(item["id"], raw)


def _contents(raw: bytes) -> dict[str, bytes]:
    """Return the contents of a message's attachments, and the message itself, which may be one, by their SHA-1."""
    contents = [*(attachment.content for attachment in parse(raw).attachments), raw]
    return {hashlib.sha1(content, usedforsecurity=False).hexdigest(): content for content in contents}


def dump(store: Store) -> dict[str, Any]:
    """Return everything that is stored; the contents of attachments are in the originals of their messages."""
    world: dict[str, Any] = {name: [_item(row) for row in store.all_rows(table)] for name, table in LISTS.items()}
    for alias in world["aliases"]:
        model, parent = alias.pop("parent_model"), alias.pop("parent_id")
        alias |= {"parent": {"model": model, "id": parent}} if model else {}
    attachments: dict[int, list[Row]] = {}
    for row in store.all_rows(tables.attachments, left_out="content"):
        del row["id"]
        attachments.setdefault(row.pop("message"), []).append(row)
    as_they_came = dict(store.all_originals())
    for message in world["messages"]:
        message["attachments"] = attachments.get(message["id"], [])
        original = as_they_came.pop(message["id"], None)
        message |= {} if original is None else {"original": _json(original)}
    world["counters"] = {row["model"]: row["last"] for row in store.all_rows(tables.counters)}
    world["deliveries"] = [row["message_key"] for row in store.all_rows(tables.deliveries)]
    world["parameters"] = {row["key"]: row["value"] for row in store.all_rows(tables.parameters) if row["value"]}
    world["allowed_senders"] = [row["email"] for row in store.all_rows(tables.allowed_senders)]
    return world


def _item(row: Row) -> dict[str, Any]:
    """Return a row as an item of a list."""
    return {key: _json(value) for key, value in row.items() if key not in DERIVED}


def _json(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value.isoformat(" ") if isinstance(value, datetime) else value
