"""What the benchmarks share: the sink, the program, the service and its client, the peers, and what a run costs."""

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
# Where the tests with a real Odoo keep its package, which has the peer in it.
CACHE = Path(os.environ.get("ODOO19_CACHE") or f"/var/tmp/mail-gateway-odoo19-{os.getuid()}")
# As an MTA has it, and where the packages are.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C", "PYTHONPATH": sysconfig.get_path("purelib")}
SMALL, LARGE = 4 * 2**10, 50 * 2**20  # bytes of a message
Command = list[str | Path]


class Missing(Exception):
    """Raised where a peer is not on this machine; the text says what installs it."""


class Cost(NamedTuple):
    """What one process took: CPU and peak memory of its own, as the kernel accounts for it."""

    cpu: float  # seconds, user and system
    peak: float  # MiB


def run(command: Command, message: Path) -> Cost:
    """Run a command with a message on standard input, as an MTA would, and return what it cost."""
    with message.open("rb") as stdin:
        process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.DEVNULL, env=ENVIRONMENT, cwd="/")
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


# --- servers ---


@contextlib.contextmanager
def server(name: str, *arguments: object) -> Iterator[int]:
    """Run a server of this folder, which prints its port, and return that."""
    command: Command = [sys.executable, ROOT / "benchmarks" / name, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline()) if process.stdout else 0
        finally:
            process.terminate()


class Service(NamedTuple):
    """The resident service: its process and where it listens."""

    process_id: int
    address: str

    def cpu(self) -> float:
        """Return the seconds that it has used."""
        fields = Path(f"/proc/{self.process_id}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """Return its resident memory in MiB."""
        pages = int(Path(f"/proc/{self.process_id}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Stage(NamedTuple):
    """A sink, and a folder with a settings file that delivers to it, the log, the state and the service's socket."""

    folder: Path
    sink_port: int

    @property
    def env_file(self) -> Path:
        return self.folder / "settings.env"

    @property
    def python(self) -> Path:
        """The interpreter of all that is started for one message: ours, without what packages put into each start."""
        return self.folder / "python/bin/python"

    @contextlib.contextmanager
    def service(self) -> Iterator[Service]:
        """Run the service with these settings."""
        log = self.folder / "log"
        command: Command = [sys.executable, "-m", "mailgate.service", "--env-file", self.env_file]
        with subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT) as process:
            try:
                while not (log.exists() and "is ready" in log.read_text()):
                    if process.poll() is not None:
                        raise SystemExit("the service does not start")
                    time.sleep(0.02)
                yield Service(process.pid, str(self.folder / "lmtp.sock"))
            finally:
                process.terminate()

    # the command lines of what takes one message on standard input

    def pipe(self, *options: str) -> Command:
        envelope = ["--sender", "ann@outside.test", "--", "info@example.com"]
        return [self.python, ROOT / "mail_gateway.py", "--env-file", self.env_file, *options, *envelope]

    def odoo_script(self) -> Command:
        """Raises Missing."""
        return [
            self.python,
            odoo_script(),
            "-d",
            "mydatabase",
            "-u",
            "2",
            "-p",
            "secret",
            "--port",
            str(self.sink_port),
        ]

    def rt_mailgate(self) -> Command:
        """Raises Missing."""
        program = _program("rt-mailgate", "rt5-clients")
        return [program, "--action", "correspond", "--queue", "General", "--url", f"http://127.0.0.1:{self.sink_port}"]

    def curl(self) -> Command:
        """Raises Missing."""
        return [_program("curl", "curl"), "-fsS", "--data-binary", "@-", f"http://127.0.0.1:{self.sink_port}/"]


def odoo_script() -> Path:
    """Return the script of Odoo's that the pipe takes the place of. Raises Missing."""
    found = sorted(CACHE.glob("code-*/odoo/addons/mail/static/scripts/odoo-mailgate.py"))
    if not found:
        raise Missing("Odoo's package is not here, make test-odoo fetches it")
    return found[-1]


def _program(name: str, package: str) -> str:
    found = shutil.which(name)
    if not found:
        raise Missing(f"needs apt-get install {package}")
    return found


@contextlib.contextmanager
def stage(delay: float = 0.0, **more: object) -> Iterator[Stage]:
    """Set the stage; each answer of the sink takes ``delay`` seconds, and ``more`` are settings."""
    with tempfile.TemporaryDirectory() as name, server("sink.py", delay) as sink_port:
        found = Stage(Path(name), sink_port)
        venv.create(found.folder / "python", symlinks=True)
        (found.folder / "journal").mkdir()
        values = {
            "URL": f"http://127.0.0.1:{sink_port}",
            "DATABASE": "mydatabase",
            "LOGIN": 2,
            "PASSWORD": "secret",
            "ALIAS_DOMAINS": "example.com",
            "JOURNAL": found.folder / "journal",
            "LOG": found.folder / "log",
            "LMTP": found.folder / "lmtp.sock",
        }
        found.env_file.touch(0o600)
        found.env_file.write_text("".join(f"MAIL_GATEWAY_{key}={value}\n" for key, value in {**values, **more}.items()))
        yield found


# --- a client ---


class Client:
    """A connection to the service, kept as Postfix keeps one."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(address)
        self.answers = self.socket.makefile("rb")
        self._expect(b"220 ")
        self.socket.sendall(b"LHLO localhost\r\n")
        while (line := self.answers.readline()).startswith(b"250-"):
            pass
        assert line.startswith(b"250 "), line

    def deliver(self, message: bytes) -> None:
        """Hand over a message, which has CRLF line ends and no dots to be doubled."""
        self.socket.sendall(b"MAIL FROM:<ann@outside.test> BODY=8BITMIME\r\nRCPT TO:<info@example.com>\r\nDATA\r\n")
        self._expect(b"250 ", b"250 ", b"354 ")
        self.socket.sendall(message)
        self.socket.sendall(b".\r\n")
        self._expect(b"250 2.0.0 delivered")

    def _expect(self, *codes: bytes) -> None:
        for code in codes:
            line = self.answers.readline()
            assert line.startswith(code), line


def deliver(address: str, count: int, connections: int = 1) -> float:
    """Hand over so many small messages on so many connections at a time and return how many went in a second."""
    numbers = iter(range(count))

    def work(client: Client) -> None:
        for _ in numbers:
            client.deliver(message(SMALL))

    threads = [threading.Thread(target=work, args=[Client(address)]) for _ in range(connections)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count / (time.perf_counter() - started)


_numbers = itertools.count(1)
_LINE = b"QUJD" * 19 + b"\r\n"
_HEADER = (
    b"From: Ann <ann@outside.test>\r\nTo: info@example.com\r\nSubject: benchmark\r\n"
    b"Message-ID: <%d.%d@outside.test>\r\n"
    b"MIME-Version: 1.0\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n"
)


def message(size: int) -> bytes:
    """Return a message of about this many bytes that nobody has seen: an attachment in base64, CRLF line ends."""
    header = _HEADER % (os.getpid(), next(_numbers))
    return header + _LINE * ((size - len(header)) // len(_LINE))


def message_file(folder: Path, size: int) -> Path:
    """Write a message as an MTA gives it to a pipe, LF line ends."""
    path = folder / f"{size}.eml"
    header = _HEADER.replace(b"\r", b"") % (os.getpid(), next(_numbers))
    with path.open("wb") as file:  # line by line: our own peak would count as that of the processes we start
        file.write(header)
        file.writelines(b"QUJD" * 19 + b"\n" for _ in range((size - len(header)) // 77))
    return path
