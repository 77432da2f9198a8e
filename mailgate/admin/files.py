"""The files that the desk writes: each replaces another in one step, and as a whole."""

import os
from contextlib import suppress
from pathlib import Path

from mailgate.admin.desk import as_caller, refusal
from mailgate.hold import sync_folder


def read(path: str) -> str | None:
    """Return the text of a file as the caller may read it, None where there is none. Raises Failed."""
    with as_caller():
        try:
            return Path(path).read_text("utf-8", "surrogateescape")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise refusal(error, "can't be read", path) from None


def replace(path: str, text: str, mode: int) -> None:
    """Put a text into a file's place: who opens it reads the old one or the new one, whatever happens meanwhile.

    A file that is there keeps its owner, its group and its mode; a new one is the caller's, with this mode. Raises
    Failed.
    """
    target = os.path.realpath(path)
    beside = f"{target}.{os.urandom(4).hex()}.new"
    with as_caller():
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "wb") as file:
                file.write(text.encode("utf-8", "surrogateescape"))
                _like(target, descriptor, mode)
                file.flush()
                os.fsync(descriptor)
            os.rename(beside, target)
            sync_folder(os.path.dirname(target))
        except OSError as error:
            raise refusal(error, "can't be written", path) from None
        finally:
            with suppress(OSError):
                os.unlink(beside)


def _like(path: str, descriptor: int, mode: int) -> None:
    """Give a new file the owner, the group and the mode of the one that it replaces."""
    with suppress(FileNotFoundError):
        status = os.stat(path)
        mode = status.st_mode & 0o7777
        if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, mode)
