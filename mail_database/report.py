"""bytes -> Opened: the header, texts, delivery statuses and returned messages of a report, as text.

Reading takes linear time and memory in proportion, whatever the bytes, and nothing here raises:

- the email package splits a message into its parts, and no more: attached messages and delivery statuses stay text,
  so that no tree of objects is built of them, and fields are read by expressions that take linear time;
- what is beyond the limits below is not read.
"""

import base64
import binascii
import email
import html
import quopri
import re
from collections.abc import Iterable, Iterator
from email.message import Message
from email.parser import BytesHeaderParser
from email.policy import compat32
from typing import NamedTuple

from mail_database.message import decoded

# What the types of a report's parts begin with.
STATUS_TYPES = ("message/delivery-status", "message/global-delivery-status")
RETURNED_TYPES = ("message/", "text/rfc822-header")  # any other message: the one that came back, or its header
MESSAGE_IDS = ("message-id", "x-microsoft-original-message-id", "x-original-message-id", "original-message-id")

MAX_REPORT_BYTES = 2**22  # what is read of a report
MAX_REPORT_TEXT_CHARACTERS = 2**20  # what is read of its text, and of each status
MAX_HEADER_CHARACTERS = 2**16
MAX_REPORT_PARTS = 1000
MAX_NESTED_REPORTS = 8  # reports within each other
# The parser compares each line with all boundaries that are open; a report has three, and a page.
MAX_BOUNDARY_COMPARISONS = 4_000_000  # boundaries times lines

