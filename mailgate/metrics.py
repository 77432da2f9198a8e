"""What a resident process counts, for Prometheus, at http://ADDRESS/metrics or in a textfile for node_exporter.

Beside /metrics there are /healthz (the process answers) and /readyz (it can deliver, as far as it knows). Names follow
Prometheus' documentation, "Metric and label naming": a counter ends in _total, and a quantity's name has its unit.
"""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    ProcessCollector,
    make_wsgi_app,
    write_to_textfile,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from mailgate import __version__
from mailgate.outcome import Outcome

TEXTFILE_EVERY_SECONDS = 15.0  # as often as Prometheus asks by default
MAX_CLIENTS = 10  # over HTTP, at a time
CLIENT_TIMEOUT_SECONDS = 5.0  # that one may take in all
MAX_COUNTED_FILES = 10_000  # of a folder: some milliseconds
Value = float | Mapping[str, float] | None
BUCKETS_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics(Collector):
    """The counters; all threads count into them."""

    def __init__(
        self,
        gauges: Mapping[str, tuple[str, Callable[[], Value]]],
        checks: Mapping[str, Callable[[], bool]],
    ) -> None:
        """``gauges`` are looked at when somebody asks: by name, what each is and how to get it.

        None leaves it out; a mapping has a number for each mailbox, by its name.

        ``checks`` tell whether the service is ready: by the reason why it is not, a function that tells whether it is.
        They are called whenever somebody asks, so they must be cheap.
        """
        self.gauges, self.checks = gauges, checks
        self.registry = registry = CollectorRegistry()
        self._messages = Counter("mail_gateway_messages", "Messages by ending", ["outcome"], registry=registry)
        for outcome in Outcome:  # so that each is there from the start
            self._messages.labels(outcome.name.lower())
        self._rejected = Counter(
            "mail_gateway_rejected_recipients", "Recipients refused or deferred at RCPT", ["outcome"], registry=registry
        )
        self._bytes = Counter("mail_gateway_received_bytes", "Bytes of messages received", registry=registry)
        self._retries = Counter("mail_gateway_request_retries", "Requests sent again at once", registry=registry)
        self._seconds = Histogram(
            "mail_gateway_step_duration_seconds",
            "Duration of a message's steps",
            ["step"],
            buckets=BUCKETS_SECONDS,
            registry=registry,
        )
        Info("mail_gateway_build", "The program that runs", registry=registry).info({"version": __version__})
        registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges that have a value, and whether the service is ready."""
        for name, (text, value) in self.gauges.items():
            found = value()
            if isinstance(found, Mapping):
                family = GaugeMetricFamily(f"mail_gateway_{name}", text, labels=["mailbox"])
                for mailbox, number in found.items():
                    family.add_metric([mailbox], number)
                yield family
            elif found is not None:
                yield GaugeMetricFamily(f"mail_gateway_{name}", text, found)
        yield GaugeMetricFamily("mail_gateway_ready", "1 where /readyz says ok, else 0", not self.why_not_ready())

    def why_not_ready(self) -> list[str]:
        """Return why the service is not ready; nothing when it is."""
        return [reason for reason, is_good in self.checks.items() if not is_good()]

    def message(self, outcome: Outcome, size: int, seconds: Mapping[str, float]) -> None:
        """Count a message that has ended: bytes, and seconds by step."""
        self._messages.labels(outcome.name.lower()).inc()
        self._bytes.inc(size)
        for step, value in seconds.items():
            self._seconds.labels(step).observe(value)

    def refused(self, outcome: Outcome) -> None:
        """Count a recipient who was refused or deferred at RCPT."""
        self._rejected.labels(outcome.name.lower()).inc()

    def retrying(self) -> None:
        """Count a request that is sent again at once."""
        self._retries.inc()

    def listen(self, address: str) -> None:
        """Serve them at a loopback address and port, in a thread of its own. Raises OSError."""
        ProcessCollector(registry=self.registry)
        host, _, port = address.rpartition(":")
        server = (_Server6 if "[" in host else _Server)((host.strip("[]"), int(port)), _Handler)
        server.set_app(self._app)
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()

    def _app(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer an HTTP request: a WSGI application (PEP 3333)."""
        path, status, lines = environ["PATH_INFO"], "200 OK", ["ok"]
        if path == "/metrics":
            answer: Iterable[bytes] = make_wsgi_app(self.registry)(environ, start_response)
            return answer
        if path == "/readyz" and (reasons := self.why_not_ready()):
            status, lines = "503 Service Unavailable", reasons
        elif path not in ("/healthz", "/readyz"):
            status, lines = "404 Not Found", ["/metrics, /healthz and /readyz are here"]
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return ["".join(f"{line}\n" for line in lines).encode()]

    async def write_forever(self, path: str, report: Callable[[str], None]) -> None:
        """Write them to a file again and again, until cancelled; ``report`` is told what goes wrong."""
        # node_exporter has process metrics of its own, and drops a second process_open_fds
        ProcessCollector("mail_gateway", registry=self.registry)
        failure = ""
        while True:
            try:
                await asyncio.to_thread(write_to_textfile, path, self.registry)
                failure = ""
            except OSError as error:
                if str(error) != failure:
                    failure = str(error)
                    report(f"the metrics can't be written: {failure}")
            await asyncio.sleep(TEXTFILE_EVERY_SECONDS)


def new_mail_count(maildir: str) -> int | None:
    """Return how many files are in a Maildir's new/, at most MAX_COUNTED_FILES; None where there is no such Maildir."""
    try:
        with os.scandir(os.path.join(maildir, "new")) as entries:
            return sum(1 for _ in islice(entries, MAX_COUNTED_FILES))
    except FileNotFoundError:
        return 0 if os.path.isdir(maildir) else None  # new/ is made for the first message
    except OSError:
        return None


class _Server(ThreadingMixIn, WSGIServer):
    """An HTTP server with a thread for each client; more than MAX_CLIENTS are turned away."""

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self.free = threading.Semaphore(MAX_CLIENTS)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client who has gone, or was cut off."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    """One client, who is cut off after CLIENT_TIMEOUT_SECONDS, whatever he has said until then."""

    def handle(self) -> None:
        end = threading.Timer(CLIENT_TIMEOUT_SECONDS, self._cut_off)
        end.start()
        try:
            super().handle()
        finally:
            end.cancel()

    def _cut_off(self) -> None:
        with contextlib.suppress(OSError):  # he has gone
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing."""
