"""Read: the arguments, the envelope and the message as an MTA gives them."""

import io
import os
import re
import socket
import subprocess
from email import message_from_bytes
from email.policy import SMTP
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.endpoint import Endpoint, Request, returns
from support.gateway import ENVIRONMENT, Gateway

from mailgate.arguments import Arguments, Usage, parse_arguments
from mailgate.envelope import (
    MAX_HEADER_BYTES,
    SPOOL_IN_MEMORY_BYTES,
    Envelope,
    Recipient,
    envelope_of,
    fields,
    join_address,
    split_address,
    spool,
    unfold,
)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], {}),
        (["a@x", "b@x"], {"recipients": ("a@x", "b@x")}),
        (["--", "-y@x", "--sender"], {"recipients": ("-y@x", "--sender")}),
        (["--sender", "a@x", "--", "b@x"], {"sender": "a@x", "recipients": ("b@x",)}),
        (["--sender=a=b@x"], {"sender": "a=b@x"}),
        (["--sender", "", "b@x"], {"sender": "", "recipients": ("b@x",)}),
        (["--sender="], {"sender": ""}),
        (["--sender", "-a@x"], {"sender": "-a@x"}),
        (["--sender", "--a@x"], {"sender": "--a@x"}),
        # Postfix: --original-recipient=${original_recipient}
        (["--original-recipient=a@x", "--original-recipient=--env-file=/e@x", "--", "c@x", "--env-file=/f@x"],
         {"original_recipients": ("a@x", "--env-file=/e@x"), "recipients": ("c@x", "--env-file=/f@x")}),
        (["--original-recipient", "-a@x", "b@x"], {"original_recipients": ("-a@x",), "recipients": ("b@x",)}),
        (["--env-file", "/e", "--model", "crm.lead", "--dry-run", "", "a@x"],
         {"env_file": "/e", "model": "crm.lead", "dry_run": True, "recipients": ("a@x",)}),
        (["a@x", "--dry-run"], {"recipients": ("a@x",), "dry_run": True}),
        (["--help"], {"help": True}),
        (["--version"], {"version": True}),
    ],
)  # fmt: skip
def test_arguments(argv: list[str], expected: dict[str, object]) -> None:
    assert vars(parse_arguments(argv)) == {"recipients": (), "original_recipients": ()} | expected


@pytest.mark.parametrize(
    "argv",
    [["--sendr", "a@x"], ["--send", "a@x"], ["-s"], ["-"], ["--sender"], ["--sender", "--", "a@x"], ["--dry-run=1"],
     ["--original-recipient", "--queue-id", "Q"], ["--original-recipient", "a@x", "--bogus", "--", "b@x"], ["---"]],
)  # fmt: skip
def test_arguments_that_make_no_sense(argv: list[str]) -> None:
    with pytest.raises(Usage):
        parse_arguments(argv)


HEADER = b"""\
Return-Path: <bounces@x.test>
Delivered-To: list@x.test
X-Original-To: one@x.test
Envelope-To: two@x.test,
 three@x.test
From: not-me@x.test
To: "Last, First" <four@x.test>, Group: five@x.test;
Cc: one@x.test
Resent-To: six@x.test
Resent-Cc: seven@x.test
Reply-To: nor-me@x.test

To: not-in-the-header@x.test
"""
ALL = [
    "list@x.test",
    "one@x.test",
    "two@x.test",
    "three@x.test",
    "four@x.test",
    "five@x.test",
    "six@x.test",
    "seven@x.test",
]


