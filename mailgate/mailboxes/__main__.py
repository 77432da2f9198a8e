"""The process of the mailboxes: options, threads, signals, and the end."""

import argparse
import asyncio
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NamedTuple

try:
    import imapclient  # noqa: F401  # said here, in a sentence, before any module fails for it
    import requests_oauthlib  # noqa: F401  # the same
except ImportError as error:
    sys.exit(f"mail-gateway-mailboxes: needs the package {error.name}: docs/mailboxes.md says how to install it")

from mailgate import __version__, journal, settings
from mailgate.log import Log
from mailgate.mailboxes import check, config, fetch, oauth
from mailgate.mailboxes.config import Mailbox, Mailboxes
from mailgate.mailboxes.fetch import Shared, State
from mailgate.notify import notify
from mailgate.outcome import Ended, Outcome
from mailgate.settings import Settings
from mailgate.values import reason

USAGE = 2  # exit status, as argparse has it
STOP_WITHIN_SECONDS = 75.0  # that the messages under way have when the process is stopped; systemd waits 90


class Command(NamedTuple):
    """What is done, in a sentence, and an example's arguments. ``run`` returns the exit status, and may raise Ended."""

    run: Callable[[argparse.Namespace, Settings, Log, Mailboxes], int]
    summary: str
    example: str


def main(argv: list[str] | None = None) -> int:
    """Run a command and return the exit status: 0 for good, 1 for what was found, 78 for wrong settings."""
    arguments = parser().parse_args(argv)
    try:
        current, log = read_settings(arguments.env_file)
        mailboxes = config.read(current.mailboxes)
        return COMMANDS[arguments.command or "run"].run(arguments, current, log, mailboxes)
    except Ended as ended:
        print(f"mail-gateway-mailboxes: {ended.verdict.cause}", file=sys.stderr)
        return os.EX_CONFIG


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, of which the man page and the completions are made."""
    made = argparse.ArgumentParser(
        "mail-gateway-mailboxes",
        description="Take mail from mailboxes to an Odoo database. docs/mailboxes.md says how.",
        epilog="Exit status: 0 all is good, 1 something was found, 2 wrong usage, 78 wrong settings.",
    )
    made.add_argument("--env-file", default="", metavar="FILE", help="the settings file of the gateway")
    made.add_argument("--version", action="version", version=f"mail-gateway {__version__}")
    commands = made.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for name, command in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=command.summary,
            description=command.summary,
            epilog=f"Example:\n  mail-gateway-mailboxes {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == "authorize":
            one.add_argument("name", metavar="NAME", help="the mailbox, by its name in the file")
    return made


def read_settings(env_file: str) -> tuple[Settings, Log]:
    """Return the settings and the log that they ask for. Raises Ended."""
    current = settings.build(*settings.read(os.environ, env_file))
    keep = functools.partial(journal.note_attempt, current)
    return current, Log(current.log, current.log_format, current.password, keep)


def run_forever(_: argparse.Namespace, current: Settings, log: Log, mailboxes: Mailboxes) -> int:
    """Read the mailboxes, each in a thread of its own, until SIGTERM or SIGINT."""
    states = {mailbox.name: State() for mailbox in mailboxes.mailboxes}
    shared = Shared(current, mailboxes.folder, log, threading.Semaphore(current.workers), threading.Event())
    if mailboxes.metrics:
        shared = _with_metrics(shared, mailboxes.metrics, states)
    signals = _stop_at_signals(shared.is_over)
    threads = [_thread(mailbox, shared, states[mailbox.name]) for mailbox in mailboxes.mailboxes]
    log.event(f"mail-gateway-mailboxes {__version__} reads {', '.join(states)}", "LOG_INFO")
    notify(os.environ, "READY=1")
    os.read(signals, 1)
    notify(os.environ, "STOPPING=1")
    until = time.monotonic() + STOP_WITHIN_SECONDS
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    log.event("mail-gateway-mailboxes has stopped", "LOG_INFO")
    return os.EX_TEMPFAIL if any(thread.is_alive() for thread in threads) else os.EX_OK


def _thread(mailbox: Mailbox, shared: Shared, state: State) -> threading.Thread:
    thread = threading.Thread(target=fetch.run, args=[mailbox, shared, state], name=mailbox.name, daemon=True)
    thread.start()
    return thread


def _stop_at_signals(is_over: threading.Event) -> int:
    """Return a descriptor that has something to read when a signal has come.

    The kernel may give it to any thread. Only the main one runs ``stop``, and a wait for ``is_over`` would not wake it.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        is_over.set()

    signals, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return signals


