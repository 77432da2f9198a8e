"""The ways from a mailbox into Odoo that are compared: each as its own documentation has it, and ours."""

import contextlib
import http.client
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import measure

sys.path += [str(measure.ROOT / "tests"), str(measure.ROOT)]
from support.between import Between
from support.dovecot import PASSWORD, USER, Dovecot
from support.endpoint import Answer, Request
from support.network import Network
from support.odoo.server import Odoo

from mailgate import __version__

MIDDLE = 25  # the place of the mail at which something fails
RUN_SECONDS = 300  # after which a run is killed
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C"}  # as cron has it


class Postman(Between):
    """What stands before Odoo: it keeps what it was given, and lets things happen at a message that arrives."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.arrived: dict[str, bytes] = {}
        self.before: Callable[[str], object] = nothing  # called with the subject
        self.after: Callable[[str], object] = nothing

    def _answer(self, request: Request) -> Answer:
        if not request.is_delivery:
            return super()._answer(request)
        message = request.message.replace(b"\r\n", b"\n")
        subject = subject_of(message)
        self.arrived.setdefault(subject, message)
        self.before(subject)
        answer = super()._answer(request)
        self.after(subject)
        return answer


def nothing(subject: str) -> None:
    """Let happen what happens."""


def subject_of(message: bytes) -> str:
    (found,) = re.findall(rb"(?m)^Subject: (chairs \d+ \w+)\r?$", message)
    return found.decode()


class Stage(NamedTuple):
    """Where the peers play: the servers, and a folder that USER may enter."""

    dovecot: Dovecot
    odoo: Odoo
    postman: Postman
    folder: Path


class Peer:
    """A way from a mailbox into Odoo. ``at_middle`` tells it what to call about the mail in the middle."""

    name = ""
    package = ""  # Debian's
    user: str | None = USER

    def __init__(self, stage: Stage, login: str) -> None:
        self.stage, self.login = stage, login
        self.folder = stage.folder / login
        self.folder.mkdir()
        self.process: subprocess.Popen[bytes] | None = None
        self.configure()
        if self.user:
            for path in (self.folder, *self.folder.iterdir()):
                shutil.chown(path, self.user)

    def version(self) -> str:
        words = ["dpkg-query", "-Wf${Version}", self.package]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    def configure(self) -> None: ...

    def command(self) -> list[str | Path]:
        return []

    def environment(self) -> dict[str, str]:
        return ENVIRONMENT | {"HOME": str(self.folder)}

    def run(self) -> None:
        """Let it fetch once."""
        with open(self.folder / "output", "ab") as output:
            self.process = subprocess.Popen(
                self.command(),
                env=self.environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                **(account_of(self.user) if self.user else {}),
            )
            try:
                self.process.wait(RUN_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
                self.process.wait()

    def kill(self) -> None:
        assert self.process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def at_middle(self, subject: str, before: Callable[[], object], after: Callable[[], object]) -> None:
        """Call ``before`` when Odoo is to get this mail first, and ``after`` when it has processed it."""
        postman = self.stage.postman
        postman.before = once(subject, before)
        postman.after = once(subject, after)

    def close(self) -> None:
        self.stage.postman.before = self.stage.postman.after = nothing


def account_of(user: str) -> dict[str, Any]:
    """Return what a process of this user is started with."""
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def once(subject: str, call: Callable[[], object]) -> Callable[[str], None]:
    """Return what does the call when it is about this mail for the first time."""
    calls = [call]

    def about(other: str) -> None:
        if other == subject and calls:
            calls.pop()()

    return about


class OdoosOwn(Peer):
    """Odoo 19's incoming mail server; its scheduled action calls the same method."""

    name = "Odoo 19's incoming mail server"
    is_killed = False

    def version(self) -> str:
        answer: Any = xmlrpc.client.ServerProxy(f"{self.stage.odoo.url}/xmlrpc/2/common").version()
        return str(answer["server_version"])

    def configure(self) -> None:
        self.network = Network(self.stage.dovecot.ports["imap"])
        odoo = self.stage.odoo
        values = {"name": self.login, "server_type": "imap", "server": "127.0.0.1", "port": self.network.port}
        self.id = odoo.call("fetchmail.server", "create", values | {"user": self.login, "password": PASSWORD})
        odoo.call("fetchmail.server", "button_confirm_login", [self.id])

    def run(self) -> None:
        with contextlib.suppress(xmlrpc.client.Error, OSError, http.client.HTTPException):
            self.stage.odoo.call("fetchmail.server", "fetch_mail", [self.id])
        if self.is_killed:
            self.is_killed = False
            self.stage.odoo.start()

    def kill(self) -> None:
        self.is_killed = True
        self.stage.odoo.kill()
        raise ConnectionError  # nothing of what it says goes on

    def at_middle(self, subject: str, before: Callable[[], object], after: Callable[[], object]) -> None:
        """Know the mail by its place: what it says about it, it says in plain text."""
        calls = {b"FETCH %d (RFC822)" % MIDDLE: before, b"STORE %d +FLAGS" % MIDDLE: after}

        def watch(data: bytes) -> None:
            for words in [words for words in calls if words in data]:
                calls.pop(words)()

        self.network.watch = watch

    def close(self) -> None:
        self.stage.odoo.call("fetchmail.server", "unlink", [self.id])
        self.network.close()


