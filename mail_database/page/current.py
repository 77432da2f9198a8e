"""What all pages share: the store that they read and write, an id in a path or a form, and how pages are turned."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import flask

from mail_database import store

MAX_ID = 2**62
ID = f"int(max={MAX_ID})"  # in a path


def transaction(reads: bool = False) -> AbstractContextManager[store.Store]:
    """Return a transaction of the database that the pages show; see store.transaction()."""
    return store.transaction(flask.current_app.extensions["engine"], reads)


def before() -> int | None:
    """Return the id before which a page begins, None for the first one."""
    return id_of(flask.request.args.get("before", ""))


def id_of(text: str) -> int | None:
    """Return the id that a text names, None for none."""
    return min(int(text), MAX_ID) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def paged(found: Sequence[store.Row], rows: int) -> dict[str, Any]:
    """Return the rows of a page, and the id from which the next one goes on, if there is one."""
    return {"rows": found[:rows], "older": found[rows - 1]["id"] if len(found) > rows else None}
