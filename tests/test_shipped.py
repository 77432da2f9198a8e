"""What postfix/ and exim/ say is what the program does, and what their READMEs say is there."""

import argparse
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from admin_page import examples
from support.pages import ROOT, rows_below

from mailgate import DEADLINE
from mailgate.admin.__main__ import parser as admin
from mailgate.arguments import TAKES_VALUE
from mailgate.mailboxes.__main__ import parser as mailboxes
from mailgate.outcome import Outcome
from mailgate.settings import VARIABLES

POSTFIX, EXIM = ROOT / "postfix", ROOT / "exim"
TRANSPORT = (EXIM / "conf.d/transport/30_mail-gateway").read_text()
SERVICES = (POSTFIX / "master.cf").read_text()
MAN = ROOT / "docs/man"
TYPED = {parser().prog: parser() for parser in (admin, mailboxes)}
FOR_THE_SENDER = [outcome for outcome in Outcome if outcome.exit_status not in (0, 75)]


def without_comments(text: str) -> str:
    return re.sub(r"(?m)^#.*\n", "", text)


@pytest.mark.parametrize("folder", [POSTFIX, EXIM], ids=lambda folder: folder.name)
def test_the_table_in_the_readme_is_what_is_shipped(folder: Path) -> None:
    rows = [cells[0].strip("`") for cells in rows_below((folder / "README.md").read_text(), "file")]
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert sorted(rows) == sorted(set(files) - {"README.md"})


def test_postfix_bounces_what_the_program_refuses_and_nothing_else() -> None:
    (condition,) = re.findall(r"(?m)^if !/\^5\\\..*\((.*)\)/$", (POSTFIX / "delivery_status").read_text())
    assert sorted(condition.split("|")) == sorted(line.line[2:].replace(".", r"\.") for line in FOR_THE_SENDER)


def test_exim_bounces_what_the_program_refuses_and_nothing_else() -> None:
    (listed,) = re.findall(r"temp_errors = ([\d:\\\s]*)", TRANSPORT)
    kept = [int(number) for number in re.findall(r"\d+", listed)]
    assert kept == [status for status in range(1, 256) if status not in {row.exit_status for row in FOR_THE_SENDER}]


@pytest.mark.parametrize(
    ("text", "pattern", "seconds"),
    [
        (SERVICES, r" mail-gateway_time_limit=(\d+)s\n", 1),
        (SERVICES, r" lmtp_data_done_timeout=(\d+)s\n", 1),
        (TRANSPORT, r"(?s)\nmail_gateway:\n.*?\n  timeout = (\d+)m\n", 60),
        (TRANSPORT, r"(?s)\nmail_gateway_lmtp:\n.*?\n  timeout = (\d+)m\n", 60),
    ],
)
def test_program_and_service_give_up_before_the_mail_server_does(text: str, pattern: str, seconds: int) -> None:
    (limit,) = re.findall(pattern, text)
    assert int(limit) * seconds > DEADLINE


def test_the_socket_is_where_the_service_listens() -> None:
    named = re.findall(r"mail-gateway-lmtp:unix:(\S+)", (POSTFIX / "transport").read_text())
    named += re.findall(r"\nMAIL_GATEWAY_LMTP = (\S+)", (EXIM / "conf.d/main/10_mail-gateway").read_text())
    for folder in POSTFIX, EXIM:
        named += re.findall(r"(/\S*/lmtp\.sock)", (folder / "README.md").read_text())
    assert set(named) == {VARIABLES["LMTP"].default}


@pytest.mark.parametrize("text", [SERVICES, TRANSPORT])
def test_the_options_are_those_of_the_program(text: str) -> None:
    command = re.sub(r"\s+", " ", without_comments(text))
    (arguments,) = re.findall(r"(?:argv=\S*mail_gateway\.py|command = MAIL_GATEWAY_PROGRAM) (.*?) -- ", command)
    assert set(re.findall(r"--[\w-]+", arguments)) <= TAKES_VALUE.keys()
    assert "--dry-run" not in arguments
    # an address is a stranger's, and may look like an option
    expanded = [word for word in arguments.split() if "$" in word and not re.search("_id}?$", word)]
    assert all(re.match(r"--[\w-]+=", word) for word in expanded)


def test_nothing_that_is_shipped_meets_at_a_port() -> None:
    """Any local user can take a loopback port while the service is down; nobody else can take a socket's path."""
    files = [path for folder in (POSTFIX, EXIM, ROOT / "systemd") for path in folder.rglob("*") if path.is_file()]
    shipped = [path for path in files if path.name != "README.md"]
    assert not [path for path in shipped if re.search(r"127\.0\.0\.1|\blocalhost\b|\binet:", path.read_text())]


@pytest.mark.parametrize("path", [*POSTFIX.rglob("*"), *EXIM.rglob("*")], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_shipped_file_stands_where_it_is_installed_from(path: Path) -> None:
    """The paths of the program and of its folder are those that docs/install.md installs it to."""
    if path.is_file():
        named = set(re.findall(r"/opt/[\w./-]*mail_gateway\.py|/opt/mail[\w-]*", path.read_text()))
        assert named <= {"/opt/mail-gateway/mail_gateway.py", "/opt/mail-gateway"}


def words(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the commands and the options of a command line, and of its commands."""
    for action in parser._actions:  # argparse has no public way to them
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield name
                yield from words(command)


@pytest.mark.parametrize("program", TYPED)
def test_what_is_typed_is_in_its_man_page_and_is_completed(program: str) -> None:
    """``make admin-pages`` writes them."""
    wanted = set(words(TYPED[program])) - {"--help"}  # of which the man page has the short one
    man = (MAN / f"{program}.1").read_text().replace("\\", "")
    bash, zsh = (MAN / f"{program}.bash").read_text(), (MAN / f"_{program}").read_text()
    assert {example for example in examples(TYPED[program]) if f"\n{example}\n" not in man} == set()
    for text in man, bash, zsh:
        assert {word for word in wanted if not re.search(rf"(?<![\w-]){word}(?![\w-])", text)} == set()
    subprocess.run(["bash", "-n", MAN / f"{program}.bash"], check=True)


def test_a_shell_can_complete_one_program_beside_the_other() -> None:
    """What each defines has a name of its own."""
    one, other = (set(re.findall(r"\b_shtab_mail\w+", (MAN / f"{program}.bash").read_text())) for program in TYPED)
    assert one
    assert other
    assert not one & other
