"""Whom a message is from, which thread it belongs to, and that nobody is dropped in silence: on every store."""

import functools
import json
import subprocess
import sys
import xmlrpc.client
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from support.cost import STEP, cpu_seconds, grows_linearly
from support.mail_database_server import ROOT, command
from support.oracle_player import call, dump, serving
from support.stores import NewStore, stores_with

from mail_database import store as store_module
from mail_database.delivery import process
from mail_database.message import identify, parse
from mail_database.references import MAX_ANCESTORS, ancestors
from mail_database.routing import POLICIES, Fallback
from mail_database.store import open_database, transaction
from mail_database.tables import now
from mail_database.world import load

WORLD = {
    "alias_domains": [{"id": 1, "name": "ours.example", "catchall": "catchall", "bounce": "bounce"}],
    "companies": [{"id": 1, "name": "Ours", "email": "info@ours.example", "alias_domain": "ours.example"}],
    "aliases": [
        {"id": 1, "local_part": "info", "domain": "ours.example", "model": "crm.lead", "defaults": {}},
        {"id": 2, "local_part": "support", "domain": "ours.example", "model": "project.task", "defaults": {}},
        {"id": 3, "local_part": "members", "domain": "ours.example", "model": "crm.lead", "contact": "partners"},
        {"id": 4, "local_part": "partners", "domain": "ours.example", "model": "crm.lead", "contact": "partners"},
    ],
    "partners": [
        {"id": 3, "name": "Administrator", "email": "admin@ours.example"},
        {"id": 4, "name": "Carl", "email": "carl@customer.example"},
    ],
    "users": [{"id": 2, "login": "admin", "partner_id": 3}],
    "records": [
        {"model": "crm.lead", "id": 1, "name": "Forty chairs", "email_from": "carl@customer.example"},
        {"model": "project.task", "id": 1, "name": "Broken lamp", "email_from": "dora@customer.example"},
    ],
    "messages": [
        {"id": 1, "message_id": "<lead@ours.example>", "model": "crm.lead", "thread_id": 1, "kind": "comment"},
        {"id": 2, "message_id": "<task@ours.example>", "model": "project.task", "thread_id": 1, "kind": "comment"},
        {"id": 3, "message_id": "unbracketed@outside.example", "model": "crm.lead", "thread_id": 1},
    ],
    "notifications": [{"id": 1, "message": 1, "partner_id": 4, "status": "sent"}],
}
LEAD, TASK = ("crm.lead", 1), ("project.task", 1)


