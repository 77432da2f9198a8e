"""What explain asks the database: which kind it is, and what it has of addresses, messages, people and records.

Each function asks one thing, changes nothing, and raises Ended where the database does not say it.
"""

import ast
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from mailgate import alias_list, inquiry
from mailgate.admin import records
from mailgate.admin.records import Record
from mailgate.database import BOUNCE, CATCHALL, FIRST_WITH_DOMAINS, Client
from mailgate.envelope import canonical_address, split_address
from mailgate.outcome import Ended, Outcome


class Habits(NamedTuple):
    """How a kind of database treats mail, where kinds differ; docs/odoo.md has the facts.

    ``limits_replies`` is None where it depends on the day from which the version is.
    """

    name: str
    max_references: int = 32
    limits_replies: bool | None = True
    is_nearest_first: bool = False  # In-Reply-To, then References from their end; else the newest of References
    reads_reports: bool = False  # who is no machine is heard at the bounce address, and answers to notices are read
    is_told_once: bool = False  # in an hour, and no machine is; what was answered by False before does nothing again
    opens_for_lost: bool = False  # a record that is gone is opened anew
    reads_all: bool = False  # whatever the charset, and NUL
    has_domains: bool = True  # of aliases; else aliases and catchall answer at any, bounce+ID-MODEL-ID does
    stops_loops: bool = True  # and drops answers to its notices
    tells_all: bool = True  # the sender, that a record can't be made, or that only catchall is known beside nobody's

    @property
    def is_odoo(self) -> bool:
        """Whether it is an Odoo, and has its models."""
        return self.name.startswith("Odoo")


HABITS = {
    14: Habits(
        "Odoo 14", max_references=10_000, limits_replies=False, has_domains=False, stops_loops=False, tells_all=False
    ),
    17: Habits("Odoo 17", max_references=10_000, limits_replies=None),
    18: Habits("Odoo 18", limits_replies=None),
    19: Habits("Odoo 19"),
}
MAIL_DATABASE = Habits(
    "mail_database",
    max_references=1000,
    limits_replies=False,
    is_nearest_first=True,
    reads_reports=True,
    is_told_once=True,
    opens_for_lost=True,
    reads_all=True,
)


class Domain(NamedTuple):
    """A domain of aliases, with its two addresses: whole, or what they begin with (``catchall@``, ``bounce+``)."""

    name: str
    catchall: str
    bounce: str


class Alias(NamedTuple):
    """An alias; ``address`` has no domain where the alias has none. ``thread_id`` 0 opens a new record each time."""

    local_part: str
    address: str
    by_local_part: bool
    model: str
    contact: str
    thread_id: int
    parent: tuple[str, int] | None
    defaults: dict[str, Any]


def is_special(special: str, address: str) -> bool:
    """Tell whether an address is one that a domain has for answers, or for delivery reports."""
    if special.endswith("@"):
        return address.startswith(special)
    return bool(re.match(rf"{re.escape(special)}\d", address)) if special.endswith("+") else address == special


class Unforeseen(Ended):
    """Raised where no forecast can be made; the mail is none the worse for that."""

    def __init__(self, why: str) -> None:
        super().__init__(Outcome.SETTINGS, why)


def habits_of(client: Client) -> Habits:
    """Return how the database behaves. Raises Ended and Unforeseen."""
    version = client.version(time.monotonic())
    if not isinstance(version, dict):
        raise Ended(Outcome.CUT_OFF, "what it says of its version can't be read")
    if version.get("reads_all_shapes") is True:
        return MAIL_DATABASE
    number = next(iter(version.get("server_version_info") or [0]))
    number = int(str(number).removeprefix("saas~") or 0) if str(number).removeprefix("saas~").isdigit() else 0
    if number not in HABITS and number < max(HABITS):
        raise Unforeseen(f"a forecast can be made of Odoo 14, and from {FIRST_WITH_DOMAINS} on, not of {number}")
    return HABITS.get(number, HABITS[max(HABITS)])


def known(client: Client, message_ids: Iterable[str]) -> list[Record]:
    """Return where the messages with one of these ids are, newest first."""
    found = records.find(client, filter(str.isprintable, message_ids))
    return sorted(found, key=lambda each: -each.row_id)


