"""The database in a browser, over HTTP: who may look, what each page says, and what it lets a browser do."""

import base64
import email
import email.policy
import functools
import html
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import sqlalchemy as sa
from flask.testing import FlaskClient
from support.mail_database_server import PASSWORD, Server
from support.mta import wait_until
from support.page import PICTURE, entered, form, mail, report_of, served, served_with_gateway, visitor, with_picture
from support.smtp_sink import sink
from werkzeug.test import TestResponse

from mail_database.page.text import framed
from mail_database.store import open_database

FRAME = "/messages/1/text"
PATHS = ("/", "/records/crm.lead", "/records/crm.lead/1", FRAME, "/attachments/1", "/discuss", "/unplaced")
FILE = 'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="b"\r\n'
FILE_BODY = "--b\r\nContent-Type: text/plain\r\n\r\nhello\r\n"
FILE_BODY += '--b\r\nContent-Type: {type}; name="{name}"\r\n\r\n{content}\r\n--b--'
HTML = "MIME-Version: 1.0\r\nContent-Type: text/html\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A database with one record, on which a mail with a file is."""
    with served(tmp_path_factory.mktemp("page")) as server:
        part = FILE_BODY.format(type="text/html", name="../offer.html", content="<script>alert(1)</script>")
        server.deliver(mail("file", fields=FILE, body=part))
        yield server


@pytest.fixture
def reader(server: Server) -> requests.Session:
    """Somebody who has logged in."""
    return entered(server)


# --- who may look ---


def test_no_page_is_shown_to_who_has_not_logged_in(server: Server) -> None:
    asked = set(PATHS) | {"/records/crm.lead/99", "/unplaced/1", "/messages/99/text"}
    for path in asked:
        answer = requests.get(server.url + path, allow_redirects=False)
        assert answer.status_code == 302, path
        assert urllib.parse.urlsplit(answer.headers["Location"]).path == "/login"
        assert "chairs" not in answer.text


def answers(client: FlaskClient) -> dict[tuple[str, str], TestResponse]:
    """Return what each page answers, by its path and the method by which it is asked, without a form's token."""
    found = {}
    pages = client.application.url_map.bind("localhost")
    for rule in pages.map.iter_rules():
        path = pages.build(rule.endpoint, dict.fromkeys(rule.arguments, 1))
        for method in {"GET", "POST"} & (rule.methods or set()):
            found[path, method] = client.open(path, method=method)
    return found


def test_every_page_but_three_is_behind_the_login() -> None:
    client = visitor(sa.create_engine("sqlite://"))  # without a table: nothing is read for who has not logged in
    with client.session_transaction() as session:
        session.clear()
    guarded = {"GET": (302, "/login?next="), "POST": (403, "")}
    found = {
        (path, method)
        for (path, method), answer in answers(client).items()
        if (answer.status_code, answer.headers.get("Location", "")[:12]) != guarded[method]
    }
    assert found == {("/login", "GET"), ("/login", "POST"), ("/enter/1", "GET"), ("/static/1", "GET")}


def test_every_form_needs_the_token_of_its_session() -> None:
    found = answers(visitor(open_database("sqlite://")))
    posted = {path: answer.status_code for (path, method), answer in found.items() if method == "POST"}
    assert len(posted) >= 10
    assert set(posted.values()) == {400}, posted


@pytest.mark.parametrize(
    ("login", "password"), [("admin", "wrong"), ("admin", ""), ("ann", PASSWORD), ("", PASSWORD), ("ädmin", "\0")]
)
def test_a_wrong_login_is_refused(server: Server, login: str, password: str) -> None:
    visitor = requests.Session()
    fields = form(visitor, f"{server.url}/login") | {"login": login, "password": password}
    answer = visitor.post(f"{server.url}/login", data=fields)
    assert answer.status_code == 403
    assert "That is not the login" in answer.text
    assert visitor.get(f"{server.url}/records/crm.lead", allow_redirects=False).status_code == 302


@pytest.mark.parametrize(
    "path", ["https://evil.test/", "//evil.test/", "/\\evil.test", "javascript:alert(1)", "/\nLocation: x", "evil"]
)
def test_a_login_leads_to_no_other_site(server: Server, path: str) -> None:
    visitor = requests.Session()
    url = f"{server.url}/login?next={urllib.parse.quote(path)}"
    fields = form(visitor, url) | {"login": "admin", "password": PASSWORD}
    assert visitor.post(url, data=fields, allow_redirects=False).headers["Location"] == "/"


