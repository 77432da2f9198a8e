"""What is sent to a mail server: notices to senders, and comments to whom they concern.

What the mail server does not take, or can't be given, is tried again; what it refuses for good has failed.
"""

import contextlib
import logging
import smtplib
from collections.abc import Callable
from typing import NamedTuple

import sqlalchemy as sa

from mail_database import comments, notices
from mail_database.store import Row, Store, transaction

log = logging.getLogger("mail_database")
Server = tuple[str, int]  # host and port


class Mail(NamedTuple):
    """A mail with its envelope; "" is the null sender."""

    sender: str
    to: str
    content: bytes


class Fate(NamedTuple):
    """What became of a mail, ``sent``, ``again`` or ``failed``, and why it failed."""

    state: str
    reason: str = ""


class Kind(NamedTuple):
    """What is sent: the oldest that waits, its mail, and how its fate is noted."""

    following: Callable[[Store, int], Row | None]
    mail: Callable[[Store, Row], Mail]
    note: Callable[[Store, int, Fate], None]


NOTICE_STATES = {"sent": "sent", "again": "outgoing", "failed": "exception"}
NOTIFICATION_STATES = {"sent": "sent", "again": "ready", "failed": "exception"}


def send_outgoing(engine: sa.Engine, smtp: Server) -> None:
    """Send what waits, each once."""
    for kind in NOTICE, COMMENT:
        last = 0
        while True:
            with transaction(engine, reads=True) as store:
                row = kind.following(store, last)
                mail = _made(kind, store, row) if row else None
            if not row:
                break
            last = row["id"]
            fate = _send(smtp, mail) if mail else Fate("failed", "it can't be made into a mail")
            with transaction(engine) as store:
                kind.note(store, last, fate)


def _made(kind: Kind, store: Store, row: Row) -> Mail | None:
    try:
        return kind.mail(store, row)
    except sa.exc.SQLAlchemyError:  # the database's trouble is not this mail's: the next round tries again
        raise
    except Exception:  # the addresses are strangers', and the library fails on them in many ways
        log.warning("%s can't be made into a mail", dict(row) | {"body": "…"})
        return None


def _of_notice(store: Store, notice: Row) -> Mail:
    return Mail("", notice["to"], notices.mail_of(notice).as_bytes())


def _of_comment(store: Store, notification: Row) -> Mail:
    message, recipient = store.message(notification["message"]), store.partner(notification["partner_id"])
    if not message or not recipient:
        raise ValueError("its message or its recipient is gone")
    sender, mail = comments.mail_of(store, message, recipient)
    return Mail(sender, recipient["email_normalized"], mail.as_bytes())


NOTICE = Kind(
    Store.next_outgoing, _of_notice, lambda store, key, fate: store.set_notice_state(key, NOTICE_STATES[fate.state])
)
COMMENT = Kind(
    Store.next_ready,
    _of_comment,
    lambda store, key, fate: store.set_notification(key, NOTIFICATION_STATES[fate.state], fate.reason),
)


def _send(smtp: Server, mail: Mail) -> Fate:
    """Send one mail and return what became of it."""
    try:
        with contextlib.closing(smtplib.SMTP(*smtp, timeout=30)) as server:
            server.sendmail(mail.sender, [mail.to], mail.content)
            with contextlib.suppress(OSError, smtplib.SMTPException):  # it has been sent by now
                server.quit()
    except smtplib.SMTPRecipientsRefused as error:
        ((code, said),) = error.recipients.values()
        return _refused(code, said)
    except smtplib.SMTPResponseException as error:
        return _refused(error.smtp_code, error.smtp_error)
    except (OSError, smtplib.SMTPException, ValueError) as error:
        log.warning("mail waits: %s", error)
        return Fate("again")
    return Fate("sent")


def _refused(code: int, said: bytes | str) -> Fate:
    words = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    return Fate("again" if code < 500 else "failed", f"{code} {words}")
