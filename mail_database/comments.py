"""What our people write on a record, and the mail by which its followers and its customer learn of it.

The answer comes back to the thread by its Message-ID, whichever address it goes to: Reply-To is an alias of the
record's model, or the catchall where there is none. What can't be delivered comes back to the bounce address, which is
the envelope's sender, and marks the notification of that recipient.
"""

import html
import uuid
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any

from mail_database.addresses import normalize
from mail_database.routing import MODELS, Fault, address_of
from mail_database.store import Row, Store

MAX_REFERENCES = 8  # of the thread, the newest
LINE_CHARACTERS = 900  # RFC 5322 allows 998: a folded Message-ID is not understood everywhere


def write(store: Store, user_id: int, model: str, record_id: int, text: str) -> int:
    """Put a comment on a record's thread, to be sent to whom it concerns, and return its id. Raises Fault."""
    record = store.record(model, record_id) if model in MODELS else None
    if not record:
        raise Fault(2, f"Record does not exist or has been deleted.\n(Record: {model}({record_id},))")
    author = _author(store, user_id)
    parent = store.newest_of_thread(model, record_id)
    paragraphs = "".join(f"<p>{html.escape(each, quote=False)}</p>" for each in text.split("\n\n") if each.strip())
    message = store.post(
        f"<{uuid.uuid4()}-{model}-{record_id}@{_domain(store) or 'localhost'}>",
        (),
        model=model,
        thread_id=record_id,
        author_id=author["id"],
        email_from=_mailbox(author["name"], author["email"]),
        subject=f"Re: {record['name']}",
        body=paragraphs.replace("\n", "<br>"),
        kind="comment",
        parent_id=parent["id"] if parent else None,
    )
    for partner in recipients(store, model, record):
        if partner["id"] != author["id"]:
            store.add_notification(message=message, partner_id=partner["id"], status="ready")
    return message


def recipients(store: Store, model: str, record: Row) -> list[Row]:
    """Return the partners who are told of what is written on a record: its followers and its customer."""
    ids = store.followers(model, record["id"])
    customer = record["id"] if model == "res.partner" else record.get("partner_id")
    known = [store.partner(partner) for partner in sorted(ids | ({customer} if customer else set()))]
    address = record.get("email_normalized")
    if not customer and address and not any(row and row["email_normalized"] == address for row in known):
        there = store.partners_with(address)
        known.append(there[0] if there else _new_partner(store, str(record["email_from"])))
    return [row for row in known if row and row["email_normalized"]]


def _new_partner(store: Store, sender: str) -> Row | None:
    """Return the partner whom a record's sender becomes: who is written to has a notification of his own."""
    return store.partner(store.create_partner(sender.partition(" <")[0].strip('"'), normalize(sender)))


def _author(store: Store, user_id: int) -> Row:
    user = store.user(user_id)
    author = store.partner(user["partner_id"]) if user else None
    return author or {"id": None, "name": "Administrator", "email": None}


def _domain(store: Store) -> str:
    return next((str(row["name"]) for row in store.alias_domains()), "")


def mail_of(store: Store, message: Row, recipient: Row) -> tuple[str, EmailMessage]:
    """Return the envelope's sender of a comment, and the mail that goes to one recipient.

    Raises ValueError and what else the library raises for an address that is none.
    """
    domain = next(iter(store.alias_domains()), None)
    alias = store.alias_of_model(message["model"])
    collects = f"{domain['catchall']}@{domain['name']}" if domain else ""
    before = store.ids_of_thread(message["model"], message["thread_id"], message["id"], MAX_REFERENCES)
    mail = EmailMessage(policy=SMTP.clone(max_line_length=LINE_CHARACTERS))
    fields: dict[str, Any] = {
        "From": message["email_from"],
        "To": _mailbox(recipient["name"], recipient["email"]),
        "Subject": message["subject"],
        "Message-ID": message["message_id"],
        "References": " ".join([*reversed(before), message["message_id"]]),
        "Reply-To": address_of(alias) if alias else collects,
    }
    for name, value in fields.items():
        if value:
            mail[name] = " ".join(str(value).split())
    mail.set_content(message["body"], subtype="html")
    return f"{domain['bounce']}@{domain['name']}" if domain else "", mail


def _mailbox(name: str | None, address: str | None) -> str:
    """Return a name and an address as a field has them."""
    bare = normalize(address or "")
    return str(Address(name or "", addr_spec=bare)) if bare else name or ""
