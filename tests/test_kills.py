"""kill -9 between every two steps of a delivery: the next try ends right, and the database has the message once."""

import subprocess
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import pytest
from support.endpoint import Endpoint, fault
from support.gateway import ENVIRONMENT, Gateway, changed
from support.journal import age, new_database
from support.records import PARENT, Records
from support.service import Service, running

from mailgate.outcome import Outcome

HEAD = (
    b"Received: from mx.test by mx.example.com (Postfix) with ESMTP id 4XyZ\n"
    b"From: Ann <ann@outside.test>\nTo: info@example.com\nMessage-ID: <1@outside.test>\nSubject: hello\n"
)
MESSAGE = HEAD + b"\nwords\n"
# With an alias of another model in Bcc: a call for the thread, then one for the alias.
ANSWER = HEAD + f"References: {PARENT}\n\nwords\n".encode()
SENDER = "ann@outside.test"
READ_TIMEOUT = 150
ENDINGS = {outcome.line for outcome in (Outcome.DELIVERED, Outcome.KNOWN)}

KILLED = """

def _killed(work, when, number):
    count = 0
    def run(*arguments, **named):
        import os
        nonlocal count
        count += 1
        if count == number and when == "before":
            os.kill(os.getpid(), 9)
        found = work(*arguments, **named)
        if count == number:
            os.kill(os.getpid(), 9)
        return found
    return run


{name} = _killed({name}, {when!r}, {number})
"""


class Step(NamedTuple):
    """Where the process is killed: before or after a function, when it is called for the n-th time.

    ``records`` is how many the database has by then, ``waits`` whether the next try has to wait. The store's functions
    are those of SQLite's; the other's have the same names.
    """

    file: str
    name: str
    when: str
    records: int = 0
    waits: bool = False
    number: int = 1

    @property
    def id(self) -> str:
        """Its name as a test's."""
        return f"{self.when} {self.name} {self.number}"

    def changed(self, folder: Path, is_server: bool) -> Path:
        """Return a copy of the program that is killed there."""
        file, name = self.file, self.name
        if is_server and file == "journal/sqlite.py":
            file, name = "journal/postgresql.py", {"_locked": "Postgresql._locked"}.get(name, name)
            name = name.replace("Sqlite", "Postgresql")
        return changed(folder / "copy", {file: KILLED.format(name=name, when=self.when, number=self.number)})


