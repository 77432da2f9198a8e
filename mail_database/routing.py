"""Message + lookups -> Routes: what becomes of a message.

The steps, in the order in which they are executed:

1. **Known.** A message whose Message-ID was accepted before is done already. Only its header is read to find that out.
2. **A machine's answer to a notice.** References or In-Reply-To name a notice of ours, and the message is automatic or
   from the null sender: it is kept as unplaced. A person's answer goes on to 3; the notice's id is ignored.
3. **Report.** The message says that mail came back (bounce.py): notifications are marked as failed. A report that
   names no mail of ours that failed is kept as unplaced.
4. **Reply.** In-Reply-To, then References from their end, name messages. The nearest one that is on a record's thread
   gives the thread. If To names aliases of another model, the message is a forward, and goes on to 5 with these aliases
   only. If an alias of the record's own model is among the recipients, its contact policy applies.
5. **Catchall.** To (with Delivered-To) names only catchall and bounce addresses: the sender is told.
6. **Aliases.** Each alias among the recipients opens a record, or posts to the record that it names. If its contact
   policy (POLICIES) refuses the sender, he is told.
7. **Fallback.** If the caller names a model, that model takes what no alias took.
8. **Catchall again.** A catchall address stands beside addresses that lead nowhere: the sender is told. Otherwise there
   is no route, which is a fault.

Then comes the loop check: if the sender has made too many records, he is told, and no route is taken. A message that no
route takes, and whose sender can't be told (notices.py), is kept as unplaced.

The sender is From. If From is an address of ours and Reply-To (or the field that a group has for it) is not, a group or
a form of ours has sent the message in somebody's name, and he is the sender. A writer to a group chooses his Reply-To
himself. So if several senders are named, a contact policy must allow each of them.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from mail_database import notices
from mail_database.message import Message
from mail_database.store import Row, Store

LOOP_MINUTES, LOOP_THRESHOLD_RECORDS = 120, 20  # Odoo's, where no parameter says otherwise
MAX_BEHIND = 10  # addresses behind the sender that are looked at

# The fields that an alias's defaults may set. A model that is not in MODELS takes no mail.
FIELDS = (
    "name email_from email_cc partner_id active type team_id user_id project_id stage_id priority tag_ids phone "
    "description company_id"
)


Record = tuple[str, int]  # its model and its id


class Policy(NamedTuple):
    """Who may write to an alias: for the notice, in words, and as a test of one sender's address."""

    who: str
    may_write: Callable[[Store, str, Record | None], bool]
    needs_record: bool = False  # the one that the mail is for, else the alias's parent


def _follows(store: Store, address: str, record: Record | None) -> bool:
    """Tell whether a partner with this address follows the record."""
    following = store.followers(*record) if record else set()
    return any(partner["id"] in following for partner in store.partners_with(address))


# Who may write to an alias, by its contact policy (Odoo's alias_contact). An alias without one is for everyone. For
# `employees` an Odoo with the module hr looks for an employee with the address, or for one whose user has it. There
# are no employees here, so an internal user counts as one (docs/decisions.md).
POLICIES = {
    "everyone": Policy("everyone", lambda store, address, record: True),
    "partners": Policy("registered partners", lambda store, address, record: bool(store.partners_with(address))),
    "followers": Policy("certain people", _follows, needs_record=True),
    "employees": Policy("employees", lambda store, address, record: store.has_internal_user(address)),
}


class Model(NamedTuple):
    """What a kind of record is made of, and whether an unknown sender becomes a partner of its own."""

    fields: frozenset[str]
    makes_partner: bool


MODELS = {
    "crm.lead": Model(frozenset(FIELDS.split()), makes_partner=False),
    "project.task": Model(frozenset(FIELDS.split()), makes_partner=True),
    "res.partner": Model(frozenset({"name", "email", "active"}), makes_partner=True),
}
KNOWN_MODELS = {*MODELS, "res.country", "res.company", "res.users"}


