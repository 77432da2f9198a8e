"""The RPC surface: XML-RPC as Odoo speaks it, and errors turned into the faults that a client knows."""

import hashlib
import hmac
import logging
import re
import secrets
import xmlrpc.client
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from mail_database import models
from mail_database.calls import MAX_LOGIN_BYTES, pieces_of, read_call, read_login
from mail_database.delivery import process
from mail_database.routing import MODELS, Fallback, Fault
from mail_database.store import Store, transaction

USER_ID = 2  # of whoever logs in
VERSION = {
    "server_version": "17.0",
    "server_version_info": [17, 0, 0, "final", 0, ""],
    "protocol_version": 1,
    "reads_all_shapes": True,  # tells the gateway not to hold what would keep an Odoo busy
}
log = logging.getLogger("mail_database")


class Access(NamedTuple):
    """Who may call: the database's name, the login, and a salted hash of the password."""

    database: str
    login: str
    salt: bytes
    digest: bytes

    def allows(self, password: object) -> bool:
        """Tell whether this is the password; the time that it takes says nothing about it."""
        given = password if isinstance(password, str) else ""
        return hmac.compare_digest(_digest(given, self.salt), self.digest)


def access(database: str, login: str, password: str) -> Access:
    """Return who may call, without the password."""
    salt = secrets.token_bytes(16)
    return Access(database, login, salt, _digest(password, salt))


def _digest(password: str, salt: bytes) -> bytes:
    return hashlib.blake2b(password.encode("utf-8", "surrogatepass"), salt=salt).digest()


StartResponse = Callable[[str, list[tuple[str, str]]], Any]


Application = Callable[[dict[str, Any], Any], Iterable[bytes]]  # of WSGI


def application(engine: sa.Engine, allowed: Access, pages: Application | None = None) -> Application:
    """Return the WSGI application: the RPC, and ``pages`` for all other paths."""
    services = {
        "/xmlrpc/2/common": lambda method, arguments: _common(allowed, method, arguments),
        "/xmlrpc/2/object": lambda method, arguments: _object(engine, allowed, method, arguments),
    }

    def respond(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        service = services.get(environ["PATH_INFO"].rstrip("/"))
        if service is None:
            return pages(environ, start_response) if pages else _text(start_response, "404 Not Found")
        if environ["REQUEST_METHOD"] != "POST":
            return _text(start_response, "405 Method Not Allowed")
        body = _answer(service, allowed, environ["wsgi.input"].read)
        start_response("200 OK", [("Content-Type", "text/xml; charset=utf-8"), ("Content-Length", str(len(body)))])
        return [body]

    return respond


def _text(start_response: StartResponse, status: str) -> Iterable[bytes]:
    body = f"<!doctype html>\n<title>{status}</title>\n".encode()
    start_response(status, [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(body)))])
    return [body]


def allows_login(allowed: Access) -> Callable[[bytes], bool]:
    """Return what tells whether the beginning of a body has the right login."""

    def allows(head: bytes) -> bool:
        try:
            _check_login(allowed, head)
        except Fault:
            return False
        return True

    return allows


def _check_login(allowed: Access, head: bytes) -> None:
    """Raise the fault for who is not to be heard any further."""
    database, user_id, password = [*read_login(head), "", "", ""][:3]
    if not database or not allowed.allows(password):
        raise Fault(3, "Access Denied")
    _check_database(allowed, database)
    if user_id.strip() != str(USER_ID):
        raise Fault(3, "Access Denied")


