"""A private PostgreSQL, where its programs are: on a socket of its own, or on a port of the loopback interface."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

USER, PASSWORD = "mail_gateway", "s3cret"  # of who needs a password, where there is a port


class Impossible(Exception):
    """Raised where there is no PostgreSQL to start; the text says why."""


class PostgreSQL:
    """A server without durability, whose ``url(database)`` a store takes.

    With a port it has a user of its own, who needs a password. ``primary`` makes it that one's standby: what is
    confirmed from then on is on both.
    """

    def __init__(self, port: int = 0, primary: "PostgreSQL | None" = None) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
        if not programs:
            raise Impossible("no PostgreSQL server here (apt-get install postgresql)")
        self._bin, self.port = programs[-1].parent, port
        self._folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path has to be short
        self.log = self._folder / "log"
        self._user: dict[str, object] = {}
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            account = pwd.getpwnam("postgres")
            os.chown(self._folder, account.pw_uid, account.pw_gid)
            self._user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self._data = self._folder / "data"
        if primary:
            self._run("pg_basebackup", "-D", self._data, *primary._where, "-R", "-c", "fast")
            self.start()
            primary.sql("alter system set synchronous_standby_names = '*'")
            primary.sql("select pg_reload_conf()")
            return
        self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N")
        if port:
            rules = self._data / "pg_hba.conf"
            rules.write_text(f"host all {USER} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        self.start()
        if port:
            self.sql(f"create user {USER} password '{PASSWORD}'")

    def start(self) -> None:
        where = f"listen_addresses=127.0.0.1 -c port={self.port}" if self.port else "listen_addresses=''"
        options = f"-c {where} -c fsync=off -c max_connections=200 -k {self._folder}"
        self._run("pg_ctl", "-D", self._data, "-w", "-s", "-l", self.log, "-o", options, "start")

    def _run(self, program: str, *arguments: str | Path) -> None:
        command = [self._bin / program, *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self._folder, **self._user)  # type: ignore[call-overload]

    def url(self, database: str) -> str:
        if self.port:
            return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"
        return f"postgresql://postgres@/{database}?host={self._folder}"

    @property
    def _where(self) -> list[str | Path]:
        return ["-h", self._folder, "-p", str(self.port or 5432), "-U", "postgres"]

    def sql(self, statement: str, database: str = "postgres") -> None:
        self._run("psql", *self._where, "-d", database, "-q", "-v", "ON_ERROR_STOP=1", "-c", statement)

    def promote(self) -> None:
        """Make a standby a server that can be written."""
        self._run("pg_ctl", "-D", self._data, "-w", "-s", "promote")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; at once, as a crash of it would, or in another of pg_ctl's modes."""
        self._run("pg_ctl", "-D", self._data, "-m", mode, "-w", "-s", "stop")

    @property
    def runs(self) -> bool:
        """Whether it runs: it leaves its file behind when it is killed."""
        path = self._data / "postmaster.pid"
        return path.exists() and _runs(int(path.read_text().split()[0]))

    def signal(self, number: int) -> list[int]:
        """Send a signal to the server and all of its processes, such as SIGSTOP, and return these."""
        first = int((self._data / "postmaster.pid").read_text().split()[0])
        os.kill(first, signal.SIGSTOP)  # no more of them
        processes = [*map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split()), first]
        for process in processes:
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(process, number)
        return processes

    def kill(self) -> None:
        """Kill the server and all of its processes, and return when they are gone."""
        processes = self.signal(signal.SIGKILL)
        until = time.monotonic() + 30
        while any(map(_runs, processes)):
            assert time.monotonic() < until
            time.sleep(0.02)
        # or what nobody has waited for would be taken for a server
        for path in (self._data / "postmaster.pid", *self._folder.glob(".s.PGSQL.*")):
            path.unlink()

    def remove(self) -> None:
        if self.runs:
            self.stop()
        shutil.rmtree(self._folder)


class PgBouncer:
    """A private PgBouncer on a port, in front of a server that has one."""

    def __init__(self, server: PostgreSQL, port: int, mode: str) -> None:
        program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin")
        if not program:
            raise Impossible("no PgBouncer here (apt-get install pgbouncer)")
        self.port = port
        self._folder = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir="/tmp"))
        users, settings = self._folder / "users", self._folder / "pgbouncer.ini"
        users.write_text(f'"{USER}" "{PASSWORD}"\n')
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {port}\nunix_socket_dir =\nauth_type = plain\nauth_file = {users}\npool_mode = {mode}\n"
        )
        user: dict[str, Any] = {}
        if os.getuid() == 0:  # PgBouncer refuses to run as root, too
            for path in (self._folder, users, settings):
                shutil.chown(path, "postgres")
            user = {"user": "postgres"}
        self._process = subprocess.Popen([program, "-q", settings], stderr=subprocess.DEVNULL, **user)
        until = time.monotonic() + 30
        with socket.socket() as client:
            while client.connect_ex(("127.0.0.1", port)):
                assert time.monotonic() < until
                time.sleep(0.02)

    def remove(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder)


def _runs(process: int) -> bool:
    """Tell whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
