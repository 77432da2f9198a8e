"""Bounces: who failed, why, and which message a report is about."""

# ruff: noqa: E501  # mails and their words read better unbroken

import base64
import binascii
import json
import quopri
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.cost import STEP, grows_linearly

from mail_database import bounce
from mail_database.bounce import MAX_REASON_CHARACTERS, Bounce, Report, judge
from mail_database.message import parse
from mail_database.report import MAX_REPORT_TEXT_CHARACTERS

BOUNCES = Path(__file__).parents[2] / "shared" / "bounces"  # not ours to copy; a folder beside the checkout

HEADER = "From: MAILER-DAEMON@mx.test\nTo: bounce@example.com\nMessage-ID: <report@mx.test>\n"
RETURNED = "From: ida@example.com\nTo: ann@b.test\nMessage-ID: <original@example.com>\n"


def read_report(raw: bytes, notified: Callable[[tuple[str, ...]], Iterable[str]] = lambda ids: ()) -> Report:
    """Return who failed. ``notified`` returns the addresses that the messages with these ids were sent to."""
    said = bounce.read(raw)
    written_to = {address.strip().lower() for address in notified(said.message_ids)}
    return judge(said, written_to, written_to)


def read(data: str | bytes, notified: Iterable[str] = ()) -> Report:
    raw = data if isinstance(data, bytes) else data.encode()
    return read_report(raw, lambda message_ids: notified)


def report(*parts: str, header: str = HEADER, kind: str = "report") -> str:
    """A multipart message; each part begins with its type."""
    body = "".join(f"--B\nContent-Type: {part}\n" for part in parts)
    return f"{header}Content-Type: multipart/{kind}; boundary=B\n\n{body}--B--\n"


def dsn(*blocks: str, text: str = "Sorry.", kind: str = "message/delivery-status") -> str:
    fields = "\n".join(f"{block}\n" for block in ("Reporting-MTA: dns; mx.test", *blocks))
    return report(f"text/plain\n\n{text}", f"{kind}\n\n{fields}", f"message/rfc822\n\n{RETURNED}\nHi.\n")


def plain(text: str, header: str = HEADER) -> str:
    return f"{header}\n{text}"


def failed(data: str | bytes, notified: Iterable[str] = ()) -> list[str]:
    return [failure.final_recipient for failure in read(data, notified).failures]


ANN = "Final-Recipient: rfc822; ann@b.test"


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([f"{ANN}\nAction: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp; 550 5.1.1 no;\n body"],
         [("ann@b.test", "failed", "5.1.1", "550 5.1.1 no; body")]),
        ([f"{ANN}\nAction: FAILED (gave up)\nStatus: 4.4.7 (expired)\nDiagnostic-Code: no type"],
         [("ann@b.test", "failed", "4.4.7", "no type")]),
        ([f"{ANN}\nAction: failed", "Final-Recipient: rfc822; Bob@B.test\nAction: failed\nStatus: 5.2.2"],
         [("ann@b.test", "failed", "", ""), ("bob@b.test", "failed", "5.2.2", "")]),
        ([f"{ANN}\nAction: failed", f"{ANN}\nAction: failed\nStatus: 5.1.1"], [("ann@b.test", "failed", "", "")]),
        ([f"{ANN}\nAction: expired\nStatus: "], [("ann@b.test", "expired", "", "")]),  # SendGrid
        ([f"{ANN}\nAction: bounced\nStatus: 5.0.0"], [("ann@b.test", "bounced", "5.0.0", "")]),  # no such action
        ([f"{ANN}\nStatus: 5.1.1"], [("ann@b.test", "", "5.1.1", "")]),
        ([f"{ANN}"], [("ann@b.test", "", "", "")]),
        ([f"{ANN}\nAction: delayed\nStatus: 4.4.1"], []),
        ([f"{ANN}\nAction: delivered\nStatus: 2.0.0"], []),
        ([f"{ANN}\nAction: relayed"], []),
        ([f"{ANN}\nAction: expanded\nStatus: 2.1.5"], []),
        ([f"{ANN}\nStatus: 4.4.1"], []),
        ([f"{ANN}\nAction: delayed", "Final-Recipient: rfc822; bob@b.test\nAction: failed"],
         [("bob@b.test", "failed", "", "")]),
    ],
)  # fmt: skip
def test_those_fail_whom_a_delivery_report_says_to_have_failed(
    blocks: list[str], expected: list[tuple[str, str, str, str]]
) -> None:
    # where the report answers, neither the database nor the words are asked
    data = dsn(*blocks, text="<ann@b.test>: user unknown")
    assert read(data, ["ann@b.test"]).failures == tuple(Bounce(*row) for row in expected)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("Final-Recipient: RFC822;Ann@B.Test", ["ann@b.test"]),
        ("Final-Recipient: rfc822; <ann@b.test>", ["ann@b.test"]),
        ("Final-Recipient: rfc822; ann@b.test (Ann)", ["ann@b.test"]),
        ("Final-Recipient:\n rfc822;\n ann@b.test", ["ann@b.test"]),
        ("Final-Recipient: ann@b.test", ["ann@b.test"]),
        ("Final-Recipient: utf-8; bj\u00f6rn@b.test", ["bj\u00f6rn@b.test"]),
        ('Final-Recipient: rfc822; "ann..b"@b.test', ['"ann..b"@b.test']),
        ("Final-Recipient: rfc822; ann@localhost", ["ann@localhost"]),
        ("Original-Recipient: rfc822; ann@b.test", ["ann@b.test"]),
        ("Final-Recipient: rfc822; bob@c.test\nOriginal-Recipient: rfc822; ann@b.test", ["bob@c.test"]),
        ("Final-Recipient: \nOriginal-Recipient: rfc822;ann@b.test", ["ann@b.test"]),
        ("Final-Recipient: rfc822; ann@mailhub\nOriginal-Recipient: rfc822;ann@b.test", ["ann@b.test"]),
        ("Final-Recipient: LOCAL; ann\nOriginal-Recipient: rfc822;ann@b.test", ["ann@b.test"]),
        ("Final-Recipient: x400; /G=Ann/C=DE\nOriginal-Recipient: rfc822;ann@b.test", ["ann@b.test"]),
        ("Final-Recipient: rfc822;@x.test:ann@mx\nOriginal-Recipient: rfc822;ann@b.test", ["ann@b.test"]),
        ("Final-Recipient: rfc822;|/bin/filter eve@b.test", []),
        ("Final-Recipient: rfc822; ann", []),
    ],
)
def test_the_recipient_is_read_in_all_its_forms(fields: str, expected: list[str]) -> None:
    assert failed(dsn(f"{fields}\nAction: failed")) == expected


