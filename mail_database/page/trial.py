"""Try a mail: it goes through the gateway, as a mail server would give it, and the page shows what became of it."""

import subprocess
from collections.abc import Sequence
from typing import Any, NamedTuple

import flask

from mail_database.page import rows
from mail_database.page.current import id_of, transaction

SECONDS = 60.0  # that the gateway has; in a real mail server's queue a mail waits longer
MAX_RECIPIENTS = 100
MAX_SHOWN_CHARACTERS = 20_000  # of what it prints
MAX_SHOWN_ROWS = 20  # of what became of a mail
EXAMPLE = """\
From: Ann Meyer <ann@customer.example>
To: {to}
Subject: Forty chairs
Message-ID: <forty-chairs@customer.example>

Do you have forty of the red ones?
"""

trial = flask.Blueprint("trial", __name__, url_prefix="/try")


class Said(NamedTuple):
    """What the gateway printed, and its exit status."""

    text: str
    status: int | str


@trial.get("/")
def compose() -> Any:
    """Show the form, with an example for the first alias."""
    with transaction(reads=True) as store:
        alias = store.alias_of_model("crm.lead") or {}
    to = f"{alias.get('local_part', 'info')}@{alias.get('domain', 'example.com')}"
    return _form(EXAMPLE.format(to=to), "ann@customer.example", to)


@trial.post("/")
def run() -> Any:
    """Give a mail to the gateway and show its ending, the fields in front, and what became of it."""
    form = flask.request.form
    upload = flask.request.files.get("file")
    raw = (upload.read() if upload else b"") or form.get("message", "").replace("\r\n", "\n").encode("utf-8", "replace")
    sender, recipients = form.get("sender", "").strip(), form.get("recipients", "").split()
    gateway = flask.current_app.extensions["gateway"]
    if not gateway or not recipients or len(recipients) > MAX_RECIPIENTS or "\0" in sender + "".join(recipients):
        return _form(form.get("message", ""), sender, " ".join(recipients), "Name one recipient at least."), 422
    with transaction(reads=True) as store:
        before = rows.newest_ids(store)
    envelope = ["--sender", sender, "--", *recipients]
    forecast = _said([*gateway, "--dry-run", *envelope], raw)
    ending = _said([*gateway, *envelope], raw)
    flask.current_app.extensions["written"]()  # it may have to tell somebody
    return flask.render_template("tried.html", ending=ending, forecast=forecast, became=_became(before), before=before)


@trial.get("/became")
def became() -> Any:
    """Show what has become of a mail by now: of what came after the newest ids of then."""
    then = {name: id_of(flask.request.args.get(name, "")) or 0 for name in rows.BECOMES}
    return flask.render_template("became.html", became=_became(then))


def _became(before: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    with transaction(reads=True) as store:
        return rows.since(store, before, MAX_SHOWN_ROWS)


def _form(message: str, sender: str, recipients: str, wrong: str = "") -> str:
    has_gateway = bool(flask.current_app.extensions["gateway"])
    return flask.render_template(
        "try.html", message=message, sender=sender, recipients=recipients, wrong=wrong, has_gateway=has_gateway
    )


def _said(command: Sequence[str], raw: bytes) -> Said:
    """Return what a run of the gateway says; its environment is as empty as a mail server's."""
    try:
        finished = subprocess.run(
            command, input=raw, capture_output=True, env={"PATH": "/usr/bin:/bin"}, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Said(f"It has not ended within {SECONDS:.0f} seconds.", "-")
    except OSError as error:
        return Said(f"The gateway can't be run: {error.strerror}.", "-")
    text = (finished.stdout + finished.stderr).decode("utf-8", "replace").strip()
    return Said(text[:MAX_SHOWN_CHARACTERS], finished.returncode)
