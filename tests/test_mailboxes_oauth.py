"""Tokens of mailboxes: how they are got, kept and renewed, and what is said where that fails."""

import base64
import json
import logging
import os
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit
from urllib.request import Request, urlopen

import pytest
from support import authorization_server
from support.authorization_server import (
    BROKEN,
    CLIENT_ID,
    GARBAGE,
    HUGE,
    SECRET,
    Answer,
    AuthorizationServer,
    error,
    redirect,
)
from support.pages import page, rows_below

from mailgate.mailboxes import authorization, oauth

USER = "task@example.com"
TO_DO = "mail-gateway-mailboxes authorize task"
# Asks for a token so many times, after a word on its standard input, and prints each one.
ASKING = """
import json, sys
from mailgate.mailboxes import oauth
_, table, folder, count = sys.argv
grant = oauth.grant(json.loads(table), "imap")
sys.stdin.readline()
for _ in range(int(count)):
    print(oauth.access_token("task", grant, folder), flush=True)
"""


@pytest.fixture
def server() -> Iterator[AuthorizationServer]:
    with AuthorizationServer() as running:
        yield running


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited: in fact nobody waits."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


def table(server: AuthorizationServer, kind: str = "browser", **keys: str) -> dict[str, str]:
    """Return what the mailboxes file has of the server."""
    urls = {
        "authorization_url": server.authorization_url,
        "device_url": server.device_url,
        "token_url": server.token_url,
    }
    return {"kind": kind, "client_id": CLIENT_ID, "scope": "mail", **urls, **keys}


def grant(server: AuthorizationServer, kind: str = "browser", **keys: str) -> oauth.Grant:
    return oauth.grant(table(server, kind, **keys), "imap")


class Person:
    """Who sits at the terminal and at the browser."""

    def __init__(self, server: AuthorizationServer, user: str = USER, pasted: str | None = None) -> None:
        self.server, self.user, self.pasted, self.said = server, user, pasted, [""]

    def say(self, text: str) -> None:
        self.said.append(text)
        if found := re.search(r"enter (\w+),", text):
            self.server.approve(found[1], self.user)

    def ask(self, prompt: str) -> str:
        return self.server.sign_in(self.url, self.user) if self.pasted is None else self.pasted

    @property
    def url(self) -> str:
        return next(line for line in self.text.splitlines() if line.startswith(self.server.authorization_url))

    @property
    def text(self) -> str:
        return "\n".join(self.said)


def signed_in(server: AuthorizationServer, folder: Path, **keys: str) -> oauth.Grant:
    """Return the grant of the mailbox "task", whose user has signed in."""
    made, person = grant(server, **keys), Person(server)
    oauth.authorize("task", made, str(folder), person.say, person.ask)
    return made


def kept(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "task.token").read_text())
    return found


def change(folder: Path, **values: object) -> None:
    (folder / "task.token").write_text(json.dumps(kept(folder) | values))


def expire(folder: Path) -> None:
    change(folder, expires_at=int(time.time()) + 59)  # a second less than it must be valid


def is_clean(server: AuthorizationServer, text: str) -> bool:
    return not any(secret in text for secret in server.secrets)


# --- how a person gets the first ------------------------------------------------------------------------------


def test_a_person_enters_a_code_in_any_browser_and_a_file_of_ours_alone_is_there(
    server: AuthorizationServer, tmp_path: Path
) -> None:
    made, person = grant(server, "device"), Person(server)
    oauth.authorize("task", made, str(tmp_path), person.say, person.ask)
    assert server.posts("/device") == [{"client_id": CLIENT_ID, "scope": "mail"}]
    assert f"Open {server.url}/enter in any browser" in person.text
    assert person.said[-1].startswith("task is authorized.")
    assert is_clean(server, person.text)
    assert stat.S_IMODE((tmp_path / "task.token").stat().st_mode) == 0o600
    token = oauth.access_token("task", made, str(tmp_path))
    assert server.access[token][0] == USER
    assert len(server.posts()) == 1  # and it is not asked for a token again


def test_a_code_is_asked_for_as_often_as_the_server_wants(
    server: AuthorizationServer, tmp_path: Path, pauses: list[float]
) -> None:
    """RFC 8628, 3.5: 5 seconds more for slow_down, twice as long where there is no answer."""
    server.pause_seconds = 2
    server.answers = [None, error("authorization_pending"), error("slow_down"), BROKEN, error("authorization_pending")]
    person = Person(server)
    oauth.authorize("task", grant(server, "device"), str(tmp_path), person.say, person.ask)
    assert pauses == [2, 2, 7, 14, 14]
    assert "answers with HTTP status 500; trying again" in person.text


