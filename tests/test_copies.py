"""Whom a message was for: a copy for others serves them, a copy for the same does not, and another mail is one."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.gateway import Gateway
from support.journal import execute
from support.mail_database_server import PASSWORD, Server, command
from support.service import Service, running

ALIASES = {"info": "crm.lead", "jobs": "crm.lead", "support": "project.task", "help": "project.task"}
DATE = b"Date: Sun, 29 Nov 2026 10:00:00 +0000\n"
LATER = b"Date: Sun, 06 Dec 2026 10:00:00 +0000\n"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """mail_database with four aliases."""
    store = f"sqlite:///{tmp_path_factory.mktemp('copies')}/mail.db"
    world = {
        "alias_domains": [{"id": 1, "name": "example.com"}],
        "parameters": {"mail.gateway.loop.threshold": "1000000"},
        "companies": [{"id": 1, "name": "Example", "email": "office@example.com", "alias_domain": "example.com"}],
        "aliases": [
            {"id": number, "local_part": name, "domain": "example.com", "model": model}
            for number, (name, model) in enumerate(ALIASES.items(), 1)
        ],
    }
    path = tmp_path_factory.mktemp("world") / "world.json"
    path.write_text(json.dumps(world))
    command(store, "load", str(path))
    server = Server(store)
    yield server
    server.stop()


class Way:
    """A way into the database, and what each delivery has made there."""

    def __init__(self, name: str, gateway: Gateway, database: Server, service: Service | None) -> None:
        self.name, self.gateway, self.database, self.service = name, gateway, database, service
        self.count = 0

    def deliver(
        self,
        recipients: str,
        to: str = "list@lists.test",
        more: bytes = DATE,
        id: str = "1",
        original: str = "",
        text: bytes = b"words\n",
    ) -> list[str]:
        """Deliver a message with this id, and return the models of the records that this has made."""
        self.count += 1
        before = self._records()
        options = [f"--queue-id=4ZkXq9{self.count}", "--sender=ann@outside.test"]
        if self.service:
            options.append(f"--service={self.service.address}")
        options += [f"--original-recipient={name}@example.com" for name in original.split()]
        addresses = [f"{name}@example.com" for name in recipients.split()]
        message = f"From: Ann <ann@outside.test>\nTo: {to}\nMessage-ID: <{id}.{self.name}@outside.test>\n".encode()
        result = self.gateway.run(*options, "--", *addresses, message=message + more + b"Subject: x\n\n" + text)
        assert result.status == 0, result
        return sorted(model for model, _ in self._records() - before)

    def _records(self) -> set[tuple[str, int]]:
        return {(row["model"], row["id"]) for row in self.database.dump()["records"]}


@pytest.fixture(params=["pipe", "service"])
def way(request: pytest.FixtureRequest, database: Server, tmp_path: Path) -> Iterator[Way]:
    settings = {"URL": database.url, "PASSWORD": PASSWORD, "LOGIN": "2"}
    gateway = Gateway(tmp_path, **settings)
    name = os.urandom(8).hex()
    if request.param == "pipe":
        yield Way(name, gateway, database, None)
        return
    with running(Service(tmp_path, **settings)) as service:
        yield Way(name, gateway, database, service)


def test_a_list_s_copy_to_another_alias_is_served(way: Way) -> None:
    assert way.deliver("info") == ["crm.lead"]
    assert way.deliver("support") == ["project.task"]
    assert way.deliver("support") == []
    assert way.deliver("info") == []
    assert way.deliver("support jobs") == ["crm.lead"]
    assert way.deliver("jobs help info") == ["project.task"]
    assert way.deliver("help jobs support info") == []


def test_whom_the_header_names_the_database_has_served_with_the_first(way: Way) -> None:
    header = "info@example.com, Support <support@example.com>"
    assert way.deliver("info", header) == ["crm.lead", "project.task"]
    assert way.deliver("support", header) == []


def test_a_copy_in_bcc_that_comes_later_makes_nothing_twice(way: Way) -> None:
    """Its header names an alias that has been served: the copy does not name it."""
    assert way.deliver("info", "info@example.com") == ["crm.lead"]
    assert way.deliver("support", "info@example.com") == ["project.task"]
    assert way.deliver("info support", "info@example.com") == []


@pytest.mark.parametrize("special", ["catchall", "bounce"])
def test_a_copy_to_catchall_or_bounce_of_what_is_on_a_record_is_told_to_nobody(way: Way, special: str) -> None:
    assert way.deliver("info", id=special) == ["crm.lead"]
    before = way.database.dump()["notices"]
    assert way.deliver(special, id=special) == []
    assert way.database.dump()["notices"] == before


def test_another_date_is_another_message(way: Way) -> None:
    assert way.deliver("info") == ["crm.lead"]
    assert way.deliver("info", more=LATER) == ["crm.lead"]
    assert way.deliver("info", more=LATER) == []
    assert way.deliver("info") == []
    assert way.deliver("support", more=LATER) == ["project.task"]
    assert way.deliver("support") == ["project.task"]


@pytest.mark.parametrize(
    "copy",
    [
        {"more": DATE + b"Received: from a by b; Sun, 29 Nov 2026 10:00:01 +0000\n"},
        {"more": DATE + b"List-Unsubscribe: <mailto:x@lists.test>\n"},
        {"more": DATE.replace(b"\n", b" (UTC)\n")},
        {"more": DATE.replace(b"10:00:00 +0000", b"12:00:00 +0200")},
        {"more": b"Date: yesterday\n"},
        {"more": b""},
        {"text": b"words\n-- \nTo leave the list: x@lists.test\n"},
    ],
)
def test_the_same_date_or_none_is_the_same_message(way: Way, copy: dict) -> None:
    assert way.deliver("info") == ["crm.lead"]
    assert way.deliver("info", **copy) == []


def test_an_answer_with_an_alias_of_another_kind_in_bcc_is_on_its_thread_and_at_the_alias(way: Way) -> None:
    assert way.deliver("info", id="first") == ["crm.lead"]
    answer = f"In-Reply-To: <first.{way.name}@outside.test>\n".encode() + LATER
    for _ in range(2):
        before = len(way.database.dump()["messages"])
        made = way.deliver("catchall support", "catchall@example.com", answer, id="answer")
        assert (made, len(way.database.dump()["messages"]) - before) in ((["project.task"], 2), ([], 0))
    messages = [row for row in way.database.dump()["messages"] if row["subject"] == "x"][-2:]
    assert sorted(row["model"] for row in messages) == ["crm.lead", "project.task"]


def test_an_answer_with_an_alias_of_its_own_kind_in_bcc_is_on_its_thread_once(way: Way) -> None:
    assert way.deliver("info", id="first") == ["crm.lead"]
    answer = f"In-Reply-To: <first.{way.name}@outside.test>\n".encode() + LATER
    before = len(way.database.dump()["messages"])
    assert way.deliver("catchall jobs", "catchall@example.com", answer, id="answer") == []
    assert len(way.database.dump()["messages"]) == before + 1


@pytest.mark.parametrize(
    ("deliveries", "made"),
    [
        (["catchall", "jobs", "info jobs catchall"], [1, 0, 0]),
        (["catchall", "jobs support", "help support info"], [1, 1, 1]),
        (["support", "catchall jobs", "info", "jobs help"], [1, 1, 0, 1]),
    ],
)
def test_an_answer_is_on_its_thread_once_whoever_gets_a_copy_of_it(
    way: Way, deliveries: list[str], made: list[int]
) -> None:
    """An alias of the thread's own kind makes no record of an answer, but would have it there once more."""
    assert way.deliver("info", id="first") == ["crm.lead"]
    answer = f"In-Reply-To: <first.{way.name}@outside.test>\n".encode() + LATER
    counts = []
    for recipients in deliveries:
        before = len(way.database.dump()["messages"])
        way.deliver(recipients, "catchall@example.com", answer, id="answer")
        counts.append(len(way.database.dump()["messages"]) - before)
    assert counts == made


