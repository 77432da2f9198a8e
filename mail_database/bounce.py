"""Read a report on mail that came back: who failed, why, and which message it is about.

Who failed is told by the first of these that names anybody:

1. a provider's events in JSON (provider_events.py): these, and nothing else;
2. the per-recipient blocks of its delivery-status parts (RFC 3464, RFC 6533), then those of a report that it forwards;
3. such blocks in its text, where a gateway has flattened or quoted them;
4. flufl.bounce, which knows the words of many mail systems;
5. its text above the copy of the message: the addresses there that the database has sent the message to;
6. the whole of it, the copy's recipient fields included, where one such address is there and no other.

5 and 6 are guesses: they count only in a delivery report, or if a daemon says in the text that delivery has failed.
Absence notes, confirmations and the like name nobody. If neither a status nor a copy came back, the words of failure
must stand beside the address, not just somewhere in the text. 4 to 6 never name who wrote or received the report. If
2 names only addresses that the database does not have (an inner name, IMCEAEX, where mail was forwarded to), those
of 5 have failed, too. Every address named stands in the report. A report is written by strangers, so nothing here
raises, whatever the bytes. ``read`` takes the time and needs no database; ``judge`` only compares sets.
"""

import logging
import re
from collections.abc import Iterable
from email.message import Message as Parsed
from itertools import chain
from typing import NamedTuple

from flufl.bounce import all_failures

from mail_database.bounce_text import ADDRESS, Words, above_copy, addresses_in, failing, named_by, words_of
from mail_database.bounce_words import has_null_sender, is_daemon, is_machine, is_nobody, says_failure, says_no_failure
from mail_database.message import Message
from mail_database.provider_events import Event, Events, read_events
from mail_database.report import (
    MESSAGE_IDS,
    STATUS_TYPES,
    Opened,
    content_type,
    fields_of,
    first,
    open_reports,
    unquoted,
    values,
)

# What the types of complaints and read receipts contain, which name nobody who has failed.
NO_BOUNCE_TYPES = ("feedback-report", "disposition-notification")
# The kinds of multipart/report that are about mail of ours (RFC 3462); complaints and TLS reports are ordinary mail.
REPORT_TYPES = ("delivery-status", "disposition-notification")

# Whether the recipient failed. Where the action is missing, or none of these, the status tells.
ACTIONS = {
    "failed": True,
    "failure": True,
    "error": True,  # OpenSMTPD
    "expired": True,  # SendGrid
    "delayed": False,
    "delivered": False,
    "relayed": False,
    "expanded": False,
    "deliverable": False,  # sendmail -bv
}

# Fields of the report's header; not X-Original-To, in which DragonFly's agent names who failed.
CORRESPONDENTS = ("from", "sender", "reply-to", "return-path", "to", "cc", "delivered-to")
# Fields of the message that came back.
RECIPIENTS = ("to", "cc", "delivered-to", "x-original-to", "envelope-to", "resent-to", "resent-cc")

MAX_KIND_BYTES = 2**17  # what is read of a message to tell whether it is a report
MAX_FLUFL_LINES = 1000  # what flufl.bounce gets: it has fifty expressions for each line, some of quadratic time
MAX_FLUFL_LINE_CHARACTERS = 500
MAX_FLUFL_FIELDS = 100
MAX_IDS = 64  # Message-IDs that a report names
MAX_REASON_CHARACTERS = 10_000
NO_REASON = "no error"  # as the documentation has it

# None of these takes more than linear time, whatever the text.
_TYPE = re.compile(r"^[\w.-]*[ \t]*;")  # of an address or a diagnostic: rfc822; utf-8; smtp;
_STATUS = re.compile(r"\b[245]\.\d{1,3}\.\d{1,3}\b")
_ID = re.compile(r"<[^<>]+>")
_QUOTED_ID = re.compile(rf"^[>| \t]*(?:{'|'.join(MESSAGE_IDS)})[ \t]*:[>|\s]*(<[^<>]+>)", re.MULTILINE | re.IGNORECASE)

logging.getLogger("flufl.bounce").setLevel(logging.CRITICAL)  # it logs a traceback of what it raises; we handle that


