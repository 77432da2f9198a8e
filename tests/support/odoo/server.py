"""A real Odoo 19 of the tests' own, started and stopped by the scripts beside this file."""

import os
import signal
import subprocess
import tempfile
import time
import xmlrpc.client
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# What takes a minute to make is kept here, outside of the checkout; nothing but time is lost with it.
CACHE = Path(os.environ.get("ODOO19_CACHE") or f"/var/tmp/mail-gateway-odoo19-{os.getuid()}")


class Impossible(Exception):
    """Raised where no Odoo can be started; the text says why."""


class Odoo:
    """The server, and its RPC for what a test wants to know. ``admin`` is user 2."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="odoo19-", dir="/var/tmp"))  # short, and open to Odoo's user
        self.folder.chmod(0o755)
        self.start()

    def start(self) -> None:
        """Start it, again after ``stop``, on the same port."""
        finished = subprocess.run(
            [HERE / "odoo19-up.sh", self.folder],
            env=os.environ | {"ODOO19_CACHE": str(CACHE)},
            capture_output=True,
            text=True,
            check=False,
        )
        if finished.returncode:
            raise Impossible(finished.stderr.strip().splitlines()[-1])
        values = dict(line.split("=", 1) for line in finished.stdout.splitlines())
        self.url, self.database = values["URL"], values["DB"]
        self.login, self.password = values["LOGIN"], values["PASSWORD"]
        self._object = xmlrpc.client.ServerProxy(f"{self.url}/xmlrpc/2/object")

    def stop(self) -> None:
        subprocess.run([HERE / "odoo19-down.sh", self.folder], check=True)

    def kill(self) -> None:
        """Kill Odoo at once; ``start`` starts it again."""
        pid = int((self.folder / "run" / "odoo.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
            time.sleep(0.01)

    def control_postgresql(self, *command: str) -> None:
        """Run pg_ctl on its PostgreSQL: ``stop -m fast``, and later ``restart``, which starts what has stopped.

        After ``stop -m immediate`` the last commits may be gone, for it does not wait for the disk.
        """
        program = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))[-1]
        user: dict[str, Any] = {} if os.getuid() else {"user": "postgres", "group": "postgres", "extra_groups": []}
        words: list[str | Path] = [program, "-D", self.folder / "pgdata", "-w", "-l", self.folder / "log/postgres.log"]
        subprocess.run([*words, *command], check=True, capture_output=True, stdin=subprocess.DEVNULL, cwd="/", **user)

    def purge(self) -> None:
        subprocess.run([HERE / "odoo19-down.sh", "--purge", self.folder], check=True)

    def call(self, model: str, method: str, *arguments: Any, **named: Any) -> Any:
        return self._object.execute_kw(self.database, 2, self.password, model, method, arguments, named)

    def search(self, model: str, domain: list, *names: str) -> list[dict[str, Any]]:
        return self.call(model, "search_read", domain, fields=list(names), order="id")

    def set_parameter(self, key: str, value: str) -> None:
        self.call("ir.config_parameter", "set_param", key, value)

    def add_aliases(self) -> None:
        """Receive for example.com, with an alias for each of what the tests write to; ``info`` is there already."""
        domain = self.call("mail.alias.domain", "create", {"name": "example.com"})
        self.call("res.company", "write", [1], {"alias_domain_id": domain, "email": "office@example.com"})
        models = {row["model"]: row["id"] for row in self.search("ir.model", [], "model")}
        for local_part, model, defaults in [
            ("support", "project.task", "{}"),
            ("jobs", "project.task", "{}"),
            ("broken", "crm.lead", "{'no_such_field': 1}"),
            ("dangling", "crm.lead", "{'team_id': 99999}"),
            ("countries", "res.country", "{}"),
        ]:
            alias = {"alias_name": local_part, "alias_model_id": models[model], "alias_domain_id": domain}
            self.call("mail.alias", "create", alias | {"alias_defaults": defaults})
        self.set_parameter("mail.gateway.loop.threshold", "100000")