class Getmail(Peer):
    name = "getmail6, mail is kept"
    package = "getmail6"
    options = "read_all = false\ndelete = false\n"

    def configure(self) -> None:
        words = script_words(self.stage)
        (self.folder / "getmailrc").write_text(f"""\
[retriever]
type = SimpleIMAPSSLRetriever
server = localhost
port = {self.stage.dovecot.ports["imaps"]}
username = {self.login}
password = {PASSWORD}
ca_certs = {self.stage.dovecot.ca_file}

[destination]
type = MDA_external
path = {words[0]}
arguments = {tuple(words[1:])}

[options]
{self.options}""")

    def command(self) -> list[str | Path]:
        return ["/usr/bin/getmail", "--getmaildir", self.folder, "--rcfile", "getmailrc"]


class GetmailDeletes(Getmail):
    name = "getmail6, mail is deleted"
    options = "delete = true\n"


class Fetchmail(Peer):
    name = "fetchmail, mail is kept"
    package = "fetchmail"
    options = "keep"

    def configure(self) -> None:
        path = self.folder / ".fetchmailrc"
        path.touch(mode=0o600)
        path.write_text(f"""\
poll localhost protocol imap port {self.stage.dovecot.ports["imaps"]}
  user "{self.login}" password "{PASSWORD}" ssl sslcertfile "{self.stage.dovecot.ca_file}"
  mda "{" ".join(script_words(self.stage))}" {self.options}
""")

    def command(self) -> list[str | Path]:
        return ["/usr/bin/fetchmail", "--verbose"]


class FetchmailDeletes(Fetchmail):
    name = "fetchmail, mail is deleted"
    options = ""


class Ours(Peer):
    name = "ours"
    user = None  # whoever owns the checkout

    def version(self) -> str:
        return __version__

    def configure(self) -> None:
        for name in ("journal", "held", "state"):
            (self.folder / name).mkdir()
        settings = {
            "URL": self.stage.postman.url,
            "DATABASE": self.stage.odoo.database,
            "LOGIN": 2,
            "PASSWORD": self.stage.odoo.password,
            "ALIAS_DOMAINS": "example.com",
            "JOURNAL": self.folder / "journal",
            "HOLD": self.folder / "held",
            "LOG": self.folder / "log",
            "MAILBOXES": self.folder / "mailboxes.toml",
        }
        lines = [f"MAIL_GATEWAY_{name}='{value}'\n" for name, value in settings.items()]
        (self.folder / "password").write_text(PASSWORD)
        (self.folder / "settings.env").write_text("".join(lines))
        (self.folder / "mailboxes.toml").write_text(f"""\
folder = "{self.folder}/state"

[[mailbox]]
name = "task"
login = "{self.login}"
server = "imaps://localhost:{self.stage.dovecot.ports["imaps"]}"
ca_file = "{self.stage.dovecot.ca_file}"
password_file = "{self.folder}/password"
refused = "move:Refused"
""")
        for name in ("password", "settings.env", "mailboxes.toml"):
            (self.folder / name).chmod(0o600)

    def command(self) -> list[str | Path]:
        return [sys.executable, "-m", "mailgate.mailboxes", "--env-file", self.folder / "settings.env", "once"]

    def environment(self) -> dict[str, str]:
        return super().environment() | {"PYTHONPATH": str(measure.ROOT)}


PEERS: tuple[type[Peer], ...] = (OdoosOwn, Getmail, GetmailDeletes, Fetchmail, FetchmailDeletes, Ours)


def script_words(stage: Stage) -> list[str]:
    """Return the command of Odoo's script, as Odoo's own form for such a server writes it."""
    port = urlsplit(stage.postman.url).port
    words = f"{stage.folder}/odoo-mailgate.py --host=127.0.0.1 --port={port} -u 2 -p {stage.odoo.password}"
    return [*words.split(), "-d", stage.odoo.database]
