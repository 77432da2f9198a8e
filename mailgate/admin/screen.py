"""What a person sees: tables and lines in 80 columns, colour only on a terminal, and no byte of a stranger's raw."""

import contextlib
import errno
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mailgate.admin.desk import refusal

COLUMNS = 80
LINE_ITEMS = 100  # after which a line says how far it is
Item = TypeVar("Item")

MAX_BRIEF_CHARACTERS = 120  # of a stranger's text in a list
_BYTES = re.compile("[\udc80-\udcff]+")  # that are no text, as os.fsdecode() has them

STYLES = {"good": "green", "waits": "yellow", "bad": "red", "dim": "dim", "name": "bold", "": ""}


def console() -> Console:
    """Return where the screen is: standard output, 80 columns wide where that is no terminal."""
    width = None if sys.stdout.isatty() else COLUMNS
    return Console(width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def plain(value: object) -> str:
    """Return a text on one line without what a terminal would act on; what can't be shown is spelled out."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in _text(str(value))
    )


def _text(value: str) -> str:
    """Return a text that UTF-8 can have: bytes that are none, and halves of letters, are spelled out."""
    whole = _BYTES.sub(
        lambda found: found[0].encode("ascii", "surrogateescape").decode("utf-8", "backslashreplace"), value
    )
    return whole.encode("utf-8", "backslashreplace").decode()


def _texts(facts: Any) -> Any:
    """Return facts with all texts so."""
    if isinstance(facts, Mapping):
        return {key: _texts(value) for key, value in facts.items()}
    if isinstance(facts, list | tuple):
        return [*map(_texts, facts)]
    return _text(facts) if isinstance(facts, str) else facts


def brief(value: object) -> str:
    """Return the beginning of a text, so that a list of some stays one screen."""
    text = plain(value)
    return text if len(text) <= MAX_BRIEF_CHARACTERS else f"{text[:MAX_BRIEF_CHARACTERS]}\u2026"


def words(value: object, style: str = "") -> Text:
    """Return a text for the screen."""
    return Text(plain(value), STYLES[style])


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], right: Sequence[str] = ()) -> Table:
    """Return a table; a cell is a text, or what words() returns. Columns that are numbers stand at the ``right``."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), header_style="bold")
    for column in columns:
        is_right = column in right
        made.add_column(column, justify="right" if is_right else "left", overflow="fold", no_wrap=is_right)
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else words(cell) for cell in row))
    return made


def indented(value: object) -> Padding:
    """Return a text that stands under another one."""
    return Padding(words(value, "dim"), (0, 0, 0, 4))


def pairs(rows: Iterable[tuple[str, Any]]) -> Table:
    """Return a name and a value for each line; what is empty is left out."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        if value not in ("", None):
            made.add_row(name, value if isinstance(value, Text) else words(value))
    return made


def amount(number: int, one: str, many: str = "") -> str:
    """Return a number and what there is of it: ``many`` is one and an s, if not said otherwise."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def say(text: object) -> None:
    """Print a line beside the screen, on standard error: what will be done, and how far it is; nobody may read it."""
    with contextlib.suppress(OSError):
        if sys.stderr:
            print(plain(text), file=sys.stderr, flush=True)


def counted(items: Sequence[Item], what: str, has_lines: bool = True) -> Iterator[Item]:
    """Yield the items and show how far that is: a bar on a terminal, else, if it ``has_lines``, a line each hundred."""
    if sys.stderr and sys.stderr.isatty():
        from rich.progress import track

        yield from track(items, what, console=Console(stderr=True), transient=True)
        return
    for number, item in enumerate(items, 1):
        yield item
        if has_lines and number % LINE_ITEMS == 0:
            say(f"{what}: {number} of {len(items)}")


def show(text: str, facts: Any, parts: Sequence[Any]) -> None:
    """Print the facts for a program, or, where they are None, a text as it is and the parts of a screen.

    A reader that goes away (head) has seen enough. Raises Failed for an output that does not take it.
    """
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        if facts is not None:
            text = json.dumps(_texts(facts), indent=2, ensure_ascii=True) + "\n"
        else:
            printed = console()
            with printed.capture() as captured:
                for part in parts:
                    printed.print(part)
            text += captured.get()
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in its buffer can't be written either
        raise refusal(error, "can't be written", "standard output") from None
