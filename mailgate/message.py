"""Prepare: the header fields that are put in front of the message, and nothing else.

The database routes by Delivered-To (besides To and Cc), sends its notices to Return-Path, knows a message again by its
Message-ID, and finds its thread by References. Of Return-Path and Message-ID it reads the first, so a better one in
front is enough, and none where the first says the same; several References it joins. ancestry.py says which ids the
message shall have.

Delivered-To counts as To for the database: an alias in Cc would take an answer away from its thread, and the bounce
address there would make an order vanish. So only who stands in no field that it reads anyway gets one. One field with
a list is what every Odoo from 14 on reads whatever its Python. Where the message has a field of its own, Odoo 14 joins
the two with a blank, so that ours ends with a comma (RFC 5322, 4.4: a list may have empty elements). docs/odoo.md,
"Which fields name a recipient", has what each version reads.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator

from mailgate import ancestry
from mailgate.envelope import SPOOL_IN_MEMORY_BYTES, Raw, fields, join_address, split_address, spool_folder, unfold

ADDRESS_FIELDS = (b"to", b"cc", b"resent-to", b"resent-cc")

# What such a field is made of where nobody can read it in two ways: words, quoted strings, comments, groups, and
# addresses in brackets or bare. What else there may be (routes, lists without commas) each reader takes in his own way.
# Where there is no token, something is opened that is not closed.
_TOKENS = re.compile(
    rb"""
    (?P<blank> [ \t\r\n]+ | \( [^()\\"<>]* \) )
    | (?P<word> [^\x00-\x20\x7f"(),:;<>\[\]\\]+ )
    | (?P<quoted> "(?:[^"\\]|\\.)*" )
    | < (?P<path> [^\x00-\x20\x7f"(),:;<>\[\]\\]+ ) >
    | (?P<comma> , )
    | (?P<other> [^"(<\[\\] )
    """,
    re.VERBOSE | re.DOTALL,
)
_ADDRESS = re.compile(rb"[^@]+@[A-Za-z0-9.-]+")
MAX_LINE_CHARACTERS = 998  # (RFC 5322, 2.1.1)


def prepare(raw: Raw, sender: str | None, addresses: Iterable[str], instead: bytes = b"") -> tuple[bytes, str]:
    """Return the header fields to be put in front of the message, and the Message-ID that it then has.

    ``addresses`` are those that the database knows the recipients by. A sender that is None is not known. ``instead``
    is an id in place of the message's own.
    """
    head = raw.head()
    message_id, is_there = (instead, False) if instead else ancestry.message_id(raw, head)
    parents = ancestry.references(head)
    named = names(head)
    lacking = [address for address in dict.fromkeys(addresses) if address.lower() not in named]

    added = []
    path = b"<%b>" % os.fsencode(join_address(*split_address(sender)) if sender else "")
    if sender is not None and path != next(
        (unfold(field) for name, field in fields(head) if name == b"return-path"), None
    ):
        added.append(b"Return-Path: " + path)
    if lacking:
        end = b"," if any(name == b"delivered-to" for name, _ in fields(head)) else b""
        added.append(b"Delivered-To: " + b", ".join(b"<%b>" % os.fsencode(address) for address in lacking) + end)
    if not is_there:
        added.append(b"Message-ID: " + message_id)
    if parents:
        added.append(b"References: " + b" ".join(parents))
    if head[:1] in (b" ", b"\t"):
        added.append(b"X-First-Line:")  # or the message's first line would continue the last field of ours

    first_line_end = re.search(rb"\r?\n", head)
    line_end = first_line_end[0] if first_line_end else b"\n"
    lines = (field.replace(b" <", line_end + b" <") if len(field) > MAX_LINE_CHARACTERS else field for field in added)
    return b"".join(field + line_end for field in lines), os.fsdecode(message_id)


def names(head: bytes) -> set[str]:
    """Return the addresses, in lower case, that the header surely names for every database.

    A mailbox that can be read in two ways names nobody, and where a field may swallow what follows, no field does.
    """
    named: set[str] = set()
    for name, field in fields(head):
        if name in ADDRESS_FIELDS:
            for mailbox in _mailboxes(unfold(field)):
                if mailbox is None:
                    return set()
                named.update(os.fsdecode(address).lower() for address in _address(mailbox))
    return named


def delivered_to(head: bytes) -> list[str]:
    """Return the addresses that Delivered-To surely names for every database, those that we put in front first."""
    found = (_mailboxes(unfold(field)) for name, field in fields(head) if name == b"delivered-to")
    mailboxes = (mailbox for field in found for mailbox in field if mailbox)
    return [*dict.fromkeys(os.fsdecode(address) for mailbox in mailboxes for address in _address(mailbox))]


def without_recipients(raw: Raw) -> Raw:
    """Return a copy of the message whose recipients' fields have other names, so that the database serves none of them.

    Each begins with X-Served- then. It is for a call for other recipients than these.
    """

    def renamed(name: bytes, field: bytes) -> bytes:
        return b"X-Served-" + field if name in (*ADDRESS_FIELDS, b"delivered-to") else field

    return _copy(raw, renamed)


def without_notices(raw: Raw) -> Raw:
    """Return a copy of the message that answers no notice of the database's; what else it answers, it still does.

    What names a notice begins with X-Answered- then.
    """

    def renamed(name: bytes, field: bytes) -> bytes:
        if name not in (b"references", b"in-reply-to") or not ancestry.names_a_notice(field):
            return field
        others = ancestry.ids_without_notices(field)
        line_end = b"\r\n" if field.endswith(b"\r\n") else b"\n"
        rest = field.partition(b":")[0] + b": " + (line_end + b" ").join(others) + line_end if others else b""
        return rest + b"X-Answered-" + field

    return _copy(raw, renamed)


def _copy(raw: Raw, change: Callable[[bytes, bytes], bytes]) -> Raw:
    """Return a copy of the message with what ``change`` makes of each header field, given its name and its bytes."""
    from tempfile import SpooledTemporaryFile

    file = SpooledTemporaryFile(max_size=SPOOL_IN_MEMORY_BYTES, dir=spool_folder(os.environ))
    size = 0
    for name, field in fields(raw.head()):
        file.write(change(name, field))
        size += len(field)
    for chunk in raw.chunks(size):
        file.write(chunk)
    return Raw(file, 0, file.tell())


def _mailboxes(value: bytes) -> Iterator[list[tuple[str, bytes]] | None]:
    """Yield the tokens of each mailbox of a list, as (kind, text), without blanks, comments and the names of groups.

    None means that the list can't be read from there on.
    """
    mailbox: list[tuple[str, bytes]] = []
    place, in_group = 0, False
    while place < len(value):
        token = _TOKENS.match(value, place)
        if not token:
            yield None
            return
        kind = str(token.lastgroup)
        if kind == "comma":
            yield mailbox
            mailbox = []
        elif token[0] == b":" and not in_group and all(b"@" not in text for _, text in mailbox):
            mailbox, in_group = [], True
        elif token[0] == b";" and in_group:
            yield mailbox
            mailbox, in_group = [(kind, token[kind])], False  # what follows without a comma is no address
        elif kind != "blank":
            mailbox.append((kind, token[kind]))
        place = token.end()
    yield mailbox


def _address(mailbox: list[tuple[str, bytes]]) -> list[bytes]:
    """Return the address of a mailbox (RFC 5322, 3.4), nothing where it may be read in another way."""
    *name, (kind, address) = mailbox or [("", b"")]
    is_bracketed = kind == "path" and all(
        kind == "quoted" or (kind == "word" and b"@" not in text) for kind, text in name
    )
    is_bare = kind == "word" and not name
    return [address] if (is_bracketed or is_bare) and _ADDRESS.fullmatch(address) else []
