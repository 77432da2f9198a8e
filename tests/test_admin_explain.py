"""explain says beforehand what then happens, for each message of the cases that were observed on a real Odoo 19."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
import xmlrpc.client
from collections.abc import Callable, Iterator
from email import message_from_bytes
from email.utils import formatdate
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from support.endpoint import Endpoint
from support.gateway import ENVIRONMENT, Gateway, coverage_environment
from support.journal import execute
from support.mail_database_server import ROOT, Server, served
from support.odoo.server import Odoo, new_user
from support.odoo.world import before, since
from support.odoo.world import fill as fill_odoo
from support.oracle_player import MESSAGES, dump, effects, new, play, serving, sql
from support.stores import fill

from mail_database.store import open_database
from mailgate import settings, walk
from mailgate.admin.explain import MAX_VALUE_CHARACTERS, Explained, explain
from mailgate.arguments import Arguments
from mailgate.database import Client
from mailgate.envelope import MAX_HEADER_BYTES, Raw, envelope_of, spool
from mailgate.journal.sqlite import FILE
from mailgate.judge import Reply
from mailgate.log import Facts
from mailgate.outcome import Ended, Outcome
from mailgate.values import Secret

ORACLE = Path(__file__).parent / "oracle"
CASES = {case["number"]: case for case in json.loads((ORACLE / "cases.json").read_text())}
WORLD = json.loads((ORACLE / "world.json").read_text())

STAFF = {"local_part": "staff", "domain": "example.com", "model": "crm.lead", "contact": "employees"}
LOST = {"local_part": "lost", "domain": "example.com", "model": "crm.lead", "contact": "followers"}
WITH_MORE_ALIASES = WORLD | {"aliases": [*WORLD["aliases"], STAFF | {"id": 90}, LOST | {"id": 91}]}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(f"sqlite:///{tmp_path_factory.mktemp('database') / 'store.db'}", WITH_MORE_ALIASES) as server:
        yield server


@pytest.fixture
def gateway(database: Server, tmp_path: Path) -> Gateway:
    hold = tmp_path / "hold"
    hold.mkdir(mode=0o700)
    return Gateway(tmp_path, URL=database.url, PASSWORD=database.password, MAX_SIZE=20_000, HOLD=hold)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world") / "template.db"
    fill(f"sqlite:///{path}", WORLD)
    return path


@pytest.fixture
def engine(template: Path, tmp_path: Path) -> Iterator[sa.Engine]:
    shutil.copy(template, tmp_path / "world.db")
    engine = open_database(f"sqlite:///{tmp_path / 'world.db'}")
    yield engine
    engine.dispose()


# How the MTA gives the message: without an envelope, or from whom, and to whom besides the first whom its header names.
NO_ENVELOPE = "none"
SENDERS = ("", "ann@outside.test")  # of the cases with even numbers and odd ones
ENVELOPES = [*((number, NO_ENVELOPE) for number in CASES), *((number, SENDERS[number % 2]) for number in CASES)]
BESIDES = ("support@example.com", "zoe@stranger.test")  # a Bcc to an alias, and one who is not ours
OURS = {"ALIAS_DOMAINS": "example.com,second.example"}


def config(url: str, folder: Path, model: str, **more: str) -> settings.Settings:
    """Return the settings of a gateway that holds mail, and names no alias: the database decides."""
    for name in ("journal", "hold"):
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    variables = {"URL": url, "DATABASE": "mydatabase", "LOGIN": "2", "PASSWORD": "s3cret", "PATIENCE": "1"} | more
    variables |= {"JOURNAL": str(folder / "journal"), "HOLD": str(folder / "hold"), "MODEL": model}
    return settings.build({name: value for name, value in variables.items() if value})


def given(path: Path, envelope: str) -> Arguments:
    """Return what the MTA says of a message besides its bytes."""
    arguments = Arguments()
    if envelope != NO_ENVELOPE:
        with path.open("rb") as source:
            named = envelope_of(arguments, {}, source.read(MAX_HEADER_BYTES)).recipients
        arguments.sender = envelope
        arguments.recipients = (*(each.address for each in named[:3]), *BESIDES)
    return arguments


class Handing(Client):
    """The database, and what was put in front of each message that it was given."""

    def __init__(self, ours: settings.Settings) -> None:
        super().__init__(ours)
        self.added: list[bytes] = []

    def post(self, added: bytes, raw: Raw, until: float, on_leaving: Callable[[bool], None]) -> Reply:
        self.added.append(added)
        return super().post(added, raw, until, on_leaving)


class Gone(NamedTuple):
    """What became of a message at the gateway: its ending, whom it did not take, and each field put in front."""

    outcome: str
    unmatched: list[str]
    added: list[str]


def delivered(ours: settings.Settings, path: Path, queue_id: str, arguments: Arguments) -> Gone:
    """Give a message to the gateway."""
    try:
        with path.open("rb") as source:
            raw = spool(source, ours.max_size)
    except Ended as ended:
        return Gone(ended.verdict.outcome.name, [], [])
    client, facts = Handing(ours), Facts(queue_id)
    with raw.file:
        envelope = envelope_of(arguments, {}, raw.head())
        verdict = walk.deliver(ours, client, envelope, raw, facts)
    added = [
        f"{name}: {' '.join(value.split())}"
        for each in client.added
        for name, value in message_from_bytes(each).items()
    ]
    return Gone(verdict.outcome.name, facts.unmatched, [field[:MAX_VALUE_CHARACTERS] for field in added])


# What is said where the database stops a message, and what it is about as the database has it.
STOPS = {
    "on he is stopped: he is.": "loop",
    "only, and": "denied",
    "names no record that they could follow": "misconfigured",
    "its defaults can't be set": "misconfigured",
    "which collects answers, and": "catchall",
    "It answers a notice of the database": "notice",
}


class Happened(NamedTuple):
    """What came of a message, as it is foretold, and as it was."""

    gone: Gone
    creates: list[str]
    posts: list[tuple[str, int]]
    notices: list[tuple[str, str]]  # what about, and who is told
    stops: set[str]  # by what, told or not; nothing where the database takes all back


def foretold(found: Explained) -> Happened:
    assert found.verdict
    unmatched = [step.text.partition(" is not ours")[0] for step in found.steps if " is not ours" in step.text]
    added = [
        " ".join(step.text.removeprefix("In front goes ").rpartition(" (")[0].split())[:MAX_VALUE_CHARACTERS]
        for step in found.steps
        if step.text.startswith("In front goes ")
    ]
    is_held = found.verdict.outcome is Outcome.HELD
    return Happened(
        Gone(found.verdict.outcome.name, unmatched, added),
        sorted(found.creates),
        sorted(found.posts),
        sorted((notice.about, notice.to) for notice in found.notices),
        {about for text, about in STOPS.items() if not is_held and any(text in step.text for step in found.steps)},
    )


def happened(gone: Gone, before: dict[str, Any], after: dict[str, Any]) -> Happened:
    came = effects(before, after)
    posted = came.get("posted", [])
    stops = {row["about"] for name in ("notices", "unplaced") for row in new(before, after, name)}
    return Happened(
        gone,
        sorted(each["model"] for each in posted if each["thread"] == "new"),
        sorted((each["model"], each["thread"]) for each in posted if each["thread"] != "new"),
        sorted((each["about"], *each["to"]) for each in came.get("notices", [])),
        set() if gone.outcome == "HELD" else stops - {"report"},  # which is a bounce, whether of known mail or not
    )


def kept(folder: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Return what the gateway keeps: the names of what is held, and what the journal has of messages."""
    held = sorted(str(path) for path in (folder / "hold").rglob("*.eml"))
    return held, execute(folder / "journal", "select * from message") if (folder / "journal" / FILE).exists() else []


