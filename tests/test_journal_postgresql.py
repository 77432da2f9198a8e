"""The journal of several hosts: one of them delivers a message, whatever becomes of the server and the sessions."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.endpoint import Endpoint, Gate, returns
from support.gateway import ENVIRONMENT, Gateway
from support.journal import age, execute, new_database
from support.mta import free_port, wait_until
from support.postgresql import PASSWORD, USER, Impossible, PgBouncer, PostgreSQL
from support.service import Service, running
from support.trials import Database

from mailgate import journal
from mailgate.journal import postgresql
from mailgate.outcome import Ended, Outcome, Verdict
from mailgate.settings import Settings, build

MESSAGE = b"Message-ID: <1@outside.test>\nSubject: hello\n\nbody\n"
CUT = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'mail_gateway'"


@pytest.fixture
def server(journal_server: PostgreSQL) -> Iterator[PostgreSQL]:
    """The server; it runs again when the test is over."""
    yield journal_server
    if not journal_server.runs:
        journal_server.start()


@pytest.fixture
def place(server: PostgreSQL, tmp_path: Path) -> dict[str, object]:
    """The settings of a journal of the test's own."""
    return new_database(server, tmp_path)


@pytest.fixture
def gateway(endpoint: Endpoint, tmp_path: Path, place: dict[str, object]) -> Gateway:
    return Gateway(tmp_path, URL=endpoint.url, PATIENCE=0, **place)


@pytest.fixture
def settings(place: dict[str, object]) -> Iterator[Settings]:
    own = {"URL": "https://odoo.example.com", "DATABASE": "d", "LOGIN": "2", "PASSWORD": "x"}
    yield build(own | {name: str(value) for name, value in place.items()})
    for access in list(postgresql._idle):
        postgresql._close_idle(access)


def claim(settings: Settings, message_id: str = "<1@outside.test>", wait: float = 0.0):
    return journal.claim(settings, journal.Delivery(message_id, "4XyZ", b""), time.monotonic() + wait)


def outcome(gateway: Gateway) -> str:
    return gateway.run("--queue-id=4XyZ", "info@example.com", message=MESSAGE).ending[2]


def rows(place: dict[str, object]) -> list[dict]:
    return execute(place["JOURNAL"], "select ending, begun is not null as is_begun from message")


# --- a server that is not there -------------------------------------------------------------------------------------


def test_a_server_that_is_stopped_keeps_the_mail_in_the_queue(
    gateway: Gateway, endpoint: Endpoint, server: PostgreSQL
) -> None:
    server.stop()
    result = gateway.run("info@example.com", message=MESSAGE)
    assert result.ending == (75, "4.3.0", "failed")
    assert result.facts["cause"].startswith("journal: connection failed")
    assert endpoint.messages == []
    server.start()
    assert outcome(gateway) == "delivered"


def test_a_service_whose_server_is_stopped_still_knows_the_addresses_and_keeps_the_mail_in_the_queue(
    gateway: Gateway, endpoint: Endpoint, server: PostgreSQL, place: dict[str, object], tmp_path: Path
) -> None:
    with running(Service(tmp_path, URL=endpoint.url, PATIENCE=0, **place)) as service:
        arguments = (f"--service={service.address}", "--sender=ann@outside.test", "info@example.com")
        assert gateway.run(*arguments, message=MESSAGE).out == b"2.0.0 delivered\n"
        server.stop()
        with service.client() as client:
            answers = client.begin("info@example.com", "x@y.test")
            assert answers == ["250 2.1.5 one of ours", "550 5.1.1 no such address here"]
            assert client.data(mail(2)) == [Outcome.FAILED.reply]
        assert gateway.run(*arguments, message=mail(3)).out == f"{Outcome.FAILED.line}\n".encode()
        server.start()
        assert gateway.run(*arguments, message=mail(3)).out == b"2.0.0 delivered\n"
    assert len(endpoint.messages) == len(rows(place)) == 2


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("postgresql://{user}@127.0.0.1:{port}/nowhere", 'database "nowhere" does not exist'),
        ("postgresql://nobody@127.0.0.1:{port}/nowhere", 'role "nobody" does not exist'),
        ("postgresql://{user}@127.0.0.1:1/nowhere", "Connection refused"),
        ("postgresql://{user}@nowhere.invalid:1/nowhere", "nowhere.invalid"),
    ],
)
def test_a_wrong_url_keeps_the_mail_in_the_queue(
    gateway: Gateway, endpoint: Endpoint, server: PostgreSQL, url: str, cause: str
) -> None:
    result = gateway.run("info@example.com", message=MESSAGE, JOURNAL=url.format(user=USER, port=server.port))
    assert result.ending == (75, "4.3.0", "failed")
    assert cause in result.facts["cause"].replace("\\", "")
    assert endpoint.messages == []