def test_the_printed_link_lets_in_once(tmp_path: Path) -> None:
    server = Server(f"sqlite:///{tmp_path / 'mail.db'}")
    try:
        assert server.process.stdout
        link = server.process.stdout.readline().split()[-1]
        visitor = requests.Session()
        assert visitor.get(link).status_code == 200
        assert visitor.get(f"{server.url}/discuss", allow_redirects=False).status_code == 200
        for later in link, link[:-1], f"{server.url}/enter/x":
            answer = requests.get(later, allow_redirects=False)
            assert answer.headers["Location"] == "/login"
            assert "Set-Cookie" not in answer.headers
    finally:
        server.stop()


def test_a_session_is_a_new_one_after_the_login(server: Server) -> None:
    visitor = requests.Session()
    fields = form(visitor, f"{server.url}/login")
    planted = visitor.cookies["mail_database"]
    visitor.post(f"{server.url}/login", data=fields | {"login": "admin", "password": PASSWORD})
    assert visitor.cookies["mail_database"] != planted
    answer = requests.get(f"{server.url}/", cookies={"mail_database": planted}, allow_redirects=False)
    assert answer.status_code == 302
    assert visitor.post(f"{server.url}/logout", data=fields).status_code == 400  # its token has been seen by another
    assert visitor.get(f"{server.url}/", allow_redirects=False).status_code == 200


def test_a_session_ends_with_the_logout(server: Server, reader: requests.Session) -> None:
    assert reader.post(f"{server.url}/logout", data=form(reader, f"{server.url}/")).status_code == 200
    assert reader.get(f"{server.url}/", allow_redirects=False).status_code == 302


def test_no_other_site_can_use_a_session(server: Server, reader: requests.Session) -> None:
    cookie = next(iter(reader.cookies))
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.get_nonstandard_attr("SameSite") == "Strict"
    for data in {}, {"csrf_token": "x"}, form(requests.Session(), f"{server.url}/login"):
        assert reader.post(f"{server.url}/logout", data=data).status_code == 400
    assert reader.get(f"{server.url}/", allow_redirects=False).status_code == 200
    assert requests.post(f"{server.url}/logout", allow_redirects=False).status_code == 403


# --- what a browser is let do ---


@pytest.mark.parametrize("path", [*PATHS, "/login", "/nothing", "/static/page.css"])
def test_every_answer_binds_the_browser(server: Server, reader: requests.Session, path: str) -> None:
    headers = reader.get(server.url + path).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == ("SAMEORIGIN" if path == FRAME else "DENY")
    assert headers["Cache-Control"] == "no-store" or path.startswith("/static/")
    if path == FRAME:
        assert policy.startswith("sandbox ")
        assert "allow-scripts" not in policy
        assert "allow-forms" not in policy
        assert "allow-top-navigation" not in policy


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "text/javascript", "application/pdf", "x"])
def test_a_file_is_saved_and_never_opened(server: Server, reader: requests.Session, kind: str) -> None:
    number = server.deliver(
        mail(kind, fields=FILE, body=FILE_BODY.format(type=kind, name=f"../{kind}\\..%2f", content="<svg/onload=x>"))
    )
    page = reader.get(f"{server.url}/records/crm.lead/{number}").text
    answer = reader.get(server.url + re.findall(r"/attachments/\d+", page)[0])
    assert answer.content == b"<svg/onload=x>"
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"].startswith("attachment")
    assert not re.search(r"[/\\]", answer.headers["Content-Disposition"])
    assert answer.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"


