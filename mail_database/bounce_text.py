"""The text of a report: which addresses stand where, above the copy of the message, and whom it names as failed.

All of this is a guess at words; bounce.py says when it counts.
"""

import re
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

from mail_database.bounce_words import FAILURE

# Fields that tell a copy of the message in the text from words that look like fields ("To: ...", "Reason: ...").
COPY_FIELDS = {"received", "return-path", "message-id", "delivered-to", "dkim-signature", "mime-version"}
MAX_BARE_TEXT_CHARACTERS = 2**16  # of a text that brings nothing back
MAX_LEAD_CHARACTERS = 80  # what a line may have before an address

# None of these takes more than linear time, whatever the text.
_ATOM = r'[^\x00-\x20\x7f<>()\[\]\\,;:"@\s\ufffd]'
ADDRESS = re.compile(rf'(?<!{_ATOM})(?:"[^"\\\s@]+"|{_ATOM}+)@(?:\[[\w.:]+\]|[\w-]+(?:\.[\w-]+)*)')
_FIELD_LINE = re.compile(r"[>|\s]*([\w-]+)[ \t]*:(?:\s|<|$)")
# What a line has before an address: a bullet or quote marks, a label of a few words, a bracket.
_LED = re.compile(r"[\s>*\u2022\-|]*(?:[^\s:@]+(?: [^\s:@]+){0,3}:)?[\s<(\[\"'`]*$")
_TO_LED = re.compile(r"[\s>*]*(?:to|cc|bcc|an|kopie|\u00e0|para|a|aan|do|\u5b9b\u5148)\s*:", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])\s|\n\s*\n|[\u3002\uff01\uff1f]")


class Words(NamedTuple):
    """The addresses of a text above the copy of the message, by where they stand."""

    led: frozenset[str]  # at the beginning of a line, maybe behind a label
    sentences: tuple[frozenset[str], ...]  # within a sentence
    listed: frozenset[str]  # behind To: or Cc:


def failing(subject: str, texts: Iterable[str]) -> list[str]:
    """Return the sentences of texts that say that mail was not delivered, or stand beside one that does."""
    sentences = [subject]
    for text in texts:
        sentences += filter(str.strip, _SENTENCE.split(text[:MAX_BARE_TEXT_CHARACTERS]))
    fails = [bool(FAILURE.search(sentence)) for sentence in sentences]
    if fails[0]:
        return sentences[1:]
    before, behind = [False, *fails], [*fails[1:], False]

    def is_beside(place: int) -> bool:
        is_address = ADDRESS.fullmatch(sentences[place].strip(" \t\n<>:"))
        return fails[place] or before[place] or bool(behind[place] and is_address)

    return [sentence for place, sentence in enumerate(sentences) if place and is_beside(place)]


def words_of(texts: Iterable[str]) -> Words:
    """Return the addresses of the texts, by where they stand."""
    led, listed, sentences = set(), set(), []
    for sentence in chain.from_iterable(_SENTENCE.split(text) for text in texts):
        within = set()
        for line in sentence.split("\n"):
            found = ADDRESS.search(line)
            if not found:
                continue
            addresses = addresses_in([line])
            if _TO_LED.match(line):
                listed |= addresses
                continue
            within |= addresses
            if _is_led(line, found.start(), addresses):
                led |= addresses_in([found[0]])
        if within:
            sentences.append(frozenset(within))
    return Words(frozenset(led), tuple(sentences), frozenset(listed))


def _is_led(line: str, start: int, addresses: set[str]) -> bool:
    """Tell whether a line is about the one address that it begins with, maybe behind a label."""
    is_alone = len({address.lstrip("'`*|=/") for address in addresses}) == 1
    return is_alone and start <= MAX_LEAD_CHARACTERS and bool(_LED.fullmatch(line[:start]))


def named_by(words: Words, candidates: set[str], at_most: int | None = None) -> set[str]:
    """Return those whom a text names as failed: those on lines of their own, else those that one sentence names."""
    sentences = [found for sentence in words.sentences if (found := candidates & sentence)]
    named = set(chain.from_iterable(sentences))
    listed = candidates & words.listed
    for found, is_clear in (
        (candidates & words.led, True),
        (named, len(sentences) == 1 or len(named) == 1 or at_most is not None),
        (listed, len(listed) == 1),
    ):
        if found:
            return found if is_clear and len(found) <= (at_most or len(found)) else set()
    return set()


def above_copy(text: str) -> str:
    """Return what stands above the copy of the message: a run of fields of which one stands in headers only."""
    start = end = 0
    for line in text.splitlines(keepends=True):
        field = _FIELD_LINE.match(line)
        if field and field[1].lower() in COPY_FIELDS:
            return text[:start]
        end += len(line)
        if not field and not (line[:1] in (" ", "\t") and line.strip()):
            start = end
    return text


def addresses_in(texts: Iterable[str]) -> set[str]:
    """Return the addresses that stand in texts, in lower case, also without what may have been put before them."""
    found = {address.lower() for text in texts for address in ADDRESS.findall(text)}
    return found | {address.lstrip("'`*|=/") for address in found}
