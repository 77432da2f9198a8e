"""The way to the database: name, connection, certificate, an answer, its version; then database, login and key."""

import contextlib
import email.utils
import http
import os
import re
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

from mailgate import values
from mailgate.admin.checks import Check, Finding, Site, bad, good, named, unknown, why
from mailgate.outcome import Ended, Outcome

SLOW_SECONDS = 5.0  # for an answer that takes Odoo milliseconds
DAY_SECONDS = 86400.0
SOON_DAYS = 14.0
MAX_CLOCK_SECONDS = 60.0
FIRST_RELEASE, LAST_RELEASE = 14, 19  # with which the gateway was tried
WITHOUT_XMLRPC = 22  # autumn 2028
KEY = re.compile("[0-9a-f]{40}")  # how Odoo, 14 to 19, writes its API keys
LARGEST_CALL_RATIO, CALL_BYTES = 4 / 3, 4096  # of a mail in base64, and what stands around it
ANNOUNCED_SECONDS = 3.0  # for an answer to what is announced
STATUS_LINE_BYTES = 200
READ_TIMEOUT = 120.0  # Odoo's limit_time_real: until then a call may be at work


def _plaintext(site: Site) -> Iterable[Finding]:
    if site.is_tls:
        return
    if values.is_plaintext(site.settings.url):
        yield bad(
            "The password goes over http, in plain text, to another host.",
            "Use https, and take MAIL_GATEWAY_ALLOW_PLAINTEXT out.",
        )
    else:
        yield good("Plain http, to this host only.")


