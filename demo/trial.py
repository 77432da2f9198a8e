"""A database, its pages, the gateway's service and a mail server behind which customers answer: ``make try``.

All of it is on this machine alone, in a folder that is gone when Ctrl-C ends it, or the terminal is closed.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from customers import Customers, Mail, written_before
from run import ROOT, write_settings

DOMAIN = "mail.company-name.com"  # that of mail_database/example.json
PASSWORD = "try"


class FreePort(Controller):
    """A controller on a port that the kernel chooses."""

    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]  # type: ignore[union-attr]  # it listens by now
        super()._trigger_server()


def main() -> int:
    """Run all of it until Ctrl-C, SIGTERM, or the end of the terminal."""
    signals, write = os.pipe()  # it has something to read when a signal has come, to whichever thread
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        environ = {"PATH": "/usr/bin:/bin", "MAIL_DATABASE_STORE": f"sqlite:///{folder}/mail.db"}
        environ["MAIL_DATABASE_PASSWORD"] = PASSWORD
        env_file, lmtp = Path(folder, "mail-gateway.env"), f"{folder}/lmtp.sock"
        gateway = f"{sys.executable} {ROOT}/mail_gateway.py --env-file {env_file} --service {lmtp}"
        outbox = FreePort(Customers(lambda mail: deliver(gateway, mail)), hostname="127.0.0.1", port=0)
        outbox.start()
        running.callback(outbox.stop)
        database = [sys.executable, "-m", "mail_database"]
        load = [*database, "load", "mail_database/example.json"]
        subprocess.run(load, cwd=ROOT, env=environ, check=True, start_new_session=True)
        serve = [*database, "serve", "--port", "0", "--smtp", f"127.0.0.1:{outbox.port}", "--gateway", gateway]
        server = running.enter_context(process(serve, environ, stdout=subprocess.PIPE, text=True))
        assert server.stdout
        url, link = (server.stdout.readline().split()[-1] for _ in range(2))
        write_settings(env_file, URL=url, PASSWORD=PASSWORD, ALIAS_DOMAINS=DOMAIN, LMTP=lmtp, LOG=f"{folder}/log")
        service = [sys.executable, "-m", "mailgate.service", "--env-file", str(env_file)]
        running.enter_context(process(service, {"PATH": "/usr/bin:/bin"}))
        for mail in written_before():
            deliver(gateway, mail).check_returncode()
        print(f"Open {link}\n(later {url}, login admin, password {PASSWORD}). Ctrl-C ends it.", flush=True)
        os.read(signals, 1)
    return 0


def deliver(gateway: str, mail: Mail) -> "subprocess.CompletedProcess[bytes]":
    """Give a mail to the gateway, as a mail server would."""
    command = [*gateway.split(), "--sender", mail.sender, "--", mail.recipient]
    return subprocess.run(
        command, input=mail.content, env={}, stdout=subprocess.DEVNULL, check=False, start_new_session=True
    )


@contextlib.contextmanager
def process(command: list[str], environ: dict[str, str], **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """Run a program for a while; Ctrl-C is for us alone."""
    with subprocess.Popen(command, cwd=ROOT, env=environ, start_new_session=True, **options) as running:
        try:
            yield running
        finally:
            running.terminate()


if __name__ == "__main__":
    sys.exit(main())