def test_of_final_and_original_recipient_the_one_counts_that_the_database_knows() -> None:
    forwarded = dsn("Final-Recipient: rfc822; bob@c.test\nOriginal-Recipient: rfc822; ann@b.test\nAction: failed")
    assert failed(forwarded, ["ann@b.test"]) == ["ann@b.test"]
    assert failed(forwarded, ["Bob@c.test", "ann@b.test"]) == ["bob@c.test"]
    assert failed(forwarded, ["eve@b.test"]) == ["bob@c.test"]


BLOCK = f"{ANN}\nAction: failed\n"
RETURNED_REPORT = f"message/rfc822\n\n{dsn(BLOCK).replace('B', 'C').replace('report@', 'other@')}"


@pytest.mark.parametrize(
    "data",
    [
        dsn(BLOCK, kind="message/global-delivery-status"),
        dsn(BLOCK, kind="message/global-delivery-status; charset=utf-8"),
        report(f"text/plain\n\nx\n--B\nContent-Type: message/delivery-status\n\n{BLOCK}", kind="mixed"),
        report(f"multipart/mixed; boundary=C\n\n--C\nContent-Type: message/delivery-status\n\n{BLOCK}\n--C--\n"),
        report("message/delivery-status\nContent-Transfer-Encoding: base64\n\n"
               f"{base64.encodebytes(BLOCK.encode()).decode()}"),
        report("message/delivery-status\nContent-Transfer-Encoding: quoted-printable\n\n"
               + BLOCK.replace("cipient", "ci=\npient")),
        report(f"message/delivery-status\n\n{BLOCK}").replace("\n", "\r\n"),
        report(f"message/delivery-status\n\n{BLOCK}").replace("boundary=B", "boundary=C"),
        report(f"text/plain\n\nForwarded:\n\n{BLOCK}", kind="mixed"),
        plain(f"Forwarded:\n\n{BLOCK}"),
        plain("Forwarded:\n>\n> " + BLOCK.replace("\n", "\n> ")),
        report("text/plain\n\nsee attachment", RETURNED_REPORT, kind="mixed"),
    ],
)  # fmt: skip
def test_a_delivery_report_is_found_wherever_it_is(data: str) -> None:
    assert [failure[:2] for failure in read(data).failures] == [("ann@b.test", "failed")]


def test_a_report_that_came_back_counts_only_where_its_report_says_nothing() -> None:
    data = report("message/delivery-status\n\nFinal-Recipient: rfc822; bob@b.test\nAction: failed\n", RETURNED_REPORT)
    assert failed(data) == ["bob@b.test"]
    assert failed(data.replace("failed", "delayed", 1)) == []


@pytest.mark.parametrize(
    ("text", "notified", "expected"),
    [
        # flufl.bounce knows these words, whoever was notified
        ("Hi. This is the qmail-send program at b.test.\n\n<ann@b.test>:\nno such user\n", [], ["ann@b.test"]),
        ("Hi. This is the qmail-send program at b.test.\n\n<ann@b.test>:\nno\n", ["bob@b.test"], ["ann@b.test"]),
        # and not these: an address that was notified, anywhere in them
        ("550 No luck with Ann@B.test.", ["ann@b.test"], ["ann@b.test"]),
        ("550 No luck with Ann@B.test.", [" Ann@B.test "], ["ann@b.test"]),
        ("550 No luck with <ann@b.test>, 'bob@b.test'", ["ann@b.test", "bob@b.test"], ["ann@b.test", "bob@b.test"]),
        ("550 No luck with <ann@b.test>", ["ann@b.test", "bob@b.test"], ["ann@b.test"]),
        ("550 No luck with <ann@b.test>", [], []),
        ("550 No luck with <ann@b.test>", ["bob@b.test"], []),
        ("550 No luck with <joann@b.test>", ["ann@b.test"], []),
        ("550 No luck with <ann@b.test.example>", ["ann@b.test"], []),
        ("550 No luck with <ann@b.tests>", ["ann@b.test"], []),
        ("550 No luck with <jo.ann@b.test>", ["ann@b.test"], []),
        ("550 No luck", ["ann@b.test"], []),
        # those that stand in the copy only: one is clear, two are not
        ("550 No luck with <ann@b.test>\n\nReceived: by x\nTo: ann@b.test, bob@b.test\n",
         ["ann@b.test", "bob@b.test"], ["ann@b.test"]),
        ("550 No luck\n\nFrom: x\nReceived: by x\nTo: ann@b.test\n", ["ann@b.test", "bob@b.test"], ["ann@b.test"]),
        ("550 No luck\n\nFrom: x\nReceived: by x\nTo: ann@b.test, bob@b.test\n", ["ann@b.test", "bob@b.test"], []),
        # who wrote or received the report has not failed
        ("550 No luck with <ann@b.test>. Questions? postmaster@mx.test, mailer-daemon@mx.test",
         ["ann@b.test", "mailer-daemon@mx.test"], ["ann@b.test"]),
        ("Your message from bounce@example.com to ann@b.test was not delivered", ["ann@b.test", "bounce@example.com"], ["ann@b.test"]),
    ],
)  # fmt: skip
def test_other_bounces_are_read_by_their_words(text: str, notified: list[str], expected: list[str]) -> None:
    assert failed(plain(text), notified) == expected
    assert failed(report(f"text/plain\n\n{text}", kind="mixed"), notified) == expected
    encoded = base64.encodebytes(text.encode()).decode()
    assert failed(report(f"text/plain\nContent-Transfer-Encoding: base64\n\n{encoded}"), notified) == expected


