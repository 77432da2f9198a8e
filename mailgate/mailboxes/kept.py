"""What is kept between two runs: each file is ours alone, and takes the place of the one before it in one step."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from mailgate import trusted
from mailgate.hold import sync_folder

MAX_BYTES = 2**26  # of a file: a maildrop of a million messages has as much


def content(path: str) -> bytes:
    """Return what a file has. Raises OSError, and ValueError, with the path, where it is not ours alone."""
    with open(path, "rb") as file:
        trusted.check(path, file.fileno())
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise ValueError(f"can be read by others: {path}")
        return file.read(MAX_BYTES)


def read(path: str) -> dict[str, Any] | None:
    """Return what is kept in a file, None where there is none. Raises OSError, and ValueError for what is not ours."""
    try:
        found = json.loads(content(path))
    except FileNotFoundError:
        return None
    except RecursionError:
        raise ValueError("is none of ours") from None
    if not isinstance(found, dict):
        raise ValueError("is none of ours")
    return found


def replace(path: str, values: dict[str, Any]) -> None:
    """Keep these values: whatever happens meanwhile, the file has the old ones or these. Raises OSError."""
    with replacing(path) as file:
        file.write(json.dumps(values).encode())


@contextmanager
def replacing(path: str, reserved: int = 0) -> Iterator[IO[bytes]]:
    """Give a new file that takes the place of the old one in one step, or is gone. Raises OSError.

    So many bytes are ``reserved`` for it on the disk before anything else is done.
    """
    new = f"{path}.new"  # always the same: what a kill has left is overwritten
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            if reserved:
                os.posix_fallocate(file.fileno(), 0, reserved)
            yield file
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, path)
        sync_folder(os.path.dirname(path))
    except BaseException:  # a signal, too
        with suppress(FileNotFoundError):
            os.unlink(new)
        raise
