"""The directory: which addresses the database has, by its own list, and by questions about single ones.

The list is read in the background. What decides whether an address is the database's:

    the list                        what it has            what it has not
    fresh or old                    yes                    the database, asked for this one: yes or no
    fresh or old, and the database  yes                    deferred
      does not answer, or was asked
      too often this second
    none yet                        (the answer waits for the first reading, PATIENCE_SECONDS at most)
    none, for it can't be read now  the operator's settings, as in the pipe: yes or no
    none, for the database has      the operator's settings, as in the pipe: yes or no
      none for us: it is too old,
      or our user may not read it
    whichever, where a model takes  the operator's settings, as in the pipe: yes or no
      what no alias takes

So the list takes the place of the operator's settings entirely: where they leave out an address of the database, the
log says so, and the address counts. And an address that is not on the list is refused only by what the database has
said after the question.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from mailgate import alias_list
from mailgate.addresses import Addresses, is_ours, known_everywhere, named
from mailgate.database import Client
from mailgate.envelope import Recipient
from mailgate.log import error_text
from mailgate.outcome import Ended, Outcome
from mailgate.settings import Settings

REFRESH_SECONDS = 60.0  # between two readings in the background
FRESH_SECONDS = 1.0  # for which the failure to ask answers the next question, too
PATIENCE_SECONDS = 10.0  # that an answer waits for the database; an MTA waits minutes for the answer to RCPT
MAX_QUESTIONS = 10  # about single addresses, a second, and as many open: so often may strangers make us ask
AWAY = (Outcome.NO_ANSWER, Outcome.CUT_OFF, Outcome.DATABASE_DOWN)  # asked again, it may answer
MAX_NAMED = 5  # addresses that the log names


class Directory:
    """The list, as the running service keeps it."""

    def __init__(self, settings: Settings, report: Callable[[str], None], before: "Directory | None" = None) -> None:
        """``report`` is told in a line what is found; ``before`` is who kept the list until now."""
        self.settings, self.report = settings, report
        self.listed: Addresses | None = None
        self.read_at = 0.0  # seconds since 1970; 0 is never
        self.answered_at = float("-inf")  # when the database answered last, in monotonic seconds
        if before and before.settings[:2] == settings[:2]:  # the same URL and database
            self.answered_at = before.answered_at
            if before.listed:
                delimiter = settings.addresses.recipient_delimiter
                self.listed, self.read_at = before.listed._replace(recipient_delimiter=delimiter), before.read_at
        self._read_last = float("-inf")  # when the last reading began, or was given up
        self._said = self._said_of_settings = ""  # what was reported of it, and of what the settings leave out
        self._meanwhile: list[Addresses] = []  # what was asked for since the last reading began
        self._is_away = True  # until it has answered
        self._reading: asyncio.Task[None] | None = None
        self._next_at = 0.0  # when the next question about a single address may begin
        self._asking: dict[asyncio.Task[Outcome | None], float] = {}  # those under way: when they begin
        self._silent_until = 0.0
        self._reading_since = float("inf")  # monotonic, while it is being read
        # shorter than for mail: a client waits for the answer to RCPT
        connect_timeout, read_timeout = (
            min(seconds, PATIENCE_SECONDS) for seconds in (settings.connect_timeout, settings.read_timeout)
        )
        self._client = Client(
            settings._replace(connect_timeout=connect_timeout, read_timeout=read_timeout, workers=2)  # the two threads
        )
        self._reader, self._asker = ThreadPoolExecutor(1, "directory"), ThreadPoolExecutor(1, "question")

    async def refresh_forever(self) -> None:
        """Read the list again and again, until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_SECONDS)

    async def refresh(self) -> None:
        """Read the list, with others who want it, but wait not for long.

        A reading that had begun before is not what is wanted: an address may have come since.
        """
        began = time.monotonic()
        while self._read_last < began:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read())
            done, _ = await asyncio.wait({self._reading}, timeout=began + PATIENCE_SECONDS - time.monotonic())
            if not done:  # for the next ones too, for a while
                self._read_last = time.monotonic()

    async def _read(self) -> None:
        self._reading_since = began = time.monotonic()
        self._meanwhile.clear()
        loop = asyncio.get_running_loop()
        addresses = self.settings.addresses
        try:
            listed = await loop.run_in_executor(self._reader, alias_list.read, self._client, addresses)
            for asked in self._meanwhile:
                listed = alias_list.merged(listed, asked)
            self.listed = listed
            self.read_at = time.time()
            self.note_answer(self._client)
            found = f"the alias list is read: {len(named(listed) or known_everywhere(listed))} addresses"
            if not self.settings.model:  # with one, the settings decide
                self._tell_left_out(await loop.run_in_executor(self._reader, alias_list.left_out, addresses, listed))
        except Ended as ended:
            self._is_away = ended.verdict.outcome in AWAY
            self.note_answer(self._client, ended.verdict.outcome)
            found = f"the alias list can't be read: {ended.verdict.outcome.name.lower()}: {ended.verdict.cause}"
        except Exception as error:  # our own bug: the list that is there goes on
            found = f"the alias list can't be read: {error_text(error)}"
        self._reading_since = float("inf")
        self._tell(found)
        self._read_last = began

    def note_answer(self, client: Client, outcome: Outcome | None = None) -> None:
        """Note when the database answered a client last, unless this outcome of a call says that it is away."""
        if outcome in AWAY:
            client.replied_at = float("-inf")  # a server may answer while its database is away
        else:
            self.answered_at = max(self.answered_at, client.replied_at)

    @property
    def deciding(self) -> Addresses:
        """The addresses that decide: the list, except where there is none, or a model takes what no alias takes."""
        return self.settings.addresses if self.settings.model or self.listed is None else self.listed

    async def refusal(self, recipient: Recipient) -> Outcome | None:
        """Return why a recipient is refused or deferred, None when it is the database's as far as anybody knows."""
        if (
            not self.settings.model
            and self.listed is None
            and self._is_away
            and time.monotonic() - self._read_last > FRESH_SECONDS
        ):
            await self.refresh()
        deciding = self.deciding
        if is_ours(deciding, recipient):
            return None
        return await self._ask(recipient) if deciding.is_list else Outcome.UNKNOWN_RECIPIENT

    async def _ask(self, recipient: Recipient) -> Outcome | None:
        """Return what the database says of a recipient who is not on the list, if it says so in time."""
        now = time.monotonic()
        if now < self._silent_until:
            return Outcome.NO_ANSWER
        if len(self._asking) >= MAX_QUESTIONS:
            return Outcome.BUSY
        self._next_at = max(now, self._next_at + 1 / MAX_QUESTIONS)
        question = asyncio.create_task(self._question(recipient, self._next_at - now, now + PATIENCE_SECONDS))
        self._asking[question] = self._next_at
        question.add_done_callback(self._asking.pop)
        done, _ = await asyncio.wait({question}, timeout=PATIENCE_SECONDS)
        answer = question.result() if done else Outcome.NO_ANSWER
        if answer is Outcome.NO_ANSWER:  # for the next ones too, for a while
            self._silent_until = time.monotonic() + FRESH_SECONDS
        return answer

    async def _question(self, recipient: Recipient, pause: float, until: float) -> Outcome | None:
        await asyncio.sleep(pause)
        loop = asyncio.get_running_loop()
        try:
            asked = await loop.run_in_executor(
                self._asker, alias_list.ask, self._client, self.settings.addresses, [recipient], until
            )
        except Exception as error:  # our own bug among them: nobody is refused for it
            cause = error.verdict.cause if isinstance(error, Ended) else error_text(error)
            self._tell(f"the database can't be asked for an address: {cause}")
            return Outcome.NO_ANSWER
        self.note_answer(self._client)
        listed = self.listed and alias_list.merged(self.listed, asked)
        if listed != self.listed:
            self.listed = listed
            self._meanwhile.append(asked)  # a reading that began before would not have it
        return None if is_ours(self.deciding, recipient) else Outcome.UNKNOWN_RECIPIENT

    def _tell(self, found: str) -> None:
        """Report what is found, unless it was said before."""
        if found != self._said:
            self.report(found)
        self._said = found

    def _tell_left_out(self, addresses: list[str]) -> None:
        """Report which of the database's addresses the settings would refuse, unless it was said before."""
        more = f" and {len(addresses) - MAX_NAMED} more" if len(addresses) > MAX_NAMED else ""
        named = f"{', '.join(addresses[:MAX_NAMED])}{more}"
        if addresses and named != self._said_of_settings:
            self.report(f"settings leave out: {named}; the database has them, so they count here, but not in the pipe")
        self._said_of_settings = named

    @property
    def asking_since(self) -> float:
        """When the oldest call that is under way began, in monotonic seconds; infinity without any."""
        return min([self._reading_since, *self._asking.values()])