@pytest.mark.parametrize(
    ("block", "notified", "expected"),
    [
        ("", ["ann@b.test"], ["ann@b.test"]),
        ("Action: failed\n", ["ann@b.test"], ["ann@b.test"]),
        ("Final-Recipient: \nAction: failed\n", ["ann@b.test", "bob@b.test"], ["ann@b.test"]),
        ("Final-Recipient: rfc822;|/bin/x\nAction: failed\n", ["ann@b.test"], ["ann@b.test"]),
        ("Final-Recipient: rfc822;|/bin/x\nAction: failed\n", ["bob@b.test", "ida@example.com"], []),
        ("Final-Recipient: rfc822;|/bin/x\nAction: delayed\n", ["ann@b.test"], []),
        ("Final-Recipient: rfc822;|/bin/x\nAction: failed\n\nFinal-Recipient: rfc822; ann@b.test\nAction: delayed\n",
         ["ann@b.test"], []),
    ],
)  # fmt: skip
def test_a_delivery_report_that_names_nobody_is_read_like_the_others(
    block: str, notified: list[str], expected: list[str]
) -> None:
    assert failed(dsn(block), notified) == expected


def test_nobody_has_failed_where_nobody_says_so() -> None:
    """A message that came back without a word may be a complaint."""
    assert failed(report(f"message/rfc822\n\n{RETURNED}\nHi."), ["ann@b.test"]) == []


@pytest.mark.parametrize(
    "data",
    [
        report("text/plain\n\nann@b.test complains", f"message/feedback-report\n\n{BLOCK}",
               f"message/rfc822\n\n{RETURNED}\n"),
        report("text/plain\n\nann@b.test complains", f"message/delivery-status\n\n{BLOCK}",
               "message/feedback-report\n\nFeedback-Type: abuse\n"),
        report("text/plain\n\nread by ann@b.test", f"message/disposition-notification\n\n{BLOCK}"),
        plain("read by ann@b.test", f"{HEADER}Content-Type: multipart/report; report-type=disposition-notification\n"),
        plain("<ann@b.test> is not answering", f"{HEADER}Subject: Warning: message 1x delayed 24 hours\n"),
        plain("<ann@b.test> is not answering", f"{HEADER}Subject: Delivery Status Notification (Delay)\n"),
        plain("# THIS IS A WARNING ONLY. #\n<ann@b.test> is not answering"),
        plain("<ann@b.test> got it", f"{HEADER}Subject: Successful Mail Delivery Report\n"),
        plain("I'm away. Ann, ann@b.test", f"{HEADER}Subject: Automatic reply: Offer\n"),
        plain("Je suis absente. Ann, ann@b.test", HEADER.replace("MAILER-DAEMON@mx.test", "Ann <Ann@b.test>")),
        plain('{"notificationType":"Complaint","to":"ann@b.test"}'),
    ],
)  # fmt: skip
def test_complaints_receipts_delays_and_answers_name_nobody(data: str) -> None:
    assert failed(data, ["ann@b.test"]) == []


DORA, EMIL = "dora@other.test", "emil@third.test"  # both have got our mail
NOTE = "Auto-Submitted: auto-replied\nIn-Reply-To: <task@example.com>\n"


def text(sender: str, subject: str, words: str, marks: str = "", return_path: str = "<>") -> bytes:
    header = f"Return-Path: {return_path}\nFrom: {sender}\nTo: bounce@example.com\nSubject: {subject}\n"
    return f"{header}Message-ID: <text@mx.test>\n{marks}Content-Type: text/plain; charset=utf-8\n\n{words}\n".encode()


