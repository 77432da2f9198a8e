"""Inquiry: what the database has made of a message, where its answer does not say so.

``False`` has four meanings (docs/odoo.md, "What a call answers"): the database knew the message; it took a bounce; it
sent a notice; another call for the message is under way and may yet fail. ``None`` has two: a loop was stopped, and the
sender was told; or the message answers a notice of the database, which nobody reads.
"""

import os
import time
from collections.abc import Iterable
from typing import Any

from mailgate.addresses import BOUNCE_EXTENSION, Addresses, Match, has
from mailgate.ancestry import names_a_notice
from mailgate.database import BOUNCE, CATCHALL, Client
from mailgate.envelope import canonical_address, fields, split_address, unfold
from mailgate.outcome import Ended, Outcome, Verdict

NOT_SEEN = "the database says that it knows the message, but has it on no record, or our user may not see it there"

MAX_DOMAINS = 1000  # of a database, that are looked at

# What only a machine's or a list's mail has (RFC 3834, 3.1.7 and 5; RFC 2369), and the values that say nothing.
MACHINE_FIELDS = (b"auto-submitted", b"x-auto", b"list-", b"feedback-id", b"precedence", b"x-precedence")
SAYS_NOTHING = {b"", b"no", b"none", b"first-class", b"normal"}


def of_known(client: Client, message_id: str) -> Verdict | None:
    """Return where the database has a message, None where it has not. Raises Ended where it does not say."""
    terms = [["message_id", "=", message_id]]
    options = {"fields": ["id", "model", "res_id"], "order": "id desc", "limit": 1}
    found = rows(client, "mail.message", terms, options)
    if not found:
        return None
    model, record_id = found[0].get("model"), found[0].get("res_id")
    if not model or type(record_id) is not int:
        return Verdict(Outcome.KNOWN, "it is on no record")
    return Verdict(Outcome.KNOWN, f"it is on {model} {record_id}", record_id)


def of_false(
    client: Client, message_id: str, sender: str | None, head: bytes, addresses: Addresses, matches: Iterable[Match]
) -> Verdict:
    """Return what ``False`` means: known, accepted (a bounce or a notice), or still in progress."""
    try:
        known = of_known(client, message_id)
        if known:
            return known
        special = addresses.catchall | addresses.bounce
        if sender == "" or _may_be_bounce(head, special, matches) or _may_be_notice(client, matches):
            return Verdict(Outcome.ACCEPTED)
        if not addresses.alias_domains and _may_be_bounce(head, _special(client), matches):
            return Verdict(Outcome.ACCEPTED)
    except Ended as ended:  # it has taken the message; what became of it, it does not say
        return Verdict(Outcome.ACCEPTED, f"not known of which kind: {ended.verdict.cause}")
    return Verdict(Outcome.IN_PROGRESS, NOT_SEEN)


def record_of(client: Client, message_ids: Iterable[str]) -> tuple[str, int] | None:
    """Return model and id of the record on which the newest of these messages is, None for none. Raises Ended."""
    known = list(filter(str.isprintable, message_ids))  # what is not can't be asked for
    options = {"fields": ["id", "model", "res_id"], "order": "id desc", "limit": 1}
    newest = rows(client, "mail.message", [["message_id", "in", known]], options)
    model, record_id = (newest[0].get("model"), newest[0].get("res_id")) if newest else (None, None)
    return (str(model), record_id) if model and record_id and type(record_id) is int else None


def of_another_model(client: Client, model: str, addresses: Iterable[str]) -> set[str]:
    """Return which addresses are aliases for another kind of record than ``model``, that of an answer's thread.

    With one of these among its recipients, the database makes a forward of an answer, and its thread gets nothing
    (docs/odoo.md, "Answers and threads"). Raises Ended.
    """
    given = {*map(canonical_address, addresses)}
    terms: list[list[Any]] = [["alias_name", "in", _local_parts(given)], ["alias_model_id.model", "!=", model]]
    if client.has_domains():
        found = rows(client, "mail.alias", terms, {"fields": ["id", "alias_full_name"]})
        return {canonical_address(str(row.get("alias_full_name"))) for row in found}
    names = {row.get("alias_name") for row in rows(client, "mail.alias", terms, {"fields": ["id", "alias_name"]})}
    return {address for address in given if split_address(address)[0] in names}


def answers_a_notice(head: bytes) -> bool:
    """Tell whether a person answers a notice of the database's: nobody is told that such mail is dropped."""
    values = (unfold(field) for name, field in fields(head) if name in (b"references", b"in-reply-to"))
    return any(map(names_a_notice, values)) and not is_automatic(head)


def is_automatic(head: bytes) -> bool:
    """Tell whether a machine or a list has sent a message, as it says."""
    return any(
        name.startswith(MACHINE_FIELDS) and unfold(field).partition(b";")[0].strip().lower() not in SAYS_NOTHING
        for name, field in fields(head)
    )


def _special(client: Client) -> frozenset[str]:
    """Return the database's catchall and bounce addresses, for settings that name no alias domain. Raises Ended."""
    if not client.has_domains():
        terms: list[list[Any]] = [["key", "in", [CATCHALL, BOUNCE]]]
        parameters = rows(client, "ir.config_parameter", terms, {"fields": ["id", "value"]})
        return frozenset(f"{str(row['value']).lower()}@" for row in parameters if row.get("value"))
    fields = ["catchall_email", "bounce_email"]
    found = rows(client, "mail.alias.domain", [], {"fields": fields, "limit": MAX_DOMAINS})
    return frozenset(canonical_address(str(row[name])) for row in found for name in fields if row.get(name))


def _may_be_bounce(head: bytes, special: frozenset[str], matches: Iterable[Match]) -> bool:
    """Tell whether the database may take a message for a bounce, or for one that is to be answered by a notice.

    ``special`` has the catchall and bounce addresses.
    """
    recipients = [split_address(address.lower()) for match in matches for address in match.addresses]
    recipients += [(name.partition(BOUNCE_EXTENSION)[0], domain) for name, domain in recipients]  # as Odoo 14 has it
    if is_automatic(head) or any(has(special, *recipient) for recipient in recipients):
        return True
    for name, field in fields(head):
        value = os.fsdecode(unfold(field)).lower()
        if name == b"content-type" and value.startswith("multipart/report"):
            return True
        if name == b"from" and "mailer-daemon" in value:
            return True
        if name in (b"to", b"delivered-to") and any(address in value for address in special):
            return True
    return False


def _may_be_notice(client: Client, matches: Iterable[Match]) -> bool:
    """Tell whether an alias of the recipients takes not everybody's mail, so that the sender may have been told."""
    names = _local_parts(address for match in matches for address in match.addresses)
    terms: list[list[Any]] = [["alias_name", "in", names], ["alias_contact", "!=", "everyone"]]
    return bool(rows(client, "mail.alias", terms, {"fields": ["id"], "limit": 1}))


def _local_parts(addresses: Iterable[str]) -> list[str]:
    """Return the local-parts that can be asked for."""
    return sorted({split_address(address)[0].lower() for address in filter(str.isprintable, addresses)})


def rows(client: Client, model: str, terms: list[list[Any]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a search finds. Raises Ended, also where the answer is no list of rows."""
    found = client.execute(model, "search_read", [terms], options, time.monotonic())
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise Ended(Outcome.SETTINGS, f"what {model} answers is no list of rows")
    return found
