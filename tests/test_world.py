"""A dump has everything: what was written and sent, what came back, what is placed nowhere, each message as it came."""

import contextlib
import email
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from support.mail_database_server import Server, command
from support.mta import wait_until
from support.page import entered, form, mail, report_of
from support.smtp_sink import Sink, sink
from support.stores import NewStore

FILE = 'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="b"\r\n'
FILE_BODY = "--b\r\nContent-Type: text/plain\r\n\r\nsee the file\r\n"
FILE_BODY += "--b\r\nContent-Type: image/png; name=chair.png\r\nContent-Transfer-Encoding: base64\r\n\r\n{}\r\n--b--"
PICTURE = bytes(range(256)) * 4
ODD = b"X-Odd: \x00\x01\xe4\xff\r\n" + mail("odd", body="\xe4\r\n.\r\n")  # no UTF-8, and characters that no text has
CATCHALL = "catchall@mail.company-name.com"


@contextlib.contextmanager
def serving(url: str, mails: Sink | None = None) -> Iterator[Server]:
    options = ("--smtp", f"127.0.0.1:{mails.address[1]}") if mails else ()
    server = Server(url, *options)
    try:
        yield server
    finally:
        server.stop()


def write(server: Server, reader: requests.Session, record: int, text: str) -> None:
    page = f"{server.url}/records/crm.lead/{record}"
    reader.post(f"{page}/write", data=form(reader, page) | {"text": text})


def live(server: Server, mails: Sink) -> None:
    """Do on a server what leaves something of each kind."""
    reader = entered(server)
    picture = email.message.EmailMessage()
    picture.set_content(PICTURE, "image", "png")
    record = server.deliver(
        mail("asked", sender="Ann <ann@outside.test>", fields=FILE, body=FILE_BODY.format(picture.get_payload()))
    )
    server.deliver(ODD)
    write(server, reader, record, "They are red.")
    wait_until(lambda: len(mails.mails) == 1, "the mail")
    written = email.message_from_bytes(mails.mails[0][2])["Message-ID"]
    server.deliver(report_of(written, "ann@outside.test"))
    for name, code in ("refused", 550), ("waits", 451):
        mails.refused[f"{name}@outside.test"] = code
        write(server, reader, server.deliver(mail(name, sender=f"{name}@outside.test")), "hello")
    server.deliver(mail("caught", to=CATCHALL))
    server.deliver(mail("nowhere", to=CATCHALL, fields="Return-Path: <>\r\n", body="\xe4 lost"))
    reader.post(f"{server.url}/discuss", data=form(reader, f"{server.url}/discuss"))  # all is seen
    server.deliver(mail("fresh"))
    server.call("project.task", "unlink", [server.call("project.task", "create", {"name": "gone"})])
    wait_until(lambda: statuses(server.dump()) == ["bounce", "exception", "ready"], "what became of the mails")
    wait_until(lambda: len(mails.mails) == 2, "the notice")
    wait_until(lambda: [row["state"] for row in server.dump()["notices"]] == ["sent"], "its state")


def statuses(world: dict[str, Any]) -> list[str]:
    return [row["status"] for row in world["notifications"]]


@pytest.fixture(scope="module")
def dumped(new_store: NewStore) -> str:
    """What is printed of a database in which something of each kind has happened."""
    url = new_store()
    command(url, "load", "mail_database/example.json")
    with sink() as mails, serving(url, mails) as server:
        live(server, mails)
    return command(url, "dump")


def test_a_dump_has_something_of_each_kind(dumped: str) -> None:
    world = json.loads(dumped)
    kinds = [row["kind"] for row in world["messages"]]
    assert (kinds.count("comment"), kinds.count("email")) == (3, 5)
    assert [("original" in row) == (row["kind"] == "email") for row in world["messages"]] == [True] * 8
    assert [row["original"][-9:] for row in world["unplaced"]] == ["\xc3\xa4 lost\r\n"]
    assert [row["about"] for row in world["notices"]] == ["catchall"]
    assert world["parameters"]["mail_database.page.seen"] == str(world["messages"][-2]["id"])
    assert world["counters"]["project.task"] == 1
    assert [name for name, rows in world.items() if not rows] == ["followers", "allowed_senders"]


def test_what_is_dumped_and_loaded_is_dumped_as_it_was(new_store: NewStore, tmp_path: Path, dumped: str) -> None:
    for url in new_store(), f"sqlite:///{tmp_path / 'other.db'}":  # the same kind of store, and the smaller one
        command(url, "load", "/dev/stdin", text=dumped)
        assert command(url, "dump") == dumped


def test_a_loaded_database_goes_on_where_the_other_ended(new_store: NewStore, dumped: str) -> None:
    url = new_store()
    command(url, "load", "/dev/stdin", text=dumped)
    with sink() as mails, serving(url, mails) as server:
        wait_until(lambda: mails.mails, "what was waiting")
        assert [to for _, to, _ in mails.mails] == [["waits@outside.test"]]
        reader = entered(server)
        assert '<b class="alarm">2 failed</b>, <b>1 new</b>' in reader.get(f"{server.url}/").text
        messages = {row["subject"]: row for row in server.dump()["messages"]}
        record = messages["chairs asked"]["thread_id"]
        page = reader.get(f"{server.url}/records/crm.lead/{record}").text
        assert "ann@outside.test: It could not be delivered." in page
        assert reader.get(server.url + re.findall(r"/attachments/\d+", page)[0]).content == PICTURE
        odd = messages["chairs odd"]["id"]
        assert reader.get(f"{server.url}/messages/{odd}/original").content == ODD
        assert server.deliver(ODD) is False  # it is known
        answer = f"References: {messages['Re: chairs asked']['message_id']}\r\n"
        assert server.deliver(mail("answered", sender="Ann <ann@outside.test>", fields=answer)) == record
        unplaced = f"{server.url}{re.findall(r'/unplaced/[0-9]+', reader.get(f'{server.url}/unplaced').text)[0]}"
        fields = form(reader, unplaced) | {"model": "crm.lead", "record": str(record)}
        assert reader.post(f"{unplaced}/place", data=fields).url == f"{server.url}/records/crm.lead/{record}"
        assert server.call("project.task", "create", {"name": "the next"}) == 2  # the first one's id is not used again


RECORD = '{{"records": [{{"model": "crm.lead", "id": 1}}, {{"model": "crm.lead", "id": 2, {}}}]}}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RECORD.format('"partner_id": "x"'), "'partner_id' of an item of records can't be 'x'"),
        (RECORD.format('"bounce_count": 1.5'), "'bounce_count' of an item of records can't be 1.5"),
        (RECORD.format('"partner_id": true'), "'partner_id' of an item of records can't be True"),
        (RECORD.format('"name": 5'), "'name' of an item of records can't be 5"),
        (RECORD.format('"colour": "red"'), "an item of records has no 'colour'"),
        (RECORD.format('"partner_id": ' + "9" * 20), "OverflowError"),
        ('{"messages": [{"id": 1, "attachments": [{"size": "x"}]}]}', "'size' of an item of attachments can't be 'x'"),
        ("[" * 100_000, "RecursionError"),
    ],
)
def test_what_is_no_world_is_said_in_a_line_and_nothing_of_it_is_loaded(tmp_path: Path, text: str, said: str) -> None:
    store = f"sqlite:///{tmp_path / 'mail.db'}"
    empty = command(store, "dump")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        command(store, "load", "/dev/stdin", text=text)
    (line,) = failed.value.stderr.splitlines()
    assert line.startswith("mail_database: /dev/stdin is no world: ")
    assert said in line
    assert command(store, "dump") == empty