class Bounce(NamedTuple):
    """A recipient who failed, in lower case, and the report's own words, ``""`` where it has none."""

    final_recipient: str
    action: str = ""
    status: str = ""
    diagnostic: str = ""


class Report(NamedTuple):
    """Who failed, who surely did not, and what a person should read about it.

    ``is_silent``: it is a delivery report that names nobody, neither one who failed nor one who did not.
    ``is_understood``: it names somebody, or is of a report's type, or says that all is well.
    """

    failures: tuple[Bounce, ...]
    spared: frozenset[str]
    reason: str
    is_silent: bool
    is_understood: bool


class _Block(NamedTuple):
    """What a report states of one recipient: by which addresses he goes, whether he failed, and its words."""

    addresses: tuple[str, ...]
    is_failure: bool
    action: str
    status: str
    diagnostic: str


class Said(NamedTuple):
    """What a report says, before anybody is asked whom the database knows.

    ``message_ids`` are those of what came back, best first; ``other_ids`` those that it names besides, to be asked
    for where none of these is known.
    """

    message_ids: tuple[str, ...]
    other_ids: tuple[str, ...]
    reason: str
    stated: tuple[tuple[_Block, ...], ...]  # by source, the best first
    for_now: frozenset[str]  # who failed for now, as flufl.bounce reads it
    for_good: frozenset[str]  # and for good
    words: Words
    everywhere: frozenset[str]  # the addresses in its texts and among the recipients of what came back
    impossible: frozenset[str]  # who wrote or received the report, and ids, which look like addresses
    is_other: bool  # a complaint, a read receipt
    may_guess: bool  # whether words and everywhere count
    has_status: bool
    says_no_failure: bool

    def addresses(self) -> set[str]:
        """Return all addresses of which the report states something."""
        return {address for blocks in self.stated for block in blocks for address in block.addresses}


def is_report(message: Message, at_bounce_address: bool) -> bool:
    """Tell whether a message reports on mail that came back, or was read. It never takes long.

    A multipart/report is one by its type, whoever sent it, and MAILER-DAEMON sends nothing else. A text of another
    daemon is one at the bounce address; elsewhere, and where only its form is that of a bounce, its sender must be the
    null sender, or a machine that writes to the bounce address: people quote bounces.
    """
    by_person = message.sender_address and not is_machine({"from": [message.sender_address]})
    if by_person and message.return_path and not at_bounce_address and not message.is_report:
        return False  # as nearly all mail is, which need not be read for that
    opened = open_reports(message.raw[:MAX_KIND_BYTES])[0]
    if content_type(opened.header).startswith("multipart/report"):
        return any(kind in found for kind in REPORT_TYPES for found in opened.types)
    if message.sender_address.partition("@")[0] == "mailer-daemon":
        return True
    from_null = message.return_path == ""
    if is_daemon(opened.header) and (at_bounce_address or not is_nobody(opened.header)):
        return from_null or at_bounce_address
    if is_machine(opened.header) and _events(opened):
        return True
    if not from_null and not (at_bounce_address and (is_machine(opened.header) or message.is_automatic)):
        return False
    if any(found.startswith(STATUS_TYPES) for found in opened.types):
        return True
    if is_nobody(opened.header) and says_failure([first(opened.header, "subject"), *opened.texts]):
        return True
    return _events(opened) is not None or any(_flufl_failures(opened)) or _returns_mail(opened)


