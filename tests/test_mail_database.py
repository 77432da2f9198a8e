"""The endpoint as a process, on every store: exactly once, the documentation's parts, and who may call."""

import concurrent.futures
import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.mail_database_server import PASSWORD, Server, command, program_with, served
from support.oracle_player import serving
from support.smtp_sink import sink
from support.stores import NewStore

from mail_database import store as store_module
from mail_database.models import MODEL_IDS
from mail_database.outgoing import send_outgoing
from mail_database.store import open_database, transaction

DEMO = Path(__file__).parents[1] / "demo"
BASIC = {
    "alias_domains": [
        {"id": 1, "name": "mydatabase.example", "catchall": "catchall", "bounce": "bounce"},
        {"id": 2, "name": "second.example", "catchall": "replies", "bounce": "returns"},
    ],
    "companies": [
        {"id": 1, "name": "First", "email": "office@mydatabase.example", "alias_domain": "mydatabase.example"},
        {"id": 2, "name": "Second", "email": "office@second.example", "alias_domain": "second.example"},
    ],
    "aliases": [
        {"id": 1, "local_part": "info", "domain": "mydatabase.example", "model": "crm.lead", "defaults": {}},
        {"id": 2, "local_part": "jobs", "domain": "second.example", "model": "crm.lead", "contact": "partners"},
    ],
    "partners": [{"id": 3, "name": "Administrator", "email": "admin@mydatabase.example"}],
    "users": [{"id": 2, "login": "admin", "partner_id": 3}],
}


@pytest.fixture
def server(new_store: NewStore) -> Iterator[Server]:
    server = Server(new_store())
    yield server
    server.stop()


def mail(number: object, to: str = "info@mydatabase.example", **fields: str) -> bytes:
    header = {
        "From": "Ann <ann@outside.test>",
        "To": to,
        "Subject": f"mail {number}",
        "Message-ID": f"<{number}@outside.test>",
    }
    header |= {name.replace("_", "-"): value for name, value in fields.items()}
    return "".join(f"{name}: {value}\n" for name, value in header.items()).encode() + b"\nbody\n"


@pytest.fixture
def basic(new_store: NewStore) -> Iterator[Server]:
    """A server whose store has two companies, two domains and two aliases."""
    with served(new_store(), BASIC) as server:
        yield server


# --- exactly once ---------------------------------------------------------------------------------------------


def test_sixteen_simultaneous_deliveries_of_a_message_make_one_record(basic: Server) -> None:
    rounds = 200
    basic.call("ir.config_parameter", "set_param", "mail.gateway.loop.threshold", "1000000")

    def deliver(number: int) -> Any:
        proxy = xmlrpc.client.ServerProxy(f"{basic.url}/xmlrpc/2/object")
        arguments = [False, xmlrpc.client.Binary(mail(number))]
        with proxy:
            return proxy.execute_kw("mydatabase", 2, PASSWORD, "mail.thread", "message_process", arguments, {})

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for number in range(rounds):
            answers = list(pool.map(deliver, [number] * 16))
            assert sum(answer is not False for answer in answers) == 1
    assert basic.call("crm.lead", "search_count", []) == rounds


def test_sixteen_simultaneous_mails_of_a_sender_stop_at_the_threshold(basic: Server) -> None:
    def deliver(number: int) -> str:
        proxy = xmlrpc.client.ServerProxy(f"{basic.url}/xmlrpc/2/object")
        arguments = [False, xmlrpc.client.Binary(mail(number))]
        with proxy:
            try:
                proxy.execute_kw("mydatabase", 2, PASSWORD, "mail.thread", "message_process", arguments, {})
            except xmlrpc.client.Fault as fault:
                return fault.faultString
        return "made"

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(deliver, range(40)))
    assert answers.count("made") == 20
    assert all("cannot marshal None" in answer for answer in answers if answer != "made")
    assert [notice["about"] for notice in basic.dump()["notices"]] == ["loop"]


