"""docs/try.md, in a real Chromium: as a reader follows it in ``make try``, and with a real Postfix at the door.

With Postfix the circle is closed: what the database sends goes to it, and so does what comes from outside. It gives
mail for the database to the installed gateway, and all other to a sink. What the sink does not take comes back as a
bounce of Postfix's own.
"""

import contextlib
import email
import email.policy
import io
import json
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from email.utils import parseaddr
from pathlib import Path
from typing import NamedTuple

import pytest
from selenium.webdriver.common.by import By
from support.browser import Browser, browser
from support.mta import PIPE, Postfix, started, wait_until
from support.page import served
from support.pages import ROOT, page
from support.smtp_sink import Sink, sink

DOMAIN = "mail.company-name.com"
COMPANY = json.loads((ROOT / "demo/company.json").read_text())
TOUR = page("docs/try.md")
PICTURES = ROOT / "docs/try"
MAX_PICTURE_BYTES = 60_000


class World(NamedTuple):
    """Where the tour is made: how one gets in, how mail comes, what somebody was told, who answers what we write."""

    enter: Callable[[], object]
    arrives: Callable[[str], object]
    told: Callable[[str], str]
    answer: Callable[[], object]


# --- make try -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def make_try(chromium: Browser) -> Iterator[World]:
    """Run it as it is typed; mail comes by the page Try, and the customers answer by themselves."""
    command = [sys.executable, str(ROOT / "demo/trial.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"PATH": "/usr/bin:/bin"}) as process:
        assert process.stdout
        link = process.stdout.readline().split()[-1]
        printed: list[str] = []
        reading = threading.Thread(target=printed.extend, args=[process.stdout])
        reading.start()

        def tried(mail: str) -> None:
            sender, recipient = envelope_of(mail)
            chromium.press("Try")
            chromium.fill(sender=sender, recipients=recipient, message=mail)
            chromium.press("Give it to the gateway")
            assert chromium.find_element(By.ID, "ending").text.startswith("2.0.0")

        def told(address: str) -> str:
            assert f"{address} is told" in chromium.find_element(By.ID, "became").text
            begin = f"mail to {address}: "
            wait_until(lambda: begin in "".join(printed[:-1]), "the notice")  # and its text, a line below
            return "".join(printed).partition(begin)[2]

        try:
            yield World(lambda: chromium.get(link), tried, told, lambda: None)
        finally:
            process.terminate()
            reading.join()


# --- Postfix ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def postfix(chromium: Browser, folder: Path) -> Iterator[World]:
    """Have a real Postfix in front, whose pipe runs the gateway; the outside is a sink."""
    with contextlib.ExitStack() as running:
        outside = running.enter_context(sink())
        outside.refused |= dict.fromkeys(COMPANY["gone"], 550)
        server = running.enter_context(started(Postfix, outside, PIPE))
        server.edit("mail-gateway/transport", lambda text: f"{text}{DOMAIN} mail-gateway:database\n")
        server.reload()
        database = running.enter_context(served(folder, "--smtp", f"127.0.0.1:{server.port}"))
        server.settings(URL=database.url, ALIAS_DOMAINS=DOMAIN)

        def arrives(mail: str) -> None:
            sender, recipient = envelope_of(mail)
            server.send(sender, (recipient,), mail.encode())
            wait_until(lambda: not server.queue(), "the delivery")

        for row in COMPANY["mails"]:
            arrives("From: {from}\nTo: {to}\nSubject: {subject}\n\n{text}\n".format(**row))
        yield World(
            lambda: chromium.enter(database),
            arrives,
            lambda address: mail_to(outside, address).get_content(),
            lambda: arrives(answer_to(mail_to(outside, "ann@customer.example"))),
        )


def envelope_of(mail: str) -> tuple[str, str]:
    """Return sender and recipient of a mail, as its header has them."""
    header = email.message_from_string(mail)
    return parseaddr(header["From"])[1], parseaddr(header["To"])[1]


def mail_to(outside: Sink, address: str) -> EmailMessage:
    """Wait for a mail to an address and return it."""

    def found() -> list[bytes]:
        return [content for _, recipients, content in outside.mails if address in recipients]

    wait_until(found, f"a mail to {address}")
    return email.message_from_bytes(found()[-1], EmailMessage, policy=email.policy.default)


def answer_to(mail: EmailMessage) -> str:
    head = (
        f"From: {mail['To']}\nTo: {mail['Reply-To']}\nSubject: {mail['Subject']}\nIn-Reply-To: {mail['Message-ID']}\n"
    )
    return f"{head}\nWhen can you deliver?\n"


# --- the stations -------------------------------------------------------------------------------------------------

Station = Callable[[Browser, World], Iterator[None]]  # it yields where its picture is taken


def write(chromium: Browser, world: World) -> Iterator[None]:
    open_record(chromium, "crm.lead", "Forty chairs")
    chromium.execute_script("window.same = true")
    chromium.fill(text="Yes, we have them. They cost 50 each.")
    chromium.press("Send")
    assert len(chromium.find_elements(By.TAG_NAME, "article")) == 2
    chromium.execute_script("window.same = true")
    before = new(chromium)
    world.answer()
    wait_until(lambda: len(chromium.find_elements(By.TAG_NAME, "article")) == 3, "the answer")
    assert chromium.execute_script("return window.same")  # no page was loaded
    assert "ann@customer.example" in chromium.find_element(By.TAG_NAME, "article").text
    assert "When can you deliver?" in chromium.first_frame()
    assert new(chromium) == before + 1
    for frame in chromium.find_elements(By.TAG_NAME, "iframe"):
        chromium.switch_to.frame(frame)
        assert chromium.execute_script(
            "const page = document.documentElement; return page.scrollHeight <= page.clientHeight"
        )
        chromium.switch_to.default_content()
    yield


def came_back(chromium: Browser, world: World) -> Iterator[None]:
    open_record(chromium, "project.task", "A leg is loose")
    before = number(chromium, r"(\d+) failed")
    chromium.fill(text="We will send another leg.")
    chromium.press("Send")
    wait_until(lambda: chromium.find_elements(By.CLASS_NAME, "failure"), "the envelope")
    assert number(chromium, r"(\d+) failed") == before + 1
    chromium.press("Discuss")
    assert "to carl@customer.example: " in chromium.find_element(By.TAG_NAME, "main").text
    chromium.press("Re: A leg is loose")
    chromium.wait_for_frames()
    chromium.find_element(By.CSS_SELECTOR, ".failure summary").click()
    assert re.search("carl@customer.example: .*550", chromium.find_element(By.CLASS_NAME, "failure").text)
    yield


def catchall(chromium: Browser, world: World) -> Iterator[None]:
    before = number(chromium, r"Unplaced (\d+)"), new(chromium)
    world.arrives(mail_of("A mail to the catchall"))
    assert "this address only collects replies" in world.told("bob@stranger.example")
    assert (number(chromium, r"Unplaced (\d+)"), new(chromium)) == before
    yield
    assert "Is anybody there?" not in records(chromium, "crm.lead") + records(chromium, "project.task")


def unplaced(chromium: Browser, world: World) -> Iterator[None]:
    before = number(chromium, r"Unplaced (\d+)")
    chromium.press("Unplaced")
    assert "which is not answered" in chromium.find_element(By.CLASS_NAME, "rows").text
    chromium.press("Your parcel is on its way")
    chromium.fill(model="crm.lead", record="1")
    chromium.wait_for_frames()
    yield
    chromium.press("Put it there")
    assert chromium.find_element(By.TAG_NAME, "h1").text == "Forty chairs"
    assert "It arrives on Thursday." in chromium.first_frame()
    assert number(chromium, r"Unplaced (\d+)") == before - 1


def alias(chromium: Browser, world: World) -> Iterator[None]:
    to_set_up(chromium)
    chromium.press("Add to aliases")
    chromium.fill(alias_name="jobs", alias_model="project.task")
    yield
    chromium.press("Save")
    assert_saved(chromium)
    assert chromium.find_elements(By.LINK_TEXT, "jobs")
    world.arrives(mail_of("A new address"))
    open_record(chromium, "project.task", "A carpenter")
    assert "I can mend chairs." in chromium.first_frame()


def validation(chromium: Browser, world: World) -> Iterator[None]:
    set_up(chromium, "info", alias_name="catchall")
    assert "can't be an alias" in chromium.find_element(By.CSS_SELECTOR, "[role=alert]").text
    for use in "bounce", "catchall":
        set_up(chromium, DOMAIN, **{f"{use}_alias": f"temp-{use}"})
        assert_saved(chromium)
        set_up(chromium, "info", alias_name=use)
        assert_saved(chromium)
        world.arrives(mail_of("The link of a provider").replace("catchall@", f"{use}@"))
        open_record(chromium, "crm.lead", "Confirm the redirection")
        assert f"{use}@company-name.com" in chromium.first_frame()
        chromium.switch_to.frame(0)
        (link,) = chromium.find_elements(By.TAG_NAME, "a")
        assert link.get_attribute("href") == "https://provider.example/confirm?code=4711"
        chromium.switch_to.default_content()
        if use == "catchall":
            yield
        set_up(chromium, use, alias_name="info")
        assert_saved(chromium)
        set_up(chromium, DOMAIN, **{f"{use}_alias": use})
        assert_saved(chromium)
    # all is as it was: the alias makes records, the catchall makes none
    world.arrives(f"From: eve@customer.example\nTo: info@{DOMAIN}\nSubject: A bench\n\nDo you have one?\n")
    assert "A bench" in records(chromium, "crm.lead")
    world.arrives(f"From: eve@customer.example\nTo: catchall@{DOMAIN}\nSubject: Hello?\n\nAnybody?\n")
    assert "this address only collects replies" in world.told("eve@customer.example")
    assert "Hello?" not in records(chromium, "crm.lead")


# By heading: the name of its picture, and what is done.
STATIONS: dict[str, tuple[str, Station]] = {
    "Write, and be answered": ("answer", write),
    "A mail that came back": ("came-back", came_back),
    "A mail to the catchall": ("catchall", catchall),
    "What could not be placed": ("unplaced", unplaced),
    "A new address": ("alias", alias),
    "The link of a provider": ("validation", validation),
}


def mail_of(heading: str) -> str:
    """Return the mail that stands in a part of docs/try.md."""
    part = TOUR.partition(f". {heading}\n")[2].partition("\n## ")[0]
    (block,) = re.finditer(r"(?m)^( {4,})From: .*\n(?:\1.*\n|\n(?=\1))+", part)
    return textwrap.dedent(block[0])


def open_record(chromium: Browser, model: str, name: str) -> None:
    records(chromium, model)
    chromium.press(name)
    assert chromium.find_element(By.TAG_NAME, "h1").text == name


def records(chromium: Browser, model: str) -> str:
    """Go to the records of a model and return what stands there."""
    chromium.press("Records")
    chromium.press(model)
    return chromium.find_element(By.CLASS_NAME, "rows").text


def to_set_up(chromium: Browser) -> None:
    if chromium.find_elements(By.XPATH, "//button[text()='Developer mode on']"):
        chromium.press("Developer mode on")
    chromium.press("Set-up")


def set_up(chromium: Browser, row: str, **fields: str) -> None:
    to_set_up(chromium)
    chromium.press(row)
    chromium.fill(**fields)
    chromium.press("Save")


def assert_saved(chromium: Browser) -> None:
    assert chromium.find_element(By.TAG_NAME, "h1").text == "Set-up"


def number(chromium: Browser, pattern: str) -> int:
    """Return a number of the bar."""
    (found,) = re.findall(pattern, chromium.execute_script("return document.getElementById('bar').textContent"))
    return int(found)


def new(chromium: Browser) -> int:
    return number(chromium, r"(\d+) new")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as chromium:
        yield chromium


@pytest.fixture(scope="module", params=["make try", "Postfix"])
def world(
    request: pytest.FixtureRequest, chromium: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    is_postfix = request.param == "Postfix"
    with postfix(chromium, tmp_path_factory.mktemp("tour")) if is_postfix else make_try(chromium) as world:
        world.enter()
        yield world


@pytest.mark.browser
@pytest.mark.parametrize("heading", STATIONS)
def test_a_station_of_the_tour_shows_what_its_page_says(
    chromium: Browser, world: World, heading: str, request: pytest.FixtureRequest
) -> None:
    name, station = STATIONS[heading]
    chromium.switch_to.default_content()  # another station may have failed in a frame
    for _ in station(chromium, world):
        picture = chromium.picture()
        if request.config.getoption("--pictures"):
            write_small(picture, PICTURES / f"{name}.png")


def write_small(picture: bytes, path: Path) -> None:
    from PIL import Image  # that of `make try-pictures` alone

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(dither=Image.Dither.NONE).save(path, optimize=True)


def test_each_station_of_the_page_is_one_of_the_test_with_its_picture() -> None:
    parts = re.split(r"(?m)^## \d\. ", TOUR)[1:]
    assert [part.splitlines()[0] for part in parts] == [*STATIONS]
    for part, (name, _) in zip(parts, STATIONS.values(), strict=True):
        assert re.findall(r"\]\((try/[^)]+)\)", part) == [f"try/{name}.png"]
    taken = {f"{name}.png" for name, _ in STATIONS.values()}
    assert {path.name for path in PICTURES.iterdir()} == taken
    assert all((PICTURES / name).stat().st_size < MAX_PICTURE_BYTES for name in taken)
