"""What a custom domain needs, for each who may redirect; and the link by which a provider has that confirmed."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.admin import ROOT, ask, facts
from support.gateway import ENVIRONMENT, Gateway, coverage_environment
from support.mail_database_server import PASSWORD, Server, served

WORLD = {
    "alias_domains": [{"name": "company.test", "catchall": "catchall", "bounce": "bounce"}],
    "companies": [{"id": 1, "name": "Company", "email": "office@company.test", "alias_domain": "company.test"}],
    "aliases": [
        {"local_part": "info", "domain": "company.test", "model": "crm.lead"},
        {"local_part": "jobs", "domain": "company.test", "model": "crm.lead", "local_part_detection": True},
    ],
    "parameters": {"mail.catchall.domain.allowed": "mail.company.test"},
}
LINK = "https://provider.test/confirm?id=1&code=x.y"
MAIL = f"""\
From: Provider <no-reply@provider.test>
To: catchall@company.test
Message-ID: <1@provider.test>
Subject: =?utf-8?q?Best=C3=A4tigung?= \x1b[31m
Content-Type: multipart/alternative; boundary=b

--b
Content-Type: text/plain; charset=no-such-charset

Please confirm: {LINK}.
\x1b]0;x\x07
--b
Content-Type: text/html

<a href="{LINK.replace("&", "&amp;")}">Confirm</a>
--b--
""".encode()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(f"sqlite:///{tmp_path_factory.mktemp('database')}/mail.db", WORLD) as server:
        yield server


@pytest.fixture
def gateway(tmp_path: Path, database: Server) -> Gateway:
    (tmp_path / "held").mkdir()
    settings = {"URL": database.url, "PASSWORD": PASSWORD, "ALIAS_DOMAINS": "company.test", "HOLD": tmp_path / "held"}
    made = Gateway(tmp_path, **settings)
    made.command()  # which writes the settings file
    return made


ROWS = [
    ("bounce@company.test", "bounce@mail.company.test", False),
    ("catchall@company.test", "catchall@mail.company.test", False),
    ("info@company.test", "info@mail.company.test", False),
    ("jobs@company.test", "jobs@mail.company.test", True),
    ("notifications@company.test", "notifications@mail.company.test", False),
]


def test_each_address_of_the_domain_is_redirected(gateway: Gateway) -> None:
    found = facts(gateway.env_file, "redirections", "--to", "Mail.Company.test")
    assert (found["domain"], found["to"]) == ("company.test", "mail.company.test")
    assert [tuple(row.values()) for row in found["redirections"]] == ROWS
    screen = ask(gateway.env_file, "redirections", "--to", "mail.company.test")
    assert screen.returncode == 1
    assert "does not know 4 of the 5 addresses on the right" in screen.stdout
    assert max(map(len, screen.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("postfix", [f"{address} {target}" for address, target, _ in ROWS]),
        # with Exim the right side is what the database knows
        ("exim", [f"{address} {target if is_known else address}" for address, target, is_known in ROWS]),
    ],
)
def test_a_mail_server_gets_them_as_its_table(gateway: Gateway, tmp_path: Path, name: str, expected: list[str]) -> None:
    path = tmp_path / "redirections"
    command = ("redirections", "--to", "mail.company.test", "--format", name)
    assert ask(gateway.env_file, *command, "--output", path).returncode == 0
    assert path.read_text().splitlines()[1:] == expected
    assert ask(gateway.env_file, *command).stdout == path.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--to says in which domain"),
        (["--to", "company.test"], "--domain says which: the database names none"),
        (["--to", "company.test", "--domain", "company.test"], "--to is the domain itself"),
        (["--to", "a b"], "take a domain each"),
        (["--to", "a.test,b.test"], "take a domain each"),
        (["--to", "a.test", "--output", "x"], "--output is for"),
    ],
)
def test_what_makes_no_sense_is_said(gateway: Gateway, arguments: list[str], said: str) -> None:
    finished = ask(gateway.env_file, "redirections", *arguments)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert said in finished.stderr


@contextlib.contextmanager
def watching(gateway: Gateway) -> Iterator[subprocess.Popen[str]]:
    """Watch for a while, from when copies are made."""
    words = [sys.executable, "-m", "mailgate.admin", "--env-file", str(gateway.env_file), "redirections", "watch"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=ENVIRONMENT | coverage_environment(),
    ) as process:  # fmt: skip
        try:
            until = time.monotonic() + 60
            while not (gateway.folder / "held/watched/until").exists():
                assert time.monotonic() < until
                assert process.poll() is None
                time.sleep(0.05)
            yield process
        finally:
            process.kill()


def copies(gateway: Gateway) -> list[Path]:
    return [*gateway.folder.glob("held/watched/new/*")]


@pytest.mark.parametrize("name", ["catchall", "bounce"])
def test_the_next_mail_to_catchall_or_bounce_is_shown_and_the_database_has_it(gateway: Gateway, name: str) -> None:
    message = MAIL.replace(b"catchall@", f"{name}@".encode()).replace(b"<1@", f"<{name}@".encode())
    with watching(gateway) as process:
        other = f"Subject: https://elsewhere.test\n\n{name}\n".encode()
        assert gateway.run("info@company.test", message=other).ending[2] == "delivered"
        assert not copies(gateway)
        ending = gateway.run("--sender=no-reply@provider.test", f"{name}@company.test", message=message).ending
        assert ending == (0, "2.0.0", "accepted")
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.splitlines()[0] == LINK
    assert out.count(LINK) == 2  # as a line of its own, and in the text
    assert not {"\x1b", "\x07"} & set(out)
    assert all(word in out for word in ("Bestätigung", "no-reply@provider.test", "Please confirm"))
    assert not copies(gateway)
    assert not [*gateway.folder.glob("held/new/*")]


def test_without_a_watcher_there_is_no_copy(gateway: Gateway) -> None:
    with watching(gateway):
        pass
    lease = gateway.folder / "held/watched/until"
    assert 30 < lease.stat().st_mtime - time.time() <= 60
    os.utime(lease, (time.time() - 1, time.time() - 1))
    assert gateway.run("catchall@company.test", message=MAIL.replace(b"<1@", b"<2@")).status == 0
    assert not copies(gateway)


def test_a_copy_that_can_not_be_made_changes_nothing(gateway: Gateway) -> None:
    with watching(gateway):
        (gateway.folder / "held/watched/new").write_text("no folder")
        assert gateway.run("catchall@company.test", message=MAIL.replace(b"<1@", b"<3@")).ending == (
            0,
            "2.0.0",
            "accepted",
        )


def test_who_waits_in_vain_is_told(gateway: Gateway) -> None:
    finished = ask(gateway.env_file, "redirections", "watch", "--seconds", "0")
    assert (finished.returncode, finished.stdout) == (1, "")
    assert "no such mail came within 0 seconds" in finished.stderr
