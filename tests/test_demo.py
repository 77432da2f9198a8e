"""The demonstration shows what README.md says it shows."""

import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).parents[1] / "demo" / "run.py"
EXPECTED = [
    ("a new customer writes to info@", "2.0.0 delivered (exit 0)",
     "new crm.lead 2: Two hundred folding chairs for Köln"),
    ("she writes again, to catchall@, in reply", "2.0.0 delivered (exit 0)", "on the thread of crm.lead 2"),
    ("a stranger writes to catchall@", "2.0.0 accepted, nothing to add (exit 0)",
     "bob@elsewhere.example is told (catchall)"),
    ("a mail of ours comes back", "2.0.0 accepted, nothing to add (exit 0)", "our mail to partner 4 failed: 550 5.1.1"),
    ("more new mail than the threshold allows", "2.0.0 accepted, dropped by the database (exit 0)", "is told (loop)"),
    ("mail for a domain that is not ours", "5.1.1 no such address here (exit 67)", "nothing"),
]  # fmt: skip


def test_six_mails_and_what_became_of_each() -> None:
    finished = subprocess.run([sys.executable, RUN], capture_output=True, text=True, check=True)
    lines = finished.stdout.splitlines()
    for mail, ending, outcome in EXPECTED:
        (line,) = [line for line in lines if line.startswith(mail)]
        assert ending in line
        assert outcome in line
    assert "failed for carl@customer.example: 550 5.1.1" in finished.stdout
    assert finished.stderr == ""
