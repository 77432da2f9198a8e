"""Exim's configuration, as Exim itself tells it (exim -bP, -bt)."""

import os
import shutil
import subprocess
from typing import NamedTuple

from mailgate.admin.desk import as_caller
from mailgate.outcome import Ended, Outcome

FOLDERS = ":/usr/sbin:/sbin"  # where it is, besides those of PATH
SECONDS = 20.0  # that a run of it may take
SIZES = {"K": 2**10, "M": 2**20, "G": 2**30}


class Exim(NamedTuple):
    """A configuration: the usual one, or a file. What Exim fails for raises Ended(SETTINGS)."""

    program: str
    config: str

    def main(self, name: str) -> str:
        """Return the value of a main option."""
        return self._run("-bP", name).partition("=")[2].strip()

    def options(self, kind: str, name: str) -> dict[str, str]:
        """Return the options of a router or transport, a switch as "yes" or ""; empty where there is none."""
        found: dict[str, str] = {}
        for line in self._run("-bP", kind, name).splitlines():
            option, equals, value = line.partition("=")
            if equals:
                found[option.strip()] = value.strip()
            elif " " not in line.strip():  # not "transport x not found"
                found[line.strip().removeprefix("no_")] = "" if line.startswith("no_") else "yes"
        return found

    def way(self, address: str) -> str:
        """Return what Exim says of how it routes an address."""
        return self._run("-bt", address)

    def _run(self, *arguments: str) -> str:
        options = ["-C", self.config] if self.config else []
        try:
            with as_caller():
                done = subprocess.run(
                    [self.program, *options, *arguments],
                    capture_output=True, check=False, timeout=SECONDS, text=True, errors="surrogateescape",
                )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Ended(Outcome.SETTINGS, f"exim: {error}") from None
        if "configuration error" in done.stderr + done.stdout:
            raise Ended(Outcome.SETTINGS, (done.stderr + done.stdout).strip().splitlines()[0])
        return done.stdout


def find(config: str | None) -> Exim | None:
    """Return Exim with its usual configuration, or that of a file; None where it is not here."""
    path = os.environ.get("PATH", "") + FOLDERS
    program = shutil.which("exim4", path=path) or shutil.which("exim", path=path)
    return Exim(program, config or "") if program else None


def size(text: str) -> int | None:
    """Return a size of Exim's in bytes, None where it is expanded for each message."""
    number, unit = (text[:-1], SIZES[text[-1]]) if text[-1:] in SIZES else (text, 1)
    return int(number) * unit if number.isascii() and number.isdigit() else None
