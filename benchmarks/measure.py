"""What the benchmarks share: the sink, the program's command line, the peer, and the cost of one run."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
# Where the tests with a real Odoo keep its package, which has the peer in it.
CACHE = Path(os.environ.get("ODOO19_CACHE") or f"/var/tmp/mail-gateway-odoo19-{os.getuid()}")
PEER = "odoo/addons/mail/static/scripts/odoo-mailgate.py"


class Cost(NamedTuple):
    """What one process took: CPU and peak memory of its own, as the kernel accounts for it."""

    cpu: float  # seconds, user and system
    peak: float  # MiB


def run(command: list[str | Path], message: Path) -> Cost:
    """Run a command with a message on standard input, as an MTA would, and return what it cost."""
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C"}
    with message.open("rb") as stdin:
        process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.DEVNULL, env=environment, cwd="/")
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


@contextlib.contextmanager
def sink() -> Iterator[int]:
    """Run the sink and return its port."""
    with subprocess.Popen([sys.executable, ROOT / "benchmarks/sink.py"], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline()) if process.stdout else 0
        finally:
            process.terminate()


@contextlib.contextmanager
def gateway(port: int) -> Iterator[list[str | Path]]:
    """Return the command line that delivers to the sink; its log goes to a file."""
    with tempfile.TemporaryDirectory() as folder:
        env_file = Path(folder, "settings.env")
        env_file.touch(0o600)
        env_file.write_text(
            f"MAIL_GATEWAY_URL=http://127.0.0.1:{port}\n"
            "MAIL_GATEWAY_DATABASE=mydatabase\n"
            "MAIL_GATEWAY_LOGIN=2\n"
            "MAIL_GATEWAY_PASSWORD=secret\n"
            "MAIL_GATEWAY_ALIAS_DOMAINS=example.com\n"
            f"MAIL_GATEWAY_LOG={folder}/log\n"
        )
        program = [sys.executable, ROOT / "mail_gateway.py", "--env-file", env_file]
        yield [*program, "--sender", "ann@outside.test", "--", "info@example.com"]


def peer(port: int) -> list[str | Path] | None:
    """Return the command line of Odoo's own script, or None where its package can't be had."""
    found = sorted(CACHE.glob(f"code-*/{PEER}"))
    if not found:
        return None
    return [sys.executable, found[-1], "-d", "mydatabase", "-u", "2", "-p", "secret", "--port", str(port)]


def message(folder: str, size: int) -> Path:
    """Write a message of about this many bytes: text, and an attachment in base64."""
    path = Path(folder, f"{size}.eml")
    line = b"QUJD" * 19 + b"\n"
    header = (
        b"From: Ann <ann@outside.test>\nTo: info@example.com\nSubject: benchmark\nMessage-ID: <bench@outside.test>\n"
        b"MIME-Version: 1.0\nContent-Type: application/octet-stream\nContent-Transfer-Encoding: base64\n\n"
    )
    with path.open("wb") as file:  # line by line: our own peak would count as that of the processes we start
        file.write(header)
        file.writelines(line for _ in range((size - len(header)) // len(line)))
    return path
