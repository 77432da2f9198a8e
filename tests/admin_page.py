"""Write the screens of docs/admin.md anew, as the desk shows them: ``python tests/admin_page.py``."""

import tempfile
from pathlib import Path

from support.desk import FATES, PAGE, WORLD, Desk, block
from support.mail_database_server import served

HEADING = "## Ten mails\n"


def main() -> None:
    """Deliver ten mails of different fate, trace each, and write what is seen behind the heading."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with served(f"sqlite:///{folder}/mail.db", WORLD) as server:
            desk = Desk(folder, server)
            desk.deliver_all()
            commands = [["trace", fate.message_id] for fate in FATES]
            screens = [block(command, desk.run(*command)) for command in commands]
    head, _, _ = PAGE.read_text().partition(HEADING)
    PAGE.write_text(head + HEADING + "\n" + "\n".join(screens))


if __name__ == "__main__":
    main()
