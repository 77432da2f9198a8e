"""The journal, in a folder or in PostgreSQL, as a test looks into it and makes it older."""

import contextlib
import itertools
import os
import sqlite3
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from mailgate.journal.sqlite import FILE
from support.postgresql import PASSWORD, USER, PostgreSQL

NUMBERS = itertools.count(1)


def execute(journal: object, statement: str, *values: object) -> list[dict[str, Any]]:
    """Return what a statement on a journal, which the setting names so, returns."""
    if "://" in str(journal):
        with psycopg.connect(str(journal), password=PASSWORD, autocommit=True, row_factory=dict_row) as server:
            cursor = server.execute(statement, values)
            return cursor.fetchall() if cursor.description else []
    with contextlib.closing(sqlite3.connect(Path(str(journal)) / FILE, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(statement, values)]


def age(journal: object, seconds: float) -> None:
    """Make all that the journal says so much older, by all clocks."""
    if "://" in str(journal):
        span = "make_interval(secs => %s)"
        moments = ", ".join(f"{name} = {name} - {span}" for name in ("seen_first", "seen_last", "begun"))
        execute(journal, f"update message set {moments}", *[seconds] * 3)
        return
    execute(
        journal,
        "update message set seen_first = seen_first - ?1, seen_last = seen_last - ?1, begun = begun - ?1,"
        " begun_clock = begun_clock - ?1",
        seconds,
    )


def new_database(server: PostgreSQL, folder: Path) -> dict[str, object]:
    """Return the settings of a journal in a new database, with the password in a file of the folder."""
    name = f"journal_{next(NUMBERS)}"
    server.sql(f"create database {name} owner {USER}")
    path = folder / "journal-password"
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    path.write_text(f"{PASSWORD}\n")
    return {"JOURNAL": server.url(name), "JOURNAL_PASSWORD_FILE": path}
