"""The database's addresses, and how the settings stand to them; loops, and who else fetches the mail."""

from collections.abc import Iterable, Iterator

from mailgate import alias_list
from mailgate.addresses import is_ours, known_everywhere
from mailgate.admin.checks import Check, Finding, Row, Site, bad, good, named, unknown
from mailgate.database import BOUNCE, CATCHALL
from mailgate.envelope import Recipient, split_address
from mailgate.outcome import Ended, Outcome

FEW = 5  # mails of a sender in two hours, which are no loop
LOOPS = {"mail.gateway.loop.threshold": "20", "mail.gateway.loop.minutes": "120"}
THRESHOLD, MINUTES = LOOPS
FIRST_WITH_LOOPS = 16  # that are stopped
PARAMETERS = "Settings > Technical > Parameters: System Parameters"


def _list(site: Site) -> Iterable[Finding]:
    """Yield whether there is a list of addresses; before Odoo 17 there is none."""
    try:
        listed = site.listed
    except Ended as ended:
        if site.release >= alias_list.FIRST_VERSION and ended.verdict.outcome is Outcome.SETTINGS:
            yield bad(
                f"The database has no {'' if site.is_old else 'alias domain and no '}alias, or our user may see none.",
                "Settings > Technical > Emails: Alias Domains, Aliases.",
            )
            return
        raise
    addresses = listed.aliases | listed.catchall | listed.bounce
    where = named(sorted(listed.alias_domains | listed.allowed_domains)) or "no domain"
    if site.is_old:
        addresses |= listed.local_parts
        where = "all domains" if known_everywhere(listed) >= listed.local_parts else where
    yield good(f"The database has {len(addresses)} addresses in {where}.")


def _domains(site: Site) -> Iterable[Finding]:
    if site.is_old:
        yield _domain(site.parameter(alias_list.DOMAIN))
    elif site.domains:
        yield good(f"The database's alias domains: {named(row['name'] for row in site.domains)}.")
    else:
        yield bad("The database has no alias domain: no alias can be reached.", "Settings: Alias Domain.")


def _domain(name: str) -> Finding:
    """Return whether an Odoo before 17 has a domain for what it asks others to answer to."""
    if name:
        return good(f"The alias domain is {name} ({alias_list.DOMAIN}: before Odoo 17 there is one).")
    return bad(
        f"The database has no alias domain ({alias_list.DOMAIN}): answers and delivery reports do not come back.",
        "Settings: Alias Domain.",
    )


def _catchall(site: Site) -> Iterable[Finding]:
    if site.is_old:
        yield from _catchall_everywhere(site)
        return
    for row in site.domains:
        missing = [name for name in ("catchall", "bounce") if not row[f"{name}_email"]]
        if missing:
            yield bad(
                f"The alias domain {row['name']} has no {' and no '.join(missing)} address: answers and delivery "
                "reports do not come back.",
                "Settings > Technical > Emails: Alias Domains.",
            )
        else:
            yield good(f"{row['name']} has {row['catchall_email']} and {row['bounce_email']}.")


def _catchall_everywhere(site: Site) -> Iterable[Finding]:
    """Yield whether an Odoo before 17 has catchall and bounce, which are parameters and answer at any domain."""
    missing = [key for key in (CATCHALL, BOUNCE) if not site.parameter(key)]
    if missing:
        text = f"{' and '.join(missing)} not set: answers and delivery reports do not come back."
        yield bad(text, f"{PARAMETERS}: as a rule, catchall and bounce.")
    else:
        yield good("Catchall and bounce are set.")


def _without_domain(site: Site) -> Iterable[Finding]:
    if site.is_old:
        return  # none has one: "detection" says it
    found = [
        row["alias_name"] for row in site.aliases if not row["alias_domain_id"] and not row["alias_incoming_local"]
    ]
    if found:
        yield bad(
            f"Aliases without a domain, which no mail can reach: {named(found)}.",
            "Settings > Technical > Emails: Aliases; their company's alias domain.",
        )
    else:
        yield good("Each alias has a domain.")


def _status(site: Site) -> Iterable[Finding]:
    if site.is_old:
        yield unknown("Before Odoo 17, an alias in trouble is not marked.")
        return
    found = [row["alias_full_name"] for row in site.aliases if row["alias_status"] == "invalid"]
    if found:
        yield bad(
            f"Aliases in trouble (invalid): {named(found)}. The last mail to each made no record.",
            "Mend their default values, record or contact policy; the next mail sets them to valid.",
        )
    else:
        yield good("No alias is in trouble.")


def _left_out(site: Site) -> Iterable[Finding]:
    found = alias_list.left_out(site.settings.addresses, site.listed)
    if found:
        yield bad(
            f"The settings refuse what the database has: {named(found)}.",
            "MAIL_GATEWAY_ALIAS_DOMAINS, _ALIASES, _LOCAL_PARTS, _CATCHALL, _BOUNCE: mail-gateway-admin settings.",
        )
    else:
        yield good("The settings take every address that the database has.")


