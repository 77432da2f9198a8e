"""What a sender is told, and when he is not.

A notice goes to Return-Path, else From; never to a null sender, never to automatic mail (RFC 3834, 2) or to an address
that only machines have (RFC 5230, 4.6), and at most once per sender, reason, address and hour. It says
Auto-Submitted: auto-replied and leaves with the null sender, so that no machine answers it. One that does
nevertheless quotes the notice's Message-ID, as people do when they answer. The mark in the id shows that a notice is
answered; routing.py (step 2) then ignores machines, and takes a person's answer as new mail. A notice of a loop has the
mark in its References, too, for machines that quote only those. Other notices do not: people are expected to answer.
"""

import html
import re
import uuid
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any, NamedTuple

from mail_database.message import Message, sanitize
from mail_database.references import OUR_NOTICE
from mail_database.store import Row, Store

REPEAT_AFTER_MINUTES = 60

# The reasons, and what is said. {address}: what was written to; {company}, {email}: who answers for it; {allowed}: who
# may write to it (routing.POLICIES).
CATCHALL, DENIED, MISCONFIGURED, LOOP = "catchall", "denied", "misconfigured", "loop"
TEXTS = {
    CATCHALL: "Your message to {address} was not delivered: this address only collects replies. "
    "To contact {company}, please write to {email}.",
    DENIED: "Your message to {address} was not accepted: only {allowed} may write to this address. "
    "Please check the address, or contact {company} at {email}.",
    MISCONFIGURED: "Your message to {address} was not accepted, for reasons on our side. "
    "Please try again later, or contact {company} at {email}.",
    LOOP: "Your message to {address} was not accepted: too many messages came from you in a short time. "
    "Please try again later.",
}
MARKED_REFERENCES = {LOOP}

# Addresses that are never told anything, though no field says that a machine sent the message: nobody reads their mail.
MACHINES = re.compile(
    r"(?:prvs=[^=@]*=|srs\d[=+-](?:[^=@]*=){3})?"  # a prefix that BATV or SRS adds in an envelope
    r"(?:mail(?:er)?[-_.]?daemon|post[-_.]?master|listserv|majordomo|owner-.*|.*-(?:request|owner)"
    r"|(?:.*[-_])?bounces?(?:[-_.+=].*)?|(?:auto(?:matic)?[-_.]?)(?:reply|respon[ds]er?)(?:[-_.+].*)?"
    r"|(?:do[-_.]?)?not?[-_.]?repl(?:y|ies).*|(?:nicht|keine?)[-_.]?antwort(?:en)?|(?:ne[-_.]?)?pas[-_.]?(?:de[-_.]?)?repon(?:dre|se)"
    r"|no[-_.]?(?:respond(?:er|a)|contestar|conteste)|n(?:on|ao)[-_.]?(?:rispond(?:ere|a)|respond(?:er|a))"
    r"|(?:niet|geen)[-_.]?(?:beantwoorden|antwoord)|nie[-_.]?odpowiadaj|notifications?(?:[-_.+].*)?)@.*"
)

# Why a sender is not told.
NOBODY = "there is no sender to be told"
AUTOMATIC = "a machine or a list sent it, which is not answered"
ALREADY_TOLD = f"the sender was told within the last {REPEAT_AFTER_MINUTES} minutes"


class Notice(NamedTuple):
    """Something to tell the sender of a message: why, about which address, in whose name."""

    about: str
    address: str
    domain: str | None = None
    allowed: str = ""  # who may write to the address
    content: str = ""  # an alias's own text, HTML


def tell(store: Store, message: Message, notice: Notice, user_id: int) -> str:
    """Keep a notice for the message's sender and return "", or, where he is not to be told, why not."""
    to = message.sender_address if message.return_path is None else message.return_path
    if not to:
        return NOBODY
    if message.is_automatic or any(map(MACHINES.fullmatch, (to, message.sender_address))):
        return AUTOMATIC
    store.lock(f"what {to} is told")
    if store.was_told_since(notice.about, to, notice.address, REPEAT_AFTER_MINUTES):
        return ALREADY_TOLD
    company = store.company_of(notice.domain) or {"name": "us", "email": "", "alias_domain": notice.domain}
    domains = {row["name"]: row for row in store.alias_domains()}
    domain = domains.get(notice.domain or company["alias_domain"]) or next(iter(domains.values()), None)
    text = TEXTS[notice.about].format(
        address=notice.address, company=company["name"], email=company["email"], allowed=notice.allowed
    )
    host = domain["name"] if domain else "localhost"
    mark = f"<{uuid.uuid4()}{OUR_NOTICE}{host}>" if notice.about in MARKED_REFERENCES else ""
    store.add_notice(
        about=notice.about,
        address=notice.address,
        to=to,
        sender=f"{domain['bounce']}@{host}" if domain else "",
        subject=f"Re: {message.subject}",
        message_id=f"<{uuid.uuid4()}{OUR_NOTICE}{host}>",
        references=f"{message.message_id} {mark}".strip(),
        reply_to=company["email"] if notice.about == CATCHALL else _reply_to(store, user_id, domain),
        body=(sanitize(notice.content) or f"<p>{html.escape(text)}</p>") + f"<blockquote>{message.body}</blockquote>",
    )
    return ""


def _reply_to(store: Store, user_id: int, domain: Row | None) -> str:
    user = store.user(user_id)
    partner = store.partner(user["partner_id"]) if user else None
    name = partner["name"] if partner else "Administrator"
    return f"{name} <{domain['catchall']}@{domain['name']}>" if domain else str(name)


def mail_of(notice: Row) -> EmailMessage:
    """Return the notice as the mail that is sent."""
    mail = EmailMessage(policy=SMTP)
    fields: dict[str, Any] = {
        "From": f"MAILER-DAEMON <{notice['sender'] or 'mailer-daemon@localhost'}>",
        "To": notice["to"],
        "Subject": notice["subject"],
        "Message-ID": notice["message_id"],
        "References": notice["references"],
        "Reply-To": notice["reply_to"],
        "Auto-Submitted": "auto-replied",
    }
    for name, value in fields.items():
        if value:
            mail[name] = " ".join(str(value).split())
    mail.set_content(notice["body"], subtype="html")
    return mail
