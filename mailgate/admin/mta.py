"""The mail server's half: what its log says of a queue id, what waits in its queue, and what of that is for us."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from typing import Any, NamedTuple

from mailgate import journal
from mailgate.addresses import is_ours
from mailgate.admin.desk import Desk, Failed, as_caller
from mailgate.envelope import Recipient
from mailgate.outcome import Ended

LOGS = ("/var/log/mail.log", "/var/log/maillog", "/var/log/exim4/mainlog", "/var/log/exim/main.log")
MAX_LINES = 200  # of the mail server's log
SENDMAIL_FOLDERS = "/usr/sbin:/usr/lib:/usr/local/sbin"
SENDMAIL_SECONDS = 60.0
SECONDS = 20.0  # that a program of the mail server's may take
BEFORE_SECONDS = 6 * 86400.0  # that mail may have been in the queue


class Waiting(NamedTuple):
    """A message in the mail server's queue: since when (seconds since 1970), from and for whom, and why."""

    queue_id: str
    since: float
    sender: str
    recipients: list[str]
    reason: str


def log_lines(queue_ids: Sequence[str], first: float, path: str | None = None) -> list[str]:
    """Return the lines of the mail server's log with one of these queue ids: a file's, or journald's."""
    if not queue_ids:
        return []
    wanted = re.compile(
        rb"(?<![\w-])(" + b"|".join(re.escape(os.fsencode(name)) for name in queue_ids) + rb")(?![\w-])"
    )
    with as_caller():
        for name in [path] if path else LOGS:
            with contextlib.suppress(OSError), open(name, "rb") as file:
                found = [line for line in file if wanted.search(line)]
                if found or path:
                    return [os.fsdecode(line.rstrip(b"\n")) for line in found[-MAX_LINES:]]
        return [] if path else _journald(queue_ids, first)


def _journald(queue_ids: Sequence[str], first: float) -> list[str]:
    if not shutil.which("journalctl"):
        return []
    pattern = "|".join(map(re.escape, queue_ids))
    command = ["journalctl", "--quiet", "--no-pager", "--output=short-iso", f"--since=@{first - BEFORE_SECONDS:.0f}",
               "--facility=mail", f"--grep={pattern}"]  # fmt: skip
    return (_output(command) or "").splitlines()[-MAX_LINES:]


def add_config(parser: ArgumentParser) -> None:
    """Let a command be told of a mail server whose configuration is not in its usual place."""
    parser.add_argument("--mta-config", metavar="PATH", type=_path, help="Postfix's folder, or Exim's file")


def _path(text: str) -> str:
    if not os.path.exists(text):
        raise ArgumentTypeError(f"is not there: {text}")
    return text


def queue(config: str | None = None) -> list[Waiting] | None:
    """Return what waits in the queue of Postfix or Exim, oldest first; None where neither can be asked.

    ``config`` is Postfix's configuration folder or Exim's configuration file, where it is not the usual one.
    """
    with as_caller():
        for name, read in PROGRAMS.items():
            program = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
            if not program or (config and os.path.isdir(config) != (read is _postfix_queue)):
                continue
            found = read(program, config)
            if found is not None:
                return sorted(found, key=lambda each: each.since)
    return None


def queue_for_us(desk: Desk, config: str | None = None) -> list[Waiting] | None:
    """Return what waits there for us: by a recipient of ours, or by a queue id that the journal has.

    Exim's queue has the addresses of before a redirection. If the journal can't be read, all may be for us.
    """
    found = queue(config)
    if not found:
        return found
    ours = {
        each.queue_id
        for each in found
        if any(is_ours(desk.settings.addresses, Recipient(address)) for address in each.recipients)
    }
    if len(ours) < len(found):
        with contextlib.suppress(Ended):
            tried = {each["queue_id"] for each in journal.attempts(desk.settings, since=desk.now - BEFORE_SECONDS)}
            return [each for each in found if each.queue_id in ours | tried]
    return found


def _postfix_queue(program: str, config: str | None) -> list[Waiting] | None:
    """Return Postfix's queue (postqueue(1), -j: a JSON object in each line), None where it can't be asked."""
    printed = _output([program, *(["-c", config] if config else []), "-j"])
    found = []
    for line in (printed or "").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row: dict[str, Any] = json.loads(line)
            recipients = row["recipients"]
            reason = next((each["delay_reason"] for each in recipients if each.get("delay_reason")), row["queue_name"])
            addresses = [each["address"] for each in recipients]
            found.append(Waiting(row["queue_id"], float(row["arrival_time"]), row["sender"], addresses, reason))
    return None if printed is None else found


# exim -bpr: "25m  2.9K 0t5C6f-0000c8-00 <alice@outside.test>", then a line for each recipient; D is delivered.
_EXIM_LINE = re.compile(r"\s*(\d+)([smhdwy])\s+\S+\s+(\S+)\s+<(.*)>")
_EXIM_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}


def _exim_queue(program: str, config: str | None) -> list[Waiting] | None:
    """Return Exim's queue (exim -bpr), None where it can't be asked; a reason is the last line of a message's log."""
    command = [program, *(["-C", config] if config else [])]
    printed = _output([*command, "-bpr"])
    found: list[Waiting] = []
    for line in (printed or "").splitlines():
        head = _EXIM_LINE.match(line)
        if head:
            number, unit, queue_id, sender = head.groups()
            since = time.time() - int(number) * _EXIM_SECONDS[unit]
            log = (_output([*command, "-Mvl", queue_id]) or "").splitlines()
            found.append(Waiting(queue_id, since, sender, [], log[-1] if log else ""))
        elif line.strip() and found and not line.strip().startswith("D "):
            found[-1].recipients.append(line.strip())
    return None if printed is None else found


PROGRAMS = {"postqueue": _postfix_queue, "exim4": _exim_queue, "exim": _exim_queue}


def send(mail: bytes, address: str, *options: str) -> None:
    """Give a mail to the mail server's sendmail, as who started the desk. Raises Failed where it does not take it."""
    program = shutil.which("sendmail", path=f"{os.environ.get('PATH', '')}:{SENDMAIL_FOLDERS}")
    if not program:
        raise Failed("no sendmail is here: the mail server's package brings it")
    command = [program, "-i", *options, "--", address]
    try:
        with as_caller():
            done = subprocess.run(command, input=mail, capture_output=True, check=False, timeout=SENDMAIL_SECONDS)
    except subprocess.TimeoutExpired:
        raise Failed(f"{program} did not end within {SENDMAIL_SECONDS:.0f} s: it may have sent the mail") from None
    if done.returncode:
        raise Failed(f"sendmail ended with status {done.returncode}: {os.fsdecode(done.stderr or done.stdout).strip()}")


def _output(command: Sequence[str]) -> str | None:
    """Return what a program prints, None where it can't be run or fails."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, check=False, timeout=SECONDS, errors="surrogateescape")
        return None if done.returncode else done.stdout
    return None
