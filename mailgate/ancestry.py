"""Identity and ancestry: the Message-ID that a message shall have, and the ids that lead to its thread.

Odoo, from 14 to 19, keeps some ids as they are. Of others it keeps a part (``<a,b@c>`` becomes ``<a``, so that
different messages become one), fails on them (``<>``, ``<@b>``, NUL, more than 2700 characters), or can't tell them
apart (bytes that are no UTF-8 become U+FFFD). Such an id is replaced by a digest of it, wherever it stands: an answer
names the same id as the message that it answers, so both get the same digest (docs/odoo.md, "Message-IDs").

A message without an id gets a digest of itself. A name of ours is never believed of a message that brings it: whoever
knows a mail could send its digest before it.
"""

import os
import re
from collections.abc import Iterable, Iterator

from mailgate.envelope import Raw, fields, unfold

DOMAIN = b"mail-gateway.invalid"
MAX_ID_CHARACTERS = 998  # no longer line is allowed (RFC 5322, 2.1.1), and an id can't be folded
MAX_REFERENCES = 32  # Odoo takes as many, the last ones
MAX_DATE_BYTES = 200
MAX_IDS = 200  # of a field, the last ones

_ID = re.compile(rb"<([^<>]*)>")
# Between the brackets, what every Odoo reads as it is.
_READABLE = re.compile(
    rb"(?!.*=\?) [\w.!#$%&'*+/=?^`{|}~-]+ (?: @ (?: [\w.!#$%&'*+/=?^`{|}~-]* | \[[\w.:-]*\] ) )?",
    re.ASCII | re.VERBOSE,
)
_NAMED = re.compile(rb"[\w\x80-\xff]", re.ASCII)  # without any of these, an id names nothing
_BARE = re.compile(rb"(?<![^\s,;<>()])[^\s,;<>()@]+@[^\s,;<>()@]+")  # an id that has lost its brackets

# What is written at a delivery, and differently at the next one.
TRACE_FIELDS = {
    b"authentication-results",
    b"delivered-to",
    b"delivery-date",
    b"envelope-to",
    b"received",
    b"received-spf",
    b"return-path",
    b"x-delivered-to",
    b"x-envelope-from",
    b"x-envelope-to",
    b"x-original-to",
    b"x-received",
}
TRACE_PREFIXES = (b"arc-", b"x-spam-", b"x-virus-")
PLAUSIBLE_SECONDS = 7 * 24 * 3600  # between a message's Date and the day on which its first host received it
_COMMENT = re.compile(rb"\([^()]*\)")
_NOTICE = re.compile(rb"-loop-detection-bounce-email@")  # in the id of a notice of Odoo's (docs/odoo.md, "Loops")


def message_id(raw: Raw, head: bytes) -> tuple[bytes, bool]:
    """Return the Message-ID that the message shall have, and whether it has it already.

    The database reads the first of several fields, and nothing behind the ``>``.
    """
    values = [unfold(field) for name, field in fields(head) if name == b"message-id"]
    found = own_id(head) or b"<%b@%b>" % (digest(raw, head, _arrival(head)), DOMAIN)
    first = values[0] if values else b""
    return found, first.startswith(found) and re.fullmatch(rb"[ -~]*", first) is not None


def date(head: bytes) -> int | None:
    """Return the moment that the message's Date names, in seconds since 1970, None where it can't be read."""
    value = next((unfold(field) for name, field in fields(head) if name == b"date"), b"")
    found = seconds_of(value[:MAX_DATE_BYTES])
    return None if found is None or not abs(found) < 2**40 else int(found)


def derived_id(message_id: str, *parts: str) -> bytes:
    """Return an id of ours for what the database shall not take for the message with this id."""
    from hashlib import sha256

    text = "\0".join((message_id, *parts))
    return b"<%b@%b>" % (sha256(b"part\0" + os.fsencode(text)).hexdigest().encode(), DOMAIN)


def ancestors(head: bytes) -> list[str]:
    """Return the ids that References and In-Reply-To name, as the database reads them."""
    values = [unfold(field) for name, field in fields(head) if name in (b"references", b"in-reply-to")]
    return [os.fsdecode(found) for found in dict.fromkeys(_ids(values))][-MAX_REFERENCES:]


def references(head: bytes) -> list[bytes]:
    """Return the ids that a References field in front of the message has to name, nearest last.

    Odoo reads the ids of References, in brackets, and those of In-Reply-To only where there is no References. So
    these are what it could not read: digests of unreadable ids, what has lost its brackets, and an In-Reply-To that
    References hides. Where it reads all there is, the list is empty.
    """
    ancestors, parents = (
        [unfold(field) for name, field in fields(head) if name == wanted] for wanted in (b"references", b"in-reply-to")
    )
    read = set(_ids(ancestors or parents))
    named = [canonical_id(found) for found in [*_all_ids(ancestors), *_all_ids(parents)]]
    lacking = [found for found in dict.fromkeys(filter(None, named)) if found not in read]
    if lacking and not ancestors:  # the new field hides In-Reply-To, so it names all of that
        lacking = list(dict.fromkeys(filter(None, named)))
    return lacking[-MAX_REFERENCES:]


