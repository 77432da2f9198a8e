"""The units as shipped, and the service as systemd starts, reloads and stops it; also as others do."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.endpoint import Endpoint, Gate
from support.gateway import PASSWORD, Gateway
from support.mailboxes import Mailboxes
from support.mta import wait_until
from support.pages import ROOT, page, rows_below
from support.service import Client, Service, running

from mailgate import ENV_FILE
from mailgate.mailboxes import __main__ as mailboxes
from mailgate.mailboxes import config
from mailgate.service.__main__ import MAX_DESCRIPTORS
from mailgate.service.service import STOP_WITHIN_SECONDS
from mailgate.settings import HOLD, JOURNAL, VARIABLES

UNITS = ROOT / "systemd"
UNIT = UNITS / "mail-gateway-lmtp.service"
OF_MAILBOXES = UNITS / "mail-gateway-mailboxes.service"
RESIDENT = pytest.mark.parametrize("unit", [UNIT, OF_MAILBOXES], ids=lambda unit: unit.stem)
SOCKETS = sorted(UNITS.glob("*.socket"))
GUIDE = (UNITS / "README.md").read_text()
INSTALLED = Path("/opt/mail-gateway/systemd/mail-gateway-mailboxes")
MESSAGE = b"Message-ID: <1@outside.test>\r\nSubject: hello\r\n\r\nbody\r\n"


def options(unit: Path) -> dict[str, list[str]]:
    """Return a unit's options, each with the values of its lines."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"(?m)^(\w+)=(.*)$", unit.read_text()):
        found.setdefault(name, []).append(value)
    return found


def option(unit: Path, name: str) -> str:
    (value,) = options(unit)[name]
    return value


# --- the units ---


