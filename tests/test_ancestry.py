"""Identity and ancestry: the Message-ID of a message, and the ids that lead to its thread."""

import io
import re

import pytest

from mailgate.ancestry import message_id, references
from mailgate.envelope import spool

DIGEST = re.compile(rb"<[0-9a-f]{64}@mail-gateway\.invalid>")


def message_id_of(data: bytes) -> bytes:
    raw = spool(io.BytesIO(data), max_size=2**30)
    with raw.file:
        return message_id(raw, raw.head())[0]


def is_kept(data: bytes) -> bool:
    raw = spool(io.BytesIO(data), max_size=2**30)
    with raw.file:
        return message_id(raw, raw.head())[1]


def referred(value: bytes, field: bytes = b"References") -> list[bytes]:
    """Return what a header with these ancestors needs besides."""
    return references(b"%b: %b\n\n" % (field, value))


@pytest.mark.parametrize(
    "value",
    [
        "<a@b.test>", "<CAF=w+x_y-z@mail.gmail.com>", "<A1.b/c=d$e!f#g&h'i*j?k^l`m{n|o}p~q@x.test>",
        "<a@[1.2.3.4]>", "<a@[IPv6:2001:db8::1]>", "<a@>", "<a>", "<a.>", "<.a@b>", "<a..b@c..d>", "<a@x_y>",
        "<a@b>;", "<a@b> <c@d>", "<a@b>junk", "<" + "m" * 900 + "@b>",
    ],
)  # fmt: skip
def test_a_message_id_that_the_database_can_read_is_kept(value: str) -> None:
    data = f"Message-Id: {value}\n\n".encode()
    assert message_id_of(data) == value.encode()[: value.index(">") + 1]
    assert is_kept(data)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"a@b", b"<a@b>"), (b"a@b>", b"<a@b>"), (b"<a@b", b"<a@b>"), (b"x", b"<x>"), (b"<<a@b>>", b"<a@b>"),
        (b"<a@\n b>", b"<a@b>"), (b"<a b@c>", b"<ab@c>"), (b"< a@c>", b"<a@c>"), (b"(c) <a@b>", b"<a@b>"),
        (b"<a@b>\0", b"<a@b>"), (b"<a@b>\xfc", b"<a@b>"),
    ],
)  # fmt: skip
def test_a_message_id_that_is_not_written_as_it_is_read_is_written_so(value: bytes, expected: bytes) -> None:
    data = b"Message-Id: " + value + b"\n\n"
    assert message_id_of(data) == expected
    assert not is_kept(data)


UNREADABLE = [
    b"<[x]>", b"<a@b@c>", b"<a,b@c>", b"<a:b@c>", b"<a;b@c>", b"<a[1]@c>", b"<a\\b@c>", b'<a"b@c>', b"<a(c)b@d>",
    b"<a@b:25>", b'<"q x"@b>', b"<\xc3\xbc@b>", b"<a@b\xfc>", b"<a\0@b>", b"<=?utf-8?q?a?=@b>", b"<2026:11@x [y]>",
    b"<[1]@x.test>", b"<" + b"m" * 3000 + b"@b>",
]  # fmt: skip


@pytest.mark.parametrize("value", [*UNREADABLE, b"\xfc@b", b"a\0b", b"=?utf-8?q?=3Ca=40b=3E?=", b"(abc)<"])
def test_a_message_id_that_the_database_can_not_read_becomes_a_digest_of_it(value: bytes) -> None:
    """The same id in another message is the same id: a copy by a list, for one."""
    one, other = (message_id_of(b"Message-Id: %b\nSubject: %b\n\n" % (value, words)) for words in (b"x", b"y"))
    assert DIGEST.fullmatch(one)
    assert one == other != message_id_of(b"Message-Id: " + value[:1] + b"z" + value[1:] + b"\n\n")


@pytest.mark.parametrize("value", UNREADABLE)
@pytest.mark.parametrize("field", [b"References", b"In-Reply-To"])
def test_an_answer_to_it_names_the_same_digest(value: bytes, field: bytes) -> None:
    asked = message_id_of(b"Message-Id: " + value + b"\n\n")
    assert referred(value, field)[-1:] == [asked]
    assert referred(value.replace(b"@", b"\r\n\t@"), field)[-1:] == [asked]  # folded within the id


