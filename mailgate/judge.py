"""Judge: what each answer of the database means; the tables of faults and of HTTP statuses.

docs/odoo.md, "What a call answers", has the facts that they stand on.
"""

import re
from typing import NamedTuple

from mailgate.outcome import Ended, Outcome, Verdict

MAX_ANSWER_BYTES = 2**20  # the longest answer is a fault with its traceback, some kilobytes


class Reply(NamedTuple):
    """An HTTP answer of the database server, or of what stands before it."""

    status: int
    body: bytes = b""
    retry_after: float = 0.0  # seconds


# An HTTP status other than 200. Those that are not listed: below 300 the answer is yet to come (102, 202), below 500
# the URL leads elsewhere, from 500 on the server is in trouble, and over 504 is a proxy's own word for an answer that
# did not come (520, 524, 598). None but 413 is for good: a proxy says 404 too while the server behind it is away.
STATUSES = {
    401: Outcome.ACCESS_DENIED,
    403: Outcome.ACCESS_DENIED,
    408: Outcome.CUT_OFF,
    413: Outcome.TOO_LARGE,
    429: Outcome.DATABASE_DOWN,
    502: Outcome.CUT_OFF,
    504: Outcome.CUT_OFF,
}

# Who answers so has not taken the request, so that it can be sent again at once. 502 and 504 are not among them: the
# proxy that says so may have passed the request on. Then the MTA tries again, minutes later, when the database knows
# the message if it has it.
NOT_TAKEN = (429, 503)

# Faults, by their code and by how the exception in their text begins; the first row that fits counts.
FAULTS = (
    # A loop was stopped, or the answer to a notice ignored; it is done, but None can't be sent over XML-RPC.
    (1, r"TypeError: cannot marshal None unless allow_none is enabled", Outcome.DROPPED),
    (1, r"ValueError: No possible route found for incoming message", Outcome.UNKNOWN_RECIPIENT),
    # The operator's: the database, the user, its rights, the model that our settings name.
    (
        1,
        r'(?s)psycopg2\.OperationalError: (connection|FATAL|could not).*database "[^"]*" does not exist',
        Outcome.SETTINGS,
    ),
    (1, r"AssertionError: Missing database name|KeyError: 'res\.users'", Outcome.SETTINGS),
    (1, r"ValueError: Mailbox unavailable - unknown target model", Outcome.SETTINGS),
    (2, r"Record does not exist[^\n]*\n\(Record: res\.users\((\d+),\), User: \1\)\Z", Outcome.ACCESS_DENIED),
    (2, r"Object [\w.]+ doesn't exist\Z", Outcome.SETTINGS),
    (3, r"", Outcome.ACCESS_DENIED),
    (4, r"", Outcome.ACCESS_DENIED),
    # The database is stopped, restarted, overloaded, full or upgraded; the classes are those of psycopg2.
    (1, r"psycopg2\.(OperationalError|InterfaceError|DatabaseError|extensions\.|pool\.)", Outcome.DATABASE_DOWN),
    (
        1,
        r"psycopg2\.errors\.(\w*Shutdown|\w*Connect\w*|\w*Full|OutOfMemory|ReadOnly\w+|IoError)",
        Outcome.DATABASE_DOWN,
    ),
    (1, r"psycopg2\.errors\.(SerializationFailure|Deadlock\w*|LockNotAvailable|QueryCanceled)", Outcome.DATABASE_DOWN),
    (1, r"psycopg2\.errors\.(Undefined\w+|InFailed\w+|Idle\w+)", Outcome.DATABASE_DOWN),
    (1, r"(\w+\.)*PoolError|MemoryError|\w*Error: \[Errno \d+\]", Outcome.DATABASE_DOWN),
    (1, r"(\w+\.)*(\w*[Tt]imeout\w*|\w*Connection\w*Error|\w*Disconnected|SSL\w*Error)\b", Outcome.DATABASE_DOWN),
    (1, r"RuntimeError: can't start new thread", Outcome.DATABASE_DOWN),
    # What this message, or its alias, would cause at every retry, each retry mailing the sender once more.
    (1, r"ValueError: (Mailbox unavailable|Invalid field)", Outcome.HELD),
    (1, r"ValueError: A string literal cannot contain NUL", Outcome.HELD),
    (1, r"ValueError: invalid arguments; address parts cannot contain CR or LF", Outcome.HELD),
    (1, r"LookupError: (unknown encoding|'.*' is not a text encoding)|Unicode\w*Error: ", Outcome.HELD),
    (1, r"IndexError: list index out of range|RecursionError: ", Outcome.HELD),
    (1, r"psycopg2\.errors\.ProgramLimitExceeded", Outcome.HELD),
    (2, r"", Outcome.HELD),
)

