"""The alias list, and what is not on it: if the database can't be asked, no address is refused."""

import contextlib
import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.endpoint import Answer, Endpoint, Request, drip, hang, returns
from support.mail_database_server import PASSWORD, Server, served
from support.odoo.server import Odoo
from support.old_odoo import OldOdoo
from support.service import Client, Service, running

from mailgate.alias_list import PAGE_ROWS
from mailgate.outcome import Outcome
from mailgate.service.directory import MAX_QUESTIONS, PATIENCE_SECONDS

KNOWN = "250 2.1.5 one of ours"
UNKNOWN = Outcome.UNKNOWN_RECIPIENT.reply
DEFERRED = Outcome.NO_ANSWER.reply
WORLD = """{
  "alias_domains": [{"name": "example.com", "catchall": "catchall", "bounce": "bounce"},
                    {"name": "second.example", "catchall": "all", "bounce": "returns"},
                    {"name": "xn--mller-kva.example", "catchall": "catchall", "bounce": "bounce"}],
  "aliases": [{"local_part": "info", "domain": "example.com", "model": "crm.lead"},
              {"local_part": "info", "domain": "xn--mller-kva.example", "model": "crm.lead"},
              {"local_part": "commercial", "domain": "example.com", "model": "crm.lead", "local_part_detection": true}],
  "parameters": {"mail.catchall.domain.allowed": "allowed.example"}
}"""
ADDRESSES = {
    "info@example.com": KNOWN,
    "INFO@Example.COM": KNOWN,
    "info+tag@example.com": UNKNOWN,  # Odoo has no subaddressing
    "info@second.example": UNKNOWN,
    "catchall@example.com": KNOWN,
    "all@second.example": KNOWN,
    "catchall@second.example": UNKNOWN,
    "bounce@example.com": KNOWN,
    "returns@second.example": KNOWN,
    "bounce+12-crm.lead-1@example.com": KNOWN,  # as Odoo 14 wrote it
    "returns+12-crm.lead-1@second.example": KNOWN,
    "bounce+1@elsewhere.example": UNKNOWN,
    "info@müller.example": KNOWN,
    "Info@XN--Mller-KVA.example": KNOWN,
    "nobody@müller.example": UNKNOWN,
    "notifications@example.com": KNOWN,  # what notifications come from: some answer to that
    "commercial@second.example": KNOWN,
    "commercial@allowed.example": KNOWN,
    "commercial@elsewhere.example": UNKNOWN,
    "nobody@example.com": UNKNOWN,
    "nobody@elsewhere.example": UNKNOWN,
}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Server]:
    with served(f"sqlite:///{tmp_path}/mail.db", json.loads(WORLD)) as server:
        yield server


def service_before(folder: Path, url: str, **settings: object) -> Service:
    return Service(folder, URL=url, PASSWORD=PASSWORD, **({"ALIAS_DOMAINS": None} | settings))


def test_an_address_is_refused_as_the_database_would(tmp_path: Path, database: Server) -> None:
    with running(service_before(tmp_path, database.url)) as service, service.client() as client:
        assert dict(zip(ADDRESSES, client.begin(*ADDRESSES), strict=True)) == ADDRESSES


def test_the_list_takes_the_place_of_the_settings(tmp_path: Path, database: Server) -> None:
    """An alias that the operator has not written down yet is not refused; the log says that it is missing, once."""
    settings = {"ALIAS_DOMAINS": "example.com", "ALIASES": "old@example.com", "RECIPIENT_DELIMITER": "+"}
    service = service_before(tmp_path, database.url, **settings)
    service.runs_first("from mailgate.service import directory; directory.REFRESH_SECONDS = 0.05")
    with running(service), service.client() as client:
        answers = client.begin("info+tag@example.com", "all@second.example", "x+y@example.com", "old@example.com")
        assert answers == [KNOWN, KNOWN, UNKNOWN, UNKNOWN]
        assert client.data(b"Subject: x\r\n\r\n", 2) == ["250 2.0.0 delivered"] * 2
        service.wait_for("settings leave out: all@second.example, bounce@xn--mller-kva.example, ")
        assert client.begin("nobody@example.com") == [UNKNOWN]
    assert service.text().count("settings leave out") == 1


