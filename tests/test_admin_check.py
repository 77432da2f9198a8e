"""check names the fault, and only it, in set-ups that are broken on purpose; in a right one it finds nothing bad."""

import contextlib
import copy
import getpass
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.between import Between
from support.endpoint import Answer, Endpoint, fault, http, returns
from support.gateway import ENVIRONMENT, SETTINGS, coverage_environment, write_settings
from support.mail_database_server import PASSWORD, Server, served
from support.mta import free_port
from support.service import Service, running

from mailgate.admin.checks import postfix as postfix_checks
from mailgate.settings import MAX_SIZE

ROOT = Path(__file__).parents[1]
PROGRAMS = "/usr/bin:/bin:/usr/sbin:/sbin"
needs_postfix = pytest.mark.skipif(not shutil.which("postconf", path=PROGRAMS), reason="needs apt-get install postfix")
WORLD: dict[str, Any] = {
    "alias_domains": [{"id": 1, "name": "example.com", "catchall": "catchall", "bounce": "bounce"}],
    "companies": [{"id": 1, "name": "First", "email": "office@example.com", "alias_domain": "example.com"}],
    "aliases": [
        {"id": 1, "local_part": "info", "domain": "example.com", "model": "crm.lead", "status": "valid"},
        {"id": 2, "local_part": "support", "domain": "example.com", "model": "project.task"},
    ],
    "partners": [{"id": 3, "name": "Administrator", "email": "admin@example.com"}],
    "users": [{"id": 2, "login": "admin", "partner_id": 3}],
}
MAIN_CF = """\
compatibility_level = 3.6
myhostname = mx.example.com
mydestination = localhost
message_size_limit = 50000000
recipient_delimiter = +
smtpd_forbid_bare_newline = yes
"""


class SetUp:
    """A right set-up: what a test changes of it before ``check`` looks at it."""

    def __init__(self, folder: Path, right: Server) -> None:
        self.folder, self.right = folder, right
        self.world = copy.deepcopy(WORLD)
        self.settings: dict[str, object] = SETTINGS | {
            "PASSWORD": PASSWORD,
            "RECIPIENT_DELIMITER": "+",
            "JOURNAL": folder / "journal",
            "HOLD": folder / "held",
            "LOG": folder / "service.log",
            "LMTP": folder / "lmtp.sock",
        }
        for name in ("journal", "held"):
            (folder / name).mkdir(mode=0o700)
        self.instead: dict[tuple[str, str], Answer] = {}  # as Between has it
        self.ahead = 0.0
        self.host = "127.0.0.1"
        self.days: int | None = None  # for which the certificate is good; without, no TLS
        self.name = "127.0.0.1"  # for which it is
        self.before: list[Callable[[], object]] = []  # what is done right before it is looked at
        self.running = contextlib.ExitStack()
        self.postfix: Path | None = None

    def edit(self, name: str, old: str, new: str) -> None:
        """Change a file of Postfix's configuration."""
        assert self.postfix
        path = self.postfix / name
        assert old in path.read_text(), path.read_text()
        path.write_text(path.read_text().replace(old, new))

    @property
    def env_file(self) -> Path:
        return self.folder / "service.env"

    def write(self) -> None:
        write_settings(self.env_file, self.settings)

    def certificate(self) -> Path:
        """Make a certificate, which the settings trust."""
        private, public = self.folder / "private.pem", self.folder / "public.pem"
        kind = "IP" if self.name[0].isdigit() else "DNS"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", str(self.days), "-subj", "/CN=x",
             "-addext", f"subjectAltName={kind}:{self.name}", "-keyout", private, "-out", public],
            check=True, capture_output=True,
        )  # fmt: skip
        private.write_bytes(private.read_bytes() + public.read_bytes())
        self.settings.setdefault("CA_FILE", public)
        return private

    def check(self, *options: str) -> tuple[int, dict[str, Any], str]:
        """Return exit status, facts and standard error of ``check --json`` on this set-up."""
        with self.running:
            server = self.right
            if self.world != WORLD:
                server = self.running.enter_context(served(f"sqlite:///{self.folder}/database", self.world))
            between = Between(server.url, self.instead, self.certificate() if self.days else None)
            between.ahead = self.ahead
            self.running.callback(between.close)
            self.settings.setdefault("URL", between.url.replace("127.0.0.1", self.host))
            self.write()
            for step in self.before:
                step()
            if self.postfix:
                options = ("--postfix-config", str(self.postfix), *options)
            finished = desk(self.env_file, "check", "--json", *options)
        return finished.returncode, json.loads(finished.stdout or "{}"), finished.stderr


