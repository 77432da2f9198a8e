"""The account of many messages: what became of each, by what is seen from outside, by the journal, and by the audit.

All three must agree. From outside are the records in the database, the bounces, the hold folders and the queues.
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

from mailgate.ancestry import derived_id
from mailgate.hold import KEPT_AS
from mailgate.journal import FOR_GOOD
from mailgate.journal.rows import DIGEST_BYTES
from mailgate.outcome import Outcome
from support.admin import ask
from support.journal import execute
from support.mta import PYTHON, Postfix
from support.smtp_sink import Sink
from support.trials import WRONG, Database, Mail, ending_of, named, number_of

DISAGREE = "the journal and the outside disagree"
UNTOLD = "the journal was not told the end"
AUDIT = "the audit and the account disagree"
ON_RECORD = (Outcome.DELIVERED.name, Outcome.KNOWN.name)
RECORDS = {"catchall": "info"}  # who is written to: the alias of the record that it ends on, where it is another
# Where the audit must have a message that ended so.
PLACES = {
    "delivered once": "on records",
    "doubled": "on records",
    "bytes changed": "on records",
    "bounced": "refused",
    "bounced though deliverable": "refused",
    "noticed": "bounces and notices",
    "dropped": "dropped by the database, the sender told",
    "held": "held",
    "still queued": "waiting",
    "partly delivered": "lost",
    "vanished": "lost",
}


class Row(NamedTuple):
    """What the journal says of a call: how it ended, "" where that is not known; whom it served; where it is held."""

    ending: str
    recipients: tuple[str, ...]
    held: str


class Seen(NamedTuple):
    """What is seen of a message from outside: its ending, of which ending_of() was told this, and whether it waits."""

    mail: Mail
    ending: str
    found: Counter[str]
    is_queued: bool


def account(
    mtas: Sequence[Postfix], database: Database, sink: Sink, sent: list[tuple[int, Mail]], journal: str = ""
) -> Counter[str]:
    """Return how many of the messages ended in which way, and of how many the journal or the audit says something else.

    Each message that is not as it must be is printed, where there is a journal that could have seen to it. What the
    audit is tried with changes the database.
    """
    messages = seen_of(mtas, database, sink, sent)
    endings = Counter(each.ending for each in messages.values())
    if not journal:
        return endings
    rows = rows_of(journal)
    for number, (mail, ending, found, is_queued) in messages.items():
        said = rows_about(rows, database, number, mail)
        difference = difference_of(said, found, is_queued)
        endings.update(filter(None, [difference]))
        if ending in WRONG or difference:
            print(f"message {number}: {ending}; {difference}: sent {mail._replace(body=b'')}", file=sys.stderr)
            print(f"    outside {dict(found)}, the journal {said}", file=sys.stderr)
    differences = audit_differences(mtas[0], messages)
    differences += audit_differences_after_accident(mtas[0], database, journal, messages)
    for text in differences:
        print(f"the audit: {text}", file=sys.stderr)
    return endings + Counter({AUDIT: len(differences)})


# --- the audit ------------------------------------------------------------------------------------------------------


def audit_differences(
    mta: Postfix, seen: Mapping[int, Seen], lost: Container[int] = (), doubled: Container[int] = ()
) -> list[str]:
    """Return in lines where an audit of the gateway differs from the account: each must have every message alike.

    To both, what has one Message-ID from its sender is one message, whatever copies and tries of it there were, and
    under however many ids the database was called for it. It must be in the one place that PLACES has for its ending;
    what is doubled is named besides. So these are equal, message by message, and in number:

        the account                         the audit
        all that was sent                   taken
        delivered once (or doubled)         on records
        bounced                             refused
        held, if only one copy or recipient held
        still queued, if only a copy        waiting
        vanished, or delivered in part      lost
        doubled                             doubled

    ``lost`` and ``doubled`` are the numbers of messages that have become so since the account was made.
    """
    expected = {(number, "lost" if number in lost else PLACES[each.ending]) for number, each in seen.items()}
    expected |= {(number, "doubled") for number, each in seen.items() if each.ending == "doubled" or number in doubled}
    words = ("audit", "--json", "--since", "30d", "--mta-config", mta.config)
    finished = ask(mta.env_file, *words, python=PYTHON, folder=mta.program.parent)  # as root, who becomes its user
    assert finished.returncode in (0, 1), finished.stderr
    facts = json.loads(finished.stdout)
    numbers = {message_id: number for number, each in seen.items() for message_id in ids_of(number, each.mail)}
    named = [(name, place) for place, names in facts["messages"].items() for name in names]
    named += [(each["message_id"], place) for place in ("lost", "doubled") for each in facts[place]]
    told = Counter((numbers.get(name, name), place) for name, place in named)
    differences = [f"message {number} is {place}, says the audit alone" for number, place in told - Counter(expected)]
    differences += [f"message {number} is {place}, says the account alone" for number, place in expected - told.keys()]
    if facts["taken"] != len(seen):
        differences.append(f"{facts['taken']} messages taken, says the audit, and {len(seen)} were sent")
    if finished.returncode != bool(facts["lost"] or facts["doubled"]):
        differences.append(f"its exit status is {finished.returncode}")
    return differences


def audit_differences_after_accident(
    mta: Postfix, database: Database, journal: str, seen: Mapping[int, Seen]
) -> list[str]:
    """Delete a message in the database, and double another; return where an audit names any but these two so.

    They are among those that the journal calls delivered or known. It may say "accepted" of one that the database knew
    when it could not be asked: such a message could have been a bounce.
    """
    tries = execute(journal, f"select message_id from attempt where ending in {ON_RECORD}")
    told = {row["message_id"] for row in tries}
    delivered = [number for number, each in seen.items() if each.ending == "delivered once" and own_id(number) in told]
    lost, doubled = random.sample(delivered, 2)
    for row in database.messages([own_id(lost)]):
        database.delete(row)
    database.double(database.messages([own_id(doubled)])[0])
    return [f"after the accident: {text}" for text in audit_differences(mta, seen, [lost], [doubled])]


# --- what is seen from outside --------------------------------------------------------------------------------------


def seen_of(mtas: Sequence[Postfix], database: Database, sink: Sink, sent: list[tuple[int, Mail]]) -> dict[int, Seen]:
    """Return what is seen of each message from outside."""
    everything = database.everything()
    told = Counter(recipient for _, recipients, _ in sink.mails for recipient in recipients)
    queued = {sender for mta in mtas for sender in mta.queued_senders()}
    held: dict[int, list[bytes]] = {}
    for text in (text for mta in mtas for text in mta.held()):
        held.setdefault(number_of(text), []).append(text)
    messages = {}
    for number, mail in sent:
        sender, _, message = mail.envelope(number)
        records, copies = everything.get(number, []), held.get(number, [])
        made = Counter(alias for alias, _ in records)
        found = made + Counter(bounce=told[sender], held=len(copies))
        exact = database.is_exact(records, message.replace(b"\r\n", b"\n"))
        ending = ending_of(without(mail, copies, made.elements(), mail.copies * len(mtas)), found, exact)
        ending = "still queued" if sender in queued else ending
        messages[number] = Seen(mail, ending, found, sender in queued)
    return messages


def without(mail: Mail, held: list[bytes], made: Iterable[str] = (), arrivals: int = 1) -> Mail:
    """Return what must become of a message of which these copies are held: who they are for gets no record of it.

    If it came more than once, another copy may have ``made`` all of its records; a release finds that the database
    knows it. Whether the database knows these recipients was never answered, so that nothing bounces.
    """
    if not held:
        return mail
    kept = record_counts(address for text in held for address in named(text))
    is_made = arrivals > 1 and Counter(made) == Counter(mail.records)
    records = mail.records if is_made else tuple((Counter(mail.records) - kept).elements())
    return mail._replace(records=records, held=len(held), bounces=0)


def rows_of(journal: str) -> dict[bytes, Row]:
    """Return the rows of a journal, by their digests; what it calls accepted, as it is kept, has ended as held."""
    found = {}
    for row in execute(journal, "select digest, ending, recipients, held, cause from message"):
        ending = Outcome.HELD.name if KEPT_AS in (row["cause"] or "") else row["ending"] or ""
        found[row["digest"]] = Row(ending, tuple((row["recipients"] or "").split()), row["held"] or "")
    return found


def own_id(number: int) -> str:
    """Return the Message-ID with which a message was sent."""
    return f"<{number}@outside.test>"


def ids_of(number: int, mail: Mail) -> list[str]:
    """Return the ids of a message to the database: its own, and that of a call for each recipient alone."""
    own = own_id(number)
    return [own, *(derived_id(own, address).decode() for address in {*mail.recipients, *mail.elsewhere})]


def rows_about(rows: dict[bytes, Row], database: Database, number: int, mail: Mail) -> list[Row]:
    """Return the rows of a message: of its own id, and of that of a call for each recipient alone."""
    texts = ["\0".join((database.url, database.name, each.removesuffix(">"))) for each in ids_of(number, mail)]
    digests = [sha256(text.encode()).digest()[:DIGEST_BYTES] for text in texts]
    return [rows[digest] for digest in digests if digest in rows]


def untold(database: Database, sent: list[tuple[int, Mail]], journal: str) -> list[tuple[int, Mail]]:
    """Return the messages of which the journal does not know how a call ended, or not a single try."""
    rows = rows_of(journal)
    tried = {row["message_id"] for row in execute(journal, "select distinct message_id from attempt")}
    return [
        (number, mail)
        for number, mail in sent
        if own_id(number) not in tried or told_of(rows_about(rows, database, number, mail))[1]
    ]


def record_counts(addresses: Iterable[str]) -> Counter[str]:
    """Return the aliases of the records that a message for these addresses is on."""
    names = (address.partition("@")[0] for address in addresses)
    return Counter(RECORDS.get(name, name) for name in names)


def told_of(rows: Iterable[Row]) -> tuple[Counter[str], Counter[str]]:
    """Return what there must be of a message by its rows, and what there may be besides, as ending_of() has it."""
    sure: Counter[str] = Counter()
    maybe: Counter[str] = Counter()
    for row in rows:
        sure["held"] += bool(row.held)
        if row.held and row.ending == Outcome.HELD.name:
            continue
        if row.ending in {outcome.name for outcome in FOR_GOOD}:
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
