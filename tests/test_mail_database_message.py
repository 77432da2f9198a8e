"""bytes -> Message: whatever the bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail_database.message import ORIGINAL, normalize, parse

pieces = st.one_of(
    st.sampled_from(
        [
            b"\n", b"\n\n", b"--b\n", b"--b--\n", b"Content-Type: multipart/mixed; boundary=b\n", b"begin 644 x\n",
            b"Content-Type: text/html; charset*\n", b"Content-Type: message/rfc822\n", b"Content-Type: ;\n",
            b"Content-Type: message/delivery-status\n", b"Subject: =?utf-8?q?=00?=\n", b"Content-Disposition: \"\n",
            b"Content-Disposition: attachment; filename*0*=x''%ff\n", b"Content-Transfer-Encoding: base64\n",
            b"Content-Transfer-Encoding: x-uuencode\n", b"Content-Type: text/plain; charset=idna\n", b"=41=\n",
            b"Content-Type: text/plain; charset=punycode\n", b"Message-ID: <a@b@c>\n", b"To: a@b, , ;,<\n",
            b"From: <@b>\n", b"Return-Path: <>\n", b"From x y\n", b"\xff\xfe: \xff\n",
        ]
    ),
    st.binary(max_size=20),
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(pieces, max_size=15).map(b"".join))
def test_any_bytes_are_a_message_that_any_store_can_hold(raw: bytes) -> None:
    message = parse(raw)
    texts = [message.message_id, message.sender, message.subject or "", message.body]
    texts += [attachment.name for attachment in message.attachments]
    for text in (*texts, *message.ancestors, *message.recipients):
        assert "\0" not in text
        text.encode()


def test_a_thousand_parts_within_each_other_stay_in_the_original() -> None:
    depth = range(1200)
    raw = b"Subject: deep\n" + b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in depth
    )
    message = parse(raw)
    assert message.subject == "deep"
    assert [attachment.name for attachment in message.attachments] == [ORIGINAL]


@pytest.mark.parametrize(
    ("raw", "shown", "original"),
    [
        (b"Content-Type: text/plain; charset=latin-1\n\ncaf\xe9", "<pre>caf\u00e9</pre>", False),
        (b"\ncaf\xc3\xa9 <b>", "<pre>caf\u00e9 &lt;b&gt;</pre>", False),
        (b"Content-Type: text/plain; charset=x-nope\n\ncaf\xc3\xa9", "<pre>caf\u00e9</pre>", True),
        (b"Content-Type: text/plain; charset=rot13\n\nabc", "<pre>abc</pre>", True),
        (b"Content-Type: multipart/mixed; boundary=b\n\nnothing else\n", "<pre>nothing else\n</pre>", True),
        (
            b"Content-Type: multipart/mixed; boundary=m\n\n--m\n\nintro\n--m\n"
            b"Content-Type: multipart/alternative; boundary=a\n\n--a\n\nplain\n--a\n"
            b"Content-Type: text/html\n\n<p>html</p>\n--a--\n--m--\n",
            "<pre>intro</pre>\n<p>html</p>",
            False,
        ),
        (b"Content-Type: text/html\n\n<p onclick=x>a<script>b</script></p>", "<p>a</p>", False),
    ],
)
def test_what_can_be_read_is_shown_and_what_not_is_attached(raw: bytes, shown: str, original: bool) -> None:
    message = parse(raw)
    assert message.body.strip() == shown
    assert [attachment.name for attachment in message.attachments] == ([ORIGINAL] if original else [])
    assert not original or message.attachments[0].content == raw


@pytest.mark.parametrize(
    ("value", "message_id"),
    [
        ("<a@b>", "<a@b>"),
        ("<a@b> (comment)", "<a@b>"),
        ("<a b@c>", "<ab@c>"),
        ("<a,b@c>", "<a,b@c>"),
        ("<a@b@c>", "<a@b@c>"),
        ("a@b", "a@b"),
        ("<>", ""),
        ("<@>", ""),
        ("", ""),
    ],
)
def test_a_message_id_is_taken_as_it_was_written(value: str, message_id: str) -> None:
    assert parse(f"Message-ID: {value}\n\n".encode()).message_id == message_id


@pytest.mark.parametrize(
    ("address", "expected"),
    [("Ann <Ann@B.test>", "ann@b.test"), ("ann@b.test", "ann@b.test"), ("ann", ""), ("", "")],
)
def test_an_address_is_known_again(address: str, expected: str) -> None:
    assert normalize(address) == expected
