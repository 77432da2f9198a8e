"""Search for records by words. What a search reads is bounded, however many records there are.

A record is found if it has every word that is asked for: as a whole, or as its beginning from MIN_BEGINNING letters on.
A beginning stands for the first MAX_BEGUN words of the index that it begins. The rarest of the words that are asked for
leads: of the newest records that have it, CANDIDATES at most, those stay that have the others. If more have it than
that, the next page goes on where this one ended, also where it found few.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from mail_database.page import rows
from mail_database.page.current import id_of
from mail_database.store import Store
from mail_database.words import terms

MIN_BEGINNING = 3
MAX_BEGUN = 20
CANDIDATES = 1000


class Found(NamedTuple):
    """A page of records, the id from which the next one goes on, and whether a beginning stood for too many words."""

    rows: Sequence[dict[str, Any]]
    older: int | None
    is_partial: bool


def find(store: Store, model: str, text: str, before: int | None, limit: int) -> Found:
    """Return records of a model that have these words, the newest first; in front the one with this number."""
    asked = [_begun(store, model, term) for term in terms(text)]
    ids, older = _matching(store, model, [words[:MAX_BEGUN] for words in asked], before, limit)
    key = id_of(text.strip()) if before is None else None
    wanted = dict.fromkeys([key, *ids] if key else ids)
    known = {row["id"]: row for row in rows.with_ids(store, model, [*wanted])}
    return Found([known[key] for key in wanted if key in known], older, any(len(words) > MAX_BEGUN for words in asked))


def _begun(store: Store, model: str, term: str) -> list[str]:
    return store.words_begun(model, term, MAX_BEGUN + 1) if len(term) >= MIN_BEGINNING else [term]


def _matching(
    store: Store, model: str, asked: Sequence[Sequence[str]], before: int | None, limit: int
) -> tuple[list[int], int | None]:
    """Return ids of records that have one word of each of these lists, and where the next page goes on."""
    if not asked or not all(asked):
        return [], None
    if len(asked) == 1:
        found = store.newest_with(model, asked[0], before, limit + 1)
        return found[:limit], found[limit - 1] if len(found) > limit else None
    rarest, *others = sorted(asked, key=lambda words: store.count_with(model, words, CANDIDATES))
    candidates = found = store.newest_with(model, rarest, before, CANDIDATES)
    for words in others:
        having = store.those_with(model, words, found)
        found = [key for key in found if key in having]
    if len(found) > limit:
        return found[:limit], found[limit - 1]
    return found, candidates[-1] if len(candidates) == CANDIDATES else None
