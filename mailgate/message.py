"""Prepare: the header fields that are put in front of the message, and nothing else.

The database routes by Delivered-To (besides To and Cc), sends its notices to Return-Path, and knows a message
again by its Message-ID. It reads the first of two Message-ID fields, so a better one in front is enough.
"""

import os
import re
from collections.abc import Iterable

from mailgate.envelope import Raw, fields, join_address, split_address, unfold

# The Message-IDs that every Odoo from 14 to 19 keeps as they are. Of others it keeps a part (<a,b@c> becomes <a,
# so that different messages become one), fails on them (<>, <@b>, NUL, more than 2700 characters), or can't tell
# them apart (bytes that are no UTF-8 become U+FFFD). It ignores what follows the >.
_READABLE_ID = re.compile(
    rb"<[\w.!#$%&'*+/=?^`{|}~-]+ (@ ( [\w.!#$%&'*+/=?^`{|}~-]* | \[[\w.:-]*\] ))? > [ -~]*"
    rb"| (?!.*=\?) [!-')-;=-~] [ -~]*",  # not in brackets: kept whole, but for encoded words and comments
    re.ASCII | re.VERBOSE,
)
MESSAGE_ID_LIMIT = 998  # characters: no longer line is allowed (RFC 5322, 2.1.1), and an id can't be folded

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
PLAUSIBLE = 7 * 24 * 3600  # seconds between a message's Date and the day on which its first host received it
_COMMENT = re.compile(rb"\([^()]*\)")


def prepare(raw: Raw, sender: str | None, addresses: Iterable[str]) -> tuple[bytes, str]:
    """Return the header fields to be put in front of the message, and the Message-ID that it then has.

    ``addresses`` are those that the database knows the recipients by; each gets its own Delivered-To in angle
    brackets, the one form that every version of Odoo reads. A sender that is None is not known.
    """
    head = raw.head()
    present: dict[bytes, bytes] = {}
    for name, field in fields(head):
        present.setdefault(name, unfold(field))  # the first of several counts

    added = []
    if sender is not None and b"return-path" not in present:
        added.append(b"Return-Path: <%b>" % os.fsencode(join_address(*split_address(sender)) if sender else ""))
    added += [b"Delivered-To: <%b>" % os.fsencode(address) for address in addresses]
    message_id = present.get(b"message-id", b"")
    if len(message_id) > MESSAGE_ID_LIMIT or not _READABLE_ID.fullmatch(message_id):
        message_id = b"<%b@mail-gateway.invalid>" % _digest(raw, head, present.get(b"date", b""))
        added.append(b"Message-ID: %b" % message_id)
    if head[:1] in (b" ", b"\t"):
        added.append(b"X-First-Line:")  # or the message's first line would continue the last field of ours

    first_line_end = re.search(rb"\r?\n", head)
    line_end = first_line_end[0] if first_line_end else b"\n"
    return b"".join(field + line_end for field in added), os.fsdecode(message_id)


def _digest(raw: Raw, head: bytes, date: bytes) -> bytes:
    """Return the SHA-256, in hexadecimal digits, of what is the same whenever this message is delivered.

    Trace fields, the kind of line ends, and whether the last line has one, don't count. Where ``date`` can't be right,
    the day on which the first host received the message counts: the same words on another day are another message.
    """
    from hashlib import sha256  # which a message with a Message-ID doesn't need

    digest = sha256()
    header_size = 0
    received = last = b""
    for name, field in fields(head):
        header_size += len(field)
        if name == b"received":
            received = unfold(field)  # each host adds its own on top, so the last is the oldest
        if name not in TRACE_FIELDS and not name.startswith(TRACE_PREFIXES):
            digest.update(field.translate(None, b"\r"))
            last = field
    for chunk in raw.chunks(header_size):
        digest.update(chunk.translate(None, b"\r"))
        last = chunk
    if not last.endswith(b"\n"):
        digest.update(b"\n")
    day = _COMMENT.sub(b"", received).rpartition(b";")[2]
    sent, taken = _seconds(date), _seconds(day)
    if sent is None or (taken is not None and abs(sent - taken) > PLAUSIBLE):
        digest.update(b" ".join(day.split()[:4]))  # Sun, 22 Nov 2026 (RFC 5322, 3.3)
    return digest.hexdigest().encode()


def _seconds(date: bytes) -> float | None:
    """Return a date in seconds since 1970, None where it can't be read."""
    from email.utils import mktime_tz, parsedate_tz

    try:
        found = parsedate_tz(date.decode("ascii", "replace"))
        return mktime_tz(found) if found else None
    except (ValueError, OverflowError, IndexError, TypeError):  # what it raises for some of what is none
        return None
