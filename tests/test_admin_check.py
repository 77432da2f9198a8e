"""check names the fault, and only it, in set-ups that are broken on purpose; in a right one it finds nothing bad."""

import contextlib
import copy
import getpass
import json
import os
import re
import shutil
import socket
import socketserver
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.rdatatype
import dns.rrset
import pytest
from support.between import Between
from support.endpoint import Answer, Endpoint, Request, fault, http, returns
from support.gateway import ENVIRONMENT, SETTINGS, coverage_environment, write_settings
from support.mail_database_server import Server, served
from support.mta import EXIM, PYTHON, free_port
from support.odoo.server import Odoo, new_user
from support.odoo.world import before
from support.service import Service, running

from mailgate.admin.check import CHECKS
from mailgate.admin.checks import exim as exim_checks
from mailgate.admin.checks import postfix as postfix_checks
from mailgate.admin.checks.server import SLOW_SECONDS
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
KEY = "0123456789abcdef0123456789abcdef01234567"  # as Odoo writes its keys
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
        self.env_file = folder / "service.env"
        self.form = ["--json"]
        self.world = copy.deepcopy(WORLD)
        self.settings: dict[str, object] = SETTINGS | {
            "PASSWORD": KEY,
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
        self.announced = http(100)  # what is said to who announces a large call
        self.host = "127.0.0.1"
        self.days: int | None = None  # for which the certificate is good; without, no TLS
        self.name = "127.0.0.1"  # for which it is
        self.before: list[Callable[[], object]] = []  # what is done right before it is looked at
        self.running = contextlib.ExitStack()
        self.configuration = folder / "configuration"  # of the mail server, if there is one
        self.options: list[str] = []
        self.path = ENVIRONMENT["PATH"]
        self.program = [sys.executable, "-m", "mailgate.admin"]
        self.place = ROOT  # where it is run

    def edit(self, name: str, old: str, new: str) -> None:
        """Change a file of the mail server's configuration."""
        path = self.configuration / name
        assert old in path.read_text(), path.read_text()
        path.write_text(path.read_text().replace(old, new))

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

    def check(self) -> tuple[int, Any, str]:
        """Return exit status, facts and standard error of ``check`` on this set-up; without --json, the screen."""
        with self.running:
            server = self.right
            if self.world != WORLD:
                server = self.running.enter_context(served(f"sqlite:///{self.folder}/database", self.world, KEY))
            between = Between(server.url, self.instead, self.certificate() if self.days else None)
            between.ahead, between.expected = self.ahead, self.announced
            self.running.callback(between.close)
            self.settings.setdefault("URL", between.url.replace("127.0.0.1", self.host))
            self.write()
            for step in self.before:
                step()
            finished = subprocess.run(
                [*self.program, "--env-file", self.env_file, "check", *self.form, *self.options],
                env=ENVIRONMENT | coverage_environment() | {"PATH": self.path},
                capture_output=True, text=True, cwd=self.place, timeout=120, check=False,
            )  # fmt: skip
        assert KEY not in finished.stdout + finished.stderr
        found = json.loads(finished.stdout) if self.form and finished.stdout else finished.stdout
        return finished.returncode, found, finished.stderr


def of_state(facts: dict[str, Any], state: str) -> list[str]:
    """Return the codes of the findings of a state."""
    return [each["code"] for each in facts["findings"] if each["state"] == state]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A database in which nothing is wrong."""
    with served(f"sqlite:///{tmp_path_factory.mktemp('right')}/database", WORLD, KEY) as server:
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
    shutil.copytree(configuration, set_up.configuration)
    set_up.options = ["--mta-config", str(set_up.configuration)]
    for name in ("main.cf", "master.cf"):
        set_up.edit(name, str(configuration), str(set_up.configuration))
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


def version(number: int) -> bytes:
    return returns({"server_version": f"{number}.0", "server_version_info": [number, 0, 0, "final", 0, ""]})


OLD = {"catchall.domain": "example.com", "catchall.alias": "catchall", "bounce.alias": "bounce"}


def old_odoo(parameters: dict[str, str], number: int = 16, threshold: str = "20") -> Break:
    """Have an Odoo before 17, with parameters that begin with mail."""

    def change(set_up: SetUp) -> None:
        set_up.instead[("common", "version")] = version(number)
        named = {f"mail.{key}": value for key, value in parameters.items()}
        rows = [{"id": n, "key": key, "value": value} for n, (key, value) in enumerate(named.items(), 1)]
        set_up.instead[("ir.config_parameter", "search_read")] = returns(rows)
        set_up.world["parameters"] = {**named, "mail.gateway.loop.threshold": threshold}

    return change


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
    with socket.socket(socket.AF_UNIX) as listener:  # the file stays
        listener.bind(str(set_up.folder / "lmtp.sock"))


def no_catchall(set_up: SetUp) -> None:
    set_up.world["alias_domains"][0]["catchall"] = None


def no_bounce(set_up: SetUp) -> None:
    set_up.world["alias_domains"][0]["bounce"] = None


def no_addresses(set_up: SetUp) -> None:
    set_up.world.update(alias_domains=[], aliases=[])


def slow_at_first(set_up: SetUp) -> None:
    """Let the first answer take as long as no answer should."""
    seconds = iter([SLOW_SECONDS + 0.1])

    def said(connection: socket.socket, request: Request) -> None:
        threading.Event().wait(next(seconds, 0))
        connection.sendall(version(19))

    set_up.instead[("common", "version")] = said


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
    "a server that is slow": ("answer", slow_at_first),
    "a clock that goes wrong": ("clock", lambda set_up: setattr(set_up, "ahead", 3600.0)),
    "Odoo 13": ("version", answer("common", "version", version(13))),
    "Odoo 22": ("protocol", answer("common", "version", version(22))),
    "another database": ("database", setting(DATABASE="other")),
    "a wrong password": ("login", setting(PASSWORD="wrong")),
    "a key that ends soon": ("key", answer("res.users.apikeys", "search_read", keys(2.0))),
    "a user who may not write aliases": ("right-aliases", answer("mail.alias", "check_access_rights", returns(False))),
    "a user who may not see messages": ("right-messages", answer("mail.message", "search_read", DENIED)),
    "a user who may not see leads": ("right-records", answer("crm.lead", "check_access_rights", returns(False))),
    "a user who may not see which domains are allowed": (
        "right-parameters", both(detection(), answer("ir.config_parameter", "get_param", DENIED)),
    ),
    "neither alias domain nor alias": ("addresses", no_addresses),
    "no alias domain": ("alias-domain", no_domain),
    "no catchall address": ("catchall", no_catchall),
    "no bounce address": ("catchall", no_bounce),
    "Odoo 16 without an alias domain": ("alias-domain", old_odoo(OLD | {"catchall.domain": ""})),
    "Odoo 16 without a catchall address": ("catchall", old_odoo(OLD | {"catchall.alias": ""})),
    "Odoo 16 with a loop threshold of 0": ("loops", old_odoo(OLD, threshold="0")),
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
    "a proxy that takes small calls only": ("proxy", lambda set_up: setattr(set_up, "announced", http(413))),
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
    "no service": ("postfix", lambda set_up: (set_up.configuration / "master.cf").write_text("")),
    "a program that is not there": ("postfix-service", postfix(f"{ROOT}/mail_gateway.py", "/nowhere", "master.cf")),
    "a user who is not there": ("postfix-service", postfix(f"user={getpass.getuser()}", "user=nosuch", "master.cf")),
    "no null sender": ("postfix-service", postfix("null_sender=", "", "master.cf")),
    "a short time limit": ("postfix-time", postfix("time_limit=900s", "time_limit=60s", "master.cf")),
    "no filter": ("postfix-filter", lambda set_up: (set_up.configuration / "mail-gateway/delivery_status").unlink()),
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


# --- Exim ---------------------------------------------------------------------------------------------------------

needs_exim = pytest.mark.skipif(not EXIM, reason="needs Exim, which .ci/run unpacks into /opt/exim")
EXIM_CONF = """\
MAIL_GATEWAY_PROGRAM = {root}/mail_gateway.py
MAIL_GATEWAY_USER = {user}
MAIL_GATEWAY_FOLDER = {folder}/exim/mail-gateway
MAIL_GATEWAY_DELIMITER = +
primary_hostname = mx.example.com
message_size_limit = 50M
.include {folder}/exim/conf.d/main/10_mail-gateway
begin routers
.include {folder}/exim/conf.d/router/120_mail-gateway
begin transports
.include {folder}/exim/conf.d/transport/30_mail-gateway
begin retry
.include {folder}/exim/conf.d/retry/10_mail-gateway
"""
DELIVERY, DOMAINS = "conf.d/transport/30_mail-gateway", "mail-gateway/domains"


def exim(old: str, new: str, file: str = "exim.conf") -> Break:
    return lambda set_up: set_up.edit(file, old, new)


BROKEN_EXIM: dict[str, tuple[str, Break]] = {
    "no router": ("exim", exim("\nmail_gateway:", "\nother:", "conf.d/router/120_mail-gateway")),
    "few recipients at once": ("exim-transport", exim("batch_max = 10000", "batch_max = 50", DELIVERY)),
    "a short time limit": ("exim-transport", exim("timeout = 15m", "timeout = 5m", DELIVERY)),
    "a time limit that bounces": ("exim-transport", exim("  timeout_defer\n", "", DELIVERY)),
    "accidents that bounce": ("exim-transport", exim(":126:127:", ":126:", DELIVERY)),
    "a program that is not there": ("exim-transport", exim(f"{ROOT}/mail_gateway.py", "/nowhere/gateway")),
    "more than the gateway takes": ("exim-size", exim("= 50M", "= 200M")),
    "no delimiter": ("exim-delimiter", exim("MAIL_GATEWAY_DELIMITER = +\n", "")),
    "another delimiter": ("exim-delimiter", exim("DELIMITER = +", "DELIMITER = -")),
    "a domain that is nobody's": ("exim-domains", exim("\nexample.com\n", "\nexample.org\n", DOMAINS)),
}


@pytest.fixture
def set_up_with_exim(set_up: SetUp) -> Iterator[SetUp]:
    """Exim drops its rights: its files are where it can read them."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(ROOT / "exim", folder / "exim")
        set_up.configuration = folder / "exim"
        config = set_up.configuration / "exim.conf"
        config.write_text(EXIM_CONF.format(root=ROOT, user=getpass.getuser(), folder=folder))
        with open(set_up.configuration / DOMAINS, "a") as file:
            file.write("example.com\n")
        set_up.options = ["--mta-config", str(config)]
        set_up.path = f"{ENVIRONMENT['PATH']}:{os.path.dirname(EXIM)}"
        yield set_up


@needs_exim
@pytest.mark.parametrize(("code", "change"), BROKEN_EXIM.values(), ids=BROKEN_EXIM)
def test_the_fault_of_exim_is_named_and_only_it(set_up_with_exim: SetUp, code: str, change: Break) -> None:
    change(set_up_with_exim)
    status, facts, said = set_up_with_exim.check()
    assert (status, of_state(facts, "bad"), said) == (1, [code], ""), facts


@needs_exim
def test_in_a_right_exim_nothing_is_bad(set_up_with_exim: SetUp) -> None:
    status, facts, said = set_up_with_exim.check()
    assert (status, of_state(facts, "bad"), said) == (0, [], ""), facts
    assert {*exim_checks.CHECKS} - {"exim-queue"} <= {*of_state(facts, "good")}
    assert "exim-queue" in of_state(facts, "unknown")


# --- the DNS ------------------------------------------------------------------------------------------------------


@pytest.fixture
def dns_server() -> Iterator[tuple[str, dict[tuple[str, str], str]]]:
    """Where a server of the DNS listens, and its records, by name and kind."""
    records: dict[tuple[str, str], str] = {}

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, connection = self.request
            query = dns.message.from_wire(data)
            response = dns.message.make_response(query)
            (question,) = query.question
            found = records.get((question.name.to_text(True), dns.rdatatype.to_text(question.rdtype)))
            if found:
                response.answer.append(dns.rrset.from_text(question.name, 60, "IN", question.rdtype, found))
            connection.sendto(response.to_wire(), self.client_address)

    with socketserver.ThreadingUDPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}", records
        server.shutdown()
        thread.join()