@pytest.mark.parametrize(("number", "envelope"), ENVELOPES)
def test_it_says_what_then_happens(engine: sa.Engine, tmp_path: Path, number: int, envelope: str) -> None:
    with serving(engine) as url, xmlrpc.client.ServerProxy(f"{url}/xmlrpc/2/object") as proxy:
        for place, step in enumerate(CASES[number]["steps"]):
            if step["op"] != "mail":
                statement = sql(step["sql"]) if step["op"] == "sql" else ""
                if statement or step["op"] != "sql":
                    play(engine, proxy, step | {"sql": statement})
                continue
            ours = config(url, tmp_path, step.get("model") or "", **(OURS if envelope != NO_ENVELOPE else {}))
            path, world, there = MESSAGES / step["message"], dump(engine), kept(tmp_path)
            arguments = given(path, envelope)
            with path.open("rb") as source:
                said = foretold(explain(ours, source, arguments, time.time()))
            assert dump(engine) == world, "it has changed something"
            assert kept(tmp_path) == there, "it has kept something"
            gone = delivered(ours, path, f"QUEUE{place}", arguments)
            assert said == happened(gone, world, dump(engine)), step["message"]


# Those that a real Odoo 19 plays, too: of each kind, as far as they stand on nothing that can't be made by RPC. A third
# each without an envelope, from the null sender, and from somebody.
ON_ODOO = [
    *(101, 106, 109, 113, 116, 118, 119, 122, 125, 127, 128, 131, 133, 139, 140, 142, 143, 146, 152),  # aliases
    *(202, 206, 208, 209, 211, 223, 226, 227, 229, 230, 232, 235, 244, 245),  # threads
    *(301, 304, 305, 307, 308, 313, 314, 316),  # catchall
    *(401, 407, 409, 410, 419, 424, 430, 433, 434),  # bounces
    *(502, 503, 506, 508, 509, 511, 512, 514, 515, 517, 518, 520, 521, 523, 526, 527, 529, 532, 533, 536),  # loops
    *(601, 602, 608, 617),  # local-parts
    *(701, 704, 706, 712, 713, 716, 719, 722, 724, 727, 728),  # who may write
    *(802, 803, 811, 827, 832, 838, 847, 848, 883, 901, 902, 905, 917, 919, 920, 925),  # odd mail
]


