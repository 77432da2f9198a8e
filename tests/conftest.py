"""Fixtures: a database server on a socket, and the program pointed at it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from endpoint import Endpoint
from gateway import Gateway
from stores import new_store, postgresql  # noqa: F401 fixtures

LEFT_OUT = pytest.StashKey[int]()
ALLOWED = "beside the checkout"  # the real bounces aren't ours to copy, and need not be there


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a test that can't run is a failure")
    parser.addoption("--odoo", action="store_true", help="run the tests with a real Odoo")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--odoo"):
        return
    left_out = [item for item in items if item.get_closest_marker("odoo")]
    config.hook.pytest_deselected(items=left_out)
    config.stash[LEFT_OUT] = len(left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = config.stash.get(LEFT_OUT, 0)
    if left_out:
        terminalreporter.write_line(f"NOT RUN [{left_out}] the tests with a real Odoo 19: make test-odoo runs them")


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
def gateway(endpoint: Endpoint, tmp_path: Path) -> Gateway:
    return Gateway(tmp_path, URL=endpoint.url)
