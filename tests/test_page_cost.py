"""What a page reads of a store is the same however large the store is: each statement of each page is explained.

On SQLite the steps of its virtual machine are counted, on PostgreSQL the rows that a plan has read; both are the same
in each run. The statements are those that the pages execute: a new page has to be named here, and is judged at once.
"""

import contextlib
import functools
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from support.large import fill
from support.page import pages_of, visitor
from support.stores import NewStore

from mail_database.page import search
from mail_database.store import open_database
from mail_database.tables import metadata

SIZE, TIMES = 6_000, 4  # messages in the smaller store, and how much more the larger one has
FEW = {"alias_domains", "companies", "counters", "parameters", "users"}  # tables that stay small
LARGE = sorted(metadata.tables.keys() - FEW)
LEADS, LEAD = "/records/crm.lead", "/records/crm.lead/1"
# The paths that are asked for each page; {deep} is an id in the middle of most tables, {middle} one of messages.
GET = {
    "/": ["/"],
    "/records/<model>": [
        *(f"{LEADS}{query}" for query in ("", "?before={deep}", "?find=order", "?find=order&before={deep}")),
        *(f"{LEADS}?find={text}" for text in ("number1011", "number", "chair+red", "order+cha", "cust+ord+num", "77")),
        *("/records/res.partner", "/records/res.partner?before={deep}", "/records/res.partner?find=partner9"),
    ],
    "/records/<model>/<id>": [LEAD, f"{LEAD}?before={{middle}}", "/records/res.partner/2"],
    "/messages/<id>/original": ["/messages/10/original"],
    "/messages/<id>/text": ["/messages/10/text"],
    "/attachments/<id>": ["/attachments/10"],
    "/discuss": ["/discuss", "/discuss?before={deep}"],
    "/unplaced": ["/unplaced", "/unplaced?before={deep}"],
    "/unplaced/<id>": ["/unplaced/10"],
    "/unplaced/<id>/original": ["/unplaced/10/original"],
    "/unplaced/<id>/text": ["/unplaced/10/text"],
    "/try/": ["/try/"],
    "/try/became": ["/try/became", "/try/became?messages={middle}&notices={deep}&unplaced={deep}"],
    "/setup/": ["/setup/"],
    "/setup/<name>": ["/setup/aliases", "/setup/partners?before={deep}"],
    "/setup/<name>/<id>": [f"/setup/{name}/{key}" for name in ("domains", "aliases", "partners") for key in (0, 1)],
}
POST: dict[str, list[tuple[str, dict[str, str]]]] = {
    "/records/<model>/<id>/write": [("/records/crm.lead/2/write", {"text": "hello"})],
    "/discuss": [("/discuss", {})],
    "/unplaced/<id>/place": [
        ("/unplaced/11/place", {"model": "crm.lead", "record": "2"}),
        ("/unplaced/12/place", {"model": "crm.lead"}),
    ],
    "/setup/parameters": [("/setup/parameters", {})],
    "/setup/followers/<model>/<id>": [
        ("/setup/followers/crm.lead/2", {"address": "yan@outside.test"}),
        ("/setup/followers/crm.lead/2", {"remove": "3"}),
    ],
    "/setup/<name>/<id>": [
        ("/setup/partners/0", {"name": "Zoe", "email": "zoe@outside.test", "active": "on"}),
        ("/setup/partners/3", {"name": "Zoe", "email": "zoe@outside.test", "active": "on"}),
        ("/setup/aliases/3", {"alias_name": "x", "alias_model": "crm.lead"}),
        ("/setup/aliases/4", {"delete": ""}),
    ],
}
NO_STATEMENTS = {"/login", "/logout", "/enter/<link>", "/static/<path:filename>", "/developer"}


class Cost(NamedTuple):
    """A statement, what it has read, and the lines of its plan."""

    statement: str
    read: int
    plan: list[str]


Costs = dict[tuple[str, int], Cost]  # by path and number of the statement


def test_every_page_is_asked() -> None:
    rules = {re.sub(r"<int[^>]*:\w+>", "<id>", rule) for rule in pages_of()}
    assert rules - NO_STATEMENTS == GET.keys() | POST.keys()


