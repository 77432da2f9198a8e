"""The addresses of the database as a mail server's table: they are its own, and no wrong answer replaces a table."""

import contextlib
import itertools
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.admin import ask, facts
from support.endpoint import Endpoint, fault, returns
from support.gateway import SETTINGS, write_settings
from support.mail_database_server import PASSWORD, Server, served
from support.old_odoo import OldOdoo

from mailgate.alias_list import DOMAIN_FIELDS

DOMAINS = ("example.com", "second.example", "xn--mller-kva.example")
# 2,000 aliases; some are known by their local-part, at the alias domains and the allowed one
WORLD = {
    "alias_domains": [{"name": name, "catchall": "catchall", "bounce": "bounce"} for name in DOMAINS],
    "aliases": [
        {
            "local_part": f"alias.{number}",
            "domain": domain,
            "model": "crm.lead",
            "local_part_detection": number % 100 == 0,
        }
        for number, domain in zip(range(2000), itertools.cycle(DOMAINS), strict=False)
    ],
    "parameters": {"mail.catchall.domain.allowed": "allowed.example"},
}
SMALL = {
    "alias_domains": [{"name": "example.com", "catchall": "catchall", "bounce": "bounce"}],
    "aliases": [
        {"local_part": "info", "domain": "example.com", "model": "crm.lead"},
        {"local_part": "#1", "domain": "example.com", "model": "crm.lead"},
        {"local_part": "*", "domain": "example.com", "model": "crm.lead"},
        {"local_part": "c++.dev", "domain": "example.com", "model": "crm.lead", "local_part_detection": True},
    ],
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(f"sqlite:///{tmp_path_factory.mktemp('large')}/mail.db", WORLD) as server:
        yield server


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(f"sqlite:///{tmp_path_factory.mktemp('small')}/mail.db", SMALL) as server:
        yield server


def settings_for(folder: Path, url: str, **settings: object) -> Path:
    path = folder / "settings.env"
    own = {"URL": url, "PASSWORD": PASSWORD, "ALIAS_DOMAINS": None, "LOG": folder / "log"}
    write_settings(path, SETTINGS | own | settings)
    return path


def test_the_list_is_that_of_the_database(tmp_path: Path, large: Server) -> None:
    aliases = large.search("mail.alias", [], "alias_name", "alias_full_name", "alias_incoming_local")
    domains = large.search("mail.alias.domain", [], "name", "catchall_email", "bounce_email", "default_from_email")
    everywhere = [*DOMAINS, "allowed.example"]
    expected = {row["alias_full_name"] for row in aliases}
    expected |= {row[f"{kind}_email"] for row in domains for kind in ("catchall", "bounce", "default_from")}
    expected |= {f"{row['alias_name']}@{name}" for row in aliases if row["alias_incoming_local"] for name in everywhere}
    assert len(aliases) == 2000
    env_file = settings_for(tmp_path, large.url)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    assert ask(env_file, "addresses").stdout.split("\n")[:-1] == sorted(expected)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    print(f"{len(expected)} addresses in {time.monotonic() - began:.2f} s, {cpu:.2f} s of CPU")
    assert cpu < 2  # the time on the clock is that of everything else on this machine, too
    assert facts(env_file, "addresses")["addresses"] == sorted(expected)


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("# ")]


ODD = r"^#1@example\.com$/:ok /^\*@example\.com$"  # which would be a comment, or an expression
BOUNCE = r"^bounce\+[^@]*@example\.com$"


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("plain", {}, "#1@ *@ bounce@ c++.dev@* c++.dev@ catchall@ info@ notifications@"),
        ("postfix", {}, "bounce@:ok c++.dev@:ok catchall@:ok info@:ok notifications@:ok"),
        ("postfix-regexp", {}, rf"/{ODD}/:ok /^c\+\+\.dev@/:ok /{BOUNCE}/:ok"),
        ("postfix-regexp", {"RECIPIENT_DELIMITER": "-"}, rf"/{ODD}/:ok /^c\+\+\.dev(-[^@]*)?@/:ok /{BOUNCE}/:ok"),
        (
            "exim",
            {},
            rf"bounce@ c++.dev@ catchall@ info@ notifications@ {ODD.replace('/:ok /', ' ')} ^c\+\+\.dev@ {BOUNCE}",
        ),
    ],
)
def test_each_format_has_all_of_them(
    tmp_path: Path, small: Server, name: str, settings: dict[str, str], expected: str
) -> None:
    finished = ask(settings_for(tmp_path, small.url, **settings), "addresses", "--format", name)
    assert finished.returncode == 0
    shown = [line.replace("@example.com", "@") for line in lines(finished.stdout)]
    assert shown == [word.replace(":ok", " ok") for word in expected.split()]


