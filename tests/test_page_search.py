"""The search for records, on both stores: what is found by which words, and how it is paged."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient
from support.page import mail, visitor
from support.stores import NewStore

from mail_database import tables, world
from mail_database.delivery import process
from mail_database.page import search
from mail_database.routing import Fallback
from mail_database.server import METHODS
from mail_database.store import open_database, transaction

LEADS = {
    1: ("Forty chairs", '"Ann Meyer" <ann.meyer@customer.example>'),
    2: ("Chairs, red ones", "bob@outside.test"),
    3: ("A chairman of the board", "Zoë <zoe@outside.test>"),
    4: ("Order 2", None),
    5: (None, None),
}


@pytest.fixture
def engine(new_store: NewStore) -> Iterator[sa.Engine]:
    engine = open_database(new_store())
    with transaction(engine) as store:
        world.load(store, world_of(LEADS) | {"partners": [{"id": 9, "name": "Ann", "email": "ann@outside.test"}]})
    yield engine
    engine.dispose()


def world_of(leads: Mapping[int, tuple[str | None, str | None]]) -> dict[str, Any]:
    return {
        "records": [
            {"model": "crm.lead", "id": number, "name": name, "email_from": address}
            for number, (name, address) in leads.items()
        ]
    }


def found(engine: sa.Engine, text: str, model: str = "crm.lead") -> list[int]:
    """Return the ids on the first page of a search."""
    return ids(shown(visitor(engine), model, find=text))


def shown(reader: FlaskClient, model: str, **asked: str) -> str:
    answer = reader.get(f"/records/{model}", query_string=asked)
    assert answer.status_code == 200
    return answer.text


def ids(page: str) -> list[int]:
    return [int(number) for number in re.findall(r'<li><a href="/records/[a-z.]+/(\d+)"', page)]


@pytest.mark.parametrize(
    ("text", "leads"),
    [
        ("chairs", [2, 1]),
        ("CHAIR", [3, 2, 1]),  # a beginning
        ("airs", []),
        ("chairs red", [2]),
        ("red forty", []),
        ("cha ann", [1]),
        ("of", [3]),
        ("o", []),  # two letters and fewer are a whole word
        ("or", []),
        ("ord", [4]),
        ("zoe", [3]),
        ("ZOË", [3]),
        ("outside.test", [3, 2]),
        ("bob@outside.test", [2]),
        ("bob@outs", [2]),
        ("ob@outside.test", []),
        ("ann.meyer@customer.example forty", [1]),
        ("2", [2, 4]),  # the record of this number in front, and those with the word
        (" 5 ", [5]),
        ("99", []),
        ("9" * 30, []),
        ("", [5, 4, 3, 2, 1]),
        ("  ", [5, 4, 3, 2, 1]),
        ("%", []),
        ("\0 \x1b", []),
    ],
)
def test_a_search_finds_records_that_have_all_words(engine: sa.Engine, text: str, leads: list[int]) -> None:
    assert found(engine, text) == leads


def test_partners_are_found_and_models_are_apart(engine: sa.Engine) -> None:
    assert found(engine, "ann", "res.partner") == [9]
    assert found(engine, "ann", "project.task") == []


def test_a_name_that_changes_is_found_anew_and_no_longer_as_before(engine: sa.Engine) -> None:
    with transaction(engine) as store:
        METHODS["write"](store, "crm.lead", [1, 3], {"name": "Twelve tables"})
        METHODS["write"](store, "res.partner", [9], {"email": "ann@new.example"})
        METHODS["create"](store, "crm.lead", {"name": "A lamp", "email_from": "eve@outside.test"})
        METHODS["unlink"](store, "crm.lead", [2])
    assert found(engine, "chairs") == []
    assert found(engine, "twelve") == [3, 1]
    assert found(engine, "customer") == [1]
    assert found(engine, "outside", "res.partner") == []
    assert found(engine, "new.example", "res.partner") == [9]
    assert found(engine, "lamp eve") == [6]
    with transaction(engine, reads=True) as store:
        assert {row["id"] for row in store.all_rows(tables.words)} == {1, 3, 4, 6, 9}


def test_what_a_mail_becomes_is_found(engine: sa.Engine) -> None:
    process(engine, mail("sofas"), Fallback("crm.lead"), 2)
    assert found(engine, "sofas") == [6]
    assert found(engine, "sofas@outside.test") == [6]


def test_an_older_store_is_found_by_words_when_it_is_opened(engine: sa.Engine, new_store: NewStore) -> None:
    with transaction(engine) as store:
        before = store.all_rows(tables.words)
        dumped = world.dump(store)
    tables.words.drop(engine)
    again = open_database(engine.url.render_as_string(hide_password=False).replace("+psycopg", ""))
    with transaction(again, reads=True) as store:
        assert store.all_rows(tables.words) == before
    again.dispose()
    other = open_database(new_store())
    with transaction(other) as store:
        world.load(store, dumped)
        assert store.all_rows(tables.words) == before
    other.dispose()


def test_what_is_found_is_paged_with_its_words(new_store: NewStore) -> None:
    """Both words are common: each page looks at so many records, and all pages have all that is to be found."""
    engine = open_database(new_store())
    red = range(1, search.CANDIDATES + 53)
    leads = {number: ("red chairs" if number in red else "chairs", None) for number in range(1, 2 * red[-1])}
    with transaction(engine) as store:
        world.load(store, world_of(leads))
    reader = visitor(engine)
    for text, wanted in ("chairs red", [*red][::-1]), ("chairs", [*leads][::-1]):
        pages, link = [], f"?find={text}"
        while link:
            page = reader.get(f"/records/crm.lead{link}").text
            pages.append(ids(page))
            link = next(iter(re.findall(r'href="(\?[^"]+)">Older', page)), "").replace("&amp;", "&")
        assert [number for each in pages for number in each] == wanted
        assert len(pages) < len(wanted) / 50 + 4
    assert "none among the newest" in shown(reader, "crm.lead", find="chairs red")
    assert 'value="&lt;&#34;"' in shown(reader, "crm.lead", find='<"')
    engine.dispose()


def test_a_beginning_of_too_many_words_is_said(engine: sa.Engine) -> None:
    more = {number: (f"part{number:03}", None) for number in range(100, 100 + search.MAX_BEGUN + 1)}
    with transaction(engine) as store:
        world.load(store, world_of(more))
    reader = visitor(engine)
    page = shown(reader, "crm.lead", find="part")
    assert "Too many words" in page
    assert ids(page) == sorted(more, reverse=True)[1:]
    assert "Too many words" not in shown(reader, "crm.lead", find="part10")