@pytest.mark.parametrize("code", ["access_denied", "authorization_declined", "expired_token", "invalid_grant"])
def test_a_code_that_was_refused_leaves_nothing(
    server: AuthorizationServer, tmp_path: Path, pauses: list[float], code: str
) -> None:
    server.answers = [None, error("authorization_pending"), error(code)]
    with pytest.raises(oauth.NotAuthorized, match=f"; .*{TO_DO} \\({code}\\)$"):
        oauth.authorize("task", grant(server, "device"), str(tmp_path), print, input)
    assert not (tmp_path / "task.token").exists()


def test_a_code_that_nobody_enters_is_given_up(
    server: AuthorizationServer, tmp_path: Path, pauses: list[float]
) -> None:
    server.code_seconds = 1
    with pytest.raises(oauth.NotAuthorized, match="nobody has entered the code in time"):
        oauth.authorize("task", grant(server, "device"), str(tmp_path), print, input)


def test_a_browser_on_another_machine_ends_at_an_address_that_is_pasted(
    server: AuthorizationServer, tmp_path: Path
) -> None:
    made, person = grant(server), Person(server)
    oauth.authorize("task", made, str(tmp_path), person.say, person.ask)
    asked = parse_qs(urlsplit(person.url).query)
    assert asked["redirect_uri"] == ["http://127.0.0.1:47113"]
    assert asked["code_challenge_method"] == ["S256"]
    assert len(asked["state"][0]) >= 43
    [posted] = server.posts()
    assert 43 <= len(posted["code_verifier"]) <= 128  # RFC 7636, 4.1
    assert is_clean(server, person.text)
    assert server.access[oauth.access_token("task", made, str(tmp_path))][0] == USER


@pytest.mark.parametrize(
    ("pasted", "said"),
    [
        ("", "that is not the address"),
        ("http://127.0.0.1:47113/", "that is not the address"),
        ("http://[", "that is not the address"),
        ("http://127.0.0.1:47113/?code=x&state=another", "that is not the address"),
        ("http://127.0.0.1:47113/?code=x&state=\udcff", "that is not the address"),
        ("?code=" + "&state=" * 10000, "that is not the address"),
    ],
)
def test_what_is_pasted_must_be_of_this_sign_in(
    server: AuthorizationServer, tmp_path: Path, pasted: str, said: str
) -> None:
    person = Person(server, pasted=pasted)
    with pytest.raises(oauth.NotAuthorized, match=said):
        oauth.authorize("task", grant(server), str(tmp_path), person.say, person.ask)
    assert server.posts() == []
    assert not (tmp_path / "task.token").exists()


def test_a_person_who_says_no_in_the_browser_is_understood(server: AuthorizationServer, tmp_path: Path) -> None:
    person = Person(server, user="")  # the server takes this for a no
    with pytest.raises(oauth.NotAuthorized, match="has said no"):
        oauth.authorize("task", grant(server), str(tmp_path), person.say, person.ask)


def test_who_gives_nothing_to_renew_a_token_is_named(server: AuthorizationServer, tmp_path: Path) -> None:
    server.more, server.seconds = {"refresh_token": None}, 30
    made, person = grant(server), Person(server)
    oauth.authorize("task", made, str(tmp_path), person.say, person.ask)
    assert "Is offline_access in the scope?" in person.said[-1]
    with pytest.raises(oauth.NotAuthorized, match="nothing to renew it came with it"):
        oauth.access_token("task", made, str(tmp_path))


def test_nobody_signs_in_for_what_cant_be_kept(server: AuthorizationServer, tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path / "public"):
        if folder.name == "public":
            folder.mkdir()
            folder.chmod(0o777)
        with pytest.raises(oauth.Unreachable, match=f"the token's file .*{folder.name}"):
            oauth.authorize("task", grant(server), str(folder), print, input)
    assert server.requests == []


def test_a_folder_that_goes_while_somebody_signs_in_is_named(server: AuthorizationServer, tmp_path: Path) -> None:
    folder, person = tmp_path / "kept", Person(server)
    folder.mkdir()

    def remove() -> Answer:
        shutil.rmtree(folder)
        return Answer(200, {"access_token": "x"})

    server.answers = [remove]
    with pytest.raises(oauth.Unreachable, match=r"the token's file can't be used: No such file or directory: .*kept"):
        oauth.authorize("task", grant(server), str(folder), person.say, person.ask)


# --- an application -------------------------------------------------------------------------------------------


@pytest.fixture
def secret_file(server: AuthorizationServer, tmp_path: Path) -> str:
    """The file of a client's secret, which the server knows."""
    server.clients[CLIENT_ID] = SECRET
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    return str(path)


