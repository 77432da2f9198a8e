"""The program and a real Odoo 19: a customer's mail becomes a lead."""

import base64
import hashlib
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from support.gateway import Gateway
from support.odoo.server import Odoo

pytestmark = pytest.mark.odoo
MESSAGES = Path(__file__).parent / "messages"


@pytest.fixture
def gateway(odoo: Odoo, tmp_path: Path) -> Gateway:
    return Gateway(tmp_path, URL=odoo.url, DATABASE=odoo.database, PASSWORD=odoo.password)


def mail(text: str = "body", to: str = "info@example.com", message_id: str | None = "", **fields: str) -> bytes:
    """Return a small message, its Message-ID a new one unless given, and none where it is None."""
    header = {"From": "Xavier Out <xavier@outside.test>", "To": to, "Subject": f"mail {uuid.uuid4()}"}
    if message_id is not None:
        header["Message-ID"] = message_id or f"<{uuid.uuid4()}@outside.test>"
    header |= {name.replace("_", "-"): value for name, value in fields.items()}
    return "".join(f"{name}: {value}\n" for name, value in header.items()).encode() + f"\n{text}\n".encode()


def subject(message: bytes) -> str:
    found = re.search(rb"^Subject: (.*)$", message, re.MULTILINE)
    assert found
    return found[1].decode()


def leads(odoo: Odoo, message: bytes) -> list[dict[str, Any]]:
    return odoo.search("crm.lead", [("name", "=", subject(message))], "email_from", "create_date")


def thread(odoo: Odoo, model: str, record_id: int) -> list[dict[str, Any]]:
    domain = [("model", "=", model), ("res_id", "=", record_id), ("message_type", "=", "email")]
    return odoo.search("mail.message", domain, "body", "email_from", "message_id", "attachment_ids", "parent_id")


def test_a_mail_makes_a_lead_and_its_copy_makes_nothing_new(odoo: Odoo, gateway: Gateway) -> None:
    message = mail("We need 200 chairs.")
    result = gateway.run("--sender=xavier@outside.test", "info@example.com", message=message)
    assert result.ending == (0, "2.0.0", "delivered")
    (lead,) = leads(odoo, message)
    assert result.facts["record_id"] == str(lead["id"])
    assert lead["email_from"] == '"Xavier Out" <xavier@outside.test>'
    (posted,) = thread(odoo, "crm.lead", lead["id"])
    assert "We need 200 chairs." in posted["body"]

    result = gateway.run("--sender=xavier@outside.test", "info@example.com", message=message)
    assert result.ending == (0, "2.0.0", "known")
    assert leads(odoo, message) == [lead]
    assert len(thread(odoo, "crm.lead", lead["id"])) == 1


def test_a_reply_lands_on_the_lead_it_answers(odoo: Odoo, gateway: Gateway) -> None:
    message = mail("first")
    gateway.run("info@example.com", message=message)
    (lead,) = leads(odoo, message)
    (answer_id,) = odoo.call("crm.lead", "message_post", [lead["id"]], body="our answer", message_type="comment")
    (answer,) = odoo.search("mail.message", [("id", "=", answer_id)], "message_id")
    for to, fields in [
        ("info@example.com", {"In_Reply_To": answer["message_id"]}),
        ("catchall@example.com", {"References": f"<unknown@x.test>\n {answer['message_id']}"}),
    ]:
        reply = mail(f"reply to {to}", to=to, **fields)
        assert gateway.run(to, message=reply).ending == (0, "2.0.0", "delivered")
        assert leads(odoo, reply) == []
        *_, posted = thread(odoo, "crm.lead", lead["id"])
        assert f"reply to {to}" in posted["body"]
        assert posted["parent_id"][0] == answer_id


def test_an_alias_that_only_the_envelope_names_gets_its_record(odoo: Odoo, gateway: Gateway) -> None:
    message = mail(to="somebody@elsewhere.test")
    assert gateway.run("info@example.com", message=message).ending == (0, "2.0.0", "delivered")
    assert len(leads(odoo, message)) == 1


def test_two_aliases_of_the_envelope_get_a_record_each_also_beside_a_foreign_delivered_to(
    odoo: Odoo, gateway: Gateway
) -> None:
    message = mail(to="somebody@elsewhere.test", Delivered_To="relay@elsewhere.test")
    result = gateway.run("info@example.com", "nobody@elsewhere.test", "support@example.com", message=message)
    assert result.ending == (0, "2.0.0", "delivered")
    assert result.facts["unmatched"] == "nobody@elsewhere.test"
    assert len(leads(odoo, message)) == 1
    assert len(odoo.search("project.task", [("name", "=", subject(message))])) == 1


