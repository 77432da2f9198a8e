"""What the cases of the oracle need in a real Odoo: aliases of each kind, people, and threads to be answered."""

from email.utils import getaddresses
from typing import Any, NamedTuple

from support.odoo.server import Odoo

MODELS = ("crm.lead", "project.task", "res.partner")
PEOPLE = {"Carl Customer": "carl@customer.test", "Paula Partner": "paula@partner.test", "Fred": "fred@follower.test"}


def fill(odoo: Odoo) -> None:
    """Make them, besides what Odoo.add_aliases() has made; where aliases have no domain, those of the first one."""
    second = 0
    if odoo.has_domains:
        second = odoo.call("mail.alias.domain", "create", {"name": "second.example", "catchall_alias": "replies"})
    models = {row["model"]: row["id"] for row in odoo.search("ir.model", [], "model")}
    people = {
        name: odoo.call("res.partner", "create", {"name": name, "email": email}) for name, email in PEOPLE.items()
    }
    project = odoo.call("project.project", "create", {"name": "Members"})
    odoo.call("project.project", "message_subscribe", [project], [people["Fred"]])
    task = odoo.call("project.task", "create", {"name": "Forced thread", "project_id": project})
    odoo.call("project.task", "message_subscribe", [task], [people["Fred"]])
    lead = odoo.call("crm.lead", "create", {"name": "Seed lead", "email_from": PEOPLE["Carl Customer"]})
    for message_id, model, record_id, is_internal in [
        ("<seed-question@customer.test>", "crm.lead", lead, False),
        ("<odoo-public-1@example.com>", "crm.lead", lead, False),
        ("<odoo-note-1@example.com>", "crm.lead", lead, True),
        ("<odoo-public-2@example.com>", "crm.lead", lead, False),
        ("<odoo-task-1@example.com>", "project.task", task, False),
        ("<odoo-partner-1@example.com>", "res.partner", people["Paula Partner"], False),
    ]:
        values = {"message_id": message_id, "model": model, "res_id": record_id, "is_internal": is_internal}
        odoo.call("mail.message", "create", values | {"message_type": "comment", "body": "ours"})
    of_project = {"alias_parent_model_id": models["project.project"], "alias_parent_thread_id": project}
    for local_part, model, values in [
        ("members", "project.task", {"alias_contact": "followers", **of_project}),
        ("vip", "crm.lead", {"alias_contact": "partners", "alias_bounced_content": "<p>VIP only, sorry.</p>"}),
        ("orphan", "crm.lead", {"alias_contact": "followers"}),
        ("sales-local", "crm.lead", {"alias_incoming_local": True}),
        ("ticket42", "project.task", {"alias_force_thread_id": task}),
        ("ticketp", "project.task", {"alias_force_thread_id": task, "alias_contact": "partners"}),
        ("ticketf", "project.task", {"alias_force_thread_id": task, "alias_contact": "followers"}),
        ("contact", "crm.lead", {"alias_domain_id": second}),
        ("info", "project.task", {"alias_domain_id": second}),
        ("brokenfield", "crm.lead", {"alias_defaults": "{'no_such_field': 1}"}),
        ("people", "res.partner", {}),
        ("commercial", "crm.lead", {"alias_incoming_local": True}),
        ("commercial", "project.task", {"alias_domain_id": second}),
    ]:
        alias = {"alias_name": local_part, "alias_model_id": models[model], **odoo.of_domain, **values}
        if not odoo.has_domains:
            alias.pop("alias_incoming_local", None)
        if odoo.has_domains or "alias_domain_id" not in alias:
            odoo.call("mail.alias", "create", alias)
    jobs = [row["id"] for row in odoo.search("mail.alias", [("alias_name", "=", "jobs")], "alias_name")]
    odoo.call("mail.alias", "write", jobs, {"alias_model_id": models["crm.lead"], "alias_contact": "partners"})


class Before(NamedTuple):
    """The last ids: of messages, of notices, and of each model's records."""

    message: int
    mail: int
    records: dict[str, int]


def before(odoo: Odoo) -> Before:
    """Return what there is, so that since() can tell what has come."""

    def last(model: str) -> int:
        # without a limit: Odoo takes messages that a user may not read out of what a search has found
        return max(odoo.call(model, "search", [], context={"active_test": False}), default=0)

    return Before(last("mail.message"), last("mail.mail"), {model: last(model) for model in MODELS})


def since(odoo: Odoo, then: Before) -> tuple[list[str], list[tuple[str, int]], list[str]]:
    """Return what has come since: the models of new records, the threads that were posted to, and who was told."""
    domain: list[Any] = [("id", ">", then.message), ("message_type", "=", "email"), ("model", "in", MODELS)]
    posted = [(row["model"], row["res_id"]) for row in odoo.search("mail.message", domain, "model", "res_id")]
    notices = odoo.search("mail.mail", [("id", ">", then.mail), ("email_from", "ilike", "MAILER-DAEMON")], "email_to")
    named = (getaddresses([row["email_to"]]) for row in notices)
    told = [next((address.lower() for _, address in each if address), "") for each in named]
    return (
        sorted(model for model, number in posted if number > then.records[model]),
        sorted((model, number) for model, number in posted if number <= then.records[model]),
        sorted(filter(None, told)),
    )
