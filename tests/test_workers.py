"""Slow mail gets out of the way: whatever takes long, the next small mail has a worker."""

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.endpoint import Endpoint, Gate, Request, returns
from support.journal import age
from support.service import Client, Service, running

from mailgate.journal import WAIT_SECONDS
from mailgate.outcome import Outcome
from mailgate.service.workers import MAX_SLOW_CALLS

DELIVERED = "250 2.0.0 delivered"
SLOW_WORD = b"the database chews on this"
NEVER = 1000.0  # seconds


class SlowGate(Gate):
    """Answers at once what is not slow; ``waiting`` counts what is."""

    def __call__(self, connection: socket.socket, request: Request) -> None:
        if SLOW_WORD in request.message:
            super().__call__(connection, request)
        else:
            connection.sendall(returns(8))


@pytest.fixture
def gate(endpoint: Endpoint) -> Iterator[SlowGate]:
    gate = SlowGate()
    endpoint.answers = [gate]
    yield gate
    gate.opened.set()


def service_of(folder: Path, endpoint: Endpoint, slow_after: float, **settings: object) -> Service:
    """Return the service with another idea of what is slow."""
    service = Service(folder, URL=endpoint.url, **settings)
    service.runs_first(f"from mailgate.service import workers; workers.SLOW_AFTER_SECONDS = {slow_after}")
    return service


def slow(number: int) -> bytes:
    return b"Message-ID: <%d@outside.test>\r\nSubject: x\r\n\r\n%b\r\n" % (number, SLOW_WORD)


def send(closing: contextlib.ExitStack, service: Service, *messages: bytes) -> list[Client]:
    """Give messages, each over its own connection, and leave the answers for later."""
    clients = [closing.enter_context(service.client()) for _ in messages]
    for client, message in zip(clients, messages, strict=True):
        client.begin("info@example.com")
        assert client.say("DATA").startswith("354 ")
        client.send(message + b".\r\n")
    return clients


def deliver_small_mail(service: Service) -> None:
    with service.client() as client:
        client.socket.settimeout(30)  # half of what a gate stays closed
        assert client.deliver(b"Message-ID: <small@outside.test>\r\n\r\n", "info@example.com") == [DELIVERED]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_slow_call_holds_no_worker(tmp_path: Path, endpoint: Endpoint, gate: SlowGate, workers: int) -> None:
    service = Service(tmp_path, URL=endpoint.url, WORKERS=workers)
    with running(service), contextlib.ExitStack() as closing:
        clients = send(closing, service, *map(slow, range(workers + 1)))
        gate.wait_for(workers)
        deliver_small_mail(service)
        gate.opened.set()
        assert [client.answer() for client in clients] == [DELIVERED] * len(clients)


def test_so_many_calls_run_at_a_time_and_no_more(tmp_path: Path, endpoint: Endpoint, gate: SlowGate) -> None:
    service = service_of(tmp_path, endpoint, 0.01, WORKERS=2)
    with running(service), contextlib.ExitStack() as closing:
        clients = send(closing, service, *map(slow, range(MAX_SLOW_CALLS + 6)))
        gate.wait_for(MAX_SLOW_CALLS + 2)
        gate.opened.set()
        assert [client.answer() for client in clients] == [DELIVERED] * len(clients)
    assert gate.most == MAX_SLOW_CALLS + 2


def test_copies_of_a_message_that_is_being_delivered_hold_no_worker(
    tmp_path: Path, endpoint: Endpoint, gate: SlowGate
) -> None:
    service = service_of(tmp_path, endpoint, NEVER, WORKERS=2, PATIENCE=60)
    with running(service), contextlib.ExitStack() as closing:
        clients = send(closing, service, slow(1))
        gate.wait_for(1)
        clients += send(closing, service, *[slow(1)] * 4)
        deliver_small_mail(service)
        began = time.monotonic()
        answers = [client.answer() for client in clients[1:]]
        assert answers == [Outcome.IN_PROGRESS.reply] * 4
        assert time.monotonic() - began < 4 * WAIT_SECONDS  # they wait all at the same time
        gate.opened.set()
        assert clients[0].answer() == DELIVERED
        assert service.text().count("outcome=in_progress") == 4
    assert gate.most == 1


def test_a_copy_waits_a_moment_for_the_other(tmp_path: Path, endpoint: Endpoint, gate: SlowGate) -> None:
    """As the pipe does: most deliveries take no longer, and the mail server would be back in minutes only."""
    with running(Service(tmp_path, URL=endpoint.url)) as service, contextlib.ExitStack() as closing:
        clients = send(closing, service, slow(1))
        gate.wait_for(1)
        clients += send(closing, service, slow(1))
        time.sleep(WAIT_SECONDS / 10)  # or it would hardly have to wait
        gate.opened.set()
        assert [client.answer() for client in clients] == [DELIVERED] * 2
    assert gate.most == 1


def test_what_was_ambiguous_before_is_tried_beside_the_workers_one_at_a_time(
    tmp_path: Path, endpoint: Endpoint, gate: SlowGate
) -> None:
    service = service_of(tmp_path, endpoint, NEVER, WORKERS=1)
    with running(service, READ_TIMEOUT=0.2), contextlib.ExitStack() as closing:
        for client in send(closing, service, *map(slow, range(3))):
            assert client.answer() == Outcome.CUT_OFF.reply
    age(service.settings["JOURNAL"], NEVER)  # the database can't be working on it any more
    gate.wait_for(3)
    gate.opened.set()
    until = time.monotonic() + 60
    while gate.waiting:
        assert time.monotonic() < until
        time.sleep(0.01)
    gate.opened.clear()
    gate.most = 0
    with running(service), contextlib.ExitStack() as closing:
        clients = send(closing, service, *map(slow, range(3)))
        gate.wait_for(1)
        deliver_small_mail(service)
        service.wait_for("outcome=busy", 2)
        gate.opened.set()
        answers = sorted(client.answer() for client in clients)
        assert answers == [DELIVERED, *[Outcome.BUSY.reply] * 2]
    assert gate.most == 1