def test_a_redirected_address_and_an_extension_reach_the_alias(odoo: Odoo, gateway: Gateway) -> None:
    message = mail(to="sales@elsewhere.test")
    arguments = ("--original-recipient", "info+fair@example.com", "--", "odoo@localhost")
    assert gateway.run(*arguments, message=message, RECIPIENT_DELIMITER="+").ending == (0, "2.0.0", "delivered")
    assert len(leads(odoo, message)) == 1


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_a_mail_without_message_id_delivered_twice_makes_one_lead(
    odoo: Odoo, gateway: Gateway, line_end: bytes
) -> None:
    message = mail(message_id=None, Date="Sun, 22 Nov 2026 10:00:00 +0000").replace(b"\n", line_end)
    for hop, outcome in [(b"one", "delivered"), (b"two", "known")]:
        received = b"Received: from " + hop + line_end + message
        assert gateway.run("info@example.com", message=received).facts["outcome"] == outcome
    assert len(leads(odoo, message.replace(line_end, b"\n"))) == 1


ODD_IDS = [
    "<>", "<@{}>", "<[{}]>", "<<a{}@b>>", "<a b{}@c>", "<a@b@{}>", "<a@b{}", "<a,{}@b>", "<a:{}@b>", "<a[{}]@b>",
    "<a(c){}@b>", "<a@b:{}>", "=?utf-8?q?a=00{}?=", "<" + "{}" * 100 + "@b>",
    # these are kept as they are
    "{}", "<{}>", "<a@[{}]>", "<a@{}>;", "<a@{}> <c@d>", "<=?utf-8?q?{}?=@b>",
]  # fmt: skip


@pytest.mark.parametrize("odd_id", ODD_IDS)
def test_mails_with_odd_message_ids_are_told_apart_and_known_again(odoo: Odoo, gateway: Gateway, odd_id: str) -> None:
    messages = [mail(message_id=re.sub(r"\{\}", lambda _: uuid.uuid4().hex[:30], odd_id)) for _ in range(2)]
    for outcome in ("delivered", "known"):
        for message in messages:
            assert gateway.run("info@example.com", message=message).facts["outcome"] == outcome
    assert [len(leads(odoo, message)) for message in messages] == [1, 1]


@pytest.mark.parametrize(
    ("recipient", "message", "settings", "ending"),
    [
        ("nobody@example.com", mail(to="nobody@example.com"), {}, (67, "5.1.1", "unknown_recipient")),
        ("nobody@example.com", mail(to="nobody@example.com"), {"MODEL": "crm.lead"}, (0, "2.0.0", "delivered")),
        ("nobody@example.com", mail(to="nobody@example.com"), {"MODEL": "no.such"}, (75, "4.3.5", "settings")),
        ("catchall@example.com", mail(to="catchall@example.com"), {}, (0, "2.0.0", "accepted")),
        ("bounce@example.com", mail(to="bounce@example.com"), {}, (0, "2.0.0", "accepted")),
        ("info@example.com", mail(References="<1-loop-detection-bounce-email@x.test>"), {}, (0, "2.0.0", "held")),
        ("info@example.com", b"\0\xff random bytes", {}, (0, "2.0.0", "delivered")),
        ("info@example.com", b"\n\njust a body", {}, (0, "2.0.0", "delivered")),
        ("info@example.com", b"", {}, (65, "5.6.0", "not_a_message")),
        ("info@example.com", mail(), {"LOGIN": "admin"}, (0, "2.0.0", "delivered")),
        ("info@example.com", mail(), {"LOGIN": "nobody"}, (75, "4.7.0", "access_denied")),
        ("info@example.com", mail(), {"LOGIN": "999"}, (75, "4.7.0", "access_denied")),
        ("info@example.com", mail(), {"PASSWORD": "wrong"}, (75, "4.7.0", "access_denied")),
        ("info@example.com", mail(), {"PASSWORD": "wrong", "LOGIN": "admin"}, (75, "4.7.0", "access_denied")),
        ("info@example.com", mail(), {"DATABASE": "none"}, (75, "4.3.5", "settings")),
        ("info@example.com", mail(Content_Type="text/plain; charset=x-nope"), {}, (0, "2.0.0", "held")),
        ("info@example.com", mail(Subject="nul \0 byte"), {}, (0, "2.0.0", "held")),
        ("broken@example.com", mail(to="broken@example.com"), {}, (0, "2.0.0", "held")),
        ("dangling@example.com", mail(to="dangling@example.com"), {}, (0, "2.0.0", "held")),
        ("countries@example.com", mail(to="countries@example.com"), {}, (0, "2.0.0", "held")),
    ],
)  # fmt: skip
def test_what_odoo_answers_has_its_ending(
    gateway: Gateway, tmp_path: Path, recipient: str, message: bytes, settings: dict[str, Any], ending: tuple
) -> None:
    hold = tmp_path / "held"
    hold.mkdir()
    result = gateway.run("--sender=xavier@outside.test", recipient, message=message, HOLD=hold, **settings)
    assert result.ending == ending
    assert len(list(hold.glob("new/*"))) == (ending[2] == "held")


