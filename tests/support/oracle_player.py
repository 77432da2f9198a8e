"""Play an observed case against the endpoint over its socket, and say what came of each step, in the case's words."""

import re
import threading
import xmlrpc.client
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from waitress import wasyncore
from waitress.server import create_server

from mail_database import world
from mail_database.server import access, application
from mail_database.store import key_of, transaction
from mail_database.tables import now

MESSAGES = Path(__file__).parents[1] / "oracle" / "messages"
MARK = re.compile(r"<[^<>]*-loop-detection-bounce-email@[^<>]*>")
GENERATED = re.compile(r"<[0-9a-f-]{36}@localhost>")


@contextmanager
def serving(engine: sa.Engine) -> Iterator[str]:
    """Serve a store on a free port and yield its URL."""
    sockets: dict[int, Any] = {}
    app = application(engine, access("mydatabase", "admin", "s3cret"))
    server: Any = create_server(app, host="127.0.0.1", port=0, threads=4, map=sockets)
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            wasyncore.loop(timeout=1, map=sockets, count=1)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.effective_port}"
    finally:
        stop.set()
        server.pull_trigger()
        thread.join()
        server.close()


def call(proxy: xmlrpc.client.ServerProxy, model: str, method: str, arguments: list, named: dict) -> dict[str, Any]:
    """Return the answer: what was returned, or what kind of fault it was."""
    try:
        return {"returned": proxy.execute_kw("mydatabase", 2, "s3cret", model, method, arguments, named)}
    except xmlrpc.client.Fault as fault:
        text = fault.faultString.strip().splitlines()[-1]
        if "cannot marshal None" in text:
            return {"returned": None}
        kind = next(
            (kind for kind in ("no route", "mailbox unavailable") if kind in text.lower().replace("possible ", "")),
            "error",
        )
        return {"fault": kind}


def dump(engine: sa.Engine) -> dict[str, Any]:
    with transaction(engine) as store:
        return world.dump(store)


def new(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    known = {(row.get("model") if name == "records" else None, row["id"]) for row in before[name]}
    return [row for row in after[name] if (row.get("model") if name == "records" else None, row["id"]) not in known]


def effects(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return what changed between two dumps, as a case's ``expect`` says it.

    It is long, for it has each kind of row in turn.
    """
    records = new(before, after, "records")
    partners = new(before, after, "partners")
    made = {(row["model"], row["id"]) for row in records} | {("res.partner", row["id"]) for row in partners}
    posted = []
    for row in new(before, after, "messages"):
        item = {
            "model": row["model"],
            "thread": "new" if (row["model"], row["thread_id"]) in made else row["thread_id"],
            "message_id": GENERATED.sub("<TIME@localhost>", row["message_id"]),
            "author_id": "new" if ("res.partner", row["author_id"]) in made else row["author_id"],
            "email_from": row["email_from"],
            "subject": row["subject"],
        }
        item |= {"parent": row["parent_id"]} if row["parent_id"] else {}
        item |= {"internal_note": True} if row["internal_note"] else {}
        item |= {"kind": row["kind"]} if row["kind"] != "email" else {}  # written by one of us
        files = [
            {key: found[key] if found["size"] or key == "name" else None for key in ("name", "size", "sha1")}
            for found in row["attachments"]
        ]
        item |= {"attachments": files} if files else {}
        posted.append(item)
    names = ("model", "name", "email_from")
    created = [{name: row[name] for name in names} for row in records]
    notices = [
        {
            "about": row["about"],
            "to": [row["to"]],
            "subject": row["subject"],
            "references": GENERATED.sub(
                "<TIME@localhost>",
                MARK.sub("<RANDOM.TIME-openerp-loop-detection-bounce-email@HOST>", row["references"]),
            ),
            "reply_to": row["reply_to"],
        }
        for row in new(before, after, "notices")
    ]
    earlier = {row["id"]: row for row in before["notifications"]}
    failed = [
        {"notification": row["id"], "status": row["status"], "reason": row["reason"]}
        for row in after["notifications"]
        if row["status"] == "bounce" and earlier.get(row["id"]) != row
    ]
    found: dict[str, list] = {"created": created, "posted": posted, "notices": notices, "failed_notifications": failed}
    found["bounce_counts"] = counts(before, after)
    found["sent"] = [
        {"message": row["message"], "partner": row["partner_id"], "status": row["status"]}
        for row in new(before, after, "notifications")
    ]
    found["unplaced"] = [f"{row['about']}: {row['reason']}" for row in new(before, after, "unplaced")]
    return {key: value for key, value in found.items() if value}


def counts(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    def of(world: dict[str, Any]) -> dict[tuple[str, int], int]:
        found = {(row["model"], row["id"]): row["bounce_count"] for row in world["records"]}
        return found | {("res.partner", row["id"]): row["bounce_count"] for row in world["partners"]}

    earlier, later = of(before), of(after)
    return [
        {"model": model, "id": key, "count": count}
        for (model, key), count in sorted(later.items())
        if count != earlier.get((model, key), 0)
    ]


def play(engine: sa.Engine, proxy: xmlrpc.client.ServerProxy, step: dict[str, Any]) -> dict[str, Any]:
    """Do one step and return what came of it."""
    if step["op"] == "sql":
        with engine.begin() as connection:
            connection.execute(sa.text(step["sql"]))
        return {}
    before = dump(engine)
    if step["op"] == "mail":
        raw = (MESSAGES / step["message"]).read_bytes()
        arguments = [step.get("model") or False, xmlrpc.client.Binary(raw)]
        answer = call(proxy, "mail.thread", "message_process", arguments, step.get("arguments", {}))
        return {"answer": answer} | effects(before, dump(engine))
    if step["op"] == "param":
        call(proxy, "ir.config_parameter", "set_param", [step["key"], step["value"]], {})
    else:
        call(proxy, step["model"], step["method"], step["args"], step["kwargs"])
    return {}


OUR_WORDS = {
    "update mail_alias set alias_force_thread_id=777": "update aliases set thread_id=777",
    "delete from crm_lead where": "delete from records where model='crm.lead' and",
    "update ir_mail_server set smtp_port=9": "",
    "ir_config_parameter": "parameters",
    "update mail_message set model=null,res_id=null": "update messages set model=null,thread_id=null",
}


def sql(statement: str) -> str:
    """Return a change that was made behind Odoo's back, in the words of our tables; "" for what we don't have."""
    minutes = re.search(r"interval '(\d+) minutes'", statement)
    if minutes:
        return f"update records set created = '{now() - timedelta(minutes=int(minutes[1]))}' where id > 3"
    new_id = re.search(r"set message_id='(<[^']*>)'", statement)
    if new_id:
        change = f"message_id = '{new_id[1]}', message_key = '{key_of(new_id[1])}'"
        return f"update messages set {change} where message_id = '<odoo-public-1@example.com>'"
    for theirs, ours in OUR_WORDS.items():
        statement = statement.replace(theirs, ours)
    return statement