class Fault(Exception):
    """A refusal of the call itself: Odoo's fault code, and the last line of its text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code, self.text = code, text


class Route(NamedTuple):
    """A chosen destination; without ``thread_id`` a new record is opened."""

    model: str
    thread_id: int | None = None
    defaults: Mapping[str, Any] = {}
    alias: Row | None = None
    loop_checked: bool = True


class Routes(NamedTuple):
    """What becomes of a message: where it goes, and what its sender is told. Both may be empty."""

    routes: tuple[Route, ...] = ()
    told: tuple[notices.Notice, ...] = ()


class Fallback(NamedTuple):
    """What the caller wants done with mail that no alias takes."""

    model: str = ""
    thread_id: int | None = None
    defaults: Mapping[str, Any] = {}


def in_whose_name(store: Store, message: Message) -> Message:
    """Return the message with the sender in whose name a group or a form of ours has sent it, else as it is."""
    if not message.behind or not is_ours(store, message.sender_address):
        return message._replace(behind=())
    named: dict[str, str] = {}
    for sender, address in message.behind:
        named.setdefault(address, sender)
    named.pop("", None)
    some = islice(named.items(), MAX_BEHIND)
    others = tuple((sender, address) for address, sender in some if not is_ours(store, address))
    if not others:
        return message._replace(behind=())
    if len(named) > MAX_BEHIND:
        others += (("", ""),)  # an unknown sender: no restricted alias takes the message
    sender, address = others[0]
    told = message.return_path and address  # not the group itself; but the null sender stays what it is
    return message._replace(sender=sender, sender_address=address, return_path=told, behind=others)


def is_ours(store: Store, address: str) -> bool:
    """Tell whether an address is an alias of ours, or another that the database, or a form of ours, itself has."""
    domain = address.rpartition("@")[2]
    domains = store.alias_domains()
    is_machine = notices.MACHINES.fullmatch(address) and domain in {row["name"] for row in domains}  # no-reply@
    if is_machine or address in _collecting(domains):
        return True
    has_domain = domain in {row["name"] for row in domains} | _allowed_domains(store)
    return any(has_domain or alias["domain"] == domain for alias in matching_aliases(store, (address,)))


def _collecting(domains: Sequence[Row]) -> dict[str, str]:
    """Return the addresses that only collect answers, catchall and bounce, each with its alias domain."""
    return {f"{row[name]}@{row['name']}".lower(): row["name"] for row in domains for name in ("catchall", "bounce")}


def is_at_bounce_address(store: Store, message: Message) -> bool:
    """Tell whether To (with Delivered-To) names a bounce address of ours."""
    return any(f"{row['bounce']}@{row['name']}".lower() in message.to for row in store.alias_domains())


def ancestor(store: Store, message: Message) -> Row | None:
    """Return the nearest message that this one answers and that is on a record's thread."""
    known = store.messages_named(message.ancestors)
    return next((row for row in known if row["model"] and row["thread_id"]), None)


def route(store: Store, message: Message, fallback: Fallback) -> Routes:
    """Return where a message goes (steps 4 to 8). Raises Fault when it goes nowhere."""
    addressed = matching_aliases(store, message.recipients)
    parent = ancestor(store, message)
    if parent:
        to_others = [alias for alias in matching_aliases(store, message.to) if alias["model"] != parent["model"]]
        if not to_others:
            return _reply(store, message, parent, addressed)
        addressed = to_others

    collecting = _collecting(store.alias_domains())
    caught = [address for address in message.to if address in collecting]
    refusals = tuple(notices.Notice(notices.CATCHALL, address, collecting[address]) for address in caught[:1])
    if caught and len(caught) == len(message.to):
        return Routes(told=refusals)

    if addressed:
        found = [_by_alias(store, message, alias) for alias in addressed]
        return Routes(
            tuple(destination for destination in found if isinstance(destination, Route)),
            tuple(notice for notice in found if isinstance(notice, notices.Notice)),
        )
    if fallback.model:
        if fallback.model not in KNOWN_MODELS:
            raise Fault(1, f"ValueError: Mailbox unavailable - unknown target model {fallback.model}")
        _check_model(fallback.model)
        known = isinstance(fallback.thread_id, int) and store.record(fallback.model, fallback.thread_id)
        thread_id = fallback.thread_id if known else None
        return Routes((Route(fallback.model, thread_id, fallback.defaults, loop_checked=False),))
    if caught:
        return Routes(told=refusals)
    raise Fault(
        1,
        f"ValueError: No possible route found for incoming message from {message.sender} to "
        f"{','.join(message.recipients)} (Message-Id {message.message_id}:). "
        "Create an appropriate mail.alias or force the destination model.",
    )


