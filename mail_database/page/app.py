"""The pages: one function for each, over one transaction that only reads."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flask
import sqlalchemy as sa

from mail_database import comments, delivery
from mail_database.message import parse
from mail_database.models import fields_of
from mail_database.page import access, rows, search
from mail_database.page.access import has_session
from mail_database.page.current import ID, before, id_of, paged, transaction
from mail_database.page.setup import setup
from mail_database.page.text import MAX_PICTURES_BYTES, PICTURES, framed
from mail_database.page.trial import trial
from mail_database.routing import MODELS, Fault
from mail_database.server import USER_ID, Access
from mail_database.store import Damaged, Row

__all__ = ["application", "has_session", "new_link"]
ROWS = 50  # of a page
MAX_FOLLOWERS = 100  # that are named
MAX_FIND_CHARACTERS = 200  # of what is searched for
MAX_SHOWN_BYTES = 2**20  # of a message that is on no record: a larger one can be saved
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self';"
    " connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# What a stranger wrote stands in a frame of its own, where nothing runs; a link opens elsewhere.
FRAME = "allow-same-origin allow-popups allow-popups-to-escape-sandbox"
FRAME_POLICY = f"sandbox {FRAME}; default-src 'none'; style-src 'self'; img-src data:{{others}}; frame-ancestors 'self'"

page = flask.Blueprint("page", __name__)


def application(
    engine: sa.Engine,
    allowed: Access,
    links: set[str],
    written: Callable[[], object] = lambda: None,
    gateway: Sequence[str] = (),
) -> flask.Flask:
    """Return the WSGI application.

    Each of ``links`` lets somebody in once, under /enter/. ``written`` is called when there is something to be sent.
    ``gateway`` is the command that tries a mail, if there is one.
    """
    app = flask.Flask(__name__)
    app.extensions |= {"engine": engine, "written": written, "gateway": [*gateway]}
    app.url_map.merge_slashes = False
    access.guard(app, allowed, links)
    app.register_blueprint(page)
    app.register_blueprint(setup)
    app.register_blueprint(trial)
    app.register_error_handler(404, _not_found)
    app.register_error_handler(Damaged, _is_damaged)
    app.after_request(_with_headers)
    app.jinja_env.globals["counts"] = _counts
    return app


def new_link() -> str:
    """Return a word for a link that lets somebody in once."""
    return secrets.token_urlsafe(24)


def _with_headers(response: flask.Response) -> flask.Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _not_found(_: Exception) -> Any:
    return flask.render_template("error.html", title="Nothing here", text="There is no such page."), 404


def _is_damaged(error: Exception) -> Any:
    return flask.render_template("error.html", title="It can't be read", text=f"{error}."), 500


def _counts() -> dict[str, int]:
    """Return the numbers of the bar."""
    with transaction(reads=True) as store:
        return rows.counts(store)


page.add_url_rule("/login", view_func=access.login, methods=["GET", "POST"])
page.add_url_rule("/enter/<link>", view_func=access.enter)
page.add_url_rule("/logout", view_func=access.logout, methods=["POST"])


@page.post("/developer")
def developer() -> Any:
    """Switch developer mode on, or off."""
    flask.session["developer"] = not flask.session.get("developer")
    return flask.redirect("/setup/" if flask.session["developer"] else "/")


@page.get("/")
def home() -> Any:
    """Show the models that have records."""
    with transaction(reads=True) as store:
        found = rows.models(store)
    return flask.render_template("models.html", models=found)


@page.get("/records/<model>")
def records(model: str) -> Any:
    """Show a model's records, the newest first; all, or those that have some words."""
    if model not in MODELS:
        flask.abort(404)
    find = flask.request.args.get("find", "")[:MAX_FIND_CHARACTERS]
    with transaction(reads=True) as store:
        if find.strip():
            found = search.find(store, model, find, before(), ROWS)._asdict()
        else:
            found = paged(rows.of_model(store, model, before(), ROWS + 1), ROWS)
    return flask.render_template("records.html", model=model, find=find, **found)


@page.get(f"/records/<model>/<{ID}:record_id>")
def record(model: str, record_id: int) -> Any:
    """Show a record and its chatter, the newest message first."""
    with transaction(reads=True) as store:
        found = store.record(model, record_id) if model in MODELS else None
        if not found:
            flask.abort(404)
        messages = rows.thread(store, model, record_id, before(), ROWS + 1)
        followers = rows.following(store, model, record_id, MAX_FOLLOWERS + 1)
    return flask.render_template(
        "record.html",
        model=model,
        record=found,
        fields=_fields(model, found),
        followers=followers[:MAX_FOLLOWERS],
        has_more_followers=len(followers) > MAX_FOLLOWERS,
        frame=FRAME,
        **paged(messages, ROWS),
    )


def _fields(model: str, record: Row) -> list[tuple[str, Any]]:
    """Return a record's fields, with those that an alias has set."""
    own = {name: record.get(name) for name in ("email_from", "email", "partner_id", "created")}
    known = fields_of(model)
    defaults = {name: value for name, value in (record.get("defaults") or {}).items() if name in known}
    return [(name, value) for name, value in (own | defaults).items() if value not in (None, "")]


