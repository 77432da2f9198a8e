"""The MTA's name for a message, read from the Received field that it has put on top; LMTP has no place for it.

What a stranger said stands in the same field: the name in HELO, in the first line; his address, within a comment of
Exim's; the recipient, behind "for". None of them can hold a line break, so a line says who wrote it:

    Postfix    Received: from HELO (NAME [ADDRESS])      Exim    Received: from NAME ([ADDRESS] helo=HELO)
                       by HOST (Postfix) with ESMTP id ID                by HOST with esmtp (Exim 4.98)
                       for <RECIPIENT>; DATE                             (envelope-from <SENDER>)
                                                                         id ID
"""

import re

from mailgate.envelope import fields, unfold

LIMIT = 4096  # bytes of a field that are looked at
_ID = rb"id[ \t]+([\w-]{5,50})(?=[\s;]|\Z)"

# Both fold with a tab; a blank is what Postfix folds with where a line is too long, and so is a stranger's to place.
_LINE = re.compile(rb"(?:\A[^:]*: |\r?\n\t)(?:by \S+ (?:\([^()\r\n]*\) )?with \S+ )?" + _ID)
_CLAUSES = re.compile(rb"\bby[ \t]+\S+[ \t]+(?:with[ \t]+\S+[ \t]+)?" + _ID)
_TOKEN = re.compile(rb'\\.|[()]|"(?:[^"\\]|\\.)*"|[^\\()"]+|.', re.DOTALL)


def queue_id(head: bytes) -> str:
    """Return the queue id that the topmost Received field of a message has, "" without one."""
    received = next((field for name, field in fields(head) if name == b"received"), b"")[:LIMIT]
    found = _LINE.search(received)
    if not found:  # another MTA's, on one line: of several that look alike, the MTA wrote the last
        found = next(reversed([*_CLAUSES.finditer(_plain(unfold(received)))]), None)
    return found[1].decode() if found else ""


def _plain(value: bytes) -> bytes:
    """Return a field's value without comments and quoted strings (RFC 5322, 3.2)."""
    plain, depth = [], 0
    for token in _TOKEN.findall(value):
        depth = max(0, depth + {b"(": 1, b")": -1}.get(token, 0))
        if not depth and token not in (b"(", b")") and token[:1] != b'"':
            plain.append(token)
    return b"".join(plain)
