"""The resident service: the same walk for a stream of messages, taken from an MTA over LMTP.

One thread speaks with the MTA (see connection.py). A message goes to a spool as it comes, waits for one of a few
workers (threads), and takes the walk of ``mail_gateway.deliver`` there; the answers, one for each recipient, are read
off the same table of endings. How many may wait, and how many may connect, is bounded, and so is the memory it takes.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import time
from functools import partial
from typing import IO, Any

try:
    from aiosmtpd.smtp import Session
except ImportError:
    sys.exit("mail-gateway-lmtp: needs the package aiosmtpd: README.md says how to install it")

import mail_gateway
from mailgate import DEADLINE, __version__, listen, log, settings, socketmap
from mailgate.connection import CONNECTIONS, LOGGED, STOPPING, XORCPT, Connection, Transaction, close
from mailgate.database import Client
from mailgate.directory import Directory, has
from mailgate.envelope import Envelope, Recipient, spooled
from mailgate.outcome import Ended, Outcome, Verdict
from mailgate.queueid import queue_id
from mailgate.settings import Settings
from mailgate.workers import SLOW, Call, Workers, claim

WAITING = 100  # messages that have been received and wait for a worker; the MTA keeps more than that
REFUSED, ADDRESS = 20, 320  # recipients who were refused, and characters of each, in the log of a message
RECIPIENTS = 10_000  # of one message, as many as the MTAs' shipped settings; RFC 5321, 4.5.3.1.8, wants 100
ADDRESSES = 2**26  # bytes that the recipients of all open transactions may take together
USUAL = 2**14  # bytes that those of one transaction may take in any case
LARGE_PAUSE = 0.0005  # seconds between two pieces of a large message on its way to the database: small ones go between
STOP_WITHIN = 75.0  # seconds that the messages under way have when the service is stopped; systemd waits 90
WATCH = 10.0  # seconds between two looks at the workers
DESCRIPTORS = 4096  # files and sockets: each connection may have a spool, each worker some more
EX_CONFIG = 78  # sysexits.h


class Service:
    """What the connections share; aiosmtpd calls its handle_ methods."""

    settings: Settings
    directory: Directory
    reading: asyncio.Task[None]

    def __init__(self, config: Settings, facts: dict[str, Any]) -> None:
        self.open: set[Connection] = set()
        self.asking: set[asyncio.StreamWriter] = set()  # the socketmap's connections
        self.workers = Workers()
        self.stopping = asyncio.Event()
        self.receiving_large = 0
        self.is_stopping = self.is_stuck = False
        self.metrics: Any = None
        if config.metrics:
            from mailgate.metrics import Metrics  # and with it prometheus_client, which nobody else needs

            self.metrics = Metrics(self)
        self.use(config, facts)

    def use(self, config: Settings, facts: dict[str, Any]) -> None:
        """Take these settings for what comes from now on; ``facts`` say where the log is, and what it may not have."""
        clients = listen.user_ids(config.clients)
        before = getattr(self, "directory", None)
        if before:
            self.reading.cancel()
        self.settings, self.facts, self.clients = config, facts, clients
        connections = config._replace(workers=config.workers + SLOW + 1)  # as many as there may be calls
        self.client = Client(connections, self.metrics.retrying if self.metrics else lambda: None, LARGE_PAUSE)
        self.workers.count = config.workers
        self.directory = Directory(config, self.report, before)
        self.reading = asyncio.create_task(self.directory.keep())

    def admits(self, connection: asyncio.BaseTransport | asyncio.StreamWriter) -> bool:
        """Tell whether the user at the other end may use the service."""
        peer = listen.peer(connection.get_extra_info("socket"))
        admitted = not self.clients or peer is None or peer in self.clients
        if not admitted:
            self.report(f"user id {peer} is not among MAIL_GATEWAY_CLIENTS")
        return admitted

    def report(self, text: str, priority: str = "LOG_WARNING") -> None:
        """Log a line about the service itself."""
        log.event(self.facts, priority, text)

    @property
    def delivering(self) -> int:
        """How many messages have been received and have no answer yet."""
        return sum(connection.is_delivering for connection in self.open.copy())

    @property
    def is_full(self) -> bool:
        return self.delivering >= WAITING + self.settings.workers

    # --- what aiosmtpd asks ---

    async def handle_EHLO(
        self, connection: Connection, session: Session, transaction: Transaction, name: str, replies: list[str]
    ) -> list[bytes]:
        session.host_name = name
        keywords = [*replies[:-1], "250-PIPELINING", "250-ENHANCEDSTATUSCODES", f"250-{XORCPT}", replies[-1]]
        return [reply.encode() for reply in keywords]  # which get no status code (RFC 2034, 4)

    async def handle_RCPT(
        self, connection: Connection, session: Session, transaction: Transaction, address: str, options: list[str]
    ) -> str:
        if address == "<>":
            return "553 5.1.3 nobody"
        is_crowded = transaction.memory > USUAL and sum(each.memory for each in self.open) > ADDRESSES
        if len(transaction.recipients) >= RECIPIENTS or is_crowded:
            transaction.put_off = Outcome.BUSY
            return "452 4.5.3 too many recipients"
        recipient = Recipient(address, connection.original_recipient)
        refusal = await self.directory.refusal(recipient)
        if refusal is None:
            transaction.recipients.append(recipient)
            transaction.memory += sum(map(sys.getsizeof, recipient))
            return "250 2.1.5 one of ours"
        if refusal.exit_status == mail_gateway.EX_TEMPFAIL:
            transaction.put_off = refusal
        if len(transaction.refused) < REFUSED:
            transaction.refused.append(address[:ADDRESS])
        if self.metrics:
            self.metrics.refused(refusal)
        return refusal.reply

    # --- a message ---

    async def take(self, transaction: Transaction, file: IO[bytes], verdict: Verdict | None, began: float) -> list[str]:
        """Return the replies, one for each recipient, to the message in ``file``.

        ``verdict`` is there when it has ended already; ``began``, in monotonic seconds, is when it began to come.
        """
        received = time.monotonic()
        directory, client = self.directory, self.client
        with contextlib.ExitStack() as owned:
            owned.callback(close, file)
            recipients = tuple(transaction.recipients)
            asked = [await directory.refusal(recipient) for recipient in recipients]
            put_off = [refusal for refusal in asked if refusal and refusal.exit_status == mail_gateway.EX_TEMPFAIL]
            if put_off:
                verdict = verdict or Verdict(put_off[0], "it is not known whether a recipient is the database's")
            known = directory.known  # one list for the answers and for the walk, whichever comes while it waits
            refusals = [
                None if has(directory.settings, recipient, known) else Outcome.UNKNOWN_RECIPIENT
                for recipient in recipients
            ]
            sender = "" if transaction.mail_from == "<>" else transaction.mail_from
            envelope = Envelope(sender, recipients)
            facts = {
                **self.facts,
                "queue_id": "",
                **log.known(envelope, b""),
            }
            seconds = {"receive": received - began}
            size = file.tell()

            def finish(verdict: Verdict) -> None:
                facts["unmatched"] = [*transaction.refused, *facts.get("unmatched", [])]
                log.write(facts, verdict, sum(seconds.values()))
                if self.metrics:
                    self.metrics.message(verdict.outcome, size, seconds)

            def deliver(is_last: bool, call: Call) -> Verdict:
                started = time.monotonic()
                file.seek(size)  # where the message ends
                verdict = walk(directory.settings, known, client, envelope, file, facts, call)
                if is_last or not call.is_early:
                    seconds.update(wait=started - received, deliver=time.monotonic() - started)
                    finish(verdict)
                return verdict

            if verdict:
                file.seek(0)
                head = file.read(LOGGED)
                facts.update(log.known(envelope, head), queue_id=queue_id(head))
                finish(verdict)
            else:
                owned.pop_all()
                verdict = await self.workers.run(deliver, size, lambda _: close(file))
        outcome = verdict.outcome if verdict else Outcome.BUSY
        return [(outcome if outcome.exit_status == 75 or not refusal else refusal).reply for refusal in refusals]

    async def watch(self) -> None:
        """End the service when a thread does not come back; it can't be had back, so another process is needed."""
        while not any(
            time.monotonic() - began > DEADLINE
            for began in [*(call.began for call in self.workers.running), self.directory.asking_since]
        ):
            await asyncio.sleep(WATCH)
        self.report("a call to the database has not come back: the service ends, to be started anew", "LOG_ERR")
        self.is_stuck = True
        self.stopping.set()

    async def stop(self) -> None:
        """Turn away what comes, and wait, within a bound, until what a worker has is answered."""
        self.is_stopping = True
        self.workers.close()
        for writer in self.asking.copy():
            writer.transport.abort()
        for connection in self.open.copy():
            if not connection.is_delivering:
                connection.dismiss(STOPPING)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._until_all_have_gone(), STOP_WITHIN)

    async def _until_all_have_gone(self) -> None:
        while self.open:
            await asyncio.sleep(0.05)


