"""The authorization server, as we ask it for tokens (OAuth 2.0, RFC 6749), and what its refusals mean.

What it answers may be anything. No token and no secret, and none of its own words, is in any text that is raised.
"""

import io
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
import urllib3.exceptions
from oauthlib.oauth2 import BackendApplicationClient, DeviceClient, OAuth2Error, WebApplicationClient
from requests.adapters import HTTPAdapter
from requests_oauthlib import OAuth2Session

from mailgate import __version__
from mailgate.database import system_ca
from mailgate.mailboxes.grants import APPLICATION, BROWSER, DEVICE, Grant

CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0
MAX_ANSWER_BYTES = 64 * 2**10
UNKNOWN_LIFE_SECONDS = 300  # of a token of which the server does not say how long it is valid
LONGEST_LIFE_SECONDS = 10**9
CLIENTS: dict[str, Any] = {
    DEVICE: DeviceClient,
    BROWSER: WebApplicationClient,
    APPLICATION: BackendApplicationClient,
}
# oauthlib would refuse plain HTTP to this host, too. What may be plain is grants.py's to say.
os.environ["OAUTHLIB_INSECURE_TRANSPORT"] = "1"
logging.getLogger("requests_oauthlib").setLevel(logging.WARNING)  # in its debug lines are tokens and secrets

# What a refusal means, by its code: those of RFC 6749 (4.1.2.1, 5.2), RFC 8628 (3.5), OpenID Connect and Microsoft.
# After it comes the command.
REFUSALS = {
    "invalid_grant": "the token was revoked or has expired; sign in again",
    "interaction_required": "the server asks for a new sign-in",
    "login_required": "the server asks for a new sign-in",
    "consent_required": "nobody has consented to the scope; sign in again",
    "invalid_client": "client_id or client_secret_file is wrong, or the secret has expired; put it right, then",
    "unauthorized_client": "the application may not get tokens in this way; change its registration, then",
    "unsupported_grant_type": "the server has no tokens of this kind; change the kind, then",
    "invalid_scope": "the server does not give this scope; put it right, then",
    "invalid_request": "the server does not accept the request; compare client_id, tenant, scope and URLs, then",
    "access_denied": "the person, or a rule of the organization, has said no; try again",
    "authorization_declined": "the person has said no; try again",
    "expired_token": "nobody has entered the code in time; try again",
}
OTHER_REFUSAL = "the server refuses; compare client_id, tenant, scope and URLs with what is registered there, then"
TRANSIENT = ("server_error", "temporarily_unavailable", "missing_token")  # the last is oauthlib's


class NotAuthorized(Exception):
    """Raised where somebody has to do something, which the text says. ``code`` is the server's, "" for none."""

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class Unreachable(Exception):
    """Raised where a later try may succeed."""


class Token(NamedTuple):
    """What logs in, what renews it, from when to when it is valid (seconds of the clock), and whose it is."""

    access_token: str
    refresh_token: str  # "" where the server gives none
    issued_at: int
    expires_at: int
    client_id: str
    token_url: str

    def checked(self) -> "Token":
        """Return the token. Raises ValueError where it is none."""
        if [*map(type, self)] != [str, str, int, int, str, str] or not self.access_token:
            raise ValueError
        return self


def to_do(name: str, what: str) -> str:
    """Return what has happened, and what somebody has to type."""
    return f"{what}: mail-gateway-mailboxes authorize {name}"


def fetched(name: str, grant: Grant, **form: Any) -> Token:
    """Return a new token for what ``form`` has. Raises NotAuthorized and Unreachable."""
    issued_at, secret = int(time.time()), str(grant.client_secret) or None
    with session(name, grant) as asking:
        if "refresh_token" in form:
            answer = asking.refresh_token(grant.token_url, client_id=grant.client_id, client_secret=secret, **form)
        else:
            answer = asking.fetch_token(grant.token_url, include_client_id=True, client_secret=secret, **form)
        seconds = min(int(answer.get("expires_in") or UNKNOWN_LIFE_SECONDS), LONGEST_LIFE_SECONDS)
        return Token(
            access_token=answer["access_token"],
            refresh_token=answer.get("refresh_token") or form.get("refresh_token", ""),
            issued_at=issued_at,
            expires_at=issued_at + seconds,
            client_id=grant.client_id,
            token_url=grant.token_url,
        ).checked()


@contextmanager
def session(name: str, grant: Grant) -> Iterator[OAuth2Session]:
    """Give what asks the server, and say what goes wrong with it. Raises NotAuthorized and Unreachable."""
    redirect_url = grant.redirect_url if grant.kind == BROWSER else None
    host = urlsplit(grant.token_url).hostname
    with OAuth2Session(client=CLIENTS[grant.kind](grant.client_id), redirect_uri=redirect_url) as asking:
        asking.headers.update({"Accept-Encoding": "identity", "User-Agent": f"mail-gateway/{__version__}"})
        for scheme in ("https://", "http://"):
            asking.mount(scheme, Adapter(grant.ca_file or system_ca()))
        try:
            yield asking
        except OAuth2Error as error:
            raise refusal(name, {"error": error.error, "error_description": error.description}) from None
        except (OSError, urllib3.exceptions.HTTPError) as error:  # what requests raises is an OSError
            raise Unreachable(f"{host}: {_why(error)}") from None
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError):  # oauthlib's, for odd values
            raise Unreachable(f"{host} answers what can't be understood") from None


class Adapter(HTTPAdapter):
    """The connection: whom it trusts, how long it waits, and how much it reads; neither proxies nor redirects count."""

    def __init__(self, authorities: str | bool) -> None:
        self.authorities = authorities
        super().__init__()

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Return an answer that is a JSON object. Raises Unreachable, and what requests and urllib3 raise."""
        timeout = (CONNECT_SECONDS, READ_SECONDS)
        response = super().send(request, stream=True, timeout=timeout, verify=self.authorities)
        with response:
            body = response.raw.read(MAX_ANSWER_BYTES + 1, decode_content=False)
        try:
            is_object = len(body) <= MAX_ANSWER_BYTES and isinstance(json.loads(body), dict)
        except (ValueError, RecursionError):
            is_object = False
        status = response.status_code
        if not is_object or status == 429 or not (status == 200 or 400 <= status < 500):
            what = "" if is_object else ", and no JSON"
            raise Unreachable(f"{urlsplit(str(request.url)).hostname} answers with HTTP status {status}{what}")
        response.raw = io.BytesIO(body)
        return response


def refusal(name: str, answer: dict[str, Any]) -> Exception:
    """Return what is raised for an error of the server's, of whose text only Microsoft's number is told."""
    code = str(answer.get("error"))
    if code in TRANSIENT:
        return Unreachable(f"the authorization server has no token now ({code})")
    codes = [code] if code in REFUSALS else []
    codes += re.findall(r"AADSTS\d{1,9}", str(answer.get("error_description")))[:1]
    text = to_do(name, REFUSALS.get(code, OTHER_REFUSAL))
    return NotAuthorized(f"{text} ({', '.join(codes)})" if codes else text, code)


def _why(error: Exception) -> str:
    """Say why there is no answer."""
    found = re.search(r"\[(?:Errno -?\d+|SSL: \w+)\] ([^'\"()>]+)", str(error))
    if found:
        return found[1].strip()
    is_late = isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError)
    return "no answer in time" if is_late else f"no answer ({type(error).__name__})"
