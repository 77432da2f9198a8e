"""Two hosts, a Postfix with a service each, in front of one database, while all except that one is killed."""

import itertools
import shutil
import signal
import smtplib
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from support.accounts import account, untold
from support.journal import new_database
from support.mta import LMTP, PYTHON, USER, Impossible, Mta, Postfix, run, wait_until
from support.postgresql import PostgreSQL
from support.smtp_sink import Sink
from support.trials import NUMBERS, Database, Fault, Mail, flush_all, is_right, passes, settings_for

SENDERS = 4  # messages that come in at a time, each at both hosts
AGAIN = "messages that arrived again, for the journal was not told their end"
PAUSE_SECONDS = 0.7  # between two accidents


class Hosts:
    """The two of them, with one journal, or each with its own."""

    def __init__(self, database: Database, sink: Sink, journal_server: PostgreSQL | None) -> None:
        self.database, self.sink, self.journal_server = database, sink, journal_server
        self.journal = ""
        self.mtas: list[Postfix] = []
        try:
            for _ in range(2):
                self.mtas.append(Postfix(sink.address[1], LMTP))
            shared = journal_for(self.mtas[0], journal_server) if journal_server else {}
            self.journal = str(shared.get("JOURNAL", ""))
            if shared:  # by their name they are one host, so that an audit looks for what both hold
                shared["HOLD"] = self.mtas[0].folder / "var" / "held"
            for mta in self.mtas:
                mta.settings(**settings_for(database) | shared)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        for mta in self.mtas:
            mta.stop()
            mta.remove()

    def accidents(self) -> dict[str, Callable[[], object]]:
        """Return what may happen, by its name."""
        first, second = self.mtas
        found: dict[str, Callable[[], object]] = {}
        for mta, name in ((first, "first"), (second, "second")):
            found[f"the {name} host's service was killed"] = lambda mta=mta: kill_service(mta)  # type: ignore[misc]
            found[f"the {name} host's Postfix was aborted"] = lambda mta=mta: abort(mta)  # type: ignore[misc]
        if server := self.journal_server:
            found["the journal's server was killed"] = lambda: kill_journal(server)
        return found

    def play(
        self, mails: list[Mail], seconds: float, accidents: bool = True, fault: Fault = passes
    ) -> tuple[Counter[str], Counter[str]]:
        """Let each message arrive at both hosts at the same moment, and return their account and the accidents.

        ``fault`` says how the database answers while there are accidents.
        """
        self.database.fault = self.database.questions = fault
        sent = [(next(NUMBERS), mail) for mail in mails]
        happened: Counter[str] = Counter()
        with ThreadPoolExecutor(SENDERS) as pool:
            deliveries = [pool.submit(self.send_to_both, number, mail) for number, mail in sent]
            if accidents:
                happened = self.disturb_until(lambda: all(each.done() for each in deliveries) and not self.is_busy())
        for each in deliveries:
            each.result()
        self.database.fault = self.database.questions = passes
        for mta in self.mtas:
            flush_all(mta, seconds)
        if self.journal and is_right(account(self.mtas, self.database, self.sink, sent)):
            happened += self.tell_journal(sent, seconds)
        return account(self.mtas, self.database, self.sink, sent, self.journal), happened

    def tell_journal(self, sent: list[tuple[int, Mail]], seconds: float) -> Counter[str]:
        """Let messages arrive once more whose end the journal was not told, for its server was away: now it is."""
        again = untold(self.database, sent, self.journal)
        for number, mail in again:
            self.send_to_both(number, mail)
        for mta in self.mtas:
            flush_all(mta, seconds)
        return Counter({AGAIN: len(again)})

    def send_to_both(self, number: int, mail: Mail) -> None:
        copies = (mail, mail._replace(recipients=mail.elsewhere or mail.recipients))
        both = [
            threading.Thread(target=send, args=(mta, *copy.envelope(number)))
            for mta, copy in zip(self.mtas, copies, strict=True)
        ]
        for each in both:
            each.start()
        for each in both:
            each.join()

    def disturb_until(self, is_over: Callable[[], bool]) -> Counter[str]:
        """Have one accident after the other, try all mail after each, and return what has happened."""
        happened: Counter[str] = Counter()
        for name, accident in itertools.cycle(self.accidents().items()):
            time.sleep(PAUSE_SECONDS)
            if is_over():
                break
            accident()
            happened[name] += 1
            for mta in self.mtas:
                mta.flush()
        return happened

    def is_busy(self) -> bool:
        """Tell whether there is mail in the queues."""
        return any(mta.queue() for mta in self.mtas)


def journal_for(mta: Mta, server: PostgreSQL) -> dict[str, object]:
    """Return the settings of a new journal on this server, whose password the gateway's user can read."""
    if subprocess.run([PYTHON, "-c", "import psycopg"], capture_output=True, check=False).returncode:
        raise Impossible("needs apt-get install python3-psycopg")
    place = new_database(server, mta.folder)
    shutil.chown(str(place["JOURNAL_PASSWORD_FILE"]), USER)
    return place


def send(mta: Postfix, sender: str, recipients: tuple[str, ...], message: bytes) -> None:
    """Hand over a message by SMTP, again and again as another mail server would, until it is taken."""
    until = time.monotonic() + 60
    while True:
        try:
            return mta.send(sender, recipients, message)
        except (OSError, smtplib.SMTPException):
            assert time.monotonic() < until
            time.sleep(0.1)


def kill_service(mta: Postfix) -> None:
    mta.kill_gateways(signal.SIGKILL)
    mta.serve()


def abort(mta: Postfix) -> None:
    """Have Postfix stop at once, in the middle of what it does, and start again."""
    run("postfix", "-c", mta.config, "abort")
    start = ["postfix", "-c", str(mta.config), "start"]
    wait_until(lambda: not subprocess.run(start, capture_output=True, check=False).returncode, "Postfix to start")


def kill_journal(server: PostgreSQL) -> None:
    server.kill()
    time.sleep(0.3)  # for somebody to miss it
    server.start()