def test_a_wrong_password_keeps_the_mail_in_the_queue(gateway: Gateway, endpoint: Endpoint, tmp_path: Path) -> None:
    path = tmp_path / "journal-password"
    path.write_text(f"{PASSWORD}X")
    result = gateway.run("info@example.com", message=MESSAGE)  # which looks for the password in all of it
    assert result.ending == (75, "4.3.0", "failed")
    assert "journal: " in result.facts["cause"]
    assert "password authentication failed" in result.facts["cause"]
    assert endpoint.messages == []


def test_a_password_in_the_url_is_a_wrong_setting(gateway: Gateway, endpoint: Endpoint, server: PostgreSQL) -> None:
    url = f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{server.port}/journal"
    result = gateway.run("info@example.com", message=MESSAGE, JOURNAL=url)
    assert result.ending == (75, "4.3.5", "settings")
    assert "MAIL_GATEWAY_JOURNAL_PASSWORD_FILE" in result.facts["cause"]


def test_a_missing_package_is_said_to_be_missing(gateway: Gateway, endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "psycopg.py").write_text("raise ImportError\n")
    result = gateway.run("info@example.com", message=MESSAGE, environ={"PYTHONPATH": str(tmp_path)})
    assert result.ending == (75, "4.3.5", "settings")
    assert "psycopg" in result.facts["cause"]


def test_a_server_that_can_only_be_read_keeps_the_mail_in_the_queue(
    gateway: Gateway, endpoint: Endpoint, server: PostgreSQL, place: dict[str, object]
) -> None:
    name = str(place["JOURNAL"]).rpartition("/")[2]
    assert outcome(gateway) == "delivered"
    server.sql(f"alter database {name} set default_transaction_read_only = on")
    result = gateway.run("info@example.com", message=MESSAGE)
    assert result.ending == (75, "4.3.0", "failed")
    assert "session is read-only" in result.facts["cause"]
    result = gateway.run("info@example.com", message=MESSAGE, JOURNAL=f"{place['JOURNAL']}?target_session_attrs=any")
    assert result.ending == (75, "4.3.0", "failed")
    assert "read-only transaction" in result.facts["cause"]
    server.sql(f"alter database {name} reset default_transaction_read_only")
    assert len(endpoint.messages) == 1


def test_of_the_servers_that_the_url_names_one_that_is_there_counts(
    gateway: Gateway, endpoint: Endpoint, server: PostgreSQL, place: dict[str, object]
) -> None:
    url = str(place["JOURNAL"]).replace("@", "@127.0.0.1:1,")
    assert gateway.run("info@example.com", message=MESSAGE, JOURNAL=url).ending == (0, "2.0.0", "delivered")
    assert rows(place) == [{"ending": "DELIVERED", "is_begun": False}]


def test_a_server_that_says_nothing_holds_a_delivery_for_seconds(
    gateway: Gateway, endpoint: Endpoint, server: PostgreSQL
) -> None:
    server.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert outcome(gateway) == "failed"
        assert time.monotonic() - began < 15
    finally:
        server.signal(signal.SIGCONT)
    assert endpoint.messages == []


def test_a_session_whose_server_says_nothing_ends(settings: Settings, server: PostgreSQL) -> None:
    """As a pooler that is paused."""
    with claim(settings):
        pass
    server.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(Ended) as caught, claim(settings):
            pass
        assert caught.value.verdict.outcome is Outcome.FAILED
        assert time.monotonic() - began < 15
    finally:
        server.signal(signal.SIGCONT)
    with claim(settings) as claimed:
        claimed.note_begun()


