"""bytes -> Message: ids, references, addresses, the kind of mail, and what a person would read.

Nothing here raises for any bytes, and all of it takes linear time. What can't be read as its sender meant it is read
as well as it can be, and the message then carries its original as an attachment. The modules that this one uses:
header.py (fields), addresses.py, charset.py, transfer_encoding.py and parts.py (MIME), markup.py (HTML), content.py
(text and files).
"""

import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from mail_database.addresses import normalize, split
from mail_database.automatic import is_automatic
from mail_database.charset import clean, decoded
from mail_database.content import MESSAGE, ORIGINAL, Attachment, read_content
from mail_database.header import Part, Value, fields, first_header, raw_values, text_of, unfolded, values
from mail_database.markup import sanitize
from mail_database.references import ancestors, answers_our_notice

__all__ = ["ORIGINAL", "Attachment", "Message", "clean", "decoded", "identify", "normalize", "parse", "sanitize"]

MAX_SUBJECT_CHARACTERS = 2**20
MAX_CONVERTED_ADDRESSES = 5000  # not in ASCII, of all fields of a kind; each takes 50 µs, and further ones are left out

# Who wrote what a group or a form has sent in its own name: what its server says before what the writer may say.
# The first two are those of Google's groups, the third Mailman's.
BEHIND = ("X-Original-From", "X-Original-Sender", "X-MailFrom", "Reply-To")
MAX_BEHIND_OF_A_FIELD = 100  # fields of a name, and addresses of a field

_OLD_LINE_END = re.compile(rb"\r(?!\n)")
_MESSAGE_ID = re.compile(r"<[^<>]+>")


class Message(NamedTuple):
    """A message as the rules see it. Addresses are bare and in lower case; "" and () are what is missing."""

    message_id: str
    ancestors: tuple[str, ...]  # ids of what it answers, the nearest first
    answers_our_notice: bool
    sender: str  # as it is shown: "Name" <address>
    sender_address: str
    behind: tuple[tuple[str, str], ...]  # who may stand behind the sender, as they are shown, and their addresses
    return_path: str | None  # "" is the null sender, None: no such field
    to: tuple[str, ...]  # To and Delivered-To
    recipients: tuple[str, ...]  # these, Cc, Resent-To and Resent-Cc
    subject: str | None
    body: str  # sanitised HTML
    attachments: tuple[Attachment, ...]
    is_report: bool  # multipart/report: a bounce, a read receipt
    is_automatic: bool
    raw: bytes


def identify(raw: bytes) -> str:
    """Return the Message-ID as it was written, "" where there is none. Only the header is read."""
    return _message_id(_opened(raw)[1].header)


def parse(raw: bytes) -> Message:
    """Return the message that the bytes are."""
    readable, message = _opened(raw)
    parsed = message.header
    content = read_content(readable, message)
    named = " ".join(_values(parsed, "In-Reply-To")), " ".join(_values(parsed, "References"))
    sender, sender_address, is_guess = _sender(parsed)
    subject = next((value for value in values(parsed, "Subject") if value.text), Value("", False))
    is_lost = content.lost or is_guess or subject.lost or len(subject.text) > MAX_SUBJECT_CHARACTERS
    original = [Attachment(ORIGINAL, MESSAGE, raw)] if is_lost else []
    to = _addresses(parsed, "To", "Delivered-To")
    return Message(
        message_id=_message_id(parsed),
        ancestors=ancestors(*named),
        answers_our_notice=answers_our_notice(*named),
        sender=sender,
        sender_address=sender_address,
        behind=tuple(
            found
            for name in BEHIND
            for value in raw_values(parsed, name)[:MAX_BEHIND_OF_A_FIELD]
            for found in islice(_mailboxes(value), MAX_BEHIND_OF_A_FIELD)
        ),
        return_path=normalize(_first(parsed, "Return-Path")) if _values(parsed, "Return-Path") else None,
        to=to,
        recipients=tuple(dict.fromkeys(to + _addresses(parsed, "Cc", "Resent-To", "Resent-Cc"))),
        subject=subject.text[:MAX_SUBJECT_CHARACTERS] or None,
        body=content.body,
        attachments=(*content.attachments, *original),
        is_report=content.is_report,
        is_automatic=is_automatic(fields(parsed)),
        raw=raw,
    )


# --- header fields --------------------------------------------------------------------------------------------


def _opened(raw: bytes) -> tuple[bytes, Part]:
    """Return the bytes with line ends that can be read, and the header."""
    # a Macintosh's line ends of old, behind the fields that hosts put in front with their own
    old = _OLD_LINE_END.search(raw)
    is_old = old and b"\n" not in raw[old.start() :].rstrip()
    readable = raw[: old.start()] + raw[old.start() :].replace(b"\r", b"\n") if old and is_old else raw
    return readable, first_header(readable)


def _values(parsed: bytes, name: str) -> list[str]:
    """Return the texts of all fields of a name, decoded, each on one line."""
    return [value.text for value in values(parsed, name)]


def _first(parsed: bytes, name: str) -> str:
    return next(iter(_values(parsed, name)), "")


def _message_id(parsed: bytes) -> str:
    """Return the first id as it was written, or "". Encoded words mean nothing in it, and all of it counts."""
    value = next(iter(raw_values(parsed, "Message-ID")), b"").decode("utf-8", "surrogateescape")
    value = clean(" ".join(value.split()))
    bracketed = _MESSAGE_ID.match(value)
    message_id = "".join(bracketed[0].split()) if bracketed else value
    return message_id if message_id.strip("<>@ ") else ""


def _addresses(parsed: bytes, *names: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    converted = 0
    for name in names:
        for value in raw_values(parsed, name):
            text = _raw_text(value)
            if name == "Delivered-To":  # it holds nothing but addresses, which may stand without commas between them
                text = ",".join(re.split(r"[\s|;]+", text))
            addresses = list(split(text))
            if not addresses and "=?" in text:  # all of it is an encoded word, which it must not be
                addresses = list(split(text_of(value).text))
            for entry in addresses:
                converted += not entry.address.isascii()
                if entry.address.isascii() or converted <= MAX_CONVERTED_ADDRESSES:
                    found[normalize(entry.address)] = None
    return tuple(filter(None, found))


def _raw_text(value: bytes) -> str:
    """Return a value in which encoded words may still hide commas and brackets: names are decoded later."""
    return decoded(unfolded(value), "utf-8")[0]


def _mailboxes(value: bytes) -> Iterator[tuple[str, str]]:
    """Yield who is named, each as he is shown, and his address."""
    for entry in list(split(_raw_text(value))) or split(text_of(value).text):
        name = text_of(entry.name.encode()).text
        quoted = name.replace("\\", "\\\\").replace('"', '\\"')
        yield (f'"{quoted}" <{entry.address}>' if name else entry.address), normalize(entry.address)


def _sender(parsed: bytes) -> tuple[str, str, bool]:
    """Return the sender as he is shown, his address, and whether something of it was guessed.

    Where From is missing, he is who stands in Sender, else the envelope's sender. A value without an address is shown
    as it is.
    """
    for field in ("From", "Sender", "Return-Path"):
        value = next((found for found in raw_values(parsed, field) if found.strip()), b"")
        whole = text_of(value)
        for sender, address in _mailboxes(value):
            return sender, address, whole.lost
        if whole.text and field == "From":
            is_plain = re.fullmatch(r"[^\s()<>\[\]:;@\\,]+|\".*\"|<>", whole.text)
            return whole.text if is_plain else f'"{whole.text}"', "", whole.lost
    return "", "", False
