"""A real Odoo 14, the gateway in front by its ways, and the desk beside it."""

import json
import re
import uuid
import xmlrpc.client
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from support.admin import ask, facts
from support.gateway import Gateway
from support.odoo.server import Odoo
from support.service import Service, running

pytestmark = pytest.mark.odoo

INFO, SUPPORT = "info@example.com", "support@example.com"
KNOWN, UNKNOWN = "250 2.1.5 one of ours", "550 5.1.1 no such address here"


def mail(text: str, to: str = INFO, **fields: str) -> bytes:
    header = {"From": "Ann <ann@outside.test>", "To": to, "Subject": text, "Date": "Mon, 30 Nov 2026 09:00:00 +0000"}
    header |= {"Message-ID": f"<{uuid.uuid4()}@outside.test>"}
    header |= {name.replace("_", "-"): value for name, value in fields.items()}
    return "".join(f"{name}: {value}\n" for name, value in header.items() if value).encode() + f"\n{text}\n".encode()


def message_id(message: bytes) -> str:
    return re.findall(rb"Message-ID: (.*)", message)[0].decode()


def places(odoo: Odoo, text: str) -> list[str]:
    """Return where a mail has arrived: the models of its records, in order."""
    found = odoo.search("mail.message", [("body", "ilike", text), ("message_type", "=", "email")], "model")
    return sorted(row["model"] for row in found)


def settings_of(odoo: Odoo, **settings: Any) -> dict[str, Any]:
    own = {"URL": odoo.url, "DATABASE": odoo.database, "PASSWORD": odoo.password, "ALIAS_DOMAINS": None}
    return own | settings


@pytest.fixture
def gateway(odoo14: Odoo, tmp_path: Path) -> Gateway:
    (tmp_path / "held").mkdir(mode=0o700)
    return Gateway(tmp_path, **settings_of(odoo14, HOLD=tmp_path / "held"))


class Thread(NamedTuple):
    """A lead, and the id of what we wrote to its customer."""

    lead: int
    message_id: str


@pytest.fixture
def ours(odoo14: Odoo) -> Thread:
    lead = odoo14.call("crm.lead", "create", {"name": "Offer", "email_from": "ann@outside.test"})
    message = odoo14.call("crm.lead", "message_post", [lead], body="our offer", message_type="comment")
    (row,) = odoo14.search("mail.message", [("id", "=", message)], "message_id")
    return Thread(lead, row["message_id"])


# --- the ways in ----------------------------------------------------------------------------------------------------

Deliver = Callable[[bytes, list[str]], int]


@pytest.fixture(params=["pipe", "pipe with the domain", "service", "service with the domain"])
def deliver(request: pytest.FixtureRequest, odoo14: Odoo, tmp_path: Path) -> Iterator[Deliver]:
    """What delivers a message by a way, and returns the exit status; the service has the alias list."""
    settings = settings_of(odoo14, ALIAS_DOMAINS="example.com" if "domain" in request.param else None)
    gateway = Gateway(tmp_path, **settings)
    if request.param.startswith("pipe"):
        yield (
            lambda message, recipients: (
                gateway.run("--sender=ann@outside.test", "--", *recipients, message=message).status
            )
        )
        return
    with running(Service(tmp_path, **settings)) as service:
        service.wait_for("the alias list is read")
        yield (
            lambda message, recipients: (
                gateway.run(
                    f"--service={service.address}", "--sender=ann@outside.test", "--", *recipients, message=message
                ).status
            )
        )


def test_mail_arrives_once_on_each_of_its_records(odoo14: Odoo, deliver: Deliver, ours: Thread) -> None:
    answer = {"In_Reply_To": ours.message_id}
    for to, fields, recipients, models in [
        (INFO, {}, [INFO], ["crm.lead"]),
        (INFO, {"Cc": SUPPORT}, [INFO, SUPPORT], ["crm.lead", "project.task"]),
        ("joe@x.test", {}, [INFO, SUPPORT], ["crm.lead", "project.task"]),  # whom only the envelope names
        ("joe@x.test", {"Delivered_To": "joe@x.test"}, [INFO, SUPPORT], ["crm.lead", "project.task"]),
        ("joe@x.test", {"Message_ID": ""}, [INFO], ["crm.lead"]),
        (INFO, answer, [INFO], ["crm.lead"]),
        (INFO, {"References": f"<x@y.test> {ours.message_id}"}, [INFO], ["crm.lead"]),
        ("catchall@example.com", answer, ["catchall@example.com"], ["crm.lead"]),
        (INFO, {**answer, "Cc": SUPPORT}, [INFO, SUPPORT], ["crm.lead"]),  # stays in its thread
        (INFO, answer, [INFO, SUPPORT], ["crm.lead", "project.task"]),  # the thread, and a task for who is in Bcc
        (INFO, {"Cc": "bounce@example.com"}, [INFO, "bounce@example.com"], ["crm.lead"]),
    ]:
        text = uuid.uuid4().hex
        message = mail(text, to, **fields)
        assert deliver(message, recipients) == 0, (to, fields)
        assert places(odoo14, text) == models, (to, fields)
        if fields.get("Message_ID") != "":
            assert deliver(message, recipients) == 0, (to, fields)
            assert places(odoo14, text) == models, (to, fields)
        on_thread = odoo14.search(
            "mail.message", [("body", "ilike", text), ("res_id", "=", ours.lead), ("model", "=", "crm.lead")], "model"
        )
        assert bool(on_thread) == ("In_Reply_To" in fields or "References" in fields), (to, fields)


