"""The journal of several hosts: rows and locks in a PostgreSQL database of its own, through psycopg.

a session       one for each delivery while that lasts, kept for a later one. It has a name, which the server holds;
                each statement that locks or writes asks for that name in the same breath. A pooler that gives a
                statement to another session (PgBouncer in transaction mode) is found out so, before anything is done
a lock          is the session's (pg_try_advisory_lock): the server lifts it when the session ends, however it ends
a row           says who wrote it last (``claim``) and carries the hold-off: a lock may be lost while the call to the
                database still runs. Moments are the server's, and it computes the ages
a lost session  is replaced when there is something to write: by one that gets the lock, where the row is still as this
                delivery saw it last. Else another delivery has the message, or had it, and nothing is written
"""

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from mailgate.journal.rows import (
    ATTEMPT,
    JOURNAL,
    PAUSE_SECONDS,
    PURGED_ROWS,
    SEARCHED,
    VALUES,
    Row,
    Taken,
    Unusable,
    like,
)
from mailgate.outcome import Ended, Outcome

CONNECT_SECONDS = 3  # for each of the hosts that the URL names
ANSWER_SECONDS = 5.0  # that a statement has, or the server is taken for dead, or is paused
STATEMENT_SECONDS, LOCK_SECONDS = 4, 3  # the same for the server, which then says why
REGAIN_SECONDS = 1.0  # that a new session waits for the lock of one that was lost: the server may not know it yet
POOLED = "a pooler gives its statements to changing sessions; PgBouncer must be in session mode"
MAX_IDLE_SESSIONS = 8  # that are kept for later
RENEWED_SECONDS = 24 * 3600  # after which a row that is written again counts as seen first: or the purge looks at it

# libpq's, where the URL says nothing else: a server that is gone is known to be so in seconds, not in hours. Journals
# are written, so of several hosts the one counts that can be.
CONNECTION = {
    "application_name": "mail-gateway",
    "connect_timeout": CONNECT_SECONDS,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": int(ANSWER_SECONDS * 1000),
    "target_session_attrs": "read-write",
    "client_encoding": "UTF8",
}
# A row that says "begun" must outlive a crash of the server, whatever is usual there.
OPEN = f"""
    select set_config('mail_gateway.session', %s, false), set_config('synchronous_commit', 'on', false),
        set_config('statement_timeout', '{STATEMENT_SECONDS}s', false),
        set_config('lock_timeout', '{LOCK_SECONDS}s', false),
        set_config('plan_cache_mode', 'force_generic_plan', false), to_regclass('version') is not null
"""
IS_OURS = "current_setting('mail_gateway.session', true) = %(session)s"
LOCK = f"select case when {IS_OURS} then pg_try_advisory_lock(%(number)s) end"
UNLOCK = f"select case when {IS_OURS} then pg_advisory_unlock(%(number)s) end"

TYPES = {"text": "text", "integer": "bigint", "blob": "bytea", "real": "double precision"}  # of VALUES, here

# Each makes the next version of the tables; the table "version" says how many have been run.
MIGRATIONS = (
    (
        # digest: of URL, database and Message-ID
        f"""
        create table message (
            digest bytea primary key, seen_first timestamptz not null, seen_last timestamptz not null,
            begun timestamptz, claim bytea not null,
            {", ".join(f"{name} {TYPES[kind]}" for name, kind in VALUES.items())}
        )
        """,
        "create index message_seen_first on message (seen_first)",  # which is written once a day at most
    ),
    (
        "create table attempt (id bigint generated always as identity primary key, "
        f"{', '.join(f'{name} {TYPES[kind]}' for name, kind in ATTEMPT.items())})",
    ),
)
SELECT = f"""
    select claim, extract(epoch from clock_timestamp() - seen_last)::float8,
        extract(epoch from clock_timestamp() - begun)::float8, {", ".join(VALUES)}
    from message where digest = %(digest)s
"""
# statement_timestamp(), for an index is of no use beside clock_timestamp(), which may differ from row to row
OLDEST = "statement_timestamp() - make_interval(secs => %(purge_age)s)"
APPEND = f"""
    with purged_messages as (delete from message where digest = any(array(
        select digest from message where seen_first < {OLDEST} and seen_last < {OLDEST}
        order by seen_first limit {PURGED_ROWS} for update skip locked
    ))),
    purged_attempts as (delete from attempt where id = any(array(
        select id from attempt order by id limit {PURGED_ROWS} for update skip locked
    )) and at < extract(epoch from {OLDEST}))
    insert into attempt ({", ".join(ATTEMPT)}) values ({", ".join(f"%({name})s" for name in ATTEMPT)})
"""
ATTEMPTS = f"""
    select {", ".join(ATTEMPT)} from attempt
    where at >= %(since)s
        and ({" or ".join(f"{name} ilike %(pattern)s escape '!'" for name in SEARCHED)} or subject like '%%=?%%')
    order by id desc limit %(limit)s
"""


