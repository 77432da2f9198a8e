"""fetchmail hands over to the service by the recipe of docs/mailboxes-peers.md; what it can and what it can't do."""

import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from support.dovecot import PASSWORD, Dovecot
from support.endpoint import Endpoint, Request, fault, http, returns, traceback
from support.gateway import ENVIRONMENT
from support.pages import page
from support.records import Records
from support.service import Service

pytestmark = pytest.mark.mailboxes

RECIPE = re.findall(r"(?m)^    (set daemon(?:.*\n)+?)\n", page("docs/mailboxes-peers.md"))
SEEN, UNSEEN = frozenset({"\\Seen"}), frozenset[str]()
REFUSED = fault(1, traceback("ValueError: No possible route found for incoming message from x"))


@pytest.fixture(scope="module", autouse=True)
def program() -> None:
    if not shutil.which("fetchmail"):
        pytest.skip("needs apt-get install fetchmail")


class Fetchmail:
    """fetchmail as the page has it, for a user of a Dovecot, in front of a service."""

    def __init__(self, folder: Path, imap_server: Dovecot, login: str, service: Service) -> None:
        self.folder = folder / "fetchmail"
        self.folder.mkdir()
        text = re.sub(r"(?m)^ {4}", "", RECIPE[0])
        for written, here in {
            "set daemon 60\n": "",  # for it would go into the background
            "imap.example.com": "localhost",
            "993": str(imap_server.ports["imaps"]),
            'user "task@example.com"': f'user "{login}"',
            '"secret" ssl': f'"{PASSWORD}" ssl sslcertfile "{imap_server.ca_file}"',
            "/run/mail-gateway/lmtp.sock": str(service.address),
        }.items():
            assert text.count(written) == 1, written
            text = text.replace(written, here)
        self.settings = self.folder / "fetchmailrc"
        self.settings.touch(mode=0o600)
        self.settings.write_text(text)

    def start(self) -> subprocess.Popen[str]:
        command: list[str | Path] = [
            "/usr/bin/fetchmail",
            "-f",
            self.settings,
            "--idfile",
            self.folder / "ids",
            "--pidfile",
            self.folder / "pid",
        ]
        environment = ENVIRONMENT | {"HOME": str(self.folder)}
        return subprocess.Popen(
            command, env=environment, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self) -> str:
        """Let it poll once, and return what it says."""
        return self.start().communicate(timeout=60)[0]


@pytest.fixture
def fetchmail(tmp_path: Path, imap_server: Dovecot, login: str, service: Service) -> Fetchmail:
    return Fetchmail(tmp_path, imap_server, login, service)


def mail(number: int, fields: bytes = b"", body: bytes = b"Hello\r\n") -> bytes:
    head = (
        b"From: Ann <ann%d@outside.test>\r\nTo: office\r\nDate: Sun, 22 Nov 2026 10:00:00 +0000\r\nSubject: Hello\r\n"
    )
    return head % number + (fields or b"Message-ID: <%d@outside.test>\r\n" % number) + b"\r\n" + body


def flags(imap_server: Dovecot, login: str) -> list[frozenset[str]]:
    return [message.flags for message in imap_server.messages(login)]


def test_each_mail_is_delivered_once_and_kept(
    imap_server: Dovecot, login: str, fetchmail: Fetchmail, endpoint: Endpoint
) -> None:
    sent = [
        mail(1),
        mail(2, b"Message-ID: <2@outside.test>\r\nCc: office, Zo\xc3\xab <zoe@outside.test>\r\n"),
        mail(3, body=b"Gr\xfc\xdfe\r\n.\r\n..\r\nFrom \r\n"),
    ]
    imap_server.append(login, *sent)
    for _ in range(2):
        fetchmail.run()
        assert [message.raw for message in imap_server.messages(login)] == sent
        assert flags(imap_server, login) == [SEEN] * 3
    assert len(endpoint.messages) == 3
    assert endpoint.messages == [
        b"Return-Path: <ann%d@outside.test>\r\nDelivered-To: <task@example.com>\r\n" % number + raw
        for number, raw in enumerate(sent, 1)
    ]


@pytest.mark.parametrize("is_stopped", [False, True], ids=["the database", "the service"])
def test_mail_stays_unread_while_somebody_is_away(
    imap_server: Dovecot, login: str, fetchmail: Fetchmail, endpoint: Endpoint, service: Service, is_stopped: bool
) -> None:
    imap_server.append(login, mail(1), mail(2))
    if is_stopped:
        service.stop()
    endpoint.answers = [http(503)]
    for _ in range(2):
        fetchmail.run()
        assert flags(imap_server, login) == [UNSEEN] * 2
    endpoint.answers = [returns(7)]
    endpoint.requests.clear()
    if is_stopped:
        service.start()
    fetchmail.run()
    assert flags(imap_server, login) == [SEEN] * 2
    assert len(endpoint.messages) == 2


@pytest.mark.parametrize("fields", [b"Message-ID: <1@outside.test>\r\n", b"X-No-Id: 1\r\n"], ids=["id", "no id"])
def test_a_mail_that_was_delivered_when_fetchmail_was_killed_makes_one_record(
    imap_server: Dovecot, login: str, fetchmail: Fetchmail, endpoint: Endpoint, service: Service, fields: bytes
) -> None:
    imap_server.append(login, mail(1, fields))
    database = Records(endpoint)
    running: list[subprocess.Popen[str]] = []

    def kill(connection: socket.socket, request: Request) -> None:
        running[0].kill()
        database(connection, request)

    endpoint.answers = [kill]
    running.append(fetchmail.start())
    running[0].communicate(timeout=60)
    assert running[0].returncode == -signal.SIGKILL
    service.wait_for("outcome=delivered")
    assert flags(imap_server, login) == [UNSEEN]
    fetchmail.run()
    assert flags(imap_server, login) == [SEEN]
    assert len(endpoint.messages) == 2
    assert len(database.messages) == 1


def test_refused_mail_is_marked_as_read_and_only_two_logs_say_so(
    imap_server: Dovecot, login: str, fetchmail: Fetchmail, endpoint: Endpoint, service: Service
) -> None:
    endpoint.answers = [returns(7), REFUSED, returns(7)]
    imap_server.append(login, mail(1), mail(2), mail(3))
    assert "LMTP error: 550 5.1.1 no such address here" in fetchmail.run()
    assert flags(imap_server, login) == [SEEN] * 3
    assert service.text().count("outcome=unknown_recipient") == 1
    fetchmail.run()
    assert len(endpoint.messages) == 3


def test_mail_that_is_too_large_stays_unread(
    imap_server: Dovecot, login: str, fetchmail: Fetchmail, endpoint: Endpoint, service: Service
) -> None:
    service.stop()
    service.start(MAX_SIZE=2000)
    imap_server.append(login, mail(1), mail(2, body=b"0" * 3000), mail(3))
    for _ in range(2):
        assert "LMTP error: 552 5.3.4" in fetchmail.run()
        assert flags(imap_server, login) == [SEEN, UNSEEN, SEEN]
    assert len(endpoint.messages) == 2


def test_mail_that_a_person_reads_first_is_never_fetched(
    imap_server: Dovecot, login: str, fetchmail: Fetchmail, endpoint: Endpoint
) -> None:
    imap_server.append(login, mail(1), flags="\\Seen")
    imap_server.append(login, mail(2))
    fetchmail.run()
    assert [b"ann2@" in message for message in endpoint.messages] == [True]
