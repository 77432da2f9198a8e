"""Trust: nobody except root and the user that runs this may write a file, or put another one in its place.

The rule is for the settings file, the files that it names, the log, and the folders for the journal and held mail.
Their owner is root or who runs this; nobody else, no group either, may write them or the folder in which they stand. A
symbolic link is followed, and the rule is for both of its ends. In a folder with the sticky bit (/tmp, the mounts of
Kubernetes' secrets) others can't replace what is root's or ours, so there the owner suffices.
"""

import os
import stat


def complaint(status: os.stat_result) -> str:
    """Return what is wrong with the owner or the mode of a file or folder, ``""`` for nothing."""
    if status.st_uid not in (0, os.geteuid()):
        return "belongs to another user"
    return "can be written by others" if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""


def may_write(folder: str) -> bool:
    """Tell whether we can make files in a folder, as who we are by now: root's desk goes on as the gateway's user."""
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=True)


def check(path: str, descriptor: int) -> None:
    """Raise ValueError, with the path, where others can write the open file or folder, or replace it."""
    status = os.fstat(descriptor)
    if stat.S_ISCHR(status.st_mode):  # /dev/null: everybody's, and nothing stays there
        return
    wrong = complaint(status)
    if wrong:
        raise ValueError(f"{wrong}: {path}")
    check_place(path)


def check_place(path: str) -> None:
    """Raise ValueError, with the path, where others can replace what stands there."""
    for name in dict.fromkeys((os.path.abspath(path), os.path.realpath(path))):
        folder = os.path.dirname(name)
        status = os.stat(folder)
        if not complaint(status):
            continue
        is_sticky = status.st_mode & stat.S_ISVTX and status.st_uid in (0, os.geteuid())
        if not is_sticky or (os.path.lexists(name) and os.lstat(name).st_uid not in (0, os.geteuid())):
            raise ValueError(f"stands in a folder that {complaint(status)}: {folder}")


def open_log(path: str) -> int:
    """Return a descriptor to append to the file, which is made where it is missing. Raises OSError and ValueError."""
    check_place(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    try:
        check(path, descriptor)
    except BaseException:  # a signal, too
        os.close(descriptor)
        raise
    return descriptor
