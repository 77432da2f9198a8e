"""Mailboxes: the third way in. Mail that lies in IMAP and POP3 mailboxes is delivered, and each keeps its copy."""