@pytest.mark.parametrize(
    ("argv", "environ", "sender", "recipients"),
    [
        # arguments
        (["--sender", "a@x", "b@x", "c@x"], {"RECIPIENT": "e@x", "SENDER": "s@x"}, "a@x", [("b@x", ""), ("c@x", "")]),
        (["b@x"], {"ORIGINAL_RECIPIENT": "o@x"}, "bounces@x.test", [("b@x", "")]),
        (["--original-recipient=o@x", "--original-recipient=p@x", "--", "b@x", "c@x"], {}, "bounces@x.test",
         [("b@x", "o@x"), ("c@x", "p@x")]),
        (["--original-recipient=o@x", "--", "b@x", "c@x"], {}, "bounces@x.test", [("b@x", "o@x"), ("c@x", "")]),
        (["--original-recipient=o@x"], {"RECIPIENT": "e@x"}, "bounces@x.test", [("o@x", "")]),
        # the environment: an alias of Postfix or Exim
        ([], {"RECIPIENT": "e@x", "SENDER": "s@x", "ORIGINAL_RECIPIENT": "o@x"}, "s@x", [("e@x", "o@x")]),
        ([], {"RECIPIENT": "e@x", "SENDER": ""}, "", [("e@x", "")]),
        (["b@x"], {"SENDER": "s@x"}, "s@x", [("b@x", "")]),
        ([], {"RECIPIENT": "@x.test"}, "bounces@x.test", [(address, "") for address in ALL]),  # Exim, a batch
        # the header
        ([], {}, "bounces@x.test", [(address, "") for address in ALL]),
        # the null sender in all its forms
        (["--sender", "", "b@x"], {"SENDER": "s@x"}, "", [("b@x", "")]),
        (["--sender", "<>", "b@x"], {}, "", [("b@x", "")]),
        (["--sender", "MAILER-DAEMON", "b@x"], {}, "", [("b@x", "")]),
        (["--sender", "mailer-daemon@x.test", "b@x"], {}, "mailer-daemon@x.test", [("b@x", "")]),
        (["--sender", "<a@x>", "b@x"], {}, "a@x", [("b@x", "")]),
        (["--sender", "a@x\nBcc: all@x", "b@x"], {}, None, [("b@x", "")]),
    ],
)  # fmt: skip
def test_the_envelope_comes_from_the_first_that_has_one(
    argv: list[str], environ: dict[str, str], sender: str | None, recipients: list[tuple[str, str]]
) -> None:
    found = envelope_of(parse_arguments(argv), environ, HEADER)
    assert found == Envelope(sender, tuple(Recipient(*pair) for pair in recipients))


@pytest.mark.parametrize(
    "value", [b"a@x.test b@x.test", b"a@x.test; b@x.test", b"<a@x.test> <b@x.test>", b"a@x.test,b@x.test"]
)
def test_a_list_of_recipients_may_have_any_separator(value: bytes) -> None:
    found = envelope_of(Arguments(), {}, b"Delivered-To: " + value + b"\n\n")
    assert found == Envelope(None, (Recipient("a@x.test"), Recipient("b@x.test")))


@pytest.mark.parametrize(
    ("header", "recipients"),
    [
        (b"To: Bob (sales <bob@other.test>\nCc: info@example.com\n", ["info@example.com"]),
        (b'To: "Bob <bob@other.test>\nCc: info@example.com\n', ["info@example.com"]),
        (b'X-Original-To: "a b"@example.com\n', ['"a b"@example.com']),
        (b"To: " + b"(" * 5000 + b"\nCc: info@example.com\n", ["info@example.com"]),
    ],
)
def test_a_field_that_is_not_well_formed_takes_no_other_with_it(header: bytes, recipients: list[str]) -> None:
    found = envelope_of(Arguments(), {}, header + b"\n").recipients
    assert [recipient.address for recipient in found if recipient.address.endswith("example.com")][-1:] == recipients


def test_no_recipient_is_to_be_found() -> None:
    assert envelope_of(Arguments(), {}, b"To: undisclosed-recipients:;\n\n").recipients == ()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"A: b\n\nc", b"A: b\n\nc"),
        (b"From x@y Sun Nov 22\nA: b\n", b"A: b\n"),
        (b"From x@y Sun Nov 22\r\nA: b\r\n", b"A: b\r\n"),
        (b"From x\nFrom y\n", b"From y\n"),
        (b"From: x@y\n", b"From: x@y\n"),
        (b">From x@y\nA: b\n", b">From x@y\nA: b\n"),
        (b"From " + b"x" * MAX_HEADER_BYTES + b"\nA: b\n", b"From " + b"x" * MAX_HEADER_BYTES + b"\nA: b\n"),
        (b"\0\xff\r\n\r" * 400_000, b"\0\xff\r\n\r" * 400_000),
    ],
)
def test_the_message_is_what_was_read_without_the_mbox_line(data: bytes, expected: bytes) -> None:
    raw = spool(io.BytesIO(data), max_size=2**30)
    with raw.file:
        assert b"".join(raw.chunks()) == expected
        assert raw.size == len(expected)
        assert raw.head() == expected[:MAX_HEADER_BYTES]
        assert b"".join(raw.chunks(3)) == expected[3:]


