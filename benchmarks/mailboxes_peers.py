"""What becomes of the same 50 mails with one failure in the middle, by each way from a mailbox into a real Odoo 19.

usage: mailboxes_peers.py [--peer WORDS] [--trial WORDS]

Odoo's own incoming mail server, getmail6 and fetchmail as their documentation has them, and ours, fetch from a real
Dovecot. The table is printed; when all was tried, it is written into docs/mailboxes-peers.md. Needs root, Debian's
packages dovecot-imapd, getmail6 and fetchmail, and what tests/support/odoo needs. It takes half an hour.
"""

import argparse
import contextlib
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import measure
from fetchers import MIDDLE, PEERS, OdoosOwn, Peer, Postman, Stage, subject_of
from support.dovecot import Dovecot
from support.mta import wait_until
from support.odoo.server import Odoo

REPORT = measure.ROOT / "docs" / "mailboxes-peers.md"
COUNT = 50
AWAY_SECONDS, PAUSE_SECONDS = 60, 10  # the database; between two runs meanwhile
MAX_RUNS = 8  # after the failure


class Trial(NamedTuple):
    """A failure: how the mail in the middle differs, or what happens at it."""

    name: str
    to: str = "info@example.com"
    fields: bytes = b""
    body: bytes = b""
    is_away: bool = False  # the database, for a minute, when the mail is to be processed
    is_killed: bool = False  # whoever fetches, when the mail has been processed and he does not know it yet
    has_ids: bool = True  # the mails


LATIN = b"Content-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n"
TRIALS = (
    Trial("nothing fails"),
    Trial("PostgreSQL is away for a minute", is_away=True),
    Trial("a mail for an address that no alias has", to="nobody@example.com"),
    Trial("a mail for a broken alias, at which Odoo raises", to="broken@example.com"),
    Trial("a mail of 8-bit Latin-1", fields=LATIN, body=b"Gr\xfc\xdfe\r\n"),
    Trial("killed between delivery and flag", is_killed=True),
    Trial("the same, and no mail has a Message-ID", is_killed=True, has_ids=False),
)


# What is usual in mail, and is not written as a library would write it: fields, and a body. They take turns.
PLAIN = b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
PARTS = b"""\
--=_1\r
Content-Type: text/plain; charset="utf-8"\r
Content-Transfer-Encoding: 8bit\r
\r
Gr\xc3\xbc\xc3\x9fe\r
--=_1\r
Content-Type: application/octet-stream;\r
 name=chairs.bin\r
Content-Transfer-Encoding: base64\r
\r
AAECAwQFBgcICQ==\r
--=_1--\r
"""
USUAL = (
    (PLAIN, b"Hello\r\n"),
    (PLAIN + b"Cc: office, =?utf-8?q?Z=C3=B6e?= <zoe@outside.test>\r\n", b"Hello\r\n"),
    (PLAIN + "X-Note: Stühle für März\r\n".encode(), "Stühle für März\r\n".encode()),
    (
        PLAIN + b"X-Folded: one,\r\n\ttwo, \r\n   three\r\nx-CASE:no space\r\n",
        b"Hello  \r\nFrom here\r\n.\r\n.. \r\nthe end",
    ),
    (b'Content-Type: multipart/mixed;\r\n boundary="=_1"\r\n', b"Preamble\r\n" + PARTS + b"Epilogue\r\n"),
)


def mails(trial: Trial, mark: str) -> dict[str, bytes]:
    """Return the mails by their subjects, in which the mark makes those of a trial its own."""
    found = {}
    for number in range(1, COUNT + 1):
        fields, body = USUAL[number % len(USUAL)]
        to = TRIALS[0].to
        if number == MIDDLE:
            to = trial.to
            fields, body = (trial.fields, trial.body) if trial.body else (fields, body)
        subject = f"chairs {number} {mark}"
        head = (
            f"Return-Path: <ann{number}@outside.test>\r\nDelivered-To: {to}\r\n"
            f"Received: from mx.outside.test by mx.example.com with ESMTP;\r\n\tSun, 22 Nov 2026 10:00:01 +0000\r\n"
            f"From: Ann <ann{number}@outside.test>\r\nTo: {to}\r\n"
            + f"Message-ID: <{number}.{mark}@outside.test>\r\n" * trial.has_ids
            + f"Date: Sun, 22 Nov 2026 10:00:00 +0000\r\nSubject: {subject}\r\nMIME-Version: 1.0\r\n"
        )
        found[subject] = head.encode() + fields + b"\r\n" + body
    return found


# --- a trial, and its account ---


class Account(NamedTuple):
    """What became of the mails of a trial."""

    records: int
    doubled: int
    lost: int  # no record, and not tried any more; a person would have to find them
    tried_again: int  # fetched at each run
    set_aside: int  # no record, not tried any more, and moved to a folder where a person finds them
    where: str  # those without a record are
    added: int  # mails that arrived with lines added
    changed: int  # mails that arrived with other lines


def play(stage: Stage, kind: type[Peer], trial: Trial, login: str) -> tuple[str, Account]:
    """Let a peer fetch 50 mails with a failure in the middle, until nothing changes; return its name, and the account.

    The name has its version.
    """
    stage.dovecot.add_user(login)
    sent = mails(trial, login.partition("@")[0])
    stage.dovecot.append(login, *sent.values())
    stage.postman.arrived.clear()
    peer = kind(stage, login)
    is_back = threading.Event()
    is_back.set()

    def go_away() -> None:
        is_back.clear()
        stage.odoo.control_postgresql("stop", "-m", "fast")  # whatever has been committed stays
        threading.Timer(AWAY_SECONDS, come_back).start()

    def come_back() -> None:
        try:
            stage.odoo.control_postgresql("restart")
        finally:
            is_back.set()

    try:
        middle = [*sent][MIDDLE - 1]
        peer.at_middle(middle, go_away if trial.is_away else int, peer.kill if trial.is_killed else int)
        peer.run()
        while not is_back.wait(PAUSE_SECONDS):
            peer.run()
        return f"{peer.name}, {peer.version()}", account(stage, peer, sent)
    finally:
        is_back.wait()
        peer.close()


