"""A redirection within the database's own domain: the mail arrives at the address that the database knows, once."""

import re
import socket

import pytest
from endpoint import Endpoint, Request, fault, returns, traceback
from gateway import Gateway

NO_ROUTE = traceback("ValueError: No possible route found for incoming message from a@b.test to c@example.com")
MESSAGE = b"From: Ann <ann@outside.test>\nMessage-ID: <1@outside.test>\nSubject: hello\n\nbody\n"


class Routing:
    """An answer of a database that knows these addresses, and what it has made of a message: a record for each."""

    def __init__(self, known: str) -> None:
        self.known = known.split()
        self.records: list[str] = []
        self.calls = 0

    def __call__(self, connection: socket.socket, request: Request) -> None:
        self.calls += 1
        (field,) = re.findall(rb"(?m)^Delivered-To: (.*)$", request.message)
        named = [name.decode().lower() for name in re.findall(rb"<([^<>]*)>", field)]
        found = [name.partition("@")[0] for name in named if name.partition("@")[0] in self.known]
        self.records += found
        connection.sendall(returns(7) if found else fault(1, NO_ROUTE))


@pytest.mark.parametrize(
    ("pairs", "known", "records", "status"),
    [
        # (what the MTA has made of it, what it was)
        ([("info", "contact")], "info", "info", 0),
        ([("info", "contact")], "contact", "contact", 0),
        ([("info", "contact")], "info contact", "info", 0),
        ([("info", "contact")], "", "", 67),
        ([("info", "info")], "info", "info", 0),
        ([("info", "group"), ("jobs", "group")], "info jobs", "info jobs", 0),
        ([("info", "group"), ("jobs", "group")], "group", "group", 0),
        ([("info", "")], "info", "info", 0),
        ([("info", "")], "", "", 67),
        ([("catchall", "sales")], "sales catchall", "sales", 0),
        ([("catchall", "sales")], "catchall", "catchall", 0),
        ([("bounce+7-crm.lead-1", "")], "bounce", "bounce", 0),
        ([("bounce+7-crm.lead-1", "")], "bounce bounce+7-crm.lead-1", "bounce+7-crm.lead-1", 0),
    ],
)
def test_it_arrives_where_the_database_knows_it(
    gateway: Gateway, endpoint: Endpoint, pairs: list[tuple[str, str]], known: str, records: str, status: int
) -> None:
    routing = Routing(known)
    endpoint.answers = [routing]
    originals = [f"--original-recipient={original and original + '@example.com'}" for _, original in pairs]
    recipients = [f"{resolved}@example.com" for resolved, _ in pairs]
    result = gateway.run("--queue-id=4X", "--sender=a@b.test", *originals, "--", *recipients, message=MESSAGE)
    assert (result.status, " ".join(routing.records)) == (status, records)

    calls = routing.calls  # the MTA's next try gets the same answer, and a refusal is asked for again
    result = gateway.run("--queue-id=4X", "--sender=a@b.test", *originals, "--", *recipients, message=MESSAGE)
    assert (result.status, " ".join(routing.records)) == (status, records)
    assert routing.calls == (calls if status == 0 else 2 * calls)