def test_a_large_message_is_on_the_disk_and_has_no_name_there(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    raw = spool(io.BytesIO(b"x" * (SPOOL_IN_MEMORY_BYTES + 1)), max_size=2**30)
    with raw.file:
        assert raw.file.fileno() > 2
        assert list(tmp_path.iterdir()) == []


lines = st.lists(
    st.one_of(
        st.sampled_from(
            [b"", b" ", b"\t", b"Subject: x", b"Message-ID: <a@b>", b"no colon", b": x", b"a b: c", b"From x", b" more",
             b"\xff: y", b"X-\xe9: y", b"X:", b"\0: z", b"To: \0", b"message-id:", b"Date :x"]
        ),
        st.binary(max_size=12),
    ),
    max_size=8,
)  # fmt: skip


@given(lines, st.lists(st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\r"]), min_size=8, max_size=8))
def test_the_header_ends_where_it_ends_for_the_database(parts: list[bytes], ends: list[bytes]) -> None:
    """Odoo parses with Python's email package, and the first thing it meets is a field of ours."""
    data = b"".join(part + end for part, end in zip(parts, ends, strict=False))
    parsed = message_from_bytes(b"X-First: 1\n" + data, policy=SMTP)
    expected = [name.lower().encode("ascii", "surrogateescape") for name in parsed.keys()][1:]  # noqa: SIM118 a message is no dict
    found = [name for name, _ in fields(data) if name]
    assert found == expected
    if not data.startswith((b" ", b"\t")):
        assert b"".join(field for _, field in fields(data)) == data[: sum(len(field) for _, field in fields(data))]


def test_a_value_is_unfolded() -> None:
    assert [unfold(field) for _, field in fields(b"A:  b\r\n\tc \nD:e\n\n")] == [b"b\tc", b"e"]


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("info@example.com", ("info", "example.com")),
        (" <info@example.com> ", ("info", "example.com")),
        ('"a@b"@example.com', ("a@b", "example.com")),
        ('"a \\"b\\\\"@example.com', ('a "b\\', "example.com")),
        ('"@example.com', ('"', "example.com")),
        ("info", ("info", "")),
        ("", ("", "")),
        ("@x", ("", "x")),
    ],
)
def test_an_address_has_two_parts(address: str, parts: tuple[str, str]) -> None:
    assert split_address(address) == parts


@given(st.text(min_size=1), st.text("abc.-", min_size=1) | st.just("[IPv6:2001:db8::1]"))
def test_joining_is_the_reverse_of_splitting(local_part: str, domain: str) -> None:
    assert split_address(join_address(local_part, domain)) == (local_part, domain)


@given(st.text(min_size=1), st.text('<>()[],:;@\\" ', min_size=1))
def test_what_can_be_no_domain_does_not_stand_unquoted(local_part: str, domain: str) -> None:
    joined = join_address(local_part, domain)
    assert re.fullmatch(r'"(?:[^"\\]|\\.)*"(?:@\[\])?', joined, re.DOTALL) or domain == "[]", joined


@pytest.mark.parametrize("temporary", [False, True])
def test_a_large_message_is_spooled_where_tmpdir_says_or_in_var_tmp(
    gateway: Gateway, endpoint: Endpoint, tmp_path: Path, temporary: bool
) -> None:
    """The file has no name any more, but the kernel knows in which folder it was made."""
    folder = str(tmp_path) if temporary else "/var/tmp"
    environ = ENVIRONMENT | ({"TMPDIR": str(tmp_path)} if temporary else {})
    seen: list[str] = []

    def look(connection: socket.socket, request: Request) -> None:
        files = Path(f"/proc/{process.pid}/fd")
        seen.extend(os.readlink(path) for path in files.iterdir())
        connection.sendall(returns(7))

    endpoint.answers = [look]
    process = subprocess.Popen(
        gateway.command("info@example.com"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ
    )
    assert process.communicate(b"a: b\n\n" + b"x" * 2**21)[0] == b"2.0.0 delivered\n"
    assert [name for name in seen if "(deleted)" in name and name.startswith(f"{folder}/")]
