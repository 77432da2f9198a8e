"""Where the world sends the mail of the alias domains, as the DNS says; only asked for with --dns."""

import contextlib
import socket
from collections.abc import Iterable
from typing import Any

from mailgate.admin.checks import Check, Finding, Site, alias_domains, bad, good, named, unknown
from mailgate.admin.desk import Failed, Usage

SECONDS = 10.0  # that an answer may take
PORT = 53


def _resolver(server: str) -> Any:
    """Return what asks the DNS, by ``server`` (ADDRESS or ADDRESS:PORT) where one is given. Raises Usage and Failed."""
    try:
        import dns.resolver
    except ImportError:
        raise Failed("--dns needs the package dnspython: docs/admin.md says how to install it") from None

    resolver = dns.resolver.Resolver(configure=not server)
    resolver.lifetime = SECONDS
    if server:
        host, _, port = server.partition(":")
        try:
            resolver.nameservers, resolver.port = [host], int(port or PORT)
        except ValueError:
            raise Usage("--dns takes the address of a server, like 192.0.2.53 or 127.0.0.1:5353") from None
    return resolver


def _mx(site: Site) -> Iterable[Finding]:
    if site.arguments.dns is None:
        return
    resolver = _resolver(site.arguments.dns)
    for domain in alias_domains(site):
        yield _of_domain(resolver, domain)


def _of_domain(resolver: Any, domain: str) -> Finding:
    """Return where the mail of a domain goes: its MX, or its own address (RFC 5321, 5.1)."""
    import dns.exception

    advice = "A MX record that names this mail server."
    try:
        hosts = sorted(_records(resolver, domain, "MX"), key=lambda row: row.preference)
        names = [row.exchange.to_text(omit_final_dot=True) for row in hosts] or [domain]
        addresses = {
            row.to_text() for name in names for kind in ("A", "AAAA") for row in _records(resolver, name, kind)
        }
    except dns.exception.DNSException as error:
        return unknown(f"Where mail for {domain} goes can't be told: {error}")
    if names == ["."]:  # RFC 7505
        return bad(f"{domain} takes no mail, as its MX says.", advice)
    if not addresses:
        return bad(f"Mail for {domain} goes nowhere: {named(names)}.", advice)
    if any(map(_is_here, addresses)):
        return good(f"Mail for {domain} comes to this host, by {named(names)}.")
    return unknown(f"Mail for {domain} goes to {named(names)}: whether that is us, its addresses do not tell.")


def _records(resolver: Any, name: str, kind: str) -> list[Any]:
    """Return the records of a name, none where there are none."""
    import dns.resolver

    try:
        return [*resolver.resolve(name, kind)]
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return []


def _is_here(address: str) -> bool:
    """Tell whether an address is one of this host's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return True
    return False


CHECKS = {"mx": Check(_mx)}
