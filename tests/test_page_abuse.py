"""What a stranger and a clumsy administrator send to the pages, on both stores: an answer that says what is wrong."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from support.page import visitor
from support.stores import NewStore

from mail_database import tables, world
from mail_database.page import rows
from mail_database.store import open_database, transaction

WORLD = {
    "records": [{"model": "crm.lead", "id": 1, "name": "Forty chairs", "email_from": "ann@outside.test"}],
    "messages": [{"id": 1, "message_id": "<1@outside.test>", "model": "crm.lead", "thread_id": 1, "original": "x"}],
}
ALIAS = {"alias_name": "odd", "alias_model": "crm.lead", "alias_contact": "everyone"}


@pytest.fixture
def engine(new_store: NewStore) -> Iterator[sa.Engine]:
    engine = open_database(new_store())
    with transaction(engine) as store:
        world.load(store, WORLD)
    yield engine
    engine.dispose()


@pytest.fixture
def dumped(engine: sa.Engine) -> Iterator[None]:
    """Nothing that is stored changes."""
    with transaction(engine, reads=True) as store:
        before = world.dump(store)
    yield
    with transaction(engine, reads=True) as store:
        assert world.dump(store) == before


@pytest.mark.usefixtures("dumped")
@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/records/crm.lead/1/write", {"text": "a\0b"}),
        ("/setup/aliases/0", ALIAS | {"alias_name": "a\0b"}),
        ("/setup/parameters", {"mail.catchall.domain.allowed": "a\0b.test"}),
        ("/setup/followers/crm.lead/1", {"address": "a\0b@outside.test"}),
    ],
)
def test_a_character_that_no_text_has_is_refused(engine: sa.Engine, path: str, form: dict[str, str]) -> None:
    client = visitor(engine)
    client.application.config["WTF_CSRF_ENABLED"] = False
    assert client.post(path, data=form).status_code == 400


def test_a_search_takes_any_character(engine: sa.Engine) -> None:
    for text in "a%00@b.test", "%00@%00", "%ff%fe@x", "%F4%8F%BF%BF@a":
        assert visitor(engine).get(f"/records/crm.lead?find={text}").status_code == 200


@pytest.mark.usefixtures("dumped")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alias_defaults", "{'name': {1}}"),
        ("alias_defaults", "{'name': b'x'}"),
        ("alias_defaults", "{(1, 2): 'x'}"),
        ("alias_defaults", "{'name': 1e999}"),
        ("alias_name", "".join(map(chr, range(0x4E00, 0x6E00)))),  # it can't be compressed, either
        ("alias_model", "".join(map(chr, range(0x4E00, 0x6E00)))),
    ],
)
def test_what_can_not_be_stored_is_said_at_the_form(engine: sa.Engine, field: str, value: str) -> None:
    client = visitor(engine)
    client.application.config["WTF_CSRF_ENABLED"] = False
    answer = client.post("/setup/aliases/0", data=ALIAS | {field: value})
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "9" * 5000])
def test_the_pages_are_there_whatever_the_parameter_of_what_is_new_says(engine: sa.Engine, value: str) -> None:
    with transaction(engine) as store:
        store.set_parameter(rows.SEEN, value)
    assert "<b>1 new</b>" in visitor(engine).get("/discuss").text


def test_an_original_that_is_damaged_is_named(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(tables.originals.update().values(content=b"damaged"))
    client = visitor(engine)
    assert client.get("/records/crm.lead/1").status_code == 200
    answer = client.get("/messages/1/original")
    assert answer.status_code == 500
    assert "the original of message 1 is damaged" in answer.text
    with transaction(engine, reads=True) as store, pytest.raises(ValueError, match="message 1 is damaged"):
        world.dump(store)


@pytest.mark.parametrize("path", ["/records/crm.lead", "/records/crm.lead/2", "/discuss"])
def test_a_subject_of_a_megabyte_makes_no_page_of_megabytes(engine: sa.Engine, path: str) -> None:
    long = "chairs " * 150_000
    with transaction(engine) as store:
        store.insert(tables.records, {"model": "crm.lead", "id": 2, "name": long})
        store.keep_original(store.post("<2@b>", [], model="crm.lead", thread_id=2, subject=long), b"x")
    page = visitor(engine).get(path).text
    assert "chairs chairs" in page
    assert len(page) < 20_000
