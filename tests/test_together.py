"""What two do at once, on both stores: one waits for the other, and both succeed."""

import concurrent.futures
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from support.mta import wait_until
from support.stores import NewStore

from mail_database import tables, world
from mail_database.server import METHODS
from mail_database.store import Store, open_database, transaction

LEADS = (2, 1)  # in the order in which a table has them, and an index their addresses
MANY = 70_000  # more than a statement of PostgreSQL has places for values


@pytest.fixture
def engine(new_store: NewStore) -> Iterator[sa.Engine]:
    engine = open_database(new_store())
    with transaction(engine) as store:
        records = [{"model": "crm.lead", "id": lead, "email_from": f"{9 - lead}@outside.test"} for lead in LEADS]
        world.load(store, {"records": records, "partners": [{"id": 1, "name": "Ann", "email": "ann@outside.test"}]})
    yield engine
    engine.dispose()


def waits(engine: sa.Engine) -> bool:
    """Tell whether somebody waits for another's lock; on SQLite everybody does who writes."""
    if engine.dialect.name != "postgresql":
        return True
    query = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    with engine.connect() as connection:
        return connection.exec_driver_sql(query).first() is not None


def rename(*leads: int) -> Callable[[Store], object]:
    return lambda store: METHODS["write"](store, "crm.lead", list(leads), {"name": "Forty chairs"})


def bounce(store: Store) -> None:
    store.count_bounces({"7@outside.test", "8@outside.test"}, None)


def follow(store: Store) -> None:
    store.follow("crm.lead", 1, 1)


def set_parameter(store: Store) -> None:
    store.set_parameter("key", "value")


def nothing(_: Store) -> None:
    """Do nothing more."""


@pytest.mark.parametrize(
    ("first", "second", "last"),
    [
        (rename(1), rename(1, 2), rename(2)),
        (rename(1), bounce, rename(2)),
        (follow, follow, nothing),
        (set_parameter, set_parameter, nothing),
    ],
    ids=["two rename", "one renames, one bounces", "two follow", "two set a parameter"],
)
def test_what_two_do_at_once_succeeds(
    engine: sa.Engine,
    first: Callable[[Store], object],
    second: Callable[[Store], object],
    last: Callable[[Store], object],
) -> None:
    def run() -> None:
        with transaction(engine) as store:
            second(store)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with transaction(engine) as store:
            first(store)
            running = pool.submit(run)
            wait_until(lambda: waits(engine) or running.done(), "the second to wait")
            last(store)
        running.result()


def test_a_record_with_a_long_thread_is_deleted_with_it(engine: sa.Engine) -> None:
    rows = [{"message_key": str(key), "model": "crm.lead", "thread_id": 1} for key in range(MANY)]
    with engine.begin() as connection:
        connection.execute(tables.messages.insert(), rows)
    with transaction(engine) as store:
        store.insert(tables.deliveries, {"message_key": "7"})
        METHODS["unlink"](store, "crm.lead", [1])
        assert not store.has_rows(tables.messages)
        assert not store.has_rows(tables.deliveries)