@pytest.mark.parametrize("name", ["catchall", "bounce"])
def test_the_database_s_own_addresses_are_known_to_settings_without_a_domain(
    database: Server, tmp_path: Path, name: str
) -> None:
    gateway = Gateway(tmp_path, URL=database.url, PASSWORD=PASSWORD, LOGIN="2", ALIAS_DOMAINS=None)
    message = f"From: Ann <ann@outside.test>\nMessage-ID: <{os.urandom(8).hex()}@outside.test>\n\nwords\n".encode()
    result = gateway.run("--sender=ann@outside.test", "--", f"{name}@example.com", message=message)
    assert result.ending == (0, "2.0.0", "accepted")
    assert not result.facts["cause"]


def test_a_redirected_address_in_the_header_has_not_been_served(way: Way) -> None:
    """The header names what it was. Whether that or the new one is the database's, the database alone can tell."""
    header = "info@example.com, contact@example.com, help@example.com"
    assert way.deliver("info", header) == ["crm.lead", "project.task"]
    assert way.deliver("jobs", header, original="contact") == ["crm.lead"]
    assert way.deliver("jobs", header, original="contact") == []
    assert way.deliver("new", header, original="help") == []


def test_the_journal_has_whom_the_database_has_served(way: Way) -> None:
    way.deliver("info")
    way.deliver("support")
    journal = (way.service or way.gateway).settings["JOURNAL"]
    rows = [row["recipients"].split() for row in execute(journal, "select recipients from message")]
    assert sorted(rows) == [["info@example.com"], ["support@example.com"]]
