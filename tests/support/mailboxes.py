"""The process of the mailboxes, with its files in a folder of the test's own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from support.dovecot import PASSWORD, Dovecot
from support.gateway import ENVIRONMENT, SETTINGS, coverage_environment, write_settings
from support.mta import wait_until

ROOT = Path(__file__).parents[2]
READY = " reads "


class Mailboxes:
    """The program, its settings and its mailboxes; a table's values are as TOML has them, a text without its quotes."""

    def __init__(self, folder: Path, *tables: dict[str, object], **settings: object) -> None:
        self.folder, self.tables = folder, [*tables]
        self.log, self.env_file = folder / "mailboxes.log", folder / "mailboxes.env"
        self.state, self.file = folder / "mailboxes", folder / "mailboxes.toml"
        own = {"JOURNAL": folder / "mailboxes-journal", "LOG": self.log, "MAILBOXES": self.file}
        self.settings = SETTINGS | own | settings
        for path in (self.state, Path(str(self.settings["JOURNAL"]))):
            path.mkdir(exist_ok=True)
        self.top: dict[str, object] = {"folder": self.state}
        self.process: subprocess.Popen[bytes] | None = None
        self.runs = ["-m", "mailgate.mailboxes"]

    def runs_first(self, statement: str) -> None:
        """Have the process run a statement first, such as one that shortens a pause."""
        self.runs = ["-c", f"{statement}; from mailgate.mailboxes.__main__ import run; run()"]

    def command(self, *arguments: str) -> list[str]:
        """Write the files and return the command line."""
        write_settings(self.env_file, self.settings)
        lines = [*map(line, self.top.items())]
        for table in self.tables:
            lines += ["[[mailbox]]", *map(line, table.items())]
        self.file.write_text("".join(f"{each}\n" for each in lines))
        self.file.chmod(0o600)
        return [sys.executable, *self.runs, "--env-file", str(self.env_file), *arguments]

    def run(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        found = subprocess.run(
            self.command(*arguments),
            input=text,
            capture_output=True,
            text=True,
            env=self.environ,
            cwd=ROOT,
            timeout=300,
        )
        assert "Traceback" not in found.stderr, found.stderr
        assert PASSWORD not in found.stdout + found.stderr + self.text()
        return found

    @contextlib.contextmanager
    def talking(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run a command that somebody reads while it runs."""
        with subprocess.Popen(
            self.command(*arguments), stdout=subprocess.PIPE, text=True, env=self.environ, cwd=ROOT
        ) as process:
            yield process

    @property
    def environ(self) -> dict[str, str]:
        return ENVIRONMENT | coverage_environment()

    def start(self) -> None:
        """Start the process and wait until it reads."""
        before = self.text().count(READY)
        self.process = subprocess.Popen(self.command(), env=self.environ, cwd=ROOT, stdin=subprocess.DEVNULL)
        self.wait_for(READY, before + 1)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it with a signal and return its exit status."""
        assert self.process
        self.process.send_signal(number)
        return self.process.wait(timeout=120)

    def text(self) -> str:
        """Return the log."""
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, text: str, count: int = 1, seconds: float = 60) -> None:
        """Wait until the log has a text so many times."""

        def has_it() -> bool:
            assert self.process
            assert self.process.poll() is None, self.text()
            return self.text().count(text) >= count

        wait_until(has_it, f"{text!r} in the log of the mailboxes", seconds)


class Bare(str):
    """What TOML has without quotes, such as a date."""


def line(pair: tuple[str, object]) -> str:
    """Return a line of TOML."""
    key, value = pair
    is_text = isinstance(value, str | os.PathLike) and not isinstance(value, Bare)
    return f"{key} = {json.dumps(str(value)) if is_text else value}"


@contextlib.contextmanager
def running(mailboxes: Mailboxes) -> Iterator[Mailboxes]:
    """Run the process for a while; at its end it must stop as it is told."""
    mailboxes.start()
    try:
        yield mailboxes
        assert mailboxes.stop() == 0
    finally:
        assert mailboxes.process
        mailboxes.process.kill()
        mailboxes.process.wait()
        assert PASSWORD not in mailboxes.text()


def table(server: Dovecot, login: str, protocol: str = "imaps", /, **keys: object) -> dict[str, object]:
    """Return the table of a mailbox of this server, which gets such a user."""
    server.add_user(login)
    password = server.folder / "password"
    password.touch(0o600)
    password.write_text(PASSWORD)
    url = server.url(protocol).replace("127.0.0.1", "localhost")
    own = {"name": login.partition("@")[0], "server": url, "login": login, "password_file": password}
    return own | {"ca_file": server.ca_file} | keys
