"""The pages for everybody: by keyboard, by a screen reader, on a narrow screen, in the dark, in another time zone."""

import shlex
import sys
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from support.browser import Browser, browser
from support.gateway import PROGRAM, write_settings
from support.mail_database_server import PASSWORD
from support.page import served
from support.reach import (
    FILES,
    FRAMES,
    NAMES,
    NARROW,
    PAGES,
    WIDE,
    Filled,
    fill,
    look,
    overflow,
    shown,
    violations,
    visit,
)

from mail_database.page.app import application
from mail_database.server import access

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    """A database with something on every page, and a gateway."""
    folder = tmp_path_factory.mktemp("reach")
    env_file = folder / "gateway.env"
    command = shlex.join([sys.executable, str(PROGRAM), "--service", "none", "--env-file", str(env_file)])
    with served(folder, "--gateway", command) as server:
        settings = {"URL": server.url, "DATABASE": server.database, "LOGIN": "2", "PASSWORD": PASSWORD}
        write_settings(env_file, settings | {"ALIAS_DOMAINS": "mail.company-name.com", "LOG": folder / "log"})
        yield fill(server)


@pytest.fixture(scope="module")
def only() -> Iterator[Browser]:
    with browser() as chromium:
        chromium.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})  # for axe-core, in the documents of frames
        yield chromium


@pytest.fixture
def chromium(only: Browser) -> Browser:
    look(only)
    return only


def test_every_page_is_looked_at() -> None:
    app = application(sa.create_engine("sqlite://"), access("mydatabase", "admin", PASSWORD), set())
    assert {rule.endpoint for rule in app.url_map.iter_rules() if "GET" in (rule.methods or ())} == {*PAGES, *FILES}


@pytest.mark.parametrize("name", NAMES)
def test_no_rule_of_accessibility_is_broken(filled: Filled, chromium: Browser, name: str) -> None:
    visit(chromium, filled, name)
    broken = {}
    for scheme in "light", "dark":
        for width in WIDE, NARROW:
            look(chromium, width, scheme)
            broken[f"{scheme}, {width} px"] = violations(chromium, name in FRAMES)
    assert not any(broken.values()), shown(broken)


@pytest.mark.parametrize("name", NAMES)
def test_no_page_scrolls_sideways_on_a_narrow_screen(filled: Filled, chromium: Browser, name: str) -> None:
    look(chromium, NARROW)
    visit(chromium, filled, name)
    assert overflow(chromium) == []