@page.post(f"/records/<model>/<{ID}:record_id>/write")
def write(model: str, record_id: int) -> Any:
    """Write a comment to a record's followers and its customer."""
    text = flask.request.form.get("text", "").strip()
    with transaction() as store:
        try:
            if text:
                comments.write(store, USER_ID, model, record_id, text)
        except Fault:
            flask.abort(404)
    flask.current_app.extensions["written"]()
    return flask.redirect(flask.url_for("page.record", model=model, record_id=record_id))


@page.get(f"/messages/<{ID}:message_id>/text")
def text(message_id: int) -> Any:
    """Give a message's text, for its frame."""
    with transaction(reads=True) as store:
        message = store.message(message_id)
        if not message:
            flask.abort(404)
        pictures = {
            row["content_id"]: (row["mimetype"], row["content"])
            for row in rows.pictures(store, message_id, sorted(PICTURES), MAX_PICTURES_BYTES)
        }
    return _framed(message["body"] or "", pictures)


@page.get(f"/messages/<{ID}:message_id>/original")
def original(message_id: int) -> Any:
    """Give a message as it came, to be saved."""
    with transaction(reads=True) as store:
        raw = store.original(message_id)
    return flask.abort(404) if raw is None else _file(raw, f"message-{message_id}.eml")


def _framed(body: str, pictures: Mapping[str, tuple[str, bytes]]) -> flask.Response:
    """Return a body as the document of a frame."""
    has_others = "pictures" in flask.request.args
    shown = framed(body, pictures, has_others)
    response = flask.make_response(flask.render_template("text.html", shown=shown))
    others = " http: https:" if has_others else ""
    response.headers["Content-Security-Policy"] = FRAME_POLICY.format(others=others)
    response.headers["X-Frame-Options"] = "SAMEORIGIN"
    return response


@page.get(f"/attachments/<{ID}:attachment_id>")
def attachment(attachment_id: int) -> Any:
    """Give a file, to be saved: no browser opens what a stranger sent, under our name."""
    with transaction(reads=True) as store:
        found = rows.attachment(store, attachment_id)
    if not found:
        flask.abort(404)
    return _file(found["content"] or b"", found["name"] or "attachment.bin")


def _file(content: bytes, name: str) -> flask.Response:
    response = flask.Response(content, mimetype="application/octet-stream")
    clean = "".join(character if character.isprintable() and character not in "/\\" else "_" for character in name)
    response.headers.set("Content-Disposition", "attachment", filename=clean)
    response.headers["Content-Security-Policy"] = "sandbox; default-src 'none'"
    return response


@page.get("/discuss")
def discuss() -> Any:
    """Show what is new, and our messages that came back, the newest first."""
    with transaction(reads=True) as store:
        found, fresh = rows.failures(store, before(), ROWS + 1), rows.new(store, ROWS)
    return flask.render_template("discuss.html", fresh=fresh, **paged(found, ROWS))


@page.post("/discuss")
def seen() -> Any:
    """Note that what is new has been looked at."""
    with transaction() as store:
        rows.see(store)
    return flask.redirect(flask.url_for("page.discuss"))


@page.get("/unplaced")
def unplaced() -> Any:
    """Show what was accepted and is on no record, the newest first."""
    with transaction(reads=True) as store:
        found = rows.placed_nowhere(store, before(), ROWS + 1)
    return flask.render_template("unplaced.html", **paged(found, ROWS))


@page.get(f"/unplaced/<{ID}:key>")
def unplaced_message(key: int) -> Any:
    """Show a message that is on no record, and where it could be put."""
    return _unplaced_page(key)


def _unplaced_page(key: int, wrong: str = "") -> Any:
    row = _unplaced(key)
    is_shown = len(row["original"]) <= MAX_SHOWN_BYTES
    shown = flask.render_template(
        "unplaced_message.html", row=row, is_shown=is_shown, models=sorted(MODELS), wrong=wrong, frame=FRAME
    )
    return shown, 422 if wrong else 200


def _unplaced(key: int) -> Row:
    with transaction(reads=True) as store:
        found = store.unplaced_message(key)
    return found or flask.abort(404)


@page.get(f"/unplaced/<{ID}:key>/original")
def unplaced_original(key: int) -> Any:
    """Give a message that is on no record, as it came, to be saved."""
    return _file(_unplaced(key)["original"], f"unplaced-{key}.eml")


@page.get(f"/unplaced/<{ID}:key>/text")
def unplaced_text(key: int) -> Any:
    """Give the text of a message that is on no record, for its frame."""
    message = parse(_unplaced(key)["original"][:MAX_SHOWN_BYTES])
    pictures = {file.content_id: (file.mimetype, file.content) for file in message.attachments if file.content_id}
    return _framed(message.body, pictures)


@page.post(f"/unplaced/<{ID}:key>/place")
def place(key: int) -> Any:
    """Put a message on a record, or make one of it, and show that record."""
    model, number = flask.request.form.get("model", ""), flask.request.form.get("record", "").strip()
    record_id = id_of(number)
    if number and not record_id:
        return _unplaced_page(key, f"{number} is no number of a record.")
    try:
        found = delivery.place(flask.current_app.extensions["engine"], key, model, record_id)
    except Fault:
        return _unplaced_page(key, f"There is no {model} {record_id or ''}.")
    if not found:
        return flask.redirect(flask.url_for("page.unplaced"))
    return flask.redirect(flask.url_for("page.record", model=model, record_id=found))