@pytest.mark.parametrize(
    ("sender", "subject", "words"),
    [
        (f"Dora <{DORA}>", "R\u00e9ponse automatique", f"Je suis absente. Contactez {EMIL}"),
        (f"Dora <{DORA}>", "Respuesta autom\u00e1tica", f"Estoy de vacaciones. Escriba a {EMIL}"),
        (f"Dora <{DORA}>", "Away", f"I'm off. {EMIL} helps."),
        ("no-reply@other.test", "Re: Lamp", f"Your message to {DORA} failed to reach a person; try {EMIL}"),
        ("postmaster@other.test", "Afwezig", f"Mail naar {DORA} gaat naar {EMIL}"),
        ("postmaster@other.test", "Nieobecno\u015b\u0107", f"Dora jest na urlopie. Prosz\u0119 pisa\u0107: {EMIL}"),
        ("postmaster@other.test", "\u4e0d\u5728\u901a\u77e5", f"\u672c\u65e5\u306f\u4e0d\u5728\u3067\u3059\u3002{EMIL} \u307e\u3067"),
        ("MAILER-DAEMON@other.test", "\u0410\u0432\u0442\u043e\u043e\u0442\u0432\u0435\u0442", f"\u042f \u0432 \u043e\u0442\u043f\u0443\u0441\u043a\u0435. \u041f\u0438\u0448\u0438\u0442\u0435 {EMIL}"),
        ("MAILER-DAEMON@other.test", "Neue Adresse",
         f"Dora ist ausgeschieden. Bitte an {EMIL} schreiben. Ihre Mail an {DORA} wurde nicht zugestellt."),
        ("postmaster@other.test", "Changement d'adresse",
         f"Dora a quitt\u00e9 la soci\u00e9t\u00e9. Ecrivez \u00e0 {EMIL}. Votre message \u00e0 {DORA} n'a pas \u00e9t\u00e9 remis."),
        ("postmaster@other.test", "Message held", f"Your message to {DORA} is held in quarantine: score 5.1.1"),
        ("postmaster@other.test", "Quarant\u00e4ne", f"Ihre Nachricht an {DORA} wurde zur\u00fcckgehalten. Fehler: keiner"),
        ("postmaster@other.test", "Ticket #500 recibido", f"Hemos recibido su solicitud para {DORA}. CC: {EMIL}"),
        ("postmaster@other.test", "Please confirm", f"Your message to {DORA} was not delivered yet."),
        ("postmaster@other.test", "Fr\u00e5nvaro", f"Jag \u00e4r borta. Kontakta {EMIL}"),
        # words of failure somewhere else in the text
        ("MAILER-DAEMON@other.test", "Re: Lamp", f"Back on Monday.\n\n{EMIL} reads your mail.\nIs there an error in a bill? Call us."),
        ("postmaster@other.test", "Re: Lamp", f"Nem vagyok itt. Keresse: {EMIL}. Kedden j\u00f6v\u00f6k. Error 404 volt a weblapon."),
        ("postmaster@other.test", "H\u00e1zon k\u00edv\u00fcl", f"Szabads\u00e1gon vagyok, \u00edrjon: {EMIL}\nerror"),
        ("postmaster@other.test", "\ubd80\uc7ac\uc911", f"\ud734\uac00 \uc911\uc785\ub2c8\ub2e4. \ubc30\ub2ec: {EMIL}"),
        ("postmaster@other.test", "\u81ea\u52a8\u56de\u590d", f"\u6211\u6b63\u5728\u4f11\u5047\uff0c\u8bf7\u8054\u7cfb {EMIL} \u5931\u6557"),
        ("postmaster@other.test", "Spam digest", f"These messages were blocked:\n{DORA}\n{EMIL}"),
        ("postmaster@other.test", "Confirm your email", f"Your message to {DORA} is blocked until you click."),
        # it will be tried again, or was read
        ("MAILER-DAEMON@other.test", "En attente", f"Votre message n'a pas encore \u00e9t\u00e9 remis \u00e0\n{DORA}\n4.4.1 erreur"),
        ("MAILER-DAEMON@other.test", "Hinweis", f"Ihre Nachricht konnte noch nicht zugestellt werden:\n{DORA}\n451 4.7.1"),
        ("postmaster@other.test", "Gelesen: Lamp", f"Ihre Nachricht An: {DORA} wurde ohne Fehler gelesen."),
        ("postmaster@other.test", "Not read: Lamp", f"Your message to {DORA} was deleted. 5.0.0"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("marks", ["", NOTE])
def test_notes_name_nobody_in_any_language(sender: str, subject: str, words: str, marks: str) -> None:
    assert failed(text(sender, subject, words, marks), [DORA, EMIL]) == []


@pytest.mark.parametrize(
    ("sender", "subject", "words"),
    [
        ("MAILER-DAEMON@h.test", "Unzustellbar", f"Ihre Nachricht an {DORA} konnte nicht zugestellt werden."),
        ("postmaster@h.test", "Non remis", f"Votre message n'a pas pu \u00eatre remis :\n\n  {DORA}\n  550 5.1.1 inconnu"),
        ("postmaster@h.test", "Mancata consegna", f"Impossibile consegnare a:\n<{DORA}>: utente sconosciuto"),
        ("postmaster@h.test", "Zwrot", f"Wiadomo\u015b\u0107 do {DORA} nie zosta\u0142a dostarczona"),
        ("MAILER-DAEMON@h.test", "\u914d\u4fe1\u30a8\u30e9\u30fc", f"\u5b9b\u5148: {DORA}\n\u9001\u4fe1\u3067\u304d\u307e\u305b\u3093\u3067\u3057\u305f"),
        ("postmaster@h.test", "\u041e\u0448\u0438\u0431\u043a\u0430", f"\u0421\u043e\u043e\u0431\u0449\u0435\u043d\u0438\u0435 \u0434\u043b\u044f {DORA} \u043d\u0435 \u0434\u043e\u0441\u0442\u0430\u0432\u043b\u0435\u043d\u043e"),
        ("postmaster@h.test", "No entregado", f"Su mensaje a {DORA} no se ha podido entregar"),
        ("postmaster@h.test", "Onbestelbaar", f"Uw bericht aan {DORA} kon niet worden bezorgd"),
        ("MAILER-DAEMON@h.test", "failure notice", f"Hi. This is the qmail-send program at h.\n\n<{DORA}>:\nno mailbox"),
        ("MAILER-DAEMON@h.test", "Returned mail", f"550 <{DORA}>... User unknown\n\nReceived: by x\nTo: {DORA}, {EMIL}"),
        ("postmaster@h.test", "K\u00e9zbes\u00edthetetlen", f"Az \u00fczenet nem k\u00e9zbes\u00edthet\u0151:\n{DORA}"),
        ("postmaster@h.test", "Viesti", f"Viesti\u00e4 ei voitu toimittaa osoitteeseen {DORA}"),
        ("postmaster@h.test", "\u0130leti", f"A\u015fa\u011f\u0131daki al\u0131c\u0131ya teslim edilemedi:\n\n  {DORA}"),
        ("postmaster@h.test", "\uba54\uc2dc\uc9c0", f"\ub2e4\uc74c \uc218\uc2e0\uc790\uc5d0\uac8c \uc804\ub2ec\ud560 \uc218 \uc5c6\uc2b5\ub2c8\ub2e4:\n\n{DORA}"),
        ("MAILER-DAEMON@h.test", "Report", f"Hello.\n\n<{DORA}>\n\n550 no mailbox here\n\nAsk {EMIL}, please."),
        ("postmaster@h.test", "Undeliverable", f"Could not be delivered:\n<{DORA}>\n\nAsk <{EMIL}>, who got it."),
    ],
)  # fmt: skip
def test_text_bounces_are_reports_in_any_language(sender: str, subject: str, words: str) -> None:
    raw = text(sender, subject, words)
    assert failed(raw, [DORA, EMIL]) == [DORA]
    assert bounce.is_report(parse(raw), at_bounce_address=False)


@pytest.mark.parametrize(
    ("raw", "at_alias", "at_bounce_address"),
    [
        (text("postmaster@h.test", "Failure", f"550 {DORA}"), True, True),
        (text("postmaster@h.test", "Your DNS", "Hello", return_path="<postmaster@h.test>"), False, True),
        (text("MAILER-DAEMON@h.test", "x", "x", return_path="<x@h.test>"), True, True),
        (text("x@h.test", "failure", f"Hi. This is the qmail-send program\n\n<{DORA}>:\nno"), True, True),
        (text("<>", "Failure", f"550 {DORA}"), True, True),
        (text("<>", "Hello there", "Body text"), False, True),
        # people quote bounces, and forward them
        (text("ann@h.test", "Fwd: failure", f"See:\n\nHi. This is the qmail-send program\n\n<{DORA}>:\nno",
              return_path="<ann@h.test>"), False, False),
        (text("ann@h.test", "Order", "Forty chairs", return_path="<ann@h.test>"), False, False),
        (text("dora@h.test", "Away", f"Ask {EMIL}", NOTE), False, False),  # the null sender alone is no sign
        (dsn(BLOCK).encode(), True, True),
        (dsn(BLOCK).replace("MAILER-DAEMON@mx.test", "ann@b.test").encode(), True, True),
        (report("text/plain\n\nx", "message/disposition-notification\n\nDisposition: x\n").encode(), True, True),
        (report("text/plain\n\nx", "message/feedback-report\n\nFeedback-Type: abuse\n").encode(), False, False),
        (report("text/plain\n\nx", "application/tlsrpt+gzip\n\nx\n").encode(), False, False),
    ],
)  # fmt: skip
def test_a_report_is_told_from_other_mail(raw: bytes, at_alias: bool, at_bounce_address: bool) -> None:
    message = parse(raw)
    assert (bounce.is_report(message, False), bounce.is_report(message, True)) == (at_alias, at_bounce_address)


@pytest.mark.parametrize(
    ("recipient", "words", "expected"),
    [
        ("dora@other.onmicrosoft.test", f"Your message to {DORA} couldn't be delivered.", [DORA]),
        ("IMCEAEX-_O=X_CN=DORA@other.test", f"Dora ({DORA})<mailto:{DORA}>\n\nDie Adresse wurde nicht gefunden.", [DORA]),
        ("dora.new@mail.test", f"<dora.new@mail.test> (expanded from <{DORA}>): unknown", [DORA]),
        ("dora@inner.test", f"Impossible de remettre \u00e0 {DORA}", [DORA]),
        ("dora@inner.test", f"To: {DORA}\nCc: {EMIL}\n", []),  # which of them?
        ("dora@inner.test", f"{DORA} and {EMIL} have got a mail", []),
        (EMIL, f"Your message to {DORA} is fine.", []),  # a report that names one of them needs no words
    ],
)  # fmt: skip
def test_where_a_report_has_only_inner_names_its_text_tells(recipient: str, words: str, expected: list[str]) -> None:
    raw = dsn(f"Final-Recipient: rfc822;{recipient}\nAction: failed", text=words)
    assert failed(raw, [DORA, EMIL]) == [recipient.lower(), *expected]


def event(**values: object) -> str:
    return json.dumps(values)


BOUNCED = {"bouncedRecipients": [{"emailAddress": EMIL, "status": "5.1.1", "diagnosticCode": "smtp; 550 no"}]}
SES = event(notificationType="Bounce", bounce=BOUNCED, mail={"destination": [DORA, EMIL]})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (SES, [EMIL]),
        (event(Type="Notification", Message=SES) + "\n\n--\nIf you wish to stop", [EMIL]),
        (event(notificationType="Complaint", complaint={"complainedRecipients": [{"emailAddress": EMIL}]}), []),
        (event(eventType="DeliveryDelay", deliveryDelay={"delayedRecipients": [{"emailAddress": EMIL}]}), []),
        (json.dumps([{"event": "bounce", "email": EMIL}, {"event": "delivered", "email": DORA}]), [EMIL]),  # SendGrid
        (event(**{"event-data": {"event": "failed", "severity": "permanent", "recipient": EMIL}}), [EMIL]),  # Mailgun
        (event(**{"event-data": {"event": "failed", "severity": "temporary", "recipient": EMIL}}), []),
        (event(RecordType="Bounce", Type="HardBounce", Email=EMIL), [EMIL]),  # Postmark
        (event(RecordType="Bounce", Type="AutoResponder", Email=EMIL), []),
        (json.dumps([{"msys": {"message_event": {"type": "bounce", "rcpt_to": EMIL}}}]), [EMIL]),  # SparkPost
        ("{" * 100_000, []),
    ],
)  # fmt: skip
def test_of_a_report_in_json_only_those_count_who_bounced(words: str, expected: list[str]) -> None:
    assert failed(text("MAILER-DAEMON@ses.test", "x", words), [DORA, EMIL]) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (report("message/delivery-status\n\nX-Original-Message-ID: <a@x>\n\nFinal-Recipient: rfc822; x@y\n"), "<a@x>"),
        (report("message/disposition-notification\n\nOriginal-Message-ID: <a@x>\n"), "<a@x>"),
        (report("text/rfc822-headers\n\nMessage-ID: <new@ses.test>\nReferences: <old@x> <a@x>\n"), "<a@x>"),
        (text("MAILER-DAEMON@ses.test", "x", event(notificationType="Bounce", mail={"commonHeaders": {"messageId": "<a@x>"}})),
         "<a@x>"),
    ],
)  # fmt: skip
def test_a_report_may_name_the_message_elsewhere(raw: str | bytes, expected: str) -> None:
    said = bounce.read(raw if isinstance(raw, bytes) else raw.encode())
    assert next(found for found in (*said.message_ids, *said.other_ids) if "new@" not in found) == expected


