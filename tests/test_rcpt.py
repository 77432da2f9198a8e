"""Real mail servers refuse an unknown address in the SMTP dialogue, and none that they can't ask about.

They ask the service, or they have a list of the database's addresses that the desk has made.
"""

import itertools
import json
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.admin import ask
from support.endpoint import Endpoint, returns
from support.mail_database_server import Server, served
from support.mta import LIST, LMTP, PIPE, PYTHON, Exim, Mta, Postfix, run, started, wait_until
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


# --- a list in place of the service ---------------------------------------------------------------------------

OF_THE_LIST = {
    "info@example.com": 250,
    "Catchall@Example.COM": 250,
    "bounce@example.com": 250,
    "bounce+12-crm.lead-1@example.com": 250,
    "info+tag@example.com": 250,  # both have + for their delimiter
    "commercial@example.com": 250,
    "commercial@second.example": 250,  # by its local-part
    "commercial+tag@second.example": 250,
    "info@company.test": 250,  # redirected
    "nobody@example.com": 550,
    "info@second.example": 550,
    "commercial.x@second.example": 550,
}


@pytest.fixture(params=[Postfix, Exim], ids=lambda kind: kind.name)
def mta_with_list(request: pytest.FixtureRequest, database: Server) -> Iterator[Mta]:
    database.call("mail.alias", "write", [3], {"alias_name": "commercial", "alias_incoming_local": True})
    with sink() as bounces, started(request.param, bounces, PIPE, asks=LIST) as server:
        server.settings(URL=database.url, RECIPIENT_DELIMITER="+", PATIENCE=0)
        yield server


def made(mta: Mta) -> list[int]:
    """Have the desk make the lists, and the mail server know them; return the exit statuses."""
    outputs = [(name, "--output", path) for name, path in mta.recipients.items()]
    finished = [
        ask(mta.env_file, "addresses", "--format", *words, python=PYTHON, folder=mta.program.parent)
        for words in outputs
    ]
    print(*(each.stderr for each in finished))
    if isinstance(mta, Postfix):
        mta.reload()
    return [each.returncode for each in finished]


def test_a_list_refuses_who_is_unknown_and_nobody_else_whatever_fails(
    mta_with_list: Mta, database: Server, endpoint: Endpoint
) -> None:
    mta = mta_with_list
    known = [address for address, code in OF_THE_LIST.items() if code == 250 and "company" not in address]
    assert {answer(mta, address)[0] for address in known} <= {421, 451}  # there is none yet
    assert not any(made(mta))
    assert {address: answer(mta, address)[0] for address in OF_THE_LIST} == OF_THE_LIST

    # the database sees nothing, then it is down
    endpoint.version, endpoint.answers = returns({"server_version_info": [17, 0]}), [returns([])]
    mta.settings(URL=endpoint.url, RECIPIENT_DELIMITER="+", PATIENCE=0)
    assert all(made(mta))
    assert {address: answer(mta, address)[0] for address in OF_THE_LIST} == OF_THE_LIST
    mta.settings(URL=database.url, RECIPIENT_DELIMITER="+", PATIENCE=0)
    database.process.kill()
    assert all(made(mta))
    assert {address: answer(mta, address)[0] for address in OF_THE_LIST} == OF_THE_LIST

    for path in mta.recipients.values():
        path.unlink()
    if isinstance(mta, Postfix):
        mta.reload()
    assert {answer(mta, address)[0] for address in known} <= {421, 451}


# --- redirections ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Postfix, Exim], ids=lambda kind: kind.name)
def test_the_redirections_that_the_desk_has_written_are_taken_and_no_others(kind: type[Mta], tmp_path: Path) -> None:
    world = json.loads(json.dumps(WORLD).replace("example.com", "company.test"))
    with (
        served(f"sqlite:///{tmp_path}/mail.db", world) as database,
        sink() as bounces,
        started(kind, bounces, PIPE) as mta,
    ):
        mta.settings(URL=database.url, ALIAS_DOMAINS="company.test")
        name = "conf/mail-gateway/virtual" if kind is Postfix else "exim/mail-gateway/redirections"
        (mta.folder / name).unlink()  # which was typed
        words = ("redirections", "--to", "example.com", "--format", kind.name, "--output", mta.folder / name)
        assert ask(mta.env_file, *words, python=PYTHON, folder=mta.program.parent).returncode == 0
        if isinstance(mta, Postfix):
            run("postconf", "-c", mta.config, "-e", "local_recipient_maps = $alias_maps")  # else anybody is taken
            mta.reload()
        taken = ("info", "jobs", "catchall", "bounce", "bounce+12-crm.lead-1", "notifications")
        codes = {name: answer(mta, f"{name}@company.test")[0] for name in (*taken, "nobody")}
        assert codes == {**dict.fromkeys(taken, 250), "nobody": 550}
