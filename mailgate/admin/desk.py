"""What each command of the desk has, and what it gives."""

import contextlib
import errno
import functools
import math
import os
import pwd
import time
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mailgate import journal, settings
from mailgate.database import Client
from mailgate.log import Log


class Desk(NamedTuple):
    """The settings that the gateway has, and its way to the database. ``now`` is in seconds since 1970."""

    settings: settings.Settings
    client: Client
    now: float


class Answer(NamedTuple):
    """What a command found: for programs (JSON), for a person (what rich can print), and whether all is good.

    ``text`` is printed as it is, before the screen: it is made to go into a file.
    """

    facts: Mapping[str, Any]
    screen: Sequence[Any]
    is_good: bool = True
    text: str = ""


def _as_they_are(variables: Mapping[str, str], arguments: Namespace) -> Mapping[str, str]:
    return variables


class Command(NamedTuple):
    """A command: its name, a sentence about it, an example or a line for each, its arguments, and the work.

    ``of_wrong_settings`` answers in place of ``answer`` where the settings can't be used, and is told why. ``complete``
    returns the variables that the settings are made of, from those that are set; the work finds them in its arguments.
    """

    name: str
    summary: str
    example: str
    add_arguments: Callable[[ArgumentParser], None]
    answer: Callable[[Desk, Namespace], Answer]
    of_wrong_settings: Callable[[str], Answer] | None = None
    complete: Callable[[Mapping[str, str], Namespace], Mapping[str, str]] = _as_they_are


def add_command(commands: Any, name: str, summary: str, example: str) -> ArgumentParser:
    """Return the parser of a command, with its example, among those of argparse's ``commands``."""
    made: ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"Example:\n  {example}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    return made


def add_json(parser: ArgumentParser, default: object = SUPPRESS) -> None:
    """Let a command take --json; also behind the name of what it does, where it has several."""
    parser.add_argument("--json", action="store_true", default=default, help="print what a program can read")


class Usage(Exception):
    """Raised for arguments that make no sense; the text says why."""


class Failed(Exception):
    """Raised where what was asked for can't be had now; the text says why."""


# What a person can do where the system refuses something, by its error.
REMEDIES = {
    errno.EACCES: "Run this as root; what is the gateway's must belong to its user.",
    errno.EPERM: "Run this as root; what is the gateway's must belong to its user.",
    errno.ENOENT: "Is it spelled right, and is its folder there?",
    errno.ENOTDIR: "A part of this path is a file, and must be a folder.",
    errno.EISDIR: "This is a folder, and must be a file.",
    errno.ENOSPC: "Make room on its disk.",
    errno.EDQUOT: "Make room on its disk, or give its user more of it.",
    errno.EROFS: "Its file system is read-only: take another place.",
}


def refusal(error: OSError, what: str = "can't be used", path: str = "") -> Failed:
    """Return what to raise where the system refuses something: which file, what can't be done, why, and a remedy."""
    name = path or (os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else "a file")
    return Failed(f"{name} {what}: {error.strerror or error}. {REMEDIES.get(error.errno or 0, '')}".rstrip(" "))


def owner_of(*paths: str) -> os.stat_result | None:
    """Return the status of the first of these folders that is there, with its owner, None where there is none."""
    for path in filter(os.path.isabs, paths):
        with contextlib.suppress(OSError):
            return os.stat(path)
    return None


def become_owner(variables: Mapping[str, str]) -> None:
    """Go on as the gateway's own user where root runs the desk: no file of root's comes among the gateway's.

    The variables are those of the settings, which only that user can use. as_caller() is for what only root may do.
    """
    journal_folder = variables.get("JOURNAL") or variables.get(settings.OLD_NAME) or settings.JOURNAL
    owner = owner_of(journal_folder, variables.get("HOLD", settings.HOLD))
    if os.geteuid() == 0 and owner and owner.st_uid:
        group = owner.st_gid
        try:
            user = pwd.getpwuid(owner.st_uid)
        except KeyError:  # one without a name, as in a container
            os.setgroups([group])
        else:
            group = user.pw_gid
            os.initgroups(user.pw_name, group)
        os.setegid(group)
        os.seteuid(owner.st_uid)


@contextlib.contextmanager
def as_caller() -> Iterator[None]:
    """Be, for a while, who started the desk: for the mail server's queue and logs, which root may read."""
    user, group = os.geteuid(), os.getegid()
    os.seteuid(os.getuid())
    os.setegid(os.getgid())
    try:
        yield
    finally:
        os.setegid(group)
        os.seteuid(user)


def moment(seconds: float) -> str:
    """Return a time as a person and a program read it: local time with its offset (RFC 3339)."""
    return time.strftime("%Y-%m-%d %H:%M:%S%z", time.localtime(seconds))


MAX_DIGITS = 9  # of a span
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def since(text: str, now: float) -> float:
    """Return the moment that an option names, in seconds since 1970: ``2d``, ``90m``, or a date. Raises Usage."""
    number, unit = text[:-1], text[-1:]
    if number.isascii() and number.isdigit() and len(number) <= MAX_DIGITS and unit in UNITS:
        return now - int(number) * UNITS[unit]
    for form in ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S"):
        with contextlib.suppress(ValueError):
            return time.mktime(time.strptime(text, form))
    raise Usage(f"--since takes 2d, 90m, 2026-11-30 or '2026-11-30 14:00', not {text!r}")


def seconds_of(text: str) -> float:
    """Return how many seconds an option names. Raises ArgumentTypeError for what never comes or has been."""
    with contextlib.suppress(ValueError):
        number = float(text)
        if 0 <= number < math.inf:  # which nan is not
            return number
    raise ArgumentTypeError(f"takes seconds, 0 or more, not {text!r}")


def log_of(config: settings.Settings) -> Log:
    """Return the gateway's log and journal for a delivery that the desk makes; the screen shows no line of it."""
    keep = functools.partial(journal.note_attempt, config)
    return Log(config.log, config.log_format, config.password, keep, is_shown=False)
