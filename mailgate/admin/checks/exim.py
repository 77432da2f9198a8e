"""Exim's configuration against ours; exim/README.md has what is right."""

import os
from collections.abc import Callable, Iterable
from functools import partial

from mailgate import DEADLINE
from mailgate.admin.checks import Check, Finding, Site, alias_domains, bad, good, named, unknown, user_complaint
from mailgate.admin.exim import Exim, size
from mailgate.admin.postfix import seconds

REDIRECTS = "mail_gateway_as_it_is"  # the first router of those that know the delimiter
ROUTER, TRANSPORTS = "mail_gateway", ("mail_gateway", "mail_gateway_lmtp")
SHIPPED = "Take the shipped exim/conf.d: exim/README.md."
FEW_RECIPIENTS = 1000
TO_BE_TRIED_AGAIN = {1, 75, 77, 78, 126, 127}  # exit statuses of an accident, and of the endings that are not for good


def _transport(exim: Exim) -> tuple[str, dict[str, str]]:
    """Return the transport that our router names, and its options; "" where there is none of ours."""
    name = exim.options("router", ROUTER).get("transport", "")
    return (name, exim.options("transport", name)) if name in TRANSPORTS else ("", {})


def _exim(site: Site) -> Iterable[Finding]:
    if not site.exim:
        yield (
            bad("There is no Exim here.", "--mta-config PATH.")
            if site.exim_config
            else unknown("No Exim is on this host.")
        )
        return
    name, _ = _transport(site.exim)
    if name:
        yield good(f"Exim hands mail to the gateway, by its transport {name}.")
    elif site.exim_config:
        yield bad("Exim has no router and transport that hand mail to the gateway.", SHIPPED)
    else:
        yield unknown("Exim is here, and hands no mail to the gateway.")


def _options(site: Site, exim: Exim) -> Iterable[Finding]:
    name, options = _transport(exim)
    wrong = [*_complaints(site, options)]
    yield from (bad(f"Exim's transport {name}: {each}.", SHIPPED) for each in wrong)
    if not wrong:
        yield good("Its transport keeps mail in the queue whatever happens to the gateway.")


def _complaints(site: Site, options: dict[str, str]) -> Iterable[str]:
    batch = options.get("batch_max", "")
    if batch.isdigit() and int(batch) < FEW_RECIPIENTS:
        yield f"batch_max is {batch}: of several runs the database takes the first alone"
    timeout = options.get("timeout", "")
    if seconds(timeout) <= DEADLINE:
        yield f"timeout is {timeout}: it must be more than the {DEADLINE} s that the gateway may take"
    if options.get("driver") != "pipe":
        return
    if not options.get("timeout_defer"):
        yield "without timeout_defer, what takes long bounces"
    statuses = options.get("temp_errors", "").split(":")
    if statuses != ["*"] and not {str(number) for number in TO_BE_TRIED_AGAIN} <= {*statuses}:
        yield "its temp_errors are not all: an accident of the gateway's bounces mail"
    program = (options.get("command", "").split() or [""])[0]
    if not os.path.isfile(program):
        yield f"there is no program {program}"
    if complaint := user_complaint(site.settings, options.get("user", "")):
        yield complaint


def _size(site: Site, exim: Exim) -> Iterable[Finding]:
    limit, ours = size(exim.main("message_size_limit")), site.settings.max_size
    if limit is None:
        yield unknown("Exim's message_size_limit is made for each message.")
    elif not limit or limit > ours:
        yield bad(
            f"Exim takes mail of {f'up to {limit:,} bytes' if limit else 'any size'}, the gateway up to {ours:,}: what "
            "is between bounces after it was taken.",
            f"message_size_limit = {ours // 2**10}K",
        )
    else:
        yield good(f"Exim takes mail of up to {limit:,} bytes, no more than the gateway.")


def _domains(site: Site, exim: Exim) -> Iterable[Finding]:
    for domain in alias_domains(site):
        way = exim.way(f"catchall@{domain}")
        if any(f"transport = {name}" in way for name in TRANSPORTS):
            yield good(f"Exim hands the mail for {domain} to the gateway.")
        else:
            yield bad(
                f"Exim does not hand the mail for {domain} to the gateway.",
                f"A line {domain} in mail-gateway/domains, or one for each address in mail-gateway/redirections.",
            )


def _delimiter(site: Site, exim: Exim) -> Iterable[Finding]:
    options, ours = exim.options("router", REDIRECTS), site.settings.addresses.recipient_delimiter
    if not options:  # nothing is redirected here
        return
    theirs = {each.strip().removesuffix("*") for each in options.get("local_part_suffix", "").split(":")}
    if ours in theirs:
        yield good("The recipient delimiters agree.")
    else:
        yield bad(
            f"Exim's MAIL_GATEWAY_DELIMITER is {named(filter(None, theirs)) or 'not set'}, "
            f"MAIL_GATEWAY_RECIPIENT_DELIMITER {ours or 'not set'}: redirected mail to info+x@ bounces.",
            "They must be the same: exim/README.md.",
        )


def _queue(site: Site, exim: Exim) -> Iterable[Finding]:
    yield unknown("How often Exim tries again what waits can't be told: its command line says that (-q5m).")


def _with(ask: Callable[[Site, Exim], Iterable[Finding]], site: Site) -> Iterable[Finding]:
    return ask(site, site.exim) if site.exim and _transport(site.exim)[0] else ()


CHECKS = {
    "exim": Check(_exim),
    "exim-transport": Check(partial(_with, _options), ("exim",)),
    "exim-size": Check(partial(_with, _size), ("exim",)),
    "exim-delimiter": Check(partial(_with, _delimiter), ("exim",)),
    "exim-domains": Check(partial(_with, _domains), ("exim",)),
    "exim-queue": Check(partial(_with, _queue), ("exim",)),
}
