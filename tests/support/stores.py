"""The stores that every test of mail_database runs on: SQLite, and PostgreSQL where its programs are."""

import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mail_database.store import open_database, transaction
from mail_database.world import load
from support.mta import free_port
from support.postgresql import Impossible, PostgreSQL

NewStore = Callable[[], str]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    try:
        server = PostgreSQL()
    except Impossible as error:
        pytest.skip(str(error))
    yield server
    server.remove()


@pytest.fixture(scope="session")
def journal_server() -> Iterator[PostgreSQL]:
    """A server on a port, with a user who needs a password."""
    try:
        server = PostgreSQL(free_port())
    except Impossible as error:
        pytest.skip(str(error))
    yield server
    server.remove()


def stores_with(world: dict[str, Any]) -> Any:
    """Return a fixture: a function that makes a store with this world in it and returns its URL."""

    @pytest.fixture(scope="module", params=["sqlite", "postgresql"])
    def new_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NewStore:
        if request.param == "sqlite":
            return _sqlite_maker(tmp_path_factory.mktemp("stores"), world)
        return _postgresql_maker(request.getfixturevalue("postgresql"), world)

    return new_store


new_store = stores_with({})


def _sqlite_maker(folder: Path, world: dict[str, Any]) -> NewStore:
    template = folder / "template.db"
    fill(f"sqlite:///{template}", world)

    def new_sqlite() -> str:
        path = folder / f"{uuid.uuid4()}.db"
        shutil.copy(template, path)
        return f"sqlite:///{path}"

    return new_sqlite


def _postgresql_maker(server: PostgreSQL, world: dict[str, Any]) -> NewStore:
    name = f"template_{uuid.uuid4().hex}"
    server.sql(f"create database {name}")
    fill(server.url(name), world)

    def new_postgresql() -> str:
        database = f"store_{uuid.uuid4().hex}"
        server.sql(f"create database {database} template {name}")
        return server.url(database)

    return new_postgresql


def fill(url: str, world: dict[str, Any]) -> None:
    """Make the tables of a store and load a world into them."""
    engine = open_database(url)
    with transaction(engine) as store:
        load(store, world)
    engine.dispose()
