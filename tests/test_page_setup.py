"""What the forms of developer mode set, and what a mail makes of it."""

import html
import re
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from support.mail_database_server import Server
from support.page import entered, form, mail, served

DOMAIN = "mail.company-name.com"
ALIAS = {"alias_domain": DOMAIN, "alias_model": "project.task", "alias_contact": "everyone"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("setup")) as server:
        yield server


@pytest.fixture
def developer(server: Server) -> requests.Session:
    """Somebody who has logged in, in developer mode."""
    return in_developer_mode(server)


def in_developer_mode(server: Server) -> requests.Session:
    reader = entered(server)
    reader.post(f"{server.url}/developer", data=form(reader, f"{server.url}/"))
    return reader


def save(server: Server, developer: requests.Session, path: str, **values: str) -> requests.Response:
    """Save a form of the set-up and return what it answers."""
    page = f"{server.url}/setup/{path}"
    return developer.post(page, data=form(developer, page) | values)


def save_parameters(server: Server, developer: requests.Session, **values: str) -> requests.Response:
    fields = form(developer, f"{server.url}/setup/")
    return developer.post(f"{server.url}/setup/parameters", data=fields | values)


def told(server: Server) -> list[dict[str, str]]:
    return server.dump()["notices"]


def deliver(server: Server, raw: bytes) -> int:
    """Deliver a mail and return its record's id, 0 where it is on none."""
    try:
        return int(server.deliver(raw))
    except xmlrpc.client.Fault as fault:
        if "cannot marshal None" not in fault.faultString:  # which is the answer where a mail was stopped
            raise
        return 0


def model_of(server: Server, number: int, name: str) -> str:
    """Return which model a mail has made a record of."""
    models = ("crm.lead", "project.task")
    return next((model for model in models if server.search(model, [("id", "=", number), ("name", "=", name)])), "")


def test_an_alias_domain_has_its_catchall_and_its_bounce_address(server: Server, developer: requests.Session) -> None:
    save(server, developer, "domains/0", name="Second.example", catchall_alias="replies", bounce_alias="returns")
    deliver(server, mail("caught", to="replies@second.example"))
    assert [(row["about"], row["sender"]) for row in told(server) if row["to"] == "caught@outside.test"] == [
        ("catchall", "returns@second.example")
    ]
    number = server.search("mail.alias.domain", [("name", "=", "second.example")], "id")[0]["id"]
    changed = {"name": "second.example", "catchall_alias": "others", "bounce_alias": "back"}
    save(server, developer, f"domains/{number}", **changed)
    assert 'value="others"' in developer.get(f"{server.url}/setup/domains/{number}").text
    deliver(server, mail("other", to="others@second.example"))
    assert told(server)[-1]["sender"] == "back@second.example"


def test_a_company_speaks_for_its_alias_domain(server: Server, developer: requests.Session) -> None:
    save(server, developer, "domains/0", name="third.example", catchall_alias="catchall", bounce_alias="bounce")
    company = {"name": "Third & Sons", "email": "office@third.example", "alias_domain": "third.example"}
    save(server, developer, "companies/0", **company)
    deliver(server, mail("to-third", to="catchall@third.example"))
    assert "Third &amp; Sons" in told(server)[-1]["body"]
    assert "office@third.example" in told(server)[-1]["body"]


def test_an_alias_says_what_a_mail_becomes(server: Server, developer: requests.Session) -> None:
    save(server, developer, "aliases/0", **ALIAS, alias_name="tasks", alias_defaults="{'name': 'A task'}")
    assert model_of(server, server.deliver(mail("model", to=f"tasks@{DOMAIN}")), "A task") == "project.task"
    number = server.search("mail.alias", [("alias_name", "=", "tasks")], "id")[0]["id"]
    save(server, developer, f"aliases/{number}", **(ALIAS | {"alias_name": "tasks", "alias_model": "crm.lead"}))
    assert model_of(server, server.deliver(mail("no-defaults", to=f"tasks@{DOMAIN}")), "chairs no-defaults")


