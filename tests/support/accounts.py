"""The account of many messages: what became of each, by what is seen from outside and by the journal. Both must agree.

From outside are the records in the database, the bounces, the hold folders and the queues.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import NamedTuple

from mailgate.ancestry import derived_id
from mailgate.journal import FOR_GOOD
from mailgate.journal.rows import DIGEST_BYTES
from mailgate.outcome import Outcome
from support.journal import execute
from support.mta import Postfix
from support.smtp_sink import Sink
from support.trials import WRONG, Database, Mail, ending_of, named, number_of

DISAGREE = "the journal and the outside disagree"
UNTOLD = "the journal was not told the end"
RECORDS = {"catchall": "info"}  # who is written to: the alias of the record that it ends on, where it is another


class Row(NamedTuple):
    """What the journal says of a call: how it ended, "" where that is not known; whom it served; where it is held."""

    ending: str
    recipients: tuple[str, ...]
    held: str


def account(
    mtas: Sequence[Postfix], database: Database, sink: Sink, sent: list[tuple[int, Mail]], journal: str = ""
) -> Counter[str]:
    """Return how many of the messages ended in which way, and of how many the journal says something else.

    Each message that is not as it must be is printed, where there is a journal that could have seen to it.
    """
    everything = database.everything()
    told = Counter(recipient for _, recipients, _ in sink.mails for recipient in recipients)
    queued = {sender for mta in mtas for sender in mta.queued_senders()}
    held: dict[int, list[bytes]] = {}
    for text in (text for mta in mtas for text in mta.held()):
        held.setdefault(number_of(text), []).append(text)
    rows = rows_of(journal) if journal else {}
    endings: Counter[str] = Counter()
    for number, mail in sent:
        sender, _, message = mail.envelope(number)
        records, copies = everything.get(number, []), held.get(number, [])
        found = Counter(alias for alias, _ in records) + Counter(bounce=told[sender], held=len(copies))
        exact = database.is_exact(records, message.replace(b"\r\n", b"\n"))
        ending = "still queued" if sender in queued else ending_of(without(mail, copies), found, exact)
        said = rows_about(rows, database, number, mail)
        difference = difference_of(said, found, sender in queued) if journal else ""
        endings.update(filter(None, [ending, difference]))
        if journal and (ending in WRONG or difference):
            print(f"message {number}: {ending}; {difference}: sent {mail._replace(body=b'')}", file=sys.stderr)
            print(f"    outside {dict(found)}, the journal {said}", file=sys.stderr)
    return endings


def without(mail: Mail, held: list[bytes]) -> Mail:
    """Return what must become of a message of which these copies are held: who they are for gets no record of it.

    Whether the database knows these recipients was never answered, so that nothing bounces.
    """
    if not held:
        return mail
    kept = record_counts(address for text in held for address in named(text))
    return mail._replace(records=tuple((Counter(mail.records) - kept).elements()), held=len(held), bounces=0)


def rows_of(journal: str) -> dict[bytes, Row]:
    """Return the rows of a journal, by their digests."""
    found = execute(journal, "select digest, ending, recipients, held from message")
    return {
        row["digest"]: Row(row["ending"] or "", tuple((row["recipients"] or "").split()), row["held"] or "")
        for row in found
    }


def rows_about(rows: dict[bytes, Row], database: Database, number: int, mail: Mail) -> list[Row]:
    """Return the rows of a message: of its own id, and of that of a call for each recipient alone."""
    own = f"<{number}@outside.test>"
    ids = [own, *(derived_id(own, address).decode() for address in {*mail.recipients, *mail.elsewhere})]
    texts = ["\0".join((database.url, database.name, each.removesuffix(">"))) for each in ids]
    digests = [sha256(text.encode()).digest()[:DIGEST_BYTES] for text in texts]
    return [rows[digest] for digest in digests if digest in rows]


def untold(database: Database, sent: list[tuple[int, Mail]], journal: str) -> list[tuple[int, Mail]]:
    """Return the messages of which the journal does not know how a call ended."""
    rows = rows_of(journal)
    return [(number, mail) for number, mail in sent if told_of(rows_about(rows, database, number, mail))[1]]


def record_counts(addresses: Iterable[str]) -> Counter[str]:
    """Return the aliases of the records that a message for these addresses is on."""
    names = (address.partition("@")[0] for address in addresses)
    return Counter(RECORDS.get(name, name) for name in names)


def told_of(rows: Iterable[Row]) -> tuple[Counter[str], Counter[str]]:
    """Return what there must be of a message by its rows, and what there may be besides, as ending_of() has it."""
    sure: Counter[str] = Counter()
    maybe: Counter[str] = Counter()
    for row in rows:
        if row.held:
            sure["held"] += 1
        elif row.ending in {outcome.name for outcome in FOR_GOOD}:
            sure += record_counts(row.recipients)
        elif row.ending == Outcome.UNKNOWN_RECIPIENT.name:
            sure["bounce"] += 1
        else:  # a call that had begun; whatever ended it, the journal was away then, or another try is to come
            maybe += record_counts(row.recipients) + Counter(bounce=1)
    return sure, maybe


def difference_of(rows: list[Row], found: Counter[str], is_queued: bool) -> str:
    """Return how what the journal says of a message differs from what is found of it outside, "" where it does not."""
    sure, maybe = told_of(rows)
    if not sure <= found <= sure + maybe:
        return DISAGREE
    return UNTOLD if maybe and not is_queued else ""
