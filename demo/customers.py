"""Those to whom the company of ``make try`` writes: each answers, or his mailbox is gone and the mail comes back."""

import email
import email.policy
import html
import json
import re
import threading
from collections.abc import Callable
from email.message import EmailMessage
from email.utils import make_msgid, parseaddr
from pathlib import Path
from typing import Any, NamedTuple

from aiosmtpd.smtp import SMTP, Envelope, Session

COMPANY = json.loads(Path(__file__).with_name("company.json").read_text())
ANSWER_SECONDS = 2.0  # so long they think: their answer is seen to arrive
MAX_SHOWN_CHARACTERS = 300  # of a mail
ANSWER = "Thank you, that is good to know. When can you deliver?\n\n{name}\n"
REPORT = """\
From: MAILER-DAEMON@{host}
To: {sender}
Subject: Undelivered mail
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="part"

--part
Content-Type: text/plain

Your mail to {recipient} could not be delivered: 550 5.1.1 there is no such mailbox.
--part
Content-Type: message/delivery-status

Reporting-MTA: dns; {host}

Final-Recipient: rfc822; {recipient}
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 there is no such mailbox

--part
Content-Type: text/rfc822-headers

Message-ID: {message_id}
--part--
"""


class Mail(NamedTuple):
    """A mail with its envelope; "" is the null sender."""

    sender: str
    recipient: str
    content: bytes


def written_before() -> list[Mail]:
    """Return what has been written to the company."""
    return [mail_of(row["from"], row["to"], row["subject"], row["text"]) for row in COMPANY["mails"]]


def mail_of(writer: str, to: str, subject: str, text: str, answered: str = "") -> Mail:
    """Return a mail; ``answered`` is the Message-ID of the one that it answers."""
    mail = EmailMessage()
    fields = {"From": writer, "To": to, "Subject": subject, "Message-ID": make_msgid(domain="customer.example")}
    for name, value in (fields | ({"In-Reply-To": answered} if answered else {})).items():
        mail[name] = value
    mail.set_content(text)
    return Mail(parseaddr(writer)[1], parseaddr(to)[1], mail.as_bytes())


def reaction(mail: EmailMessage, sender: str, recipient: str) -> Mail | None:
    """Return what comes of a mail of the company's: an answer, a report that it came back, or nothing."""
    if mail["Auto-Submitted"]:  # no machine's mail is answered (RFC 3834, 2)
        return None
    if recipient in COMPANY["gone"]:
        fields = {"host": recipient.partition("@")[2], "sender": sender, "recipient": recipient}
        return Mail("", sender, REPORT.format(**fields, message_id=mail["Message-ID"]).encode())
    answer = ANSWER.format(name=parseaddr(mail["To"])[0])
    return mail_of(mail["To"], mail["Reply-To"] or mail["From"], mail["Subject"], answer, mail["Message-ID"])


class Customers:
    """Their mail server: it prints each mail, and gives to ``deliver`` what comes of it."""

    def __init__(self, deliver: Callable[[Mail], Any]) -> None:
        self.deliver = deliver

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        mail = email.message_from_bytes(envelope.original_content or b"", EmailMessage, policy=email.policy.default)
        text = html.unescape(re.sub(r"<blockquote.*|<[^>]*>", " ", mail.get_content(), flags=re.DOTALL))
        for recipient in envelope.rcpt_tos:
            print(f"mail to {recipient}: {mail['Subject']}  Message-ID: {mail['Message-ID']}")
            print(f"    {' '.join(text.split())[:MAX_SHOWN_CHARACTERS]}", flush=True)
            if answer := reaction(mail, envelope.mail_from or "", recipient):
                thinking = threading.Timer(ANSWER_SECONDS, self.deliver, [answer])
                thinking.daemon = True
                thinking.start()
        return "250 OK"
