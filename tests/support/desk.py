"""The operator's desk beside a gateway, as a person starts it, and ten mails of different fate that he asks about."""

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from support.admin import ask, command
from support.gateway import Gateway
from support.mail_database_server import PASSWORD, ROOT

PAGE = ROOT / "docs" / "admin.md"
WORLD: dict[str, Any] = {
    "alias_domains": [{"id": 1, "name": "example.com", "catchall": "catchall", "bounce": "bounce"}],
    "companies": [{"id": 1, "name": "Company", "email": "office@example.com", "alias_domain": "example.com"}],
    "aliases": [
        {"id": 1, "local_part": "info", "domain": "example.com", "model": "crm.lead"},
        {"id": 2, "local_part": "jobs", "domain": "example.com", "model": "project.task"},
        {"id": 3, "local_part": "broken", "domain": "example.com", "model": "crm.lead", "defaults": {"colour": "red"}},
    ],
    "partners": [{"id": 3, "name": "Administrator", "email": "admin@example.com"}],
    "users": [{"id": 2, "login": "admin", "partner_id": 3}],
    "parameters": {"mail.gateway.loop.threshold": "2"},
}


class Fate(NamedTuple):
    """A mail, how it is sent, and how it ends; ``original`` is its recipient before a redirection."""

    name: str
    ending: str
    to: str = "info@example.com"
    sender: str = "ann@outside.test"
    original: str = ""
    subject: str = "Forty chairs"
    copies: int = 1
    model: str = ""  # of its record
    settings: Mapping[str, Any] = MappingProxyType({})

    @property
    def message_id(self) -> str:
        """The Message-ID of the last copy."""
        return f"<{self.name}{self.copies - 1 if self.name == 'loop' else ''}@outside.test>"

    def message(self, number: int) -> bytes:
        """Return the message; each copy of a loop has its own number."""
        head = [f"From: Ann <{self.sender or 'ann@outside.test'}>", f"To: {self.original or self.to}"]
        fields = [*head, f"Message-ID: <{self.name}{number or ''}@outside.test>", f"Subject: {self.subject}"]
        return "\n".join([*fields, "Date: Mon, 30 Nov 2026 09:00:00 +0000", "", "words", ""]).encode()


FATES = (
    Fate("delivered", "delivered", model="crm.lead"),
    Fate("unknown", "unknown_recipient", to="inof@example.com"),
    Fate("held", "held", to="broken@example.com", subject="=?utf-8?q?St=C3=BChle?="),
    Fate("password", "access_denied", settings={"PASSWORD": "an old key"}),
    Fate("known", "known", copies=2, sender="bob@outside.test", model="crm.lead"),
    Fate("large", "too_large", settings={"MAX_SIZE": 100}),
    Fate("bounce", "accepted", to="bounce@example.com", sender=""),
    Fate("null", "delivered", to="jobs@example.com", sender="", subject="Out of office", model="project.task"),
    Fate("redirected", "delivered", original="sales@example.net", sender="cleo@outside.test", model="crm.lead"),
    Fate("loop", "dropped", sender="robot@outside.test", copies=3),
)


class Desk:
    """A gateway in front of a database, its hold folder, programs of a mail server, and the desk beside them."""

    def __init__(self, folder: Path, url: str, **more: object) -> None:
        self.folder, self.hold = folder, folder / "held"
        self.hold.mkdir()
        settings = {"PASSWORD": PASSWORD, "HOLD": self.hold, "PATIENCE": 0}
        self.gateway = Gateway(folder, URL=url, **settings | more)
        self.gateway.command()  # writes the settings

    @property
    def files(self) -> list[Path]:
        """What is held."""
        return sorted(self.hold.glob("new/*"))

    def program(self, name: str, text: str) -> None:
        """Put a program of the mail server's where the desk finds it."""
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def deliver_all(self) -> None:
        """Send all ten."""
        for number, fate in enumerate(FATES):
            self.deliver(fate, number)

    def deliver(self, fate: Fate, number: int) -> None:
        """Send a mail, and see it end as it must."""
        for copy in range(fate.copies):
            result = self.gateway.run(
                f"--queue-id=4Xy{number}{copy}",
                f"--sender={fate.sender}",
                *([f"--original-recipient={fate.original}"] if fate.original else []),
                fate.to,
                message=fate.message(copy if fate.name == "loop" else 0),
                **fate.settings,
            )
        assert result.facts["outcome"] == fate.ending, (fate.name, result)
        self.gateway.command()

    def run(self, *arguments: str, environ: dict[str, str] | None = None) -> "Screen":
        """Run a command of the desk."""
        path = {"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin"}
        done = ask(self.gateway.env_file, *arguments, environ=path | (environ or {}))
        return Screen(done.returncode, done.stdout, done.stderr)

    def facts(self, *arguments: str) -> Any:
        """Return what a command of the desk tells a program."""
        return json.loads(self.run(*arguments, "--json").out)

    def command(self, *arguments: str) -> list[str]:
        """Return what is typed for a command."""
        return command(self.gateway.env_file, *arguments)


class Screen(NamedTuple):
    """Exit status, standard output and standard error."""

    status: int
    out: str
    err: str

    @property
    def lasting(self) -> str:
        """The output as it is at each run: another time, place and duration stand for the true ones."""
        changes: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
            (r"\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?", lambda found: "2026-11-30 09:00:01"[: len(found[0])]),
            (r"\d\.\d\d s", "0.42 s"),
            (r"http://127.0.0.1:\d+", "https://odoo.example.com"),
            (r" +(?=\n)", ""),
        ]
        text = self.out
        for pattern, new in changes:
            text = re.sub(pattern, new, text)
        return text


def block(arguments: Sequence[str], screen: Screen) -> str:
    """Return a screen as the page has it: what is typed, and what is seen."""
    typed = " ".join(["mail-gateway-admin", *map(shlex.quote, arguments)])
    return "\n".join(f"    {line}".rstrip() for line in [f"$ {typed}", *screen.lasting.splitlines()]) + "\n"
