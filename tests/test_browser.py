"""The pages in a real Chromium: what a stranger wrote runs nothing, loads nothing and changes nothing."""

import email
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from support.browser import Browser, browser
from support.mail_database_server import Server
from support.mta import wait_until
from support.page import mail, report_of, served, served_with_gateway, with_picture
from support.payloads import CANARY, HTML, WORDS
from support.smtp_sink import sink

pytestmark = pytest.mark.browser
FIELDS = "MIME-Version: 1.0\r\nContent-Type: text/html; charset=utf-8\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("browser")) as server:
        yield server


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as chromium:
        yield chromium


def test_a_script_in_a_page_would_be_seen(chromium: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<script>top.hit=1</script><img src={CANARY}/x.png>")
    chromium.get(page.as_uri())
    assert chromium.execute_script("return top.hit") == 1
    assert any(CANARY in url for url in chromium.asked_for())


@pytest.mark.parametrize("number", range(len(HTML)))
def test_hostile_html_does_nothing(server: Server, chromium: Browser, number: int) -> None:
    record = server.deliver(mail(f"html-{number}", fields=FIELDS, body=f"before {HTML[number]} after"))
    url = f"{server.url}/records/crm.lead/{record}"
    chromium.enter(server)
    chromium.get(url)
    chromium.wait_for_frames()
    assert_nothing_happened(chromium, url)
    assert chromium.find_element(By.TAG_NAME, "h1").text == f"chairs html-{number}"
    assert len(chromium.find_elements(By.TAG_NAME, "h1")) == 1
    chromium.switch_to.frame(0)
    for link in chromium.find_elements(By.TAG_NAME, "a"):
        assert not (link.get_attribute("href") or "").lower().startswith(("javascript", "data", "vbscript"))
    assert not chromium.find_elements(By.CSS_SELECTOR, "script, iframe, object, embed, form, svg, math, style, base")
    assert chromium.execute_script("return document.title") == "Text of a message"
    chromium.switch_to.default_content()


@pytest.mark.parametrize("number", range(len(WORDS)))
@pytest.mark.parametrize("place", ["subject", "name", "file"])
def test_hostile_words_are_words(server: Server, chromium: Browser, number: int, place: str) -> None:
    word, name = WORDS[number], f"{place}-{number}"
    raw = {
        "subject": mail(name, subject=word),
        "name": mail(name, sender=json.dumps(word) + f" <{name}@outside.test>"),
        "file": mail(
            name,
            fields="MIME-Version: 1.0\r\nContent-Type: image/png\r\n"
            f"Content-Disposition: attachment; filename={json.dumps(word, ensure_ascii=False)}\r\n",
        ),
    }[place]
    record = server.deliver(raw)
    chromium.enter(server)
    for url in f"{server.url}/records/crm.lead/{record}", f"{server.url}/records/crm.lead":
        chromium.get(url)
        chromium.wait_for_frames()
        assert_nothing_happened(chromium, url)
        assert len(chromium.find_elements(By.TAG_NAME, "h1")) == 1


def assert_nothing_happened(chromium: Browser, url: str) -> None:
    """Fail where something ran, left the page, was loaded from elsewhere, or opened a window."""
    assert chromium.current_url == url
    assert chromium.execute_script("return typeof top.hit") == "undefined"
    assert len(chromium.window_handles) == 1
    server = url.partition("/records/")[0]
    assert [each for each in chromium.asked_for() if not each.startswith((server, "data:image/png"))] == []


def test_a_person_writes_and_sees_the_answer_the_bounce_and_its_reason_without_a_reload(
    chromium: Browser, tmp_path: Path
) -> None:
    with sink() as mails, served(tmp_path, "--smtp", f"127.0.0.1:{mails.address[1]}") as server:
        record = server.deliver(mail("asked", sender="Ann <ann@outside.test>"))
        chromium.enter(server)
        chromium.get(f"{server.url}/records/crm.lead/{record}")
        chromium.find_element(By.ID, "text").send_keys("They are red.")
        chromium.find_element(By.XPATH, "//button[text()='Send']").click()
        wait_until(lambda: len(mails.mails) == 1, "the mail")
        written = email.message_from_bytes(mails.mails[0][2])["Message-ID"]
        chromium.find_element(By.ID, "text").send_keys("And another")
        chromium.execute_script("window.same = true")

        server.deliver(mail("answer", sender="Ann <ann@outside.test>", fields=f"References: {written}\r\n"))
        wait_until(lambda: len(chromium.find_elements(By.TAG_NAME, "article")) == 3, "the answer")
        first = chromium.find_elements(By.TAG_NAME, "article")[0]
        assert "ann@outside.test" in first.text
        chromium.wait_for_frames()
        chromium.switch_to.frame(chromium.find_elements(By.TAG_NAME, "iframe")[0])
        assert "Forty chairs" in chromium.find_element(By.TAG_NAME, "body").text
        chromium.switch_to.default_content()

        server.deliver(report_of(written, "ann@outside.test"))
        wait_until(lambda: chromium.find_elements(By.CLASS_NAME, "failure"), "the envelope")
        assert "1 failed" in chromium.find_element(By.ID, "bar").text
        chromium.find_element(By.CSS_SELECTOR, ".failure summary").click()
        assert "ann@outside.test: It could not be delivered." in chromium.find_element(By.CLASS_NAME, "failure").text
        assert chromium.execute_script("return window.same") is True
        assert chromium.find_element(By.ID, "text").get_attribute("value") == "And another"


def test_pictures_of_the_mail_are_shown_and_those_from_elsewhere_when_they_are_asked_for(
    server: Server, chromium: Browser
) -> None:
    elsewhere = f"{CANARY}/x.png"
    record = server.deliver(with_picture("pictures", html=f'<img src="{elsewhere}" alt="theirs">'))
    chromium.enter(server)
    chromium.get(f"{server.url}/records/crm.lead/{record}")
    chromium.wait_for_frames()
    assert elsewhere not in chromium.asked_for()
    chromium.switch_to.frame(0)
    assert chromium.execute_script("return [...document.images].map(each => each.naturalWidth)") == [2, 0]
    chromium.find_element(By.LINK_TEXT, "Show 1 picture from elsewhere").click()
    wait_until(lambda: elsewhere in chromium.asked_for(), "the picture from elsewhere")
    assert not chromium.find_elements(By.CLASS_NAME, "blocked")
    chromium.switch_to.default_content()
    assert len(chromium.find_elements(By.TAG_NAME, "article")) == 1


@pytest.mark.parametrize("place", ["#file", "h1", "#message"])
def test_a_file_is_dropped_and_what_becomes_of_it_is_seen_without_a_reload(
    chromium: Browser, tmp_path: Path, place: str
) -> None:
    caught, address = tmp_path / "caught.eml", "caught@outside.test"
    caught.write_bytes(mail("caught", to="catchall@mail.company-name.com"))
    with sink() as mails, served_with_gateway(tmp_path, "--smtp", f"127.0.0.1:{mails.address[1]}") as server:
        mails.refused[address] = 451
        chromium.enter(server)
        chromium.press("Try")
        chromium.fill(sender=address, recipients="catchall@mail.company-name.com")
        chromium.drop(caught, place)
        chromium.press("Give it to the gateway")
        assert chromium.find_element(By.ID, "ending").text.startswith("2.0.0")
        assert f"Return-Path: <{address}>" in chromium.find_element(By.ID, "forecast").text
        told = f"{address} is told (catchall): Re: chairs caught"
        assert chromium.find_element(By.ID, "became").text == f"{told} (it waits for a mail server)"
        chromium.execute_script("window.same = true")
        mails.refused.clear()
        wait_until(lambda: chromium.find_element(By.ID, "became").text == told, "the notice")
        assert chromium.execute_script("return window.same") is True