@pytest.mark.parametrize(
    "shape",
    [
        "{}",
        "Content-Type: text/html\n\n{}",
        "Subject: {}\n",
        "Content-Type: multipart/report; {}\n",
        "References: {}\n",
    ],
)
@pytest.mark.parametrize(
    "repeated",
    [
        "\n",
        "a@b ",
        '"',
        ";",
        "<",
        "<!--",
        "&#9",
        'boundary="',
        "--b\n",
        "Message-ID:<a",
        "Final-Recipient:;a@b.c\n\n",
        "{",
    ],
)
def test_reading_takes_linear_time(shape: str, repeated: str) -> None:
    """Each of these took more, or would with an expression that is a little worse."""
    small, large = ((HEADER + shape.format((repeated * size)[:size])).encode() for size in (50_000, 50_000 * STEP))
    assert grows_linearly(read_report, small, large)


ID = "Message-ID: <original@example.com>"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (dsn(BLOCK), ["<original@example.com>"]),
        (report(f"text/rfc822-headers\n\n{ID}\n"), ["<original@example.com>"]),
        (report(f"text/rfc822-headers; charset=x-nope\n\n{ID}\n"), ["<original@example.com>"]),
        (report(f"text/rfc822-header\n\n{ID}\n"), ["<original@example.com>"]),
        (report(f"message/global\n\n{ID}\n\nx"), ["<original@example.com>"]),
        (report(f"message/global-headers\n\n{ID}\n"), ["<original@example.com>"]),
        (report("message/rfc822\n\nMessage-Id:\n <original@exa\n mple.com>\n"), ["<original@example.com>"]),
        (report(f"message/rfc822\n\nReceived: by x\nunindented\n{ID}\n"), ["<original@example.com>"]),
        (report("message/rfc822\nContent-Transfer-Encoding: base64\n\n"
                f"{base64.encodebytes(ID.encode()).decode()}"), ["<original@example.com>"]),
        (report("text/rfc822-headers\nContent-Transfer-Encoding: base64\n\n"
                f"{base64.encodebytes(ID.encode()).decode()}"), ["<original@example.com>"]),
        (report(f"message/rfc822\nContent-Transfer-Encoding: base64\n\n{ID}\n\nin clear"), ["<original@example.com>"]),
        (report("message/rfc822\n\nMessage-ID: <a@x>\nX-Microsoft-Original-Message-ID: <b@x>\n"), ["<a@x>", "<b@x>"]),
        (report(f"text/plain\n\nhello\n--B\nReceived: by x\n{ID}\n\nHi."), ["<original@example.com>"]),
        (report("text/plain\n\nx", RETURNED_REPORT, kind="mixed"), ["<other@mx.test>", "<original@example.com>"]),
        # quoted in the text
        (plain(f"no luck\n\n{ID}\n"), ["<original@example.com>"]),
        (plain("no luck\n\n  message-id:<a@x>\n>> Message-Id :\n>> <b@x>\n"), ["<a@x>", "<b@x>"]),
        (report("text/html\n\n<p>no luck<br>Message-ID: &lt;original@example.com&gt;</p>"), ["<original@example.com>"]),
        (plain("your Message-ID: <a@x> was bad\n"), []),
        # better than what is worse
        (report(f"message/rfc822\n\n{ID}\n", "text/plain\n\nMessage-ID: <b@x>\n"), ["<original@example.com>"]),
        (plain(f"{ID}\n", f"{HEADER}In-Reply-To: <b@x>\n"), ["<original@example.com>"]),
        (plain("x", f"{HEADER}In-Reply-To: <a@x>\nReferences: <b@x>\n"), ["<a@x>"]),
        (plain("x", f"{HEADER}References: <a@x>\n <b@x> <c@x>\n"), ["<c@x>", "<b@x>", "<a@x>"]),
        # never the report's own
        (plain("Message-ID: <report@mx.test>\n"), []),
        (plain("x", f"{HEADER}References: <report@mx.test> <a@x>\n"), ["<a@x>"]),
        (report("message/rfc822\n\nMessage-ID: <report@mx.test>\n"), []),
        (plain("x"), []),
    ],
)  # fmt: skip
def test_the_message_that_a_report_is_about(data: str, expected: list[str]) -> None:
    assert list(bounce.read(data.encode()).message_ids) == expected