@pytest.mark.parametrize(
    "path",
    [
        *("/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "//etc/passwd", "/static//etc/passwd"),
        *("/records/crm.lead/0", "/records/crm.lead/-1", f"/records/crm.lead/{10**30}", "/records/crm.lead/1%00"),
        *("/records/ir.model", "/records/..", "/messages/1/../../login/", "/attachments/1.5", "/attachments/99999"),
        *("/unplaced/99999", "/messages/99999/text", "/\0", "/%ff%fe"),
    ],
)
def test_a_path_that_is_none_is_not_there(server: Server, path: str) -> None:
    reader = entered(server)
    url = urllib.parse.urlsplit(server.url)
    prepared = requests.Request("GET", server.url, cookies=reader.cookies).prepare()
    prepared.url = f"http://{url.netloc}{path}"  # as it stands
    answer = requests.Session().send(prepared, allow_redirects=False)
    assert answer.status_code in (400, 404), answer.status_code
    assert "Traceback" not in answer.text


def test_pages_of_anything_else_begin_at_the_newest(server: Server, reader: requests.Session) -> None:
    first = reader.get(f"{server.url}/records/crm.lead").text
    for before in "x", "-1", "1e9", "", "9" * 30, "١":
        assert reader.get(f"{server.url}/records/crm.lead", params={"before": before}).text.count("<li>") == (
            first.count("<li>")
        )


# --- what the pages say ---


def test_records_are_paged_the_newest_first(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        for number in range(1, 54):
            server.call("crm.lead", "create", {"name": f"chairs {number}"})
        reader = entered(server)
        page = reader.get(f"{server.url}/records/crm.lead").text
        assert re.findall(r">chairs (\d+)<", page) == [str(number) for number in range(53, 3, -1)]
        older = re.findall(r'href="(\?before=\d+)">Older', page)
        page = reader.get(f"{server.url}/records/crm.lead{older[0]}").text
        assert re.findall(r">chairs (\d+)<", page) == ["3", "2", "1"]
        assert "Older" not in page


def test_a_record_has_its_fields_and_its_chatter(server: Server, reader: requests.Session) -> None:
    number = server.deliver(mail("first", sender="Bob <bob@outside.test>"))
    server.deliver(mail("second", sender="Eve <eve@outside.test>", fields="References: <first@outside.test>\r\n"))
    page = reader.get(f"{server.url}/records/crm.lead/{number}").text
    assert "<h1>chairs first</h1>" in page
    assert "<dt>type</dt><dd>lead</dd>" in page
    assert page.index("eve@outside.test") < page.index('<h3 id="message') + 200
    assert page.count("<iframe") == 2


def test_an_internal_note_is_marked_and_no_other_message(server: Server, reader: requests.Session) -> None:
    number = server.deliver(mail("noted"))
    note = {"model": "crm.lead", "res_id": number, "email_from": "dora@mail.company-name.com", "is_internal": True}
    server.call("mail.message", "create", note | {"message_id": "<note@outside.test>", "body": "<p>He pays late.</p>"})
    page = reader.get(f"{server.url}/records/crm.lead/{number}").text
    assert re.findall(r'<article id="article-\d+"( class="note")?', page) == [' class="note"', ""]
    assert re.findall(r"<h3[^>]*>(.*)</h3>", page) == [
        "dora@mail.company-name.com <em>(internal note)</em>",
        "&#34;Ann&#34; &lt;noted@outside.test&gt;",
    ]


def test_a_message_is_saved_as_it_came(server: Server, reader: requests.Session) -> None:
    raw = mail("as-it-came", fields="X-Odd: \x01\r\n", body="\xe4\r\n.\r\n" * 1000)
    page = f"{server.url}/records/crm.lead/{server.deliver(raw)}"
    answer = reader.get(server.url + re.findall(r"/messages/\d+/original", reader.get(page).text)[0])
    assert answer.content == raw
    assert answer.headers["Content-Disposition"].startswith("attachment")
    server.call("crm.lead", "unlink", [int(page.rpartition("/")[2])])
    assert reader.get(answer.url).status_code == 404


def test_a_message_of_ours_that_came_back_shows_for_whom_and_why(server: Server, reader: requests.Session) -> None:
    number = server.deliver(mail("ours", sender="Dan <dan@outside.test>"))
    partners = server.search("res.partner", [("email", "=", "dan@outside.test")], "id")
    partner = (
        partners[0]["id"]
        if partners
        else server.call("res.partner", "create", {"name": "D", "email": "dan@outside.test"})
    )
    message = server.search("mail.message", [("message_id", "=", "<ours@outside.test>")], "id")[0]["id"]
    for reason in "550 no <such> user", False:
        server.call(
            "mail.notification",
            "create",
            {
                "mail_message_id": message,
                "res_partner_id": partner,
                "notification_status": "bounce",
                "failure_reason": reason,
            },
        )
    for path in f"/records/crm.lead/{number}", "/discuss":
        page = reader.get(server.url + path).text
        assert "dan@outside.test: 550 no &lt;such&gt; user" in page
        assert "dan@outside.test: no error" in page
        assert '<b class="alarm">2 failed</b>' in page


def test_what_is_new_is_counted_until_it_was_looked_at(server: Server, reader: requests.Session) -> None:
    page = f"{server.url}/discuss"
    reader.post(page, data=form(reader, page))
    assert "0 new" in reader.get(page).text
    number = server.deliver(mail("new <one>"))
    for path in "/", "/discuss":
        assert "1 new" in reader.get(server.url + path).text
    assert f'/records/crm.lead/{number}">chairs new &lt;one&gt;</a>' in reader.get(page).text
    assert "0 new" in reader.post(page, data=form(reader, page)).text


def test_what_is_placed_nowhere_is_listed_with_its_reason_and_can_be_saved(
    server: Server, reader: requests.Session
) -> None:
    raw = mail("nowhere", to="catchall@mail.company-name.com", fields="Return-Path: <>\r\n")
    server.deliver(raw)
    page = reader.get(f"{server.url}/unplaced").text
    assert "chairs nowhere" in page
    assert "there is no sender to be told" in page
    place = server.url + re.findall(r"/unplaced/\d+", page)[0]
    assert "there is no sender to be told" in reader.get(place).text
    assert "Forty chairs" in reader.get(f"{place}/text").text
    answer = reader.get(f"{place}/original")
    assert answer.content == raw
    assert answer.headers["Content-Disposition"].startswith("attachment")


def unplaced(server: Server, reader: requests.Session, name: str) -> str:
    """Return the page of a message that is placed nowhere."""
    server.deliver(mail(name, to="catchall@mail.company-name.com", fields="Return-Path: <>\r\n"))
    return server.url + re.findall(r"/unplaced/\d+", reader.get(f"{server.url}/unplaced").text)[0]


def test_what_is_placed_nowhere_is_put_on_a_record_or_made_one(server: Server, reader: requests.Session) -> None:
    number = server.deliver(mail("known"))
    for name, record in ("put", str(number)), ("made", ""):
        place = unplaced(server, reader, name)
        fields = form(reader, place) | {"model": "crm.lead", "record": record}
        answer = reader.post(f"{place}/place", data=fields)
        assert answer.status_code == 200
        found = server.search("mail.message", [("message_id", "=", f"<{name}@outside.test>")], "model", "res_id")
        assert [row["model"] for row in found] == ["crm.lead"]
        assert (found[0]["res_id"] == number) == (name == "put")
        assert answer.url == f"{server.url}/records/crm.lead/{found[0]['res_id']}"
        assert reader.get(place).status_code == 404
        again = reader.post(f"{place}/place", data=fields)
        assert again.url == f"{server.url}/unplaced"
        assert len(server.search("mail.message", [("message_id", "=", f"<{name}@outside.test>")], "id")) == 1
        assert server.deliver(mail(name)) is False  # it is known, as before


@pytest.mark.parametrize(
    ("model", "record"),
    [("crm.lead", "99999"), ("crm.lead", "x"), ("crm.lead", "-1"), ("crm.lead", "9" * 30), ("ir.model", "1"), ("", "")],
)
def test_a_record_that_is_not_there_takes_nothing(
    server: Server, reader: requests.Session, model: str, record: str
) -> None:
    place = unplaced(server, reader, f"wrong{model}{record}")
    answer = reader.post(f"{place}/place", data=form(reader, place) | {"model": model, "record": record})
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text
    assert reader.get(place).status_code == 200


def test_pictures_from_elsewhere_wait_until_they_are_asked_for(server: Server, reader: requests.Session) -> None:
    body = '<p>Hi</p><img src="https://evil.test/x.png"><img src="cid:a@b">'
    number = server.deliver(mail("pictures", fields=HTML, body=body))
    page = reader.get(f"{server.url}/records/crm.lead/{number}").text
    frame = server.url + re.findall(r"/messages/\d+/text", page)[0]
    answer = reader.get(frame)
    assert "evil.test" not in answer.text
    assert "Show 1 picture from elsewhere" in answer.text
    assert "http:" not in answer.headers["Content-Security-Policy"]
    asked = reader.get(f"{frame}?pictures=1")
    assert '<img src="https://evil.test/x.png">' in asked.text
    assert "cid:" not in asked.text


@pytest.mark.parametrize(("kind", "is_shown"), [("image/png", True), ("image/svg+xml", False), ("text/html", False)])
def test_a_picture_that_a_mail_has_with_it_is_shown(
    server: Server, reader: requests.Session, kind: str, is_shown: bool
) -> None:
    picture = f"data:{kind};base64,{base64.b64encode(PICTURE).decode()}"
    number = server.deliver(with_picture(f"inline-{kind}", kind))
    page = reader.get(f"{server.url}/records/crm.lead/{number}").text
    assert (picture in reader.get(server.url + re.findall(r"/messages/\d+/text", page)[0]).text) == is_shown
    server.deliver(with_picture(f"lost-{kind}", kind, "catchall@mail.company-name.com", "Return-Path: <>\r\n"))
    place = server.url + re.findall(r"/unplaced/\d+", reader.get(f"{server.url}/unplaced").text)[0]
    assert (picture in reader.get(f"{place}/text").text) == is_shown


@pytest.mark.parametrize(
    ("body", "own"),
    [
        ("Yes\n\nOn Monday Ann wrote:\n> old\n\n> older\n", "Yes"),
        ("Ja\n\nAm 1.1. schrieb Ann:\n\n> alt\n", "Ja"),
        ("Ok\n-----Original Message-----\nFrom: Ann\nSent: today\nTo: Bob\n\nold\n", "Ok"),
        ("Ok\n________________________________\nVon: Ann\nGesendet: heute\nAn: Bob\n\nalt\n", "Ok"),
        ("Ok\n\nFrom: Ann <ann@outside.test>\nSent: today\nTo: Bob\n\nold\n", "Ok"),
        ("> all\n> of it\n", None),
        ("one\n> quoted\nand my answer\n", None),
        ("Name: Ann\nTown: Bern\nChairs: 40\n", None),
    ],
)
def test_quotes_are_folded(server: Server, reader: requests.Session, body: str, own: str | None) -> None:
    number = server.deliver(mail(f"quote{abs(hash(body))}", body=body.replace("\n", "\r\n")))
    page = reader.get(f"{server.url}/records/crm.lead/{number}").text
    text = reader.get(server.url + re.findall(r"/messages/\d+/text", page)[0]).text
    assert (f"<pre>{own}" in text.partition("<details>")[0]) if own else "<details>" not in text
    assert ("<details>" in text) == bool(own)


def test_the_quote_of_html_is_folded_once(server: Server, reader: requests.Session) -> None:
    body = "<p>Yes</p><blockquote>old<blockquote>older</blockquote></blockquote>"
    number = server.deliver(mail("quoted-html", fields=HTML, body=body))
    page = reader.get(f"{server.url}/records/crm.lead/{number}").text
    text = reader.get(server.url + re.findall(r"/messages/\d+/text", page)[0]).text
    assert text.count("<details>") == text.count("</details>") == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("At https://a.example/?x=1&y=2.", 'At <a href="https://a.example/?x=1&amp;y=2" {}>https://a.example/?x=1&amp;y=2</a>.'),
        ("(HTTP://A.example/b)", '(<a href="HTTP://A.example/b" {}>HTTP://A.example/b</a>)'),
        ('http://a.example/"onclick="x', '<a href="http://a.example/" {}>http://a.example/</a>&quot;onclick=&quot;x'),
        ("<https://a.example/>", '&lt;<a href="https://a.example/" {}>https://a.example/</a>&gt;'),
        ("https://a.example/'x", '<a href="https://a.example/&#x27;x" {}>https://a.example/&#x27;x</a>'),
        ("javascript://a.example/%0Ax", "javascript://a.example/%0Ax"),
        ("https://... xhttps://a.example", "https://... xhttps://a.example"),
    ],
)  # fmt: skip
def test_a_link_in_plain_text_opens_elsewhere(text: str, shown: str) -> None:
    expected = shown.format('target="_blank" rel="noopener noreferrer"')
    assert framed(f"<pre>{html.escape(text)}</pre>\n", {}, False).html == f"<pre>{expected}</pre>"


