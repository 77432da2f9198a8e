"""HTML of strangers -> HTML that can be shown: without scripts, with every element closed, bounded in depth and size.

nh3 (ammonia) decides what is safe. Its parser follows the web's standard, by which elements that are never closed
cost quadratic time and memory: 100 KB of them may take gigabytes. So this module gives it balanced HTML: only elements
that it keeps, each of them closed, none deeper than a limit. The result may look a little different from what a browser
makes of the same HTML; no word is lost.
"""

import html
import re
from collections import Counter
from typing import NamedTuple

import nh3

SCHEMES = {"http", "https", "mailto", "tel", "cid"}  # cid: names a picture of the same message (RFC 2392)
MAX_MARKUP_DEPTH = 200
MAX_TAGS = 50_000
MAX_MARKUP_CHARACTERS = 2**20

UNREAD = ("script", "style", "title")  # elements that are left out with all that is in them
VOID = {"area", "br", "col", "hr", "img", "wbr"}
KEPT = nh3.ALLOWED_TAGS
ATTRIBUTES = {name for names in nh3.ALLOWED_ATTRIBUTES.values() for name in names}
TABLE_PARTS = {"tbody", "thead", "tr", "td", "th", "caption", "colgroup", "col"}
SCOPES = {"table", "td", "th", "caption"}  # nothing within them closes what stands around them
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
# Elements that end a paragraph, and of these, those that a new item of a list does not look beyond.
BLOCKS = {
    *("article", "aside", "blockquote", "center", "details", "div", "dl", "figcaption", "figure", "footer", "header"),
    *("hgroup", "hr", "li", "dd", "dt", "nav", "ol", "p", "pre", "summary", "table", "ul"),
    *HEADINGS,
}
BARRIERS = BLOCKS - {"div", "p"}
ITEMS = {"li": {"li"}, "dd": {"dd", "dt"}, "dt": {"dd", "dt"}}
# What a part of a table stands in; everything nearer is closed.
PARENTS = {"td": {"tr", "tbody", "thead", "table"}, "tr": {"tbody", "thead", "table"}, "col": {"colgroup", "table"}}

# What stands for & and < in a text while nh3 has it, which takes ten seconds for a megabyte of them: no characters.
AMPERSAND, LESS_THAN = "\ufdd0", "\ufdd1"

