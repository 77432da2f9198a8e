"""Tokens that log in to a mailbox (OAuth 2.0): where they are kept, how they are renewed, how a person gets the first.

authorize() leads a person through a grant, once. What comes of it lies in a file, NAME.token, from where access_token()
renews it. An application needs neither. No token and no secret is in any text that is raised or said, except where a
person has to type it.
"""

import base64
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs

from oauthlib.oauth2 import WebApplicationClient

from mailgate import trusted, values
from mailgate.mailboxes.authorization import (
    MAX_ANSWER_BYTES,
    NotAuthorized,
    Token,
    Unreachable,
    fetched,
    refusal,
    session,
    to_do,
)
from mailgate.mailboxes.grants import APPLICATION, DEVICE, Grant, grant
from mailgate.mailboxes.kept import content, replacing

__all__ = ["Grant", "NotAuthorized", "Unreachable", "access_token", "authorize", "grant", "xoauth2"]

LEFT_SECONDS = 60  # that a token must still be valid
PAUSE_SECONDS, SLOWER_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 5.0, 60.0  # RFC 8628, 3.2 and 3.5
APPLICATION_HINT = (
    "Exchange Online lets it in after an administrator has, once: granted IMAP.AccessAsApp or POP.AccessAsApp, "
    "registered it with New-ServicePrincipal, and let it into the mailbox with Add-MailboxPermission."
)

# --- what logs in -----------------------------------------------------------------------------------------------------

_of_applications: dict[Grant, Token] = {}  # two threads may get one each, which does no harm


def access_token(name: str, grant: Grant, folder: str, refused: str = "") -> str:
    """Return a token that is valid for a minute more, and is not the one that the mail server has ``refused``.

    Where threads and processes ask at the same time, one of them renews it. Raises NotAuthorized and Unreachable.
    """
    if grant.kind == APPLICATION:
        token = _of_applications.get(grant)
        if not token or not _is_valid(token, refused):
            token = _of_applications[grant] = fetched(name, grant, scope=grant.scope)
        return token.access_token
    path = _path(name, folder)
    with _on_disk():
        token = _kept(name, grant, path)
        if not _is_valid(token, refused):
            with _locked(path):
                token = _kept(name, grant, path)  # somebody else may have renewed it meanwhile
                if not _is_valid(token, refused):
                    token = _renewed(name, grant, path, token)
    return token.access_token


def xoauth2(login: str, token: str) -> bytes:
    """Return what follows AUTH XOAUTH2 (Google: "OAuth 2.0 Mechanism"; Microsoft has the same)."""
    return base64.b64encode(f"user={login}\1auth=Bearer {token}\1\1".encode())


def _is_valid(token: Token, refused: str) -> bool:
    """Tell whether a token can be used; where the clock was put back since, nobody knows how long it is valid."""
    is_in_time = token.issued_at <= time.time() < token.expires_at - LEFT_SECONDS
    return is_in_time and token.access_token != refused


def _renewed(name: str, grant: Grant, path: str, token: Token) -> Token:
    """Return a new token, which is kept: with it may come the only refresh token that is valid from now on."""
    if not token.refresh_token:
        raise NotAuthorized(to_do(name, "the token has expired, and nothing to renew it came with it; sign in again"))
    # before the server is asked: a full disk must not cost the refresh token
    with replacing(path, MAX_ANSWER_BYTES) as file:
        token = fetched(name, grant, refresh_token=token.refresh_token)
        file.write(_json(token))
    return token


# --- how a person gets the first --------------------------------------------------------------------------------------


def authorize(name: str, grant: Grant, folder: str, say: Callable[[str], None], ask: Callable[[str], str]) -> None:
    """Lead a person through what gives the mailbox its token, and keep it. Raises NotAuthorized and Unreachable."""
    if grant.kind == APPLICATION:
        fetched(name, grant, scope=grant.scope)
        say(f"{name} can get its tokens by itself: nobody has to sign in.")
        if grant.provider == "microsoft":
            say(APPLICATION_HINT)
        return
    path = _path(name, folder)
    with _on_disk(), _locked(path):
        pass  # nobody signs in for what can't be kept
    token = _by_device(name, grant, say) if grant.kind == DEVICE else _by_browser(name, grant, say, ask)
    with _on_disk(), _locked(path), replacing(path, MAX_ANSWER_BYTES) as file:
        file.write(_json(token))
    say(f"{name} is authorized. A service that runs takes the token up by itself.")
    if not token.refresh_token:
        say("But nothing to renew it came with it, so that this has to be done again. Is offline_access in the scope?")


