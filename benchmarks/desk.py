"""How long the operator's desk takes over much mail and many addresses: ``python benchmarks/desk.py``."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from page import Figure, report

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.desk import WORLD
from support.gateway import ENVIRONMENT, Gateway
from support.mail_database_server import PASSWORD, ROOT, served

from mailgate import journal
from mailgate.log import Facts, attempt
from mailgate.outcome import Outcome, Verdict
from mailgate.settings import build

MESSAGES, ALIASES, DOMAINS = 10_000, 2_000, ("example.com", "example.net", "example.org")
AUDIT = Figure(f"desk: seconds of an audit of {MESSAGES:,} messages", "at most", 60)
ADDRESSES = Figure(f"desk: seconds of a list of {ALIASES:,} aliases in {len(DOMAINS)} domains", "at most", 2)


def main() -> int:
    """Fill a database and a journal, and run both commands as a person does."""
    with tempfile.TemporaryDirectory() as name, served(f"sqlite:///{name}/mail.db", world()) as server:
        gateway = Gateway(Path(name), URL=server.url, LOGIN="2", PASSWORD=PASSWORD)
        gateway.command()  # writes the settings
        fill(gateway)
        is_missed = report(AUDIT.row(seconds(gateway, "audit")))
        return report(ADDRESSES.row(seconds(gateway, "addresses")), is_firm=False) or is_missed


def world() -> dict[str, Any]:
    """Return the aliases, and a record with each message."""
    places = [(number, f"alias{number}", DOMAINS[number % len(DOMAINS)]) for number in range(1, ALIASES + 1)]
    return WORLD | {
        "alias_domains": [{"id": number, "name": domain} for number, domain in enumerate(DOMAINS, 1)],
        "aliases": [
            {"id": number, "local_part": local_part, "domain": domain, "model": "crm.lead"}
            for number, local_part, domain in places
        ],
        "records": [{"model": "crm.lead", "id": number, "name": "Chairs"} for number in range(1, MESSAGES + 1)],
        "messages": [
            {"id": number, "message_id": message_id(number), "model": "crm.lead", "thread_id": number, "body": ""}
            for number in range(1, MESSAGES + 1)
        ],
    }


def message_id(number: int) -> str:
    return f"<{number}@outside.test>"


def fill(gateway: Gateway) -> None:
    """Have the journal say of each message that it is delivered."""
    settings = build({name: str(value) for name, value in gateway.settings.items()})
    for number in range(1, MESSAGES + 1):
        facts = Facts(f"4Xy{number}")
        facts.message_id, facts.sender, facts.recipients = (
            message_id(number),
            "ann@outside.test",
            ["alias1@example.com"],
        )
        journal.note_attempt(settings, attempt(facts, Verdict(Outcome.DELIVERED, record_id=number), 0.1))


def seconds(gateway: Gateway, command: str) -> float:
    """Return what a command takes, which finds nothing wrong."""
    began = time.monotonic()
    words = [sys.executable, "-m", "mailgate.admin", "--env-file", str(gateway.env_file), command]
    subprocess.run(words, env=ENVIRONMENT, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
