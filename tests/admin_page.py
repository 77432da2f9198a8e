"""Write anew what is made of the programs that an operator types: ``python tests/admin_page.py``.

The screens of docs/admin.md, and for each program its man page (argparse-manpage) and completions (shtab).
"""

import argparse
import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from support.desk import FATES, PAGE, WORLD, Desk, block
from support.mail_database_server import ROOT, served

HEADING = "## Ten mails\n"
PROGRAMS = {"mail-gateway-admin": "mailgate.admin", "mail-gateway-mailboxes": "mailgate.mailboxes"}
MAN = ROOT / "docs" / "man"


def main() -> None:
    """Deliver ten mails of different fate, trace each, and write what is seen behind the heading; then the others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with served(f"sqlite:///{folder}/mail.db", WORLD) as server:
            desk = Desk(folder, server.url, LOGIN="admin")
            desk.deliver_all()
            commands = [["trace", fate.message_id] for fate in FATES]
            screens = [block(command, desk.run(*command)) for command in commands]
    head, _, _ = PAGE.read_text().partition(HEADING)
    PAGE.write_text(head + HEADING + "\n" + "\n".join(screens))
    for program, package in PROGRAMS.items():
        for path, text in pages(program, package).items():
            path.write_text(text)


def pages(name: str, package: str) -> dict[Path, str]:
    """Return what is made of a program's parser: man page and completions, by their paths."""
    maker = str(Path(sys.executable).with_name("argparse-manpage"))
    source = f"{package.replace('.', '/')}/__main__.py"
    titles = ["--project-name", "mail-gateway", "--prog", name, "--manual-title", "Mail gateway"]
    man = run(maker, "--pyfile", source, "--function", "parser", *titles)
    lines = "\n".join(examples(importlib.import_module(f"{package}.__main__").parser())).replace("-", "\\-")
    man = f"{man.rstrip()}\n\n.SH EXAMPLES\n.nf\n{lines}\n.fi\n"  # argparse-manpage takes none of a command's own
    found = {MAN / f"{name}.1": re.sub(r'"\d{4}\\-\d\d\\-\d\d"', '""', man)}
    for shell, file in {"bash": f"{name}.bash", "zsh": f"_{name}"}.items():
        prefix = ["--prefix", name.replace("-", "_")]  # of the functions, which a shell has for both programs
        found[MAN / file] = run(sys.executable, "-m", "shtab", "--shell", shell, *prefix, f"{package}.__main__.parser")
    return found


def examples(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the examples of a command line, and of its commands."""
    yield from map(str.strip, (parser.epilog or "").partition("Example:\n")[2].splitlines())
    for action in parser._actions:  # argparse has no public way to them
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from examples(command)


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


if __name__ == "__main__":
    main()