@pytest.mark.parametrize("policy", ["everyone", "partners", "employees", "followers"])
def test_an_alias_says_who_may_write_and_what_others_are_told(
    server: Server, developer: requests.Session, policy: str
) -> None:
    own = f"<p>Not for you: {policy}</p>"
    alias = ALIAS | {"alias_name": f"for-{policy}", "alias_contact": policy, "alias_bounced_content": own}
    save(server, developer, "partners/0", name=policy, email=f"known-{policy}@outside.test", active="on")
    if policy == "followers":  # of the one record that takes all
        record = server.call("project.task", "create", {"name": "for all"})
        page, fields = f"{server.url}/setup/followers/project.task/{record}", form(developer, f"{server.url}/setup/")
        developer.post(page, data=fields | {"address": "known-followers@outside.test"})
        alias["alias_force_thread_id"] = str(record)
    save(server, developer, "aliases/0", **alias)
    may_write = {
        "unknown": {"everyone"},
        "known": {"everyone", "partners", "followers"},
        "employee": {"everyone", "partners", "employees"},
    }
    for name, policies in may_write.items():
        sender = "admin@mail.company-name.com" if name == "employee" else f"{name}-{policy}@outside.test"
        taken = deliver(server, mail(f"{name}-{policy}", to=f"for-{policy}@{DOMAIN}", sender=sender))
        assert bool(taken) == (policy in policies), name
        if not taken:
            assert told(server)[-1]["to"] == sender
            assert own in told(server)[-1]["body"]


@pytest.mark.parametrize("number", ["x", "-1", "1.5", "9" * 10])
def test_a_record_has_a_number(server: Server, developer: requests.Session, number: str) -> None:
    before = server.dump()
    answer = save(server, developer, "aliases/0", **ALIAS, alias_name="odd", alias_force_thread_id=number)
    assert answer.status_code == 422
    assert f'value="{number}"' in answer.text
    assert server.dump() == before


def test_an_alias_finds_its_local_part_at_allowed_domains(server: Server, developer: requests.Session) -> None:
    save(server, developer, "aliases/0", **ALIAS, alias_name="anywhere", alias_incoming_local="on")
    save(server, developer, "aliases/0", **ALIAS, alias_name="here")
    key = "mail.catchall.domain.allowed"
    assert server.deliver(mail("any", to="anywhere@third.test"), "crm.lead")
    assert server.search("project.task", [("name", "=", "chairs any")])
    server.deliver(mail("fixed", to="here@third.test"), "crm.lead")
    assert server.search("crm.lead", [("name", "=", "chairs fixed")])  # the fallback
    save_parameters(server, developer, **{key: "Other.test, allowed.test"})
    assert server.call("ir.config_parameter", "get_param", key) == "other.test,allowed.test"
    for domain, model in ("third.test", "crm.lead"), ("allowed.test", "project.task"):
        server.deliver(mail(f"at-{domain}", to=f"anywhere@{domain}"), "crm.lead")
        assert server.search(model, [("name", "=", f"chairs at-{domain}")]), domain
    save_parameters(server, developer)


def test_the_loop_check_has_its_minutes_and_its_threshold(server: Server, developer: requests.Session) -> None:
    threshold, minutes = "mail.gateway.loop.threshold", "mail.gateway.loop.minutes"

    def taken(name: str) -> bool:
        return bool(deliver(server, mail(name, to=f"info@{DOMAIN}", sender="Max <loop@outside.test>")))

    save_parameters(server, developer, **{threshold: "2"})
    assert [taken(f"loop-{number}") for number in range(3)] == [True, True, False]
    save_parameters(server, developer, **{threshold: "2", minutes: "0"})  # it looks at nothing
    assert taken("loop-3")
    save_parameters(server, developer, **{threshold: "9", minutes: "120"})
    assert taken("loop-4")
    for wrong in "x", "-1", "1.5", "9" * 10:
        answer = save_parameters(server, developer, **{threshold: "9", minutes: wrong})
        assert answer.status_code == 422, wrong
        assert "not a number" in answer.text
        assert server.call("ir.config_parameter", "get_param", minutes) == "120"
    save_parameters(server, developer)


def test_a_partner_is_made_changed_and_archived(server: Server, developer: requests.Session) -> None:
    assert 'name="active" checked' in developer.get(f"{server.url}/setup/partners/0").text
    save(server, developer, "partners/0", name="Zoe", email="zoe@outside.test", active="on")
    number = server.search("res.partner", [("email", "=", "zoe@outside.test")], "id")[0]["id"]
    save(server, developer, f"partners/{number}", name="Zoe Weiss", email="weiss@outside.test")
    row = server.search("res.partner", [("id", "=", number), ("active", "=", False)], "name", "email_normalized")
    assert row == [{"id": number, "name": "Zoe Weiss", "email_normalized": "weiss@outside.test"}]


