"""Shapes: header fields that keep an Odoo busy for minutes, by the number of their tokens.

Odoo reads each field with email.policy.SMTP, whose structured parser goes over the rest of a field at each token. It
does so before it looks whether it knows the message, at each try of the mail server. What costs is not a field's length
but how many tokens stand where nothing ends the item that they are in (docs/odoo.md, "Headers that keep it busy").
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from mailgate.envelope import fields, unfold

ADDRESS_FIELDS = {
    *(b"to", b"cc", b"bcc", b"from", b"sender", b"reply-to", b"delivered-to", b"return-path"),
    *(b"resent-to", b"resent-cc", b"resent-bcc", b"resent-from", b"resent-sender"),
}
PARAMETER_FIELDS = {b"content-type", b"content-disposition", b"content-transfer-encoding"}
TEXT_FIELDS = {b"subject", b"references", b"in-reply-to", b"thread-topic", b"auto-submitted", b"content-description"}


def _per_item(pattern: bytes) -> Callable[[bytes], int]:
    """Return what sums the squares of the tokens of each item: the items of a list stand between commas."""
    token = re.compile(pattern)
    return lambda value: sum(len(token.findall(item)) ** 2 for item in value.split(b","))


def _per_field(pattern: bytes) -> Callable[[bytes], int]:
    """Return what gives the square of the tokens of a field; where the pattern has a group, it tells which count."""
    token = re.compile(pattern)
    return lambda value: sum(map(bool, token.findall(value))) ** 2


class Shape(NamedTuple):
    """What of which fields counts how: the squares are summed up, and must stay within that of the bound."""

    what: str
    names: set[bytes]
    squares: Callable[[bytes], int]
    bound: int


WORD = rb"(?<!\S)[^\s,]"
QUOTED = rb'"(?:[^"\\]|\\.?)*(?:"(?=([^\s<>@,;:.()"])?)|\Z)'  # never fails where it has begun, so it is linear
# The seconds are those of one core of a real Odoo 19 (Python 3.11): at the bound and at twice it, or as is said.
SHAPES = (
    # `"` 2.6 and 10.4, `a"` 6.0 and 22.8, words 1.9 and 6.1, `.` 0.9 and 3.9, `\` 0.9 and 4.1, `; ` 0.6 and 2.5
    Shape("tokens between commas", ADDRESS_FIELDS, _per_item(rb'[()<>\[\]:;@\\".]|' + WORD), 8_000),
    # `"a,"a` 2.8 and 9.5
    Shape("quotes within words", ADDRESS_FIELDS, _per_field(QUOTED), 2_500),
    # Nothing but commas 1.5 and 5.7; as many names with their addresses 14
    Shape("commas", ADDRESS_FIELDS, _per_field(rb","), 12_000),
    # For 8,000 and 16,000: `;` 7.0 and 15.9, `"` 4.1 and 12.8, `(a)` 5.7 and 18.7
    Shape("tokens", PARAMETER_FIELDS, _per_field(rb'[()<>\[\]:;@\\",/?=]|' + WORD), 6_000),
    # For 150,000 and 300,000 in Subject 7.2 and 33.4
    Shape("words", TEXT_FIELDS, _per_field(WORD), 100_000),
)
_SHAPES_OF = {
    name: [shape for shape in SHAPES if name in shape.names] for name in ADDRESS_FIELDS | PARAMETER_FIELDS | TEXT_FIELDS
}
# In lower case, in a line that ends as one may for Python's email parser: with a bare CR, too. The expression begins
# with a literal: so the search takes a tenth of the time.
_PART_FIELD = re.compile(
    rb"content-(?<=[\r\n]content-)(?:type|disposition|transfer-encoding):[^\r\n]*(?:(?:\r\n|\r|\n)[ \t][^\r\n]*)*"
)


def too_slow(head: bytes) -> str:
    """Return what would keep the database busy for too long, and in which field; ``""`` for an ordinary message.

    ``head`` is the message's beginning; the fields of MIME parts are looked at as far as it goes. The time is linear.
    """
    size = 0
    squares = dict.fromkeys((shape.what for shape in SHAPES), 0)
    counted = []
    for name, field in fields(head):
        size += len(field)
        if name in _SHAPES_OF:
            counted.append((name, field))
    for part in _PART_FIELD.finditer(head.lower(), size):
        counted.append((part[0].partition(b":")[0], part[0]))
    for name, field in counted:
        value = unfold(field)
        for shape in _SHAPES_OF[name]:
            squares[shape.what] += shape.squares(value)
            if squares[shape.what] > shape.bound**2:
                found = f"more than {shape.bound} {shape.what}"
                return f"{name.decode()}: {found} would keep the database busy for too long"
    return ""
