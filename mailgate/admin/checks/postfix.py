"""Postfix's configuration against ours; postfix/README.md has what is right, postfix/configure puts it in."""

import os
import re
from collections.abc import Callable, Iterable
from functools import partial

from mailgate import DEADLINE
from mailgate.admin.checks import Check, Finding, Site, alias_domains, bad, good, named, unknown, user_complaint, why
from mailgate.admin.postfix import Postfix, Service, seconds
from mailgate.outcome import Ended

CONFIGURE = "Run /opt/mail-gateway/postfix/configure, which puts in what is missing."
FEW_RECIPIENTS = 1000  # of a message to the gateway: those over the limit come in another run
SHORTEST_LIFE = 86400.0  # seconds in the queue: an outage over night
LONGEST_PAUSE = 3600.0  # seconds between two tries of new mail
FILTERS = {"pipe": "pipe_delivery_status_filter", "lmtp": "lmtp_delivery_status_filter"}


def _ours(postfix: Postfix) -> list[Service]:
    """Return the services that hand mail to the gateway."""
    return [
        service
        for service in postfix.services()
        if service.command in FILTERS
        and (service.name.startswith("mail-gateway") or re.search(r"argv=\S*mail[-_]gateway", service.arguments))
    ]


def _postfix(site: Site) -> Iterable[Finding]:
    if not site.postfix:
        if site.postfix_config:
            yield bad(f"No Postfix, or no main.cf in {site.postfix_config}.", "--mta-config PATH.")
        else:
            yield unknown("No Postfix is set up on this host.")
        return
    names = [service.name for service in _ours(site.postfix)]
    if names:
        yield good(f"Postfix in {site.postfix.config} has {named(names)}.")
    elif site.postfix_config or "mail-gateway" in site.postfix.raw():
        yield bad("Postfix's master.cf has no service that hands mail to the gateway.", CONFIGURE)
    else:
        yield unknown("Postfix is here, and hands no mail to the gateway: postfix/configure would put it in.")


def _service(site: Site, postfix: Postfix) -> Iterable[Finding]:
    wrong = [*filter(None, map(partial(_complaint, site), _ours(postfix)))]
    yield from (bad(each, CONFIGURE) for each in wrong)
    if not wrong:
        yield good("It runs the gateway as the gateway's user.")


def _complaint(site: Site, service: Service) -> str:
    """Return what is wrong with a service, "" for nothing."""
    if service.command != "pipe":
        return ""
    found = re.search(r"\bargv=(\S+)", service.arguments)
    program = found[1] if found else ""
    if not os.path.isfile(program):
        return f"{service.name}: there is no program {program}."
    found = re.search(r"\buser=([^\s:]+)", service.arguments)
    if complaint := user_complaint(site.settings, found[1] if found else ""):
        return f"{service.name}: {complaint}."
    if not re.search(r"\bnull_sender=(\s|$)", service.arguments):
        return f"{service.name}: without null_sender= a bounce would come from MAILER-DAEMON."
    return ""


def _time(site: Site, postfix: Postfix) -> Iterable[Finding]:
    names = {"pipe": "{}_time_limit", "lmtp": "lmtp_data_done_timeout"}
    limits = {each.name: _limit(postfix, each, names[each.command].format(each.name)) for each in _ours(postfix)}
    short = [f"{name} {limit:.0f} s" for name, limit in limits.items() if limit <= DEADLINE]
    if short:
        yield bad(
            f"It ends the gateway before that ends by itself, in {DEADLINE} s: {named(short)}.",
            f"{CONFIGURE} They must be 900s.",
        )
    else:
        yield good(f"It leaves the gateway the {DEADLINE} s that it may take.")


def _limit(postfix: Postfix, service: Service, name: str) -> float:
    """Return a time limit of a service, its own or the usual one, in seconds."""
    own = service.parameters.get(name) or postfix.parameter(name) or postfix.parameter("command_time_limit")
    return seconds(own)


def _filter(site: Site, postfix: Postfix) -> Iterable[Finding]:
    wrong = []
    for each in _ours(postfix):
        own = each.parameters.get(FILTERS[each.command]) or postfix.parameter(FILTERS[each.command])
        if not own:
            wrong.append(f"{each.name} has none")
        elif own.partition(":")[2].startswith("/") and not os.path.exists(own.partition(":")[2]):
            wrong.append(f"{each.name}: {own} is not there")
    if wrong:
        yield bad(f"Without its status filter, an accident of the gateway's bounces mail: {named(wrong)}.", CONFIGURE)
    else:
        yield good("Its status filter keeps mail in the queue whatever happens to the gateway.")


def _recipients(site: Site, postfix: Postfix) -> Iterable[Finding]:
    limits = {each.name: postfix.parameter(f"{each.name}_destination_recipient_limit") for each in _ours(postfix)}
    few = [f"{name}: {limit}" for name, limit in limits.items() if limit.isdigit() and 0 < int(limit) < FEW_RECIPIENTS]
    if few:
        yield bad(
            f"A message to many comes in several runs, of which the database takes the first alone: {named(few)}.",
            f"{CONFIGURE} destination_recipient_limit must be 10000.",
        )
    else:
        yield good("All recipients of a message come at once.")


def _size(site: Site, postfix: Postfix) -> Iterable[Finding]:
    text, ours = postfix.parameter("message_size_limit"), site.settings.max_size
    limit = int(text) if text.isdigit() else 0
    if not limit or limit > ours:
        yield bad(
            f"Postfix takes mail of {f'up to {limit:,} bytes' if limit else 'any size'}, the gateway up to {ours:,}: "
            "what is between bounces after it was taken.",
            f"postconf -e message_size_limit={ours}",
        )
    else:
        yield good(f"Postfix takes mail of up to {limit:,} bytes, no more than the gateway.")


