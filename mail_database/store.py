"""A store: one transaction over SQLite or PostgreSQL, and what it can be asked to do, in domain words.

``open_database(url)`` gives the engine, ``transaction(engine)`` a Store. Only this module executes SQL.

A delivery is one transaction. Two deliveries of one message, or from one sender, run one after the other: SQLite takes
its write lock when a transaction begins; on PostgreSQL ``lock`` takes advisory locks on the Message-ID and the sender's
address. So a Message-ID is accepted once, and no other delivery comes between a count and what depends on it.
"""

import contextlib
import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from mail_database.addresses import ascii_domain, normalize
from mail_database.message import Attachment
from mail_database.tables import (
    DOMAINS,
    alias_domains,
    aliases,
    allowed_senders,
    attachments,
    companies,
    counters,
    deliveries,
    followers,
    messages,
    metadata,
    notices,
    notifications,
    now,
    originals,
    parameters,
    partners,
    records,
    unplaced,
    users,
    words,
)
from mail_database.words import words_of

Row = Mapping[str, Any]

BOUNCE_COUNTING_MODELS = ("crm.lead", "res.partner")  # those on whose records Odoo counts bounces
ZLIB_LEVEL = 1  # of what is kept as it came: a delivery waits for it
MAX_VALUES_PER_STATEMENT = 1000  # each kind of database has a limit
FOUND_BY = {"records": ("name", "email_from"), "partners": ("name", "email")}  # tables whose rows have words

# How long a message that is placed nowhere is kept, and how many bytes of them in all: the oldest go first.
UNPLACED_DAYS = 90
MAX_UNPLACED_BYTES = 2**29
UNPLACED_OVERHEAD_BYTES = 2**10  # what each takes in addition to the message itself
MAX_UNPLACED_TEXT_CHARACTERS = 1000  # of each of sender, subject and Message-ID


class Damaged(ValueError):
    """What is stored can't be read any longer."""


def key_of(message_id: str) -> str:
    """Return what stands for an id in an index; ids differ in case."""
    return hashlib.sha256(message_id.encode()).hexdigest()