@pytest.mark.parametrize(
    ("version", "parameters", "settings", "expected"),
    [
        (14, {}, {}, "bounce@* catchall@* info@*"),
        (14, {}, {"ALIAS_DOMAINS": "a.test"}, "bounce@* bounce@a.test catchall@* catchall@a.test info@* info@a.test"),
        (16, {"domain": "a.test"}, {}, "bounce@* bounce@a.test catchall@* catchall@a.test info@* info@a.test"),
        (15, {"domain": "a.test", "domain.allowed": "b.test"}, {"ALIAS_DOMAINS": "c.test"},
         "bounce@* bounce@a.test bounce@b.test catchall@* catchall@a.test catchall@b.test info@a.test info@b.test"),
    ],
)  # fmt: skip
def test_before_17_addresses_have_no_domain(
    tmp_path: Path, version: int, parameters: dict[str, str], settings: dict[str, str], expected: str
) -> None:
    named = {f"mail.catchall.{name}": value for name, value in parameters.items()}
    with contextlib.closing(OldOdoo(version, ["info"], named)) as database:
        env_file = settings_for(tmp_path, database.url, **settings)
        assert ask(env_file, "addresses").stdout.split() == expected.split()
        expressions = lines(ask(env_file, "addresses", "--format", "postfix-regexp").stdout)
        assert expressions == [
            f"/{pattern}/ ok"
            for pattern in ["^bounce@", "^catchall@", *["^info@"] * ("info@*" in expected), r"^bounce\+[^@]*@"]
        ]


def test_json_is_a_format_too(tmp_path: Path, small: Server) -> None:
    env_file, path = settings_for(tmp_path, small.url), tmp_path / "list.json"
    assert ask(env_file, "addresses", "--format", "json", "--output", path).returncode == 0
    assert json.loads(path.read_text()) == facts(env_file, "addresses")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, small: Server) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    (folder / "main.cf").write_text("compatibility_level = 3.6\n")
    env_file = settings_for(folder, small.url)
    for name in ("postfix", "postfix-regexp"):
        assert ask(env_file, "addresses", "--format", name, "--output", folder / name).returncode == 0
    return folder


@pytest.mark.skipif(not shutil.which("postmap"), reason="no Postfix")
@pytest.mark.parametrize(
    ("address", "is_known"),
    [
        ("info@example.com", True),
        ("INFO@Example.COM", True),
        ("#1@example.com", True),
        ("*@example.com", True),
        ("x@example.com", False),
        ("c++.dev@example.com", True),
        ("c++.dev@elsewhere.test", True),
        ("cc.dev@elsewhere.test", False),
        ("bounce@example.com", True),
        ("bounce+12-crm.lead-1@example.com", True),
        ("bounce+1@elsewhere.test", False),
        ("info@elsewhere.test", False),
    ],
)
def test_postfix_reads_the_tables_as_they_are_meant(tables: Path, address: str, is_known: bool) -> None:
    maps = (f"texthash:{tables}/postfix", f"regexp:{tables}/postfix-regexp")
    commands = [["postmap", "-c", str(tables), "-q", address.lower(), each] for each in maps]
    found = [subprocess.run(command, capture_output=True, text=True, check=False) for command in commands]
    assert not any(each.stderr for each in found), found
    assert ("ok\n" in [each.stdout for each in found]) == is_known


