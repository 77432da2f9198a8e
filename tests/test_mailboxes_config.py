"""The mailboxes file: all that is wrong is said at once, in one line, and no secret; and what is right is read."""

import os
import re
import socket
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from support.gateway import ENVIRONMENT, SETTINGS, coverage_environment, write_settings
from support.pages import ROOT

from mailgate.mailboxes import config
from mailgate.mailboxes.config import Action, Mailbox, Mailboxes
from mailgate.outcome import Ended, Outcome

SECRET = "hunter2"
OTHER_USER = 65534
# The keys of a table that is right; a test replaces some, or leaves them out by None.
TABLE = {
    "name": '"task"',
    "server": '"imaps://imap.example.com"',
    "login": '"task@example.com"',
    "password_file": '"{folder}/password"',
}
POP3 = {"server": '"pop3s://pop.example.com"'}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("certificate")
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-subj", "/CN=test", "-keyout", f"{folder}/key.pem", "-out", f"{folder}/ca.pem"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return (folder / "ca.pem").read_bytes()


@pytest.fixture
def folder(tmp_path: Path, certificate: bytes) -> Path:
    """A folder with what a right file names."""
    for name in ("password", "task.password"):
        (tmp_path / name).touch(0o640)
        (tmp_path / name).write_text(f"{SECRET}\n")
    (tmp_path / "empty").touch(0o640)
    (tmp_path / "mailboxes").mkdir(0o700)
    (tmp_path / "ca.pem").write_bytes(certificate)
    return tmp_path


def table(**keys: str | None) -> str:
    """Return the text of a table; a key that is None is left out."""
    lines = [f"{key} = {value}" for key, value in (TABLE | keys).items() if value is not None]
    return "\n".join(["[[mailbox]]", *lines, ""])


def written(folder: Path, text: str | bytes, top: str | None = 'folder = "{folder}/mailboxes"\n') -> str:
    """Write a mailboxes file and return its path; {folder} in a text is the test's folder."""
    path = folder / "mailboxes.toml"
    path.touch(0o640)
    given = text if isinstance(text, bytes) else f"{top or ''}{text}".replace("{folder}", str(folder)).encode()
    path.write_bytes(given)
    return str(path)


def read(folder: Path, text: str, **more: str | None) -> Mailboxes:
    return config.read(written(folder, text, **more))


def causes(path: str) -> list[str]:
    """Return what is wrong with a file, in its order, each without the file's name."""
    with pytest.raises(Ended) as caught:
        config.read(path)
    assert caught.value.verdict.outcome is Outcome.SETTINGS
    cause = caught.value.verdict.cause
    assert SECRET not in repr(caught.value)
    assert cause.isprintable()
    return [each.removeprefix(f"mailboxes file {path}").removeprefix(":").strip() for each in cause.split("; ")]


# --- what is right ---


