"""Private mail servers: each in a folder of its own, on loopback, with the configuration exactly as it is shipped.

The gateway is installed beside them as docs/install.md says, with the packages of the system's Python. What is replaced
in the shipped files is only what names this machine: the program's path (and with it the settings file), the user, the
service's socket, and the time limits, so that a trial of them needs no quarter of an hour.
"""

import contextlib
import itertools
import json
import os
import pwd
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from support.smtp_sink import Sink

ROOT = Path(__file__).parents[2]
USER = "nobody"  # stands for the user mail-gateway: it must be there on every machine
PYTHON = "/usr/bin/python3"
PACKAGES = ("requests", "tenacity", "dotenv", "aiosmtpd", "rich")
EXIM = next((path for path in ("/opt/exim/usr/sbin/exim4", "/usr/sbin/exim4") if os.path.exists(path)), "")
EX_CONFIG = 78  # sysexits.h: how the service ends when its settings are wrong
TIME_LIMIT = 10  # seconds, for 900
DOMAINS = ("example.com", "second.example")  # all of their mail is the database's
REDIRECTIONS = {
    f"{local_part}@company.test": f"{local_part}@example.com" for local_part in ("info", "jobs", "catchall", "bounce")
}

# An address that the database knows as it is. Postfix tells the gateway what it was before the redirection, Exim can't.
OWN = "support@company.test"


# How mail gets to the gateway: by the program, by LMTP to the service, or by the program that hands it to the service.
PIPE, LMTP, HANDOVER = "pipe", "lmtp", "pipe with service"
UNASKED = "pipe as shipped, with service"  # which it finds by itself
LIST = "list"  # of the addresses that are accepted


class Impossible(Exception):
    """Raised where no such server can be started; the text says why."""


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Return as soon as the condition holds; fail when it never does."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds} s for {what}"
        time.sleep(0.05)


BLOCK_PORTS = 1_000  # that a process of tests has for itself
BLOCKS = range(20_000, 32_000, BLOCK_PORTS)  # below those that the kernel gives away


def _own_block() -> int:
    """Return the first port of a block that no other process of tests has, for as long as this one runs."""
    holder = socket.socket(socket.AF_UNIX)
    for first in BLOCKS:
        with contextlib.suppress(OSError):
            holder.bind(f"\0mail-gateway-test-ports-{first}")  # a name that is free again when the process ends
            holder.detach()
            return first
    raise AssertionError("too many tests run at the same time")


PORTS = itertools.cycle(range(first := _own_block(), first + BLOCK_PORTS))


def free_port() -> int:
    """Return a port that nobody has, and that nobody is given before a test's server has it."""
    for port in PORTS:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError  # the ports go round


def run(*command: object, **options: Any) -> str:
    """Run a command that must succeed and return what it prints."""
    words = [str(word) for word in command]
    finished = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, **options)
    assert finished.returncode == 0, f"{words}: {finished.stdout}{finished.stderr}"
    return finished.stdout