@pytest.mark.parametrize("value", [b"", b" ", b"<>", b"<@b>", b"<@>", b"< >", b"<[]@b>", b">", b"()"])
def test_an_id_that_names_nothing_is_none(value: bytes) -> None:
    """A device that writes the same nothing into each of its mails sends many mails."""
    one, other = (message_id_of(b"Message-Id: %b\nSubject: %b\n\n" % (value, words)) for words in (b"x", b"y"))
    assert DIGEST.fullmatch(one)
    assert one != other
    assert referred(value) == referred(value, b"In-Reply-To") == []


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"", []),
        (b"References: <a@b>", []),
        (b"In-Reply-To: <a@b>", []),
        (b"References: <a@b>\nIn-Reply-To: <a@b>", []),
        (b"References: <a@b> <c@d>\nIn-Reply-To: <a@b>", []),
        (b"References: <a@b>\nReferences: <c@d>\nIn-Reply-To: <a@b>", []),
        # References hides In-Reply-To from Odoo
        (b"References: <a@b>\nIn-Reply-To: <c@d>", [b"<c@d>"]),
        (b"References:\nIn-Reply-To: <c@d>", [b"<c@d>"]),
        (b"References: (none)\nIn-Reply-To: <c@d>", [b"<c@d>"]),
        (b"In-Reply-To: message of <a@b>\nReferences: x", [b"<a@b>"]),
        # without brackets
        (b"References: a@b", [b"<a@b>"]),
        (b"References: a@b, c@d", [b"<a@b>", b"<c@d>"]),
        (b"References: <a@b> c@d", []),
        (b"In-Reply-To: a@b", [b"<a@b>"]),
        (b"In-Reply-To: c@d\nReferences: <a@b>", [b"<c@d>"]),
        # a field of ours hides In-Reply-To, too
        (b"In-Reply-To: <a@b> <[1]@c>", 2),
        (b"References: <a@b> <[1]@c>", 1),
        (b"References: <digest@mail-gateway.invalid>", []),
        (b"References: " + b"<[%d]@c> " * 50 % tuple(range(50)), 32),
    ],
)
def test_ancestors_that_the_database_would_not_find_are_named(header: bytes, expected: "list[bytes] | int") -> None:
    found = references(header + b"\n\n")
    assert found == expected if isinstance(expected, list) else len(found) == expected


def test_a_missing_message_id_is_made_and_the_first_of_two_counts() -> None:
    assert DIGEST.fullmatch(message_id_of(b"Subject: x\n\nMessage-ID: <in@body>\n"))
    assert DIGEST.fullmatch(message_id_of(b"Subject: x\nno field ends the header\nMessage-ID: <a@b>\n\n"))
    assert DIGEST.fullmatch(message_id_of(b"Message-ID:\nMessage-ID: <a@b>\n\n"))
    assert message_id_of(b"Message-ID: <a@b>\nMessage-ID: <>\n\n") == b"<a@b>"
    assert message_id_of(b"Message-ID:\n <a@b>\n\n") == b"<a@b>"


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


def test_the_same_words_without_a_date_are_another_message_each_time_they_are_received() -> None:
    """A camera that says "Motion detected" three times on a day has seen three motions."""
    later = FIRST_HOP.replace(b"10:00:00", b"10:05:00")
    folded = FIRST_HOP.replace(b"\n Sun", b" Sun")
    assert message_id_of(FIRST_HOP + UNDATED) == message_id_of(folded + UNDATED) != message_id_of(later + UNDATED)


BEFORE = message_id_of(BASE)


@pytest.mark.parametrize(
    "fields",
    [
        b"Message-ID: %b\n" % BEFORE,
        b"message-id: %b\n" % BEFORE.upper(),
        b"Message-ID: x %b\n" % BEFORE,
        b"Message-ID: %bx\n" % BEFORE,
        b"Message-ID: %b (c)\n" % BEFORE,
        b"Message-ID: %b <a@b>\n" % BEFORE,
        b"Message-ID: %b@b\n" % BEFORE,
        b"Message-ID: %b\xff\n" % BEFORE,
        b"Message-ID: %b\n" % BEFORE.replace(b".", b".\n "),
        b"Message-ID: %b\n" % BEFORE.replace(b"@", b" @\t"),
        b"Message-ID:%b>\nMessage-ID: %b\n" % (BEFORE, BEFORE),
    ],
)
def test_a_name_of_ours_is_not_believed(fields: bytes) -> None:
    """Else a stranger who knows a mail without an id could send its digest before it."""
    assert message_id_of(fields + b"Subject: mine\n\n") == message_id_of(b"Subject: mine\n\n") != BEFORE
    assert message_id_of(fields + b"Message-ID: <a@b>\n\n") == b"<a@b>"
    assert not is_kept(fields + b"Message-ID: <a@b>\n\n")
    assert message_id_of(fields + BASE) == BEFORE  # a mail from the hold folder, delivered again, is the same one


@pytest.mark.parametrize("date", [b"Date:\n", b"Date: --\n", b"Date: Thu, 01 Jan 1970 00:00:00 +0000\n"])
def test_a_date_that_can_not_be_right_is_none(date: bytes) -> None:
    """A device whose clock is dead says the same every day."""
    next_day = FIRST_HOP.replace(b"Sun, 22", b"Mon, 23")
    assert message_id_of(FIRST_HOP + date + UNDATED) != message_id_of(next_day + date + UNDATED)


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
