"""What is kept between two runs, as JSON: each file is ours alone, and replaces the one before it in one step."""

import json
import os
from contextlib import suppress
from typing import Any

from mailgate import trusted
from mailgate.hold import sync_folder

MAX_BYTES = 2**26  # of a file: a maildrop of a million messages has as much


def read(path: str) -> dict[str, Any] | None:
    """Return what is kept in a file, None where there is none. Raises OSError, and ValueError for what is not ours."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if trusted.complaint(status) or status.st_mode & 0o077:
            raise ValueError(trusted.complaint(status) or "can be read by others")
        found = json.loads(file.read(MAX_BYTES))
    if not isinstance(found, dict):
        raise ValueError("is none of ours")
    return found


def replace(path: str, values: dict[str, Any]) -> None:
    """Keep these values: whatever happens meanwhile, the file has the old ones or these. Raises OSError."""
    beside = f"{path}.{os.urandom(4).hex()}.new"
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            json.dump(values, file)
            file.flush()
            os.fsync(descriptor)
        os.rename(beside, path)
        sync_folder(os.path.dirname(path))
    finally:
        with suppress(OSError):
            os.unlink(beside)
