"""The journal of one host: rows in SQLite, a lock of one byte for each message.

the folder      journal.sqlite3 (with -wal and -shm, which are part of it), and lock, which is always empty
a lock          a byte of that file, at the place that the digest gives; the kernel lifts it when the process ends,
however it ends
a row           is written without waiting for the disk: it is there for processes that are killed. After a loss of
power, the last seconds of them may be gone
a damaged file  is set aside, and an empty one takes its place
"""

# sqlite3's own half in C: the other, with its converters of dates, takes 10 ms.
import _sqlite3 as sqlite3
import contextlib
import errno
import fcntl
import os
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from mailgate import trusted
from mailgate.journal.rows import ATTEMPT, PAUSE_SECONDS, PURGED_ROWS, SEARCHED, VALUES, Row, Taken, Unusable, like
from mailgate.outcome import Ended, Outcome

FILE, LOCK = "journal.sqlite3", "lock"
SUFFIXES = ("", "-wal", "-shm")  # of the files that SQLite makes of it
ASIDE_PLACE = 2**62  # in the lock file, of who sets a damaged journal aside; before it, those of messages
CHECKPOINT_PAGES = 2000  # of 4 KiB, in the write-ahead log before they are copied: many are written again meanwhile
WAL_BYTES = 2**24  # twice its usual size: what a long backup has made it grow beyond that is given back
CACHE_KIB = 256  # of pages that a connection keeps: each of the service's threads has one
BUSY_SECONDS = 5.0  # that a statement waits for another's write, or for a backup

SETTINGS = (
    "journal_mode = wal",
    "synchronous = normal",
    f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
    f"journal_size_limit = {WAL_BYTES}",
    f"cache_size = -{CACHE_KIB}",
)
# Each makes the next version of the tables; "pragma user_version" says how many have been run.
MIGRATIONS = (
    (
        # id: rows stand in the order in which they came. digest: of URL, database and Message-ID. Times are seconds
        # since 1970. begun_boot and begun_clock: the boot in which it was begun, and the seconds of its clock, for wall
        # time may jump.
        f"""
        create table message (
            id integer primary key, digest blob not null unique, seen_first real not null, seen_last real not null,
            begun real, begun_boot text, begun_clock real,
            {", ".join(f"{name} {kind}" for name, kind in VALUES.items())}
        )
        """,
    ),
    (
        "create table attempt (id integer primary key, "
        f"{', '.join(f'{name} {kind}' for name, kind in ATTEMPT.items())})",
    ),
)
SELECT = f"select seen_last, begun, begun_boot, begun_clock, {', '.join(VALUES)} from message where digest = ?"
# The rows that stand first go, except those in which a call may be running: they stay while this boot is young,
# whatever the wall clock says. Where none goes, those that were taken up again, or whose clock was wrong, are put
# behind all others, so that they are not in the way.
_FIRST = f"id in (select id from message order by id limit {PURGED_ROWS})"
PURGE = (
    f"delete from message where {_FIRST} and seen_last < ? and (begun is null or begun_boot <> ? or begun_clock < ?)"
)
MOVE = f"""
    update message set id = id + 1 + (select max(id) from message) - (select min(id) from message)
    where {_FIRST} and seen_first not between ? and ?
"""
APPEND = f"insert into attempt ({', '.join(ATTEMPT)}) values ({', '.join('?' * len(ATTEMPT))})"
PURGE_ATTEMPTS = f"delete from attempt where id in (select id from attempt order by id limit {PURGED_ROWS}) and at < ?"
ATTEMPTS = f"""
    select {", ".join(ATTEMPT)} from attempt
    where at >= ?1 and ({" or ".join(f"{name} like ?2 escape '!'" for name in SEARCHED)} or subject like '%=?%')
    order by id desc limit ?3
"""


@cache
def upsert(names: tuple[str, ...]) -> str:
    """Return the statement that writes these columns of a row, after the digest and the first moment it was seen."""
    columns = ("digest", "seen_first", *names)
    return (
        f"insert into message ({', '.join(columns)}) values ({', '.join('?' * len(columns))}) "
        f"on conflict (digest) do update set {', '.join(f'{name} = excluded.{name}' for name in names)}"
    )