def walk(
    config: Settings,
    known: Settings | None,
    client: Client,
    envelope: Envelope,
    file: IO[bytes],
    facts: dict[str, Any],
    call: Call,
) -> Verdict:
    """Take one message to its ending; nothing gets out but the verdict."""
    try:
        raw = spooled(file)
        facts["queue_id"] = queue_id(raw.head())
        verdict = mail_gateway.deliver(
            config, client, envelope, raw, facts, lambda: None, claiming=partial(claim, call), known=known
        )
        return verdict or Verdict(Outcome.FAILED, "a dry run")  # which it never is
    except Ended as ended:
        return ended.verdict
    except Exception as error:  # our own bug, or a full disk
        return Verdict(Outcome.FAILED, log.where(error))


# --- the process ---


def read_settings(env_file: str) -> tuple[Settings, dict[str, Any]]:
    """Return the settings, and the facts that the log of every message begins with. Raises Ended."""
    values, wrong = settings.read(os.environ, env_file)
    config = settings.build(values, wrong)
    return config, {"log": (config.log, config.log_format), "secret": config.password}


async def serve(config: Settings, facts: dict[str, Any], listeners: dict[str, socket.socket], env_file: str) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit status; SIGHUP reads settings and alias list anew."""
    loop = asyncio.get_running_loop()
    service = Service(config, facts)
    background = [asyncio.create_task(service.watch())]  # a task that nobody keeps may vanish
    loop.set_exception_handler(lambda _, context: service.report(f"{context.get('exception') or context['message']}"))
    servers = [await loop.create_server(lambda: Connection(service), sock=listeners["lmtp"], backlog=listen.BACKLOG)]
    if "socketmap" in listeners:

        async def look_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            service.asking.add(writer)
            try:
                if service.admits(writer) and len(service.asking) <= CONNECTIONS:
                    await socketmap.answer(reader, writer, service.directory.refusal)
            finally:
                service.asking.discard(writer)
                writer.transport.abort()

        servers.append(await asyncio.start_server(look_up, sock=listeners["socketmap"], backlog=listen.BACKLOG))
    if os.path.isabs(config.metrics):
        background.append(asyncio.create_task(service.metrics.keep(config.metrics, service.report)))
    elif config.metrics:
        service.metrics.listen(config.metrics)

    def reload() -> None:
        listen.notify(os.environ, f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            service.use(*read_settings(env_file))
            service.report("settings and alias list are read anew", "LOG_INFO")
        except Exception as error:  # the old ones are better than none
            cause = error.verdict.cause if isinstance(error, Ended) else log.where(error)
            service.report(f"the settings stay as they were: {cause}", "LOG_ERR")
        listen.notify(os.environ, "READY=1")

    loop.add_signal_handler(signal.SIGHUP, reload)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stopping.set)
    service.report(f"mail-gateway-lmtp {__version__} is ready", "LOG_INFO")
    listen.notify(os.environ, "READY=1")
    await service.stopping.wait()
    listen.notify(os.environ, "STOPPING=1")
    for server in servers:
        server.close()
    await service.stop()
    service.report("mail-gateway-lmtp has stopped", "LOG_INFO")
    return mail_gateway.EX_TEMPFAIL if service.is_stuck else os.EX_OK


def main(argv: list[str] | None = None) -> int:
    """Run the service and return the exit status."""
    parser = argparse.ArgumentParser("mail-gateway-lmtp", description="Take mail over LMTP to an Odoo database.")
    parser.add_argument("--env-file", default="", help="the settings file; README.md lists the settings")
    parser.add_argument("--version", action="version", version=f"mail-gateway {__version__}")
    arguments = parser.parse_args(argv)
    logging.getLogger("mail.log").setLevel(logging.CRITICAL)  # aiosmtpd's; ours has a line for each message
    own = []
    try:
        config, facts = read_settings(arguments.env_file)
        listeners = listen.inherited(os.environ)
        for name, address in {"lmtp": config.lmtp, "socketmap": config.socketmap}.items():
            if address and name not in listeners:
                listeners[name] = listen.listen(address, config.socket_mode)
                if os.path.isabs(address):
                    own += [(path, os.stat(path)) for path in (address, address + listen.LOCK)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, DESCRIPTORS)), hard))
        return asyncio.run(serve(config, facts, listeners, arguments.env_file))
    except Ended as ended:
        return _refuse(ended.verdict.cause)
    except OSError as error:
        return _refuse(f"can't listen: {error}")
    except ImportError:
        return _refuse("MAIL_GATEWAY_METRICS needs the package prometheus_client")
    finally:
        for path, status in own:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), status):  # else it is a later service's
                    os.unlink(path)


def _refuse(cause: str) -> int:
    print(f"mail-gateway-lmtp: {cause}", file=sys.stderr)
    return EX_CONFIG


def run() -> None:
    """Run main() and leave at once: no worker is waited for that has had its time."""
    status = main()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    run()
