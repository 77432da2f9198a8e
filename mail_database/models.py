"""Odoo's models and field names over the store's tables: what a client may search, read and write."""

import ast
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from mail_database import tables
from mail_database.message import normalize
from mail_database.routing import KNOWN_MODELS, MODELS, Fault
from mail_database.store import Store, key_of


def _is_nothing(column: Any, value: Any) -> bool:
    """Tell whether a value stands for a field that is not set: False does, except for a flag."""
    return value is None or (value is False and not isinstance(column.type, sa.Boolean))


OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "=": lambda column, value: column.is_(None) if _is_nothing(column, value) else column == value,
    "!=": lambda column, value: (
        column.is_not(None) if _is_nothing(column, value) else sa.or_(column.is_(None), column != value)
    ),
    "in": lambda column, value: column.in_(value),
    "not in": lambda column, value: sa.or_(column.is_(None), column.not_in(value)),
    "<": lambda column, value: column < value,
    "<=": lambda column, value: column <= value,
    ">": lambda column, value: column > value,
    ">=": lambda column, value: column >= value,
    "like": lambda column, value: column.contains(value, autoescape=True),
    "ilike": lambda column, value: sa.func.lower(column).contains(str(value).lower(), autoescape=True),
    "=like": lambda column, value: column.like(value),
    "=ilike": lambda column, value: sa.func.lower(column).like(str(value).lower()),
}


MAX_NAME_CHARACTERS = 256  # of an alias: an index takes no text of any length


class Model(NamedTuple):
    """A model: its table, Odoo's names of its columns, and what a row must have to belong to it."""

    table: sa.Table
    columns: Mapping[str, str]
    required: Mapping[str, Any] = {}

    def column(self, name: str) -> Any:
        """Return the column of a field. Raises Fault for a field that the model does not have."""
        if name not in self.columns:
            raise Fault(1, f"ValueError: Invalid field {name!r}")
        return self.table.c[self.columns[name]]


_RECORD = {
    "id": "id",
    "name": "name",
    "email_from": "email_from",
    "email_normalized": "email_normalized",
    "partner_id": "partner_id",
    "active": "active",
    "message_bounce": "bounce_count",
    "create_date": "created",
}
TABLES = {
    "mail.alias": Model(
        tables.aliases,
        {
            "id": "id",
            "alias_name": "local_part",
            "alias_domain": "domain",
            "alias_model": "model",
            "alias_model_id.model": "model",  # a path, to search by
            "alias_defaults": "defaults",
            "alias_contact": "contact",
            "alias_incoming_local": "local_part_detection",
            "alias_force_thread_id": "thread_id",
            "alias_parent_model": "parent_model",
            "alias_parent_thread_id": "parent_id",
            "alias_bounced_content": "bounced_content",
            "alias_status": "status",
        },
    ),
    "mail.alias.domain": Model(
        tables.alias_domains, {"id": "id", "name": "name", "bounce_alias": "bounce", "catchall_alias": "catchall"}
    ),
    "res.partner": Model(
        tables.partners,
        {
            "id": "id",
            "name": "name",
            "email": "email",
            "email_normalized": "email_normalized",
            "active": "active",
            "message_bounce": "bounce_count",
            "create_date": "created",
        },
    ),
    "res.company": Model(
        tables.companies, {"id": "id", "name": "name", "email": "email", "alias_domain": "alias_domain"}
    ),
    "res.users": Model(tables.users, {"id": "id", "login": "login", "partner_id": "partner_id", "active": "active"}),
    "mail.message": Model(
        tables.messages,
        {
            "id": "id",
            "message_id": "message_id",
            "model": "model",
            "res_id": "thread_id",
            "author_id": "author_id",
            "email_from": "email_from",
            "subject": "subject",
            "body": "body",
            "message_type": "kind",
            "is_internal": "internal_note",
            "parent_id": "parent_id",
            "date": "date",
            "create_date": "date",
        },
    ),
    "mail.notification": Model(
        tables.notifications,
        {
            "id": "id",
            "mail_message_id": "message",
            "res_partner_id": "partner_id",
            "notification_status": "status",
            "failure_reason": "reason",
        },
    ),
    "mail.mail": Model(
        tables.notices,
        {
            "id": "id",
            "email_to": "to",
            "subject": "subject",
            "body_html": "body",
            "message_id": "message_id",
            "references": "references",
            "reply_to": "reply_to",
            "state": "state",
            "create_date": "created",
        },
    ),
    "mail.gateway.allowed": Model(
        tables.allowed_senders, {"id": "email", "email": "email", "email_normalized": "email"}
    ),
    "mail.followers": Model(
        tables.followers, {"id": "partner_id", "res_model": "model", "res_id": "id", "partner_id": "partner_id"}
    ),
    "ir.config_parameter": Model(tables.parameters, {"id": "key", "key": "key", "value": "value"}),
    **{model: Model(tables.records, _RECORD, {"model": model}) for model in MODELS if model != "res.partner"},
}