def test_a_locked_table_keeps_the_mail_in_the_queue(
    gateway: Gateway, endpoint: Endpoint, place: dict[str, object], server: PostgreSQL
) -> None:
    assert outcome(gateway) == "delivered"
    with postgresql.psycopg.connect(str(place["JOURNAL"]), password=PASSWORD) as other:
        other.execute("lock table message")
        result = gateway.run("info@example.com", message=MESSAGE)
        assert result.ending == (75, "4.3.0", "failed")
        assert "lock timeout" in result.facts["cause"]
    assert len(endpoint.messages) == 1


@pytest.mark.parametrize(
    ("statement", "cause"),
    [
        ("create table res_partner (id integer)", "tables of something else"),
        ("create table version (number integer); insert into version values (1000)", "newer version"),
    ],
)
def test_a_database_that_is_another_s_is_a_wrong_setting(
    gateway: Gateway, endpoint: Endpoint, place: dict[str, object], statement: str, cause: str
) -> None:
    for each in statement.split(";"):
        execute(place["JOURNAL"], each)
    result = gateway.run("info@example.com", message=MESSAGE)
    assert result.ending == (75, "4.3.5", "settings")
    assert cause in result.facts["cause"]


def test_another_encoding_is_a_wrong_setting(gateway: Gateway, endpoint: Endpoint, server: PostgreSQL) -> None:
    server.sql(f"create database latin owner {USER} encoding 'LATIN1' locale 'C' template template0")
    result = gateway.run("info@example.com", message=MESSAGE, JOURNAL=server.url("latin"))
    assert result.ending == (75, "4.3.5", "settings")
    assert "UTF8" in result.facts["cause"]


def test_hosts_that_start_at_once_make_the_tables_once(settings: Settings, place: dict[str, object]) -> None:
    def begin(number: int) -> None:
        with claim(settings, f"<{number}@outside.test>") as claimed:
            claimed.note_begun()
            claimed.end(Verdict(Outcome.DELIVERED))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(begin, range(8)))
    assert rows(place) == [{"ending": "DELIVERED", "is_begun": False}] * 8
    assert execute(place["JOURNAL"], "select number from version") == [{"number": len(postgresql.MIGRATIONS)}]


def test_a_journal_can_be_written_while_its_server_runs(settings: Settings, server: PostgreSQL) -> None:
    assert journal.can_write(settings)
    server.stop()
    assert not journal.can_write(settings)
    server.start()
    assert journal.can_write(settings)


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("", True),  # the default: a socket
        ("/run/postgresql", True),
        ("localhost", True),
        ("127.0.0.1,::1", True),
        ("journal.example.com", False),
        ("192.0.2.1", False),
        ("localhost,journal.example.com", False),
    ],
)
def test_tls_is_required_unless_the_server_is_on_this_host(hosts: str, expected: bool) -> None:
    assert postgresql._is_local(hosts) is expected


def test_any_text_can_be_kept(settings: Settings, place: dict[str, object]) -> None:
    with claim(settings) as claimed:
        claimed.end(Verdict(Outcome.DROPPED, "a\0b\udcff\N{SNOWMAN}"))
    (row,) = execute(place["JOURNAL"], "select cause from message")
    assert row["cause"] == "a\\x00b\\xff\N{SNOWMAN}"


# --- sessions that are lost -----------------------------------------------------------------------------------------


def cut(settings: Settings, server: PostgreSQL) -> None:
    """End all sessions of the gateway's."""
    server.sql(CUT)


def restart(settings: Settings, server: PostgreSQL) -> None:
    server.stop("fast")
    server.start()


def crash(settings: Settings, server: PostgreSQL) -> None:
    server.kill()
    server.start()


LOSSES = pytest.mark.parametrize("lose", [cut, restart, crash])
Loss = Callable[[Settings, PostgreSQL], None]


