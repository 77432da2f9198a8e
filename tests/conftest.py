"""Fixtures: a database server on a socket, and the program pointed at it."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from support.endpoint import Endpoint
from support.gateway import Gateway
from support.odoo.server import Impossible, Odoo
from support.service import Service, running
from support.stores import new_store, postgresql  # noqa: F401 fixtures
from support.trials import table

LEFT_OUT = pytest.StashKey[list[str]]()
ACCOUNTS = pytest.StashKey[list[tuple[str, str, Counter[str]]]]()
ALLOWED = "beside the checkout"  # the real bounces aren't ours to copy, and need not be there

# What needs servers that not every machine has: the marker, what these are, and what runs the tests.
SERVERS = {"odoo": ("a real Odoo 19", "make test-odoo"), "mta": ("real mail servers", "make test-mta")}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a test that can't run is a failure")
    for marker, (servers, _) in SERVERS.items():
        parser.addoption(f"--{marker}", action="store_true", help=f"run the tests with {servers}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
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
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = [report for report in reporter.stats.get("skipped", []) if ALLOWED not in str(report.longrepr)]
    if session.config.getoption("--no-skips") and skipped and not exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    yield server
    server.close()


@pytest.fixture
def service(tmp_path: Path, endpoint: Endpoint) -> Iterator[Service]:
    """The resident service, in front of the endpoint."""
    with running(Service(tmp_path, URL=endpoint.url)) as server:
        yield server


@pytest.fixture(scope="module")
def odoo() -> Iterator[Odoo]:
    try:
        server = Odoo()
    except Impossible as error:
        pytest.skip(f"no Odoo 19: {error}")
    try:
        server.add_aliases()
        yield server
    finally:
        server.purge()


@pytest.fixture
def gateway(endpoint: Endpoint, tmp_path: Path) -> Gateway:
    return Gateway(tmp_path, URL=endpoint.url)
