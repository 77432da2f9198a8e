"""Watched: copies of what comes for catchall and bounce, while an operator waits for a provider's validation link.

The database makes no record of such a mail, so nobody would see the link. The delivery goes on as ever, whether or not
a copy can be made. Who watches says until when, again and again: a minute after he is gone, no copy is made any more.
"""

import contextlib
import os
import time

from mailgate import hold
from mailgate.addresses import BOUNCE, CATCHALL, Match
from mailgate.envelope import Raw, split_address
from mailgate.outcome import Ended

WATCH_SECONDS = 60.0  # for which a copy is made after somebody has watched
MAX_COPIES = 20  # of mail that anybody can send
USUAL = ("catchall", "bounce")  # where the settings name no domain, and so no such address


def folder_in(hold_folder: str) -> str:
    """Return the Maildir for copies, which is in the hold folder."""
    return os.path.join(hold_folder, "watched")


def _until(folder: str) -> str:
    return os.path.join(folder, "until")


def watch(folder: str) -> None:
    """Have copies made for a minute more. Raises OSError."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with open(os.open(_until(folder), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600), "wb") as file:
        until = time.time() + WATCH_SECONDS
        os.utime(file.fileno(), (until, until))


def keep(hold_folder: str, matches: list[Match], raw: Raw, sender: str | None) -> None:
    """Keep a copy of a message for catchall or bounce if somebody watches; nothing that fails here is raised."""
    if not hold_folder or not any(map(_is_special, matches)):
        return
    folder = folder_in(hold_folder)
    with contextlib.suppress(OSError, Ended):
        new = os.path.join(folder, "new")
        count = len(os.listdir(new)) if os.path.isdir(new) else 0
        if time.time() < os.stat(_until(folder)).st_mtime and count < MAX_COPIES:
            hold.store(hold.new_path(folder, raw, sender), b"", raw)


def _is_special(match: Match) -> bool:
    names = (split_address(address.lower())[0] for address in match.addresses)
    return match.rule in (CATCHALL, BOUNCE) or any(name in USUAL for name in names)