@LOSSES
def test_a_session_that_was_lost_before_is_replaced(settings: Settings, server: PostgreSQL, lose: Loss) -> None:
    for _ in range(2):
        with ExitStack() as several:  # which are then kept
            for number in range(3):
                several.enter_context(claim(settings, f"<{number}@outside.test>")).note_begun()
        lose(settings, server)
        age(settings.journal, 150)


@LOSSES
def test_a_session_that_is_lost_before_the_call_is_replaced(
    settings: Settings, server: PostgreSQL, lose: Loss, place: dict[str, object]
) -> None:
    with claim(settings) as claimed:
        lose(settings, server)
        claimed.note_begun()
        with pytest.raises(journal.Taken), claim(settings):
            pass
        lose(settings, server)
        claimed.end(Verdict(Outcome.DELIVERED))
    assert rows(place) == [{"ending": "DELIVERED", "is_begun": False}]


@LOSSES
def test_a_lock_that_is_lost_during_the_call_lets_nobody_deliver(
    settings: Settings, server: PostgreSQL, lose: Loss, place: dict[str, object]
) -> None:
    """The row says that the call may run: until READ_TIMEOUT after it began."""
    with claim(settings) as claimed:
        claimed.note_begun()
        lose(settings, server)
        with pytest.raises(Ended) as caught, claim(settings):
            pass
        assert caught.value.verdict.outcome is Outcome.IN_PROGRESS
        assert not isinstance(caught.value, journal.Taken)
        claimed.end(Verdict(Outcome.NO_ANSWER))  # which frees it
    with claim(settings) as claimed:
        assert claimed.answer is None


def test_who_lost_a_lock_writes_nothing_when_another_delivery_runs(
    settings: Settings, server: PostgreSQL, place: dict[str, object]
) -> None:
    with claim(settings) as first:
        first.note_begun()
        cut(settings, server)
        age(settings.journal, 150)
        with claim(settings) as second:
            second.note_begun()
            first.end(Verdict(Outcome.DELIVERED))
            assert rows(place) == [{"ending": None, "is_begun": True}]
            second.end(Verdict(Outcome.CUT_OFF))


@pytest.mark.parametrize("other", [Outcome.CUT_OFF, Outcome.DELIVERED])
def test_who_lost_a_lock_writes_nothing_when_another_delivery_has_run(
    settings: Settings, server: PostgreSQL, place: dict[str, object], other: Outcome
) -> None:
    """Its ending would be one of a call that is no longer the last."""
    with claim(settings) as first:
        first.note_begun()
        cut(settings, server)
        age(settings.journal, 150)
        with claim(settings) as second:
            second.note_begun()
            second.end(Verdict(other))
        first.end(Verdict(Outcome.NO_ANSWER))
        first.end(Verdict(Outcome.ACCEPTED))
    assert rows(place) == [{"ending": other.name, "is_begun": other is Outcome.CUT_OFF}]


def test_who_lost_a_lock_does_not_begin_when_another_delivery_has(settings: Settings, server: PostgreSQL) -> None:
    with claim(settings) as first:
        cut(settings, server)
        with claim(settings) as second:
            second.note_begun()
            with pytest.raises(Ended) as caught:
                first.note_begun()
    assert caught.value.verdict.outcome is Outcome.FAILED
    assert "its session was lost" in caught.value.verdict.cause


def test_an_ending_that_can_not_be_noted_waits_for_the_hold_off(
    gateway: Gateway, endpoint: Endpoint, gate: Gate, server: PostgreSQL
) -> None:
    endpoint.answers.append(returns(False))
    with in_background(gateway) as first:
        gate.wait_for(1)
        server.kill()
        gate.opened.set()
        assert first.wait(60) == 0  # it is delivered, whatever becomes of the note
    server.start()
    assert outcome(gateway) == "in_progress"
    age(gateway.settings["JOURNAL"], 150)
    assert outcome(gateway) == "accepted"


