"""A settings file from the database: it takes what the database takes, and what was written by hand stays."""

import contextlib
import os
import pty
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support.admin import ROOT, ask, facts
from support.endpoint import Endpoint
from support.gateway import ENVIRONMENT, coverage_environment
from support.mail_database_server import PASSWORD, Server, served
from support.old_odoo import OldOdoo

from mailgate import alias_list, settings
from mailgate.addresses import is_ours, named
from mailgate.admin.settings_file import updated
from mailgate.database import Client
from mailgate.envelope import Recipient

WORLD = {
    "alias_domains": [
        {"name": "example.com", "catchall": "catchall", "bounce": "bounce"},
        {"name": "second.example", "catchall": "all", "bounce": "returns"},
    ],
    "aliases": [
        {"local_part": "info", "domain": "example.com", "model": "crm.lead"},
        {"local_part": "o'brien", "domain": "second.example", "model": "crm.lead"},
        {"local_part": "#1", "domain": "example.com", "model": "crm.lead", "local_part_detection": True},
    ],
    "parameters": {"mail.catchall.domain.allowed": "allowed.example"},
}
KNOWN = [
    "info@example.com",
    "o'brien@second.example",
    "#1@allowed.example",
    "#1@second.example",
    "returns@second.example",
]
UNKNOWN = ["info@second.example", "nobody@example.com", "#1@elsewhere.test", "info@allowed.example"]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(f"sqlite:///{tmp_path_factory.mktemp('database')}/mail.db", WORLD) as server:
        yield server


def built(path: Path) -> settings.Settings:
    return settings.build(*settings.read({}, str(path)))


def assert_takes_the_same(path: Path, known: list[str], unknown: list[str]) -> None:
    addresses = built(path).addresses
    assert [address for address in known if not is_ours(addresses, Recipient(address))] == []
    assert [address for address in unknown if is_ours(addresses, Recipient(address))] == []


def given(folder: Path, url: str) -> list[object]:
    password = folder / "password"
    password.write_text(PASSWORD)
    password.chmod(0o600)
    return ["settings", "--url", url, "--database", "mydatabase", "--login", "2", "--password-file", password]


def empty(folder: Path) -> Path:
    path = folder / "empty.env"
    path.write_text("")
    path.chmod(0o600)
    return path


def test_a_new_file_takes_what_the_database_takes(tmp_path: Path, database: Server) -> None:
    path = tmp_path / "new.env"
    command = [*given(tmp_path, database.url), "--output", path]
    dry = ask(empty(tmp_path), *command, "--dry-run")
    assert (dry.returncode, dry.stderr, path.exists()) == (0, "", False)
    done = ask(empty(tmp_path), *command)
    assert (done.returncode, done.stderr) == (0, f"Writing {path}.\n")
    assert path.stat().st_mode & 0o777 == 0o600
    assert_takes_the_same(path, KNOWN, UNKNOWN)
    listed = alias_list.read(Client(built(path)), built(path).addresses)
    assert_takes_the_same(path, [*named(listed)], [])
    again = ask(empty(tmp_path), *command)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    assert facts(path, "settings", "--update")["written"] is False


@pytest.mark.parametrize(
    "parameters", [{}, {"mail.catchall.domain": "a.test", "mail.catchall.domain.allowed": "b.test"}]
)
def test_so_it_does_before_17(tmp_path: Path, parameters: Mapping[str, str]) -> None:
    path = tmp_path / "new.env"
    with contextlib.closing(OldOdoo(16, ["info"], parameters)) as database:
        assert ask(empty(tmp_path), *given(tmp_path, database.url), "--output", path).returncode == 0
        known = [
            name for name in ("info@a.test", "catchall@b.test", "bounce@a.test", "info@c.test") if database.takes(name)
        ]
    assert_takes_the_same(path, known, ["nobody@a.test"])


BY_HAND = """\
# Ours, and nobody else's.

export MAIL_GATEWAY_URL=%s   # the test server
MAIL_GATEWAY_DATABASE='mydatabase'
MAIL_GATEWAY_LOGIN=2
MAIL_GATEWAY_PASSWORD="%s"
OTHER_PROGRAM=1
MAIL_GATEWAY_ALIASES = 'info@example.com,old@example.com'  # whoever writes
#MAIL_GATEWAY_LOCAL_PARTS=commercial
MAIL_GATEWAY_ALIAS_DOMAINS=example.com
MAIL_GATEWAY_RECIPIENT_DELIMITER=+
# the end"""
UPDATED = """\
# Ours, and nobody else's.

export MAIL_GATEWAY_URL=%s   # the test server
MAIL_GATEWAY_DATABASE='mydatabase'
MAIL_GATEWAY_LOGIN=2
MAIL_GATEWAY_PASSWORD="%s"
OTHER_PROGRAM=1
MAIL_GATEWAY_ALIASES = "#1@example.com,info@example.com,notifications@example.com,notifications@second.example,\
o'brien@second.example"  # whoever writes
#MAIL_GATEWAY_LOCAL_PARTS=commercial
MAIL_GATEWAY_LOCAL_PARTS='#1'
MAIL_GATEWAY_ALIAS_DOMAINS=example.com,second.example
MAIL_GATEWAY_ALLOWED_DOMAINS=allowed.example
MAIL_GATEWAY_CATCHALL=all,catchall
MAIL_GATEWAY_BOUNCE=bounce,returns
MAIL_GATEWAY_RECIPIENT_DELIMITER=+
# the end"""


