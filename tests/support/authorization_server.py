"""An authorization server on loopback: it plays what Microsoft, Google and others do, and every accident.

    with AuthorizationServer() as server:
        server.device_url, server.authorization_url, server.token_url, server.introspection_url

People are names. Each of them signs in where a test says so: approve() for a code on a device, sign_in() for a browser.
A refresh token is good once: the next one comes with the token. Whoever uses the one before it has stolen it, and
loses all that came of it (RFC 9700, 4.14.2); ``forgives`` lets it pass, as Microsoft's server does.

Dovecot's oauth2 passdb asks introspection_url (RFC 7662) in any of its modes: "post", "auth", and "get" (where its URL
ends in ?token=). The user's name is in ``username`` and in ``email``.
"""

import base64
import gzip
import hashlib
import json
import secrets
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

CLIENT_ID, SECRET = "gateway", "a client's secret"
DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"
Form = dict[str, str]


class Answer(NamedTuple):
    """What is answered over HTTP; ``body`` is a JSON object, or the bytes themselves."""

    status: int
    body: dict[str, Any] | bytes
    headers: tuple[tuple[str, str], ...] = ()


def error(code: str, description: str = "", status: int = 400) -> Answer:
    """Return an answer that refuses (RFC 6749, 5.2)."""
    return Answer(status, {"error": code, "error_description": description})


GARBAGE = Answer(200, b"<html>Sign in to the wireless network</html>")
BROKEN = Answer(500, {"error": "server_error"})
HUGE = Answer(200, b'{"access_token": "' + b"x" * 10 * 2**20 + b'"}')


def redirect(url: str) -> Answer:
    """Return an answer that sends the client elsewhere, with what it has posted."""
    return Answer(307, {}, (("Location", url),))


class Waiting(NamedTuple):
    """A code that a person has to enter, or a browser has brought back."""

    form: Form
    user: str = ""
    refusal: str = ""


