"""A message's body as it may stand in a frame: sanitised once more, pictures from elsewhere left out, quotes folded."""

import base64
import html
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote

import nh3

from mail_database.markup import SCHEMES

PICTURES = {"image/png", "image/jpeg", "image/gif", "image/webp"}  # SVG may hold anything
MAX_PICTURES_BYTES = 2**23  # of a message, within its frame
HEADER_LINES = 3  # one after the other, that make a quoted header
MAX_NAMING_LINES = 3  # that say who wrote what is quoted

ELSEWHERE = {"a": {"target": "_blank"}}  # where a link opens: not in the frame
SUMMARY = '<summary lang="en">Quoted text</summary>'
_PLAIN = re.compile(r"\s*<pre>([^<]*)</pre>\s*")
_DASHES = re.compile(r"(?:-{2,}[^-]{1,60}-{2,}|_{10,}|-{10,})")
_FIELD = re.compile(r"\*?[^\W\d_][\w -]{0,20}\s?:\*?\s")
_QUOTE = re.compile(r"<(/?)blockquote\b[^>]*>")
_LINK = re.compile(r"(?i)\bhttps?://[^\s<>\"]*[^\s<>\"'.,:;!?)\]]")  # without the mark that ends a sentence


class Framed(NamedTuple):
    """HTML for a frame, and how many pictures from elsewhere it lacks."""

    html: str
    blocked: int


def framed(body: str, pictures: Mapping[str, tuple[str, bytes]], has_others: bool) -> Framed:
    """Return a body for a frame. ``pictures`` are its own, with their types, by content id.

    Pictures from elsewhere are there with ``has_others`` alone: to fetch one tells its sender who reads, and when.
    """
    blocked = 0
    room = MAX_PICTURES_BYTES

    def source(element: str, name: str, value: str) -> str | None:
        nonlocal blocked, room
        if element != "img" or name != "src":
            return value
        scheme, _, rest = value.partition(":")
        if scheme.lower() == "cid":
            kind, content = pictures.get(unquote(rest), ("", b""))
            room -= len(content)
            fits = kind in PICTURES and room >= 0
            return f"data:{kind};base64,{base64.b64encode(content).decode()}" if fits else None
        if has_others:
            return value
        blocked += 1
        return None

    cleaned = nh3.clean(
        body, url_schemes=SCHEMES | {"data"}, attribute_filter=source, set_tag_attribute_values=ELSEWHERE
    )
    return Framed(_folded(cleaned), blocked)


def _folded(body: str) -> str:
    """Return a body whose quotes open at a click."""
    plain = _PLAIN.fullmatch(body)
    if plain:
        return _folded_text(html.unescape(plain[1]))
    out, depth, begun = [], 0, 0
    for tag in _QUOTE.finditer(body):
        depth += -1 if tag[1] else 1
        if not tag[1] and depth == 1:
            out.append(f"{body[begun : tag.start()]}<details>{SUMMARY}{tag[0]}")
        elif tag[1] and not depth:
            out.append(f"{body[begun : tag.start()]}</blockquote></details>")
        else:
            continue
        begun = tag.end()
    return "".join(out) + body[begun:]


def _folded_text(text: str) -> str:
    """Return plain text as HTML, with what it answers folded."""
    lines = text.splitlines(keepends=True)
    begin = _quote_begin(lines)
    own, quoted = "".join(lines[:begin]), "".join(lines[begin:]).strip()
    if not own.strip() or not quoted:
        return _shown(text)
    return f"{_shown(own)}<details>{SUMMARY}{_shown(quoted)}</details>"


def _shown(text: str) -> str:
    """Return plain text as HTML, its links to be clicked: whoever asks to confirm an address often writes no HTML."""
    parts, begin = [], 0
    for link in _LINK.finditer(text):
        url = html.escape(link[0])
        anchor = f'<a href="{url}" target="_blank" rel="noopener noreferrer">{url}</a>'
        parts += [html.escape(text[begin : link.start()]), anchor]
        begin = link.end()
    return f"<pre>{''.join(parts)}{html.escape(text[begin:])}</pre>"


def _quote_begin(lines: list[str]) -> int:
    """Return where the quote begins at which a text ends, whatever its language: lines with ">", or a header again.

    In front of lines with ">" stands who wrote them, and a colon. A header has a line of dashes or an address.
    """
    end = begin = len(lines)
    while begin and (lines[begin - 1].startswith(">") or not lines[begin - 1].strip()):
        begin -= 1
    if any(line.startswith(">") for line in lines[begin:]):
        named = next((place for place in range(begin, max(begin - MAX_NAMING_LINES, 0), -1) if _names(lines, place)), 0)
        return named - 1 if named else begin
    for place in range(end):
        if _DASHES.fullmatch(lines[place].strip()) and _is_header(lines, place + 1):
            return place
        if _is_header(lines, place) and "@" in "".join(lines[place : place + HEADER_LINES]):
            return place
    return end


def _names(lines: list[str], place: int) -> bool:
    return lines[place - 1].rstrip().endswith(":")


def _is_header(lines: list[str], place: int) -> bool:
    found = lines[place : place + HEADER_LINES]
    return len(found) == HEADER_LINES and all(_FIELD.match(line) for line in found)
