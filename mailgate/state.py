"""One delivery of a message at a time on this host, and no second question after an answer for good.

The database looks for a known Message-ID only when a call begins: two calls at the same time make two records. And
what it makes no record of (a bounce, a notice to the sender) it does again at every call. So each Message-ID has a
file in the state folder, and who holds its lock may deliver; the kernel lifts the lock when the process ends, however
it ends. The file's one line is what the last delivery left behind:

    begun TIME                           the call began then, and how it ended is not known
    answered TIME KEY OUTCOME RECORD_ID  the database has answered, for good, the delivery that KEY stands for

and an empty file says that the database does not have the message. Times are seconds since 1970. Nothing is synced:
the notes are for processes that are killed; after a loss of power the database still knows its Message-IDs.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from mailgate.outcome import Ended, Outcome, Verdict
from mailgate.settings import Settings

FOR_GOOD = (Outcome.DELIVERED, Outcome.ACCEPTED, Outcome.DROPPED, Outcome.HELD)

# Seconds. No MTA tries for longer (Postfix five days, Exim four); what it can't hold we ask for again once a day, in
# case that the operator has mended the alias.
KEEP = 7 * 24 * 3600
KEEP_HELD = 24 * 3600
PAUSE = 0.1  # seconds between two tries to get the lock


class Claim(NamedTuple):
    """The right to deliver a message, and the answer that the database gave to this very delivery before.

    ``descriptor`` is that of the message's file, None where there is no state folder.
    """

    descriptor: int | None
    key: str = ""
    answer: Verdict | None = None

    def begin(self) -> None:
        """Note that the call begins now: from here on the database may have the message. Raises Ended(FAILED)."""
        try:
            _note(self.descriptor, f"begun {time.time():.3f}")
        except OSError as error:  # in the midst of a request, it would pass for the network's
            raise Ended(Outcome.FAILED, f"state folder: {error}") from None

    def end(self, verdict: Verdict) -> None:
        """Note how the call ended; where that is not known, that it began stays noted."""
        if verdict.outcome is Outcome.CUT_OFF or verdict is self.answer:
            return
        line = ""
        if verdict.outcome in FOR_GOOD and self.key:
            line = f"answered {time.time():.3f} {self.key} {verdict.outcome.name} {verdict.record_id or 0}"
        with contextlib.suppress(OSError):  # it has ended so, whatever becomes of the note
            _note(self.descriptor, line)


@contextlib.contextmanager
def claim(settings: Settings, message_id: str, queue_id: str, added: bytes, until: float) -> Iterator[Claim]:
    """Give the right to deliver this message, which nobody else on this host then has.

    ``added``, the fields in front of the message, says for whom it is; with the queue id it tells the MTA's next
    try from another delivery of the same message, which the database is asked about. Raises Ended(IN_PROGRESS) when
    another delivery does not end before ``until`` (of the monotonic clock), or when the database may still be working
    on an earlier one, and OSError when the folder can't be used.
    """
    if not settings.state:
        yield Claim(None)
        return
    from hashlib import sha256

    name = sha256(os.fsencode(message_id)).hexdigest()
    key = sha256(os.fsencode(queue_id) + b"\0" + added).hexdigest() if queue_id else ""
    folder = os.path.join(settings.state, name[:2])  # one of 256, so that there is little to sweep
    os.makedirs(folder, mode=0o700, exist_ok=True)
    _sweep(folder)
    descriptor = _lock(os.path.join(folder, name), until)
    try:
        claimed = Claim(descriptor, key, _answer(descriptor, key, settings.read_timeout))
        try:
            yield claimed
        except Ended as ended:
            claimed.end(ended.verdict)
            raise
    finally:
        os.close(descriptor)


def _lock(path: str, until: float) -> int:
    """Return a descriptor of the file, locked. Raises Ended(IN_PROGRESS)."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:  # it was swept away meanwhile, or another one stands in its place
            pass
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(descriptor)
                raise Ended(Outcome.IN_PROGRESS, "another delivery of this message runs on this host") from None
            time.sleep(PAUSE)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _note(descriptor: int | None, line: str) -> None:
    if descriptor is not None:
        os.pwrite(descriptor, f"{line}\n".encode(), 0)
        os.ftruncate(descriptor, len(line) + 1)


def _answer(descriptor: int, key: str, read_timeout: float) -> Verdict | None:
    """Return what the database has answered to the delivery ``key``. Raises Ended(IN_PROGRESS)."""
    line = os.pread(descriptor, 4096, 0).partition(b"\n")[0].decode("ascii", "replace")
    now = time.time()
    with contextlib.suppress(ValueError, KeyError):  # a line that we did not write says nothing
        match line.split(" "):
            case ["begun", began]:
                if float(began) > now:  # the clock was set back
                    began = f"{now:.3f}"
                    _note(descriptor, f"begun {began}")
                left = float(began) + read_timeout - now
                if left > 0:
                    cause = f"the database may be working on an earlier delivery for {left:.0f} s more"
                    raise Ended(Outcome.IN_PROGRESS, cause)
            case ["answered", answered, known, outcome, record_id] if key and known == key:
                if outcome != Outcome.HELD.name or now - float(answered) < KEEP_HELD:
                    return Verdict(Outcome[outcome], "answered before", int(record_id) or None)
    return None


def _sweep(folder: str) -> None:
    """Remove what no MTA will ask for any more, unless somebody has it."""
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):
            if entry.stat().st_mtime < time.time() - KEEP:
                descriptor = os.open(entry.path, os.O_RDWR)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(entry.path)
                finally:
                    os.close(descriptor)
