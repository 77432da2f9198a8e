"""postmaster: one mail a day at most, about what a person has to see to."""

import contextlib
import os
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any

from mailgate.addresses import is_surely_ours
from mailgate.admin import audit, mta
from mailgate.admin.desk import Answer, Command, Desk, Usage, moment
from mailgate.admin.hold_folder import cause_of, files
from mailgate.admin.screen import amount, plain, say, words
from mailgate.outcome import Ended

LONG_SECONDS = 4 * 3600.0  # that mail may wait before he is told
AUDITED_SECONDS = 7 * 86400.0  # back from now
DAY_SECONDS = 20 * 3600.0  # in which he is told once; a daily timer is early at times
STAMP = "postmaster"  # in the hold folder: its time says when he was told last
MAX_LINES = 20  # of a kind


def held(desk: Desk) -> list[str]:
    """Return what is held, in lines."""
    found = files(desk.settings.hold)
    if not found:
        return []
    causes = Counter(cause_of(desk, file) or "not known why" for file in found).most_common(MAX_LINES)
    oldest = moment(found[0].since)[:16]
    return [
        f"{amount(len(found), 'message is', 'messages are')} held, the oldest since {oldest}: "
        "mail-gateway-admin held list",
        *(f"  {count}: {cause}" for cause, count in causes),
    ]


def waiting(desk: Desk) -> list[str]:
    """Return what has waited for long in the mail server's queue for us, in lines; his own mail does not count."""
    found = [
        each
        for each in mta.queue_for_us(desk) or []
        if desk.now - each.since >= LONG_SECONDS and each.recipients != [desk.settings.postmaster]
    ]
    if not found:
        return []
    reasons = Counter(each.reason for each in found).most_common(MAX_LINES)
    oldest = moment(found[0].since)[:16]
    return [
        f"{amount(len(found), 'message waits', 'messages wait')} in the mail server's queue, the oldest since "
        f"{oldest}: mail-gateway-admin today",
        *(f"  {count}: {reason}" for reason, count in reasons),
    ]


def lost(desk: Desk) -> list[str]:
    """Return what the audit finds lost or doubled, in lines; none while the database can't be asked."""
    try:
        found = audit.find(desk, desk.now - AUDITED_SECONDS)
    except Ended:
        return []
    names = [*(story.message_id for story, _ in found.lost), *(name for name, _ in found.doubled)]
    if not names:
        return []
    are_lost = amount(len(found.lost), "message is lost", "messages are lost")
    first = f"{are_lost}, {len(found.doubled)} doubled: mail-gateway-admin audit"
    return [first, *(f"  {name}" for name in names[:MAX_LINES])]


# What he is told of: each returns lines, none where all is good.
CONCERNS: tuple[Callable[[Desk], list[str]], ...] = (lost, held, waiting)


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only show the mail")


def _answer(desk: Desk, arguments: Namespace) -> Answer:
    address = desk.settings.postmaster
    if not address:
        raise Usage("MAIL_GATEWAY_POSTMASTER is not set")
    if is_surely_ours(desk.settings.addresses, address):
        raise Usage(f"MAIL_GATEWAY_POSTMASTER is the database's own, whose mail would wait with all others: {address}")
    lines = [line for concern in CONCERNS for line in concern(desk)]
    facts = {"address": address, "lines": lines, "is_sent": False}
    if not lines:
        return Answer(facts, ["Nothing has to be told."])
    if arguments.dry_run:
        return _said(facts, f"Would tell {address}:")
    stamp = os.path.join(desk.settings.hold, STAMP) if desk.settings.hold else ""
    if stamp and _age(stamp) < DAY_SECONDS:
        return _said(facts, f"{address} was told within the last day:")
    say(f"Mailing {address} what is to be told.")
    mta.send(_mail(address, lines), address, "-f", "<>")
    if stamp:
        with open(stamp, "w"):  # which sets its time
            os.utime(stamp)
    return _said(facts | {"is_sent": True}, f"Told {address}:")


def _said(facts: dict[str, Any], first: str) -> Answer:
    return Answer(facts, [words(first), *map(words, facts["lines"])], is_good=False)


def _age(path: str) -> float:
    """Return the seconds since a file was written, infinity for none; a moment to come is a clock set back."""
    with contextlib.suppress(FileNotFoundError):
        age = time.time() - os.stat(path).st_mtime
        return age if age >= 0 else float("inf")
    return float("inf")


def _mail(address: str, lines: list[str]) -> bytes:
    mail = EmailMessage(policy=SMTP.clone(linesep="\n"))
    mail["To"], mail["Subject"] = address, f"Mail gateway on {os.uname().nodename}: mail needs you"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content("\n".join([*map(plain, lines), ""]))
    return mail.as_bytes()


COMMAND = Command(
    "postmaster",
    "Mail MAIL_GATEWAY_POSTMASTER, once a day at most, what is lost, held or waits for long.",
    "mail-gateway-admin postmaster --dry-run",
    _add_arguments,
    _answer,
)