OLD_ADDRESSES = (
    "info@example.com", "INFO@Example.com", "info@allowed.example", "info@elsewhere.test", "nobody@example.com",
    "nobody@elsewhere.test", "catchall@example.com", "catchall@elsewhere.test", "bounce@elsewhere.test",
    "bounce+12-crm.lead-1@example.com", "info+tag@example.com", "info@sub.example.com",
)  # fmt: skip
OLD_PARAMETERS: list[dict[str, str]] = [
    {},
    {"mail.catchall.domain": "example.com"},
    {"mail.catchall.domain.allowed": "allowed.example"},
    {"mail.catchall.domain": "example.com", "mail.catchall.domain.allowed": "allowed.example"},
]
# To these it takes reports, and no other mail; they aren't refused.
REPORTS = {14: "bounce@elsewhere.test", 15: "bounce+12-crm.lead-1@example.com", 16: "bounce+12-crm.lead-1@example.com"}


@pytest.mark.parametrize("version", [14, 15, 16])
@pytest.mark.parametrize("parameters", OLD_PARAMETERS, ids=["none", "domain", "allowed", "both"])
def test_before_17_an_address_is_refused_as_the_database_would(
    tmp_path: Path, version: int, parameters: dict[str, str]
) -> None:
    with (
        contextlib.closing(OldOdoo(version, ["info", "jobs"], parameters)) as database,
        running(service_before(tmp_path, database.url)) as service,
        service.client() as client,
    ):
        service.wait_for("the alias list is read")
        expected = {
            address: KNOWN if database.takes(address) or address == REPORTS[version] else UNKNOWN
            for address in OLD_ADDRESSES
        }
        assert dict(zip(expected, client.begin(*expected), strict=True)) == expected
        for number, address in enumerate(expected):
            if expected[address] == KNOWN and address != REPORTS[version]:
                assert client.say("RSET").startswith("250 ")
                message = b"Message-ID: <%d@b>\r\nSubject: x\r\n\r\n" % number
                assert client.deliver(message, address) == ["250 2.0.0 delivered"]
        database.names.append("new")
        assert client.say("RSET").startswith("250 ")
        assert client.begin("new@example.com") == [KNOWN]


@pytest.mark.parametrize("sender", ["Notifications", "notifications@example.com"])
def test_before_17_the_address_of_notifications_takes_answers(tmp_path: Path, sender: str) -> None:
    parameters = {"mail.catchall.domain": "example.com", "mail.default.from": sender}
    with (
        contextlib.closing(OldOdoo(16, ["info"], parameters)) as database,
        running(service_before(tmp_path, database.url)) as service,
        service.client() as client,
    ):
        service.wait_for("the alias list is read")
        assert client.begin("notifications@example.com", "notifications@elsewhere.test") == [KNOWN, UNKNOWN]


def test_before_17_a_list_without_its_parameters_is_none(tmp_path: Path) -> None:
    """It would refuse catchall and bounce: the settings decide, as without a list."""
    with contextlib.closing(OldOdoo(16, ["info"], {})) as database:
        database.is_open = False
        with (
            running(service_before(tmp_path, database.url, ALIAS_DOMAINS="example.com")) as service,
            service.client() as client,
        ):
            service.wait_for("the alias list can't be read: access_denied")
            answers = client.begin("nobody@example.com", "catchall@example.com", "info@elsewhere.test")
            assert answers == [KNOWN, KNOWN, UNKNOWN]


def with_domains(domains: list[dict[str, object]]) -> Answer:
    """Return the answer of a database that has these alias domains and no alias."""

    def answer(connection: socket.socket, request: Request) -> None:
        (*_, model, method, _, _), _ = request.call
        rows = domains if model == "mail.alias.domain" else []
        connection.sendall(returns(rows if method == "search_read" else False))

    return answer


