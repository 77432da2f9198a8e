"""Two hosts with one journal: each message arrives at both at the same moment, and is delivered once."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from support.mta import Impossible
from support.postgresql import PostgreSQL
from support.smtp_sink import sink
from support.trials import Database, Mail
from support.two_hosts import Hosts, rows

pytestmark = pytest.mark.mta


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


def test_nothing_is_lost_or_doubled_while_all_is_killed_and_restarted(
    new_hosts: Callable[[PostgreSQL | None], Hosts], journal_server: PostgreSQL
) -> None:
    hosts = new_hosts(journal_server)
    endings, happened = hosts.play([Mail()] * 100, seconds=60)
    assert endings == {"delivered once": 100}
    assert len(hosts.database.records) == 100
    assert len(happened) == len(hosts.accidents())
    assert rows(hosts).total() == 100


def test_two_hosts_with_a_journal_each_double(new_hosts: Callable[[PostgreSQL | None], Hosts]) -> None:
    """What the test before is worth."""
    endings, _ = new_hosts(None).play([Mail()] * 20, seconds=60, accidents=False)
    assert endings["doubled"] > 0