def domains(client: Client, habits: Habits) -> list[Domain]:
    """Return the domains of aliases, the oldest first; before Odoo 17 it is one, which may have no name.

    Raises Unforeseen where our user may not ask.
    """
    if not habits.has_domains:
        return [_only_domain(client)]
    options = {"fields": ["name", "catchall_email", "bounce_email"], "order": "id"}
    return [
        Domain(str(row["name"]).lower(), str(row["catchall_email"]).lower(), str(row["bounce_email"]).lower())
        for row in inquiry.rows(client, "mail.alias.domain", [], options)
    ]


def _only_domain(client: Client) -> Domain:
    keys = (alias_list.DOMAIN, CATCHALL, BOUNCE)
    try:
        name, catchall, bounce = (_parameter(client, key).strip().lower() for key in keys)
    except Ended as ended:
        if ended.verdict.outcome is not Outcome.ACCESS_DENIED:
            raise
        raise Unforeseen("before Odoo 17, catchall and bounce are parameters, and our user may not read them") from None
    return Domain(name, f"{catchall}@" if catchall else "", f"{bounce}+" if bounce else "")


def aliases(client: Client, habits: Habits, addresses: Iterable[str], ours: Sequence[Domain]) -> list[Alias]:
    """Return the aliases that these addresses name, whole or by the local-part, in the order of routes."""
    named = {canonical_address(address) for address in addresses if address.isprintable()}
    if not named:
        return []
    by_local_part: dict[str, set[str]] = {}
    for address in named:
        local_part, domain = split_address(address)
        by_local_part.setdefault(local_part, set()).add(domain)
    listed = parameter(client, alias_list.ALLOWED) if habits.has_domains else ""
    allowed = {part.strip() for part in listed.split(",")} - {""}
    if allowed:
        allowed |= {domain.name for domain in ours}
    return [
        alias
        for alias in _aliases_named(client, habits, ours, sorted(by_local_part.keys() - {""}))  # "" has no name
        if canonical_address(alias.address) in named
        or (alias.by_local_part and (not allowed or not allowed.isdisjoint(by_local_part[alias.local_part])))
    ]


_ALIAS_FIELDS = (
    *("alias_name", "alias_model_id", "alias_contact", "alias_defaults"),
    *("alias_force_thread_id", "alias_parent_model_id", "alias_parent_thread_id"),
)
_FIELDS_WITH_DOMAINS = ("alias_full_name", "alias_incoming_local")


def _aliases_named(client: Client, habits: Habits, ours: Sequence[Domain], local_parts: list[str]) -> list[Alias]:
    names = [*_ALIAS_FIELDS, *(_FIELDS_WITH_DOMAINS if habits.has_domains else ())]
    rows = inquiry.rows(client, "mail.alias", [["alias_name", "in", local_parts]], {"fields": names})
    if not habits.has_domains:
        domain = f"@{ours[0].name}" if ours[0].name else ""
        rows = [row | {"alias_full_name": row["alias_name"] + domain, "alias_incoming_local": True} for row in rows]
    ids = {row[name][0] for row in rows for name in ("alias_model_id", "alias_parent_model_id") if row[name]}
    models = _models(client, sorted(ids)) if habits.is_odoo and ids else {}

    def model_of(value: Any) -> str:
        return models.get(value[0], str(value[1])) if value else ""

    found = []
    for row in sorted(rows, key=lambda row: (row["alias_model_id"] or [0], row["alias_name"])):
        parent, parent_id = model_of(row["alias_parent_model_id"]), row["alias_parent_thread_id"] or 0
        found.append(
            Alias(
                local_part=row["alias_name"],
                address=str(row["alias_full_name"] or row["alias_name"]).lower(),
                by_local_part=bool(row["alias_incoming_local"]),
                model=model_of(row["alias_model_id"]),
                contact=row["alias_contact"] or "everyone",
                thread_id=row["alias_force_thread_id"] or 0,
                parent=(parent, parent_id) if parent and parent_id else None,
                defaults=_defaults(row["alias_defaults"]),
            )
        )
    return found


def _defaults(text: Any) -> dict[str, Any]:
    """Return what an alias sets of its records."""
    try:
        value = ast.literal_eval(text or "{}")
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _models(client: Client, ids: list[int]) -> dict[int, str]:
    """Return the technical names of models, "" for none that our user may not read."""
    try:
        rows = inquiry.rows(client, "ir.model", [["id", "in", ids]], {"fields": ["model"]})
    except Ended:  # an administrator's to read
        return {}
    return {row["id"]: row["model"] for row in rows}


