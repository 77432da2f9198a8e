"""The rights of our user, each tried in a way that leaves nothing; docs/install.md has what was measured.

With fewer rights the gateway seems to work, until the first mail to a new alias, or a bounce.
"""

from collections.abc import Iterable

from mailgate.admin.checks import Check, Finding, Site, bad, good, named, unknown, why
from mailgate.outcome import Ended, Outcome

ADVICE = "Make our user an administrator, or give it the rights of docs/install.md, Its rights."
FIRST_HAS_ACCESS = 18  # before, the method is check_access_rights
LIKELY_MODELS = (  # those that aliases of Odoo's own apps make records of
    "crm.lead",
    "project.task",
    "helpdesk.ticket",
    "hr.applicant",
    "hr.expense",
    "account.move",
    "maintenance.request",
    "res.partner",
)
NO_ID = "<nobody@mail-gateway.invalid>"
LOST_BOUNCES = "bounces are taken and nothing is marked"  # before Odoo 17, they wait or are marked


def may(site: Site, model: str, operation: str) -> bool:
    """Tell whether our user may do something with a model's records, as the database says. Raises Ended."""
    if site.release >= FIRST_HAS_ACCESS:
        return bool(site.ask(model, "has_access", [[], operation]))
    return bool(site.ask(model, "check_access_rights", [operation, False]))


def _aliases(site: Site) -> Iterable[Finding]:
    wanted = [("mail.alias", "read")]
    if not site.is_old:  # before 17, domains are parameters, and no alias is marked as working
        wanted += [("mail.alias.domain", "read"), ("mail.alias", "write")]
    missing = [f"{operation} {model}" for model, operation in wanted if not may(site, model, operation)]
    if missing:
        yield bad(f"Our user may not {named(missing)}: the first mail to a new alias waits until it may.", ADVICE)
    else:
        yield good("Our user may do with aliases what new mail needs.")


def _messages(site: Site) -> Iterable[Finding]:
    """Yield whether messages can be looked for: what became of a mail, and which mail a bounce is about."""
    missing = [model for model in ("mail.message", "mail.notification", "res.partner") if not may(site, model, "read")]
    try:
        site.rows("mail.message", [["message_id", "=", NO_ID]], "model", "res_id", limit=1)
    except Ended as ended:
        if ended.verdict.outcome is not Outcome.ACCESS_DENIED:
            raise
        missing = [*dict.fromkeys(["mail.message", *missing])]
    if missing:
        lost = "mail waits" if site.is_old else LOST_BOUNCES
        yield bad(f"Our user may not read {named(missing)}: {lost}; what became of a mail can't be asked.", ADVICE)
    else:
        yield good("Our user may look for messages.")


def _records(site: Site) -> Iterable[Finding]:
    """Yield whether the records can be read and written that mail is for: as far as a model's rights say."""
    try:
        used, is_known = [model for model in LIKELY_MODELS if _has_alias(site, model)], True
    except Ended:  # which model an alias is for, not every user may ask
        used, is_known = [model for model in LIKELY_MODELS if _is_there(site, model)], False
    missing = [f"{way} {model}" for model in used for way in ("read", "write") if not may(site, model, way)]
    text = f"Our user may not {named(missing)}"
    lost = "answers wait" if site.is_old else f"answers wait, and {LOST_BOUNCES}"
    if missing and is_known:
        yield bad(f"{text}: {lost}.", ADVICE)
    elif missing:
        yield unknown(f"{text}. Where aliases make such records, {lost}.")
    elif used:
        yield good(f"Our user may read and write the records that mail makes: {named(used)}.")


def _has_alias(site: Site, model: str) -> bool:
    terms = [["alias_model_id.model", "=", model], ["alias_name", "!=", False]]
    return bool(site.ask("mail.alias", "search_count", [terms]))


def _is_there(site: Site, model: str) -> bool:
    try:
        may(site, model, "read")
    except Ended as ended:
        if ended.verdict.outcome is Outcome.SETTINGS:  # the app is not there
            return False
        raise
    return True


def _parameters(site: Site) -> Iterable[Finding]:
    try:
        site.parameter("mail.catchall.domain.allowed")
    except Ended as ended:
        if ended.verdict.outcome is not Outcome.ACCESS_DENIED:
            raise
        text = f"System parameters can't be read by our user: {why(ended)}."
        if site.is_old:
            yield unknown(f"{text} Before Odoo 17, there is no list of addresses without them.")
        elif site.listed.local_parts and not site.settings.addresses.allowed_domains:
            yield bad(
                f"{text} So aliases with local-part based detection are taken at any domain.",
                "Let our user read ir.config_parameter, or write MAIL_GATEWAY_ALLOWED_DOMAINS.",
            )
        else:
            yield unknown(text)
    else:
        yield good("Our user may read system parameters.")


CHECKS = {
    "right-aliases": Check(_aliases, ("login",)),
    "right-messages": Check(_messages, ("login",)),
    "right-records": Check(_records, ("login",)),
    "right-parameters": Check(_parameters, ("login",)),
}