def test_what_is_nobody_s_is_refused(odoo14: Odoo, deliver: Deliver) -> None:
    for address in ("nobody@example.com", "info+x@example.com", "bounce@example.com"):
        assert deliver(mail("for nobody", address), [address]) == 67


# --- the desk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def delivered(gateway: Gateway) -> Callable[..., dict[str, str]]:
    """What delivers a message by the program, and returns what its log says of it."""

    def deliver(message: bytes, *recipients: str) -> dict[str, str]:
        return gateway.run("--sender=ann@outside.test", "--", *recipients, message=message).facts

    return deliver


Delivered = Callable[..., dict[str, str]]


@pytest.mark.parametrize("address", ["catchall@elsewhere.test", "bounce+12-crm.lead-1@example.com", "private@x.test"])
def test_what_makes_a_notice_or_a_bounce_is_accepted(odoo14: Odoo, delivered: Delivered, address: str) -> None:
    model = odoo14.search("ir.model", [("model", "=", "crm.lead")], "model")[0]["id"]
    if address.startswith("private") and not odoo14.search("mail.alias", [("alias_name", "=", "private")], "id"):
        alias = {"alias_name": "private", "alias_model_id": model, "alias_contact": "partners"}
        odoo14.call("mail.alias", "create", alias)
    found = delivered(mail("hello", address), address)
    assert (found["outcome"], found["cause"]) == ("accepted", "")


def leads_to(odoo: Odoo, url: str) -> str:
    """Return where a person who is logged in gets by a link."""
    login = {"db": odoo.database, "login": odoo.login, "password": odoo.password}
    with requests.Session() as browser:
        browser.post(f"{odoo.url}/web/session/authenticate", json={"params": login}).raise_for_status()
        return browser.get(url, allow_redirects=False).headers["Location"]


def test_a_test_s_record_is_removed_when_that_is_said(odoo14: Odoo, gateway: Gateway) -> None:
    gateway.command()  # writes the settings
    for words, is_there in (["--direct"], True), (["--direct", "--remove"], False):
        found = json.loads(ask(gateway.env_file, "send-test", INFO, *words, "--json").stdout)
        number = found["record"]["id"]
        assert found["removed"] == ("" if is_there else f"crm.lead {number} is removed.")
        assert bool(odoo14.search("crm.lead", [("id", "=", number)], "name")) == is_there


def test_the_desk_finds_what_has_arrived_and_what_has_not(
    odoo14: Odoo, gateway: Gateway, delivered: Delivered, ours: Thread
) -> None:
    lead, answer, lost = mail("Forty chairs"), mail("A chair", In_Reply_To=ours.message_id), mail("A lost chair")
    for message in (lead, answer, lost):
        assert delivered(message, INFO)["outcome"] == "delivered"
    assert delivered(mail("hello", "catchall@example.com"), "catchall@example.com")["outcome"] == "accepted"
    assert delivered(mail("hello", "nobody@example.com"), "nobody@example.com")["outcome"] == "unknown_recipient"
    (story,) = facts(gateway.env_file, "trace", message_id(lead))["messages"]
    (record,) = story["records"]
    assert (record["model"], record["name"], story["ending"]) == ("crm.lead", "Forty chairs", "delivered")
    assert f"model=crm.lead&id={record['id']}&" in leads_to(odoo14, record["url"])
    (story,) = facts(gateway.env_file, "trace", message_id(answer))["messages"]
    assert [(each["model"], each["id"]) for each in story["records"]] == [("crm.lead", ours.lead)]
    found = facts(gateway.env_file, "audit")
    assert (found["taken"], found["lost"], found["doubled"]) == (5, [], [])

    (row,) = odoo14.search("mail.message", [("message_id", "=", message_id(lost))], "res_id")
    odoo14.call("crm.lead", "unlink", [row["res_id"]])
    first, again = odoo14.search("mail.message", [("message_id", "=", message_id(lead))], "model"), None
    again = odoo14.call("mail.message", "copy", first[0]["id"])
    odoo14.call("mail.message", "write", [again], {"message_id": message_id(lead)})
    found = facts(gateway.env_file, "audit")
    assert [each["message_id"] for each in found["lost"]] == [message_id(lost)]
    assert [each["message_id"] for each in found["doubled"]] == [message_id(lead)]


