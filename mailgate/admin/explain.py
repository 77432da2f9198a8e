"""explain: what would happen to a message, or to mail for an address, step by step; it asks and changes nothing.

The walk itself runs: the journal is only looked at, nothing is kept, and the call is foretold, not made (forecast.py).
"""

import difflib
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import IO, Any, NamedTuple

from mailgate import alias_list, ancestry, journal, plan, shapes, walk
from mailgate.addresses import Addresses, Match, match
from mailgate.admin import asking, reading
from mailgate.admin.asking import Alias, Domain
from mailgate.admin.desk import Answer, Command, Desk, Usage, as_caller, refusal
from mailgate.admin.forecast import Case, Forecast, Notice, Step, forecast
from mailgate.admin.meaning import style, word
from mailgate.admin.screen import pairs, words
from mailgate.arguments import Arguments
from mailgate.database import Client
from mailgate.envelope import Envelope, Raw, Recipient, envelope_of, fields, queue_id, spool, unfold
from mailgate.judge import Reply
from mailgate.log import Facts
from mailgate.outcome import Ended, Outcome, Verdict
from mailgate.settings import Settings

NEXT_QUEUE_ID = "another"  # the MTA's name for the delivery that is foretold: it is not one of before
GOOD = (Outcome.DELIVERED, Outcome.KNOWN, Outcome.ACCEPTED)  # if the sender is told nothing
NEAR = 0.6  # from which on a spelling is near (difflib)
MAX_VALUE_CHARACTERS = 500  # of a field that is put in front


class Explained(NamedTuple):
    """What would happen to a message: how it would end, what would be made, and the steps in words.

    Where it is the database that decides, and nobody can foretell what, there is no verdict.
    """

    verdict: Verdict | None
    creates: list[str]
    posts: list[tuple[str, int]]
    notices: list[Notice]
    steps: list[Step]

    @property
    def sentence(self) -> str:
        """The ending, and on which records, in a sentence."""
        if not self.verdict:
            return "It would be given to the database, which decides."
        where = [f"a new {model}" for model in self.creates] + [f"{model} {number}" for model, number in self.posts]
        text = f"It would end as {word(self.verdict.outcome).replace('_', ' ')} ({self.verdict.outcome.line})"
        text += f": on {' and '.join(where)}" if where else ""
        text += f"; {self.notices[0].to} is told why not" if self.notices else ""
        return f"{text}."


def _nothing(*what: object) -> None:
    """Keep nothing."""


class _Foretelling(Client):
    """The database, asked as ever, except that a message is not handed over: what would be answered is foretold."""

    def __init__(self, settings: Settings, now: float) -> None:
        super().__init__(settings)
        self.now, self.steps, self.forecasts, self.is_foreseen = now, list[Step](), list[Forecast](), True

    def post(self, added: bytes, raw: Raw, until: float, on_leaving: Callable[[bool], None]) -> Reply:
        """Return what the database would answer."""
        from xmlrpc.client import Fault, dumps

        try:
            head, habits = added + raw.head(), asking.habits_of(self)
            domains = asking.domains(self, habits)
        except asking.Unforeseen:
            self.is_foreseen = False
            raise
        mail = reading.read(head, finds_all=habits.reads_all)
        if self.forecasts:
            text = f"The database is called once more, with the id {mail.message_id}, for {', '.join(mail.recipients)}."
            self.steps.append(Step("call", text))
        self.steps += _of_added(added)
        with journal.look(self.settings, journal.Delivery(mail.message_id, "", added, ancestry.date(head))) as before:
            answered = not before.held and before.ending in (Outcome.ACCEPTED.name, Outcome.DROPPED.name)
        odd = reading.oddities(head, self.now)
        case = Case(self, habits, mail, odd, self.settings.model, answered, domains, self.steps)
        found = forecast(case)
        self.forecasts.append(found)
        answer = found.answer
        if answer is None:  # which XML-RPC has not
            answer = Fault(1, "TypeError: cannot marshal None unless allow_none is enabled")
        value = answer if isinstance(answer, Fault) else (answer,)
        return Reply(200, dumps(value, methodresponse=True).encode("utf-8", "replace"))