# A message for one recipient.
STEPS = [
    Step("settings.py", "build", "after"),
    Step("envelope.py", "spool", "after"),
    Step("alias_list.py", "settle", "after"),
    Step("walk.py", "plan", "before"),
    Step("walk.py", "plan", "after"),
    Step("walk.py", "_ending", "before"),
    Step("journal/sqlite.py", "_locked", "before"),
    Step("journal/sqlite.py", "_locked", "after"),
    Step("journal/sqlite.py", "Sqlite.read", "before"),
    Step("journal/sqlite.py", "_migrate", "before"),
    Step("journal/sqlite.py", "_migrate", "after"),
    Step("journal/sqlite.py", "Sqlite.read", "after"),
    Step("journal/__init__.py", "_answer", "after"),
    Step("parts.py", "split", "before"),
    Step("parts.py", "split", "after"),
    Step("walk.py", "_of_call", "before"),
    Step("walk.py", "_called", "before"),
    Step("walk.py", "_unasked", "after"),
    Step("database.py", "Client._user_id", "after"),
    Step("database.py", "_message_body", "after"),
    Step("database.py", "_send", "before"),
    Step("journal/__init__.py", "Claim.note_begun", "before"),
    Step("journal/sqlite.py", "Sqlite.write", "before"),
    Step("journal/sqlite.py", "Sqlite.write", "after", waits=True),
    Step("journal/__init__.py", "Claim.note_begun", "after", waits=True),
    Step("database.py", "_joined", "before", waits=True),
    Step("database.py", "_reply", "before", 1, waits=True),
    Step("database.py", "_reply", "after", 1, waits=True),
    Step("database.py", "_send", "after", 1, waits=True),
    Step("walk.py", "judge", "before", 1, waits=True),
    Step("walk.py", "judge", "after", 1, waits=True),
    Step("walk.py", "_understood", "before", 1, waits=True),
    Step("walk.py", "_understood", "after", 1, waits=True),
    Step("walk.py", "_called", "after", 1, waits=True),
    Step("journal/__init__.py", "Claim.end", "before", 1, waits=True),
    Step("journal/sqlite.py", "Sqlite.write", "before", 1, waits=True, number=2),
    Step("journal/sqlite.py", "Sqlite.write", "after", 1, number=2),
    Step("journal/__init__.py", "Claim.end", "after", 1),
    Step("walk.py", "_of_call", "after", 1),
    Step("walk.py", "_ending", "after", 1),
    Step("walk.py", "deliver", "after", 1),
    Step("log.py", "Log.message", "before", 1),
    Step("journal/__init__.py", "note_attempt", "before", 1),
    Step("journal/__init__.py", "note_attempt", "after", 1),
    Step("log.py", "Log.message", "after", 1),
]
# An answer, and its part for the alias.
PARTS = [
    Step("parts.py", "_forwarding", "before"),
    Step("inquiry.py", "of_another_model", "before"),
    Step("database.py", "_reply", "after"),  # where its thread is
    Step("database.py", "_reply", "after", number=2),  # which version it is
    Step("database.py", "_reply", "after", number=3),  # of which model the alias is
    Step("parts.py", "_forwarding", "after"),
    Step("parts.py", "split", "after"),
    Step("walk.py", "plan_for", "after"),
    Step("walk.py", "_of_call", "before"),
    Step("journal/sqlite.py", "Sqlite.write", "before"),
    Step("journal/sqlite.py", "Sqlite.write", "after", waits=True),
    Step("database.py", "_reply", "before", 1, waits=True, number=4),
    Step("journal/sqlite.py", "Sqlite.write", "before", 1, waits=True, number=2),
    Step("journal/sqlite.py", "Sqlite.write", "after", 1, number=2),
    Step("walk.py", "_of_call", "after", 1),
    Step("walk.py", "_of_parts", "before", 1),
    Step("walk.py", "_ending", "before", 1, number=2),
    Step("journal/sqlite.py", "_locked", "after", 1, number=2),
    Step("journal/sqlite.py", "Sqlite.read", "after", 1, number=2),
    Step("parts.py", "split", "after", 1, number=2),
    Step("walk.py", "_called", "before", 1, number=2),
    Step("journal/sqlite.py", "Sqlite.write", "before", 1, number=3),
    Step("journal/sqlite.py", "Sqlite.write", "after", 1, waits=True, number=3),
    Step("database.py", "_reply", "before", 2, waits=True, number=5),
    Step("walk.py", "judge", "after", 2, waits=True, number=2),
    Step("journal/sqlite.py", "Sqlite.write", "before", 2, waits=True, number=4),
    Step("journal/sqlite.py", "Sqlite.write", "after", 2, number=4),
    Step("walk.py", "_of_call", "after", 2, number=2),
    Step("walk.py", "_of_parts", "after", 2),
    Step("walk.py", "deliver", "after", 2),
]
# A message that the database has, and says only False.
KNOWN = [
    Step("walk.py", "_understood", "before", 1, waits=True),
    Step("inquiry.py", "of_false", "before", 1, waits=True),
    Step("inquiry.py", "of_known", "before", 1, waits=True),
    Step("inquiry.py", "of_known", "after", 1, waits=True),
    Step("inquiry.py", "of_false", "after", 1, waits=True),
    Step("walk.py", "_understood", "after", 1, waits=True),
    Step("journal/__init__.py", "Claim.end", "before", 1, waits=True),
    Step("journal/__init__.py", "Claim.end", "after", 1),
]
# One that the database can't digest.
HELD = [
    Step("walk.py", "judge", "after", waits=True),
    Step("walk.py", "_held", "before", waits=True),
    Step("hold.py", "new_path", "before", waits=True),
    Step("hold.py", "new_path", "after", waits=True),
    Step("journal/__init__.py", "Claim.end", "before", waits=True),
    Step("journal/__init__.py", "Claim.end", "after"),
    Step("hold.py", "store", "before"),
    Step("hold.py", "_write", "before"),
    Step("hold.py", "_write", "after"),
    Step("hold.py", "sync_folder", "before"),
    Step("hold.py", "sync_folder", "before", number=2),
    Step("hold.py", "sync_folder", "after", number=2),
    Step("hold.py", "store", "after"),
    Step("journal/__init__.py", "Claim.end", "before", number=2),
    Step("journal/__init__.py", "Claim.end", "after", number=2),
    Step("walk.py", "_held", "after"),
    Step("log.py", "Log.message", "before"),
]
# By the service, which has the same walk; its own steps are around it.
SERVICE = [
    Step("service/workers.py", "Workers._start", "before"),
    Step("service/delivery.py", "_Delivery.walk", "before"),
    Step("walk.py", "_called", "before"),
    Step("journal/__init__.py", "Claim.note_begun", "after", waits=True),
    Step("walk.py", "judge", "before", 1, waits=True),
    Step("walk.py", "_of_parts", "before", 1),
    Step("walk.py", "judge", "before", 2, waits=True, number=2),
    Step("walk.py", "deliver", "after", 2),
    Step("service/delivery.py", "_Delivery.walk", "after", 2),
    Step("service/delivery.py", "_Delivery.replies", "before", 2),
]


def rows(steps: list[Step]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("step", steps, ids=[step.id for step in steps])


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, object]:
    """The settings of the journal, where it is not in the folder of the test."""
    is_server = request.param == "postgresql"
    return new_database(request.getfixturevalue("journal_server"), tmp_path) if is_server else {}