def _wider(site: Site) -> Iterable[Finding]:
    """Yield what the settings take and the database does not know: its sender gets a bounce, after a call."""
    ours, listed = site.settings.addresses, site.listed
    domains = ours.alias_domains - listed.alias_domains - listed.allowed_domains
    local_parts = ours.local_parts - listed.local_parts - known_everywhere(listed)
    aliases = {address for address in ours.aliases if not is_ours(listed, Recipient(address))}
    found = sorted(domains | local_parts | aliases | (ours.allowed_domains - listed.allowed_domains))
    if found:
        yield bad(
            f"The settings take what the database has not: {named(found)}.",
            "Take it out of the settings, or make it in the database.",
        )
    else:
        yield good("The settings take nothing that the database has not.")


def _detection(site: Site) -> Iterable[Finding]:
    listed = site.listed
    if not listed.local_parts:
        yield good("No alias has local-part based detection.")
    elif site.is_old:
        yield good("Before Odoo 17, an alias has no domain, and answers to its local-part.")
    elif not listed.allowed_domains:
        yield bad(
            f"Local-part based detection without {alias_list.ALLOWED}: mail for {named(sorted(listed.local_parts))} is "
            "taken at any domain.",
            f"Name your domains in the system parameter {alias_list.ALLOWED}.",
        )
    else:
        yield good(f"Local-part based detection is for {named(sorted(listed.allowed_domains))}.")


def _loops(site: Site) -> Iterable[Finding]:
    if 0 < site.release < FIRST_WITH_LOOPS:
        yield good(f"Before Odoo {FIRST_WITH_LOOPS}, no sender is taken for a loop, and none is stopped.")
        return
    try:
        found = {key: site.parameter(key) or default for key, default in LOOPS.items()}
    except Ended as ended:
        if ended.verdict.outcome is not Outcome.ACCESS_DENIED:
            raise
        yield unknown("The parameters of the loop check can't be read by our user.")
        return
    wrong = [*_odd(found)]
    yield from wrong
    if not wrong:
        yield good(f"A sender of {found[THRESHOLD]} mails in {found[MINUTES]} minutes is taken for a loop.")


def _odd(parameters: dict[str, str]) -> Iterator[Finding]:
    advice = "Settings > Technical > System Parameters: without it, it is "
    for key, text in parameters.items():
        value = _number(text)
        if value is None:
            yield bad(f"{key} is {text!r}, no number: every mail ends in a fault.", advice + f"{LOOPS[key]}.")
        elif key == THRESHOLD and value <= 0:
            yield bad(f"{key} is {value}: every mail is stopped as a loop.", advice + f"{LOOPS[key]}.")
        elif key == THRESHOLD and value < FEW:
            yield bad(f"{key} is {value}: ordinary senders are stopped as a loop.", advice + f"{LOOPS[key]}.")
        elif key == MINUTES and value <= 0:
            yield bad(f"{key} is {value}: no loop is ever stopped.", advice + f"{LOOPS[key]}.")


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _fetchmail(site: Site) -> Iterable[Finding]:
    """Yield whether Odoo itself fetches mail that comes to us, too: coming both ways, it may make two records."""
    try:
        terms = [["state", "=", "done"], ["server_type", "!=", "local"]]
        servers = site.rows("fetchmail.server", terms, "name", "server", "user")
    except Ended:  # an administrator's to read; or the app is not there
        yield unknown("Whether Odoo fetches mail by itself can't be told.")
        return
    same = [str(row["name"]) for row in servers if _is_our_mail(site, row)]
    if same:
        yield bad(
            f"Odoo fetches mail for our addresses by itself: {named(same)}. What comes both ways at once may make "
            "two records.",
            "Settings > Technical > Emails: Incoming Mail Servers: archive it, or keep the mailbox for other mail.",
        )
    elif servers:
        names = named(str(row["name"]) for row in servers)
        yield unknown(f"Odoo fetches mail by itself: {names}. It must not be mail that we get, too.")
    else:
        yield good("Odoo fetches no mail by itself.")


def _is_our_mail(site: Site, server: Row) -> bool:
    """Tell whether a mailbox is that of an address of the database's, or of any in its domains."""
    user = str(server["user"] or "").lower()
    return "@" in user and (
        is_ours(site.listed, Recipient(user)) or split_address(user)[1] in site.listed.alias_domains
    )


CHECKS = {
    "addresses": Check(_list, ("login",)),
    "alias-domain": Check(_domains, ("addresses",)),
    "catchall": Check(_catchall, ("alias-domain",)),
    "alias-no-domain": Check(_without_domain, ("alias-domain",)),
    "alias-status": Check(_status, ("addresses",)),
    "left-out": Check(_left_out, ("alias-domain",)),
    "wider": Check(_wider, ("alias-domain",)),
    "detection": Check(_detection, ("alias-domain", "right-parameters")),
    "loops": Check(_loops, ("login",)),
    "fetchmail": Check(_fetchmail, ("addresses",)),
}
