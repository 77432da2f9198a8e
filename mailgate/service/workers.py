"""The service's workers: how many calls to the database run at a time, and which message is next.

MAIL_GATEWAY_WORKERS calls run at a time. A call that has begun can't be taken back, so a slow one gets out of the way:

    a call takes longer than               it no longer counts as one of them, and another message has its place;
      SLOW_AFTER_SECONDS                   at most MAX_SLOW_CALLS are set aside like this
    its last try was ambiguous             it does not count either; one such message is tried at a time
    another delivery of the message runs   it is given back at once, and tried again soon
    it is larger than LARGE_BYTES          one worker is kept free of these, where there are two or more

So at most WORKERS + MAX_SLOW_CALLS + 1 calls run at a time, and a message waits for a worker for longer than a moment
only while WORKERS + MAX_SLOW_CALLS calls are slow that nobody could know to be so. All methods run in the event loop,
except ``without_worker``.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from mailgate import DEADLINE, journal
from mailgate.outcome import Ended, Outcome, Verdict
from mailgate.settings import Settings

SLOW_AFTER_SECONDS = 2.0  # an ordinary call takes a tenth of that
MAX_SLOW_CALLS = 8  # that are set aside; each is a thread here, and a connection to the database
LARGE_BYTES = 2**20
# Before each try of a message that is given back: journal.WAIT_SECONDS in all.
PAUSES_SECONDS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 1.9)
MAX_THREADS = 128  # more than there can be calls: their number is bounded here, and WORKERS is 64 at the most


class Call:
    """A message that waits for a worker, has one, or has been set aside.

    ``verdict`` is what ``deliver`` returns, or None for a message that was turned away before it began.
    """

    future: Future[Verdict] | None = None  # when it has begun
    began = 0.0  # in the seconds of the event loop
    is_overdue = False  # it takes longer than SLOW_AFTER_SECONDS
    is_slow = is_second_try = False  # why it holds no worker
    is_early = False  # it was given back: it is to be tried again soon

    def __init__(self, workers: "Workers", deliver: "Callable[[Call], Verdict]", is_large: bool) -> None:
        self.workers, self.deliver, self.is_large = workers, deliver, is_large
        self.verdict: asyncio.Future[Verdict | None] = workers.loop.create_future()
        self.verdict.add_done_callback(lambda _: workers.start_next())

    @contextlib.contextmanager
    def without_worker(self) -> Iterator[None]:
        """Hold no worker while this lasts. Raises Ended(BUSY) where another call does so. For the call's own thread."""
        if self.is_second_try:  # it holds none already, for another id of its message
            yield
            return
        if not self.workers.second_try.acquire(blocking=False):
            self.is_early = True
            raise Ended(Outcome.BUSY, "its last try was ambiguous, and another such message is being tried")
        try:
            self.is_second_try = True
            self.workers.loop.call_soon_threadsafe(self.workers.start_next)
            yield
        finally:
            self.is_second_try = False
            self.workers.second_try.release()


class Workers:
    """The messages that wait and the calls that run."""

    def __init__(self) -> None:
        self.count = 0  # of the calls that run at a time, without those that hold no worker
        self.loop = asyncio.get_running_loop()
        self.pool = ThreadPoolExecutor(MAX_THREADS, "worker")
        self.second_try = threading.Lock()
        self.queue: list[Call] = []
        self.running: list[Call] = []
        self.pausing = 0  # messages that were given back
        self.is_closed = False

    @property
    def waiting(self) -> int:
        """How many messages have no worker."""
        return len(self.queue) + self.pausing

    async def run(
        self, deliver: "Callable[[bool, Call], Verdict]", size: int, done: Callable[[object], None]
    ) -> Verdict | None:
        """Return what ``deliver`` returns in a thread, None when it did not begin, as when it is cancelled before that.

        What is given back is tried again, and holds no worker meanwhile; ``deliver`` is told which try is the last.
        ``size`` is the message's in bytes; ``done`` is called when nothing runs any more.
        """
        verdict = None
        with contextlib.ExitStack() as at_end:
            at_end.callback(done, None)
            for pause in PAUSES_SECONDS:
                self.pausing += 1
                try:
                    await asyncio.sleep(pause)
                finally:
                    self.pausing -= 1
                if self.is_closed:
                    return None
                call = Call(self, partial(deliver, pause == PAUSES_SECONDS[-1]), size > LARGE_BYTES)
                self.queue.append(call)
                self.start_next()
                try:
                    verdict = await asyncio.wait_for(call.verdict, DEADLINE)
                except asyncio.TimeoutError:
                    verdict = Verdict(Outcome.CUT_OFF) if call.future else None
                finally:
                    if call.future and not call.future.done():
                        at_end.pop_all()  # it goes on, and notes for the next try what comes of it
                        call.future.add_done_callback(done)
                if not call.is_early:
                    break
        return verdict

    def start_next(self) -> None:
        """Start what may start by now, and forget what nobody waits for any more."""
        for call in self.running:
            is_room = sum(each.is_slow for each in self.running) < MAX_SLOW_CALLS
            call.is_slow |= call.is_overdue and is_room and not call.is_second_try
        for call in self.queue.copy():
            are_large = [each.is_large for each in self.running if not each.is_slow and not each.is_second_try]
            is_free = len(are_large) < self.count
            if call.verdict.done():
                self.queue.remove(call)
            elif is_free and not (call.is_large and sum(are_large) >= max(1, self.count - 1)):
                self.queue.remove(call)
                self._start(call)

    def _start(self, call: Call) -> None:
        def is_overdue() -> None:
            call.is_overdue = True
            self.start_next()

        def end() -> None:
            timer.cancel()
            self.running.remove(call)
            if not call.verdict.done():  # somebody waits for it
                error = future.exception()
                if error:
                    call.verdict.set_exception(error)
                else:
                    call.verdict.set_result(future.result())
            self.start_next()

        def tell(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended: nobody waits
                self.loop.call_soon_threadsafe(end)

        call.began = self.loop.time()
        timer = self.loop.call_later(SLOW_AFTER_SECONDS, is_overdue)
        self.running.append(call)
        future = call.future = self.pool.submit(call.deliver, call)
        future.add_done_callback(tell)

    def close(self) -> None:
        """Turn away those that wait and those that come; what has begun goes on."""
        self.is_closed = True
        for call in self.queue:
            if not call.verdict.done():
                call.verdict.set_result(None)


@contextlib.contextmanager
def claim(
    call: Call,
    report: Callable[[str], None],
    settings: Settings,
    delivery: journal.Delivery,
    until: float,
) -> Iterator[journal.Claim]:
    """Claim a message as the pipe does, but hold no worker for what may take long. Raises Ended, as journal.claim().

    What another delivery has is given back at once. What was ambiguous before is tried beside the workers.
    """
    try:
        with (
            journal.claim(settings, delivery, until=0.0, report=report) as claimed,
            call.without_worker() if claimed.was_ambiguous else contextlib.nullcontext(),
        ):
            yield claimed
    except journal.Taken:
        call.is_early = True
        raise