def explain(settings: Settings, source: IO[bytes], given: Arguments, now: float) -> Explained:
    """Return what would happen to the message in a file, with the envelope that is given, else its header's.

    ``now`` is in seconds since 1970. The ending of a message that can't be explained is that of the gateway.
    """
    try:
        raw = spool(source, settings.max_size)
    except Ended as ended:
        return Explained(ended.verdict, [], [], [], [Step("read", f"There is nothing to read: {ended.verdict.cause}.")])
    with raw.file:
        envelope = envelope_of(given, {}, raw.head())
        if raw.size > settings.max_size:
            verdict = Verdict(Outcome.TOO_LARGE, f"more than {settings.max_size} bytes")
            text = f"It has more than {settings.max_size:,} bytes (MAIL_GATEWAY_MAX_SIZE): it is refused."
            return Explained(verdict, [], [], [], [*_of_envelope(envelope, raw), Step("size", text)])
        return _explained(settings, envelope, raw, now)


def _explained(settings: Settings, envelope: Envelope, raw: Raw, now: float) -> Explained:
    client, head = _Foretelling(settings, now), raw.head()
    steps = _of_envelope(envelope, raw)
    planned = plan.plan(
        settings.addresses, envelope, raw, lambda found: alias_list.settle(client, settings.addresses, found)
    )
    steps += of_matches(client, settings.addresses, planned.matches)
    steps += [Step("odd", odd.text) for odd in reading.oddities(head, now)]
    if planned.choices[0]:
        steps += _of_journal(settings, planned)
        steps += _of_shape(client, head)
    facts = Facts(queue_id(head) or NEXT_QUEUE_ID)
    verdict = walk.deliver(settings, client, envelope, raw, facts, claim=journal.look, keep=_nothing, watch=_nothing)
    steps += client.steps
    if verdict.cause:
        cause = _without_place(verdict.cause)
        steps.append(Step("ending", f"The log would have: {cause}" if client.is_foreseen else cause))
    return Explained(
        verdict if client.is_foreseen else None,
        [model for found in client.forecasts for model in _if_taken(found, found.creates)],
        [record for found in client.forecasts for record in _if_taken(found, found.posts)],
        [notice for found in client.forecasts for notice in found.notices],
        steps,
    )


def _if_taken(found: Forecast, what: list[Any]) -> list[Any]:
    """Return what is made where the call does not fail: else it is taken back."""
    return what if found.answer and isinstance(found.answer, int) else []


def _without_place(cause: str) -> str:
    """Return a cause without the file that nobody has written."""
    return cause.partition("; kept as ")[0]


# --- the steps of the gateway, in words ---


def _of_envelope(envelope: Envelope, raw: Raw) -> list[Step]:
    sender = {None: "not known, and no Return-Path says it", "": "the null sender <>"}.get(
        envelope.sender, envelope.sender
    )
    return [
        Step("read", f"{raw.size:,} bytes."),
        Step("envelope", f"Its sender is {sender}."),
        Step("envelope", f"It is for {', '.join(map(_of_recipient, envelope.recipients)) or 'nobody'}."),
    ]


def _of_recipient(recipient: Recipient) -> str:
    before = recipient.original_recipient
    return f"{recipient.address} (before: {before})" if before else recipient.address


def of_matches(client: Client, addresses: Addresses, matches: list[Match]) -> list[Step]:
    """Return what the settings and the database say of each recipient, and which alias is near to one of neither."""
    steps = []
    try:
        listed = alias_list.ask(client, addresses, [each.recipient for each in matches])
        theirs, unknown = match(listed, [each.recipient for each in matches]), ""
    except Ended as ended:
        theirs, unknown = [], ended.verdict.cause
    for number, each in enumerate(matches):
        address = each.recipient.address
        if each.rule:
            known_as = ", else as ".join(each.addresses)
            steps.append(Step("match", f"{address} is delivered as {known_as}: {each.rule}."))
        else:
            steps.append(Step("match", f"{address} is not ours: no rule of the settings takes it."))
        if theirs and theirs[number].rule:
            steps.append(Step("match", f"The database has it: {theirs[number].rule}."))
        elif theirs:
            steps.append(Step("match", f"The database has no such address. {nearest(client, addresses, address)}"))
    if unknown:
        steps.append(Step("match", f"The database does not say which addresses it has: {unknown}"))
    return steps