def desk(env_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mailgate.admin", "--env-file", str(env_file), *arguments],
        capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT | coverage_environment(), timeout=120, check=False,
    )  # fmt: skip


def of_state(facts: dict[str, Any], state: str) -> list[str]:
    """Return the codes of the findings of a state."""
    return [each["code"] for each in facts["findings"] if each["state"] == state]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A database in which nothing is wrong."""
    with served(f"sqlite:///{tmp_path_factory.mktemp('right')}/database", WORLD) as server:
        yield server


@pytest.fixture
def set_up(tmp_path: Path, right: Server) -> SetUp:
    return SetUp(tmp_path, right)


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Postfix configuration into which postfix/configure has put the gateway."""
    config = tmp_path_factory.mktemp("postfix")
    (config / "main.cf").write_text(MAIN_CF)
    (config / "master.cf").write_text("smtp inet n - y - - smtpd\n")
    command = [sys.executable, f"{ROOT}/postfix/configure", "-c", str(config)]
    subprocess.run(command, check=True, capture_output=True, env={"PATH": PROGRAMS})
    with open(config / "mail-gateway" / "transport", "a") as file:
        file.write("example.com mail-gateway:\n")
    return config


@pytest.fixture
def set_up_with_postfix(set_up: SetUp, configuration: Path) -> SetUp:
    set_up.postfix = set_up.folder / "postfix"
    shutil.copytree(configuration, set_up.postfix)
    for name in ("main.cf", "master.cf"):
        set_up.edit(name, str(configuration), str(set_up.postfix))
    set_up.edit("master.cf", "/opt/mail-gateway/mail_gateway.py", f"{ROOT}/mail_gateway.py")
    set_up.edit("master.cf", "user=mail-gateway", f"user={getpass.getuser()}")
    return set_up


# --- how a set-up is broken ---------------------------------------------------------------------------------------

Break = Callable[[SetUp], object]


def setting(**settings: object) -> Break:
    return lambda set_up: set_up.settings.update(settings)


def answer(model: str, method: str, said: Answer) -> Break:
    return lambda set_up: set_up.instead.update({(model, method): said})


def alias(**columns: object) -> Break:
    return lambda set_up: set_up.world["aliases"][0].update(columns)


def parameter(key: str, value: str) -> Break:
    return lambda set_up: set_up.world.update(parameters={key: value})


def postfix(old: str, new: str, file: str = "main.cf") -> Break:
    return lambda set_up: set_up.edit(file, old, new)


def tls(days: int, name: str = "127.0.0.1", **settings: object) -> Break:
    def change(set_up: SetUp) -> None:
        set_up.days, set_up.name = days, name
        set_up.settings.update(settings)

    return change


def version(number: int) -> Answer:
    return returns({"server_version": f"{number}.0", "server_version_info": [number, 0, 0, "final", 0, ""]})


