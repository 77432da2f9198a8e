"""Six mails through the gateway into the embedded database, and what became of each: ``make demo``."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
PASSWORD = "demonstration"

# The mails, and the envelopes that a mail server would give with them.
MAILS = [
    ("1-new-lead", "a new customer writes to info@", "ann@outside.example", "info@mydatabase.example"),
    ("2-reply", "she answers, to catchall@", "ann@outside.example", "catchall@mydatabase.example"),
    ("3-catchall", "a stranger writes to catchall@", "bob@elsewhere.example", "catchall@mydatabase.example"),
    ("4-delivery-report", "a mail of ours comes back", "", "bounce@mydatabase.example"),
    ("5-loop", "one mail more than a sender may", "ann@outside.example", "info@mydatabase.example"),
    ("6-foreign-domain", "mail for a foreign domain", "bob@elsewhere.example", "info@another.example"),
]


def main() -> int:
    """Run the demonstration and return the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/mail.db"
        environ = {**os.environ, "MAIL_DATABASE_STORE": store, "MAIL_DATABASE_PASSWORD": PASSWORD}
        database(environ, "load", str(HERE / "world.json"))
        serve = [sys.executable, "-m", "mail_database", "serve", "--port", "0"]
        with subprocess.Popen(serve, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) as server:
            try:
                url = server.stdout.readline().split()[-1] if server.stdout else ""
                print(f"The database answers at {url}. Six mails go through mail_gateway.py:\n")
                rows = [deliver(folder, url, environ, *mail) for mail in MAILS]
            finally:
                server.terminate()
        print(table([("mail", "the gateway says", "what became of it"), *rows]))
        print("\nThe threads, as `python -m mail_database show` has them:\n")
        print(database(environ, "show"))
    return 0


def deliver(folder: str, url: str, environ: dict[str, str], name: str, title: str, sender: str, recipient: str) -> Any:
    """Hand one mail to the gateway as a mail server would, and say what changed in the database."""
    env_file = Path(folder, "mail-gateway.env")
    write_settings(env_file, URL=url, PASSWORD=PASSWORD, ALIAS_DOMAINS="mydatabase.example", LOG=f"{folder}/log")
    before = json.loads(database(environ, "dump"))
    finished = subprocess.run(
        [sys.executable, ROOT / "mail_gateway.py", "--env-file", env_file, "--sender", sender, "--", recipient],
        input=(HERE / f"{name}.eml").read_bytes(),
        stdout=subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin", "LANG": "C"},
        cwd="/",
        check=False,
    )
    line = f"{finished.stdout.decode().strip()} (exit {finished.returncode})"
    return (
        title,
        line,
        "; ".join(changes(before, json.loads(database(environ, "dump")))) or "nothing, and no network traffic",
    )


def write_settings(env_file: Path, **settings: str) -> None:
    """Write the gateway's settings, for the database that has its usual name and login."""
    env_file.touch(0o600)
    lines = {"DATABASE": "mydatabase", "LOGIN": "admin"} | settings
    env_file.write_text("".join(f"MAIL_GATEWAY_{name}={value}\n" for name, value in lines.items()))


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Say what is new in the database."""
    known = {(row["model"], row["id"]) for row in before["records"]}
    found = [f"new {row['model']} {row['id']}" for row in after["records"] if (row["model"], row["id"]) not in known]
    found += [
        f"on the thread of {row['model']} {row['thread_id']}"
        for row in after["messages"][len(before["messages"]) :]
        if (row["model"], row["thread_id"]) in known
    ]
    found += [
        f"our mail to partner {row['partner_id']} failed: {' '.join(row['reason'].split()[:2])}"
        for row, earlier in zip(after["notifications"], before["notifications"], strict=True)
        if row != earlier
    ]
    found += [f"{row['to']} is told ({row['about']})" for row in after["notices"][len(before["notices"]) :]]
    return found


def database(environ: dict[str, str], *arguments: str) -> str:
    """Run a command of the database and return what it prints."""
    command = [sys.executable, "-m", "mail_database", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, check=True).stdout


def table(rows: list[Any]) -> str:
    """Return rows as text, in columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


if __name__ == "__main__":
    sys.exit(main())
