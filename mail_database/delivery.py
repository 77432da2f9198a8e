"""message_process: one message from its bytes to records, threads, bounces and notices, in one transaction."""

import uuid

import sqlalchemy as sa

from mail_database import notices
from mail_database.bounce import Said, is_report, judge, read
from mail_database.message import Message, identify, parse
from mail_database.routing import (
    MODELS,
    Fallback,
    Fault,
    Route,
    address_of,
    ancestor,
    in_whose_name,
    is_at_bounce_address,
    is_loop,
    route,
)
from mail_database.store import Row, Store, transaction

TYPES = {"name": str, "email_from": str, "active": bool, "partner_id": int}  # of what defaults may set
ODOOBOT = 2  # the partner who is the author of mail without a sender

# What is kept as unplaced, besides mail whose sender is not told (notices.py): what it is about, and why.
ANSWER = ("notice", "a machine answers a notice of ours")
REPORT = "report"
ABOUT_NOTHING = "it is about no mail of ours"
NAMES_NOBODY = "it names nobody to whom that mail of ours went"


def process(
    engine: sa.Engine, raw: bytes, fallback: Fallback, user_id: int, strip_attachments: bool = False
) -> int | bool | None:
    """Deliver a message and return the last record's id, False when nothing was made, None when it was ignored.

    Raises Fault when there is no route; then nothing of it stays, except what its sender was told.
    """
    if known := identify(raw):  # before anything expensive is read
        with transaction(engine, reads=True) as store:
            if store.is_known(known):
                return False
    message = parse(raw)
    if strip_attachments:
        message = message._replace(attachments=())
    message = _known_by_id(message)
    # A report may name thousands, so it is read before the transaction: others wait for that.
    with transaction(engine, reads=True) as store:
        at_bounce_address = is_at_bounce_address(store, message)
    said = read(raw) if is_report(message, at_bounce_address) else None
    try:
        with transaction(engine) as store:
            message = in_whose_name(store, message)
            store.lock(message.message_id, message.sender_address)
            if store.is_known(message.message_id):
                return False
            store.accept(message.message_id)
            return _deliver(store, message, fallback, user_id, said)
    except Misconfigured as error:
        with transaction(engine) as store:
            notice = notices.Notice(notices.MISCONFIGURED, error.address, error.alias["domain"])
            notices.tell(store, message, notice, user_id)
            store.set_alias_status(error.alias["id"], "invalid")
        raise


def place(engine: sa.Engine, key: int, model: str, record_id: int | None) -> int | None:
    """Put a message that is placed nowhere on a record, a new one where none is named, and return the record's id.

    Returns None where the message is placed already, or gone. Raises Fault for a record or a model that takes none.
    """
    with transaction(engine, reads=True) as store:
        row = store.unplaced_message(key)
    if not row:
        return None
    message = _known_by_id(parse(row["original"]))
    with transaction(engine) as store:
        if model not in MODELS or (record_id and not store.record(model, record_id)):
            raise Fault(2, f"Record does not exist or has been deleted.\n(Record: {model}({record_id or ''},))")
        if not store.take_unplaced(key):
            return None
        return _post(store, in_whose_name(store, message), Route(model, record_id))


def _known_by_id(message: Message) -> Message:
    """Return a message that can be recognised later: with an id, where it has none."""
    return message if message.message_id else message._replace(message_id=f"<{uuid.uuid4()}@localhost>")


class Misconfigured(Fault):
    """An alias asks for a record that can't be created: the sender is told, and the rest is rolled back."""

    def __init__(self, code: int, text: str, alias: Row) -> None:
        super().__init__(code, text)
        self.alias = alias
        self.address = address_of(alias)


def _deliver(store: Store, message: Message, fallback: Fallback, user_id: int, said: Said | None) -> int | bool | None:
    """Do with a message what the steps of routing.py say, and return what ``process`` returns."""
    if message.answers_our_notice and (message.is_automatic or message.return_path == ""):
        _keep_unplaced(store, message, *ANSWER)
        return None
    at_bounce_address = is_at_bounce_address(store, message)
    if said and is_report(message, at_bounce_address):
        reason = _bounce(store, said)
        if not reason:
            return False
        if message.is_report or message.sender_address or at_bounce_address:
            _keep_unplaced(store, message, REPORT, reason)
            return False  # the others come from scanners and the like: they are ordinary mail
    routes, told = route(store, message, fallback)
    stopped = bool(routes) and is_loop(store, message, routes)
    if stopped:
        routes, told = (), (_loop_notice(routes),)
    not_told = [notices.tell(store, message, notice, user_id) for notice in told]
    in_silence = [(notice.about, reason) for notice, reason in zip(told, not_told, strict=True) if reason]
    if in_silence:  # even if another alias takes it: who reads this alias's mail would never know of it
        _keep_unplaced(store, message, *in_silence[0])
    if stopped:
        return None
    store.reset_bounces(message.sender_address)
    record_id: int | bool = False
    for destination in routes:
        record_id = _post(store, message, destination)
    return record_id


