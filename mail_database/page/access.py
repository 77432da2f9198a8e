"""Who may look: whoever has the RPC's login and password, or the link that is printed at the start and counts once.

A session is a signed cookie that no script can read and no other site can send (SameSite). It is a new one at each
login. Every form has a token of its session (Flask-WTF).
"""

import secrets
from typing import Any

import flask
from flask_wtf.csrf import CSRFError, CSRFProtect

from mail_database.server import Access

WITHOUT_LOGIN = {"page.login", "page.enter", "static"}
USER = "login"  # in the session


def guard(app: flask.Flask, allowed: Access, links: set[str]) -> None:
    """Let nobody see a page who has not logged in; ``links`` are the words that let somebody in once."""
    app.config.update(
        SECRET_KEY=secrets.token_bytes(32),  # a restart ends all sessions
        SESSION_COOKIE_NAME="mail_database",
        SESSION_COOKIE_SAMESITE="Strict",
        WTF_CSRF_TIME_LIMIT=None,  # as long as its session
    )
    app.extensions["access"] = allowed
    app.extensions["links"] = links
    app.before_request(_check)  # before the form is read, for its token
    CSRFProtect(app)
    app.before_request(_refuse_nul)
    app.register_error_handler(CSRFError, _is_forged)


def has_session(app: flask.Flask, cookies: str) -> bool:
    """Tell whether the cookies of a request are those of somebody who has logged in."""
    with app.test_request_context(headers={"Cookie": cookies}):
        return USER in flask.session


def _check() -> Any:
    """Send to the login who has not logged in, before anything is read for him."""
    is_nothing = flask.request.endpoint is None  # which is told to everybody
    if is_nothing or flask.request.endpoint in WITHOUT_LOGIN or USER in flask.session:
        return None
    if flask.request.method == "GET":
        return flask.redirect(flask.url_for("page.login", next=flask.request.full_path.rstrip("?")))
    return flask.abort(403)


def _refuse_nul() -> None:
    """Refuse what is to be stored with the character that no text has in PostgreSQL; no browser sends it."""
    is_stored = flask.request.blueprint in ("page", "setup") and flask.request.endpoint not in WITHOUT_LOGIN
    if is_stored and any("\0" in value for _, value in flask.request.form.items(multi=True)):
        flask.abort(400)


def _is_forged(error: CSRFError) -> Any:
    return flask.render_template("error.html", title="This form is no longer valid", text=str(error.description)), 400


def login() -> Any:
    """Show the form, or let in who has the password."""
    allowed: Access = flask.current_app.extensions["access"]
    form = flask.request.form
    is_wrong = False
    if flask.request.method == "POST":
        is_right = form.get("login") == allowed.login
        if allowed.allows(form.get("password")) and is_right:
            return _let_in(_own_path(flask.request.args.get("next", "")))
        is_wrong = True
    return flask.render_template("login.html", is_wrong=is_wrong, login=allowed.login), 403 if is_wrong else 200


def enter(link: str) -> Any:
    """Let in who has the link, the first time."""
    links: set[str] = flask.current_app.extensions["links"]
    try:
        links.remove(link)
    except KeyError:
        return flask.redirect(flask.url_for("page.login"))
    return _let_in("/")


def logout() -> Any:
    """End the session."""
    flask.session.clear()
    return flask.redirect(flask.url_for("page.login"))


def _let_in(path: str) -> Any:
    flask.session.clear()  # or who had planted one would have this one
    flask.session[USER] = flask.current_app.extensions["access"].login
    return flask.redirect(path)


def _own_path(path: str) -> str:
    """Return a path if it is one of this server, else the first page."""
    is_own = path.startswith("/") and not path.startswith("//") and path.isprintable() and "\\" not in path
    return path if is_own else "/"
