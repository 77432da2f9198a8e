"""A message's parts: each recipient is served once, whichever call is lost, cut off or refused on the way."""

import email
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from email.utils import getaddresses
from pathlib import Path

import pytest
from support.endpoint import Endpoint, Gate, Request, fault, http, returns
from support.gateway import ENVIRONMENT, Gateway, Result
from support.journal import age
from support.service import Service, running

from mailgate.journal.sqlite import FILE, Sqlite

LOST, CUT, TAKES = "lost", "cut", "takes"  # nothing comes of a call; something does, and no answer; something does
NO_ROUTE = fault(1, "ValueError: No possible route found for incoming message")
BROKEN = fault(2, "x")
READ_TIMEOUT = 5
DATE = "Date: Sun, 29 Nov 2026 10:00:00 +0000"
THREAD = "<thread@odoo.test>"
ANSWER = f"{DATE}|To: list@lists.test|References: {THREAD}"
LATER = "Date: Sun, 06 Dec 2026 10:00:00 +0000"


class Database:
    """A database that knows a message by its id, and makes a record for each address of ours that a new one names.

    An answer to THREAD is put there, whomever it names.
    """

    def __init__(self, plays: Sequence[str | bytes]) -> None:
        self.plays = list(plays)
        self.ids = {THREAD}
        self.records: list[str] = []

    def __call__(self, connection: socket.socket, request: Request) -> None:
        if b"message_process" not in request.body:
            ((_, operator, asked), *_) = request.call[0][5][0]
            known = not self.ids.isdisjoint([asked] if operator == "=" else asked)
            connection.sendall(returns([{"id": 1, "model": "crm.lead", "res_id": 7}] if known else []))
            return
        play = self.plays.pop(0) if self.plays else TAKES
        if isinstance(play, bytes):
            connection.sendall(play)
            return
        if play == LOST:
            return
        parsed = email.message_from_bytes(request.message)
        is_new = parsed["Message-ID"] not in self.ids
        self.ids.add(parsed["Message-ID"])
        if is_new:
            named = [str(value) for name in ("Delivered-To", "To", "Cc") for value in parsed.get_all(name, [])]
            ours = {address.partition("@")[0] for _, address in getaddresses(named) if address.endswith("@example.com")}
            self.records += ["thread"] if THREAD in str(parsed["References"]) else sorted(ours)
        if play == TAKES:
            connection.sendall(returns(7 if is_new else False))


def play(endpoint: Endpoint, folder: Path, plays: Sequence[str | bytes], deliveries: Sequence[str]) -> list[str]:
    """Play deliveries, each of the names of recipients and of header fields, and return the records."""
    database = Database(plays)
    endpoint.answers = [database]
    endpoint.inquiry = database
    gateway = Gateway(folder, URL=endpoint.url, PATIENCE=0, READ_TIMEOUT=READ_TIMEOUT)
    for delivery in deliveries:
        names, _, fields = delivery.partition("|")
        addresses = [f"{name}@example.com" for name in names.split()]
        head = ["From: ann@outside.test", "Message-ID: <1@outside.test>", fields or f"{DATE}|To: list@lists.test"]
        message = "\n".join("|".join(head).split("|")) + "\n\nwords\n"
        gateway.run(
            f"--queue-id=4{names.replace(' ', '')}", "--sender=ann@outside.test", *addresses, message=message.encode()
        )
        age(gateway.settings["JOURNAL"], READ_TIMEOUT)
    return sorted(database.records)


