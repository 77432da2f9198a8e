"""The parts of a message (RFC 2046), in one pass over its bytes.

A boundary line ends all that was opened within the part that it belongs to, so that nothing need be closed. What is
not made of parts is yielded as it came. An attached message is one such part, whatever it holds.
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
        self.children = 0
        self.default = "message/rfc822" if content_type.value == "multipart/digest" else "text/plain"

    def branch_of_child(self) -> Branch | None:
        is_alternative = self.content_type.value == "multipart/alternative"
        return Branch(self.number, self.children) if is_alternative else self.branch


def type_of(header: bytes, default: str = "text/plain") -> Parameters:
    """Return a part's content type; one that is none is text (RFC 2045, 5.2)."""
    found = parameters(header, "Content-Type")
    value = found.value if found.value.count("/") == 1 else "text/plain" if found.value else default
    return found._replace(value=value)


def leaves(raw: bytes, message: Part) -> Iterator[Leaf | None]:
    """Yield the parts that hold something, in order, and None where the rest is beyond the limits, or in no part."""
    opened: list[_Open] = []
    places: dict[bytes, list[int]] = {}  # in opened, by the boundary
    current: tuple[Part, Parameters, Branch | None] | None = None  # the part that is being read
    behind = -1  # where the text behind a multipart begins, which belongs to no part
    count = 0
    begun: Part | None = message
    default, branch, position = "text/plain", None, 0
    while True:
        if begun is not None:  # a part begins
            count += 1
            content_type = type_of(begun.header, default)
            if count > MAX_PARTS:
                yield None
                return
            boundary = content_type.parameters.get("boundary", "").rstrip()
            if content_type.value.startswith("multipart/") and boundary:
                if len(opened) == MAX_PART_DEPTH:
                    yield None
                    return
                places.setdefault(boundary.encode("utf-8", "replace"), []).append(len(opened))
                opened.append(_Open(begun, content_type, branch, count))
            else:
                current = begun, content_type, branch
            position = begun.body

        # the next boundary line of what is open, or the end
        while found := _BOUNDARY.search(raw, position):
            position = found.end()
            token = found[1].rstrip()
            is_last = not places.get(token)
            token = token[:-2] if is_last and token.endswith(b"--") else token
            if places.get(token):
                break
        end = _before(raw, found.start()) if found else len(raw)
        place = places[token][-1] if found else 0

        if current:
            part, content_type, branch = current
            is_broken = content_type.value.startswith("multipart/")
            yield Leaf(part.header, content_type, raw[part.body : max(part.body, end)], branch, is_broken)
            current = None
        elif behind >= 0 and raw[behind:end].strip():
            yield None
        behind = -1
        while len(opened) > place + (found is not None and not is_last):
            ended = opened.pop()
            places[ended.content_type.parameters["boundary"].rstrip().encode("utf-8", "replace")].pop()
            if not ended.children:
                content = raw[ended.part.body : max(ended.part.body, end)]
                yield Leaf(ended.part.header, ended.content_type, content, ended.branch, True)
        if not found:
            return
        position = min(len(raw), found.end() + 1)
        begun = None
        if is_last:
            behind = position
        else:
            opened[place].children += 1
            default, branch = opened[place].default, opened[place].branch_of_child()
            begun = header_at(raw, position)


def _before(raw: bytes, start: int) -> int:
    """Return where the content before a boundary line ends: the line end before it belongs to the boundary."""
    line_end = _LINE_END.search(raw, max(0, start - 2), start)
    return line_end.start() if line_end else start
