"""One delivery of a message at a time on this host, and none once the database's answer is final.

The database looks for a known Message-ID only when a call begins: two calls at the same time make two records. And
what it makes no record of (a bounce, a notice to the sender) it does again at every call (docs/odoo.md, "The same
message twice"). So each Message-ID has a file in the state folder, and who holds its lock may deliver; the kernel lifts
the lock when the process ends, however it ends. The file's first line is what the last delivery left behind:

    begun TIME                                 the database may have been working on the message since then
    answered TIME KEY OUTCOME RECORD_ID CAUSE  its answer to the delivery that KEY stands for is final

and no line says that the database does not have the message. Times are seconds since 1970. Nothing is synced: the
notes are for processes that are killed, not for a loss of power.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator

from mailgate import trusted
from mailgate.outcome import Ended, Outcome, Verdict
from mailgate.settings import Settings

AMBIGUOUS = (Outcome.CUT_OFF, Outcome.FAILED)
FOR_GOOD = (Outcome.DELIVERED, Outcome.ACCEPTED, Outcome.DROPPED, Outcome.HELD)

KEEP_SECONDS = 14 * 24 * 3600  # longer than an MTA tries (Postfix five days, Exim as we set it up eight)
# What is to be held and can't be is asked for once a day, in case that the operator has mended the alias.
KEEP_HELD_SECONDS = 24 * 3600
AT_ONCE_SECONDS = 0.1  # in which a second note is not worth its while
WAIT_SECONDS = 5.0  # that one delivery waits for another of the same message; an MTA's process or connection is held
PAUSE_SECONDS = 0.1  # between two tries to get the lock
MAX_CAUSE_CHARACTERS = 500
BEGUN = b"begun "


class Taken(Ended):
    """Raised when another delivery of the message runs now: it ends as IN_PROGRESS, and may be tried again at once."""

    def __init__(self) -> None:
        super().__init__(Outcome.IN_PROGRESS, "another delivery of this message runs on this host")


class Claim:
    """The right to deliver a message, and the answer that the database gave to this delivery before."""

    def __init__(self, path: str = "", descriptor: int = -1, key: str = "", answer: Verdict | None = None) -> None:
        """``path`` is the message's file, empty where there is no state folder; ``descriptor`` has its lock."""
        self.path, self.descriptor, self.key, self.answer = path, descriptor, key, answer
        self.begun = 0.0  # seconds since 1970; 0 is not
        self.was_ambiguous = False  # the last try: it may have taken the database long, and may do so again

    def note_begun(self) -> None:
        """Note that from here on the database may be working on the message. Raises Ended(FAILED)."""
        now = time.time()
        if 0 <= now - self.begun < AT_ONCE_SECONDS:
            return
        try:
            self._note(f"begun {now:.3f}")
        except OSError as error:  # in the midst of a request, it would pass for the network's
            raise Ended(Outcome.FAILED, f"state folder: {error.strerror}: {self.path}") from None
        self.begun = now

    def end(self, verdict: Verdict) -> None:
        """Note how the call ended, if there was one, and what was found out since."""
        if verdict is self.answer or not (self.begun or verdict.outcome in FOR_GOOD):
            return
        line = ""
        if verdict.outcome in AMBIGUOUS:  # up to now it may have begun: a busy server takes calls late
            line = f"begun {time.time():.3f}"
        elif verdict.outcome in FOR_GOOD:
            cause = " ".join(verdict.cause[:MAX_CAUSE_CHARACTERS].encode("ascii", "backslashreplace").decode().split())
            line = f"answered {time.time():.3f} {self.key} {verdict.outcome.name} {verdict.record_id or 0} {cause}"
        self.begun = 0.0  # the call is over: what goes wrong after it is no ending of its own
        with contextlib.suppress(OSError):  # it has ended so, whatever becomes of the note
            self._note(line)

    def _note(self, line: str) -> None:
        if self.path and line:
            _write(self.descriptor, line)
        elif self.path:
            os.unlink(self.path)