def read(raw: bytes) -> Said:
    """Return what a report says. Takes linear time."""
    reports = open_reports(raw)
    report = reports[0]
    events = _events(report)
    message_ids, other_ids = _message_ids(reports, events)
    if events:
        stated: tuple[tuple[_Block, ...], ...] = (tuple(_event_block(event) for event in events.events),)
    else:
        sources = [*(opened.statuses for opened in reports), unquoted(report.texts)]
        stated = tuple(tuple(_blocks(source)) for source in sources)
    readable = chain((text.strip() for text in report.texts), (block.diagnostic for each in stated for block in each))
    heads = [f"Subject:{first(report.header, 'subject')}", *report.texts]
    above = [above_copy(text) for text in report.texts]
    copy = chain.from_iterable(values(header, *RECIPIENTS) for header in report.returned)
    for_now, for_good = (set(), set()) if events else _flufl_failures(report)
    seen = addresses_in([*chain.from_iterable(report.header.values()), *report.texts])
    own = {found[1:-1].lower() for found in (*message_ids, *other_ids)}
    is_failing = is_daemon(report.header) and says_failure([heads[0], *above])
    is_bare = not (report.statuses or report.returned) and above == report.texts
    words = words_of(failing(heads[0], above) if is_bare else above)
    around = words.sentences if is_bare else [addresses_in([*report.texts, *copy])]
    return Said(
        message_ids,
        other_ids,
        next(filter(None, readable), NO_REASON)[:MAX_REASON_CHARACTERS],
        stated,
        frozenset(for_now),
        frozenset(for_good & seen),
        words,
        frozenset(chain.from_iterable(around) if "".join(report.texts).strip() else ()),
        frozenset(addresses_in(values(report.header, *CORRESPONDENTS)) | own),
        is_other=any(kind in found for kind in NO_BOUNCE_TYPES for found in report.types),
        may_guess=not events and (bool(report.statuses) or is_failing or _returns_mail(report)),
        has_status=bool(report.statuses),
        says_no_failure=says_no_failure(heads),
    )


def judge(said: Said, written_to: set[str], ours: set[str]) -> Report:
    """Return who failed.

    ``written_to``: whom the message that it is about was sent to. ``ours``: who of the report's addresses is known.
    """
    if said.is_other:
        return Report((), frozenset(), said.reason, is_silent=False, is_understood=True)
    failed, spared, is_told = _stated(said.stated, written_to)
    candidates = written_to - said.impossible - spared
    if failed and ours.isdisjoint(failed):  # inner names, or where mail was forwarded to
        more = named_by(said.words, candidates, at_most=len(failed))
        like = next(iter(failed.values()))
        failed |= {address: like._replace(final_recipient=address) for address in more}
    elif not failed and not is_told and not said.says_no_failure:
        failed = {address: Bounce(address) for address in sorted(_guessed(said, candidates, spared))}
    is_silent = said.has_status and not (failed or is_told or said.says_no_failure)
    is_understood = bool(failed or is_told or said.has_status or said.says_no_failure or said.for_now)
    return Report(tuple(failed.values()), frozenset(spared), said.reason, is_silent, is_understood)


def _stated(sources: Iterable[Iterable[_Block]], known: set[str]) -> tuple[dict[str, Bounce], set[str], bool]:
    """Return who failed, by the first source that says so, who did not, and whether one has told at all.

    The address is the final one, unless the database knows only the original one (the mail was forwarded) or only
    the recipient's own system knows the final one (``|command``, ``ann@localhost``).
    """
    spared: set[str] = set()
    for blocks in sources:
        failed: dict[str, Bounce] = {}
        is_told = unreadable = False
        for block in blocks:
            address = max(block.addresses, key=lambda each: (each in known, "." in each.rpartition("@")[2]), default="")
            if not block.is_failure:
                is_told = True
                spared.add(address)
            elif address:
                failed.setdefault(address, Bounce(address, block.action, block.status, block.diagnostic))
            else:
                unreadable = True
        if failed or (is_told and not unreadable):
            return failed, spared - {""}, True
    return {}, spared - {""}, False


def _blocks(texts: Iterable[str]) -> Iterable[_Block]:
    """Yield what is stated of each recipient in the blocks of a status, or in words that look like them."""
    for block in chain.from_iterable(re.split(r"\n[ \t]*\n", text) for text in texts):
        if "ecipient" not in block and "ECIPIENT" not in block:
            continue  # as most of a text is
        fields = fields_of(block)
        recipients = values(fields, "final-recipient", "original-recipient")
        if not recipients or not fields.keys() & {"final-recipient", "action"}:
            continue
        action = first(fields, "action").partition("(")[0].strip().lower()
        status = _STATUS.search(first(fields, "status"))
        code = status[0] if status else ""
        is_failure = ACTIONS.get(action, code.startswith("5") or not (action or status))
        diagnostic = " ".join(_TYPE.sub("", first(fields, "diagnostic-code")[:MAX_REASON_CHARACTERS], count=1).split())
        yield _Block(tuple(filter(None, map(_address, recipients))), is_failure, action, code, diagnostic)