DOMAIN: dict[str, object] = {
    "id": 1,
    "name": "example.com",
    "bounce_email": "bounce@example.com",
    "catchall_email": "catchall@example.com",
    "default_from_email": False,
}


@pytest.mark.parametrize(
    ("domains", "expected"),
    [
        ([DOMAIN], {"catchall@example.com": KNOWN, "nobody@example.com": UNKNOWN, "x@elsewhere.test": UNKNOWN}),
        # that nothing is to be seen says nothing: the settings decide
        ([], {"catchall@example.com": KNOWN, "nobody@example.com": KNOWN, "x@elsewhere.test": UNKNOWN}),
    ],
)
def test_a_list_without_an_alias_takes_no_other_address(
    tmp_path: Path, endpoint: Endpoint, domains: list[dict[str, object]], expected: dict[str, str]
) -> None:
    endpoint.version = returns({"server_version_info": [17, 0]})
    endpoint.answers = [with_domains(domains)]
    with running(Service(tmp_path, URL=endpoint.url)) as service, service.client() as client:
        assert dict(zip(expected, client.begin(*expected), strict=True)) == expected


def test_with_a_model_nothing_is_said_of_addresses_that_do_not_count(tmp_path: Path, database: Server) -> None:
    settings = {"ALIASES": "old@example.com", "MODEL": "crm.lead"}
    with running(service_before(tmp_path, database.url, **settings)) as service, service.client() as client:
        service.wait_for("the alias list is read")
        assert client.begin("info@example.com", "old@example.com") == [UNKNOWN, KNOWN]
    assert "settings leave out" not in service.text()


def test_a_model_for_what_no_alias_takes_takes_all(tmp_path: Path, database: Server) -> None:
    with running(service_before(tmp_path, database.url, MODEL="crm.lead")) as service, service.client() as client:
        assert client.deliver(b"Subject: x\r\n\r\n", "nobody@example.com") == ["250 2.0.0 delivered"]


def test_a_new_alias_is_known_at_once_and_an_old_one_without_the_database(tmp_path: Path, database: Server) -> None:
    with running(service_before(tmp_path, database.url)) as service, service.client() as client:
        assert client.begin("new@example.com") == [UNKNOWN]
        domain, *_ = database.search("mail.alias.domain", [("name", "=", "example.com")], "id")
        model, *_ = database.search("mail.alias", [], "alias_model_id")
        database.call(
            "mail.alias",
            "create",
            {"alias_name": "new", "alias_domain_id": domain["id"], "alias_model_id": model["alias_model_id"][0]},
        )
        assert client.say("RCPT TO:<new@example.com>") == KNOWN  # though another was asked for a moment ago
        assert client.data(b"Subject: x\r\n\r\n") == ["250 2.0.0 delivered"]

        database.stop()
        try:
            assert client.begin("new@example.com") == [KNOWN]
            for address, expected in ADDRESSES.items():
                answer = client.say(f"RCPT TO:<{address}>")
                assert answer == (DEFERRED if expected == UNKNOWN else expected)
            # a second delivery for a deferred recipient would be taken for a copy, so all wait
            assert client.say("DATA") == DEFERRED
        finally:
            database.start()


def test_the_list_outlives_a_reload_while_the_database_is_away(tmp_path: Path, database: Server) -> None:
    with running(service_before(tmp_path, database.url)) as service, service.client() as client:
        service.wait_for("the alias list is read")
        database.stop()
        service.send_signal(signal.SIGHUP)
        service.wait_for("read anew")
        assert client.begin("info@example.com", "nobody@example.com") == [KNOWN, DEFERRED]
        database.start()


