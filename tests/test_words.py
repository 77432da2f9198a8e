"""The words by which a record is found, and those that a search asks for."""

import pytest

from mail_database.words import MAX_CHARACTERS, MAX_TERMS, MAX_TEXT_CHARACTERS, MAX_WORDS, terms, words_of

ADDRESS = '"Ann Meyer" <Ann.Meyer@Customer.example>'
PARTS = ["ann", "meyer", "ann.meyer@customer.example", "customer", "example"]


@pytest.mark.parametrize(
    ("name", "address", "words"),
    [
        ("Forty chairs, 3rd floor", None, ["forty", "chairs", "3rd", "floor"]),
        ("chairs CHAIRS Chairs", "", ["chairs"]),
        (None, ADDRESS, PARTS),
        ("Ann Meyer", ADDRESS, PARTS),
        ("Re: ann.meyer@customer.example", None, ["re", *PARTS[2:3], *PARTS[:2], *PARTS[3:]]),
        ("Müller & Großmann_AG", None, ["muller", "grossmann", "ag"]),
        ("Mu\u0308ller ＡＢ İstanbul", None, ["muller", "ab", "istanbul"]),
        ("Москва 東京", None, ["москва", "東京"]),
        ("!!! – @ @@ .", "<>", []),
        ("\0\ud800\udc00", "\x1b[31m", ["31m"]),
    ],
)
def test_a_record_has_the_words_of_its_name_and_its_address(
    name: str | None, address: str | None, words: list[str]
) -> None:
    assert words_of(name, address) == words


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("Forty  CHAIRS forty", ["forty", "chairs"]),
        ("Ann.Meyer@Customer.example chairs", ["ann.meyer@customer.example", "chairs"]),
        ("ann@", ["ann"]),
        ("@customer.example", ["customer", "example"]),
        ("<ann@customer.example>,", ["ann@customer.example"]),
        ("Müller", ["muller"]),
        ("%_*'\"\\", []),
    ],
)
def test_a_search_asks_for_words_and_for_an_address_as_a_whole(text: str, asked: list[str]) -> None:
    assert terms(text) == asked


@pytest.mark.parametrize("piece", ["x", "x ", "x@", "@", " ", "é", "\ufdfa", "<", "."])
def test_a_megabyte_has_few_words_which_are_short(piece: str) -> None:
    text = piece * 10**6
    assert len(words_of(text, text)) <= MAX_WORDS
    assert max(map(len, words_of(text, text)), default=0) <= MAX_CHARACTERS
    assert words_of(text, text) == words_of(*[text[:MAX_TEXT_CHARACTERS]] * 2)  # no more is read
    assert len(words_of(" ".join(map(str, range(10**5))), None)) == MAX_WORDS
    assert len(terms(" ".join(map(str, range(10**5))))) == MAX_TERMS


def test_a_long_word_is_found_by_what_is_kept_of_it() -> None:
    for long in "x" * 1000, "x" * 80 + "@outside.test":
        assert set(terms(long)) <= set(words_of(long, None))