@contextlib.contextmanager
def claim(settings: Settings, message_id: str, queue_id: str, added: bytes, until: float) -> Iterator[Claim]:
    """Give the right to deliver this message to its database, which nobody else on this host then has.

    ``added``, the fields in front of the message, says for whom it is; with the queue id it tells the MTA's next
    try from another delivery of the same message, which the database is asked about. Raises Taken when another delivery
    does not end before ``until`` (of the monotonic clock) and within WAIT_SECONDS, Ended(IN_PROGRESS) when the database
    may still be working on an earlier one, Ended(SETTINGS) when what is in the folder is not ours, and OSError when it
    can't be used.
    """
    if not settings.state:
        yield Claim()
        return
    from hashlib import sha256

    # what follows the > is no part of the id, for the database neither
    identity = "\0".join((settings.url, settings.database, message_id.partition(">")[0]))
    name = sha256(os.fsencode(identity)).hexdigest()
    for_whom = added.replace(b"\r", b"")  # by way of the service, lines have the ends of SMTP
    key = sha256(os.fsencode(f"{queue_id}\0{settings.model}\0") + for_whom).hexdigest() if queue_id else "-"
    folder = os.path.join(settings.state, name[:2])  # one of 256, so that there is little to sweep
    path = os.path.join(folder, name)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    _check(folder, os.lstat(folder))
    descriptor = _lock(path, min(until, time.monotonic() + WAIT_SECONDS))
    try:
        if name[2] == "0":  # one in sixteen, for the folder may be large
            _sweep(folder)
        claimed = Claim(path, descriptor, key, _answer(descriptor, key, settings.read_timeout))
        claimed.was_ambiguous = os.pread(descriptor, len(BEGUN), 0) == BEGUN
        try:
            yield claimed
        except BaseException as error:  # a signal, too
            claimed.end(error.verdict if isinstance(error, Ended) else Verdict(Outcome.FAILED))
            raise
    finally:
        os.close(descriptor)


def _check(path: str, status: os.stat_result) -> None:
    """Raise Ended(SETTINGS) for what leads elsewhere, or is for others to write."""
    wrong = "is a symbolic link" if stat.S_ISLNK(status.st_mode) else trusted.complaint(status)
    if wrong:
        raise Ended(Outcome.SETTINGS, f"state folder {wrong}: {path}")


def _lock(path: str, until: float) -> int:
    """Return a descriptor of the file, locked. Raises Taken, and Ended(SETTINGS) where it is not ours."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            if error.errno == errno.ELOOP:
                _check(path, os.lstat(path))
            raise
        locked = False
        try:
            _check(path, os.fstat(descriptor))
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = os.path.samestat(os.fstat(descriptor), os.lstat(path))
        except FileNotFoundError:  # it was removed meanwhile, or another one stands in its place
            pass
        except BlockingIOError:
            if time.monotonic() >= until:
                raise Taken from None
            time.sleep(PAUSE_SECONDS)
        finally:
            if not locked:
                os.close(descriptor)
        if locked:
            return descriptor


def _write(descriptor: int, line: str) -> None:
    """Write the line over the one that is there; what may be left of that one is read by nobody."""
    os.pwrite(descriptor, f"{line}\n".encode(), 0)


def _answer(descriptor: int, key: str, read_timeout: float) -> Verdict | None:
    """Return what the database has answered to the delivery ``key``. Raises Ended(IN_PROGRESS)."""
    line = os.pread(descriptor, 4096, 0).partition(b"\n")[0].decode("ascii", "replace")
    now = time.time()
    with contextlib.suppress(ValueError, KeyError):  # a line that we did not write says nothing
        match line.split(" ", 5):
            case ["begun", began]:
                left = min(float(began) + read_timeout - now, read_timeout)
                if float(began) > now:  # the clock was set back
                    _write(descriptor, f"begun {now:.3f}")
                if left > 0:
                    cause = f"the database may be working on an earlier delivery for {left:.0f} s more"
                    raise Ended(Outcome.IN_PROGRESS, cause)
            case ["answered", answered, known, outcome, record_id, cause] if key != "-":
                # What is to be held is so for each delivery, but not for ever.
                # (A moment to come is one that was rounded, or the clock was set back.)
                if known == key if outcome != "HELD" else abs(now - float(answered)) < KEEP_HELD_SECONDS:
                    before = f"{cause}; answered before" if cause else "answered before"
                    return Verdict(Outcome[outcome], before, int(record_id) or None)
    return None


def _sweep(folder: str) -> None:
    """Remove what no MTA will ask for any more, unless somebody has it; what can't be removed is for the next one."""

    def is_old(status: os.stat_result) -> bool:
        return status.st_mtime < time.time() - KEEP_SECONDS

    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError, Ended):
                if is_old(entry.stat(follow_symlinks=False)):
                    descriptor = _lock(entry.path, 0.0)
                    try:
                        if is_old(os.fstat(descriptor)):  # still: somebody may have had it meanwhile
                            os.unlink(entry.path)
                    finally:
                        os.close(descriptor)
