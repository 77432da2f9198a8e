"""Private Dovecots: each in a folder of its own, on free ports of the loopback interface, with mailboxes in Maildirs.

Mail is served as root's Dovecot serves it for one user of the system: all mailboxes are nobody's. What a test wants to
know of a mailbox it reads from the files, so that no question of its own changes a flag.
"""

import contextlib
import imaplib
import itertools
import os
import pwd
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from support.mta import Impossible, free_port, run, wait_until

PROGRAM = "/usr/sbin/dovecot"
PROTOCOLS = ("imap", "imaps", "pop3", "pop3s")  # imap has STARTTLS, pop3 has STLS
PASSWORD = "s3cret"
USER = "nobody"  # whose files the mailboxes are
FLAGS = {"S": "\\Seen", "R": "\\Answered", "F": "\\Flagged", "T": "\\Deleted", "D": "\\Draft", "P": "$Forwarded"}

# What a mailbox's owner may do (RFC 4314): all except "w", to set flags and keywords. \Seen and \Deleted have "s", "t".
WITHOUT_KEYWORDS = "* owner lrstiekx\n"
WITHOUT_IDLE = "IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE LITERAL+ STARTTLS NAMESPACE UIDPLUS MOVE CONDSTORE"

CONFIGURATION = """\
protocols = imap pop3
listen = 127.0.0.1
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
auth_verbose = yes
auth_failure_delay = 0
auth_mechanisms = {mechanisms}
ssl = yes
ssl_cert = <{folder}/certificate.pem
ssl_key = <{folder}/key.pem
mail_uid = {user}
mail_gid = {group}
first_valid_uid = 1
first_valid_gid = 1
mail_home = {folder}/users/%u
mail_location = maildir:~/Maildir
mail_fsync = never
# a file has what is on the wire
mail_save_crlf = yes
mail_max_userip_connections = 1000
{capability}
mail_plugins = {plugins}
{passdb}
passdb {{
  driver = passwd-file
  args = scheme=PLAIN {folder}/passwords/%u
}}
userdb {{
  driver = static
  args = allow_all_users=yes
}}
plugin {{
  {settings}
}}
service imap-login {{
  # a process takes many connections, so that a test waits for none to start
  service_count = 0
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = {imaps}
    ssl = yes
  }}
}}
service pop3-login {{
  service_count = 0
  inet_listener pop3 {{
    port = {pop3}
  }}
  inet_listener pop3s {{
    port = {pop3s}
    ssl = yes
  }}
}}
service imap {{
  process_limit = 1024
}}
# or who was refused waits longer and longer, from the same address
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
protocol imap {{
  mail_plugins = {imap_plugins}
}}
"""

OAUTH = """\
introspection_mode = post
introspection_url = {url}
username_attribute = username
active_attribute = active
active_value = true
timeout_msecs = 2000
"""


class Message(NamedTuple):
    """A mail in a mailbox: its bytes as they are on the wire, its flags and keywords."""

    raw: bytes
    flags: frozenset[str]


