"""What the command line says. It imports nothing: with ``--service``, what an import takes is most of a run."""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own costs 7 ms, as much as the interpreter
if TYPE_CHECKING:
    from collections.abc import Container, Iterable

# An MTA's settings give an option's value as an argument of its own or after "=". What a stranger wrote must stand
# after "=" or behind "--", for an address may look like an option. Postfix repeats an argument for each recipient, so
# --original-recipient may be there many times. argparse would cost a tenth of a run, and takes no value that begins
# with "-".
TAKES_VALUE = {
    "--env-file": True,
    "--service": True,
    "--sender": True,
    "--original-recipient": True,
    "--queue-id": True,
    "--model": True,
    "--dry-run": False,
    "--help": False,
    "--version": False,
}


# What Postfix and Exim put into the environment of what they run.
MTA_VARIABLES = ("MAIL_CONFIG", "LOCAL_PART")


class Usage(Exception):
    """Raised for arguments that make no sense; the text says why."""


class Arguments:
    """What the command line says; an option that is not there is "", (), False, and an unknown sender None."""

    recipients: tuple[str, ...] = ()
    original_recipients: tuple[str, ...] = ()
    sender: str | None = None
    env_file: str = ""
    service: str = ""
    queue_id: str = ""
    model: str = ""
    dry_run: bool = False
    help: bool = False
    version: bool = False


def parse_arguments(argv: Iterable[str]) -> Arguments:
    """Return what the arguments say, the program's name left out. Raises Usage."""
    rest = list(argv)
    recipients: list[str] = []
    found: dict[str, list[str]] = {}
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if argument == "--":
            recipients += rest
            break
        if not argument.startswith("-"):
            recipients.append(argument)
        elif name not in TAKES_VALUE or (equals and not TAKES_VALUE[name]):
            raise Usage(f"unknown option {name}")
        else:
            values = found.setdefault(name, [])
            if equals:
                values.append(value)
            elif TAKES_VALUE[name]:
                if not rest or _is_option(rest[0]):
                    raise Usage(f"{name} needs a value")
                values.append(rest.pop(0))

    arguments = Arguments()
    arguments.recipients = tuple(filter(None, recipients))
    arguments.original_recipients = tuple(found.pop("--original-recipient", ()))
    for name, values in found.items():
        setattr(arguments, name[2:].replace("-", "_"), values[-1] if values else True)
    return arguments


def check(arguments: Arguments, environ: Container[str], is_device: bool, is_terminal: bool) -> None:
    """Raise Usage for a run that would lose the mail on standard input, or finds none there.

    ``is_device`` tells that standard input is a character device, as a terminal and /dev/null are.
    """
    if arguments.help or arguments.version:
        if not is_device:
            raise Usage("--help and --version would lose the mail on standard input")
        return
    if is_terminal:
        raise Usage("the message is expected on standard input")
    if arguments.dry_run and any(name in environ for name in MTA_VARIABLES):
        raise Usage("--dry-run would lose the mail of the MTA that runs it")


def _is_option(argument: str) -> bool:
    return argument.partition("=")[0] in TAKES_VALUE or (argument.startswith("--") and "@" not in argument)
