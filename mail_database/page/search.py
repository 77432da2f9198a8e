"""Search for records by words. What a search reads is bounded, however many records there are.

A record is found if it has every word that is asked for: as a whole, or as its beginning from MIN_BEGINNING letters on.
A beginning stands for the first MAX_BEGUN words of the index that it begins. The rarest of the words that are asked for
leads: of the newest records that have it, CANDIDATES at most, those stay that have the others. If more have it than
that, the next page goes on where this one ended, also where it found few.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from mail_database.page import rows
from mail_database.page.current import id_of
from mail_database.store import Store
from mail_database.tables import words
from mail_database.words import terms

MIN_BEGINNING = 3
MAX_BEGUN = 20
CANDIDATES = 1000
LAST = "\U0010ffff"  # no character of a word comes after it


class Found(NamedTuple):
    """A page of records, the id from which the next one goes on, and whether a beginning stood for too many words."""

    rows: Sequence[dict[str, Any]]
    older: int | None
    is_partial: bool


def find(store: Store, model: str, text: str, before: int | None, limit: int) -> Found:
    """Return records of a model that have these words, the newest first; in front the one with this number."""
    asked = [_begun(store, model, term) for term in terms(text)]
    ids, older = _matching(store, model, [begun[:MAX_BEGUN] for begun in asked], before, limit)
    key = id_of(text.strip()) if before is None else None
    wanted = dict.fromkeys([key, *ids] if key else ids)
    known = {row["id"]: row for row in rows.with_ids(store, model, [*wanted])}
    return Found([known[key] for key in wanted if key in known], older, any(len(begun) > MAX_BEGUN for begun in asked))


def _begun(store: Store, model: str, term: str) -> list[str]:
    """Return the first words of a model's records that begin like this: each is one look-up in the index."""
    if len(term) < MIN_BEGINNING:
        return [term]

    def first(*after: Any) -> Any:
        found = (words.c.model == model, words.c.word < term + LAST, *after)
        return sa.select(sa.func.min(words.c.word)).where(*found).scalar_subquery()

    start = sa.select(first(words.c.word >= term).label("word"), sa.literal(1).label("number"))
    begun = start.cte("begun", recursive=True)
    step = sa.select(first(words.c.word > begun.c.word), begun.c.number + 1)
    all_begun = begun.union_all(step.where(begun.c.word.is_not(None), begun.c.number <= MAX_BEGUN))
    found = sa.select(all_begun.c.word).where(all_begun.c.word.is_not(None))
    return store.values(found.order_by(all_begun.c.number))


def _matching(
    store: Store, model: str, asked: Sequence[Sequence[str]], before: int | None, limit: int
) -> tuple[list[int], int | None]:
    """Return ids of records that have one word of each of these lists, and where the next page goes on."""
    if not asked or not all(asked):
        return [], None
    if len(asked) == 1:
        found = _newest(store, model, asked[0], before, limit + 1)
        return found[:limit], found[limit - 1] if len(found) > limit else None
    rarest, *others = sorted(asked, key=lambda some: store.count_up_to(CANDIDATES, words, *_with(model, some)))
    candidates = found = _newest(store, model, rarest, before, CANDIDATES)
    for some in others:
        having = {*store.values(sa.select(words.c.id).where(*_with(model, some), words.c.id.in_(found)))}
        found = [key for key in found if key in having]
    if len(found) > limit:
        return found[:limit], found[limit - 1]
    return found, candidates[-1] if len(candidates) == CANDIDATES else None


def _with(model: str, some: Sequence[str]) -> tuple[Any, ...]:
    return words.c.model == model, words.c.word.in_(some)


def _newest(store: Store, model: str, some: Sequence[str], before: int | None, limit: int) -> list[int]:
    """Return the ids of a model's records that have one of these words, below an id: for each word, then of all."""
    below = [] if before is None else [words.c.id < before]
    of_each = [
        sa.select(words.c.id).where(*_with(model, [word]), *below).order_by(words.c.id.desc()).limit(limit).subquery()
        for word in some
    ]
    found = sa.union(*(sa.select(each.c.id) for each in of_each)).subquery()
    return store.values(sa.select(found.c.id).order_by(found.c.id.desc()).limit(limit))
