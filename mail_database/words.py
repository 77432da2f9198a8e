"""The words by which a record is found: those of its name and of its e-mail address.

Neither case nor accents make a difference. An address is a word as a whole, and so is each of its parts. A text is cut
before it is read, and words are cut and counted, so a subject of a megabyte costs no more than one of a line.
"""

import re
import unicodedata

MAX_TEXT_CHARACTERS = 1000  # that are read of a name or an address
MAX_CHARACTERS = 64  # of a word; of a longer one, whether stored or asked for, only its beginning counts
MAX_WORDS = 32  # of a record
MAX_TERMS = 6  # of a search
_BETWEEN = re.compile(r'[\s\0<>()\[\],;:"\\]+')  # addresses
_WORD = re.compile(r"[^\W_]+")  # letters and digits


def words_of(name: str | None, address: str | None) -> list[str]:
    """Return the words of a record with this name and this address, each once; those of the address come first."""
    found = {word: None for text in (address, name) for word in _words(text, has_parts=True)}
    return [*found][:MAX_WORDS]


def terms(text: str) -> list[str]:
    """Return the words that a search asks for; an address is one."""
    return [*dict.fromkeys(_words(text, has_parts=False))][:MAX_TERMS]


def _words(text: str | None, has_parts: bool) -> list[str]:
    found: list[str] = []
    for piece in _BETWEEN.split(_folded(str(text or "")[:MAX_TEXT_CHARACTERS])):
        address = piece.strip("@.'")
        is_address = "@" in address
        found += [address] if is_address else []
        found += [] if is_address and not has_parts else _WORD.findall(piece)
    return [word[:MAX_CHARACTERS] for word in found]


def _folded(text: str) -> str:
    if not text.isascii():
        parts = unicodedata.normalize("NFKD", text)
        text = "".join(character for character in parts if not unicodedata.combining(character))
    return text.casefold()
