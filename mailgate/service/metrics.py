"""What the service counts, for Prometheus, at http://ADDRESS/metrics or in a textfile for node_exporter."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Mapping
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app, write_to_textfile

from mailgate.outcome import Outcome

TEXTFILE_EVERY_SECONDS = 15.0  # as often as Prometheus asks by default
MAX_CLIENTS = 10  # over HTTP, at a time
CLIENT_TIMEOUT_SECONDS = 5.0  # that one may take in all
BUCKETS_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The counters; all threads count into them."""

    def __init__(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        """``gauges`` are what is looked at when somebody asks: by name, what it is and how to get it."""
        self.registry = registry = CollectorRegistry()
        self._messages = Counter("mail_gateway_messages", "Messages by ending", ["outcome"], registry=registry)
        for outcome in Outcome:  # so that each is there from the start
            self._messages.labels(outcome.name.lower())
        self._refusals = Counter("mail_gateway_refusals", "Recipients refused at RCPT", ["outcome"], registry=registry)
        self._bytes = Counter("mail_gateway_bytes", "Bytes of messages received", registry=registry)
        self._retries = Counter("mail_gateway_retries", "Requests sent again at once", registry=registry)
        self._seconds = Histogram(
            "mail_gateway_seconds", "By step", ["step"], buckets=BUCKETS_SECONDS, registry=registry
        )
        for name, (text, value) in gauges.items():
            Gauge(f"mail_gateway_{name}", text, registry=registry).set_function(value)

    def message(self, outcome: Outcome, size: int, seconds: Mapping[str, float]) -> None:
        """Count a message that has ended: bytes, and seconds by step."""
        self._messages.labels(outcome.name.lower()).inc()
        self._bytes.inc(size)
        for step, value in seconds.items():
            self._seconds.labels(step).observe(value)

    def refused(self, outcome: Outcome) -> None:
        """Count a recipient who was refused at RCPT."""
        self._refusals.labels(outcome.name.lower()).inc()

    def retrying(self) -> None:
        """Count a request that is sent again at once."""
        self._retries.inc()

    def listen(self, address: str) -> None:
        """Serve them at a loopback address and port, in a thread of its own. Raises OSError."""
        host, _, port = address.rpartition(":")
        server = (_Server6 if "[" in host else _Server)((host.strip("[]"), int(port)), _Handler)
        server.set_app(make_wsgi_app(self.registry))
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()

    async def write_forever(self, path: str, report: Callable[[str], None]) -> None:
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
            await asyncio.sleep(TEXTFILE_EVERY_SECONDS)


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
