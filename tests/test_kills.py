"""kill -9 between every two steps of a delivery: the next try ends right, and the database has the message once."""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from support.endpoint import Endpoint, Request, fault, returns
from support.gateway import ENVIRONMENT, PROGRAM, Gateway
from support.journal import age, new_database

MESSAGE = b"From: Ann <ann@outside.test>\nMessage-ID: <1@outside.test>\nSubject: hello\n\nwords\n"
READ_TIMEOUT = 150

# Where the process is killed: the file, what is in it, and whether before or after it; then whether the database has
# the message by then, and whether the next try has to wait.
STEPS = [
    ("walk.py", "plan", "before", False, False),
    ("walk.py", "plan", "after", False, False),
    ("journal/sqlite.py", "_locked", "after", False, False),
    ("journal/sqlite.py", "Sqlite.read", "before", False, False),
    ("journal/sqlite.py", "Sqlite.read", "after", False, False),
    ("walk.py", "_called", "before", False, False),
    ("database.py", "Client._user_id", "after", False, False),
    ("journal/__init__.py", "Claim.note_begun", "before", False, False),
    ("journal/__init__.py", "Claim.note_begun", "after", False, True),
    ("database.py", "_reply", "before", True, True),
    ("database.py", "_reply", "after", True, True),
    ("walk.py", "judge", "after", True, True),
    ("journal/__init__.py", "Claim.end", "before", True, True),
    ("journal/__init__.py", "Claim.end", "after", True, False),
    ("walk.py", "deliver", "after", True, False),
    ("log.py", "Log.message", "before", True, False),
    ("log.py", "Log.message", "after", True, False),
]

KILLED = """

def _killed(work, when):
    def run(*arguments, **named):
        import os
        if when == "before":
            os.kill(os.getpid(), 9)
        found = work(*arguments, **named)
        os.kill(os.getpid(), 9)
        return found
    return run

"""


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, object]:
    """The settings of the journal, where it is not in the folder of the test."""
    is_server = request.param == "postgresql"
    return new_database(request.getfixturevalue("journal_server"), tmp_path) if is_server else {}


class Database:
    """An answer that makes a record of each message that it has not yet, and knows the others."""

    def __init__(self) -> None:
        self.records: list[bytes] = []

    def __call__(self, connection: socket.socket, request: Request) -> None:
        if b"message_process" not in request.body:
            rows = [{"id": 1, "model": "crm.lead", "res_id": 7}] if self.records else []
            connection.sendall(returns(rows))
            return
        is_new = not self.records
        self.records += [request.message] * is_new
        connection.sendall(returns(7 if is_new else False))


@pytest.mark.parametrize(("file", "name", "when", "has_it", "waits"), STEPS)
def test_the_next_try_ends_right(
    endpoint: Endpoint,
    tmp_path: Path,
    place: dict[str, object],
    file: str,
    name: str,
    when: str,
    has_it: bool,
    waits: bool,
) -> None:
    if place and file == "journal/sqlite.py":
        file, name = "journal/postgresql.py", f"Postgresql.{name.removeprefix('Sqlite.')}"
    database = Database()
    endpoint.answers = [database]
    endpoint.inquiry = database
    gateway = Gateway(tmp_path, URL=endpoint.url, PATIENCE=0, READ_TIMEOUT=READ_TIMEOUT, **place)
    kill(gateway, file, name, when)
    assert len(database.records) == has_it

    outcomes = []
    for _ in range(2):
        result = gateway.run("--queue-id=4XyZ", "--sender=ann@outside.test", "info@example.com", message=MESSAGE)
        outcomes.append(result.facts["outcome"])
        if result.status == 0:
            break
        age(gateway.settings["JOURNAL"], READ_TIMEOUT)
    assert outcomes[:-1] == ["in_progress"] * waits
    assert outcomes[-1] in ("delivered", "known")
    assert len(database.records) == 1


@pytest.mark.parametrize(
    ("file", "name", "when"),
    [
        ("walk.py", "_held", "before"),
        ("hold.py", "store", "before"),
        ("hold.py", "sync_folder", "before"),
        ("hold.py", "store", "after"),
        ("walk.py", "_held", "after"),
    ],
)
def test_what_is_held_is_held_once(
    endpoint: Endpoint, tmp_path: Path, place: dict[str, object], file: str, name: str, when: str
) -> None:
    endpoint.answers = [fault(2, "x")]
    hold = tmp_path / "held"
    hold.mkdir()
    gateway = Gateway(tmp_path, URL=endpoint.url, PATIENCE=0, READ_TIMEOUT=READ_TIMEOUT, HOLD=hold, **place)
    kill(gateway, file, name, when)
    for _ in range(2):
        result = gateway.run("--queue-id=4XyZ", "--sender=ann@outside.test", "info@example.com", message=MESSAGE)
        if result.status == 0:
            break
        age(gateway.settings["JOURNAL"], READ_TIMEOUT)
    assert result.status == 0
    (path,) = hold.glob("new/*")
    assert path.read_bytes() == endpoint.messages[0]


def kill(gateway: Gateway, file: str, name: str, when: str) -> None:
    """Run a copy of the program that is killed before or after this function of it."""
    program = gateway.folder / "copy" / "mail_gateway.py"
    program.parent.mkdir()
    shutil.copy(PROGRAM, program)
    shutil.copytree(PROGRAM.parent / "mailgate", program.parent / "mailgate")
    with (program.parent / "mailgate" / file).open("a") as source:
        source.write(f"{KILLED}\n{name} = _killed({name}, {when!r})\n")
    command = gateway.command("--queue-id=4XyZ", "--sender=ann@outside.test", "info@example.com")
    command[1] = str(program)
    killed = subprocess.run(command, input=MESSAGE, capture_output=True, env=ENVIRONMENT, check=False)
    assert killed.returncode == -9
