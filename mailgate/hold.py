"""Hold: mail that the database can't take waits in a Maildir, for the postmaster to look at and deliver again."""

import contextlib
import itertools
import os
import re
import stat
import time
from collections.abc import Iterable

from mailgate import trusted
from mailgate.envelope import Raw, fields, unfold
from mailgate.outcome import Ended, Outcome

KEPT_AS = "; kept as "  # stands in a cause before the path
ORIGINAL = "original"  # the folder of what was mended, beside new/
MAILDIR = ("tmp", "new", "cur")
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
    folder = _folder_of(path)
    for name in MAILDIR:
        _part(folder, name)
    unfinished = os.path.join(folder, "tmp", os.path.basename(path))
    try:
        _write(unfinished, itertools.chain([added], raw.chunks()))
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


def parts(folder: str) -> list[str]:
    """Return the three folders of a Maildir."""
    return [os.path.join(folder, name) for name in MAILDIR]


def complaint(part: str) -> str:
    """Return what is wrong with a folder of the Maildir, "" for nothing. Raises OSError."""
    status = os.lstat(part)
    return "is a symbolic link" if stat.S_ISLNK(status.st_mode) else trusted.complaint(status)


def mend(path: str, mended: bytes) -> str:
    """Put a mended message in the place of a held one, and return where the original is kept.

    At every moment one of them stands there. A message that is mended once more keeps the first original. Raises
    OSError, and Ended(SETTINGS) as store().
    """
    folder, name = _folder_of(path), os.path.basename(path)
    original, unfinished = (os.path.join(_part(folder, part), name) for part in (ORIGINAL, "tmp"))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(unfinished)  # another mend's, that was killed
    status = os.stat(path)
    _write(unfinished, [mended])
    os.utime(unfinished, ns=(status.st_atime_ns, status.st_mtime_ns))  # it is held since then
    with contextlib.suppress(FileExistsError):
        os.link(path, original)
    sync_folder(os.path.dirname(original))
    os.rename(unfinished, path)
    sync_folder(os.path.dirname(path))
    return original


def move(path: str, part: str) -> str:
    """Move a held message to a folder beside new/, and return its new path. Raises as mend()."""
    kept = os.path.join(_part(_folder_of(path), part), os.path.basename(path))
    if not os.path.exists(kept) or not os.path.samefile(path, kept):  # it is both where the last move was killed
        os.link(path, kept)
        sync_folder(os.path.dirname(kept))
    os.unlink(path)
    return kept


def _folder_of(path: str) -> str:
    return os.path.dirname(os.path.dirname(path))


def _part(folder: str, name: str) -> str:
    """Return the path of a folder in the hold folder, made where it is missing. Raises OSError and Ended(SETTINGS)."""
    part = os.path.join(folder, name)
    os.makedirs(part, mode=0o700, exist_ok=True)
    wrong = complaint(part)
    if wrong:
        raise Ended(Outcome.SETTINGS, f"hold folder {wrong}: {part}")
    return part


def _write(path: str, chunks: Iterable[bytes]) -> None:
    """Write a file that is not there yet, and see it on the disk."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.writelines(chunks)
        file.flush()
        os.fsync(file.fileno())


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
    from email.errors import HeaderParseError
    from email.header import decode_header, make_header

    try:
        return str(make_header(decode_header(value[: 16 * MAX_NAME_CHARACTERS])))
    except (HeaderParseError, ValueError, LookupError):  # no base64, a byte that is none of its charset, no charset
        return value


def sync_folder(folder: str) -> None:
    """Return when the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