@pytest.mark.parametrize(
    ("plays", "deliveries", "records"),
    [
        ([LOST], ["info", "support", "info"], "info support"),
        ([CUT, TAKES, http(500)], ["info", "support", "support", "info"], "info support"),
        ([CUT, CUT], ["info", "support", "support", "info"], "info support"),
        # two calls in a row without an answer, for others: whichever the database has, it has all of them
        ([LOST, CUT], ["info support", "info", "support", "info support"], "info support"),
        ([LOST, LOST, CUT], ["info support", "support", "info", "support"], "info support"),
        ([LOST, CUT], [f"info|{DATE}|To: info@example.com", f"support|{DATE}|To: info@example.com",
                       f"info|{DATE}|To: info@example.com"], "info support"),
        ([LOST, CUT], [f"support|{DATE}|To: info@example.com", f"info|{DATE}|To: info@example.com",
                       f"support|{DATE}|To: info@example.com"], "info support"),
        ([CUT, LOST], ["info", "support", "support", "info"], "info support"),
        ([TAKES, CUT], ["info", "support help", "support", "support help"], "help info support"),
        ([TAKES, TAKES, CUT], ["info", "support help", "help support", "help"], "help info support"),
        ([TAKES, NO_ROUTE], ["info", "new", "new"], "info new"),
        ([CUT], ["info support", "support", "info support"], "info support"),
        ([http(500)], ["info support", "support", "info"], "info support"),
        # a call for some of those of a lost one makes the record for these alone
        ([LOST], ["info support", "support", "info support"], "info support"),
        ([LOST], [f"info|{DATE}|To: info@example.com, support@example.com", "info", "support"], "info support"),
        # a copy of what is known serves nobody whom it names besides
        ([], ["info", f"info info|{DATE}|To: info@example.com, support@example.com", "support"], "info support"),
        # a later delivery that ends clearly, and not for good, takes nothing back of what was served before
        ([TAKES, http(500)], ["info", "info info", "support"], "info support"),
        ([CUT, http(500)], ["info", "info", "support"], "info support"),
        ([TAKES, http(500)], ["info", "info info", f"info|{LATER}"], "info info"),
        # a redirect that a colleague's program or a list has written into the header
        ([], ["info", f"support|{DATE}|To: info@example.com|Resent-To: support@example.com"], "info support"),
        ([], ["info", f"support|{DATE}|To: support@example.com"], "info support"),
        ([], [f"info|{DATE}|To: info@example.com, support@example.com", f"support|{DATE}"], "info support"),
        # a field that can be read in two ways
        ([], [f'info|{DATE}|To: D (the "one") <info@example.com>', f'support|{DATE}|To: (a "b") <info@example.com>'],
         "info support"),
        # one moment, spelt in another way, or not at all
        ([], ["info", "info|Date: Sun, 29 Nov 2026 11:00:00 +0100"], "info"),
        ([], ["info", "info|Subject: x", "info|Date: Mon, 30 Nov 2026 10:00:00 +0000"], "info info"),
        # an answer, which an earlier call has lost
        ([LOST], [f"info|{ANSWER}", f"info support|{ANSWER}", f"help|{ANSWER}"], "thread"),
        ([LOST], [f"info|{ANSWER}", f"help support|{ANSWER}", f"new|{ANSWER}", f"info|{ANSWER}"], "thread"),
        ([], ["info support|References: <gr\udcfc\udcdfe@b>|To: x@lists.test"], "info support"),
    ],
)  # fmt: skip
def test_each_recipient_has_one_record(
    endpoint: Endpoint, tmp_path: Path, plays: list[str | bytes], deliveries: list[str], records: str
) -> None:
    surrogates = [delivery.encode("utf-8", "surrogateescape").decode("latin-1") for delivery in deliveries]
    assert play(endpoint, tmp_path, plays, surrogates) == records.split()


def mail(*fields: str) -> bytes:
    return "\n".join(["From: ann@outside.test", "Message-ID: <1@outside.test>", *fields, "", "words", ""]).encode()


def deliver(gateway: Gateway, queue_id: str, *names: str, message: bytes) -> Result:
    recipients = [f"{name}@example.com" for name in names]
    return gateway.run(f"--queue-id={queue_id}", "--sender=ann@outside.test", "--", *recipients, message=message)


def test_the_log_tells_of_every_part_and_first_of_what_is_held(endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    gateway = Gateway(tmp_path, URL=endpoint.url, PATIENCE=0, HOLD=tmp_path / "held")
    endpoint.answers = [returns(7), returns(False), returns(8), BROKEN]
    deliver(gateway, "4A", "info", message=mail(DATE))
    result = deliver(gateway, "4B", "info", "support", "help", message=mail(DATE))
    assert result.ending == (0, "2.0.0", "held")
    assert "support@example.com apart: delivered 8; help@example.com apart: held fault 2: x; kept" in str(result.facts)


def test_a_part_that_waits_keeps_no_other_waiting(endpoint: Endpoint, tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, URL=endpoint.url, PATIENCE=0)
    endpoint.answers = [returns(7), http(504), returns(8)]
    deliver(gateway, "4A", "info", message=mail(DATE))
    assert deliver(gateway, "4B", "support", message=mail(DATE)).ending == (75, "4.4.2", "cut_off")
    result = deliver(gateway, "4C", "help", "support", message=mail(DATE))
    assert result.ending == (75, "4.3.0", "in_progress")
    assert "help@example.com apart: delivered 8" in result.facts["cause"]
    assert len(endpoint.messages) == 3


def test_a_message_with_the_id_of_one_that_is_being_delivered_keeps_that_one_free(
    endpoint: Endpoint, gate: Gate, tmp_path: Path
) -> None:
    """It is another one, by its Date, and under an id of its own as soon as that is known."""
    gateway = Gateway(tmp_path, URL=endpoint.url, PATIENCE=0)
    endpoint.answers = [returns(7), gate, returns(False)]
    deliver(gateway, "4A", "info", message=mail(DATE))
    command = gateway.command("--queue-id=4B", "info@example.com", LOG=tmp_path / "log of the other")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT) as other:
        assert other.stdin
        other.stdin.write(mail(LATER))
        other.stdin.close()
        gate.wait_for(1)
        assert deliver(gateway, "4C", "info", message=mail(DATE)).ending == (0, "2.0.0", "accepted")
        gate.opened.set()
        assert other.wait(60) == 0


