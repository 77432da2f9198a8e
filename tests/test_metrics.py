"""What the service tells a monitor: metrics, health, and the alerts and the dashboard that are shipped for them."""

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support import mailboxes
from support.disk import Disk
from support.endpoint import Answer, Endpoint, cut, fault, returns
from support.endpoint import http as answers_http
from support.gateway import PASSWORD
from support.journal import new_database
from support.mailboxes import Mailboxes
from support.mta import free_port, wait_until
from support.pages import ROOT, anchors, rows_below
from support.postgresql import PostgreSQL
from support.service import Service, running

from mailgate import __version__
from mailgate.admin import audit
from mailgate.metrics import MAX_CLIENTS, MAX_COUNTED_FILES
from mailgate.service.connection import MAX_RECIPIENTS
from mailgate.service.service import ANSWERED_SECONDS, MAX_WAITING

UNITS = ROOT / "systemd"
GUIDE = (UNITS / "README.md").read_text()
MESSAGE = b"Message-ID: <1@outside.test>\r\nSubject: hello\r\n\r\nbody\r\n"
DOMAIN = {"id": 1, "name": "example.com", "bounce_email": "", "catchall_email": "", "default_from_email": ""}
OF_MAILBOXES = "mail_gateway_mailbox_"
A_LIST: list[Answer] = [returns([DOMAIN]), returns([]), returns(False)]  # of one domain, no alias and no further domain
NO_LIST = returns({"server_version_info": [13, 0]})

Values = dict[tuple[str, ...], float]


def values(text: str) -> Values:
    """Return the metrics by name and labels' values."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


def got(port: int, path: str) -> tuple[int, str]:
    """Return the status and the body of a page of the service's."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def asked(port: int) -> Values:
    status, text = got(port, "/metrics")
    assert status == 200
    return values(text)


def names(found: Values) -> set[str]:
    """Return the names of metrics, without the parts of histograms and what the library adds."""
    return {re.sub("_(sum|count|bucket)$", "", name) for name, *_ in found if not name.endswith("_created")}


def documented() -> set[str]:
    """Return the names that the README has."""
    return {name for cells in rows_below(GUIDE, "metric") for name in re.findall(r"`(\w+)", cells[0])}