def _name(site: Site) -> Iterable[Finding]:
    try:
        found = socket.getaddrinfo(site.host, site.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        yield bad(f"The name {site.host} leads nowhere: {error}.", "MAIL_GATEWAY_URL; /etc/resolv.conf, /etc/hosts.")
    else:
        addresses = dict.fromkeys(str(each[4][0]) for each in found)
        if [*addresses] != [site.host]:
            yield good(f"{site.host} is {named(addresses)}.")


def _connection(site: Site) -> Iterable[Finding]:
    began = time.monotonic()
    try:
        _connect(site).close()
    except OSError as error:
        yield bad(
            f"Port {site.port} of {site.host} takes no connection: {_reason(error)}.",
            "Is Odoo up, or the proxy before it? The port in MAIL_GATEWAY_URL; a firewall.",
        )
    else:
        yield good(f"Port {site.port} of {site.host} takes connections, in {_milliseconds(began)}.")


def _connect(site: Site) -> socket.socket:
    return socket.create_connection((site.host, site.port), timeout=site.client.settings.connect_timeout)


@contextlib.contextmanager
def _connected(site: Site) -> Iterator[socket.socket]:
    """Have a connection that a request may go over. Raises OSError."""
    with contextlib.ExitStack() as closing:
        connection = closing.enter_context(_connect(site))
        if site.is_tls:
            connection = closing.enter_context(site.tls().wrap_socket(connection, server_hostname=site.host))
        yield connection


def _handshake(site: Site) -> dict[str, Any]:
    """Return the server's certificate, as Python's ssl shows it. Raises OSError: it is not trusted, or no TLS."""
    with _connected(site) as secured:
        assert isinstance(secured, ssl.SSLSocket)
        return dict(secured.getpeercert() or {})


def _certificate(site: Site) -> Iterable[Finding]:
    if not site.is_tls:
        return
    try:
        _handshake(site)
    except ssl.SSLCertVerificationError as error:
        yield bad(
            f"The server's certificate is not trusted: {error.verify_message}",
            "A renewed certificate with its whole chain; or MAIL_GATEWAY_CA_FILE for a private authority.",
        )
    except OSError as error:
        yield bad(f"No TLS on port {site.port}: {_reason(error)}.", "Is it the port for https?")
    else:
        yield good("The server's certificate is trusted.")


def _certificate_end(site: Site) -> Iterable[Finding]:
    if not site.is_tls:
        return
    text = _handshake(site).get("notAfter")
    if not text:
        yield unknown("When the certificate ends can't be told.")
        return
    end = ssl.cert_time_to_seconds(text)
    if end - site.now < SOON_DAYS * DAY_SECONDS:
        yield bad(f"The certificate ends {_when(end, site.now)}.", "Renew it: from then on all mail waits.")
    else:
        yield good(f"The certificate ends {_when(end, site.now)}.")


def _answer(site: Site) -> Iterable[Finding]:
    began = time.monotonic()
    try:
        is_odoo = bool(site.version.get("server_version_info"))
    except Ended as ended:
        yield bad(
            f"What answers at {site.settings.url} is no Odoo: {why(ended)}.",
            "MAIL_GATEWAY_URL is what stands before /xmlrpc/2; a proxy must let that pass.",
        )
        return
    if not is_odoo:
        yield bad("The server does not say its version: it is no Odoo.", "MAIL_GATEWAY_URL.")
    elif time.monotonic() - began > SLOW_SECONDS:
        yield bad(
            f"The server took {_milliseconds(began)} to say its version.",
            "It is overloaded, or the way to it is: workers, limit_time_real, the proxy.",
        )
    else:
        yield good(f"The server answers, in {_milliseconds(began)}.")


def _clock(site: Site) -> Iterable[Finding]:
    date = _date(site)
    if date is None:
        yield unknown("The server does not tell its time.")
        return
    apart = site.now - date
    if abs(apart) > MAX_CLOCK_SECONDS:
        yield bad(
            f"This host's clock is {abs(apart):,.0f} s {'ahead of' if apart > 0 else 'behind'} the server's.",
            "Which of them is wrong? timedatectl; NTP.",
        )
    else:
        yield good("The clocks agree.")


def _date(site: Site) -> float | None:
    """Return the Date of an answer (RFC 9110, 6.6.1) in seconds since 1970. Raises Ended."""
    import requests

    try:
        # as the client sends: no proxy and no netrc of the environment
        with site.client.adapter.send(
            requests.Request("GET", f"{site.settings.url}/xmlrpc/2/common").prepare(),
            timeout=(site.client.settings.connect_timeout, site.client.settings.read_timeout),
            verify=site.client.authorities,
            stream=True,
        ) as response:
            return email.utils.parsedate_to_datetime(response.headers.get("Date", "")).timestamp()
    except (requests.RequestException, ValueError, TypeError, IndexError):
        return None


def _version(site: Site) -> Iterable[Finding]:
    text = str(site.version.get("server_version", site.release))
    if site.version.get("reads_all_shapes"):
        yield good(f"mail_database answers, as Odoo {text}.")
    elif site.release < FIRST_RELEASE:
        yield bad(f"Odoo {text} is too old.", f"The gateway is for {FIRST_RELEASE} to {LAST_RELEASE}.")
    elif site.release > LAST_RELEASE:
        yield unknown(f"Odoo {text} is newer than what this gateway was tried with ({LAST_RELEASE}).")
    else:
        yield good(f"Odoo {text}.")


def _protocol(site: Site) -> Iterable[Finding]:
    if site.version.get("reads_all_shapes"):
        return
    if site.release >= WITHOUT_XMLRPC:
        yield bad(
            f"Odoo {site.release} has no XML-RPC any more.", "A later version of the gateway: this one speaks XML-RPC."
        )
    else:
        warns = " Odoo logs a warning for each call, which can be ignored." if site.release >= LAST_RELEASE else ""
        yield good(f"XML-RPC is there until Odoo {WITHOUT_XMLRPC} (autumn 2028).{warns}")


def _read_timeout(site: Site) -> Iterable[Finding]:
    seconds = site.settings.read_timeout
    if seconds <= READ_TIMEOUT:
        yield bad(
            f"READ_TIMEOUT is {seconds:.0f} s: Odoo may still be at work on a mail that is given up.",
            f"More than limit_time_real, {READ_TIMEOUT:.0f} s as a rule: take MAIL_GATEWAY_READ_TIMEOUT out.",
        )
    else:
        yield good(f"The gateway waits for an answer longer ({seconds:.0f} s) than Odoo works on one, as a rule.")


def _proxy(site: Site) -> Iterable[Finding]:
    """Yield whether a call with the largest mail is let through, as it is announced: nothing is sent."""
    size = int(LARGEST_CALL_RATIO * site.settings.max_size) + CALL_BYTES
    status = _status_of_announced(site, size)
    if status == http.HTTPStatus.CONTINUE:
        yield good(f"A call of {size:,} bytes, which the largest mail makes, is let through.")
    elif status == http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        yield bad(
            f"A call of {size:,} bytes, which the largest mail makes, is too large for what answers (413).",
            "A higher limit in the proxy before Odoo (nginx: client_max_body_size 128m), or a lower MAX_SIZE here.",
        )
    else:
        yield unknown("How much a proxy before Odoo lets through can't be told (nginx: client_max_body_size 128m).")


def _status_of_announced(site: Site, size: int) -> int:
    """Return what is answered to a call that would have so many bytes (RFC 9110, 10.1.1), 0 for nothing."""
    url = urlsplit(site.settings.url)
    head = (
        f"POST {url.path}/xmlrpc/2/object HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: text/xml\r\n"
        f"Content-Length: {size}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    )
    try:
        with _connected(site) as connection:
            connection.settimeout(ANNOUNCED_SECONDS)
            connection.sendall(head.encode("ascii"))
            said = connection.makefile("rb").readline(STATUS_LINE_BYTES)
    except (OSError, UnicodeError):
        return 0
    found = re.match(rb"HTTP/1\.[01] ([1-5]\d\d)\b", said)
    return int(found[1]) if found else 0


def _database(site: Site) -> Iterable[Finding]:
    name = site.settings.database
    try:
        site.user_id  # noqa: B018  # the question counts
    except Ended as ended:
        if ended.verdict.outcome is Outcome.ACCESS_DENIED:  # so there is somebody to be denied by
            yield good(f"The database {name} is there.")
        elif ended.verdict.outcome is Outcome.SETTINGS:
            yield bad(f"The database {name} can't be used: {why(ended)}.", "MAIL_GATEWAY_DATABASE.")
        else:
            yield bad(f"The database {name} does not answer: {why(ended)}.", "Odoo's log, and PostgreSQL's.")
    else:
        yield good(f"The database {name} answers.")


def _login(site: Site) -> Iterable[Finding]:
    try:
        yield good(f"Our user is admitted: {site.settings.login} (user {site.user_id}).")
    except Ended as ended:
        yield bad(
            f"Our user {site.settings.login} is not admitted: {why(ended)}.",
            "MAIL_GATEWAY_LOGIN, and the password or key: a key may have ended. docs/install.md, Its key.",
        )


def _key(site: Site) -> Iterable[Finding]:
    """Yield when the key ends. Which of a user's keys is in use, nobody can ask: it is bad if it must be that one."""
    if not KEY.fullmatch(site.settings.password):
        yield good("A password is in use, which does not end.")
        return
    if site.is_old:
        yield good("Before Odoo 17, a key has no end.")
        return
    try:
        keys = site.rows("res.users.apikeys", [["user_id", "=", site.user_id]], "name", "expiration_date")
    except Ended:  # the field is from 17.2 on; and it may not be ours to read
        yield unknown("When the key ends can't be told: note the day.")
        return
    ends = sorted(_seconds(row["expiration_date"]) for row in keys if row["expiration_date"])
    soon = [end for end in ends if end - site.now < SOON_DAYS * DAY_SECONDS]
    if not keys:
        yield good("Our user has no API key: what is in use does not end.")
    elif len(soon) == len(keys):
        yield bad(
            f"The API key ends {_when(soon[-1], site.now)}; then all mail waits.",
            "Make a new one, and write it into the settings: docs/install.md, Its key.",
        )
    elif soon:
        yield unknown(f"One of our user's {len(keys)} API keys ends {_when(soon[0], site.now)}; is it the one in use?")
    elif ends:
        yield good(f"No API key of our user ends before {_day(ends[0])}.")
    else:
        yield good("The API key has no end.")


def _seconds(text: str) -> float:
    """Return a moment of Odoo's, which is in UTC, in seconds since 1970."""
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))


def _when(end: float, now: float) -> str:
    """Return when something ends: ended on 2026-11-01, or on 2026-12-24, in 24 days."""
    days = round((end - now) / DAY_SECONDS)
    return f"on {_day(end)}, in {days} {'day' if days == 1 else 'days'}" if end > now else f"(ended) on {_day(end)}"


def _milliseconds(began: float) -> str:
    return f"{(time.monotonic() - began) * 1000:,.0f} ms"


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno and not isinstance(error, ssl.SSLError) else str(error)


CHECKS = {
    "plaintext": Check(_plaintext),
    "read-timeout": Check(_read_timeout),
    "name": Check(_name),
    "connection": Check(_connection, ("name",)),
    "certificate": Check(_certificate, ("connection",)),
    "certificate-end": Check(_certificate_end, ("certificate",)),
    "answer": Check(_answer, ("certificate",)),
    "clock": Check(_clock, ("answer",)),
    "version": Check(_version, ("answer",)),
    "protocol": Check(_protocol, ("version",)),
    "proxy": Check(_proxy, ("answer",)),
    "database": Check(_database, ("answer",)),
    "login": Check(_login, ("database",)),
    "key": Check(_key, ("login",)),
}