def test_a_server_that_crashes_during_a_delivery_costs_nothing(
    gateway: Gateway, endpoint: Endpoint, gate: Gate, server: PostgreSQL
) -> None:
    with in_background(gateway) as first:
        gate.wait_for(1)
        server.kill()
        server.start()
        assert outcome(gateway) == "in_progress"
        gate.opened.set()
        assert first.wait(60) == 0
    assert gateway.run("--queue-id=4XyZ", "info@example.com", message=MESSAGE).facts["cause"] == "answered before"
    assert len(endpoint.messages) == 1


@contextmanager
def in_background(gateway: Gateway) -> Iterator[subprocess.Popen]:
    """Run the program with the message; end it with kill -9 if it still runs at the end of the block."""
    command = gateway.command("--queue-id=4XyZ", "info@example.com", LOG=gateway.folder / "log of the first")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=ENVIRONMENT) as process:
        assert process.stdin
        process.stdin.write(MESSAGE)
        process.stdin.close()
        yield process
        process.kill()


# --- two hosts ------------------------------------------------------------------------------------------------------


def mail(number: int) -> bytes:
    return b"Message-ID: <%d@outside.test>\r\nTo: info@example.com\r\nSubject: hello\r\n\r\nbody\r\n" % number


def slow_database(seconds: float) -> Database:
    """Return a database as Odoo is: of a message whose calls overlap it makes two records."""
    database = Database()
    database.seconds = seconds
    return database


def services(stack: ExitStack, folder: Path, url: str, *journals: dict[str, object]) -> list[Service]:
    """Return a service for each journal, each on a host of its own, as far as it knows."""
    found = []
    for number, place in enumerate(journals):
        own = folder / f"host{number}"
        own.mkdir()
        found.append(stack.enter_context(running(Service(own, URL=url, WORKERS=8, READ_TIMEOUT=3, **place))))
    return found


def deliver_to_both(hosts: list[Service], count: int, again: bool = True) -> list[str]:
    """Deliver each message to both hosts at the same moment, until it is taken; return the first answers."""
    first = []

    def deliver(number: int, host: Service) -> None:
        with host.client() as client:
            answers = client.deliver(mail(number), "info@example.com")
            first.extend(answers)
            until = time.monotonic() + 60
            while not answers[0].startswith("250 "):
                assert answers[0].startswith("451 "), answers
                assert time.monotonic() < until
                threading.Event().wait(0.5)  # as an MTA would, later
                answers = client.deliver(mail(number), "info@example.com")

    def deliver_both(number: int) -> None:
        threads = [threading.Thread(target=deliver, args=[number, host]) for host in hosts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(deliver_both, range(count)))
    return first


def test_two_hosts_with_the_same_message_at_the_same_moment_deliver_it_once(
    place: dict[str, object], tmp_path: Path
) -> None:
    database = slow_database(0.05)
    with ExitStack() as stack:
        stack.callback(database.close)
        deliver_to_both(services(stack, tmp_path, database.url, place, place), 50)
    assert len(database.records) == 50


def test_two_hosts_with_a_journal_each_double(tmp_path: Path) -> None:
    """What the journal that they share is for."""
    database = slow_database(0.05)
    with ExitStack() as stack:
        stack.callback(database.close)
        deliver_to_both(services(stack, tmp_path, database.url, {}, {}), 10)
    assert len(database.records) > 10


def test_two_hosts_whose_sessions_are_cut_again_and_again_deliver_once(
    server: PostgreSQL, place: dict[str, object], tmp_path: Path
) -> None:
    database = slow_database(0.3)
    is_over = threading.Event()

    def cut_again_and_again() -> None:
        while not is_over.wait(0.2):
            server.sql(CUT)

    with ExitStack() as stack:
        stack.callback(database.close)
        hosts = services(stack, tmp_path, database.url, place, place)
        cutter = threading.Thread(target=cut_again_and_again)
        cutter.start()
        stack.callback(cutter.join)
        stack.callback(is_over.set)
        deliver_to_both(hosts, 30)
    assert len(database.records) == 30