class AuthorizationServer:
    """The server. ``answers`` are given first, one for each request at token_url and device_url.

    An answer that is None is the usual one; one that is a function is called before it is given.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        self.clients = {CLIENT_ID: ""}  # with their secrets; "" for a public one
        self.answers: list[Answer | Callable[[], Answer] | None] = []
        self.requests: list[tuple[str, Form]] = []
        self.more: dict[str, Any] = {}  # that is in every token's answer, or in the place of what is there
        self.seconds = 3600  # that a token is valid
        self.pause_seconds = 1  # between two questions of a device
        self.code_seconds = 900  # that a device's code is valid
        self.forgives = False
        self.application_user = ""  # whose mailbox an application opens
        self.waiting: dict[str, Waiting] = {}  # by device_code or code
        self.access: dict[str, tuple[str, float]] = {}  # by token: the user, and until when
        self.refresh: dict[str, str] = {}  # by the token that is good: the user
        self.used: dict[str, str] = {}  # by the token that was: the user
        self.cut_off = threading.Semaphore(0)  # released by each answer of which the client wants no more
        self.lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: _Handler(self, *args))
        self._http.daemon_threads = True
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self._http.server_address[1]}"
        self.token_url, self.device_url = f"{self.url}/token", f"{self.url}/device"
        self.authorization_url, self.introspection_url = f"{self.url}/authorize", f"{self.url}/introspect"
        self._thread = threading.Thread(target=self._http.serve_forever, args=[0.05], daemon=True)
        self._thread.start()

    def __enter__(self) -> "AuthorizationServer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    # --- what people do ---

    def approve(self, user_code: str, user: str) -> None:
        """Let a person enter a device's code, and sign in."""
        self._decide(user_code, user=user)

    def deny(self, user_code: str, code: str = "access_denied") -> None:
        """Let a person enter a device's code, and say no."""
        self._decide(user_code, refusal=code)

    def _decide(self, user_code: str, user: str = "", refusal: str = "") -> None:
        with self.lock:
            [device_code] = [
                code for code, waiting in self.waiting.items() if waiting.form.get("user_code") == user_code
            ]
            self.waiting[device_code] = self.waiting[device_code]._replace(user=user, refusal=refusal)

    def sign_in(self, url: str, user: str) -> str:
        """Return where the browser of a person ends who opens an authorization URL; "" is one who says no there."""
        parts = urlsplit(f"{url}&{urlencode({'user': user})}")
        with closing(HTTPConnection(parts.netloc)) as connection:
            connection.request("GET", f"{parts.path}?{parts.query}")
            return str(connection.getresponse().headers["Location"])

    def revoke(self, user: str) -> None:
        """Let nothing that a person has signed in for be valid any more."""
        with self.lock:
            for tokens in (self.refresh, self.used):
                for token in [token for token, owner in tokens.items() if owner == user]:
                    del tokens[token]
            self.access = {token: found for token, found in self.access.items() if found[0] != user}

    def posts(self, path: str = "/token") -> list[Form]:
        """Return the forms that were posted there."""
        return [form for asked, form in self.requests if asked == path]

    @property
    def secrets(self) -> set[str]:
        """What may stand in no text: every token and code that was given, and the secrets of the clients."""
        codes = {*self.waiting, *self.refresh, *self.used, *self.access}
        verifiers = {form["code_verifier"] for form in self.posts() if "code_verifier" in form}
        return codes | verifiers | {secret for secret in self.clients.values() if secret}

    # --- what it answers ---

    def answer(self, path: str, form: Form) -> Answer:
        """Return what a request gets."""
        with self.lock:
            self.requests.append((path, form))
            planned = self.answers.pop(0) if self.answers and path in ("/token", "/device") else None
        if planned:
            return planned() if callable(planned) else planned
        routes = {"/token": self._token, "/device": self._device, "/authorize": self._authorize}
        routes["/introspect"] = self._introspect
        with self.lock:
            return routes[path](form) if path in routes else Answer(404, b"nothing here")

    def _refused_client(self, form: Form) -> Answer | None:
        client_id = form.get("client_id", "")
        if self.clients.get(client_id) == form.get("client_secret", ""):
            return None
        return error("invalid_client", f"AADSTS7000215: Invalid client secret {form.get('client_secret')!r}", 401)

    def _device(self, form: Form) -> Answer:
        if form.get("client_id") not in self.clients:
            return error("unauthorized_client", "AADSTS700016: no such application")
        device_code, user_code = _random(), secrets.token_hex(4).upper()
        until = str(time.monotonic() + self.code_seconds)
        self.waiting[device_code] = Waiting({**form, "user_code": user_code, "until": until})
        answer = {"device_code": device_code, "user_code": user_code, "verification_uri": f"{self.url}/enter"}
        return Answer(200, {**answer, "expires_in": self.code_seconds, "interval": self.pause_seconds})

    def _authorize(self, form: Form) -> Answer:
        assert form["response_type"] == "code"
        assert form["code_challenge_method"] == "S256"
        state = {"state": form["state"]}
        if not form.get("user"):
            back = {"error": "access_denied", **state}
        else:
            code = _random()
            self.waiting[code] = Waiting(form, form["user"])
            back = {"code": code, **state}
        return Answer(302, b"", (("Location", f"{form['redirect_uri']}?{urlencode(back)}"),))

    def _token(self, form: Form) -> Answer:
        if refused := self._refused_client(form):
            return refused
        grants = {
            DEVICE_CODE: self._of_device,
            "authorization_code": self._of_code,
            "refresh_token": self._refreshed,
            "client_credentials": lambda form: self._given(self.application_user, is_renewable=False),
        }
        kind = form.get("grant_type", "")
        return grants[kind](form) if kind in grants else error("unsupported_grant_type")

    def _of_device(self, form: Form) -> Answer:
        waiting = self.waiting.get(form.get("device_code", ""))
        if not waiting or waiting.form["client_id"] != form["client_id"]:
            return error("bad_verification_code")
        if time.monotonic() > float(waiting.form["until"]):
            return error("expired_token")
        if waiting.refusal:
            return error(waiting.refusal)
        if not waiting.user:
            return error("authorization_pending")
        self.waiting[form["device_code"]] = waiting._replace(refusal="invalid_grant")  # it is good once
        return self._given(waiting.user)

    def _of_code(self, form: Form) -> Answer:
        waiting = self.waiting.get(form.get("code", ""))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
        if not waiting or waiting.refusal or waiting.form["redirect_uri"] != form.get("redirect_uri"):
            return error("invalid_grant", "the code is none")
        if waiting.form["code_challenge"] != challenge.decode().rstrip("="):
            return error("invalid_grant", "PKCE")
        self.waiting[form["code"]] = waiting._replace(refusal="invalid_grant")  # it is good once
        return self._given(waiting.user)

    def _refreshed(self, form: Form) -> Answer:
        token = form.get("refresh_token", "")
        if token in self.used and self.forgives:
            return self._given(self.used[token])
        if token in self.used:  # stolen
            self.refresh = {good: user for good, user in self.refresh.items() if user != self.used[token]}
        if token not in self.refresh:
            return error("invalid_grant", f"AADSTS700082: The refresh token {token} has expired due to inactivity.")
        user = self.used[token] = self.refresh.pop(token)
        return self._given(user)

    def _given(self, user: str, is_renewable: bool = True) -> Answer:
        access = _random()
        self.access[access] = user, time.time() + self.seconds
        body: dict[str, Any] = {
            "token_type": "Bearer",
            "scope": "another than what was asked",
            "expires_in": self.seconds,
        }
        if is_renewable:
            body["refresh_token"] = _random()
            self.refresh[body["refresh_token"]] = user
        return Answer(200, {**body, "access_token": access, **self.more})

    def _introspect(self, form: Form) -> Answer:
        user, until = self.access.get(form.get("token", ""), ("", 0.0))
        if time.time() >= until:
            return Answer(200, {"active": False})
        return Answer(200, {"active": True, "username": user, "email": user, "exp": int(until), "token_type": "Bearer"})


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, server: AuthorizationServer, *args: Any) -> None:
        self.authority = server
        super().__init__(*args)

    def do_GET(self) -> None:
        self._answer(urlsplit(self.path).query)

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())

    def _answer(self, query: str) -> None:
        form = {key: found[0] for key, found in parse_qs(query).items()}
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            form.setdefault("token", token)
        answer = self.authority.answer(urlsplit(self.path).path, form)
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        headers = [("Content-Type", "application/json"), *answer.headers]
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body)
            headers.append(("Content-Encoding", "gzip"))
        try:
            self.send_response(answer.status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.authority.cut_off.release()
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def _random() -> str:
    return secrets.token_urlsafe(32)