def test_the_database_is_asked_for_the_message_that_the_report_is_about() -> None:
    asked = []

    def notified(message_ids: tuple[str, ...]) -> list[str]:
        asked.append(message_ids)
        return []

    read_report(dsn(BLOCK).encode(), notified)
    assert asked == [("<original@example.com>",)]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (dsn(BLOCK, text="\n  Sorry,\nno luck.\n\n"), "Sorry,\nno luck."),
        (plain("Sorry"), "Sorry"),
        (report("text/plain\n\n \n", "text/plain\n\nSorry"), "Sorry"),
        (report("multipart/alternative; boundary=C\n\n--C\n\nSorry\n--C\nContent-Type: text/html\n\n<p>x\n--C--\n"),
         "Sorry"),
        (report("text/html\n\n<style>p {}</style><!-- > --><p>Sorry,\n<b>Ann</b> &lt;ann@b.test&gt;<br/>"
                '<a href="mailto:x@y">it</a> &amp; all</p><ann@b.test>'),
         "Sorry,\nAnn <ann@b.test>\nit & all\n<ann@b.test>"),
        (report("text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: quoted-printable\n\nrefus=E9e"),
         "refus\u00e9e"),
        (HEADER.encode() + b"\nrefus\xe9e", "refus\u00e9e"),
        (HEADER.encode() + b"Content-Type: text/plain; charset=x-nope\n\nrefus\xc3\xa9e", "refus\u00e9e"),
        (HEADER.encode() + b"Content-Type: text/plain; charset=unicode-escape\n\n\\ud800", "\\ud800"),
        (plain("a\0b"), "a\ufffdb"),
        (dsn(f"{BLOCK}Diagnostic-Code: smtp; 550\n no", text=""), "550 no"),
        (dsn(BLOCK, text=""), "no error"),
        (HEADER, "no error"),
        ("", "no error"),
        (plain("x" * 1_000_000), "x" * MAX_REASON_CHARACTERS),
    ],
)  # fmt: skip
def test_the_reason_is_what_a_person_should_read(data: str | bytes, expected: str) -> None:
    assert read(data).reason == expected


