"""Postfix's configuration, as Postfix's own commands tell it."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

from mailgate.admin.desk import as_caller
from mailgate.outcome import Ended, Outcome

FOLDERS = ":/usr/sbin:/sbin"  # where its programs are, besides those of PATH
SECONDS = 20.0  # that one of them may take
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_ELEMENT = re.compile(r"(?:[^\s,{}]|\{(?:[^{}]|\{[^{}]*\})*\})+")


class Service(NamedTuple):
    """A service of master.cf: its name, its program, the parameters of its own, and the rest of its line."""

    name: str
    command: str
    parameters: dict[str, str]
    arguments: str


class Postfix(NamedTuple):
    """A configuration. What its commands fail for raises Ended(SETTINGS)."""

    config: str

    def parameter(self, name: str) -> str:
        """Return the value of a parameter, variables and all put in."""
        return self._run("postconf", "-hx", name)[0].strip()

    def raw(self) -> str:
        """Return all that is set, a parameter in each line, as it is written."""
        return "\n".join(self._run("postconf", option)[0] for option in ("-n", "-P"))

    def services(self) -> Iterator[Service]:
        """Yield the services of master.cf."""
        for line in re.sub(r"\n\s+", " ", self._run("postconf", "-M")[0]).splitlines():
            words = line.split()
            if len(words) > 7:
                arguments = " ".join(words[8:])
                yield Service(words[0], words[7], dict(re.findall(r"-o ([\w-]+)=(\S*)", arguments)), arguments)

    def elements(self, name: str) -> list[str]:
        """Return what a list has."""
        return _ELEMENT.findall(self.parameter(name))

    def has(self, name: str, key: str) -> bool:
        """Tell whether a list names a key, itself or in one of its tables."""
        tables = [element for element in self.elements(name) if ":" in element]
        return key in self.elements(name) or any(self._look_up(key, table) for table in tables)

    def found(self, name: str, *keys: str) -> str:
        """Return what the first of a list's tables has for the first of these keys that is there, else ""."""
        return next(
            (value for table in self.elements(name) for key in keys if (value := self._look_up(key, table))), ""
        )

    def _look_up(self, key: str, table: str) -> str:
        return self._run("postmap", "-q", key, table.removeprefix("proxy:"), good=(0, 1))[0].strip()

    def _run(self, program: str, *arguments: str, good: tuple[int, ...] = (0,)) -> tuple[str, str]:
        path = shutil.which(program, path=os.environ.get("PATH", "") + FOLDERS) or program
        try:
            with as_caller():
                done = subprocess.run(
                    [path, "-c", self.config, *arguments],
                    capture_output=True, check=False, timeout=SECONDS, text=True, errors="surrogateescape",
                )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Ended(Outcome.SETTINGS, f"{program}: {error}") from None
        said = done.stderr.strip()
        if done.returncode not in good or (done.returncode and said):
            raise Ended(Outcome.SETTINGS, (said or f"{program} failed").splitlines()[-1])
        return done.stdout, said


def find(config: str | None) -> Postfix | None:
    """Return the configuration in a folder, or the usual one; None where there is none."""
    path = shutil.which("postconf", path=os.environ.get("PATH", "") + FOLDERS)
    if not path:
        return None
    if not config:
        try:
            done = subprocess.run([path, "-dh", "config_directory"], capture_output=True, timeout=SECONDS, text=True)
        except (OSError, subprocess.TimeoutExpired):
            return None
        config = done.stdout.strip()
    return Postfix(config) if os.path.exists(os.path.join(config, "main.cf")) else None


def seconds(text: str, unit: str = "s") -> float:
    """Return a duration of Postfix's in seconds; ``unit`` is that of a number alone."""
    found = re.fullmatch(r"(\d+)([smhdw]?)", text)
    return int(found[1]) * UNITS[found[2] or unit] if found else 0.0
