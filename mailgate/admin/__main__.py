"""The program mail-gateway-admin: its commands, its exit status, and how what they found is printed.

0: all is good. 1: something was found, or could not be done. 2: wrong usage, or settings that can't be used.
"""

import argparse
import io
import os
import sys
import time

try:
    import rich  # noqa: F401  # said here, in a sentence, before any module fails for it
except ImportError:
    sys.exit("mail-gateway-admin: needs the package rich: docs/admin.md says how to install it")

from mailgate import __version__, settings
from mailgate.admin import (
    addresses,
    audit,
    check,
    explain,
    held,
    postmaster,
    redirections,
    screen,
    send_test,
    settings_file,
    today,
    trace,
)
from mailgate.admin.desk import Answer, Desk, Failed, Usage, add_command, add_json, become_owner, refusal
from mailgate.database import Client
from mailgate.journal import JOURNAL
from mailgate.log import error_text
from mailgate.outcome import Ended, Outcome, Verdict

COMMANDS = (
    today.COMMAND,
    trace.COMMAND,
    explain.COMMAND,
    check.COMMAND,
    audit.COMMAND,
    held.COMMAND,
    addresses.COMMAND,
    redirections.COMMAND,
    settings_file.COMMAND,
    send_test.COMMAND,
    postmaster.COMMAND,
)

GOOD, FOUND, USAGE = 0, 1, 2  # exit statuses


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; the man page and the completion are made from it."""
    made = argparse.ArgumentParser(
        "mail-gateway-admin",
        description="Tell what became of mail, why, and what to do now. docs/admin.md shows each command.",
        epilog="Exit status: 0 all is good, 1 something was found or could not be done, 2 wrong usage.",
    )
    made.add_argument("--env-file", default="", metavar="FILE", help="the settings file of the gateway")
    made.add_argument("--version", action="version", version=f"mail-gateway {__version__}")
    commands = made.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for command in COMMANDS:
        one = add_command(commands, command.name, command.summary, command.example)
        add_json(one, default=False)
        command.add_arguments(one)
        one.set_defaults(answer=command.answer, complete=command.complete, of_wrong_settings=command.of_wrong_settings)
    return made


def main(argv: list[str] | None = None) -> int:
    """Run a command and return the exit status; without one, it is today's screen."""
    arguments = parser().parse_args(argv)
    if not arguments.command:
        arguments = parser().parse_args([*(sys.argv[1:] if argv is None else argv), today.COMMAND.name])
    try:
        found = _found(arguments)
        screen.show(found.text, found.facts if arguments.json else None, found.screen)
    except Usage as error:
        return _refuse(str(error), USAGE)
    except Failed as error:
        return _refuse(str(error), FOUND)
    except Ended as ended:
        return _refuse(_ended(ended.verdict), FOUND)
    except OSError as error:
        return _refuse(str(refusal(error)), FOUND)
    except Exception as error:  # our own bug
        return _refuse(f"this is a bug, please report it: {error_text(error)}", FOUND)
    return GOOD if found.is_good else FOUND


def _found(arguments: argparse.Namespace) -> Answer:
    """Return what the command finds. Raises Usage, Failed, Ended and OSError."""
    try:
        variables, wrong = settings.read(os.environ, arguments.env_file)
        arguments.variables = arguments.complete(variables, arguments)
        become_owner(arguments.variables)
        config = settings.build(arguments.variables, wrong)
    except Ended as ended:
        if not arguments.of_wrong_settings:
            raise Usage(ended.verdict.cause or ended.verdict.outcome.text) from None
        answer: Answer = arguments.of_wrong_settings(ended.verdict.cause)
        return answer
    found: Answer = arguments.answer(Desk(config, Client(config), time.time()), arguments)
    return found


def _ended(verdict: Verdict) -> str:
    """Return in words what could not be done; a setting that is the cause says so itself."""
    text = verdict.cause or verdict.outcome.text
    if verdict.outcome is Outcome.SETTINGS:
        return text
    what = "" if text.startswith(JOURNAL) else "the database can't be asked: "
    return f"{what}{text}. mail-gateway-admin check says what to mend."


def _refuse(text: str, status: int) -> int:
    screen.say(f"mail-gateway-admin: {text}")
    return status


def run() -> None:
    """Run main() for the console script: a letter that its reader lacks is no error."""
    while os.open(os.devnull, os.O_RDWR) <= 2:  # or a file of ours would be what is closed: standard output, or error
        pass
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main()
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    run()