def open_database(url: str) -> sa.Engine:
    """Return the engine of a database, in which missing tables are created. Raises sqlalchemy.exc.SQLAlchemyError."""
    if url.startswith(("postgresql://", "postgres://")):
        engine = sa.create_engine("postgresql+psycopg://" + url.partition("://")[2], pool_size=16, max_overflow=16)
    else:
        engine = sa.create_engine(url, connect_args={"timeout": 60})
        sa.event.listen(engine, "connect", _set_up_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    with transaction(engine) as store:
        store.lock("the tables")
        store.make_tables()
    return engine


@contextlib.contextmanager
def transaction(engine: sa.Engine, reads: bool = False) -> Iterator["Store"]:
    """Yield a Store, committed when the block ends, rolled back when it raises; with ``reads`` it locks nothing."""
    with engine.connect().execution_options(reads=reads) as connection, connection.begin():
        yield Store(connection)


def _begin_sqlite(connection: sa.Connection) -> None:
    reads = connection.get_execution_options().get("reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _set_up_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # BEGIN is ours, see above
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA case_sensitive_like=ON")  # as PostgreSQL has it
    connection.execute("PRAGMA synchronous=FULL")  # what was answered must outlive a power cut


class Store:
    """One transaction, and what it can be asked to do. A row is a mapping with the names of the columns."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def _one(self, statement: Any) -> Row | None:
        row = self._connection.execute(statement).mappings().first()
        return None if row is None else dict(row)

    def _all(self, statement: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in self._connection.execute(statement).mappings()]

    def _update(self, table: sa.Table, found: Any, **values: Any) -> None:
        """Update rows, locked in the order of their keys: of two who update the same, one waits, and both go on."""
        if self._connection.dialect.name == "postgresql":  # SQLite has one writer at a time
            key = [*table.primary_key]
            self._connection.execute(sa.select(*key).where(found).order_by(*key).with_for_update())
        self._connection.execute(table.update().where(found).values(**values))

    def make_tables(self) -> None:
        """Create the tables that are missing, and the columns, with their indexes, that an older version lacks."""
        has_words = sa.inspect(self._connection).has_table(words.name)
        metadata.create_all(self._connection)
        there = sa.inspect(self._connection).get_multi_columns()
        prepare = self._connection.dialect.identifier_preparer
        for table in metadata.sorted_tables:
            known = {column["name"] for column in there[None, table.name]}
            for column in (column for column in table.c if column.name not in known):
                kind = column.type.compile(self._connection.dialect)
                name, new = prepare.format_table(table), prepare.format_column(column)
                self._connection.exec_driver_sql(f"ALTER TABLE {name} ADD COLUMN {new} {kind}")
            for index in table.indexes:
                index.create(self._connection, checkfirst=True)
        if not has_words:
            self.add_all_words()

    # --- tables as a whole, for world.py ---

    def has_rows(self, table: sa.Table, *found: Any) -> bool:
        """Tell whether there is a row in a table that meets these conditions."""
        return self._one(sa.select(sa.literal(1)).select_from(table).where(*found).limit(1)) is not None

    def all_rows(self, table: sa.Table, left_out: str = "") -> list[dict[str, Any]]:
        """Return all rows of a table in the order of its key, without the column that is left out."""
        columns = [column for column in table.c if column.name != left_out]
        return self._all(sa.select(*columns).order_by(*table.primary_key))

    def insert(self, table: sa.Table, values: Mapping[str, Any]) -> int:
        """Insert a row and return its id, 0 where the table has none."""
        values = _with_ascii_domain(table, values)
        key = self._connection.execute(table.insert().values(**values)).inserted_primary_key
        number = int(getattr(key, "id", 0))
        self._add_words(table, [{**values, "id": number}])
        return number

    def continue_ids(self, last_ids: Mapping[str, int]) -> None:
        """Make new rows take ids after those that were inserted; a model's records also after its last id."""
        highest = sa.select(records.c.model, sa.func.max(records.c.id)).group_by(records.c.model)
        there = {model: int(last) for model, last in self._connection.execute(highest)}
        for model in sorted({*there, *last_ids}):  # of some models all records are gone
            self._connection.execute(counters.delete().where(counters.c.model == model))
            self.insert(counters, {"model": model, "last": max(there.get(model, 0), last_ids.get(model, 0))})
        if self._connection.dialect.name != "postgresql":
            return
        for table in metadata.sorted_tables:
            if "id" in table.c and table.c.id.autoincrement is True:
                following = sa.select(sa.func.coalesce(sa.func.max(table.c.id), 0) + 1).scalar_subquery()
                sequence = sa.func.pg_get_serial_sequence(table.name, "id")
                self._connection.execute(sa.select(sa.func.setval(sequence, following, False)))

    # --- rows, for who reads and writes them by Odoo's names (models.py) ---

    def select(
        self,
        table: sa.Table,
        condition: Any,
        order: list[Any],
        limit: int | None,
        offset: int,
        left_out: Sequence[str] = (),
    ) -> list[dict[str, Any]]:
        """Return the rows of a table that meet a condition, in an order, at most ``limit`` of them after ``offset``.

        Columns that are left out are not read.
        """
        columns = [column for column in table.c if column.name not in left_out]
        return self._all(sa.select(*columns).where(condition).order_by(*order).limit(limit).offset(offset))

    def values(self, statement: sa.Select[Any]) -> list[Any]:
        """Return the values of a statement with one column."""
        return list(self._connection.execute(statement).scalars())

    def create(self, table: sa.Table, model: str, values: dict[str, Any]) -> Any:
        """Insert a row and return its id; the key, where the table has no other."""
        if table is records:
            return self.create_record(model, **{name: values[name] for name in values if name != "email_normalized"})
        if "id" in table.c:
            return self.insert(table, values)
        self._connection.execute(table.insert().values(**values))
        return next(iter(values.values()))

    def write(self, table: sa.Table, condition: Any, values: dict[str, Any]) -> None:
        """Set columns of the rows that meet a condition; a record's defaults are added to those that it has."""
        if "defaults" in values and table is records:
            defaults = values.pop("defaults")
            for row in self._all(sa.select(table).where(condition)):
                found = (records.c.model == row["model"], records.c.id == row["id"])
                merged = (row["defaults"] or {}) | defaults
                self._connection.execute(records.update().where(*found).values(defaults=merged))
        if values:
            values = dict(_with_ascii_domain(table, values))
            is_renamed = not values.keys().isdisjoint(FOUND_BY.get(table.name, ()))
            renamed = self._drop_words(table, condition) if is_renamed else []
            self._connection.execute(table.update().where(condition).values(**values))
            self._add_words(table, [row | values for row in renamed])

    def unlink(self, table: sa.Table, model: str, condition: Any, ids: Sequence[int]) -> None:
        """Delete rows; those of a record take its thread with them, and its messages are no longer known."""
        self._drop_words(table, condition)
        self._connection.execute(table.delete().where(condition))
        if table not in (records, partners):
            return
        thread = sa.and_(messages.c.model == model, messages.c.thread_id.in_(ids))
        gone, keys = sa.select(messages.c.id).where(thread), sa.select(messages.c.message_key).where(thread)
        for child in (attachments, notifications, originals):
            self._connection.execute(child.delete().where(child.c.message.in_(gone)))
        self._connection.execute(deliveries.delete().where(deliveries.c.message_key.in_(keys)))
        self._connection.execute(messages.delete().where(thread))

    def attachments_of(self, message: int) -> list[int]:
        """Return the ids of a message's attachments."""
        return [row["id"] for row in self._all(sa.select(attachments.c.id).where(attachments.c.message == message))]

    # --- the words by which records are found ---

    def add_all_words(self) -> None:
        """Add the words of all records and partners, of which none has any yet."""
        for table in (records, partners):
            rows = self._connection.execute(sa.select(*_found_by(table)), execution_options={"yield_per": 1000})
            for batch in rows.mappings().partitions():
                self._add_words(table, [dict(row) for row in batch])

    def _add_words(self, table: sa.Table, rows: Sequence[Row]) -> None:
        if table.name in FOUND_BY and (added := _rows_of_words(table, rows)):
            self._connection.execute(words.insert(), added)

    def _drop_words(self, table: sa.Table, condition: Any) -> list[dict[str, Any]]:
        """Drop the words of the rows that meet a condition, and return what these are found by."""
        if table.name not in FOUND_BY:
            return []
        found = sa.select(*_found_by(table)).where(condition).order_by(*table.primary_key)
        rows = self._all(found.with_for_update())  # who renames them too, waits
        if dropped := _rows_of_words(table, rows):
            key = [column == sa.bindparam(f"its_{column.name}") for column in words.c]
            named = [{f"its_{name}": value for name, value in row.items()} for row in dropped]
            self._connection.execute(words.delete().where(*key), named)
        return rows

    # --- deliveries ---

    def lock(self, *names: str) -> None:
        """Wait until no other transaction has locked one of these names (a Message-ID, a sender), and lock them."""
        if self._connection.dialect.name == "postgresql":
            for number in sorted(int(key_of(name)[:15], 16) for name in names if name):
                self._connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))

    def is_known(self, message_id: str) -> bool:
        """Tell whether a message with this id was accepted, or is stored."""
        key = key_of(message_id)
        found = self._one(sa.select(deliveries.c.accepted).where(deliveries.c.message_key == key))
        return bool(found or self._one(sa.select(messages.c.id).where(messages.c.message_key == key).limit(1)))

    def accept(self, message_id: str) -> None:
        """Note that a message with this id was accepted; the store takes each id once."""
        self.insert(deliveries, {"message_key": key_of(message_id)})

    # --- who and where ---

    def alias_domains(self) -> Sequence[Row]:
        """Return the alias domains, the oldest first."""
        return self._all(sa.select(alias_domains).order_by(alias_domains.c.id))

    def company_of(self, domain: str | None) -> Row | None:
        """Return the company that has this alias domain, else the first one."""
        statement = sa.select(companies).order_by(companies.c.id)
        return self._one(statement.where(companies.c.alias_domain == domain)) or self._one(statement)

    def aliases_named(self, local_parts: Iterable[str]) -> Sequence[Row]:
        """Return the aliases with one of these local-parts, in the order of their models and names."""
        found = []
        for names in _batches(local_parts):
            found += self._all(sa.select(aliases).where(aliases.c.local_part.in_(names)))
        return sorted(found, key=lambda alias: (alias["model"], alias["local_part"], alias["id"]))

    def alias_of_model(self, model: str) -> Row | None:
        """Return the oldest alias with a domain whose mail becomes records of a model, None where there is none."""
        found = (aliases.c.model == model, aliases.c.domain.is_not(None), aliases.c.thread_id.is_(None))
        return self._one(sa.select(aliases).where(*found).order_by(aliases.c.id).limit(1))

    def set_alias_status(self, alias_id: int, status: str) -> None:
        """Set what an alias's last delivery says about its settings: ``valid`` or ``invalid``."""
        self._connection.execute(aliases.update().where(aliases.c.id == alias_id).values(status=status))

    def partner(self, partner_id: int) -> Row | None:
        """Return a partner, archived or not, None when there is none with this id."""
        return self._one(sa.select(partners).where(partners.c.id == partner_id))

    def partners_with(self, address: str) -> Sequence[Row]:
        """Return the active partners with this address, the oldest first."""
        found = partners.c.email_normalized == address
        return self._all(sa.select(partners).where(found, partners.c.active).order_by(partners.c.id)) if address else []

    def user(self, user_id: int) -> Row | None:
        """Return a user, None when there is none with this id."""
        return self._one(sa.select(users).where(users.c.id == user_id))

    def has_internal_user(self, address: str) -> bool:
        """Tell whether an active internal user's partner, itself active, has this address."""
        statement = sa.select(users.c.id).join(partners, partners.c.id == users.c.partner_id)
        found = (partners.c.email_normalized == address, partners.c.active, users.c.active, users.c.internal)
        return bool(address and self._one(statement.where(*found).limit(1)))

    def followers(self, model: str, record_id: int) -> set[int]:
        """Return the ids of the partners who follow a record."""
        found = (followers.c.model == model, followers.c.id == record_id)
        return {row["partner_id"] for row in self._all(sa.select(followers.c.partner_id).where(*found))}

    def follow(self, model: str, record_id: int, partner_id: int) -> None:
        """Make a partner follow a record; who follows it already does so once."""
        self.lock(f"followers of {model} {record_id}")
        if partner_id not in self.followers(model, record_id):
            self.insert(followers, {"model": model, "id": record_id, "partner_id": partner_id})

    def unfollow(self, model: str, record_id: int, partner_id: int) -> None:
        """Make a partner follow a record no longer."""
        found = (followers.c.model == model, followers.c.id == record_id, followers.c.partner_id == partner_id)
        self._connection.execute(followers.delete().where(*found))

    def parameter(self, key: str) -> str:
        """Return a system parameter, "" when it is not set."""
        row = self._one(sa.select(parameters.c.value).where(parameters.c.key == key))
        return str(row["value"]) if row else ""

    def set_parameter(self, key: str, value: str) -> None:
        """Set a system parameter; "" removes it."""
        self.lock("the parameters")
        self._connection.execute(parameters.delete().where(parameters.c.key == key))
        if value:
            self._connection.execute(parameters.insert().values(key=key, value=value))

    def is_allowed(self, address: str) -> bool:
        """Tell whether a sender is exempt from the loop check (mail.gateway.allowed)."""
        return bool(self._one(sa.select(allowed_senders).where(allowed_senders.c.email == address)))

    # --- records and their threads ---

    def record(self, model: str, record_id: int) -> Row | None:
        """Return a record, which may be a partner, None when there is none with this id."""
        if model == "res.partner":
            return self.partner(record_id)
        return self._one(sa.select(records).where(records.c.model == model, records.c.id == record_id))

    def create_partner(self, name: str, email: str) -> int:
        """Create a partner, named by his address where he has no name, and return the id."""
        values = {"name": name or email, "email": email, "email_normalized": normalize(email)}
        return self.insert(partners, values)

    def create_record(self, model: str, **values: Any) -> int:
        """Create a record and return its id, the next one of its model; a deleted one's is not used again."""
        step = counters.update().where(counters.c.model == model).values(last=counters.c.last + 1)
        row = self._one(step.returning(counters.c.last))
        if row is None:
            self.lock(f"counter of {model}")
            row = self._one(step.returning(counters.c.last)) or {"last": 1}
            if row["last"] == 1:
                self.insert(counters, {"model": model, "last": 1})
        email = normalize(values.get("email_from") or "")
        self.insert(records, {"model": model, "id": row["last"], "email_normalized": email, **values})
        return int(row["last"])

    def count_created(self, model: str, address: str, minutes: int) -> int:
        """Count a sender's records of a model, archived ones left out, of the last so many minutes."""
        since = now() - timedelta(minutes=minutes)
        table = partners if model == "res.partner" else records
        found = [table.c.email_normalized == address, table.c.created >= since, table.c.active]
        return self._count(table, *found, *([records.c.model == model] if table is records else []))

    def count_posted(self, model: str, thread_id: int, sender: str, minutes: int) -> int:
        """Count a sender's mails on one record in the last so many minutes."""
        since = now() - timedelta(minutes=minutes)
        found = (messages.c.model == model, messages.c.thread_id == thread_id, messages.c.date >= since)
        return self._count(messages, *found, messages.c.email_from == sender, messages.c.kind == "email")

    def count_up_to(self, limit: int, table: sa.Table, *found: Any) -> int:
        """Count the rows of a table that meet these conditions, up to a limit."""
        return self._count(sa.select(sa.literal(1)).select_from(table).where(*found).limit(limit).subquery())

    def _count(self, table: sa.FromClause, *found: Any) -> int:
        row = self._one(sa.select(sa.func.count().label("number")).select_from(table).where(*found))
        return int(row["number"]) if row else 0

    def records_to_show(self, model: str | None, record_id: int | None) -> Iterator[Row]:
        """Yield the records to show, those asked for or all; partners are among them where they have a thread."""
        written = sa.select(messages.c.thread_id).where(messages.c.model == "res.partner")
        columns = ("id", "name", "active", "bounce_count")
        of_partners = sa.select(sa.literal("res.partner").label("model"), *(partners.c[name] for name in columns))
        of_records = sa.select(records.c.model, *(records.c[name] for name in columns))
        found = sa.union_all(of_records, of_partners.where(partners.c.id.in_(written))).subquery()
        statement = sa.select(found).order_by(found.c.model, found.c.id)
        statement = statement.where(found.c.model == model) if model else statement
        statement = statement.where(found.c.id == record_id) if record_id else statement
        for row in self._connection.execute(statement, execution_options={"yield_per": 100}).mappings():
            yield dict(row)

    def thread(self, model: str, record_id: int) -> list[dict[str, Any]]:
        """Return a record's messages, the oldest first, with their attachments' names and their failures' reasons."""
        found = (messages.c.model == model, messages.c.thread_id == record_id)
        thread = self._all(sa.select(messages).where(*found).order_by(messages.c.id))
        for message in thread:
            files = sa.select(attachments.c.name, attachments.c.size).where(attachments.c.message == message["id"])
            message["attachments"] = self._all(files.order_by(attachments.c.id))
            message["failures"] = [row for row in self.notifications_of(message["id"]) if row["status"] == "bounce"]
        return thread

    def notices_told(self) -> list[dict[str, Any]]:
        """Return all notices, the oldest first."""
        return self._all(sa.select(notices).order_by(notices.c.id))

    def messages_named(self, message_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the messages that have one of these ids, without their texts, in the order of the ids.

        An id is known with and without its brackets. Of several messages with one id, the newest is returned.
        """
        order: dict[str, int] = {}
        for place, message_id in enumerate(message_ids):
            order.setdefault(key_of(message_id), place)
            order.setdefault(key_of(message_id.strip("<>")), place)
        columns = ("id", "message_key", "model", "thread_id", "internal_note")
        statement = sa.select(*(messages.c[name] for name in columns)).where(messages.c.message_key.in_(order))
        known = {order[row["message_key"]]: row for row in self._all(statement.order_by(messages.c.id))}
        return [known[place] for place in sorted(known)]

    def keep_original(self, message: int, raw: bytes) -> None:
        """Keep a message as it came."""
        self.insert(originals, {"message": message, "content": zlib.compress(raw, ZLIB_LEVEL)})

    def original(self, message: int) -> bytes | None:
        """Return a message as it came, None where it did not come by mail. Raises Damaged."""
        row = self._one(sa.select(originals.c.content).where(originals.c.message == message))
        return _unpacked(message, row["content"]) if row else None

    def all_originals(self) -> Iterator[tuple[int, bytes]]:
        """Yield the ids of the messages that came by mail, each with it as it came."""
        statement = sa.select(originals.c.message, originals.c.content)
        with self._connection.execute(statement, execution_options={"yield_per": 100}) as rows:
            for message, content in rows:
                yield message, _unpacked(message, content)

    def message(self, key: int) -> Row | None:
        """Return a message with its text, None when there is none with this id."""
        return self._one(sa.select(messages).where(messages.c.id == key))

    def ids_of_thread(self, model: str, thread_id: int, before: int, limit: int) -> list[str]:
        """Return the Message-IDs of a record's messages before one of them, the newest first."""
        found = (messages.c.model == model, messages.c.thread_id == thread_id, messages.c.id < before)
        statement = sa.select(messages.c.message_id).where(*found).order_by(messages.c.id.desc()).limit(limit)
        return [row["message_id"] for row in self._all(statement)]

    def newest_of_thread(self, model: str, thread_id: int) -> Row | None:
        """Return the newest mail or comment of a record."""
        found = (messages.c.model == model, messages.c.thread_id == thread_id)
        statement = sa.select(messages).where(*found, messages.c.kind.in_(["email", "comment"]))
        return self._one(statement.order_by(messages.c.id.desc()).limit(1))

    def post(self, message_id: str, attached: Iterable[Attachment], **values: Any) -> int:
        """Put a message on a record's thread, with its attachments, and return its id."""
        key = self.insert(messages, {"message_id": message_id, "message_key": key_of(message_id), **values})
        for attachment in attached:
            content = attachment.content
            row = {"message": key, "name": attachment.name, "mimetype": attachment.mimetype, "content": content}
            row["content_id"] = attachment.content_id or None
            row |= {"size": len(content), "sha1": hashlib.sha1(content, usedforsecurity=False).hexdigest()}
            self.insert(attachments, row)
        return key

    # --- bounces ---

    def notifications_of(self, message: int) -> Sequence[Row]:
        """Return the notifications of a message, each with its partner's address."""
        statement = sa.select(notifications, partners.c.email_normalized.label("email"))
        statement = statement.join(partners, partners.c.id == notifications.c.partner_id)
        return self._all(statement.where(notifications.c.message == message).order_by(notifications.c.id))

    def fail_notifications(self, found: Iterable[int], reason: str) -> None:
        """Mark notifications as failed: Odoo's red envelope."""
        for batch in _batches(found):
            failed = notifications.update().where(notifications.c.id.in_(batch))
            self._connection.execute(failed.values(status="bounce", reason=reason))

    def known_addresses(self, addresses: Iterable[str]) -> set[str]:
        """Return those of these addresses that a partner or a record has."""
        known: set[str] = set()
        for batch in _batches(addresses):
            for column, found in _bounced(batch):
                known |= set(self._connection.execute(sa.select(column).where(found)).scalars())
        return known

    def count_bounces(self, addresses: set[str], about: Row | None) -> None:
        """Count a bounce on the partners and records of these addresses, and on the record of the message ``about``."""
        for batch in _batches(addresses):
            for column, found in _bounced(batch):
                self._update(column.table, found, bounce_count=column.table.c.bounce_count + 1)
        if about and about["model"] in BOUNCE_COUNTING_MODELS and addresses:
            found = (records.c.model == about["model"], records.c.id == about["thread_id"])
            record = self._one(sa.select(records.c.email_normalized).where(*found))
            if record and record["email_normalized"] not in addresses:  # else it was counted above
                more = records.update().where(*found).values(bounce_count=records.c.bounce_count + 1)
                self._connection.execute(more)

    def reset_bounces(self, address: str) -> None:
        """Forget the bounces of an address, which is alive: it has written to us."""
        for column, found in _bounced([address] if address else []):
            changed = sa.and_(found, column.table.c.bounce_count != 0)
            self._update(column.table, changed, bounce_count=0)

    def add_notification(self, **values: Any) -> int:
        """Note that a partner is to be told of a message."""
        return self.insert(notifications, values)

    def next_ready(self, after: int = 0) -> Row | None:
        """Return the oldest notification that was not sent yet, of those with a higher id."""
        found = (notifications.c.status == "ready", notifications.c.id > after)
        return self._one(sa.select(notifications).where(*found).order_by(notifications.c.id).limit(1))

    def set_notification(self, key: int, status: str, reason: str) -> None:
        """Set what became of a notification: ``sent``, ``ready`` (to be tried again), ``exception``, ``canceled``."""
        changed = notifications.update().where(notifications.c.id == key, notifications.c.status == "ready")
        self._connection.execute(changed.values(status=status, reason=reason or None))

    # --- notices ---

    def was_told_since(self, about: str, to: str, address: str, minutes: int) -> bool:
        """Tell whether somebody was told this about an address of ours in the last so many minutes."""
        since = now() - timedelta(minutes=minutes)
        found = (notices.c.to == to, notices.c.about == about, notices.c.address == address)
        return bool(self._one(sa.select(notices.c.id).where(*found, notices.c.created >= since).limit(1)))

    def add_notice(self, **values: Any) -> int:
        """Keep a notice, to be sent when there is a mail server to take it."""
        return self.insert(notices, values)

    def next_outgoing(self, after: int = 0) -> Row | None:
        """Return the oldest notice that was not sent yet, of those with a higher id."""
        found = (notices.c.state == "outgoing", notices.c.id > after)
        return self._one(sa.select(notices).where(*found).order_by(notices.c.id).limit(1))

    def set_notice_state(self, notice: int, state: str) -> None:
        """Set what became of a notice: ``sent``, ``outgoing`` (to be tried again) or ``exception`` (refused)."""
        self._connection.execute(notices.update().where(notices.c.id == notice).values(state=state))

    # --- what is placed nowhere ---

    def keep_unplaced(self, original: bytes, **values: Any) -> None:
        """Keep a message that is placed nowhere, as it came; the oldest go when there are too many."""
        for name in ("sender", "subject", "message_id"):
            values[name] = values[name] and values[name][:MAX_UNPLACED_TEXT_CHARACTERS]
        last = self._one(sa.select(sa.func.max(unplaced.c.bytes_so_far).label("bytes"))) or {}
        total = (last.get("bytes") or 0) + len(original) + UNPLACED_OVERHEAD_BYTES
        self.insert(unplaced, {"original": original, "bytes_so_far": total, **values})
        too_old = unplaced.c.date < now() - timedelta(days=UNPLACED_DAYS)
        too_many = unplaced.c.bytes_so_far <= total - MAX_UNPLACED_BYTES
        self._connection.execute(unplaced.delete().where(sa.or_(too_old, too_many)))

    def take_unplaced(self, key: int) -> bool:
        """Forget a message that was placed nowhere, and tell whether it was there."""
        return bool(self._connection.execute(unplaced.delete().where(unplaced.c.id == key)).rowcount)

    def count_unplaced(self) -> int:
        """Return how many messages are placed nowhere."""
        return self._count(unplaced)

    def unplaced_message(self, key: int) -> Row | None:
        """Return a message that is placed nowhere, as it came, None when there is none with this id."""
        return self._one(sa.select(unplaced).where(unplaced.c.id == key))

    def unplaced(self) -> Iterator[Row]:
        """Yield what is placed nowhere, the oldest first, without the messages themselves."""
        columns = [column for column in unplaced.c if column.name != "original"]
        statement = sa.select(*columns).order_by(unplaced.c.id)
        for row in self._connection.execute(statement, execution_options={"yield_per": 100}).mappings():
            yield dict(row)


def _unpacked(message: int, content: bytes) -> bytes:
    try:
        return zlib.decompress(content)
    except zlib.error as error:
        raise Damaged(f"the original of message {message} is damaged in the store: {error}") from None


def _found_by(table: sa.Table) -> list[sa.Column[Any]]:
    """Return the columns that tell which words a row has, and its key."""
    return [*table.primary_key, *(table.c[name] for name in FOUND_BY[table.name])]


def _rows_of_words(table: sa.Table, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows of ``words`` for those of a table."""
    return [
        {"model": row.get("model", "res.partner"), "word": word, "id": row["id"]}
        for row in rows
        for word in words_of(*(row.get(name) for name in FOUND_BY[table.name]))
    ]


def _bounced(addresses: Sequence[str]) -> list[tuple[Any, Any]]:
    """Return the column of addresses and the condition, of the partners and of the records where bounces count."""
    of_records = records.c.email_normalized
    return [
        (partners.c.email_normalized, partners.c.email_normalized.in_(addresses)),
        (of_records, sa.and_(records.c.model.in_(BOUNCE_COUNTING_MODELS), of_records.in_(addresses))),
    ]


def _batches(values: Iterable[Any]) -> Iterator[list[Any]]:
    """Yield values in lists that fit in one statement."""
    found = list(values)
    for start in range(0, len(found), MAX_VALUES_PER_STATEMENT):
        yield found[start : start + MAX_VALUES_PER_STATEMENT]


def _with_ascii_domain(table: sa.Table, values: Mapping[str, Any]) -> Mapping[str, Any]:
    column = DOMAINS.get(table.name, "")
    domain = values.get(column)
    return {**values, column: ascii_domain(domain)} if isinstance(domain, str) else values
