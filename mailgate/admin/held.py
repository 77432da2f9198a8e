"""held: the mail that the database could not digest: list it, look at it."""

import contextlib
import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, NamedTuple

from mailgate import journal
from mailgate.admin.desk import Answer, Command, Desk, Usage, add_json, moment
from mailgate.admin.screen import pairs, plain, table, words
from mailgate.envelope import MAX_HEADER_BYTES, fields, unfold
from mailgate.hold import KEPT_AS, decoded
from mailgate.outcome import Outcome

SHOWN_BYTES = 4096  # of a message's text


class File(NamedTuple):
    """A held message: its file, since when it is there (seconds since 1970), and what its header says."""

    path: str
    since: float
    size: int
    sender: str
    subject: str
    message_id: str

    @property
    def name(self) -> str:
        """The file's name, by which commands know it."""
        return os.path.basename(self.path)


def files(folder: str) -> list[File]:
    """Return the messages of a hold folder, the oldest first."""
    found = []
    for part in ("new", "cur"):
        with contextlib.suppress(OSError):
            for entry in os.scandir(os.path.join(folder, part)):
                with contextlib.suppress(OSError):  # somebody took it away
                    found.append(_file(entry.path))
    return sorted(found, key=lambda each: (each.since, each.path))


def _file(path: str) -> File:
    with open(path, "rb") as file:
        status, head = os.fstat(file.fileno()), file.read(MAX_HEADER_BYTES)
    values: dict[bytes, str] = {}
    for name, field in fields(head):
        values.setdefault(name, os.fsdecode(unfold(field)))
    sender = values.get(b"return-path", values.get(b"from", "")).strip("<>")
    subject = decoded(values.get(b"subject", ""))
    return File(path, status.st_mtime, status.st_size, sender, subject, values.get(b"message-id", ""))


def facts(file: File) -> dict[str, Any]:
    """Return a held message for a program."""
    return {"name": file.name, **file._asdict()}


def cause_of(desk: Desk, file: File) -> str:
    """Return why a message is held, as the journal has it, "" where it does not know. Raises Ended."""
    tries = journal.attempts(desk.settings, file.message_id) if file.message_id else []
    ended = (each for each in tries if each["ending"] == Outcome.HELD.name and each["message_id"] == file.message_id)
    return next((each["cause"].partition(KEPT_AS)[0] for each in ended), "")


def _add_arguments(parser: ArgumentParser) -> None:
    commands = parser.add_subparsers(title="what to do", metavar="WHAT", dest="what", required=True)
    everything = commands.add_parser("list", help="list what is held, the oldest first")
    everything.set_defaults(answer=_list)
    show = commands.add_parser("show", help="show one: header, text, cause, since when")
    show.add_argument("name", help="the file's name, or the beginning of it")
    show.set_defaults(answer=_show)
    for each in commands.choices.values():
        add_json(each)


def _list(desk: Desk, arguments: Namespace) -> Answer:
    found = files(desk.settings.hold)
    causes = {file: cause_of(desk, file) for file in found}
    rows = [(moment(file.since)[:16], file.sender, file.subject, causes[file]) for file in found]
    screen = [table(["since", "from", "subject", "cause"], rows)] if found else ["Nothing is held."]
    return Answer({"held": [facts(file) | {"cause": causes[file]} for file in found]}, screen, is_good=not found)


def _show(desk: Desk, arguments: Namespace) -> Answer:
    file = _named(desk, arguments.name)
    raw = Path(file.path).read_bytes()[: MAX_HEADER_BYTES + SHOWN_BYTES]
    cause = cause_of(desk, file)
    text = raw[:SHOWN_BYTES].decode("utf-8", "backslashreplace")
    screen = [
        pairs([("File", file.path), ("Since", moment(file.since)), ("Size", f"{file.size:,} bytes"), ("Cause", cause)]),
        "",
        *(words(plain(line.rstrip("\r"))) for line in text.split("\n")),
    ]
    return Answer(facts(file) | {"cause": cause, "text": text}, screen)


def _named(desk: Desk, name: str) -> File:
    """Return the held message whose file's name begins so. Raises Usage where there is not exactly one."""
    found = [file for file in files(desk.settings.hold) if file.name.startswith(name)]
    if len(found) != 1:
        raise Usage(f"{len(found)} held messages have a name that begins with {name!r}")
    return found[0]


COMMAND = Command(
    "held",
    "List, show and release the mail that the database could not digest.",
    "mail-gateway-admin held list",
    _add_arguments,
    _list,
)
