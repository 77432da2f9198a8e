"""The demonstration shows what README.md and its picture say it shows."""

import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from support.pages import ROOT, page

EXPECTED = [
    ("a new customer writes to info@", "2.0.0 delivered (exit 0)", "new crm.lead 2"),
    ("she answers, to catchall@", "2.0.0 delivered (exit 0)", "on the thread of crm.lead 2"),
    ("a stranger writes to catchall@", "2.0.0 accepted, nothing to add (exit 0)",
     "bob@elsewhere.example is told (catchall)"),
    ("a mail of ours comes back", "2.0.0 accepted, nothing to add (exit 0)", "our mail to partner 4 failed: 550 5.1.1"),
    ("one mail more than a sender may", "2.0.0 accepted, dropped by the database (exit 0)", "is told (loop)"),
    ("mail for a foreign domain", "5.1.1 no such address here (exit 67)", "nothing"),
]  # fmt: skip
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def said() -> str:
    """What the demonstration prints."""
    command = [sys.executable, str(ROOT / "demo/run.py")]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stderr == ""
    return finished.stdout


def fixed(text: str) -> str:
    """Return a text without what differs from run to run: the port and the time."""
    return re.sub(r"127\.0\.0\.1:\d+|\d{4}-\d\d-\d\d \d\d:\d\d", "…", text).strip()


def test_six_mails_and_what_became_of_each(said: str) -> None:
    lines = said.splitlines()
    for mail, ending, outcome in EXPECTED:
        (line,) = [line for line in lines if line.startswith(mail)]
        assert ending in line
        assert outcome in line
    assert "crm.lead 2: Two hundred folding chairs for Köln" in lines
    assert "failed for carl@customer.example: 550 5.1.1" in said


def test_the_readme_has_the_session(said: str) -> None:
    (session,) = re.findall(r"(?m)^    \$ make demo\n((?:    .*\n|\n)+)", page("README.md"))
    assert fixed(re.sub(r"(?m)^    ", "", session)) == fixed(said)


def test_the_picture_shows_the_session(said: str) -> None:
    """Each text of the picture is a line, or what stands in it behind a change of style."""
    drawn = ElementTree.fromstring(page("docs/demo.svg"))
    (terminal,) = [group for group in drawn.iter(f"{SVG}g") if "matrix" in group.get("class", "")]
    lines: dict[float, str] = {}
    for text in terminal.iter(f"{SVG}text"):
        height = float(text.get("y", 0))
        lines[height] = lines.get(height, "") + (text.text or "").replace("\N{NO-BREAK SPACE}", " ").rstrip("\n")
    shown = [lines[height].rstrip() for height in sorted(lines)]
    assert shown[0] == "$ make demo"
    expected = [line for line in fixed(said).splitlines() if line]
    assert [line for line in fixed("\n".join(shown[1:])).splitlines() if line] == expected


def test_the_picture_asks_no_other_server() -> None:
    assert (
        re.findall(r"(?:href|src|url)\s*[=(]\s*[\"']?(?!#)[^\"')\s]+|@import|@font-face", page("docs/demo.svg")) == []
    )