def nearest(client: Client, addresses: Addresses, address: str) -> str:
    """Return a sentence about the address of the database that is spelled most alike."""
    try:
        listed = alias_list.read(client, addresses)
    except Ended as ended:
        return f"Its list can't be read: {ended.verdict.cause}"
    there = sorted(listed.aliases | listed.catchall | listed.bounce)
    found = difflib.get_close_matches(address.lower(), there, n=1, cutoff=NEAR)
    return f"The nearest one is {found[0]}." if found else "None is spelled alike."


def _of_journal(settings: Settings, planned: plan.Plan) -> list[Step]:
    if not settings.journal:
        return [Step("journal", "There is no journal (MAIL_GATEWAY_JOURNAL).")]
    date = ancestry.date(planned.raw.head())
    delivery = journal.Delivery(planned.message_id, NEXT_QUEUE_ID, planned.added, date)
    try:
        with journal.look(settings, delivery) as known:
            return [Step("journal", text) for text in _of_claim(known, date, planned.message_id)]
    except Ended as ended:
        return [Step("journal", f"Not now: {ended.verdict.cause}.")]


def _of_claim(known: journal.Claim, date: int | None, message_id: str) -> list[str]:
    if not (known.ending or known.was_ambiguous or known.served):
        return [f"The journal does not know {message_id}."]
    texts = []
    if known.ending:  # what is kept counts as accepted for a next try
        ending = Outcome.HELD.name if known.held else known.ending
        texts.append(f"The journal knows {message_id}: it ended as {ending.lower()}.")
    if known.was_ambiguous:
        texts.append(f"Nobody knows whether the database has it: {known.tries} tries got no whole answer.")
    if known.served:
        texts.append(f"It was served for {', '.join(sorted(known.served))}.")
    if known.held:
        texts.append(f"It was kept as {known.held}.")
    if None not in (known.date, date) and known.date != date:
        texts.append("That one has another Date, so this is another message: it goes under an id of its own.")
    return texts


# Why each field is put in front.
REASONS = {
    b"return-path": "notices of the database go there",
    b"delivered-to": "for whom no field of the header names",
    b"message-id": "it has none of its own that every database reads",
    b"references": "ids that the database would not read where they stand",
    b"x-first-line": "its first line would go on with the field before",
}


def _of_added(added: bytes) -> list[Step]:
    steps = []
    for name, field in fields(added):
        value = os.fsdecode(unfold(field))[:MAX_VALUE_CHARACTERS]
        title = os.fsdecode(field.partition(b":")[0])
        steps.append(Step("prepare", f"In front goes {title}: {value} ({REASONS[name]})."))
    return steps or [Step("prepare", "Nothing is put in front.")]


def _of_shape(client: Client, head: bytes) -> list[Step]:
    slow = shapes.too_slow(head)
    if not slow:
        return []
    taken = "this database reads it nevertheless" if client.reads_all_shapes() else "so it is not handed over"
    return [Step("shape", f"{slow}: {taken}.")]


# --- the command ---


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", default="", metavar="FILE", help="the message; - or none: standard input")
    parser.add_argument("recipients", nargs="*", metavar="RECIPIENT", help="the envelope's; else the header's")
    parser.add_argument("--sender", metavar="ADDRESS", help='the envelope\'s; "" is the null sender; else Return-Path')
    parser.add_argument(
        "--original-recipient", action="append", default=[], metavar="ADDRESS", help="before it was redirected"
    )
    parser.add_argument("--address", metavar="ADDRESS", help="explain an address alone")