def _delimiter(site: Site, postfix: Postfix) -> Iterable[Finding]:
    theirs, ours = postfix.parameter("recipient_delimiter"), site.settings.addresses.recipient_delimiter
    if (ours or theirs) and (not ours or ours not in theirs):
        yield bad(
            f"recipient_delimiter is {theirs or 'not set'}, MAIL_GATEWAY_RECIPIENT_DELIMITER {ours or 'not set'}: mail "
            "to info+x@ bounces.",
            "They must be the same.",
        )
    else:
        yield good("The recipient delimiters agree.")


def _domains(site: Site, postfix: Postfix) -> Iterable[Finding]:
    for domain in alias_domains(site):
        try:
            complaint, advice = _of_domain(site, postfix, domain)
        except Ended as ended:
            complaint, advice = f"Postfix can't look {domain} up: {why(ended)}.", "postmap; the table's path and mode."
        yield bad(complaint, advice) if complaint else good(f"Postfix hands the mail for {domain} to the gateway.")


def _of_domain(site: Site, postfix: Postfix, domain: str) -> tuple[str, str]:
    """Return what is wrong with a domain and what to do, "" for nothing. Raises Ended."""
    table = f"{postfix.config}/mail-gateway/transport"
    is_local, is_relayed = postfix.has("mydestination", domain), postfix.has("relay_domains", domain)
    if is_local and is_relayed:
        return f"{domain} is in mydestination and in relay_domains: strangers get 550.", "Take it out of mydestination."
    is_virtual = postfix.has("virtual_mailbox_domains", domain) or postfix.has("virtual_alias_domains", domain)
    if not (is_local or is_relayed or is_virtual):
        return f"Postfix takes no mail for {domain}.", f"A line in {table}: {domain} mail-gateway:"
    way = "relay_transport" if is_relayed else "local_transport" if is_local else "virtual_transport"
    address = f"catchall@{domain}"
    address = postfix.found("virtual_alias_maps", address) or address
    transport = postfix.found("transport_maps", address, address.partition("@")[2], "*") or postfix.parameter(way)
    ours = {service.name for service in _ours(postfix)}
    if transport.partition(":")[0] in ours or site.settings.lmtp in transport:
        return "", ""
    return f"Postfix hands the mail for {domain} to {transport}, not to us.", f"{table}: {domain} mail-gateway:"


def _queue(site: Site, postfix: Postfix) -> Iterable[Finding]:
    life = min(seconds(postfix.parameter(f"{name}_queue_lifetime"), "d") for name in ("maximal", "bounce"))
    pause = max(seconds(postfix.parameter(name)) for name in ("queue_run_delay", "minimal_backoff_time"))
    if life < SHORTEST_LIFE:
        yield bad(
            f"Mail bounces after {life / 3600:.0f} hours in Postfix's queue: an outage over night loses it.",
            "maximal_queue_lifetime and bounce_queue_lifetime: 5d.",
        )
    if pause > LONGEST_PAUSE:
        yield bad(
            f"Mail that waits is tried again after {pause / 60:.0f} minutes only.",
            "queue_run_delay and minimal_backoff_time: 300s.",
        )
    if life >= SHORTEST_LIFE and pause <= LONGEST_PAUSE:
        yield good(f"Mail that waits is tried again after {pause / 60:.0f} minutes, for {life / 86400:.0f} days.")


def _folder(site: Site, postfix: Postfix) -> Iterable[Finding]:
    found = re.findall(r"(?m)^([\w/-]+) = .*\$[({]?config_directory\b", postfix.raw())
    if found:
        yield bad(
            f"$config_directory stands in {named(found)}: Postfix 3.8 and later may forget it.",
            "Write the folder itself.",
        )


def _smuggling(site: Site, postfix: Postfix) -> Iterable[Finding]:
    value = postfix.parameter("smtpd_forbid_bare_newline").lower()
    if value == "no":
        yield bad(
            "smtpd_forbid_bare_newline is off: another mail, from any sender, can be smuggled into a stranger's mail.",
            "postconf -e smtpd_forbid_bare_newline=normalize, or yes where it does not know that.",
        )
    elif value:
        yield good("No mail can be smuggled into another.")


def _with(ask: Callable[[Site, Postfix], Iterable[Finding]], site: Site) -> Iterable[Finding]:
    return ask(site, site.postfix) if site.postfix and _ours(site.postfix) else ()


CHECKS = {
    "postfix": Check(_postfix),
    "postfix-service": Check(partial(_with, _service), ("postfix",)),
    "postfix-time": Check(partial(_with, _time), ("postfix",)),
    "postfix-filter": Check(partial(_with, _filter), ("postfix",)),
    "postfix-recipients": Check(partial(_with, _recipients), ("postfix",)),
    "postfix-size": Check(partial(_with, _size), ("postfix",)),
    "postfix-delimiter": Check(partial(_with, _delimiter), ("postfix",)),
    "postfix-domains": Check(partial(_with, _domains), ("postfix",)),
    "postfix-queue": Check(partial(_with, _queue), ("postfix",)),
    "postfix-folder": Check(partial(_with, _folder), ("postfix",)),
    "postfix-smuggling": Check(partial(_with, _smuggling), ("postfix",)),
}