# --- what is written ---


def test_what_is_written_goes_to_whom_it_concerns_and_the_answer_comes_back(tmp_path: Path) -> None:
    with sink() as mails, served(tmp_path, "--smtp", f"127.0.0.1:{mails.address[1]}") as server:
        reader = entered(server)
        number = server.deliver(mail("asked", sender='"Meyer, Ann" <ann@outside.test>'))
        page = f"{server.url}/records/crm.lead/{number}"
        follower = server.call("res.partner", "create", {"name": "Bob", "email": "bob@outside.test"})
        server.call("mail.followers", "create", {"res_model": "crm.lead", "res_id": number, "partner_id": follower})
        fields = form(reader, page) | {"text": "They are <red>.\r\n\r\nAdmin"}
        assert reader.post(f"{page}/write", data=fields).url == page
        wait_until(lambda: len(mails.mails) == 2, "two mails")
        found = {to[0]: email.message_from_bytes(data, policy=email.policy.default) for _, to, data in mails.mails}
        assert {sender for sender, _, _ in mails.mails} == {"bounce@mail.company-name.com"}
        assert found.keys() == {"ann@outside.test", "bob@outside.test"}
        to_ann = found["ann@outside.test"]
        assert to_ann["From"] == "Administrator <admin@mail.company-name.com>"
        assert to_ann["To"] == '"Meyer, Ann" <ann@outside.test>'
        assert to_ann["Subject"] == "Re: chairs asked"
        assert to_ann["Reply-To"] == "info@mail.company-name.com"
        assert to_ann["References"].split() == ["<asked@outside.test>", to_ann["Message-ID"]]
        assert "They are &lt;red&gt;." in to_ann.get_content()
        assert found["bob@outside.test"]["Message-ID"] == to_ann["Message-ID"]
        wait_until(
            lambda: told_of(server, str(to_ann["Message-ID"])) == dict.fromkeys(found, "sent"), "the notifications"
        )

        answer = f"References: {to_ann['Message-ID']}\r\n"
        assert server.deliver(mail("answered", sender="Ann <ann@outside.test>", fields=answer)) == number
        server.deliver(report_of(to_ann["Message-ID"], "bob@outside.test"))
        assert "bob@outside.test: It could not be delivered." in reader.get(page).text
        assert '<b class="alarm">1 failed</b>' in reader.get(page).text