def canonical_id(value: bytes) -> bytes:
    """Return the id in a value, in brackets, as every Odoo reads it; b"" where there is none."""
    inner = _inner(value)
    if len(inner) + 2 <= MAX_ID_CHARACTERS and _READABLE.fullmatch(inner):
        return b"<%b>" % inner
    if not _NAMED.search(inner.rpartition(b"@")[0] if b"@" in inner else inner):
        return b""
    from hashlib import sha256  # which few messages need

    return b"<%b@%b>" % (sha256(b"id\0" + inner).hexdigest().encode(), DOMAIN)


def own_id(head: bytes) -> bytes:
    """Return the id that a message has brought, as every Odoo reads it, b"" for none."""
    values = (unfold(field) for name, field in fields(head) if name == b"message-id")
    return canonical_id(next((value for value in values if not _is_ours(value)), b""))


def id_as_posted(head: bytes) -> bytes:
    """Return the id that the database reads in a message that was prepared, b"" for what has none, or is foreign.

    It is one of ours, which message_id() would not believe.
    """
    first = next((unfold(field) for name, field in fields(head) if name == b"message-id"), b"")
    return canonical_id(first) if _is_ours(first) else b""


def names_a_notice(field: bytes) -> bool:
    """Tell whether a field, or an id, names a notice of the database's; it reads no answer to one."""
    return _NOTICE.search(field) is not None


def ids_without_notices(field: bytes) -> list[bytes]:
    """Return the ids of a field, except those of the database's notices."""
    return [found for found in _ids([unfold(field)]) if not names_a_notice(found)]


def _inner(value: bytes) -> bytes:
    """Return the id in a value, as it stands in its brackets, without blanks."""
    bracketed = _ID.search(value)
    return b"".join((bracketed[1] if bracketed else value.strip(b"<> \t")).split())


def _is_ours(value: bytes) -> bool:
    return _inner(value).rpartition(b"@")[2].lower() == DOMAIN


def _ids(values: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what stands in brackets, as Odoo reads it."""
    for value in values:
        for found in _ID.findall(value):
            yield b"<%b>" % b"".join(found.split())


def _all_ids(values: list[bytes]) -> Iterable[bytes]:
    """Return the ids of a field, those without brackets where there are no others."""
    bracketed = list(_ids(values))
    return (bracketed or [found for value in values for found in _BARE.findall(value)])[-MAX_IDS:]


def digest(raw: Raw, head: bytes, more: bytes = b"") -> bytes:
    """Return the SHA-256, in hexadecimal digits, of what is the same whenever this message is delivered, and of more.

    Trace fields, names of ours, the kind of line ends, and whether the last line has one, don't count.
    """
    from hashlib import sha256

    found = sha256()
    header_size = 0
    last = b""
    for name, field in fields(head):
        header_size += len(field)
        if not (
            name in TRACE_FIELDS
            or name.startswith(TRACE_PREFIXES)
            or (name == b"message-id" and _is_ours(unfold(field)))
        ):
            found.update(field.translate(None, b"\r"))
            last = field
    for chunk in raw.chunks(header_size):
        found.update(chunk.translate(None, b"\r"))
        last = chunk
    if not last.endswith(b"\n"):
        found.update(b"\n")
    found.update(more)
    return found.hexdigest().encode()


def _arrival(head: bytes) -> bytes:
    """Return the field that the first host wrote when it received a message, if its Date can't be right.

    A camera that sends the same words twice sends two messages.
    """
    dates = [unfold(field) for name, field in fields(head) if name == b"date"]
    # each host adds its own on top, so the last is the oldest
    received = [b"", *(unfold(field) for name, field in fields(head) if name == b"received")][-1]
    sent = seconds_of(dates[0]) if dates else None
    taken = seconds_of(_COMMENT.sub(b"", received).rpartition(b";")[2])
    is_right = sent is not None and (taken is None or abs(sent - taken) <= PLAUSIBLE_SECONDS)
    return b"" if is_right else b" ".join(received.split())


def seconds_of(date: bytes) -> float | None:
    """Return a date in seconds since 1970, None where it can't be read."""
    from email.utils import mktime_tz, parsedate_tz

    try:
        found = parsedate_tz(date.decode("ascii", "replace"))
        return mktime_tz(found) if found else None
    except (ValueError, OverflowError, IndexError, TypeError):  # what it raises for some of what is none
        return None
