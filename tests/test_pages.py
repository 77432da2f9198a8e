"""Each page says what the code does, leads where it says, and is as long as its reader has time for."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.pages import PAGES, ROOT, anchors, links, page, rows_below, tables_below

from mailgate import handover, journal
from mailgate.mailboxes import box, config, fetch, imap, pop3
from mailgate.outcome import Outcome
from mailgate.service import connection, directory, service, workers
from mailgate.settings import HOLD, JOURNAL, REQUIRED, VARIABLES, read

LINES = {
    "README.md": 120,
    "docs/install.md": 90,
    "docs/admin.md": 420,
    "docs/settings.md": 100,
    "docs/endings.md": 120,
    "docs/journal.md": 40,
    "docs/several-hosts.md": 50,
    "docs/service.md": 100,
    "docs/mailboxes.md": 240,
    "docs/flow.md": 120,
    "docs/standards.md": 70,
    "docs/odoo.md": 150,
    "docs/embedded-database.md": 60,
    "CONTRIBUTING.md": 90,
}
GROUPS = tables_below(page("docs/settings.md"), "variable")
EXAMPLE = page(".env.example")


@pytest.mark.parametrize(("name", "lines"), LINES.items())
def test_a_page_has_its_lines_give_or_take_a_fifth(name: str, lines: int) -> None:
    assert 0.8 * lines <= len(page(name).splitlines()) <= 1.2 * lines


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading(path: Path) -> None:
    for link in links(path.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    found = {ROOT / "README.md"}
    while found - reached:
        path = (found - reached).pop()
        reached.add(path)
        targets = (path.parent / link.partition("#")[0] for link in links(path.read_text()))
        found |= {target.resolve() for target in targets if target.suffix == ".md" and target.is_file()}
    assert set(PAGES) <= reached


def test_what_the_code_says_of_odoo_stands_on_its_page() -> None:
    source = "".join(path.read_text() for path in (ROOT / "mailgate").rglob("*.py"))
    named = re.findall(r'docs/odoo\.md,\s+"([^"]+)"', source)
    assert len(named) > 5
    assert {" ".join(name.split()) for name in named} <= set(re.findall(r"(?m)^## (.+)$", page("docs/odoo.md")))


# --- the service --------------------------------------------------------------------------------------------------

NUMBERS = {
    "a call is slow after": (workers.SLOW_AFTER_SECONDS, "seconds", workers.MAX_SLOW_CALLS, "at the most"),
    "messages that wait for a worker": (service.MAX_WAITING, ""),
    "clients": (connection.MAX_CONNECTIONS, "", connection.SILENCE_SECONDS, "seconds"),
    "a message": (connection.MAX_RECIPIENTS, "recipients", connection.IN_MEMORY_BYTES / 2**10, "KiB"),
    "a copy of a message under way waits": (journal.WAIT_SECONDS, "seconds"),
    "the list is read": (directory.REFRESH_SECONDS, "seconds"),
    "questions about single addresses": (
        *(directory.MAX_QUESTIONS, "a second", directory.MAX_QUESTIONS, "open"),
        *(directory.PATIENCE_SECONDS, "seconds"),
    ),
    "the pipe waits for an answer of the service": (handover.FIRST_ANSWERS_SECONDS, "second"),
}


@pytest.mark.parametrize("what", NUMBERS)
def test_the_numbers_of_the_service_are_those_of_the_code(what: str) -> None:
    said = dict(rows_below(page("docs/service.md"), "what"))[what]
    for number, unit in zip(NUMBERS[what][::2], NUMBERS[what][1::2], strict=True):
        assert re.search(rf"\b{number:,.0f}\b {unit}".rstrip(), said), said


# --- settings -----------------------------------------------------------------------------------------------------


def test_the_settings_are_those_of_the_code() -> None:
    rows = {cells[0].strip("`"): cells[2] for group in GROUPS for cells in group}
    assert len(GROUPS) == 4
    assert sum(map(len, GROUPS)) == len(rows)
    assert sorted(rows) == sorted(f"MAIL_GATEWAY_{name}" for name in VARIABLES)
    for name, variable in VARIABLES.items():
        documented = rows[f"MAIL_GATEWAY_{name}"]
        default = variable.default
        if name in ("PASSWORD", "PASSWORD_FILE", "CA_FILE", "HOLD", "HOLD_LOOPS", "JOURNAL", "ALLOW_PLAINTEXT"):
            assert default in ("", False)
            assert {"HOLD": HOLD, "JOURNAL": JOURNAL}.get(name, "") in documented
        elif default is REQUIRED:
            assert documented == "required"
        else:
            assert documented == (f"`{written(name)}`" if default else "empty")


def written(name: str) -> str:
    """Return the default of a variable as a person would set it."""
    default = VARIABLES[name].default
    if name == "SOCKET_MODE":
        return f"{default:04o}"
    if isinstance(default, frozenset):
        return ",".join(default)
    return f"{default:g}" if isinstance(default, float) else f"{default}"


def test_the_example_has_the_settings_in_the_order_of_their_page() -> None:
    named = re.findall(r"(?m)^#?(MAIL_GATEWAY_\w+)=", EXAMPLE)
    assert named == [cells[0].strip("`") for group in GROUPS for cells in group]


def test_what_the_example_leaves_out_is_the_default() -> None:
    left_out = dict(re.findall(r"(?m)^#MAIL_GATEWAY_(\w+)=(.*)$", EXAMPLE))
    defaults = {name: written(name) for name in left_out} | {
        "HOLD": HOLD,
        "JOURNAL": JOURNAL,
        "ALLOW_PLAINTEXT": "no",
        "HOLD_LOOPS": "no",
    }
    assert left_out == defaults


def test_the_example_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.env"
    path.write_text(re.sub(r"(?m)^#(?=MAIL_)", "", EXAMPLE))
    path.chmod(0o600)
    values, wrong = read({}, str(path))
    assert set(values) == set(re.findall(r"(?m)^#?MAIL_GATEWAY_(\w+)=.", EXAMPLE))
    assert wrong == []


# --- mailboxes ----------------------------------------------------------------------------------------------------

MAILBOXES = page("docs/mailboxes.md")


@pytest.mark.parametrize(("heading", "keys"), [("key of the file", config.TOP_KEYS), ("key of a mailbox", config.KEYS)])
def test_the_keys_of_the_mailboxes_file_are_those_of_the_code(
    heading: str, keys: dict[str, tuple[object, Any]]
) -> None:
    rows = rows_below(MAILBOXES, heading)
    assert [cells[0] for cells in rows] == [f"`{key}`" for key in keys]
    for key, _, documented in rows:
        default = keys[key.strip("`")][1]
        if default is config.REQUIRED:
            assert documented == "required"
        elif key in INSTEAD:
            assert not default
            assert documented == INSTEAD[key]
        else:
            text = default.verb if isinstance(default, config.Action) else default
            assert documented == (f"`{text}`" if text else "empty")


# What stands there in place of nothing.
INSTEAD = {
    "`password_file`": "this or the next",
    "`oauth`": "",
    "`model`": "`MAIL_GATEWAY_MODEL`",
    "`since`": "the day of the first run",
    "`ca_file`": "the system's",
}


def test_each_ending_of_a_message_has_its_mark_in_the_mailbox() -> None:
    rows = [(re.findall(r"`(\w+)`", cells[0]), cells[1]) for cells in rows_below(MAILBOXES, "it ends as")]
    documented = {name: mark for names, mark in rows for name in names}
    assert sum(len(names) for names, _ in rows) == len(documented)
    assert documented == {
        outcome.name.lower(): "none" if outcome.is_temporary else f"`{fetch.mark_of(outcome).value}`"
        for outcome in Outcome
    }
    (waiting,) = [names for names, _ in rows if "no_answer" in names]
    assert sorted(waiting) == sorted(outcome.name.lower() for outcome in fetch.OF_THE_DATABASE)


def test_each_trouble_of_a_mailbox_has_its_heading_and_its_lines() -> None:
    parts = dict(re.findall(r"(?ms)^### (\w+)$(.*?)(?=^##)", MAILBOXES.partition("\n## The line, ")[2]))
    assert [kind.value for kind in box.Kind] == [*parts]
    for kind in box.Kind:
        assert all(len(cells) == 3 and cells[2] for cells in rows_below(parts[kind.value], "the line"))


def test_each_line_of_trouble_that_is_the_codes_own_stands_on_its_page() -> None:
    """Of those with words of a server's behind them, the beginning."""
    source = "".join(Path(str(module.__file__)).read_text() for module in (box, imap, pop3))
    said = re.findall(r'Trouble\((?:Kind\.\w+|kind), f?"([^"{]+)(?:\{|")', source)
    assert len(said) >= 8
    assert [text for text in said if text.strip() not in MAILBOXES] == []


