"""The addresses of a header field (RFC 5322, 3.4), however badly it is written, in linear time.

What stands in <> is the address; what stands beside it is a name, whatever it looks like. Addresses may be separated
by commas, semicolons, or nothing; quotes and comments may be left open.
"""

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_ADDRESS_CHARACTERS = 320  # RFC 5321 (4.5.3.1) allows 64 before the @ and 255 behind it
MAX_ENTRY_TOKENS = 1000  # of one address with its name; what follows counts as another entry

# A backslash takes the next character along everywhere, so that a quote which fails to end is looked at once.
_TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*"|\\.|\[[^\[\]<>(),;"\\]*\]|\(+|\)+|[<>]|[,;]+|:|\s+|[^"\\\[\]()<>,;:\s]+|.', re.DOTALL
)
_BRACKETED = re.compile(r"\[(?:\w+:)?([^\[\]@]+@[^\[\]]+)\]")  # Outlook: [SMTP:ann@b.test]
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


class Address(NamedTuple):
    """An address, and the name beside it without its quotes, "" where there is none."""

    name: str
    address: str


class _Entry:
    """What was read of one address: words outside of <>, what is in them, and comments."""

    def __init__(self) -> None:
        self.words: list[list[str]] = []  # each of tokens that stand without a blank between them
        self.angle: list[str] = []
        self.comments: list[str] = []
        self.has_angle = self.in_angle = False  # a < was read; its > was not
        self.is_glued = self.is_named = False  # the next token belongs to the last word; there is an @
        self.tokens = 0

    def ends_before(self, token: str) -> bool:
        """Tell whether a token separates this entry from the next one, or begins the next one without a separator."""
        if self._is_separator(token):
            return bool(self.words or self.angle)
        return bool(self.angle) and not self.in_angle and token[0] not in ">:" and not token.isspace()

    def _is_separator(self, token: str) -> bool:
        in_route = self.in_angle and self.angle and self.angle[0][0] == "@"  # <@a,@b:ann@c>
        return token[0] in ",;" and not in_route

    def add(self, token: str) -> None:
        """Add a token that is no comment's."""
        if self._is_separator(token) or token == ">":
            self.in_angle = False
        elif token == "<":
            self.angle, self.has_angle, self.in_angle = [], True, True
        elif self.in_angle:
            self.angle.append(token)
            self.is_named = self.is_named or "@" in token
        elif token.isspace():
            self.is_glued = False
        elif token == ":":  # of a group, or mailto:
            self.words, self.is_glued = [], False
        else:
            self._add_to_words(token)

    def _add_to_words(self, token: str) -> None:
        if not self.is_glued:
            self.words.append([])
        self.words[-1].append(token)
        self.is_glued = True
        self.is_named = self.is_named or "@" in token

    def addresses(self) -> Iterator[Address]:
        if not self.is_named:
            return
        comment = "".join(self.comments).strip()
        found = _bare("".join(self.angle)) if self.has_angle else ""
        if "@" in found:
            yield Address(_name(self.words) or comment, found)
            return
        if any(word[0] == "@" or word[-1] == "@" for word in self.words):  # ann @ b.test
            self.words = [[token for word in self.words for token in word]]
        bare = [word for word in self.words if any("@" in token and token[0] != '"' for token in word)]
        if not bare and len(self.words) == 1:  # nothing but an address in quotes
            bare, self.words = [[token.strip('"') for token in self.words[0]]], []
        name = _name([word for word in self.words if word not in bare]) if len(bare) == 1 else ""
        for word in bare:
            yield Address(name or comment, _bare("".join(word)))


def split(text: str) -> Iterator[Address]:
    """Yield the addresses of a field's text."""
    entry = _Entry()
    for token, is_comment in _tokens(text):
        entry.tokens += 1
        if entry.tokens > MAX_ENTRY_TOKENS or (not is_comment and entry.ends_before(token)):
            yield from entry.addresses()
            entry = _Entry()
        if is_comment:
            entry.comments.append(token)
        else:
            entry.add(token)
    yield from entry.addresses()


def _tokens(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each token, and whether it is a comment's; instead of the outermost brackets come a blank and ""."""
    has_comments = _comments_end(text)
    depth = 0
    for found in _TOKEN.finditer(text):
        token = found[0]
        if token[0] == "(" and has_comments:
            yield (token if depth else " "), True
            depth += len(token)
        elif token[0] == ")" and depth:
            depth = max(0, depth - len(token))
            yield (token if depth else ""), True
        elif depth:
            yield (_ESCAPED.sub(r"\1", token) if token[0] == "\\" else token), True
        else:
            yield token, False


def _comments_end(text: str) -> bool:
    """Tell whether what brackets open they also close; else they are letters as any other."""
    depth = 0
    for found in _TOKEN.finditer(text) if "(" in text else ():
        if found[0][0] == "(":
            depth += len(found[0])
        elif found[0][0] == ")":
            depth = max(0, depth - len(found[0]))
    return depth == 0


def _name(words: list[list[str]]) -> str:
    return " ".join(
        "".join(_ESCAPED.sub(r"\1", token[1:-1]) if len(token) > 1 and token[0] == '"' else token for token in word)
        for word in words
    ).strip()


def _bare(text: str) -> str:
    """Return an address without blanks, a route (<@a,@b:ann@c>), mailto: and quotes around it."""
    if '"' not in text:
        text = "".join(text.split())
    text = text.strip()
    bracketed = _BRACKETED.fullmatch(text)
    text = bracketed[1] if bracketed else text
    if ":" in text and "[" not in text:
        text = text.rpartition(":")[2]
    text = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'`" else text
    return text.rstrip(".") if "@" in text else text


def normalize(address: str) -> str:
    """Return an address by which it is known again: bare, in lower case, its domain in ASCII; "" when it is none."""
    found = next((entry.address for entry in split(address)), "")
    local_part, _, domain = found.strip().lower().rpartition("@")
    return f"{local_part}@{ascii_domain(domain)}" if found and len(found) <= MAX_ADDRESS_CHARACTERS else ""


@functools.lru_cache(1000)
def ascii_domain(domain: str) -> str:
    """Return a domain in the form that DNS has (RFC 5890: A-labels), in lower case; what is none stays as it is."""
    domain = domain.lower()
    if domain.isascii() or len(domain) > 255:
        return domain
    import idna  # only where it is needed: its tables are large

    labels = []
    for label in re.split("[.\u3002\uff0e\uff61]", domain):
        try:
            labels.append(label if label.isascii() else idna.encode(label, uts46=True).decode())
        except idna.IDNAError:
            labels.append(label)
    return ".".join(labels)
