"""Real mail servers, the configuration as it is shipped, and faults: every message ends as it must, exactly once.

        a test
          |  SMTP (mta.port)
          v
    Postfix or Exim, with the files of postfix/ or exim/ --- SMTP ---> smtp_sink.Sink: bounces, and mail for others
      |                                |
      |  pipe                          |  LMTP (mta.socket); where it asks for a recipient, socketmap (mta.socketmap)
      v                                v
    mail_gateway.py --- --service ---> mail-gateway-lmtp (mta.service)
      |                                |
      |  HTTP (URL in mta.env_file)    |  HTTP
      v                                v
    trials.Database on endpoint.Endpoint: it plays the fault, and keeps what it was given
      |
      |  HTTP, where a trials.Behind stands in its place
      v
    a real Odoo 19

Everything is on this host: the ports on 127.0.0.1, the sockets and files in the mail server's own folder. A way is
PIPE, LMTP, HANDOVER (the pipe with --service) or UNASKED (the pipe as it is shipped, with a service that runs). A trial
sends its mails while the fault lasts, waits until each has been tried, ends the fault, has the queue delivered, and
accounts for each message: records of the database, notices, mail held, bounces.
"""

import contextlib
import math
import shutil
import signal
import socket
import socketserver
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import count, cycle
from typing import Any

import pytest
from support.endpoint import Request, fault, http
from support.mta import HANDOVER, LMTP, OWN, PIPE, PYTHON, TIME_LIMIT, UNASKED, Exim, Mta, Postfix, started, wait_until
from support.odoo.server import Odoo
from support.smtp_sink import Sink, sink
from support.trials import (
    NUMBERS,
    Behind,
    Database,
    Fault,
    Mail,
    Trial,
    answers,
    cut_after,
    cut_before,
    cut_within,
    hangs,
    is_right,
    killed_after,
    killed_before,
    passes,
    play,
    proxy_gives_up,
    raises,
    settings_for,
    terminated,
    too_late,
)

from mailgate.outcome import Outcome

pytestmark = pytest.mark.mta


@pytest.fixture(scope="module")
def bounces() -> Iterator[Sink]:
    with sink() as server:
        yield server


KINDS: dict[str, type[Mta]] = {kind.name: kind for kind in (Postfix, Exim)}


@pytest.fixture(scope="module")
def servers(bounces: Sink) -> Iterator[Callable[[str, str], Mta]]:
    """Return the mail server of a kind whose mail takes a way; once started, it serves all trials."""
    with ExitStack() as running:
        yield cache(lambda kind, way: running.enter_context(started(KINDS[kind], bounces, way)))


@pytest.fixture(params=KINDS)
def mta(request: pytest.FixtureRequest, way: str, servers: Callable[[str, str], Mta]) -> Mta:
    return servers(request.param, way)


@pytest.fixture
def mtas(ways: tuple[str, ...], servers: Callable[[str, str], Mta]) -> list[Mta]:
    return [servers(kind, way) for way in ways for kind in KINDS]


def each(trials: dict[tuple[str, ...], list[Trial]]) -> pytest.MarkDecorator:
    """Run a test for each trial of these ways."""
    rows = [(ways, trial) for ways, some in trials.items() for trial in some]
    return pytest.mark.parametrize(
        ("ways", "trial"), rows, ids=[f"{' and '.join(ways)}: {trial.name}" for ways, trial in rows]
    )


@pytest.fixture
def database() -> Iterator[Database]:
    database = Database()
    yield database
    database.close()


# --- faults: those of the connection are in trials.py -----------------------------------------------------------


def flapping() -> Fault:
    """One fault after the other, and now and then none."""
    faults = cycle(
        [
            cut_before,
            answers(http(502)),
            passes,
            cut_after,
            proxy_gives_up,
            answers(http(503)),
            cut_within,
            killed_after,
        ]
    )
    return lambda database, connection, request: next(faults)(database, connection, request)


def go_down(mta: Mta, database: Database) -> None:
    database.close()


def come_up(mta: Mta, database: Database) -> None:
    database.start(database.endpoint.port)


def replaced_by(script: str) -> dict[str, Any]:
    """Put another program in the gateway's place, until the fault ends."""
    return {
        "begin": lambda mta, database: mta.replace_program(script),
        "end": lambda mta, database: mta.restore_program(),
        "waits": True,
    }


