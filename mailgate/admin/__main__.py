"""The program mail-gateway-admin: its commands, its exit status, and how what they found is printed.

0: all is good. 1: something was found. 2: wrong usage, or settings that can't be used.
"""

import argparse
import os
import sys
import time

try:
    import rich  # noqa: F401  # said here, in a sentence, before any module fails for it
except ImportError:
    sys.exit("mail-gateway-admin: needs the package rich: docs/admin.md says how to install it")

from mailgate import __version__, settings
from mailgate.admin import explain, held, screen, today, trace
from mailgate.admin.desk import Desk, Usage, become_owner
from mailgate.database import Client
from mailgate.outcome import Ended

COMMANDS = (today.COMMAND, trace.COMMAND, held.COMMAND, explain.COMMAND)

GOOD, FOUND, USAGE = 0, 1, 2  # exit statuses


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; the man page and the completion are made from it."""
    made = argparse.ArgumentParser(
        "mail-gateway-admin",
        description="Tell what became of mail, why, and what to do now. docs/admin.md shows each command.",
        epilog="Exit status: 0 all is good, 1 something was found, 2 wrong usage.",
    )
    made.add_argument("--env-file", default="", metavar="FILE", help="the settings file of the gateway")
    made.add_argument("--version", action="version", version=f"mail-gateway {__version__}")
    commands = made.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for command in COMMANDS:
        one = commands.add_parser(
            command.name,
            help=command.summary,
            description=command.summary,
            epilog=f"Example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.add_argument("--json", action="store_true", help="print what a program can read")
        command.add_arguments(one)
        one.set_defaults(answer=command.answer)
    return made


def main(argv: list[str] | None = None) -> int:
    """Run a command and return the exit status; without one, it is today's screen."""
    arguments = parser().parse_args(argv)
    if not arguments.command:
        arguments = parser().parse_args([*(sys.argv[1:] if argv is None else argv), today.COMMAND.name])
    try:
        config = settings.build(*settings.read(os.environ, arguments.env_file))
        become_owner(config)
        found = arguments.answer(Desk(config, Client(config), time.time()), arguments)
    except Usage as error:
        return _refuse(str(error), USAGE)
    except Ended as ended:
        return _refuse(ended.verdict.cause or ended.verdict.outcome.text, USAGE)
    if arguments.json:
        screen.print_facts(found.facts)
    else:
        console = screen.console()
        for part in found.screen:
            console.print(part)
    return GOOD if found.is_good else FOUND


def _refuse(text: str, status: int) -> int:
    print(f"mail-gateway-admin: {screen.plain(text)}", file=sys.stderr)
    return status


def run() -> None:
    """Run main() for the console script: a reader that goes away (head) is no error."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = GOOD
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    run()