class Sqlite:
    """The store in a folder; ``report`` is told of a journal that is set aside, or was taken away."""

    def __init__(self, folder: str, report: Callable[[str], None]) -> None:
        self.path, self.lock_path, self.report = f"{folder}/{FILE}", f"{folder}/{LOCK}", report

    @contextlib.contextmanager
    def lock(self, digest: bytes, until: float) -> Iterator[None]:
        """Hold a message's lock. Raises as Store.lock()."""
        place = int.from_bytes(digest[:8], "big") % ASIDE_PLACE
        while True:
            try:
                descriptor = _locked(self.lock_path, place, fcntl.F_OFD_SETLK)
            except OSError as error:
                raise _unusable(error, self.lock_path) from None
            if descriptor is not None:
                break
            if time.monotonic() >= until:
                raise Taken
            time.sleep(PAUSE_SECONDS)
        try:
            yield
        finally:
            os.close(descriptor)

    def read(self, digest: bytes) -> Row | None:
        """Return a message's row. Raises as Store.read()."""
        found = self._run(lambda connection: connection.execute(SELECT, [digest]).fetchone())
        if not found:
            return None
        seen_last, *begun = found[:4]
        begun_age = None if begun[0] is None else _Moment(*begun).age()
        return Row(time.time() - seen_last, begun_age, dict(zip(VALUES, found[4:], strict=True)))

    def write(self, digest: bytes, values: Mapping[str, Any], is_begun: bool) -> None:
        """Write a message's row. Raises as Store.write()."""
        now = _Moment.now()
        begun = now if is_begun else (None, None, None)
        row = [digest, now.wall, now.wall, *begun, *values.values()]
        statement = upsert(("seen_last", "begun", "begun_boot", "begun_clock", *values))
        self._run(lambda connection: connection.execute(statement, row))

    def append(self, attempt: Mapping[str, Any], purge_age: float) -> None:
        """Write down a try. Raises as Store.append()."""
        now = _Moment.now()
        oldest = now.wall - purge_age

        def append(connection: Any) -> None:
            with _transaction(connection):
                connection.execute(APPEND, [attempt[name] for name in ATTEMPT])
                connection.execute(PURGE_ATTEMPTS, [oldest])
                if not connection.execute(PURGE, [oldest, now.boot, now.clock - purge_age]).rowcount:
                    connection.execute(MOVE, [oldest, now.wall])

        self._run(append)

    def attempts(self, word: str, since: float, limit: int) -> Iterable[Mapping[str, Any]]:
        """Return the tries. Raises as Store.attempts()."""
        found = self._run(lambda connection: connection.execute(ATTEMPTS, [since, like(word), limit]).fetchall())
        return [dict(zip(ATTEMPT, values, strict=True)) for values in found]

    def _run(self, work: Callable[[Any], Any]) -> Any:
        """Return what ``work`` makes of the connection; a damaged journal is set aside first. Raises Unusable."""
        try:
            try:
                return work(_connection(self.path, self.report))
            except sqlite3.DatabaseError as error:
                if type(error) is not sqlite3.DatabaseError:  # its subclasses are for a full disk, a lock, a mode
                    raise
                self._set_aside(error)
                return work(_connection(self.path, self.report))
        except (sqlite3.Error, OSError) as error:
            raise _unusable(error, self.path) from None

    def _set_aside(self, error: Exception) -> None:
        """Rename a damaged journal, unless another process has done so already."""
        damaged, _kept.file = _kept.file, None
        lock = _locked(self.lock_path, ASIDE_PLACE, fcntl.F_OFD_SETLKW)
        try:
            if damaged and damaged.is_there:
                name = f"{self.path}.damaged-{time.time():.0f}"
                for suffix in SUFFIXES:
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(self.path + suffix, name + suffix)
                self.report(
                    f"journal is damaged ({error}): it is set aside as {name}, and an empty one takes its place"
                )
        finally:
            if lock is not None:
                os.close(lock)


def _unusable(error: Exception, path: str) -> Unusable:
    """Return what is raised for what the disk or SQLite says of a file."""
    return Unusable(f"{error.strerror if isinstance(error, OSError) else error}: {path}")


# --- clocks ---------------------------------------------------------------------------------------------------------


class _Moment(NamedTuple):
    """A moment by the wall clock, and by the clock of this boot, which nobody sets."""

    wall: float  # seconds since 1970
    boot: str
    clock: float  # seconds since the boot

    @classmethod
    def now(cls) -> "_Moment":
        return cls(time.time(), _boot(), time.clock_gettime(time.CLOCK_BOOTTIME))

    def age(self) -> float:
        """Return the seconds since then; after another boot, wall time has to do. Less than 0 is a clock set back."""
        now = _Moment.now()
        return now.clock - self.clock if self.boot == now.boot else now.wall - self.wall