# Models that have no row here, ever: who asks for one gets none.
EMPTY = {"fetchmail.server", "res.users.apikeys"}

MODEL_IDS = {model: number for number, model in enumerate(sorted(KNOWN_MODELS), 1)}


def _domain(store: Store, row: Mapping[str, Any], column: str) -> Any:
    domain = next((found for found in store.alias_domains() if found["name"] == row[column]), None)
    return [domain["id"], domain["name"]] if domain else False


# Fields that Odoo computes, or that name a row of another model as [id, name].
COMPUTED: dict[str, dict[str, Callable[[Store, Mapping[str, Any]], Any]]] = {
    "mail.alias": {
        "alias_domain_id": lambda store, row: _domain(store, row, "domain"),
        "alias_model_id": lambda store, row: [MODEL_IDS.get(row["model"], 0), row["model"]],
        "alias_parent_model_id": lambda store, row: [0, row["parent_model"]] if row["parent_model"] else False,
        "alias_full_name": lambda store, row: (
            f"{row['local_part']}@{row['domain']}" if row["domain"] else row["local_part"]
        ),
    },
    "mail.alias.domain": {
        "bounce_email": lambda store, row: bool(row["bounce"]) and f"{row['bounce']}@{row['name']}",
        "catchall_email": lambda store, row: bool(row["catchall"]) and f"{row['catchall']}@{row['name']}",
        "default_from_email": lambda store, row: f"notifications@{row['name']}",
    },
    "res.company": {"alias_domain_id": lambda store, row: _domain(store, row, "alias_domain")},
    "res.users": {"share": lambda store, row: not row["internal"]},
    "mail.notification": {"failure_type": lambda store, row: "mail_bounce" if row["status"] == "bounce" else False},
    "mail.message": {"attachment_ids": lambda store, row: store.attachments_of(row["id"])},
    **{model: {"display_name": lambda store, row: row["name"]} for model in MODELS},
}
# The columns of those that a client may write.
WRITTEN = {
    ("mail.alias", "alias_domain_id"): "domain",
    ("mail.alias", "alias_model_id"): "model",
    ("res.company", "alias_domain_id"): "alias_domain",
}


def _named(store: Store, field: str, value: Any) -> str | None:
    """Return what we store for an id that a client writes."""
    if field == "alias_model_id":
        return next((model for model, number in MODEL_IDS.items() if number == value), None)
    return next((domain["name"] for domain in store.alias_domains() if domain["id"] == value), None)


def model_of(name: str) -> Model:
    """Return the model with this name. Raises Fault where there is none."""
    if name not in TABLES:
        raise Fault(2, f"Object {name} doesn't exist")
    return TABLES[name]


_TYPES = ((sa.Boolean, "boolean"), (sa.DateTime, "datetime"), (sa.Integer, "integer"))


def fields_of(name: str) -> dict[str, dict[str, str]]:
    """Return the fields of a model and their types, as Odoo's fields_get; ``message_ids`` where it takes mail."""
    model = model_of(name)
    found = {field: {"type": _type_of(model.column(field))} for field in model.columns if "." not in field}
    if name in MODELS:
        found |= {field: {"type": "char"} for field in MODELS[name].fields - found.keys()}
        found["message_ids"] = {"type": "one2many"}
    return found


def _type_of(column: Any) -> str:
    return next((word for kind, word in _TYPES if isinstance(column.type, kind)), "char")


def search_condition(model: Model, domain: Sequence[Any], active_test: bool = True) -> Any:
    """Return a search domain (Odoo's prefix notation) as a condition; archived rows are left out unless asked for."""
    terms: list[Any] = []
    try:
        for item in reversed(list(domain)):
            if item == "!":
                terms.append(sa.not_(terms.pop()))
            elif item in ("&", "|"):
                terms.append((sa.and_ if item == "&" else sa.or_)(terms.pop(), terms.pop()))
            else:
                name, operator, value = item
                column = model.column(name)
                if isinstance(column.type, sa.DateTime) and isinstance(value, str):
                    value = datetime.fromisoformat(value)
                terms.append(OPERATORS[operator](column, value))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Fault(1, f"ValueError: Invalid domain term ({type(error).__name__})") from None
    if active_test and "active" in model.columns and "'active'" not in repr(domain):
        terms.append(model.column("active"))
    return sa.and_(sa.true(), *terms, *(model.table.c[name] == value for name, value in model.required.items()))


