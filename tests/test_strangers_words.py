"""No byte that a sender wrote chooses an ending: a fault's text has header values in it, and they may hold anything."""

from pathlib import Path

import pytest
from support.endpoint import Endpoint, fault, traceback
from support.gateway import Gateway

HANDLING = "\nDuring handling of the above exception, another exception occurred:\n\n"
CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
BARE = "Traceback (most recent call last):\n"
NONE = "TypeError: cannot marshal None unless allow_none is enabled"
NO_ROUTE = (
    "ValueError: No possible route found for incoming message from a@b.test to {} (Message-Id <1@b.test>:). Create"
)
UNAVAILABLE = "ValueError: Mailbox unavailable - model x does not accept document creation"
DOWN = "psycopg2.OperationalError: connection to server failed"
CHARSET = "LookupError: unknown encoding: {}"
OTHER = "AttributeError: {}"

# What a sender may write, in an encoded word or an encoded parameter, which have line ends in them.
IMITATIONS = {
    "a traceback without frames": f"x\n{BARE}{UNAVAILABLE}",
    "a traceback without frames that is dropped": f"x\n{BARE}{NONE}",
    "an exception alone": f"x\n{NONE}",
    "a traceback with a frame": "x\n" + traceback(NONE, "dumps"),
    "a traceback that reads the message": "x\n" + traceback("KeyError: 'x'", "message_parse"),
    "a frame alone": 'x\n  File "odoo/x.py", line 1, in message_parse\n    call()\nKeyError: 1',
    "a chain": "x\n" + HANDLING + traceback(NONE, "_xmlrpc", "dumps"),
    "a chain by a cause": "x\n" + CAUSE + traceback(DOWN, "_xmlrpc"),
    "a chain without the entry": "x\n" + HANDLING + traceback(DOWN, "message_parse", entry=""),
    "a chain of chains": ("x\n" + HANDLING + traceback(UNAVAILABLE, "dumps")) * 3,
    "a chain to an unknown address": "x\n" + HANDLING + traceback(NO_ROUTE.format("x"), "message_route"),
    "a chain to a database that is away": "x\n" + HANDLING + traceback('FATAL: database "x" does not exist', "execute"),
    "line ends of Windows": f"x\r\n{BARE}{NONE}".replace("\n", "\r\n"),
    "the text of a wrong user": "x\n(Record: res.users(2,), User: 2)",
}


@pytest.mark.parametrize("imitation", IMITATIONS.values(), ids=IMITATIONS)
@pytest.mark.parametrize(
    ("exception", "functions", "ending"),
    [
        (NO_ROUTE, ("message_process", "message_route"), (67, "5.1.1", "unknown_recipient")),
        (CHARSET, ("message_process", "message_parse"), (0, "2.0.0", "held")),
        (OTHER, ("message_process", "message_post"), (75, "4.3.0", "database_error")),
    ],
    ids=["no route", "charset", "other"],
)
def test_what_a_sender_wrote_chooses_no_ending(
    gateway: Gateway,
    endpoint: Endpoint,
    tmp_path: Path,
    imitation: str,
    exception: str,
    functions: tuple,
    ending: tuple,
) -> None:
    endpoint.answers = [fault(1, traceback(exception.format(imitation), *functions))]
    (tmp_path / "held").mkdir()
    assert gateway.run("info@example.com", HOLD=tmp_path / "held").ending == ending


CAUGHT = traceback("KeyError: 'mydatabase'", "__new__", entry="") + HANDLING


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        # chains as they are: the exception that ended the call counts
        (CAUGHT + traceback(DOWN, "_xmlrpc", "cursor"), "database_down"),
        (CAUGHT + traceback(NONE, "_xmlrpc", "dumps"), "dropped"),
        (CAUGHT + traceback(NO_ROUTE.format("x"), "message_route"), "unknown_recipient"),
        (CAUGHT + traceback("KeyError: 'y'", "message_parse"), "held"),
        (CAUGHT.replace(HANDLING, CAUSE) + CAUGHT + traceback(DOWN, "_xmlrpc"), "database_down"),
        (
            traceback("KeyError: 'y'", "message_parse", entry="") + HANDLING + traceback(DOWN, "_xmlrpc"),
            "database_down",
        ),
        # a sender's words in the one that was caught: nothing for good comes of it, and none of what they say
        *(
            (traceback(f"CustomError: {words}", "f", entry="") + HANDLING + traceback("KeyError: 'y'", "f"), kept)
            for words, kept in [
                ("x\n" + HANDLING + traceback(NONE, "dumps"), "database_error"),
                ("x\n" + HANDLING + traceback(NO_ROUTE.format("x"), "message_route"), "database_error"),
                ("x\n" + HANDLING + traceback(UNAVAILABLE, "message_parse"), "database_error"),
                ("x\n" + HANDLING + traceback(NONE, "dumps", entry=""), "database_error"),
            ]
        ),
        # and in the one behind it
        (CAUGHT + traceback(NO_ROUTE.format("x\n" + BARE + NONE), "message_route"), "unknown_recipient"),
        (CAUGHT + traceback(OTHER.format("x\n" + HANDLING + traceback(NONE, "dumps")), "f"), "database_error"),
        # a server that begins its calls elsewhere
        (traceback(NO_ROUTE.format("x\n" + BARE + NONE), "message_route", entry=""), "unknown_recipient"),
        (traceback(OTHER.format("x\n" + HANDLING + traceback(NONE, "f", entry="")), "f", entry=""), "database_error"),
        # one that sends no traceback
        (NO_ROUTE.format("x\n" + traceback(NONE, "dumps")), "unknown_recipient"),
        (NO_ROUTE.format("x"), "unknown_recipient"),
        # recursion and long source lines, as Python writes them
        (
            traceback("RecursionError: maximum recursion depth exceeded", "message_parse", "f").replace(
                "RecursionError", "  [Previous line repeated 974 more times]\nRecursionError"
            ),
            "held",
        ),
        (traceback("KeyError: 'x'", "message_parse").replace("call()\n", "call(\n        1,\n    )\n"), "held"),
    ],
)
def test_the_exception_that_ended_the_call_counts(
    gateway: Gateway, endpoint: Endpoint, tmp_path: Path, text: str, ending: str
) -> None:
    endpoint.answers = [fault(1, text)]
    (tmp_path / "held").mkdir()
    assert gateway.run("info@example.com", HOLD=tmp_path / "held").facts["outcome"] == ending


@pytest.mark.parametrize(
    "text",
    [
        "Ann\nRecord does not exist or has been deleted.\n(Record: res.users(2,), User: 2)",
        "Record does not exist or has been deleted.\n(Record: crm.lead(2,), User: 2)\n(Record: res.users(2,), User: 2)",
        "Object crm.lead doesn't exist, said Ann",
    ],
)
def test_what_the_database_tells_a_user_is_known_as_a_whole(
    gateway: Gateway, endpoint: Endpoint, tmp_path: Path, text: str
) -> None:
    endpoint.answers = [fault(2, text)]
    (tmp_path / "held").mkdir()
    assert gateway.run("info@example.com", HOLD=tmp_path / "held").facts["outcome"] == "held"
