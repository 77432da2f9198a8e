"""A real Chromium, without a screen, that tells what it has asked for."""

import base64
import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import staleness_of
from selenium.webdriver.support.ui import Select

from support.mail_database_server import PASSWORD, Server
from support.mta import Impossible, wait_until

PROGRAM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
OPTIONS = (
    *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
    *("disable-component-update", "disable-sync", "disable-dev-shm-usage", "window-size=1000,800", "lang=en-GB"),
)

WIDTH, MAX_HEIGHT = 900, 870  # of a picture
LIGHT = {"name": "prefers-color-scheme", "value": "light"}
DATE = "15 Jan 2026, 09:30"  # in a picture


class Browser(webdriver.Chrome):
    """The browser. ``enter`` logs in; ``asked_for`` returns the addresses that it has asked for since the last time."""

    def __init__(self, folder: str) -> None:
        if not (os.path.exists(PROGRAM) and os.path.exists(DRIVER)):
            raise Impossible("needs apt-get install chromium chromium-driver")
        options = webdriver.ChromeOptions()
        options.binary_location = PROGRAM
        for option in OPTIONS:
            options.add_argument(f"--{option}")
        options.add_argument(f"--user-data-dir={folder}")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        options.unhandled_prompt_behavior = "ignore"  # what an alert would be must be seen, not closed
        super().__init__(options=options, service=Service(DRIVER))

    def enter(self, server: Server) -> None:
        """Log in, as a person does."""
        self.get(f"{server.url}/")
        if re.search("/login", self.current_url):
            self.find_element(By.NAME, "password").send_keys(PASSWORD)
            self.find_element(By.TAG_NAME, "button").click()
            wait_until(lambda: "/login" not in self.current_url, "the login", 30)
        self.asked_for()

    def wait_for_frames(self) -> None:
        """Scroll to each frame, which is loaded when it is seen, and wait until it is."""
        for frame in self.find_elements(By.TAG_NAME, "iframe"):
            self.execute_script("arguments[0].scrollIntoView()", frame)
            self.switch_to.frame(frame)
            wait_until(
                lambda: self.execute_script("return document.readyState == 'complete' && document.title"), "a frame", 30
            )
            self.switch_to.default_content()

    def press(self, words: str) -> None:
        """Click the link or the button that has these words, and wait for the page that it leads to."""
        place = f"//a[contains(., '{words}')] | //button[normalize-space()='{words}']"
        page = self.find_element(By.TAG_NAME, "html")

        def pressed() -> bool:
            with contextlib.suppress(StaleElementReferenceException):  # the bar is renewed just now
                self.find_element(By.XPATH, place).click()
                return True
            return False

        wait_until(pressed, words)
        wait_until(lambda: staleness_of(page)(self), f"the page behind {words}")

    def fill(self, **fields: str) -> None:
        """Write into fields, by their names, in the place of what they have, or choose it."""
        for name, text in fields.items():
            field = self.find_element(By.NAME, name)
            if field.tag_name == "select":
                Select(field).select_by_visible_text(text)
            else:
                field.clear()
                field.send_keys(text)

    def drop(self, path: Path, place: str) -> None:
        """Drop a file on an element, as from a window beside the browser's."""
        element = self.find_element(By.CSS_SELECTOR, place)
        box = self.execute_script(
            "arguments[0].scrollIntoView({block: 'center'}); return arguments[0].getBoundingClientRect()", element
        )
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in "dragEnter", "dragOver", "drop":
            self.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "data": data, **at})

    def first_frame(self) -> str:
        """Return the text of the first frame."""
        self.wait_for_frames()
        self.switch_to.frame(0)
        text = self.find_element(By.TAG_NAME, "body").text
        self.switch_to.default_content()
        return text

    def picture(self) -> bytes:
        """Return the top of the page as a PNG, light, with a date that is the same each day."""
        self.execute_script(
            "document.activeElement.blur(); scrollTo(0, 0);"
            f"for (const time of document.querySelectorAll('time')) time.textContent = '{DATE}'"
        )
        height = self.execute_script("return document.documentElement.scrollHeight")
        size = {"width": WIDTH, "height": min(height, MAX_HEIGHT), "deviceScaleFactor": 1, "mobile": False}
        self.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [LIGHT]})
        self.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        self.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        taken = self.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
        self.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        return base64.b64decode(taken["data"])

    def asked_for(self) -> list[str]:
        """Return the addresses of all requests since the last time."""
        events = [json.loads(entry["message"])["message"] for entry in self.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Run one for a while."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        chromium = Browser(folder)
        try:
            yield chromium
        finally:
            chromium.quit()