def test_a_server_that_is_killed_loses_nothing_and_doubles_nothing(basic: Server) -> None:
    numbers = range(500)
    basic.call("ir.config_parameter", "set_param", "mail.gateway.loop.threshold", "1000000")
    delivered = []
    half = threading.Event()

    def deliver() -> None:
        try:
            for number in numbers:
                basic.deliver(mail(number))
                delivered.append(number)
                if number == 250:
                    half.set()
        except (OSError, http.client.HTTPException):  # as a gateway would see it
            pass

    thread = threading.Thread(target=deliver)
    thread.start()
    half.wait()
    basic.stop(kill=True)
    thread.join()
    assert len(delivered) < 500
    basic.start()
    again = [basic.deliver(mail(number)) for number in numbers]
    assert all(again[number] is False for number in delivered)
    leads = basic.call("crm.lead", "search_read", [], ["name"])
    assert sorted(lead["name"] for lead in leads) == sorted(f"mail {number}" for number in numbers)


def test_what_leaves_no_message_behind_acts_once_too(basic: Server) -> None:
    basic.call("ir.config_parameter", "set_param", "mail.gateway.loop.threshold", "0")
    for message in (mail(1), mail(2, "catchall@mydatabase.example"), mail(3, "jobs@second.example")):
        with contextlib.suppress(xmlrpc.client.Fault):
            basic.deliver(message)
        assert basic.deliver(message) is False
    assert sorted(notice["about"] for notice in basic.dump()["notices"]) == ["catchall", "denied", "loop"]


# --- the documentation's parts --------------------------------------------------------------------------------


def test_a_new_store_has_its_domain_ready(server: Server) -> None:
    (domain,) = server.call("mail.alias.domain", "search_read", [], ["catchall_email", "bounce_email"])
    assert domain["catchall_email"] == "catchall@mydatabase.example"
    assert domain["bounce_email"] == "bounce@mydatabase.example"


def test_an_alias_can_be_made_by_its_odoo_names(server: Server) -> None:
    (domain,) = server.call("mail.alias.domain", "search", [])
    values = {"alias_name": "help", "alias_domain_id": domain, "alias_model_id": MODEL_IDS["project.task"]}
    key = server.call("mail.alias", "create", values)
    (alias,) = server.call("mail.alias", "read", [key], ["alias_full_name", "alias_model_id", "alias_domain_id"])
    assert alias["alias_full_name"] == "help@mydatabase.example"
    assert alias["alias_model_id"] == [MODEL_IDS["project.task"], "project.task"]
    task = server.deliver(mail(1, "help@mydatabase.example"))
    assert server.call("project.task", "read", [task], ["name"]) == [{"id": task, "name": "mail 1"}]


def test_an_alias_for_employees_takes_only_their_mail(basic: Server) -> None:
    (jobs,) = basic.call("mail.alias", "search", [("alias_name", "=", "jobs")])
    basic.call("mail.alias", "write", [jobs], {"alias_contact": "employees"})
    assert basic.deliver(mail(1, "jobs@second.example", From="Admin <admin@mydatabase.example>"))
    assert basic.deliver(mail(2, "jobs@second.example")) is False
    (notice,) = basic.dump()["notices"]
    assert (notice["about"], notice["address"]) == ("denied", "jobs@second.example")
    assert "only employees may write to this address" in notice["body"]


def test_an_unknown_policy_of_an_alias_is_a_fault_that_names_both(basic: Server) -> None:
    (jobs,) = basic.call("mail.alias", "search", [("alias_name", "=", "jobs")])
    basic.call("mail.alias", "write", [jobs], {"alias_contact": "friends"})
    for _ in range(2):
        with pytest.raises(xmlrpc.client.Fault) as caught:
            basic.deliver(mail(1, "jobs@second.example"))
        assert "alias jobs@second.example has an unknown contact policy 'friends'" in caught.value.faultString
    assert basic.dump()["records"] == []