@pytest.fixture(scope="module")
def odoo_with_threads(odoo: Odoo) -> Odoo:
    fill_odoo(odoo)
    return odoo


@pytest.fixture(scope="module")
def odoo14_with_threads(odoo14: Odoo) -> Odoo:
    fill_odoo(odoo14)
    return odoo14


def says_what_then_happens(
    odoo: Odoo, folder: Path, path: Path, model: str = "", queue_id: str = "QUEUE", envelope: str = NO_ENVELOPE
) -> Explained:
    """Return what is said of a message, which must be what then happens in a real Odoo."""
    ours = config(odoo.url, folder, model, **(OURS if envelope != NO_ENVELOPE else {}))
    ours = ours._replace(database=odoo.database, password=Secret(odoo.password))
    arguments, then = given(path, envelope), before(odoo)
    with path.open("rb") as source:
        said = explain(ours, source, arguments, time.time())
    assert since(odoo, then) == ([], [], []), "it has changed something"
    gone = delivered(ours, path, queue_id, arguments)
    found = foretold(said)
    told = sorted(to for _, to in found.notices)
    assert (found.gone, found.creates, found.posts, told) == (gone, *since(odoo, then)), said.steps
    return said


@pytest.mark.odoo
@pytest.mark.parametrize("number", ON_ODOO)
def test_it_says_what_then_happens_on_a_real_odoo(odoo_with_threads: Odoo, tmp_path: Path, number: int) -> None:
    odoo, saved = odoo_with_threads, {}
    envelope = (NO_ENVELOPE, *SENDERS)[number % 3]
    try:
        for place, step in enumerate(CASES[number]["steps"]):
            if step["op"] == "param":
                saved[step["key"]] = odoo.call("ir.config_parameter", "get_param", step["key"]) or ""
                odoo.set_parameter(step["key"], step["value"])
                continue
            path, model = MESSAGES / step["message"], step.get("model") or ""
            says_what_then_happens(odoo, tmp_path, path, model, f"QUEUE{place}", envelope)
    finally:
        for key, value in saved.items():
            odoo.set_parameter(key, value)


