"""What lies in the hold folder: each message, for whom it is held, and why."""

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mailgate import ancestry, journal
from mailgate.admin.desk import Desk, Usage, refusal
from mailgate.envelope import MAX_HEADER_BYTES, fields, unfold
from mailgate.hold import KEPT_AS, decoded

MIN_NAME_CHARACTERS = len("2026-11-30T090001Z")


class File(NamedTuple):
    """A held message: its file, since when it is there (seconds since 1970), and what its header says.

    ``posted_id`` is the Message-ID that the database would have been given, ``message_id`` the one that it came with.
    """

    path: str
    since: float
    size: int
    sender: str
    subject: str
    message_id: str
    posted_id: str = ""

    @property
    def name(self) -> str:
        """The file's name, by which commands know it."""
        return os.path.basename(self.path)


def files(folder: str) -> list[File]:
    """Return the messages of a hold folder, the oldest first; none where there is no folder. Raises Failed."""
    found = []
    for part in ("new", "cur") if folder else ():
        for path in _paths(os.path.join(folder, part)):
            try:
                found.append(_file(path))
            except (FileNotFoundError, IsADirectoryError):  # somebody took it away
                continue
            except OSError as error:
                raise refusal(error, "can't be read", path) from None
    return sorted(found, key=lambda each: (each.since, each.path))


def _paths(folder: str) -> list[str]:
    try:
        return [entry.path for entry in os.scandir(folder)]
    except FileNotFoundError:  # nothing has been held yet
        return []
    except OSError as error:
        raise refusal(error, "can't be read", folder) from None


def folder_of(desk: Desk) -> str:
    """Return the hold folder. Raises Usage where there is none."""
    if not desk.settings.hold:
        raise Usage("there is no hold folder: MAIL_GATEWAY_HOLD is not set")
    return desk.settings.hold


def _file(path: str) -> File:
    with open(path, "rb") as file:
        status, head = os.fstat(file.fileno()), file.read(MAX_HEADER_BYTES)
    values: dict[bytes, str] = {}
    for name, field in fields(head):
        values.setdefault(name, os.fsdecode(unfold(field)))
    sender = values.get(b"return-path", values.get(b"from", "")).strip("<>")
    first = values.get(b"message-id", "")
    posted_id = os.fsdecode(ancestry.canonical_id(os.fsencode(first)))
    return File(
        path,
        status.st_mtime,
        status.st_size,
        sender,
        decoded(values.get(b"subject", "")),
        os.fsdecode(ancestry.own_id(head)) or posted_id or first,
        posted_id,
    )


def facts(file: File) -> dict[str, Any]:
    """Return a held message for a program."""
    shown = ("path", "since", "size", "sender", "subject", "message_id")
    return {"name": file.name, **{name: getattr(file, name) for name in shown}}


def cause_of(desk: Desk, file: File) -> str:
    """Return why a message is held, as the journal has it, "" where it does not know. Raises Ended."""
    return journal.known(desk.settings, file.posted_id).cause.partition(KEPT_AS)[0] if file.posted_id else ""


def named(desk: Desk, name: str) -> File:
    """Return the held message whose file's name is or begins so. Raises Usage where there is not exactly one."""
    found = [file for file in files(folder_of(desk)) if file.name.startswith(name)]
    found = [file for file in found if file.name == name] or found
    if len(found) != 1:
        raise Usage(f"{len(found)} held messages have a name that begins with {name!r}")
    return found[0]


def beginnings(names: Iterable[str]) -> dict[str, str]:
    """Return as much of each file's name as names it among the others: at least the time, to the second."""
    found = {}
    order = ["", *sorted(names), ""]
    for before, name, after in zip(order, order[1:], order[2:], strict=False):
        same = max(_same(name, before), _same(name, after))
        found[name] = name[: max(MIN_NAME_CHARACTERS, same + 1)]
    return found


def _same(one: str, other: str) -> int:
    """Return how many characters two names have in common at their beginning."""
    return next((place for place, pair in enumerate(zip(one, other, strict=False)) if len(set(pair)) > 1), len(other))


def with_cause(causes: Mapping[File, str], wanted: str) -> list[File]:
    """Return the messages whose cause has all of these words, in any case."""
    terms = wanted.lower().split()
    return [file for file, cause in causes.items() if all(term in cause.lower() for term in terms)]