def told_of(server: Server, message_id: str) -> dict[str, str]:
    """Return the state of each notification of a message, by the recipient's address."""
    message = server.search("mail.message", [("message_id", "=", message_id)], "id")[0]["id"]
    rows = server.search(
        "mail.notification", [("mail_message_id", "=", message)], "res_partner_id", "notification_status"
    )
    partners = server.search("res.partner", [("id", "in", [row["res_partner_id"] for row in rows])], "email")
    address = {row["id"]: row["email"] for row in partners}
    return {address[row["res_partner_id"]]: row["notification_status"] for row in rows}


def test_answers_go_to_the_catchall_where_the_model_has_no_alias_and_name_the_thread(tmp_path: Path) -> None:
    with sink() as mails, served(tmp_path, "--smtp", f"127.0.0.1:{mails.address[1]}") as server:
        reader = entered(server)
        carl = server.search("res.partner", [("email", "=", "carl@customer.example")], "id")[0]["id"]
        page = f"{server.url}/records/res.partner/{carl}"
        written: list[str] = []
        for number in 1, 2:
            reader.post(f"{page}/write", data=form(reader, page) | {"text": "Are you there?"})
            wait_until(lambda: len(mails.mails) == number, "the mail")  # noqa: B023  # it is called here alone
            sender, to, data = mails.mails[-1]
            found = email.message_from_bytes(data, policy=email.policy.default)
            assert (sender, to) == ("bounce@mail.company-name.com", ["carl@customer.example"])
            assert found["Reply-To"] == "catchall@mail.company-name.com"
            written.append(found["Message-ID"])
            assert found["References"].split() == written
            answer = mail(
                f"back-{number}", found["Reply-To"], "Carl <carl@customer.example>", f"In-Reply-To: {written[-1]}\r\n"
            )
            assert server.deliver(answer) == carl
            written.append(f"<back-{number}@outside.test>")
        assert reader.get(page).text.count("<article") == 4


