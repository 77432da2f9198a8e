"""The program, run as an MTA runs it: nothing but PATH and LANG in the environment, in another folder, no HOME."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

PROGRAM = Path(__file__).parents[2] / "mail_gateway.py"
PASSWORD = "s3cret ${HOME} #<&>'pässword"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C"}
SETTINGS: dict[str, object] = {
    "DATABASE": "mydatabase",
    "LOGIN": "2",
    "PASSWORD": PASSWORD,
    "ALIAS_DOMAINS": "example.com",
    "PATIENCE": "1",
}
LINE = re.compile(rb"[245]\.\d\.\d [a-z, ]+\n")
KEYS = [
    "queue_id",
    "message_id",
    "sender",
    "recipients",
    "original_recipients",
    "unmatched",
    "outcome",
    "status_code",
    "record_id",
    "model",
    "seconds",
    "cause",
]


class Result(NamedTuple):
    """How a run ended: exit status, standard output, standard error, and what it wrote to its log."""

    status: int
    out: bytes
    err: bytes
    log: str

    @property
    def facts(self) -> dict[str, str]:
        """The keys and values of the one log line."""
        (line,) = self.log.splitlines()
        pairs = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|[^ ]*)(?: |$)', line)
        assert [key for key, _ in pairs] == KEYS
        return {key: value.strip('"') for key, value in pairs}

    @property
    def ending(self) -> tuple[int, str, str]:
        """Exit status, status code and the outcome that the log names."""
        assert LINE.fullmatch(self.out), self.out
        return self.status, self.out.split()[0].decode(), self.facts["outcome"]


class Gateway:
    """The program with its settings file and its log in a folder of the test's own."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.env_file = folder / "settings.env"
        self.program = PROGRAM
        self.settings = SETTINGS | {"JOURNAL": folder / "journal", "LOG": self.log} | settings
        if "://" not in str(self.settings["JOURNAL"]):
            os.makedirs(str(self.settings["JOURNAL"]), exist_ok=True)

    def command(self, *arguments: str | bytes, **settings: object) -> list[str | bytes]:
        """Write the settings file and return the command line; a setting that is None is left out."""
        write_settings(self.env_file, self.settings | settings)
        return [sys.executable, str(self.program), "--env-file", str(self.env_file), *arguments]

    def run(
        self,
        *arguments: str | bytes,
        message: bytes | Path = b"Subject: hello\n\nbody\n",
        environ: dict[str, str] | None = None,
        **settings: Any,
    ) -> Result:
        """Run the program with a message and return how it ended; the password must be nowhere."""
        self.log.unlink(missing_ok=True)
        finished = subprocess.run(
            self.command(*arguments, **settings),
            input=message.read_bytes() if isinstance(message, Path) else message,
            capture_output=True,
            env=ENVIRONMENT | coverage_environment() | (environ or {}),
            cwd="/",
            timeout=120,
            check=False,
        )
        log = self.log.read_text() if self.log.exists() else ""
        result = Result(finished.returncode, finished.stdout, finished.stderr, log)
        assert "s3cret" not in f"{result}", result
        return result


def changed(folder: Path, additions: Mapping[str, str]) -> Path:
    """Return a copy of the program, in a new folder, with more code at the end of some of its modules."""
    program = folder / "mail_gateway.py"
    folder.mkdir()
    shutil.copy(PROGRAM, program)
    shutil.copytree(PROGRAM.parent / "mailgate", folder / "mailgate")
    for name, text in additions.items():
        with (folder / "mailgate" / name).open("a") as source:
            source.write(text)
    return program


def write_settings(path: Path, settings: dict[str, object]) -> None:
    """Write a settings file; a setting that is None is left out."""
    values = {name: value for name, value in settings.items() if value is not None}
    quoted = {name: str(value).replace("\\", "\\\\").replace('"', '\\"') for name, value in values.items()}
    path.write_text("".join(f'MAIL_GATEWAY_{name}="{value}"\n' for name, value in quoted.items()))
    path.chmod(0o600)


def coverage_environment() -> dict[str, str]:
    """Return what a coverage measurement needs to see the program run; nothing else of our environment."""
    return {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
