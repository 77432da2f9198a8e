"""bytes -> Message: ids, references, addresses, the kind of mail, and what a person would read.

Nothing here raises for any bytes. What can't be read as its sender meant it is read as well as it can be, and the
message then carries its original as an attachment.
"""

import codecs
import email
import email.policy
import html
import re
from collections.abc import Iterator
from email.message import Message as Parsed
from email.parser import BytesHeaderParser
from email.utils import getaddresses
from typing import NamedTuple

import nh3

from mail_database.automatic import is_automatic
from mail_database.references import ancestors, answers_our_notice

ADDRESS_LIMIT = 320  # characters: RFC 5321 (4.5.3.1) allows 64 before the @ and 255 behind it
SUBJECT_LIMIT = 2**20  # characters

# Who wrote what a group or a form has sent in its own name; the second and third are those of Google's groups.
BEHIND = ("Reply-To", "X-Original-From", "X-Original-Sender")

# Codecs that Python has and mail has not; the first two take quadratic time.
NO_CHARSETS = {"idna", "punycode", "raw-unicode-escape", "unicode-escape"}

HTML_SCHEMES = {"http", "https", "mailto", "tel", "cid"}
ORIGINAL = "original.eml"

_MESSAGE_ID = re.compile(r"<[^<>]+>")
_HEADER_END = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")  # as the parser has them, which takes any line end


class Attachment(NamedTuple):
    """A file that came with the message."""

    name: str
    mimetype: str
    content: bytes


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
    return _message_id(_header(raw))


def parse(raw: bytes) -> Message:
    """Return the message that the bytes are."""
    parsed = _header(raw)
    body, attachments, is_report = _read(raw)
    named = " ".join(_values(parsed, "In-Reply-To")), " ".join(_values(parsed, "References"))
    sender, sender_address = _sender(_first(parsed, "From"))
    return_path = next(iter(_split(_first(parsed, "Return-Path"))), ("", ""))[1]
    to = _addresses(parsed, "To", "Delivered-To")
    return Message(
        message_id=_message_id(parsed),
        ancestors=ancestors(*named),
        answers_our_notice=answers_our_notice(*named),
        sender=sender,
        sender_address=sender_address,
        behind=tuple(found for name in BEHIND for value in _values(parsed, name) for found in _mailboxes(value)),
        return_path=normalize(return_path) if _values(parsed, "Return-Path") else None,
        to=to,
        recipients=tuple(dict.fromkeys(to + _addresses(parsed, "Cc", "Resent-To", "Resent-Cc"))),
        subject=_first(parsed, "Subject")[:SUBJECT_LIMIT] or None,
        body=body,
        attachments=tuple(attachments),
        is_report=is_report,
        is_automatic=is_automatic(parsed.raw_items()),
        raw=raw,
    )


# --- header fields --------------------------------------------------------------------------------------------


def _header(raw: bytes) -> Parsed:
    """Return the header, parsed; what is behind it is not looked at."""
    end = _HEADER_END.search(raw)
    return BytesHeaderParser(policy=email.policy.compat32).parsebytes(raw[: end.end()] if end else raw)


def _values(parsed: Parsed, name: str) -> list[str]:
    """Return the texts of all fields of a name, decoded, each on one line."""
    values = []
    for found, raw in parsed.raw_items():
        if found.lower() == name.lower():
            try:
                value = str(email.policy.SMTP.header_fetch_parse(found, raw))
            except Exception:  # what its parsers don't expect (<@b>, NUL, encoded CR) differs from Python to Python
                value = raw
            values.append(clean("".join(value.splitlines()).strip()))
    return values


def _first(parsed: Parsed, name: str) -> str:
    return next(iter(_values(parsed, name)), "")


def clean(text: str) -> str:
    """Return the text as any database can store it: U+FFFD for NUL and for bytes that were no characters."""
    escaped = re.sub("[\0\ud800-\udc7f\udd00-\udfff]", "\ufffd", text)  # the others stand for bytes
    return escaped.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _message_id(parsed: Parsed) -> str:
    """Return the first id as it was written, or "". Python's header parser would make one of <a,b@c> and <a:b@c>."""
    value = next((value for name, value in parsed.raw_items() if name.lower() == "message-id"), "")
    value = clean(" ".join(value.split()))
    bracketed = _MESSAGE_ID.match(value)
    message_id = "".join(bracketed[0].split()) if bracketed else value
    return message_id if message_id.strip("<>@ ") else ""


def _split(text: str) -> list[tuple[str, str]]:
    """Return (name, address) pairs; the lenient reading, for a list may have no commas."""
    try:
        return getaddresses([text], strict=False)
    except TypeError:  # a Python from before that option
        return getaddresses([text])


def _addresses(parsed: Parsed, *names: str) -> tuple[str, ...]:
    values = [value for name in names if name != "Delivered-To" for value in _values(parsed, name)]
    # Delivered-To holds nothing but addresses, which may stand without commas between them
    bare = (
        [",".join(re.split(r"[\s|;]+", value)) for value in _values(parsed, "Delivered-To")]
        if "Delivered-To" in names
        else []
    )
    pairs = _split(",".join(filter(None, values + bare)))
    return tuple(filter(None, dict.fromkeys(normalize(address) for _, address in pairs)))