def _answer(desk: Desk, arguments: Namespace) -> Answer:
    if arguments.address:
        if arguments.file:
            raise Usage("--address explains an address alone, without a message")
        return _address(desk, arguments.address)
    if not arguments.file and os.isatty(0):
        raise Usage("the message is expected in a file or on standard input; --address explains an address alone")
    path = arguments.file or "-"
    given = Arguments()
    given.recipients, given.original_recipients = tuple(arguments.recipients), tuple(arguments.original_recipient)
    given.sender = arguments.sender
    try:
        with as_caller():  # it is the caller's file
            source = open(0 if path == "-" else path, "rb", closefd=path != "-")
    except FileNotFoundError as error:
        raise Usage(str(refusal(error))) from None
    with source:
        found = explain(desk.settings, source, given, desk.now)
    outcome = found.verdict.outcome if found.verdict else None
    is_good = outcome in GOOD and not found.notices
    screen = [*_screen(found.steps), "", words(found.sentence, style(outcome) if outcome else "")]
    return Answer(facts(found), screen, is_good)


def facts(found: Explained) -> dict[str, Any]:
    """Return what would happen for a program."""
    return {
        "outcome": word(found.verdict.outcome) if found.verdict else None,
        "status_code": found.verdict.outcome.status_code if found.verdict else None,
        "creates": found.creates,
        "posts": [{"model": model, "id": number} for model, number in found.posts],
        "notices": [notice._asdict() for notice in found.notices],
        "sentence": found.sentence,
        "steps": [step._asdict() for step in found.steps],
    }


def _address(desk: Desk, address: str) -> Answer:
    """Return what would become of mail for an address alone."""
    client, addresses = desk.client, desk.settings.addresses
    matches = match(addresses, [Recipient(address)])
    steps = of_matches(client, addresses, matches)
    model = ""
    with_alias, domains = list[Alias](), list[Domain]()
    try:
        habits = asking.habits_of(client)
        domains = asking.domains(client, habits)
        wanted = [*matches[0].addresses, address]
        with_alias = asking.aliases(client, habits, wanted, domains)
    except Ended as ended:
        steps.append(Step("alias", f"The database can't be asked: {ended.verdict.cause}"))
    for alias in with_alias:
        model = model or alias.model
        where = f"posts to {alias.model} {alias.thread_id}" if alias.thread_id else f"makes a new {alias.model}"
        steps.append(Step("alias", f"The alias {alias.address} {where}; {alias.contact} may write to it."))
        steps += [Step("alias", f"It sets {name} to {value!r}.") for name, value in alias.defaults.items()]
    uses = _uses(address.lower(), domains)
    steps += [Step("alias", f"{address} {use}.") for use in uses or _lesser_uses(address.lower(), domains)]
    is_good = bool(matches[0].rule and (with_alias or uses or desk.settings.model))
    facts = {
        "address": address,
        "rule": matches[0].rule,
        "models": [alias.model for alias in with_alias],
        "steps": [step._asdict() for step in steps],
    }
    return Answer(facts, _screen(steps), is_good)


def _uses(address: str, domains: list[Domain]) -> list[str]:
    """Return what the database has an address for besides aliases."""
    found = {
        "collects answers: other mail is told so": [each.catchall for each in domains],
        "takes bounces": [each.bounce for each in domains],
    }
    return [use for use, specials in found.items() if any(asking.is_special(each, address) for each in specials)]


def _lesser_uses(address: str, domains: list[Domain]) -> list[str]:
    """Return what Odoo 14 has a bounce address for that names no record."""
    is_bare = any(each.bounce.endswith("+") and address.startswith(f"{each.bounce[:-1]}@") for each in domains)
    return ["takes reports and nothing else: Odoo 14 has bounce+ID-MODEL-ID@ for bounces"] if is_bare else []


def _screen(steps: list[Step]) -> list[Any]:
    """Return the steps as lines; a step's name stands once where several follow each other."""
    before = [Step("", ""), *steps]
    rows = [("" if old.step == new.step else new.step, new.text) for old, new in zip(before, steps, strict=False)]
    return [pairs(rows)]


COMMAND = Command(
    "explain",
    "Tell what would happen to a message, or to mail for an address, step by step; nothing is changed.",
    "mail-gateway-admin explain message.eml info@example.com\n  mail-gateway-admin explain --address info@example.com",
    _add_arguments,
    _answer,
)
