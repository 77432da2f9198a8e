"""The desk's send-test: by a mail server, or straight; the legs, the record, and what is removed of it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.gateway import ENVIRONMENT, Gateway
from support.mail_database_server import PASSWORD, ROOT, Server, served
from support.smtp_sink import sink

WORLD: dict[str, Any] = {
    "alias_domains": [{"id": 1, "name": "example.com", "catchall": "catchall", "bounce": "bounce"}],
    "companies": [{"id": 1, "name": "Company", "email": "office@example.com", "alias_domain": "example.com"}],
    "aliases": [
        {"id": 1, "local_part": "info", "domain": "example.com", "model": "crm.lead"},
        {"id": 2, "local_part": "old", "domain": "example.com", "model": "crm.lead", "thread_id": 1},
        {"id": 3, "local_part": "broken", "domain": "example.com", "model": "crm.lead", "defaults": {"colour": "red"}},
    ],
    "partners": [{"id": 3, "name": "Administrator", "email": "admin@example.com"}],
    "users": [{"id": 2, "login": "admin", "partner_id": 3}],
}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Server]:
    with served(f"sqlite:///{tmp_path}/database.db", WORLD) as server:
        yield server


@pytest.fixture
def gateway(tmp_path: Path, database: Server) -> Gateway:
    (tmp_path / "held").mkdir()
    found = Gateway(tmp_path, URL=database.url, LOGIN="2", PASSWORD=PASSWORD, HOLD=tmp_path / "held", PATIENCE=0)
    found.command()  # writes the settings
    return found


def command(gateway: Gateway, *arguments: str) -> list[str]:
    words = ["--env-file", str(gateway.env_file), "send-test", *arguments]
    return [sys.executable, "-m", "mailgate.admin", *words]


def run(gateway: Gateway, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(command(gateway, *arguments), capture_output=True, env=ENVIRONMENT, cwd=ROOT, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_straight_to_its_record_which_is_removed(gateway: Gateway, database: Server) -> None:
    status, out, err = run(gateway, "info@example.com", "--direct", "--sender=joe@outside.test", "--remove")
    said = "Sending a test to info@example.com from joe@outside.test, straight through the gateway.\n"
    assert (status, err) == (0, said)
    assert [line.split()[0] for line in out.splitlines()[2:4]] == ["the", "all"]
    assert "it is on crm.lead 1" in out
    assert out.endswith("crm.lead 1 is removed.\n")
    assert database.search("crm.lead", [], "id") == []


def test_by_the_mail_server(gateway: Gateway, database: Server) -> None:
    with sink() as server:
        place = "{}:{}".format(*server.address)
        words = command(gateway, "info@example.com", "--smtp", place, "--json")
        with subprocess.Popen(words, stdout=subprocess.PIPE, env=ENVIRONMENT, cwd=ROOT) as process:
            assert server.arrived.wait(60)
            sender, recipients, data = server.mails[0]
            result = gateway.run("--queue-id=4Xy", f"--sender={sender}", *recipients, message=data)
            assert result.facts["outcome"] == "delivered"
            assert process.stdout
            facts = json.loads(process.stdout.read())
    assert (process.returncode, recipients) == (0, ["info@example.com"])
    assert [(leg["what"], leg["how"]) for leg in facts["legs"]] == [
        ("the mail server", "took it"),
        ("the gateway", "delivered"),
        ("all", "it is on crm.lead 1"),
    ]
    assert database.search("mail.message", [("message_id", "=", facts["message_id"])], "res_id")[0]["res_id"] == 1
    assert len(database.search("crm.lead", [], "id")) == 1


def test_the_try_is_told_though_the_database_has_the_message_before_the_journal(
    gateway: Gateway, database: Server
) -> None:
    with sink() as server:
        words = command(gateway, "info@example.com", "--smtp", "{}:{}".format(*server.address), "--json")
        with subprocess.Popen(words, stdout=subprocess.PIPE, env=ENVIRONMENT, cwd=ROOT) as process:
            assert server.arrived.wait(60)
            sender, recipients, data = server.mails[0]
            database.deliver(data)
            gateway.run("--queue-id=4Xy", f"--sender={sender}", *recipients, message=data)
            assert process.stdout
            facts = json.loads(process.stdout.read())
    assert [leg["what"] for leg in facts["legs"]] == ["the mail server", "the gateway", "all"]


def test_a_record_that_was_there_before_stays(gateway: Gateway, database: Server) -> None:
    database.call("crm.lead", "create", {"name": "An order"})
    status, out, _ = run(gateway, "old@example.com", "--direct", "--remove")
    assert (status, "crm.lead 1 was there before, and stays" in out) == (0, True)
    assert [row["name"] for row in database.search("crm.lead", [], "name")] == ["An order"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inof@example.com", "--direct"], ["unknown_recipient", "explain --address"]),
        (["broken@example.com", "--direct"], ["held", "Invalid field", "held release"]),
        (["info@example.com", "--smtp=127.0.0.1:1"], ["does not take it", "Connection refused"]),
    ],
)
def test_what_does_not_arrive(gateway: Gateway, database: Server, arguments: list[str], words: list[str]) -> None:
    status, out, _ = run(gateway, *arguments)
    assert status == 1
    text = " ".join(out.split())
    assert [word for word in [*words, "mail-gateway-admin trace '<"] if word not in text] == []


def test_what_the_mail_server_refuses_is_not_waited_for(gateway: Gateway, database: Server) -> None:
    with sink() as server:
        server.refused["info@example.com"] = 550
        status, out, _ = run(gateway, "info@example.com", "--smtp", "{}:{}".format(*server.address))
    assert (status, "refuses it: 550 no" in out) == (1, True)


def test_what_gets_no_record_in_time_is_said_so(gateway: Gateway, database: Server) -> None:
    with sink() as server:
        status, out, _ = run(gateway, "info@example.com", "--smtp", "{}:{}".format(*server.address), "--wait=0")
    assert (status, "it is on no record" in out) == (1, True)


def test_a_dry_run_sends_nothing(gateway: Gateway, database: Server) -> None:
    said = run(gateway, "info@example.com", "--direct", "--remove", "--dry-run")[1]
    assert said.startswith("Would send a test to info@")
    assert "would be removed" in " ".join(said.split())
    assert database.search("crm.lead", [], "id") == []


@pytest.mark.parametrize("arguments", [["info"], ["info@example.com", "--smtp=here"], ["info@example.com\r\nRSET"], []])
def test_wrong_usage(gateway: Gateway, database: Server, arguments: list[str]) -> None:
    assert run(gateway, *arguments)[0] == 2
