"""The process of the mailboxes: options, threads, signals, and the end."""

import argparse
import asyncio
import functools
import os
import signal
import sys
import threading
import time
from types import FrameType

try:
    import imapclient  # noqa: F401  # said here, in a sentence, before any module fails for it
    import requests_oauthlib  # noqa: F401
except ImportError as error:
    sys.exit(f"mail-gateway-mailboxes: needs the package {error.name}: docs/mailboxes.md says how to install it")

from mailgate import __version__, journal, settings
from mailgate.log import Log
from mailgate.mailboxes import check, config, fetch, oauth
from mailgate.mailboxes.config import Mailbox, Mailboxes
from mailgate.mailboxes.fetch import Shared, State
from mailgate.notify import notify
from mailgate.outcome import Ended
from mailgate.settings import Settings

STOP_WITHIN_SECONDS = 75.0  # that the messages under way have when the process is stopped; systemd waits 90


def main(argv: list[str] | None = None) -> int:
    """Run a command and return the exit status: 0 for good, 1 for what was found, 78 for wrong settings."""
    arguments = parser().parse_args(argv)
    try:
        current, log = read_settings(arguments.env_file)
        mailboxes = config.read(current.mailboxes)
        return COMMANDS[arguments.command or "run"](arguments, current, log, mailboxes)
    except Ended as ended:
        print(f"mail-gateway-mailboxes: {ended.verdict.cause}", file=sys.stderr)
        return os.EX_CONFIG


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, of which the man page and the completions are made."""
    made = argparse.ArgumentParser(
        "mail-gateway-mailboxes", description="Take mail from mailboxes to an Odoo database."
    )
    made.add_argument("--env-file", default="", help="the settings file; docs/settings.md lists the settings")
    made.add_argument("--version", action="version", version=f"mail-gateway {__version__}")
    commands = made.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("run", help="read all mailboxes until stopped; it is what no command means")
    commands.add_parser("once", help="read all mailboxes once: for cron")
    commands.add_parser("check", help="try each mailbox, and change nothing")
    authorize = commands.add_parser("authorize", help="get the token of a mailbox with oauth")
    authorize.add_argument("name", metavar="NAME", help="the mailbox, by its name in the file")
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
    _stop_at_signals(shared.is_over)
    threads = [_thread(mailbox, shared, states[mailbox.name]) for mailbox in mailboxes.mailboxes]
    log.event(f"mail-gateway-mailboxes {__version__} reads {', '.join(states)}", "LOG_INFO")
    notify(os.environ, "READY=1")
    shared.is_over.wait()
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


def _stop_at_signals(is_over: threading.Event) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        is_over.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _with_metrics(shared: Shared, address: str, states: dict[str, State]) -> Shared:
    """Return what is shared, with what counts; it can be read from now on. Raises OSError."""
    from mailgate.metrics import Metrics  # and with it prometheus_client, for them alone

    metrics = Metrics(
        fetch.gauges(states), {"the journal can't be written": lambda: journal.can_write(shared.settings)}
    )
    if os.path.isabs(address):
        report = functools.partial(shared.log.event, priority="LOG_WARNING")
        writing = functools.partial(asyncio.run, metrics.write_forever(address, report))
        threading.Thread(target=writing, name="metrics", daemon=True).start()
    else:
        metrics.listen(address)
    return shared._replace(told=metrics.message)


def read_once(_: argparse.Namespace, current: Settings, log: Log, mailboxes: Mailboxes) -> int:
    """Read each mailbox once, and return 1 if one of them can't be read or a message of it waits."""
    shared = Shared(current, mailboxes.folder, log, threading.Semaphore(current.workers), threading.Event())
    _stop_at_signals(shared.is_over)
    states = [State() for _ in mailboxes.mailboxes]
    for mailbox, state in zip(mailboxes.mailboxes, states, strict=True):
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
        return os.EX_USAGE
    try:
        oauth.authorize(found.name, found.grant, mailboxes.folder, functools.partial(print, flush=True), input)
    except (oauth.NotAuthorized, oauth.Unreachable) as error:
        print(f"mail-gateway-mailboxes: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, EOFError):
        print("mail-gateway-mailboxes: stopped; nothing is changed", file=sys.stderr)
        return 1
    return os.EX_OK


COMMANDS = {"run": run_forever, "once": read_once, "check": show_check, "authorize": authorize}


def run() -> None:
    """Run main() and leave at once: no thread is waited for that has had its time."""
    status = main()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    run()