def matching_aliases(store: Store, addresses: tuple[str, ...]) -> list[Row]:
    """Return the aliases that these addresses name, by the full address or, where it is on, by the local-part."""
    by_local_part: dict[str, set[str]] = {}
    for address in addresses:
        local_part, _, domain = address.rpartition("@")
        by_local_part.setdefault(local_part, set()).add(domain)
    allowed = _allowed_domains(store)
    if allowed:
        allowed |= {row["name"] for row in store.alias_domains()}
    matching = []
    for alias in store.aliases_named(by_local_part):
        domains = by_local_part[alias["local_part"]]
        by_full_address = alias["domain"] in domains
        if by_full_address or (alias["local_part_detection"] and (not allowed or not allowed.isdisjoint(domains))):
            matching.append(alias)
    return matching


def address_of(alias: Row) -> str:
    """Return an alias's address, which is its local-part alone where it has no domain."""
    return f"{alias['local_part']}@{alias['domain']}" if alias["domain"] else str(alias["local_part"])


def _allowed_domains(store: Store) -> set[str]:
    return {domain.strip() for domain in store.parameter("mail.catchall.domain.allowed").split(",")} - {""}


def _reply(store: Store, message: Message, parent: Row, addressed: list[Row]) -> Routes:
    """Return the thread that a reply belongs to; a record that is gone is made anew."""
    model, thread_id = parent["model"], parent["thread_id"]
    exists = store.record(model, thread_id) is not None
    alias = next((alias for alias in addressed if alias["model"] == model), None)
    if alias:
        refusal = _refusal(store, message, alias, (model, thread_id))
        if refusal:
            return Routes(told=(refusal,))
    return Routes((Route(model, thread_id if exists else None, alias=alias),))


def _by_alias(store: Store, message: Message, alias: Row) -> Route | notices.Notice:
    """Return where an alias sends a message, or what its sender is told instead."""
    model, thread_id = alias["model"], alias["thread_id"]
    if thread_id and store.record(model, thread_id) is None:
        thread_id = None  # the record that took this alias's mail is gone: a new one is opened
    if not thread_id:
        _check_model(model)
    refusal = _refusal(store, message, alias, (model, thread_id) if thread_id else None)
    return refusal or Route(model, thread_id, alias["defaults"] or {}, alias)


def _check_model(model: str) -> None:
    if model not in MODELS:
        raise Fault(1, f"ValueError: Mailbox unavailable - model {model} does not accept document creation")


def _refusal(store: Store, message: Message, alias: Row, record: Record | None) -> notices.Notice | None:
    """Return what the sender is told when the alias does not take his mail, else None.

    ``record`` is what the mail would be posted to. Raises Fault where the alias's policy is not in POLICIES.
    """
    name, address = alias["contact"] or "everyone", address_of(alias)
    if name not in POLICIES:
        known = ", ".join(POLICIES)
        raise Fault(1, f"ValueError: alias {address} has an unknown contact policy {name!r}: not one of {known}")
    policy = POLICIES[name]
    if policy.needs_record and not record:
        if not alias["parent_id"]:
            store.set_alias_status(alias["id"], "invalid")
            return notices.Notice(notices.MISCONFIGURED, address, alias["domain"])
        record = alias["parent_model"], alias["parent_id"]
    senders = {message.sender_address, *(found for _, found in message.behind)}
    if all(policy.may_write(store, sender, record) for sender in senders):
        return None
    return notices.Notice(notices.DENIED, address, alias["domain"], policy.who, alias["bounced_content"] or "")


def is_loop(store: Store, message: Message, routes: tuple[Route, ...]) -> bool:
    """Tell whether the sender has made so many records that the next one would be one of a loop.

    Replies are never limited, unless mail.gateway.loop.replies is ``limit`` (as Odoo 19 does).
    """
    sender = message.sender_address
    if not sender or store.is_allowed(sender):
        return False
    minutes = _number(store, "mail.gateway.loop.minutes", LOOP_MINUTES)
    threshold = _number(store, "mail.gateway.loop.threshold", LOOP_THRESHOLD_RECORDS)
    limit_replies = store.parameter("mail.gateway.loop.replies") == "limit"
    for destination in routes:
        if not destination.loop_checked:
            continue
        if destination.thread_id is None:
            count = store.count_created(destination.model, sender, minutes)
        elif limit_replies:
            count = store.count_posted(destination.model, destination.thread_id, message.sender, minutes)
        else:
            continue
        if minutes and count >= threshold:
            return True
    return False


def _number(store: Store, key: str, default: int) -> int:
    value = store.parameter(key)
    try:
        return int(value) if value else default
    except ValueError:
        raise Fault(1, f"ValueError: invalid literal for int() with base 10: {value!r}") from None
