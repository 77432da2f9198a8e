"""A large store, filled fast: what a page shows may be far back, and most of what there is it must not touch."""

import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from mail_database import tables, world
from mail_database.store import key_of, transaction

BATCH = 10_000
LONG_THREADS = 4  # records 1 to 4 have a twentieth of all messages each
WORLD = {
    "alias_domains": [{"id": 1, "name": "example.com", "catchall": "catchall", "bounce": "bounce"}],
    "companies": [{"id": 1, "name": "My Company", "email": "office@example.com", "alias_domain": "example.com"}],
    "aliases": [{"id": 1, "local_part": "info", "domain": "example.com", "model": "crm.lead"}],
    "partners": [{"id": 1, "name": "Administrator", "email": "admin@example.com"}],
    "users": [{"id": 2, "login": "admin", "partner_id": 1}],
}
THINGS = ["chair", "table", "lamp", "sofa", "shelf", "desk", "carpet", "mirror", "curtain", "bed"]
COLOURS = ["red", "green", "blue", "white", "black"]
ORIGINAL = zlib.compress(b"From: a@outside.test\r\nSubject: x\r\n\r\nbody\r\n")
YESTERDAY = tables.now() - timedelta(days=1)


def fill(engine: sa.Engine, size: int) -> None:
    """Store so many messages, and of all else in proportion, straight into the tables."""
    records = size * 3 // 10
    for table, count, row in (
        (tables.records, records, _record),
        (tables.partners, size // 10, _partner),
        (tables.aliases, size // 10, _alias),
        (tables.messages, size, lambda number: _message(number, size, records)),
        (tables.originals, size // 10, lambda number: {"message": number * 5, "content": ORIGINAL}),
        (tables.attachments, size // 10, _attachment),
        (tables.notifications, size // 4, lambda number: _notification(number, size)),
        (tables.notices, size // 10, _notice),
        (tables.unplaced, size // 10, _unplaced),
        (tables.followers, size // 100, lambda number: {"model": "crm.lead", "id": 1, "partner_id": number + 1}),
    ):
        for batch in _batches(count, row):
            with engine.begin() as connection:
                connection.execute(table.insert(), batch)
    with transaction(engine) as store:
        store.add_all_words()
        world.load(store, WORLD)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("vacuum analyze")  # as its autovacuum does, sooner or later


def _batches(count: int, row: Callable[[int], dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(1, count + 1, BATCH):
        yield [row(number) for number in range(start, min(start + BATCH, count + 1))]


def _record(number: int) -> dict[str, Any]:
    """Return a record: four of five are leads; "order" is in every name, a colour in every fifth."""
    name = f"Order {COLOURS[number // 7 % 5]} {THINGS[number % 10]} number{number}"
    address = f"ann{number % 1000}@customer{number % 100}.example"
    model = "crm.lead" if number % 5 or number <= LONG_THREADS else "project.task"
    named = {"name": name, "email_from": f"Ann <{address}>", "email_normalized": address}
    return {"model": model, "id": number, "created": YESTERDAY, **named}


def _partner(number: int) -> dict[str, Any]:
    address = f"partner{number}@partner.example"
    named = {"name": f"Partner {number}", "email": address, "email_normalized": address}
    return {"id": number + 1, "created": YESTERDAY, **named}


def _alias(number: int) -> dict[str, Any]:
    """Return an alias of another model than the page for a trial looks for."""
    place = {"local_part": f"alias{number}", "domain": "example.com", "model": "project.task"}
    return {"id": number + 1, "defaults": {}, **place}


def _message(number: int, size: int, records: int) -> dict[str, Any]:
    """Return a message: every fifth is on a long thread; the newer half are comments."""
    thread = number // 5 % LONG_THREADS + 1 if number % 5 == 0 else number * 7919 % records + 1
    return {
        "id": number,
        "message_id": f"<{number}@outside.test>",
        "message_key": key_of(f"<{number}@outside.test>"),
        "model": "crm.lead",
        "thread_id": thread,
        "email_from": f"a{number % 1000}@outside.test",
        "subject": f"Order {thread}",
        "body": "<p>" + "some text " * 20 + "</p>",
        "kind": "email" if number < size // 2 else "comment",
        "date": YESTERDAY,
    }


def _attachment(number: int) -> dict[str, Any]:
    return {"message": number * 10, "name": "a.txt", "mimetype": "text/plain", "size": 10, "content": b"x" * 10}


def _notification(number: int, size: int) -> dict[str, Any]:
    """Return a notification: of the older half every third has failed, and a few of the newer one wait."""
    failed = "bounce" if number % 6 else "exception"
    status = failed if number % 3 == 0 and number < size // 8 else "ready" if number % 1000 == 7 else "sent"
    return {"message": number * 4, "partner_id": number % 1000 + 2, "status": status, "reason": "550 no such user"}


def _notice(number: int) -> dict[str, Any]:
    return {"about": "loop", "to": f"a{number}@outside.test", "subject": "x", "state": "sent", "created": YESTERDAY}


def _unplaced(number: int) -> dict[str, Any]:
    what = {"about": "notice", "reason": "a machine", "sender": "a@outside.test", "subject": f"Subject {number}"}
    original = b"From: a@outside.test\r\nSubject: x\r\n\r\nbody\r\n"
    return {**what, "bytes_so_far": number * 2000, "date": YESTERDAY, "original": original}
