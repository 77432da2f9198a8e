"""What the audit makes of the tries of a message in the journal, of the database, and of the hold folder."""

import json
import os
import pty
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
from support.desk import WORLD, Desk
from support.gateway import ENVIRONMENT, coverage_environment
from support.mail_database_server import ROOT, Server, served

from mailgate import journal
from mailgate.admin.meaning import REMOVED
from mailgate.log import Facts, attempt
from mailgate.outcome import Outcome, Verdict
from mailgate.settings import Settings, build


class Try(NamedTuple):
    """A try as the journal has it, and the endings of calls that only their rows have."""

    ending: str
    queue_id: str = "4Xy1"
    posted_as: str = ""
    cause: str = ""
    host: str = ""
    rows: Mapping[str, str] = MappingProxyType({})


OWN, PART = "<own@outside.test>", "<part@mail-gateway.invalid>"
BOTH = f"{OWN},{PART}"
GONE = "its file is not in the hold folder"
KEPT = "x; kept as /held/new/1.eml; answered before"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(f"sqlite:///{tmp_path_factory.mktemp('store')}/mail.db", WORLD) as found:
        found.call("crm.lead", "create", {"name": "Forty chairs"})
        yield found


@pytest.mark.parametrize(
    ("tries", "stored", "held", "place"),
    [
        ([Try("DELIVERED")], [OWN], [], "on records"),
        ([Try("DELIVERED")], [], [], f"the database has no message {OWN}"),
        # several calls for one message
        ([Try("DELIVERED", posted_as=BOTH)], [OWN, PART], [], "on records"),
        ([Try("DELIVERED", posted_as=BOTH)], [OWN], [], f"the database has no message {PART}"),
        ([Try("DELIVERED", posted_as=BOTH, rows={PART: "UNKNOWN_RECIPIENT"})], [OWN], [], "on records"),
        ([Try("HELD", posted_as=BOTH)], [OWN], [PART], "held"),
        ([Try("HELD", posted_as=BOTH)], [], [PART], f"the database has no message {OWN}"),
        ([Try("HELD", posted_as=BOTH)], [OWN], [], GONE),
        # several copies
        ([Try("DELIVERED"), Try("KNOWN", "4Xy2"), Try("UNKNOWN_RECIPIENT", "4Xy3")], [OWN], [], "on records"),
        ([Try("DELIVERED"), Try("ACCEPTED", "4Xy2")], [], [], f"the database has no message {OWN}"),
        ([Try("HELD"), Try("KNOWN", "4Xy2")], [OWN], [OWN], "held"),
        # an answer that was given before, or that could not be told from others
        ([Try("HELD", cause=KEPT)], [], [OWN], "held"),
        ([Try("HELD", cause=KEPT)], [], [], GONE),
        ([Try("ACCEPTED", cause="not known of which kind: HTTP 502")], [OWN], [], "on records"),
        ([Try("ACCEPTED")], [], [], "bounces and notices"),
        # a last try that could not be noted
        ([Try("DATABASE_DOWN")], [OWN], [], "on records"),
        ([Try("DATABASE_DOWN", rows={OWN: "UNKNOWN_RECIPIENT"})], [], [], "refused"),
        ([Try("DATABASE_DOWN", "")], [], [], "waiting, as far as can be told"),
        ([Try("DATABASE_DOWN", host="elsewhere")], [], [], "waiting, as far as can be told"),
        # what became of what was held
        ([Try("HELD")], [], [], GONE),
        ([Try("HELD", host="elsewhere")], [], [], "held"),
        ([Try("HELD"), Try("DELIVERED", posted_as=PART)], [PART], [], "on records"),
        ([Try("HELD"), Try("DROPPED", "", cause="by hand: an advertisement")], [], [], "dropped by hand"),
        ([Try("DROPPED")], [], [], "dropped by the database, the sender told"),
        ([Try("HELD"), Try("DELIVERED", "4Xy2", PART)], [PART], [], GONE),
        # a test whose record was removed; a drop says nothing of another copy
        ([Try("DELIVERED"), Try("DROPPED", "", cause=REMOVED)], [], [], "dropped by hand"),
        ([Try("DELIVERED"), Try("DROPPED", "", cause="by hand: x")], [], [], f"the database has no message {OWN}"),
        ([Try("DROPPED", "", cause=REMOVED), Try("DELIVERED")], [], [], f"the database has no message {OWN}"),
    ],
)
def test_it_looks_for_what_each_try_has_left(
    tmp_path: Path, server: Server, tries: list[Try], stored: list[str], held: list[str], place: str
) -> None:
    desk = Desk(tmp_path, server.url)
    settings = build({name: str(value) for name, value in desk.gateway.settings.items()})
    for each in tries:
        note(settings, each)
    (tmp_path / "held" / "new").mkdir()
    for name in held:
        (tmp_path / "held" / "new" / "1.eml").write_text(f"Message-ID: {name}\n\nwords\n")
    values = {"model": "crm.lead", "res_id": 1, "body": "words"}
    rows = [server.call("mail.message", "create", values | {"message_id": name}) for name in stored]
    try:
        facts = json.loads(desk.run("audit", "--json").out)
    finally:
        server.call("mail.message", "unlink", rows)
    assert facts["taken"] == 1
    if facts["lost"]:
        assert facts["lost"] == [{"message_id": OWN, "why": place}]
    else:
        assert facts["messages"][place] == [OWN]


def test_on_a_terminal_it_shows_how_far_it_is(tmp_path: Path, server: Server) -> None:
    """And nowhere else."""
    desk = Desk(tmp_path, server.url)
    note(build({name: str(value) for name, value in desk.gateway.settings.items()}), Try("DELIVERED"))
    controller, terminal = pty.openpty()
    environ = ENVIRONMENT | coverage_environment() | {"TERM": "xterm"}
    done = subprocess.run(
        desk.command("audit"), stdout=subprocess.PIPE, stderr=terminal, cwd=ROOT, env=environ, check=False
    )
    os.close(terminal)
    seen = os.read(controller, 10_000)
    os.close(controller)
    assert (done.returncode, b"Asking the database" in seen) == (1, True)
    assert desk.run("audit").err == ""
    closed = ["bash", "-c", f"{shlex.join(desk.command('audit'))} 2>&-"]
    assert b"lost" in subprocess.run(closed, stdout=subprocess.PIPE, cwd=ROOT, env=environ, check=False).stdout


def note(settings: Settings, tried: Try) -> None:
    """Have the journal say so."""
    told = Facts(tried.queue_id)
    told.message_id, told.posted_as, told.recipients = OWN, tried.posted_as.split(","), ["info@example.com"]
    host = {"host": tried.host} if tried.host else {}
    journal.note_attempt(settings, attempt(told, Verdict(Outcome[tried.ending], tried.cause), 0.1) | host)
    for name, ending in tried.rows.items():
        with journal.claim(settings, journal.Delivery(name, "", b""), time.monotonic()) as claimed:
            claimed.note_begun()
            claimed.end(Verdict(Outcome[ending]))
