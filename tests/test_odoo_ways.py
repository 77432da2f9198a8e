"""A real Odoo 19, with the gateway in front by each of its ways, and without it: where does a mail arrive?

What Odoo alone does right must go right with the gateway, too; what only the envelope knows, or what Odoo can't read,
goes right with the gateway alone.
"""

import uuid
import xmlrpc.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.gateway import Gateway
from support.odoo.server import Odoo
from support.service import Service, running

pytestmark = pytest.mark.odoo

Deliver = Callable[..., int]
WAYS = ("alone", "pipe", "service")


class Way(NamedTuple):
    """A way into the database: a function from envelope recipients and message to an exit status."""

    name: str
    deliver: Deliver

    @property
    def is_gateway(self) -> bool:
        return self.name != "alone"


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, odoo: Odoo, tmp_path: Path) -> Iterator[Way]:
    settings = {"URL": odoo.url, "DATABASE": odoo.database, "PASSWORD": odoo.password, "PATIENCE": "5"}
    if request.param == "alone":

        def alone(recipients: list[str], message: bytes, originals: list[str] | None = None) -> int:
            try:
                odoo.call("mail.thread", "message_process", False, xmlrpc.client.Binary(message))
            except xmlrpc.client.Fault as fault:
                return 67 if "No possible route" in fault.faultString else 75
            return 0

        yield Way(request.param, alone)
        return

    gateway = Gateway(tmp_path, **settings)

    def program(recipients: list[str], message: bytes, originals: list[str] | None = None, *options: str) -> int:
        given = [f"--original-recipient={original}" for original in originals or []]
        arguments = (*options, "--sender=ann@outside.test", *given, "--", *recipients)
        return gateway.run(*arguments, message=message).status

    if request.param == "pipe":
        yield Way(request.param, program)
        return
    with running(Service(tmp_path, **settings)) as service:
        yield Way(
            request.param,
            lambda recipients, message, originals=None: program(
                recipients, message, originals, f"--service={service.address}"
            ),
        )


class Thread(NamedTuple):
    """A lead, and the id of what we wrote to its customer."""

    lead: int
    message_id: str


@pytest.fixture
def ours(odoo: Odoo) -> Thread:
    lead = odoo.call("crm.lead", "create", {"name": "Offer", "email_from": "ann@outside.test"})
    (message,) = odoo.call("crm.lead", "message_post", [lead], body="our offer", message_type="comment")
    (row,) = odoo.search("mail.message", [("id", "=", message)], "message_id")
    return Thread(lead, row["message_id"])


def mail(mark: str, header: str) -> bytes:
    head = f"From: Ann <ann@outside.test>\nSubject: {mark}\n{header}\n"
    if "Message-ID:" not in header:
        head += f"Message-ID: <{uuid.uuid4()}@outside.test>\n"
    return f"{head}\nwords of {mark}\n".encode()


def places(odoo: Odoo, mark: str) -> list[tuple[str, Any]]:
    """Return where a mail has arrived: model, and the record's id."""
    found = odoo.search("mail.message", [("body", "ilike", f"words of {mark}")], "model", "res_id")
    return [(row["model"], row["res_id"]) for row in found if row["model"] in ("crm.lead", "project.task")]


INFO, SUPPORT, BOUNCE = "info@example.com", "support@example.com", "bounce@example.com"
CATCHALL = "catchall@example.com"


@pytest.mark.parametrize("references", ["References: {id}", "In-Reply-To: {id}", "In-Reply-To: {id}\nReferences: {id}"])
@pytest.mark.parametrize("cc", [SUPPORT, f'"Support, all" <{SUPPORT}>, joe@x.test', f"joe@x.test, {SUPPORT} (team)"])
def test_an_answer_with_another_alias_in_cc_stays_in_its_thread(
    way: Way, odoo: Odoo, ours: Thread, references: str, cc: str
) -> None:
    mark = uuid.uuid4().hex
    header = f"To: {INFO}\nCc: {cc}\n{references.format(id=ours.message_id)}"
    assert way.deliver([INFO, SUPPORT], mail(mark, header)) == 0
    assert places(odoo, mark) == [("crm.lead", ours.lead)]


def test_an_answer_with_another_alias_in_bcc_is_on_its_thread_and_at_the_alias(
    way: Way, odoo: Odoo, ours: Thread
) -> None:
    """Once, also when it is delivered again. Odoo alone knows nothing of the alias."""
    mark = uuid.uuid4().hex
    message = mail(mark, f"To: {CATCHALL}\nIn-Reply-To: {ours.message_id}")
    for _ in range(2):
        assert way.deliver([CATCHALL, SUPPORT], message) == 0
        lead, *others = sorted(places(odoo, mark))
        assert lead == ("crm.lead", ours.lead)
        assert [model for model, _ in others] == ["project.task"] * way.is_gateway


def test_an_order_with_the_bounce_address_in_cc_is_an_order(way: Way, odoo: Odoo) -> None:
    mark = uuid.uuid4().hex
    assert way.deliver([INFO, BOUNCE], mail(mark, f"To: {INFO}\nCc: {BOUNCE}")) == 0
    assert [model for model, _ in places(odoo, mark)] == ["crm.lead"]