@cache
def upsert(names: tuple[str, ...], is_begun: bool) -> str:
    """Return the statement that writes these columns of a row."""
    values = {
        "seen_last": "clock_timestamp()",
        "begun": "clock_timestamp()" if is_begun else "null::timestamptz",
        "claim": "%(claim)s",
        **{name: f"%({name})s::{TYPES[VALUES[name]]}" for name in names},
    }
    return (
        f"insert into message (digest, seen_first, {', '.join(values)}) "
        + f"select %(digest)s, clock_timestamp(), {', '.join(values.values())} where {IS_OURS} "
        + f"on conflict (digest) do update set {', '.join(f'{name} = excluded.{name}' for name in values)},"
        + f" seen_first = case when message.seen_first < excluded.seen_first - interval '{RENEWED_SECONDS} s'"
        + " then excluded.seen_first else message.seen_first end"
    )


class Postgresql:
    """The store in a database, for one claim."""

    def __init__(self, url: str, password: str) -> None:
        self.access = (url, password)
        self.claim = os.urandom(16)
        self.seen: bytes | None = None  # whose the row is, as far as this claim knows
        self.session: _Session | None = None  # that has the lock

    @contextlib.contextmanager
    def lock(self, digest: bytes, until: float) -> Iterator[None]:
        """Hold a message's lock. Raises as Store.lock()."""
        number = int.from_bytes(digest[:8], "big", signed=True)
        self.session = self._locked(number, until)
        try:
            yield
        finally:
            _give_back(self.access, self.session, number)
            self.session = None

    def read(self, digest: bytes) -> Row | None:
        """Return a message's row. Raises as Store.read()."""

        def ask(session: _Session) -> Any:
            return session.execute(SELECT, {"digest": digest}).fetchone()

        if self.session:
            with _usable():
                found = ask(self.session)
        else:
            found = self._with_session(ask)
        if not found:
            return None
        self.seen, seen_age, begun_age, *values = found
        return Row(seen_age, begun_age, dict(zip(VALUES, values, strict=True)))

    def write(self, digest: bytes, values: Mapping[str, Any], is_begun: bool) -> None:
        """Write a message's row. Raises as Store.write()."""
        statement = upsert(tuple(values), is_begun)
        row = {**_storable(values), "digest": digest, "claim": self.claim}
        try:
            self._write(statement, row)
        except Unusable:
            if self.session and not self.session.closed:
                raise
            self._regain(digest)
            self._write(statement, row)
        self.seen = self.claim

    def append(self, attempt: Mapping[str, Any], purge_age: float) -> None:
        """Write down a try. Raises as Store.append()."""
        row = {**_storable(attempt), "purge_age": purge_age}
        self._with_session(lambda session: session.execute(APPEND, row))

    def attempts(self, word: str, since: float, limit: int) -> Iterable[Mapping[str, Any]]:
        """Return the tries. Raises as Store.attempts()."""
        row = {"pattern": like(word), "since": since, "limit": limit}
        found = self._with_session(lambda session: session.execute(ATTEMPTS, row).fetchall())
        return [dict(zip(ATTEMPT, values, strict=True)) for values in found]

    def _with_session(self, work: Callable[["_Session"], Any]) -> Any:
        """Return what ``work`` makes of a session, which has no lock. Raises Unusable or Ended(SETTINGS)."""
        while True:
            session, is_kept = _session(self.access)
            try:
                with _usable():
                    return work(session)
            except Unusable:
                if not (is_kept and session.closed):
                    raise
                _close_idle(self.access)  # it died while nobody used it, as the others have
            finally:
                _give_back(self.access, session)

    def _write(self, statement: str, row: Mapping[str, Any]) -> None:
        assert self.session
        with _usable():
            written = self.session.execute(statement, {**row, "session": self.session.name})
        if not written.rowcount:
            raise Unusable(POOLED)

    def _locked(self, number: int, until: float) -> "_Session":
        """Return a session that has the lock. Raises Taken, Unusable or Ended(SETTINGS)."""
        while True:
            session, is_kept = _session(self.access)
            try:
                while not session.ask(LOCK, number):
                    if time.monotonic() >= until:
                        raise Taken
                    time.sleep(PAUSE_SECONDS)
                return session
            except Taken:
                _give_back(self.access, session)
                raise
            except Unusable:
                if not (is_kept and session.closed):
                    session.close()
                    raise
                _close_idle(self.access)  # it died while nobody used it, as the others have
            except BaseException:  # a signal, too
                session.close()
                raise

    def _regain(self, digest: bytes) -> None:
        """Have another session in the place of a lost one, if nobody has begun since. Raises as write()."""
        number = int.from_bytes(digest[:8], "big", signed=True)
        try:
            session = self._locked(number, time.monotonic() + REGAIN_SECONDS)
        except Taken:
            raise Unusable("its session was lost, and another delivery of the message runs") from None
        except Unusable:
            raise
        except Ended as ended:  # a call may run: it is no time for what an operator has to mend
            raise Unusable(ended.verdict.cause.removeprefix(JOURNAL)) from None
        try:
            with _usable():
                found = session.execute("select claim from message where digest = %s", [digest]).fetchone()
            # What was written last may have been done or not: the answer to that may be what was lost.
            if (found[0] if found else None) not in (self.seen, self.claim):
                raise Unusable("its session was lost, and another delivery of the message has run since")
        except BaseException:  # a signal, too
            session.close()
            raise
        self.session = session