# Those that a real Odoo 14 plays, too: each step of them that is a mail, for parameters of loops are nothing to it.
ON_ODOO_14 = [
    *(101, 106, 109, 116, 118, 127, 131, 139, 142, 146, 152, 206, 209, 211, 223, 227, 230, 235, 244, 245),
    *(301, 305, 308, 313, 314, 316, 401, 409, 419, 424, 433, 502, 508, 520, 601, 602, 617, 701, 706, 713, 722),
    *(802, 811, 827, 838, 902, 911, 925),
]


@pytest.mark.odoo
@pytest.mark.parametrize("number", ON_ODOO_14)
def test_it_says_what_then_happens_on_a_real_odoo_14(odoo14_with_threads: Odoo, tmp_path: Path, number: int) -> None:
    for place, step in enumerate(CASES[number]["steps"]):
        if step["op"] == "mail":
            path, model = MESSAGES / step["message"], step.get("model") or ""
            says_what_then_happens(odoo14_with_threads, tmp_path, path, model, f"QUEUE{place}")


# --- the command, as a process ---


def run(gateway: Gateway, *arguments: str, message: bytes = b"", status: int | None = None) -> str:
    """Return what the command prints; it must end with the status, 0 or 1 where none is given."""
    gateway.command()  # writes the settings file
    words = [sys.executable, "-m", "mailgate.admin", "--env-file", str(gateway.env_file), "explain", *arguments]
    finished = subprocess.run(
        words, input=message, capture_output=True, check=False, cwd=ROOT, env=ENVIRONMENT | coverage_environment()
    )
    assert finished.returncode in ((0, 1) if status is None else (status,)), finished.stderr
    screen = finished.stdout.decode()
    assert "s3cret" not in screen + finished.stderr.decode()
    assert all(len(line) <= 80 for line in screen.splitlines()) or "--json" in arguments
    return " ".join((screen + finished.stderr.decode()).split())


def mail(to: str = "info@example.com", text: str = "body", **fields: str) -> bytes:
    header = {"From": "Ann <ann@outside.test>", "To": to, "Subject": "chairs", "Date": formatdate(), **fields}
    header.setdefault("Message-ID", f"<{uuid.uuid4()}@outside.test>")
    lines = (f"{name.replace('_', '-')}: {value}\n" for name, value in header.items() if value)
    return "".join(lines).encode() + f"\n{text}\n".encode()


TWO_FROM = mail().replace(b"To:", b"From: bob@outside.test\nTo:", 1)

