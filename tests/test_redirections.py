"""A redirection within the database's own domain: the mail arrives at the address that the database knows, once."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.endpoint import Endpoint, Request, fault, returns, traceback
from support.gateway import Gateway
from support.mail_database_server import PASSWORD, Server, served
from support.service import Service, running

NO_ROUTE = traceback("ValueError: No possible route found for incoming message from a@b.test to c@example.com")
RECEIVED = (
    b"Received: from outside.test by mx.test (Postfix) with ESMTP id 4ZkXq91NbZ; Sun, 22 Nov 2026 10:00:00 +0000\n"
)
MESSAGE = b"From: Ann <ann@outside.test>\nMessage-ID: <1@outside.test>\nSubject: hello\n\nbody\n"


class Routing:
    """An answer of a database that knows these addresses, and what it has made of a message: a record for each."""

    def __init__(self, known: str) -> None:
        self.known = known.split()
        self.records: list[str] = []

    def __call__(self, connection: socket.socket, request: Request) -> None:
        if request.call[0][4] != "message_process":  # it has no list of its addresses for us
            connection.sendall(fault(4, "not allowed"))
            return
        (field,) = re.findall(rb"(?m)^Delivered-To: (.*)$", request.message)
        named = [name.decode().lower() for name in re.findall(rb"<([^<>]*)>", field)]
        found = [name.partition("@")[0] for name in named if name.partition("@")[0] in self.known]
        self.records += found
        connection.sendall(returns(7) if found else fault(1, NO_ROUTE))


def pairs_of(words: str) -> list[tuple[str, str]]:
    """Return recipients and original recipients of ``recipient<original``."""
    return [(word.partition("<")[0], word.partition("<")[2]) for word in words.split()]


@pytest.mark.parametrize("way", ["pipe", "service"])
@pytest.mark.parametrize(
    ("recipients", "known", "records", "status"),
    [
        ("info<contact", "info", "info", 0),
        ("info<contact", "contact", "contact", 0),
        ("info<contact", "info contact", "info", 0),
        ("info<contact", "", "", 67),
        ("info<info", "info", "info", 0),
        ("info<group jobs<group", "info jobs", "info jobs", 0),
        ("info<group jobs<group", "group", "group", 0),
        ("info", "info", "info", 0),  # all that Exim's batch says
        ("info", "", "", 67),
        ("catchall<sales", "sales catchall", "sales", 0),
        ("catchall<sales", "catchall", "catchall", 0),
        ("bounce+7-crm.lead-1", "bounce", "bounce", 0),
        ("bounce+7-crm.lead-1", "bounce bounce+7-crm.lead-1", "bounce+7-crm.lead-1", 0),
    ],
)
def test_it_arrives_where_the_database_knows_it(
    gateway: Gateway,
    service: Service,
    endpoint: Endpoint,
    way: str,
    recipients: str,
    known: str,
    records: str,
    status: int,
) -> None:
    routing = Routing(known)
    endpoint.answers = [routing]
    originals = [
        f"--original-recipient={original and original + '@example.com'}" for _, original in pairs_of(recipients)
    ]
    arguments = [*originals, "--", *(f"{resolved}@example.com" for resolved, _ in pairs_of(recipients))]
    if way == "service":
        arguments.insert(0, f"--service={service.address}")
    for _ in range(2):  # the second is a copy, or the MTA's next try
        result = gateway.run("--queue-id=4ZkXq91NbZ", "--sender=a@b.test", *arguments, message=RECEIVED + MESSAGE)
        assert (result.status, " ".join(routing.records)) == (status, records)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """mail_database with the aliases info and jobs (leads), and contact (a task)."""
    aliases = [("info", "crm.lead"), ("jobs", "crm.lead"), ("contact", "project.task")]
    world = {
        "alias_domains": [{"id": 1, "name": "example.com"}],
        "companies": [{"id": 1, "name": "Example", "email": "office@example.com", "alias_domain": "example.com"}],
        "aliases": [
            {"id": number, "local_part": name, "domain": "example.com", "model": model}
            for number, (name, model) in enumerate(aliases, 1)
        ],
    }
    with served(f"sqlite:///{tmp_path_factory.mktemp('redirections')}/mail.db", world) as server:
        yield server


@pytest.mark.parametrize("way", ["pipe", "service"])
@pytest.mark.parametrize(
    ("recipients", "records"),
    [
        # whom the database does not know under one name it may know under the other, whoever else gets the mail
        ("inner<contact jobs", "crm.lead project.task"),
        ("jobs inner<contact", "crm.lead project.task"),
        ("info<contact jobs<group", "crm.lead crm.lead"),
        ("info<group jobs<group", "crm.lead crm.lead"),
        ("info<contact contact", "crm.lead project.task"),
        ("inner<nobody jobs", "crm.lead"),
        ("inner<contact inner2<info nobody<nobody2", "crm.lead project.task"),
    ],
)
def test_each_of_several_recipients_has_his_record(
    database: Server, tmp_path: Path, way: str, recipients: str, records: str
) -> None:
    settings = {"URL": database.url, "PASSWORD": PASSWORD, "LOGIN": "2"}
    originals = [
        f"--original-recipient={original and original + '@example.com'}" for _, original in pairs_of(recipients)
    ]
    arguments = [*originals, "--", *(f"{resolved}@example.com" for resolved, _ in pairs_of(recipients))]
    gateway = Gateway(tmp_path, **settings)
    name = f"{way}-{recipients}".replace(" ", "-").replace("<", ".")
    message = f"From: Ann <ann@outside.test>\nMessage-ID: <{name}@outside.test>\n\nwords\n".encode()
    before = {(row["model"], row["id"]) for row in database.dump()["records"]}
    if way == "pipe":
        status = gateway.run("--sender=ann@outside.test", *arguments, message=message).status
    else:
        with running(Service(tmp_path, **settings)) as service:
            options = (f"--service={service.address}", "--sender=ann@outside.test")
            status = gateway.run(*options, *arguments, message=message).status
    assert status == 0
    made = {(row["model"], row["id"]) for row in database.dump()["records"]} - before
    assert " ".join(sorted(model for model, _ in made)) == records
