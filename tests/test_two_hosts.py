"""Two hosts with one journal: each message arrives at both at the same moment, and is delivered once.

Before that, trials of one host whose journal is in PostgreSQL.
"""

import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from support.endpoint import Request
from support.mta import LMTP, PIPE, Impossible, Mta, Postfix, started
from support.postgresql import PostgreSQL
from support.smtp_sink import Sink, sink
from support.trials import Database, Mail, Trial, is_right, passes, play
from support.two_hosts import Hosts, journal_for, kill_journal
from test_mta import BCC, DATABASE, INFO, JOBS, MESSAGES

pytestmark = pytest.mark.mta


def stop_journal(mta: Mta, database: Database) -> None:
    SERVERS[mta].stop()


def start_journal(mta: Mta, database: Database) -> None:
    SERVERS[mta].start()


def journal_killed_before(database: Database, connection: socket.socket, request: Request) -> None:
    """The journal's server is killed, and back before the answer."""
    kill_journal(SERVERS[database.mta])
    passes(database, connection, request)


def journal_killed_after(database: Database, connection: socket.socket, request: Request) -> None:
    """The journal's server is killed, and not back when there is an answer to be noted."""
    SERVERS[database.mta].kill()
    passes(database, connection, request)


SERVERS: dict[Mta, PostgreSQL] = {}  # on which the journal of a mail server's gateway is
BOUNCES: dict[Mta, Sink] = {}
CHOSEN = (
    "normal",
    "two aliases, both only in the envelope",
    "the same message four times at once",
    "an alias that is not for everybody",
    "loop stopped",
    "hanging, and the database has it later",
    "cut after it was processed",
    "time-out of a proxy, and the database works on",
    "flapping",
    "killed before the database has it",
    "killed after the database has it",
    "ended by a signal",
)
TRIALS = [
    *(trial for trial in MESSAGES + DATABASE if trial.name in CHOSEN),
    Trial("the journal's server is stopped", begin=stop_journal, end=start_journal, waits=True),
    Trial("the journal's server is killed before the answer", fault=journal_killed_before),
    Trial("the journal's server is killed, and the answer can't be noted", (Mail(), Mail()), journal_killed_after,
          end=start_journal),
]  # fmt: skip


@pytest.fixture(scope="module", params=[PIPE, LMTP])
def mta(request: pytest.FixtureRequest, journal_server: PostgreSQL) -> Iterator[Mta]:
    with sink() as bounces, started(Postfix, bounces, request.param) as server:
        SERVERS[server], BOUNCES[server] = journal_server, bounces
        yield server


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_every_message_ends_as_it_must_with_a_journal_in_postgresql(
    mta: Mta, trial: Trial, accounts: list[tuple[str, str, Counter[str]]]
) -> None:
    database = Database()
    try:
        place = journal_for(mta, SERVERS[mta])
        account = play(mta, database, BOUNCES[mta], trial._replace(settings={**trial.settings, **place}))
    except Impossible as error:
        pytest.skip(str(error))
    finally:
        database.close()
        mta.clear()
    accounts.append((f"{mta.name}, {mta.way}, journal in PostgreSQL", trial.name, account))
    assert is_right(account), mta.log()[-4000:]
    assert not database.overlaps


@pytest.fixture
def new_hosts() -> Iterator[Callable[[PostgreSQL | None], Hosts]]:
    """A function that starts them, with one journal on this server, or each with its own."""
    with ExitStack() as stack:
        database = Database()
        database.seconds = 0.2
        stack.callback(database.close)
        bounces = stack.enter_context(sink())

        def start(server: PostgreSQL | None) -> Hosts:
            try:
                hosts = Hosts(database, bounces, server)
            except Impossible as error:
                pytest.skip(str(error))
            stack.callback(hosts.remove)
            return hosts

        yield start


# Each arrives at both hosts at the same moment.
COPIES = [
    Mail(),
    Mail(to=BCC),
    # for another alias at each host: named by nobody, by To, and the one by To
    Mail((INFO,), to=BCC, elsewhere=(JOBS,), records=("info", "jobs")),
    Mail((INFO,), to=f"{INFO}, {JOBS}", elsewhere=(JOBS,), records=("info", "jobs")),
    Mail((INFO,), to=INFO, elsewhere=(JOBS,), records=("info", "jobs")),
]


def test_nothing_is_lost_or_doubled_while_all_is_killed_and_restarted(
    new_hosts: Callable[[PostgreSQL | None], Hosts], journal_server: PostgreSQL
) -> None:
    hosts = new_hosts(journal_server)
    account, happened = hosts.play(COPIES * 20, seconds=60)
    assert account == {"delivered once": 100}
    assert len(hosts.database.records) == 160
    assert happened.keys() >= hosts.accidents().keys()


def test_two_hosts_with_a_journal_each_double(new_hosts: Callable[[PostgreSQL | None], Hosts]) -> None:
    """What the test before is worth."""
    account, _ = new_hosts(None).play([Mail()] * 20, seconds=60, accidents=False)
    assert account["doubled"] > 0
