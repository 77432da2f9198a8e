"""A real Chromium, without a screen, that tells what it has asked for."""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from support.mail_database_server import PASSWORD, Server
from support.mta import Impossible, wait_until

PROGRAM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
OPTIONS = (
    *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
    *("disable-component-update", "disable-sync", "disable-dev-shm-usage", "window-size=1000,800", "lang=en-GB"),
)


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
