"""bytes -> Message: ids, references, addresses, the kind of mail, and what a person would read.

Nothing here raises for any bytes, and all of it takes linear time. What can't be read as its sender meant it is read
as well as it can be, and the message then carries its original as an attachment. The rooms behind this page: header.py
(fields), addresses.py, charset.py, transfer.py and parts.py (MIME), markup.py (HTML), content.py (text and files).
"""

import re
from typing import NamedTuple

from mail_database.addresses import normalize, split
from mail_database.charset import clean, decoded
from mail_database.content import MESSAGE, ORIGINAL, Attachment, read_content
from mail_database.header import Value, first_header, raw_values, text_of, unfolded, values
from mail_database.markup import sanitize

__all__ = ["ORIGINAL", "Attachment", "Message", "clean", "decoded", "normalize", "parse", "sanitize"]

REFERENCES_LIMIT = 32  # Odoo takes the last ones, the nearest ancestors
SUBJECT_LIMIT = 2**20  # characters
CONVERTED_LIMIT = 5000  # recipients of a field that are not in ASCII; each takes 50 µs, and further ones are nobody's
SEPARATE_ANCESTOR = "reply_to"  # ids with this in them are left out by Odoo: its own reply addresses of old
OUR_NOTICE = "-loop-detection-bounce-email@"  # in the ids of what we tell a sender; an answer to it is no mail for us

# Mail that a machine made is never answered: RFC 3834 (2), and what was in use before it.
AUTOMATIC_PRECEDENCE = ("bulk", "junk", "list")

_MESSAGE_ID = re.compile(r"<[^<>]+>")


class Message(NamedTuple):
    """A message as the rules see it. Addresses are bare and in lower case; "" and () are what is missing."""

    message_id: str
    in_reply_to: str
    references: tuple[str, ...]  # of References, else of In-Reply-To
    names_ancestors: bool  # there is a References field
    answers_our_notice: bool
    sender: str  # as it is shown: "Name" <address>
    sender_address: str
    return_path: str | None  # "" is the null sender, None: no such field
    to: tuple[str, ...]  # To and Delivered-To
    recipients: tuple[str, ...]  # these, Cc, Resent-To and Resent-Cc
    subject: str | None
    body: str  # sanitised HTML
    attachments: tuple[Attachment, ...]
    is_report: bool  # multipart/report: a bounce, a read receipt
    is_automatic: bool
    raw: bytes


def parse(raw: bytes) -> Message:
    """Return the message that the bytes are."""
    readable = raw if b"\n" in raw else raw.replace(b"\r", b"\n")  # a Macintosh's line ends of old
    message = first_header(readable)
    parsed = message.header
    content = read_content(readable, message)
    references = " ".join(_values(parsed, "References"))
    in_reply_to = " ".join(_values(parsed, "In-Reply-To"))
    ids = ["".join(found.split()) for found in _MESSAGE_ID.findall(references or in_reply_to)]
    sender, sender_address, is_guess = _sender(parsed)
    subject = next(iter(values(parsed, "Subject")), Value("", False))
    is_lost = content.lost or is_guess or subject.lost or len(subject.text) > SUBJECT_LIMIT
    original = [Attachment(ORIGINAL, MESSAGE, raw)] if is_lost else []
    to = _addresses(parsed, "To", "Delivered-To")
    return Message(
        message_id=_message_id(parsed),
        in_reply_to=in_reply_to.strip(),
        references=tuple(found for found in ids if SEPARATE_ANCESTOR not in found)[-REFERENCES_LIMIT:],
        names_ancestors=bool(references),
        answers_our_notice=OUR_NOTICE in references + in_reply_to,
        sender=sender,
        sender_address=sender_address,
        return_path=normalize(_first(parsed, "Return-Path")) if _values(parsed, "Return-Path") else None,
        to=to,
        recipients=tuple(dict.fromkeys(to + _addresses(parsed, "Cc", "Resent-To", "Resent-Cc"))),
        subject=subject.text[:SUBJECT_LIMIT] or None,
        body=content.body,
        attachments=(*content.attachments, *original),
        is_report=content.is_report,
        is_automatic=_is_automatic(parsed),
        raw=raw,
    )


# --- header fields --------------------------------------------------------------------------------------------


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
                if entry.address.isascii() or converted <= CONVERTED_LIMIT:
                    found[normalize(entry.address)] = None
    return tuple(filter(None, found))


def _raw_text(value: bytes) -> str:
    """Return a value in which encoded words may still hide commas and brackets: names are decoded later."""
    return decoded(unfolded(value), "utf-8")[0]


def _sender(parsed: bytes) -> tuple[str, str, bool]:
    """Return the sender as he is shown, his address, and whether something of it was guessed.

    Where From is missing, he is who stands in Sender, else the envelope's sender. A value without an address is shown
    as it is.
    """
    for field in ("From", "Sender", "Return-Path"):
        value = next(iter(raw_values(parsed, field)), b"")
        whole = text_of(value)
        encoded = [(entry.name, entry.address, value) for entry in split(_raw_text(value))]
        found = encoded or [(entry.name, entry.address, b"") for entry in split(whole.text)]
        for name, address, _ in found:
            name = text_of(name.encode()).text
            quoted = name.replace("\\", "\\\\").replace('"', '\\"')
            return (f'"{quoted}" <{address}>' if name else address), normalize(address), whole.lost
        if whole.text and field == "From":
            is_plain = re.fullmatch(r"[^\s()<>\[\]:;@\\,]+|\".*\"|<>", whole.text)
            return whole.text if is_plain else f'"{whole.text}"', "", whole.lost
    return "", "", False


def _is_automatic(parsed: bytes) -> bool:
    auto_submitted = _first(parsed, "Auto-Submitted").partition(";")[0].strip().lower()
    precedence = _first(parsed, "Precedence").lower()
    return auto_submitted not in ("", "no") or precedence in AUTOMATIC_PRECEDENCE or bool(_values(parsed, "List-Id"))