def partners(client: Client, address: str) -> list[int]:
    """Return the active partners with an address, the oldest first."""
    return _ids_with(client, "res.partner", address) if address else []


def follows(client: Client, address: str, record: tuple[str, int] | None) -> bool:
    """Tell whether a partner with this address follows a record."""
    those = partners(client, address) if record else []
    if not record or not those:
        return False
    terms: list[Any] = [["res_model", "=", record[0]], ["res_id", "=", record[1]], ["partner_id", "in", those]]
    return bool(inquiry.rows(client, "mail.followers", terms, {"fields": ["partner_id"], "limit": 1}))


def is_employee(client: Client, habits: Habits, address: str) -> bool:
    """Tell whether an employee has an address; mail_database has none, so an internal user counts as one."""
    if not address:
        return False
    if habits.is_odoo:
        terms: list[Any] = ["|", ["work_email", "=ilike", address], ["user_id.email_normalized", "=", address]]
        return bool(inquiry.rows(client, "hr.employee", terms, {"fields": ["id"], "limit": 1}))
    users = inquiry.rows(client, "res.users", [["partner_id", "in", partners(client, address)]], {"fields": ["share"]})
    return any(not user["share"] for user in users)


def _ids_with(client: Client, model: str, address: str) -> list[int]:
    rows = inquiry.rows(client, model, [["email_normalized", "=", address]], {"fields": ["id"], "order": "id"})
    return [row["id"] for row in rows]


def exists(client: Client, model: str, record_id: int) -> bool:
    """Tell whether a record is there, archived or not."""
    options = {"fields": ["id"], "limit": 1, "context": {"active_test": False}}
    return bool(inquiry.rows(client, model, [["id", "=", record_id]], options))


def fields(client: Client, model: str) -> dict[str, Any]:
    """Return the fields of a model with their types, nothing where there is no such model."""
    try:
        found = client.execute(model, "fields_get", [[], ["type"]], {}, time.monotonic())
    except Ended as ended:
        if ended.verdict.outcome in (Outcome.SETTINGS, Outcome.HELD):  # there is no such model
            return {}
        raise
    return found if isinstance(found, dict) else {}


def created(client: Client, model: str, sender: str, since: str) -> int | None:
    """Count the records of a model that a sender has made since a moment (UTC); None where nobody counts them.

    Of a model without email_normalized, those of "jimbob@x.test" count for "bob@x.test", too. The tasks of 17 and 18
    have neither that field nor the other.
    """
    there = fields(client, model)
    terms: list[Any] = [["create_date", ">=", since]]
    if "email_normalized" in there:
        return _count(client, model, [*terms, ["email_normalized", "=", sender]])
    return _count(client, model, [*terms, ["email_from", "ilike", sender]]) if "email_from" in there else None


def posted(client: Client, model: str, record_id: int, senders: list[str], author: int, since: str) -> int:
    """Count the mails of a sender on a record since a moment (UTC): by who he is, else by how he is shown."""
    terms: list[Any] = [["model", "=", model], ["res_id", "=", record_id], ["message_type", "=", "email"]]
    who: list[Any] = ["author_id", "=", author] if author else ["email_from", "in", senders]
    return _count(client, "mail.message", [*terms, who, ["create_date", ">=", since]])


def _count(client: Client, model: str, terms: list[Any]) -> int:
    found = client.execute(model, "search_count", [terms], {}, time.monotonic())
    return found if isinstance(found, int) else 0


def parameter(client: Client, key: str) -> str:
    """Return a system parameter, "" where it is not set or our user may not read it."""
    try:
        return _parameter(client, key)
    except Ended as ended:
        if ended.verdict.outcome is not Outcome.ACCESS_DENIED:
            raise
        return ""


def _parameter(client: Client, key: str) -> str:
    return str(client.execute("ir.config_parameter", "get_param", [key], {}, time.monotonic()) or "")


def is_allowed(client: Client, sender: str) -> bool:
    """Tell whether a sender is one of those who are never stopped."""
    return bool(_ids_with(client, "mail.gateway.allowed", sender))


def was_told(client: Client, to: str, about: str, since: str) -> bool:
    """Tell whether a notice that names an address was sent to somebody since a moment (UTC)."""
    terms: list[Any] = [["email_to", "=", to], ["create_date", ">=", since], ["body_html", "like", about]]
    return bool(inquiry.rows(client, "mail.mail", terms, {"fields": ["id"], "limit": 1}))