@pytest.fixture(scope="module")
def analyze() -> Callable[..., str]:
    """systemd-analyze, as a function of its arguments that returns what it prints; it needs no systemd that runs."""
    program = shutil.which("systemd-analyze")
    if not program:
        pytest.skip("no systemd-analyze: apt-get install systemd")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    if int(version) < 250:
        pytest.skip(f"systemd {version} knows neither %d nor security --offline")

    def run(*arguments: str | Path) -> str:
        done = subprocess.run([program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


def test_systemd_understands_every_line(analyze: Callable[..., str]) -> None:
    assert "mail-gateway" not in analyze("verify", *UNITS.glob("*.service"), *SOCKETS, *UNITS.glob("*.timer"))


@RESIDENT
def test_the_sandbox_is_as_hard_as_the_readme_says(analyze: Callable[..., str], unit: Path) -> None:
    (promised,) = re.findall(r"below (\d\.\d) of 10", GUIDE)
    analyze("security", "--offline=true", f"--threshold={float(promised) * 10 - 1:.0f}", unit)


@RESIDENT
def test_the_limits_are_those_that_the_program_needs(unit: Path) -> None:
    assert int(option(unit, "TimeoutStopSec")) > max(STOP_WITHIN_SECONDS, mailboxes.STOP_WITHIN_SECONDS)
    assert int(option(unit, "LimitNOFILE")) >= MAX_DESCRIPTORS
    assert option(unit, "RestartPreventExitStatus") == f"{os.EX_CONFIG}"
    assert option(unit, "Restart") == "on-failure"
    assert option(unit, "Type") == "notify"


def test_the_mailboxes_are_read_in_the_sandbox_of_the_service() -> None:
    """The same hardening, line by line; only what it needs of its own differs."""
    service, ours = options(UNIT), options(OF_MAILBOXES)
    own = {"Description", "Documentation", "ExecStart", "ExecReload", "SyslogIdentifier", "StateDirectory", "TasksMax"}
    own |= {"After", "Before", "Requires", "Wants", "ConditionPathExists"}
    assert {name: values for name, values in ours.items() if name not in own} == {
        name: values for name, values in service.items() if name not in own
    }


def test_without_mailboxes_their_unit_is_not_started() -> None:
    assert option(OF_MAILBOXES, "ConditionPathExists") == VARIABLES["MAILBOXES"].default


def test_the_paths_are_those_of_the_pages_and_of_the_program() -> None:
    folders = [f"/var/lib/{name}" for name in option(OF_MAILBOXES, "StateDirectory").split()]
    assert {HOLD, JOURNAL, config.FOLDER} <= set(folders)
    assert {f"/var/lib/{name}" for name in option(UNIT, "StateDirectory").split()} == set(folders) - {config.FOLDER}
    assert all(f"{path}" in page("docs/install.md") for path in [*folders, option(UNIT, "WorkingDirectory")])
    assert shlex.split(option(UNIT, "ExecStart"))[-2:] == ["--env-file", ENV_FILE]
    assert shlex.split(option(OF_MAILBOXES, "ExecStart"))[1:] == [f"{INSTALLED}", "--env-file", ENV_FILE, "run"]
    assert (ROOT / INSTALLED.relative_to(option(OF_MAILBOXES, "WorkingDirectory"))).is_file()
    listening = {option(unit, "FileDescriptorName"): option(unit, "ListenStream") for unit in SOCKETS}
    assert listening["lmtp"] == VARIABLES["LMTP"].default
    assert all(path in GUIDE for path in listening.values())


def test_the_table_in_the_readme_is_what_is_shipped() -> None:
    rows = [cells[0].strip("`") for cells in rows_below(GUIDE, "file")]
    files = [str(path.relative_to(UNITS)) for path in UNITS.rglob("*") if path.is_file()]
    assert sorted(rows) == sorted(set(files) - {"README.md"})


def test_what_the_readme_copies_is_there() -> None:
    named = re.findall(r"/opt/mail-gateway/(systemd/\S*)", GUIDE)
    assert named
    assert all(list(ROOT.glob(path)) for path in named)


# --- the process ---


def refusal(service: Service, **settings: object) -> str:
    """Return what the service says on standard error, when it does not start."""
    service.write_settings(**settings)
    done = subprocess.run(
        service.command,
        env=service.environ,
        pass_fds=service.descriptors,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (os.EX_CONFIG, "")
    (line,) = done.stderr.splitlines()
    assert PASSWORD not in line
    return line


# --- as systemd runs it ---

# What systemd does between fork and exec: the sockets from 3 on, and for which process they are (sd_listen_fds(3)).
HAND_OVER = """
import fcntl, os, sys
descriptors = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[1].split(",")]
for number, descriptor in enumerate(descriptors, 3):
    os.dup2(descriptor, number)
os.closerange(3 + len(descriptors), 1000)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(descriptors))}
os.execv(sys.argv[2], sys.argv[2:])
"""


class Systemd:
    """What systemd has for the service: its command, its sockets, its credential, and an ear for its state."""

    def __init__(self, folder: Path, url: str) -> None:
        self.sockets = {option(unit, "FileDescriptorName"): socket.socket(socket.AF_UNIX) for unit in SOCKETS}
        for name, listener in self.sockets.items():
            listener.bind(f"{folder}/{name}.sock")
            listener.listen()
        self.notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notifications.settimeout(60)
        credential = folder / "password"
        credential.write_text(PASSWORD)
        credential.chmod(0o400)

        self.service = service = Service(folder, URL=url, PASSWORD=None, LMTP=None)
        _, *arguments = shlex.split(option(UNIT, "ExecStart").replace(ENV_FILE, str(service.env_file)))
        service.descriptors = tuple(listener.fileno() for listener in self.sockets.values())
        numbers = ",".join(map(str, service.descriptors))
        service.command = [sys.executable, "-c", HAND_OVER, numbers, sys.executable, *arguments]
        service.environ |= dict(line.replace("%d", str(folder)).split("=", 1) for line in options(UNIT)["Environment"])
        service.environ["LISTEN_FDNAMES"] = ":".join(self.sockets)
        self.listen(f"{folder}/notify")

    def listen(self, address: str) -> None:
        """Have the service tell its state at a path, or at an abstract address that begins with @."""
        self.notifications.bind(address.replace("@", "\0"))
        self.service.environ["NOTIFY_SOCKET"] = address

    def state(self) -> dict[str, str]:
        """Return what the service tells next."""
        return dict(line.split("=", 1) for line in self.notifications.recv(4096).decode().splitlines())

    def close(self) -> None:
        for descriptor in (*self.sockets.values(), self.notifications):
            descriptor.close()


@pytest.fixture
def systemd(tmp_path: Path, endpoint: Endpoint) -> Iterator[Systemd]:
    with contextlib.closing(Systemd(tmp_path, endpoint.url)) as ours:
        yield ours


def test_mail_comes_through_the_socket_of_systemd_which_stays(systemd: Systemd, endpoint: Endpoint) -> None:
    with running(systemd.service) as service, service.client() as client:
        assert client.deliver(MESSAGE, "info@example.com") == ["250 2.0.0 delivered"]
    assert endpoint.messages[0].endswith(MESSAGE)
    Client(service.address, greet=False).close()


def test_the_pipe_finds_it_and_hands_over_unasked(
    systemd: Systemd, tmp_path: Path, endpoint: Endpoint, gateway: Gateway
) -> None:
    """The credentials in its environment, the journal's too, are no settings that make it another database's."""
    systemd.service.environ["MAIL_GATEWAY_JOURNAL_PASSWORD_FILE"] = f"{tmp_path}/password"
    with running(systemd.service) as service:
        arguments = ("--env-file", str(service.env_file), "--sender=a@b.test", "--", "info@example.com")
        environ = {"MAIL_GATEWAY_LMTP": f"{tmp_path}/lmtp.sock"}
        assert gateway.run(*arguments, message=b"Subject: x\n\nbody\n", environ=environ).out == b"2.0.0 delivered\n"
    assert endpoint.messages[0].endswith(b"\r\n\r\nbody\r\n")


def test_postfix_is_answered_at_the_other_socket(systemd: Systemd, tmp_path: Path) -> None:
    with running(systemd.service), Client(tmp_path / "socketmap.sock", greet=False) as client:
        for address, answer in {
            "info@example.com": b"19:OK info@example.com,",
            "x@other.test": b"9:NOTFOUND ,",
        }.items():
            client.send(b"%d:map %s," % (len(address) + 4, address.encode()))
            assert client.file.read(len(answer)) == answer


def test_who_comes_while_the_service_restarts_waits(systemd: Systemd, endpoint: Endpoint) -> None:
    gate = Gate()
    endpoint.answers = [gate]
    with running(systemd.service) as service, service.client() as first:
        assert first.begin("info@example.com") == ["250 2.1.5 one of ours"]
        assert first.say("DATA").startswith("354 ")
        first.send(MESSAGE + b".\r\n")
        gate.wait_for(1)
        assert systemd.state() == {"READY": "1"}
        service.send_signal(signal.SIGTERM)
        assert systemd.state() == {"STOPPING": "1"}
        second = service.client(greet=False)
        gate.opened.set()
        assert first.answer() == "250 2.0.0 delivered"
    with running(service), second:
        assert second.answer().startswith("220 ")
        assert second.say("LHLO localhost").startswith("250")
        again = MESSAGE.replace(b"<1@", b"<2@")
        assert second.deliver(again, "info@example.com") == ["250 2.0.0 delivered"]


@pytest.mark.parametrize("is_abstract", [False, True])
def test_systemd_is_told_the_state(systemd: Systemd, tmp_path: Path, is_abstract: bool) -> None:
    if is_abstract:
        systemd.notifications.close()
        systemd.notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        systemd.notifications.settimeout(60)
        systemd.listen(f"@{tmp_path}")
    with running(systemd.service) as service:
        assert systemd.state() == {"READY": "1"}
        before = time.monotonic_ns() // 1000
        service.send_signal(signal.SIGHUP)
        reloading = systemd.state()
        assert reloading.keys() == {"RELOADING", "MONOTONIC_USEC"}
        assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        assert systemd.state() == {"READY": "1"}
    assert systemd.state() == {"STOPPING": "1"}


@pytest.mark.parametrize("name", ["lmtp", "mail-gateway-socketmap.socket"])
def test_a_socket_that_it_would_not_listen_to_ends_it(systemd: Systemd, name: str) -> None:
    systemd.service.environ["LISTEN_FDNAMES"] = f"lmtp:{name}"
    assert refusal(systemd.service).startswith(f"mail-gateway-lmtp: can't listen: systemd hands over lmtp, {name};")


def test_a_reload_reads_the_file_and_keeps_the_credential(systemd: Systemd) -> None:
    with running(systemd.service) as service, service.client() as client:
        service.write_settings(ALIAS_DOMAINS="other.test")
        service.send_signal(signal.SIGHUP)
        service.wait_for("read anew")
        assert client.deliver(MESSAGE, "info@other.test") == ["250 2.0.0 delivered"]


# --- as others run it ---


def test_wrong_settings_end_it_with_a_line_that_names_them(tmp_path: Path) -> None:
    said = refusal(Service(tmp_path), WORKERS="0", LMTP="0.0.0.0:24", SOCKET_MODE="rw", CLIENTS="no-such-user")
    assert said.startswith("mail-gateway-lmtp: MAIL_GATEWAY_")
    names = {"URL", "LMTP", "SOCKET_MODE", "CLIENTS", "WORKERS"}
    assert set(re.findall(r"MAIL_GATEWAY_(\w+)", said)) == names


def test_a_missing_settings_file_ends_it(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.command[-1] += ".missing"
    assert refusal(service).endswith(f"{service.env_file}.missing can't be used: No such file or directory")


@pytest.mark.parametrize("name", ["LMTP", "SOCKETMAP", "METRICS"])
def test_a_port_that_another_has_ends_it(tmp_path: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        said = refusal(Service(tmp_path, URL="http://127.0.0.1:9"), **{name: address})
    assert said.startswith("mail-gateway-lmtp: can't listen: ")
    assert "in use" in said
    assert not list(tmp_path.glob("*.sock"))


def test_a_second_service_leaves_the_first_ones_socket_alone(service: Service) -> None:
    assert refusal(service) == "mail-gateway-lmtp: can't listen: another service listens there"
    with service.client() as client:
        assert client.deliver(MESSAGE, "info@example.com") == ["250 2.0.0 delivered"]


def test_of_many_that_start_beside_a_stale_socket_one_listens_and_the_others_say_so(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    service = Service(tmp_path, URL=endpoint.url)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(service.address))
    # each has seen that nobody answers before any goes on
    service.runs_first(
        "import os, time; from mailgate.service import listen; unlink = os.unlink;"
        "listen.os.unlink = lambda path: (time.sleep(1), unlink(path))"
    )
    service.write_settings()
    processes = [
        subprocess.Popen(service.command, env=service.environ, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    try:
        wait_until(lambda: sum(process.poll() == os.EX_CONFIG for process in processes) == 2, "two to end")
        (listening,) = [process for process in processes if process.poll() is None]
        wait_until(lambda: "is ready" in service.text(), "one to be ready")
        with service.client() as client:
            assert client.deliver(MESSAGE, "info@example.com") == ["250 2.0.0 delivered"]
        listening.send_signal(signal.SIGTERM)
        assert listening.wait(60) == 0
        assert not list(tmp_path.glob("lmtp.sock*"))
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_killed_services_socket_is_replaced_and_a_stopped_ones_is_gone(tmp_path: Path, endpoint: Endpoint) -> None:
    service = Service(tmp_path, URL=endpoint.url)
    service.start()
    assert service.stop(signal.SIGKILL) == -signal.SIGKILL
    assert service.address.is_socket()
    with running(service), service.client() as client:
        assert client.deliver(MESSAGE, "info@example.com") == ["250 2.0.0 delivered"]
    assert not service.address.exists()


@pytest.mark.parametrize(("mode", "permissions"), [(None, 0o600), ("0660", 0o660)])
def test_the_socket_has_its_mode(tmp_path: Path, endpoint: Endpoint, mode: str | None, permissions: int) -> None:
    with running(Service(tmp_path, URL=endpoint.url), SOCKET_MODE=mode) as service:
        assert service.address.stat().st_mode & 0o777 == permissions


def test_who_is_not_among_the_clients_is_turned_away(tmp_path: Path, endpoint: Endpoint) -> None:
    with running(Service(tmp_path, URL=endpoint.url), CLIENTS="nobody") as service:
        with service.client(greet=False) as client:
            assert client.answer() == "421 4.7.0 not admitted"
            assert client.answer() == ""
        service.wait_for(f"user id {os.getuid()} is not among MAIL_GATEWAY_CLIENTS")


def typed(name: str, folder: Path) -> Path:
    """Return a copy of what an operator types, which runs this checkout with the test's interpreter, as who runs it."""
    script = (UNITS / name).read_text().replace('[ "$(id -u)" != 0 ] ||', "true ||")
    copy = folder / name
    copy.write_text(re.sub("/opt/mail-gateway/venv/bin/python|/usr/bin/python3", sys.executable, script, count=1))
    copy.write_text(copy.read_text().replace("/opt/mail-gateway", str(ROOT)))
    return copy


@pytest.mark.parametrize("name", ["mail-gateway-admin", "mail-gateway-mailboxes"])
def test_what_is_typed_imports_nothing_from_where_root_stands(tmp_path: Path, name: str) -> None:
    """A folder of a stranger's may have a module of the same name."""
    (tmp_path / "argparse.py").write_text("raise SystemExit('a stranger')")
    done = subprocess.run(
        ["sh", typed(name, tmp_path), "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {name} ")


def test_the_mailboxes_are_read_as_systemd_starts_and_stops_them(tmp_path: Path) -> None:
    """A mailbox whose server is away keeps nobody from being ready; its password and the database's are credentials."""
    for name, text in {"password": PASSWORD, "task.password": "hunter2"}.items():
        (tmp_path / name).touch(0o400)
        (tmp_path / name).write_text(text)
    table: dict[str, object] = {
        "name": "task",
        "server": "imap://127.0.0.1:9",
        "login": "a",
        "password_file": "task.password",
    }
    own = Mailboxes(tmp_path, table, URL="http://127.0.0.1:9", PASSWORD=None)
    own.command()
    environ = dict(line.replace("%d", str(tmp_path)).split("=", 1) for line in options(OF_MAILBOXES)["Environment"])
    environ |= {"CREDENTIALS_DIRECTORY": str(tmp_path), "NOTIFY_SOCKET": f"{tmp_path}/notify"}
    _, _, *arguments = shlex.split(option(OF_MAILBOXES, "ExecStart").replace(ENV_FILE, f"{own.env_file}"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.bind(f"{tmp_path}/notify")
        notifications.settimeout(60)
        process = subprocess.Popen(
            ["sh", typed("mail-gateway-mailboxes", tmp_path), *arguments],
            env=own.environ | environ,
        )
        try:
            assert notifications.recv(4096) == b"READY=1"
            wait_until(lambda: "mailbox task: network: " in own.text(), "the trouble")
            process.send_signal(signal.SIGTERM)  # to the shell, which has become the program
            assert notifications.recv(4096) == b"STOPPING=1"
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
    assert "hunter2" not in own.text()
