"""The journal: what became of every message, and the right to deliver one of them now.

The database looks for a known Message-ID only when a call begins: two calls at the same time make two records. And
what it makes no record of (a bounce, a notice to the sender) it does again at every call (docs/odoo.md, "The same
message twice"). So who delivers a message has its lock, and its row says what the last delivery left behind:

    begun     the database may have been working on the message since then: until READ_TIMEOUT after it, nobody
              delivers it
    ending    the database's answer to the delivery that ``delivery`` stands for is final
    neither   the database does not have the message

A row is found by a digest of URL, database and Message-ID. The lock is a byte of one file, at the place that the digest
gives; the kernel lifts it when the process ends, however it ends. Rows are written without waiting for the disk: they
are for processes that are killed. After a loss of power, the last seconds of them may be gone.

    the folder      journal.sqlite3 (with -wal and -shm, which are part of it), and lock
    a row lives     KEEP_DAYS after the message was seen last; each write takes a few old ones away
    a damaged file  is set aside, and an empty one takes its place: what was answered is asked again, and what was begun
                    may be delivered at once, so that a message that is under way just then can be doubled
"""

# sqlite3's own half in C: the other, with its converters of dates, takes 10 ms.
import _sqlite3 as sqlite3
import contextlib
import errno
import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from mailgate import trusted
from mailgate.outcome import Ended, Outcome, Verdict
from mailgate.settings import Settings

AMBIGUOUS = (Outcome.CUT_OFF, Outcome.FAILED)
FOR_GOOD = (Outcome.DELIVERED, Outcome.ACCEPTED, Outcome.DROPPED, Outcome.HELD)

FILE, LOCK = "journal.sqlite3", "lock"
# What is to be held and can't be is asked for once a day, in case that the operator has mended the alias.
KEEP_HELD_SECONDS = 24 * 3600
AT_ONCE_SECONDS = 0.1  # in which a second note is not worth its while
WAIT_SECONDS = 5.0  # that one delivery waits for another of the same message; an MTA's process or connection is held
ASIDE_PLACE = 2**62  # in the lock file, of who sets a damaged journal aside; before it, those of messages
PAUSE_SECONDS = 0.1  # between two tries to get the lock
BUSY_SECONDS = 5.0  # that a statement waits for another's write, or for a backup
DIGEST_BYTES = 16  # of SHA-256: two of 10 ** 9 messages are taken for one with a probability of 10 ** -21
CHECKPOINT_PAGES = 100  # a process that ends leaves its log, which the next one reads: 0.4 MB at most
PURGED_ROWS = 4  # at each write: more than one write adds, so that the journal does not grow
MAX_CAUSE_CHARACTERS = 500
DAY_SECONDS = 24 * 3600.0

# Each makes the next version of the tables; "pragma user_version" says how many have been run.
MIGRATIONS = (
    (
        """
        create table message (
            digest blob primary key,   -- of URL, database and Message-ID
            seen_first real not null,  -- seconds since 1970
            seen_last real not null,
            queue_id text not null,
            delivery blob,             -- tells the MTA's next try from another delivery; null without a queue id
            begun real,                -- seconds since 1970
            begun_boot text,           -- the boot in which that was, and the seconds of its clock: wall time may jump
            begun_clock real,
            ending text,               -- the name of an Outcome
            record_id integer,
            cause text
        ) without rowid
        """,
        "create index message_seen_last on message (seen_last)",
    ),
)


SELECT = """
    select delivery, seen_last, ending, record_id, cause, begun, begun_boot, begun_clock
    from message where digest = ?
"""
SET_BEGUN = "update message set begun = ?, begun_boot = ?, begun_clock = ? where digest = ?"
COLUMNS = (
    *("digest", "seen_first", "seen_last", "queue_id", "delivery"),
    *("begun", "begun_boot", "begun_clock", "ending", "record_id", "cause"),
)
UPSERT = f"""
    insert into message ({", ".join(COLUMNS)}) values ({", ".join("?" * len(COLUMNS))})
    on conflict (digest) do update set {", ".join(f"{name} = excluded.{name}" for name in COLUMNS[2:])}
"""
PURGE = """
    delete from message where digest in
    (select digest from message where seen_last < ? order by seen_last limit ?)
"""


class Taken(Ended):
    """Raised when another delivery of the message runs now: it ends as IN_PROGRESS, and may be tried again at once."""

    def __init__(self) -> None:
        super().__init__(Outcome.IN_PROGRESS, "another delivery of this message runs on this host")