def _event_block(event: Event) -> _Block:
    diagnostic = " ".join(_TYPE.sub("", event.diagnostic[:MAX_REASON_CHARACTERS], count=1).split())
    return _Block(tuple(filter(None, [_address(event.recipient)])), event.is_failure, "", event.status, diagnostic)


def _events(report: Opened) -> Events | None:
    return next((events for text in report.texts[:1] if (events := read_events(text))), None)


def _message_ids(reports: list[Opened], events: Events | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the ids of what came back, else those that the text quotes, else the report's own references; and, behind
    the best of these, the others and what the returned messages themselves refer to: providers rewrite our ids.
    """
    report = reports[0]
    own = set(_ids(values(report.header, "message-id")))
    returned = [header for opened in reports for header in opened.returned]
    groups = (
        events.message_ids if events else (),
        [value for header in returned for value in values(header, *MESSAGE_IDS)],
        [quoted for opened in reports for text in opened.statuses for quoted in _QUOTED_ID.findall(text)],
        [quoted for text in report.texts for quoted in _QUOTED_ID.findall(text)],
        values(report.header, "in-reply-to", "x-original-message-id"),
        _ids(values(report.header, "references"))[::-1],  # the last is the nearest
        [found for header in returned for found in _ids(values(header, "references"))[::-1]],
    )
    best: tuple[str, ...] = ()
    others: dict[str, None] = {}
    for place, group in enumerate(groups):
        found = [found for found in dict.fromkeys(_ids(group)) if found not in own][:MAX_IDS]
        if not best and place < len(groups) - 1:
            best = tuple(found)
        else:
            others |= dict.fromkeys(found)
    return best, tuple(others)[:MAX_IDS]


def _guessed(said: Said, candidates: set[str], spared: set[str]) -> set[str]:
    """Return the addresses that failed as far as a report's words tell."""
    failed = set(said.for_good - said.impossible - spared)
    if failed or said.for_now:
        return failed
    if not said.may_guess:
        return set()
    only = candidates & said.everywhere
    return named_by(said.words, candidates) or (only if len(only) == 1 else set())


def _returns_mail(report: Opened) -> bool:
    """Tell whether a machine returns a message and says that it was not delivered."""
    by_machine = is_machine(report.header) or has_null_sender(report.header)
    return by_machine and bool(report.returned) and says_failure(map(above_copy, report.texts))


def _flufl_failures(report: Opened) -> tuple[set[str], set[str]]:
    """Return the addresses that failed for now, and for good, by the header and the text: all that it has to see."""
    copy = Parsed()
    for name, found in list(report.header.items())[:MAX_FLUFL_FIELDS]:
        if not name.startswith("content-"):
            copy[name] = " ".join(found[0][:MAX_FLUFL_LINE_CHARACTERS].split())
    lines = "\n\n".join(report.texts).split("\n", MAX_FLUFL_LINES)[:MAX_FLUFL_LINES]
    text = "\n".join(line[:MAX_FLUFL_LINE_CHARACTERS] for line in lines)
    if report.types[0].startswith("multipart/"):  # some of its detectors want a part, and some the message itself
        copy["Content-Type"] = "multipart/mixed"
        part = Parsed()
        part.set_payload(text)
        copy.attach(part)
    else:
        copy.set_payload(text)
    try:
        temporary, permanent = all_failures(copy)
    except Exception:  # its detectors expect better manners than strangers have
        return set(), set()
    return _lowered(temporary), _lowered(permanent)


def _lowered(addresses: Iterable[bytes]) -> set[str]:
    return {address.decode("ascii", "replace").lower() for address in addresses}


def _ids(found: Iterable[str]) -> list[str]:
    return ["".join(each.split()) for value in found for each in _ID.findall(value)]


def _address(recipient: str) -> str:
    """Return the address of a recipient field (``rfc822; <Ann@b.test> (Ann)``) in lower case, "" if it has none."""
    address = re.sub(r"\([^()]*\)", "", _TYPE.sub("", recipient, count=1)).strip(" \t\n<>.").lower()
    return address if ADDRESS.fullmatch(address) else ""