def test_a_form_that_is_saved_as_it_was_changes_nothing(server: Server, developer: requests.Session) -> None:
    """What it can't offer to choose (no domain, a model that we don't know) it keeps."""
    server.call("mail.alias", "create", {"alias_name": "odd", "alias_domain": False, "alias_model": "x.odd"})
    server.call("res.company", "create", {"name": "Alone"})
    before = server.dump()
    for path in sorted(set(re.findall(r"/setup/(\w+/[1-9]\d*)", developer.get(f"{server.url}/setup/").text))):
        page = f"{server.url}/setup/{path}"
        assert developer.post(page, data=filled(developer.get(page).text)).status_code == 200, path
    assert server.dump() == before


def filled(page: str) -> dict[str, str]:
    """Return what a browser sends of a page's last form, as it is."""
    last = page.rpartition("<form")[2]
    fields = {}
    for tag in re.findall(r"<input [^>]*>", last):
        attributes = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        if attributes.get("type") != "checkbox":
            fields[attributes["name"]] = attributes["value"]
        elif " checked" in tag:
            fields[attributes["name"]] = "on"
    fields |= dict(re.findall(r'<textarea [^>]*name="([^"]*)"[^>]*>([^<]*)<', last))
    for name, options in re.findall(r'<select [^>]*name="([^"]*)">(.*?)</select>', last):
        found = re.findall(r"<option([^>]*)>([^<]*)<", options)
        given, text = next((option for option in found if " selected" in option[0]), found[0])
        fields[name] = "" if 'value=""' in given else text
    return {name: html.unescape(value) for name, value in fields.items()}


def test_a_records_followers_are_seen_added_and_removed(server: Server, developer: requests.Session) -> None:
    number = server.deliver(mail("followed"))
    other = server.deliver(mail("followed-too"))
    page, of_lead = f"{server.url}/records/crm.lead/{number}", f"{server.url}/setup/followers/crm.lead"
    post = f"{of_lead}/{number}"
    save(server, developer, "partners/0", name="Fay", email="Fay@outside.test", active="on")
    fields = form(developer, page)
    for address in "fay@OUTSIDE.test", "Fay <fay@outside.test>", "Gus Blau <gus@outside.test>":
        assert developer.post(post, data=fields | {"address": address}).url == page
    developer.post(f"{of_lead}/{other}", data=fields | {"address": "fay@outside.test"})

    def following(record: int) -> dict[str, int]:
        domain = [("res_model", "=", "crm.lead"), ("res_id", "=", record)]
        ids = [row["partner_id"] for row in server.search("mail.followers", domain, "partner_id")]
        return {row["name"]: row["id"] for row in server.search("res.partner", [("id", "in", ids)], "name")}

    assert sorted(following(number)) == ["Fay", "Gus Blau"]
    assert len(server.search("res.partner", [("email_normalized", "=", "fay@outside.test")])) == 1
    assert "Fay &lt;Fay@outside.test&gt;" in entered(server).get(page).text
    developer.post(post, data=fields | {"remove": str(following(number)["Fay"])})
    assert [*following(number)] == ["Gus Blau"]
    assert [*following(other)] == ["Fay"]  # who follows another record still does


@pytest.mark.parametrize("address", ["", "nobody", "a@b.test, c@d.test", "<>", "x" * 400 + "@b.test"])
def test_who_has_no_address_does_not_follow(server: Server, developer: requests.Session, address: str) -> None:
    number = server.deliver(mail(f"not-followed-{len(address)}-{address[:1]}"))
    before = server.dump()
    page = f"{server.url}/setup/followers/crm.lead/{number}"
    answer = developer.post(page, data=form(developer, f"{server.url}/setup/") | {"address": address})
    assert answer.status_code == 422
    assert "is not an address" in answer.text
    assert server.dump() == before


def test_followers_are_changed_in_developer_mode_alone_and_on_records_that_are_there(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        number = server.deliver(mail("developer"))
        path = f"/setup/followers/crm.lead/{number}"
        reader = entered(server)
        fields = form(reader, f"{server.url}/") | {"address": "ann@outside.test"}
        assert path not in reader.get(f"{server.url}/records/crm.lead/{number}").text
        assert reader.post(server.url + path, data=fields).status_code == 404
        developer = in_developer_mode(server)
        assert path in developer.get(f"{server.url}/records/crm.lead/{number}").text
        fields |= form(developer, f"{server.url}/")
        for absent in "crm.lead/99999", "ir.model/1":
            assert developer.post(f"{server.url}/setup/followers/{absent}", data=fields).status_code == 404
        assert server.dump()["followers"] == []