def shows(reader: requests.Session, page: str, word: str) -> bool:
    return word in reader.get(page).text


def test_what_a_mail_server_refuses_has_failed_and_what_it_can_not_take_now_waits(tmp_path: Path) -> None:
    with sink() as mails:
        mails.refused = {"ann@outside.test": 550, "bob@outside.test": 451}
        with served(tmp_path, "--smtp", f"127.0.0.1:{mails.address[1]}") as server:
            reader = entered(server)
            for name in "ann", "bob":
                number = server.deliver(mail(name, sender=f"{name} <{name}@outside.test>"))
                page = f"{server.url}/records/crm.lead/{number}"
                reader.post(f"{page}/write", data=form(reader, page) | {"text": "hello"})
                word = {"ann": "ann@outside.test: 550 no", "bob": "It waits for a mail server."}[name]
                wait_until(functools.partial(shows, reader, page, word), word)
            mails.refused.clear()
            wait_until(lambda: len(mails.mails) == 1, "what waited")
            wait_until(lambda: "It waits" not in reader.get(page).text, "its note")


def test_nothing_is_written_on_a_record_that_is_not_there(server: Server, reader: requests.Session) -> None:
    before = server.search("mail.message", [], "id")
    fields = form(reader, f"{server.url}/")
    for path, text in ("crm.lead/99999", "x"), ("ir.model/1", "x"), ("crm.lead/1", " \r\n "):
        answer = reader.post(f"{server.url}/records/{path}/write", data=fields | {"text": text})
        assert answer.status_code == (404 if text == "x" else 200)
    assert server.search("mail.message", [], "id") == before


# --- what is set up ---


def test_the_set_up_is_for_who_asks_for_it(server: Server, reader: requests.Session) -> None:
    assert "Set-up" not in reader.get(f"{server.url}/").text
    for path in "/setup/", "/setup/aliases", "/setup/aliases/1":
        assert reader.get(server.url + path).status_code == 404
    fields = form(reader, f"{server.url}/")
    for path in "/setup/aliases/0", "/setup/parameters":
        assert reader.post(server.url + path, data=fields).status_code == 404
    assert reader.post(f"{server.url}/developer", data=fields).url == f"{server.url}/setup/"
    reader.post(f"{server.url}/developer", data=fields)
    assert reader.get(f"{server.url}/setup/").status_code == 404


@pytest.fixture
def developer(server: Server, reader: requests.Session) -> requests.Session:
    reader.post(f"{server.url}/developer", data=form(reader, f"{server.url}/"))
    return reader


