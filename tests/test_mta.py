"""Real mail servers, the configuration as it is shipped, and faults: every message ends as it must, exactly once."""

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle

import pytest
from endpoint import fault, http
from mta import OWN, PYTHON, TIME_LIMIT, Exim, Impossible, Mta, Postfix
from odoo.server import Odoo
from smtp_sink import Sink, sink
from trials import (
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


@contextmanager
def started(kind: type[Mta], bounces: Sink, bare: bool = False) -> Iterator[Mta]:
    try:
        server = kind(bounces.server_address[1], bare)
    except Impossible as reason:
        pytest.skip(str(reason))
    try:
        yield server
    finally:
        server.stop()
        server.remove()


@pytest.fixture(scope="module", params=[Postfix, Exim], ids=lambda kind: kind.name)
def mta(request: pytest.FixtureRequest, bounces: Sink) -> Iterator[Mta]:
    with started(request.param, bounces) as server:
        yield server


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


def replaced_by(script: str) -> dict[str, object]:
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


def mend_settings(mta: Mta, database: Database) -> None:
    mta.settings(**settings_for(database))


def away(name: str) -> dict[str, object]:
    """Take a file or folder of the gateway's away, until the fault ends."""
    return {
        "begin": lambda mta, database: (mta.folder / name).rename(mta.folder / "away"),
        "end": lambda mta, database: (mta.folder / "away").rename(mta.folder / name),
        "waits": True,
    }


# --- the matrix -----------------------------------------------------------------------------------------------

INFO, JOBS, SECOND = "info@example.com", "jobs@example.com", "info@second.example"
KNOWN_AS_IT_IS, OWN_EXTENDED = {"ALIAS_DOMAINS": "company.test"}, OWN.replace("@", "+x@")
SALES, WITH_ALIAS = "sales@company.test", {"ALLOWED_DOMAINS": "company.test"}
UNKNOWN = {"ALIASES": f"{INFO},{JOBS}"}
BCC = "Somebody <somebody@elsewhere.test>"
LOOP_STOPPED = "TypeError: cannot marshal None unless allow_none is enabled"
MANY = tuple(f"{number}@example.com" for number in range(118))

TRIALS = [
    # messages
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
    Trial("a command in the aliases file", (Mail((SALES,), to=BCC, records=("sales",)),), settings=WITH_ALIAS),
    Trial("the same, from the null sender", (Mail((SALES,), BCC, sender="", records=("sales",)),), settings=WITH_ALIAS),
    Trial("the same, and a fault", (Mail((SALES,), BCC, records=("sales",)),), cut_after, settings=WITH_ALIAS),
    Trial("the same message four times at once", (Mail(copies=4),), seconds=0.5, settings={"PATIENCE": 30}),
    Trial("the same, and no patience", (Mail(copies=4),), seconds=0.5),
    # what must not be delivered
    Trial("unknown alias, by the rules", (Mail(("nobody@example.com",), records=(), bounces=1),), settings=UNKNOWN),
    Trial("unknown alias, says the database", (Mail(("nobody@example.com",), to=BCC, records=(), bounces=1),)),
    Trial("known and unknown alias", (Mail((INFO, "nobody@example.com")),), settings=UNKNOWN),
    Trial("null sender, unknown alias", (Mail(("nobody@example.com",), to=BCC, sender="", records=()),)),
    Trial("too large", (Mail(body=b"x" * 900 + b"\r\n", records=(), bounces=1),), settings={"MAX_SIZE": 800}),
    Trial("an alias that is not for everybody", (Mail(("members@example.com",), records=(), notices=1),)),
    Trial("loop stopped", (Mail(records=()),), fault=raises(LOOP_STOPPED)),
    Trial("poison", (Mail(records=(), held=1),), fault=raises("LookupError: unknown encoding: x")),
    # the database and what stands before it
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
    # the gateway itself
    Trial("killed before the database has it", fault=killed_before, waits=True),
    Trial("killed after the database has it", fault=killed_after, waits=True),
    Trial("ended by a signal", fault=terminated, settings={"READ_TIMEOUT": 4}),
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
    Trial("state folder gone", **away("var/state")),
]  # fmt: skip


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_every_message_ends_as_it_must(
    mta: Mta, database: Database, bounces: Sink, trial: Trial, accounts: list[tuple[str, str, Counter[str]]]
) -> None:
    account = play(mta, database, bounces, trial)
    mta.clear()
    accounts.append((mta.name, trial.name, account))
    assert is_right(account), f"{account}\n{mta.log()[-4000:]}"


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


@pytest.mark.parametrize("kind", [Postfix, Exim], ids=lambda kind: kind.name)
def test_each_ending_means_what_the_table_says(kind: type[Mta], bounces: Sink) -> None:
    """An exit status and a line mean the same to both: delivered, for the sender, or kept for later."""
    script = "#!/bin/sh\nfor recipient; do :; done\ncase $recipient in\n"
    for outcome in Outcome:
        script += f"{outcome.name}@*) echo '{outcome.line}'; exit {outcome.exit_status};;\n"
    with started(kind, bounces) as mta:
        mta.replace_program(script + "esac\n")
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
    (chosen,) = (one for one in TRIALS if one.name == trial)

    def begin(mta: Mta, database: Database) -> None:
        chosen.begin(mta, database)
        fail_with_70(mta, database)

    with started(kind, bounces, bare=bare) as mta:
        account = play(mta, database, bounces, chosen._replace(begin=begin), seconds=3)
    assert not is_right(account)
    assert account[ending] == 1


# --- a real Odoo behind the faults ----------------------------------------------------------------------------


def stop_odoo(mta: Mta, database: Behind) -> None:
    database.server.stop()


def start_odoo(mta: Mta, database: Behind) -> None:
    database.server.start()


BOTH = Mail((INFO, JOBS), to=f"{INFO}, {JOBS}", records=("info", "jobs"))
LATIN = Mail(fields=b"Content-Type: text/plain; charset=iso-8859-1\r\n", body=b"caf\xe9\r\n")
WITH_ODOO = [
    Trial("normal", (Mail(), LATIN, Mail(sender=""), Mail(to=BCC), BOTH)),
    Trial("two aliases, both only in the envelope", (Mail((INFO, JOBS), to=BCC, records=("info", "jobs")),)),
    Trial("the same message four times at once", (Mail(copies=4),), settings={"PATIENCE": 30}),
    Trial("unknown alias", (Mail(("nobody@example.com",), to=BCC, records=(), bounces=1),)),
    Trial("Odoo stopped, then started", (Mail(), BOTH), begin=stop_odoo, end=start_odoo, waits=True),
    Trial("HTTP 503", (Mail(), BOTH), fault=answers(http(503)), waits=True),
    Trial("flapping", (*(Mail() for _ in range(10)), BOTH, BOTH), fault=flapping()),
]


@pytest.mark.odoo
@pytest.mark.parametrize("trial", WITH_ODOO, ids=lambda trial: trial.name)
def test_every_message_ends_as_it_must_with_a_real_odoo(
    mta: Mta, odoo: Odoo, bounces: Sink, trial: Trial, accounts: list[tuple[str, str, Counter[str]]]
) -> None:
    database = Behind(odoo)
    try:
        account = play(mta, database, bounces, trial)
    finally:
        database.close()
        mta.clear()
    accounts.append((mta.name, f"Odoo 19: {trial.name}", account))
    assert not database.overlaps
    assert is_right(account), f"{account}\n{mta.log()[-4000:]}"