@pytest.fixture
def gateway(endpoint: Endpoint, tmp_path: Path, place: dict[str, object]) -> Gateway:
    (tmp_path / "held").mkdir()
    return Gateway(tmp_path, URL=endpoint.url, PATIENCE=0, READ_TIMEOUT=READ_TIMEOUT, HOLD=tmp_path / "held", **place)


def arguments(*recipients: str) -> list[str]:
    return ["--queue-id=4XyZ", f"--sender={SENDER}", *recipients]


def kill(gateway: Gateway, step: Step, message: bytes, *recipients: str) -> None:
    """Run a copy of the program that is killed at this step."""
    program, gateway.program = gateway.program, step.changed(gateway.folder, "://" in str(gateway.settings["JOURNAL"]))
    command = gateway.command(*arguments(*recipients))
    killed = subprocess.run(command, input=message, capture_output=True, env=ENVIRONMENT, check=False)
    assert killed.returncode == -9
    gateway.program = program


def tries(journal: object, deliver: Callable[[], str]) -> list[str]:
    """Return what each try is told, until one is the last; after each there goes the hold-off by."""
    lines = []
    for _ in range(4):
        lines.append(deliver())
        if not lines[-1].startswith("4"):
            break
        age(journal, READ_TIMEOUT)
    return lines


def check(step: Step, lines: list[str], endings: Collection[str] = ENDINGS) -> None:
    """Compare what the tries were told with what the step has to say of it."""
    *waited, last = lines
    assert waited == [Outcome.IN_PROGRESS.line] * step.waits
    assert last in endings


@pytest.mark.parametrize(
    ("step", "message"),
    [pytest.param(step, MESSAGE, id=step.id) for step in STEPS]
    + [pytest.param(step, ANSWER, id=f"{step.id}, parts") for step in PARTS],
)
def test_the_next_try_ends_right(endpoint: Endpoint, gateway: Gateway, step: Step, message: bytes) -> None:
    database = Records(endpoint)
    recipients = ["info@example.com"] if message == MESSAGE else ["info@example.com", "support@example.com"]
    kill(gateway, step, message, *recipients)
    assert len(database.messages) == step.records
    check(
        step,
        tries(
            gateway.settings["JOURNAL"],
            lambda: gateway.run(*arguments(*recipients), message=message).out.decode().rstrip(),
        ),
    )
    assert len(database.messages) == len(recipients)
    assert all(b"\nX-Served-To: " in part for part in list(database.messages.values())[1:])


@rows(KNOWN)
def test_what_the_database_has_is_known_at_the_next_try(endpoint: Endpoint, gateway: Gateway, step: Step) -> None:
    database = Records(endpoint)
    database.messages["<1@outside.test>"] = b"it came by another way"
    kill(gateway, step, MESSAGE, "info@example.com")
    check(
        step,
        tries(
            gateway.settings["JOURNAL"],
            lambda: gateway.run(*arguments("info@example.com"), message=MESSAGE).out.decode().rstrip(),
        ),
    )
    assert len(database.messages) == 1


@rows(HELD)
def test_what_is_held_is_held_once(endpoint: Endpoint, gateway: Gateway, step: Step) -> None:
    endpoint.answers = [fault(2, "x")]
    kill(gateway, step, MESSAGE, "info@example.com")
    check(
        step,
        tries(
            gateway.settings["JOURNAL"],
            lambda: gateway.run(*arguments("info@example.com"), message=MESSAGE).out.decode().rstrip(),
        ),
        {Outcome.HELD.line, Outcome.ACCEPTED.line},
    )
    assert len(endpoint.messages) == 1 + step.waits  # once the answer is noted, nobody asks again
    (path,) = (gateway.folder / "held").glob("new/*")
    assert path.read_bytes() == endpoint.messages[0]


@rows(SERVICE)
def test_after_the_service_was_killed_the_next_try_ends_right(
    endpoint: Endpoint, tmp_path: Path, place: dict[str, object], step: Step
) -> None:
    database = Records(endpoint)
    service = Service(tmp_path, URL=endpoint.url, PATIENCE=0, READ_TIMEOUT=READ_TIMEOUT, **place)
    message = ANSWER.replace(b"\n", b"\r\n")
    service.root, root = step.changed(tmp_path, bool(place)).parent, service.root
    service.start()
    with service.client() as client:
        client.begin("info@example.com", "support@example.com", sender=SENDER)
        assert client.data(message, 2) == ["", ""]
    assert service.process
    assert service.process.wait(60) == -9
    assert len(database.messages) == step.records

    service.root = root
    with running(service), service.client() as client:

        def deliver() -> str:
            (line,) = {*client.deliver(message, "info@example.com", "support@example.com", sender=SENDER)}
            return line.partition(" ")[2]

        check(step, tries(service.settings["JOURNAL"], deliver))
    assert len(database.messages) == 2
