"""send-test: a marked message, by the mail server or straight through us; how long each leg takes, up to its record."""

import io
import os
import smtplib
import socket
import time
from argparse import ArgumentParser, Namespace
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate
from typing import Any, NamedTuple

from mailgate import inquiry, journal, walk
from mailgate.admin import records
from mailgate.admin.desk import Answer, Command, Desk, Usage, log_of, seconds_of
from mailgate.admin.meaning import MEANINGS, REMOVED, word
from mailgate.admin.records import Record
from mailgate.admin.screen import say, table, words
from mailgate.envelope import Envelope, Recipient, is_address, spool
from mailgate.log import Facts
from mailgate.outcome import Ended, Outcome, Verdict

SMTP_SECONDS = 30.0  # that each answer of the mail server may take
WAIT_SECONDS = 60  # for the record, if not said otherwise
PAUSE_SECONDS = 0.5  # between two looks
NOTED_SECONDS = 5.0  # that the journal may be behind the database
ON_RECORD = (Outcome.DELIVERED, Outcome.KNOWN)


class Leg(NamedTuple):
    """A leg of the way: whose it was, how many seconds it took, how it ended, and what to do now."""

    what: str
    seconds: float
    how: str
    is_good: bool = True
    advice: str = ""


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("address", help="an address of the database's")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--smtp", metavar="HOST:PORT", default="localhost:25", help="the mail server (localhost:25)")
    way.add_argument("--direct", action="store_true", help="straight through the gateway, without the mail server")
    parser.add_argument("--sender", metavar="ADDRESS", default="", help="(mail-gateway-test@ this host)")
    parser.add_argument("--wait", metavar="SECONDS", type=seconds_of, default=WAIT_SECONDS, help=f"({WAIT_SECONDS})")
    parser.add_argument("--remove", action="store_true", help="remove the record afterwards, if the message made it")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")


def _answer(desk: Desk, arguments: Namespace) -> Answer:
    host = socket.getfqdn()
    sender = arguments.sender or f"mail-gateway-test@{host}"
    for address in (arguments.address, sender):
        if not is_address(address) or "@" not in address or not address.isascii():
            raise Usage(f"not an address: {address}")
    by = "straight through the gateway" if arguments.direct else f"by {arguments.smtp}"
    text = f"a test to {arguments.address} from {sender}, {by}"
    if arguments.dry_run:
        removing = " The record that it makes would be removed." if arguments.remove else ""
        return Answer({"text": text}, [words(f"Would send {text}.{removing}")])
    say(f"Sending {text}.")
    mark = os.urandom(8).hex()
    mail, message_id = _mail(sender, arguments.address, mark, host), f"<{mark}@{host}>"
    started = time.monotonic()
    legs = [_direct(desk, sender, arguments.address, mail) if arguments.direct else _by_smtp(arguments, sender, mail)]
    found = None
    if legs[0].is_good:
        more, found = _awaited(desk, message_id, started, started + arguments.wait)
        legs += [leg for leg in more if leg.what != legs[0].what]  # its own try is in the journal, too
    told = Facts()
    told.describe(Envelope(sender, (Recipient(arguments.address),)), mail)
    told.size = len(mail)
    removed = _removed(desk, found, mark, told) if found and arguments.remove else ""
    return _told(desk, message_id, legs, found, removed)


def _mail(sender: str, address: str, mark: str, host: str) -> bytes:
    mail = EmailMessage(policy=SMTP)
    mail["From"], mail["To"], mail["Subject"] = sender, address, f"A test of the mail gateway, {mark}"
    mail["Date"], mail["Message-ID"], mail["Auto-Submitted"] = formatdate(), f"<{mark}@{host}>", "auto-generated"
    mail.set_content("An administrator sent this to see that mail arrives. Nobody needs to answer it.\n")
    return mail.as_bytes()


def _by_smtp(arguments: Namespace, sender: str, mail: bytes) -> Leg:
    """Give the message to the mail server, and return what it says."""
    host, _, port = arguments.smtp.rpartition(":")
    if not host or not port.isdecimal():
        raise Usage(f"--smtp takes HOST:PORT, not {arguments.smtp}")
    started = time.monotonic()
    try:
        with smtplib.SMTP(host.strip("[]"), int(port), timeout=SMTP_SECONDS) as server:
            server.sendmail(sender, [arguments.address], mail)
    except smtplib.SMTPRecipientsRefused as error:
        code, text = error.recipients[arguments.address]
        return Leg(
            "the mail server", time.monotonic() - started, f"refuses it: {code} {text.decode(errors='replace')}", False
        )
    except (OSError, smtplib.SMTPException) as error:
        return Leg("the mail server", time.monotonic() - started, f"does not take it: {error}", False)
    return Leg("the mail server", time.monotonic() - started, "took it")