HERE, ELSEWHERE = {("mx.example.com", "A"): "127.0.0.1"}, {("mx.example.com", "A"): "192.0.2.1"}
MX = {("example.com", "MX"): "10 mx.example.com."}


@pytest.mark.parametrize(
    ("records", "state"),
    [
        (MX | HERE, "good"),
        ({("example.com", "A"): "127.0.0.1"}, "good"),  # a domain without MX is its own
        (MX | ELSEWHERE, "unknown"),
        (MX, "bad"),
        ({}, "bad"),
        ({("example.com", "MX"): "0 ."}, "bad"),  # RFC 7505
    ],
)
def test_where_the_mail_of_a_domain_goes_is_told(
    set_up: SetUp, dns_server: tuple[str, dict[tuple[str, str], str]], records: dict[tuple[str, str], str], state: str
) -> None:
    address, served_records = dns_server
    served_records |= records
    set_up.options = ["--dns", address]
    status, facts, said = set_up.check()
    assert said == ""
    assert {each["code"]: each["state"] for each in facts["findings"]}["mx"] == state
    assert of_state(facts, "bad") == (["mx"] if state == "bad" else [])
    assert status == (1 if state == "bad" else 0)


def store(server: Server) -> list[str]:
    """Return all that is in a database, as SQL."""
    with contextlib.closing(sqlite3.connect(server.store.removeprefix("sqlite:///"))) as connection:
        return [*connection.iterdump()]


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
    "Odoo 16": old_odoo(OLD),
    "Odoo 16 with its addresses by name": both(old_odoo(OLD), setting(LOCAL_PARTS="info,support,catchall,bounce")),
    "Odoo 14, which stops no loop": old_odoo(OLD, 14, threshold="0"),
    "other mail is fetched": answer("fetchmail.server", "search_read", returns([SERVER | {"user": "x@other.example"}])),
}


