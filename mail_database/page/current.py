"""What all pages share: the store that they read and write, and how an id stands in a path or a form."""

from contextlib import AbstractContextManager

import flask

from mail_database import store

MAX_ID = 2**62
ID = f"int(max={MAX_ID})"  # in a path


def transaction(reads: bool = False) -> AbstractContextManager[store.Store]:
    """Return a transaction of the database that the pages show; see store.transaction()."""
    return store.transaction(flask.current_app.extensions["engine"], reads)


def number(text: str) -> int | None:
    """Return the id that a text names, None for none."""
    return min(int(text), MAX_ID) if text.isascii() and text.isdecimal() and len(text) < 20 else None