class Dovecot:
    """The server. ``introspection`` is the URL where it asks whether an OAuth 2.0 token is good (RFC 7662).

    Without ``has_keywords`` its mailboxes keep none, and say so in PERMANENTFLAGS; without ``has_idle`` it has no IDLE.
    ``quota`` is how many bytes a user's mail may take.
    """

    def __init__(
        self, introspection: str = "", has_keywords: bool = True, has_idle: bool = True, quota: int = 0
    ) -> None:
        if os.geteuid():
            raise Impossible("a Dovecot of its own needs root")
        if not all(map(os.path.exists, (PROGRAM, "/usr/lib/dovecot/imap", "/usr/lib/dovecot/pop3"))):
            raise Impossible("needs apt-get install dovecot-imapd dovecot-pop3d")
        self.folder = Path(tempfile.mkdtemp(prefix="dovecot-", dir="/var/tmp"))  # a socket's path has to be short
        self.folder.chmod(0o755)
        self.ports: dict[str, int] = {}
        self.ca_file = self.folder / "certificate.pem"
        self._passwords = self.folder / "passwords"
        self._process: subprocess.Popen[bytes] | None = None
        self._changes = itertools.count(1)
        self._files = itertools.count(1)
        try:
            configuration = self._install(introspection, has_keywords, has_idle, quota)
            wait_until(lambda: self._starts_somewhere(configuration), "Dovecot to have ports of its own", 30)
        except BaseException:
            self.remove()
            raise

    def _install(self, introspection: str, has_keywords: bool, has_idle: bool, quota: int) -> str:
        """Put what it needs into its folder, and return its configuration without the ports."""
        _make_certificate(self.folder)
        (self.folder / "users").mkdir()
        shutil.chown(self.folder / "users", USER)
        self._passwords.mkdir()
        plugins, settings, passdb = [], [], ""
        if not has_keywords:
            (self.folder / "acl").write_text(WITHOUT_KEYWORDS)
            plugins.append("acl")
            settings.append(f"acl = vfile:{self.folder}/acl")
        if quota:
            plugins.append("quota")
            settings += ["quota = count:all", "quota_vsizes = yes", f"quota_rule = *:storage={quota}B"]
        if introspection:
            (self.folder / "oauth2.conf.ext").write_text(OAUTH.format(url=introspection))
            passdb = "passdb {\n  driver = oauth2\n  mechanisms = xoauth2 oauthbearer\n"
            passdb += f"  args = {self.folder}/oauth2.conf.ext\n}}"
        account = pwd.getpwnam(USER)
        return CONFIGURATION.format(
            folder=self.folder,
            user=account.pw_uid,
            group=account.pw_gid,
            mechanisms="plain login" + " xoauth2 oauthbearer" * bool(introspection),
            capability="" if has_idle else f"imap_capability = {WITHOUT_IDLE}",
            plugins=" ".join(plugins),
            imap_plugins="$mail_plugins" + " imap_quota" * bool(quota),
            passdb=passdb,
            settings="\n  ".join(settings),
            **{protocol: f"{{{protocol}}}" for protocol in PROTOCOLS},
        )

    # the process

    def start(self) -> None:
        """Start it, again after ``stop`` or ``kill``, on the same ports, and return when it takes connections."""
        assert self._starts(), "somebody else has one of its ports"

    def _starts_somewhere(self, configuration: str) -> bool:
        """Start it on free ports, and tell whether they were still free."""
        self.ports = {protocol: free_port() for protocol in PROTOCOLS}
        for protocol, port in self.ports.items():
            configuration = configuration.replace(f"{{{protocol}}}", str(port))
        (self.folder / "dovecot.conf").write_text(configuration)
        return self._starts()

    def _starts(self) -> bool:
        pid_file = self.folder / "run" / "master.pid"  # written when all of its ports are open
        pid_file.unlink(missing_ok=True)
        errors = self.folder / "errors"
        with open(errors, "w") as file:
            process = subprocess.Popen(
                [PROGRAM, "-F", "-c", str(self.folder / "dovecot.conf")],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stderr=file,
            )
        wait_until(lambda: pid_file.exists() or process.poll() is not None, "Dovecot to start", 30)
        if process.poll() is None:
            self._process = process
            return True
        assert "Address already in use" in errors.read_text(), errors.read_text()
        return False

    def stop(self) -> None:
        """End it as systemd does, with a signal to all of its processes: who is connected may be told by BYE."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it with all of its processes at once, as a crash of the machine would."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        if not self._process:
            return
        group = self._process.pid  # all of its processes are in it
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(group, number)
        self._process.wait(timeout=30)
        self._process = None
        wait_until(lambda: not _is_there(group), "Dovecot's processes to end", 30)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    # its users

    def url(self, protocol: str) -> str:
        return f"{protocol}://127.0.0.1:{self.ports[protocol]}"

    def add_user(self, login: str, password: str = PASSWORD) -> None:
        """Let a user in, by this password from now on."""
        path = self._passwords / login
        path.write_text(f"{login}:{password}\n")
        os.utime(path, (0, next(self._changes)))  # or it is not read again within the second of the last change
        wait_until(lambda: not self._answer(login, password), f"Dovecot to know {login}'s password", 10)

    def remove_user(self, login: str) -> None:
        """Let a user in no longer, whose mail stays."""
        path = self._passwords / login
        password = path.read_text().strip().partition(":")[2]
        path.unlink()
        wait_until(lambda: self._answer(login, password), f"Dovecot to forget {login}", 10)

    @contextlib.contextmanager
    def unavailable_passwords(self) -> Iterator[None]:
        """Have it answer each login with NO [UNAVAILABLE] for a while, as where its own directory is away."""

        def are_away() -> list[bool]:
            return ["UNAVAILABLE" in self._answer(path.name, "") for path in self._passwords.iterdir()]

        self._passwords.chmod(0)
        try:
            wait_until(lambda: all(are_away()), "Dovecot to miss the passwords", 10)
            yield
        finally:
            self._passwords.chmod(0o755)
            wait_until(lambda: not any(are_away()), "Dovecot to have the passwords again", 10)

    def _answer(self, login: str, password: str) -> str:
        """Return why a login is refused, or nothing."""
        try:
            self.client(login, password).logout()
        except imaplib.IMAP4.error as error:
            return str(error)
        return ""

    def client(self, login: str, password: str = PASSWORD) -> imaplib.IMAP4:
        """Return a connection on which this user has logged in."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        client = imaplib.IMAP4_SSL("localhost", self.ports["imaps"], ssl_context=context, timeout=60)
        try:
            client.login(login, password)
        except BaseException:
            client.shutdown()
            raise
        return client

    # their mail

    def append(
        self, login: str, *mails: bytes, folder: str = "INBOX", flags: str = "", when: float | None = None
    ) -> None:
        """Add mails by IMAP, as a mail server adds them; ``when`` is the time at which they arrived."""
        date = "" if when is None else imaplib.Time2Internaldate(when)
        with self.client(login) as client:
            if folder != "INBOX":
                client.create(folder)
            for raw in mails:
                answer, words = client.append(folder, f"({flags})" if flags else "", date, raw)
                assert answer == "OK", words

    def fill(self, login: str, mails: Iterable[bytes], folder: str = "INBOX", flags: str = "S") -> None:
        """Put mails into the Maildir itself, thousands in a second; ``flags`` are its letters."""
        current = self.maildir(login, folder) / "cur"
        assert current.is_dir(), "append() a mail or create the folder first"
        for raw in mails:
            path = (
                current / f"{int(time.time())}.Z{next(self._files):08}.filled:2,{flags}"
            )  # behind those of this second
            path.write_bytes(raw)
            shutil.chown(path, USER)

    def maildir(self, login: str, folder: str = "INBOX") -> Path:
        return self.folder / "users" / login / "Maildir" / ("" if folder == "INBOX" else f".{folder}")

    def messages(self, login: str, folder: str = "INBOX") -> list[Message]:
        """Return what is in a folder from its files, by UID, and then what no client has seen so far."""
        maildir = self.maildir(login, folder)
        names = {chr(ord("a") + int(number)): name for number, name in _rows(maildir / "dovecot-keywords")}
        uids = {name.rpartition(":")[2]: int(uid) for uid, name in _rows(maildir / "dovecot-uidlist")[1:]}
        found = []
        for path in [*maildir.glob("new/*"), *maildir.glob("cur/*")]:
            name, _, letters = path.name.partition(":2,")
            flags = frozenset((FLAGS | names)[letter] for letter in letters)
            found.append((uids.get(name, sys.maxsize), name, Message(path.read_bytes(), flags)))
        return [message for *_, message in sorted(found)]


def _rows(path: Path) -> list[list[str]]:
    """Return the first word of each line of a file, if it is there, and the rest of the line."""
    return [line.split(" ", 1) for line in path.read_text().splitlines()] if path.exists() else []


def _make_certificate(folder: Path) -> None:
    """Make a certificate for localhost that is its own authority."""
    run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-keyout", folder / "key.pem", "-out", folder / "certificate.pem",
    )  # fmt: skip


def _is_there(group: int) -> bool:
    """Tell whether a process of a group still runs; one that nobody has waited for does not."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _, found = path.read_text().rpartition(")")[2].split()[:3]
            if int(found) == group and state != "Z":
                return True
    return False


@contextlib.contextmanager
def dovecot(**options: object) -> Iterator[Dovecot]:
    """Run one for a while."""
    server = Dovecot(**options)  # type: ignore[arg-type]  # what a test says by name
    try:
        yield server
    finally:
        server.remove()