def test_reports_within_reports_are_read_to_a_depth() -> None:
    for depth, expected in ((1, ["ann@b.test"]), (5, ["ann@b.test"]), (20, [])):
        raw = dsn(BLOCK)
        for number in range(depth):
            raw = (
                report(f"message/rfc822\n\n{raw}")
                .replace("boundary=B", f"boundary=N{number}")
                .replace("--B", f"--N{number}")
            )
        assert failed(raw) == expected


def test_what_comes_back_may_be_large() -> None:
    data = dsn(BLOCK).replace("Hi.", f"{'x' * 70}\n" * (3 * MAX_REPORT_TEXT_CHARACTERS // 70))
    assert failed(data) == ["ann@b.test"]


lines = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [b"", b"--B", b"--B--", b"Content-Type: multipart/report; boundary=B", b"Content-Type: multipart/x;boundary=B",
         b"Content-Type: message/delivery-status", b"Content-Type: message/rfc822", b"Content-Type: text/rfc822-header",
         b"Content-Type: text/html; charset=utf-7", b"Content-Type: text/plain; charset=\xff", b"Content-Type: \xff",
         b"Content-Type: text/plain; charset*0*=x; charset*1=y", b"Content-Type: message/global-delivery-status",
         b"Content-Transfer-Encoding: base64", b"Content-Transfer-Encoding: x-uuencode", b"begin 644 x", b"#!!!",
         b"Content-Transfer-Encoding: quoted-printable", b"Final-Recipient: rfc822; ann@b.test", b"<ann@b.test>:",
         b"Original-Recipient: rfc822; \xff@b.test", b"Action: failed", b"Action: \xff", b"Status: 5.1.1",
         b"Diagnostic-Code: smtp; \0", b"Message-ID: <a@b>", b"Message-ID: <\xff\0>", b"> Message-ID:", b" folded",
         b"From: ann@b.test", b"From: \xff", b"Subject: =?x?q?=FF?=", b"X-Failed-Recipients: ann@b.test",
         b"Hi. This is the qmail-send program", b"<p>", b"<!--", b"&#0;&#xd800;"]
    ),
)  # fmt: skip
messages = st.one_of(st.binary(max_size=300), st.lists(lines, max_size=40).map(b"\n".join))