# Causes of what is held after which Odoo, from 17 on, may have mailed the sender that his mail failed: its record could
# not be made. Measured: of the faults that are held, these do; those of a message that can't be read don't.
TELLS_SENDER = re.compile(r"fault 2: |fault 1: ValueError: Invalid field ")

# So is any other exception that was raised while the database read the message or made its record: in these functions.
READS_MESSAGE = {"message_parse", "_message_route_process"}

# A traceback as Python writes it (documentation of the module traceback), from its front: frames, then the exception.
# What a sender wrote may stand in an exception's text, behind its beginning, and may look like a traceback itself.
_FRAME = (
    r'  File "[^"\n]*", line \d+, in ([^\n]+)\n(?:    [^\n]*\n)*(?:  \[Previous line repeated \d+ more times?\]\n)?'
)
_FRAMES = re.compile(rf"Traceback \(most recent call last\):\n((?:{_FRAME})*)")
_ONE_FRAME = re.compile(_FRAME)
_NEXT = re.compile(
    r"\n\n(?:During handling of the above exception, another exception occurred"
    r"|The above exception was the direct cause of the following exception):\n\n(?=Traceback )"
)
# The function of Odoo, 14 to 19, in which each call begins, and which writes the fault.
ENTRY = "xmlrpc_2"


def judge(reply: Reply) -> Verdict:
    """Return what the answer to message_process means."""
    try:
        value = value_of(reply)
    except Ended as ended:
        return ended.verdict
    if value is False:  # known already, or a bounce that was taken, or answered by a notice
        return Verdict(Outcome.ACCEPTED)
    if value is None:
        return Verdict(Outcome.DROPPED)
    if type(value) is int and value > 0:
        return Verdict(Outcome.DELIVERED, record_id=value)
    return Verdict(Outcome.CUT_OFF, f"an answer that is no record id, but {type(value).__name__}")


def user_id_of(reply: Reply) -> int:
    """Return the user id that authenticate answers with. Raises Ended; no such ending is for good."""
    try:
        value = value_of(reply)
    except Ended as ended:
        outcome, cause, _ = ended.verdict
        raise Ended(outcome if outcome.is_temporary else Outcome.DATABASE_ERROR, f"login: {cause}") from None
    if type(value) is not int:
        raise Ended(Outcome.ACCESS_DENIED, "wrong login or password")
    return value


def value_of(reply: Reply) -> object:
    """Return the value that a call came back with. Raises Ended when it is a fault, or no answer to a call."""
    from xmlrpc.client import Fault, loads

    if reply.status != 200:
        default = Outcome.SETTINGS if reply.status < 500 else Outcome.DATABASE_DOWN
        default = default if 300 <= reply.status <= 504 else Outcome.CUT_OFF
        raise Ended(STATUSES.get(reply.status, default), f"HTTP {reply.status}")
    if len(reply.body) > MAX_ANSWER_BYTES:
        raise Ended(Outcome.CUT_OFF, f"an answer of more than {MAX_ANSWER_BYTES} bytes")
    try:
        (value,), _ = loads(reply.body)
    except Fault as fault:
        raise Ended(*_fault(fault.faultCode, str(fault.faultString))) from None
    except Exception as error:  # the parser raises many kinds, and whatever it is, it was no answer
        raise Ended(Outcome.CUT_OFF, f"an answer that is no XML-RPC: {type(error).__name__}") from None
    return value


def _fault(code: object, text: str) -> tuple[Outcome, str]:
    """Return what a fault means, and its exception's first line."""
    functions, exception = _raised(text)
    cause = f"fault {code}: {exception.partition(chr(10))[0]}"
    for row_code, pattern, outcome in FAULTS:
        if code == row_code and re.match(pattern, exception):
            return outcome, cause
    return (Outcome.DATABASE_ERROR if READS_MESSAGE.isdisjoint(functions) else Outcome.HELD), cause


def _raised(text: str) -> tuple[list[str], str]:
    """Return the functions that an exception went through, and its type and text, of which only the beginning counts.

    Of a chain of exceptions, the one that ended the call counts: its traceback begins in ENTRY. Where not exactly one
    does, some are a sender's words, or this is no Odoo: then the first counts, for nobody can write before it. A text
    without a traceback is the exception.
    """
    if not _FRAMES.match(text):
        return [], text.strip()
    starts = [0, *(found.end() for found in _NEXT.finditer(text))]
    blocks = [found for start in starts if (found := _FRAMES.match(text, start))]
    functions = [[frame[1] for frame in _ONE_FRAME.finditer(found[1])] for found in blocks]
    entries = [number for number, names in enumerate(functions) if names[:1] == [ENTRY]]
    number = entries[0] if len(entries) == 1 or entries[:1] == [0] else 0
    return functions[number], text[blocks[number].end() :].strip()
