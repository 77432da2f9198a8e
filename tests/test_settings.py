"""Settings: options, environment, settings file; everything wrong is said at once, and no secret."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.endpoint import Endpoint, http
from support.gateway import ENVIRONMENT, PASSWORD, PROGRAM, Gateway, changed

from mailgate import DEADLINE
from mailgate.addresses import Addresses
from mailgate.journal.sqlite import FILE, LOCK
from mailgate.outcome import Ended, Outcome
from mailgate.settings import MAX_SIZE, VARIABLES, Secret, build, read

REQUIRED = {"URL": "https://odoo.example.com", "DATABASE": "d", "LOGIN": "2", "PASSWORD": "s3cret"}


def wrong(**variables: str) -> str:
    with pytest.raises(Ended) as caught:
        build(REQUIRED | variables)
    assert caught.value.verdict.outcome is Outcome.SETTINGS
    assert "s3cret" not in repr(caught.value)
    return caught.value.verdict.cause


def test_the_defaults() -> None:
    settings = build(REQUIRED)
    assert settings._asdict() == {
        "url": "https://odoo.example.com",
        "database": "d",
        "login": "2",
        "password": "s3cret",
        "addresses": Addresses(),
        "model": "",
        "max_size": MAX_SIZE,
        "connect_timeout": 10,
        "read_timeout": 150,
        "patience": 30,
        "ca_file": "",
        "hold": settings.hold,  # depends on the machine
        "hold_loops": False,
        "journal": settings.journal,
        "journal_password": "",
        "keep_days": 30,
        "postmaster": "",
        "log": "syslog",
        "log_format": "text",
        "lmtp": "/run/mail-gateway/lmtp.sock",
        "socket_mode": 0o600,
        "clients": frozenset(),
        "socketmap": "",
        "workers": 2,
        "metrics": "",
        "mailboxes": "/etc/mail-gateway-mailboxes.toml",
    }
    assert "s3cret" not in f"{settings!r} {settings!s} {settings._asdict()} {settings.password!r}"


def test_a_name_of_an_earlier_version_still_counts(tmp_path: Path) -> None:
    """Of the journal, unless its folder has what that version kept there, which nobody reads any more."""
    path, old, other = tmp_path / "settings.env", tmp_path / "state", tmp_path / "journal"
    path.write_text(f"MAIL_GATEWAY_STATE={old}\n")
    path.chmod(0o600)
    old.mkdir()
    other.mkdir()
    variables, wrong_file = read({}, str(path))
    assert build(REQUIRED | variables, wrong_file).journal == str(old)
    (old / FILE).touch()
    (old / LOCK).touch()
    assert build(REQUIRED | variables, wrong_file).journal == str(old)
    (old / "0f").mkdir()
    assert wrong(**variables) == (
        "MAIL_GATEWAY_STATE names a folder of an earlier version: make another one for the journal, name it in "
        "MAIL_GATEWAY_JOURNAL, and remove MAIL_GATEWAY_STATE"
    )
    assert build(REQUIRED | variables | {"JOURNAL": str(other)}, wrong_file).journal == str(other)
    assert "MAIL_GATEWAY_JOURNAL is not a folder" in wrong(STATE=str(tmp_path / "nothing"))


def test_where_an_earlier_version_has_run_mail_waits_for_the_journal(gateway: Gateway, tmp_path: Path) -> None:
    """Else it would go on without one. The default folders are put elsewhere."""
    old, new = tmp_path / "default-state", tmp_path / "default-journal"
    old.mkdir()
    elsewhere = f"\nOLD_STATE, JOURNAL = {str(old)!r}, {str(new)!r}\n"
    gateway.program = changed(tmp_path / "here", {"settings.py": elsewhere})
    result = gateway.run("info@example.com", JOURNAL=None)
    assert result.ending == (75, "4.3.5", "settings")
    assert result.facts["cause"] == (
        f"MAIL_GATEWAY_JOURNAL is not set, and {new} is not there, which takes the place of {old}: run make install"
    )
    new.mkdir(mode=0o700)
    assert gateway.run("info@example.com", JOURNAL=None).ending == (0, "2.0.0", "delivered")
    assert (new / FILE).exists()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://mail_gateway@journal.example.com/journal",
        "postgres://mail_gateway@journal.example.com:5433/journal?sslmode=verify-full&sslrootcert=/etc/ssl/ca.pem",
        "postgresql://mail_gateway@one,two:5433/journal",
        "postgresql://mail_gateway@[::1]:5432/journal",
        "postgresql:///journal?host=/run/postgresql",
    ],
)
def test_a_journal_may_be_a_database(url: str, tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("s3cret\n")
    path.chmod(0o600)
    settings = build(REQUIRED | {"JOURNAL": url, "JOURNAL_PASSWORD_FILE": str(path)})
    assert (settings.journal, settings.journal_password) == (url, "s3cret")
    assert "s3cret" not in repr(settings)


def test_each_alias_domain_has_its_catchall_and_its_bounce_address() -> None:
    addresses = build(REQUIRED | {"ALIAS_DOMAINS": "a.test,b.test", "CATCHALL": "catchall,replies"}).addresses
    assert addresses.catchall == {"catchall@a.test", "catchall@b.test", "replies@a.test", "replies@b.test"}
    assert addresses.bounce == {"bounce@a.test", "bounce@b.test"}


def test_the_largest_message_fits_into_the_largest_request() -> None:
    assert MAX_SIZE / 3 * 4 + 60_000 < 128 * 2**20 < MAX_SIZE / 3 * 4 + 70_000


def test_the_default_waits_end_before_the_deadline_and_that_before_the_mta() -> None:
    settings = build(REQUIRED)
    assert settings.patience + 2 * (settings.connect_timeout + settings.read_timeout) <= DEADLINE
    assert DEADLINE + 60 <= 900


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("URL", "odoo.example.com"),
        ("URL", "ftp://odoo.example.com"),
        ("URL", "https://"),
        ("URL", "https://odoo.example.com:port"),
        ("URL", "https://odoo.example.com:99999"),
        ("URL", "https://robot:s3cret@odoo.example.com"),
        ("URL", "https://robot:s3cret/x@odoo.example.com"),
        ("URL", "https://[::1"),
        ("URL", "https://odoo.example.com/?db=x"),
        ("URL", "https://odoo.example.com/#x"),
        ("URL", "https://odoo example.com/"),
        ("URL", "http://odoo.example.com"),
        ("URL", "http://127.0.0.1.example.com"),
        ("URL", "http://10.0.0.1"),
        ("DATABASE", "a\nb"),
        ("LOGIN", "a\0b"),
        ("LOGIN", "\udcff"),
        ("PASSWORD", "s3cret\x1b"),
        ("ALIAS_DOMAINS", "a@example.com"),
        ("ALIAS_DOMAINS", "example.com second.example"),
        ("ALIAS_DOMAINS", "example.com;second.example"),
        ("ALIAS_DOMAINS", "example.com."),
        ("ALLOWED_DOMAINS", "@example.com"),
        ("ALIASES", "info"),
        ("ALIASES", "@example.com"),
        ("ALIASES", "info@example.com jobs@example.com"),
        ("ALIASES", "info@example.com;jobs@example.com"),
        ("LOCAL_PARTS", "info@example.com"),
        ("LOCAL_PARTS", "info jobs"),
        ("CATCHALL", "catchall@example.com"),
        ("BOUNCE", "bounce@"),
        ("RECIPIENT_DELIMITER", "++"),
        ("RECIPIENT_DELIMITER", "a"),
        ("RECIPIENT_DELIMITER", "@"),
        ("RECIPIENT_DELIMITER", " "),
        ("MAX_SIZE", "10M"),
        ("MAX_SIZE", "0"),
        ("MAX_SIZE", "-1"),
        ("MAX_SIZE", "\N{SUPERSCRIPT TWO}"),
        ("CONNECT_TIMEOUT", "0"),
        ("CONNECT_TIMEOUT", "ten"),
        ("READ_TIMEOUT", "-1"),
        ("READ_TIMEOUT", "nan"),
        ("READ_TIMEOUT", "inf"),
        ("READ_TIMEOUT", "400"),  # together they are too long
        ("PATIENCE", "841"),
        ("CA_FILE", "/no/such/file"),
        ("CA_FILE", "/"),
        ("HOLD", "/no/such/folder"),
        ("HOLD", "/etc/passwd"),
        ("HOLD", "."),
        ("JOURNAL", "/no/such/folder"),
        ("JOURNAL", "."),  # another one for the service and for each MTA
        ("JOURNAL", "postgresql://"),
        ("JOURNAL", "postgresql://mail_gateway@journal.example.com"),
        ("JOURNAL", "postgresql://mail_gateway@journal.example.com/"),
        ("JOURNAL", "postgresql://mail_gateway:s3cret@journal.example.com/journal"),
        ("JOURNAL", "postgresql://mail_gateway:s3cret/@journal.example.com/journal"),
        ("JOURNAL", "postgresql://mail_gateway:s3cret?@journal.example.com/journal"),
        ("JOURNAL", "postgresql://mail_gateway:@s3cret@journal.example.com/journal"),
        ("JOURNAL", "postgresql://journal.example.com/journal?password=s3cret"),
        ("JOURNAL", "postgresql://journal.example.com/journal?pass%77ord=s3cret"),
        ("JOURNAL", "postgresql://journal.example.com/journal?sslpassword=s3cret"),
        ("JOURNAL", "postgresql://journal.example.com/jour nal"),
        ("JOURNAL", "mysql://mail_gateway@journal.example.com/journal"),
        ("JOURNAL_PASSWORD_FILE", "/no/such/file"),
        ("LOG", "mail.log"),
        ("LOG", "/no/such/folder/log"),
    ],
)
def test_a_wrong_value_is_named(variable: str, value: str) -> None:
    cause = wrong(**{variable: value})
    assert cause.startswith(f"MAIL_GATEWAY_{variable} ")
    assert ";" not in cause.replace("plain text;", "")


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8069",
        "http://127.0.0.1",
        "http://127.9.9.9:1",
        "http://[::1]:8069",
        "https://10.0.0.1/odoo",
        "HTTPS://odoo.example.com",
    ],
)
def test_plain_http_is_for_the_loopback_interface(url: str) -> None:
    assert build(REQUIRED | {"URL": f"{url}/"}).url == url


@pytest.mark.parametrize(("value", "allowed"), [("yes", True), ("YES", True), ("no", False), ("1", False)])
def test_plain_http_elsewhere_has_to_be_allowed(value: str, allowed: bool) -> None:
    variables = REQUIRED | {"URL": "http://odoo.example.com", "ALLOW_PLAINTEXT": value}
    if allowed:
        assert build(variables).url == "http://odoo.example.com"
    else:
        assert "plain text" in wrong(**variables)


def test_lists_are_split_and_lower_case() -> None:
    settings = build(REQUIRED | {"ALIASES": " Info@Example.com ,, b@c,", "ALIAS_DOMAINS": "A.test,b.test"})
    assert settings.addresses.aliases == {"info@example.com", "b@c"}
    assert settings.addresses.alias_domains == {"a.test", "b.test"}


def test_everything_wrong_is_said_at_once(gateway: Gateway, endpoint: Endpoint) -> None:
    result = gateway.run("info@example.com", URL=None, DATABASE=None, LOGIN=None, PASSWORD=None, MAX_SIZE="x")
    assert result.ending == (75, "4.3.5", "settings")
    for name in ("URL", "DATABASE", "LOGIN", "PASSWORD", "MAX_SIZE"):
        assert f"MAIL_GATEWAY_{name} " in result.facts["cause"]
    assert endpoint.connections == 0


# --- where they come from -------------------------------------------------------------------------------------


def test_options_come_before_the_environment_and_that_before_the_file(gateway: Gateway, endpoint: Endpoint) -> None:
    gateway.settings["MODEL"] = "from.file"
    gateway.run("info@example.com")
    gateway.run("info@example.com", environ={"MAIL_GATEWAY_MODEL": "from.environment"})
    gateway.run("--model", "from.option", "info@example.com", environ={"MAIL_GATEWAY_MODEL": "from.environment"})
    gateway.run("info@example.com", environ={"MAIL_GATEWAY_MODEL": ""})  # nothing is not a value
    models = [request.call[0][5][0] for request in endpoint.requests]
    assert models == ["from.file", "from.environment", "from.option", "from.file"]


def test_the_settings_file_is_the_options_or_the_environments(gateway: Gateway, tmp_path: Path) -> None:
    gateway.command()
    variable = {"MAIL_GATEWAY_ENV_FILE": str(gateway.env_file)}
    assert read(variable)[0]["DATABASE"] == "mydatabase"
    other = tmp_path / "other.env"
    other.write_text("MAIL_GATEWAY_DATABASE=other\n")
    assert read(variable, str(other))[0]["DATABASE"] == "other"
    assert read({"MAIL_GATEWAY_DATABASE": "mine", **variable}, str(other))[0]["DATABASE"] == "mine"


@pytest.mark.parametrize(
    ("text", "variable", "value"),
    [
        ("MAIL_GATEWAY_PASSWORD='a${HOME}b'", "PASSWORD", "a${HOME}b"),
        ("MAIL_GATEWAY_PASSWORD=a${HOME}b$c", "PASSWORD", "a${HOME}b$c"),
        ("export MAIL_GATEWAY_PASSWORD = 'a b # c'  # comment", "PASSWORD", "a b # c"),
        ("# comment\n\nMAIL_GATEWAY_LOGIN=robot", "LOGIN", "robot"),
        ("\ufeffMAIL_GATEWAY_LOGIN=robot\r\n", "LOGIN", "robot"),
        ("PATH=/x\nMAIL_GATEWAY_LOGIN=robot", "LOGIN", "robot"),
    ],
)
def test_a_settings_file_means_what_it_says(tmp_path: Path, text: str, variable: str, value: str) -> None:
    path = tmp_path / "settings.env"
    path.write_text(text)
    path.chmod(0o600)
    assert read({}, str(path)) == ({variable: value}, [])


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (b"MAIL_GATEWAY_PASSWORD=s3cret", 0o604, ": holds the password and can be read by every local user"),
        (b"MAIL_GATEWAY_LOGIN=\xff", 0o600, " is not UTF-8"),
        (b"MAIL_GATEWAY_LOGIN=a\nwhat is this s3cret 'thing\n", 0o600, ": line 2 is not MAIL_GATEWAY_NAME=value"),
        (b"MAIL_GATEWAY_ALIAS=info@example.com\n", 0o600, ": unknown setting: MAIL_GATEWAY_ALIAS"),
        (b"MAIL_GATEWAY_LOGIN=a\nMAIL_GATEWAY_LOGIN=a\n", 0o600, ": set more than once: MAIL_GATEWAY_LOGIN"),
        (b"MAIL_GATEWAY_LOGIN=a\nALIAS_DOMAINS=example.com\n", 0o600, ": line 2 is not MAIL_GATEWAY_NAME=value"),
        (b"MAILGATEWAY_LOGIN=a\n", 0o600, ": line 1 is not MAIL_GATEWAY_NAME=value"),
        (b"MAIL_GATEWAY_ALIAS_DOMAINS\n", 0o600, ": line 1 is not MAIL_GATEWAY_NAME=value"),
        (b"MAIL_GATEWAY_PASSWORD:s3cret\n", 0o600, ": line 1 is not MAIL_GATEWAY_NAME=value"),
    ],
)
def test_a_settings_file_that_can_not_be_used(tmp_path: Path, content: bytes, mode: int, reason: str) -> None:
    path = tmp_path / "settings.env"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(Ended) as caught:
        build(*read({}, str(path)))
    verdict = caught.value.verdict
    assert verdict.outcome is Outcome.SETTINGS
    assert verdict.cause.startswith(f"settings file {path}{reason}")
    assert "s3cret" not in repr(caught.value)


def test_what_is_wrong_with_the_file_does_not_hide_what_is_wrong_in_it(gateway: Gateway) -> None:
    result = gateway.run("info@example.com", ALAISES="x", URL=None, MAX_SIZE="x")
    assert result.ending == (75, "4.3.5", "settings")
    for text in ("unknown setting: MAIL_GATEWAY_ALAISES", "MAIL_GATEWAY_URL is missing", "MAIL_GATEWAY_MAX_SIZE must"):
        assert text in result.facts["cause"]


@pytest.mark.parametrize("path", ["/no/such/file", "/"])
def test_a_settings_file_that_is_named_has_to_be_there(gateway: Gateway, path: str) -> None:
    result = gateway.run("--env-file", path, "info@example.com", environ={"MAIL_GATEWAY_LOG": str(gateway.log)})
    assert result.ending == (75, "4.3.5", "settings")
    assert path in result.facts["cause"]


def test_a_settings_file_without_the_password_may_be_public(gateway: Gateway, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text(f"{PASSWORD}\n")
    secret.chmod(0o640)
    command = gateway.command("info@example.com", PASSWORD=None, PASSWORD_FILE=secret)
    gateway.env_file.chmod(0o644)
    finished = subprocess.run(command, input=b"a: b\n\n", capture_output=True, env=ENVIRONMENT, check=False)
    assert finished.stdout == b"2.0.0 delivered\n"


def test_a_password_file_is_read_without_its_line_end(gateway: Gateway, endpoint: Endpoint, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text(f" {PASSWORD} \r\n")
    secret.chmod(0o600)
    assert gateway.run("info@example.com", PASSWORD=None, PASSWORD_FILE=secret).status == 0
    assert endpoint.requests[0].call[0][2] == f" {PASSWORD} "


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (b"s3cret", 0o604, "holds the password and can be read by every local user"),
        (b"s3cret\xff", 0o600, "is not UTF-8"),
        (b"\n", 0o600, "is empty"),
        (b"s3cret\nsecond line", 0o600, "has a control character"),
        (None, 0, "can't be used"),
    ],
)
def test_a_password_file_that_can_not_be_used(tmp_path: Path, content: bytes | None, mode: int, reason: str) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    variables = {name: value for name, value in REQUIRED.items() if name != "PASSWORD"}
    with pytest.raises(Ended) as caught:
        build(variables | {"PASSWORD_FILE": str(path)})
    assert caught.value.verdict.cause.startswith(f"MAIL_GATEWAY_PASSWORD_FILE {reason}")
    assert "s3cret" not in repr(caught.value)


def test_two_passwords_are_one_too_many(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("s3cret")
    path.chmod(0o600)
    assert "not both" in wrong(PASSWORD_FILE=str(path))


def test_a_secret_hides_where_it_is_shown_by_accident() -> None:
    secret = Secret("s3cret")
    assert "s3cret" not in f"{secret!r} {[secret]} {(secret,)} {{'a': secret}}"


# --- what the environment must not change ---------------------------------------------------------------------


def test_proxies_and_netrc_of_the_environment_are_ignored(gateway: Gateway, endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login robot password other\n")
    (tmp_path / ".netrc").chmod(0o600)
    environ = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "all_proxy"), "http://127.0.0.1:9")
    environ |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / ".netrc"), "REQUESTS_CA_BUNDLE": "/no/such/file"}
    assert gateway.run("info@example.com", environ=environ).status == 0
    assert "authorization" not in endpoint.requests[0].headers


def test_the_password_is_not_in_the_process_table(gateway: Gateway, endpoint: Endpoint) -> None:
    seen = []

    def look(connection, request) -> None:
        seen.append(Path(f"/proc/{process.pid}/cmdline").read_bytes())

    endpoint.answers = [look]
    process = subprocess.Popen(
        gateway.command("info@example.com"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT
    )
    process.communicate(b"a: b\n\n")
    assert b"mail_gateway" in seen[0]
    assert b"s3cret" not in seen[0]


# --- TLS ------------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", path, "-out", tmp_path / "public.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + (tmp_path / "public.pem").read_bytes())
    return path


def test_a_private_certificate_authority_is_trusted_when_it_is_named(gateway: Gateway, certificate: Path) -> None:
    server = Endpoint(certificate)
    try:
        result = gateway.run("info@example.com", URL=server.url)
        assert result.ending == (75, "4.4.1", "no_answer")
        assert "CERTIFICATE_VERIFY_FAILED" in result.facts["cause"]
        assert server.requests == []
        ca_file = certificate.with_name("public.pem")
        assert gateway.run("info@example.com", URL=server.url, CA_FILE=ca_file).ending == (0, "2.0.0", "delivered")
        assert gateway.run("info@example.com", URL=server.url, CA_FILE="/etc/passwd").status == 75
    finally:
        server.close()


def test_a_broken_tls_record_after_the_request_is_ambiguous(gateway: Gateway, certificate: Path) -> None:
    """A proxy that speaks plain HTTP in the midst of it: the database may have the message."""

    def in_plain_text(connection, request) -> None:
        with socket.socket(fileno=os.dup(connection.fileno())) as plain:
            plain.sendall(http(504))

    server = Endpoint(certificate)
    server.answers = [in_plain_text]
    try:
        result = gateway.run("info@example.com", URL=server.url, CA_FILE=certificate.with_name("public.pem"))
        assert result.ending == (75, "4.4.2", "cut_off"), result
    finally:
        server.close()


# --- the documentation ----------------------------------------------------------------------------------------


def test_every_variable_has_a_name_that_a_person_can_set() -> None:
    assert all(name.isupper() for name in VARIABLES)


def test_the_program_can_be_run_as_it_is() -> None:
    """By its name, as docs/install.md says; interpreter and packages are those of the MTA's PATH."""
    environ = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "MAIL_GATEWAY_ENV_FILE": "/dev/null"}
    finished = subprocess.run([PROGRAM], input=b"", capture_output=True, env=environ, cwd="/", check=False)
    assert finished.stdout.startswith(b"4.3.5 ")


