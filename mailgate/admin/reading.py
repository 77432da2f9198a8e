"""What a message says to a database, and what is odd about it: the facts that a forecast stands on.

A database reads more than this does, and each in its own way; this is what the standard library makes of it.
"""

import codecs
import contextlib
import os
import re
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from email.policy import SMTP
from email.utils import parseaddr
from typing import NamedTuple

from mailgate import ancestry
from mailgate.envelope import addresses_of, canonical_address, fields, unfold
from mailgate.hold import decoded
from mailgate.inquiry import is_automatic

MARK = "-loop-detection-bounce-email@"  # in the ids of notices, and in what answers them
REPLY_MARK = "reply_to"  # an id with it leads to no thread
MACHINE = re.compile(
    r"(mailer-?daemon|postmaster|listserv|majordomo|owner-.*|.*-(request|owner)|(.*[-_])?bounces?([-_.+=].*)?"
    r"|(do[-_.]?)?not?[-_.]?repl(y|ies).*|notifications?([-_.+].*)?)@.*"
)
DEAD_CLOCK_SECONDS = 366 * 24 * 3600.0  # a Date this far away is no date
REPORT_TYPES = ("message/delivery-status", "message/global-delivery-status")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_DEPTH = 300  # of parts within each other; more is more than Odoo can take


class Mail(NamedTuple):
    """A message as a database sees it. Addresses are bare and in lower case; "" and () are what is missing."""

    message_id: str
    references: tuple[str, ...]  # the ids of References, the nearest last
    in_reply_to: tuple[str, ...]
    sender: str  # as it is shown: "Name" <address>
    sender_address: str
    return_path: str | None  # "" is the null sender, None: no such field
    to: tuple[str, ...]  # To and Delivered-To, which count as To
    recipients: tuple[str, ...]  # these, Cc, Resent-To and Resent-Cc
    delivered_to: int  # how many fields of this name it has
    subject: str
    is_automatic: bool
    types: tuple[str, ...]  # of its parts, that of the whole first

    @property
    def told_address(self) -> str:
        """Who is told where a notice is sent: Return-Path, else From; "" for nobody."""
        return self.sender_address if self.return_path is None else self.return_path

    @property
    def is_report(self) -> bool:
        """Whether its type says that it is a delivery report."""
        return self.types[0] == "multipart/report"

    @property
    def has_report(self) -> bool:
        """Whether a part of it states what became of mail."""
        return any(each in REPORT_TYPES for each in self.types)

    @property
    def is_of_a_machine(self) -> bool:
        """Whether nobody reads what is answered to it."""
        return self.is_automatic or any(map(MACHINE.fullmatch, (self.told_address, self.sender_address)))


def read(head: bytes, finds_all: bool = False) -> Mail:
    """Return the message of which this is the beginning.

    With ``finds_all``, an address is also found in a list that is badly written, a header behind a byte order mark, and
    a sender where From has none.
    """
    head = head.replace(b"\n" + BYTE_ORDER_MARK, b"\n") if finds_all else head
    found: dict[bytes, list[str]] = {}
    for name, field in fields(head):
        found.setdefault(name, []).append(os.fsdecode(unfold(field)))

    def first(name: bytes) -> str:
        return next(iter(found.get(name, [])), "")

    def addresses(*names: bytes) -> tuple[str, ...]:
        values = [(name, value) for name in names for value in found.get(name, [])]
        return tuple(dict.fromkeys(each for name, value in values for each in _addresses(name, value, finds_all)))

    to = addresses(b"to", b"delivered-to")
    sender, sender_address = _sender(found, finds_all)
    return_paths = found.get(b"return-path", [])
    return_path = next(iter(return_paths), None)
    if not finds_all:  # an Odoo takes all of them for one
        return_path = next((value for value in return_paths if "@" in value), return_path)
    return Mail(
        message_id=first(b"message-id"),
        references=_ids(found.get(b"references", [])),
        in_reply_to=_ids(found.get(b"in-reply-to", [])),
        sender=sender,
        sender_address=sender_address,
        return_path=None if return_path is None else canonical_address(return_path.strip("<> ")),
        to=to,
        recipients=tuple(dict.fromkeys((*to, *addresses(b"cc", b"resent-to", b"resent-cc")))),
        delivered_to=len(found.get(b"delivered-to", [])),
        subject=decoded(first(b"subject")),
        is_automatic=is_automatic(head),
        types=tuple(part.get_content_type() for part, _ in _parts(head)),
    )


SENDER_FIELDS = (b"from", b"sender", b"return-path")  # the next one counts where one is missing


def _sender(found: dict[bytes, list[str]], finds_all: bool) -> tuple[str, str]:
    """Return the sender as a database shows him, and his address; of one who names no address, as he is written."""
    for name in SENDER_FIELDS if finds_all else SENDER_FIELDS[:1]:
        values = found.get(name, [""])
        value = next(filter(str.strip, values), "") if finds_all else values[0]
        address = next(iter(_addresses(name, value, finds_all)), "")
        if address or (value and name == b"from"):
            return _shown(decoded(value), address), address
    return "", ""


def _shown(value: str, address: str) -> str:
    """Return a sender as a database writes him."""
    name = parseaddr(value)[0].replace("\\", "\\\\").replace('"', '\\"')
    return f'"{name}" <{address}>' if name else address


def _ids(values: list[str]) -> tuple[str, ...]:
    found = re.findall(r"<[^<>]*>", " ".join(values))
    return tuple("".join(each.split()) for each in found if REPLY_MARK not in each)


