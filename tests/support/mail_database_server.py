"""mail_database as a process of its own, on a free port, with its store where a test wants it."""

import contextlib
import json
import os
import subprocess
import sys
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.stores import fill

ROOT = Path(__file__).parents[2]
PASSWORD = "s3cret"


def command(store: str, *arguments: str, text: str | None = None) -> str:
    """Run a command of mail_database on a store and return what it prints."""
    words = [sys.executable, "-m", "mail_database", *arguments, "--store", store]
    return subprocess.run(words, cwd=ROOT, input=text, capture_output=True, text=True, check=True).stdout


def program_with(constant: str, value: float) -> tuple[str, str]:
    """Return a Server's ``program``, with another value of a constant of ``listen`` or ``program`` (the command)."""
    code = f"import sys; from mail_database import listen, __main__ as program; {constant} = {value}"
    return "-c", f"{code}; sys.exit(program.main(sys.argv[1:]))"


class Server:
    """The endpoint, and what a test asks it; user 2 calls."""

    database = "mydatabase"

    def __init__(
        self, store: str, *options: str, program: tuple[str, str] = ("-m", "mail_database"), password: str = PASSWORD
    ) -> None:
        self.store, self.password = store, password
        self.options = options
        self.program = program
        self.start()

    def start(self) -> None:
        environ = {"PATH": "/usr/bin:/bin", "MAIL_DATABASE_PASSWORD": self.password, "MAIL_DATABASE_STORE": self.store}
        environ |= {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
        self.process = subprocess.Popen(
            [sys.executable, *self.program, "serve", "--port", "0", *self.options],
            stdout=subprocess.PIPE,
            env=environ,
            cwd=ROOT,
            text=True,
        )
        assert self.process.stdout
        self.url = self.process.stdout.readline().split()[-1]
        self._object = xmlrpc.client.ServerProxy(f"{self.url}/xmlrpc/2/object", allow_none=True)

    def stop(self, kill: bool = False) -> None:
        self.process.kill() if kill else self.process.terminate()
        self.process.wait()
        self._object("close")()
        assert self.process.stdout
        self.process.stdout.close()

    def call(self, model: str, method: str, *arguments: Any, **named: Any) -> Any:
        return self._object.execute_kw("mydatabase", 2, self.password, model, method, list(arguments), named)

    def search(self, model: str, domain: list, *names: str) -> list[dict[str, Any]]:
        return self.call(model, "search_read", domain, fields=list(names))

    def deliver(self, raw: bytes, model: str | bool = False, **named: Any) -> Any:
        return self.call("mail.thread", "message_process", model, xmlrpc.client.Binary(raw), **named)

    def command(self, *arguments: str) -> str:
        return command(self.store, *arguments)

    def dump(self) -> dict[str, Any]:
        return json.loads(self.command("dump"))


@contextlib.contextmanager
def served(store: str, world: dict[str, Any], password: str = PASSWORD) -> Iterator[Server]:
    """Load a world into a store, and run the endpoint on it for a while."""
    fill(store, world)
    server = Server(store, password=password)
    try:
        yield server
    finally:
        server.stop()
