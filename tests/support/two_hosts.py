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

from support.journal import execute, new_database
from support.mta import LMTP, PYTHON, USER, Impossible, Mta, Postfix, run, wait_until
from support.postgresql import PostgreSQL
from support.smtp_sink import Sink
from support.trials import NUMBERS, Behind, Database, Fault, Mail, ending_of, flush_all, passes, settings_for

SENDERS = 4  # messages that come in at a time, each at both hosts
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
        """Let each message arrive at both hosts at the same moment, and return their endings and the accidents.

        ``fault`` says how the database answers while there are accidents.
        """
        self.database.fault = fault
        sent = [(next(NUMBERS), mail) for mail in mails]
        happened: Counter[str] = Counter()
        with ThreadPoolExecutor(SENDERS) as pool:
            deliveries = [pool.submit(self.send_to_both, *mail.envelope(number)) for number, mail in sent]
            if accidents:
                happened = self.disturb_until(lambda: all(each.done() for each in deliveries) and not self.queued())
        for each in deliveries:
            each.result()
        self.database.fault = passes
        for mta in self.mtas:
            flush_all(mta, seconds)
        return self.account(sent), happened

    def account(self, sent: list[tuple[int, Mail]]) -> Counter[str]:
        """Return how many of the messages ended in which way."""
        database, queued = self.database, self.queued()
        everything = database.everything() if isinstance(database, Behind) else {}
        held = b"".join(text for mta in self.mtas for text in mta.held())
        told = Counter(recipient for _, recipients, _ in self.sink.mails for recipient in recipients)
        endings: Counter[str] = Counter()
        for number, mail in sent:
            sender, _, message = mail.envelope(number)
            records = everything.get(number, []) if isinstance(database, Behind) else database.found(number)[0]
            counts = Counter(alias for alias, _ in records)
            counts += Counter(bounce=told[sender], held=held.count(b"<%d@outside.test>" % number))
            exact = database.is_exact(records, message.replace(b"\r\n", b"\n"))
            endings["still queued" if sender in queued else ending_of(mail, counts, exact)] += 1
        return endings

    def send_to_both(self, sender: str, recipients: tuple[str, ...], message: bytes) -> None:
        both = [threading.Thread(target=send, args=(mta, sender, recipients, message)) for mta in self.mtas]
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

    def queued(self) -> set[str]:
        """Return the senders of all mail that is in the queues."""
        return {sender for mta in self.mtas for sender in mta.queued_senders()}


def journal_for(mta: Mta, server: PostgreSQL) -> dict[str, object]:
    """Return the settings of a new journal on this server, whose password the gateway's user can read."""
    if subprocess.run([PYTHON, "-c", "import psycopg"], capture_output=True, check=False).returncode:
        raise Impossible("needs apt-get install python3-psycopg")
    place = new_database(server, mta.folder)
    shutil.chown(str(place["JOURNAL_PASSWORD_FILE"]), USER)
    return place


def rows(hosts: Hosts) -> Counter[str]:
    """Return how many messages have which ending in the journal."""
    found = execute(hosts.journal, "select ending, count(*) as number from message group by ending")
    return Counter({str(row["ending"]): row["number"] for row in found})


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