class Database(NamedTuple):
    """A store that is served, and the URL of both."""

    store: str
    engine: sa.Engine
    proxy: xmlrpc.client.ServerProxy

    def deliver(self, raw: bytes) -> Any:
        """Return what was returned, or the kind of fault."""
        answer = call(self.proxy, "mail.thread", "message_process", [False, xmlrpc.client.Binary(raw)], {})
        return answer.get("returned", answer.get("fault"))

    def dump(self) -> dict[str, Any]:
        return dump(self.engine)

    def new(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a list that are not of the world."""
        known = {(row["model"] if name == "records" else None, row["id"]) for row in WORLD.get(name, [])}
        named = name == "records"  # whose ids are those of their model
        return [row for row in self.dump()[name] if (row["model"] if named else None, row["id"]) not in known]

    def unplaced(self) -> list[tuple[str, str]]:
        return [(row["about"], row["reason"]) for row in self.new("unplaced")]


new_world = stores_with(WORLD)


@pytest.fixture
def database(new_world: NewStore) -> Iterator[Database]:
    url = new_world()
    engine = open_database(url)
    with serving(engine) as address, xmlrpc.client.ServerProxy(f"{address}/xmlrpc/2/object") as proxy:
        yield Database(url, engine, proxy)
    engine.dispose()


def mail(number: object = 1, *fields: str, to: str = "info@ours.example", **named: str) -> bytes:
    header = {"From": "Gina <gina@stranger.example>", "To": to, "Subject": f"mail {number}"}
    header |= {"Message-ID": f"<{number}@outside.example>"} | {name.replace("_", "-"): named[name] for name in named}
    lines = [*(f"{name}: {value}" for name, value in header.items()), *fields]
    return "\n".join(lines).encode() + b"\n\nbody\n"


# --- which thread ---------------------------------------------------------------------------------------------

LATER = " ".join(f"<later-{number}@other.example>" for number in range(400))


THREADS = [
    (["In-Reply-To: <lead@ours.example>", "References: <foreign@x.example>"], LEAD),
    (["In-Reply-To: <foreign@x.example>", "References: <lead@ours.example>"], LEAD),
    (["In-Reply-To: <lead@ours.example>", "References: <lead@ours.example> <task@ours.example>"], LEAD),
    (["References: <lead@ours.example> <task@ours.example>"], TASK),  # the nearest
    (["References: <task@ours.example> <lead@ours.example>"], LEAD),  # which need not be the newest
    (["References: <lead@ours.example>", "References: <task@ours.example>"], TASK),
    ([f"References: <task@ours.example> {LATER}"], TASK),
    (["References: task@ours.example"], TASK),
    (["In-Reply-To: task@ours.example"], TASK),
    (["References: foreign@x.example, task@ours.example; other@x.example"], TASK),
    (["References: mid:task@ours.example"], TASK),
    (['References: "task@ours.example"'], TASK),
    (["References: &lt;task@ours.example&gt;"], TASK),
    (["References: <foreign@x.example> <task@ours.example"], TASK),  # cut off
    (["In-Reply-To: <task@ours.example"], TASK),
    (["References: <foreign@x.example>,<task@ours.example>, <other@x.example>"], TASK),
    (["References: <foreign@x.example><task@ours.example>"], TASK),
    (["References: (none)", "In-Reply-To: <task@ours.example>"], TASK),
    (["References: none", "In-Reply-To: <task@ours.example>"], TASK),
    (["References:", "In-Reply-To: <task@ours.example>"], TASK),
    (["References: <>", "In-Reply-To: <task@ours.example>"], TASK),
    (["In-Reply-To:", " <task@ours.example>"], TASK),
    (["References: <task@ours.", " example>"], TASK),
    (["In-Reply-To: Ihre Nachricht vom 3. M=?utf-8?q?=C3=A4?=rz <task@ours.example> (Lampe)"], TASK),
    (["In-Reply-To: Message from Ann <ann@x.example> of Tue <task@ours.example>"], TASK),
    (["In-Reply-To: <unbracketed@outside.example>"], LEAD),
    (["In-Reply-To: unbracketed@outside.example"], LEAD),
    (["Thread-Topic: Lamp", "Thread-Index: AdQx", "References: <task@ours.example>"], TASK),  # Outlook
    (["In-Reply-To: <task@ours.example>", "Auto-Submitted: auto-replied"], TASK),
    (["References: <TASK@ours.example>"], None),  # ids differ in case
    (["References: <2-reply_to@ours.example>"], None),
    (["In-Reply-To: gina@stranger.example"], None),
    (["Thread-Index: AdQx"], None),
]


def test_an_answer_is_on_the_thread_of_the_nearest_message(database: Database) -> None:
    for number, (fields, thread) in enumerate(THREADS):
        before = len(database.new("messages"))
        sender = f"{number}@stranger.example"
        answer = database.deliver(mail(number, *fields, to="catchall@ours.example", From=sender))
        assert answer == (thread[1] if thread else False), fields
        posted = database.new("messages")[before:]
        assert [(row["model"], row["thread_id"]) for row in posted] == ([thread] if thread else []), fields
        assert all(row["parent_id"] in ({1, 3} if thread == LEAD else {2}) for row in posted), fields
        told = [row["to"] for row in database.new("notices")]
        assert (sender in told) is (thread is None), fields


def test_the_parent_is_the_message_that_names_the_thread(database: Database) -> None:
    fields = [
        "In-Reply-To: your mail <unknown@x.example>, <lead@ours.example>",
        "References: <unbracketed@outside.example>",
    ]
    database.deliver(mail(1, *fields, to="catchall@ours.example"))
    assert [row["parent_id"] for row in database.new("messages")] == [1]


def test_a_field_of_a_megabyte_costs_linear_time_and_names_the_nearest() -> None:
    small, large = (" ".join(f"<{place}@x.example>" for place in range(size)) for size in (12_500, 12_500 * STEP))
    found = ancestors("", large)
    assert len(found) == MAX_ANCESTORS
    assert found[0] == f"<{12_500 * STEP - 1}@x.example>"
    assert grows_linearly(functools.partial(ancestors, ""), small, large)


# --- who is a machine -----------------------------------------------------------------------------------------


MACHINES = [
    "Auto-Submitted: auto-replied",
    "Auto-Submitted: auto-generated; owner-email=x@y.example",
    "Auto-Submitted: (vacation) auto-replied",
    "Auto-Submitted: (a (nested) comment) auto-notified (another)",
    "auto-submitted: Auto-Replied",
    "Auto-Submitted: yes",
    "Precedence: bulk",
    "Precedence: junk",
    "Precedence: list",
    "Precedence: auto_reply",
    "Precedence: (x) Bulk",
    "X-Precedence: auto_reply",
    "Preference: auto_reply",
    "X-Autoreply: yes",
    "X-Auto-Reply: true",
    "X-Autoreply-From: gina@stranger.example",
    "X-Mail-Autoreply: Abwesenheit",
    "X-Autorespond: Out of office",
    "X-Autoresponder: 1",
    "X-Autogenerated: Reply",
    "X-Auto-Response-Suppress: All",
    "X-Auto-Response-Suppress: DR, RN, NRN, OOF, AutoReply",
    "X-FC-MachineGenerated: true",
    "X-POST-MessageClass: 9; Autoresponder",
    "List-Id: <all.lists.example>",
    "List-Unsubscribe: <mailto:leave@lists.example>",
    "List-Post: NO",
    "Mailing-List: contact help@lists.example; run by ezmlm",
    "Feedback-ID: 1:2:3:shop",
    "Return-Path: <>",
    "Return-Path: <owner-all@lists.example>",
    "Return-Path: <all-request@lists.example>",
    "Return-Path: <MAILER-DAEMON@x.example>",
    "Return-Path: <noreply@shop.example>",
    "Return-Path: <do-not-reply@shop.example>",
    "Return-Path: <prvs=12ab34=noreply@shop.example>",
    "Return-Path: <SRS0=ab12=cd=shop.example=no-reply@relay.example>",
    "Return-Path: <bounces+12-3f-gina=stranger.example@esp.example>",
    "Return-Path: <all-bounces@lists.example>",
    "Return-Path: <postmaster@x.example>",
    "Return-Path: <autoreply@x.example>",
    "Return-Path: <nicht-antworten@x.example>",
    "Return-Path: <ne-pas-repondre@x.example>",
    "Return-Path: <noresponder@x.example>",
    "Return-Path: <non-rispondere@x.example>",
]


def test_a_machine_is_told_nothing_and_its_mail_is_kept(database: Database) -> None:
    for number, field in enumerate(MACHINES, 1):
        sender = f"{number}@stranger.example"
        assert database.deliver(mail(number, field, to="members@ours.example", From=sender)) is False
        assert [about for about, _ in database.unplaced()] == ["denied"] * number, field
        assert database.new("notices") == [], field


def test_who_writes_in_the_name_of_a_machine_is_told_nothing(database: Database) -> None:
    note = mail(1, "Return-Path: <gina@stranger.example>", to="catchall@ours.example", From="no-reply@stranger.example")
    assert database.deliver(note) is False
    assert database.new("notices") == []
    assert [about for about, _ in database.unplaced()] == ["catchall"]


PEOPLE = [
    "Auto-Submitted: no",
    "Auto-Submitted: (a person) No; x=y",
    "Auto-Submitted:",
    "X-Auto-Response-Suppress: None",
    "X-Autoreply: no",
    "Precedence: normal",
    "Precedence: first-class",
    "X-Priority: 1",
    "Return-Path: <gina+list@stranger.example>",
    "Subject: Auto-Submitted: auto-replied",
    "Return-Path: <bounceback.ann@x.example>",
    "Return-Path: <no.replica@x.example>",
]


def test_a_person_is_told(database: Database) -> None:
    for number, field in enumerate(PEOPLE, 1):
        sender = f"{number}@stranger.example"
        assert database.deliver(mail(number, field, to="members@ours.example", From=sender)) is False
        assert [row["about"] for row in database.new("notices")] == ["denied"] * number, field
        assert database.unplaced() == [], field


# --- nobody is dropped in silence -----------------------------------------------------------------------------

TO = {"catchall": "catchall@ours.example", "denied": "members@ours.example", "loop": "info@ours.example"}


def notice_about(database: Database, about: str) -> dict[str, Any]:
    """Have Gina told, and return the notice that she gets."""
    if about == "loop":
        call(database.proxy, "ir.config_parameter", "set_param", ["mail.gateway.loop.threshold", "0"], {})
    assert not database.deliver(mail(about, to=TO[about]))
    call(database.proxy, "ir.config_parameter", "set_param", ["mail.gateway.loop.threshold", ""], {})
    (notice,) = database.new("notices")
    return notice


@pytest.mark.parametrize("about", TO)
def test_a_person_who_answers_a_notice_is_heard(database: Database, about: str) -> None:
    notice = notice_about(database, about)
    quoted = f"{notice['references']} {notice['message_id']}"
    assert database.deliver(mail(2, f"In-Reply-To: {notice['message_id']}", f"References: {quoted}")) == 2
    fields = [f"In-Reply-To: {notice['message_id']}", f"References: <lead@ours.example> {quoted}"]
    assert database.deliver(mail(3, *fields, to="catchall@ours.example")) == 1
    assert len(database.new("notices")) == 1


NOTES = [
    ["Auto-Submitted: auto-replied", "Subject: Abwesend: Re: mail"],
    ["Return-Path: <>", "Subject: =?utf-8?b?UsOpcG9uc2UgYXV0b21hdGlxdWU=?="],
    ["Precedence: auto_reply", "Subject: [Ticket#4711] Re: mail"],
    ["X-Autoreply: yes", "Subject: Respuesta =?iso-8859-1?q?autom=E1tica?="],
    ["X-Auto-Response-Suppress: All", "Subject: Odsutan"],
    ["List-Id: <helpdesk.stranger.example>"],
]


@pytest.mark.parametrize("about", TO)
def test_a_machine_that_answers_a_notice_is_stopped_and_kept(database: Database, about: str) -> None:
    notice = notice_about(database, about)
    quoted = [f"In-Reply-To: {notice['message_id']}", f"References: {notice['references']} {notice['message_id']}"]
    for number, fields in enumerate(NOTES):
        for place, named in enumerate(quoted):
            assert database.deliver(mail(f"{number}.{place}", named, *fields)) is None
    assert database.new("records") == []
    assert len(database.new("notices")) == 1
    assert [about for about, _ in database.unplaced()] == ["notice"] * 2 * len(NOTES)


def test_a_notice_about_a_refusal_has_its_mark_in_its_message_id_alone(database: Database) -> None:
    for about, marked in (("catchall", False), ("denied", False), ("loop", True)):
        database.deliver(mail(about, to=TO[about])) if about != "loop" else notice_after_loop(database)
        notice = database.new("notices")[-1]
        assert notice["about"] == about
        assert ("-loop-detection-bounce-email@" in notice["references"]) is marked
        assert "-loop-detection-bounce-email@" in notice["message_id"]


def notice_after_loop(database: Database) -> None:
    call(database.proxy, "ir.config_parameter", "set_param", ["mail.gateway.loop.threshold", "0"], {})
    assert database.deliver(mail("loop")) is None


@pytest.mark.parametrize(
    ("fields", "to", "answer", "kept"),
    [
        ([], "bounce@ours.example", False, "told"),
        (["Subject: AW: Angebot"], "bounce@ours.example, nobody@ours.example", False, "told"),
        (["In-Reply-To: <lead@ours.example>"], "bounce@ours.example", 1, "posted"),
        (["References: task@ours.example", "Subject: Re: =?koi8-r?b?7MHN0ME=?="], "Bounce@Ours.Example", 1, "posted"),
        ([], "bounce@ours.example, info@ours.example", 2, "posted"),
        (["List-Id: <all.lists.example>", "Auto-Submitted: no"], "catchall@ours.example", False, "unplaced"),
    ],
)
def test_a_person_at_the_bounce_address_is_treated_as_at_the_catchall(
    database: Database, fields: list[str], to: str, answer: Any, kept: str
) -> None:
    assert database.deliver(mail(1, *fields, to=to)) == answer
    found = {"told": "notices", "posted": "messages", "unplaced": "unplaced"}
    assert [name for name, rows in found.items() if database.new(rows)] == [kept]
    assert [row["status"] for row in database.dump()["notifications"]] == ["sent"]


REPORT = (
    b"From: MAILER-DAEMON@x.example\nTo: bounce@ours.example\nReturn-Path: <>\nMessage-ID: <report@x.example>\n"
    b"Content-Type: multipart/report; report-type=delivery-status; boundary=b\n\n--b\n\nfailed\n--b\n"
    b"Content-Type: message/delivery-status\n\nReporting-MTA: dns;x.example\n\n"
    b"Final-Recipient: rfc822; carl@customer.example\nAction: failed\nStatus: 5.1.1\n\n--b\n"
    b"Content-Type: text/rfc822-headers\n\nMessage-ID: %s\n\n--b--\n"
)


def test_a_report_about_no_mail_of_ours_is_kept_as_it_came(database: Database) -> None:
    report = REPORT % b"<foreign@\xe9\xff.example>"
    assert database.deliver(report) is False
    (row,) = database.new("unplaced")
    assert (row["about"], row["sender"], row["subject"]) == ("report", "MAILER-DAEMON@x.example", None)
    assert row["message_id"] == "<report@x.example>"
    assert row["original"].encode("latin-1") == report


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        (b"failed\nStatus: 5", b"delayed\nStatus: 4", False),  # it is about Carl, and he may still get it
        (b"; carl@customer.example", b"; private@elsewhere.example", True),
        (b"Final-Recipient: rfc822; carl@customer.example\n", b"", True),
    ],
)
def test_a_report_that_fails_nobody_of_several_is_kept(database: Database, old: bytes, new: bytes, kept: bool) -> None:
    with transaction(database.engine) as store:
        load(
            store,
            {
                "partners": [{"id": 5, "name": "Dora", "email": "dora@customer.example"}],
                "notifications": [{"id": 2, "message": 1, "partner_id": 5, "status": "sent"}],
            },
        )
    assert database.deliver((REPORT % b"<lead@ours.example>").replace(old, new)) is False
    assert [row["status"] for row in database.dump()["notifications"]] == ["sent", "sent"]
    assert database.unplaced() == [("report", "it names nobody to whom that mail of ours went")] * kept


def test_a_scan_that_failed_is_a_lead_as_any_other_scan(database: Database) -> None:
    scan = b"From: <>\nTo: info@ours.example\nSubject: Scan\nMessage-ID: <s@x>\nReturn-Path: <>\n\nPage 2: error 550\n"
    assert database.deliver(scan) == 2
    assert database.unplaced() == []


def test_a_report_about_mail_of_ours_is_no_message_without_a_place(database: Database) -> None:
    assert database.deliver(REPORT % b"<lead@ours.example>") is False
    assert database.unplaced() == []
    assert [row["status"] for row in database.dump()["notifications"]] == ["bounce"]


@pytest.mark.parametrize(
    ("to", "about"),
    [
        ("members@ours.example", "denied"),
        ("catchall@ours.example", "catchall"),
        ("bounce@ours.example", "catchall"),
        ("catchall@ours.example, nobody@ours.example", "catchall"),
    ],
)
def test_a_second_mail_within_the_hour_is_kept(database: Database, to: str, about: str) -> None:
    for number in range(3):
        assert database.deliver(mail(number, to=to)) is False
    assert [row["about"] for row in database.new("notices")] == [about]
    reason = "the sender was told within the last 60 minutes"
    assert database.unplaced() == [(about, reason)] * 2
    assert [row["message_id"] for row in database.new("unplaced")] == ["<1@outside.example>", "<2@outside.example>"]


def test_a_loop_whose_sender_is_told_no_more_is_kept(database: Database) -> None:
    notice_after_loop(database)
    assert database.deliver(mail(2)) is None
    assert database.deliver(mail(3, "Return-Path: <>")) is None
    assert [about for about, _ in database.unplaced()] == ["loop", "loop"]


def test_a_sender_is_told_about_each_address_of_ours(database: Database) -> None:
    for number, to in enumerate(["members@ours.example", "partners@ours.example", "catchall@ours.example"]):
        database.deliver(mail(number, to=to))
    assert [row["address"] for row in database.new("notices")] == [
        "members@ours.example",
        "partners@ours.example",
        "catchall@ours.example",
    ]
    # what else he writes to beside them is no reason to tell him again, or a stranger could be told without end
    for number in range(3, 6):
        database.deliver(mail(number, to=f"catchall@ours.example, {number}@elsewhere.example"))
    assert len(database.new("notices")) == 3


def test_each_alias_that_refuses_is_told_of_or_the_mail_is_kept(database: Database) -> None:
    to = "members@ours.example, info@ours.example"
    assert database.deliver(mail(1, to=to)) == 2
    assert database.unplaced() == []
    for number, field in enumerate(["List-Id: <x>", "Return-Path: <>", "Subject: again"], 2):
        assert database.deliver(mail(number, field, to=to)) == number + 1
        assert [about for about, _ in database.unplaced()] == ["denied"] * (number - 1)
    assert len(database.new("notices")) == 1


def test_the_oldest_of_what_is_placed_nowhere_goes(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_UNPLACED_BYTES", 10 * (store_module.UNPLACED_OVERHEAD_BYTES + 1000))
    with transaction(database.engine) as store:
        long_ago = now() - timedelta(days=store_module.UNPLACED_DAYS + 1)
        store.keep_unplaced(b"old", about="x", reason="", sender="", subject="", message_id="", date=long_ago)
        assert [row["id"] for row in store.unplaced()] == []
        for _ in range(25):
            store.keep_unplaced(b"x" * 1000, about="x", reason="", sender="s" * 10**6, subject=None, message_id="")
        assert [row["id"] for row in store.unplaced()] == list(range(17, 27))
        assert all(len(row["sender"]) <= 1000 for row in store.unplaced())


def test_a_person_sees_what_is_placed_nowhere(database: Database) -> None:
    database.deliver(mail(1, "Precedence: list", "X-Odd: \x1b[31m", to="members@ours.example"))
    listed = command(database.store, "show", "--unplaced")
    assert "1  " in listed
    assert '"Gina" <gina@stranger.example>: mail 1 (denied: a machine or a list sent it' in listed
    assert "placed nowhere: 1 (show --unplaced lists them)" in command(database.store, "show")
    shown = command(database.store, "show", "--unplaced", "1")
    assert "Precedence: list\n" in shown
    assert shown.endswith("\nbody\n")
    assert "\x1b" not in shown
    assert command(database.store, "show", "--unplaced", "9") == "nothing here\n"


def test_what_is_placed_nowhere_comes_out_as_it_went_in(database: Database, new_store: NewStore) -> None:
    raw = bytes(range(256)) + mail(1)
    with transaction(database.engine) as store:
        store.keep_unplaced(raw, about="x", reason="y", sender="s", subject=None, message_id="<1@x>")
    dumped = command(database.store, "dump")
    other = new_store()
    command(other, "load", "/dev/stdin", text=dumped)
    assert json.loads(command(other, "dump")) == json.loads(dumped)


# --- who has written ------------------------------------------------------------------------------------------


SENDERS = [
    (["From: 'Eve' via Info <info@ours.example>", "Reply-To: Eve <eve@x.example>"], "eve@x.example"),
    (["From: Form <INFO@ours.example>", "Reply-To: eve@x.example"], "eve@x.example"),
    (["From: catchall@ours.example", "Reply-To: Eve <eve@x.example>"], "eve@x.example"),
    (["From: Website <no-reply@ours.example>", "Reply-To: Eve <eve@x.example>"], "eve@x.example"),
    (["From: notifications@ours.example", "Reply-To: Eve <eve@x.example>"], "eve@x.example"),
    (["From: support@ours.example", "Reply-To: info@ours.example, eve@x.example"], "eve@x.example"),
    (["From: info@ours.example", "X-Original-From: =?utf-8?q?=C3=88ve?= <eve@x.example>"], "eve@x.example"),
    (
        ["From: info@ours.example", "Reply-To: info@ours.example", "X-Original-Sender: eve@x.example"],
        "eve@x.example",
    ),
    (
        ["From: info@ours.example", "Reply-To: info@ours.example", "X-MailFrom: eve@x.example"],
        "eve@x.example",
    ),  # Mailman
    # what the group says comes before what its writer may choose
    (["From: info@ours.example", "Reply-To: other@x.example", "X-Original-Sender: eve@x.example"], "eve@x.example"),
    (
        ["From: info@ours.example", "Reply-To: other@x.example, eve@x.example", "X-Original-Sender: eve@x.example"],
        "eve@x.example",
    ),
    (["From: info@ours.example", "Reply-To: support@ours.example"], "info@ours.example"),
    (["From: info@ours.example", "Reply-To: nobody"], "info@ours.example"),
    (["From: info@ours.example"], "info@ours.example"),
    (["From: admin@ours.example", "Reply-To: eve@x.example"], "admin@ours.example"),  # a person
    (["From: info@theirs.example", "Reply-To: eve@x.example"], "info@theirs.example"),
]


def test_the_sender_is_in_whose_name_a_group_or_form_of_ours_writes(database: Database) -> None:
    for number, (fields, sender) in enumerate(SENDERS, 1):
        raw = mail(number, *fields).replace(b"From: Gina <gina@stranger.example>\n", b"")
        assert database.deliver(raw) == 1 + number, fields
        message, record = database.new("messages")[-1], database.new("records")[number - 1]
        assert parse(f"From: {message['email_from']}\n\n".encode()).sender_address == sender, fields
        assert record["email_from"] == message["email_from"]


def test_a_partner_in_whose_name_a_group_writes_is_the_author_and_may_write(database: Database) -> None:
    fields = {"From": "info@ours.example", "Reply_To": "Carl <carl@customer.example>"}
    assert database.deliver(mail(1, to="members@ours.example", **fields)) == 2
    assert [row["author_id"] for row in database.new("messages")] == [4]


MANY = ", ".join(f"carl+{number}@customer.example" for number in range(20))


@pytest.mark.parametrize(
    "fields",
    [
        ["X-Original-Sender: eve@x.example", "Reply-To: carl@customer.example"],  # Google's, Eve chose her Reply-To
        ["Reply-To: carl@customer.example, eve@x.example"],
        ["Reply-To: eve@x.example, carl@customer.example"],
        ["X-Original-From: carl@customer.example", "X-MailFrom: eve@x.example"],
        [f"Reply-To: carl@customer.example, {MANY}, eve@x.example"],
    ],
)
def test_whoever_writes_to_a_group_gets_no_rights_of_whom_he_names(database: Database, fields: list[str]) -> None:
    fields = [*fields, "Return-Path: <info+b@ours.example>"]
    assert database.deliver(mail(1, *fields, to="members@ours.example", From="info@ours.example")) is False
    assert database.new("records") == []


def test_names_behind_a_person_say_nothing(database: Database) -> None:
    fields = ["Reply-To: eve@x.example", "X-Original-Sender: eve@x.example"]
    assert database.deliver(mail(1, *fields, to="members@ours.example", From="carl@customer.example")) == 2


def test_a_notice_goes_to_him_and_not_to_the_group(database: Database) -> None:
    fields = {"From": "info@ours.example", "Reply_To": "Eve <eve@x.example>"}
    database.deliver(mail(1, to="members@ours.example", Return_Path="<info+b@ours.example>", **fields))
    assert [row["to"] for row in database.new("notices")] == ["eve@x.example"]
    database.deliver(mail(2, to="catchall@ours.example", Return_Path="<>", **fields))
    assert len(database.new("notices")) == 1


# --- who may write to an alias --------------------------------------------------------------------------------

# A colleague, one whose user is archived, one who is archived himself, one with a portal user; and who follows lead 1.
STAFF = {
    "partners": [
        {"id": 11, "name": "Emma", "email": "Emma@ours.example"},
        {"id": 12, "name": "Gone", "email": "gone@ours.example"},
        {"id": 13, "name": "Old", "email": "old@ours.example", "active": False},
        {"id": 14, "name": "Portal", "email": "portal@customer.example"},
    ],
    "users": [
        {"id": 11, "login": "emma", "partner_id": 11},
        {"id": 12, "login": "gone", "partner_id": 12, "active": False},
        {"id": 13, "login": "old", "partner_id": 13},
        {"id": 14, "login": "portal", "partner_id": 14, "internal": False},
    ],
    "followers": [{"model": "crm.lead", "id": 1, "partner_id": 4}, {"model": "crm.lead", "id": 1, "partner_id": 13}],
}
# The policy; of these senders, those who may write; and the words in the notice for the others.
WRITERS = {
    "everyone": ("emma gone old portal carl gina", ""),
    "partners": ("emma gone portal carl", "only registered partners may write"),
    "followers": ("carl", "only certain people may write"),
    "employees": ("emma", "only employees may write"),
}
FROM = {
    "emma": "emma@ours.example",
    "gone": "gone@ours.example",
    "old": "old@ours.example",
    "portal": "portal@customer.example",
    "carl": "carl@customer.example",
    "gina": "gina@stranger.example",
}


def alias_of(database: Database, contact: str | None) -> None:
    """Add alias desk@ with a contact policy; it belongs to lead 1."""
    parent = {"model": "crm.lead", "id": 1}
    alias = {"id": 9, "local_part": "desk", "domain": "ours.example", "model": "crm.lead", "contact": contact}
    with transaction(database.engine) as store:
        load(store, STAFF | {"aliases": [alias | {"parent": parent}]})


def test_each_policy_is_tested() -> None:
    assert WRITERS.keys() == POLICIES.keys()


@pytest.mark.parametrize("contact", POLICIES)
def test_only_those_whom_the_policy_names_may_write(database: Database, contact: str) -> None:
    alias_of(database, contact)
    writers, words = WRITERS[contact]
    made = {name: database.deliver(mail(name, to="desk@ours.example", From=FROM[name])) for name in FROM}
    assert " ".join(name for name in FROM if made[name]) == writers
    refused = [name for name in FROM if name not in writers.split()]
    notices = database.new("notices")
    assert [(row["about"], row["to"]) for row in notices] == [("denied", FROM[name]) for name in refused]
    assert all(f"{words} to this address" in row["body"] for row in notices)


def test_an_alias_without_a_policy_is_for_everyone(database: Database) -> None:
    alias_of(database, None)
    assert database.deliver(mail(to="desk@ours.example"))


def test_a_reply_to_an_alias_for_employees_is_theirs_too(database: Database) -> None:
    alias_of(database, "employees")
    for number, (sender, answer) in enumerate({FROM["emma"]: 1, FROM["carl"]: False}.items()):
        raw = mail(number, to="desk@ours.example", From=sender, In_Reply_To="<lead@ours.example>")
        assert database.deliver(raw) is answer
    assert [row["email_from"] for row in database.new("messages")] == [FROM["emma"]]


def test_an_unknown_policy_is_a_fault_until_it_is_mended(database: Database) -> None:
    alias_of(database, "collaegues")
    raw = mail(1, to="info@ours.example, desk@ours.example")
    for _ in range(2):
        with pytest.raises(xmlrpc.client.Fault) as caught:
            database.proxy.execute_kw(
                "mydatabase", 2, "s3cret", "mail.thread", "message_process", [False, xmlrpc.client.Binary(raw)]
            )
        assert caught.value.faultString == (
            "ValueError: alias desk@ours.example has an unknown contact policy 'collaegues': "
            "not one of everyone, partners, followers, employees"
        )
    assert database.new("records") == database.new("notices") == []
    values = {"alias_contact": "everyone"}
    database.proxy.execute_kw("mydatabase", 2, "s3cret", "mail.alias", "write", [[9], values])
    assert database.deliver(raw)
    assert len(database.new("records")) == 2


# --- what a delivery costs, and the stores of before ----------------------------------------------------------


def test_a_known_message_is_known_before_it_is_read(database: Database) -> None:
    raw = mail(1, "Content-Type: text/html") + b"<p>some <b>words</b> of it</p>\n" * 100_000
    answers = []
    seconds = [cpu_seconds(lambda: answers.append(process(database.engine, raw, Fallback(), 2))) for _ in range(4)]
    assert answers == [2, False, False, False]
    assert min(seconds[1:]) < seconds[0] / 10


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "text",
    ["Subject: x\nMessage-ID: <a@b>\n\nMessage-ID: <c@d>\n", "Message-ID: <a@b>", "\nMessage-ID: <c@d>\n", "x\n\n", ""],
)
def test_a_message_is_identified_as_it_is_read(text: str, end: str) -> None:
    raw = text.replace("\n", end).encode()
    assert identify(raw) == parse(raw).message_id


def test_a_store_of_the_version_before_gets_what_it_lacks(database: Database) -> None:
    database.deliver(mail(1, to="members@ours.example"))
    with database.engine.begin() as connection:
        connection.exec_driver_sql("drop table unplaced")
        connection.exec_driver_sql("alter table notices drop column address")
    database.engine.dispose()
    open_database(database.store).dispose()
    open_database(database.store).dispose()
    assert [row["address"] for row in database.new("notices")] == [None]
    for number in (2, 3):
        database.deliver(mail(number, to="members@ours.example"))
    assert [row["address"] for row in database.new("notices")] == [None, "members@ours.example"]
    assert len(database.unplaced()) == 1


# --- a world to begin with ------------------------------------------------------------------------------------


def test_a_store_that_is_not_new_is_not_loaded_into(database: Database) -> None:
    before = database.dump()
    words = [sys.executable, "-m", "mail_database", "load", "mail_database/example.json", "--store", database.store]
    finished = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 1
    assert "the database is not new" in finished.stderr
    assert database.dump() == before


def test_the_world_for_trying_out_stops_nobody(new_store: NewStore) -> None:
    url = new_store()
    command(url, "load", "mail_database/example.json")
    engine = open_database(url)
    try:
        for number in range(12):
            raw = mail(number, to="info@mail.company-name.com", From="root@mx.company-name.com")
            assert process(engine, raw, Fallback(), 2) == number + 1
        assert dump(engine)["parameters"] == {}
    finally:
        engine.dispose()