def _loop_notice(routes: tuple[Route, ...]) -> notices.Notice:
    alias = next((destination.alias for destination in routes if destination.alias), None)
    return notices.Notice(notices.LOOP, address_of(alias) if alias else "us", alias["domain"] if alias else None)


def _keep_unplaced(store: Store, message: Message, about: str, reason: str) -> None:
    """Keep a message that is placed nowhere, so that a person finds it."""
    store.keep_unplaced(
        about=about,
        reason=reason,
        sender=message.sender,
        subject=message.subject,
        message_id=message.message_id,
        original=message.raw,
    )


def _post(store: Store, message: Message, destination: Route) -> int:
    """Put the message on its record's thread, a new record where there is none, and return the record's id."""
    model, thread_id, alias = destination.model, destination.thread_id, destination.alias
    parent = None
    if thread_id:
        parent = ancestor(store, message) or store.newest_of_thread(model, thread_id)
        known = [row["id"] for row in store.partners_with(message.sender_address)]
        following = store.followers(model, thread_id)
        author = next((partner for partner in known if partner in following), known[0] if known else None)
    else:
        author, thread_id = _create(store, message, destination)
        if alias:
            store.set_alias_status(alias["id"], "valid")
    odoobot = store.partner(ODOOBOT) if not message.sender else None
    posted = store.post(
        message.message_id,
        message.attachments,
        model=model,
        thread_id=thread_id,
        author_id=ODOOBOT if odoobot else author,
        email_from=f'"{odoobot["name"]}" <{odoobot["email"]}>' if odoobot else message.sender,
        subject=message.subject,
        body=message.body,
        parent_id=parent["id"] if parent else None,
        internal_note=bool(parent and parent["internal_note"]),
    )
    store.keep_original(posted, message.raw)
    return thread_id


def _create(store: Store, message: Message, destination: Route) -> tuple[int | None, int]:
    """Open a record: the subject is its name, its contact the sender where he is known; the alias's defaults win."""
    model, alias = destination.model, destination.alias
    values = {"name": message.subject or "No Subject", "email_from": message.sender, **destination.defaults}
    wrong = [f"Invalid field {name!r}" for name in sorted(set(destination.defaults) - MODELS[model].fields)]
    wrong += [
        f"Wrong value for {name!r}" for name, kind in TYPES.items() if not isinstance(values.get(name, kind()), kind)
    ]
    if wrong:
        text = f"ValueError: {wrong[0]} in {model!r}"
        raise Misconfigured(1, text, alias) if alias else Fault(1, text)
    known = store.partners_with(message.sender_address)
    author = known[0]["id"] if known else None
    if model == "res.partner":
        partner = store.create_partner(values["name"], message.sender_address)
        return author or partner, partner
    if MODELS[model].makes_partner and author is None and message.sender_address:
        author = store.create_partner(message.sender.partition(" <")[0].strip('"'), message.sender_address)
    columns = {"name", "email_from", "partner_id", "active"}
    defaults = {name: value for name, value in values.items() if name not in columns}
    chosen = {name: value for name, value in values.items() if name in columns}
    return author, store.create_record(model, **({"partner_id": author} | chosen), defaults=defaults)


def _bounce(store: Store, said: Said) -> str:
    """Mark what a report is about as failed, for every recipient that it says has failed.

    Returns "", or why a person should look at it.
    """
    about = next(iter(store.messages_named((*said.message_ids, *said.other_ids))), None)
    found = list(store.notifications_of(about["id"])) if about else []
    written_to = {row["email"] for row in found}
    ours = store.known_addresses(said.addresses() | said.for_good) | written_to
    report = judge(said, written_to, ours)
    failed = {failure.final_recipient for failure in report.failures}
    rows = [row for row in found if row["email"] in failed]
    if not rows and len(found) == 1 and found[0]["email"] not in report.spared and (failed or report.is_silent):
        rows = found  # it came back from where his mail is forwarded to, or the report names nobody
    failed |= {row["email"] for row in rows}
    store.fail_notifications([row["id"] for row in rows], report.reason)
    store.count_bounces(failed & ours, about)
    if not about:
        return ABOUT_NOTHING
    is_placed = failed & ours if failed or report.is_silent else report.is_understood
    return "" if is_placed else NAMES_NOBODY
