"""The journal in a folder, as a test looks into it and makes it older."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from mailgate.journal.sqlite import FILE


def execute(folder: Path | str | object, statement: str, *values: object) -> list[dict[str, Any]]:
    """Return what a statement on the journal in the folder returns."""
    with contextlib.closing(sqlite3.connect(Path(str(folder)) / FILE, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(statement, values)]


def age(folder: Path | str | object, seconds: float) -> None:
    """Make all that the journal says so much older, by both clocks."""
    execute(
        folder,
        "update message set seen_first = seen_first - ?1, seen_last = seen_last - ?1, begun = begun - ?1,"
        " begun_clock = begun_clock - ?1",
        seconds,
    )
