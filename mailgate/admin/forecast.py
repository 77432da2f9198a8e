"""What the database would do with a message, in the order in which it decides, from what it is asked for.

1. **Known.** It has the Message-ID already.
2. **Answer to a notice.** References or In-Reply-To name one: nobody reads that.
3. **Bounce.** The message says that mail came back.
4. **Thread.** Its ids name a message on a record: it is posted there, unless another model's alias among To and
   Delivered-To makes a forward of it. An alias of the record's own model has its contact policy.
5. **Catchall.** To and Delivered-To name only addresses that collect answers: the sender is told.
6. **Aliases.** Each opens a record, or posts to the one that it names, if its contact policy takes the sender.
7. **Model.** What the settings name takes what no alias took; else a catchall address has the sender told; else there
   is no route.
8. **Loop check.** The sender has made too many of these records: he is told, and nothing is made.

No rule here decides anything: explain says what is likely, and the database does what it does. Each step is said in
words as it goes.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple
from xmlrpc.client import Fault

from mailgate.admin import asking
from mailgate.admin.asking import Alias, Domain, Habits, is_special
from mailgate.admin.reading import MARK, Mail, Oddity
from mailgate.admin.records import Record
from mailgate.database import Client

LOOP_MINUTES, LOOP_THRESHOLD = 120, 20  # where no parameter says otherwise
TOLD_MINUTES = 60
ID_OF_NEW = 1  # stands for the id of a record that is not made yet

DAEMONS = ("mailer-daemon@", "postmaster@")
NO_ROUTE = "ValueError: No possible route found for incoming message"
NO_MODEL = "ValueError: Mailbox unavailable - "
GONE = "Record does not exist or has been deleted."


class Step(NamedTuple):
    """A step of what would happen: its name, and what is said of it."""

    step: str
    text: str


class Notice(NamedTuple):
    """What a sender would be told: why (catchall, denied, misconfigured, loop), who, and of which address."""

    about: str
    to: str
    address: str


class Route(NamedTuple):
    """Where a message would go; without ``record_id`` a new record is made."""

    model: str
    record_id: int = 0
    alias: Alias | None = None
    is_counted: bool = True


class Forecast(NamedTuple):
    """What the database would answer (a value, or the Fault that it raises), and what it would have done."""

    answer: Any
    routes: tuple[Route, ...] = ()
    notices: tuple[Notice, ...] = ()

    @property
    def creates(self) -> list[str]:
        """The models of the records that would be made."""
        return [route.model for route in self.routes if not route.record_id]

    @property
    def posts(self) -> list[tuple[str, int]]:
        """The records that are there, on whose threads it would be posted."""
        return [(route.model, route.record_id) for route in self.routes if route.record_id]


class Case(NamedTuple):
    """A message at a database, and what has been said of it so far. ``model`` takes what no alias takes.

    ``answered_before`` tells that the journal knows that the database took the message and made no record of it.
    """

    client: Client
    habits: Habits
    mail: Mail
    odd: list[Oddity]
    model: str
    answered_before: bool
    domains: list[Domain]
    steps: list[Step]

    def say(self, step: str, text: str) -> None:
        """Add a step."""
        self.steps.append(Step(step, text))


def forecast(case: Case) -> Forecast:
    """Return what the database would do, and say it in the case's steps. Raises Ended where it can't be asked."""
    for step in (_unreadable, _known, _answers_a_notice, _is_bounce):
        found = step(case)
        if found:
            return found
    routed = _routed(case)
    if isinstance(routed.answer, Fault) or not routed.routes:
        return routed
    return _stopped(case, routed) or _made(case, routed)


def _unreadable(case: Case) -> Forecast | None:
    fault = next((odd for odd in case.odd if odd.fault), None)
    if not fault or case.habits.reads_all:
        return None
    case.say("read", f"{case.habits.name} can't read it: {fault.text}")
    return Forecast(Fault(1, fault.fault))


def _known(case: Case) -> Forecast | None:
    found = asking.known(case.client, [case.mail.message_id]) if case.mail.message_id else []
    if found:
        case.say("known", f"The database has this Message-ID already, on {_name(found[0])}: nothing is added.")
        return Forecast(False)
    if case.answered_before and case.habits.is_told_once:
        case.say("known", "The database took this Message-ID before, and does so once.")
        return Forecast(False)
    case.say("known", "The database does not have this Message-ID yet.")
    return None


def _name(known: Record) -> str:
    return f"{known.model} {known.record_id}" if known.model else "no record"


def _answers_a_notice(case: Case) -> Forecast | None:
    named = (*case.mail.references, *case.mail.in_reply_to)
    if not case.habits.stops_loops or not any(MARK in each for each in named):
        return None
    if case.habits.reads_reports and not case.mail.is_automatic and case.mail.return_path != "":
        case.say("notice", "A person answers a notice of the database: it is read as any other mail.")
        return None
    case.say("notice", "It answers a notice of the database: that is dropped.")
    return Forecast(None)


def _is_bounce(case: Case) -> Forecast | None:
    mail = case.mail
    bounces = [domain.bounce for domain in case.domains]
    at_bounce = next((address for address in mail.to if any(is_special(each, address) for each in bounces)), "")
    is_daemon = mail.sender_address.partition("@")[0] == "mailer-daemon"
    reasons = {
        f"it is for the bounce address {at_bounce}": at_bounce and (not case.habits.reads_reports or _reports(mail)),
        "mailer-daemon wrote it": is_daemon,
        "its type is multipart/report": mail.is_report,
        "the null sender sent a report": case.habits.reads_reports and mail.return_path == "" and mail.has_report,
    }
    why = next((reason for reason, holds in reasons.items() if holds), "")
    if not why:
        return None
    text = "notifications may be marked as failed, and no record is made"
    case.say("bounce", f"It is taken for a bounce, for {why}: {text}.")
    return Forecast(False)


def _reports(mail: Mail) -> bool:
    """Tell whether what came to the bounce address is a report of a mail system, not an absence note or a person's."""
    is_daemon = not mail.sender_address or mail.sender_address.startswith(DAEMONS)
    return is_daemon or ((mail.return_path == "" or mail.is_of_a_machine) and mail.has_report)


