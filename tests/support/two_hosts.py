"""Two hosts, a Postfix with a service each, in front of one database, while all except that one is killed."""

import itertools
import os
import pwd
import signal
import smtplib
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.journal import execute, new_database
from support.mta import LMTP, PYTHON, USER, Impossible, Postfix, run, wait_until
from support.postgresql import PostgreSQL
from support.smtp_sink import Sink
from support.trials import NUMBERS, Database, Fault, Mail, account_of, flush_all, passes, settings_for

SENDERS = 4  # messages that come in at a time, each at both hosts
PAUSE_SECONDS = 0.7  # between two accidents


class Hosts:
    """The two of them, with one journal, or each with its own."""

    def __init__(self, database: Database, sink: Sink, journal_server: PostgreSQL | None) -> None:
        if subprocess.run([PYTHON, "-c", "import psycopg"], capture_output=True, check=False).returncode:
            raise Impossible("needs apt-get install python3-psycopg")
        self.database, self.sink, self.journal_server = database, sink, journal_server
        self.journal = ""
        self.mtas: list[Postfix] = []
        try:
            for _ in range(2):
                self.mtas.append(Postfix(sink.address[1], LMTP))
            shared = new_database(journal_server, self.mtas[0].folder) if journal_server else {}
            self.journal = str(shared.get("JOURNAL", ""))
            for mta in self.mtas:
                own = dict(shared)
                if "JOURNAL_PASSWORD_FILE" in own:
                    own["JOURNAL_PASSWORD_FILE"] = self._copy(Path(str(own["JOURNAL_PASSWORD_FILE"])), mta.folder)
                mta.settings(**settings_for(database) | own)
        except BaseException:
            self.remove()
            raise

    @staticmethod
    def _copy(password_file: Path, folder: Path) -> Path:
        """Return a host's own file with the password, which only its service can read."""
        path = folder / "password"
        path.write_bytes(password_file.read_bytes())
        path.chmod(0o640)
        os.chown(path, 0, pwd.getpwnam(USER).pw_gid)
        return path

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
        queued = self.queued()
        endings: Counter[str] = Counter()
        for number, mail in sent:
            is_queued = mail.envelope(number)[0] in queued
            first, second = (account_of(mta, self.database, self.sink, number, mail) for mta in self.mtas)
            endings += Counter(["still queued"]) if is_queued else first | second
        return endings, happened

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
