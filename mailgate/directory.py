"""Which addresses the database has: its own list, read from it and kept, and asked again where it may have changed.

The list takes the place of the operator's ALIASES, LOCAL_PARTS, CATCHALL and BOUNCE, so that the rules decide by it as
they do by those. It is read in the background. An address that is not on it is refused only when the list was read
this very second: for any other miss it is read anew. Who can't be asked refuses nobody: while there is no list, the
operator's settings decide alone, as they do in the pipe (for a database that has none for us, or from before version
17, for good); with a list of some age, a miss is put off.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mailgate.database import Client
from mailgate.envelope import Recipient
from mailgate.log import where
from mailgate.outcome import Ended, Outcome
from mailgate.rules import match
from mailgate.settings import Settings

REFRESH = 60.0  # seconds between two readings in the background
FRESH = 1.0  # seconds for which a list, or the failure to read it, answers a miss: so often may strangers make us ask
PATIENCE = 10.0  # seconds that a miss waits for the list; an MTA waits minutes for the answer to RCPT
AWAY = (Outcome.NO_ANSWER, Outcome.CUT_OFF, Outcome.DATABASE_DOWN)  # asked again, it may answer
PAGE = 1000  # rows of a list in one answer: some 400 bytes each, of the megabyte that an answer may have
LISTS = ("alias_domains", "allowed_domains", "aliases", "local_parts", "catchall", "bounce")  # of Settings
ALLOWED = "mail.catchall.domain.allowed"
FIRST_VERSION = 17  # the documentation that this follows; before it, an alias answers to its local-part anywhere


def read(client: Client, settings: Settings) -> Settings:
    """Return the settings with the database's addresses in place of the operator's. Raises Ended.

    Documentation: "Manage inbound messages", aliases, catchall, bounce and local-part based detection.
    """

    def search(model: str, *fields: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        while True:
            last = rows[-1]["id"] if rows else 0
            options = {"fields": ("id", *fields), "order": "id", "limit": PAGE}
            page = client.execute(model, "search_read", [[("id", ">", last)]], options, time.monotonic())
            wanted = {"id", *fields}
            if not isinstance(page, list) or not all(isinstance(row, dict) and row.keys() >= wanted for row in page):
                raise Ended(Outcome.CUT_OFF, f"what {model} answers is no list of addresses")
            ids = [last, *(row["id"] for row in page)]
            if ids != sorted(set(ids)):  # or it would never end
                raise Ended(Outcome.CUT_OFF, f"what {model} answers is not in the order that was asked for")
            rows += page
            if len(page) < PAGE:
                return rows

    version = client.version(time.monotonic())
    number = version.get("server_version_info", [0])[0] if isinstance(version, dict) else 0
    if isinstance(number, int) and number < FIRST_VERSION:
        raise Ended(Outcome.SETTINGS, f"the alias list can be read from version {FIRST_VERSION} on, not from {number}")
    domains = search("mail.alias.domain", "name", "bounce_email", "catchall_email", "default_from_email")
    aliases = search("mail.alias", "alias_name", "alias_full_name", "alias_incoming_local")
    allowed = settings.allowed_domains
    try:
        value = client.execute("ir.config_parameter", "get_param", [ALLOWED], {}, time.monotonic())
        allowed |= {part.strip() for part in str(value or "").split(",")} - {""}
    except Ended as ended:  # an administrator's to read; without it, the settings' count
        if ended.verdict.outcome is not Outcome.ACCESS_DENIED:
            raise
    # An answer to a notification goes to the thread even where it is sent to the notification's own address.
    addresses = [row[field] for row in domains for field in ("bounce_email", "catchall_email", "default_from_email")]
    addresses += [row["alias_full_name"] for row in aliases]
    lists: tuple[Iterable[str], ...] = (
        (row["name"] for row in domains),
        allowed,
        (address for address in addresses if address and "@" in address),
        (row["alias_name"] for row in aliases if row["alias_name"] and row["alias_incoming_local"]),
        (),  # both are among the addresses: each domain has its own
        (),
    )
    found: dict[str, Any] = {
        name: frozenset(item.lower() for item in items) for name, items in zip(LISTS, lists, strict=True)
    }
    return settings._replace(**found)


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
        self._asked_at, self._answered = float("-inf"), False  # the last reading: when it began, and whether it was one
        self._found = ""  # what was said of it
        self._is_away = True  # until it has answered
        self._reading: asyncio.Task[None] | None = None
        self.reading_since = float("inf")  # monotonic, while it is being read
        # Patience is for mail: here, a client waits for his answer to RCPT.
        connect_timeout, read_timeout = (
            min(seconds, PATIENCE) for seconds in (settings.connect_timeout, settings.read_timeout)
        )
        self._client = Client(settings._replace(connect_timeout=connect_timeout, read_timeout=read_timeout))
        self._thread = ThreadPoolExecutor(1, "directory")

    async def keep(self) -> None:
        """Read the list again and again, until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH)

    async def refresh(self) -> bool:
        """Read the list, with others who want it, but wait not for long; return whether it is read.

        A reading that had begun before is not what is wanted: the address may have come since.
        """
        began = time.monotonic()
        while self._asked_at < began:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read())
            done, _ = await asyncio.wait({self._reading}, timeout=began + PATIENCE - time.monotonic())
            if not done:  # for the next ones too, for a while
                self._asked_at, self._answered = time.monotonic(), False
        return self._answered

    async def _read(self) -> None:
        began, answered = time.monotonic(), False
        self.reading_since = began
        try:
            loop = asyncio.get_running_loop()
            self.listed = await loop.run_in_executor(self._thread, read, self._client, self.settings)
            self.read_at, answered = time.time(), True
            found = f"the alias list is read: {len(self.listed.aliases)} addresses"
        except Ended as ended:
            self._is_away = ended.verdict.outcome in AWAY
            found = f"the alias list can't be read: {ended.verdict.outcome.name.lower()}: {ended.verdict.cause}"
        except Exception as error:  # our own bug: the list that is there goes on
            found = f"the alias list can't be read: {where(error)}"
        self.reading_since = float("inf")
        if found != self._found:
            self.report(found)
        self._found = found
        self._asked_at, self._answered = began, answered

    @property
    def rules(self) -> Settings:
        """The settings that decide: with the list, where there is one and no model takes what no alias takes."""
        return self.settings if self.settings.model or self.listed is None else self.listed

    async def refusal(self, address: str) -> Outcome | None:
        """Return why a recipient is refused or put off, None when it is the database's as far as anybody knows."""
        if not has(self.settings, address):
            return Outcome.UNKNOWN_RECIPIENT
        if self.settings.model or (self.listed and has(self.listed, address)):
            return None
        if self.listed is None and not self._is_away:  # it has answered that there is no list for us
            return None
        is_fresh = time.monotonic() - self._asked_at <= FRESH
        answered = self._answered if is_fresh else await self.refresh()
        if has(self.rules, address):
            return None
        return Outcome.UNKNOWN_RECIPIENT if answered else Outcome.NO_ANSWER


def has(settings: Settings, address: str) -> bool:
    return bool(match(settings, [Recipient(address)])[0].rule)