def test_an_update_changes_the_lines_of_the_addresses_alone(tmp_path: Path, database: Server) -> None:
    path = tmp_path / "mail-gateway.env"
    before = BY_HAND % (database.url, PASSWORD)
    path.write_text(before)
    path.chmod(0o640)
    said = ask(path, "settings", "--update", "--dry-run")
    assert (said.returncode, path.read_text()) == (0, before)
    assert all(word in said.stdout for word in ("ALIASES", "old@example.com", "allowed.example", "would be written"))
    assert ask(path, "settings", "--update").returncode == 0
    assert path.read_text() == UPDATED % (database.url, PASSWORD)
    assert path.stat().st_mode & 0o777 == 0o640
    assert_takes_the_same(path, [*KNOWN, "info+x@example.com"], [*UNKNOWN, "old@example.com"])
    assert "is as it should be" in ask(path, "settings", "--update").stdout


def test_where_domains_alone_decide_they_go_on_to(tmp_path: Path, database: Server) -> None:
    path = tmp_path / "mail-gateway.env"
    lines = [
        line
        for line in (BY_HAND % (database.url, PASSWORD)).splitlines()
        if not line.startswith("MAIL_GATEWAY_ALIASES")
    ]
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    assert ask(path, "settings", "--update").returncode == 0
    assert_takes_the_same(path, ["nobody@example.com", "new@second.example"], ["nobody@elsewhere.test"])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "MAIL_GATEWAY_ALIASES=a@b\n"),
        ("X=1", "X=1\nMAIL_GATEWAY_ALIASES=a@b\n"),
        ("MAIL_GATEWAY_ALIASES=", "MAIL_GATEWAY_ALIASES=a@b"),
        ("MAIL_GATEWAY_ALIASES=x@y#z # why\r\nX=1\r\n", "MAIL_GATEWAY_ALIASES=a@b # why\r\nX=1\r\n"),
        ("'MAIL_GATEWAY_ALIASES'=\"x@y\"\n\n", "'MAIL_GATEWAY_ALIASES'=a@b\n\n"),
        ("X='\nMAIL_GATEWAY_ALIASES=x'\n", "X='\nMAIL_GATEWAY_ALIASES=x'\nMAIL_GATEWAY_ALIASES=a@b\n"),
        ("# MAIL_GATEWAY_ALIASES=x@y\n\nX=1\n", "# MAIL_GATEWAY_ALIASES=x@y\nMAIL_GATEWAY_ALIASES=a@b\n\nX=1\n"),
    ],
)
def test_a_line_is_changed_where_it_stands(before: str, after: str) -> None:
    assert updated(before, {"ALIASES": ["a@b"]}) == after


def test_a_wrong_answer_changes_nothing(tmp_path: Path, database: Server, endpoint: Endpoint) -> None:
    path = tmp_path / "mail-gateway.env"
    many = ",".join(f"{number}@example.com" for number in range(40))
    before = (BY_HAND % (database.url, PASSWORD)).replace("info@example.com,old@example.com", many)
    path.write_text(before)
    path.chmod(0o600)
    finished = ask(path, "settings", "--update")
    assert (finished.returncode, path.read_text()) == (1, before)
    assert "stays as it is" in finished.stderr
    path.write_text(before.replace(database.url, endpoint.url))
    finished = ask(path, "settings", "--update", "--force")
    assert (finished.returncode, path.read_text()) == (1, before.replace(database.url, endpoint.url))
    assert "can't be read" in finished.stderr


def test_what_nobody_says_is_asked_for_at_a_terminal(tmp_path: Path, database: Server) -> None:
    arguments = given(tmp_path, database.url)
    finished = ask(empty(tmp_path), *arguments[:3])
    assert (finished.returncode, "--database says it" in finished.stderr) == (2, True)
    controller, terminal = pty.openpty()
    words = [sys.executable, "-m", "mailgate.admin", "--env-file", str(empty(tmp_path)), *map(str, arguments[:3])]
    with subprocess.Popen(
        words,
        stdin=terminal, stdout=subprocess.PIPE, stderr=terminal, cwd=ROOT, env=ENVIRONMENT | coverage_environment(),
        start_new_session=True,
        text=True,
    ) as process:  # fmt: skip
        os.close(terminal)
        for question, answer in {"database: ": "mydatabase", "Login: ": "2", "API key: ": PASSWORD}.items():
            seen = ""
            while not seen.endswith(question):
                seen += os.read(controller, 1).decode()
            os.write(controller, f"{answer}\n".encode())
        out, _ = process.communicate(timeout=60)
    os.close(controller)
    assert process.returncode == 0
    assert "MAIL_GATEWAY_PASSWORD=********\n" in out
    assert "MAIL_GATEWAY_DATABASE=mydatabase\n" in out
    assert PASSWORD not in out