def test_an_application_needs_no_person_and_no_file(
    server: AuthorizationServer, tmp_path: Path, secret_file: str
) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    made, person = grant(server, "application", client_secret_file=secret_file), Person(server)
    oauth.authorize("task", made, str(folder), person.say, person.ask)
    assert "nobody has to sign in" in person.text
    token = oauth.access_token("task", made, str(folder))
    assert server.posts()[-1] == {
        "grant_type": "client_credentials",
        "client_id": CLIENT_ID,
        "client_secret": SECRET,
        "scope": "mail",
    }
    assert oauth.access_token("task", made, str(folder)) == token
    assert oauth.access_token("task", made, str(folder), refused=token) != token
    assert [*folder.iterdir()] == []


def test_what_exchange_online_wants_once_is_said(server: AuthorizationServer, tmp_path: Path, secret_file: str) -> None:
    keys = {"provider": "microsoft", "tenant": "example.com", "client_secret_file": secret_file}
    person = Person(server)
    oauth.authorize("task", grant(server, "application", **keys), str(tmp_path), person.say, person.ask)
    assert "Add-MailboxPermission" in person.text


def test_a_secret_that_is_wrong_is_one_clear_line(
    server: AuthorizationServer, tmp_path: Path, secret_file: str
) -> None:
    server.clients[CLIENT_ID] = "another one"
    with pytest.raises(oauth.NotAuthorized) as raised:
        oauth.access_token("task", grant(server, "application", client_secret_file=secret_file), str(tmp_path))
    assert str(raised.value) == (
        "client_id or client_secret_file is wrong, or the secret has expired; put it right, then: "
        "mail-gateway-mailboxes authorize task (invalid_client, AADSTS7000215)"
    )


# --- renewing -------------------------------------------------------------------------------------------------