def _storable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values without the character 0, which no text of PostgreSQL's has."""
    return {name: value.replace("\0", "\\x00") if isinstance(value, str) else value for name, value in values.items()}


@contextlib.contextmanager
def _usable() -> Iterator[None]:
    """Raise Unusable, with the first line, for what psycopg says; the others may quote a row."""
    try:
        yield
    except psycopg.Error as error:
        raise Unusable(error.diag.message_primary or str(error).partition("\n")[0]) from None


# --- sessions -------------------------------------------------------------------------------------------------------


class _Session(psycopg.Connection[Any]):
    """A connection with a name. It is closed when a statement's answer does not come, or a signal does."""

    name = ""

    def ask(self, statement: str, number: int) -> bool:
        """Return what a statement about a lock says. Raises Unusable or Ended(SETTINGS)."""
        with _usable():
            (answer,) = self.execute(statement, {"session": self.name, "number": number}).fetchone() or (None,)
        if answer is None:
            self.close()
            raise Ended(Outcome.SETTINGS, f"journal: {POOLED}")
        return bool(answer)

    def wait(self, gen: Any, *_: Any, **__: Any) -> Any:
        """Return what a generator of psycopg's comes to. Raises psycopg.OperationalError after ANSWER_SECONDS.

        psycopg waits without end, as libpq does: for a server that is stopped, a pooler that is paused.
        """
        until = time.monotonic() + ANSWER_SECONDS
        poll = select.poll()
        try:
            wanted = next(gen)
            while True:
                poll.register(
                    self.fileno(), (select.POLLIN if wanted & 1 else 0) | (select.POLLOUT if wanted & 2 else 0)
                )
                events = poll.poll(max(0.0, until - time.monotonic()) * 1000)
                if not events:
                    raise psycopg.OperationalError(f"no answer within {ANSWER_SECONDS:.0f} s")
                happened = events[0][1]
                wanted = gen.send((2 if happened & select.POLLOUT else 0) | (1 if happened & ~select.POLLOUT else 0))
        except StopIteration as end:
            return end.value
        except psycopg.Error as error:
            is_read_only = isinstance(error, psycopg.errors.ReadOnlySqlTransaction)  # another server is not, maybe
            if is_read_only or error.diag.severity_nonlocalized != "ERROR":  # FATAL, or none of the server's
                self.close()
            raise
        except BaseException:  # a signal, too
            self.close()
            raise