PAUSES = fetch.TROUBLE_PAUSES
TIMES: dict[str, tuple[float, ...]] = {
    "each mailbox is asked, and its IDLE begun anew, every": (fetch.POLL_SECONDS,),
    "a server may be silent for": (box.TIMEOUT_SECONDS,),
    "pauses after `network`": PAUSES[box.Kind.NETWORK],
    "pauses after `login`, so that no account is locked": PAUSES[box.Kind.LOGIN],
    "pauses after `token`": PAUSES[box.Kind.TOKEN],
    "pauses after other trouble": fetch.OTHER_PAUSES,
    "pauses while the database is away": fetch.DATABASE_PAUSES,
    "pauses of a message that is tried again": fetch.MESSAGE_PAUSES,
    "a trouble that lasts is logged again after": (fetch.SAID_AGAIN_SECONDS,),
}


def test_the_times_of_the_mailboxes_are_those_of_the_code() -> None:
    documented = dict(rows_below(MAILBOXES, "what"))
    assert documented == {
        what: f"{' to '.join(f'{seconds:,.0f}' for seconds in times)} seconds" for what, times in TIMES.items()
    }


# --- endings ------------------------------------------------------------------------------------------------------


def test_the_endings_are_those_of_the_code() -> None:
    rows = [(name.strip("`"), *numbers) for name, *numbers, _ in rows_below(page("docs/endings.md"), "ending")]
    codes = [(row.name.lower(), f"{row.exit_status}", f"{row.reply_code}", row.status_code) for row in Outcome]
    assert sorted(rows) == sorted(codes)


