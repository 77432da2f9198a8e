"""Keep mail that the database can't digest, in a Maildir, for the postmaster to look at and deliver again."""

import contextlib
import os
import socket
import time

from mailgate.envelope import Raw


def keep(folder: str, added: bytes, raw: Raw) -> str:
    """Write what would have been posted, byte for byte, to the Maildir ``folder`` and return the file's path.

    When it returns, the message is on the disk: the file and the names that lead to it are synced. Raises
    OSError when it can't be kept; then nothing of it is to be seen in ``new``.
    """
    for name in ("tmp", "new", "cur"):
        os.makedirs(os.path.join(folder, name), mode=0o700, exist_ok=True)
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
    except BaseException:  # the message stays with the MTA, so it must not be here as well
        for left in (unfinished, path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(left)
        raise
    return path


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
