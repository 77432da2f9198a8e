"""The forms of developer mode: alias domains, companies, aliases, partners, parameters; a record's followers.

What a field is called, and what it may be, is that of the RPC; so is what is wrong with a value.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flask
import sqlalchemy as sa

from mail_database.addresses import normalize, split
from mail_database.page.current import ID, before, id_of, paged, transaction
from mail_database.routing import MODELS, POLICIES, Fault
from mail_database.server import METHODS, PARAMETER_METHODS
from mail_database.store import Store

ROWS = 50  # of a section on a page, the newest first
NEW = 0  # the id in the path of what is not there yet
MAX_DIGITS = 9  # of a number: so many minutes are not before the year 1


class Field(NamedTuple):
    """A field of a form: its name in the RPC, what a person calls it, and how it is asked for."""

    name: str
    label: str
    kind: str = "text"  # or "flag", "area", "number", or the values to choose from, in ``choices``
    choices: Callable[[Store], list[str]] | None = None
    help: str = ""


class Section(NamedTuple):
    """What is set up in one list: the model, its form, and the field by which a row is listed."""

    label: str
    model: str
    fields: tuple[Field, ...]
    title: str


def _domains(store: Store) -> list[str]:
    return [*(str(row["name"]) for row in store.alias_domains()), ""]  # or none


SECTIONS = {
    "domains": Section(
        "Alias domains",
        "mail.alias.domain",
        (
            Field("name", "Domain"),
            Field("catchall_alias", "Catchall", help="where answers go for which no alias is meant"),
            Field("bounce_alias", "Bounce", help="where mail comes back to that can't be delivered"),
        ),
        "name",
    ),
    "aliases": Section(
        "Aliases",
        "mail.alias",
        (
            Field("alias_name", "Local-part", help="what stands before the @"),
            Field("alias_domain", "Domain", choices=_domains),
            Field("alias_model", "Makes records of", choices=lambda store: sorted(MODELS)),
            Field("alias_force_thread_id", "Record", "number", help="its number, where one takes all the mail"),
            Field("alias_defaults", "Defaults", help="a Python dictionary: {'type': 'lead'}"),
            Field("alias_contact", "Who may write", choices=lambda store: [*POLICIES]),
            Field("alias_incoming_local", "Local-part detection", "flag"),
            Field("alias_bounced_content", "Text of its refusal", "area", help="HTML; empty is the usual text"),
        ),
        "alias_name",
    ),
    "companies": Section(
        "Companies",
        "res.company",
        (Field("name", "Name"), Field("email", "Address"), Field("alias_domain", "Alias domain", choices=_domains)),
        "name",
    ),
    "partners": Section(
        "Partners",
        "res.partner",
        (Field("name", "Name"), Field("email", "Address"), Field("active", "Active", "flag")),
        "name",
    ),
}
PARAMETERS = (
    Field("mail.gateway.loop.minutes", "Loop check: minutes", "number", help="120 where it is empty"),
    Field("mail.gateway.loop.threshold", "Loop check: records of a sender", "number", help="20 where it is empty"),
    Field("mail.catchall.domain.allowed", "Allowed domains", help="with commas; for local-part detection"),
)

setup = flask.Blueprint("setup", __name__, url_prefix="/setup")


@setup.before_request
def _check() -> Any:
    return None if flask.session.get("developer") else flask.abort(404)


@setup.get("/")
def overview() -> Any:
    """Show all sections with their rows, and the parameters."""
    with transaction(reads=True) as store:
        lists = {name: _rows(store, section) for name, section in SECTIONS.items()}
        values = {field.name: store.parameter(field.name) for field in PARAMETERS}
    return flask.render_template(
        "setup.html", sections=SECTIONS, lists=lists, shown=ROWS, fields=PARAMETERS, values=values
    )


@setup.get("/<name>")
def section(name: str) -> Any:
    """Show the rows of a section, the newest first."""
    shown = SECTIONS.get(name) or flask.abort(404)
    with transaction(reads=True) as store:
        found = _rows(store, shown, before())
    return flask.render_template("setup_section.html", name=name, section=shown, **paged(found, ROWS))


def _rows(store: Store, section: Section, before: int | None = None) -> list[dict[str, Any]]:
    """Return rows of a section below an id, one more than a page shows."""
    found = [("id", "<", before)] if before is not None else []
    named: dict[str, Any] = {"limit": ROWS + 1, "order": "id desc", "active_test": False}
    return list(METHODS["search_read"](store, section.model, found, [section.title], **named))


@setup.post("/parameters")
def save_parameters() -> Any:
    """Set the parameters."""
    try:
        with transaction() as store:
            for field in PARAMETERS:
                value = _value(field, flask.request.form)
                PARAMETER_METHODS["set_param"](store, "ir.config_parameter", field.name, value)
    except Fault as fault:
        return flask.render_template("error.html", title="Not saved", text=fault.text), 422
    return flask.redirect(flask.url_for("setup.overview"))


@setup.post(f"/followers/<model>/<{ID}:record_id>")
def follow(model: str, record_id: int) -> Any:
    """Add a follower to a record, a new partner where nobody has the address; or remove one."""
    address, removed = flask.request.form.get("address", ""), flask.request.form.get("remove", "")
    found = [*split(address)]
    if not removed and (len(found) != 1 or not normalize(found[0].address)):
        return flask.render_template("error.html", title="Not added", text=f"{address} is not an address."), 422
    with transaction() as store:
        if model not in MODELS or not store.record(model, record_id):
            flask.abort(404)
        if removed:
            store.unfollow(model, record_id, id_of(removed) or 0)
        else:
            store.lock(normalize(found[0].address))  # as a delivery does: who is new is made once
            known = store.partners_with(normalize(found[0].address))
            partner = known[0]["id"] if known else store.create_partner(*found[0])
            store.follow(model, record_id, partner)
    return flask.redirect(flask.url_for("page.record", model=model, record_id=record_id))


@setup.get(f"/<name>/<{ID}:key>")
def edit(name: str, key: int) -> Any:
    """Show the form of a row, or of a new one."""
    return _form(name, key)


@setup.post(f"/<name>/<{ID}:key>")
def save(name: str, key: int) -> Any:
    """Save a row, make a new one, or delete one."""
    section = SECTIONS.get(name) or flask.abort(404)
    values: Mapping[str, Any] = flask.request.form
    try:
        values = {field.name: _value(field, flask.request.form) for field in section.fields}
        with transaction() as store:
            if "delete" in flask.request.form:
                METHODS["unlink"](store, section.model, [key])
            elif key == NEW:
                METHODS["create"](store, section.model, values)
            else:
                METHODS["write"](store, section.model, [key], values)
    except Fault as fault:
        return _form(name, key, values, fault.text), 422
    except sa.exc.IntegrityError:
        return _form(name, key, values, "Another one has this name."), 422
    return flask.redirect(flask.url_for("setup.overview"))


def _value(field: Field, form: Mapping[str, str]) -> Any:
    """Return what a form says of a field, as the RPC takes it: False for nothing. Raises Fault for a wrong number."""
    if field.kind == "flag":
        return field.name in form
    value = form.get(field.name, "").strip()
    if field.kind != "number" or not value:
        return value or False
    if id_of(value) is None or len(value) > MAX_DIGITS:
        raise Fault(2, f"{field.label}: {value} is not a number of at most {MAX_DIGITS} digits.")
    return id_of(value)


def _form(name: str, key: int, values: Mapping[str, Any] | None = None, wrong: str = "") -> Any:
    section = SECTIONS.get(name) or flask.abort(404)
    with transaction(reads=True) as store:
        if values is None:
            names = [field.name for field in section.fields]
            found = METHODS["read"](store, section.model, [key], names) if key else [{"active": True}]
            values = found[0] if found else flask.abort(404)
        choices = {field.name: field.choices(store) for field in section.fields if field.choices}
    return flask.render_template(
        "setup_form.html", section=section, key=key, fields=section.fields, values=values, choices=choices, wrong=wrong
    )