def in_days(days: float) -> str:
    """Return a moment as Odoo writes it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time.time() + days * 86400))


def keys(*days: float) -> Answer:
    return returns([{"id": n, "name": "key", "expiration_date": in_days(each)} for n, each in enumerate(days, 1)])


def another_server(set_up: SetUp) -> None:
    server = Endpoint()
    set_up.running.callback(server.close)
    server.version = http(404, b"<!doctype html>")
    set_up.settings["URL"] = server.url


def plain_http(set_up: SetUp) -> None:
    set_up.host = "0.0.0.0"  # leads to this host, and is not known for it
    set_up.settings["ALLOW_PLAINTEXT"] = "yes"


def mode(set_up: SetUp) -> None:
    set_up.before.append(lambda: set_up.env_file.chmod(0o644))


def link_in_hold(set_up: SetUp) -> None:
    (set_up.folder / "elsewhere").mkdir()
    (set_up.folder / "held" / "new").symlink_to(set_up.folder / "elsewhere")


def no_journal_server(set_up: SetUp) -> None:
    set_up.settings["JOURNAL"] = f"postgresql://nobody@127.0.0.1:{free_port()}/journal"


def service(set_up: SetUp) -> None:
    set_up.before.append(lambda: set_up.running.enter_context(running(Service(set_up.folder, **set_up.settings))))


def service_with_older_settings(set_up: SetUp) -> None:
    service(set_up)
    set_up.before.append(lambda: os.utime(set_up.env_file))


def dead_service(set_up: SetUp) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as listener:  # the file stays
        listener.bind(str(set_up.folder / "lmtp.sock"))


def no_catchall(set_up: SetUp) -> None:
    set_up.world["alias_domains"][0]["catchall"] = None


def no_domain(set_up: SetUp) -> None:
    set_up.world["alias_domains"] = []


def detection(**parameters: str) -> Break:
    def change(set_up: SetUp) -> None:
        set_up.world["aliases"][0]["local_part_detection"] = True
        set_up.world["parameters"] = parameters

    return change


def both(one: Break, other: Break) -> Break:
    return lambda set_up: (one(set_up), other(set_up))


ALIASES = "info@example.com,support@example.com,notifications@example.com"
DENIED = fault(4, "You are not allowed to access this.")
SERVER = {"id": 1, "name": "IMAP", "server": "imap.example.com", "user": "info@example.com"}

# How a set-up is broken, and the one code that is found.
BROKEN: dict[str, tuple[str, Break]] = {
    "without a password": ("settings", setting(PASSWORD=None)),
    "a misspelt setting": ("settings", setting(ALIAS_DOMAIN="example.com")),
    "a settings file for everybody": ("settings", mode),
    "a hold folder that is not there": ("settings", setting(HOLD="/nowhere/held")),
    "plain http to another host": ("settings", setting(URL="http://odoo.example.invalid")),
    "plain http to another host, as wished": ("plaintext", plain_http),
    "an answer that is not waited for": ("read-timeout", setting(READ_TIMEOUT=60)),
    "a name that leads nowhere": ("name", setting(URL="https://odoo.example.invalid")),
    "a port where nobody listens": ("connection", setting(URL="http://127.0.0.1:1")),
    "a certificate that nobody trusts": ("certificate", tls(100, CA_FILE=None)),
    "a certificate for another name": ("certificate", tls(100, "odoo.example.org")),
    "a certificate that ends soon": ("certificate-end", tls(3)),
    "another server": ("answer", another_server),
    "a clock that goes wrong": ("clock", lambda set_up: setattr(set_up, "ahead", 3600.0)),
    "Odoo 13": ("version", answer("common", "version", version(13))),
    "Odoo 22": ("protocol", answer("common", "version", version(22))),
    "another database": ("database", setting(DATABASE="other")),
    "a wrong password": ("login", setting(PASSWORD="wrong")),
    "a key that ends soon": ("key", answer("res.users.apikeys", "search_read", keys(2.0))),
    "a user who may not write aliases": ("right-aliases", answer("mail.alias", "check_access_rights", returns(False))),
    "a user who may not see messages": ("right-messages", answer("mail.message", "search_read", DENIED)),
    "a user who may not see leads": ("right-records", answer("crm.lead", "check_access_rights", returns(False))),
    "no alias domain": ("alias-domain", no_domain),
    "no catchall address": ("catchall", no_catchall),
    "an alias without a domain": ("alias-no-domain", alias(domain=None)),
    "an alias in trouble": ("alias-status", alias(status="invalid")),
    "settings that leave an alias out": ("left-out", setting(ALIASES="info@example.com")),
    "settings with an alias that is not there": (
        "wider", setting(ALIASES=f"{ALIASES},jobs@example.com"),
    ),
    "settings with a domain that is not there": ("wider", setting(ALIAS_DOMAINS="example.com,example.org")),
    "local-part detection anywhere": ("detection", detection()),
    "a loop threshold that is none": ("loops", parameter("mail.gateway.loop.threshold", "many")),
    "a loop threshold of 0": ("loops", parameter("mail.gateway.loop.threshold", "0")),
    "a loop window of 0": ("loops", parameter("mail.gateway.loop.minutes", "0")),
    "Odoo fetches the same mail": ("fetchmail", answer("fetchmail.server", "search_read", returns([SERVER]))),
    "more than Odoo takes": ("size", setting(MAX_SIZE=MAX_SIZE + 1)),
    "no hold folder": ("hold", setting(HOLD=None)),
    "a link in the hold folder": ("hold", link_in_hold),
    "no journal": ("journal", setting(JOURNAL=None)),
    "a journal's server that is away": ("journal", no_journal_server),
    "a service with older settings": ("service", service_with_older_settings),
    "a service that is gone": ("service", dead_service),
}  # fmt: skip
TABLE = "mail-gateway/transport"
BROKEN_POSTFIX: dict[str, tuple[str, Break]] = {
    "no service": ("postfix", lambda set_up: Path(f"{set_up.postfix}/master.cf").write_text("")),
    "a program that is not there": ("postfix-service", postfix(f"{ROOT}/mail_gateway.py", "/nowhere", "master.cf")),
    "a user who is not there": ("postfix-service", postfix(f"user={getpass.getuser()}", "user=nosuch", "master.cf")),
    "no null sender": ("postfix-service", postfix("null_sender=", "", "master.cf")),
    "a short time limit": ("postfix-time", postfix("time_limit=900s", "time_limit=60s", "master.cf")),
    "no filter": ("postfix-filter", lambda set_up: Path(f"{set_up.postfix}/mail-gateway/delivery_status").unlink()),
    "few recipients at once": (
        "postfix-recipients",
        postfix("mail-gateway_destination_recipient_limit = 10000", "mail-gateway_destination_recipient_limit = 50"),
    ),
    "more than the gateway takes": ("postfix-size", postfix("= 50000000", "= 200000000")),
    "another delimiter": ("postfix-delimiter", postfix("recipient_delimiter = +", "recipient_delimiter = -")),
    "a domain that is local, too": ("postfix-domains", postfix("= localhost", "= localhost, example.com")),
    "a domain that is nobody's": ("postfix-domains", postfix("\nexample.com mail", "\nexample.org mail", TABLE)),
    "a domain for another": ("postfix-domains", postfix("\nexample.com mail-gateway:", "\nexample.com smtp:", TABLE)),
    "a short life": ("postfix-queue", postfix("+\n", "+\nmaximal_queue_lifetime = 1h\n")),
    "a long pause": ("postfix-queue", postfix("+\n", "+\nminimal_backoff_time = 5h\n")),
    "$config_directory": ("postfix-folder", postfix("+\n", "+\nalias_maps = hash:$config_directory/aliases\n")),
    "smuggling": ("postfix-smuggling", postfix("bare_newline = yes", "bare_newline = no")),
}  # fmt: skip


@pytest.mark.parametrize(("code", "change"), BROKEN.values(), ids=BROKEN)
def test_the_fault_is_named_and_only_it(set_up: SetUp, code: str, change: Break) -> None:
    change(set_up)
    status, facts, said = set_up.check()
    assert (status, said) == (1, "")
    assert of_state(facts, "bad") == [code], facts
    assert all(each["advice"] for each in facts["findings"] if each["state"] == "bad")


@needs_postfix
@pytest.mark.parametrize(("code", "change"), BROKEN_POSTFIX.values(), ids=BROKEN_POSTFIX)
def test_the_fault_of_postfix_is_named_and_only_it(set_up_with_postfix: SetUp, code: str, change: Break) -> None:
    change(set_up_with_postfix)
    status, facts, said = set_up_with_postfix.check()
    assert (status, of_state(facts, "bad"), said) == (1, [code], ""), facts


@needs_postfix
def test_in_a_right_postfix_nothing_is_bad(set_up_with_postfix: SetUp) -> None:
    status, facts, said = set_up_with_postfix.check()
    assert (status, of_state(facts, "bad"), said) == (0, [], ""), facts
    assert {*postfix_checks.CHECKS} - {"postfix-folder"} <= {*of_state(facts, "good")}


RIGHT: dict[str, Break] = {
    "as it is": setting(),
    "TLS": tls(100),
    "a login": setting(LOGIN="admin"),
    "a service": service,
    "aliases by name": setting(ALIASES=ALIASES),
    "local-part detection": both(
        detection(**{"mail.catchall.domain.allowed": "example.org"}), setting(ALLOWED_DOMAINS="example.org")
    ),
    "a key without an end": answer(
        "res.users.apikeys", "search_read", returns([{"id": 1, "name": "key", "expiration_date": False}])
    ),
    "a key that ends, and another": answer("res.users.apikeys", "search_read", keys(2.0, 90.0)),
    "a user who may not see keys": answer("res.users.apikeys", "search_read", DENIED),
    "a user who may not see parameters": answer("ir.config_parameter", "get_param", DENIED),
    "Odoo 16": answer("common", "version", version(16)),  # which has no list
    "other mail is fetched": answer("fetchmail.server", "search_read", returns([SERVER | {"user": "x@other.example"}])),
}


@pytest.mark.parametrize("change", RIGHT.values(), ids=RIGHT)
def test_in_a_right_set_up_nothing_is_bad(set_up: SetUp, change: Break) -> None:
    change(set_up)
    status, facts, said = set_up.check()
    assert (status, of_state(facts, "bad"), said) == (0, [], ""), facts
