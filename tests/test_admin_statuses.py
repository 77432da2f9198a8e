"""The desk's exit status: 2 for wrong usage alone, 1 and one clear line for what can't be done, never a traceback."""

import subprocess
import sys

import pytest
from support.admin import ROOT, ask
from support.endpoint import Endpoint, fault, returns
from support.gateway import ENVIRONMENT, Gateway, coverage_environment

AWAY = "the database can't be asked: fault 3: Access Denied. mail-gateway-admin check says what to mend."
NOT_READ = "the database's addresses can't be read: fault 3: Access Denied"
NONE, SPELLED = "No such file or directory.", "Is it spelled right, and is its folder there?"
FILE = "A part of this path is a file, and must be a folder."
MAIL = b"Message-ID: <a@outside.test>\nTo: info@example.com\n\nwords\n"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    """One that is not let into its database; it has a try in its journal, and a held message."""
    folder = tmp_path_factory.mktemp("desk")
    endpoint = Endpoint()
    endpoint.version = returns({"server_version_info": [19, 0]})
    endpoint.answers, endpoint.inquiry = [fault(3, "Access Denied")], fault(3, "Access Denied")
    for path in ("held/new", "odd/journal.sqlite3", "bin"):
        (folder / path).mkdir(parents=True)
    (folder / "odd").chmod(0o700)
    for path in ("held/new/a.eml", "mail.eml", "file", "odd/new"):
        (folder / path).write_bytes(MAIL)
    sendmail = folder / "bin" / "sendmail"
    sendmail.write_text("#!/bin/sh\necho 'no such thing' >&2\nexit 75\n")
    sendmail.chmod(0o755)
    settings = {"HOLD": folder / "held", "PATIENCE": 0, "POSTMASTER": "joe@outside.test", "LOG": folder / "log"}
    made = Gateway(folder, URL=endpoint.url, **settings)
    assert made.run("info@example.com", message=MAIL).facts["outcome"] == "access_denied"
    return made


@pytest.mark.parametrize(
    ("typed", "environ", "status", "line"),
    [
        # all is good, or something was found: no line
        ("held show a", {}, 0, ""),
        ("trace nobody-knows", {}, 1, ""),
        ("trace a@outside.test", {}, 0, ""),
        ("today", {}, 1, ""),
        ("explain {folder}/mail.eml", {}, 1, ""),
        ("explain --address info@example.com", {}, 1, ""),
        ("check", {}, 1, ""),
        ("postmaster --dry-run", {}, 1, ""),
        # wrong usage
        ("frobnicate", {}, 2, "usage: "),
        ("trace", {}, 2, "usage: "),
        ("audit --since soon", {}, 2, "mail-gateway-admin: --since takes 2d"),
        ("held show b", {}, 2, "mail-gateway-admin: 0 held messages have a name that begins with 'b'"),
        ("held forward a joe", {}, 2, "mail-gateway-admin: not an address: joe"),
        ("send-test info", {}, 2, "mail-gateway-admin: not an address: info"),
        ("send-test info@example.com --direct --wait nan", {}, 2, "--wait: takes seconds, 0 or more, not 'nan'"),
        ("redirections watch --seconds nan", {}, 2, "--seconds: takes seconds, 0 or more, not 'nan'"),
        ("redirections watch --seconds inf", {}, 2, "--seconds: takes seconds, 0 or more, not 'inf'"),
        ("redirections watch --seconds -1", {}, 2, "--seconds: takes seconds, 0 or more, not '-1'"),
        ("explain {folder}/none.eml", {}, 2, f"/none.eml can't be used: {NONE} {SPELLED}"),
        ("postmaster", {"POSTMASTER": "info@example.com"}, 2, "MAIL_GATEWAY_POSTMASTER is the database's own"),
        ("trace x", {"URL": "odoo"}, 2, "mail-gateway-admin: MAIL_GATEWAY_URL is not a URL"),
        # the database does not answer
        ("audit", {}, 1, AWAY),
        ("addresses", {}, 1, NOT_READ),
        ("redirections --to mail.example.com", {}, 1, NOT_READ),
        ("settings", {}, 1, NOT_READ),
        ("settings --update", {}, 1, NOT_READ),
        ("held release --all", {}, 1, "Giving 1 held message to"),
        ("send-test info@example.com --direct --wait 0", {}, 1, "Sending a test to info@example.com"),
        # other programs fail
        ("held forward a joe@outside.test", {}, 1, "mail-gateway-admin: sendmail ended with status 75: no such thing"),
        ("postmaster", {}, 1, "mail-gateway-admin: sendmail ended with status 75: no such thing"),
        ("held mend a", {}, 1, "the editor 'false' ended with status 1: nothing is changed"),
        ("send-test info@example.com --smtp 127.0.0.1:9", {}, 1, "Sending a test to info@example.com"),
        # files
        ("audit --since 2099-01-01 --textfile {folder}/no/such", {}, 1, f"/no/such can't be written: {NONE} {SPELLED}"),
        ("explain {folder}", {}, 1, "can't be used: Is a directory. This is a folder, and must be a file."),
        ("held list", {"HOLD": "{folder}/odd"}, 1, f"/odd/new can't be read: Not a directory. {FILE}"),
        ("today", {"HOLD": "{folder}/odd"}, 1, f"/odd/new can't be read: Not a directory. {FILE}"),
        ("held drop a --why x", {"JOURNAL": "{folder}/odd"}, 1, "journal: unable to open database file: "),
        ("trace x", {"JOURNAL": "{folder}/odd"}, 1, "mail-gateway-admin: journal: unable to open database file: "),
    ],
)  # fmt: skip
def test_the_exit_status(gateway: Gateway, typed: str, environ: dict[str, str], status: int, line: str) -> None:
    folder = gateway.env_file.parent
    given = {f"MAIL_GATEWAY_{name}": text.format(folder=folder) for name, text in environ.items()}
    words = [word.format(folder=folder) for word in typed.split()]
    finished = ask(gateway.env_file, *words, environ={"PATH": f"{folder}/bin:/usr/bin:/bin", "EDITOR": "false"} | given)
    assert finished.returncode == status, finished
    assert line in finished.stderr
    assert bool(finished.stderr) == bool(line)
    assert "bug" not in finished.stderr


@pytest.mark.parametrize("options", ["", "--json"])
@pytest.mark.parametrize(
    ("redirection", "status", "line"),
    [
        (">/dev/full", 1, "standard output can't be written: No space left on device. Make room on its disk.\n"),
        (">&-", 1, "standard output can't be written: it is closed.\n"),
        ("| true", 0, ""),  # a reader that has gone away
        ("2>&-", 0, ""),
        ("<&-", 0, ""),
    ],
)
def test_an_output_that_takes_nothing(gateway: Gateway, options: str, redirection: str, status: int, line: str) -> None:
    desk = f"{sys.executable} -m mailgate.admin --env-file {gateway.env_file} trace a@outside.test {options}"
    script = f"set -o pipefail; {desk} {redirection}"
    environ = {**ENVIRONMENT, **coverage_environment()}
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, f"mail-gateway-admin: {line}" if line else "")
