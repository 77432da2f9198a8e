"""What a test of the pages needs: somebody who is logged in, the token of a form, a mail."""

import base64
import contextlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import requests
import sqlalchemy as sa
from flask.testing import FlaskClient

from mail_database.page.app import application
from mail_database.server import access
from support.gateway import PROGRAM, write_settings
from support.mail_database_server import PASSWORD, Server, command

REPORT = """\
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="b"
Auto-Submitted: auto-replied
"""
REPORT_BODY = """\
--b
Content-Type: text/plain

It could not be delivered.
--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.outside.test

Final-Recipient: rfc822; {to}
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 no such user

--b
Content-Type: text/rfc822-headers

Message-ID: {message_id}
--b--
"""

PICTURE = base64.b64decode(  # a PNG, 2 pixels wide
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAAAAADRSSBWAAAAC0lEQVR42mNgYAAAAAMAASsJTYQAAAAASUVORK5CYII="
)


@contextlib.contextmanager
def served(folder: Path, *options: str) -> Iterator[Server]:
    """Serve a database that has the world of mail_database/example.json."""
    store = f"sqlite:///{folder / 'mail.db'}"
    command(store, "load", "mail_database/example.json")
    server = Server(store, *options)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def served_with_gateway(folder: Path, *options: str) -> Iterator[Server]:
    """Serve such a database that knows a gateway, whose settings lead to it."""
    env_file = folder / "gateway.env"
    command = shlex.join([sys.executable, str(PROGRAM), "--service", "none", "--env-file", str(env_file)])
    with served(folder, "--gateway", command, *options) as server:
        settings = {"URL": server.url, "DATABASE": server.database, "LOGIN": "2", "PASSWORD": PASSWORD}
        write_settings(env_file, settings | {"ALIAS_DOMAINS": "mail.company-name.com", "LOG": folder / "log"})
        yield server


def form(visitor: requests.Session, url: str) -> dict[str, str]:
    """Return the hidden fields of a page's first form."""
    found = re.search(r'name="csrf_token" value="([^"]+)"', visitor.get(url).text)
    assert found
    return {"csrf_token": found[1]}


def entered(server: Server) -> requests.Session:
    """Return somebody who has logged in."""
    visitor = requests.Session()
    fields = form(visitor, f"{server.url}/login") | {"login": "admin", "password": PASSWORD}
    assert visitor.post(f"{server.url}/login", data=fields).status_code == 200
    return visitor


def visitor(engine: sa.Engine) -> FlaskClient:
    """Return somebody who has logged in and is a developer, without a server: he asks the application itself."""
    client = application(engine, access("mydatabase", "admin", PASSWORD), set()).test_client()
    with client.session_transaction() as session:
        session.update(login="admin", developer=True)
    return client


def pages_of() -> set[str]:
    """Return the paths of all pages."""
    app = application(sa.create_engine("sqlite://"), access("mydatabase", "admin", PASSWORD), set())
    return {rule.rule for rule in app.url_map.iter_rules()}


def mail(
    name: str,
    to: str = "info@mail.company-name.com",
    sender: str = "",
    fields: str = "",
    body: str = "Forty chairs",
    subject: str | None = None,
) -> bytes:
    subject = f"chairs {name}" if subject is None else subject
    identity = re.sub(r"\W", "-", name)
    sender = sender or f"Ann <{identity}@outside.test>"  # one for each mail, or all would be a loop
    head = f"{fields}From: {sender}\r\nTo: {to}\r\nSubject: {subject}\r\nMessage-ID: <{identity}@outside.test>\r\n"
    return f"{head}\r\n{body}\r\n".encode()


def with_picture(
    name: str, kind: str = "image/png", to: str = "info@mail.company-name.com", fields: str = "", html: str = ""
) -> bytes:
    """Return a mail whose HTML shows a picture that comes with it."""
    fields += 'MIME-Version: 1.0\r\nContent-Type: multipart/related; boundary="b"\r\n'
    text = f'--b\r\nContent-Type: text/html\r\n\r\n<p>Look: <img src="cid:a@b" alt="ours">{html}</p>\r\n'
    head = f"--b\r\nContent-Type: {kind}\r\nContent-ID: <a@b>\r\nContent-Transfer-Encoding: base64\r\n"
    return mail(name, to, fields=fields, body=f"{text}{head}\r\n{base64.b64encode(PICTURE).decode()}\r\n--b--")


def report_of(message_id: str, to: str) -> bytes:
    """Return a report that a mail of ours came back."""
    fields, body = (text.replace("\n", "\r\n") for text in (REPORT, REPORT_BODY.format(to=to, message_id=message_id)))
    return mail("came-back", "bounce@mail.company-name.com", "MAILER-DAEMON@mx.outside.test", fields, body)