def rows(
    store: Store,
    name: str,
    condition: Any,
    names: Sequence[str] = (),
    limit: int | None = None,
    offset: int = 0,
    order: str = "id",
) -> list[dict[str, Any]]:
    """Return rows with Odoo's names and values: False for what is missing, text for dates."""
    model = model_of(name)
    computed = COMPUTED.get(name, {})
    wanted = list(dict.fromkeys(["id", *(names or [*(name for name in model.columns if "." not in name), *computed])]))
    extra = MODELS[name].fields - model.columns.keys() if name in MODELS else frozenset()
    computed = computed | {field: _default(field) for field in extra}
    for field in wanted:
        if field not in computed:
            model.column(field)
    return [
        {
            field: computed[field](store, row) if field in computed else _value(row[model.columns[field]])
            for field in wanted
        }
        for row in store.select(model.table, condition, _order(model, order), limit, offset)
    ]


def _default(field: str) -> Callable[[Store, Mapping[str, Any]], Any]:
    """Return a reader of a field that a record keeps among its defaults."""
    return lambda store, row: (row.get("defaults") or {}).get(field, False)


def _order(model: Model, order: str) -> list[Any]:
    """Return the columns of Odoo's ``name desc, id``."""
    columns = []
    for term in order.split(","):
        name, _, direction = term.strip().partition(" ")
        column = model.column(name)
        columns.append(column.desc() if direction.strip().lower() == "desc" else column)
    return columns


def _value(value: Any) -> Any:
    if value is None:
        return False
    if isinstance(value, dict):
        return repr(value)
    return value.isoformat(" ", "seconds") if hasattr(value, "isoformat") else value


def _literal(text: str) -> dict[str, Any]:
    """Return the dictionary that a text spells, as Odoo keeps an alias's defaults; it must be one in JSON, too."""
    try:
        value = ast.literal_eval(text or "{}")
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Fault(
            2, "Invalid expression, it must be a literal python dictionary definition e.g. \"{'field': 'value'}\""
        )
    return value


def created(store: Store, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a new row, with what Odoo gives it besides."""
    columns = written(store, name, values)
    domains = store.alias_domains()
    if name == "mail.alias" and domains:
        columns.setdefault("domain", domains[0]["name"])
    if name == "mail.message":
        columns["message_id"] = columns.get("message_id") or f"<{uuid.uuid4()}@localhost>"
        columns["message_key"] = key_of(columns["message_id"])
    if name == "mail.gateway.allowed":
        columns["email"] = normalize(columns.get("email") or "")
    return columns


def _check(name: str, field: str, value: Any) -> None:
    """Raise Fault for a value that no field takes, and for an alias's name that no index takes."""
    if isinstance(value, bytes):
        raise Fault(1, f"ValueError: Wrong value for {field!r} in {name!r}")
    if field in ("alias_name", "alias_model") and len(str(value)) > MAX_NAME_CHARACTERS:
        raise Fault(2, f"{field!r} has more than {MAX_NAME_CHARACTERS} characters.")


def written(store: Store, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that these fields set. Raises Fault for a field that the model does not have."""
    model = model_of(name)
    columns: dict[str, Any] = {}
    for field, value in values.items():
        _check(name, field, value)
        if field == "alias_defaults" and isinstance(value, str):
            value = _literal(value)
        if field in ("alias_name", "alias_domain") and isinstance(value, str):
            value = value.lower()
        if (name, field) in WRITTEN:
            columns[WRITTEN[name, field]] = _named(store, field, value)
        elif field in model.columns and field != "id":
            column = model.table.c[model.columns[field]]
            columns[column.name] = None if value is False and not isinstance(column.type, sa.Boolean) else value
        elif name in MODELS and field in MODELS[name].fields:
            columns.setdefault("defaults", {})[field] = value
        else:
            raise Fault(1, f"ValueError: Invalid field {field!r} in {name!r}")
    for address in ("email", "email_from"):
        if address in columns and "email_normalized" in model.table.c:
            columns["email_normalized"] = normalize(columns[address] or "")
    return columns


def check_addresses(store: Store, name: str) -> None:
    """Raise Fault where an alias has the address of a catchall or a bounce, which then would get none of its mail."""
    if name not in ("mail.alias", "mail.alias.domain"):
        return
    aliases = tables.aliases
    for domain in store.alias_domains():
        for use in "catchall", "bounce":
            taken = aliases.c.local_part == (domain[use] or "").lower(), aliases.c.domain == domain["name"]
            if store.select(aliases, sa.and_(*taken), [aliases.c.id], 1, 0):
                raise Fault(2, f"{domain[use]}@{domain['name']} can't be an alias and the domain's {use}.")
