"""Prepare: the header fields put in front, and the Message-ID."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mailgate.envelope import Raw, spool
from mailgate.message import prepare


@contextmanager
def spooled(data: bytes) -> Iterator[Raw]:
    raw = spool(io.BytesIO(data), max_size=2**30)
    with raw.file:
        yield raw


@pytest.mark.parametrize(
    ("data", "sender", "addresses", "expected"),
    [
        (b"Message-ID: <a@b>\n\n", None, ["info@x"], b"Delivered-To: <info@x>\n"),
        (b"Message-ID: <a@b>\n\n", "ann@y", ["info@x", "jobs@x"],
         b"Return-Path: <ann@y>\nDelivered-To: <info@x>, <jobs@x>\n"),
        (b"Message-ID: <a@b>\n\n", "", ["info@x"], b"Return-Path: <>\nDelivered-To: <info@x>\n"),
        # what the message brings is not believed where the envelope is known
        (b"Message-ID: <a@b>\nRETURN-path: <z@y>\n\n", "ann@y", ["info@x"],
         b"Return-Path: <ann@y>\nDelivered-To: <info@x>\n"),
        # it says so already, as what a mail server has put into a mailbox
        (b"Return-Path: <ann@y>\nMessage-ID: <a@b>\n\n", "ann@y", ["info@x"], b"Delivered-To: <info@x>\n"),
        (b"Return-Path: <>\nMessage-ID: <a@b>\n\n", "", ["info@x"], b"Delivered-To: <info@x>\n"),
        (b"Message-ID: <a@b>\nReturn-Path: <z@y>\n\n", None, ["info@x"], b"Delivered-To: <info@x>\n"),
        (b"Message-ID: <a@b>\n\nReturn-Path: <z@y>\n", "ann@y", ["info@x"],
         b"Return-Path: <ann@y>\nDelivered-To: <info@x>\n"),
        (b"Message-ID: <a@b>\r\n\r\n", "ann@y", ["info@x"], b"Return-Path: <ann@y>\r\nDelivered-To: <info@x>\r\n"),
        (b"Message-ID: <a@b>\r\rx", "ann@y", ["info@x"], b"Return-Path: <ann@y>\nDelivered-To: <info@x>\n"),
        (b"Message-ID: <a@b>", "a b@y", ['"a b"@x'], b'Return-Path: <"a b"@y>\nDelivered-To: <"a b"@x>\n'),
        (b"Message-ID: <a@b>", "\u00fc@y", ["\u00fc@x", "\udcff@x"],
         b"Return-Path: <\xc3\xbc@y>\nDelivered-To: <\xc3\xbc@x>, <\xff@x>\n"),
        # Odoo 14 joins two fields with a blank
        (b"Message-ID: <a@b>\ndelivered-to: joe@y\n\n", None, ["info@x", "jobs@x"],
         b"Delivered-To: <info@x>, <jobs@x>,\n"),
        # nothing of an address acts in the header
        (b"Message-ID: <a@b>\n\n", "ann@y>, <z@x", ['"info@x>, <jobs"@x'],
         b'Return-Path: <"ann@y>, <z"@x>\nDelivered-To: <"info@x>, <jobs"@x>\n'),
        (b"Message-ID: <a@b>\n\n", "ann@y>,z", ["info@x"],
         b'Return-Path: <"ann@y>,z">\nDelivered-To: <info@x>\n'),
        # ancestors that the database would not find
        (b"Message-ID: <a@b>\nReferences: <x@y>\nIn-Reply-To: <ours@x>\n\n", None, ["info@x"],
         b"Delivered-To: <info@x>\nReferences: <ours@x>\n"),
        (b" \nMessage-ID: <a@b>\n\n", None, ["info@x"], b"Delivered-To: <info@x>\nX-First-Line:\n"),
    ],
)  # fmt: skip
def test_fields_are_put_in_front(data: bytes, sender: str | None, addresses: list[str], expected: bytes) -> None:
    with spooled(data) as raw:
        assert prepare(raw, sender, addresses) == (expected, "<a@b>")


@pytest.mark.parametrize(
    ("header", "lacking"),
    [
        (b"To: info@x.test", ""),
        (b"To: INFO@X.test", ""),
        (b"Cc: info@x.test", ""),
        (b"Resent-To: info@x.test", ""),
        (b"resent-cc: info@x.test", ""),
        (b"Bcc: info@x.test", "info"),
        (b"X-Original-To: info@x.test", "info"),
        (b"To: <info@x.test>", ""),
        (b"To: Info Desk <info@x.test>", ""),
        (b"To: Info.Desk <info@x.test>", ""),
        (b"To: O'Hara <info@x.test>", ""),
        (b'To: "Desk, Info" <info@x.test>', ""),
        (b'To: "say \\"hi\\"" <info@x.test>', ""),
        (b"To: =?utf-8?q?B=C3=BCro?= <info@x.test>", ""),
        (b"To: B\xc3\xbcro <info@x.test>", ""),
        (b"To: info@x.test (the desk)", ""),
        (b"To: a@b.test,\n info@x.test", ""),
        (b"To: a@b.test,\r\n\t<info@x.test>", ""),
        (b"To: a@b.test\nTo: info@x.test", ""),
        (b"To: , ,info@x.test,", ""),
        (b"To: undisclosed-recipients:;\nCc: info@x.test", ""),
        (b"To: a@b.test; c@d.test\nCc: info@x.test", ""),
        (b"To: desk: info@x.test;", ""),
        (b"To: The Desk: a@b.test, Info <info@x.test>;, c@d.test", ""),
        (b"Cc: desk: a@b.test;, info@x.test", ""),
        (b"To: undisclosed-recipients:", "info"),
        # no such address
        (b"To: info@x.test.", "info"),
        (b"To: 'info@x.test'", "info"),
        (b"To: info+tag@x.test", "info"),
        (b"To: info@sub.x.test", "info"),
        (b"To: info%x.test@relay.test", "info"),
        (b'To: "info@x.test" <a@b.test>', "info"),
        (b"To: a@b.test (info@x.test)", "info"),
        (b"Subject: info@x.test", "info"),
        (b"Subject: x\n\nTo: info@x.test", "info"),
        # each reader takes these in his own way
        (b"To: a@b.test; info@x.test", "info"),
        (b"To: info@x.test a@b.test", "info"),
        (b"To: <@relay.test:info@x.test>", "info"),
        (b"To: desk: a@b.test; info@x.test", "info"),
        (b"To: a@b.test: info@x.test;", "info"),
        (b"To: one: two: info@x.test;", "info"),
        (b"To: sales@shop <info@x.test>", "info"),
        (b"To: <a@b.test> <info@x.test>", "info"),
        (b'To: "info"@x.test', "info"),
        (b"To: =?utf-8?q?info=40x=2Etest?=", "info"),
        # what is opened and not closed may swallow what follows
        (b'To: "a <a@b.test>\nCc: info@x.test', "info"),
        (b"To: a@b.test (\nCc: info@x.test", "info"),
        (b"To: <a@b.test\nCc: info@x.test", "info"),
        (b"Cc: info@x.test\nTo: a\\", "info"),
    ],
)
def test_who_stands_in_a_field_that_the_database_reads_gets_no_other(header: bytes, lacking: str) -> None:
    """Delivered-To is To for Odoo: an alias in Cc would make an answer a forward."""
    with spooled(b"Message-ID: <a@b>\n" + header + b"\n\n") as raw:
        added, _ = prepare(raw, None, ["info@x.test"])
    assert added == (b"Delivered-To: <info@x.test>\n" if lacking else b"")


def test_ten_thousand_recipients_stand_on_lines_that_rfc_5322_allows() -> None:
    with spooled(b"Message-ID: <a@b>\r\n\r\n") as raw:
        added, _ = prepare(raw, None, [f"{number}@x.test" for number in range(10_000)])
    lines = added.split(b"\r\n")
    assert max(map(len, lines)) <= 998
    assert lines[0] == b"Delivered-To:"
    assert all(line.startswith(b" <") for line in lines[1:-1])
    assert lines[-2] == b" <9999@x.test>"
