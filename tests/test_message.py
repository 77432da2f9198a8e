"""Prepare: the header fields put in front, and the Message-ID."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mailgate.envelope import Raw, spool
from mailgate.message import prepare

DIGEST = re.compile(r"<[0-9a-f]{64}@mail-gateway\.invalid>")


@contextmanager
def spooled(data: bytes) -> Iterator[Raw]:
    raw = spool(io.BytesIO(data), max_size=2**30)
    with raw.file:
        yield raw


def message_id_of(data: bytes) -> str:
    with spooled(data) as raw:
        return prepare(raw, None, ["info@example.com"])[1]


@pytest.mark.parametrize(
    ("data", "sender", "addresses", "expected"),
    [
        (b"Message-ID: <a@b>\n\n", None, ["info@x"], b"Delivered-To: <info@x>\n"),
        (b"Message-ID: <a@b>\n\n", "ann@y", ["info@x", "jobs@x"],
         b"Return-Path: <ann@y>\nDelivered-To: <info@x>\nDelivered-To: <jobs@x>\n"),
        (b"Message-ID: <a@b>\n\n", "", ["info@x"], b"Return-Path: <>\nDelivered-To: <info@x>\n"),
        (b"Message-ID: <a@b>\nRETURN-path: <z@y>\n\n", "ann@y", ["info@x"], b"Delivered-To: <info@x>\n"),
        (b"Message-ID: <a@b>\n\nReturn-Path: <z@y>\n", "ann@y", ["info@x"],
         b"Return-Path: <ann@y>\nDelivered-To: <info@x>\n"),
        (b"Message-ID: <a@b>\r\n\r\n", "ann@y", ["info@x"], b"Return-Path: <ann@y>\r\nDelivered-To: <info@x>\r\n"),
        (b"Message-ID: <a@b>\r\rx", "ann@y", ["info@x"], b"Return-Path: <ann@y>\nDelivered-To: <info@x>\n"),
        (b"Message-ID: <a@b>", "a b@y", ['"a b"@x'], b'Return-Path: <"a b"@y>\nDelivered-To: <"a b"@x>\n'),
        (b"Message-ID: <a@b>", "\u00fc@y", ["\u00fc@x", "\udcff@x"],
         b"Return-Path: <\xc3\xbc@y>\nDelivered-To: <\xc3\xbc@x>\nDelivered-To: <\xff@x>\n"),
        (b" \nMessage-ID: <a@b>\n\n", None, ["info@x"], b"Delivered-To: <info@x>\nX-First-Line:\n"),
    ],
)  # fmt: skip
def test_fields_are_put_in_front(data: bytes, sender: str | None, addresses: list[str], expected: bytes) -> None:
    with spooled(data) as raw:
        assert prepare(raw, sender, addresses) == (expected, "<a@b>")


@pytest.mark.parametrize(
    "value",
    [
        "<a@b.test>", "<CAF=w+x_y-z@mail.gmail.com>", "<A1.b/c=d$e!f#g&h'i*j?k^l`m{n|o}p~q@x.test>",
        "<a@[1.2.3.4]>", "<a@[IPv6:2001:db8::1]>", "<a@>", "<a>", "<a.>", "<.a@b>", "<a..b@c..d>", "<a@x_y>",
        "<=?utf-8?q?a?=@b>", "<a@b>;", "<a@b> <c@d>", "<a@b>junk", "a@b", "x", "a@b>", "A b C",
        "<" + "m" * 900 + "@b>",
    ],
)  # fmt: skip
def test_a_message_id_that_the_database_can_read_is_kept(value: str) -> None:
    assert message_id_of(f"Message-Id: {value}\n\n".encode()) == value


@pytest.mark.parametrize(
    "value",
    [
        b"", b" ", b"<>", b"<@b>", b"<[x]>", b"<<a@b>>", b"<a b@c>", b"<a @c>", b"< a@c>", b"<a@b c>", b"<a@b@c>",
        b"<a@b", b"<a,b@c>", b"<a:b@c>", b"<a;b@c>", b"<a[1]@c>", b"<a\\b@c>", b'<a"b@c>', b"<a(c)b@d>", b"<a@b:25>",
        b'<"q x"@b>', b"<a@\n b>", b"<\xc3\xbc@b>", b"<a@b\xfc>", b"\xfc@b", b"<a\0@b>", b"a\0b", b"<a@b>\0",
        b"=?utf-8?q?=3Ca=40b=3E?=", b"a =?utf-8?q?=00?=", b"(c) <a@b>", b"(x) <a@b@1>", b"(abc)<",
        b"<" + b"m" * 3000 + b"@b>",
    ],
)  # fmt: skip
def test_a_message_id_that_the_database_can_not_read_is_replaced(value: bytes) -> None:
    assert DIGEST.fullmatch(message_id_of(b"Message-Id: " + value + b"\n\n"))
    assert message_id_of(b"Message-Id: " + value + b"\n\n") == message_id_of(b"Message-Id: " + value + b"\n\n")


def test_a_missing_message_id_is_made_and_the_first_of_two_counts() -> None:
    assert DIGEST.fullmatch(message_id_of(b"Subject: x\n\nMessage-ID: <in@body>\n"))
    assert DIGEST.fullmatch(message_id_of(b"Subject: x\nno field ends the header\nMessage-ID: <a@b>\n\n"))
    assert DIGEST.fullmatch(message_id_of(b"Message-ID:\nMessage-ID: <a@b>\n\n"))
    assert message_id_of(b"Message-ID: <a@b>\nMessage-ID: <>\n\n") == "<a@b>"
    assert message_id_of(b"Message-ID:\n <a@b>\n\n") == "<a@b>"
    with spooled(b"A: b\n\n") as raw:
        added, message_id = prepare(raw, None, [])
        assert added == f"Message-ID: {message_id}\n".encode()


BASE = b"Date: Sun, 22 Nov 2026 10:00:00 +0000\nSubject: x\n\nbody\n"
UNDATED = b"Subject: door 3 open\n\n"
FIRST_HOP = b"Received: from door by a.test;\n Sun, 22 Nov 2026 10:00:00 +0000\n"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (BASE, b"Received: from a by b; now\n" + BASE),
        (b"Received: one\n\tfolded\n" + BASE, b"RECEIVED: two\r\n" + BASE),
        (BASE, b"Return-Path: <a@b>\nDelivered-To: x@y\nX-Original-To: z@y\n" + BASE),
        (BASE, b"Envelope-To: q@y\nDelivery-Date: d\n" + BASE),
        (BASE, b"Authentication-Results: x\nARC-Seal: i=1\nReceived-SPF: pass\nX-Spam-Score: 3\n" + BASE),
        (BASE, b"From ann@b.test Sun Nov 22 10:00:00 2026\n" + BASE),
        (BASE, BASE.replace(b"\n", b"\r\n")),
        (UNDATED, UNDATED),
        (b"Received: from a by b; later\n" + FIRST_HOP + UNDATED, b"Received: elsewhere; now\n" + FIRST_HOP + UNDATED),
    ],
)  # fmt: skip
def test_the_same_message_has_the_same_id_however_it_was_delivered(one: bytes, other: bytes) -> None:
    assert message_id_of(one) == message_id_of(other)


@pytest.mark.parametrize(
    "other",
    [
        BASE.replace(b"body", b"Body"),
        BASE.replace(b"x", b"y"),
        BASE.replace(b"10:00:00", b"10:00:01"),
        BASE + b"\n",
        b"X: y\n" + BASE,
        b"Message-ID: <>\n" + BASE,
        BASE.replace(b"\n\n", b"\n\nReceived: a body may begin like a header\n"),
    ],
)
def test_another_message_has_another_id(other: bytes) -> None:
    assert message_id_of(BASE) != message_id_of(other)


def test_the_same_words_without_a_date_are_another_message_on_another_day() -> None:
    later = FIRST_HOP.replace(b"10:00:00", b"10:05:00").replace(b"from door", b"from elsewhere")
    assert message_id_of(FIRST_HOP + UNDATED) == message_id_of(later + UNDATED)
    next_day = FIRST_HOP.replace(b"Sun, 22", b"Mon, 23")
    assert message_id_of(FIRST_HOP + UNDATED) != message_id_of(next_day + UNDATED)


@pytest.mark.parametrize("date", [b"Date:\n", b"Date: --\n", b"Date: Thu, 01 Jan 1970 00:00:00 +0000\n"])
def test_a_date_that_can_not_be_right_is_none(date: bytes) -> None:
    """A device whose clock is dead says the same every day."""
    next_day = FIRST_HOP.replace(b"Sun, 22", b"Mon, 23")
    assert message_id_of(FIRST_HOP + date + UNDATED) != message_id_of(next_day + date + UNDATED)
    commented = next_day.replace(b"+0000\n", b"+0000 (envelope; 1)\n")
    assert message_id_of(commented + date + UNDATED) == message_id_of(next_day + date + UNDATED)


def test_a_date_that_may_be_right_stands_for_the_day() -> None:
    next_day = FIRST_HOP.replace(b"Sun, 22", b"Mon, 23")
    assert message_id_of(FIRST_HOP + BASE) == message_id_of(next_day + BASE) == message_id_of(BASE)


@pytest.mark.parametrize("message", [BASE, b"Subject: x\n", b"Subject: x\n\n" + b"x" * 200_000 + b"\n"])
def test_a_last_line_without_an_end_is_the_same(message: bytes) -> None:
    """LMTP gives it one."""
    assert message_id_of(message) == message_id_of(message[:-1]) != message_id_of(message + b"\n")


def test_the_digest_covers_a_message_of_any_size() -> None:
    large = BASE + b"x" * 3_000_000
    assert message_id_of(large) != message_id_of(large[:-1] + b"y")
    assert message_id_of(b"Subject: " + b"x" * 2_000_000 + b"\n\n") != message_id_of(
        b"Subject: " + b"x" * 2_000_000 + b"\n\n."
    )