def test_what_is_held_is_released_when_its_alias_is_mended(
    odoo14: Odoo, gateway: Gateway, delivered: Delivered
) -> None:
    message = mail("for a broken alias", "broken@example.com")
    assert delivered(message, "broken@example.com")["outcome"] == "held"
    screen = ask(gateway.env_file, "held", "release", "--all")
    assert (screen.returncode, screen.stdout.splitlines()[:2]) == (1, ["0 of 1 released.", "  held: 1"])
    (alias,) = odoo14.search("mail.alias", [("alias_name", "=", "broken")], "alias_defaults")
    odoo14.call("mail.alias", "write", [alias["id"]], {"alias_defaults": "{}"})
    screen = ask(gateway.env_file, "held", "release", "--all")
    assert (screen.returncode, screen.stdout.splitlines()[:2]) == (0, ["1 of 1 released.", "  delivered: 1"])
    assert places(odoo14, "for a broken alias") == ["crm.lead"]
    assert facts(gateway.env_file, "audit")["lost"] == []


# --- the addresses --------------------------------------------------------------------------------------------------

NOTIFICATIONS = "notifications@example.com"
# Whether the database takes a mail for it alone that answers nothing, and is no report.
TAKES = {
    INFO: True,
    "INFO@Example.com": True,
    "info@elsewhere.test": True,
    "countries@example.com": True,  # and then it can't make a record of it
    "info+x@example.com": False,
    "catchall@example.com": True,
    "catchall@elsewhere.test": True,
    "bounce+12-crm.lead-1@example.com": True,
    "bounce+12@elsewhere.test": True,
    "bounce@example.com": False,  # reports
    "bounce+x@example.com": False,  # reports
    NOTIFICATIONS: False,  # answers
    "notifications@elsewhere.test": False,
    "nobody@example.com": False,
    "inf@example.com": False,
}
# Those of them that are listed nevertheless.
FOR_LITTLE = {"bounce@example.com", "bounce+x@example.com", NOTIFICATIONS}


def test_the_addresses_are_those_that_the_database_takes(odoo14: Odoo, tmp_path: Path) -> None:
    odoo14.set_parameter("mail.default.from", "notifications")
    gateway = Gateway(tmp_path, **settings_of(odoo14))
    gateway.command()  # writes the settings
    names = {row["alias_name"] for row in odoo14.search("mail.alias", [("alias_name", "!=", False)], "alias_name")}
    everywhere = {*names - {""}, "catchall", "bounce"}
    listed = facts(gateway.env_file, "addresses")
    assert {*listed["everywhere"]} == everywhere
    assert {*listed["addresses"]} == {f"{name}@example.com" for name in everywhere} | {NOTIFICATIONS}

    for address, is_taken in TAKES.items():
        with pytest.raises(xmlrpc.client.Fault) if not is_taken or "countries" in address else nullcontext() as raised:
            odoo14.call("mail.thread", "message_process", False, xmlrpc.client.Binary(mail("x", address)))
        assert (raised is not None and "No possible route" in str(raised.value)) == (not is_taken), address
    expressions = ask(gateway.env_file, "addresses", "--format", "postfix-regexp").stdout.splitlines()[1:]
    patterns = [re.compile(line.removeprefix("/").removesuffix("/ ok")) for line in expressions]
    known = {
        address
        for address in TAKES
        if address.lower() in listed["addresses"] or any(each.search(address.lower()) for each in patterns)
    }
    assert known == {address for address, is_taken in TAKES.items() if is_taken} | FOR_LITTLE
    with running(Service(tmp_path, **settings_of(odoo14))) as service, service.client() as client:
        service.wait_for("the alias list is read")
        answers = dict(zip(TAKES, client.begin(*TAKES), strict=True))
    assert answers == {address: KNOWN if address in known else UNKNOWN for address in TAKES}
