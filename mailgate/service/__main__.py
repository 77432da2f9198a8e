"""The process of the service: options, sockets, signals, and the end."""

import argparse
import asyncio
import contextlib
import functools
import logging
import os
import resource
import signal
import socket
import sys
import time
from typing import Any

try:
    import aiosmtpd.smtp  # noqa: F401  # said here, in a sentence, before any module fails for it
except ImportError:
    sys.exit("mail-gateway-lmtp: needs the package aiosmtpd: docs/service.md says how to install it")

from mailgate import __version__, journal, settings
from mailgate.handover import settings_version
from mailgate.log import Log, error_text
from mailgate.notify import notify
from mailgate.outcome import Ended
from mailgate.service import listen, socketmap
from mailgate.service.connection import MAX_CONNECTIONS, Connection
from mailgate.service.service import Service
from mailgate.settings import Settings

MAX_DESCRIPTORS = 4096  # files and sockets: each connection may have a spool, each worker some more


def main(argv: list[str] | None = None) -> int:
    """Run the service and return the exit status."""
    parser = argparse.ArgumentParser("mail-gateway-lmtp", description="Take mail over LMTP to an Odoo database.")
    parser.add_argument("--env-file", default="", help="the settings file; docs/settings.md lists the settings")
    parser.add_argument("--version", action="version", version=f"mail-gateway {__version__}")
    arguments = parser.parse_args(argv)
    logging.getLogger("mail.log").setLevel(logging.CRITICAL)  # aiosmtpd's; ours has a line for each message
    own: list[tuple[str, os.stat_result]] = []
    try:
        config, log, version = read_settings(arguments.env_file)
        listeners = _listeners(config, own)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, MAX_DESCRIPTORS)), hard))
        return asyncio.run(serve(config, log, version, listeners, arguments.env_file))
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


def read_settings(env_file: str) -> tuple[Settings, Log, str]:
    """Return the settings, the log that they ask for, and which version of the file this is. Raises Ended."""
    version = settings_version(env_file, os.environ)  # before: a file that changes meanwhile is then another version
    config = settings.build(*settings.read(os.environ, env_file))
    keep = functools.partial(journal.note_attempt, config)
    return config, Log(config.log, config.log_format, config.password, keep), version


def _listeners(config: Settings, own: list[tuple[str, os.stat_result]]) -> dict[str, socket.socket]:
    """Return the listening sockets by name: systemd's, else our own, whose files go into ``own``. Raises OSError."""
    listeners = listen.inherited(os.environ)
    for name, address in {"lmtp": config.lmtp, "socketmap": config.socketmap}.items():
        if address and name not in listeners:
            listeners[name] = listen.listen(address, config.socket_mode)
            if os.path.isabs(address):
                own += [(path, os.stat(path)) for path in (address, address + listen.LOCK)]
    return listeners


def _refuse(cause: str) -> int:
    print(f"mail-gateway-lmtp: {cause}", file=sys.stderr)
    return os.EX_CONFIG


async def serve(config: Settings, log: Log, version: str, listeners: dict[str, socket.socket], env_file: str) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit status; SIGHUP reads settings and alias list anew."""
    loop = asyncio.get_running_loop()
    service = Service(config, log, version)
    background = [asyncio.create_task(service.watch())]  # a task that nobody keeps may vanish
    loop.set_exception_handler(lambda _, context: _tell(service, context))
    servers = [await loop.create_server(lambda: Connection(service), sock=listeners["lmtp"], backlog=listen.BACKLOG)]
    if "socketmap" in listeners:
        servers.append(await _socketmap_server(service, listeners["socketmap"]))
    if os.path.isabs(config.metrics):
        background.append(asyncio.create_task(service.metrics.write_forever(config.metrics, service.report)))
    elif config.metrics:
        service.metrics.listen(config.metrics)

    loop.add_signal_handler(signal.SIGHUP, reload, service, env_file)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop_requested.set)
    service.report(f"mail-gateway-lmtp {__version__} is ready", "LOG_INFO")
    notify(os.environ, "READY=1")
    await service.stop_requested.wait()
    notify(os.environ, "STOPPING=1")
    for server in servers:
        server.close()
    await service.stop()
    service.report("mail-gateway-lmtp has stopped", "LOG_INFO")
    return os.EX_TEMPFAIL if service.is_stuck else os.EX_OK


def _tell(service: Service, context: dict[str, Any]) -> None:
    """Log what went wrong in the event loop; a task that ends with the service is no error."""
    error = context.get("exception")
    if not isinstance(error, asyncio.CancelledError):
        service.report(error_text(error) if error else context["message"], "LOG_ERR")


async def _socketmap_server(service: Service, listener: socket.socket) -> asyncio.Server:
    async def look_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        service.socketmap_clients.add(writer)
        try:
            if service.admits(writer) and len(service.socketmap_clients) <= MAX_CONNECTIONS:
                await socketmap.answer(reader, writer, service.directory.refusal)
        finally:
            service.socketmap_clients.discard(writer)
            writer.transport.abort()

    return await asyncio.start_server(look_up, sock=listener, backlog=listen.BACKLOG)


def reload(service: Service, env_file: str) -> None:
    """Read settings and alias list anew; the old ones stay where the new ones can't be used."""
    notify(os.environ, f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        service.configure(*read_settings(env_file))
        service.report("settings and alias list are read anew", "LOG_INFO")
    except Exception as error:  # the old ones are better than none
        service.are_settings_good = False
        cause = error.verdict.cause if isinstance(error, Ended) else error_text(error)
        service.report(f"the settings stay as they were: {cause}", "LOG_ERR")
    notify(os.environ, "READY=1")


def run() -> None:
    """Run main() and leave at once: no worker is waited for that has had its time."""
    status = main()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    run()
