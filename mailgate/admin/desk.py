"""What each command of the desk has, and what it gives."""

import contextlib
import os
import pwd
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mailgate import settings
from mailgate.database import Client


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
    """A command: its name, a sentence about it, an example, its arguments, and the work.

    ``complete`` returns the variables that the settings are made of, from those that are set; the work finds them in
    its arguments.
    """

    name: str
    summary: str
    example: str
    add_arguments: Callable[[ArgumentParser], None]
    answer: Callable[[Desk, Namespace], Answer]
    complete: Callable[[Mapping[str, str], Namespace], Mapping[str, str]] = _as_they_are


class Usage(Exception):
    """Raised for arguments that make no sense; the text says why."""


class Failed(Exception):
    """Raised where what was asked for can't be had now; the text says why."""


def become_owner(variables: Mapping[str, str]) -> None:
    """Go on as the user whose the journal or the hold folder is, where root runs the desk.

    So no file of root's comes among the gateway's, and what only root may do is where as_caller() is.
    """
    places = (variables.get("JOURNAL", settings.JOURNAL), variables.get("HOLD", settings.HOLD))
    user_id = next((os.stat(path).st_uid for path in places if os.path.isdir(path)), 0)
    if os.geteuid() == 0 and user_id:
        user = pwd.getpwuid(user_id)
        os.initgroups(user.pw_name, user.pw_gid)
        os.setegid(user.pw_gid)
        os.seteuid(user_id)


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


UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def since(text: str, now: float) -> float:
    """Return the moment that an option names, in seconds since 1970: ``2d``, ``90m``, or a date. Raises Usage."""
    number, unit = text[:-1], text[-1:]
    if number.isascii() and number.isdigit() and unit in UNITS:
        return now - int(number) * UNITS[unit]
    for form in ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S"):
        with contextlib.suppress(ValueError):
            return time.mktime(time.strptime(text, form))
    raise Usage(f"--since takes 2d, 90m, 2026-11-30 or '2026-11-30 14:00', not {text!r}")
