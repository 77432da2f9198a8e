"""The stores that every test of mail_database runs on: SQLite, and PostgreSQL where its programs are."""

import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mail_database.store import open_database, transaction
from mail_database.world import load
from support.postgresql import Impossible, PostgreSQL

NewStore = Callable[[], str]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    try:
        server = PostgreSQL()
    except Impossible as error:
        pytest.skip(str(error))
    yield server
    server.stop()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def new_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NewStore:
    """Return a function that makes a store, with the tables in it, and returns its URL."""
    return _maker(request, tmp_path_factory, {})


def _maker(request: pytest.FixtureRequest, paths: pytest.TempPathFactory, world: dict) -> NewStore:
    folder: Path = paths.mktemp("stores")
    if request.param == "sqlite":
        template = folder / "template.db"
        _make(f"sqlite:///{template}", world)

        def new_sqlite() -> str:
            path = folder / f"{uuid.uuid4()}.db"
            shutil.copy(template, path)
            return f"sqlite:///{path}"

        return new_sqlite

    server = request.getfixturevalue("postgresql")
    name = f"template_{uuid.uuid4().hex}"
    server.sql(f"create database {name}")
    _make(server.url(name), world)

    def new_postgresql() -> str:
        database = f"store_{uuid.uuid4().hex}"
        server.sql(f"create database {database} template {name}")
        return server.url(database)

    return new_postgresql


def _make(url: str, world: dict) -> None:
    engine = open_database(url)
    with transaction(engine) as store:
        load(store, world)
    engine.dispose()
