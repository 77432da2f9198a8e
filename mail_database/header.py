"""Header fields, from bytes: where a header ends, the values of a field, encoded words, and parameters.

Everything takes linear time, and no field takes memory before it is asked for. A value is text on one line; beside it
stands whether its charset was guessed, or something of it could not be decoded.
"""

import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from mail_database.charset import clean, decoded
from mail_database.transfer_encoding import from_base64

MAX_FIELDS_OF_A_NAME = 1000
MAX_FIELDS = 10_000
MAX_PARAMETERS = 1000
MAX_SECTIONS = 1000  # of one parameter (RFC 2231, 3)

# A line that is neither a field nor goes on with one ends the header; so does a boundary. A mailbox file's first line
# does not (">From ann@b.test Tue Nov 24 ..."), nor does a byte order mark.
_END = re.compile(rb"(?m)^(?!(?:\xef\xbb\xbf)?(?!--)[!-9;-~]*[ \t]*:|[ \t]|>?From (?![ \t]*:))")
_BLANK = re.compile(rb"[ \t]*(?:\r?\n|\Z)")
_BLANKS = re.compile(rb"(?:\xef\xbb\xbf)?(?:[ \t]*\r?\n)*")
# What a message's own header has, and what hosts put in front of it has not.
_ITS_OWN = re.compile(rb"(?im)^(?:\xef\xbb\xbf)?(?:From|To|Cc|Subject|Date|MIME-Version|Content-Type)[ \t]*:")

# Until From has come, a line that is no field is a defect in the header; later the text begins there, as with Odoo.
_FROM = re.compile(rb"(?im)^From[ \t]*:")
MAX_DEFECT_LINES = 3

_FIELD = re.compile(rb"(?m)^([!-9;-~]+)[ \t]*:(.*(?:\n[ \t].*)*)")
_ENCODED_WORD = re.compile(rb"=\?([^?\s]{1,60})\?([bqBQ])\?((?:(?!\?=|=\?(?!=))[^\0])*)\?=", re.DOTALL)
_LEFT_OVER = re.compile(r"=\?[^?\s]{1,60}\?[^?\s]\?")
_OCTET = re.compile(rb"=([0-9A-Fa-f]{2})")
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")
_PARAMETER = re.compile(rb'(?:\A|[;\s])([^\s=;"]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^;]*))', re.DOTALL)


class Part(NamedTuple):
    """A header, and where the body begins behind it."""

    header: bytes
    body: int


class Value(NamedTuple):
    """A field's text, and whether something of it was guessed or lost."""

    text: str
    lost: bool


def first_header(raw: bytes) -> Part:
    """Return the header of a message. What hosts put in front of it may be apart from it by an empty line."""
    start, end, body = 0, 0, _behind(raw, 0)
    for _ in range(3):
        blanks = _BLANKS.match(raw, end)
        begin = blanks.end() if blanks else end
        found = _end(raw, begin)
        if found == begin or (end and not _ITS_OWN.search(raw, begin, found)):
            break
        start, end, body = start if end else begin, found, _behind(raw, found)
        if _ITS_OWN.search(raw, start, end):
            break
    for _ in range(MAX_DEFECT_LINES):
        line = raw.find(b"\n", end) + 1
        if body > end or not line:
            break
        found = _end(raw, line)
        if _FROM.search(raw, start, end) or not _FROM.search(raw, line, found):
            break
        end, body = found, _behind(raw, found)
    return Part(_lines(raw[start:end]), body)


def header_at(raw: bytes, start: int) -> Part:
    """Return the header that begins at an offset."""
    end = _end(raw, start)
    return Part(_lines(raw[start:end]), _behind(raw, end))


def _end(raw: bytes, start: int) -> int:
    found = _END.search(raw, start)
    return found.start() if found else len(raw)


def _behind(raw: bytes, end: int) -> int:
    blank = _BLANK.match(raw, end)
    return blank.end() if blank else end


def _lines(header: bytes) -> bytes:
    """Return a header with plain line ends, without what stands in it of a mailbox file, or of a text file."""
    header = header.replace(b"\r\n", b"\n")
    return re.sub(rb"(?m)^(?:\xef\xbb\xbf|>?From (?![ \t]*:).*\n?)|^(?:[ \t]*\n)+", b"", header)


def fields(header: bytes) -> Iterator[tuple[str, str]]:
    """Yield the name of each field, and its value as it was written."""
    for field in islice(_FIELD.finditer(header), MAX_FIELDS):
        yield field[1].decode("ascii"), decoded(field[2], "utf-8")[0]