def _direct(desk: Desk, sender: str, address: str, mail: bytes) -> Leg:
    """Deliver the message as the gateway does, and return how it ended."""
    facts, started = Facts(), time.monotonic()
    raw = spool(io.BytesIO(mail), len(mail))
    with raw.file:
        facts.size = raw.size
        verdict = walk.deliver(desk.settings, desk.client, Envelope(sender, (Recipient(address),)), raw, facts)
    seconds = time.monotonic() - started
    log_of(desk.settings).message(facts, verdict, seconds)
    return _leg(verdict.outcome, seconds, verdict.cause)


def _leg(outcome: Outcome, seconds: float, cause: str) -> Leg:
    """Return the gateway's leg."""
    if outcome in ON_RECORD:
        return Leg("the gateway", seconds, word(outcome))
    return Leg("the gateway", seconds, f"{word(outcome)}: {cause}", False, MEANINGS[outcome].advice)


def _awaited(desk: Desk, message_id: str, started: float, until: float) -> tuple[list[Leg], Record | None]:
    """Return the legs from the mail server to the record, and the record, None where it does not come in time."""
    tries: list[Any] = []
    found_at = 0.0
    while True:
        tries = [each for each in journal.attempts(desk.settings, message_id) if each["message_id"] == message_id]
        found = records.find(desk.client, [message_id])
        ended = [each for each in tries if not Outcome[each["ending"]].is_temporary]
        now = time.monotonic()
        found_at = found_at or now * bool(found)
        is_noted = bool(ended) or not desk.settings.journal or now >= found_at + NOTED_SECONDS
        is_over = (bool(found) and is_noted) or any(Outcome[each["ending"]] not in ON_RECORD for each in ended)
        if is_over or now >= until:
            break
        time.sleep(PAUSE_SECONDS)
    seconds = (found_at or now) - started
    legs = [_leg(Outcome[each["ending"]], each["seconds"], each["cause"] or "") for each in reversed(tries)]
    if found:
        return [*legs, Leg("all", seconds, f"it is on {found[0].model} {found[0].record_id}")], found[0]
    return [*legs, Leg("all", seconds, "it is on no record", False)], None


def _removed(desk: Desk, record: Record, mark: str, told: Facts) -> str:
    """Remove a record that the test has made, and no other: its name has the mark. Return what was done.

    The journal is told, or the audit would look for the message, and name it as lost.
    """
    place = f"{record.model} {record.record_id}"
    try:
        rows = inquiry.rows(desk.client, record.model, [["id", "=", record.record_id]], {"fields": ["name"]})
        if not any(mark in str(row.get("name")) for row in rows):
            return f"{place} was there before, and stays: the test is a message on it."
        desk.client.execute(record.model, "unlink", [[record.record_id]], {}, time.monotonic())
    except Ended as ended:
        return f"{place} could not be removed: {ended.verdict.cause}"
    log_of(desk.settings).message(told, Verdict(Outcome.DROPPED, REMOVED), 0.0)
    return f"{place} is removed."


def _told(desk: Desk, message_id: str, legs: list[Leg], found: Record | None, removed: str) -> Answer:
    screen: list[Any] = [
        table(
            ["leg", "seconds", "how"],
            [(leg.what, f"{leg.seconds:.2f}", words(leg.how, "good" if leg.is_good else "bad")) for leg in legs],
            right=["seconds"],
        )
    ]
    if not found:
        advice = [*dict.fromkeys(leg.advice for leg in legs if leg.advice)]
        screen += ["", *map(words, advice[-1:]), words(f"mail-gateway-admin trace '{message_id}' tells more.")]
    elif removed:
        screen += ["", words(removed)]
    facts = {
        "message_id": message_id,
        "legs": [leg._asdict() for leg in legs],
        "record": records.facts(found) if found else None,
        "removed": removed,
    }
    return Answer(facts, screen, is_good=found is not None)


COMMAND = Command(
    "send-test",
    "Send a marked message to an address of the database's, and tell how long it takes to its record.",
    "mail-gateway-admin send-test info@example.com --remove",
    _add_arguments,
    _answer,
)