def test_each_company_answers_in_its_own_name(basic: Server) -> None:
    basic.deliver(mail(1, "catchall@mydatabase.example"))
    basic.deliver(mail(2, "replies@second.example", From="Bob <bob@outside.test>"))
    assert [notice["reply_to"] for notice in basic.dump()["notices"]] == [
        "office@mydatabase.example",
        "office@second.example",
    ]


def test_the_twenty_first_mail_of_a_sender_is_stopped_unless_he_is_allowed(basic: Server) -> None:
    basic.call("mail.gateway.allowed", "create", {"email": "bob@outside.test"})
    for number in range(25):
        assert basic.deliver(mail(f"bob{number}", From="bob@outside.test"))
    for number in range(20):
        assert basic.deliver(mail(number))
    with pytest.raises(xmlrpc.client.Fault, match="cannot marshal None"):
        basic.deliver(mail(20))
    # a substring of his address is somebody else
    assert basic.deliver(mail(21, From="joann@outside.test"))


def test_replies_are_never_stopped_unless_that_is_asked_for(basic: Server) -> None:
    lead = basic.deliver(mail(0))
    for number in range(1, 30):
        assert basic.deliver(mail(number, In_Reply_To="<0@outside.test>")) == lead
    basic.call("ir.config_parameter", "set_param", "mail.gateway.loop.replies", "limit")
    with pytest.raises(xmlrpc.client.Fault, match="cannot marshal None"):
        basic.deliver(mail(30, In_Reply_To="<0@outside.test>"))


@pytest.mark.parametrize(
    "fields",
    [
        {"Return_Path": "<>"},
        {"Auto_Submitted": "auto-replied"},
        {"Precedence": "bulk"},
        {"List_Id": "<list.outside.test>"},
        {"From": "nobody"},
    ],
)
def test_no_notice_goes_to_the_null_sender_or_to_a_machine(basic: Server, fields: dict[str, str]) -> None:
    assert basic.deliver(mail(1, "catchall@mydatabase.example", **fields)) is False
    assert basic.dump()["notices"] == []


def test_a_notice_goes_to_the_return_path_and_once_an_hour(basic: Server) -> None:
    for number in range(3):
        basic.deliver(mail(number, "catchall@mydatabase.example", Return_Path="<away@outside.test>"))
    (notice,) = basic.dump()["notices"]
    assert (notice["to"], notice["about"], notice["state"]) == ("away@outside.test", "catchall", "outgoing")


def test_notices_wait_for_a_mail_server_and_leave_with_the_null_sender(basic: Server) -> None:
    engine = open_database(basic.store)
    with sink() as mail_server:
        basic.deliver(mail(1, "catchall@mydatabase.example"))
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            away = nobody.getsockname()
        send_outgoing(engine, away)
        assert basic.dump()["notices"][0]["state"] == "outgoing"
        mail_server.refused["ann@outside.test"] = 450
        send_outgoing(engine, mail_server.address)
        assert basic.dump()["notices"][0]["state"] == "outgoing"
        mail_server.refused.clear()
        send_outgoing(engine, mail_server.address)
        send_outgoing(engine, mail_server.address)
    engine.dispose()
    ((sender, recipients, data),) = mail_server.mails
    assert (sender, recipients) == ("", ["ann@outside.test"])
    assert b"Auto-Submitted: auto-replied" in data
    assert b"Reply-To: office@mydatabase.example" in data
    assert basic.dump()["notices"][0]["state"] == "sent"


def test_serve_sends_notices(new_store: NewStore) -> None:
    with sink() as mail_server:
        program = program_with("program.SEND_EVERY", 0.2)
        server = Server(new_store(), "--smtp", f"127.0.0.1:{mail_server.address[1]}", program=program)
        try:
            server.deliver(mail(1, "catchall@mydatabase.example"))
            assert mail_server.arrived.wait(30)
        finally:
            server.stop()


def test_load_and_dump_are_each_others_reverse(basic: Server, new_store: NewStore) -> None:
    basic.deliver(mail(1))
    basic.deliver(mail(2, "catchall@mydatabase.example"))
    dumped = basic.command("dump")
    other = new_store()
    command(other, "load", "/dev/stdin", text=dumped)
    assert json.loads(command(other, "dump")) == json.loads(dumped)