def fill_disk(mta: Mta, database: Database) -> None:
    """A limit on the size of files stands for the full disk: writing fails in the same way."""
    real = shutil.copy(mta.program, mta.program.with_name("real.py"))
    mta.replace_program(f'#!/bin/sh\nulimit -f 0\nexec {PYTHON} {real} "$@"\n')


def must_find_the_service(mta: Mta, database: Database) -> None:
    """It can't deliver by itself, and the default for where the service listens is this mail server's own."""
    fill_disk(mta, database)
    script = mta.program.read_text()
    mta.replace_program(script.replace("exec ", f"MAIL_GATEWAY_LMTP={mta.socket} exec "))


def mend_settings(mta: Mta, database: Database) -> None:
    mta.settings(**settings_for(database))


def away(name: str) -> dict[str, Any]:
    """Take a file or folder of the gateway's away, until the fault ends."""
    return {
        "begin": lambda mta, database: (mta.folder / name).rename(mta.folder / "away"),
        "end": lambda mta, database: (mta.folder / "away").rename(mta.folder / name),
        "waits": True,
    }


# Of the service; when the fault has ended, it is started again.


def stop_service(mta: Mta, database: Database) -> None:
    mta.running_service.stop()


def stop_for_wrong_settings(mta: Mta, database: Database) -> None:
    mta.running_service.stop()
    mta.settings(URL="odoo")


def mislead(mta: Mta, database: Database) -> None:
    """The running service keeps to its old settings."""
    mta.settings(URL="odoo")


def freeze(mta: Mta, database: Database) -> None:
    """From now on the kernel takes connections to the service, and nobody answers."""
    mta.running_service.send(signal.SIGSTOP)


def thaw(mta: Mta, database: Database) -> None:
    mta.running_service.send(signal.SIGCONT)


def frozen_after(database: Database, connection: socket.socket, request: Request) -> None:
    """The service is silent from the moment at which the database has answered it."""
    database.mta.running_service.send(signal.SIGSTOP)
    connection.sendall(database.process(request))


def fill_disk_of_service(mta: Mta, database: Database) -> None:
    mta.running_service.stop()
    mta.running_service.start('ulimit -f 0; exec "$@"')


def is_delivered(mta: Mta, database: Database) -> None:
    """The program has delivered by itself what the service did not take."""
    assert not mta.queue()


def is_delivered_and_thaw(mta: Mta, database: Database) -> None:
    thaw(mta, database)
    is_delivered(mta, database)


