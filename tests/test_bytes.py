"""What arrives is what the MTA gave, byte for byte, behind the fields that we add."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.endpoint import Endpoint, fault, http, returns, traceback
from support.gateway import ENVIRONMENT, Gateway, Result

from mailgate.envelope import MAX_HEADER_BYTES
from mailgate.shapes import too_slow

TESTS = Path(__file__).parent
ORACLE = sorted((TESTS / "oracle" / "messages").iterdir())
BOUNCES = TESTS.parents[1] / "shared" / "bounces"  # not ours to copy; a folder beside the checkout

ADDED = re.compile(rb"((Return-Path: <[^\r\n]*>|Delivered-To: <[^\r\n]+>,?|Message-ID: <[^\r\n<>]+>|"
                   rb"References: <[^\r\n]+>|X-First-Line:)\r?\n)+")  # fmt: skip

Run = Callable[..., Result]


@pytest.fixture
def run(gateway: Gateway, tmp_path: Path) -> Iterator[Run]:
    """The program, its imports done once for all runs."""
    gateway.command(JOURNAL=None)  # the same message comes again and again, and is answered otherwise
    message_path = tmp_path / "message"
    command = [sys.executable, str(TESTS / "support" / "forkserver.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT, cwd="/", text=True
    ) as server:
        assert server.stdin
        assert server.stdout
        jobs, answers = server.stdin, server.stdout

        def run(message: bytes, *arguments: bytes) -> Result:
            message_path.write_bytes(message)
            argv = [b"--env-file", os.fsencode(gateway.env_file), *arguments]
            job = {"argv": [argument.hex() for argument in argv], "message": str(message_path)}
            print(json.dumps(job), file=jobs, flush=True)
            answer = json.loads(answers.readline())
            return Result(answer["status"], bytes.fromhex(answer["out"]), b"", "")

        yield run
        server.stdin.close()


def without_mbox_line(message: bytes) -> bytes:
    line = re.match(rb"From [^\r\n]*(\r\n|\r|\n|\Z)", message)
    return message[line.end() :] if line and line.end() < MAX_HEADER_BYTES else message


def assert_exact(received: bytes, sent: bytes) -> None:
    expected = without_mbox_line(sent)
    assert received.endswith(expected)
    assert ADDED.fullmatch(received[: len(received) - len(expected)])


def assert_all_exact(run: Run, endpoint: Endpoint, paths: list[Path]) -> None:
    for path in paths:
        sent = path.read_bytes()
        result = run(sent, b"--sender", b"ann@b.test", b"info@example.com")
        if not sent:
            assert result.status == 65
            continue
        assert (result.status, result.out) == (0, b"2.0.0 delivered\n"), path
        assert_exact(endpoint.requests.pop().message, sent)
        assert endpoint.requests == []


def test_the_messages_of_the_observed_cases(run: Run, endpoint: Endpoint) -> None:
    assert len(ORACLE) == 411
    assert_all_exact(run, endpoint, ORACLE)


@pytest.mark.skipif(
    not BOUNCES.is_dir(), reason="the folder of real bounces, shared/bounces, is not beside the checkout"
)
def test_real_bounces(run: Run, endpoint: Endpoint) -> None:
    bounces = sorted(BOUNCES.glob("*.eml"))
    assert len(bounces) == 314
    assert_all_exact(run, endpoint, bounces)


line_ends = st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n", b""])
header_lines = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [b"From x@y now", b"Subject: caf\xe9", b"Message-ID: <a@b>", b"Message-ID: <>", b"Return-Path: <z@y>",
         b" folded", b"\tfolded", b"no colon", b"", b"Delivered-To: info@example.com", b"Date: x", b":", b"\0"]
    ),
)  # fmt: skip
mails = st.lists(st.tuples(header_lines, line_ends), max_size=12).map(lambda parts: b"".join(a + b for a, b in parts))
messages = st.one_of(
    mails, st.binary(max_size=300), st.tuples(mails, st.integers(1, 70_000)).map(lambda x: x[0] * x[1])
).map(lambda message: message[:3_000_000])
argument = st.binary(max_size=20).map(lambda value: value.replace(b"\0", b""))
recipients = st.one_of(
    st.sampled_from([b"info@example.com", b"INFO@EXAMPLE.COM", b"info@elsewhere.test", "\u017c@example.com".encode()]),
    argument.map(lambda local_part: local_part + b"@example.com"),
    argument,
)
ANSWERS = [
    returns(5),
    returns(False),
    fault(1, traceback("ValueError: No possible route found for incoming message from a to b")),
    fault(1, traceback("LookupError: unknown encoding: x")),
    fault(2, "x"),
    http(413),
    http(500),
    b"garbage",
]


@example(message=b"From x" * 2**18, sender=b"", recipients=[b"info@example.com"], answer=ANSWERS[0])  # no such line
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(message=messages, sender=argument, recipients=st.lists(recipients, max_size=3), answer=st.sampled_from(ANSWERS))
def test_any_message_with_any_envelope(
    run: Run, endpoint: Endpoint, message: bytes, sender: bytes, recipients: list[bytes], answer: bytes
) -> None:
    endpoint.answers = [answer]
    endpoint.requests.clear()
    result = run(message, b"--sender=" + sender, b"--", *recipients)
    assert result.status in (0, 65, 67, 75)
    assert re.fullmatch(rb"[245]\.\d\.\d [a-z, ]+\n", result.out)
    deliveries = endpoint.messages
    for delivery in deliveries:
        assert_exact(delivery, message)
    if not without_mbox_line(message):
        assert result.status == 65
    elif b"info@example.com" in recipients:
        # what is held is not posted: the database is asked for its version only
        is_held = too_slow(without_mbox_line(message)[:MAX_HEADER_BYTES])
        assert len(deliveries) == (not is_held)


@pytest.mark.parametrize("size", [2**20 - 1, 2**20, 2**20 + 1, 5 * 2**20, 57 * 2**10, 57 * 2**10 - 1])
def test_a_message_of_any_size(gateway: Gateway, endpoint: Endpoint, size: int) -> None:
    header = b"Message-ID: <a@b>\r\n\r\n"
    message = header + os.urandom(size - len(header))
    assert gateway.run("info@example.com", message=message).status == 0
    assert endpoint.messages == [b"Delivered-To: <info@example.com>\r\n" + message]
    request = endpoint.requests[0]
    assert int(request.headers["content-length"]) == len(request.body)
    assert "transfer-encoding" not in request.headers


def test_the_call_is_the_one_that_odoo_documents(gateway: Gateway, endpoint: Endpoint) -> None:
    message = b"Message-ID: <a@b>\n\nx"
    gateway.run("--sender", "", "--", "info@example.com", "nobody@elsewhere.test", "jobs@example.com", message=message)
    (request,) = endpoint.requests
    assert request.path == "/xmlrpc/2/object"
    assert request.headers["content-type"] == "text/xml"
    expected = b"Return-Path: <>\nDelivered-To: <info@example.com>, <jobs@example.com>\n" + message
    assert request.call == (
        ("mydatabase", 2, gateway.settings["PASSWORD"], "mail.thread", "message_process", [False, expected], {}),
        "execute_kw",
    )


def test_the_url_may_have_a_path(gateway: Gateway, endpoint: Endpoint) -> None:
    gateway.run("info@example.com", URL=f"{endpoint.url}/odoo/", MODEL="crm.lead")
    assert endpoint.requests[0].path == "/odoo/xmlrpc/2/object"
    assert endpoint.requests[0].call[0][5][0] == "crm.lead"
