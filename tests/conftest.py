"""Fixtures: a database server on a socket, and the program pointed at it."""

import contextlib
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from support.disk import disk  # noqa: F401 a fixture
from support.dovecot import Dovecot
from support.endpoint import Endpoint, Gate
from support.gateway import Gateway
from support.odoo.server import Impossible, Odoo
from support.service import Service, running
from support.stores import journal_server, new_store, postgresql  # noqa: F401 fixtures
from support.trials import table

LEFT_OUT = pytest.StashKey[list[str]]()
ACCOUNTS = pytest.StashKey[list[tuple[str, str, Counter[str]]]]()
LEFT_OUT_NAME = "left_out"  # of the same in what a process of pytest-xdist reports
ALLOWED = "beside the checkout"  # the real bounces aren't ours to copy, and need not be there

# The long files, in seconds: `make test` has two processes, each plays a file at a time, and the short ones come last,
# so that both end at about the same time.
SECONDS = {
    "test_mail_database.py": 180,
    "test_admin_check.py": 150,
    "test_reports.py": 130,
    "test_journal.py": 110,
    "test_admin_held.py": 150,
    "test_bytes.py": 100,
    "test_admin_explain.py": 90,
    "test_mail_database_cases.py": 80,
    "test_kills.py": 110,
    "test_endings.py": 60,
    "test_disk.py": 45,
    "test_lmtp_abuse.py": 60,
    "test_routing.py": 45,
    "test_journal_postgresql.py": 60,
    "test_world.py": 60,
    "test_page_setup.py": 45,
    "test_page.py": 30,
    "test_mailboxes_strange.py": 35,
    "test_directory.py": 35,
    "test_workers.py": 30,
    "test_systemd.py": 30,
    "test_redirections.py": 30,
    "test_mail_database_abuse.py": 30,
    "test_lmtp.py": 30,
    "test_database.py": 25,
}

# What needs servers that not every machine has: the marker, what these are, and what runs the tests.
SERVERS = {
    "odoo": ("a real Odoo 19 or 14", "make test-odoo"),
    "mta": ("real mail servers", "make test-mta"),
    "mailboxes": ("a real Dovecot", "make test-mailboxes"),
    "browser": ("a real Chromium", "make test-browser"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a test that can't run is a failure")
    parser.addoption("--pictures", action="store_true", help="write the pictures of docs/try.md anew")
    for marker, (servers, _) in SERVERS.items():
        parser.addoption(f"--{marker}", action="store_true", help=f"run the tests with {servers}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: -SECONDS.get(item.path.name, 0))
    config.stash[LEFT_OUT] = []
    for marker, (servers, command) in SERVERS.items():
        left_out = [item for item in items if item.get_closest_marker(marker) and not config.getoption(f"--{marker}")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
        if left_out:
            config.stash[LEFT_OUT].append(f"NOT RUN [{len(left_out)}] the tests with {servers}: {command} runs them")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(LEFT_OUT, []):
        terminalreporter.write_line(line)
    for line in table(config.stash.get(ACCOUNTS, [])):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def accounts(pytestconfig: pytest.Config) -> list[tuple[str, str, Counter[str]]]:
    """What has become of the messages of each trial, for the table at the end."""
    return pytestconfig.stash.setdefault(ACCOUNTS, [])


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if hasattr(session.config, "workeroutput"):  # one of pytest-xdist's processes: it has no terminal
        session.config.workeroutput[LEFT_OUT_NAME] = session.config.stash[LEFT_OUT]
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    assert reporter
    skipped = [report for report in reporter.stats.get("skipped", []) if ALLOWED not in str(report.longrepr)]
    if session.config.getoption("--no-skips") and skipped and not exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's: it can be switched off
def pytest_testnodedown(node: Any, error: object) -> None:
    """Keep what a process of pytest-xdist left out: all of them leave out the same."""
    if left_out := getattr(node, "workeroutput", {}).get(LEFT_OUT_NAME):
        node.config.stash[LEFT_OUT] = left_out


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    yield server
    server.close()


@pytest.fixture
def gate(endpoint: Endpoint) -> Iterator[Gate]:
    """What the endpoint answers with, until a test says otherwise; at the end it is open."""
    waiting = Gate()
    endpoint.answers = [waiting]
    yield waiting
    waiting.opened.set()


@pytest.fixture
def service(tmp_path: Path, endpoint: Endpoint) -> Iterator[Service]:
    """The resident service, in front of the endpoint."""
    with running(Service(tmp_path, URL=endpoint.url)) as server:
        yield server


@contextlib.contextmanager
def started(version: int) -> Iterator[Odoo]:
    """Have a real Odoo of a version for a while, with aliases."""
    try:
        server = Odoo(version)
    except Impossible as error:
        pytest.skip(f"no Odoo {version}: {error}")
    try:
        server.add_aliases()
        yield server
    finally:
        server.purge()


@pytest.fixture(scope="module")
def odoo() -> Iterator[Odoo]:
    with started(19) as server:
        yield server


@pytest.fixture(scope="module")
def odoo14() -> Iterator[Odoo]:
    with started(14) as server:
        yield server


@pytest.fixture(scope="module")
def imap_server() -> Iterator[Dovecot]:
    """A real Dovecot, with its defaults; each test has users of its own."""
    try:
        server = Dovecot()
    except Impossible as error:
        pytest.skip(f"no Dovecot: {error}")
    yield server
    server.remove()


@pytest.fixture
def login(imap_server: Dovecot, request: pytest.FixtureRequest) -> str:
    """A user of it whom no other test knows."""
    login = f"{re.sub('[^a-z0-9]+', '-', request.node.name.lower()).strip('-')}@example.com"
    imap_server.add_user(login)
    return login


@pytest.fixture
def gateway(endpoint: Endpoint, tmp_path: Path) -> Gateway:
    return Gateway(tmp_path, URL=endpoint.url)
