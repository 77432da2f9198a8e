"""What `check` looks at: a room for each part of the set-up, and what all of its functions take and give."""

import os
import pwd
import ssl
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mailgate import alias_list, inquiry
from mailgate.addresses import Addresses
from mailgate.admin.desk import Desk, owner_of
from mailgate.admin.exim import Exim
from mailgate.admin.exim import find as find_exim
from mailgate.admin.postfix import Postfix
from mailgate.admin.postfix import find as find_postfix
from mailgate.database import FIRST_WITH_DOMAINS, Client
from mailgate.outcome import Ended
from mailgate.settings import Settings

CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 30.0  # that each call of a check may take: somebody waits
MAX_NAMED = 8  # in a sentence
GOOD, BAD, UNKNOWN = "good", "bad", "unknown"
FIELDS = ("alias_name", "alias_full_name", "alias_domain_id", "alias_incoming_local", "alias_status")

Row = dict[str, Any]


class Finding(NamedTuple):
    """What a check found: good, bad or unknown, in a sentence; what is bad has what to do."""

    state: str
    sentence: str
    advice: str = ""


def good(sentence: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(GOOD, sentence)


def bad(sentence: str, advice: str) -> Finding:
    """Return what is wrong, and what to do."""
    return Finding(BAD, sentence, advice)


def unknown(sentence: str) -> Finding:
    """Return what can't be told: that is no trouble."""
    return Finding(UNKNOWN, sentence)


class Site:
    """What the checks look at; what the database has said is kept, so that each question is asked once.

    Each of the answers raises Ended where there is none.
    """

    def __init__(self, desk: Desk, arguments: Namespace) -> None:
        self.arguments, self.now = arguments, desk.now
        self.settings = settings = desk.settings
        self.client = Client(
            settings._replace(
                connect_timeout=min(settings.connect_timeout, CONNECT_SECONDS),
                read_timeout=min(settings.read_timeout, ANSWER_SECONDS),
            )
        )
        parts = urlsplit(settings.url)
        self.is_tls, self.host = parts.scheme == "https", parts.hostname or ""
        self.port = parts.port or (443 if self.is_tls else 80)

    def ask(self, model: str, method: str, arguments: Sequence[Any] = (), **options: Any) -> object:
        """Return what a method of a model returns. Raises Ended."""
        return self.client.execute(model, method, [*arguments], options, time.monotonic())

    def rows(self, model: str, terms: Sequence[Any], *fields: str, **options: Any) -> list[Row]:
        """Return what a search finds. Raises Ended."""
        return inquiry.rows(self.client, model, [*terms], {"fields": ["id", *fields], **options})

    @cached_property
    def version(self) -> Row:
        """What the server says of its version; empty where that is no Odoo's answer."""
        said = self.client.version(time.monotonic())
        return said if isinstance(said, dict) else {}

    @cached_property
    def release(self) -> int:
        """The number of Odoo's version, 0 where it does not say."""
        first = (self.version.get("server_version_info") or [0])[0]
        digits = "".join(character for character in str(first) if character.isdigit())  # saas~18
        return int(digits or 0)

    @property
    def is_old(self) -> bool:
        """Whether it is an Odoo before 17: aliases have no domain, and what is said of them is in parameters."""
        return 0 < self.release < FIRST_WITH_DOMAINS

    @cached_property
    def user_id(self) -> int:
        """Our user's id, with which the database has answered a question."""
        user_id = self.client.log_in(time.monotonic())
        self.rows("res.users", [["id", "=", user_id]], "login")  # a LOGIN that is a number is not asked before
        return user_id

    @cached_property
    def listed(self) -> Addresses:
        """The database's addresses."""
        return alias_list.read(self.client, self.settings.addresses)

    @cached_property
    def domains(self) -> list[Row]:
        """The alias domains, by Odoo's names."""
        return alias_list.search(self.client, "mail.alias.domain", alias_list.DOMAIN_FIELDS)

    @cached_property
    def aliases(self) -> list[Row]:
        """The aliases that have a name, by Odoo's names."""
        found = alias_list.search(self.client, "mail.alias", FIELDS)
        return [row for row in found if row["alias_name"]]

    @cached_property
    def postfix(self) -> Postfix | None:
        """Postfix's configuration, where there is one."""
        return find_postfix(self.postfix_config)

    @cached_property
    def exim(self) -> Exim | None:
        """Exim, where it is here."""
        return find_exim(self.exim_config)

    @property
    def postfix_config(self) -> str | None:
        """The folder of Postfix's configuration, where it is named."""
        config: str | None = self.arguments.mta_config
        return config if config and os.path.isdir(config) else None

    @property
    def exim_config(self) -> str | None:
        """The file of Exim's configuration, where it is named."""
        config: str | None = self.arguments.mta_config
        return config if config and not os.path.isdir(config) else None

    def parameter(self, key: str) -> str:
        """Return a system parameter, "" where it is not set. Raises Ended."""
        return str(self.ask("ir.config_parameter", "get_param", [key]) or "").strip()

    def tls(self) -> ssl.SSLContext:
        """Return what the gateway's connections trust."""
        from urllib3.util.ssl_ import create_urllib3_context

        context = create_urllib3_context()
        context.check_hostname, context.verify_mode = True, ssl.CERT_REQUIRED
        authorities = self.client.authorities
        if authorities is True:
            context.load_default_certs()
        else:
            context.load_verify_locations(**_locations(str(authorities)))
        return context


def _locations(path: str) -> dict[str, str]:
    from os.path import isdir

    return {"capath" if isdir(path) else "cafile": path}


def alias_domains(site: Site) -> list[str]:
    """Return the alias domains: the database's, or those of the settings where it does not tell."""
    try:
        return sorted(site.listed.alias_domains)
    except Ended:
        return sorted(site.settings.addresses.alias_domains)


def user_complaint(settings: Settings, user: str) -> str:
    """Return what is wrong with the user as whom a mail server runs the gateway, "" for nothing."""
    owner = owner_of(settings.journal, settings.hold)
    try:
        is_owner = not owner or pwd.getpwnam(user).pw_uid == owner.st_uid
    except KeyError:
        return f"there is no user {user}"
    return "" if is_owner else f"it runs as {user}, whose the journal and the hold folder are not"


class Check(NamedTuple):
    """One check, and those without which it can't be made: where one of them finds something bad, it is left out."""

    ask: Callable[[Site], Iterable[Finding]]
    after: tuple[str, ...] = ()


def named(names: Iterable[str]) -> str:
    """Return names for a sentence."""
    found = [*names]
    more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    return ", ".join(found[:MAX_NAMED]) + more


def why(ended: Ended) -> str:
    """Return why something ended so, for a sentence."""
    return (ended.verdict.cause or ended.verdict.outcome.text).rstrip(".")