@pytest.fixture(scope="module")
def few_candidates() -> Iterator[None]:
    """As many as each word that is searched for has in the smaller store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "CANDIDATES", 100)
        yield


@pytest.fixture(scope="module")
def costs(new_store: NewStore, few_candidates: None) -> tuple[Costs, Costs]:
    """What each statement costs, in a store and in one that has several times as much."""
    found = []
    for size in SIZE, SIZE * TIMES:
        engine = open_database(new_store())
        try:
            fill(engine, size)
            found.append(costs_of(engine, size))
        finally:
            engine.dispose()
    return found[0], found[1]


def costs_of(engine: sa.Engine, size: int) -> Costs:
    """Ask for every page and return what its statements cost."""
    client = visitor(engine)
    client.application.config["WTF_CSRF_ENABLED"] = False
    found: Costs = {}
    explain = functools.cache(functools.partial(explained, engine))
    for path in itertools.chain(*GET.values()):
        with noted(engine) as statements:
            assert client.get(path.format(deep=size // 20, middle=size // 2)).status_code == 200, path
        found |= {(path, number): explain(*each) for number, each in enumerate(statements)}
    for path, form in itertools.chain(*POST.values()):
        with noted(engine) as statements:
            assert client.post(path, data=form).status_code == 302, path
        found |= {(f"POST {path}", number): explain(*each) for number, each in enumerate(statements)}
    return found


@contextlib.contextmanager
def noted(engine: sa.Engine) -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    """Yield a list, into which the statements come that are executed meanwhile."""
    statements: list[tuple[str, tuple[Any, ...]]] = []

    def note(_: Any, cursor: Any, statement: str, parameters: Any, context: Any, is_many: bool) -> None:
        if statement.split()[0].upper() in ("SELECT", "WITH", "UPDATE", "DELETE"):
            one = parameters[0] if is_many else parameters
            statements.append((statement, tuple(one.items() if isinstance(one, dict) else one)))

    sa.event.listen(engine, "before_cursor_execute", note)
    yield statements
    sa.event.remove(engine, "before_cursor_execute", note)


def explained(engine: sa.Engine, statement: str, parameters: tuple[Any, ...]) -> Cost:
    """Run a statement once more, take back whatever it changes, and return what it costs."""
    explain = _of_postgresql if engine.dialect.name == "postgresql" else _of_sqlite
    given = dict(parameters) if engine.dialect.name == "postgresql" else parameters
    with engine.connect() as connection:
        return explain(connection, statement, given)


def _of_sqlite(connection: sa.Connection, statement: str, parameters: Any) -> Cost:
    """Return the steps of the virtual machine, and the plan; a look from the newest on, with a limit, is no scan."""
    plan = [str(row[-1]) for row in connection.exec_driver_sql(f"explain query plan {statement}", parameters)]
    driver: Any = connection.connection.driver_connection
    steps = itertools.count()
    driver.set_progress_handler(lambda: next(steps) < 0, 1)
    connection.exec_driver_sql(statement, parameters).close()
    driver.set_progress_handler(None, 0)
    return Cost(statement, next(steps), [line for line in plan if "LIMIT" not in statement or "SCAN" not in line])


def _of_postgresql(connection: sa.Connection, statement: str, parameters: Any) -> Cost:
    """Return the rows that are read, those that are left out too, and the plan where a scan is the last resort."""
    explain = "explain (analyze, format json)"
    (((tree,),),) = (connection.exec_driver_sql(f"{explain} {statement}", parameters).scalars().all(),)
    connection.exec_driver_sql("set enable_seqscan = off")
    plan = [str(line) for line in connection.exec_driver_sql(f"explain {statement}", parameters).scalars()]
    connection.exec_driver_sql("set enable_seqscan = on")
    return Cost(statement, _rows_read(tree["Plan"]), plan)


def _rows_read(node: dict[str, Any]) -> int:
    each = sum(node.get(name, 0) for name in ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck"))
    return each * node["Actual Loops"] + sum(map(_rows_read, node.get("Plans", [])))


def test_a_page_reads_as_much_of_a_large_store_as_of_a_small_one(costs: tuple[Costs, Costs]) -> None:
    small, large = costs
    assert small.keys() == large.keys()
    more = [
        f"{key}: {small[key].read} -> {cost.read}: {cost.statement}"
        for key, cost in large.items()
        if cost.read > 1.5 * small[key].read + 100
    ]
    assert not more, "\n".join(more)


def test_no_page_reads_a_large_table_without_an_index(costs: tuple[Costs, Costs]) -> None:
    is_scan: Callable[[str], Any] = re.compile(rf"(?:SCAN|Seq Scan on) (?:{'|'.join(LARGE)})\b").search
    scans = [
        f"{key}: {line}: {cost.statement}" for key, cost in costs[1].items() for line in cost.plan if is_scan(line)
    ]
    assert not scans, "\n".join(scans)


def test_no_page_asks_once_for_each_row(costs: tuple[Costs, Costs]) -> None:
    assert max(number for _, number in costs[1]) < 20
