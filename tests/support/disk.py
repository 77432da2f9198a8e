"""A disk of its own, which a test fills up, or mounts anew so that it can only be read."""

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE_BYTES = 4096
PAGES = 2**15


class Disk:
    """A file system in memory. Only root can mount one."""

    pages = PAGES

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"
        path.mkdir()
        self._mount("-t", "tmpfs", "-o", f"size={PAGES * PAGE_BYTES},mode=0700", "tmpfs")

    def _mount(self, *options: str) -> None:
        subprocess.run(["mount", *options, str(self.path)], check=True)

    def folder(self, name: str) -> Path:
        """Return a new folder on it."""
        folder = self.path / name
        folder.mkdir(mode=0o700)
        return folder

    def fill(self, left: int = 0) -> None:
        """Take all of it, except so many pages."""
        with contextlib.suppress(FileNotFoundError):
            self._filler.unlink()
        with open(self._filler, "wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(PAGE_BYTES))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            filler.truncate(filler.tell() - left * PAGE_BYTES)

    def free(self) -> None:
        """Give back what fill() has taken."""
        self._filler.unlink()

    def set_read_only(self, is_so: bool) -> None:
        """Let nobody write on it, or everybody again."""
        self._mount("-o", f"remount,{'ro' if is_so else 'rw'}")

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid():
        pytest.skip("needs root to mount a disk that is full")
    made = Disk(tmp_path / "disk")
    yield made
    made.close()
