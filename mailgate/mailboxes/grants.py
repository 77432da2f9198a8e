"""Grants: in which way a mailbox gets its tokens, as its key ``oauth`` in the mailboxes file says.

By "device" and "browser" a person signs in once; by "application" the client's secret is all that is needed. What is
known of Microsoft and Google stands here, so that the file needs no URLs for them.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import urlsplit

from mailgate import values
from mailgate.values import Secret

DEVICE, BROWSER, APPLICATION = "device", "browser", "application"


class Provider(NamedTuple):
    """What is known of an authorization server."""

    kinds: tuple[str, ...] = (DEVICE, BROWSER, APPLICATION)  # the first one counts where none is named
    needed: tuple[str, ...] = ()  # keys
    scopes: Mapping[str, str] = MappingProxyType({})  # by protocol, and for an application
    defaults: Mapping[str, str] = MappingProxyType({})  # of keys
    options: tuple[tuple[str, str], ...] = ()  # of the URL at which a person signs in


_ENTRA = "https://login.microsoftonline.com/{tenant}/oauth2/v2.0"
_OUTLOOK = "offline_access https://outlook.office.com"
_GMAIL = "https://mail.google.com/"
PROVIDERS = {
    # Microsoft Learn: "Authenticate an IMAP, POP or SMTP connection using OAuth" (scopes), "Microsoft identity platform
    # and the OAuth 2.0 device authorization grant flow" (URLs), "Redirect URI (reply URL) restrictions and limitations"
    # (any port will do for http://localhost, which can be registered more easily than 127.0.0.1).
    "microsoft": Provider(
        scopes={
            "imap": f"{_OUTLOOK}/IMAP.AccessAsUser.All",
            "pop3": f"{_OUTLOOK}/POP.AccessAsUser.All",
            APPLICATION: "https://outlook.office365.com/.default",
        },
        defaults={
            "tenant": "organizations",
            "authorization_url": f"{_ENTRA}/authorize",
            "device_url": f"{_ENTRA}/devicecode",
            "token_url": f"{_ENTRA}/token",
            "redirect_url": "http://localhost:47113",
        },
    ),
    # Google: "OAuth 2.0 Mechanism" (the scope of Gmail), which is not among the allowed scopes of "OAuth 2.0 for TV and
    # Limited-Input Device Applications"; "OAuth 2.0 for iOS & Desktop Apps" (URLs, PKCE, the loopback address); "Using
    # OAuth 2.0 for Web Server Applications" (the options: with both there is a refresh token each time).
    "google": Provider(
        kinds=(BROWSER,),
        needed=("client_secret_file",),
        scopes={"imap": _GMAIL, "pop3": _GMAIL},
        defaults={
            "authorization_url": "https://accounts.google.com/o/oauth2/v2/auth",
            "token_url": "https://oauth2.googleapis.com/token",
        },
        options=(("access_type", "offline"), ("prompt", "consent")),
    ),
    "": Provider(),  # one of the reader's own
}
NEEDED = {DEVICE: ("device_url",), BROWSER: ("authorization_url",), APPLICATION: ("client_secret_file",)}
URLS = ("authorization_url", "device_url", "token_url", "redirect_url")
# The browser ends where nobody listens, with the code in its address (RFC 8252, 7.3).
DEFAULTS = {"provider": "", "redirect_url": "http://127.0.0.1:47113"}
KEYS = ("provider", "kind", "client_id", "client_secret_file", "tenant", "scope", "ca_file", *URLS)


class Grant(NamedTuple):
    """The way in which a mailbox gets its tokens. What its kind does not need may be empty."""

    kind: str
    client_id: str
    client_secret: Secret
    authorization_url: str
    device_url: str
    token_url: str
    redirect_url: str  # at which the browser ends
    scope: str  # separated by spaces
    options: tuple[tuple[str, str], ...] = ()  # of the authorization URL
    provider: str = ""
    ca_file: str = ""  # "" for the system's


def grant(value: object, protocol: str) -> Grant:
    """Return what the key's value means to "imap" or "pop3".

    Raises ValueError, whose text follows the name of the key and names all that is wrong, and no secret.
    """
    found, provider = _texts(value)
    kind = found.get("kind") or provider.kinds[0]
    if kind not in provider.kinds:
        raise ValueError(f"kind must be {' or '.join(provider.kinds)}")
    scope = provider.scopes.get(kind if kind == APPLICATION else protocol, "")
    found = dict.fromkeys(KEYS, "") | DEFAULTS | {"scope": scope} | dict(provider.defaults) | found
    needed = ("client_id", "token_url", *NEEDED[kind], *provider.needed)
    wrong = [f"{key} is missing" for key in needed if not found[key]]
    if kind == APPLICATION and found["tenant"] in ("organizations", "common", "consumers"):
        wrong.append("tenant is missing: an application belongs to one directory")
    urls = {key: found[key].replace("{tenant}", found["tenant"]) for key in URLS}
    wrong += [f"{key} {complaint}" for key, url in urls.items() if (complaint := _complaint(url))]
    secret = _from_file(found, "client_secret_file", values.password_file, wrong)
    ca_file = _from_file(found, "ca_file", values.readable_file, wrong)
    if wrong:
        raise ValueError("; ".join(wrong))
    return Grant(
        kind=kind,
        client_id=found["client_id"],
        client_secret=Secret(secret),
        **urls,
        scope=found["scope"],
        options=provider.options,
        provider=found["provider"],
        ca_file=ca_file,
    )


def _texts(value: object) -> tuple[dict[str, str], Provider]:
    """Return the table, and what is known of its provider. Raises ValueError where its keys are wrong."""
    if not isinstance(value, dict):
        name = value if value in ("microsoft", "google") else "microsoft"
        raise ValueError(f'must be a table, with the client_id: {{ provider = "{name}", client_id = "..." }}')
    wrong = [f"{key} is not known" for key in value if key not in KEYS]
    wrong += [f"{key} must be a text" for key in KEYS if not isinstance(value.get(key, ""), str)]
    if not wrong and value.get("provider", "") not in PROVIDERS:
        wrong = ['provider must be "microsoft" or "google", or left out']
    if wrong:
        raise ValueError("; ".join(wrong))
    return value, PROVIDERS[value.get("provider", "")]


def _complaint(url: str) -> str:
    """Return what is wrong with a URL, "" for nothing; where there is none, none is needed."""
    try:
        parts = urlsplit(values.text(url))
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # whose text would quote the value
        valid = False
    if url and (not valid or "@" in parts.netloc or parts.fragment or " " in url):
        return "is not a URL like https://login.example.com/token"
    return "must be https, for it leads to another host" if url and values.is_plaintext(url) else ""


def _from_file(found: dict[str, str], key: str, convert: Callable[[str], str], wrong: list[str]) -> str:
    """Return what a file gives, "" without one."""
    try:
        return convert(values.file_path(found[key])) if found[key] else ""
    except (OSError, ValueError) as error:
        wrong.append(f"{key} {values.reason(error)}")
        return ""
