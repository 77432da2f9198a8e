"""trace: each message that has a word, or the whole story of one: its tries, its ending, its record, what to do now."""

import itertools
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mailgate import hold, journal
from mailgate.admin import meaning, mta, records
from mailgate.admin.desk import Answer, Command, Desk, Usage, moment, since
from mailgate.admin.meaning import style, word
from mailgate.admin.records import Record
from mailgate.admin.screen import brief, indented, pairs, plain, table, words
from mailgate.mailboxes import mailbox_of
from mailgate.outcome import Ended, Outcome

NO_JOURNAL = "no journal (MAIL_GATEWAY_JOURNAL), which would know what became of mail"
MAX_SEARCHED_CHARACTERS = 1000  # by the journal; the rest is looked for here
MAX_MESSAGES = 50  # that are listed, if not said otherwise

Attempt = Mapping[str, Any]  # by the columns of journal.rows.ATTEMPT


class Story(NamedTuple):
    """A message and its tries, oldest first; ``call_id`` is the Message-ID of its call where it is not its own."""

    message_id: str
    attempts: list[Attempt]
    call_id: str = ""

    @property
    def last(self) -> Attempt:
        """The last try, which says how it has ended so far."""
        return self.attempts[-1]

    @property
    def outcome(self) -> Outcome:
        """The ending of the last try."""
        return Outcome[self.last["ending"]]

    @property
    def ids(self) -> list[str]:
        """The Message-IDs under which the database may have it."""
        return [*dict.fromkeys(itertools.chain(*map(self.ids_of, self.attempts)))]

    def ids_of(self, attempt: Attempt) -> list[str]:
        """Return those of one try."""
        return str(attempt["posted_as"] or self.call_id or self.message_id).split(",")


def stories(desk: Desk, what: str = "", since_moment: float = 0.0) -> list[Story]:
    """Return the messages with a try that has all words of ``what``, the newest first. Raises Ended."""
    if not desk.settings.journal:
        raise Ended(Outcome.SETTINGS, f"there is {NO_JOURNAL}")
    terms = journal.text_of(what).lower().split()
    longest = max(terms, key=len, default="")[:MAX_SEARCHED_CHARACTERS]
    found: dict[str, list[Attempt]] = {}
    for each in journal.attempts(desk.settings, longest, since_moment):
        if not terms or _has(each, terms):
            found.setdefault(each["message_id"], []).append(each)
    made = [each for message_id, attempts in found.items() for each in _told_apart(desk, message_id, attempts[::-1])]
    return [story for story in made if what and _is_named(story, what)] or made


def whole(desk: Desk, story: Story) -> Story:
    """Return a message with all of its tries, also those that do not have the words. Raises Ended."""
    tries = [
        each for each in journal.attempts(desk.settings, story.message_id) if each["message_id"] == story.message_id
    ]
    return next(each for each in _told_apart(desk, story.message_id, tries[::-1]) if story.last in each.attempts)


def _told_apart(desk: Desk, message_id: str, attempts: list[Attempt]) -> list[Story]:
    """Return the messages that have come with an id, the newest first: with another Date, it is another message.

    That goes to the database under an id made of both, whose row in the journal has its Date. Its tries before any call
    are known by their queue id. Raises Ended.
    """
    dates = {name: journal.known(desk.settings, name).date for name in {*map(_call_id, attempts)} - {""}}
    own = journal.known(desk.settings, message_id).date if dates else None
    others: dict[str, tuple[int, str]] = {}
    for each in attempts:
        date = dates.get(_call_id(each))
        if date is not None and own is not None and date != own:
            others[_delivery(each)] = date, _call_id(each)
    found: dict[int | None, Story] = {}
    for each in attempts:
        key, call_id = others.get(_delivery(each), (None, ""))
        found.setdefault(key, Story(message_id, [], call_id)).attempts.append(each)
    return sorted(found.values(), key=lambda story: float(story.last["at"]), reverse=True)


def _call_id(attempt: Attempt) -> str:
    """Return the first id with which the database has been given a message, "" where it is its own, or none."""
    return str(attempt["posted_as"] or "").partition(",")[0]


def _delivery(attempt: Attempt) -> str:
    """Return what tells one delivery of a message from another."""
    return str(attempt["queue_id"] or _call_id(attempt))


def _is_named(story: Story, what: str) -> bool:
    """Tell whether a text is the Message-ID or a queue id of a message, not only a part of something."""
    return what.strip("<>") == story.message_id.strip("<>") or any(what == each["queue_id"] for each in story.attempts)


def _has(attempt: Attempt, terms: Iterable[str]) -> bool:
    texts = [str(attempt[name] or "") for name in journal.SEARCHED]
    text = "\n".join([*texts, hold.decoded(attempt["subject"] or "")]).lower()
    return all(term in text for term in terms)


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("what", nargs="+", help="a Message-ID, an address, a queue id, or words of a subject")
    parser.add_argument("--since", metavar="WHEN", default="30d", help="2d, 90m, or a date (30d)")
    parser.add_argument("--ending", metavar="NAME", help="only what has ended so: delivered, held, ...")
    parser.add_argument("--limit", metavar="NUMBER", type=int, default=MAX_MESSAGES, help=f"({MAX_MESSAGES})")
    parser.add_argument(
        "--mta-log", metavar="FILE", help="the mail server's log (else journald's, or /var/log/mail.log)"
    )