def test_a_table_is_replaced_in_one_step_and_keeps_its_mode(tmp_path: Path, small: Server) -> None:
    env_file, path = settings_for(tmp_path, small.url), tmp_path / "recipients"
    command = ("addresses", "--format", "postfix", "--output", path)
    said = ask(env_file, *command, "--dry-run")
    assert (said.returncode, path.exists()) == (0, False)
    assert "would be replaced: 5" in " ".join(said.stdout.split())
    done = ask(env_file, *command)
    assert (said.stderr, done.returncode, done.stderr) == ("", 0, f"Replacing {path}.\n")
    assert path.stat().st_mode & 0o777 == 0o644
    whole = path.read_text()

    path.write_text(whole.replace("info@example.com ok\n", ""))
    path.chmod(0o640)
    os.chown(path, os.geteuid(), os.getegid())
    with path.open() as before:
        assert ask(env_file, *command).returncode == 0
        assert before.read() != whole  # who has it open reads the old one, as a whole
    assert (path.read_text(), path.stat().st_mode & 0o777) == (whole, 0o640)
    stamp = path.stat().st_ino
    assert "is as it should be" in " ".join(ask(env_file, *command).stdout.split())
    assert path.stat().st_ino == stamp
    assert [*tmp_path.glob("recipients*")] == [path]


def test_a_command_runs_where_the_file_was_replaced(tmp_path: Path, small: Server) -> None:
    env_file, path, trace = settings_for(tmp_path, small.url), tmp_path / "recipients", tmp_path / "trace"
    command = ("addresses", "--output", path, "--then")
    for _ in range(2):
        assert ask(env_file, *command, f"sh -c 'echo x >> {trace}'").returncode == 0
    assert trace.read_text() == "x\n"
    path.unlink()
    finished = ask(env_file, *command, "false")
    assert (finished.returncode, path.exists()) == (1, True)
    assert finished.stderr.startswith(f"Replacing {path}, then running: false\n")
    assert "the file is replaced, but 'false' ended with status 1" in finished.stderr


NEW = returns({"server_version_info": [17, 0]})
BEFORE = "# Made by mail-gateway-admin addresses --format postfix\n" + "".join(
    f"{n}@example.com ok\n" for n in range(15)
)


@pytest.mark.parametrize(
    ("before", "settings", "said"),
    [
        (BEFORE, {}, "it would have 5 addresses, and has 15"),
        ("info@example.com ok\n@its.domain ok\n", {}, "what is there was not made by this command"),
        (BEFORE.replace(" postfix", " exim"), {}, "what is there was not made by this command"),
        ("", {"MODEL": "crm.lead"}, "MAIL_GATEWAY_MODEL takes what no alias takes"),
    ],
)
def test_an_answer_that_looks_wrong_replaces_nothing_unless_it_is_said(
    tmp_path: Path, small: Server, before: str, settings: dict[str, str], said: str
) -> None:
    env_file, path = settings_for(tmp_path, small.url, **settings), tmp_path / "recipients"
    path.write_text(before)
    command = ("addresses", "--format", "postfix", "--output", path)
    finished = ask(env_file, *command)
    assert (finished.returncode, path.read_text()) == (1, before)
    assert said in finished.stderr
    assert ask(env_file, *command, "--force").returncode == 0
    assert len(lines(path.read_text())) == 5


@pytest.mark.parametrize(
    ("version", "answer", "said"),
    [
        (NEW, returns([]), "it is empty"),
        (NEW, fault(3, "Access Denied"), "Access Denied"),
        (NEW, fault(4, "not allowed"), "not allowed"),
        (NEW, returns("what is this"), "is no list of addresses"),
        (NEW, returns([{"id": "x", **dict.fromkeys(DOMAIN_FIELDS, "x")}]), "is no list of addresses"),
        (returns({"server_version_info": [13, 0]}), returns([]), "can be read from version"),
        (None, returns([]), "refused"),
    ],
)
def test_no_answer_replaces_nothing(
    tmp_path: Path, endpoint: Endpoint, version: bytes | None, answer: bytes, said: str
) -> None:
    path = tmp_path / "recipients"
    path.write_text(BEFORE)
    if version:
        endpoint.version, endpoint.answers = version, [answer]
    else:
        endpoint.close()
    finished = ask(
        settings_for(tmp_path, endpoint.url), "addresses", "--format", "postfix", "--output", path, "--force"
    )
    assert (finished.returncode, path.read_text()) == (1, BEFORE)
    assert said in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_a_file_that_can_not_be_written_is_as_it_was(tmp_path: Path, small: Server) -> None:
    env_file = settings_for(tmp_path, small.url)
    finished = ask(env_file, "addresses", "--output", tmp_path / "no" / "such")
    assert (finished.returncode, finished.stdout) == (1, "")
    assert "can't be written: No such file or directory" in finished.stderr
