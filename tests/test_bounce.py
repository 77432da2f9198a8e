"""Bounces: who failed, why, and which message a report is about."""

import base64
import binascii
import email
import email.policy
import quopri
import re
from collections.abc import Iterable
from email.message import Message
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mail_database.bounce import LOOKED_AT, REASON_LIMIT, Bounce, Report, read_report

BOUNCES = Path(__file__).parents[2] / "shared" / "bounces"  # not ours to copy; a folder beside the checkout

HEADER = "From: MAILER-DAEMON@mx.test\nTo: bounce@example.com\nMessage-ID: <report@mx.test>\n"
RETURNED = "From: ida@example.com\nTo: ann@b.test\nMessage-ID: <original@example.com>\n"


def read(data: str | bytes, notified: Iterable[str] = ()) -> Report:
    raw = data if isinstance(data, bytes) else data.encode()
    return read_report(email.message_from_bytes(raw, policy=email.policy.compat32), lambda message_ids: notified)


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
        ("No luck with Ann@B.test.", ["ann@b.test"], ["ann@b.test"]),
        ("No luck with Ann@B.test.", [" Ann@B.test "], ["ann@b.test"]),
        ("No luck with <ann@b.test>, 'bob@b.test'", ["ann@b.test", "bob@b.test"], ["ann@b.test", "bob@b.test"]),
        ("No luck with <ann@b.test>", ["ann@b.test", "bob@b.test"], ["ann@b.test"]),
        ("No luck with <ann@b.test>", [], []),
        ("No luck with <ann@b.test>", ["bob@b.test"], []),
        ("No luck with <joann@b.test>", ["ann@b.test"], []),
        ("No luck with <ann@b.test.example>", ["ann@b.test"], []),
        ("No luck with <ann@b.tests>", ["ann@b.test"], []),
        ("No luck with <jo.ann@b.test>", ["ann@b.test"], []),
        ("No luck", ["ann@b.test"], []),
        # those that stand in the copy only: one is clear, two are not
        ("No luck with <ann@b.test>\n\nReceived: by x\nTo: ann@b.test, bob@b.test\n",
         ["ann@b.test", "bob@b.test"], ["ann@b.test"]),
        ("No luck\n\nFrom: x\nReceived: by x\nTo: ann@b.test\n", ["ann@b.test", "bob@b.test"], ["ann@b.test"]),
        ("No luck\n\nFrom: x\nReceived: by x\nTo: ann@b.test, bob@b.test\n", ["ann@b.test", "bob@b.test"], []),
        # who wrote or received the report has not failed
        ("No luck with <ann@b.test>. Questions? postmaster@mx.test, mailer-daemon@mx.test",
         ["ann@b.test", "mailer-daemon@mx.test"], ["ann@b.test"]),
        ("Your message from bounce@example.com to ann@b.test", ["ann@b.test", "bounce@example.com"], ["ann@b.test"]),
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
    assert list(read(data).message_ids) == expected


def test_the_database_is_asked_for_the_message_that_the_report_is_about() -> None:
    asked = []

    def notified(message_ids: tuple[str, ...]) -> list[str]:
        asked.append(message_ids)
        return []

    read_report(email.message_from_string(dsn(BLOCK)), notified)
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
        (plain("x" * 1_000_000), "x" * REASON_LIMIT),
    ],
)  # fmt: skip
def test_the_reason_is_what_a_person_should_read(data: str | bytes, expected: str) -> None:
    assert read(data).reason == expected


def test_any_depth_is_read() -> None:
    """The parser gives up at a thousand; parts that were put together otherwise may be deeper."""
    inner = email.message_from_string(dsn(BLOCK))
    for depth in range(1200):
        outer = Message()
        outer["Content-Type"] = "message/rfc822" if depth % 2 else "multipart/report"
        outer.attach(inner)
        inner = outer
    assert [failure.final_recipient for failure in read_report(inner).failures] == ["ann@b.test"]


def test_what_comes_back_may_be_large() -> None:
    data = dsn(BLOCK).replace("Hi.", f"{'x' * 70}\n" * (3 * LOOKED_AT // 70))
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
    words = [result.reason, *result.message_ids, *(word for failure in result.failures for word in failure)]
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
    "lhost-amazonses-09": "JSON, which quotes neither To nor Message-ID",
    "lhost-ezweb-03": "words of its own, without a copy that would say who was notified",
    "lhost-ezweb-08": "the same",
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
        found = set(read(path.read_bytes()).message_ids)
        if ids:
            quoting += 1
            assert found & ids, path
        if len(ids) == 1:
            assert found == ids, path
    assert quoting == 262