def _by_device(name: str, grant: Grant, say: Callable[[str], None]) -> Token:
    """Return the token of a person who enters a code in a browser, wherever that is (RFC 8628)."""
    with session(name, grant) as asking:
        form = {"client_id": grant.client_id, "client_secret": str(grant.client_secret), "scope": grant.scope}
        answer = asking.post(grant.device_url, {key: text for key, text in form.items() if text}).json()
        if "error" in answer:
            raise refusal(name, answer)
        device_code, user_code, url = (answer[key] for key in ("device_code", "user_code", "verification_uri"))
        until = time.monotonic() + float(answer["expires_in"])
        pause = max(1.0, float(answer.get("interval") or PAUSE_SECONDS))
    say(f"Open {_printable(url)} in any browser, enter {_printable(user_code)}, and sign in as the user of {name}.")
    while time.monotonic() + pause < until:
        time.sleep(pause)
        try:
            return fetched(name, grant, device_code=device_code)
        except Unreachable as error:
            say(f"{error}; trying again")
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        except NotAuthorized as error:
            if error.code not in ("authorization_pending", "slow_down"):
                raise
            pause += SLOWER_SECONDS if error.code == "slow_down" else 0
    raise refusal(name, {"error": "expired_token"})


def _by_browser(name: str, grant: Grant, say: Callable[[str], None], ask: Callable[[str], str]) -> Token:
    """Return the token of a person who signs in with a browser (RFC 8252, 7636), and copies the address it ends at."""
    client, state = WebApplicationClient(grant.client_id), secrets.token_urlsafe(32)
    verifier = client.create_code_verifier(64)
    url = client.prepare_request_uri(
        grant.authorization_url,
        redirect_uri=grant.redirect_url,
        scope=grant.scope,
        state=state,
        code_challenge=client.create_code_challenge(verifier, "S256"),
        code_challenge_method="S256",
        **dict(grant.options),
    )
    say(f"Open this address in any browser, and sign in as the user of {name}:\n\n{url}\n")
    say(f"The browser ends at a page that it can't show. Its address begins with {grant.redirect_url}. Copy all of it.")
    query = ask("Paste it here: ").partition("?")[2].partition("#")[0].strip()
    answer = {key: found[0] for key, found in parse_qs(query).items()}
    if not secrets.compare_digest(answer.get("state", "").encode("utf-8", "replace"), state.encode()):
        raise NotAuthorized(to_do(name, "that is not the address at which this sign-in has ended; try again"))
    if "code" not in answer:
        raise refusal(name, answer)
    return fetched(name, grant, code=answer["code"], code_verifier=verifier)


def _printable(text: object) -> str:
    return "".join(character for character in str(text) if character.isprintable())[:200]


# --- the file ---------------------------------------------------------------------------------------------------------


def _path(name: str, folder: str) -> str:
    return os.path.join(folder, f"{name}.token")


def _json(token: Token) -> bytes:
    return json.dumps(token._asdict()).encode()


def _kept(name: str, grant: Grant, path: str) -> Token:
    """Return what is kept. Raises NotAuthorized where there is nothing of use, and OSError."""
    try:
        found = content(path)
    except FileNotFoundError:
        raise NotAuthorized(to_do(name, "there is no token yet; sign in")) from None
    except ValueError as error:
        raise NotAuthorized(to_do(name, f"the token's file {error}; see to that, and sign in again")) from None
    try:
        token = Token(**json.loads(found)).checked()
    except (TypeError, ValueError, RecursionError):
        raise NotAuthorized(to_do(name, "the token's file is damaged; sign in again")) from None
    if (token.client_id, token.token_url) != (grant.client_id, grant.token_url):
        raise NotAuthorized(to_do(name, "the token came for another client_id or token_url; sign in again"))
    return token


@contextmanager
def _on_disk() -> Iterator[None]:
    """Say what is wrong with the file or its folder. Raises Unreachable."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise Unreachable(f"the token's file {values.reason(error)}") from None


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Keep other threads and processes from writing the file. Raises OSError, and ValueError where others can."""
    trusted.check_place(path)
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