def test_a_stopped_loop_is_dropped(odoo: Odoo, gateway: Gateway) -> None:
    odoo.set_parameter("mail.gateway.loop.threshold", "0")
    try:
        assert gateway.run("info@example.com", message=mail()).ending == (0, "2.0.0", "dropped")
    finally:
        odoo.set_parameter("mail.gateway.loop.threshold", "100000")


def test_mail_waits_for_an_odoo_that_is_stopped(odoo: Odoo, gateway: Gateway) -> None:
    message = mail()
    odoo.stop()
    try:
        assert gateway.run("info@example.com", message=message).ending == (75, "4.4.1", "no_answer")
    finally:
        odoo.start()
    assert gateway.run("info@example.com", message=message).ending == (0, "2.0.0", "delivered")
    assert len(leads(odoo, message)) == 1


# --- everyday mail --------------------------------------------------------------------------------------------

PNG = "7b6aa983693e07fbd4ac6358036b59f5d42467b6"
ICS = "fe732249ec8b88e0109785c40bd5653c4b21495f"
EVERYDAY = {
    # file: (subject, sender, what the body shows, what it doesn't, attachments: name and SHA-1)
    "01-plain-flowed": (
        "Offer for 200 folding chairs", '"Paula Plain" <paula@kunde.test>', "delivery to Hamburg included?", "", {}),
    "02-html-with-attachment": (
        "Drawing of the new shelf", '"Henry T. Mail" <henry@kunde.test>', "<td>80 cm</td>", "color: red",
        {"shelf drawing.pdf": "9789ce1f2c9fa67b757c27de56636c59d4181a84"}),
    "03-outlook": (
        "RE: Quarterly order", '"Olga Outlook" <olga@konzern.test>', "Bitte 40 Stück, wie im März.", "cid:",
        {"image001.png": PNG}),
    "04-gmail-reply": (
        "Re: Your visit at the fair", '"Greta Gmail" <greta@gmail.test>', "please call me on Tuesday 😀", "", {}),
    "05-umlauts-everywhere": (
        "Anfrage für Büromöbel – schöne Grüße", '"Jürgen Müßig" <juergen@koeln.test>',
        "Grüße aus Köln: 20 m² für 1.000 €", "", {"Preisübersicht.csv": "ac5c350b718ed029e75f817ab8e433deea35f822"}),
    "06-calendar-invite": (
        "Invitation: Visit of the plant @ Tue 1 Dec 2026 10:00", '"Clara Calendar" <clara@kalender.test>',
        "<b>Visit of the plant</b>", "BEGIN:VCALENDAR", {"invite.ics": ICS, "attachment": ICS}),
    "07-latin1-8bit": (
        "Café à Liège", '"René Lefèvre" <rene@altbau.test>', "Le café à Liège sera prêt à Noël", "", {}),
    "08-forwarded": (
        "Fwd: Broken lamp", '"Fred Forward" <fred@partner.test>', "The lamp that I bought is broken.", "",
        {"Broken lamp.eml": "a778d156b80b4c4f86196e59be66267633193c3d"}),
    "09-pgp-signed": (
        "Signed order", '"Sigrid Signed" <sigrid@sicher.test>', "I order ten lamps — really.", "BEGIN PGP",
        {"signature.asc": "ac0913464f1f6f68d72b912918dcbc097d5aee5f"}),
    "10-apple-mail": (
        "Photo of the door", '"Anna Apple" <anna@obst.test>', "and should be <i>green</i>.", "", {"IMG_0815.png": PNG}),
    "11-windows-1252-crlf": (
        "€ 500 für „alles“", '"Wagner, Willi" <willi@buero.test>', "Wir zahlen € 500 – für „alles“.", "=80", {}),
    "12-newsletter": (
        "新商品のご案内", '"Verteiler & Co." <news@verteiler.test>', "<b>¥ 1,200</b>", "<script>", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", EVERYDAY)
def test_an_everyday_mail_looks_right(odoo: Odoo, gateway: Gateway, name: str) -> None:
    expected_subject, sender, shown, not_shown, attachments = EVERYDAY[name]
    result = gateway.run("--sender=bounces@x.test", "info@example.com", message=MESSAGES / f"{name}.eml")
    assert result.ending == (0, "2.0.0", "delivered")
    lead_id = int(result.facts["record_id"])
    (lead,) = odoo.search("crm.lead", [("id", "=", lead_id)], "name", "email_from")
    assert lead == {"id": lead_id, "name": expected_subject, "email_from": sender}
    (posted,) = thread(odoo, "crm.lead", lead_id)
    assert shown in posted["body"]
    assert not not_shown or not_shown not in posted["body"]
    found = odoo.call("ir.attachment", "read", posted["attachment_ids"], ["name", "datas"])
    digests = {row["name"]: hashlib.sha1(base64.b64decode(row["datas"])).hexdigest() for row in found}
    assert digests == attachments


def test_there_are_twelve_of_them() -> None:
    assert sorted(EVERYDAY) == [path.stem for path in sorted(MESSAGES.iterdir())]