_REFERENCE = re.compile(r"&(?!#?[a-zA-Z0-9]{1,32};)")
# <ann@b.test> is no element. Only what follows "=" is quoted, and a quote that never ends is a letter.
_TAG = re.compile(
    r"<(/?)(?![^\s<>/\"'=]*@)([a-zA-Z][a-zA-Z0-9:-]*)((?:[^<>=]*=\s*(?:\"[^\"]*\"|'[^']*')){0,100}[^<>]*)>"
)
_OTHER = re.compile(r"<[!?/][^<>]*>")
_ATTRIBUTE = re.compile(r"(?<![\w-])([a-zA-Z][\w-]*)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"']+))")
_INVISIBLE = re.compile(
    r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(?![.\d])|opacity\s*:\s*0(?![.\d])|\shidden\b",
    re.IGNORECASE,
)
_BLANK = re.compile("[\\s\xad\u034f\u061c\u115f\u1160\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164\ufeff]+")
_CHARSET = re.compile(
    rb"<(?:meta\b[^<>]{0,500}?\bcharset|\?xml\b[^<>]{0,200}?\bencoding)\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE
)
META_BYTES = 4096  # at the beginning, where HTML names its charset


class Shown(NamedTuple):
    """HTML that can be shown, whether something was left out for its size, and whether a reader sees any word."""

    html: str
    lost: bool
    has_words: bool


def charset_of(content: bytes) -> str:
    """Return the charset that HTML itself names, "" if it names none. Where ASCII can be read, it is no UTF-16."""
    found = _CHARSET.search(content[:META_BYTES])
    charset = found[1].decode("ascii", "replace").lower() if found else ""
    return "utf-8" if charset.startswith("utf-16") else charset


def sanitize(text: str) -> str:
    """Return HTML without what could act: scripts, handlers, frames, forms."""
    return shown(text).html


def shown(text: str) -> Shown:
    """Return HTML as it can be shown."""
    balanced, lost, has_words = _balanced(
        text[:MAX_MARKUP_CHARACTERS].translate({ord(AMPERSAND): None, ord(LESS_THAN): None})
    )
    cleaned = nh3.clean(balanced, url_schemes=SCHEMES).replace(AMPERSAND, "&amp;").replace(LESS_THAN, "&lt;")
    return Shown(cleaned, lost or len(text) > MAX_MARKUP_CHARACTERS, has_words)


class _Tree:
    """The elements that are open, and what was written so far."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self.open: list[str] = []
        self.scopes: list[Counter[str]] = [Counter()]  # what is open within the innermost of SCOPES, and so on
        self.tables: list[Counter[str]] = []  # which parts of the innermost table are open, and so on
        self.lost = self.has_words = False
        self.tags = 0
        self.hidden = 0  # the depth at which something invisible begins, 0: nowhere

    def text(self, text: str) -> None:
        self.out.append(_REFERENCE.sub(AMPERSAND, text).replace("<", LESS_THAN))
        if not self.has_words and not self.hidden:
            self.has_words = bool(_BLANK.sub("", html.unescape(text)))

    def tag(self, is_end: bool, name: str, attributes: str) -> None:
        """Begin or end an element; from the limit on, tags are left out."""
        self.tags += 1
        if self.tags > MAX_TAGS:
            self.lost = True
        elif is_end:
            self.end(name)
        else:
            self.open_element(name, attributes)

    def open_element(self, name: str, attributes: str) -> None:
        if name in TABLE_PARTS and not self.tables:
            return
        self._end_what_cannot_hold(name)
        if len(self.open) >= MAX_MARKUP_DEPTH:
            self.lost = True
            return
        self.out.append(f"<{name}{_kept(attributes)}>")
        if name in VOID:
            return
        self.open.append(name)
        if name in TABLE_PARTS:
            self.tables[-1][name] += 1
        elif name != "table":
            self.scopes[-1][name] += 1
        else:
            self.tables.append(Counter())
        if name in SCOPES:
            self.scopes.append(Counter())
        if not self.hidden and _INVISIBLE.search(attributes):
            self.hidden = len(self.open)

    def _end_what_cannot_hold(self, name: str) -> None:
        """End the elements that the beginning of this one ends: a paragraph, a heading, an item, a link."""
        if name in TABLE_PARTS:
            parents = PARENTS.get("td" if name == "th" else name, {"table"})
            while self.open[-1] not in parents:
                self.pop()
        elif name in BLOCKS and self.scopes[-1]["p"]:
            self.end("p")
        if name in HEADINGS and self.open and self.open[-1] in HEADINGS:
            self.pop()
        elif name in ITEMS and any(self.scopes[-1][item] for item in ITEMS[name]):
            self._end_item(ITEMS[name])
        elif name == "a":
            self.end("a")

    def _end_item(self, items: set[str]) -> None:
        for name in reversed(self.open):
            if name in items:
                self.end(name)
                return
            if name in BARRIERS or name in SCOPES:
                return

    def end(self, name: str) -> None:
        if name == "table":
            is_open = bool(self.tables)
        elif name in TABLE_PARTS:
            is_open = bool(self.tables and self.tables[-1][name])
        else:
            is_open = bool(self.scopes[-1][name])
        while is_open and self.pop() != name:
            pass

    def pop(self) -> str:
        name = self.open.pop()
        self.out.append(f"</{name}>")
        if name in SCOPES:
            self.scopes.pop()
        if name == "table":
            self.tables.pop()
        elif name in TABLE_PARTS:
            self.tables[-1][name] -= 1
        else:
            self.scopes[-1][name] -= 1
        if len(self.open) < self.hidden:
            self.hidden = 0
        return name


def _kept(attributes: str) -> str:
    """Return those attributes that nh3 may keep, written in the one way that everybody reads alike."""
    if not attributes.strip(" /"):
        return ""
    kept = []
    for name, *values in _ATTRIBUTE.findall(attributes):
        if name.lower() in ATTRIBUTES:
            value = "".join(values).replace('"', "&quot;").replace("<", "&lt;")
            kept.append(f' {name.lower()}="{value}"')
    return "".join(kept)


def _balanced(text: str) -> tuple[str, bool, bool]:
    """Return HTML of which every element is closed, whether a limit was reached, and whether there are words."""
    tree = _Tree()
    lowered = text.lower() if len(text.lower()) == len(text) else text
    endless: set[str] = set()  # what never ends: it is looked for once
    begun = position = 0  # where the text begins that was not written yet, and where the next tag is looked for

    def behind(end: str, start: int) -> int | None:
        found = -1 if end in endless else lowered.find(end, start)
        if found < 0:
            endless.add(end)
            return None
        closing = text.find(">", found)
        return closing + 1 if closing >= 0 else len(text)

    while (start := text.find("<", position)) >= 0:
        position = start + 1
        comment_end = behind("-->", start + 2) if text.startswith("<!--", start) else None
        tag = None if comment_end else _TAG.match(text, start)
        found = tag or _OTHER.match(text, start)
        if not comment_end and not found:
            continue  # a letter as any other
        if start > begun:
            tree.text(text[begun:start])
        position = comment_end or (found.end() if found else position)
        name = tag[2].lower() if tag else ""
        if tag and name in UNREAD and not tag[1]:
            position = behind(f"</{name}", position) or position
        elif tag and name in KEPT:
            tree.tag(bool(tag[1]), name, tag[3])
        begun = position
    tree.text(text[begun:])
    while tree.open:
        tree.pop()
    return "".join(tree.out), tree.lost, tree.has_words
