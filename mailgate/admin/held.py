"""held: the mail that the database could not digest: list it, look at it, and what release and by_hand do with it."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from mailgate.admin import by_hand, release
from mailgate.admin.desk import Answer, Command, Desk, add_command, add_json, moment
from mailgate.admin.hold_folder import beginnings, cause_of, facts, files, folder_of, named
from mailgate.admin.screen import brief, pairs, plain, table, words
from mailgate.envelope import MAX_HEADER_BYTES

SHOWN_BYTES = 4096  # of a message's text

# What can be done: a sentence, and how an example goes on.
WHAT = {
    "list": ("List what is held, the oldest first.", ""),
    "show": ("Show one: header, text, cause, since when.", " 2026-11-30T090001Z"),
    "release": ("Give one, some by their cause, or all to the database.", " --cause 'no_such_field'"),
    "mend": ("Edit a copy of one, which takes its place; the original is kept.", " 2026-11-30T090001Z"),
    "forward": ("Send one to somebody, as an attachment; it stays held.", " 2026-11-30T090001Z pat@elsewhere.test"),
    "drop": ("Move one out of the way, where it is kept, and say why.", " 2026-11-30T090001Z --why 'advertising'"),
}


def _add_arguments(parser: ArgumentParser) -> None:
    commands = parser.add_subparsers(title="what to do", metavar="WHAT", dest="what", required=True)
    parsers = {
        name: add_command(commands, name, summary, f"mail-gateway-admin held {name}{example}")
        for name, (summary, example) in WHAT.items()
    }
    parsers["list"].set_defaults(answer=_list)
    parsers["show"].add_argument("name", help="the file's name, or the beginning of it")
    parsers["show"].set_defaults(answer=_show)
    release.add_arguments(parsers["release"])
    by_hand.add_mend(parsers["mend"])
    by_hand.add_forward(parsers["forward"])
    by_hand.add_drop(parsers["drop"])
    for each in commands.choices.values():
        add_json(each)


def _list(desk: Desk, arguments: Namespace) -> Answer:
    found = files(folder_of(desk))
    causes = {file: cause_of(desk, file) for file in found}
    names = beginnings(file.name for file in found)
    rows = [(names[file.name], file.sender, brief(file.subject), brief(causes[file])) for file in found]
    screen = [table(["name begins", "from", "subject", "cause"], rows)] if found else ["Nothing is held."]
    return Answer({"held": [facts(file) | {"cause": causes[file]} for file in found]}, screen, is_good=not found)


def _show(desk: Desk, arguments: Namespace) -> Answer:
    file = named(desk, arguments.name)
    raw = Path(file.path).read_bytes()[: MAX_HEADER_BYTES + SHOWN_BYTES]
    cause = cause_of(desk, file)
    text = raw[:SHOWN_BYTES].decode("utf-8", "backslashreplace")
    screen = [
        pairs([("File", file.path), ("Since", moment(file.since)), ("Size", f"{file.size:,} bytes"), ("Cause", cause)]),
        "",
        *(words(plain(line.rstrip("\r"))) for line in text.split("\n")),
    ]
    return Answer(facts(file) | {"cause": cause, "text": text}, screen)


COMMAND = Command(
    "held",
    "List, show, release, mend, forward or drop the mail that the database could not digest.",
    "mail-gateway-admin held release --all --dry-run",
    _add_arguments,
    _list,
)
