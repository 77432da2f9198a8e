"""Each page of the database, full of what is hard to show, and a browser that looks at it as different people do."""

import functools
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import requests
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from support.browser import Browser
from support.mail_database_server import Server
from support.mta import Impossible, wait_until
from support.page import entered, form, mail

WIDE, NARROW = 1280, 320  # CSS pixels; 320 is what WCAG 2.2 (1.4.10) asks for
LONG = "Donaudampfschifffahrtsgesellschaft" * 8
HTML = "MIME-Version: 1.0\r\nContent-Type: text/html; charset=utf-8\r\n"
FILE = 'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="b"\r\n'
FILE_BODY = "--b\r\nContent-Type: text/plain\r\n\r\nsee the file\r\n"
FILE_BODY += f'--b\r\nContent-Type: text/plain; name="{LONG}.txt"\r\n\r\nchairs\r\n--b--'
PLAIN_BODY = f"Yes, {LONG}\r\n\r\nOn Monday Ann wrote:\r\n> how many?\r\n"
WIDE_BODY = (
    f"<p>before</p><table width=3000><tr><td>{LONG}</td>{'<td width=2000>cell</td>' * 8}</tr></table><hr width=3000>"
    f"<pre>{LONG}\n  {LONG}</pre><p>{'no&nbsp;break&nbsp;' * 40}</p>"
    '<img src="https://elsewhere.test/x.png" alt="a chair" width=3000 height=10><blockquote>old</blockquote>'
)

# How to get to each page: of a rule by its endpoint, of a state of it by a name; {record} and so on are ids.
PAGES = {
    "page.login": "/login",
    "page.home": "/",
    "page.records": "/records/crm.lead",
    "page.record": "/records/crm.lead/{record}",
    "page.text": "/messages/{plain}/text",
    "page.discuss": "/discuss",
    "page.unplaced": "/unplaced",
    "page.unplaced_message": "/unplaced/{unplaced}",
    "page.unplaced_text": "/unplaced/{unplaced}/text",
    "trial.compose": "/try/",
    "trial.became": "/try/became",
    "setup.overview": "/setup/",
    "setup.section": "/setup/aliases",
    "setup.edit": "/setup/aliases/1",
}
FILES = {"page.enter", "page.original", "page.attachment", "page.unplaced_original", "static"}  # which are no pages
MORE = {
    "a record for who is no developer": "/records/crm.lead/{record}",
    "partners": "/records/res.partner",
    "a partner": "/records/res.partner/4",
    "a page without rows": "/records/crm.lead?before=1",
    "wide HTML": "/messages/{wide}/text",
    "pictures from elsewhere": "/messages/{wide}/text?pictures=1",
    "a new alias": "/setup/aliases/0",
    "a new domain": "/setup/domains/0",
    "a new company": "/setup/companies/0",
    "a new partner": "/setup/partners/0",
    "nothing there": "/nothing",
}
STATES: dict[str, tuple[str, dict[str, str]]] = {  # what a form says after it was sent with this
    "a wrong password": ("/login", {"password": "x"}),
    "a forged form": ("/discuss", {"csrf_token": "x"}),
    "a wrong alias": ("/setup/aliases/0", {"alias_name": LONG, "alias_defaults": "import os"}),
    "wrong parameters": ("/setup/", {"mail.gateway.loop.minutes": "x"}),
    "a follower without an address": ("/records/crm.lead/{record}", {"address": "nobody"}),
    "no such record": ("/unplaced/{unplaced}", {"record": "99999"}),
    "no recipient": ("/try/", {"recipients": ""}),
    "a mail that was tried": ("/try/", {}),
}
WITHOUT_LOGIN = {"page.login", "a wrong password"}
NAMES = [*PAGES, *MORE, *STATES]
FRAMES = {"page.text", "page.unplaced_text", "wide HTML", "pictures from elsewhere"}  # without the bar of the others


class Filled(NamedTuple):
    """A server with something on every page, its ids, and the cookies of two people who have logged in."""

    server: Server
    ids: dict[str, int]
    reader: str
    developer: str

    def path(self, path: str) -> str:
        """Return a path with its ids."""
        return path.format(**self.ids)


