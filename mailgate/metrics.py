"""What the service counts, for Prometheus, at http://ADDRESS/metrics or in a textfile for node_exporter."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server, write_to_textfile

from mailgate.directory import Directory
from mailgate.outcome import Outcome
from mailgate.workers import Workers

STEPS = ("receive", "wait", "deliver")
TEXTFILE_EVERY = 15.0  # seconds; as often as Prometheus asks by default
BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)  # seconds


class Watched(Protocol):
    """What of the service is looked at when somebody asks."""

    open: set[Any]
    directory: Directory
    workers: Workers


class Metrics:
    """The counters; all threads count into them."""

    def __init__(self, service: Watched) -> None:
        self.registry = registry = CollectorRegistry()
        self._messages = Counter("mail_gateway_messages", "Messages by ending", ["outcome"], registry=registry)
        for outcome in Outcome:  # so that each is there from the start
            self._messages.labels(outcome.name.lower())
        self._refusals = Counter("mail_gateway_refusals", "Recipients refused at RCPT", ["outcome"], registry=registry)
        self._bytes = Counter("mail_gateway_bytes", "Bytes of messages received", registry=registry)
        self._retries = Counter("mail_gateway_retries", "Requests sent again at once", registry=registry)
        self._seconds = Histogram("mail_gateway_seconds", "By step", ["step"], buckets=BUCKETS, registry=registry)
        gauges: Mapping[str, tuple[str, Callable[[], float]]] = {
            "connections": ("Connections of mail servers", lambda: len(service.open)),
            "waiting": ("Messages that wait for a worker", lambda: service.workers.waiting),
            "running": ("Messages on their way to the database", lambda: len(service.workers.running)),
            "alias_list_seconds": ("When the alias list was read, since 1970", lambda: service.directory.read_at),
        }
        for name, (text, value) in gauges.items():
            Gauge(f"mail_gateway_{name}", text, registry=registry).set_function(value)

    def message(self, outcome: Outcome, size: int, seconds: Mapping[str, float]) -> None:
        """Count a message that has ended: bytes, and seconds by step."""
        self._messages.labels(outcome.name.lower()).inc()
        self._bytes.inc(size)
        for step, value in seconds.items():
            self._seconds.labels(step).observe(value)

    def refused(self, outcome: Outcome) -> None:
        self._refusals.labels(outcome.name.lower()).inc()

    def retrying(self) -> None:
        self._retries.inc()

    def listen(self, address: str) -> None:
        """Serve them at a loopback address and port, in a thread of its own. Raises OSError."""
        host, _, port = address.rpartition(":")
        start_http_server(int(port), host.strip("[]"), self.registry)

    async def keep(self, path: str, report: Callable[[str], None]) -> None:
        """Write them to a file again and again, until cancelled; ``report`` is told what goes wrong."""
        failure = ""
        while True:
            try:
                await asyncio.to_thread(write_to_textfile, path, self.registry)
                failure = ""
            except OSError as error:
                if str(error) != failure:
                    failure = str(error)
                    report(f"the metrics can't be written: {failure}")
            await asyncio.sleep(TEXTFILE_EVERY)