def _answer(service: Callable[[str, Sequence[Any]], Any], allowed: Access, read: Callable[[int], bytes]) -> bytes:
    """Return the XML of a call's answer. What goes wrong, and is not the caller's fault, is logged, not told."""
    head = read(MAX_LOGIN_BYTES)
    try:
        if len(head) == MAX_LOGIN_BYTES:
            _check_login(allowed, head)
        method, arguments = read_call(pieces_of(head, read))
    except Fault as fault:
        return _fault(fault.code, fault.text)
    except Exception:  # the parser raises many kinds
        return _fault(1, "xml.parsers.expat.ExpatError: not well-formed (invalid token)")
    try:
        return _xml(xmlrpc.client.dumps((service(method, arguments),), methodresponse=True))
    except Fault as fault:
        return _fault(fault.code, fault.text)
    except TypeError as error:
        if "cannot marshal None" in str(error):
            return _fault(1, "TypeError: cannot marshal None unless allow_none is enabled")
        log.exception("a call failed")
        return _fault(1, "TypeError: wrong arguments")
    except sa.exc.OperationalError as error:
        log.error("the database: %s", error.orig)
        return _fault(1, "psycopg2.OperationalError: the database can't be reached")
    except Exception:  # our own bug: the caller keeps his mail, and the log has the rest
        log.exception("a call failed")
        return _fault(1, "RuntimeError: the call failed; the server's log says why")


def _fault(code: int, text: str) -> bytes:
    return _xml(xmlrpc.client.dumps(xmlrpc.client.Fault(code, text), methodresponse=True))


