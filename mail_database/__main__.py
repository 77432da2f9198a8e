"""The database endpoint on the command line: serve, load, dump, show.

python -m mail_database serve [--host 127.0.0.1] [--port 8069] [--smtp HOST:PORT] [--gateway COMMAND]
python -m mail_database load WORLD.json
python -m mail_database dump
python -m mail_database show [MODEL [ID]]
python -m mail_database show --unplaced [ID]

Each takes --store sqlite:///mail.db or postgresql://... (else MAIL_DATABASE_STORE, else sqlite:///mail.db).
"""

import argparse
import io
import json
import os
import secrets
import shlex
import signal
import sys
import threading
from typing import Any

import sqlalchemy as sa

from mail_database import outgoing, show, world
from mail_database.listen import listen
from mail_database.page import app as page
from mail_database.server import access, allows_login, application
from mail_database.store import open_database, transaction

SEND_EVERY_SECONDS = 5.0  # how often what is to be sent is looked for
STOP_SECONDS = 10.0  # after SIGTERM; waitress gives what is running 5 of them


def main(argv: list[str] | None = None) -> int:
    """Do what the arguments say and return the exit status."""
    options = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # mail has more characters than some terminals
    try:
        engine = open_database(options.store)
        return int(COMMANDS[options.command](engine, options))
    except sa.exc.SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        print(f"mail_database: the database can't be used: {reason}", file=sys.stderr)
    except BrokenPipeError:  # of a pager that was closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except (OSError, ImportError, OverflowError, ValueError) as error:
        print(f"mail_database: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mail_database", description="A database for mail, without an Odoo."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="answer gateways, as an Odoo would, and browsers")
    host = "the address to listen at; else %(default)s"
    serve.add_argument("--host", default="127.0.0.1", help=host)
    port = "0: a free one; else %(default)s"
    serve.add_argument("--port", type=int, choices=range(65536), metavar="PORT", default=8069, help=port)
    smtp = "the mail server that notices, and messages written in a browser, are given to; else they wait"
    serve.add_argument("--smtp", metavar="HOST:PORT", type=_address, help=smtp)
    gateway = "the gateway's command, for the page that tries mails: 'python3 mail_gateway.py --env-file FILE'"
    serve.add_argument("--gateway", metavar="COMMAND", default="", help=gateway)
    load = commands.add_parser("load", help="fill a new database with companies, domains, aliases, partners, records")
    world_help = "a file like mail_database/example.json, or one that dump has printed"
    load.add_argument("world", type=argparse.FileType("r", encoding="utf-8"), help=world_help)
    commands.add_parser("dump", help="print everything that is stored, as JSON")
    shown = commands.add_parser("show", help="print records and their threads, for a person")
    shown.add_argument("model", nargs="?", help="only its records, such as crm.lead")
    shown.add_argument("id", nargs="?", type=int, help="only this record")
    unplaced = "what was accepted and is on no record, and why; with an ID, that message as it came"
    shown.add_argument("--unplaced", nargs="?", type=int, const=0, metavar="ID", help=unplaced)
    store = "where the data is: sqlite:///FILE or postgresql://...; else MAIL_DATABASE_STORE, else sqlite:///mail.db"
    for command in commands.choices.values():
        command.add_argument(
            "--store", default=os.environ.get("MAIL_DATABASE_STORE") or "sqlite:///mail.db", help=store
        )
    return parser


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def _serve(engine: sa.Engine, options: argparse.Namespace) -> int:
    database = os.environ.get("MAIL_DATABASE_NAME") or "mydatabase"
    login = os.environ.get("MAIL_DATABASE_LOGIN") or "admin"
    password = os.environ.get("MAIL_DATABASE_PASSWORD")
    if not password:
        password = secrets.token_urlsafe(12)
        print(f"password for {login}: {password}", flush=True)
    with transaction(engine) as store:
        world.set_up(store, f"{database}.example")
    allowed = access(database, login, password)
    link = page.new_link()
    written = threading.Event()
    pages = page.application(engine, allowed, {link}, written.set, shlex.split(options.gateway))
    has_login = allows_login(allowed)

    def allows(path: str, cookies: str, head: bytes) -> bool:
        return has_login(head) if path.startswith("/xmlrpc/") else page.has_session(pages, cookies)

    server = listen(application(engine, allowed, pages), allows, options.host, options.port)
    stopped = threading.Event()
    if options.smtp:
        threading.Thread(target=_send, args=[engine, options.smtp, written, stopped], daemon=True).start()
    host, port = getattr(server, "effective_listen", [(options.host, getattr(server, "effective_port", 0))])[0]
    print(f"database {database} at http://{host}:{port}", flush=True)
    print(f"in a browser, once: http://{host}:{port}/enter/{link}", flush=True)
    signal.signal(signal.SIGTERM, _stop)
    try:
        server.run()
    finally:
        stopped.set()
        written.set()
    return 0


def _stop(*_: object) -> None:
    """End the process: what is running gets its answer, but after STOP_SECONDS nothing is waited for any longer."""
    last = threading.Timer(STOP_SECONDS, os._exit, [0])
    last.daemon = True
    last.start()
    sys.exit(0)


def _send(engine: sa.Engine, smtp: tuple[str, int], written: threading.Event, stopped: threading.Event) -> None:
    """Send what is outgoing, now and then, and as soon as something is written."""
    while not stopped.is_set():
        written.wait(SEND_EVERY_SECONDS)
        written.clear()
        try:
            outgoing.send_outgoing(engine, smtp)
        except Exception as error:  # for example, the database can't be reached: the next round tries again
            outgoing.log.warning("mail waits: %s", str(error).partition("\n")[0])


def _load(engine: sa.Engine, options: argparse.Namespace) -> int:
    try:
        with options.world, transaction(engine) as store:
            if not world.is_new(store):
                print("mail_database: the database is not new: nothing was loaded into it", file=sys.stderr)
                return 1
            world.load(store, json.load(options.world))
    except (
        AttributeError,
        KeyError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
        sa.exc.StatementError,
    ) as error:
        reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
        print(f"mail_database: {options.world.name} is no world: {type(error).__name__}: {reason}", file=sys.stderr)
        return 1
    return 0


def _dump(engine: sa.Engine, options: argparse.Namespace) -> int:
    with transaction(engine, reads=True) as store:
        json.dump(world.dump(store), sys.stdout, indent=1, ensure_ascii=False)
    print(flush=True)
    return 0


def _show(engine: sa.Engine, options: argparse.Namespace) -> int:
    with transaction(engine, reads=True) as store:
        asked = options.model, options.id
        lines = show.lines(store, *asked) if options.unplaced is None else show.unplaced(store, options.unplaced)
        for line in lines:
            print("".join(character if character.isprintable() else "\ufffd" for character in line))
    sys.stdout.flush()
    return 0


COMMANDS: dict[str, Any] = {"serve": _serve, "load": _load, "dump": _dump, "show": _show}

if __name__ == "__main__":
    sys.exit(main())
