"""Mailboxes: the third way in. Mail that lies in IMAP and POP3 mailboxes is delivered, and each keeps its copy.

Where a mail server's queue id stands for others, a message from a mailbox has the mailbox's name, a dot, and the first
digits of its digest: by these it is known again, whatever number the server gives it. No mail server's has a dot.
"""

import re

DIGEST_DIGITS = 12
_QUEUE_ID = re.compile(rf"(.+)\.[0-9a-f]{{{DIGEST_DIGITS}}}")


def queue_id(mailbox: str, digest: bytes) -> str:
    """Return what a message of a mailbox is called in the log and the journal; the digest is in hexadecimal digits."""
    return f"{mailbox}.{digest[:DIGEST_DIGITS].decode()}"


def mailbox_of(queue_id: str) -> str:
    """Return the name of the mailbox that a message came from, "" where it came from a mail server."""
    found = _QUEUE_ID.fullmatch(queue_id)
    return found[1] if found else ""