ALIAS = {
    "alias_name": "Jobs",
    "alias_domain": "mail.company-name.com",
    "alias_model": "project.task",
    "alias_defaults": "{'name': 'An application'}",
    "alias_contact": "everyone",
    "alias_incoming_local": "on",
}


def test_an_alias_that_is_made_takes_mail_at_once(server: Server, developer: requests.Session) -> None:
    page = f"{server.url}/setup/aliases/0"
    assert developer.post(page, data=form(developer, page) | ALIAS).url == f"{server.url}/setup/"
    number = server.deliver(mail("applied", to="jobs@mail.company-name.com"))
    assert server.search("project.task", [("id", "=", number)], "name") == [{"id": number, "name": "An application"}]
    found = re.findall(r"/setup/aliases/(\d+)\">jobs<", developer.get(f"{server.url}/setup/").text)
    page = f"{server.url}/setup/aliases/{found[0]}"
    shown = developer.get(page).text
    assert "<option selected>project.task</option>" in shown
    assert 'name="alias_incoming_local" checked' in shown
    changed = ALIAS | {"alias_name": "work", "alias_defaults": ""}
    del changed["alias_incoming_local"]
    developer.post(page, data=form(developer, page) | changed)
    alias = server.search("mail.alias", [("id", "=", int(found[0]))], "alias_name", "alias_incoming_local")[0]
    assert (alias["alias_name"], alias["alias_incoming_local"]) == ("work", False)
    developer.post(page, data=form(developer, page) | {"delete": ""})
    assert server.search("mail.alias", [("id", "=", int(found[0]))], "id") == []
    assert developer.get(page).status_code == 404


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("aliases", ALIAS | {"alias_defaults": "import os"}),
        ("domains", {"name": "mail.company-name.com", "catchall_alias": "a", "bounce_alias": "b"}),
        # an address is an alias, or the domain's catchall or bounce
        ("aliases", ALIAS | {"alias_name": "Catchall"}),
        ("aliases", ALIAS | {"alias_name": "bounce"}),
        ("domains/1", {"name": "mail.company-name.com", "catchall_alias": "Info", "bounce_alias": "bounce"}),
        ("domains/1", {"name": "mail.company-name.com", "catchall_alias": "catchall", "bounce_alias": "support"}),
    ],
)
def test_what_is_wrong_is_said_at_the_form_and_not_saved(
    server: Server, developer: requests.Session, section: str, values: dict[str, str]
) -> None:
    before = server.dump()
    page = f"{server.url}/setup/{section}" + ("" if "/" in section else "/0")
    answer = developer.post(page, data=form(developer, page) | values)
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text
    assert server.dump() == before


def test_domains_companies_partners_and_parameters_are_set(server: Server, developer: requests.Session) -> None:
    for section, values in {
        "domains": {"name": "Second.example", "catchall_alias": "replies", "bounce_alias": "returns"},
        "companies": {"name": "Second", "email": "office@second.example", "alias_domain": "mail.company-name.com"},
        "partners": {"name": "Zoe", "email": "zoe@outside.test", "active": "on"},
    }.items():
        page = f"{server.url}/setup/{section}/0"
        assert developer.post(page, data=form(developer, page) | values).url == f"{server.url}/setup/"
        assert (values["name"] in developer.get(f"{server.url}/setup/").text) or section == "domains"
    assert server.search("res.partner", [("email", "=", "zoe@outside.test")], "name")[0]["name"] == "Zoe"
    fields = form(developer, f"{server.url}/setup/") | {"mail.gateway.loop.threshold": "3"}
    developer.post(f"{server.url}/setup/parameters", data=fields)
    assert server.call("ir.config_parameter", "get_param", "mail.gateway.loop.threshold") == "3"
    fields |= {"mail.gateway.loop.threshold": "", "mail.catchall.domain.allowed": " , "}
    assert developer.post(f"{server.url}/setup/parameters", data=fields).status_code == 422
    assert server.call("ir.config_parameter", "get_param", "mail.gateway.loop.threshold") == "3"
    fields |= {"mail.catchall.domain.allowed": ""}
    developer.post(f"{server.url}/setup/parameters", data=fields)
    assert server.call("ir.config_parameter", "get_param", "mail.gateway.loop.threshold") is False
    for path in "nothing/0", "aliases/99999":
        assert developer.get(f"{server.url}/setup/{path}").status_code == 404


