"""Which addresses the database has: its own list, read from it and kept; what is not on it, it is asked about.

The list is read in the background. Who answers whether an address is the database's:

    the list                      an address on it   an address not on it
    is there, of whatever age     yes                the database, asked for this one: yes, or no
    is there, and the database                       put off
      does not answer, or was
      asked too often this second
    was not read yet              (the answer waits for the first reading, and is then as above)
    can't be read for now         the operator's settings, as in the pipe
    is not for us: the database   the operator's settings, as in the pipe
      is too old, or our user
      may not read it

What the settings themselves don't have is nobody's, and where a model takes what no alias takes, all of the rest is the
database's. So an address is refused only by what the database has said after the question.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mailgate.addresses import LISTS, ask, merged, read
from mailgate.database import Client
from mailgate.envelope import Recipient
from mailgate.log import where
from mailgate.outcome import Ended, Outcome
from mailgate.rules import match
from mailgate.settings import Settings

REFRESH = 60.0  # seconds between two readings in the background
FRESH = 1.0  # seconds for which the failure to ask answers the next question, too
PATIENCE = 10.0  # seconds that an answer waits for the database; an MTA waits minutes for the answer to RCPT
QUESTIONS = 10  # about single addresses, a second, and as many that wait: so often may strangers make us ask
AWAY = (Outcome.NO_ANSWER, Outcome.CUT_OFF, Outcome.DATABASE_DOWN)  # asked again, it may answer


def has(settings: Settings, recipient: Recipient, known: Settings | None = None) -> bool:
    """Tell whether a recipient is the database's: by the address, or by what it was before it was rewritten."""
    return bool(match(settings, [recipient], known)[0].rule)


class Directory:
    """The list, as the running service keeps it."""

    def __init__(self, settings: Settings, report: Callable[[str], None], before: "Directory | None" = None) -> None:
        """``report`` is told in a line what is found; ``before`` is who kept the list until now."""
        self.settings, self.report = settings, report
        self.listed: Settings | None = None
        self.read_at = 0.0  # seconds since 1970; 0 is never
        if before and before.listed and before.listed[:2] == settings[:2]:  # the same URL and database
            lists: dict[str, Any] = {name: getattr(before.listed, name) for name in LISTS}
            self.listed, self.read_at = settings._replace(**lists), before.read_at
        self._read_last = float("-inf")  # when the last reading began, or was given up
        self._found = ""  # what was said of it
        self._meanwhile: list[dict[str, frozenset[str]]] = []  # what was asked for since the last reading began
        self._is_away = True  # until it has answered
        self._reading: asyncio.Task[None] | None = None
        self._next_at = 0.0  # when the next question about a single address may begin
        self._asking: dict[asyncio.Task[Outcome | None], float] = {}  # those under way: when they begin
        self._silent_until = 0.0
        self._reading_since = float("inf")  # monotonic, while it is being read
        # Patience is for mail: here, a client waits for his answer to RCPT.
        connect_timeout, read_timeout = (
            min(seconds, PATIENCE) for seconds in (settings.connect_timeout, settings.read_timeout)
        )
        self._client = Client(
            settings._replace(connect_timeout=connect_timeout, read_timeout=read_timeout, workers=2)  # the two threads
        )
        self._reader, self._asker = ThreadPoolExecutor(1, "directory"), ThreadPoolExecutor(1, "question")

    async def keep(self) -> None:
        """Read the list again and again, until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH)

    async def refresh(self) -> None:
        """Read the list, with others who want it, but wait not for long.

        A reading that had begun before is not what is wanted: an address may have come since.
        """
        began = time.monotonic()
        while self._read_last < began:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read())
            done, _ = await asyncio.wait({self._reading}, timeout=began + PATIENCE - time.monotonic())
            if not done:  # for the next ones too, for a while
                self._read_last = time.monotonic()

    async def _read(self) -> None:
        self._reading_since = began = time.monotonic()
        self._meanwhile.clear()
        try:
            loop = asyncio.get_running_loop()
            listed = await loop.run_in_executor(self._reader, read, self._client, self.settings)
            for lists in self._meanwhile:
                listed = merged(listed, lists)
            self.listed = listed
            self.read_at = time.time()
            found = f"the alias list is read: {len(self.listed.aliases)} addresses"
        except Ended as ended:
            self._is_away = ended.verdict.outcome in AWAY
            found = f"the alias list can't be read: {ended.verdict.outcome.name.lower()}: {ended.verdict.cause}"
        except Exception as error:  # our own bug: the list that is there goes on
            found = f"the alias list can't be read: {where(error)}"
        self._reading_since = float("inf")
        self._tell(found)
        self._read_last = began

    @property
    def known(self) -> Settings | None:
        """What the database has said of its addresses, where that decides: no model takes what no alias takes."""
        return None if self.settings.model else self.listed

    async def refusal(self, recipient: Recipient) -> Outcome | None:
        """Return why a recipient is refused or put off, None when it is the database's as far as anybody knows."""
        if not has(self.settings, recipient):
            return Outcome.UNKNOWN_RECIPIENT
        if self.settings.model:
            return None
        if self.listed is None and self._is_away and time.monotonic() - self._read_last > FRESH:
            await self.refresh()
        if self.listed is None or has(self.settings, recipient, self.listed):
            return None
        return await self._ask(recipient)

    async def _ask(self, recipient: Recipient) -> Outcome | None:
        """Return what the database says of a recipient who is not on the list, if it says so in time."""
        now = time.monotonic()
        if now < self._silent_until:
            return Outcome.NO_ANSWER
        if len(self._asking) >= QUESTIONS:
            return Outcome.BUSY
        self._next_at = max(now, self._next_at + 1 / QUESTIONS)
        question = asyncio.create_task(self._question(recipient, self._next_at - now, now + PATIENCE))
        self._asking[question] = self._next_at
        question.add_done_callback(self._asking.pop)
        done, _ = await asyncio.wait({question}, timeout=PATIENCE)
        answer = question.result() if done else Outcome.NO_ANSWER
        if answer is Outcome.NO_ANSWER:  # for the next ones too, for a while
            self._silent_until = time.monotonic() + FRESH
        return answer

    async def _question(self, recipient: Recipient, pause: float, until: float) -> Outcome | None:
        await asyncio.sleep(pause)
        loop = asyncio.get_running_loop()
        try:
            lists = await loop.run_in_executor(self._asker, ask, self._client, self.settings, [recipient], until)
        except Exception as error:  # our own bug among them: nobody is refused for it
            cause = error.verdict.cause if isinstance(error, Ended) else where(error)
            self._tell(f"the database can't be asked for an address: {cause}")
            return Outcome.NO_ANSWER
        if self.listed and merged(self.listed, lists) != self.listed:
            self.listed = merged(self.listed, lists)
            self._meanwhile.append(lists)  # a reading that began before would not have it
        return None if has(self.settings, recipient, self.known) else Outcome.UNKNOWN_RECIPIENT

    def _tell(self, found: str) -> None:
        """Report what is found, unless it was said before."""
        if found != self._found:
            self.report(found)
        self._found = found

    @property
    def asking_since(self) -> float:
        """When the oldest call that is under way began, in monotonic seconds; infinity without any."""
        return min([self._reading_since, *self._asking.values()])
