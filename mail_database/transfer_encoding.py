"""Undo Content-Transfer-Encoding (RFC 2045, 6), and tell whether something may be missing afterwards.

What comes out is never larger than what goes in.
"""

import binascii
import re

# What a value may begin with, in lower case. Anything else is no encoding: the bytes stay, and count as lost.
IDENTITY = {"", "7bit", "8bit", "binary", "7-bit", "8-bit", "none"}
BASE64 = {"base64", "base-64", "b64", "x-base64", "x-mime-base64"}
QUOTED_PRINTABLE = ("quoted", "qp")  # whatever follows: -printable, _printable, -printible
UUENCODE = {"x-uuencode", "uuencode", "x-uue", "uue"}

# In base64 stands no other letter, and no blank within a line: there begins a text, such as a list's last lines.
_NO_BASE64 = re.compile(rb"[^A-Za-z0-9+/=\s]|[^\s][ \t]+[^\s]")
_SOFT_BREAK = re.compile(rb"=[ \t]+(?=\r?\n|\Z)")  # what hosts pad a line with does not count (RFC 2045, 6.7)
_COMMENT = re.compile(r"\([^()]*\)")
_NO_ESCAPE = re.compile(rb"=(?![0-9A-Fa-f]{2}|[ \t]*(?:\r?\n|\Z))")


def undone(content: bytes, encoding: str) -> tuple[bytes, bool]:
    """Return the content without its transfer encoding, and whether something may be missing."""
    words = re.findall(r"[\w-]+", _COMMENT.sub(" ", encoding.lower()[:100]))
    name = words[0] if words else ""
    if name in BASE64 or words[:2] == ["base", "64"]:
        return from_base64(content)
    if name.startswith(QUOTED_PRINTABLE):
        return binascii.a2b_qp(_SOFT_BREAK.sub(b"=", content)), bool(_NO_ESCAPE.search(content))
    if name in UUENCODE:
        return _from_uuencode(content)
    return content, name not in IDENTITY


def from_base64(content: bytes) -> tuple[bytes, bool]:
    """Return what base64 stands for. Its pieces may each be padded; behind it may stand what is none."""
    foreign = _NO_BASE64.search(content)
    if foreign:
        end = max(content.rfind(b"\n", 0, foreign.start() + 1), content.rfind(b"=", 0, foreign.start() + 1)) + 1
        if not content[:end].strip():
            return content, True
        content = content[:end]
    letters = content.translate(None, b" \t\r\n\v\f")
    octets, lost = bytearray(), foreign is not None
    for found in re.finditer(rb"([^=]+)(=*)", letters):
        piece, padding = found.groups()
        missing = -len(piece) % 4
        lost = lost or missing == 3 or len(padding) != missing
        octets += binascii.a2b_base64(piece[:-1] if missing == 3 else piece + b"=" * missing)
    return bytes(octets), lost


def _from_uuencode(content: bytes) -> tuple[bytes, bool]:
    """Return the file between ``begin`` and ``end``; each line says how many bytes it holds."""
    begin = re.search(rb"(?m)^begin \S+ .*\n", content)
    if not begin:
        return content, True
    octets = bytearray()
    lost, end = True, 0
    for found in re.finditer(rb"(?m)^(.*)$", content[begin.end() :]):
        line = found[1].rstrip(b"\r")
        if line == b"end":
            lost, end = False, begin.end() + found.end()
            break
        if not line:
            continue
        count = (line[0] - 32) & 63
        line = line[: 1 + (count + 2) // 3 * 4]
        if 1 + (count * 4 + 2) // 3 > len(line.rstrip(b" ")) and 1 + (count + 2) // 3 * 4 > len(line) + 3:
            return bytes(octets), True  # the line promises more than it holds
        try:
            octets += binascii.a2b_uu(line)
        except binascii.Error:
            return bytes(octets), True
    beside = content[: begin.start()] + content[end:]  # words that no file holds
    return bytes(octets), lost or bool(beside.strip())
