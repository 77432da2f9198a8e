"""The parts of a message (RFC 2046), in one pass over its bytes.

A boundary line ends everything that was opened within its multipart, so a part that was never closed does no harm. A
part that is not made of parts is yielded as it came. An attached message is such a part, whatever it holds.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from mail_database.header import Parameters, Part, header_at, parameters

MAX_PARTS = 1000
MAX_PART_DEPTH = 200  # of multiparts within each other

_BOUNDARY = re.compile(rb"(?m)^--(.*)$")
_LINE_END = re.compile(rb"\r?\n\Z")


class Branch(NamedTuple):
    """One of the forms of a multipart/alternative: which alternative, and the form's place in it."""

    of: int
    number: int


class Leaf(NamedTuple):
    """A part that is not made of parts, and the form of a text that it belongs to."""

    header: bytes
    content_type: Parameters
    content: bytes
    branch: Branch | None
    is_broken: bool  # a multipart whose boundary never came


class _Open:
    """A multipart that has begun."""

    def __init__(self, part: Part, content_type: Parameters, branch: Branch | None, number: int) -> None:
        self.part, self.content_type, self.branch, self.number = part, content_type, branch, number
        self.boundary = boundary_of(content_type)
        self.children = 0

    def next_child(self) -> tuple[str, Branch | None]:
        """Return the type that the next part has if it names none, and the form of a text that it belongs to."""
        self.children += 1
        default = "message/rfc822" if self.content_type.value == "multipart/digest" else "text/plain"
        is_alternative = self.content_type.value == "multipart/alternative"
        return default, Branch(self.number, self.children) if is_alternative else self.branch


def boundary_of(content_type: Parameters) -> bytes:
    """Return the boundary as the lines between parts have it, b"" where there is none."""
    return content_type.parameters.get("boundary", "").rstrip().encode("utf-8", "replace")


def type_of(header: bytes, default: str = "text/plain") -> Parameters:
    """Return a part's content type; one that is none is text (RFC 2045, 5.2)."""
    found = parameters(header, "Content-Type")
    value = found.value if found.value.count("/") == 1 else "text/plain" if found.value else default
    return found._replace(value=value)


class _Line(NamedTuple):
    """A boundary line: where it stands, to which open multipart it belongs, and whether it is the last one there."""

    start: int
    end: int
    place: int
    is_last: bool


class _Stack:
    """The multiparts that are open, and their places in it by their boundaries."""

    def __init__(self) -> None:
        self.opened: list[_Open] = []
        self._places: dict[bytes, list[int]] = {}

    def open(self, multipart: _Open) -> None:
        """Add a multipart, within those that are open."""
        self._places.setdefault(multipart.boundary, []).append(len(self.opened))
        self.opened.append(multipart)

    def next_line(self, raw: bytes, position: int) -> _Line | None:
        """Return the next boundary line of what is open, None where the message ends before it."""
        while found := _BOUNDARY.search(raw, position):
            position = found.end()
            token = found[1].rstrip()
            is_last = not self._places.get(token)
            token = token[:-2] if is_last and token.endswith(b"--") else token
            if self._places.get(token):
                return _Line(found.start(), found.end(), self._places[token][-1], is_last)
        return None

    def close(self, line: _Line | None) -> Iterator[_Open]:
        """Close what the line ends, all where there is none, and yield those multiparts that had no parts."""
        while len(self.opened) > (line.place + (not line.is_last) if line else 0):
            ended = self.opened.pop()
            self._places[ended.boundary].pop()
            if not ended.children:
                yield ended


def leaves(raw: bytes, message: Part) -> Iterator[Leaf | None]:
    """Yield the parts that hold something, in order, and None where the rest is beyond the limits, or in no part."""
    stack = _Stack()
    behind = -1  # where the text behind a multipart begins, which belongs to no part
    count = 0
    begun: Part | None = message
    default, branch, position = "text/plain", None, 0
    while True:
        current: tuple[Part, Parameters, Branch | None] | None = None  # the part that is being read
        if begun is not None:
            count += 1
            content_type = type_of(begun.header, default)
            is_multipart = content_type.value.startswith("multipart/") and boundary_of(content_type) != b""
            if count > MAX_PARTS or (is_multipart and len(stack.opened) == MAX_PART_DEPTH):
                yield None
                return
            if is_multipart:
                stack.open(_Open(begun, content_type, branch, count))
            else:
                current = begun, content_type, branch
            position = begun.body
        line = stack.next_line(raw, position)
        end = _before(raw, line.start) if line else len(raw)
        if current:
            yield _leaf(raw, end, *current)
        elif behind >= 0 and raw[behind:end].strip():
            yield None
        for ended in stack.close(line):
            yield _leaf(raw, end, ended.part, ended.content_type, ended.branch)
        if not line:
            return
        position = min(len(raw), line.end + 1)
        begun, behind = None, position if line.is_last else -1
        if not line.is_last:
            default, branch = stack.opened[line.place].next_child()
            begun = header_at(raw, position)


def _leaf(raw: bytes, end: int, part: Part, content_type: Parameters, branch: Branch | None) -> Leaf:
    """Return a part that ends there; a multipart is one whose boundary never came."""
    is_broken = content_type.value.startswith("multipart/")
    return Leaf(part.header, content_type, raw[part.body : max(part.body, end)], branch, is_broken)


def _before(raw: bytes, start: int) -> int:
    """Return where the content before a boundary line ends: the line end before it belongs to the boundary."""
    line_end = _LINE_END.search(raw, max(0, start - 2), start)
    return line_end.start() if line_end else start
