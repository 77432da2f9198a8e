"""Write anew what is made of the desk: ``python tests/admin_page.py``.

The screens of docs/admin.md, the man page (argparse-manpage), and the completions for bash and zsh (shtab).
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from support.desk import FATES, PAGE, WORLD, Desk, block
from support.mail_database_server import ROOT, served

HEADING = "## Ten mails\n"
MAN, COMPLETIONS = "mail-gateway-admin.1", {"bash": "mail-gateway-admin.bash", "zsh": "_mail-gateway-admin"}


def main() -> None:
    """Deliver ten mails of different fate, trace each, and write what is seen behind the heading."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with served(f"sqlite:///{folder}/mail.db", WORLD) as server:
            desk = Desk(folder, server.url, LOGIN="admin")
            desk.deliver_all()
            commands = [["trace", fate.message_id] for fate in FATES]
            screens = [block(command, desk.run(*command)) for command in commands]
    head, _, _ = PAGE.read_text().partition(HEADING)
    PAGE.write_text(head + HEADING + "\n" + "\n".join(screens))
    program = str(Path(sys.executable).with_name("argparse-manpage"))
    named = ["--project-name", "mail-gateway", "--prog", "mail-gateway-admin", "--manual-title", "Mail gateway"]
    man = run(program, "--pyfile", "mailgate/admin/__main__.py", "--function", "parser", *named)
    (ROOT / "docs" / "man" / MAN).write_text(re.sub(r'"\d{4}\\-\d\d\\-\d\d"', '""', man))
    for shell, name in COMPLETIONS.items():
        made = [sys.executable, "-m", "shtab", "--shell", shell, "mailgate.admin.__main__.parser"]
        (ROOT / "docs" / "man" / name).write_text(run(*made))


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


if __name__ == "__main__":
    main()
