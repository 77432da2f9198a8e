"""Which addresses the database has: its own list, read from it and kept; what is not on it, it is asked about.

The list takes the place of the operator's ALIASES, LOCAL_PARTS, CATCHALL and BOUNCE, so that the rules decide by it as
they do by those. It is read in the background. Who answers whether an address is the database's:

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
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mailgate.database import Client
from mailgate.envelope import Recipient, split_address
from mailgate.log import where
from mailgate.outcome import Ended, Outcome
from mailgate.rules import match
from mailgate.settings import Settings

REFRESH = 60.0  # seconds between two readings in the background
FRESH = 1.0  # seconds for which the failure to ask answers the next question, too
PATIENCE = 10.0  # seconds that an answer waits for the database; an MTA waits minutes for the answer to RCPT
QUESTIONS = 10  # about single addresses, a second, and as many that wait: so often may strangers make us ask
AWAY = (Outcome.NO_ANSWER, Outcome.CUT_OFF, Outcome.DATABASE_DOWN)  # asked again, it may answer
PAGE = 1000  # rows of a list in one answer: some 400 bytes each, of the megabyte that an answer may have
LISTS = ("alias_domains", "allowed_domains", "aliases", "local_parts", "catchall", "bounce")  # of Settings
DOMAIN_FIELDS = ("name", "bounce_email", "catchall_email", "default_from_email")
ALIAS_FIELDS = ("alias_name", "alias_full_name", "alias_incoming_local")
ALLOWED = "mail.catchall.domain.allowed"
FIRST_VERSION = 17  # the documentation that this follows; before it, an alias answers to its local-part anywhere

Rows = list[dict[str, Any]]


def read(client: Client, settings: Settings) -> Settings:
    """Return the settings with the database's addresses in place of the operator's. Raises Ended.

    Documentation: "Manage inbound messages", aliases, catchall, bounce and local-part based detection.
    """
    version = client.version(time.monotonic())
    number = version.get("server_version_info", [0])[0] if isinstance(version, dict) else 0
    if isinstance(number, int) and number < FIRST_VERSION:
        raise Ended(Outcome.SETTINGS, f"the alias list can be read from version {FIRST_VERSION} on, not from {number}")
    domains = _search(client, "mail.alias.domain", DOMAIN_FIELDS)
    aliases = _search(client, "mail.alias", ALIAS_FIELDS)
    lists: dict[str, Any] = _lists(domains, aliases, _allowed(client, settings))
    return settings._replace(**lists)


def ask(client: Client, settings: Settings, recipient: Recipient, until: float) -> dict[str, frozenset[str]]:
    """Return what the database has of a recipient's addresses, as in its list.

    Raises Ended, also when nobody waits any more: from ``until`` on, by the monotonic clock.
    """
    if time.monotonic() > until:
        raise Ended(Outcome.NO_ANSWER, "it does not answer in time")
    local_parts, names = set(), set()
    delimiter = settings.recipient_delimiter
    for address in filter(str.isprintable, recipient):  # what is not can't be asked for, and is no alias
        local_part, domain = split_address(address.lower())
        local_parts |= {local_part, local_part.partition(delimiter)[0] if delimiter else local_part}
        names.add(domain)
    # by what both Odoo and mail_database store; what else of that name comes with it is the database's, too
    aliases = _search(client, "mail.alias", ALIAS_FIELDS, ("alias_name", "in", sorted(local_parts)))
    domains = _search(client, "mail.alias.domain", DOMAIN_FIELDS, ("name", "in", sorted(names)))
    lists = _lists(domains, aliases, frozenset())
    if lists["local_parts"]:
        return {**lists, "allowed_domains": _allowed(client, settings)}
    del lists["allowed_domains"]
    return lists


def _search(client: Client, model: str, fields: tuple[str, ...], *terms: tuple[str, str, Any]) -> Rows:
    """Return the rows that the terms allow, page by page. Raises Ended."""
    rows: Rows = []
    while True:
        last = rows[-1]["id"] if rows else 0
        options = {"fields": ("id", *fields), "order": "id", "limit": PAGE}
        page = client.execute(model, "search_read", [[("id", ">", last), *terms]], options, time.monotonic())
        wanted = {"id", *fields}
        if not isinstance(page, list) or not all(isinstance(row, dict) and row.keys() >= wanted for row in page):
            raise Ended(Outcome.CUT_OFF, f"what {model} answers is no list of addresses")
        ids = [last, *(row["id"] for row in page)]
        if ids != sorted(set(ids)):  # or it would never end
            raise Ended(Outcome.CUT_OFF, f"what {model} answers is not in the order that was asked for")
        rows += page
        if len(page) < PAGE:
            return rows


def _allowed(client: Client, settings: Settings) -> frozenset[str]:
    """Return the allowed domains, the database's and the operator's. Raises Ended."""
    try:
        value = client.execute("ir.config_parameter", "get_param", [ALLOWED], {}, time.monotonic())
    except Ended as ended:  # an administrator's to read; without it, the settings' count
        if ended.verdict.outcome is not Outcome.ACCESS_DENIED:
            raise
        value = ""
    return settings.allowed_domains | {part.strip() for part in str(value or "").split(",")} - {""}


def _lists(domains: Rows, aliases: Rows, allowed: frozenset[str]) -> dict[str, frozenset[str]]:
    """Return the lists of LISTS."""
    # An answer to a notification goes to the thread even where it is sent to the notification's own address.
    addresses = [row[field] for row in domains for field in ("bounce_email", "catchall_email", "default_from_email")]
    addresses = [address for address in addresses if address and "@" in address]
    addresses += [row["alias_full_name"] for row in aliases if "@" in (row["alias_full_name"] or "")]
    bounces = [row["bounce_email"] for row in domains if row["bounce_email"]]
    lists: tuple[Iterable[str], ...] = (
        (row["name"] for row in domains),
        allowed,
        addresses,
        (row["alias_name"] for row in aliases if row["alias_name"] and row["alias_incoming_local"]),
        (),  # among the addresses: each domain has its own
        (split_address(bounce)[0] for bounce in bounces),  # here too, for those with an extension
    )
    return {name: frozenset(item.lower() for item in items) for name, items in zip(LISTS, lists, strict=True)}


def merged(settings: Settings, lists: dict[str, frozenset[str]]) -> Settings:
    """Return the settings with more in their lists; the allowed domains are whole where they are there."""
    more: dict[str, Any] = {name: getattr(settings, name) | items for name, items in lists.items()}
    return settings._replace(**{**more, "allowed_domains": lists.get("allowed_domains", settings.allowed_domains)})


def has(settings: Settings, recipient: Recipient) -> bool:
    """Tell whether a recipient is the database's: by the address, or by what it was before it was rewritten."""
    return bool(match(settings, [recipient])[0].rule)


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
    def rules(self) -> Settings:
        """The settings that decide: with the list, where there is one and no model takes what no alias takes."""
        return self.settings if self.settings.model or self.listed is None else self.listed

    async def refusal(self, recipient: Recipient) -> Outcome | None:
        """Return why a recipient is refused or put off, None when it is the database's as far as anybody knows."""
        if not has(self.settings, recipient):
            return Outcome.UNKNOWN_RECIPIENT
        if self.settings.model:
            return None
        if self.listed is None and self._is_away and time.monotonic() - self._read_last > FRESH:
            await self.refresh()
        if self.listed is None or has(self.listed, recipient):
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
            lists = await loop.run_in_executor(self._asker, ask, self._client, self.settings, recipient, until)
        except Exception as error:  # our own bug among them: nobody is refused for it
            cause = error.verdict.cause if isinstance(error, Ended) else where(error)
            self._tell(f"the database can't be asked for an address: {cause}")
            return Outcome.NO_ANSWER
        if self.listed and merged(self.listed, lists) != self.listed:
            self.listed = merged(self.listed, lists)
            self._meanwhile.append(lists)  # a reading that began before would not have it
        return None if has(self.rules, recipient) else Outcome.UNKNOWN_RECIPIENT

    def _tell(self, found: str) -> None:
        """Report what is found, unless it was said before."""
        if found != self._found:
            self.report(found)
        self._found = found

    @property
    def asking_since(self) -> float:
        """When the oldest call that is under way began, in monotonic seconds; infinity without any."""
        return min([self._reading_since, *self._asking.values()])