def test_a_database_that_hangs_is_waited_for_once(tmp_path: Path, endpoint: Endpoint) -> None:
    """Each recipient who is not on the list would wait for himself, and the MTA would lose patience."""
    endpoint.version = hang
    with running(service_before(tmp_path, endpoint.url, ALIAS_DOMAINS="example.com")) as service:
        began = time.monotonic()
        with service.client() as client:
            assert client.begin(*(f"nobody{number}@example.com" for number in range(20))) == [KNOWN] * 20
        assert time.monotonic() - began < 3 * PATIENCE_SECONDS


def test_without_a_list_the_rules_alone_decide(tmp_path: Path, endpoint: Endpoint) -> None:
    """The database is older than the documentation, or our user may not read it, or it has never answered yet."""
    with running(service_before(tmp_path, endpoint.url, ALIAS_DOMAINS="example.com")) as service:
        service.wait_for("from version 14 on")
        with service.client() as client:
            assert client.begin("nobody@example.com", "nobody@elsewhere.example") == [KNOWN, UNKNOWN]
        endpoint.version = returns("what is this")
        with service.client() as client:
            assert client.begin("nobody@example.com") == [KNOWN]
        endpoint.close()
        with service.client() as client:
            assert client.begin("nobody@example.com") == [KNOWN]
            assert client.data(b"Subject: x\r\n\r\n") == [DEFERRED]


def test_who_turns_out_to_be_unknown_gets_his_own_answer_after_the_message(tmp_path: Path, database: Server) -> None:
    """The database was away when the recipients were given."""
    database.stop()
    database.options = ("--port", database.url.rpartition(":")[2])
    with running(service_before(tmp_path, database.url)) as service, service.client() as client:
        service.wait_for("the alias list can't be read")
        assert client.begin("nobody@example.com", "info@example.com") == [KNOWN] * 2
        database.start()
        with service.client() as other:
            tries = (other.begin("nobody@example.com")[0] for _ in iter(lambda: other.say("RSET"), ""))
            assert next(answer for answer in tries if answer != KNOWN) == UNKNOWN
        answers = client.data(b"Message-ID: <1@b>\r\nSubject: x\r\n\r\n", 2)
        assert answers == [UNKNOWN, "250 2.0.0 delivered"]


