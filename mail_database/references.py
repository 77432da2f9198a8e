"""In-Reply-To and References -> the messages that one answers, the nearest first.

In-Reply-To comes first: it names what was answered. References follow from their end, where the nearest stands
(RFC 5322, 3.6.4). An id without brackets counts if its field has no other. The last id of a field counts even if the
field was cut off before the closing bracket.
"""

import re

MAX_ANCESTORS = 1000  # the nearest ones; long threads are ordinary, and each costs an index look-up
SEPARATE_ANCESTOR = "reply_to"  # ids with this in them are left out by Odoo: its own reply addresses of old
OUR_NOTICE = "-loop-detection-bounce-email@"  # in the ids of what we tell a sender: an answer to it is on no thread

_BRACKETED = re.compile(r"<([^<>]+)")  # the closing bracket may be missing
_BARE = re.compile(r"(?<![^\s<>()\[\],;:\"'&@])[^\s<>()\[\],;:\"'&@]+@[^\s<>()\[\],;:\"'&@]+")


def ancestors(in_reply_to: str, references: str) -> tuple[str, ...]:
    """Return the ids that the two fields name, in brackets, the nearest message first."""
    ids = dict.fromkeys(_ids(in_reply_to) + _ids(references)[::-1])
    known = (found for found in ids if SEPARATE_ANCESTOR not in found and OUR_NOTICE not in found)
    return tuple(found for found, _ in zip(known, range(MAX_ANCESTORS), strict=False))


def answers_our_notice(in_reply_to: str, references: str) -> bool:
    """Tell whether one of the fields names a notice of ours."""
    return OUR_NOTICE in in_reply_to or OUR_NOTICE in references


def _ids(text: str) -> list[str]:
    bracketed = ["".join(found.split()) for found in _BRACKETED.findall(text)]
    return [f"<{found}>" for found in bracketed or _BARE.findall(text) if found]
