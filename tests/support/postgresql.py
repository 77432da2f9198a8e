"""A private PostgreSQL on a socket of its own, where its programs are."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path


class Impossible(Exception):
    """Raised where there is no PostgreSQL to start; the text says why."""


class PostgreSQL:
    """A server without durability, whose ``url(database)`` a store takes."""

    def __init__(self) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
        if not programs:
            raise Impossible("no PostgreSQL server here (apt-get install postgresql)")
        self._bin = programs[-1].parent
        self._folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path has to be short
        self._user: dict[str, object] = {}
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            account = pwd.getpwnam("postgres")
            os.chown(self._folder, account.pw_uid, account.pw_gid)
            self._user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        data = self._folder / "data"
        self._run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
        options = f"-c listen_addresses='' -c fsync=off -c max_connections=200 -k {self._folder}"
        self._run("pg_ctl", "-D", data, "-w", "-s", "-l", self._folder / "log", "-o", options, "start")

    def _run(self, program: str, *arguments: str | Path) -> None:
        command = [self._bin / program, *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self._folder, **self._user)  # type: ignore[call-overload]

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self._folder}"

    def sql(self, statement: str) -> None:
        self._run("psql", "-h", self._folder, "-U", "postgres", "-q", "-c", statement)

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._folder / "data", "-m", "immediate", "-w", "-s", "stop")
        shutil.rmtree(self._folder)