@pytest.mark.parametrize("change", RIGHT.values(), ids=RIGHT)
def test_in_a_right_set_up_nothing_is_bad_and_nothing_is_left_in_the_database(set_up: SetUp, change: Break) -> None:
    change(set_up)
    stored = store(set_up.right)
    status, facts, said = set_up.check()
    assert (status, of_state(facts, "bad"), said) == (0, [], ""), facts
    assert store(set_up.right) == stored


@pytest.mark.parametrize(
    ("announced", "state"),
    [(http(100), "good"), (http(200), "unknown"), (b"", "unknown"), (b"x" * 10_000, "unknown"), (b"\0\n", "unknown")],
    ids=["100", "200", "silent", "no line", "no HTTP"],
)
def test_what_a_proxy_lets_through_is_asked_before_anything_is_sent(
    set_up: SetUp, announced: bytes, state: str
) -> None:
    set_up.announced = announced
    status, facts, _ = set_up.check()
    assert status == 0
    assert "proxy" in of_state(facts, state)


def test_what_stands_on_a_fault_is_left_out_and_all_else_is_told(set_up: SetUp) -> None:
    setting(PASSWORD="wrong")(set_up)
    _, facts, _ = set_up.check()
    assert of_state(facts, "bad") == ["login"]
    assert {"key", "right-aliases", "addresses", "left-out", "loops"} <= {*facts["not_checked"]}
    assert {"journal", "hold", "size"} <= {*of_state(facts, "good")}
    assert {*facts["not_checked"]} | {each["code"] for each in facts["findings"]} <= {*CHECKS}


