"""The resident service as a process of its own, and a client that speaks LMTP byte by byte."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from support.gateway import ENVIRONMENT, SETTINGS, coverage_environment, write_settings

ROOT = Path(__file__).parents[2]
READY = "is ready"


class Client:
    """A connection to the service; ``say`` returns the answer, its lines joined."""

    def __init__(self, address: str | Path, greet: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        try:
            self.socket.connect(str(address))
        except OSError:
            self.socket.close()
            raise
        self.file = self.socket.makefile("rb")
        if greet:
            assert self.answer().startswith("220 ")
            assert self.say("LHLO localhost").startswith("250")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> str:
        """Return the next answer, empty when the service has closed the connection."""
        lines = []
        while line := self.file.readline():
            lines.append(line.decode().rstrip("\r\n"))
            if line[3:4] == b" ":
                break
        return "\n".join(lines)

    def say(self, command: str) -> str:
        self.send(f"{command}\r\n".encode("utf-8", "surrogateescape"))
        return self.answer()

    def dialogue(self, text: str) -> None:
        """Say the lines that stand behind ``c:`` and compare the answers with those behind ``s:``, line by line.

        Lines of the client that follow each other are sent at once (RFC 2920). Those of a message stand there as they
        are sent, dots and all. What stands in the place of a "..." at the end of an answer is not compared.
        """
        lines = [line.strip(" ").partition(":") for line in text.split("\n") if line.strip(" ")]
        for who, said in itertools.groupby(lines, key=lambda line: line[0]):
            words = [words.removeprefix(" ") for _, _, words in said]
            if who == "c":
                self.send("".join(f"{line}\r\n" for line in words).encode("utf-8", "surrogateescape"))
                continue
            assert who == "s", text
            answers = [self.file.readline().decode().rstrip("\r\n") for _ in words]
            shown = [
                word if word.endswith("...") and answer.startswith(word[:-3]) else answer
                for word, answer in zip(words, answers, strict=True)
            ]
            assert shown == words

    def begin(self, *recipients: str, sender: str = "ann@outside.test") -> list[str]:
        """Give the envelope and return the answers to RCPT."""
        assert self.say(f"MAIL FROM:<{sender}>").startswith("250 ")
        return [self.say(f"RCPT TO:<{recipient}>") for recipient in recipients]

    def data(self, message: bytes, replies: int = 1) -> list[str]:
        """Give the message, CRLF line ends, and return so many answers."""
        assert self.say("DATA").startswith("354 ")
        self.send(message.replace(b"\r\n.", b"\r\n..") + b".\r\n")
        return [self.answer() for _ in range(replies)]

    def deliver(self, message: bytes, *recipients: str, sender: str = "ann@outside.test") -> list[str]:
        """Give envelope and message to recipients who are all accepted, and return the answers."""
        answers = self.begin(*recipients, sender=sender)
        assert all(answer.startswith("250 ") for answer in answers), answers
        return self.data(message, len(recipients))

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Service:
    """mail-gateway-lmtp with its settings file, its log and its sockets in a folder of the test's own."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.log = folder / "service.log"
        self.env_file = folder / "service.env"
        self.address = folder / "lmtp.sock"
        self.root = ROOT  # of the program
        own = {"JOURNAL": folder / "service-journal", "LOG": self.log, "LMTP": self.address}
        self.settings = SETTINGS | own | settings
        if "://" not in str(self.settings["JOURNAL"]):
            os.makedirs(str(self.settings["JOURNAL"]), exist_ok=True)
        self.command = [sys.executable, "-m", "mailgate.service", "--env-file", str(self.env_file)]
        self.environ = ENVIRONMENT | coverage_environment()
        self.descriptors: tuple[int, ...] = ()  # open files for it to inherit
        self.process: subprocess.Popen[bytes] | None = None

    def runs_first(self, statement: str) -> None:
        """Have the process of the service run a statement first, such as one that shortens a time-out."""
        self.command[1:3] = ["-c", f"{statement}; from mailgate.service.__main__ import run; run()"]

    def write_settings(self, **settings: object) -> None:
        """Write the settings file; a setting that is None is left out."""
        write_settings(self.env_file, self.settings | settings)

    def start(self, **settings: object) -> None:
        """Start the service and wait until it says that it is ready."""
        self.write_settings(**settings)
        before = self.text().count(READY)
        self.process = subprocess.Popen(
            self.command, env=self.environ, cwd=self.root, stdin=subprocess.DEVNULL, pass_fds=self.descriptors
        )
        self.wait_for(READY, before + 1)

    def text(self) -> str:
        """Return the log."""
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, text: str, count: int = 1) -> None:
        """Wait until the log has a text so many times."""
        until = time.monotonic() + 60
        while self.text().count(text) < count:
            assert self.process is not None
            assert self.process.poll() is None, "the service has ended"
            assert time.monotonic() < until, f"no {text!r} in {self.text()}"
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it with a signal and return its exit status."""
        self.send_signal(number)
        assert self.process is not None
        return self.process.wait(timeout=120)

    def send_signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def client(self, greet: bool = True) -> Client:
        return Client(self.address, greet)

    @property
    def open_files(self) -> set[int]:
        """The descriptors that it has."""
        assert self.process is not None
        return {int(name) for name in os.listdir(f"/proc/{self.process.pid}/fd")}

    @property
    def memory(self) -> float:
        """The resident memory in MiB."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))


@contextlib.contextmanager
def running(service: Service, **settings: object) -> Iterator[Service]:
    """Run the service for a while; at its end it must stop as it is told."""
    service.start(**settings)
    try:
        yield service
        assert service.stop() == 0
    finally:
        assert service.process is not None
        service.process.kill()
        service.process.wait()
        assert "s3cret" not in service.text()
