"""The desk beside a real mail server: what waits in its queue, its half of a message's story, and the audit."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.desk import Screen, run_desk
from support.endpoint import http
from support.mta import EXIM, PIPE, PYTHON, Exim, Mta, Postfix, started
from support.smtp_sink import sink
from support.trials import Database, Mail, answers, settings_for

pytestmark = pytest.mark.mta
PATH = f"/usr/bin:/bin:/usr/sbin:{Path(EXIM or '/').parent}"


@pytest.fixture(params=[Postfix, Exim])
def mta(request: pytest.FixtureRequest) -> Iterator[Mta]:
    with sink() as bounces, started(request.param, bounces, PIPE) as server:
        yield server


def test_what_waits_is_shown_with_its_reason_and_is_not_lost(mta: Mta) -> None:
    database = Database()
    try:
        database.fault = answers(http(503))
        mta.settings(**settings_for(database))
        sender, recipients, message = Mail().envelope(1)
        mta.send(sender, recipients, message)
        mta.attempt()

        def desk(*arguments: str) -> Screen:
            return run_desk(mta.env_file, *arguments, "--json", environ={"PATH": PATH}, python=PYTHON)

        config = ("--mta-config", str(mta.config))
        today = desk("today", *config)
        assert (today.status, today.err) == (1, "")
        (waiting,) = json.loads(today.out)["waiting"]
        assert (waiting["sender"], waiting["recipients"]) == (sender, list(recipients))
        assert waiting["reason"] == "database_down: HTTP 503"
        audit = desk("audit", *config)
        facts = json.loads(audit.out)
        assert (audit.status, facts["places"]["waiting"], facts["lost"]) == (0, 1, [])
        (story,) = json.loads(desk("trace", waiting["queue_id"], "--mta-log", str(mta.log_path)).out)["messages"]
        assert story["attempts"][0]["queue_id"] == waiting["queue_id"]
        assert any("mail_gateway" in line or "will try again" in line for line in story["mail_server"])
        mta.clear()
        audit = desk("audit", *config)
        assert (audit.status, len(json.loads(audit.out)["lost"])) == (1, 1)
    finally:
        database.close()