def test_every_line_that_one_may_see_is_there_and_can_be_found_by_its_beginning() -> None:
    lines = [cells[0].strip("`") for cells in rows_below(page("docs/endings.md"), "the line")]
    assert lines == sorted(lines)
    assert {outcome.line for outcome in Outcome} <= set(lines)
    source = "".join(path.read_text() for path in (ROOT / "mailgate").rglob("*.py"))
    others = set(lines) - {outcome.line for outcome in Outcome}
    assert [line for line in others if line not in source] == []
    replies = [value for value in vars(connection).values() if isinstance(value, str)]
    refusals = [value[4:] for value in replies if re.match(r"[45]\d\d [45]\.(?!5)", value)]
    assert len(refusals) > 4
    assert set(refusals) <= set(lines)


# --- standards ----------------------------------------------------------------------------------------------------


def test_the_test_that_shows_a_standard_is_there() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    rows = [cells for table in tables_below(page("docs/standards.md"), "standard") for cells in table]
    named = [re.findall(r"`(test_\w+)`", cells[-1]) for cells in rows]
    assert all(named)
    assert [name for names in named for name in names if f"def {name}(" not in tests] == []


# --- commands -----------------------------------------------------------------------------------------------------


def test_make_alone_says_what_it_can_do() -> None:
    said = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (phony,) = re.findall(r"(?m)^\.PHONY: (.*)$", page("Makefile"))
    assert re.findall(r"(?m)^  make (\S+) +\S.*\.$", said) == phony.split()
    assert subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout == said


def test_contributors_are_told_how_long_each_command_takes() -> None:
    (phony,) = re.findall(r"(?m)^\.PHONY: (.*)$", page("Makefile"))
    rows = {cells[0].strip("`"): cells[2] for cells in rows_below(page("CONTRIBUTING.md"), "command")}
    assert set(rows) == {f"make {target}" for target in phony.split()} - {"make help", "make clean"}
    assert all(rows.values())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_of_a_page_are_there(path: Path) -> None:
    targets = set(re.findall(r"(?:`|^    )make ([a-z0-9-]+)", path.read_text(), re.MULTILINE))
    if targets:
        subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, check=True, capture_output=True)