@pytest.mark.parametrize(
    "header", ["To: joe@x.test", "To: joe@x.test\nDelivered-To: joe@x.test", "To: undisclosed-recipients:;", "X: y"]
)
def test_two_aliases_that_only_the_envelope_names_get_a_record_each(way: Way, odoo: Odoo, header: str) -> None:
    mark = uuid.uuid4().hex
    assert way.deliver([INFO, SUPPORT], mail(mark, header)) == (0 if way.is_gateway else 67)
    assert sorted(model for model, _ in places(odoo, mark)) == ["crm.lead", "project.task"] * way.is_gateway


@pytest.mark.parametrize(
    "to",
    [
        INFO,
        f"Desk <{INFO}>, {SUPPORT}",
        f"{INFO}; joe@x.test",
        f'"Desk <{INFO}>',
        f"Desk: {INFO};",
        f"{INFO} {SUPPORT}",
    ],
)
def test_two_aliases_get_a_record_each_whatever_the_list_in_to_looks_like(way: Way, odoo: Odoo, to: str) -> None:
    mark = uuid.uuid4().hex
    status = way.deliver([INFO, SUPPORT], mail(mark, f"To: {to}"))
    if way.is_gateway:
        assert status == 0
        assert sorted(model for model, _ in places(odoo, mark)) == ["crm.lead", "project.task"]


@pytest.mark.parametrize(
    "bad_id", ["<[{}]@x.test>", "<a:{}@x.test>", "<{}@x@y.test>", "<a,{}@x.test>", '<"{} b"@x.test>']
)
def test_an_answer_to_an_id_that_odoo_can_not_read_finds_its_thread(way: Way, odoo: Odoo, bad_id: str) -> None:
    asked, answered = uuid.uuid4().hex, uuid.uuid4().hex
    message_id = bad_id.format(uuid.uuid4().hex)
    way.deliver([INFO], mail(asked, f"To: {INFO}\nMessage-ID: {message_id}"))
    way.deliver([INFO], mail(answered, f"To: {INFO}\nIn-Reply-To: {message_id}\nReferences: {message_id}"))
    if way.is_gateway:
        (place,) = places(odoo, asked)
        assert places(odoo, answered) == [place]


@pytest.mark.parametrize(
    "header",
    [
        "In-Reply-To: {id}\nReferences: <foreign@x.test> <other@x.test>",
        "References: <foreign@x.test>\nIn-Reply-To: {id}",
        "In-Reply-To: {bare}",
        "References: {bare}",
        "References: (none)\nIn-Reply-To: {id}",
    ],
)
def test_an_answer_finds_the_thread_that_in_reply_to_names(way: Way, odoo: Odoo, ours: Thread, header: str) -> None:
    mark = uuid.uuid4().hex
    names = header.format(id=ours.message_id, bare=ours.message_id.strip("<>"))
    assert way.deliver([INFO], mail(mark, f"To: {INFO}\n{names}")) == 0
    if way.is_gateway:
        assert places(odoo, mark) == [("crm.lead", ours.lead)]


@pytest.mark.parametrize(
    ("recipient", "original", "status"),
    [
        (INFO, "contact@example.com", 0),
        ("contact@example.com", INFO, 0),
        (INFO, SUPPORT, 0),
        ("nobody@example.com", "contact@example.com", 67),
    ],
)
def test_a_redirection_within_the_domain_arrives_once(
    way: Way, odoo: Odoo, recipient: str, original: str, status: int
) -> None:
    mark = uuid.uuid4().hex
    if way.is_gateway:
        assert way.deliver([recipient], mail(mark, "To: joe@x.test"), [original]) == status
        assert len(places(odoo, mark)) == (status == 0)


def test_the_spellings_of_a_domain_are_one(odoo: Odoo, tmp_path: Path) -> None:
    """Odoo takes a domain with A-labels only; the mail server may use either spelling, and so may the settings."""
    with pytest.raises(xmlrpc.client.Fault, match="latin characters"):
        odoo.call("mail.alias.domain", "create", {"name": "m\u00fcller.example"})
    domain = odoo.call("mail.alias.domain", "create", {"name": "xn--mller-kva.example"})
    model = odoo.search("ir.model", [("model", "=", "crm.lead")], "model")[0]["id"]
    odoo.call("mail.alias", "create", {"alias_name": "desk", "alias_model_id": model, "alias_domain_id": domain})
    settings = {"URL": odoo.url, "DATABASE": odoo.database, "PASSWORD": odoo.password}
    gateway = Gateway(tmp_path, ALIAS_DOMAINS="m\u00fcller.example", **settings)
    for spelled in ("m\u00fcller.example", "xn--mller-kva.example"):
        for header in ("To: joe@x.test", f"To: desk@{spelled}"):
            mark = uuid.uuid4().hex
            result = gateway.run("--sender=a@b.test", f"desk@{spelled}", message=mail(mark, header))
            assert result.status == 0, (spelled, header, result.log)
            assert len(places(odoo, mark)) == 1