def test_the_defaults(folder: Path) -> None:
    found = read(folder, table())
    mailbox = Mailbox(
        name="task",
        server="imaps://imap.example.com",
        login="task@example.com",
        password=config.Secret(SECRET),
        grant=None,
        folder="INBOX",
        recipient="",
        model="",
        done=Action("keep"),
        refused=Action("keep"),
        since=None,
        ca_file="",
    )
    assert found == Mailboxes(f"{folder}/mailboxes", "", (mailbox,))
    assert SECRET not in f"{found!r} {found}"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"folder": '"Odoo/Eingang"'}, {"folder": "Odoo/Eingang"}),
        ({"folder": '"Entwürfe"'}, {"folder": "Entwürfe"}),
        ({"recipient": '"task@example.com"'}, {"recipient": "task@example.com"}),
        (
            {"recipient": '"task@example.com"', "model": '"project.task"'},
            {"recipient": "task@example.com", "model": "project.task"},
        ),
        ({"done": '"seen"'}, {"done": Action("seen"), "refused": Action("keep")}),
        ({"refused": '"move:Refused"'}, {"done": Action("keep"), "refused": Action("move", "Refused")}),
        ({"done": '"move:a:b"'}, {"done": Action("move", "a:b")}),
        ({"done": '"delete"', **POP3}, {"done": Action("delete")}),
        ({"folder": '"inbox"', **POP3}, {"folder": "inbox"}),
        ({"since": "2026-11-01"}, {"since": date(2026, 11, 1)}),
        ({"ca_file": '"{folder}/ca.pem"'}, {"ca_file": "{folder}/ca.pem"}),
        ({"name": '"a.b-c_9"'}, {"name": "a.b-c_9"}),
        ({"name": f'"{"x" * 64}"'}, {"name": "x" * 64}),
    ],
)
def test_what_is_given_is_read(folder: Path, keys: dict[str, str], expected: dict[str, object]) -> None:
    (mailbox,) = read(folder, table(**keys)).mailboxes
    for key, value in expected.items():
        assert getattr(mailbox, key) == (value.replace("{folder}", str(folder)) if isinstance(value, str) else value)


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("imaps://imap.example.com", ("imap", True, "imap.example.com", 993)),
        ("imaps://imap.example.com/", ("imap", True, "imap.example.com", 993)),
        ("IMAPS://Imap.Example.com", ("imap", True, "imap.example.com", 993)),
        ("imap://imap.example.com", ("imap", False, "imap.example.com", 143)),
        ("imap://127.0.0.1:1143", ("imap", False, "127.0.0.1", 1143)),
        ("imaps://[::1]:1993", ("imap", True, "::1", 1993)),
        ("pop3s://pop.example.com", ("pop3", True, "pop.example.com", 995)),
        ("pop3://pop.example.com", ("pop3", False, "pop.example.com", 110)),
    ],
)
def test_a_server_is_a_url(folder: Path, server: str, expected: tuple[str, bool, str, int]) -> None:
    (mailbox,) = read(folder, table(server=f'"{server}"')).mailboxes
    assert (mailbox.protocol, mailbox.is_tls, mailbox.host, mailbox.port) == expected


def test_what_stands_above_the_tables_is_read(folder: Path) -> None:
    top = 'folder = "{folder}/mailboxes"\nmetrics = "127.0.0.1:9465"\n'
    assert read(folder, table(), top=top).metrics == "127.0.0.1:9465"


def test_several_mailboxes_of_one_login_differ_in_their_folder(folder: Path) -> None:
    found = read(folder, table() + table(name='"jobs"', folder='"Jobs"') + table(name='"x"', login='"x@example.com"'))
    assert [mailbox.name for mailbox in found.mailboxes] == ["task", "jobs", "x"]


def test_a_mark_of_the_byte_order_is_no_mistake(folder: Path) -> None:
    path = written(folder, table())
    Path(path).write_bytes(b"\xef\xbb\xbf" + Path(path).read_bytes())
    assert len(config.read(path).mailboxes) == 1