def raw_values(header: bytes, name: str) -> list[bytes]:
    """Return the values of a field as they were written, folded."""
    found = re.finditer(rb"(?im)^%b[ \t]*:(.*(?:\n[ \t].*)*)" % re.escape(name.encode()), header)
    return [value[1] for value in islice(found, MAX_FIELDS_OF_A_NAME)]


def values(header: bytes, name: str) -> list[Value]:
    """Return the values of a field, decoded."""
    return [text_of(value) for value in raw_values(header, name)]


def unfolded(value: bytes) -> bytes:
    """Return a value on one line, without blanks around it."""
    return value.replace(b"\n", b"").replace(b"\r", b"").strip()


def text_of(value: bytes) -> Value:
    """Return a value with its encoded words decoded (RFC 2047), wherever they stand; those of one charset as one."""
    value = unfolded(value)
    pieces: list[str] = []
    lost, end = False, 0
    charset, joined = b"", b""  # of the encoded words that stand together

    def add(content: bytes, label: bytes) -> None:
        nonlocal lost
        text, guessed = decoded(content, label.decode("ascii", "replace"))
        pieces.append(text)
        lost = lost or guessed

    for word in _ENCODED_WORD.finditer(value):
        between = value[end : word.start()]
        content, broken = _word(word[2], word[3])
        lost = lost or broken
        label = word[1].partition(b"*")[0].lower()  # RFC 2231 (5) lets a language follow
        if joined and between.strip() == b"" and label == charset:
            joined += content
        else:
            if joined:
                add(joined, charset)
            if between and not (end and between.strip() == b""):
                add(between, b"utf-8")
            charset, joined = label, content
        end = word.end()
    if joined:
        add(joined, charset)
    if value[end:]:
        add(value[end:], b"utf-8")
    text = clean("".join("".join(pieces).splitlines()).strip())
    return Value(text, lost or bool(_LEFT_OVER.search(text)))


def _word(encoding: bytes, content: bytes) -> tuple[bytes, bool]:
    if encoding in b"bB":
        content = content.translate(None, b" \t").rstrip(b"=")  # the padding is wrong more often than the letters
        return from_base64(content + b"=" * (-len(content) % 4))
    octets = _OCTET.sub(lambda found: bytes.fromhex(found[1].decode()), content.replace(b"_", b" "))
    return octets, bool(re.search(rb"=(?![0-9A-Fa-f]{2})", content))


class Parameters(NamedTuple):
    """A value such as ``text/plain; charset=utf-8``: what it begins with, in lower case, and its parameters."""

    value: str
    parameters: dict[str, str]
    lost: bool


def parameters(header: bytes, name: str) -> Parameters:
    """Return the first value of a field with its parameters: quoted, continued, encoded (RFC 2231) or encoded words."""
    value = unfolded(next(iter(raw_values(header, name)), b""))
    first = re.match(rb"[^;\s(]*", value)
    sections: dict[str, dict[int, tuple[bytes, bool]]] = {}
    for found in islice(_PARAMETER.finditer(value), MAX_PARAMETERS):
        label, *numbers = found[1].lower().decode("ascii", "replace").split("*")
        quoted, bare = found[2], found[3]
        text = bare.strip(b' \t"') if quoted is None else re.sub(rb'\\(["\\])', rb"\1", quoted)
        is_encoded = bool(numbers) and numbers[-1] == ""
        number = int(numbers[0]) if numbers and re.fullmatch(r"\d{1,4}", numbers[0], re.ASCII) else -1 - is_encoded
        if number < MAX_SECTIONS:
            sections.setdefault(label, {}).setdefault(number, (text, is_encoded))
    read = {label: _parameter(found) for label, found in sections.items()}
    lost = any(value.lost for value in read.values())
    return Parameters(
        clean(first[0].decode("ascii", "replace")).lower() if first else "",
        {label: value.text for label, value in read.items()},
        lost,
    )


def _parameter(sections: dict[int, tuple[bytes, bool]]) -> Value:
    """Return a parameter from its sections: -2 is its encoded form, -1 the plain one."""
    if -2 in sections or (-1 in sections and 0 not in sections):
        pieces = [sections[min(sections)]]
    else:
        pieces = [sections[number] for number in sorted(sections) if number >= 0 or 0 not in sections]
    if not any(is_encoded for _, is_encoded in pieces):
        return text_of(b"".join(text for text, _ in pieces))
    charset = b"utf-8"
    octets = []
    for place, (text, is_encoded) in enumerate(pieces):
        if is_encoded:
            if place == 0 and text.count(b"'") >= 2:
                charset, _, text = text.split(b"'", 2)
            text = _PERCENT.sub(lambda found: bytes.fromhex(found[1].decode()), text)
        octets.append(text)
    value, lost = decoded(b"".join(octets), (charset or b"utf-8").decode("ascii", "replace"))
    return Value(value, lost)