def test_a_token_is_renewed_a_minute_before_its_end_and_what_renews_it_next_is_kept(
    server: AuthorizationServer, tmp_path: Path
) -> None:
    made = signed_in(server, tmp_path)
    first = kept(tmp_path)
    change(tmp_path, expires_at=int(time.time()) + 65)
    assert oauth.access_token("task", made, str(tmp_path)) == first["access_token"]
    tokens = {first["access_token"]}
    for _ in range(3):
        expire(tmp_path)
        tokens.add(oauth.access_token("task", made, str(tmp_path)))
        assert list(server.refresh) == [kept(tmp_path)["refresh_token"]]
    assert len(tokens) == 4
    assert stat.S_IMODE((tmp_path / "task.token").stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["task.token", "task.token.lock"]


@pytest.mark.parametrize(
    ("more", "seconds"),
    [
        ({"expires_in": "3599"}, 3599),
        ({"expires_in": 3599.0}, 3599),
        ({"expires_in": None}, 300),
        ({"expires_in": 10**30}, 10**9),
    ],
)
def test_how_long_a_token_is_valid_may_be_said_in_many_ways(
    server: AuthorizationServer, tmp_path: Path, more: dict[str, Any], seconds: int
) -> None:
    server.more = more
    signed_in(server, tmp_path)
    assert kept(tmp_path)["expires_at"] - kept(tmp_path)["issued_at"] == seconds


def test_where_no_new_refresh_token_comes_the_old_one_stays(server: AuthorizationServer, tmp_path: Path) -> None:
    made = signed_in(server, tmp_path)
    before = kept(tmp_path)["refresh_token"]
    for more in ({"refresh_token": None}, {"refresh_token": ""}):
        expire(tmp_path)
        server.answers = [Answer(200, {"access_token": f"new{more}", "expires_in": 3600, **more})]
        assert oauth.access_token("task", made, str(tmp_path)) == f"new{more}"
        assert kept(tmp_path)["refresh_token"] == before


def test_a_token_is_renewed_where_the_clock_was_put_back_since_it_came(
    server: AuthorizationServer, tmp_path: Path
) -> None:
    made = signed_in(server, tmp_path)
    year = 365 * 86400
    change(tmp_path, issued_at=int(time.time()) + year, expires_at=int(time.time()) + year + 3600)
    oauth.access_token("task", made, str(tmp_path))
    assert [form["grant_type"] for form in server.posts()] == ["authorization_code", "refresh_token"]
    assert abs(kept(tmp_path)["issued_at"] - time.time()) < 60


def test_a_token_that_the_mail_server_refuses_is_renewed_once(server: AuthorizationServer, tmp_path: Path) -> None:
    made = signed_in(server, tmp_path)
    refused = oauth.access_token("task", made, str(tmp_path))
    tokens = {oauth.access_token("task", made, str(tmp_path), refused=refused) for _ in range(3)}
    assert len(tokens) == 1
    assert tokens != {refused}


def test_threads_that_ask_at_once_renew_it_once(server: AuthorizationServer, tmp_path: Path) -> None:
    made = signed_in(server, tmp_path)
    expire(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        tokens = {*pool.map(lambda _: oauth.access_token("task", made, str(tmp_path)), range(8))}
    assert len(tokens) == 1
    assert len(server.posts()) == 2


def asking(server: AuthorizationServer, folder: Path, count: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", ASKING, json.dumps(table(server)), str(folder), str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_processes_that_ask_at_once_renew_it_once_and_lose_no_refresh_token(
    server: AuthorizationServer, tmp_path: Path
) -> None:
    """The server takes who uses a refresh token twice for a thief: one mistake, and nothing is valid any more."""
    signed_in(server, tmp_path)
    for seconds, count in ((3600, 1), (30, 10)):  # renewed once for all, and at each call
        before = len(server.posts())
        expire(tmp_path)
        server.seconds = seconds
        processes = [asking(server, tmp_path, count) for _ in range(4)]
        for process in processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        printed = [process.communicate(timeout=60)[0].split() for process in processes]
        assert [process.returncode for process in processes] == [0] * 4
        assert all(len(tokens) == count for tokens in printed)
        assert len(server.posts()) - before == (1 if count == 1 else 4 * count)
    assert list(server.refresh) == [kept(tmp_path)["refresh_token"]]


def test_a_process_that_is_killed_while_the_server_thinks_loses_nothing(
    server: AuthorizationServer, tmp_path: Path
) -> None:
    made = signed_in(server, tmp_path)
    for _ in range(3):
        expire(tmp_path)
        with asking(server, tmp_path, 1) as process:

            def kill(process: "subprocess.Popen[str]" = process) -> Answer:
                process.kill()
                process.wait()
                return BROKEN

            server.answers = [kill]
            assert process.communicate("go\n", timeout=60) == ("", None)
        assert oauth.access_token("task", made, str(tmp_path)) == kept(tmp_path)["access_token"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["task.token", "task.token.lock"]


def test_a_process_that_is_killed_at_any_time_leaves_a_whole_file(server: AuthorizationServer, tmp_path: Path) -> None:
    """Between the server's answer and the disk a new refresh token is nowhere: only a server that forgives helps."""
    server.forgives, server.seconds = True, 30
    made = signed_in(server, tmp_path)
    for count in range(1, 13):
        with asking(server, tmp_path, 1000) as process:
            assert process.stdin
            assert process.stdout
            process.stdin.write("go\n")
            process.stdin.flush()
            for _ in range(count):
                process.stdout.readline()
            threading.Event().wait(count * 0.0007)  # to be killed at another point each time
            process.kill()
        assert kept(tmp_path)["refresh_token"]
        assert oauth.access_token("task", made, str(tmp_path)) in server.access
        assert {path.name for path in tmp_path.iterdir()} <= {"task.token", "task.token.lock"}


def test_a_full_disk_is_found_before_the_refresh_token_is_used(server: AuthorizationServer, tmp_path: Path) -> None:
    made = signed_in(server, tmp_path)
    expire(tmp_path)
    before = (kept(tmp_path), len(server.requests))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(oauth.Unreachable, match="the token's file can't be used: File too large"):
            oauth.access_token("task", made, str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (kept(tmp_path), len(server.requests)) == before
    assert not (tmp_path / "task.token.new").exists()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let Ctrl-C interrupt: the processes of pytest-xdist ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> Answer:
    os.kill(os.getpid(), signal.SIGINT)
    return BROKEN


@pytest.mark.usefixtures("interruptible")
def test_control_c_leaves_what_was_there(server: AuthorizationServer, tmp_path: Path) -> None:
    made = signed_in(server, tmp_path)
    expire(tmp_path)
    before = kept(tmp_path)
    server.answers = [interrupt]
    with pytest.raises(KeyboardInterrupt):
        oauth.access_token("task", made, str(tmp_path))
    assert kept(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"task.token", "task.token.lock"}


@pytest.mark.usefixtures("interruptible")
def test_control_c_while_somebody_signs_in_leaves_nothing(
    server: AuthorizationServer, tmp_path: Path, pauses: list[float]
) -> None:
    server.answers = [None, interrupt]
    with pytest.raises(KeyboardInterrupt):
        oauth.authorize("task", grant(server, "device"), str(tmp_path), print, input)
    assert {path.name for path in tmp_path.iterdir()} == {"task.token.lock"}


# --- what is refused ------------------------------------------------------------------------------------------


def test_without_a_token_it_is_said_what_to_do(server: AuthorizationServer, tmp_path: Path) -> None:
    with pytest.raises(oauth.NotAuthorized) as raised:
        oauth.access_token("task", grant(server), str(tmp_path))
    assert str(raised.value) == f"there is no token yet; sign in: {TO_DO}"


def test_a_user_who_was_revoked_must_sign_in_again_and_can(server: AuthorizationServer, tmp_path: Path) -> None:
    made = signed_in(server, tmp_path)
    server.revoke(USER)
    token = oauth.access_token("task", made, str(tmp_path))  # nobody has told us yet
    with pytest.raises(oauth.NotAuthorized) as raised:
        oauth.access_token("task", made, str(tmp_path), refused=token)
    assert str(raised.value) == (
        f"the token was revoked or has expired; sign in again: {TO_DO} (invalid_grant, AADSTS700082)"
    )
    signed_in(server, tmp_path)
    assert oauth.access_token("task", made, str(tmp_path)) in server.access


@pytest.mark.parametrize(
    ("code", "description", "said"),
    [
        ("invalid_grant", "AADSTS50173: revoked", f"sign in again: {TO_DO} (invalid_grant, AADSTS50173)"),
        ("interaction_required", "AADSTS50076: MFA", f"a new sign-in: {TO_DO} (interaction_required, AADSTS50076)"),
        ("invalid_client", "", f"put it right, then: {TO_DO} (invalid_client)"),
        ("unauthorized_client", "AADSTS700016", f"registration, then: {TO_DO} (unauthorized_client, AADSTS700016)"),
        ("invalid_scope", "", f"this scope; put it right, then: {TO_DO} (invalid_scope)"),
        ("a_code_of_another_world", "\x1b[2J\nAADSTS123", f"registered there, then: {TO_DO} (AADSTS123)"),
        ([], {}, f"registered there, then: {TO_DO}"),
    ],
)
@pytest.mark.parametrize("status", [200, 400, 401])
def test_each_refusal_is_one_line_that_says_what_to_do(
    server: AuthorizationServer, tmp_path: Path, status: int, code: object, description: object, said: str
) -> None:
    made = signed_in(server, tmp_path)
    expire(tmp_path)
    before = kept(tmp_path)
    server.answers = [Answer(status, {"error": code, "error_description": description})]
    with pytest.raises(oauth.NotAuthorized) as raised:
        oauth.access_token("task", made, str(tmp_path))
    assert str(raised.value).endswith(said)
    assert str(raised.value).isprintable()
    assert kept(tmp_path) == before


def test_the_page_has_each_line() -> None:
    lines = [cells[0].strip("`") for cells in rows_below(page("docs/mailboxes-oauth.md"), "the line")]
    assert {*authorization.REFUSALS.values(), authorization.OTHER_REFUSAL} <= {*lines}


def nested() -> bytes:
    return b'{"a":' + b"[" * 60000


ODD = {
    "500": (BROKEN, "answers with HTTP status 500"),
    "503 in HTML": (Answer(503, b"<h1>busy</h1>"), "answers with HTTP status 503, and no JSON"),
    "too many requests": (error("slow_down", status=429), "answers with HTTP status 429"),
    "garbage": (GARBAGE, "answers with HTTP status 200, and no JSON"),
    "a missing page": (Answer(404, b"nothing here"), "answers with HTTP status 404, and no JSON"),
    "10 MB": (HUGE, "answers with HTTP status 200, and no JSON"),
    "64 KiB and a byte": (Answer(200, b'{"access_token": "x"}'.ljust(2**16 + 1)), "and no JSON"),
    "nothing": (Answer(200, b""), "and no JSON"),
    "a list": (Answer(200, b"[1]"), "and no JSON"),
    "a deep one": (Answer(200, nested()), "and no JSON"),
    "gzip": (Answer(200, b"\x1f\x8b", (("Content-Encoding", "gzip"),)), "and no JSON"),
    "no token": (Answer(200, {}), "has no token now"),
    "no text": (Answer(200, {"access_token": 5}), "answers what can't be understood"),
    "an empty one": (Answer(200, {"access_token": ""}), "answers what can't be understood"),
    "null": (Answer(200, {"access_token": None}), "answers what can't be understood"),
    "a time that is none": (Answer(200, {"access_token": "x", "expires_in": "soon"}), "can't be understood"),
    "an endless time": (Answer(200, b'{"access_token": "x", "expires_in": 1e999}'), "can't be understood"),
    "a scope that is none": (Answer(200, {"access_token": "x", "scope": 7}), "can't be understood"),
    "a refresh token that is none": (Answer(200, {"access_token": "x", "refresh_token": [1]}), "can't be understood"),
    "an error that is none": (Answer(400, {"error": None}), "answers what can't be understood"),
    "busy": (error("temporarily_unavailable"), "has no token now (temporarily_unavailable)"),
}


@pytest.mark.parametrize("what", ODD)
def test_whatever_the_server_answers_a_later_try_succeeds(
    server: AuthorizationServer, tmp_path: Path, what: str
) -> None:
    answer, said = ODD[what]
    made = signed_in(server, tmp_path)
    expire(tmp_path)
    before = kept(tmp_path)
    server.answers = [answer]
    with pytest.raises(oauth.Unreachable) as raised:
        oauth.access_token("task", made, str(tmp_path))
    assert said in str(raised.value)
    assert kept(tmp_path) == before
    assert oauth.access_token("task", made, str(tmp_path)) in server.access


@pytest.mark.parametrize("what", ["500", "garbage", "10 MB", "a list", "a missing page", "no text"])
def test_whatever_the_server_answers_to_who_wants_a_code_is_said(
    server: AuthorizationServer, tmp_path: Path, what: str
) -> None:
    server.answers = [ODD[what][0]]
    with pytest.raises(oauth.Unreachable):
        oauth.authorize("task", grant(server, "device"), str(tmp_path), print, input)


def test_no_more_is_read_than_an_answer_may_have(server: AuthorizationServer, tmp_path: Path) -> None:
    made = signed_in(server, tmp_path)
    expire(tmp_path)
    server.answers = [HUGE]
    with pytest.raises(oauth.Unreachable):
        oauth.access_token("task", made, str(tmp_path))
    assert server.cut_off.acquire(timeout=10)


def test_a_redirect_is_not_followed(server: AuthorizationServer, tmp_path: Path) -> None:
    made = signed_in(server, tmp_path)
    with AuthorizationServer() as elsewhere:
        for url in (elsewhere.token_url, server.token_url):
            expire(tmp_path)
            server.answers = [redirect(url)]
            with pytest.raises(oauth.Unreachable, match="answers with HTTP status 307"):
                oauth.access_token("task", made, str(tmp_path))
        assert elsewhere.requests == []


def test_who_is_not_there_is_named_with_the_reason(
    server: AuthorizationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = signed_in(server, tmp_path)
    expire(tmp_path)
    gone = threading.Event()
    monkeypatch.setattr(authorization, "READ_SECONDS", 0.2)
    server.answers = [lambda: (gone.wait(30), BROKEN)[1]]
    with pytest.raises(oauth.Unreachable, match=r"^127\.0\.0\.1: no answer in time$"):
        oauth.access_token("task", made, str(tmp_path))
    gone.set()
    server.close()
    with pytest.raises(oauth.Unreachable, match=r"^127\.0\.0\.1: Connection refused$"):
        oauth.access_token("task", made, str(tmp_path))


def test_who_hangs_up_is_named(server: AuthorizationServer, tmp_path: Path) -> None:
    signed_in(server, tmp_path)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        change(tmp_path, expires_at=0, token_url=url)
        with pytest.raises(oauth.Unreachable, match=r"^127\.0\.0\.1: no answer \(ConnectionError\)$"):
            oauth.access_token("task", grant(server, token_url=url), str(tmp_path))


def test_a_certificate_must_verify(tmp_path: Path) -> None:
    public, private = tmp_path / "public.pem", tmp_path / "private.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", private, "-out", public],
        check=True, capture_output=True,
    )  # fmt: skip
    private.write_bytes(private.read_bytes() + public.read_bytes())
    with AuthorizationServer(private) as server:
        server.clients[CLIENT_ID] = "x"
        (tmp_path / "secret").write_text("x")
        (tmp_path / "secret").chmod(0o600)
        keys = {"client_secret_file": str(tmp_path / "secret")}
        with pytest.raises(oauth.Unreachable, match="certificate verify failed: self-signed certificate"):
            oauth.access_token("task", grant(server, "application", **keys), str(tmp_path))
        assert server.requests == []
        made = grant(server, "application", **keys, ca_file=str(public))
        assert oauth.access_token("task", made, str(tmp_path)) in server.access
        public.unlink()
        with pytest.raises(oauth.Unreachable, match=r"no answer \(OSError\)"):
            oauth.access_token("task", made, str(tmp_path), refused=next(iter(server.access)))


def test_neither_a_proxy_nor_a_netrc_of_the_environment_counts(
    server: AuthorizationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    signed_in(server, tmp_path)


# --- the file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: file.chmod(0o640), "can be read by others"),
        (lambda file: file.chmod(0o604), "can be read by others"),
        (lambda file: file.chmod(0o620), "can be written by others"),
        (lambda file: file.write_text(""), "is damaged"),
        (lambda file: file.write_text("[1]"), "is damaged"),
        (lambda file: file.write_text("{}"), "is damaged"),
        (lambda file: file.write_text("[" * 100_000), "is damaged"),
        (lambda file: file.write_bytes(b"\xff"), "is damaged"),
        (lambda file: change(file.parent, access_token=""), "is damaged"),
        (lambda file: change(file.parent, expires_at="tomorrow"), "is damaged"),
        (lambda file: change(file.parent, refresh_token=None), "is damaged"),
        (lambda file: change(file.parent, client_id="another"), "came for another client_id"),
        (lambda file: change(file.parent, token_url="https://login.example.org/"), "came for another client_id"),
    ],
)
def test_a_file_that_is_not_ours_alone_or_damaged_is_not_used_and_a_new_sign_in_replaces_it(
    server: AuthorizationServer, tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    made = signed_in(server, tmp_path)
    spoil(tmp_path / "task.token")
    with pytest.raises(oauth.NotAuthorized, match=f"{said}.*: {TO_DO}$"):
        oauth.access_token("task", made, str(tmp_path))
    assert len(server.posts()) == 1
    signed_in(server, tmp_path)
    assert oauth.access_token("task", made, str(tmp_path)) in server.access
    assert stat.S_IMODE((tmp_path / "task.token").stat().st_mode) == 0o600


def test_a_folder_that_others_can_write_is_refused(server: AuthorizationServer, tmp_path: Path) -> None:
    made = signed_in(server, tmp_path)
    tmp_path.chmod(0o777)
    with pytest.raises(oauth.NotAuthorized, match="stands in a folder that can be written by others"):
        oauth.access_token("task", made, str(tmp_path))


def test_a_file_is_of_ours_alone_whatever_the_umask(server: AuthorizationServer, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        signed_in(server, tmp_path)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


# --- secrets --------------------------------------------------------------------------------------------------


def echo(server: AuthorizationServer) -> Answer:
    """Return an answer that repeats what was sent, and more."""
    form = server.requests[-1][1]
    sent = " ".join([*form.values(), urlencode(form), *server.secrets])
    return Answer(400, {"error": form["refresh_token"], "error_description": sent, "error_uri": sent})


def test_no_secret_is_in_any_text(
    server: AuthorizationServer, tmp_path: Path, secret_file: str, caplog: pytest.LogCaptureFixture, pauses: list[float]
) -> None:
    caplog.set_level(logging.DEBUG)
    person = Person(server)
    keys = {"client_secret_file": secret_file}
    texts = []
    for kind in ("browser", "device", "application"):
        made = grant(server, kind, **keys)
        texts.append(repr(made))
        oauth.authorize("task", made, str(tmp_path), person.say, person.ask)
    made = signed_in(server, tmp_path, **keys)
    for answer in (None, *(answer for answer, _ in ODD.values())):
        expire(tmp_path)
        server.answers = [answer or (lambda: echo(server))]
        try:
            oauth.access_token("task", made, str(tmp_path))
        except (oauth.NotAuthorized, oauth.Unreachable) as raised:
            texts += [repr(raised), *traceback.format_exception(raised)]
    assert len(texts) > 2 * len(ODD)
    texts += [*person.said, caplog.text]
    assert "POST /token" in caplog.text
    assert [text for text in texts if not is_clean(server, text)] == []


# --- the key of the mailboxes file ----------------------------------------------------------------------------


def test_what_is_known_of_microsoft_and_google(tmp_path: Path) -> None:
    """Their documentation has it, see PROVIDERS."""
    secret = tmp_path / "secret"
    secret.write_text("hush")
    secret.chmod(0o600)
    microsoft = {"provider": "microsoft", "client_id": "id"}
    found = oauth.grant(microsoft, "imap")
    assert (found.kind, found.scope) == ("device", "offline_access https://outlook.office.com/IMAP.AccessAsUser.All")
    assert found.device_url == "https://login.microsoftonline.com/organizations/oauth2/v2.0/devicecode"
    found = oauth.grant({**microsoft, "tenant": "example.com", "kind": "browser"}, "pop3")
    assert found.scope == "offline_access https://outlook.office.com/POP.AccessAsUser.All"
    assert found.authorization_url == "https://login.microsoftonline.com/example.com/oauth2/v2.0/authorize"
    assert found.redirect_url == "http://localhost:47113"
    keys = {"tenant": "example.com", "kind": "application", "client_secret_file": str(secret)}
    found = oauth.grant({**microsoft, **keys}, "imap")
    assert (found.scope, found.client_secret) == ("https://outlook.office365.com/.default", "hush")
    assert "hush" not in repr(found)
    found = oauth.grant({"provider": "google", "client_id": "id", "client_secret_file": str(secret)}, "imap")
    assert (found.kind, found.scope) == ("browser", "https://mail.google.com/")
    assert dict(found.options) == {"access_type": "offline", "prompt": "consent"}


def test_a_secret_may_be_one_of_systemds_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mail").write_text("hush\n")
    (tmp_path / "mail").chmod(0o400)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    keys = {"provider": "google", "client_id": "id", "client_secret_file": "mail"}
    assert oauth.grant(keys, "imap").client_secret == "hush"


URL = "https://login.example.com/token"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("microsoft", 'must be a table, with the client_id: { provider = "microsoft", client_id = "..." }'),
        ("google", 'must be a table, with the client_id: { provider = "google", client_id = "..." }'),
        ("a secret", 'must be a table, with the client_id: { provider = "microsoft", client_id = "..." }'),
        (["a secret"], 'must be a table, with the client_id: { provider = "microsoft", client_id = "..." }'),
        ({}, "client_id is missing; token_url is missing; device_url is missing"),
        ({"provider": "yahoo"}, 'provider must be "microsoft" or "google", or left out'),
        ({"provider": "microsoft"}, "client_id is missing"),
        ({"provider": "google", "client_id": "a secret"}, "client_secret_file is missing"),
        ({"provider": "google", "client_id": "a secret", "kind": "device"}, "kind must be browser"),
        (
            {"provider": "microsoft", "client_id": "x", "kind": "password"},
            "kind must be device or browser or application",
        ),
        (
            {"provider": "microsoft", "client_id": "x", "kind": "application"},
            "client_secret_file is missing; tenant is missing: an application belongs to one directory",
        ),
        ({"client_secret": "a secret", "client_id": 5}, "client_secret is not known; client_id must be a text"),
        ({"client_id": "x", "token_url": URL, "kind": "browser"}, "authorization_url is missing"),
        (
            {"client_id": "x", "token_url": "http://login.example.com", "device_url": URL},
            "token_url must be https, for it leads to another host",
        ),
        (
            {"client_id": "x", "token_url": "https://me:secret@example.com", "device_url": "ftp://example.com"},
            "device_url is not a URL like https://login.example.com/token; "
            "token_url is not a URL like https://login.example.com/token",
        ),
        (
            {"client_id": "x", "token_url": URL, "device_url": "http://[", "client_secret_file": "/none/secret"},
            "device_url is not a URL like https://login.example.com/token; "
            "client_secret_file can't be used: No such file or directory: /none/secret",
        ),
    ],
)
def test_what_is_wrong_with_the_table_is_said_with_the_name_of_its_key(value: object, said: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 the text is compared
        oauth.grant(value, "imap")
    assert str(raised.value) == said


# --- what others need -----------------------------------------------------------------------------------------


def test_pop3_is_answered_as_the_documentation_has_it() -> None:
    """Microsoft Learn: "Authenticate an IMAP, POP or SMTP connection using OAuth"."""
    answer = oauth.xoauth2("test@contoso.onmicrosoft.com", "EwBAAl3BAAUFFpUAo7J3Ve0bjLBWZWCclRC3EoAA")
    assert answer == (
        b"dXNlcj10ZXN0QGNvbnRvc28ub25taWNyb3NvZnQuY29tAWF1dGg9QmVhcmVy"
        b"IEV3QkFBbDNCQUFVRkZwVUFvN0ozVmUwYmpMQldaV0NjbFJDM0VvQUEBAQ=="
    )
    assert b"\n" not in oauth.xoauth2(USER, "x" * 5000)
    assert base64.b64decode(oauth.xoauth2("ü@example.com", "t")) == "user=ü@example.com\1auth=Bearer t\1\1".encode()


def test_the_server_tells_a_mail_server_whose_token_it_is(server: AuthorizationServer, tmp_path: Path) -> None:
    """In each of the ways in which Dovecot asks."""
    token = oauth.access_token("task", signed_in(server, tmp_path), str(tmp_path))
    url = server.introspection_url

    def whose() -> list[str]:
        asked: list[Any] = [
            Request(url, urlencode({"token": token}).encode()),
            Request(url, headers={"Authorization": f"Bearer {token}"}),
            f"{url}?token={token}",
        ]
        answers = []
        for request in asked:
            with urlopen(request) as answer:
                answers.append(json.load(answer).get("username"))
        return answers

    assert whose() == [USER] * 3
    server.revoke(USER)
    assert whose() == [None] * 3


def test_the_server_gives_a_code_to_nobody_but_its_own_client(server: AuthorizationServer, tmp_path: Path) -> None:
    person = Person(server)
    oauth.authorize("task", grant(server), str(tmp_path), person.say, person.ask)
    [posted] = server.posts()
    for change_ in ({"code_verifier": "x" * 43}, {"redirect_uri": "http://127.0.0.1:1"}, {}):
        code = parse_qs(urlsplit(server.sign_in(person.url, USER)).query)["code"][0]
        form = {**posted, **change_, **({"code": code} if change_ else {})}  # the last one is used already
        assert (
            server.answer("/token", form).body
            == authorization_server.error(
                "invalid_grant", "PKCE" if "code_verifier" in change_ else "the code is none"
            ).body
        )