# Each of these takes linear time, whatever the text.
_BOUNDARY = re.compile(r'\bboundary(?:\*0?)?\*?[ \t]*=[ \t\r\n]*(?:"([^"]+)"|([^\s;"]+))', re.IGNORECASE)
_FIELD = re.compile(r"^([!-9;-~]+)[ \t]*:(.*(?:\n[ \t]+.*)*)", re.MULTILINE)
_CHARSET = re.compile(r"charset\*?\s*=\s*[\"']?([\w.:-]+)")
_HIDDEN = re.compile(r"<!--.*?(?:-->|\Z)|<(style|script|title)\b.*?(?=</\1|\Z)", re.DOTALL | re.IGNORECASE)
_LINE_END = re.compile(r"<(?:br|/p|/div|/tr|/table|/li|/h\d)\b[^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"<[/!?]?[a-z][\w:-]*(?:[\s/][^<>]*)?>", re.IGNORECASE)  # not <ann@b.test>
_NUMBER = re.compile(r"&#\w{9,};?")  # a character reference that html.unescape would take long for, and raise

Fields = dict[str, list[str]]  # names are in lower case


class Opened(NamedTuple):
    """A report's header, the types of it and its parts, the texts that people read, the statuses, what came back."""

    header: Fields
    types: list[str]
    texts: list[str]
    statuses: list[str]
    returned: list[Fields]


def open_reports(raw: bytes) -> list[Opened]:
    """Return the report that the bytes are, and behind it the reports that it returns or forwards."""
    reports: list[Opened] = []
    waiting = [raw[:MAX_REPORT_BYTES]]
    for source in waiting:  # which grows
        opened, children = _open(source)
        reports.append(opened)
        waiting += children[: MAX_NESTED_REPORTS - len(waiting)]
    return reports


def _open(raw: bytes) -> tuple[Opened, list[bytes]]:
    """Return one report, and the bytes of the reports within it."""
    message = _parsed(raw)
    header = fields_of(_head(message))
    opened = Opened(header, [content_type(header)], [], [], [])
    within: list[bytes] = []
    room = MAX_REPORT_TEXT_CHARACTERS
    for part, fields, kind in _parts(message):
        opened.types.append(kind)
        if not kind.startswith(("text/", "message/", "multipart/")):
            continue
        content = _content(part, fields)
        text = _text(content[: 2 * MAX_REPORT_TEXT_CHARACTERS], kind)[:MAX_REPORT_TEXT_CHARACTERS]
        if kind.startswith(STATUS_TYPES):
            opened.statuses.append(text)
        elif kind.startswith(RETURNED_TYPES):
            returned = fields_of(text.lstrip("\n").partition("\n\n")[0][:MAX_HEADER_CHARACTERS])
            opened.returned.append(returned)
            if "multipart/report" in content_type(returned):
                within.append(content)
        else:  # text, or a multipart so broken that it has no parts
            opened.texts.append((plain(text) if "html" in kind else text)[:room])
            room -= len(opened.texts[-1])
            if part is not message and fields.keys() & set(MESSAGE_IDS):  # the message came back without a wrapper
                opened.returned.append(fields)
    return opened, within


class _Part(Message):
    """A part as the parser meets it: it enters multiparts, and takes everything else for text."""

    def get_content_type(self) -> str:
        kind = str(self.get("content-type", "")).partition(";")[0].strip().lower()
        return kind if kind.startswith("multipart/") else "text/plain"

    def get_param(self, *_: object, **__: object) -> str:
        """Return the only parameter that get_payload asks for: the charset that gives each byte as a character."""
        return "latin-1"

    def get_boundary(self, failobj: object = None) -> object:  # type: ignore[override]  # the stubs overload it
        """Return the boundary; the package's own reading of parameters takes quadratic time."""
        found = _BOUNDARY.search(str(self.get("content-type", ""))[:MAX_HEADER_CHARACTERS])
        return (found[1] or found[2]).rstrip() if found else failobj


def _parsed(raw: bytes) -> Message:
    policy = compat32.clone(message_factory=_Part)
    if len(_BOUNDARY.findall(raw.decode("latin-1"))) * raw.count(b"\n") > MAX_BOUNDARY_COMPARISONS:
        return BytesHeaderParser(policy=policy).parsebytes(raw)
    try:
        return email.message_from_bytes(raw, policy=policy)
    except RecursionError:  # hundreds of parts within each other
        return BytesHeaderParser(policy=policy).parsebytes(raw)


def _parts(message: Message) -> Iterator[tuple[Message, Fields, str]]:
    """Yield the parts that aren't made of parts, their fields and types; attached messages are not entered."""
    waiting = [message]
    for _ in range(MAX_REPORT_PARTS):  # Message.walk() fails for deeply nested parts
        if not waiting:
            return
        part = waiting.pop()
        payload = part.get_payload()
        if isinstance(payload, list) and payload:
            waiting += [child for child in payload[:-MAX_REPORT_PARTS:-1] if isinstance(child, Message)]
        else:
            fields = fields_of(_head(part))
            yield part, fields, content_type(fields)


def _content(part: Message, fields: Fields) -> bytes:
    """Return the bytes of a part, its transfer encoding undone as far as it goes."""
    payload = part.get_payload()
    content = payload.encode("latin-1", "replace") if isinstance(payload, str) else b""
    encoding = first(fields, "content-transfer-encoding").lower()
    try:
        if encoding.startswith("base64") and not re.match(rb"\s*[\w-]+:\s", content):  # or its fields can be read
            return base64.b64decode(content + b"==")
        if encoding.startswith("quoted-printable"):
            return quopri.decodestring(content)
    except (binascii.Error, ValueError):
        pass
    return content


def _text(content: bytes, kind: str) -> str:
    charset = _CHARSET.search(kind)
    return _decoded(content, charset[1] if charset else "utf-8")


def _head(part: Message) -> str:
    head, room = [], MAX_HEADER_CHARACTERS
    for name, value in part.raw_items():
        head.append(f"{name}: {value}\n"[:room])
        room -= len(head[-1])
        if room <= 0:
            break
    return _decoded("".join(head).encode("utf-8", "surrogateescape"), "utf-8")


def _decoded(data: bytes, charset: str) -> str:
    return decoded(data, charset)[0].replace("\r\n", "\n").replace("\r", "\n")


def fields_of(head: str) -> Fields:
    """Return the fields of a header, or of a block of a status."""
    fields: Fields = {}
    for name, value in _FIELD.findall(head):
        fields.setdefault(name.lower(), []).append(value.strip())
    return fields


def values(fields: Fields, *names: str) -> list[str]:
    """Return the values of the fields with one of these names, in the order of the names."""
    return [value for name in names for value in fields.get(name, [])]


def first(fields: Fields, name: str) -> str:
    """Return the first value of a field, "" where there is none."""
    return fields.get(name, [""])[0]


def content_type(fields: Fields) -> str:
    """Return type and parameters in lower case; the email package's own reading of them raises for some."""
    return first(fields, "content-type").lower() or "text/plain"


def plain(source: str) -> str:
    """Return what HTML shows, without any claim to beauty."""
    text = html.unescape(_NUMBER.sub("\ufffd", _TAG.sub("", _LINE_END.sub("\n", _HIDDEN.sub("", source)))))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.strip() for line in text.split("\n")))


def unquoted(texts: Iterable[str]) -> list[str]:
    """Return texts without the marks of a quotation."""
    return [re.sub(r"^>+ ?", "", text, flags=re.MULTILINE) for text in texts]