@cache
def _boot() -> str:
    """Return what this boot of the host is called, "" where nothing says so."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return ""


# --- files ----------------------------------------------------------------------------------------------------------


class _File(NamedTuple):
    """A connection, and what its file was when it was opened: somebody may have taken that away."""

    path: str
    status: os.stat_result
    connection: Any

    @property
    def is_there(self) -> bool:
        """Whether the file still stands in its place."""
        try:
            return os.path.samestat(self.status, os.lstat(self.path))
        except FileNotFoundError:
            return False


class _Kept(threading.local):
    """The file that this thread has open: one, for a service that is told of another journal leaves the old one."""

    file: _File | None = None


_kept = _Kept()
_opening = threading.Lock()


def _locked(path: str, place: int, command: int) -> int | None:
    """Return a descriptor that has the lock of one byte of a file, None where somebody else has it.

    The file is the one that stands at the path when the lock is there. Raises OSError and Ended(SETTINGS).
    """
    while True:
        descriptor, status = _open(path)
        is_held = False
        try:
            fcntl.fcntl(descriptor, command, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0))
            is_held = os.path.samestat(status, os.lstat(path))
        except FileNotFoundError:  # somebody took the file away meanwhile
            pass
        except (BlockingIOError, PermissionError):  # EAGAIN and EACCES (fcntl(2))
            return None
        finally:
            if not is_held:
                os.close(descriptor)
        if is_held:
            return descriptor


def _open(path: str) -> tuple[int, os.stat_result]:
    """Return a descriptor of the lock file, made where it is missing, and its status.

    Raises OSError and Ended(SETTINGS).
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise Ended(Outcome.SETTINGS, f"journal is a symbolic link: {path}") from None
    status = os.fstat(descriptor)
    wrong = trusted.complaint(status)
    if wrong:
        os.close(descriptor)
        raise Ended(Outcome.SETTINGS, f"journal {wrong}: {path}")
    return descriptor, status


def _connection(path: str, report: Callable[[str], None]) -> Any:
    """Return this thread's connection to the journal. Raises sqlite3.Error, OSError and Ended(SETTINGS).

    ``report`` is told of a journal that somebody has taken away since the last time.
    """
    file = _kept.file
    if file and file.path == path:
        if file.is_there:
            return file.connection
        report(f"journal was taken away, with what it knew: another one takes its place: {path}")
    if file:
        _kept.file = None
        file.connection.close()
    with _opening:
        status = _made(path)
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        _kept.file = _File(path, status, connection)
        try:
            for setting in SETTINGS:
                connection.execute(f"pragma {setting}")
            _migrate(connection, path)
        except BaseException as error:
            if type(error) is not sqlite3.DatabaseError:  # which is for a damaged file, to be set aside
                _kept.file = None
            raise
    return connection


def _made(path: str) -> os.stat_result:
    """Return what the journal's file is, made where it is missing. Raises OSError and Ended(SETTINGS).

    It is never opened beside SQLite: to close a descriptor of it would lift all of the locks that this process has on
    it (fcntl(2)), those of the other threads' connections, too.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    for suffix in SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            _check(path + suffix)
    return os.lstat(path)


def _check(path: str) -> None:
    """Raise Ended(SETTINGS) for a file that is not ours alone, and FileNotFoundError for none.

    One of root's, such as one that comes from a backup, could not be opened either: the folder is ours.
    """
    status = os.lstat(path)
    wrong = "belongs to another user" if status.st_uid != os.geteuid() else trusted.complaint(status)
    if stat.S_ISLNK(status.st_mode):
        wrong = "is a symbolic link"
    if wrong:
        raise Ended(Outcome.SETTINGS, f"journal {wrong}: {path}")


def _migrate(connection: Any, path: str) -> None:
    """Bring the tables to this version. Raises Ended(SETTINGS) for those of a newer one."""

    def version() -> int:
        return int(connection.execute("pragma user_version").fetchone()[0])

    if version() > len(MIGRATIONS):
        raise Ended(Outcome.SETTINGS, f"journal is of a newer version of this program: {path}")
    if version() == len(MIGRATIONS):
        return
    with _transaction(connection):
        for number, statements in enumerate(MIGRATIONS[version() :], version() + 1):
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"pragma user_version = {number}")


@contextlib.contextmanager
def _transaction(connection: Any) -> Iterator[None]:
    """Commit what is written within, all of it or nothing. Raises sqlite3.Error."""
    connection.execute("begin immediate")
    try:
        yield
        connection.execute("commit")
    except BaseException:  # a signal, too
        connection.rollback()
        raise