def test_every_wrong_setting_has_a_line(set_up: SetUp) -> None:
    set_up.settings |= {"PASSWORD": None, "WORKERS": "many", "HOLD": "/nowhere"}
    status, facts, said = set_up.check()
    assert (status, said) == (1, "")
    assert sorted(each["sentence"].split()[0] for each in facts["findings"]) == [
        "MAIL_GATEWAY_HOLD", "MAIL_GATEWAY_PASSWORD", "MAIL_GATEWAY_WORKERS",
    ]  # fmt: skip


def test_a_person_sees_a_line_for_each_finding_and_what_to_do(set_up: SetUp) -> None:
    alias(status="invalid", local_part="info\\[31m")(set_up)
    set_up.form = []
    status, screen, said = set_up.check()
    assert (status, said) == (1, "")
    assert all(len(line) <= 80 for line in screen.splitlines())
    assert "\nbad  alias-status" in screen
    assert "\n                      To do: Mend their default values" in screen
    assert "\nNot looked at" not in screen


def runs_as_installed() -> bool:
    """Tell whether root can run the desk as Debian has it: its Python can be entered by every user."""
    packages = [PYTHON, "-c", "import dotenv, requests, rich, tenacity"]
    return os.geteuid() == 0 and subprocess.run(packages, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not runs_as_installed(), reason="needs root, and apt-get install python3-rich and those of .ci/run")