def fill(server: Server) -> Filled:
    """Put something hard to show on every page."""
    record = server.deliver(mail("long", subject=LONG, sender=f'"{LONG}" <{"x" * 60}@outside.test>', body=PLAIN_BODY))
    answer = "References: <long@outside.test>\r\n"
    server.deliver(mail("file", sender="Bob <bob@outside.test>", fields=answer + FILE, body=FILE_BODY))
    server.deliver(mail("wide", sender="Eve <eve@outside.test>", fields=answer + HTML, body=WIDE_BODY))
    ids = {row["message_id"].strip("<>").partition("@")[0]: row["id"] for row in server.dump()["messages"]}
    partner = server.call("res.partner", "create", {"name": LONG, "email": f"{LONG}@outside.test"})
    note = {"model": "crm.lead", "res_id": record, "email_from": "Ann", "body": "<p>to us</p>", "is_internal": True}
    server.call("mail.message", "create", note)
    server.call("mail.followers", "create", {"res_model": "crm.lead", "res_id": record, "partner_id": partner})
    for status, reason in ("bounce", f"550 {LONG}"), ("exception", False), ("ready", False):
        told = {"mail_message_id": ids["wide"], "res_partner_id": partner, "notification_status": status}
        server.call("mail.notification", "create", told | {"failure_reason": reason})
    nowhere = mail("nowhere", to="catchall@mail.company-name.com", fields="Return-Path: <>\r\n", subject=LONG)
    server.call("crm.lead", "create", {"name": LONG})
    server.deliver(nowhere)
    unplaced = server.dump()["unplaced"][-1]["id"]
    reader, developer = entered(server), entered(server)
    developer.post(f"{server.url}/developer", data=form(developer, f"{server.url}/"))
    ids |= {"record": record, "plain": ids["long"], "unplaced": unplaced}
    return Filled(server, ids, _cookie(reader), _cookie(developer))


def _cookie(visitor: requests.Session) -> str:
    return visitor.cookies["mail_database"]


def visit(chromium: Browser, filled: Filled, name: str) -> None:
    """Go to a page of PAGES, MORE or STATES, as who may see it."""
    cookie = None if name in WITHOUT_LOGIN else filled.reader if "no developer" in name else filled.developer
    log_in(chromium, filled.server, cookie)
    path, values = STATES.get(name) or ((PAGES | MORE)[name], None)
    chromium.get(filled.server.url + filled.path(path))
    if values is None:
        return
    chromium.execute_script("window.old = true")
    chromium.execute_script(SEND, values)
    wait_until(lambda: chromium.execute_script("return !window.old && document.readyState == 'complete'"), name, 60)


# Send the first form that has these fields, or the last one of the page.
SEND = """
const forms = [...document.querySelectorAll("main form")];
const names = Object.keys(arguments[0]);
const form = forms.find(form => names.length && names.every(name => form.elements[name])) || forms.at(-1);
for (const name of names) form.elements[name].value = arguments[0][name];
form.noValidate = true;
form.requestSubmit();
"""


def log_in(chromium: Browser, server: Server, cookie: str | None) -> None:
    """Be who has this cookie, or nobody."""
    chromium.get(f"{server.url}/static/icon.svg")
    chromium.delete_all_cookies()
    if cookie:
        chromium.add_cookie({"name": "mail_database", "value": cookie})


def look(chromium: Browser, width: int = WIDE, scheme: str = "light", zone: str = "") -> None:
    """Be a screen of a width, in light or dark, in a time zone."""
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    chromium.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": zone})
    chromium.execute_cdp_cmd("Emulation.setLocaleOverride", {"locale": "en-GB"})


@functools.cache
def rules() -> str:
    """Return axe-core, a script. Raises Impossible where it is not installed."""
    path = Path(sys.prefix) / "axe-core/node_modules/axe-core/axe.min.js"
    if not path.exists():
        raise Impossible("needs axe-core, which make test-browser installs")
    return path.read_text()