SAID = [
    ([], mail(), 0, "It is for info@example.com."),
    ([], mail(), 0, "It would end as delivered (2.0.0 delivered): on a new crm.lead."),
    (["ifno@example.com"], mail(), 0, "The nearest one is info@example.com."),
    (["support@example.com"], mail(), 0, "Delivered-To: <support@example.com> (for whom no field of the header names)"),
    (["ann@elsewhere.test"], mail(), 1, "ann@elsewhere.test is not ours: no rule of the settings takes it."),
    (["ann@elsewhere.test"], mail(), 1, "It would end as unknown recipient"),
    ([], mail("nobody@example.com"), 1, "No alias is among its recipients: nobody@example.com."),
    ([], mail("jobs@example.com"), 1, "takes mail of partners only, and ann@outside.test is none of them."),
    ([], mail("jobs@example.com"), 1, "ann@outside.test is told why not."),
    ([], mail("jobs@example.com", From="paula@partner.test"), 0, "and paula@partner.test is one of them."),
    ([], mail("staff@example.com"), 1, "takes mail of employees only, and ann@outside.test is none of them."),
    ([], mail("staff@example.com", From="ida@example.com"), 0, "and ida@example.com is one of them."),
    ([], mail("members@example.com"), 1, "takes mail of followers of its record only, and ann@outside.test is none"),
    ([], mail("members@example.com", From="fred@follower.test"), 0, "and fred@follower.test is one of them."),
    ([], mail("lost@example.com"), 1, "takes mail of followers, but names no record that they could follow."),
    (["--sender="], mail("jobs@example.com"), 0, "Nobody is told: there is nobody to be told."),
    ([], mail("catchall@example.com"), 1, "which collects answers, and this answers nothing."),
    ([], mail("bounce@example.com", From="MAILER-DAEMON@a.test"), 0, "It is taken for a bounce"),
    ([], mail(In_Reply_To="<odoo-public-1@example.com>"), 0, "on crm.lead 2 (In-Reply-To,"),
    ([], mail("support@example.com", In_Reply_To="<odoo-public-1@example.com>"), 0, "so it is a forward"),
    ([], mail(References="<a@b>", In_Reply_To="<odoo-public-1@example.com>"), 0, "In front goes References:"),
    ([], mail(text="x" * 20_000), 1, "20,000 bytes (MAIL_GATEWAY_MAX_SIZE): it is refused."),
    ([], mail(Cc='"' * 9000), 0, "tokens between commas would keep the database busy"),
    ([], b"", 1, "It would end as not a message"),
    ([], mail(Date="Thu, 1 Jan 1970 00:00:00 +0000"), 0, "Its Date is more than a year away"),
    ([], mail(Date=""), 0, "There is no Date."),
    ([], mail(Date="yesterday"), 0, "Its Date can't be read."),
    ([], mail(Message_ID=" "), 0, "In front goes Message-ID:"),
    ([], mail(Content_Type="text/plain; charset=x-nope"), 0, "Nobody can decode the charset 'x-nope'."),
    ([], mail(Subject="a\0b"), 0, "There is a NUL in Subject."),
    ([], mail(Subject="a\x1b[31mb"), 0, "It would end as delivered"),
    ([], TWO_FROM, 0, "There are 2 fields From; mostly the first one counts."),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message", "status", "text"), SAID)
def test_it_says_why(gateway: Gateway, arguments: list[str], message: bytes, status: int, text: str) -> None:
    options = [each for each in arguments if each.startswith("--")]
    recipients = [each for each in arguments if not each.startswith("--")]
    said = run(gateway, *options, "-", *recipients, message=message, status=status)
    assert text in said
    assert "\x1b" not in said


ADDRESSES = [
    ("info@example.com", 0, "The alias info@example.com makes a new crm.lead; everyone may write to it."),
    ("INFO@example.com", 0, "The database has it: an alias by its full address."),
    ("members@example.com", 0, "followers may write to it."),
    ("catchall@example.com", 0, "collects answers"),
    ("bounce@example.com", 0, "takes bounces"),
    ("suport@example.com", 1, "The database has no such address. The nearest one is support@example.com."),
    ("zzz@elsewhere.test", 1, "is not ours: no rule of the settings takes it."),
]


@pytest.mark.parametrize(("address", "status", "text"), ADDRESSES)
def test_it_explains_an_address_alone(gateway: Gateway, address: str, status: int, text: str) -> None:
    assert text in run(gateway, "--address", address, status=status)


def test_it_tells_programs_the_same(gateway: Gateway, tmp_path: Path) -> None:
    path = tmp_path / "message.eml"
    path.write_bytes(mail("jobs@example.com"))
    found = json.loads(run(gateway, "--json", str(path), status=1))
    assert found["outcome"] == "accepted"
    assert (found["creates"], found["posts"]) == ([], [])
    assert found["notices"] == [{"about": "denied", "to": "ann@outside.test", "address": "jobs@example.com"}]
    assert {step["step"] for step in found["steps"]} >= {"envelope", "match", "journal", "prepare", "alias", "policy"}
    path.write_bytes(mail(In_Reply_To="<odoo-public-1@example.com>"))
    assert json.loads(run(gateway, "--json", str(path)))["posts"] == [{"model": "crm.lead", "id": 2}]


def test_it_knows_what_the_journal_knows_and_leaves_no_trace(database: Server, gateway: Gateway) -> None:
    message, other = mail("countries@example.com"), mail()
    broken = {"alias_name": "countries", "alias_model": "res.country", "alias_contact": "everyone"}
    database.call("mail.alias", "create", broken)
    world = database.dump()
    said = run(gateway, "-", message=message, status=1)
    assert "But no mail makes a record of res.country." in said
    assert "The journal does not know" in said
    assert "It would end as held" in said
    assert database.dump() == world
    assert [*(gateway.folder / "hold").rglob("*.eml")] == []

    for each, outcome in ((message, "held"), (other, "delivered")):
        assert gateway.run("--queue-id=ABCDEF", message=each).facts["outcome"] == outcome
    said = run(gateway, "-", message=message)
    assert "it ended as held." in said
    assert "It was kept as " in said
    said = run(gateway, "-", message=other)
    assert "it ended as delivered." in said
    assert "The database has this Message-ID already" in said
    assert "It would end as known" in said
    said = run(gateway, "-", message=other.replace(b"Date: ", b"Date: Mon, 1 Jan 2024 10:00:00 +0000\nX-Was: "))
    assert "That one has another Date" in said
    assert "It would end as delivered" in said


def test_who_makes_too_much_is_told_so_beforehand(database: Server, gateway: Gateway) -> None:
    database.call("ir.config_parameter", "set_param", "mail.gateway.loop.threshold", "1")
    message = mail(From="loop@outside.test")
    assert "has 0 records of crm.lead of the last 120 minutes; from 1 on he is stopped." in run(
        gateway, "-", message=message
    )
    gateway.run(message=message)
    again = mail(From="loop@outside.test")
    assert "from 1 on he is stopped: he is." in run(gateway, "-", message=again, status=1)
    database.call("mail.gateway.allowed", "create", {"email": "loop@outside.test"})
    assert "is in mail.gateway.allowed" in run(gateway, "-", message=again, status=0)
    database.call("ir.config_parameter", "set_param", "mail.gateway.loop.threshold", "")


def test_a_database_that_does_not_answer_is_said(gateway: Gateway) -> None:
    gateway.settings["URL"] = "http://127.0.0.1:9"
    said = run(gateway, "-", message=mail(), status=1)
    assert "The database does not say which addresses it has" in said
    assert "It would end as no answer" in said


def test_of_a_version_that_it_does_not_know_it_tells_the_gateways_half(gateway: Gateway, endpoint: Endpoint) -> None:
    gateway.settings["URL"] = endpoint.url
    said = run(gateway, "-", message=mail(), status=1)
    assert "info@example.com is delivered as info@example.com" in said
    assert "a forecast can be made of Odoo 14, and from 17 on, not of 13" in said
    assert "It would be given to the database, which decides." in said
    assert not any(b"message_process" in request.body for request in endpoint.requests)


def test_a_wrong_line_is_said(gateway: Gateway) -> None:
    assert "No such file" in run(gateway, "nowhere.eml", status=2)
    assert "without a message" in run(gateway, "--address=info@example.com", "a.eml", status=2)


# --- what is otherwise before Odoo 17 ---

ANSWERS = {"In_Reply_To": "<odoo-public-1@example.com>"}
NOTIFICATIONS = "notifications@example.com"

ONLY_14 = [
    (mail("info@elsewhere.test"), "The alias info@example.com makes a new crm.lead."),
    (mail("nobody@example.com"), "No alias is among its recipients: nobody@example.com."),
    (mail("bounce+12-crm.lead-1@example.com"), "it is for the bounce address bounce+12-crm.lead-1@example.com"),
    (mail("bounce+12@elsewhere.test"), "it is for the bounce address bounce+12@elsewhere.test"),
    (mail("bounce+x@example.com"), "No alias is among its recipients"),
    (mail("bounce@example.com"), "No alias is among its recipients"),
    (mail("catchall@elsewhere.test"), "which collects answers, and this answers nothing."),
    (mail("catchall@example.com, nobody@example.com"), "No alias is among its recipients"),
    (mail("vip@example.com"), "takes mail of partners only, and ann@outside.test is none of them."),
    (mail("broken@example.com"), "The whole message is taken back."),
    (mail(In_Reply_To="<1-openerp-loop-detection-bounce-email@host>"), "Odoo 14 stops no sender."),
    (mail("support@example.com", **ANSWERS), "so it is a forward, and goes there only."),
    (mail("nobody@example.com", **ANSWERS), "It answers <odoo-public-1@example.com> on crm.lead"),
    (mail(NOTIFICATIONS, **ANSWERS), "It answers <odoo-public-1@example.com> on crm.lead"),
    (mail(References="<odoo-public-1@example.com>" + " <a@b.test>" * 99), "It answers <odoo-public-1@example.com>"),
    (mail(NOTIFICATIONS), f"No alias is among its recipients: {NOTIFICATIONS}."),
]


@pytest.mark.odoo
@pytest.mark.parametrize(("message", "text"), ONLY_14)
def test_it_says_how_odoo_14_treats_it(odoo14_with_threads: Odoo, tmp_path: Path, message: bytes, text: str) -> None:
    odoo14_with_threads.set_parameter("mail.default.from", "notifications")
    path = tmp_path / "message.eml"
    path.write_bytes(message)
    said = says_what_then_happens(odoo14_with_threads, tmp_path, path)
    assert text in " ".join(step.text for step in said.steps)


@pytest.mark.odoo
def test_whom_odoo_14_finds_in_several_fields_is_not_guessed(odoo14: Odoo, tmp_path: Path) -> None:
    ours = config(odoo14.url, tmp_path, "")._replace(database=odoo14.database, password=Secret(odoo14.password))
    path = tmp_path / "message.eml"
    path.write_bytes(b"Delivered-To: info@example.com\nDelivered-To: support@example.com\n" + mail("joe@x.test"))
    with path.open("rb") as source:
        said = explain(ours, source, Arguments(), time.time())
    assert "Odoo 14 joins several Delivered-To with a blank: whom it finds can't be told." in [
        step.text for step in said.steps
    ]


@pytest.mark.odoo
@pytest.mark.parametrize(
    ("address", "is_good", "text"),
    [
        ("info@elsewhere.test", True, "The alias info@example.com makes a new crm.lead; everyone may write to it."),
        ("catchall@elsewhere.test", True, "collects answers"),
        ("bounce+12-crm.lead-1@example.com", True, "takes bounces"),
        ("bounce@example.com", False, "takes reports and nothing else: Odoo 14 has bounce+ID-MODEL-ID@ for bounces."),
    ],
)
def test_it_explains_an_address_of_odoo_14(
    gateway: Gateway, odoo14: Odoo, address: str, is_good: bool, text: str
) -> None:
    own = {"URL": odoo14.url, "DATABASE": odoo14.database, "PASSWORD": odoo14.password, "ALIAS_DOMAINS": None}
    gateway.settings |= own
    assert text in run(gateway, "--address", address, status=0 if is_good else 1)


@pytest.mark.odoo
def test_what_our_user_may_not_ask_odoo_14_is_not_guessed(gateway: Gateway, odoo14: Odoo) -> None:
    gateway.settings |= {"URL": odoo14.url, "DATABASE": odoo14.database} | new_user(odoo14, "base.group_user")
    said = run(gateway, "-", message=mail("catchall@example.com"), status=1)
    assert "catchall and bounce are parameters, and our user may not read them" in said
    assert "It would be given to the database, which decides." in said


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become another user")
def test_root_s_own_file_is_read_though_the_desk_goes_on_as_the_journal_s_owner() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        gateway = Gateway(folder, URL="http://127.0.0.1:9", LOG="stderr", MAX_SIZE=10)
        os.chown(folder / "journal", 65534, 65534)
        path = folder / "message.eml"
        path.touch(0o600)
        path.write_bytes(mail())
        assert "It would end as too large" in run(gateway, str(path), status=1)
