"""Real mail servers refuse an unknown address in the SMTP dialogue, and none that they can't ask about."""

import itertools
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.mail_database_server import Server, served
from support.mta import LMTP, Exim, Mta, Postfix, started, wait_until
from support.smtp_sink import sink

pytestmark = pytest.mark.mta

WORLD = {
    "alias_domains": [{"id": 1, "name": "example.com", "catchall": "catchall", "bounce": "bounce"}],
    "companies": [{"id": 1, "name": "Company", "email": "office@example.com", "alias_domain": "example.com"}],
    "aliases": [
        {"id": number, "local_part": name, "domain": "example.com", "model": "crm.lead"}
        for number, name in enumerate(["info", "jobs", "sales"], 1)
    ],
    "partners": [{"id": 3, "name": "Administrator", "email": "admin@example.com"}],
    "users": [{"id": 2, "login": "admin", "partner_id": 3}],
}
STRANGERS = (f"nobody{number}@example.com" for number in itertools.count())  # what was asked once may be remembered


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Server]:
    with served(f"sqlite:///{tmp_path}/mail.db", WORLD) as server:
        yield server


@pytest.fixture(
    params=[(Postfix, "socketmap"), (Postfix, "verify"), (Exim, "socketmap")],
    ids=lambda row: f"{row[0].name} {row[1]}",
)
def mta(request: pytest.FixtureRequest, database: Server) -> Iterator[Mta]:
    kind, asks = request.param
    with sink() as bounces, started(kind, bounces, LMTP, asks=asks) as server:
        server.settings(URL=database.url, READ_TIMEOUT=2, CONNECT_TIMEOUT=2, PATIENCE=0)
        yield server


def answer(mta: Mta, address: str) -> tuple[int, bytes]:
    """Return what the mail server answers to RCPT."""
    with smtplib.SMTP("127.0.0.1", mta.port, timeout=60) as client:
        client.ehlo()
        client.mail("ann@outside.test")
        return client.rcpt(address)


def test_an_unknown_address_is_refused_and_a_known_one_is_not(mta: Mta) -> None:
    assert answer(mta, "info@example.com")[0] == 250
    assert answer(mta, "Catchall@Example.COM")[0] == 250
    assert answer(mta, "info@company.test")[0] == 250  # redirected
    code, text = answer(mta, next(STRANGERS))
    assert code == 550, text


def test_while_the_database_can_not_be_asked_a_known_address_is_taken_and_no_other_is_refused(
    mta: Mta, database: Server
) -> None:
    assert answer(mta, "info@example.com")[0] == 250
    assert answer(mta, next(STRANGERS))[0] == 550
    database.process.kill()
    # What was read this very second still counts.
    wait_until(lambda: answer(mta, next(STRANGERS))[0] != 550, "a list that is too old to refuse by")
    assert answer(mta, next(STRANGERS))[0] in (450, 451)
    assert answer(mta, "jobs@example.com")[0] == 250


def test_while_the_service_is_away_nobody_is_refused(mta: Mta) -> None:
    assert mta.service
    mta.service.stop()
    for address in ("sales@example.com", next(STRANGERS)):
        assert answer(mta, address)[0] in (450, 451)
    mta.serve()
    # Postfix may take a service that did not answer for dead for a while, until it is told otherwise

    def is_taken() -> bool:
        mta.flush()
        return answer(mta, "info@example.com")[0] == 250

    wait_until(is_taken, "a known address")