class Service:
    """mail-gateway-lmtp as systemd runs it: as a user of its own, and it says when it is ready."""

    def __init__(self, folder: Path, program: Path, env_file: Path) -> None:
        self.program, self.env_file = program, env_file
        self.process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notices.settimeout(0.05)
        self._address = folder / "notify"
        self._notices.bind(str(self._address))
        self._address.chmod(0o666)

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, script: str = 'exec "$@"') -> None:
        """Start it by a script, unless it runs, and return when it is ready, or does not like its settings."""
        with self._lock:
            if self.runs:
                return
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", script, "sh", PYTHON, "-m", "mailgate.service", "--env-file", self.env_file],
                env={"PATH": "/usr/bin:/bin", "LANG": "C", "NOTIFY_SOCKET": str(self._address)},
                cwd=self.program.parent,
                stdin=subprocess.DEVNULL,
                user=USER,
                group=pwd.getpwnam(USER).pw_gid,
                extra_groups=[],
            )
            self._wait_until_ready()

    def reload(self) -> None:
        """Have it read its settings, and return when it has."""
        self.send(signal.SIGHUP)
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        while self.runs:
            with contextlib.suppress(TimeoutError):
                if self._notices.recv(4096) == b"READY=1":
                    return
        assert self.process
        assert self.process.returncode == EX_CONFIG

    def send(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal that ends it, and return when it has ended."""
        if self.process:
            self.send(number)
            self.process.wait(timeout=120)

    def close(self) -> None:
        self.stop(signal.SIGKILL)
        self._notices.close()


class Mta:
    """A mail server, its gateway and its settings; bounces go to the SMTP server on ``sink_port``."""

    name = user = ""
    config: Path  # the folder, or the file, of its configuration

    def __init__(self, sink_port: int, way: str = PIPE, bare: bool = False, asks: str = "") -> None:
        """Start it; ``bare`` leaves out what in our configuration keeps the mail of a program that fails.

        ``asks`` is how it asks for an address in the SMTP dialogue, if it does: the service, by socketmap; or it has
        Postfix verify it; or LIST, in what ``recipients`` names.
        """
        self.way, self.bare, self.asks = way, bare, asks
        if os.geteuid():
            raise Impossible("a mail server of its own needs root")
        if subprocess.run([PYTHON, "-c", f"import {', '.join(PACKAGES)}"], capture_output=True, check=False).returncode:
            raise Impossible(f"needs apt-get install {' '.join(f'python3-{name}' for name in PACKAGES)}")
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir="/var/tmp"))
        self.folder.chmod(0o755)
        self.port, self.sink_port = free_port(), sink_port
        self.program = self.folder / "gateway" / "mail_gateway.py"
        self.env_file = self.folder / "settings.env"
        self.gateway_log = self.folder / "var" / "log"
        self.recipients: dict[str, Path] = {}  # the lists of addresses, by the format that makes them
        self.socket, self.socketmap = self.folder / "run" / "lmtp.sock", self.folder / "run" / "socketmap.sock"
        self.command = f"{self.program} --env-file {self.env_file}"
        self.alias = f"|{self.command}"  # for sales@company.test, in an aliases file
        if way == HANDOVER:
            self.command += f" --service {self.socket}"
        self.service = None if way == PIPE else Service(self.folder, self.program, self.env_file)
        try:
            self.install()
            self.start()
        except BaseException:
            self.remove()
            raise

    def install(self) -> None:
        """Put the gateway and its folders where the user can enter them."""
        shutil.copytree(ROOT / "mailgate", self.program.parent / "mailgate")
        self.restore_program()
        for name, mode in {"run": 0o755, "var": 0o700, "var/journal": 0o700, "var/held": 0o700}.items():
            folder = self.folder / name
            folder.mkdir(mode=mode)
            shutil.chown(folder, USER)

    def restore_program(self) -> None:
        shutil.copy(ROOT / "mail_gateway.py", self.program)

    @property
    def running_service(self) -> Service:
        """The service, where this way in has one."""
        assert self.service
        return self.service

    def replace_program(self, script: str) -> None:
        """Put a program in the gateway's place."""
        self.program.write_text(script)

    def settings(self, **settings: object) -> None:
        """Write the settings file, and have the service know it."""
        values = {
            "DATABASE": "mydatabase",
            "LOGIN": 2,
            "PASSWORD": "s3cret",
            "ALIAS_DOMAINS": ",".join(DOMAINS),
            "JOURNAL": self.folder / "var" / "journal",
            "HOLD": self.folder / "var" / "held",
            "LOG": self.gateway_log,
            "LMTP": self.socket,
            "SOCKETMAP": self.socketmap,
            "SOCKET_MODE": "0666",
            "CLIENTS": f"{self.user},{USER},root",  # root is what stands between in a trial
        } | settings
        self.env_file.unlink(missing_ok=True)
        self.env_file.touch(mode=0o640)
        os.chown(self.env_file, 0, pwd.getpwnam(USER).pw_gid)
        self.env_file.write_text("".join(f"MAIL_GATEWAY_{name}='{value}'\n" for name, value in values.items()))
        if self.service and self.service.runs:
            self.service.reload()
        self.serve()

    def serve(self) -> None:
        """Have the service run, where this way in has one, as systemd starts it again after an accident."""
        if self.service:
            self.service.start()

    def as_shipped(self, text: str) -> str:
        """Return the shipped configuration with what names this machine."""
        replaced = text.replace("/opt/mail-gateway/mail_gateway.py", self.command)
        assert replaced != text
        return replaced

    def send(self, sender: str, recipients: tuple[str, ...], message: bytes) -> None:
        """Hand over a message by SMTP, which takes it for all recipients."""
        with smtplib.SMTP("127.0.0.1", self.port, timeout=60) as client:
            assert not client.sendmail(sender, recipients, message, ["BODY=8BITMIME"])

    def held(self) -> list[bytes]:
        """Return the messages in the hold folder."""
        return [path.read_bytes() for path in self.folder.glob("var/held/new/*")]

    def kill_gateways(self, number: int) -> int:
        """Send a signal to all runs of the gateway, or to the service, and return how many there were."""
        if self.service:
            self.service.stop(number) if number == signal.SIGKILL else self.service.send(number)
            return 1
        return self._kill(number, str(self.program))

    def _kill(self, number: int, program: str) -> int:
        """Send a signal to all processes that have an argument which begins so, and return how many there were."""
        killed = 0
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                arguments = path.read_bytes().decode(errors="replace").split("\0")
                if any(argument.startswith(program) for argument in arguments):
                    os.kill(int(path.parent.name), number)
                    killed += 1
        return killed

    def remove(self) -> None:
        if self.service:
            self.service.close()
        # a run that a test did not wait for outlives the mail server, and would write into the folder
        wait_until(lambda: not self._kill(signal.SIGKILL, f"{self.program.parent}/"), "what is left of the gateway")
        shutil.rmtree(self.folder)

    # what each kind does in its own way

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def flush(self) -> None:
        """Try everything that is in the queue."""

    def queue(self) -> list[str]:
        """Return the ids of what is in the queue."""
        return []

    def listing(self) -> str:
        """Return what the mail server shows of its queue, the recipients with it."""
        return ""

    def attempt(self) -> None:
        """Return when all that is in the queue has been tried and is to be tried later."""

    def clear(self) -> None:
        """Throw away what is in the queue."""

    @property
    def log_path(self) -> Path:
        """The file of its log."""
        return Path(os.devnull)

    def log(self) -> str:
        return self.log_path.read_text()


class Postfix(Mta):
    name = user = "postfix"

    def start(self) -> None:  # long, for a whole main.cf stands in it
        if not shutil.which("postfix"):
            raise Impossible("needs apt-get install postfix")
        self.config = self.folder / "conf"
        queue, data = self.folder / "queue", self.folder / "data"
        for folder in (self.config, queue, data):
            folder.mkdir()
        shutil.chown(data, "postfix")
        (self.config / "main.cf").write_text(f"""\
compatibility_level = 3.6
queue_directory = {queue}
data_directory = {data}
maillog_file = {self.folder}/mail.log
maillog_file_prefixes = {self.folder}
myhostname = {socket.gethostname()}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
mydestination = company.test
recipient_delimiter = +
local_recipient_maps =
alias_maps = hash:{self.config}/aliases
alias_database =
default_transport = smtp:[127.0.0.1]:{self.sink_port}
smtpd_peername_lookup = no
smtpd_client_connection_rate_limit = 0
message_size_limit = 104857600
mailbox_size_limit = 0
lmtp_lhlo_timeout = {TIME_LIMIT}s
address_verify_poll_delay = 1s
enable_long_queue_ids = yes
""")
        services, found = re.subn(
            r"(?m)^smtp +inet", f"{self.port} inet", Path("/usr/share/postfix/master.cf.dist").read_text()
        )
        assert found
        (self.config / "master.cf").write_text(services)
        for name in ("main.cf", "master.cf"):  # postconf(1) waits for two seconds over a file that was just written
            os.utime(self.config / name, (0, 0))
        run(ROOT / "postfix" / "configure", "-c", self.config)
        self.edit("master.cf", self.as_shipped)
        self.edit("master.cf", lambda text: text.replace("user=mail-gateway", f"user={USER}"))
        self.edit("master.cf", lambda text: text.replace("=900s", f"={TIME_LIMIT}s"))
        if self.bare:
            run("postconf", "-c", self.config, "-P", "mail-gateway/unix/pipe_delivery_status_filter=")
        shipped, redirected = (self.config / "mail-gateway/transport").read_text(), REDIRECTIONS
        if self.way == LMTP:  # which has no place for what an address was before its redirection
            (target,) = re.findall(r"mail-gateway-lmtp:unix:\S+", shipped)
            target = target.replace("/run/mail-gateway/lmtp.sock", str(self.socket))
            names, redirected = [*DOMAINS, OWN], redirected | {OWN: OWN}
        else:
            (target,) = re.findall(r"mail-gateway:\S+", shipped)
            names, redirected = [*DOMAINS], redirected | {OWN: "support@example.com"}
        transport = "".join(f"{name} {target}\n" for name in names)
        redirections = "".join(f"{address} {target}\n" for address, target in redirected.items())
        if self.asks:
            # as the README has it typed
            lines = re.findall(r"postconf -e '((\w+) = .*)'", (ROOT / "postfix/README.md").read_text())
            verified = ["smtpd_recipient_restrictions", "unverified_recipient_reject_code"]
            typed = {"verify": verified}.get(self.asks, ["relay_recipient_maps"])
            chosen = [line for line, name in lines if name in typed and ("texthash" in line) == (self.asks == LIST)]
            assert len(chosen) == len(typed)
            tables = self.config / "mail-gateway"
            self.recipients = {"postfix": tables / "recipients", "postfix-regexp": tables / "recipients.regexp"}
            for line in chosen:
                line = line.replace("/run/mail-gateway/socketmap.sock", str(self.socketmap))
                line = line.replace("/etc/postfix/mail-gateway", str(tables))
                run("postconf", "-c", self.config, "-e", line.replace("mail.company-name.com", DOMAINS[0]))
        self.edit("mail-gateway/transport", lambda text: text + transport)
        self.edit("mail-gateway/virtual", lambda text: text + redirections)
        (self.config / "aliases").write_text(f'sales: "{self.alias}"\n')
        run("postalias", "-c", self.config, f"hash:{self.config}/aliases")
        run("postfix", "-c", self.config, "start")

    def edit(self, name: str, change: Callable[[str], str]) -> None:
        path = self.config / name
        before = path.read_text()
        path.write_text(change(before))
        assert path.read_text() != before, name

    def stop(self) -> None:
        run("postfix", "-c", self.config, "stop")

    def settings(self, **settings: object) -> None:
        super().settings(**settings)
        self.touch()

    def touch(self) -> None:
        """Let main.cf have changed this second: Postfix 3.8 and later then don't know $config_directory."""
        os.utime(self.config / "main.cf")

    def reload(self) -> None:
        """Have all processes start anew, each with the next message that it is for."""
        run("postfix", "-c", self.config, "reload")

    def flush(self) -> None:
        run("postqueue", "-c", self.config, "-f")

    def _queue(self) -> list[dict]:
        return [json.loads(line) for line in run("postqueue", "-c", self.config, "-j").splitlines()]

    def queue(self) -> list[str]:
        return [message["queue_id"] for message in self._queue()]

    def listing(self) -> str:
        return run("postqueue", "-c", self.config, "-p")

    def has_untried(self) -> bool:
        """Tell whether something is in the queue that has not been tried, or is being tried now."""
        return any(message["queue_name"] != "deferred" for message in self._queue())

    def queued_senders(self) -> set[str]:
        return {message["sender"] for message in self._queue()}

    def attempt(self) -> None:
        wait_until(lambda: not self.has_untried(), "the first attempts")

    @property
    def log_path(self) -> Path:
        return self.folder / "mail.log"

    def clear(self) -> None:
        run("postsuper", "-c", self.config, "-d", "ALL")


class Exim(Mta):
    """It keeps what comes until a test says go: its own deliveries would need to be told to trust the configuration."""

    name, user = "exim", "Debian-exim"

    def start(self) -> None:  # long, for a whole configuration stands in it
        if not EXIM:
            raise Impossible("needs apt-get download exim4-daemon-light; dpkg -x exim4-daemon-light_*.deb /opt/exim")
        shutil.copytree(ROOT / "exim", self.folder / "exim")
        transport = self.folder / "exim/conf.d/transport/30_mail-gateway"
        text = transport.read_text()
        assert "timeout = 15m\n" in text
        text = text.replace("timeout = 15m\n", f"timeout = {TIME_LIMIT}s\n")
        transport.write_text(re.sub(r"\n  temp_errors = [\d:\\\s]*", "\n", text) if self.bare else text)
        tables = self.folder / "exim/mail-gateway"
        self.recipients = {"exim": tables / "recipients"}
        with open(tables / "domains", "a") as file:
            file.writelines(f"{domain}\n" for domain in DOMAINS)
        with open(tables / "redirections", "a") as file:
            file.writelines(f"{address} {target}\n" for address, target in (REDIRECTIONS | {OWN: OWN}).items())
        for name in ("spool", "logs"):
            (self.folder / name).mkdir()
            shutil.chown(self.folder / name, "Debian-exim", "Debian-exim")
        (self.folder / "aliases").write_text(f'sales: "{self.alias}"\n')
        self.config = self.folder / "exim.conf"
        self.config.write_text(f"""\
exim_user = Debian-exim
exim_group = Debian-exim
exim_path = {EXIM}
spool_directory = {self.folder}/spool
log_file_path = {self.folder}/logs/%slog
pid_file_path = {self.folder}/spool/exim.pid
primary_hostname = mx.test.invalid
local_interfaces = 127.0.0.1
daemon_smtp_ports = {self.port}
disable_ipv6 = true
host_lookup =
rfc1413_query_timeout = 0s
tls_advertise_hosts =
message_size_limit = 100M
never_users = root
keep_environment =
queue_only = true
ignore_bounce_errors_after = 0s
acl_smtp_rcpt = acl_rcpt
MAIL_GATEWAY_PROGRAM = {self.command}
MAIL_GATEWAY_TRANSPORT = {"mail_gateway_lmtp" if self.way == LMTP else "mail_gateway"}
MAIL_GATEWAY_LMTP = {self.socket}
{f"MAIL_GATEWAY_SOCKETMAP = {self.socketmap}" if self.asks == "socketmap" else ""}
{f"MAIL_GATEWAY_RECIPIENTS = {tables}/recipients" if self.asks == LIST else ""}
MAIL_GATEWAY_USER = {USER}
MAIL_GATEWAY_FOLDER = {tables}
MAIL_GATEWAY_DELIMITER = +
.include {self.folder}/exim/conf.d/main/10_mail-gateway
domainlist local_domains = company.test
domainlist relay_to_domains = +mail_gateway_domains
begin acl
acl_rcpt:
  require domains = +local_domains : +relay_to_domains
  require verify = recipient
  accept
begin routers
.include {self.folder}/exim/conf.d/router/120_mail-gateway
aliases:
  driver = redirect
  domains = company.test
  data = ${{lookup{{$local_part}}lsearch{{{self.folder}/aliases}}}}
  pipe_transport = mail_gateway
sink:
  driver = manualroute
  domains = ! +local_domains
  transport = sink
  route_list = * 127.0.0.1
  self = send
nobody_else:
  driver = redirect
  allow_fail
  data = :fail: no such address
begin transports
.include {self.folder}/exim/conf.d/transport/30_mail-gateway
sink:
  driver = smtp
  port = {self.sink_port}
  allow_localhost
begin retry
.include {self.folder}/exim/conf.d/retry/10_mail-gateway
*  *  F,2d,1h
""")
        self.tried: set[str] = set()
        self.daemon = subprocess.Popen([EXIM, "-C", self.config, "-bdf"])
        wait_until(self._listens, "Exim to listen")

    def _listens(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        self.daemon.terminate()
        self.daemon.wait()

    def flush(self) -> None:
        run(EXIM, "-C", self.config, "-qff")

    def queue(self) -> list[str]:
        return re.findall(r"(?m)^ *\S+ +\S+ (\S+-\S+-\S+) <", self.listing())

    def listing(self) -> str:
        return run(EXIM, "-C", self.config, "-bpr")

    def attempt(self) -> None:
        while untried := [message for message in self.queue() if message not in self.tried]:
            self.tried.update(untried)
            while untried:  # as many at once as the shipped configuration lets run
                now, untried = untried[:2], untried[2:]
                for delivery in [subprocess.Popen([EXIM, "-C", self.config, "-M", message]) for message in now]:
                    delivery.wait()

    @property
    def log_path(self) -> Path:
        return self.folder / "logs" / "mainlog"

    def clear(self) -> None:
        if queue := self.queue():
            run(EXIM, "-C", self.config, "-Mrm", *queue)


Kind = TypeVar("Kind", bound=Mta)


@contextlib.contextmanager
def started(kind: type[Kind], sink: Sink, way: str = PIPE, bare: bool = False, asks: str = "") -> Iterator[Kind]:
    """Run a mail server for a while; what is not its own, and its bounces, go to the sink."""
    try:
        server = kind(sink.address[1], way, bare, asks)
    except Impossible as reason:
        pytest.skip(str(reason))
    try:
        yield server
    finally:
        server.stop()
        server.remove()
