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
from support.endpoint import Endpoint, Request, fault, http, returns
from support.gateway import Gateway
from support.journal import age

from mailgate.journal.sqlite import FILE, Sqlite

LOST, CUT, TAKES = "lost", "cut", "takes"  # nothing comes of a call; something does, and no answer; something does
NO_ROUTE = fault(1, "ValueError: No possible route found for incoming message")
BROKEN = fault(2, "x")
READ_TIMEOUT = 5
DATE = "Date: Sun, 29 Nov 2026 10:00:00 +0000"


class Database:
    """A database that knows a message by its id, and makes a record for each address of ours that a new one names."""

    def __init__(self, plays: Sequence[str | bytes]) -> None:
        self.plays = list(plays)
        self.ids: set[str] = set()
        self.records: list[str] = []

    def __call__(self, connection: socket.socket, request: Request) -> None:
        if b"message_process" not in request.body:
            asked = request.call[0][5][0][0][2]
            known = isinstance(asked, str) and asked in self.ids
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
            self.records += sorted(ours)
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
        # one that the database may have, and then surely does not take
        ([CUT, http(503)], ["info", "info", "support", "info"], "info support"),
        ([CUT, http(404)], ["info", "info", "support", "info"], "info support"),
        ([CUT, BROKEN], ["info", "info", "support", "info"], "info support"),
        ([CUT, LOST], ["info", "support", "support", "info"], "info support"),
        ([TAKES, CUT], ["info", "support help", "support", "support help"], "help info support"),
        ([TAKES, TAKES, CUT], ["info", "support help", "help support", "help"], "help info support"),
        ([TAKES, NO_ROUTE], ["info", "new", "new"], "info new"),
        ([CUT], ["info support", "support", "info support"], "info support"),
        ([http(500)], ["info support", "support", "info"], "info support"),
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
        ([], ["info support|References: <gr\udcfc\udcdfe@b>|To: x@lists.test"], "info support"),
    ],
)  # fmt: skip
def test_each_recipient_has_one_record(
    endpoint: Endpoint, tmp_path: Path, plays: list[str | bytes], deliveries: list[str], records: str
) -> None:
    surrogates = [delivery.encode("utf-8", "surrogateescape").decode("latin-1") for delivery in deliveries]
    assert play(endpoint, tmp_path, plays, surrogates) == records.split()


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