@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(raw=messages, notified=st.lists(st.sampled_from(["ann@b.test", "", "eve@b.test"])))
def test_no_bytes_make_it_fail(raw: bytes, notified: list[str]) -> None:
    result = read(raw, notified)
    words = [result.reason, *bounce.read(raw).message_ids, *(word for failure in result.failures for word in failure)]
    "".join(words).encode()  # no lone surrogates
    assert not any("\0" in word for word in words)
    assert result.reason
    assert "eve@b.test" not in [failure.final_recipient for failure in result.failures]


# Of the real bounces, those that tell of no failure, as far as their files aren't named arf-* (complaints) ...
TELL_OF_NO_FAILURE = {
    "lhost-amazonses-11": "a complaint",
    "lhost-amazonses-13": "delivered",
    "lhost-exim-38": "delayed",
    "lhost-gmail-09": "delayed",
    "lhost-opensmtpd-04": "delayed",
    "lhost-opensmtpd-06": "delayed",
    "lhost-opensmtpd-13": "delayed",
    "lhost-opensmtpd-15": "delayed",
    "lhost-sendmail-29": "delayed",
    "lhost-sendmail-55": "delayed",
    "lhost-x1-04": "delayed",
    "rfc3464-28": "an address verified",
    "rfc3464-34": "delayed",
    "rfc3834-02": "an answer",
    "rfc3834-04": "an answer",
    "rfc3834-06": "an answer",
    "rhost-gsuite-06": "delayed",
}
# ... and those that don't name who failed in a way that we understand.
NAME_NOBODY = {
    "lhost-ezweb-03": "words of its own, without a copy that would say who was notified",
    "lhost-ezweb-08": "the same",
    "lhost-fml-03": "a list's loop alert, from no daemon",
    "lhost-mfilter-04": "the same; its copy has a Message-ID, but no To",
    "lhost-mimecast-01": "the same",
    "lhost-opensmtpd-02": "the same; its copy has neither",
    "lhost-postfix-75": "a transcript for the postmaster, not for a sender",
    "lhost-qmail-08": "the sender wrote to himself",
}
WHERE_THERE = pytest.mark.skipif(
    not BOUNCES.is_dir(), reason="the folder of real bounces, shared/bounces, is not beside the checkout"
)


def decoded(raw: bytes) -> str:
    """The report with its encoded parts decoded, found without a MIME parser."""

    def decode(match: re.Match[bytes]) -> bytes:
        function = base64.b64decode if match[2].lower() == b"base64" else quopri.decodestring
        try:
            return match[1] + function(match[3])
        except binascii.Error:
            return match[0]

    encoded = re.compile(
        rb"(^content-transfer-encoding:[ \t]*(base64|quoted-printable)[^\n]*\n(?:[^\n]+\n)*\n)(.*?)(?=^--|\Z)",
        re.DOTALL | re.MULTILINE | re.IGNORECASE,
    )
    return encoded.sub(decode, raw.replace(b"\r\n", b"\n")).decode("latin-1")


def quoted(body: str, names: str) -> list[str]:
    """The values of the header fields, quoted or not, anywhere in a body."""
    return re.findall(rf"(?im)^[>| \t]*(?:{names})[ \t]*:(.*(?:\n[> \t]+(?![\w -]+:).*)*)", body)


@WHERE_THERE
def test_real_bounces_name_who_failed() -> None:
    paths = sorted(BOUNCES.glob("*.eml"))
    assert len(paths) == 314
    nobody = set()
    for path in paths:
        text = decoded(path.read_bytes())
        recipients = " ".join(quoted(text.partition("\n\n")[2], "to|cc|bcc|rcpt to|delivered-to|x-original-to"))
        addresses = {address.lower() for address in re.findall(r"[\w.+%=/-]+@[\w-]+(?:\.[\w-]+)*", recipients)}
        names = failed(path.read_bytes(), addresses)
        for name in names:
            assert name in text.lower(), path
        if not names:
            nobody.add(path.stem)
    complaints = {path.stem for path in paths if path.stem.startswith("arf-")}
    assert nobody == complaints | TELL_OF_NO_FAILURE.keys() | NAME_NOBODY.keys()
    assert len(NAME_NOBODY) <= 0.05 * (len(paths) - len(complaints) - len(TELL_OF_NO_FAILURE))


@WHERE_THERE
def test_real_bounces_are_about_the_message_that_they_quote() -> None:
    quoting = 0
    for path in sorted(BOUNCES.glob("*.eml")):
        head, _, body = decoded(path.read_bytes()).partition("\n\n")
        own = re.findall(r"<[^<>\s]+>", " ".join(quoted(head, "message-id")))
        ids = set(re.findall(r"<[^<>\s]+>", " ".join(quoted(body, "message-id")))) - set(own)
        found = set(bounce.read(path.read_bytes()).message_ids)
        if ids:
            quoting += 1
            assert found & ids, path
        if len(ids) == 1:
            assert found == ids, path
    assert quoting == 262