def account(stage: Stage, peer: Peer, sent: dict[str, bytes]) -> Account:
    """Let the peer run until two runs have changed nothing, and say what has become of the mails."""
    state, last = (Counter[str](), -1), -1
    for _ in range(MAX_RUNS):
        before = fetched(stage, peer.login)
        peer.run()
        last = fetched(stage, peer.login) - before
        if state == (state := (records(stage, sent), last)):
            break
    made = state[0]
    missing = sent.keys() - made.keys()
    where = Counter(place for subject, place in places(stage, peer.login).items() if subject in missing)
    gone = len(missing) - where.total()
    if gone:
        where["gone"] = gone
    aside = sum(number for place, number in where.items() if place not in ("gone", "inbox, seen", "inbox, unseen"))
    arrived = [how_changed(sent[subject], message) for subject, message in stage.postman.arrived.items()]
    return Account(
        records=made.total(),
        doubled=sum(number > 1 for number in made.values()),
        lost=len(missing) - min(last, len(missing)) - aside,
        tried_again=last,
        set_aside=aside,
        where=", ".join(f"{number} {place}" for place, number in where.items()),
        added=arrived.count("added"),
        changed=arrived.count("changed"),
    )


def records(stage: Stage, sent: dict[str, bytes]) -> Counter[str]:
    """Return how many records the mails have made."""
    domain = [("subject", "in", [*sent]), ("model", "!=", False), ("message_type", "=", "email")]
    return Counter(row["subject"] for row in stage.odoo.search("mail.message", domain, "subject"))


def fetched(stage: Stage, login: str) -> int:
    """Return how many messages a user's clients have fetched so far, as Dovecot counts them at the end of a session."""

    def ends() -> list[str]:
        return re.findall(rf"imap\({re.escape(login)}\).*: Disconnected: .* body_count=(\d+)", stage.dovecot.log())

    wait_until(lambda: len(ends()) == stage.dovecot.log().count(f"Login: user=<{login}>"), "the sessions to end")
    return sum(map(int, ends()))


def places(stage: Stage, login: str) -> dict[str, str]:
    """Return where each mail is now."""
    found = {}
    for folder in ("INBOX", "Refused"):
        for raw, flags in stage.dovecot.messages(login, folder):
            seen = "seen" if "\\Seen" in flags else "unseen"
            found[subject_of(raw)] = f"inbox, {seen}" if folder == "INBOX" else f"in {folder}"
    return found


def how_changed(sent: bytes, arrived: bytes) -> str:
    """Tell whether a message arrived as it was, apart from its line ends, or with lines added, or else changed."""
    rest = iter(arrived.split(b"\n"))
    if arrived == sent.replace(b"\r\n", b"\n"):
        return ""
    return "added" if all(line in rest for line in sent.split(b"\r\n")) else "changed"


# --- the page ---

HEAD = """\
| peer | failure | records | lost | doubled | fetched at each run | set aside | without a record | \
lines added | lines changed |
|---|---|--:|--:|--:|--:|--:|---|--:|--:|
"""


def line(name: str, trial: Trial, account: Account, is_own: bool) -> str:
    arrived = "nothing between" if is_own else account.added
    cells = [name, trial.name, account.records, account.lost, account.doubled, account.tried_again, account.set_aside]
    cells += [account.where, arrived, "" if is_own else account.changed]
    return f"| {' | '.join(map(str, cells))} |\n"


@contextlib.contextmanager
def staged() -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        dovecot = Dovecot()
        stack.callback(dovecot.remove)
        odoo = Odoo()
        stack.callback(odoo.purge)
        odoo.add_aliases()
        postman = Postman(odoo.url)
        stack.callback(postman.close)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp", prefix="peers-")))
        folder.chmod(0o755)
        shutil.copy(measure.odoo_script(), folder)
        (folder / "odoo-mailgate.py").chmod(0o755)
        yield Stage(dovecot, odoo, postman, folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default="", help="only those whose names have these words in them")
    parser.add_argument("--trial", default="", help="the same of what fails")
    parser.add_argument("--outputs", type=Path, help="a folder for what the peers say")
    options = parser.parse_args()
    table = HEAD
    with staged() as stage:
        numbers = iter(range(1, 1000))
        for peer in (peer for peer in PEERS if options.peer in peer.name):
            for trial in (trial for trial in TRIALS if options.trial in trial.name):
                login = f"trial{next(numbers)}@example.com"
                began = time.monotonic()
                name, found = play(stage, peer, trial, login)
                row = line(name, trial, found, peer is OdoosOwn)
                table += row
                print(row, f"{time.monotonic() - began:.0f} s", found, flush=True)
                output = stage.folder / login / "output"
                if options.outputs and output.exists():
                    shutil.copy(output, options.outputs / f"{peer.__name__}-{TRIALS.index(trial)}")
    print(table)
    if not options.peer and not options.trial:
        head, _, _ = REPORT.read_text().partition("| peer |")
        REPORT.write_text(head + table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