def test_show_tells_a_person_who_wrote_what(basic: Server) -> None:
    lead = basic.deliver(mail(1))
    basic.deliver(mail(2, "catchall@mydatabase.example"))
    text = basic.command("show", "crm.lead", str(lead))
    assert f"crm.lead {lead}: mail 1" in text
    assert '"Ann" <ann@outside.test>: mail 1' in text
    assert "told ann@outside.test (catchall, outgoing): Re: mail 2" in basic.command("show")
    assert basic.command("show", "crm.lead", "999") == "nothing here\n"


def test_a_failed_notification_shows_its_reason(new_store: NewStore) -> None:
    url = new_store()
    command(url, "load", str(DEMO / "world.json"))
    server = Server(url)
    try:
        assert server.deliver((DEMO / "4-delivery-report.eml").read_bytes()) is False
        (failed,) = server.call("mail.notification", "search_read", [])
    finally:
        server.stop()
    assert (failed["notification_status"], failed["failure_type"]) == ("bounce", "mail_bounce")
    assert failed["failure_reason"] == "550 5.1.1 <carl@customer.example>: user unknown"
    assert "failed for carl@customer.example: 550 5.1.1" in command(url, "show", "crm.lead", "1")


# --- who may call, and how ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "code", "text"),
    [
        (("mydatabase", 2, "wrong", "mail.thread", "message_process", [False, b"x"]), 3, "Access Denied"),
        (("mydatabase", 2, "", "mail.thread", "message_process", [False, b"x"]), 3, "Access Denied"),
        (("mydatabase", 9, PASSWORD, "crm.lead", "search", [[]]), 2, "(Record: res.users(9,), User: 9)"),
        (("none", 2, PASSWORD, "crm.lead", "search", [[]]), 1, 'database "none" does not exist'),
        (("mydatabase", 2, PASSWORD, "no.such", "search", [[]]), 2, "Object no.such doesn't exist"),
        (("mydatabase", 2, PASSWORD, "crm.lead", "nope", [[]]), 1, "AttributeError: The method 'crm.lead.nope'"),
        (("mydatabase", 2, PASSWORD, "crm.lead", "_search", [[]]), 4, "Private methods"),
        (("mydatabase", 2, PASSWORD, "crm.lead", "search", [[("nope", "=", 1)]]), 1, "Invalid field 'nope'"),
        (("mydatabase", 2, PASSWORD, "mail.thread", "message_process", [False]), 1, "TypeError"),
        (("mydatabase", 2, PASSWORD, "mail.thread", "message_process", [False, 5]), 1, "'int' object has no attribute"),
        (("mydatabase", 2, PASSWORD), 1, "TypeError"),
    ],
)  # fmt: skip
def test_a_wrong_call_gets_the_fault_that_odoo_gives(basic: Server, call: tuple, code: int, text: str) -> None:
    with xmlrpc.client.ServerProxy(f"{basic.url}/xmlrpc/2/object") as proxy:
        with pytest.raises(xmlrpc.client.Fault) as caught:
            proxy.execute_kw(*call)
        assert caught.value.faultCode == code
        assert text in caught.value.faultString
        assert "Traceback" not in caught.value.faultString
    assert basic.call("crm.lead", "search_count", []) == 0


def test_a_login_has_its_answer(basic: Server) -> None:
    with xmlrpc.client.ServerProxy(f"{basic.url}/xmlrpc/2/common") as proxy:
        assert proxy.authenticate("mydatabase", "admin", PASSWORD, {}) == 2
        assert proxy.authenticate("mydatabase", "admin", "wrong", {}) is False
        assert proxy.authenticate("mydatabase", "nobody", PASSWORD, {}) is False
        version: Any = proxy.version()
        assert version["server_version_info"][0] == 17