def test_a_password_file_may_be_a_credential_of_systemd(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    (mailbox,) = read(folder, table(password_file='"task.password"')).mailboxes
    assert mailbox.password == SECRET
    assert causes(written(folder, table(password_file='"other.password"'))) == [
        f"mailbox task: password_file can't be used: No such file or directory: {folder}/other.password"
    ]


# --- what is wrong ---

TEXT = 'must be a text: "..."'
URL = "must be a URL like imaps://imap.example.com (or imap, pop3s, pop3)"
NAME = "must be up to 64 letters, digits, dots, hyphens and underscores, first a letter or digit"
ACTION = 'must be "keep", "seen", "move:FOLDER" or "delete"'
BOTH = "password_file must be given, or oauth, and not both"
PATH = "must be an absolute path, or the name of a credential of systemd's"
NO_FILE = "can't be used: No such file or directory"
ADDRESS = "must be an address: task@example.com"
DATE = "must be a date without quotes: 2026-11-01"
NO_SERVERS = (
    "imap.example.com",
    "https://imap.example.com",
    "imaps://",
    "imaps://imap.example.com/INBOX",
    "imaps://imap.example.com:0",
    "imaps://imap.example.com:99999",
    "imaps://imap.example.com:x",
    f"imaps://task:{SECRET}@imap.example.com",
    "imaps://imap.example.com?x",
    "imaps://imap.example.com#x",
    "imaps://imap.example.com imap2.example.com",
    "imaps://[::1",
    "imaps://imap..example.com",
    f"imaps://{'x' * 64}.example.com",
)
Row = tuple[dict[str, str | None], list[str]]


def quoted(value: str) -> str:
    return f'"{value}"'


def rows(key: str, said: str, *values: str) -> list[Row]:
    """Return a row for each value of a key."""
    return [({key: value}, [f"{key} {said}"]) for value in values]


# What is replaced in a table that is right, and what is said of that mailbox.
WRONG: list[Row] = [
    ({"server": None}, ["server is missing"]),
    ({"login": None}, ["login is missing"]),
    ({"password_file": None}, [BOTH]),
    ({"oauth": '"google"'}, [BOTH]),
    *rows("name", TEXT, "7", '""'),
    *rows("name", NAME, *map(quoted, ("a/b", "a b", "../a", ".a", "-a", "é", "x" * 65))),
    *rows("server", URL, "true", *map(quoted, NO_SERVERS)),
    *rows("login", "has a control character", '"a\\nb"'),
    *rows("login", TEXT, "[]"),
    *rows("password_file", PATH, quoted(SECRET)),
    *rows("password_file", f"{NO_FILE}: {{folder}}/none", '"{folder}/none"'),
    *rows("password_file", "can't be used: Is a directory: {folder}", '"{folder}"'),
    *rows("password_file", "is empty", '"{folder}/empty"'),
    *rows("folder", TEXT, '""'),
    *rows("recipient", ADDRESS, *map(quoted, ("task", "a@b@c", "a @b", "a@b, c@d", "<a@b>"))),
    *rows("model", "needs a recipient: it is mail for this address that becomes its records", '"project.task"'),
    *rows("done", ACTION, *map(quoted, ("read", "move", "move:", "keep:x", "Seen", " seen"))),
    *rows("done", "moves into the folder that is read", '"move:INBOX"'),
    *rows("refused", TEXT, "false"),
    ({"folder": '"Inbox"', "refused": '"move:inbox"'}, ["refused moves into the folder that is read"]),
    ({"folder": '"x"', "refused": '"move:x"'}, ["refused moves into the folder that is read"]),
    *rows("since", DATE, '"2026-11-01"', "2026-11-01T00:00:00", "20261101", "10:00:00"),
    *rows("ca_file", PATH, '"ca.pem"'),
    *rows("ca_file", f"{NO_FILE}: {{folder}}/none", '"{folder}/none"'),
    *rows("ca_file", "has no certificate (PEM): {folder}/password", '"{folder}/password"'),
    ({"done": '"seen"', **POP3}, ['done must be "keep" or "delete": POP3 has no flags and no folders']),
    ({"refused": '"move:x"', **POP3}, ['refused must be "keep" or "delete": POP3 has no flags and no folders']),
    ({"folder": '"x"', **POP3}, ["folder is IMAP's: POP3 has one maildrop"]),
    ({"fodler": '"x"'}, ["fodler is not known"]),
    ({'"\\u001b[31m"': '"x"'}, ["a key in quotes is not known"]),
    ({"metrics": '"127.0.0.1:9465"'}, ["metrics is not known here: it belongs above the first [[mailbox]]"]),
    (
        {"password_file": None, "password": f'"{SECRET}"'},
        ["password is not known here: a password stands in a file, which password_file names", BOTH],
    ),
]


@pytest.mark.parametrize(("keys", "said"), WRONG, ids=lambda value: None if isinstance(value, list) else f"{value}")
def test_what_is_wrong_with_a_mailbox_is_said(folder: Path, keys: dict[str, str | None], said: list[str]) -> None:
    label = "1" if "name" in keys else "task"
    expected = [f"mailbox {label}: {each}".replace("{folder}", str(folder)) for each in said]
    assert causes(written(folder, table(**keys))) == expected


def test_a_table_without_a_name_is_told_by_its_number(folder: Path) -> None:
    assert causes(written(folder, table() + table(name=None, login=None))) == [
        "mailbox 2: name is missing",
        "mailbox 2: login is missing",
    ]


def test_everything_is_said_at_once(folder: Path) -> None:
    """Of the file, of each mailbox, and of two; what is wrong by itself hides nothing that is wrong beside it."""
    tables = [
        table(since='"today"', password_file='"{folder}/none"', oauth='"google"', model='"project.task"'),
        table(name='"jobs"', done='"seen"', colour='"red"', **POP3),
        table(name='"jobs"', login=None),
        table(name='"again"', server='"imaps://IMAP.example.com:993/"', folder='"inbox"'),
    ]
    top = 'folder = "relative"\nmetrics = "0.0.0.0:80"\nname = "x"\n'
    assert causes(written(folder, "".join(tables), top=top)) == [
        "name is not known here: it belongs below a line [[mailbox]]",
        "folder must be an absolute path",
        "metrics must be an absolute path, or an address like 127.0.0.1:24 that only this host can reach",
        f"mailbox task: password_file {NO_FILE}: {folder}/none",
        f"mailbox task: since {DATE}",
        f"mailbox task: {BOTH}",
        "mailbox task: model needs a recipient: it is mail for this address that becomes its records",
        "mailbox jobs: colour is not known",
        'mailbox jobs: done must be "keep" or "delete": POP3 has no flags and no folders',
        "mailbox jobs: login is missing",
        "more than one mailbox has the name jobs",
        "mailboxes task and again are the same",
    ]


@pytest.mark.parametrize("text", ["", "mailbox = []\n", "mailbox = 1\n", '[mailbox]\nname = "x"\n', "mailbox = [1]\n"])
def test_a_file_without_a_mailbox_is_wrong(folder: Path, text: str) -> None:
    assert causes(written(folder, text)) == ["it has no table [[mailbox]]"]


# What is in the file, and what is said of it; the words behind "is not TOML" are those of Python's own parser.
NO_TOML: list[tuple[str | bytes, str]] = [
    (f'[[mailbox]]\nname = "task"\npassword = {SECRET}\n', r"is not TOML: .* \(at line 3, column 12\)"),
    (f'[[mailbox]]\npassword = "{SECRET}\n', r"is not TOML: .* \(at line 2, column 20\)"),
    (f"[[mailbox]]\n{SECRET}\n", r"is not TOML: .* \(at line 2, column 8\)"),
    (f'[[mailbox]]\nlogin = "a"\nlogin = "{SECRET}"\n', r"is not TOML: .* \(at line 3, column 18\)"),
    (f'[[mailbox]]\nlogin = "\\{SECRET}"\n', r"is not TOML: .* \(at line 2, column 1\d\)"),
    (f'[[mailbox]]\nlogin = "{SECRET}', r"is not TOML: .* \(at end of document\)"),
    ("x = " + "[" * 10_000, "is not TOML: .*"),
    (b'[[mailbox]]\nlogin = "J\xf6rg"\n', "is not UTF-8"),
    ("#" * (config.MAX_BYTES + 1), f"is larger than {config.MAX_BYTES} bytes"),
]


@pytest.mark.parametrize(("text", "said"), NO_TOML, ids=[said for _, said in NO_TOML])
def test_what_is_no_toml_is_named_by_its_place_and_never_quoted(folder: Path, text: str | bytes, said: str) -> None:
    (found,) = causes(written(folder, text, top=None))
    assert re.fullmatch(said, found)


@pytest.mark.parametrize(
    ("name", "mode", "said"),
    [
        ("mailboxes.toml", 0o660, "can be written by others"),
        ("mailboxes.toml", 0o642, "can be written by others"),
        ("password", 0o660, "mailbox task: password_file can be written by others: {folder}/password"),
        (
            "password",
            0o644,
            "mailbox task: password_file holds the password and can be read by every local user: {folder}/password",
        ),
        ("ca.pem", 0o666, "mailbox task: ca_file can be written by others: {folder}/ca.pem"),
        ("mailboxes", 0o770, "folder can be written by others: {folder}/mailboxes"),
        (
            "",
            0o777,
            "stands in a folder that can be written by others: {folder}",
        ),
    ],
)
def test_what_others_may_write_or_read_is_wrong(folder: Path, name: str, mode: int, said: str) -> None:
    path = written(folder, table(ca_file='"{folder}/ca.pem"'))
    (folder / name).chmod(mode)
    assert causes(path) == [said.replace("{folder}", str(folder))]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file to another user")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mailboxes.toml", "belongs to another user"),
        ("password", "mailbox task: password_file belongs to another user: {folder}/password"),
        ("mailboxes", "folder belongs to another user, who alone can run this: {folder}/mailboxes"),
    ],
)
def test_what_is_anothers_is_wrong(folder: Path, name: str, said: str) -> None:
    path = written(folder, table())
    os.chown(folder / name, OTHER_USER, OTHER_USER)
    assert causes(path) == [said.replace("{folder}", str(folder))]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('"{folder}/none"', "is not there: install -d -m 700 -o mail-gateway {folder}/none"),
        ('"{folder}/password"', "is not a folder that can be written: {folder}/password"),
        ('"none"', "must be an absolute path"),
        ("1", TEXT),
    ],
)
def test_a_folder_that_is_not_there_is_told_how_to_make(folder: Path, value: str, said: str) -> None:
    expected = [f"folder {said}".replace("{folder}", str(folder))]
    assert causes(written(folder, table(), top=f"folder = {value}\n")) == expected