# --- where it goes ---


def _routed(case: Case) -> Forecast:
    mail = case.mail
    if mail.delivered_to > 1 and not case.habits.has_domains:
        case.say("odd", f"{case.habits.name} joins several Delivered-To with a blank: whom it finds can't be told.")
    addressed = asking.aliases(case.client, case.habits, mail.recipients, case.domains)
    parent = _parent(case)
    if parent:
        of_others = [
            alias
            for alias in asking.aliases(case.client, case.habits, mail.to, case.domains)
            if alias.model != parent.model
        ]
        if not of_others:
            return _reply(case, parent, addressed)
        named = ", ".join(alias.address for alias in of_others)
        case.say("thread", f"But To names {named}, for another model: so it is a forward, and goes there only.")
        addressed = of_others
    collecting = [address for domain in case.domains for address in _collecting(case, domain)]
    caught = [address for address in mail.to if any(is_special(each, address) for each in collecting)]
    if caught and len(caught) == len(mail.to):
        case.say("catchall", f"To names only {caught[0]}, which collects answers, and this answers nothing.")
        return _told(case, "catchall", caught[0])
    if addressed:
        return _by_aliases(case, addressed)
    if case.model:
        return _by_model(case)
    if caught and case.habits.tells_all:
        case.say("catchall", f"To names {caught[0]}, which collects answers, and no alias.")
        return _told(case, "catchall", caught[0])
    case.say("alias", f"No alias is among its recipients: {', '.join(mail.recipients) or 'there are none'}.")
    return Forecast(Fault(1, NO_ROUTE))


def _collecting(case: Case, domain: Domain) -> tuple[str, ...]:
    return (domain.catchall, domain.bounce) if case.habits.reads_reports else (domain.catchall,)


def _parent(case: Case) -> Record | None:
    """Return the message that this one answers, None where no record's thread is known by its ids."""
    mail, habits = case.mail, case.habits
    if habits.is_nearest_first:
        source = "In-Reply-To, then References from their end; the nearest counts"
        named = list(dict.fromkeys((*mail.in_reply_to, *reversed(mail.references))))[: habits.max_references]
        named = [each for each in named if MARK not in each]
    else:
        source = "References; the newest message counts" if mail.references else "In-Reply-To"
        named = list(mail.references or mail.in_reply_to)[-habits.max_references :]
    if not named:
        case.say("thread", "It names no other message: it is no answer.")
        return None
    found = asking.known(case.client, named)
    if habits.is_nearest_first:
        # newest first, so of several messages with one id that one counts
        found = sorted((each for each in found if each.model), key=lambda each: named.index(each.message_id))
    answered = next(iter(found), None)
    if not answered:
        case.say("thread", f"It names {_number(len(named), 'message')} ({source}), and the database has none of them.")
        return None
    if not answered.model or not answered.record_id:
        case.say("thread", f"It answers {answered.message_id} ({source}), which is on no record.")
        return None
    case.say("thread", f"It answers {answered.message_id} on {_name(answered)} ({source}).")
    return answered


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _reply(case: Case, parent: Record, addressed: list[Alias]) -> Forecast:
    is_there = asking.exists(case.client, parent.model, parent.record_id)
    alias = next((alias for alias in addressed if alias.model == parent.model), None)
    if alias and not is_there and not case.habits.opens_for_lost:
        case.say("thread", "Its record is gone: the database can't take an answer to it beside that alias.")
        return Forecast(Fault(2, GONE))
    if alias:
        refused = _refused(case, alias, (parent.model, parent.record_id))
        if refused:
            return refused
    if not is_there:
        case.say("thread", "Its record is gone: a new one is made.")
    return Forecast(True, (Route(parent.model, parent.record_id if is_there else 0, alias),))