# Rules about a whole page, of which a frame is a part.
OF_PAGES = ("landmark-one-main", "page-has-heading-one", "region")
AXE = """
const [leftOut, done] = arguments;
const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa", "best-practice"];
const rules = Object.fromEntries(leftOut.map(name => [name, { enabled: false }]));
axe.run({ runOnly: tags, rules, iframes: false, resultTypes: ["violations"] })
  .then(found => done(found.violations.map(each => [each.id, each.nodes.map(node => node.html.slice(0, 200)
      + " " + node.any.concat(node.all, node.none).map(check => check.message).join("; "))])))
  .catch(error => done([["axe", [String(error)]]]));
"""


def violations(chromium: Browser, is_frame: bool = False) -> list[tuple[str, list[str]]]:
    """Return the rules of WCAG 2.2 A and AA, and of best practice, that a page breaks, each with where."""
    if not chromium.execute_script("return typeof axe != 'undefined'"):
        chromium.execute_cdp_cmd("Runtime.evaluate", {"expression": rules()})
    chromium.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
    return chromium.execute_async_script(AXE, OF_PAGES if is_frame else ())


class Node(NamedTuple):
    """A node of the tree that a screen reader reads."""

    role: str
    name: str
    properties: dict[str, Any]


def tree(chromium: Browser) -> list[Node]:
    """Return what a screen reader reads, in its order."""
    nodes = chromium.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    return [
        Node(
            node["role"]["value"],
            node.get("name", {}).get("value", ""),
            {each["name"]: each["value"].get("value") for each in node.get("properties", [])},
        )
        for node in nodes
        if not node["ignored"]
    ]


def overflow(chromium: Browser) -> list[str]:
    """Return what is wider than the screen, with its width."""
    return chromium.execute_script(
        """
        const width = document.documentElement.clientWidth;
        if (document.scrollingElement.scrollWidth <= width) return [];
        return [...document.querySelectorAll("*")].filter(each => each.getBoundingClientRect().right > width + 1)
            .map(each => each.outerHTML.slice(0, 120) + " " + each.getBoundingClientRect().right);
        """
    )


def texts(chromium: Browser, selector: str) -> list[str]:
    return [element.text for element in chromium.find_elements(By.CSS_SELECTOR, selector)]


def shown(found: object) -> str:
    """Return a finding as a test prints it."""
    return json.dumps(found, indent=1, ensure_ascii=False)


class Stop(NamedTuple):
    """Where the focus is: what it says, where, whether a person sees it, whether it comes after the last one."""

    name: str
    tag: str
    top: float  # in CSS pixels, from the top of the page
    is_seen: bool
    follows: bool


STOP = """
const here = document.activeElement;
const style = getComputedStyle(here);
const last = window.lastStop;
window.lastStop = here;
const box = here.getBoundingClientRect();
const label = here.labels && here.labels[0] ? here.labels[0].innerText : "";
const inView = box.bottom > 0 && box.right > 0 && box.top < innerHeight && box.left < innerWidth;
return [
  (here.getAttribute("aria-label") || label || here.innerText || here.title || "").trim(), here.tagName,
  box.top + scrollY, style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0 && inView,
  !last || last === here || Boolean(last.compareDocumentPosition(here) & Node.DOCUMENT_POSITION_FOLLOWING),
];
"""


def press(chromium: Browser, *keys: str) -> None:
    """Press keys, wherever the focus is."""
    ActionChains(chromium).send_keys(*keys).perform()


def stop(chromium: Browser) -> Stop:
    return Stop(*chromium.execute_script(STOP))


def tab_to(chromium: Browser, name: str, most: int = 60) -> list[Stop]:
    """Press Tab until the focus is on what says this, and return all stops; each must be seen, and follow the last."""
    stops: list[Stop] = []
    while not stops or not stops[-1].name.startswith(name):
        assert len(stops) < most, f"no way to {name!r}: {[each.name for each in stops]}"
        press(chromium, Keys.TAB)
        stops.append(stop(chromium))
        assert stops[-1].is_seen, f"the focus can't be seen: {stops[-1]}"
        assert stops[-1].follows, f"the focus jumps back: {stops[-2:]}"
    return stops


def enter(chromium: Browser) -> None:
    """Press Enter, and wait for the page to which it leads."""
    chromium.execute_script("window.old = true")
    press(chromium, Keys.ENTER)
    there = "return !window.old && document.readyState == 'complete'"
    wait_until(lambda: chromium.execute_script(there), "the next page", 60)