_idle: dict[tuple[str, str], list[_Session]] = {}  # by URL and password
_idle_lock = threading.Lock()


def _session(access: tuple[str, str]) -> tuple[_Session, bool]:
    """Return a session, and whether it is one that was kept. Raises Unusable or Ended(SETTINGS)."""
    with _idle_lock:
        idle = _idle.get(access)
        if idle:
            return idle.pop(), True
    return _opened(*access), False


def _give_back(access: tuple[str, str], session: _Session, number: int | None = None) -> None:
    """Keep a session for later, without the lock; one that is lost, or one too many, is closed."""
    try:
        if number is not None and not session.closed:
            session.ask(UNLOCK, number)
    except Ended:
        session.close()
    except BaseException:  # a signal
        session.close()
        raise
    with _idle_lock:
        idle = _idle.setdefault(access, [])
        if not session.closed and len(idle) < MAX_IDLE_SESSIONS:
            idle.append(session)
            return
    session.close()


def _close_idle(access: tuple[str, str]) -> None:
    """Close all sessions that are kept."""
    with _idle_lock:
        sessions = _idle.pop(access, [])
    for session in sessions:
        session.close()


def _opened(url: str, password: str) -> _Session:
    """Return a new session, with the tables of this version. Raises Unusable or Ended(SETTINGS)."""
    with _usable():
        given = conninfo_to_dict(url)
        ours: dict[str, Any] = {name: value for name, value in CONNECTION.items() if name not in given}
        if password:
            ours["password"] = password
        if "sslmode" not in given and not _is_local(str(given.get("hostaddr") or given.get("host") or "")):
            ours["sslmode"] = "require"  # the password and the senders are not for everybody on the way
        session = _Session.connect(make_conninfo(url, **ours), autocommit=True)
    try:
        session.name = os.urandom(16).hex()
        with _usable():
            *_, has_tables = session.execute(OPEN, [session.name]).fetchone() or (False,)
            if session.info.parameter_status("server_encoding") != "UTF8":
                raise Ended(Outcome.SETTINGS, "journal: the encoding of its database must be UTF8")
            _migrate(session, has_tables)
    except BaseException:  # a signal, too
        session.close()
        raise
    return session


def _is_local(hosts: str) -> bool:
    """Tell whether all hosts of a URL are this one: sockets, or the loopback interface."""
    from ipaddress import ip_address

    def is_local(host: str) -> bool:
        try:
            return host in ("", "localhost") or host[0] in "/@" or ip_address(host).is_loopback
        except ValueError:
            return False

    return all(map(is_local, hosts.split(",")))


def _migrate(session: _Session, has_tables: bool) -> None:
    """Bring the tables to this version. Raises psycopg.Error, and Ended(SETTINGS) for those of a newer one."""

    def version() -> int:
        (found,) = session.execute("select number from version").fetchone() or (0,)
        if found > len(MIGRATIONS):
            raise Ended(Outcome.SETTINGS, "journal is of a newer version of this program")
        return int(found)

    if has_tables and version() == len(MIGRATIONS):
        return
    with session.transaction():
        # one host at a time; a lock with two numbers is no message's
        session.execute("select pg_advisory_xact_lock(0, 0)")
        (tables,) = session.execute(
            "select array_agg(tablename::text) from pg_tables where schemaname = current_schema()"
        ).fetchone() or (None,)
        if tables and "version" not in tables:
            raise Ended(Outcome.SETTINGS, "journal: the database has tables of something else; it must have its own")
        session.execute("create table if not exists version (number integer not null)")
        before = version()
        for statements in MIGRATIONS[before:]:
            for statement in statements:
                session.execute(statement)
        session.execute("delete from version")
        session.execute("insert into version values (%s)", [len(MIGRATIONS)])