def _by_aliases(case: Case, addressed: list[Alias]) -> Forecast:
    routes: list[Route] = []
    notices: list[Notice] = []
    for alias in addressed:
        record_id = alias.thread_id
        what = f"posts to {alias.model} {record_id}" if record_id else f"makes a new {alias.model}"
        case.say("alias", f"The alias {alias.address} {what}.")
        if record_id and not asking.exists(case.client, alias.model, record_id):
            case.say("alias", f"But {alias.model} {record_id} is gone.")
            if not case.habits.opens_for_lost:
                return _failed(case, Fault(2, GONE), notices)
            record_id = 0
        if not record_id and "message_ids" not in asking.fields(case.client, alias.model):
            case.say("alias", f"But no mail makes a record of {alias.model}.")
            fault = Fault(1, f"{NO_MODEL}model {alias.model} does not accept document creation")
            return _failed(case, fault, notices)
        refused = _refused(case, alias, (alias.model, record_id) if record_id else None)
        if refused and isinstance(refused.answer, Fault):
            return _failed(case, refused.answer, notices)
        if refused:
            notices += refused.notices
        else:
            routes.append(Route(alias.model, record_id, alias))
    return Forecast(bool(routes), tuple(routes), tuple(notices))


def _failed(case: Case, fault: Fault, notices: list[Notice]) -> Forecast:
    """Return the forecast of a failure, before which senders may have been told: only an Odoo does not take it back."""
    if notices and not case.habits.is_odoo:
        case.say("notice", "But the whole message is taken back: nobody is told.")
    return Forecast(fault, notices=tuple(notices) if case.habits.is_odoo else ())


def _by_model(case: Case) -> Forecast:
    if "message_ids" not in asking.fields(case.client, case.model):
        case.say("model", f"No alias takes it, and no mail makes a record of {case.model}, which the settings name.")
        return Forecast(Fault(1, f"{NO_MODEL}unknown target model {case.model}"))
    case.say("model", f"No alias takes it; the settings' MODEL makes a new {case.model}.")
    return Forecast(True, (Route(case.model, is_counted=False),))


# --- who may write ---

Policy = Callable[[Case, str, tuple[str, int] | None], bool]
POLICIES: dict[str, tuple[str, Policy]] = {
    "everyone": ("everyone", lambda case, address, record: True),
    "partners": ("partners", lambda case, address, record: bool(asking.partners(case.client, address))),
    "followers": (
        "followers of its record",
        lambda case, address, record: asking.follows(case.client, address, record),
    ),
    "employees": ("employees", lambda case, address, record: asking.is_employee(case.client, case.habits, address)),
}


def _refused(case: Case, alias: Alias, record: tuple[str, int] | None) -> Forecast | None:
    """Return what happens where an alias does not take the sender's mail for a record, None where it does."""
    if alias.contact not in POLICIES:
        case.say("policy", f"{alias.address} has a contact policy that nobody knows: {alias.contact}.")
        return Forecast(Fault(1, f"ValueError: unknown contact policy {alias.contact!r}"))
    who, may_write = POLICIES[alias.contact]
    record = record or alias.parent
    if alias.contact == "followers" and not record:
        case.say("policy", f"{alias.address} takes mail of followers, but names no record that they could follow.")
        return _told(case, "misconfigured", alias.address)
    if may_write(case, case.mail.sender_address, record):
        if alias.contact != "everyone":
            case.say("policy", f"{alias.address} takes mail of {who}, and {case.mail.sender_address} is one of them.")
        return None
    sender = case.mail.sender_address or "who names no address"
    case.say("policy", f"{alias.address} takes mail of {who} only, and {sender} is none of them.")
    return _told(case, "denied", alias.address)


# --- what stops it ---


