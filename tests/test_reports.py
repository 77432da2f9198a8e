"""Each case of reports/: a mail or a set-up in the manner of a public bug report, and what its user expects.

The gateway runs as Postfix would run it, or as the service, in front of mail_database. reports_player.py says how a
case reads; by hand, with the effects of each step:

    python tests/support/reports_player.py --verbose . .venv/bin/python tests/reports NAME ...
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from support.reports_player import AT_ONCE, Player

FOLDER = Path(__file__).parent / "reports"
CASES = {case["name"]: case for case in json.loads((FOLDER / "cases.json").read_text())}

# What does not yet end as its user expects, and why.
DIFFERENT: dict[str, str] = {}


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[list[str]]]]:
    """The differences of each case that was chosen; a few are played at a time."""
    ours = [item for item in request.session.items if isinstance(item, pytest.Function)]
    chosen = [str(item.callspec.params["name"]) for item in ours if item.function is test_a_case]
    with (
        tempfile.TemporaryDirectory(prefix="reports-") as temporary,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        player = Player(Path(__file__).parents[1], sys.executable, FOLDER)
        player.temporary = temporary
        yield {name: pool.submit(player.play, CASES[name]) for name in chosen}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", CASES)
def test_a_case(played: dict[str, Future[list[str]]], name: str) -> None:
    differences = played[name].result()
    if name in DIFFERENT:
        assert differences, "no difference any more: remove it from the table"
    else:
        assert differences == [], CASES[name]["title"]


def test_every_difference_is_a_case() -> None:
    assert set(DIFFERENT) <= set(CASES)