class Listing(Endpoint):
    """A database whose list a test makes, and which can be held up on the way to it."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.held_up = "mail.alias.domain"
        self.held = threading.Event()  # while it is not set, the next question about that waits for this:
        self.goes_on = threading.Event()
        self.held.set()
        self.whole = 0  # how often somebody read all aliases
        self.asked: list[float] = []  # when somebody asked for some
        super().__init__()
        self.version = returns({"server_version_info": [19, 0]})

    def _answer(self, request: Request) -> Answer:
        if not request.path.endswith("/object"):
            return self.version
        (*_, model, method, arguments, options), _ = request.call
        if method == "message_process":
            return returns(7)
        if method == "get_param":
            return returns(False)
        ((_, _, after), *terms), names = arguments[0], []
        if model == "mail.alias":
            names = [name for name in self.names if all(name in wanted for _, _, wanted in terms)]
            self.whole += not terms
            self.asked += [time.monotonic()] * bool(terms)
        if model == self.held_up and not self.held.is_set():
            self.held.set()
            self.goes_on.wait(60)
        rows = [
            {"id": number, "alias_name": name, "alias_full_name": f"{name}@example.com", "alias_incoming_local": False}
            for number, name in enumerate(names, 1)
            if number > after
        ]
        return returns(rows[: options["limit"]])


def test_a_list_may_be_longer_than_an_answer(tmp_path: Path) -> None:
    names = [f"{number:0300}" for number in range(5000)]
    with contextlib.closing(Listing(names)) as database, running(Service(tmp_path, URL=database.url)) as service:
        service.wait_for("the alias list is read: 5000 addresses")
        with service.client() as client:
            assert client.begin(f"{names[-1]}@example.com", "0@example.com") == [KNOWN, UNKNOWN]


def test_a_list_that_never_ends_is_none(tmp_path: Path, endpoint: Endpoint) -> None:
    endpoint.version = returns({"server_version_info": [19, 0]})
    row = {"id": 1, "name": "x", "bounce_email": "x", "catchall_email": "x", "default_from_email": "x"}
    endpoint.answers = [returns([row] * PAGE_ROWS)]
    with running(Service(tmp_path, URL=endpoint.url)) as service:
        service.wait_for("mail.alias.domain answers is not in the order")


def test_who_goes_while_the_database_is_asked_leaves_no_file_behind(tmp_path: Path) -> None:
    with contextlib.closing(Listing(["info", "jobs"])) as database, contextlib.ExitStack() as closing:
        closing.callback(database.goes_on.set)
        service = closing.enter_context(running(Service(tmp_path, URL=database.url)))
        service.wait_for("the alias list is read")
        before = len(service.open_files)
        clients = [service.client() for _ in range(MAX_QUESTIONS)]
        for client in clients:
            assert client.begin("jobs@example.com") == [KNOWN]
            assert client.say("DATA").startswith("354 ")
        database.names.remove("jobs")
        service.send_signal(signal.SIGHUP)
        service.wait_for("the alias list is read: 1 addresses")
        database.held.clear()
        for client in clients:
            client.send(b"Subject: x\r\n\r\n" + b"x" * 200_000 + b"\r\n.\r\n")
        assert database.held.wait(60)
        for client in clients:
            client.close()
        until = time.monotonic() + PATIENCE_SECONDS / 2  # while they would still wait
        while len(service.open_files) > before + 1:  # the connection to the database
            assert time.monotonic() < until
            time.sleep(0.02)
        database.goes_on.set()


def test_who_waits_for_the_database_gets_an_answer_also_when_the_list_is_read_anew(tmp_path: Path) -> None:
    with contextlib.closing(Listing(["info"])) as database, contextlib.ExitStack() as closing:
        closing.callback(database.goes_on.set)
        service = closing.enter_context(running(Service(tmp_path, URL=database.url)))
        service.wait_for("the alias list is read")
        database.held.clear()
        database.names.append("new")
        with service.client() as client:
            client.send(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<new@example.com>\r\n")
            assert database.held.wait(60)
            service.send_signal(signal.SIGHUP)
            service.wait_for("are read anew")
            database.goes_on.set()
            assert [client.answer()[:3], client.answer()] == ["250", KNOWN]
        assert "RuntimeError" not in service.text()


def test_what_a_reading_that_began_before_does_not_have_is_not_forgotten(tmp_path: Path) -> None:
    with contextlib.closing(Listing(["info"])) as database, contextlib.ExitStack() as closing:
        closing.callback(database.goes_on.set)
        service = closing.enter_context(running(Service(tmp_path, URL=database.url)))
        service.wait_for("the alias list is read")
        database.held_up = "mail.alias"
        database.held.clear()
        service.send_signal(signal.SIGHUP)
        assert database.held.wait(60)
        database.names.append("new")
        with service.client() as client:
            assert client.begin("new@example.com") == [KNOWN]
            database.goes_on.set()
            service.wait_for("the alias list is read: 2 addresses")


def test_a_guess_costs_a_question_about_it_and_no_reading_of_the_list(tmp_path: Path) -> None:
    names = [f"{number:0300}" for number in range(3000)]
    with contextlib.closing(Listing(names)) as database, running(Service(tmp_path, URL=database.url)) as service:
        service.wait_for("the alias list is read")
        whole, before = database.whole, len(database.requests)
        with service.client() as client:
            guesses = [f"guess{number}@example.com" for number in range(2 * MAX_QUESTIONS)]
            assert client.begin(*guesses) == [UNKNOWN] * len(guesses)
            assert client.say("RSET").startswith("250 ")
            assert client.begin(f"{names[7]}@example.com") == [KNOWN]
        assert database.whole == whole
        assert len(database.requests) - before == 2 * len(guesses)  # for an alias, and for an alias domain
        busiest = max(sum(since <= at < since + 1 for at in database.asked) for since in database.asked)
        assert busiest <= 1.5 * MAX_QUESTIONS  # an answer may be late, and the next one in time


def test_more_guesses_at_a_time_than_the_database_is_asked_about_are_deferred(tmp_path: Path) -> None:
    with contextlib.closing(Listing(["info"])) as database, contextlib.ExitStack() as closing:
        closing.callback(database.goes_on.set)
        service = closing.enter_context(running(Service(tmp_path, URL=database.url)))
        service.wait_for("the alias list is read")
        database.held.clear()
        clients = [closing.enter_context(service.client()) for _ in range(MAX_QUESTIONS + 5)]
        for number, client in enumerate(clients):
            client.send(b"MAIL FROM:<>\r\nRCPT TO:<guess%d@example.com>\r\n" % number)
        assert database.held.wait(60)
        with service.client() as client:
            assert client.begin("one-more@example.com", "info@example.com") == [Outcome.BUSY.reply, KNOWN]
        database.goes_on.set()
        answers = [(client.answer()[:3], client.answer())[1] for client in clients]
        assert answers.count(UNKNOWN) == MAX_QUESTIONS
        assert answers.count(Outcome.BUSY.reply) == 5


def test_a_database_that_never_ends_its_answer_is_asked_by_a_new_service(tmp_path: Path, endpoint: Endpoint) -> None:
    """A call can be given up after fourteen minutes; here it is a second."""
    endpoint.version = drip
    service = Service(tmp_path, URL=endpoint.url)
    service.runs_first("from mailgate.service import service; service.DEADLINE = 1.0; service.WATCH_SECONDS = 0.1")
    service.start()
    assert service.process
    try:
        assert service.process.wait(timeout=60) == os.EX_TEMPFAIL
        assert "has not come back" in service.text()
    finally:
        service.process.kill()
        service.process.wait()


def ask(connection: socket.socket, *keys: str) -> list[str]:
    """Ask a socketmap for keys, all at once, and return the answers."""
    requests = [f"recipients {key}".encode() for key in keys]
    connection.sendall(b"".join(b"%d:%b," % (len(request), request) for request in requests))
    with connection.makefile("rb") as file:
        answers = []
        for _ in keys:
            size = b"".join(iter(lambda: file.read(1), b":"))
            answers.append(file.read(int(size) + 1).decode().removesuffix(","))
    return answers


def test_postfix_is_told_the_same_over_a_socketmap(tmp_path: Path, database: Server) -> None:
    path = tmp_path / "map.sock"
    with (
        running(service_before(tmp_path, database.url, SOCKETMAP=path)) as service,
        socket.socket(socket.AF_UNIX) as connection,
        service.client(),
    ):
        connection.settimeout(60)
        connection.connect(str(path))
        expected = [f"OK {address}" if answer == KNOWN else "NOTFOUND " for address, answer in ADDRESSES.items()]
        assert ask(connection, *ADDRESSES) == expected
        assert ask(connection, "@example.com", "example.com", "info", "") == ["NOTFOUND "] * 4
        database.stop()
        try:
            answers = (ask(connection, "other@example.com")[0] for _ in itertools.count())
            assert next(answer for answer in answers if answer != "NOTFOUND ").startswith("TEMP ")
            assert ask(connection, "info@example.com") == ["OK info@example.com"]
        finally:
            database.start()


@pytest.mark.odoo
def test_a_real_odoo_has_the_list(tmp_path: Path, odoo: Odoo) -> None:
    settings = {"URL": odoo.url, "DATABASE": odoo.database, "PASSWORD": odoo.password, "ALIAS_DOMAINS": None}
    with running(Service(tmp_path, **settings)) as service, Client(service.address) as client:
        service.wait_for("the alias list is read")
        answers = client.begin("info@example.com", "catchall@example.com", "bounce@example.com", "nobody@example.com")
        assert answers == [KNOWN, KNOWN, KNOWN, UNKNOWN]
