"""What the connections share: settings, log, directory, workers, counters; and how the service is stopped."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Protocol

from mailgate import DEADLINE, journal
from mailgate.database import Client
from mailgate.log import Log
from mailgate.service import listen
from mailgate.service.directory import Directory
from mailgate.service.workers import MAX_SLOW_CALLS, Workers
from mailgate.settings import Settings

MAX_WAITING = 100  # messages that have been received and wait for a worker; the MTA keeps more than that
LARGE_PAUSE_SECONDS = 0.0005  # between two pieces of a large message on its way out: small ones go between
STOP_WITHIN_SECONDS = 75.0  # that the messages under way have when the service is stopped; systemd waits 90
ANSWERED_SECONDS = 300.0  # for which the service is ready after an answer of the database; it is asked each minute
WATCH_SECONDS = 10.0  # between two looks at the workers


class Connected(Protocol):
    """What of a connection is asked for here."""

    is_delivering: bool

    @property
    def recipients_bytes(self) -> int:
        """The memory that the recipients of the open transaction take."""

    def dismiss_unless_delivering(self) -> None:
        """Close, for the service stops."""


class Service:
    """The one value that all connections have."""

    settings: Settings
    log: Log
    client: Client
    directory: Directory

    def __init__(self, settings: Settings, log: Log, settings_version: str = "") -> None:
        self.connections: set[Connected] = set()
        self.socketmap_clients: set[asyncio.StreamWriter] = set()
        self.workers = Workers()
        self.stop_requested = asyncio.Event()
        self._all_have_gone = asyncio.Event()
        self.receiving_large = 0  # messages
        self.is_closing = self.is_stuck = False
        self.are_settings_good = True  # those that were read last, used or not
        self.metrics: Any = None
        self._refreshing: asyncio.Task[None] | None = None
        if settings.metrics:
            self.metrics = self._new_metrics()
        self.configure(settings, log, settings_version)

    def _new_metrics(self) -> Any:
        from mailgate.metrics import Metrics, new_mail_count  # and with it prometheus_client, for them alone

        gauges: dict[str, tuple[str, Callable[[], float | None]]] = {
            "connections": ("Connections of mail servers", lambda: len(self.connections)),
            "waiting_messages": ("Messages that wait for a worker", lambda: self.workers.waiting),
            "delivering_messages": ("Messages on their way to the database", lambda: len(self.workers.running)),
            "held_messages": (
                "Files in the hold folder's new/",
                lambda: new_mail_count(self.settings.hold) if self.settings.hold else None,
            ),
            "alias_list_read_timestamp_seconds": (
                "When the alias list was read last, since 1970; 0 is never",
                lambda: self.directory.read_at,
            ),
        }
        checks: dict[str, Callable[[], bool]] = {
            "the settings were read anew and are wrong; those from before are used": lambda: self.are_settings_good,
            "the journal can't be written": lambda: journal.could_write(self.settings),
            f"the database has not answered in the last {ANSWERED_SECONDS:.0f} seconds": lambda: (
                time.monotonic() - self.directory.answered_at < ANSWERED_SECONDS
            ),
        }
        return Metrics(gauges, checks)

    def configure(self, settings: Settings, log: Log, settings_version: str = "") -> None:
        """Take these settings and this log for what comes from now on. Raises KeyError for a user that is gone.

        ``settings_version`` is handover.settings_version() of the file they come from: what the pipe asks for.
        """
        self.client_user_ids = listen.user_ids(settings.clients)
        before = self.directory if self._refreshing else None
        if self._refreshing:
            self._refreshing.cancel()
        self.settings, self.log, self.settings_version = settings, log, settings_version
        for_all_calls = settings._replace(workers=settings.workers + MAX_SLOW_CALLS + 1)
        self.client = Client(
            for_all_calls, self.metrics.retrying if self.metrics else lambda: None, LARGE_PAUSE_SECONDS
        )
        self.workers.count = settings.workers
        self.directory = Directory(settings, self.report, before)
        self._refreshing = asyncio.create_task(self.directory.refresh_forever())
        self.are_settings_good = True

    def admits(self, connection: asyncio.BaseTransport | asyncio.StreamWriter) -> bool:
        """Tell whether the user at the other end may use the service."""
        peer = listen.peer(connection.get_extra_info("socket"))
        admitted = not self.client_user_ids or peer is None or peer in self.client_user_ids
        if not admitted:
            self.report(f"user id {peer} is not among MAIL_GATEWAY_CLIENTS")
        return admitted

    def report(self, text: str, priority: str = "LOG_WARNING") -> None:
        """Log a line about the service itself."""
        self.log.event(text, priority)

    def forget(self, connection: Connected) -> None:
        """Take leave of a connection that has ended."""
        self.connections.discard(connection)
        if self.is_closing and not self.connections:
            self._all_have_gone.set()

    @property
    def is_full(self) -> bool:
        """Whether as many messages as may have been received and have no answer yet."""
        delivering = sum(connection.is_delivering for connection in self.connections.copy())
        return delivering >= MAX_WAITING + self.settings.workers

    @property
    def recipients_bytes(self) -> int:
        """The memory that the recipients of all open transactions take."""
        return sum(connection.recipients_bytes for connection in self.connections)

    async def watch(self) -> None:
        """End the service when a thread does not come back; it can't be had back, so another process is needed."""
        while not any(  # noqa: ASYNC110  # a thread that hangs sets no event
            time.monotonic() - began > DEADLINE
            for began in [*(call.began for call in self.workers.running), self.directory.asking_since]
        ):
            await asyncio.sleep(WATCH_SECONDS)
        self.report("a call to the database has not come back: the service ends, to be started anew", "LOG_ERR")
        self.is_stuck = True
        self.stop_requested.set()

    async def stop(self) -> None:
        """Turn away what comes, and wait, within a bound, until what a worker has is answered."""
        self.is_closing = True
        self.workers.close()
        for writer in self.socketmap_clients.copy():
            writer.transport.abort()
        for connection in self.connections.copy():
            connection.dismiss_unless_delivering()
        with contextlib.suppress(asyncio.TimeoutError):
            if self.connections:
                await asyncio.wait_for(self._all_have_gone.wait(), STOP_WITHIN_SECONDS)
