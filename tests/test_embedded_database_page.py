"""docs/embedded-database.md says what the code does."""

import json
import re
from pathlib import Path

import pytest
from support.mail_database_server import ROOT, command

from mail_database import __main__ as program
from mail_database import routing
from mail_database.notices import REPEAT_AFTER_MINUTES
from mail_database.store import MAX_UNPLACED_BYTES, UNPLACED_DAYS

PAGE = (ROOT / "docs" / "embedded-database.md").read_text()
WORDS = " ".join(PAGE.split())


def test_every_command_can_be_typed_as_it_stands(tmp_path: Path) -> None:
    typed = [line.split() for line in re.findall(r"^    \S+/python -m mail_database (.*)$", PAGE, re.MULTILINE)]
    typed += [line.split() for line in re.findall(r"`((?:serve|show) --[^`]*)`", PAGE)]
    assert {words[0] for words in typed} == program.COMMANDS.keys()
    for words in typed:
        if words[0] == "serve":  # which would not end
            assert program._parser().parse_args(words)
        else:
            printed = command(f"sqlite:///{tmp_path}/mail.db", *words)
            assert bool(printed) == (words[0] != "load")


@pytest.mark.parametrize("name", program.COMMANDS)
def test_the_help_of_a_command_explains_each_argument(name: str) -> None:
    printed = command("sqlite://", name, "--help")
    arguments = re.findall(r"(?m)^  (\S.*?)(?:  +|\n {10,})(\S.*)$", printed.partition("\n\n")[2])
    assert len(arguments) == len(re.findall(r"(?m)^  \S", printed))
    assert "--store STORE" in dict(arguments)


def test_the_variables_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(MAIL_DATABASE_\w+)`.* \| (.*) \|$", PAGE, re.MULTILINE)
    source = Path(program.__file__).read_text()
    read = re.findall(r'environ\.get\("(\w+)"\)(?: or "(.*?)")?', source)
    assert sorted(rows) == sorted((name, f"`{default}`" if default else "a random one") for name, default in read)


def test_the_picture_has_the_steps_of_the_routing_in_their_order() -> None:
    steps = re.findall(r"^(\d)\. \*\*(.*?)\*\*", routing.__doc__ or "", re.MULTILINE)
    drawn = re.findall(r's\d\{"(\d) (.*?)"\}', PAGE)
    assert [number for number, _ in drawn] == [number for number, _ in steps] == list("12345678")
    for (_, text), (_, name) in zip(drawn, steps, strict=True):
        assert text.startswith(name.rstrip("."))


def test_the_policies_are_those_of_the_code() -> None:
    sentence = WORDS[WORDS.index("The contact policy") : WORDS.index("Any other policy")]
    assert re.findall(r"`(\w+)`", sentence) == list(routing.POLICIES)


def test_the_numbers_are_those_of_the_code() -> None:
    assert f"of {routing.LOOP_THRESHOLD_RECORDS} records within {routing.LOOP_MINUTES} minutes" in WORDS
    assert f"for {UNPLACED_DAYS} days and up to {MAX_UNPLACED_BYTES // 2**20} MiB" in WORDS
    assert ("told once an hour" in WORDS) == (REPEAT_AFTER_MINUTES == 60)
    cases = json.loads((ROOT / "tests" / "oracle" / "cases.json").read_text())
    assert f"{len(cases)} cases from a real Odoo 19" in WORDS
