"""Hold: mail that the database can't take waits in a Maildir, for the postmaster to look at and deliver again."""

import contextlib
import os
import re
import stat
import time

from mailgate import trusted
from mailgate.envelope import Raw, fields, unfold
from mailgate.outcome import Ended, Outcome

MAX_NAME_CHARACTERS = 40  # of sender and subject, each, in a file's name


def new_path(folder: str, raw: Raw, sender: str | None) -> str:
    """Return the path of a new file in the Maildir ``folder``: it says when, from whom, and about what."""
    subject = next((unfold(field) for name, field in fields(raw.head()) if name == b"subject"), b"")
    words = [_readable(sender or "nobody"), _readable(decoded(os.fsdecode(subject)))]
    name = "_".join([time.strftime("%Y-%m-%dT%H%M%SZ", time.gmtime()), *filter(None, words), os.urandom(4).hex()])
    return os.path.join(folder, "new", f"{name}.eml")


def store(path: str, added: bytes, raw: Raw, replaced: str = "") -> None:
    """Write what would have been posted, byte for byte, to a path that is new_path()'s.

    ``replaced`` is the file of an earlier hold, which goes if it is of the same message. When it returns, the message
    is on the disk: the file and the names that lead to it are synced. Raises OSError when it can't be kept; then
    nothing of it is to be seen in ``new``. Raises Ended(SETTINGS) where a folder in it leads elsewhere, or is for
    others to write.
    """
    folder = os.path.dirname(os.path.dirname(path))
    for name in ("tmp", "new", "cur"):
        part = os.path.join(folder, name)
        os.makedirs(part, mode=0o700, exist_ok=True)
        status = os.lstat(part)
        wrong = "is a symbolic link" if stat.S_ISLNK(status.st_mode) else trusted.complaint(status)
        if wrong:
            raise Ended(Outcome.SETTINGS, f"hold folder {wrong}: {part}")
    unfinished = os.path.join(folder, "tmp", os.path.basename(path))
    try:
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(added)
            file.writelines(raw.chunks())
            file.flush()
            os.fsync(file.fileno())
        os.rename(unfinished, path)
        sync_folder(os.path.join(folder, "new"))
        sync_folder(folder)
        if replaced and os.path.dirname(replaced) == os.path.join(folder, "new") and _ends_with(replaced, raw):
            os.unlink(replaced)
    except BaseException as error:  # the message stays with the MTA, so it must not be here as well
        for left in (unfinished, path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(left)
        if isinstance(error, OSError) and not error.filename:  # a full disk has no name
            error.filename = path
        raise


def _ends_with(path: str, raw: Raw) -> bool:
    """Tell whether a held file is this message: other mail may have the same id."""
    with contextlib.suppress(OSError), open(path, "rb") as file:  # the postmaster has taken it
        file.seek(-raw.size, os.SEEK_END)
        return all(file.read(len(chunk)) == chunk for chunk in raw.chunks())
    return False


def _readable(text: str) -> str:
    """Return of a text what a person can read in a file's name: letters and digits of ASCII, and what is like them."""
    from unicodedata import normalize

    ascii_text = normalize("NFKD", text[: 4 * MAX_NAME_CHARACTERS]).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9@.]+", "-", ascii_text).strip("-.")[:MAX_NAME_CHARACTERS]


def decoded(value: str) -> str:
    """Return a field's value without encoded words (RFC 2047), as far as they can be read."""
    from email.header import decode_header, make_header

    try:
        return str(make_header(decode_header(value[: 16 * MAX_NAME_CHARACTERS])))
    except (ValueError, LookupError):  # an unknown charset, a byte that is none of it
        return value


def sync_folder(folder: str) -> None:
    """Return when the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
