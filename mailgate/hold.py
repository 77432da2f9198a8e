"""Hold: mail that the database can't take waits in a Maildir, for the postmaster to look at and deliver again."""

import contextlib
import os
import socket
import stat
import time

from mailgate import trusted
from mailgate.envelope import Raw
from mailgate.outcome import Ended, Outcome


def store(folder: str, added: bytes, raw: Raw) -> str:
    """Write what would have been posted, byte for byte, to the Maildir ``folder`` and return the file's path.

    When it returns, the message is on the disk: the file and the names that lead to it are synced. Raises
    OSError when it can't be kept; then nothing of it is to be seen in ``new``. Raises Ended(SETTINGS) where a folder in
    it leads elsewhere, or is for others to write.
    """
    for name in ("tmp", "new", "cur"):
        path = os.path.join(folder, name)
        os.makedirs(path, mode=0o700, exist_ok=True)
        status = os.lstat(path)
        wrong = "is a symbolic link" if stat.S_ISLNK(status.st_mode) else trusted.complaint(status)
        if wrong:
            raise Ended(Outcome.SETTINGS, f"hold folder {wrong}: {path}")
    host = socket.gethostname().replace("/", "\\057").replace(":", "\\072")
    name = f"{int(time.time())}.P{os.getpid()}R{os.urandom(8).hex()}.{host}"
    unfinished, path = os.path.join(folder, "tmp", name), os.path.join(folder, "new", name)
    try:
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(added)
            file.writelines(raw.chunks())
            file.flush()
            os.fsync(file.fileno())
        os.rename(unfinished, path)
        _sync_folder(os.path.join(folder, "new"))
        _sync_folder(folder)
    except BaseException as error:  # the message stays with the MTA, so it must not be here as well
        for left in (unfinished, path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(left)
        if isinstance(error, OSError) and not error.filename:  # a full disk has no name
            error.filename = path
        raise
    return path


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