# An address that stands in brackets, or between blanks, whatever else is wrong with its list.
_BRACKETED = re.compile(r"<\s*([^<>\s]+@[^<>\s]+?)\s*>")
_BARE = re.compile(r'[^\s<>()\[\],;:"]+@[^\s<>()\[\],;:"]+')
_QUOTED = re.compile(r"(?P<mark>['`])(?P<address>.*)(?P=mark)", re.DOTALL)


def _addresses(name: bytes, value: str, finds_all: bool) -> list[str]:
    # Delivered-To holds nothing but addresses, which may stand without commas between them; Odoo wants them unquoted
    is_split = name == b"delivered-to" and (finds_all or '"' not in value)
    text = ",".join(re.split(r"[\s|;]+", value)) if is_split else value
    if not finds_all:
        return _as_odoo_reads(name, text)
    found = addresses_of(text)
    if "=?" in text and not any("@" in each for each in found):  # all of it is an encoded word
        found = addresses_of(decoded(text))
    found += _BRACKETED.findall(text) or ([] if '"' in text else _BARE.findall(text))
    unquoted = [quoted["address"] if (quoted := _QUOTED.fullmatch(each)) else each for each in found]
    return [canonical_address(each.rstrip(".")) for each in unquoted if "@" in each]


def _as_odoo_reads(name: bytes, text: str) -> list[str]:
    """Return what the library's parser of structured fields leaves of one; what takes it long comes not to here."""
    with contextlib.suppress(Exception):  # it raises many kinds for what is no such field
        text = str(SMTP.header_factory(name.decode(), text))
    found = []
    for each in addresses_of(text):
        parts = [part for part in addresses_of(each.replace(" ", ",")) if "@" in part] if " " in each else [each]
        found += [canonical_address(part) for part in parts[-1:] if "@" in part]
    return found


def _parts(head: bytes) -> list[tuple[Message, int]]:
    """Return the parts of a message, as far as it is looked at, each with its depth; the whole first."""
    try:
        whole = message_from_bytes(head)
        return [*_within(whole)] or [(whole, 0)]
    except (RecursionError, ValueError, LookupError, IndexError):  # what the library raises for some of what is none
        return [(Message(), MAX_DEPTH + 1)]


def _within(whole: Message) -> Iterator[tuple[Message, int]]:
    waiting = [(whole, 0)]
    while waiting:
        part, depth = waiting.pop()
        yield part, depth
        inner = part.get_payload()
        if isinstance(inner, list):
            waiting += [(each, depth + 1) for each in reversed(inner) if isinstance(each, Message)]


class Oddity(NamedTuple):
    """What is odd about a message, in words, and the fault with which an Odoo ends on it, "" where it takes it."""

    text: str
    fault: str = ""


def oddities(head: bytes, now: float) -> list[Oddity]:
    """Return what is odd about a message of which this is the beginning; ``now`` is in seconds since 1970."""
    found = [*_odd_fields(head), *_odd_date(head, now), *_odd_parts(head)]
    return list(dict.fromkeys(found))


ONCE = (b"from", b"to", b"cc", b"subject", b"message-id", b"date", b"in-reply-to", b"references", b"reply-to")
NUL_FAULT = "ValueError: A string literal cannot contain NUL (0x00) characters."


def _odd_fields(head: bytes) -> Iterator[Oddity]:
    names, size = [], 0
    for name, field in fields(head):
        names.append(name)
        size += len(field)
        if b"\0" in field and name in ONCE:
            yield Oddity(f"There is a NUL in {_title(name)}.", NUL_FAULT)
        if not field.isascii() and name in ONCE:
            yield Oddity(f"There are letters outside of ASCII in {_title(name)}, which may be read wrongly.")
    if not names:
        yield Oddity("There is no header.")
        return
    for name in ONCE:
        if names.count(name) > 1:
            yield Oddity(f"There are {names.count(name)} fields {_title(name)}; mostly the first one counts.")
    for name in (b"from", b"to", b"message-id", b"date", b"subject"):
        if name not in names:
            yield Oddity(f"There is no {_title(name)}.")
    if head[size : size + 1] not in (b"", b"\r", b"\n"):
        yield Oddity("The header ends at a line that is no field; what follows counts as text.")


def _title(name: bytes) -> str:
    return name.decode("ascii", "replace").title().replace("-Id", "-ID")


def _odd_date(head: bytes, now: float) -> Iterator[Oddity]:
    value = next((unfold(field) for name, field in fields(head) if name == b"date"), None)
    if value is None:
        return
    moment = ancestry.date(head)
    if moment is None:
        yield Oddity("Its Date can't be read.")
    elif abs(moment - now) > DEAD_CLOCK_SECONDS:
        yield Oddity("Its Date is more than a year away: the sender's clock is wrong, or the message is old.")


def _odd_parts(head: bytes) -> Iterator[Oddity]:
    for part, depth in _parts(head):
        if depth > MAX_DEPTH:
            yield Oddity("Its parts stand very deep within each other.", "RecursionError: maximum recursion depth")
            return
        charset = str(part.get_param("charset", "") or "") if part.get_content_maintype() == "text" else ""
        if charset and not _is_charset(charset):
            yield Oddity(f"Nobody can decode the charset {charset!r}.", f"LookupError: unknown encoding: {charset}")
        if "\0" in str(part.get_filename() or ""):
            yield Oddity("There is a NUL in a file's name.", NUL_FAULT)


OF_ODOO = re.compile(r"cp[-_]850|iso[-_]?8859[-_]8[-_]?[ei]", re.IGNORECASE)  # which it reads and Python does not


def _is_charset(name: str) -> bool:
    if name.startswith("(") or OF_ODOO.fullmatch(name):  # ( of RFC 2231
        return True
    try:
        return bool(codecs.lookup(name)._is_text_encoding)  # as bytes.decode asks
    except (LookupError, ValueError):
        return False