class Claim:
    """The right to deliver a message, and the answer that the database gave to this delivery before."""

    answer: Verdict | None = None
    was_ambiguous = False  # the last try: it may have taken the database long, and may do so again
    _begun = 0.0  # monotonic seconds; 0 is not

    def __init__(self, journal: "_Journal | None" = None, queue_id: str = "", delivery: bytes | None = None) -> None:
        """``delivery`` tells the MTA's next try from another delivery; without a journal nothing is known or noted."""
        self._journal, self._queue_id, self._delivery = journal, queue_id, delivery

    def note_begun(self) -> None:
        """Note that from here on the database may be working on the message. Raises Ended(FAILED)."""
        if not self._journal or time.monotonic() - self._begun < AT_ONCE_SECONDS:
            return
        self._journal.write(self._queue_id, self._delivery, begun=_Moment.now())
        self._begun = time.monotonic()

    def end(self, verdict: Verdict) -> None:
        """Note how the call ended, if there was one, and what was found out since."""
        is_final = verdict.outcome in FOR_GOOD
        if not self._journal or verdict is self.answer or not (self._begun or is_final):
            return
        self._begun = 0.0  # the call is over: what goes wrong after it is no ending of its own
        # up to now an ambiguous one may have begun: a busy server takes calls late
        begun = _Moment.now() if verdict.outcome in AMBIGUOUS else None
        with contextlib.suppress(Ended):  # it has ended so, whatever becomes of the note
            self._journal.write(self._queue_id, self._delivery, begun=begun, verdict=verdict)


@contextlib.contextmanager
def claim(
    settings: Settings,
    message_id: str,
    queue_id: str,
    added: bytes,
    until: float,
    report: Callable[[str], None] = lambda text: None,
) -> Iterator[Claim]:
    """Give the right to deliver this message to its database, which nobody else on this host then has.

    ``added``, the fields in front of the message, says for whom it is; with the queue id it tells the MTA's next
    try from another delivery of the same message, which the database is asked about. ``report`` is told of a journal
    that is set aside. Raises Taken when another delivery does not end before ``until`` (of the monotonic clock) and
    within WAIT_SECONDS, Ended(IN_PROGRESS) when the database may still be working on an earlier one, Ended(SETTINGS)
    when what is in the folder is not ours, and Ended(FAILED) when the journal can't be used.
    """
    if not settings.journal:
        yield Claim()
        return
    from hashlib import sha256

    # what follows the > is no part of the id, for the database neither
    identity = "\0".join((settings.url, settings.database, message_id.partition(">")[0]))
    digest = sha256(os.fsencode(identity)).digest()[:DIGEST_BYTES]
    delivery = None
    if queue_id:
        for_whom = added.replace(b"\r", b"")  # by way of the service, lines have the ends of SMTP
        delivery = sha256(os.fsencode(f"{queue_id}\0{settings.model}\0") + for_whom).digest()[:DIGEST_BYTES]
    journal = _Journal(settings, digest, report)
    lock = journal.lock(min(until, time.monotonic() + WAIT_SECONDS))
    try:
        claimed = Claim(journal, queue_id, delivery)
        claimed.answer, claimed.was_ambiguous = journal.found(delivery)
        try:
            yield claimed
        except BaseException as error:  # a signal, too
            claimed.end(error.verdict if isinstance(error, Ended) else Verdict(Outcome.FAILED))
            raise
    finally:
        os.close(lock)


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