def test_two_hosts_deliver_once_where_the_journal_fails_over_to_its_standby(server: PostgreSQL, tmp_path: Path) -> None:
    """The standby, which the URL names first, counts for nobody until it is promoted; it knows what was begun."""
    database = slow_database(0.3)

    def fail_over() -> None:
        wait_until(lambda: len(database.records) >= 10, "some to be delivered")
        primary.kill()
        assert len(database.records) < 30
        standby.promote()

    with ExitStack() as stack:
        stack.callback(database.close)
        primary = PostgreSQL(free_port())
        stack.callback(primary.remove)
        standby = PostgreSQL(free_port(), primary)
        stack.callback(standby.remove)
        place = new_database(primary, tmp_path)
        place["JOURNAL"] = str(place["JOURNAL"]).replace("@", f"@127.0.0.1:{standby.port},")
        hosts = services(stack, tmp_path, database.url, place, place)
        pool = stack.enter_context(ThreadPoolExecutor(1))
        failed_over = pool.submit(fail_over)
        deliver_to_both(hosts, 30)
        failed_over.result()
        assert len(execute(place["JOURNAL"], "select 1 from message")) == 30
    assert len(database.records) == 30


def test_a_service_keeps_no_more_sessions_than_it_has_calls(place: dict[str, object], tmp_path: Path) -> None:
    database = slow_database(0.05)
    with ExitStack() as stack:
        stack.callback(database.close)
        hosts = services(stack, tmp_path, database.url, place)
        deliver_to_both(hosts, 30)
        statement = "select count(*) from pg_stat_activity where application_name = 'mail-gateway' and datname = %s"
        (found,) = execute(place["JOURNAL"], statement, str(place["JOURNAL"]).rpartition("/")[2])
    assert 1 <= found["count"] <= postgresql.MAX_IDLE_SESSIONS


# --- a pooler -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pgbouncer(request: pytest.FixtureRequest, server: PostgreSQL) -> Iterator[PgBouncer]:
    try:
        pooler = PgBouncer(server, free_port(), request.param)
    except Impossible as error:
        pytest.skip(str(error))
    yield pooler
    pooler.remove()


def through(pgbouncer: PgBouncer, place: dict[str, object], server: PostgreSQL) -> dict[str, object]:
    return place | {"JOURNAL": str(place["JOURNAL"]).replace(str(server.port), str(pgbouncer.port))}


@pytest.mark.parametrize("pgbouncer", ["session"], indirect=True)
def test_two_hosts_by_a_pooler_that_cuts_sessions_deliver_once(
    pgbouncer: PgBouncer, server: PostgreSQL, place: dict[str, object], tmp_path: Path
) -> None:
    database = slow_database(0.3)
    with ExitStack() as stack:
        stack.callback(database.close)
        hosts = services(stack, tmp_path, database.url, *[through(pgbouncer, place, server)] * 2)
        timers = [threading.Timer(seconds, server.sql, [CUT]) for seconds in (0.5, 1, 1.5)]
        for timer in timers:
            timer.start()
        deliver_to_both(hosts, 20)
        for timer in timers:
            timer.join()
    assert len(database.records) == 20


@pytest.mark.parametrize("pgbouncer", ["transaction"], indirect=True)
def test_a_pooler_without_sessions_is_found_out_and_doubles_nothing(
    pgbouncer: PgBouncer, settings: Settings, server: PostgreSQL, place: dict[str, object]
) -> None:
    """Both hosts have the same session of the server's, which would give both of them the lock."""
    here = settings._replace(journal=str(through(pgbouncer, place, server)["JOURNAL"]))
    there = here._replace(journal=f"{here.journal}?application_name=there")  # with other sessions of its own
    with claim(here) as first:
        with claim(there) as second:
            second.note_begun()
        with pytest.raises(Ended) as caught:
            first.note_begun()
    assert caught.value.verdict == Verdict(Outcome.FAILED, f"journal: {postgresql.POOLED}")
    assert rows(place) == [{"ending": None, "is_begun": True}]
    with claim(here, "<2@outside.test>"):
        pass
    with pytest.raises(Ended) as caught, claim(there, "<3@outside.test>"):
        pass
    assert caught.value.verdict == Verdict(Outcome.SETTINGS, f"journal: {postgresql.POOLED}")
