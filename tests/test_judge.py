"""Judge: an answer is a value, and so is what it means."""

import xmlrpc.client
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.endpoint import traceback

from mailgate.judge import MAX_ANSWER_BYTES, Reply, judge
from mailgate.outcome import Outcome, Verdict

DEFERRED = {outcome for outcome in Outcome if outcome.exit_status == 75}


def answer(value: Any) -> Reply:
    return Reply(200, xmlrpc.client.dumps((value,), methodresponse=True, allow_none=True).encode())


def test_a_record_id_is_kept_for_the_log() -> None:
    assert judge(answer(42)) == Verdict(Outcome.DELIVERED, "", 42)


@given(st.integers(100, 599), st.binary(max_size=300))
@example(200, b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b 'c'>]><methodResponse>&b;</methodResponse>")
@example(200, b"<methodResponse><params></params></methodResponse>")
@example(200, b"<methodResponse><params><param><value><int>x</int></value></param></params></methodResponse>")
@example(200, b"<methodResponse><fault><value><int>1</int></value></fault></methodResponse>")
@example(200, b"<methodCall><methodName>x</methodName><params></params></methodCall>")
def test_what_is_no_answer_to_the_call_keeps_the_mail_in_the_queue(status: int, body: bytes) -> None:
    outcome = judge(Reply(status, body)).outcome
    assert outcome in DEFERRED or (status == 413 and outcome is Outcome.TOO_LARGE)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text("ab"), lambda x: st.lists(x)))
def test_only_an_id_false_or_none_is_an_ending_for_good(value: Any) -> None:
    expected = {True: DEFERRED, False: {Outcome.ACCEPTED}, None: {Outcome.DROPPED}}
    assert judge(answer(value)).outcome in (expected[value] if value is None or isinstance(value, bool) else DEFERRED)


@given(st.integers() | st.text(), st.text())
def test_a_fault_nobody_knows_keeps_the_mail(code: Any, text: str) -> None:
    if isinstance(code, int) and not -(2**31) < code < 2**31:
        code = 0
    body = xmlrpc.client.dumps(xmlrpc.client.Fault(code, text), methodresponse=True).encode("utf-8", "replace")
    assert judge(Reply(200, body)).outcome in DEFERRED | {Outcome.HELD}


NONE = "TypeError: cannot marshal None unless allow_none is enabled"
NO_ROUTE = "ValueError: No possible route found for incoming message"
CHAIN = (
    traceback("KeyError: 'x'", "get", entry="")
    + "\nDuring handling of the above exception, another exception occurred:\n\n"
)


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        (CHAIN + traceback(NONE), Outcome.DROPPED),
        (CHAIN + traceback("psycopg2.OperationalError: x\n\ty", "message_new"), Outcome.DATABASE_DOWN),
        # what a sender wrote into his message is in the text too, behind the beginning of the exception
        (
            traceback(f"KeyError: 'x\n{NONE}'"),
            Outcome.DATABASE_ERROR,
        ),
        (traceback(f"KeyError: '{NO_ROUTE}'"), Outcome.DATABASE_ERROR),
        (
            traceback(f"{NO_ROUTE} from a\nb to c"),
            Outcome.UNKNOWN_RECIPIENT,
        ),
        (
            traceback(
                'psycopg2.errors.NotNullViolation: x\nDETAIL:  Failing row contains (1, database "x" does not exist)',
                "_message_route_process",
            ),
            Outcome.HELD,
        ),
        (NO_ROUTE, Outcome.UNKNOWN_RECIPIENT),
        ("", Outcome.DATABASE_ERROR),
    ],
)
def test_a_fault_is_known_by_how_its_exception_begins(text: str, outcome: Outcome) -> None:
    body = xmlrpc.client.dumps(xmlrpc.client.Fault(1, text), methodresponse=True).encode()
    assert judge(Reply(200, body)).outcome is outcome


@pytest.mark.parametrize(
    "name",
    ["OperationalError", "InterfaceError", "extensions.TransactionRollbackError", "pool.PoolError",
     "errors.SerializationFailure", "errors.DeadlockDetected", "errors.LockNotAvailable", "errors.QueryCanceled",
     "errors.AdminShutdown", "errors.CrashShutdown", "errors.CannotConnectNow", "errors.TooManyConnections",
     "errors.ConnectionFailure", "errors.DiskFull", "errors.OutOfMemory", "errors.ReadOnlySqlTransaction",
     "DatabaseError", "errors.IoError", "errors.UndefinedColumn", "errors.UndefinedTable",
     "errors.InFailedSqlTransaction"],
)  # fmt: skip
def test_a_database_in_trouble_holds_no_mail(name: str) -> None:
    text = traceback(f"psycopg2.{name}: x", "message_process", "_message_route_process", "message_new")
    body = xmlrpc.client.dumps(xmlrpc.client.Fault(1, text), methodresponse=True).encode()
    assert judge(Reply(200, body)).outcome is Outcome.DATABASE_DOWN


@pytest.mark.parametrize(
    "exception",
    ["TimeoutError: timed out", "requests.exceptions.ConnectionError: x", "requests.exceptions.ReadTimeout: x",
     "http.client.RemoteDisconnected: Remote end closed", "smtplib.SMTPServerDisconnected: x", "ssl.SSLError: x",
     "ConnectionResetError: [Errno 104] x", "OSError: [Errno 28] No space left", "MemoryError",
     "RuntimeError: can't start new thread", "odoo.sql_db.PoolError: The Connection Pool Is Full"],
)  # fmt: skip
def test_a_server_in_trouble_holds_no_mail(exception: str) -> None:
    text = traceback(exception, "message_process", "_message_route_process", "message_new")
    body = xmlrpc.client.dumps(xmlrpc.client.Fault(1, text), methodresponse=True).encode()
    assert judge(Reply(200, body)).outcome is Outcome.DATABASE_DOWN


def test_an_answer_that_is_too_long_is_none() -> None:
    assert judge(Reply(200, answer(42).body + b" " * MAX_ANSWER_BYTES)).outcome is Outcome.CUT_OFF