def _stopped(case: Case, routed: Forecast) -> Forecast | None:
    """Return the forecast for a sender who has made too much, None where the loop check lets him go on."""
    sender = case.mail.sender_address
    if not case.habits.stops_loops:
        case.say("loop", f"{case.habits.name} stops no sender.")
        return None
    if not sender:
        case.say("loop", "The loop check counts nobody who names no address.")
        return None
    if asking.is_allowed(case.client, sender):
        case.say("loop", f"{sender} is in mail.gateway.allowed: the loop check does not stop him.")
        return None
    try:
        minutes = _parameter(case, "mail.gateway.loop.minutes", LOOP_MINUTES)
        threshold = _parameter(case, "mail.gateway.loop.threshold", LOOP_THRESHOLD)
    except ValueError as error:
        case.say("loop", "mail.gateway.loop.minutes or .threshold is no number: the database can take no mail.")
        return Forecast(Fault(1, f"ValueError: {error}"))
    for route in routed.routes:
        count = _count(case, route, minutes)
        if count is None:
            continue
        where = f"mails on {route.model} {route.record_id}" if route.record_id else f"records of {route.model}"
        text = f"{sender} has {count} {where} of the last {minutes} minutes; from {threshold} on he is stopped"
        is_stopped = count >= threshold and minutes != 0
        case.say("loop", f"{text}: he is." if is_stopped else f"{text}.")
        if is_stopped:
            return _told(case, "loop", route.alias.address if route.alias else "us")._replace(answer=None)
    return None


def _parameter(case: Case, key: str, default: int) -> int:
    value = asking.parameter(case.client, key)
    return int(value) if value else default


def _count(case: Case, route: Route, minutes: int) -> int | None:
    """Return how many the sender has made where a route leads, None where they are not counted."""
    habits, sender = case.habits, case.mail.sender_address
    since = utc(time.time() - minutes * 60)
    if not route.is_counted:
        return None
    if not route.record_id:
        count = asking.created(case.client, route.model, sender, since)
        if count is None:
            case.say("loop", f"{habits.name} does not count records of {route.model}.")
        return count
    limits = habits.limits_replies
    if not habits.is_odoo:
        limits = asking.parameter(case.client, "mail.gateway.loop.replies") == "limit"
    if limits is False:
        case.say("loop", f"{habits.name} does not count answers.")
        return None
    author = next(iter(asking.partners(case.client, sender)), 0) if route.alias and habits.is_odoo else 0
    count = asking.posted(case.client, route.model, route.record_id, [case.mail.sender, sender], author, since)
    if limits is None:
        case.say("loop", f"{habits.name} counts answers from 2025 on: the sender has {count} there.")
        return None
    return count


def utc(seconds: float) -> str:
    """Return a moment as a search takes it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


# --- what comes of it ---


def _told(case: Case, about: str, address: str) -> Forecast:
    """Return the forecast of a notice to the sender, where he is told at all."""
    to = case.mail.told_address
    if not to:
        why = "there is nobody to be told"
    elif case.habits.is_told_once and case.mail.is_of_a_machine:
        why = "a machine or a list sent it, which is not answered"
    elif case.habits.is_told_once and asking.was_told(case.client, to, address, utc(time.time() - 60 * TOLD_MINUTES)):
        why = f"{to} was told within the last hour"
    else:
        case.say("notice", f"{to} is told so ({about}).")
        return Forecast(False, notices=(Notice(about, to, address),))
    case.say("notice", f"Nobody is told: {why}.")
    return Forecast(False)


def _made(case: Case, routed: Forecast) -> Forecast:
    """Return the forecast of the records, or of the first one that can't be made."""
    for route in routed.routes:
        wrong = _wrong_defaults(case, route) if route.alias and not route.record_id else ""
        if wrong and route.alias:
            case.say("alias", f"But its defaults can't be set: {wrong}. The whole message is taken back.")
            told = _told(case, "misconfigured", route.alias.address) if case.habits.tells_all else Forecast(False)
            return told._replace(answer=Fault(1, f"ValueError: {wrong}"))
    return routed._replace(answer=routed.routes[-1].record_id or ID_OF_NEW)


def _wrong_defaults(case: Case, route: Route) -> str:
    """Return which of an alias's defaults its model has not, or takes not; "" for none."""
    assert route.alias
    there = asking.fields(case.client, route.model)
    for name, value in route.alias.defaults.items():
        if name not in there:
            return f"Invalid field {name!r} in {route.model!r}"
        found = there[name]
        if found.get("type") == "many2one" and value and not _is_there(case, found, value):
            return f"{name} names a record that is not there"
    return ""


def _is_there(case: Case, field: dict[str, Any], value: Any) -> bool:
    return not isinstance(value, int) or "relation" not in field or asking.exists(case.client, field["relation"], value)