def test_the_program_needs_nothing_of_a_users_environment() -> None:
    command = [sys.executable, str(PROGRAM), "--env-file", "/dev/null", "info@example.com"]
    finished = subprocess.run(command, input=b"", capture_output=True, env={}, cwd="/", check=False)
    assert finished.returncode == 75
    assert finished.stdout.startswith(b"4.3.5 ")


@pytest.mark.parametrize("address", ["/run/lmtp.sock", "127.0.0.1:24", "127.8.8.8:65535", "[::1]:24"])
def test_a_place_to_listen_is_a_path_or_a_loopback_address(address: str) -> None:
    assert build(REQUIRED | {"LMTP": address, "SOCKETMAP": address}).lmtp == address


@pytest.mark.parametrize(
    "address", ["lmtp.sock", "127.0.0.1", ":24", "localhost:24", "10.0.0.1:24", "0.0.0.0:24", "::1:24", "127.0.0.1:+24",
                "127.0.0.1:0", "127.0.0.1:65536", "[::]:24", "[127.0.0.1]:24", "999.1.1.1:24"],
)  # fmt: skip
def test_no_other_place_is_listened_at(address: str) -> None:
    assert "MAIL_GATEWAY_LMTP must be an absolute path" in wrong(LMTP=address)
    assert "MAIL_GATEWAY_LMTP must be an absolute path" in wrong(LMTP=address, CLIENTS="root")


def test_clients_can_be_told_apart_at_a_path_only() -> None:
    assert build(REQUIRED | {"LMTP": "/run/x", "CLIENTS": "root"}).clients == {"root"}
    assert "MAIL_GATEWAY_CLIENTS" in wrong(LMTP="127.0.0.1:24", CLIENTS="root")
    assert "MAIL_GATEWAY_CLIENTS" in wrong(SOCKETMAP="127.0.0.1:24", CLIENTS="root")
    assert "MAIL_GATEWAY_CLIENTS" in wrong(CLIENTS="root,nobody-of-that-name")
