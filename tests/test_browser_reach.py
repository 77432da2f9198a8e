"""The pages for everybody: by keyboard, by a screen reader, on a narrow screen, in the dark, in another time zone."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from support.browser import Browser, browser
from support.mail_database_server import PASSWORD
from support.mail_database_server import served as dated
from support.mta import wait_until
from support.page import entered, mail, served, served_with_gateway
from support.reach import (
    FILES,
    FRAMES,
    HTML,
    NAMES,
    NARROW,
    PAGES,
    WIDE,
    WITHOUT_LOGIN,
    Filled,
    enter,
    fill,
    log_in,
    look,
    overflow,
    press,
    shown,
    stop,
    tab_to,
    texts,
    tree,
    violations,
    visit,
)

from mail_database.page.app import application
from mail_database.server import access

pytestmark = pytest.mark.browser
HIGH = 60  # CSS pixels that one may be higher than what is left of it


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    """A database with something on every page, and a gateway."""
    with served_with_gateway(tmp_path_factory.mktemp("reach")) as server:
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


# --- by keyboard ---


def test_the_keyboard_alone_logs_in_and_skips_to_the_content(filled: Filled, chromium: Browser) -> None:
    log_in(chromium, filled.server, None)
    chromium.get(f"{filled.server.url}/records/crm.lead")
    press(chromium, PASSWORD)  # the field has the focus
    enter(chromium)
    assert chromium.find_element(By.TAG_NAME, "h1").text == "crm.lead"
    assert tab_to(chromium, "Skip")[0].name == "Skip to the content"
    assert chromium.find_element(By.CLASS_NAME, "skip").rect["x"] >= 0
    press(chromium, Keys.ENTER)
    assert chromium.execute_script("return document.activeElement.id") == "main"
    press(chromium, Keys.TAB)
    assert chromium.execute_script("return document.activeElement.matches('main #find')")


def test_the_keyboard_alone_opens_a_failure_writes_and_sends(filled: Filled, chromium: Browser) -> None:
    visit(chromium, filled, "page.records")
    while not chromium.current_url.endswith(f"/{filled.ids['record']}"):
        tab_to(chromium, "Donau")
        if chromium.execute_script("return document.activeElement.href").endswith(f"/{filled.ids['record']}"):
            enter(chromium)
    tab_to(chromium, "Write to the followers")
    press(chromium, "Forty, in red.")
    tab_to(chromium, "Send")
    enter(chromium)
    assert "Forty, in red." in body_of_newest(chromium)
    tab_to(chromium, "✉ It came back")
    press(chromium, Keys.SPACE)
    assert "550" in chromium.find_element(By.CLASS_NAME, "failure").text


def body_of_newest(chromium: Browser) -> str:
    chromium.wait_for_frames()
    chromium.switch_to.frame(0)
    text = chromium.find_element(By.TAG_NAME, "body").text
    chromium.switch_to.default_content()
    return text


def test_the_keyboard_alone_puts_an_unplaced_message_on_a_record(filled: Filled, chromium: Browser) -> None:
    name = "chairs by keyboard"
    raw = mail("by-keyboard", to="catchall@mail.company-name.com", fields="Return-Path: <>\r\n", subject=name)
    filled.server.deliver(raw)
    visit(chromium, filled, "page.home")
    tab_to(chromium, "Unplaced")
    enter(chromium)
    tab_to(chromium, name)
    enter(chromium)
    chromium.wait_for_frames()
    tab_to(chromium, "Model")
    press(chromium, "crm")
    tab_to(chromium, "Number")
    press(chromium, str(filled.ids["record"]))
    tab_to(chromium, "Put it there")
    enter(chromium)
    assert chromium.current_url == f"{filled.server.url}/records/crm.lead/{filled.ids['record']}"
    assert "Forty chairs" in body_of_newest(chromium)


def test_the_keyboard_alone_makes_an_alias(filled: Filled, chromium: Browser) -> None:
    visit(chromium, filled, "a record for who is no developer")
    tab_to(chromium, "Developer mode on")
    enter(chromium)
    tab_to(chromium, "Add to aliases")
    enter(chromium)
    tab_to(chromium, "Local-part")
    press(chromium, "by-keyboard")
    tab_to(chromium, "Makes records of")
    press(chromium, "project")
    tab_to(chromium, "Local-part detection")
    press(chromium, Keys.SPACE)
    tab_to(chromium, "Save")
    enter(chromium)
    wanted = [("alias_name", "=", "by-keyboard")]
    found = filled.server.search("mail.alias", wanted, "alias_model", "alias_incoming_local")[0]
    assert (found["alias_model"], found["alias_incoming_local"]) == ("project.task", True)


def test_the_keyboard_alone_tries_a_mail(filled: Filled, chromium: Browser) -> None:
    visit(chromium, filled, "page.home")
    tab_to(chromium, "Try")
    enter(chromium)
    tab_to(chromium, "Envelope: to")
    press(chromium, " info@mail.company-name.com")
    tab_to(chromium, "The mail")
    ActionChains(chromium).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).perform()
    press(chromium, mail("tried-by-keyboard").decode().replace("\r\n", "\n"))
    tab_to(chromium, "or a file")
    tab_to(chromium, "Give it")
    enter(chromium)
    assert "2.0.0 delivered" in chromium.find_element(By.ID, "ending").text
    tab_to(chromium, "chairs tried-by-keyboard")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_focus_goes_down_each_page_and_is_seen(filled: Filled, chromium: Browser, name: str, scheme: str) -> None:
    look(chromium, WIDE, scheme)
    visit(chromium, filled, name)
    focusable = "a[href], button, input:not([type=hidden]), select, textarea, summary"
    chromium.execute_script(FROM_THE_TOP)
    wanted = chromium.execute_script(f"return document.querySelectorAll('{focusable}').length")
    stops = [each for _ in range(wanted) for each in tab_to(chromium, "")]
    tops = [each.top for each in stops if each.tag != "IFRAME"]
    assert all(later > earlier - HIGH for earlier, later in itertools.pairwise(tops)), stops


FROM_THE_TOP = "document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')"


# --- what is renewed while a person is there ---


def test_the_focus_and_what_is_open_stay_when_the_page_is_renewed(chromium: Browser, tmp_path: Path) -> None:
    with served(tmp_path) as server:
        record = server.deliver(mail("asked", sender="Ann <ann@outside.test>"))
        message = server.search("mail.message", [], "id")[0]["id"]
        partner = server.call("res.partner", "create", {"name": "Ann", "email": "ann@outside.test"})

        def fail(reason: str) -> None:
            told = {"mail_message_id": message, "res_partner_id": partner, "notification_status": "bounce"}
            server.call("mail.notification", "create", told | {"failure_reason": reason})

        fail("550 first")
        log_in(chromium, server, entered(server).cookies["mail_database"])
        chromium.get(f"{server.url}/records/crm.lead/{record}")
        tab_to(chromium, "✉ Discuss")
        fail("550 second")
        wait_until(lambda: "2 failed" in chromium.find_element(By.ID, "bar").text, "the count")
        assert stop(chromium).name.startswith("✉ Discuss")
        tab_to(chromium, "✉ It came back")
        press(chromium, Keys.SPACE)
        fail("550 third")
        wait_until(lambda: "550 third" in chromium.find_element(By.CLASS_NAME, "failure").text, "the third reason")
        assert stop(chromium).name.startswith("✉ It came back")
        server.deliver(mail("again", sender="Bob <bob@outside.test>", fields="References: <asked@outside.test>\r\n"))
        wait_until(lambda: len(chromium.find_elements(By.TAG_NAME, "article")) == 2, "the message")
        assert stop(chromium).name.startswith("✉ It came back")
        assert "550 first" in chromium.find_element(By.CLASS_NAME, "failure").text  # it is open


# --- by a screen reader ---


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FRAMES])
def test_a_screen_reader_finds_its_way(filled: Filled, chromium: Browser, name: str) -> None:
    visit(chromium, filled, name)
    nodes = tree(chromium)
    roles = [node.role for node in nodes]
    is_inside = name not in WITHOUT_LOGIN
    assert [roles.count(role) for role in ("banner", "navigation", "main")] == [is_inside, is_inside, 1]
    assert next(node.properties["level"] for node in nodes if node.role == "heading") == 1
    assert sum(node.role == "heading" and node.properties["level"] == 1 for node in nodes) == 1
    controls = {"textbox", "checkbox", "combobox", "button", "link", "Iframe", "DisclosureTriangle", "article"}
    assert [node for node in nodes if node.role in controls and not node.name] == []
    assert next(node for node in nodes if node.role == "RootWebArea").name.endswith(" – mail_database")


def test_what_is_new_is_told_in_a_few_words(chromium: Browser, tmp_path: Path) -> None:
    with served(tmp_path) as server:
        record = server.deliver(mail("asked", sender="Ann <ann@outside.test>"))
        log_in(chromium, server, entered(server).cookies["mail_database"])
        chromium.get(f"{server.url}/records/crm.lead/{record}")
        chromium.execute_script(LISTEN)
        answer = "References: <asked@outside.test>\r\n"
        server.deliver(mail("answer", sender="Bob <bob@outside.test>", fields=answer, body="A long story"))
        wait_until(lambda: len(chromium.find_elements(By.TAG_NAME, "article")) == 2, "the message")
        heard = chromium.execute_script("return window.heard")
        assert sorted(heard) == ["0 failed, 2 new", 'New message: "Bob" <bob@outside.test>']
        live = [node for node in tree(chromium) if node.properties.get("live")]
        assert {(node.role, node.properties["live"]) for node in live} == {("status", "polite")}
        assert len(live) == 2


# Note what a live region says each time it changes, as a screen reader does.
LISTEN = """
window.heard = [];
for (const region of document.querySelectorAll("[role=status], [role=alert], [aria-live]"))
  new MutationObserver(() => window.heard.push(region.textContent))
      .observe(region, { childList: true, characterData: true, subtree: true });