def _xml(text: str) -> bytes:
    """Return the bytes, without the characters that no XML may have."""
    return re.sub("[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "\ufffd", text).encode("utf-8", "replace")


def _common(allowed: Access, method: str, arguments: Sequence[Any]) -> Any:
    if method == "version":
        return VERSION
    if method in ("authenticate", "login"):
        database, login, password = [*arguments, "", "", ""][:3]
        _check_database(allowed, database)
        return USER_ID if login == allowed.login and allowed.allows(password) else False
    raise Fault(1, f"AttributeError: no method {method!r}")


def _check_database(allowed: Access, database: object) -> None:
    if database != allowed.database:
        raise Fault(1, f'psycopg2.OperationalError: connection failed: FATAL:  database "{database}" does not exist')


def _check_caller(allowed: Access, database: object, uid: object, password: object) -> None:
    """Raise the fault for who may not call."""
    _check_database(allowed, database)
    if not allowed.allows(password):
        raise Fault(3, "Access Denied")
    if uid != USER_ID:
        raise Fault(2, f"Record does not exist or has been deleted.\n(Record: res.users({uid},), User: {uid})")


def _object(engine: sa.Engine, allowed: Access, method: str, arguments: Sequence[Any]) -> Any:
    if method not in ("execute", "execute_kw"):
        raise Fault(1, f"NameError: Method not available {method}")
    if len(arguments) < 5:
        raise Fault(1, f"TypeError: {method}() missing arguments")
    database, uid, password, model, name, *rest = arguments
    _check_caller(allowed, database, uid, password)
    if method == "execute_kw":
        args, kwargs = [*rest[:1], []][0], [*rest[1:2], {}][0]
    else:
        args, kwargs = rest, {}
    if not isinstance(args, list) or not isinstance(kwargs, dict) or not isinstance(name, str):
        raise Fault(1, "TypeError: wrong arguments")
    if name.startswith("_"):
        raise Fault(4, f"Private methods (such as '{model}.{name}') cannot be called remotely.")
    context = kwargs.pop("context", None)
    if name == "message_process" and model in ("mail.thread", *MODELS):
        return _message_process(engine, *args, **kwargs)
    if model in models.EMPTY and name in ("search", "search_read", "search_count"):
        return 0 if name == "search_count" else []
    models.model_of(model)
    methods = METHODS | (PARAMETER_METHODS if model == "ir.config_parameter" else {})
    if name not in methods:
        raise Fault(1, f"AttributeError: The method '{model}.{name}' does not exist")
    with transaction(engine) as store:
        if name.startswith("search") and isinstance(context, dict) and context.get("active_test") is False:
            kwargs["active_test"] = False
        return methods[name](store, model, *args, **kwargs)


def _message_process(
    engine: sa.Engine,
    model: str | bool,
    message: bytes | str,
    custom_values: dict[str, Any] | None = None,
    save_original: bool = False,
    strip_attachments: bool = False,
    thread_id: int | None = None,
) -> int | bool | None:
    raw = message.encode("utf-8", "surrogatepass") if isinstance(message, str) else message
    if not isinstance(raw, bytes):
        raise Fault(1, f"AttributeError: '{type(message).__name__}' object has no attribute 'decode'")
    return process(engine, raw, Fallback(str(model or ""), thread_id, custom_values or {}), USER_ID, strip_attachments)


# --- methods of models ----------------------------------------------------------------------------------------


def _search_read(
    store: Store,
    model: str,
    domain: Sequence[Any] = (),
    fields: Sequence[str] = (),
    offset: int = 0,
    limit: int | None = None,
    order: str = "",
    active_test: bool = True,
) -> list[dict[str, Any]]:
    condition = models.search_condition(models.model_of(model), domain, active_test)
    return models.rows(store, model, condition, fields, limit or None, offset, order or "id")


def _search(store: Store, model: str, domain: Sequence[Any], *rest: Any, **named: Any) -> list[Any]:
    return [row["id"] for row in _search_read(store, model, domain, ["id"], *rest, **named)]


def _search_count(store: Store, model: str, domain: Sequence[Any] = (), **named: Any) -> int:
    return len(_search(store, model, domain, **named))


def _ids(ids: Any) -> list[Any]:
    return ids if isinstance(ids, list) else [ids]


def _of_ids(model: str, ids: Any) -> Any:
    return models.search_condition(models.model_of(model), [("id", "in", _ids(ids))], active_test=False)


def _read(store: Store, model: str, ids: Any, fields: Sequence[str] = ()) -> list[dict[str, Any]]:
    return models.rows(store, model, _of_ids(model, ids), fields)


def _fields_get(store: Store, model: str, names: Sequence[str] = (), attributes: Sequence[str] = ()) -> Any:
    """Return what the model's fields are, or some of them; of their attributes there is only the type."""
    found = models.fields_of(model)
    return {name: found[name] for name in names or found if name in found}


def _create(store: Store, model: str, values: Any) -> Any:
    if isinstance(values, list):
        return [_create(store, model, each) for each in values]
    made = store.create(models.model_of(model).table, model, models.created(store, model, values))
    models.check_addresses(store, model)
    return made


def _write(store: Store, model: str, ids: Any, values: dict[str, Any]) -> bool:
    store.write(models.model_of(model).table, _of_ids(model, ids), models.written(store, model, values))
    models.check_addresses(store, model)
    return True


def _unlink(store: Store, model: str, ids: Any) -> bool:
    store.unlink(models.model_of(model).table, model, _of_ids(model, ids), _ids(ids))
    return True


def _get_param(store: Store, model: str, key: str, default: Any = False) -> Any:
    return store.parameter(key) or default


def _set_param(store: Store, model: str, key: str, value: Any) -> bool:
    """Set a parameter; the list of allowed domains is kept in lower case, and must name one."""
    text = "" if value is False or value is None else str(value)
    if key == "mail.catchall.domain.allowed" and text:
        text = ",".join(filter(None, (domain.strip().lower() for domain in text.split(","))))
        if not text:
            raise Fault(2, f"Value for `{key}` cannot be validated.\nIt should be a comma separated list of domains.")
    store.set_parameter(key, text)
    return True


def _check_access_rights(store: Store, model: str, operation: str, raise_exception: bool = True) -> bool:
    """Return that the one user may do everything."""
    return True


METHODS: dict[str, Callable[..., Any]] = {
    "search": _search,
    "search_read": _search_read,
    "search_count": _search_count,
    "read": _read,
    "fields_get": _fields_get,
    "create": _create,
    "write": _write,
    "unlink": _unlink,
    "check_access_rights": _check_access_rights,
}
PARAMETER_METHODS: dict[str, Callable[..., Any]] = {"get_param": _get_param, "set_param": _set_param}