def _with_metrics(shared: Shared, address: str, states: dict[str, State]) -> Shared:
    """Return what is shared, with what counts; it can be read from now on. Raises Ended."""
    try:
        from mailgate.metrics import Metrics  # and with it prometheus_client, for them alone
    except ImportError:
        raise Ended(Outcome.SETTINGS, "metrics needs the package prometheus_client") from None

    metrics = Metrics(
        fetch.gauges(states), {"the journal can't be written": lambda: journal.could_write(shared.settings)}
    )
    if os.path.isabs(address):
        report = functools.partial(shared.log.event, priority="LOG_WARNING")
        writing = functools.partial(asyncio.run, metrics.write_forever(address, report))
        threading.Thread(target=writing, name="metrics", daemon=True).start()
    else:
        try:
            metrics.listen(address)
        except OSError as error:
            raise Ended(
                Outcome.SETTINGS, f"mailboxes file {shared.settings.mailboxes}: metrics {reason(error)}"
            ) from None
    return shared._replace(told=metrics.message)


def read_once(_: argparse.Namespace, current: Settings, log: Log, mailboxes: Mailboxes) -> int:
    """Read each mailbox once, and return 1 if one of them can't be read or a message of it waits."""
    shared = Shared(current, mailboxes.folder, log, threading.Semaphore(current.workers), threading.Event())
    _stop_at_signals(shared.is_over)
    states = [State() for _ in mailboxes.mailboxes]
    for mailbox, state in zip(mailboxes.mailboxes, states, strict=True):
        if shared.is_over.is_set():
            return 1
        fetch.run_once(mailbox, shared, state)
    return int(any(state.trouble or state.waiting for state in states))


def show_check(_: argparse.Namespace, current: Settings, log: Log, mailboxes: Mailboxes) -> int:
    """Print what is found of each mailbox, a line each."""
    found = [
        finding for mailbox in mailboxes.mailboxes for finding in check.findings(mailbox, mailboxes.folder, current)
    ]
    for finding in found:
        print(f"{'ok ' if finding.is_good else 'BAD'} {finding.mailbox}: {finding.text}")
        if finding.todo:
            print(f"    {finding.todo}")
    return int(not all(finding.is_good for finding in found))


def authorize(arguments: argparse.Namespace, _: Settings, log: Log, mailboxes: Mailboxes) -> int:
    """Walk a person through the authorization of a mailbox."""
    found = next((each for each in mailboxes.mailboxes if each.name == arguments.name), None)
    if not found or not found.grant:
        names = ", ".join(each.name for each in mailboxes.mailboxes if each.grant) or "none"
        print(f"mail-gateway-mailboxes: mailboxes with oauth: {names}", file=sys.stderr)
        return USAGE
    try:
        oauth.authorize(found.name, found.grant, mailboxes.folder, functools.partial(print, flush=True), input)
    except (oauth.NotAuthorized, oauth.Unreachable) as error:
        print(f"mail-gateway-mailboxes: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, EOFError):
        print("mail-gateway-mailboxes: stopped; nothing is changed", file=sys.stderr)
        return 1
    return os.EX_OK


COMMANDS = {
    "run": Command(
        run_forever,
        "Read all mailboxes until stopped; it is what no command means.",
        "--env-file /etc/mail-gateway.env run",
    ),
    "once": Command(
        read_once,
        "Read all mailboxes once, for cron; the exit status is 1 where one can't be read or a message waits.",
        "once",
    ),
    "check": Command(show_check, "Try each mailbox, change nothing, and say what to do.", "check"),
    "authorize": Command(authorize, "Get the token of a mailbox with oauth.", "authorize task"),
}


def run() -> None:
    """Run main() and leave at once: no thread is waited for that has had its time."""
    status = main()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    run()
