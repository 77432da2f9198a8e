"""The desk's send-test: by a mail server, or straight; the legs, the record, and what is removed of it."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.admin import command
from support.desk import WORLD, Desk
from support.gateway import ENVIRONMENT
from support.mail_database_server import ROOT, Server, served
from support.smtp_sink import sink

OLD = {"id": 4, "local_part": "old", "domain": "example.com", "model": "crm.lead", "thread_id": 1}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Server]:
    with served(f"sqlite:///{tmp_path}/database.db", WORLD | {"aliases": [*WORLD["aliases"], OLD]}) as server:
        yield server


@pytest.fixture
def desk(tmp_path: Path, database: Server) -> Desk:
    return Desk(tmp_path, database.url)


def test_straight_to_its_record_which_is_removed(desk: Desk, database: Server) -> None:
    status, out, err = desk.run("send-test", "info@example.com", "--direct", "--sender=joe@outside.test", "--remove")
    said = "Sending a test to info@example.com from joe@outside.test, straight through the gateway.\n"
    assert (status, err) == (0, said)
    assert [line.split()[0] for line in out.splitlines()[2:4]] == ["the", "all"]
    assert "it is on crm.lead 1" in out
    assert out.endswith("crm.lead 1 is removed.\n")
    assert database.search("crm.lead", [], "id") == []
    assert (desk.run("audit").status, desk.facts("audit")["places"]["dropped by hand"]) == (0, 1)
    assert "It was a test, whose record send-test has removed." in desk.run("trace", "joe@outside.test").out


def test_by_the_mail_server(desk: Desk, database: Server) -> None:
    with sink() as server:
        place = "{}:{}".format(*server.address)
        words = desk.command("send-test", "info@example.com", "--smtp", place, "--json")
        with subprocess.Popen(words, stdout=subprocess.PIPE, env=ENVIRONMENT, cwd=ROOT) as process:
            assert server.arrived.wait(60)
            sender, recipients, data = server.mails[0]
            result = desk.gateway.run("--queue-id=4Xy", f"--sender={sender}", *recipients, message=data)
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


def test_the_try_is_told_though_the_database_has_the_message_before_the_journal(desk: Desk, database: Server) -> None:
    with sink() as server:
        smtp = "{}:{}".format(*server.address)
        words = command(desk.gateway.env_file, "send-test", "info@example.com", "--smtp", smtp, "--json")
        with subprocess.Popen(words, stdout=subprocess.PIPE, env=ENVIRONMENT, cwd=ROOT) as process:
            assert server.arrived.wait(60)
            sender, recipients, data = server.mails[0]
            database.deliver(data)
            desk.gateway.run("--queue-id=4Xy", f"--sender={sender}", *recipients, message=data)
            assert process.stdout
            facts = json.loads(process.stdout.read())
    assert [leg["what"] for leg in facts["legs"]] == ["the mail server", "the gateway", "all"]


def test_a_record_that_was_there_before_stays(desk: Desk, database: Server) -> None:
    database.call("crm.lead", "create", {"name": "An order"})
    status, out, _ = desk.run("send-test", "old@example.com", "--direct", "--remove")
    assert (status, "crm.lead 1 was there before, and stays" in out) == (0, True)
    assert [row["name"] for row in database.search("crm.lead", [], "name")] == ["An order"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inof@example.com", "--direct"], ["unknown_recipient", "explain --address"]),
        (["broken@example.com", "--direct"], ["held", "Invalid field", "held release NAME, or --all."]),
        (["info@example.com", "--smtp=127.0.0.1:1"], ["does not take it", "Connection refused"]),
    ],
)
def test_what_does_not_arrive(desk: Desk, database: Server, arguments: list[str], words: list[str]) -> None:
    status, out, _ = desk.run("send-test", *arguments)
    assert status == 1
    text = " ".join(out.split())
    assert [word for word in [*words, "mail-gateway-admin trace '<"] if word not in text] == []


def test_what_the_mail_server_refuses_is_not_waited_for(desk: Desk, database: Server) -> None:
    with sink() as server:
        server.refused["info@example.com"] = 550
        status, out, _ = desk.run("send-test", "info@example.com", "--smtp", "{}:{}".format(*server.address))
    assert (status, "refuses it: 550 no" in out) == (1, True)


def test_what_gets_no_record_in_time_is_said_so(desk: Desk, database: Server) -> None:
    with sink() as server:
        status, out, _ = desk.run(
            "send-test", "info@example.com", "--smtp", "{}:{}".format(*server.address), "--wait=0"
        )
    assert (status, "it is on no record" in out) == (1, True)


def test_a_dry_run_sends_nothing(desk: Desk, database: Server) -> None:
    said = desk.run("send-test", "info@example.com", "--direct", "--remove", "--dry-run").out
    assert said.startswith("Would send a test to info@")
    assert "would be removed" in " ".join(said.split())
    assert database.search("crm.lead", [], "id") == []


@pytest.mark.parametrize("arguments", [["info"], ["info@example.com", "--smtp=here"], ["info@example.com\r\nRSET"], []])
def test_wrong_usage(desk: Desk, database: Server, arguments: list[str]) -> None:
    assert desk.run("send-test", *arguments).status == 2