def promtool(*arguments: str | Path, text: str = "") -> None:
    """Have promtool check something, where there is one (Debian's package prometheus)."""
    program = shutil.which("promtool")
    if program:
        done = subprocess.run([program, *arguments], input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


class Monitored(NamedTuple):
    """A service with a port for metrics and a hold folder; ``folder`` is the test's."""

    service: Service
    port: int
    endpoint: Endpoint
    folder: Path

    def wait_until_ready(self) -> None:
        wait_until(lambda: got(self.port, "/readyz") == (200, "ok\n"), "the service to be ready")

    def wait_until_not_ready(self, *reasons: str) -> None:
        wanted = (503, "".join(f"{reason}\n" for reason in reasons))
        wait_until(lambda: got(self.port, "/readyz") == wanted, f"the service to be not ready: {reasons}")


@pytest.fixture
def monitored(tmp_path: Path, endpoint: Endpoint) -> Monitored:
    """It is not started yet."""
    port, hold = free_port(), tmp_path / "hold"
    hold.mkdir(mode=0o700)
    service = Service(tmp_path, URL=endpoint.url, HOLD=hold, METRICS=f"127.0.0.1:{port}")
    return Monitored(service, port, endpoint, tmp_path)


# --- metrics ---


def test_the_metrics_are_those_of_the_readme_and_grow(monitored: Monitored) -> None:
    port = monitored.port
    with running(monitored.service) as service:
        monitored.wait_until_ready()
        before = asked(port)
        with service.client() as client:
            client.begin("info@example.com", "nobody@elsewhere.test")
            assert client.data(MESSAGE) == ["250 2.0.0 delivered"]
            after = asked(port)
    assert names(after) == {name for name in documented() if not name.startswith(OF_MAILBOXES)}
    grown = {
        key: value - before.get(key, 0)
        for key, value in after.items()
        if not re.search("^process_|_(created|bucket|sum)$", key[0])
    }
    assert {key: value for key, value in grown.items() if value} == {
        ("mail_gateway_messages_total", "delivered"): 1,
        ("mail_gateway_rejected_recipients_total", "unknown_recipient"): 1,
        ("mail_gateway_received_bytes_total",): len(MESSAGE),
        ("mail_gateway_step_duration_seconds_count", "receive"): 1,
        ("mail_gateway_step_duration_seconds_count", "wait"): 1,
        ("mail_gateway_step_duration_seconds_count", "deliver"): 1,
        ("mail_gateway_connections",): 1,
    }
    assert after["mail_gateway_build_info", __version__] == 1
    assert after[("process_resident_memory_bytes",)] > 2**20


def test_the_names_are_as_prometheus_wants_them(monitored: Monitored) -> None:
    """Documentation: "Metric and label naming". promtool knows more of its rules."""
    with running(monitored.service) as service, service.client() as client:
        assert client.deliver(MESSAGE, "info@example.com") == ["250 2.0.0 delivered"]
        _, text = got(monitored.port, "/metrics")
    promtool("check", "metrics", text=text)
    for family in text_string_to_metric_families(text):
        if family.name.endswith("_created"):  # the library's
            continue
        assert family.documentation
        assert re.fullmatch("(mail_gateway|process)(_[a-z]+)+", family.name)
        samples = {sample.name for sample in family.samples}
        assert family.type != "counter" or all(name.endswith("_total") for name in samples), samples
        assert family.type == "counter" or not any(name.endswith("_total") for name in samples), samples
        assert family.type != "histogram" or family.name.endswith(("_seconds", "_bytes"))


def test_the_held_messages_are_counted_when_somebody_asks(monitored: Monitored) -> None:
    key, new = ("mail_gateway_held_messages",), monitored.folder / "hold/new"
    monitored.service.runs_first("from mailgate import metrics; metrics.MAX_COUNTED_FILES = 3")
    with running(monitored.service):
        assert asked(monitored.port)[key] == 0
        new.mkdir()
        for number in range(5):
            (new / f"{number}.eml").touch()
            assert asked(monitored.port)[key] == min(number + 1, 3)
        shutil.rmtree(new.parent)
        assert key not in asked(monitored.port)
    assert f"{MAX_COUNTED_FILES:,} at the most" in GUIDE


def test_without_a_hold_folder_nothing_is_counted(monitored: Monitored) -> None:
    with running(monitored.service, HOLD=None):
        assert "mail_gateway_held_messages" not in names(asked(monitored.port))


def test_the_alias_lists_age_is_there(tmp_path: Path, endpoint: Endpoint) -> None:
    port = free_port()
    key = ("mail_gateway_alias_list_read_timestamp_seconds",)
    with running(Service(tmp_path, URL=endpoint.url), METRICS=f"127.0.0.1:{port}") as service:
        service.wait_for("the alias list can't be read")
        assert asked(port)[key] == 0
        endpoint.version, endpoint.answers = returns({"server_version_info": [19, 0]}), A_LIST.copy()
        began = time.time()
        service.send_signal(signal.SIGHUP)
        service.wait_for("the alias list is read")
        wait_until(lambda: asked(port)[key], "the age of the list")
        assert began <= asked(port)[key] <= time.time()


def assert_closed(client: socket.socket) -> None:
    """Wait until the other end has closed a connection."""
    with contextlib.suppress(ConnectionError):
        while client.recv(2**16):
            pass


@pytest.mark.parametrize("text", [b"", b"GET /metrics HTTP/1.0\r\n", b"GET"])
def test_a_client_of_the_metrics_who_says_too_little_is_cut_off(
    tmp_path: Path, endpoint: Endpoint, text: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """He has five seconds; here it is a half. More than a few at a time are turned away at once."""
    port = free_port()
    service = Service(tmp_path, URL=endpoint.url, METRICS=f"127.0.0.1:{port}")
    service.runs_first("from mailgate import metrics; metrics.CLIENT_TIMEOUT_SECONDS = 0.5")
    with running(service), contextlib.ExitStack() as closing:
        for _ in range(2 * MAX_CLIENTS):
            client = closing.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.settimeout(30)
            with contextlib.suppress(ConnectionError):  # turned away
                client.sendall(text)
            closing.callback(assert_closed, client)
    with running(service), socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(30)
        with contextlib.suppress(ConnectionError):
            while True:  # a bit at a time
                client.sendall(b"X")
                time.sleep(0.1)
        assert asked(port)
    assert "Traceback" not in capfd.readouterr().err


def test_nothing_waits_while_a_client_does_not_read_its_answers(tmp_path: Path, endpoint: Endpoint) -> None:
    port = free_port()
    endpoint.answers = [cut]  # to be told in many words
    with (
        running(Service(tmp_path, URL=endpoint.url), METRICS=f"127.0.0.1:{port}") as service,
        service.client() as client,
    ):
        client.begin(*[f"a{number}@example.com" for number in range(MAX_RECIPIENTS)])
        assert client.say("DATA").startswith("354 ")
        client.send(MESSAGE + b".\r\n")
        wait_until(lambda: asked(port)["mail_gateway_messages_total", "cut_off"], "the ending")
        wait_until(lambda: not asked(port)[("mail_gateway_delivering_messages",)], "the end of the call")
        assert asked(port)[("mail_gateway_waiting_messages",)] == 0


def test_the_metrics_may_be_a_file_with_names_that_node_exporter_does_not_have(monitored: Monitored) -> None:
    """node_exporter has process metrics of its own, without a prefix, and drops a second one of a name."""
    path = monitored.folder / "mail_gateway.prom"
    with running(monitored.service):
        over_http = names(asked(monitored.port))
    with running(monitored.service, METRICS=path):
        wait_until(path.exists, "the file")  # it is there all at once
        written = path.read_text()
    assert values(written)["mail_gateway_messages_total", "delivered"] == 0
    assert names(values(written)) == {re.sub("^process_", "mail_gateway_process_", name) for name in over_http}
    promtool("check", "metrics", text=written)


def test_a_file_that_cannot_be_written_is_in_the_log(tmp_path: Path, endpoint: Endpoint) -> None:
    with running(Service(tmp_path, URL=endpoint.url), METRICS=tmp_path / "missing/x.prom") as service:
        service.wait_for("the metrics can't be written: ")
        with service.client() as client:
            assert client.deliver(MESSAGE, "info@example.com") == ["250 2.0.0 delivered"]


def read_mailboxes(folder: Path, metrics: object) -> Mailboxes:
    """Return the process of a mailbox whose server is away. It is not started yet."""
    password = folder / "password"
    password.touch(0o600)
    password.write_text(PASSWORD)
    table = {"name": "task", "server": f"imap://127.0.0.1:{free_port()}", "login": "a", "password_file": password}
    found = Mailboxes(folder, table, URL="http://127.0.0.1:9")
    found.top["metrics"] = metrics
    return found


def test_the_mailboxes_have_metrics_of_their_own(tmp_path: Path) -> None:
    port = free_port()
    with mailboxes.running(read_mailboxes(tmp_path, f"127.0.0.1:{port}")) as process:
        process.wait_for("mailbox task: network: ")
        found = asked(port)
    ours = {name for name in documented() if name.startswith(OF_MAILBOXES)}
    assert ours < names(found) < documented()
    assert {key: value for key, value in found.items() if key[0] in ours} == {
        ("mail_gateway_mailbox_ready", "task"): 0,
        ("mail_gateway_mailbox_token_refused", "task"): 0,
        ("mail_gateway_mailbox_waiting_messages", "task"): 0,
        ("mail_gateway_mailbox_read_timestamp_seconds", "task"): 0,
    }


def test_the_metrics_of_the_mailboxes_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mail_gateway_mailboxes.prom"
    with mailboxes.running(read_mailboxes(tmp_path, path)):
        wait_until(path.exists, "the file")
        text = path.read_text()
    promtool("check", "metrics", text=text)
    assert ("mail_gateway_mailbox_ready", "task") in values(text)


# --- health ---

SETTINGS_WRONG, STATE_UNWRITABLE, DATABASE_SILENT = REASONS = [
    cells[0].strip("`") for cells in rows_below(GUIDE, "reason")
]
DOWN = fault(1, "psycopg2.OperationalError: could not connect to server")
DENIED = fault(3, "Access Denied")
LISTED = returns({"server_version_info": [19, 0]})


def test_a_service_that_works_is_alive_and_ready(monitored: Monitored) -> None:
    with running(monitored.service):
        assert got(monitored.port, "/healthz") == (200, "ok\n")
        monitored.wait_until_ready()
        assert asked(monitored.port)[("mail_gateway_ready",)] == 1
        assert [got(monitored.port, path)[0] for path in ("/", "/ready", "/metrics/", "/readyz?x")] == [404] * 3 + [200]


def test_every_reason_is_one_of_the_readme_word_for_word(monitored: Monitored) -> None:
    monitored.endpoint.version = cut
    with running(monitored.service) as service:
        monitored.wait_until_not_ready(DATABASE_SILENT)
        service.write_settings(WORKERS="0")
        service.send_signal(signal.SIGHUP)
        monitored.wait_until_not_ready(SETTINGS_WRONG, DATABASE_SILENT)
        Path(str(service.settings["JOURNAL"])).rename(monitored.folder / "elsewhere")
        monitored.wait_until_not_ready(*REASONS)
        assert got(monitored.port, "/healthz") == (200, "ok\n")
        assert asked(monitored.port)[("mail_gateway_ready",)] == 0
    assert f" {ANSWERED_SECONDS:.0f} seconds" in DATABASE_SILENT


def test_what_is_mended_is_ready_again(monitored: Monitored) -> None:
    state, elsewhere = Path(str(monitored.service.settings["JOURNAL"])), monitored.folder / "elsewhere"
    with running(monitored.service) as service:
        monitored.wait_until_ready()
        state.rename(elsewhere)
        monitored.wait_until_not_ready(STATE_UNWRITABLE)
        elsewhere.rename(state)
        monitored.wait_until_ready()
        service.write_settings(WORKERS="0")
        service.send_signal(signal.SIGHUP)
        monitored.wait_until_not_ready(SETTINGS_WRONG)
        service.write_settings()
        service.send_signal(signal.SIGHUP)
        monitored.wait_until_ready()


def test_a_journal_without_space_is_not_ready(monitored: Monitored, disk: Disk) -> None:
    monitored.service.settings["JOURNAL"] = disk.folder("journal")
    with running(monitored.service):
        monitored.wait_until_ready()
        disk.fill()
        monitored.wait_until_not_ready(STATE_UNWRITABLE)
        disk.free()
        monitored.wait_until_ready()


@pytest.mark.parametrize(
    ("version", "answers", "is_ready"),
    [
        (NO_LIST, [], True),  # an older Odoo, whose list is not read
        (LISTED, A_LIST, True),
        (LISTED, [returns([])], True),  # our user sees none of it
        (LISTED, [DENIED], True),  # our user may deliver, and not read the list
        (LISTED, [DOWN], False),  # the server answers, its database does not
        (LISTED, [cut], False),
        (cut, [], False),
        (returns("x")[:-20], [], False),
        (answers_http(502), [], False),
        (answers_http(404), [], False),  # a web server that is not the database's
    ],
)
def test_what_the_reading_of_the_alias_list_hears_decides(
    monitored: Monitored, version: Answer, answers: list[Answer], is_ready: bool
) -> None:
    monitored.endpoint.version, monitored.endpoint.answers = version, answers.copy()
    with running(monitored.service) as service:
        service.wait_for("the alias list ")
        assert got(monitored.port, "/readyz")[0] == (200 if is_ready else 503)


def test_an_answer_to_a_delivery_counts_for_a_while(monitored: Monitored) -> None:
    monitored.service.runs_first("from mailgate.service import service; service.ANSWERED_SECONDS = 5.0")
    silent = DATABASE_SILENT.replace("300", "5")
    monitored.endpoint.version = cut
    with running(monitored.service), monitored.service.client() as client:
        monitored.wait_until_not_ready(silent)
        assert client.deliver(MESSAGE, "info@example.com") == ["250 2.0.0 delivered"]
        monitored.wait_until_ready()
        monitored.wait_until_not_ready(silent)
        monitored.endpoint.answers = [DOWN]
        assert client.deliver(MESSAGE.replace(b"<1@", b"<2@"), "info@example.com")[0].startswith("451 4.3.2")
        assert client.deliver(b"", "info@example.com")[0].startswith("554 5.6.0")  # without a question
        assert got(monitored.port, "/readyz") == (503, f"{silent}\n")


def test_a_stranger_who_asks_makes_us_ask_nobody(monitored: Monitored) -> None:
    monitored.endpoint.version = cut
    with running(monitored.service) as service:
        service.wait_for("the alias list can't be read")
        before = len(monitored.endpoint.requests)
        for path in ["/readyz", "/healthz", "/metrics"] * 20:
            got(monitored.port, path)
        assert len(monitored.endpoint.requests) == before


def test_a_stranger_who_asks_makes_us_ask_the_journal_s_server_seldom(
    monitored: Monitored, journal_server: PostgreSQL
) -> None:
    place = new_database(journal_server, monitored.folder)
    name = str(place["JOURNAL"]).rpartition("/")[2]
    journal_server.sql(f"alter database {name} set log_statement = 'all'")
    with running(monitored.service, **place):
        monitored.wait_until_ready()
        for path in ["/readyz", "/metrics"] * 30:
            assert got(monitored.port, path)[0] == 200
    assert 1 <= journal_server.log.read_text().count("pg_try_advisory_lock") < 10


# --- alerts and dashboard ---

AUDITED = re.sub("(?m)^#.*$", "", audit.METRICS.format(lost=0, doubled=0, at=0))  # by node_exporter
RULES = UNITS / "prometheus.rules.yml"
DASHBOARD = UNITS / "grafana.json"
OTHERS = {"up", "node_textfile_mtime_seconds"}  # Prometheus' own of each target, and node_exporter's of each textfile
WORDS = {"and", "or", "unless", "by", "without"}  # of PromQL, beside its functions


COLUMNS = 24  # of a dashboard


def thing(required: str, **properties: Any) -> dict[str, Any]:
    """Return the schema of an object, which must have what ``required`` names."""
    return {"type": "object", "required": required.split(), "properties": properties}


def several(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": items}


def matching(pattern: str) -> dict[str, str]:
    return {"type": "string", "pattern": pattern}


TEXT = matching(".")
WHOLE, POSITIVE = ({"type": "integer", "minimum": minimum} for minimum in (0, 1))
SOURCE = {"const": {"type": "prometheus", "uid": "${datasource}"}}
TARGET = thing("refId datasource expr", refId=matching("^[A-Z]$"), datasource=SOURCE, expr=TEXT, legendFormat=TEXT)
PANEL = thing(
    "id type title datasource gridPos fieldConfig targets",
    id=POSITIVE,
    type={"enum": ["stat", "timeseries"]},
    title=TEXT,
    datasource=SOURCE,
    gridPos=thing("x y w h", x=WHOLE, y=WHOLE, w=POSITIVE, h=POSITIVE),
    fieldConfig=thing("defaults overrides", defaults=thing("unit", unit=TEXT), overrides={"type": "array"}),
    targets=several(TARGET),
)
# As "Dashboard JSON model" in Grafana's documentation has it, from version 9 on. The id is Grafana's to give.
DASHBOARD_SCHEMA = thing(
    "uid title schemaVersion version time templating panels",
    id=False,
    uid=matching("^[a-zA-Z0-9_-]{1,40}$"),
    title=TEXT,
    schemaVersion={"type": "integer", "minimum": 36},
    version=WHOLE,
    time=thing("from to", **{"from": TEXT, "to": TEXT}),
    templating=thing("list", list=several(thing("name type query", name=TEXT, type={"enum": ["datasource", "query"]}))),
    panels=several(PANEL),
)


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    assert group.keys() == {"name", "rules"}
    found: list[dict[str, Any]] = group["rules"]
    return found


def named(expression: str) -> set[str]:
    """Return the metrics that an expression of PromQL names."""
    without_labels = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(by|without) \([^)]*\)", "", expression)
    return set(re.findall(r"\b[a-z_]\w*\b(?! *\()", without_labels)) - WORDS


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the samples that a running service has after a delivery, over HTTP and in a textfile."""
    folder = tmp_path_factory.mktemp("exposed")
    port, path, hold = free_port(), folder / "mail_gateway.prom", folder / "hold"
    hold.mkdir(mode=0o700)
    endpoint = Endpoint()
    with contextlib.closing(endpoint):
        service = Service(folder, URL=endpoint.url, HOLD=hold)
        with running(service, METRICS=f"127.0.0.1:{port}"), service.client() as client:
            client.begin("info@example.com", "nobody@elsewhere.test")
            client.data(MESSAGE)
            over_http = asked(port)
        with running(service, METRICS=path):
            wait_until(path.exists, "the file")
            in_file = values(path.read_text())
    of_mailboxes = read_mailboxes(folder, f"127.0.0.1:{free_port()}")
    with mailboxes.running(of_mailboxes):
        in_process = asked(int(str(of_mailboxes.top["metrics"]).rpartition(":")[2]))
    return {name for name, *_ in over_http | in_file | in_process}


def test_the_alerts_are_rules_that_prometheus_takes(exposed: set[str]) -> None:
    promtool("check", "rules", RULES)
    for rule in rules():
        assert (
            {"alert", "expr", "labels", "annotations"}
            <= rule.keys()
            <= {"alert", "expr", "for", "labels", "annotations"}
        )
        assert re.fullmatch("MailGateway([A-Z][a-z]+)+", rule["alert"])
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
        assert rule["labels"].keys() == {"severity"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert named(rule["expr"])
        assert named(rule["expr"]) <= exposed | OTHERS | named(AUDITED)
    assert len({rule["alert"] for rule in rules()}) == len(rules()) <= 10


def test_each_alert_says_what_to_do_and_where_it_is_written() -> None:
    for rule in rules():
        notes = rule["annotations"]
        assert notes.keys() == {"summary", "description", "runbook"}
        assert all(notes[key].endswith(".") for key in ("summary", "description"))
        ((path, anchor),) = re.findall("^/opt/mail-gateway/(.*)#(.*)$", notes["runbook"])
        assert anchor in anchors((ROOT / path).read_text())


def test_the_alerts_of_the_readme_are_those_of_the_file() -> None:
    shipped = [[f"`{rule['alert']}`", *map(rule["annotations"].get, ("summary", "description"))] for rule in rules()]
    assert rows_below(GUIDE, "alert") == shipped


def test_an_alert_comes_while_half_of_the_places_are_free() -> None:
    (rule,) = [rule for rule in rules() if rule["alert"] == "MailGatewayQueueLong"]
    assert rule["expr"] == f"mail_gateway_waiting_messages > {MAX_WAITING // 2}"


FILE = 'node_textfile_mtime_seconds{file="/var/lib/node/mail_gateway.prom"}'
READ = "mail_gateway_alias_list_read_timestamp_seconds"
ACCESS_DENIED = 'mail_gateway_messages_total{outcome="access_denied"}'
BOX_READY, BOX_TOKEN, BOX_WAITS = (
    f'mail_gateway_mailbox_{name}{{mailbox="task"}}' for name in ("ready", "token_refused", "waiting_messages")
)
# What a series has each minute, in promtool's notation, and which alerts there are after half an hour.
SCENARIOS = [
    ({'up{job="mail-gateway"}': "1x30", "mail_gateway_ready": "1x30", "mail_gateway_held_messages": "0x30"}, []),
    ({'up{job="mail-gateway"}': "0x30"}, ["MailGatewayDown"]),
    ({'up{job="another"}': "0x30"}, []),
    ({FILE: "0+60x30"}, []),
    ({FILE: "0+60x25 1500x5"}, ["MailGatewayDown"]),  # not written for five minutes
    ({"mail_gateway_ready": "0x30"}, ["MailGatewayNotReady"]),
    ({"mail_gateway_ready": "1x26 0x4"}, []),  # for four minutes
    ({ACCESS_DENIED: "0x25 1x5"}, ["MailGatewayFailures"]),
    ({ACCESS_DENIED: "7x30", 'mail_gateway_messages_total{outcome="no_answer"}': "0+1x30"}, []),
    ({"mail_gateway_held_messages": "2x30"}, ["MailGatewayMailHeld"]),
    ({READ: "0+60x30"}, []),
    ({READ: "60x30"}, ["MailGatewayAliasListOld"]),
    ({READ: "0x30"}, []),  # never read
    ({"mail_gateway_waiting_messages": "51x30"}, ["MailGatewayQueueLong"]),
    ({"mail_gateway_waiting_messages": "50x30"}, []),
    ({"mail_gateway_audit_lost": "1x30", "mail_gateway_audit_doubled": "0x30"}, ["MailGatewayAudit"]),
    ({"mail_gateway_audit_lost": "0x30", "mail_gateway_audit_doubled": "1x30"}, ["MailGatewayAudit"]),
    ({"mail_gateway_audit_lost": "0x30", "mail_gateway_audit_doubled": "0x30"}, []),
    ({BOX_READY: "1x30", BOX_TOKEN: "0x30", BOX_WAITS: "0x30"}, []),
    ({BOX_READY: "0x30", BOX_TOKEN: "0x30"}, ["MailGatewayMailboxNotReady"]),
    ({BOX_READY: "0x10 1x4 0x15", BOX_TOKEN: "0x30"}, []),  # for fourteen minutes
    ({BOX_READY: "0x30", BOX_TOKEN: "1x30"}, ["MailGatewayMailboxTokenRefused"]),
    ({BOX_READY: "0x30", BOX_TOKEN.replace("task", "jobs"): "0x30"}, ["MailGatewayMailboxNotReady"]),
    ({BOX_WAITS: "1x30"}, ["MailGatewayMailboxWaits"]),
    ({BOX_WAITS: "9x20 0x1 9x9"}, []),
]


def test_each_alert_comes_when_it_should_and_not_else(tmp_path: Path) -> None:
    """promtool evaluates them, where there is one."""
    alerts = [rule["alert"] for rule in rules()]
    assert {alert for _, coming in SCENARIOS for alert in coming} == set(alerts)
    tests = []
    for series, coming in SCENARIOS:
        queries = [
            {"expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)', "eval_time": "30m"}
            | {"exp_samples": [{"labels": "{}", "value": int(alert in coming)}]}
            for alert in alerts
        ]
        given = [{"series": name, "values": each} for name, each in series.items()]
        tests.append({"interval": "1m", "input_series": given, "promql_expr_test": queries})
    path = tmp_path / "tests.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", path)


def test_the_dashboard_is_one_that_grafana_takes_and_shows_what_there_is(exposed: set[str]) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    jsonschema.validate(dashboard, DASHBOARD_SCHEMA)
    variables = {variable["name"] for variable in dashboard["templating"]["list"]} | {"__rate_interval"}
    assert set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text())) - {"__all"} <= variables

    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        columns, lines = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(column, line) for column in columns for line in lines}
        assert columns.stop <= COLUMNS
        assert not cells & taken, panel["title"]
        taken |= cells
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert named(target["expr"])
            assert named(target["expr"]) <= exposed