def test_what_a_client_asks_about_its_user_has_an_answer(basic: Server) -> None:
    assert basic.search("res.users", [("id", "=", 2)], "login") == [{"id": 2, "login": "admin"}]
    assert basic.call("crm.lead", "check_access_rights", "read", False) is True
    for model in ("res.users.apikeys", "fetchmail.server"):  # of which it has none
        assert basic.search(model, [("user_id", "=", 2)], "name") == []
        assert basic.call(model, "search_count", []) == 0


def test_an_alias_domain_without_a_catchall_has_no_address_for_it(new_store: NewStore) -> None:
    with served(new_store(), {"alias_domains": [{"id": 1, "name": "a.example", "catchall": None}]}) as server:
        (found,) = server.search("mail.alias.domain", [], "catchall_email", "bounce_email")
        assert found == {"id": 1, "catchall_email": False, "bounce_email": "bounce@a.example"}


def request(url: str, data: bytes) -> bytes:
    """Send bytes and return what comes back until the server closes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while received := connection.recv(65536):
            answer += received
    return answer


@pytest.mark.parametrize(
    ("first", "status"),
    [
        (b"GET /xmlrpc/2/object HTTP/1.1\r\n", 405),
        (b"POST /nowhere HTTP/1.1\r\nContent-Length: 0\r\n", 404),
        (b"POST /xmlrpc/2/object HTTP/1.1\r\nContent-Length: 140000000\r\n", 413),
        (b"POST /xmlrpc/2/object HTTP/1.1\r\nContent-Length: 134217729\r\n", 413),
    ],
)
def test_a_wrong_request_gets_its_status(basic: Server, first: bytes, status: int) -> None:
    answer = request(basic.url, first + b"Host: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert basic.call("crm.lead", "search_count", []) == 0


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31 - 1) | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    ["crm.lead", "mail.alias", "mail.message", "res.partner", "ir.config_parameter", "mail.thread", "x"]
)
methods = st.sampled_from(
    ["search", "search_read", "search_count", "read", "create", "write", "unlink", "get_param", "set_param",
     "message_process", "nope"]
)  # fmt: skip
calls = st.tuples(st.just("mydatabase"), st.just(2), st.just(PASSWORD), names, methods, st.lists(values, max_size=3))
bodies = st.one_of(
    st.binary(max_size=200),
    st.one_of(calls, st.lists(values, max_size=7).map(tuple)).map(
        lambda call: xmlrpc.client.dumps(call, "execute_kw", allow_none=True).encode("utf-8", "replace")
    ),
)


def test_any_request_is_answered_without_a_traceback(new_store: NewStore) -> None:
    engine = open_database(new_store())
    with serving(engine) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"))

        @settings(max_examples=2500, deadline=None, suppress_health_check=list(HealthCheck))
        @given(bodies)
        def ask(body: bytes) -> None:
            connection.request("POST", "/xmlrpc/2/object", body, {"Content-Type": "text/xml"})
            response = connection.getresponse()
            answer = response.read()
            assert response.status == 200
            assert b"<methodResponse>" in answer
            assert b"Traceback" not in answer
            assert b'File "' not in answer

        ask()
        connection.close()
    engine.dispose()


# --- a large store --------------------------------------------------------------------------------------------


def test_finding_a_thread_and_counting_a_sender_are_index_look_ups(new_store: NewStore) -> None:
    engine = open_database(new_store())
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("set enable_seqscan = off")  # an empty table has nothing to look up
        plans = {}
        for name, ask in {
            "thread": lambda store: store.messages_named(["<a@b>", "<c@d>"]),
            "known": lambda store: store.is_known("<a@b>"),
            "loop": lambda store: store.count_created("crm.lead", "ann@outside.test", 120),
            "reply": lambda store: store.newest_of_thread("crm.lead", 1),
            "partner": lambda store: store.partners_with("ann@outside.test"),
            "aliases": lambda store: store.aliases_named(["info"]),
        }.items():
            plans[name] = explained(connection, ask)
    engine.dispose()
    for name, plan in plans.items():
        assert plan, name
        assert not any("SCAN " in line.replace("SCAN CONSTANT", "") for line in plan), (name, plan)
        assert not any("Seq Scan" in line for line in plan), (name, plan)


def explained(connection: Any, ask: Any) -> list[str]:
    """Return the plans of the statements that a verb runs."""
    statements = []

    def note(_: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        statements.append((statement, parameters))

    store_module.sa.event.listen(connection, "before_cursor_execute", note)
    ask(store_module.Store(connection))
    store_module.sa.event.remove(connection, "before_cursor_execute", note)
    explain = "explain query plan " if connection.dialect.name == "sqlite" else "explain "
    return [
        str(row[-1])
        for statement, parameters in statements
        for row in connection.exec_driver_sql(explain + statement, parameters)
    ]


# --- what a review found --------------------------------------------------------------------------------------


def test_a_notice_that_can_not_be_sent_stops_no_other(basic: Server) -> None:
    basic.deliver(mail(1, "catchall@mydatabase.example", Return_Path='"\\\x7fann%?:;=?@x.test'))
    basic.deliver(mail(2, "catchall@mydatabase.example"))
    engine = open_database(basic.store)
    with sink() as mail_server:
        send_outgoing(engine, mail_server.address)
    engine.dispose()
    assert [recipients for _, recipients, _ in mail_server.mails][-1:] == [["ann@outside.test"]]
    assert "outgoing" not in [notice["state"] for notice in basic.dump()["notices"]]


@pytest.mark.parametrize(
    "message",
    [
        b"Content-Type: application/x\0y\n" + mail(1),
        mail(1, From="x" * 3000 + "@outside.test"),
        mail(1, Cc=", ".join(f"a{number}@x.test" for number in range(70_000))),
        mail(1, Subject="=?utf-8?q?a=01b?="),
    ],
    ids=["nul", "sender", "recipients", "control"],
)
def test_odd_mail_is_stored_and_can_be_read(basic: Server, message: bytes) -> None:
    lead = basic.deliver(message)
    assert [row["id"] for row in basic.call("crm.lead", "search_read", [])] == [lead]


def test_names_and_addresses_are_known_in_any_case(basic: Server) -> None:
    basic.call("mail.alias", "create", {"alias_name": "Sales", "alias_model_id": MODEL_IDS["crm.lead"]})
    assert basic.deliver(mail(1, "SALES@mydatabase.example"))
    basic.call("mail.gateway.allowed", "create", {"email": "Boss@Outside.Test"})
    for number in range(25):
        assert basic.deliver(mail(f"boss{number}", From="boss@outside.test"))


def test_what_odoo_takes_for_an_alias_is_taken(basic: Server) -> None:
    values = {"alias_name": "vip", "alias_model_id": MODEL_IDS["crm.lead"], "alias_defaults": "{'type': 'lead'}"}
    alias = basic.call("mail.alias", "create", values)
    (read,) = basic.call("mail.alias", "read", [alias], ["alias_defaults", "alias_full_name"])
    assert (read["alias_defaults"], read["alias_full_name"]) == ("{'type': 'lead'}", "vip@mydatabase.example")
    lead = basic.deliver(mail(1, "vip@mydatabase.example"))
    basic.call("crm.lead", "write", [lead], {"priority": "1"})
    (found,) = basic.call("crm.lead", "read", [lead], ["type", "priority"])
    assert (found["type"], found["priority"]) == ("lead", "1")


def test_a_message_that_was_made_by_hand_can_be_answered(basic: Server) -> None:
    lead = basic.deliver(mail(1))
    basic.call("mail.message", "create", {"message_id": "<ours@x>", "model": "crm.lead", "res_id": lead})
    assert basic.deliver(mail(2, "catchall@mydatabase.example", References="<ours@x>")) == lead


def test_searches_find_what_they_say(basic: Server) -> None:
    first, second = basic.deliver(mail(1)), basic.deliver(mail(2))
    basic.call("crm.lead", "write", [first], {"active": False})
    assert basic.call("crm.lead", "search", [("active", "=", False)]) == [first]
    assert basic.call("crm.lead", "search", []) == [second]
    assert basic.call("crm.lead", "search", [], context={"active_test": False}, order="id desc") == [second, first]
    assert basic.call("crm.lead", "search", [("partner_id", "!=", 5)]) == [second]
    assert basic.call("crm.lead", "search", [("create_date", ">=", "2024-01-01 00:00:00")]) == [second]
    assert basic.call("crm.lead", "search", [("name", "like", "MAIL")]) == []
    assert basic.call("crm.lead", "search", [("name", "ilike", "MAIL")]) == [second]


def test_a_model_tells_its_fields_and_whether_it_takes_mail(basic: Server) -> None:
    found = basic.call("crm.lead", "fields_get", [], ["type"])
    assert found["active"] == {"type": "boolean"}
    assert found["team_id"] == {"type": "char"}
    assert "message_ids" in found
    assert basic.call("mail.alias", "fields_get", ["alias_name", "message_ids"]) == {"alias_name": {"type": "char"}}
    with pytest.raises(xmlrpc.client.Fault, match=r"Object res\.country doesn't exist"):
        basic.call("res.country", "fields_get")


def test_who_follows_and_who_is_a_user_can_be_asked(basic: Server) -> None:
    lead = basic.deliver(mail(1))
    basic.call("mail.followers", "create", {"res_model": "crm.lead", "res_id": lead, "partner_id": 3})
    followed = [("res_model", "=", "crm.lead"), ("res_id", "=", lead)]
    assert [row["partner_id"] for row in basic.search("mail.followers", followed, "partner_id")] == [3]
    assert basic.search("res.users", [("partner_id", "=", 3)], "login", "share") == [
        {"id": 2, "login": "admin", "share": False}
    ]


def test_a_fallback_record_that_is_not_there_is_a_new_one(basic: Server) -> None:
    lead = basic.deliver(mail(1, "nowhere@mydatabase.example"), "crm.lead", thread_id=999)
    assert basic.call("crm.lead", "search", []) == [lead]
    assert basic.deliver(mail(2, "nowhere@mydatabase.example"), "crm.lead", thread_id="abc") == lead + 1


def test_simultaneous_mails_of_one_return_path_are_answered_once(basic: Server) -> None:
    def deliver(number: int) -> None:
        fields = {"Return_Path": "<one@outside.test>", "From": f"a{number}@outside.test"}
        proxy = xmlrpc.client.ServerProxy(f"{basic.url}/xmlrpc/2/object")
        arguments = [False, xmlrpc.client.Binary(mail(number, "catchall@mydatabase.example", **fields))]
        with proxy:
            proxy.execute_kw("mydatabase", 2, PASSWORD, "mail.thread", "message_process", arguments, {})

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(deliver, range(16)))
    assert len(basic.dump()["notices"]) == 1


def test_a_reader_of_the_store_stops_no_mail(basic: Server) -> None:
    engine = open_database(basic.store)
    with transaction(engine, reads=True) as store:
        assert store.notices_told() == []
        assert basic.deliver(mail(1))
    engine.dispose()


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--port", "99999"],
        ["serve", "--host", "nohost.invalid", "--port", "0"],
        ["serve", "--smtp", "localhost"],
        ["dump", "--store", "mysql://x/y"],
        ["dump", "--store", "postgresql://localhost:abc/d"],
        ["dump", "--store", "sqlite:////no/such/folder/x.db"],
        ["load", "/no/such/file"],
        ["load", "/etc/passwd"],
        ["nothing"],
    ],
)
def test_a_mistake_on_the_command_line_is_said_without_a_traceback(arguments: list[str], tmp_path: Path) -> None:
    environ = {"PATH": "/usr/bin:/bin", "MAIL_DATABASE_STORE": f"sqlite:///{tmp_path}/mail.db"}
    finished = subprocess.run(
        [sys.executable, "-m", "mail_database", *arguments],
        cwd=DEMO.parent,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert finished.returncode in (1, 2)
    assert "Traceback" not in finished.stderr
    assert finished.stderr.count("mail_database") >= 1