def test_root_looks_as_the_user_whose_the_journal_is(set_up: SetUp) -> None:
    """The folders would be of no use to root; and what that user can't read is a finding."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(ROOT / "mailgate", folder / "mailgate")
        set_up.program[0], set_up.place = PYTHON, folder
        set_up.env_file = folder / "settings.env"
        set_up.settings |= {"JOURNAL": folder / "journal", "HOLD": folder / "held", "LOG": "syslog"}
        for part in ("journal", "held"):
            (folder / part).mkdir(mode=0o700)
            shutil.chown(folder / part, "nobody", "nogroup")
        password = folder / "password"
        password.write_text(KEY)
        password.chmod(0o400)
        set_up.settings |= {"PASSWORD": None, "PASSWORD_FILE": password}
        set_up.before.append(lambda: set_up.env_file.chmod(0o644))
        shutil.chown(password, "nobody")
        status, facts, said = set_up.check()
        assert (status, of_state(facts, "bad"), said) == (0, [], ""), facts
        assert {path.owner() for path in folder.glob("journal/*")} == {"nobody"}

        shutil.chown(password, "root")
        status, facts, said = set_up.check()
        assert (status, of_state(facts, "bad"), said) == (1, ["settings"], ""), facts


def test_the_page_names_every_code() -> None:
    (part,) = re.findall(r"(?ms)^## check$(.*?)^## ", (ROOT / "docs" / "admin.md").read_text())
    assert {*re.findall(r"`([a-z][a-z-]*)`", part.partition("codes")[2])} == {*CHECKS}


# --- a real Odoo --------------------------------------------------------------------------------------------------

FETCHES = {"name": "IMAP", "server_type": "imap", "server": "imap.example.com", "user": "info@example.com"}


def stop_all(odoo: Odoo) -> dict[str, Any]:
    odoo.set_parameter("mail.gateway.loop.threshold", "0")
    return {}


def fetch(odoo: Odoo) -> dict[str, Any]:
    odoo.call("fetchmail.server", "create", FETCHES | {"state": "done"})
    return {}


def mark_invalid(odoo: Odoo) -> dict[str, Any]:
    (found,) = odoo.search("mail.alias", [("alias_name", "=", "jobs")], "alias_status")
    odoo.call("mail.alias", "write", [found["id"]], {"alias_status": "invalid"})
    return {}


# The codes that are found, and what returns settings; what is changed in the database stays for the next ones.
WITH_ODOO: dict[str, tuple[list[str], Callable[[Odoo], dict[str, Any]]]] = {
    "an administrator": ([], lambda odoo: {}),
    "a wrong password": (["login"], lambda odoo: {"PASSWORD": "wrong"}),
    "another database": (["database"], lambda odoo: {"DATABASE": "other"}),
    "an internal user": (["right-aliases"], lambda odoo: new_user(odoo, "base.group_user")),
    "the Settings right alone": (["right-records"], lambda odoo: new_user(odoo, "base.group_system")),
    "a loop threshold of 0": (["loops"], stop_all),
    "Odoo fetches the same mail": (["loops", "fetchmail"], fetch),
    "an alias in trouble": (["alias-status", "loops", "fetchmail"], mark_invalid),
}


def without(key: str) -> Callable[[Odoo], dict[str, Any]]:
    """Return what takes a parameter out."""

    def change(odoo: Odoo) -> dict[str, Any]:
        rows = odoo.search("ir.config_parameter", [("key", "=", key)], "key")
        odoo.call("ir.config_parameter", "unlink", [row["id"] for row in rows])
        return {}

    return change


NAMES = "info,support,jobs,broken,dangling,countries,catchall,bounce"  # as `settings` writes them
WITH_ODOO_14: dict[str, tuple[list[str], Callable[[Odoo], dict[str, Any]]]] = {
    "an administrator": ([], lambda odoo: {}),
    "addresses by name": ([], lambda odoo: {"LOCAL_PARTS": NAMES}),
    "an address by name that is not there": (["wider"], lambda odoo: {"LOCAL_PARTS": f"{NAMES},nobody"}),
    "addresses by name without one": (["left-out"], lambda odoo: {"LOCAL_PARTS": NAMES.replace("info,", "")}),
    "a wrong password": (["login"], lambda odoo: {"PASSWORD": "wrong"}),
    "another database": (["database"], lambda odoo: {"DATABASE": "other"}),
    "an internal user": (["right-records"], lambda odoo: new_user(odoo, "base.group_user")),
    "the Settings right alone": (["right-messages", "right-records"], lambda odoo: new_user(odoo, "base.group_system")),
    "a loop threshold of 0, which 14 does not know": ([], stop_all),
    "Odoo fetches the same mail": (["fetchmail"], fetch),
    "no catchall": (["catchall", "fetchmail"], without("mail.catchall.alias")),
    "no alias domain": (["alias-domain", "fetchmail"], without("mail.catchall.domain")),
}


@pytest.fixture
def checked(set_up: SetUp) -> Callable[[Odoo, str, dict[str, Any]], list[str]]:
    """What is bad in an Odoo with settings, by the codes; the settings of a table's rows do not stay."""
    right = {**set_up.settings}

    def check(odoo: Odoo, name: str, settings: dict[str, Any]) -> list[str]:
        own = {"URL": odoo.url, "DATABASE": odoo.database, "LOGIN": odoo.login, "PASSWORD": odoo.password}
        set_up.settings = right | own | settings
        there = before(odoo)
        status, facts, said = set_up.check()
        assert before(odoo) == there, f"{name}: it has left something"
        found = of_state(facts, "bad")
        assert (status, said) == (bool(found), ""), name
        unknown = [each["sentence"] for each in facts["findings"] if each["state"] == "unknown"]
        assert not [each for each in unknown if "doesn't exist" in each or "Invalid field" in each], name
        return found

    return check


Checked = Callable[[Odoo, str, dict[str, Any]], list[str]]


@pytest.mark.odoo
def test_in_a_real_odoo_the_fault_is_named_and_only_it(odoo: Odoo, checked: Checked) -> None:
    found = {name: checked(odoo, name, change(odoo)) for name, (_, change) in WITH_ODOO.items()}
    assert found == {name: codes for name, (codes, _) in WITH_ODOO.items()}


@pytest.mark.odoo
def test_in_a_real_odoo_14_the_fault_is_named_and_only_it(odoo14: Odoo, checked: Checked) -> None:
    found = {name: checked(odoo14, name, change(odoo14)) for name, (_, change) in WITH_ODOO_14.items()}
    assert found == {name: codes for name, (codes, _) in WITH_ODOO_14.items()}
