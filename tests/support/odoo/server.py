"""A real Odoo of the tests' own, 19 or 14, started and stopped by the scripts beside this file."""

import os
import signal
import subprocess
import tempfile
import xmlrpc.client
from pathlib import Path
from typing import Any

from support.mta import Impossible, wait_until

HERE = Path(__file__).parent
FIRST_WITH_DOMAINS = 17  # for aliases


class Odoo:
    """The server, and its RPC for what a test wants to know. ``admin`` is user 2."""

    def __init__(self, version: int = 19) -> None:
        self.version, self.has_domains = version, version >= FIRST_WITH_DOMAINS
        self.of_domain: dict[str, int] = {}  # what the aliases of example.com have in common
        self.folder = Path(tempfile.mkdtemp(prefix=f"odoo{version}-", dir="/var/tmp"))  # short, open to Odoo's user
        self.folder.chmod(0o755)
        self.start()

    def start(self) -> None:
        """Start it, again after ``stop``, on the same port."""
        # What takes a minute to make is kept there, outside of the checkout; nothing but time is lost with it.
        place = f"/var/tmp/mail-gateway-odoo{self.version}-{os.getuid()}"
        finished = subprocess.run(
            [HERE / "up.sh", str(self.version), self.folder],
            env=os.environ | {"ODOO_CACHE": os.environ.get(f"ODOO{self.version}_CACHE") or place},
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
        subprocess.run([HERE / "down.sh", self.folder], check=True)

    def kill(self) -> None:
        """Kill Odoo at once; ``start`` starts it again."""
        pid = int((self.folder / "run" / "odoo.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        words = Path(f"/proc/{pid}/cmdline")  # has none of a process that nobody has waited for
        wait_until(lambda: not (words.exists() and words.read_bytes()), "Odoo to end")

    def control_postgresql(self, *command: str) -> None:
        """Run pg_ctl on its PostgreSQL: ``stop -m fast``, and later ``restart``, which starts what has stopped.

        After ``stop -m immediate`` the last commits may be gone, for it does not wait for the disk.
        """
        program = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))[-1]
        user: dict[str, Any] = {} if os.getuid() else {"user": "postgres", "group": "postgres", "extra_groups": []}
        words: list[str | Path] = [program, "-D", self.folder / "pgdata", "-w", "-l", self.folder / "log/postgres.log"]
        subprocess.run([*words, *command], check=True, capture_output=True, stdin=subprocess.DEVNULL, cwd="/", **user)

    def purge(self) -> None:
        subprocess.run([HERE / "down.sh", "--purge", self.folder], check=True)

    def call(self, model: str, method: str, *arguments: Any, **named: Any) -> Any:
        return self._object.execute_kw(self.database, 2, self.password, model, method, arguments, named)

    def search(self, model: str, domain: list, *names: str) -> list[dict[str, Any]]:
        return self.call(model, "search_read", domain, fields=list(names), order="id")

    def set_parameter(self, key: str, value: str) -> None:
        self.call("ir.config_parameter", "set_param", key, value)

    def add_aliases(self) -> None:
        """Receive for example.com, with an alias for each of what the tests write to; ``info`` is there already."""
        self.call("res.company", "write", [1], {"email": "office@example.com"})
        if self.has_domains:
            self.of_domain = {"alias_domain_id": self.call("mail.alias.domain", "create", {"name": "example.com"})}
            self.call("res.company", "write", [1], self.of_domain)
        else:
            self.set_parameter("mail.catchall.domain", "example.com")
        models = {row["model"]: row["id"] for row in self.search("ir.model", [], "model")}
        for local_part, model, defaults in [
            ("support", "project.task", "{}"),
            ("jobs", "project.task", "{}"),
            ("broken", "crm.lead", "{'no_such_field': 1}"),
            ("dangling", "crm.lead", "{'team_id': 99999}"),
            ("countries", "res.country", "{}"),
        ]:
            alias = {"alias_name": local_part, "alias_model_id": models[model], "alias_defaults": defaults}
            self.call("mail.alias", "create", alias | self.of_domain)
        self.set_parameter("mail.gateway.loop.threshold", "100000")


def new_user(odoo: Odoo, group: str) -> dict[str, Any]:
    """Make a user with the rights of a group, and return what the settings say of him."""
    module, name = group.split(".")
    (found,) = odoo.search("ir.model.data", [("module", "=", module), ("name", "=", name)], "res_id")
    field = "group_ids" if odoo.version >= 19 else "groups_id"
    user = {"name": name, "login": name, "password": f"of {name}", field: [(6, 0, [found["res_id"]])]}
    odoo.call("res.users", "create", user)
    return {"LOGIN": name, "PASSWORD": f"of {name}"}