class _Journal:
    """The journal as one message sees it: its lock and its row."""

    def __init__(self, settings: Settings, digest: bytes, report: Callable[[str], None]) -> None:
        self.folder, self.digest, self.report = settings.journal, digest, report
        self.hold_off, self.keep_seconds = settings.read_timeout, settings.keep_days * DAY_SECONDS

    def lock(self, until: float) -> int:
        """Return the descriptor that holds the message's lock. Raises Taken, Ended(SETTINGS) and Ended(FAILED)."""
        path = os.path.join(self.folder, LOCK)
        place = int.from_bytes(self.digest[:8], "big") % ASIDE_PLACE
        while True:
            descriptor = _open(path)
            is_held = False
            try:
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, place, 1, 0))
                is_held = os.path.samestat(os.fstat(descriptor), os.lstat(path))
            except FileNotFoundError:  # somebody took the file away meanwhile
                pass
            except (BlockingIOError, PermissionError):  # EAGAIN and EACCES (fcntl(2))
                if time.monotonic() >= until:
                    raise Taken from None
                time.sleep(PAUSE_SECONDS)
            finally:
                if not is_held:
                    os.close(descriptor)
            if is_held:
                return descriptor

    def found(self, delivery: bytes | None) -> tuple[Verdict | None, bool]:
        """Return what the database has answered to a delivery, and whether the last one ended ambiguously.

        Raises Ended(IN_PROGRESS) and Ended(FAILED).
        """
        row = self._run(lambda connection: connection.execute(SELECT, [self.digest]).fetchone())
        if not row:
            return None, False
        known, ended, ending, record_id, cause, *begun = row
        if begun[0] is not None:
            moment = _Moment(*begun)
            age = moment.age()
            if age < 0:  # the host has booted since, and its wall clock was set back
                self._run(lambda connection: connection.execute(SET_BEGUN, [*_Moment.now(), self.digest]))
            left = self.hold_off - max(0.0, age)
            if left > 0:
                text = f"the database may be working on an earlier delivery for {left:.0f} s more"
                raise Ended(Outcome.IN_PROGRESS, text)
            return None, True
        # What is to be held is so for each delivery, but not for ever. (A moment to come: the clock was set back.)
        counts = known == delivery if ending != "HELD" else abs(time.time() - ended) < KEEP_HELD_SECONDS
        if not delivery or not counts or ending not in {outcome.name for outcome in FOR_GOOD}:
            return None, False
        before = f"{cause}; answered before" if cause else "answered before"
        return Verdict(Outcome[ending], before, record_id), False

    def write(
        self, queue_id: str, delivery: bytes | None, begun: _Moment | None, verdict: Verdict | None = None
    ) -> None:
        """Write the message's row, and take a few old ones away. Raises Ended(FAILED)."""
        now = time.time()
        ending = verdict.outcome.name if verdict else None
        cause = verdict and verdict.cause[:MAX_CAUSE_CHARACTERS].encode("utf-8", "backslashreplace").decode()
        record_id = verdict and verdict.record_id
        row = (self.digest, now, now, queue_id, delivery, *(begun or (None,) * 3), ending, record_id, cause)

        def write(connection: Any) -> None:
            connection.execute("begin immediate")
            try:
                connection.execute(UPSERT, row)
                if not begun:  # once for each message is enough
                    connection.execute(PURGE, [now - self.keep_seconds, PURGED_ROWS])
                connection.execute("commit")
            except BaseException:  # a signal, too
                connection.rollback()
                raise

        self._run(write)

    def _run(self, work: Callable[[Any], Any]) -> Any:
        """Return what ``work`` returns, called with the connection; a damaged journal is set aside first.

        Raises Ended(FAILED).
        """
        path = os.path.join(self.folder, FILE)
        try:
            try:
                return work(_connection(path))
            except sqlite3.DatabaseError as error:
                if type(error) is not sqlite3.DatabaseError:  # its subclasses are for a full disk, a lock, a mode
                    raise
                self._set_aside(path, error)
                return work(_connection(path))
        except (sqlite3.Error, OSError) as error:
            text = error.strerror if isinstance(error, OSError) else error
            raise Ended(Outcome.FAILED, f"journal: {text}: {path}") from None

    def _set_aside(self, path: str, error: Exception) -> None:
        """Rename a damaged journal, unless another process has done so already."""
        damaged = _kept.files.pop(path, None)
        lock = _open(os.path.join(self.folder, LOCK))
        try:
            fcntl.fcntl(lock, fcntl.F_OFD_SETLKW, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, ASIDE_PLACE, 1, 0))
            if damaged and damaged.is_there:
                name = f"{path}.damaged-{time.time():.0f}"
                for suffix in ("", "-wal", "-shm"):
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(path + suffix, name + suffix)
                self.report(
                    f"journal is damaged ({error}): it is set aside as {name}, and an empty one takes its place"
                )
        finally:
            os.close(lock)


# --- the file -------------------------------------------------------------------------------------------------------


class _Kept(threading.local):
    """The files that this thread has open, by path."""

    def __init__(self) -> None:
        self.files: dict[str, _File] = {}


_kept = _Kept()


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


def _open(path: str) -> int:
    """Return the descriptor of a file of ours, made where it is missing. Raises OSError and Ended(SETTINGS)."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise Ended(Outcome.SETTINGS, f"journal is a symbolic link: {path}") from None
    wrong = trusted.complaint(os.fstat(descriptor))
    if wrong:
        os.close(descriptor)
        raise Ended(Outcome.SETTINGS, f"journal {wrong}: {path}")
    return descriptor


def _connection(path: str) -> Any:
    """Return this thread's connection to the journal. Raises sqlite3.Error, OSError and Ended(SETTINGS)."""
    file = _kept.files.get(path)
    if not file or not file.is_there:
        descriptor = _open(path)
        status = os.fstat(descriptor)
        os.close(descriptor)
        connection = sqlite3.connect(path, BUSY_SECONDS, isolation_level=None)
        file = _kept.files[path] = _File(path, status, connection)
        for setting in ("journal_mode = wal", "synchronous = normal", f"wal_autocheckpoint = {CHECKPOINT_PAGES}"):
            connection.execute(f"pragma {setting}")
        try:
            _migrate(connection, path)
        except Ended:
            del _kept.files[path]
            raise
    return file.connection


def _migrate(connection: Any, path: str) -> None:
    """Bring the tables to this version. Raises Ended(SETTINGS) for those of a newer one."""

    def version() -> int:
        return int(connection.execute("pragma user_version").fetchone()[0])

    if version() > len(MIGRATIONS):
        raise Ended(Outcome.SETTINGS, f"journal is of a newer version of this program: {path}")
    if version() == len(MIGRATIONS):
        return
    connection.execute("begin immediate")
    try:
        for number, statements in enumerate(MIGRATIONS[version() :], version() + 1):
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"pragma user_version = {number}")
        connection.execute("commit")
    except BaseException:  # a signal, too
        connection.rollback()
        raise