"""


# --- in the dark, and in another zone ---


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_strangers_colours_leave_dark_text_on_white_paper(filled: Filled, chromium: Browser, scheme: str) -> None:
    body = (
        '<body bgcolor="#000" text="#fff"><p style="color:#000">black</p><font color="#fff">white</font>'
        '<table bgcolor="#111"><tr><td style="background:#000;color:#eee">cell</td></tr></table>'
        '<a href="https://outside.test/" style="color:#fff">link</a><blockquote style="color:#ddd">old</blockquote>'
    )
    server = filled.server
    record = server.deliver(mail(f"colours-{scheme}", fields=HTML, body=body))
    look(chromium, WIDE, scheme)
    log_in(chromium, server, filled.reader)
    chromium.get(f"{server.url}/records/crm.lead/{record}")
    chromium.wait_for_frames()
    frame = chromium.find_element(By.TAG_NAME, "iframe")
    assert frame.value_of_css_property("background-color") == WHITE
    chromium.switch_to.frame(frame)
    colours = chromium.execute_script(COLOURS)
    chromium.switch_to.default_content()
    assert {background for _, background in colours[1:]} == {"rgba(0, 0, 0, 0)"}
    assert colours[0][1] == "rgb(255, 255, 255)"
    assert {ink for ink, _ in colours} == {"rgb(28, 27, 34)", "rgb(90, 61, 92)", "rgb(91, 89, 102)"}  # 5:1 and more


WHITE = "rgba(255, 255, 255, 1)"
COLOURS = """
return [document.documentElement, ...document.querySelectorAll("body, body *")].map(each => {
  const style = getComputedStyle(each);
  return [style.color, style.backgroundColor];
});
"""


def test_dates_are_in_the_readers_zone(chromium: Browser, tmp_path: Path) -> None:
    with dated(f"sqlite:///{tmp_path}/mail.db", DATED) as server:
        log_in(chromium, server, entered(server).cookies["mail_database"])
        for zone, dates in ZONES.items():
            look(chromium, WIDE, zone=zone)
            for path in "/records/crm.lead", "/records/crm.lead/1", "/discuss":
                chromium.get(server.url + path)
                found = texts(chromium, "time")
                assert found, path
                assert set(found) <= set(dates), (zone, path)
                titles = {each.get_attribute("title") for each in chromium.find_elements(By.TAG_NAME, "time")}
                assert titles <= {"2026-01-15 23:30 UTC", "2026-07-01 02:30 UTC"}


def test_without_javascript_dates_are_in_utc_and_say_so(chromium: Browser, tmp_path: Path) -> None:
    with dated(f"sqlite:///{tmp_path}/mail.db", DATED) as server:
        log_in(chromium, server, entered(server).cookies["mail_database"])
        look(chromium, zone="Asia/Tokyo")
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        try:
            chromium.get(f"{server.url}/records/crm.lead/1")
            assert texts(chromium, "time") == ["2026-01-15 23:30 UTC", "2026-07-01 02:30 UTC"]
        finally:
            chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


WINTER, SUMMER = "2026-01-15 23:30:00", "2026-07-01 02:30:00"  # UTC
DATED = {
    "partners": [{"id": 3, "name": "Administrator", "email": "admin@company.example"}],
    "users": [{"id": 2, "login": "admin", "partner_id": 3}],
    "records": [{"model": "crm.lead", "id": 1, "name": "chairs", "created": WINTER}],
    "messages": [
        {"id": 1, "message_id": "<a@b>", "model": "crm.lead", "thread_id": 1, "subject": "x", "date": SUMMER}
        | {"original": "Subject: x\n\n"}
    ],
}
ZONES = {
    "Pacific/Kiritimati": ("16 Jan 2026, 13:30", "1 Jul 2026, 16:30"),  # a day later
    "America/Los_Angeles": ("15 Jan 2026, 15:30", "30 Jun 2026, 19:30"),  # a day earlier; summer time
    "Asia/Kolkata": ("16 Jan 2026, 05:00", "1 Jul 2026, 08:00"),  # half an hour
}