class Wire(socketserver.ThreadingUnixStreamServer):
    """Stands where the service listens, and kills it when 1 MB has gone to it."""

    daemon_threads = True

    def __init__(self, mta: Mta) -> None:
        self.service, self.behind = mta.running_service, mta.socket.rename(mta.socket.with_name("behind"))
        super().__init__(str(mta.socket), Through)
        mta.socket.chmod(0o666)
        threading.Thread(target=self.serve_forever, args=[0.05], daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Through(socketserver.BaseRequestHandler):
    """A connection through the wire."""

    server: Wire

    def handle(self) -> None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as service:
            service.connect(str(self.server.behind))
            threading.Thread(target=self.carry, args=[service, self.request, math.inf], daemon=True).start()
            if self.carry(self.request, service, 2**20):
                self.server.service.stop(signal.SIGKILL)

    @staticmethod
    def carry(source: socket.socket, target: socket.socket, limit: float) -> bool:
        """Carry so many bytes, or what there is, and tell whether the limit was reached."""
        with contextlib.suppress(OSError):
            while limit > 0 and (data := source.recv(65536)):
                target.sendall(data)
                limit -= len(data)
        return limit <= 0


def wired() -> dict[str, Any]:
    wires: dict[Mta, Wire] = {}
    return {
        "begin": lambda mta, database: wires.update({mta: Wire(mta)}),
        "end": lambda mta, database: wires.pop(mta).close(),
        "waits": True,
    }


# --- the matrix -----------------------------------------------------------------------------------------------

INFO, JOBS, SECOND = "info@example.com", "jobs@example.com", "info@second.example"
KNOWN_AS_IT_IS, OWN_EXTENDED = {"ALIAS_DOMAINS": "company.test"}, OWN.replace("@", "+x@")
SALES, WITH_ALIAS = "sales@company.test", {"ALLOWED_DOMAINS": "company.test"}
UNKNOWN = {"ALIASES": f"{INFO},{JOBS}"}
BCC = "Somebody <somebody@elsewhere.test>"
LOOP_STOPPED = "TypeError: cannot marshal None unless allow_none is enabled"
BOTH = Mail((INFO, JOBS), to=f"{INFO}, {JOBS}", records=("info", "jobs"))
MANY = tuple(f"{number}@example.com" for number in range(118))

MESSAGES = [
    Trial("normal", (Mail(), Mail(), Mail())),
    Trial("8-bit Latin-1", (Mail(body=b"caf\xe9 \xa4\r\n.dot\r\nFrom me\r\n trailing \r\n"),)),
    Trial("UTF-8 in the header", (Mail(fields="X-Name: Zoë Žižek\r\n".encode()),)),
    Trial("20 MB", (Mail(body=(b"0123456789" * 7 + b"\r\n") * 290_000),)),
    Trial("a line of 5000 bytes", (Mail(body=b"x" * 5000 + b"\r\n"),)),
    Trial("null sender", (Mail(sender=""),)),
    Trial("Bcc'd alias", (Mail(to=BCC),)),
    Trial("two aliases, both in To", (Mail((INFO, JOBS), to=f"{INFO}, {JOBS}", records=("info", "jobs")),)),
    Trial("two aliases, one only in the envelope", (Mail((INFO, JOBS), records=("info", "jobs")),)),
    Trial("two aliases, both only in the envelope", (Mail((INFO, JOBS), to=BCC, records=("info", "jobs")),)),
    Trial("two domains", (Mail((INFO, SECOND), to=BCC, records=("info", "info2")),)),
    Trial("redirected", (Mail(("info@company.test",), to="info@company.test"),)),
    Trial("redirected with an extension", (Mail(("info+x@company.test",), to="info+x@company.test"),)),
    Trial("redirected, and direct as well", (Mail(("info@company.test", INFO, JOBS), records=("info", "jobs")),)),
    Trial("redirected, and known as it is", (Mail((OWN,), BCC, records=("support",)),), settings=KNOWN_AS_IT_IS),
    Trial("the same, with an extension", (Mail((OWN_EXTENDED,), BCC, records=("support",)),), settings=KNOWN_AS_IT_IS),
    Trial("an extension", (Mail(("info+x@example.com",), to=BCC),)),
    Trial("120 recipients", (Mail((INFO, *MANY, JOBS), to=BCC, records=("info", "jobs")),)),
    Trial("the same message four times at once", (Mail(copies=4),), seconds=0.5, settings={"PATIENCE": 30}),
    Trial("the same, and no patience", (Mail(copies=4),), seconds=0.5),
    # what must not be delivered
    Trial("unknown alias, by the rules", (Mail(("nobody@example.com",), records=(), bounces=1),), settings=UNKNOWN),
    Trial("unknown alias, says the database", (Mail(("nobody@example.com",), to=BCC, records=(), bounces=1),)),
    Trial("null sender, unknown alias", (Mail(("nobody@example.com",), to=BCC, sender="", records=()),)),
    Trial("too large", (Mail(body=b"x" * 900 + b"\r\n", records=(), bounces=1),), settings={"MAX_SIZE": 800}),
    Trial("an alias that is not for everybody", (Mail(("members@example.com",), records=(), notices=1),)),
    Trial("loop stopped", (Mail(records=()),), fault=raises(LOOP_STOPPED)),
    Trial("poison", (Mail(records=(), held=1),), fault=raises("LookupError: unknown encoding: x")),
]
DATABASE = [
    Trial("database down", begin=go_down, end=come_up, waits=True),
    Trial("database starting", fault=hangs, begin=go_down, end=come_up, waits=True),
    *(Trial(f"HTTP {code}", fault=answers(http(code)), waits=True) for code in (400, 404, 429, 500, 502, 503, 504)),
    Trial("hanging", fault=hangs, waits=True),
    Trial("hanging, and the database has it later", fault=too_late, seconds=1, waits=True),
    Trial("cut before it was processed", fault=cut_before, waits=True),
    Trial("cut after it was processed", fault=cut_after, waits=True),
    Trial("time-out of a proxy, and the database works on", fault=proxy_gives_up, seconds=1.5, waits=True),
    Trial("truncated answer", fault=cut_within, waits=True),
    Trial("empty answer", fault=answers(http(200)), waits=True),
    Trial("garbage", fault=answers(http(200, b"\xff<html>")), waits=True),
    Trial("not even HTTP", fault=answers(b"\0\xff\r\n\r\n"), waits=True),
    Trial("redirect", fault=answers(http(302, b"", "Location: https://elsewhere.test/")), waits=True),
    Trial("wrong password", fault=answers(fault(3, "Access Denied")), waits=True),
    Trial("missing database", fault=raises('psycopg2.OperationalError: database "x" does not exist'), waits=True),
    Trial("application error", fault=raises("KeyError: 'x'"), waits=True),
    Trial("serialization failure", fault=raises("psycopg2.errors.SerializationFailure: could not"), waits=True),
    Trial("PostgreSQL down", fault=raises("psycopg2.OperationalError: connection to server failed"), waits=True),
    Trial("flapping", tuple(Mail() for _ in range(12)), fault=flapping()),
    Trial("killed before the database has it", fault=killed_before, waits=True),
    Trial("killed after the database has it", fault=killed_after, waits=True),
    Trial("ended by a signal", fault=terminated, settings={"READ_TIMEOUT": 4}),
]
PROGRAM = [
    Trial("known and unknown alias", (Mail((INFO, "nobody@example.com")),), settings=UNKNOWN),
    Trial("a command in the aliases file", (Mail((SALES,), to=BCC, records=("sales",)),), settings=WITH_ALIAS),
    Trial("the same, from the null sender", (Mail((SALES,), BCC, sender="", records=("sales",)),), settings=WITH_ALIAS),
    Trial("the same, and a fault", (Mail((SALES,), BCC, records=("sales",)),), cut_after, settings=WITH_ALIAS),
    Trial("no interpreter", **replaced_by("#!/no/such/interpreter\n")),
    Trial("not a program", **replaced_by("\0\1\2")),
    Trial("crashes", **replaced_by("#!/bin/sh\nexit 1\n")),
    Trial("a traceback", **replaced_by("#!/usr/bin/python3\nimport no_such_module\n")),
    Trial("kills itself", **replaced_by("#!/bin/sh\nkill -9 $$\n")),
    Trial("talks too much", **replaced_by("#!/bin/sh\nhead -c 100000 /dev/zero | tr '\\0' x\nexit 1\n")),
    Trial(f"over the MTA's time limit ({TIME_LIMIT} s for 900)", **replaced_by("#!/bin/sh\nexec sleep 60\n")),
    Trial("program gone", **away("gateway")),
    Trial("settings gone", **away("settings.env")),
    Trial(
        "settings unreadable",
        begin=lambda mta, database: mta.env_file.chmod(0o600),
        end=lambda mta, database: mta.env_file.chmod(0o640),
        waits=True,
    ),
    Trial("settings wrong", settings={"URL": "odoo"}, end=mend_settings, waits=True),
    Trial("disk full", begin=fill_disk, end=lambda mta, database: mta.restore_program(), waits=True),
    Trial("journal gone", **away("var/journal")),
]  # fmt: skip
LARGE = Mail(body=(b"0123456789" * 7 + b"\r\n") * 290_000)
SERVICE = [
    Trial("known and unknown alias", (Mail((INFO, "nobody@example.com"), bounces=1),), settings=UNKNOWN),
    Trial("service not running", begin=stop_service, waits=True),
    Trial("service silent", begin=freeze, end=thaw, waits=True),
    Trial("service silent when the database has it", fault=frozen_after, end=thaw, waits=True),
    Trial("service killed while the message comes", (LARGE,), **wired()),
    Trial("settings wrong", begin=stop_for_wrong_settings, end=mend_settings, waits=True),
    Trial("settings wrong when it reads them again", begin=mislead, end=mend_settings),
    Trial("disk full", begin=fill_disk_of_service, end=stop_service, waits=True),
    Trial(
        "journal closed",
        begin=lambda mta, database: (mta.folder / "var/journal").chmod(0),
        end=lambda mta, database: (mta.folder / "var/journal").chmod(0o700),
        waits=True,
    ),
]
HANDED_OVER = [
    Trial("known and unknown alias", (Mail((INFO, "nobody@example.com")),), settings=UNKNOWN),
    Trial("settings gone for all but the service", **away("settings.env") | {"waits": False}),
    Trial("service not running", begin=stop_service, end=is_delivered),
    Trial("service silent", begin=freeze, end=is_delivered_and_thaw),
    Trial("service killed while the message comes", (LARGE,), **wired()),
]
TRIALS = {
    (PIPE, LMTP, HANDOVER): MESSAGES + DATABASE,
    (PIPE,): PROGRAM,
    (LMTP,): SERVICE,
    (HANDOVER,): HANDED_OVER,
    (UNASKED,): [Trial("normal", (Mail(), Mail(sender=""), Mail(("info@company.test",))), begin=must_find_the_service)],
}
Accounts = list[tuple[str, str, Counter[str]]]


def play_at_once(mtas: list[Mta], make: Callable[[], Database], sink: Sink, trial: Trial) -> Accounts:
    """Play a trial with several mail servers, each with a database of its own: most of it is waiting."""

    def played(mta: Mta) -> tuple[str, str, Counter[str]]:
        database = make()
        try:
            account = play(mta, database, sink, trial)
        finally:
            database.close()
            mta.clear()
        assert not database.overlaps
        return f"{mta.name}, {mta.way}", trial.name, account

    with ThreadPoolExecutor() as threads:
        return list(threads.map(played, mtas))


def check(found: Accounts, mtas: list[Mta], accounts: Accounts) -> None:
    accounts += found
    wrong = [mta for mta, (*_, account) in zip(mtas, found, strict=True) if not is_right(account)]
    assert not wrong, "\n".join(f"{row}" for row in found) + "\n".join(mta.log()[-4000:] for mta in wrong)


@each(TRIALS)
def test_every_message_ends_as_it_must(mtas: list[Mta], bounces: Sink, trial: Trial, accounts: Accounts) -> None:
    check(play_at_once(mtas, Database, bounces, trial), mtas, accounts)


class Killing(Database):
    """At every twelfth call, six times, it sees the service killed, before or after it has the message.

    It works on for a while on what came just before: a second call for that would be a second record.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = count(1)

    def kills(self, connection: socket.socket, request: Request) -> None:
        number = next(self.calls)
        self.seconds = 1.5 if number % 12 > 8 and number < 6 * 12 else 0.02
        if number % 12 or number > 6 * 12:
            passes(self, connection, request)
            return
        (killed_after if number % 24 else killed_before)(self, connection, request)
        self.mta.serve()


UNDER_LOAD = Trial(
    "service killed under load, again and again",
    (*(Mail() for _ in range(50)), *(BOTH for _ in range(10)), *(Mail(copies=2) for _ in range(10))),
    fault=Killing.kills,
    # One kill may defer all that is in the queue: the others come when it is flushed.
    end=lambda mta, database: setattr(database, "fault", Killing.kills),
)


@each({(LMTP, HANDOVER): [UNDER_LOAD]})
def test_nothing_is_lost_or_doubled(mtas: list[Mta], bounces: Sink, trial: Trial, accounts: Accounts) -> None:
    databases: list[Killing] = []

    def make() -> Killing:
        databases.append(Killing())
        return databases[-1]

    check(play_at_once(mtas, make, bounces, trial), mtas, accounts)
    assert all(next(database.calls) > 6 * 12 for database in databases)


@pytest.mark.parametrize("way", [PIPE, LMTP])
@pytest.mark.parametrize("copies", [1, 2])
def test_what_can_not_be_held_is_asked_once(mta: Mta, database: Database, copies: int) -> None:
    """Else Odoo would mail the sender at each try that his message could not be accepted."""
    mta.settings(**settings_for(database) | {"HOLD": ""})
    database.fault = raises("ValueError: Invalid field 'x' on model 'crm.lead'")
    sender, recipients, message = Mail().envelope(next(NUMBERS))
    for _ in range(copies):
        mta.send(sender, recipients, message)
    mta.attempt()
    for _ in range(3):
        mta.flush()
        mta.attempt()
    try:
        assert len(mta.queue()) == copies
        assert len(database.endpoint.messages) == 1
    finally:
        mta.clear()


@contextmanager
def ending_as_told(mta: Mta) -> Iterator[None]:
    """Put something in the place of program or service that lets a message end as its recipient's name says.

    With a name that is no ending it ends as neither of them would: the program dies, the service says 5.7.0.
    """
    if mta.way == PIPE:
        script = "#!/bin/sh\nfor recipient; do :; done\ncase $recipient in\n"
        for outcome in Outcome:
            script += f"{outcome.name}@*) echo '{outcome.line}'; exit {outcome.exit_status};;\n"
        mta.replace_program(script + "*) exit 1;;\nesac\n")
        yield
        return
    with socketserver.ThreadingUnixStreamServer(str(mta.socket), Replies) as server:
        mta.socket.chmod(0o666)
        threading.Thread(target=server.serve_forever, args=[0.05]).start()
        try:
            yield
        finally:
            server.shutdown()


class Replies(socketserver.StreamRequestHandler):
    """A connection of something that speaks LMTP."""

    def handle(self) -> None:
        self.say("220 ready")
        reply = ""
        for line in self.rfile:
            command, _, argument = line.decode().strip().partition(" ")
            if command == "RCPT":
                name = argument.partition("<")[2].partition("@")[0]
                reply = Outcome[name].reply if name in Outcome.__members__ else "554 5.7.0 an accident"
            if command == "DATA":
                self.say("354 go ahead")
                while self.rfile.readline() != b".\r\n":
                    pass
                self.say(reply)
            else:
                self.say("250 ok")

    def say(self, reply: str) -> None:
        self.wfile.write(f"{reply}\r\n".encode())


@pytest.mark.parametrize("way", [PIPE, LMTP])
@pytest.mark.parametrize("kind", [Postfix, Exim], ids=lambda kind: kind.name)
def test_each_ending_means_what_the_table_says(kind: type[Mta], way: str, bounces: Sink) -> None:
    """An exit status and a line, or a reply, mean the same to both: delivered, for the sender, or kept for later."""
    with started(kind, bounces, way) as mta, ending_as_told(mta):
        senders = {}
        for outcome in Outcome:
            senders[outcome], _, message = Mail().envelope(next(NUMBERS))
            mta.send(senders[outcome], (f"{outcome.name}@example.com",), message)
        mta.attempt()
        told = [recipient for _, recipients, _ in bounces.mails for recipient in recipients]
        for outcome, sender in senders.items():
            kept, bounced = outcome.exit_status == 75, outcome.exit_status in (65, 67)
            assert (f"{outcome.name}@example.com" in mta.listing(), sender in told) == (kept, bounced), outcome
            if bounced:
                (text,) = [text for _, recipients, text in bounces.mails if sender in recipients]
                assert outcome.text.encode() in text


@pytest.mark.parametrize("way", [PIPE, LMTP])
def test_a_process_that_starts_beside_a_change_of_main_cf_knows_the_tables(way: str, bounces: Sink) -> None:
    """Postfix 3.8 and later read a file anew that is newer than two seconds, and then don't know $config_directory."""
    with started(Postfix, bounces, way) as mta, ending_as_told(mta):
        # from now on everything runs but what delivers to the gateway
        sender, _, message = Mail().envelope(next(NUMBERS))
        mta.send(sender, ("elsewhere@elsewhere.test",), message)
        wait_until(lambda: any(sender in text.decode() for *_, text in bounces.mails), "what is not the gateway's")
        mta.touch()
        sender, _, message = Mail().envelope(next(NUMBERS))
        mta.send(sender, ("accident@example.com",), message)
        mta.attempt()
        assert "accident@example.com" in mta.listing()
        mta.reload()
        mta.touch()
        mta.send(sender, ("DELIVERED@example.com",), message)
        mta.attempt()
        assert "DELIVERED@example.com" not in mta.listing()
        assert not any(sender in recipients for _, recipients, _ in bounces.mails)


# --- the trials themselves ------------------------------------------------------------------------------------


def fail_with_70(mta: Mta, database: Database) -> None:
    """A gateway that says "internal software error", and nothing else, whatever fails."""
    real = shutil.copy(mta.program, mta.program.with_name("real.py"))
    mta.replace_program(f'#!/bin/sh\n{PYTHON} {real} "$@" >/dev/null || exit 70\n')


@pytest.mark.parametrize(
    ("bare", "trial", "ending"),
    [
        (False, "unknown alias, by the rules", "still queued"),
        (False, "too large", "still queued"),
        (True, "database down", "bounced though deliverable"),
        (True, "HTTP 503", "bounced though deliverable"),
        (True, "wrong password", "bounced though deliverable"),
        (True, "cut after it was processed", "bounced though deliverable"),
    ],
)
@pytest.mark.parametrize("kind", [Postfix, Exim], ids=lambda kind: kind.name)
def test_a_gateway_that_exits_with_70_on_an_error_turns_the_trials_red(
    kind: type[Mta], database: Database, bounces: Sink, bare: bool, trial: str, ending: str
) -> None:
    """With our configuration, what should bounce stays; without what keeps it, what should stay bounces."""
    (chosen,) = (one for one in MESSAGES + DATABASE if one.name == trial)

    def begin(mta: Mta, database: Database) -> None:
        chosen.begin(mta, database)
        fail_with_70(mta, database)

    with started(kind, bounces, bare=bare) as mta:
        account = play(mta, database, bounces, chosen._replace(begin=begin), seconds=3)
    assert not is_right(account)
    assert account[ending] == 1


# --- a real Odoo behind the faults ----------------------------------------------------------------------------


WITH_ODOO_WAYS = (PIPE, LMTP)


def stop_odoo(database: Behind) -> None:
    database.server.stop()


def start_odoo(database: Behind) -> None:
    database.server.start()


def once(step: Callable[[Behind], None]) -> Callable[[Mta, Behind], None]:
    """Let the last of the mail servers to come here do it for all, while the others wait."""
    barrier = threading.Barrier(len(KINDS) * len(WITH_ODOO_WAYS))

    def do(mta: Mta, database: Behind) -> None:
        if barrier.wait(timeout=120) == 0:
            step(database)
        barrier.wait(timeout=120)

    return do


LATIN = Mail(fields=b"Content-Type: text/plain; charset=iso-8859-1\r\n", body=b"caf\xe9\r\n")
WITH_ODOO = [
    Trial("normal", (Mail(), LATIN, Mail(sender=""), Mail(to=BCC), BOTH)),
    Trial("two aliases, both only in the envelope", (Mail((INFO, JOBS), to=BCC, records=("info", "jobs")),)),
    Trial("the same message four times at once", (Mail(copies=4),), settings={"PATIENCE": 30}),
    Trial("unknown alias", (Mail(("nobody@example.com",), to=BCC, records=(), bounces=1),)),
    Trial("Odoo stopped, then started", (Mail(), BOTH), begin=once(stop_odoo), end=once(start_odoo), waits=True),
    Trial("HTTP 503", (Mail(), BOTH), fault=answers(http(503)), waits=True),
]
FLAPPING = Trial("flapping", (*(Mail() for _ in range(10)), BOTH, BOTH), fault=flapping())


@pytest.mark.odoo
@each({WITH_ODOO_WAYS: WITH_ODOO})
def test_every_message_ends_as_it_must_with_a_real_odoo(
    mtas: list[Mta], odoo: Odoo, bounces: Sink, trial: Trial, accounts: Accounts
) -> None:
    check(played_with_odoo(mtas, odoo, bounces, trial), mtas, accounts)


@pytest.mark.odoo
@pytest.mark.parametrize("way", WITH_ODOO_WAYS)
def test_every_message_ends_as_it_must_while_a_real_odoo_flaps(
    mta: Mta, odoo: Odoo, bounces: Sink, accounts: Accounts
) -> None:
    """One mail server at a time: at a dozen calls at once, Odoo takes longer for one than the gateway waits."""
    check(played_with_odoo([mta], odoo, bounces, FLAPPING), [mta], accounts)


def played_with_odoo(mtas: list[Mta], odoo: Odoo, bounces: Sink, trial: Trial) -> Accounts:
    found = play_at_once(mtas, lambda: Behind(odoo), bounces, trial)
    return [(server, f"Odoo 19: {name}", account) for server, name, account in found]
