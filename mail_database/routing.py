"""Message + lookups -> what becomes of it.

In the order in which it is asked:

1. **Known.** A message whose Message-ID was accepted before is done: nothing. Only its header was read for that.
2. **A machine's answer to a notice.** References or In-Reply-To name a notice of ours, and the message is automatic or
   from the null sender: it is kept as unplaced. A person's answer goes on; the notice's id counts as none.
3. **Report.** It says that mail came back (bounce.py): notifications fail. One that names no mail of ours that failed
   is kept as unplaced.
4. **Reply.** The nearest message that In-Reply-To, then References from their end, name and that has a record: its
   thread. An alias of another kind in To makes it a forward, which goes on with 5 for these aliases alone. An alias of
   the record's own kind among the recipients has its say about who may write.
5. **Catchall.** To (with Delivered-To) names nothing but catchall and bounce addresses: the sender is told.
6. **Aliases.** Each alias among the recipients opens a record, or posts to the one it names; a sender whom an alias
   does not take is told.
7. **Fallback.** The caller's model takes what no alias took.
8. **Catchall again**, beside addresses that lead nowhere: the sender is told. Else there is no route: a fault.

Then the loop check: a sender who has made too many records is stopped, and told, for all routes or none. What goes
nowhere and whose sender can't be told (notices.py) is kept as unplaced.

The sender is From. Where that is an address of ours and Reply-To (or what a group puts in its place) is not, a group or
a form of ours has sent the message in somebody's name, and he is the sender. Whoever writes to a group chooses his
Reply-To, so where several are named, an alias for some people takes the message only if each of them may write.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from mail_database import notices
from mail_database.message import Message
from mail_database.store import Row, Store

LOOP_MINUTES, LOOP_THRESHOLD_MESSAGES = 120, 20  # Odoo's, where no parameter says otherwise
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
    """What becomes of a message: where it goes, and what its sender is told. Neither: it is accepted, that's all."""

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
        others += (("", ""),)  # nobody, who may write nowhere
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
        thread_id = None  # the record that took all of its mail is gone: a new one takes this
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
    threshold = _number(store, "mail.gateway.loop.threshold", LOOP_THRESHOLD_MESSAGES)
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