def test_a_long_list_of_the_set_up_is_paged(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        for number in range(1, 54):
            server.call("mail.alias", "create", {"alias_name": f"alias{number}", "alias_model": "crm.lead"})
        reader = entered(server)
        page = reader.post(f"{server.url}/developer", data=form(reader, f"{server.url}/")).text
        assert re.findall(r">alias(\d+)<", page) == [str(number) for number in range(53, 3, -1)]
        link = re.findall(r'href="([^"]+)">All aliases<', page)[0]
        page = reader.get(server.url + link).text
        assert re.findall(r">alias(\d+)<", page) == [str(number) for number in range(53, 3, -1)]
        older = re.findall(r'href="(\?before=\d+)">Older', page)[0]
        assert re.findall(r">alias(\d+)<", reader.get(server.url + link + older).text) == ["3", "2", "1"]
        assert "All partners" not in page
        assert reader.get(f"{server.url}/setup/nothing").status_code == 404


# --- what is tried ---


@pytest.fixture(scope="module")
def trying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A database that knows a gateway, whose settings lead to it."""
    with served_with_gateway(tmp_path_factory.mktemp("try")) as server:
        yield server


def tried(server: Server, raw: bytes, *recipients: str, sender: str = "ann@outside.test", as_file: bool = False) -> str:
    reader = entered(server)
    fields = form(reader, f"{server.url}/try/") | {"sender": sender, "recipients": " ".join(recipients)}
    files = {"file": ("mail.eml", raw)} if as_file else {"file": ("", b"")}
    fields["message"] = "" if as_file else raw.decode()
    answer = reader.post(f"{server.url}/try/", data=fields, files=files)
    assert answer.status_code == 200
    return html.unescape(answer.text)


def test_a_mail_that_is_tried_goes_through_the_gateway(trying: Server) -> None:
    page = tried(trying, mail("tried"), "info@mail.company-name.com", "x@elsewhere.test")
    assert "2.0.0 delivered" in page
    assert "exit status 0" in page
    assert "Return-Path: <ann@outside.test>" in page
    number = trying.search("crm.lead", [("name", "=", "chairs tried")], "id")[0]["id"]
    assert f'/records/crm.lead/{number}">chairs tried</a>' in page
    page = tried(trying, mail("stranger"), "nobody@elsewhere.test")
    assert "exit status 67" in page
    assert "nothing new in the database" in page
    page = tried(trying, mail("caught", to="catchall@mail.company-name.com"), "catchall@mail.company-name.com")
    assert re.search(r"ann@outside.test is told \(catchall\): .* \(it waits for a mail server\)", page)
    page = tried(
        trying, mail("silent", to="catchall@mail.company-name.com"), "catchall@mail.company-name.com", sender=""
    )
    assert "placed nowhere" in page


def test_what_becomes_of_a_mail_that_was_tried_is_told_as_it_happens(trying: Server) -> None:
    page = tried(trying, mail("live"), "info@mail.company-name.com")
    live = trying.url + re.findall(r'data-live="(/try/became[^"]+)"', page)[0]
    reader = entered(trying)
    assert re.findall(r">(chairs [^<]+)</a>", reader.get(live).text) == ["chairs live"]
    trying.deliver(mail("answer-to-live", fields="In-Reply-To: <live@outside.test>\r\n"))
    assert re.findall(r">(chairs [^<]+)</a>", reader.get(live).text) == ["chairs answer-to-live", "chairs live"]
    assert reader.get(live, params={"messages": "x"}).status_code == 200


def test_a_large_file_is_tried_by_who_has_logged_in_alone(trying: Server) -> None:
    raw = mail("large", body="\xff" * 3_000_000)
    assert "2.0.0 delivered" in tried(trying, raw, "info@mail.company-name.com", as_file=True)
    number = trying.search("crm.lead", [("name", "=", "chairs large")], "id")[0]["id"]
    page = entered(trying).get(f"{trying.url}/records/crm.lead/{number}").text
    assert (
        entered(trying)
        .get(trying.url + re.findall(r"/messages/\d+/original", page)[0])
        .content.endswith(raw[-2_000_000:])
    )
    answer = requests.post(f"{trying.url}/try/", files={"file": ("mail.eml", raw)}, allow_redirects=False)
    assert answer.status_code == 403


@pytest.mark.parametrize("recipients", ["", " ", "a@b.test\0", " ".join(["a@b.test"] * 101)])
def test_what_can_not_be_tried_is_said(trying: Server, recipients: str) -> None:
    reader = entered(trying)
    fields = form(reader, f"{trying.url}/try/") | {"sender": "", "recipients": recipients, "message": "x"}
    answer = reader.post(f"{trying.url}/try/", data=fields)
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text


def test_without_a_gateway_the_page_says_how_to_name_one(server: Server, reader: requests.Session) -> None:
    assert "--gateway" in reader.get(f"{server.url}/try/").text
    assert reader.post(f"{server.url}/try/", data=form(reader, f"{server.url}/")).status_code == 422