def test_the_default_folder_must_be_there_too(folder: Path) -> None:
    (said,) = causes(written(folder, table(), top=None))
    assert said in (
        f"folder is not there: install -d -m 700 -o mail-gateway {config.FOLDER}",
        f"folder belongs to another user, who alone can run this: {config.FOLDER}",  # where the gateway is installed
    )


# --- the program ---


def program(folder: Path, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run it, with its settings in the folder."""
    (folder / "journal").mkdir(exist_ok=True)
    own = {"URL": "http://127.0.0.1:9", "JOURNAL": folder / "journal", "LOG": folder / "log"}
    write_settings(folder / "env", SETTINGS | own | {"MAILBOXES": folder / "mailboxes.toml"} | settings)
    return subprocess.run(
        [sys.executable, "-m", "mailgate.mailboxes", "--env-file", folder / "env", *arguments],
        env=ENVIRONMENT | coverage_environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", ["run", "once", "check", "authorize", None])
def test_a_wrong_file_ends_every_command_with_one_line(folder: Path, command: str | None) -> None:
    path = written(folder, table(server=f'"imaps://x:{SECRET}@imap.example.com"', done='"read"'))
    arguments = [command] * bool(command) + ["task"] * (command == "authorize")
    done = program(folder, *[each for each in arguments if each])
    assert (done.returncode, done.stdout) == (os.EX_CONFIG, "")
    said = [f"mailboxes file {path}: mailbox task: {each}" for each in (f"server {URL}", f"done {ACTION}")]
    assert done.stderr == f"mail-gateway-mailboxes: {'; '.join(said)}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [*NO_TOML, (None, "can't be used: No such file or directory")],
    ids=[*(said for _, said in NO_TOML), "none"],
)
def test_a_file_that_can_not_be_read_is_one_line(folder: Path, text: str | bytes | None, said: str) -> None:
    if text is not None:
        written(folder, text, top=None)
    done = program(folder, "check")
    assert (done.returncode, done.stdout) == (os.EX_CONFIG, "")
    assert SECRET not in done.stderr
    assert re.fullmatch(f"mail-gateway-mailboxes: mailboxes file {folder}/mailboxes.toml {said}\n", done.stderr)


def test_wrong_settings_are_one_line_too(folder: Path) -> None:
    done = program(folder, "check", WORKERS="0", MAILBOXES="relative")
    assert (done.returncode, done.stdout) == (os.EX_CONFIG, "")
    assert done.stderr == (
        "mail-gateway-mailboxes: MAIL_GATEWAY_WORKERS must be a number from 1 to 64; "
        "MAIL_GATEWAY_MAILBOXES must be an absolute path\n"
    )


def test_a_port_for_the_metrics_that_another_has_is_one_line(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        top = f'folder = "{{folder}}/mailboxes"\nmetrics = "127.0.0.1:{other.getsockname()[1]}"\n'
        path = written(folder, table(), top=top)
        done = program(folder)
    assert (done.returncode, done.stdout) == (os.EX_CONFIG, "")
    said = f"mailboxes file {path}: metrics can't be used: Address already in use"
    assert done.stderr == f"mail-gateway-mailboxes: {said}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["fetch"], "argument COMMAND: invalid choice: 'fetch'"),
        (["authorize"], "the following arguments are required: NAME"),
        (["authorize", "task"], "mail-gateway-mailboxes: mailboxes with oauth: none"),
        (["authorize", "nobody"], "mail-gateway-mailboxes: mailboxes with oauth: none"),
    ],
)
def test_wrong_usage_says_what_is_right(folder: Path, arguments: list[str], said: str) -> None:
    written(folder, table())
    done = program(folder, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["run", "once", "check", "authorize"])
def test_the_help_of_each_command_has_an_example(folder: Path, command: str) -> None:
    done = program(folder, command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    example = done.stdout.splitlines()[-1]
    assert example.startswith("  mail-gateway-mailboxes ")
    assert command in example.split()