def normalize(address: str) -> str:
    """Return an address by which it is known again: bare, in lower case; "" when it is none."""
    found = [bare for _, bare in _split(address) if "@" in bare]
    return found[0].strip().lower() if found and len(found[0]) <= ADDRESS_LIMIT else ""


def _mailboxes(value: str) -> list[tuple[str, str]]:
    """Return who is named, each as he is shown, and his address."""
    found = []
    for name, address in _split(value):
        if "@" in address:
            quoted = name.replace("\\", "\\\\").replace('"', '\\"')
            found.append((f'"{quoted}" <{address}>' if name else address, normalize(address)))
    return found


def _sender(value: str) -> tuple[str, str]:
    """Return the sender as he is shown, and his address. A value without an address is shown as it is."""
    return next(iter(_mailboxes(value)), (value, ""))


# --- content --------------------------------------------------------------------------------------------------


def _read(raw: bytes) -> tuple[str, list[Attachment], bool]:
    """Return the body as HTML, the attachments, and whether it is a report."""
    for policy in (email.policy.SMTP, email.policy.compat32):
        try:
            parsed = email.message_from_bytes(raw, policy=policy)
            body, attachments, lost = _content(parsed)
            is_report = parsed.get_content_type() == "multipart/report"
        except Exception:  # each policy fails on headers of its own, and both on a thousand parts within each other
            continue
        return body, [*attachments, *([Attachment(ORIGINAL, "message/rfc822", raw)] if lost else [])], is_report
    return "", [Attachment(ORIGINAL, "message/rfc822", raw)], False


def _content(parsed: Parsed) -> tuple[str, list[Attachment], bool]:
    """Return the body as HTML, the attachments, and whether something of the message is in neither."""
    pieces: list[tuple[Branch | None, str, str]] = []
    attachments, lost = [], False
    for part, branch in _leaves(parsed):
        kind = clean(part.get_content_type())
        name = clean(part.get_filename() or "")
        if part.get_content_maintype() == "message":
            attachments.append(Attachment(name or "attachment", kind, _inner(part)))
            continue
        payload = part.get_payload(decode=True)
        content = payload if isinstance(payload, bytes) else b""
        is_text = kind in ("text/plain", "text/html") and not name and part.get_content_disposition() != "attachment"
        if part.is_multipart() or part.get_content_maintype() == "multipart":  # its boundary never came
            lost, text, kind = True, decoded(content, "utf-8")[0], "text/plain"
        elif is_text:
            text, guessed = decoded(content, part.get_content_charset("utf-8"))
            lost = lost or guessed
        else:
            attachments.append(Attachment(name or "attachment", kind, content))
            continue
        pieces.append((branch, kind, sanitize(text) if kind == "text/html" else f"<pre>{html.escape(text)}</pre>\n"))

    # of the forms of one text, HTML is shown, and plain text only where there is none
    shown = {branch.of: branch.number for branch, kind, _ in pieces if branch and kind == "text/html"}
    kept = (text for branch, kind, text in pieces if not branch or shown.get(branch.of, branch.number) == branch.number)
    return "".join(kept), attachments, lost


class Branch(NamedTuple):
    """One of the forms of a multipart/alternative: which alternative, and the form's place in it."""

    of: int
    number: int


def _leaves(part: Parsed, branch: Branch | None = None) -> Iterator[tuple[Parsed, Branch | None]]:
    """Yield the parts that hold something, in order, each with the form of a text that it belongs to.

    A message within the message is yielded itself, then what it holds.
    """
    children = part.get_payload() if part.is_multipart() else None
    if not isinstance(children, list) or not children:
        yield part, branch
        return
    if part.get_content_maintype() == "message":
        yield part, None
        if part.get_content_type() != "message/rfc822":
            return
    is_alternative = part.get_content_type() == "multipart/alternative"
    for number, child in enumerate(children):
        if isinstance(child, Parsed):
            yield from _leaves(child, Branch(id(part), number) if is_alternative else branch)


def _inner(part: Parsed) -> bytes:
    """Return the message within the message, or the blocks of a report."""
    payload = part.get_payload()
    blocks = [block for block in payload if isinstance(block, Parsed)] if isinstance(payload, list) else []
    try:
        return b"\n".join(block.as_bytes() for block in blocks) or str(payload).encode()
    except Exception:  # the generator fails on what the parser let pass; the text is better than nothing
        return b"\n".join(str(block.get_payload()).encode("utf-8", "replace") for block in blocks)


def decoded(content: bytes, charset: str) -> tuple[str, bool]:
    """Return text, and whether its charset had to be guessed."""
    try:
        if codecs.lookup(charset).name not in NO_CHARSETS:
            return clean(content.decode(charset, "replace")), False
    except (LookupError, ValueError):  # no such charset, or none for text
        pass
    return clean(content.decode("utf-8", "replace")), True


def sanitize(text: str) -> str:
    """Return HTML without what could act: scripts, handlers, frames, forms."""
    return nh3.clean(text, url_schemes=HTML_SCHEMES, clean_content_tags={"script", "style", "title"})