def _answer(desk: Desk, arguments: Namespace) -> Answer:
    found = stories(desk, " ".join(arguments.what), since(arguments.since, desk.now))
    if arguments.ending:
        wanted = _outcome(arguments.ending)
        found = [story for story in found if story.outcome is wanted]
    if len(found) == 1:
        return _one(desk, whole(desk, found[0]), arguments.mta_log)
    return _many(found, arguments.limit)


def _outcome(name: str) -> Outcome:
    try:
        return Outcome[name.upper()]
    except KeyError:
        raise Usage(f"--ending takes one of: {', '.join(map(word, Outcome))}") from None


def _many(found: list[Story], limit: int) -> Answer:
    if limit < 1:
        raise Usage("--limit takes 1 or more")
    if not found:
        text = "No message. The gateway has not been given it: look into the mail server's log, and at --since."
        return Answer({"messages": []}, [text], is_good=False)
    rows = [
        (
            moment(story.last["at"])[:16],
            story.last["sender"] or "<>",
            brief(_subject(story.last)),
            _ending(story.outcome),
        )
        for story in found[:limit]
    ]
    screen: list[Any] = [table(["last try", "from", "subject", "ending"], rows)]
    if len(found) > limit:
        screen.append(f"{len(found) - limit} more, older ones. --limit shows more.")
    screen.append("A Message-ID or a queue id shows one of them: --json has all ids.")
    return Answer({"messages": [_facts(story) for story in found[:limit]]}, screen)


def _one(desk: Desk, story: Story, mta_log: str | None) -> Answer:
    """Return the whole story of a message."""
    first, last = story.attempts[0], story.last
    try:
        on_records, unknown = records.named(desk.client, records.find(desk.client, story.ids)), ""
    except Ended as ended:
        on_records, unknown = [], f"the database can't be asked: {ended.verdict.cause}"
    queue_ids = dict.fromkeys(filter(None, (each["queue_id"] for each in story.attempts)))
    lines = mta.log_lines([*queue_ids], first["at"], mta_log)
    became, advice = meaning.of(story.outcome, story.last["cause"] or "")
    facts = _facts(story) | {
        "became": became,
        "advice": advice,
        "records": [records.facts(each) for each in on_records],
        "mail_server": lines,
    }
    screen: list[Any] = [
        pairs(
            [
                ("Message", story.message_id),
                ("Subject", _subject(last)),
                ("From", "the null sender <>" if last["sender"] == "" else last["sender"] or "not known"),
                ("For", last["recipients"]),
                ("Redirected", _originals(last)),
                ("No address", last["unmatched"]),
                ("Size", f"{last['size']:,} bytes"),
            ]
        ),
        "",
        *(line for each in story.attempts for line in _lines(each)),
        "",
        pairs(
            [
                ("Now", words(became, style(story.outcome))),
                *(("Record", _record_text(each)) for each in on_records),
                *(("", each.url) for each in on_records),
                ("Record", unknown),
                ("To do", advice),
            ]
        ),
    ]
    if lines:
        screen += ["", words("The mail server's half:", "name"), *(words(line, "dim") for line in lines)]
    return Answer({"messages": [facts]}, screen)


def _lines(attempt: Attempt) -> list[Any]:
    """Return the lines of a try: when it ended, how long it took, how it ended, and why."""
    outcome = Outcome[attempt["ending"]]
    ended, took = moment(attempt["at"])[:19], f"{attempt['seconds']:6.2f} s"
    mailbox = mailbox_of(attempt["queue_id"] or "")
    place = " ".join(filter(None, (f"mailbox {mailbox}" if mailbox else attempt["queue_id"], attempt["host"])))
    cause = (attempt["cause"] or "").partition(hold.KEPT_AS)[0]
    first = words(f"{ended}  {took}  {word(outcome):18} {place}", style(outcome))
    return [first, indented(cause)] if cause else [first]


def _ending(outcome: Outcome) -> Any:
    return words(word(outcome), style(outcome))


def _subject(attempt: Attempt) -> str:
    return plain(hold.decoded(attempt["subject"] or ""))


def _originals(attempt: Attempt) -> str:
    """Return what recipients were before the mail server redirected them."""
    now, before = ((attempt[name] or "").split(",") for name in ("recipients", "original_recipients"))
    return ", ".join(f"{old} to {new}" for old, new in zip(before, now, strict=False) if old and old != new)


def _record_text(record: Record) -> str:
    return f"{record.model} {record.record_id} {record.name}" if record.model else "on no record"


def _facts(story: Story) -> dict[str, Any]:
    """Return a message for a program; times are in seconds since 1970."""
    last = story.last
    return {
        "message_id": story.message_id,
        "posted_as": story.ids,
        "subject": hold.decoded(last["subject"] or ""),
        "sender": last["sender"],
        "recipients": _list(last["recipients"]),
        "original_recipients": _list(last["original_recipients"]),
        "unmatched": _list(last["unmatched"]),
        "size": last["size"],
        "ending": word(story.outcome),
        "attempts": [
            {
                "at": each["at"],
                "time": moment(each["at"]),
                "seconds": each["seconds"],
                "host": each["host"],
                "queue_id": each["queue_id"],
                "mailbox": mailbox_of(each["queue_id"] or ""),
                "ending": each["ending"].lower(),
                "status_code": Outcome[each["ending"]].status_code,
                "record_id": each["record_id"],
                "cause": each["cause"],
            }
            for each in story.attempts
        ],
    }


def _list(text: str | None) -> list[str]:
    return text.split(",") if text else []


COMMAND = Command(
    "trace",
    "Tell where a message is, why it ended so, and what to do now.",
    "mail-gateway-admin trace ann@outside.test --since 2d",
    _add_arguments,
    _answer,
)