def test_parts_begin_within_a_bound_and_each_once(endpoint: Endpoint, tmp_path: Path) -> None:
    """Or a stranger's copies for ten thousand recipients would take a worker for hours, and then the service's life."""
    service = Service(tmp_path, URL=endpoint.url, RECIPIENT_DELIMITER="+")
    service.runs_first("import mailgate.walk; mailgate.walk.PARTS_SECONDS = 0.0")
    message = mail("Received: by mx.test with ESMTP id 4ABCDE", DATE).replace(b"\n", b"\r\n")
    recipients = ["support@example.com", "help+1@example.com", "support+2@example.com", "help@example.com"]
    with running(service), service.client() as client:
        assert client.deliver(message, "info@example.com") == ["250 2.0.0 delivered"]
        answers = client.deliver(message, *recipients)
        assert answers == ["451 4.3.2 too much mail is waiting, will try again"] * 4
        assert len(endpoint.messages) == 2
    service.command[1:3] = ["-m", "mailgate.service"]
    with running(service), service.client() as client:
        assert client.deliver(message, *recipients) == ["250 2.0.0 delivered"] * 4
    assert len(endpoint.messages) == 3


def test_a_held_mail_is_replaced_by_itself_alone(endpoint: Endpoint, tmp_path: Path) -> None:
    """A copy for another recipient, and a stranger's mail with the same id, are other files."""
    (tmp_path / "held").mkdir()
    endpoint.answers = [BROKEN]
    gateway = Gateway(tmp_path, URL=endpoint.url, PATIENCE=0, HOLD=tmp_path / "held")
    for number, (recipient, text) in enumerate(
        [("info", "order"), ("support", "order"), ("info", "evil"), ("info", "order")]
    ):
        message = f"Message-ID: <1@outside.test>\nSubject: x\n\n{text}\n".encode()
        gateway.run(f"--queue-id=4Q{number}", "--sender=ann@outside.test", f"{recipient}@example.com", message=message)
    texts = [path.read_text().splitlines() for path in (tmp_path / "held" / "new").iterdir()]
    assert {"order", "evil"} == {lines[-1] for lines in texts}
    assert any("Delivered-To: <support@example.com>" in lines for lines in texts)


def test_a_thread_of_the_service_takes_no_lock_from_another(tmp_path: Path) -> None:
    """To close a descriptor of SQLite's file would lift the locks of all threads: another process then ends the log."""
    store = Sqlite(str(tmp_path), print)
    store.write(b"a" * 16, {"ending": "DELIVERED"}, is_begun=False)
    other = threading.Thread(target=store.read, args=[b"a" * 16])
    other.start()
    other.join()
    code = "import sys; from mailgate.journal.sqlite import Sqlite as S; print(bool(S(sys.argv[1], 0).read(b'b' * 16)))"
    for expected in ("False", "True"):
        said = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
        assert said.stdout.strip() == expected
        store.write(b"b" * 16, {"ending": None}, is_begun=True)
    assert (tmp_path / f"{FILE}-wal").exists()


def test_a_journal_that_was_locked_at_first_is_opened_later(endpoint: Endpoint, tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / FILE, isolation_level=None) as backup:
        (tmp_path / FILE).chmod(0o600)
        backup.execute("begin exclusive")
        store = Sqlite(str(tmp_path), print)
        with pytest.raises(Exception, match="locked"):
            store.read(b"a" * 16)
        backup.execute("rollback")
    assert store.read(b"a" * 16) is None
