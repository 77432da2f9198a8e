"""systemd/install puts all in its place, changes nothing that is there, and takes it out again."""

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import imapclient
import pytest
from support import mta
from support.dovecot import PASSWORD as MAILBOX_PASSWORD
from support.dovecot import dovecot
from support.endpoint import Endpoint
from support.gateway import ENVIRONMENT, PASSWORD
from support.pages import ROOT, page

from mailgate import ENV_FILE

INSTALL = ROOT / "systemd/install"
PASSWORD_FILE = "/etc/mail-gateway.password"
MAILBOXES_FILE = "/etc/mail-gateway-mailboxes.toml"
PROGRAM = "/opt/mail-gateway"
OTHER_USER = "nobody"
OPERATORS = {"etc/mail-gateway.env", "etc/mail-gateway.password"}
Tree = dict[str, tuple[int, int, bytes]]


@pytest.fixture(params=["root", OTHER_USER] if os.geteuid() == 0 else ["nobody else"])
def user(request: pytest.FixtureRequest) -> str | None:
    """Who installs, where that can be chosen."""
    return OTHER_USER if request.param == OTHER_USER else None


@pytest.fixture
def destination(user: str | None) -> Iterator[Path]:
    """An empty folder of that user's; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(".*_cache", ".venv", ".git", "tests"))
        (folder / "root").mkdir()
        if user:
            shutil.chown(folder / "root", user)
        yield folder / "root"


def make(target: str, destination: Path, user: str | None, **environ: str) -> list[str]:
    """Run make in the checkout, as a packager does, and return the lines that it prints."""
    group = pwd.getpwnam(user).pw_gid if user else None
    finished = subprocess.run(
        ["make", target, f"DESTDIR={destination}", f"PYTHON={mta.PYTHON if user else sys.executable}"],
        cwd=destination.parent / "checkout",
        env=ENVIRONMENT | environ,
        capture_output=True,
        text=True,
        user=user,
        group=group,
        extra_groups=[] if user else None,
        umask=0o077,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout.splitlines()


def tree(folder: Path) -> Tree:
    """Return what there is below a folder: modes, times of change, contents."""
    found = {}
    for path in folder.rglob("*"):
        status = path.stat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (status.st_mode & 0o7777, status.st_mtime_ns, content)
    return found


def test_the_shell_understands_every_line() -> None:
    subprocess.run(["sh", "-n", INSTALL], check=True)
    assert "\nset -eu\n" in INSTALL.read_text()


def test_what_is_installed_runs_and_is_what_an_administrator_needs(destination: Path, user: str | None) -> None:
    said = make("install", destination, user)
    installed = destination / PROGRAM[1:]
    top = {path.name for path in installed.iterdir()}
    assert not {".venv", ".git", "tests", "benchmarks"} & top
    modes = {path.name: path.stat().st_mode & 0o777 for path in installed.iterdir()}
    assert modes["mail_gateway.py"] == modes["mailgate"] == 0o755
    assert modes["README.md"] == 0o644
    assert list((installed / "mailgate/__pycache__").glob("handover.*.pyc"))
    finished = subprocess.run(
        [sys.executable, installed / "mail_gateway.py", "--env-file", "/dev/null", "info@example.com"],
        input=b"",
        capture_output=True,
        env={},
        check=False,
    )
    assert (finished.returncode, finished.stdout) == (75, b"4.3.5 gateway not set up correctly, will try again\n")
    named = re.findall(r"/opt/mail-gateway/((?:postfix|exim|systemd)/[\w./-]*)", page("docs/install.md"))
    assert named
    assert all((installed / name).exists() for name in named)
    assert (destination / "var/lib/mail-gateway/held").stat().st_mode & 0o777 == 0o700
    settings = destination / ENV_FILE[1:]
    assert settings.stat().st_mode & 0o777 == 0o640
    assert f"\nMAIL_GATEWAY_PASSWORD_FILE={PASSWORD_FILE}\n" in settings.read_text()
    assert "\nMAIL_GATEWAY_PASSWORD=" not in settings.read_text()
    assert f"    chgrp mail-gateway {ENV_FILE}" in said  # nobody has that right here


@pytest.mark.parametrize("has_mailboxes", [False, True])
def test_mailboxes_are_read_where_their_file_is(destination: Path, user: str | None, has_mailboxes: bool) -> None:
    file = destination / MAILBOXES_FILE[1:]
    if has_mailboxes:
        file.parent.mkdir(exist_ok=True)
        file.touch()
        if user:
            subprocess.run(["chown", "-R", user, destination], check=True)
    said = make("install", destination, user)
    assert ("    systemctl enable mail-gateway-mailboxes" in said) is has_mailboxes
    assert file.exists() is has_mailboxes  # it is the operator's to write
    assert (destination / "etc/systemd/system/mail-gateway-mailboxes.service").exists()
    assert (destination / "usr/local/sbin/mail-gateway-mailboxes").stat().st_mode & 0o777 == 0o755
    assert (destination / "usr/local/share/man/man1/mail-gateway-mailboxes.1").exists()
    assert (destination / "var/lib/mail-gateway/mailboxes").stat().st_mode & 0o777 == 0o700
    assert make("install", destination, user)[0] == "nothing to change"
    said = make("uninstall", destination, user)
    assert (f"{MAILBOXES_FILE} stays" in said) is has_mailboxes
    assert not (destination / "usr/local/sbin/mail-gateway-mailboxes").exists()


def test_a_second_run_changes_nothing_and_uninstall_is_the_reverse(destination: Path, user: str | None) -> None:
    make("install", destination, user)
    first = tree(destination)
    assert make("install", destination, user)[0] == "nothing to change"
    assert tree(destination) == first
    said = make("uninstall", destination, user)
    left = {name for name, (_, _, content) in tree(destination).items() if "." in name or content}
    assert left == OPERATORS
    assert (destination / "var/lib/mail-gateway/held").is_dir()
    assert {f"{path} stays" for path in (ENV_FILE, PASSWORD_FILE, "/var/lib/mail-gateway")} <= set(said)
    assert make("uninstall", destination, user)[0] == "nothing to remove"


def test_what_is_the_operators_stays_as_it_is(destination: Path, user: str | None) -> None:
    make("install", destination, user)
    theirs = {
        destination / ENV_FILE[1:]: "MAIL_GATEWAY_PASSWORD=mine\n",
        destination / "var/lib/mail-gateway/held/1": "mail",
        destination / "etc/systemd/system/mail-gateway-lmtp.service.d/override.conf": "[Service]\n",
        destination / "opt/mail-gateway/venv/bin/python": "",
    }
    for path, text in theirs.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if user:
        subprocess.run(["chown", "-R", user, destination], check=True)
    said = make("install", destination, user)
    assert said[-1].startswith(f"next: in {ENV_FILE}, MAIL_GATEWAY_PASSWORD_FILE={PASSWORD_FILE} in place of")
    said = make("uninstall", destination, user)
    assert "/opt/mail-gateway stays: it has files of yours" in said
    assert "/etc/systemd/system/mail-gateway-lmtp.service.d stays: it has files of yours" in said
    assert all(path.read_text() == text for path, text in theirs.items())


def test_a_new_version_takes_the_place_of_the_old_one_whole(destination: Path, user: str | None) -> None:
    make("install", destination, user)
    installed = destination / PROGRAM[1:]
    gone = destination.parent / "checkout/mailgate/journal_of_old.py"
    gone.touch()
    assert "/opt/mail-gateway/mailgate: written" in make("install", destination, user)
    assert (installed / "mailgate/journal_of_old.py").exists()
    gone.unlink()
    assert "/opt/mail-gateway/mailgate: written" in make("install", destination, user)
    assert not (installed / "mailgate/journal_of_old.py").exists()
    assert [path for path in installed.iterdir() if path.name.startswith("new.")] == []


def test_exims_user_may_connect_where_exim_is_the_mail_server(destination: Path, user: str | None) -> None:
    units = destination / "etc/systemd/system"
    make("install", destination, user, MTA="exim")
    assert len(list(units.glob("*.socket.d/exim.conf"))) == 2
    make("install", destination, user)
    assert not list(units.glob("*.socket.d/exim.conf"))
    make("install", destination, user, MTA="exim")
    make("uninstall", destination, user)
    assert list(units.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        (["--bogus"], {}, "usage: install [--remove]"),
        ([], {"DESTDIR": "relative"}, "DESTDIR is no absolute path: relative"),
        (["--remove"], {"DESTDIR": "relative"}, "DESTDIR is no absolute path: relative"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(arguments: list[str], environ: dict[str, str], said: str) -> None:
    finished = subprocess.run(
        [INSTALL, *arguments], env=ENVIRONMENT | environ, capture_output=True, text=True, check=False
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (1, "", f"install: {said}\n")


# A machine of its own: what is installed, and systemd, are in memory, and gone with the last process.
MACHINE = """
mount -t tmpfs none /run && mkdir -p /run/systemd/system /run/mail-gateway /run/etc && cp -a /etc/. /run/etc
mount --bind /run/etc /etc && mount -t tmpfs none /opt && mount -t tmpfs none /var/lib
sed -i '/^mail-gateway:/d' /etc/passwd /etc/group /etc/shadow
rm -rf /etc/mail-gateway* /etc/systemd/system/mail-gateway-*
"""
# What is not on that machine, or would not come to an end. To systemctl a service runs once it has been started.
STUBS = {
    "apt-get": "",
    "editor": r"""
for file; do case $file in
*.env) sed -i "s|^\(MAIL_GATEWAY_URL=\).*|\1$URL|; s|^\(MAIL_GATEWAY_LOGIN=\).*|\12|" $file ;;
*/task.password) printf %s "$MAILBOX_PASSWORD" >$file ;;
*.password) printf %s "$PASSWORD" >$file ;;
esac; done
""",
    "journalctl": "",
    "systemctl": """
case $1 in is-active | is-enabled) [ -e /run/started.$3 ] ;; enable) [ "$2" != --now ] || touch /run/started.$3 ;; esac
""",
}
WALK = r"""
echo --- again
make install
stat -c '%U:%G %a %n' /etc/mail-gateway.env /etc/mail-gateway.password /var/lib/mail-gateway/held /opt/mail-gateway
echo --- mailboxes without a package
touch /etc/mail-gateway-mailboxes.toml
python3 -m venv --without-pip /opt/mail-gateway/venv
! make install 2>&1
echo --- mailboxes
python3 -m venv --without-pip --system-site-packages /opt/mail-gateway/venv
cp -r $PACKAGES /opt/mail-gateway/venv/lib/python3.*/site-packages
make install
make install
echo --- a mail
chown mail-gateway: /run/mail-gateway
cd /opt/mail-gateway
setpriv --reuid mail-gateway --regid mail-gateway --clear-groups \
    /usr/bin/python3 -m mailgate.service --env-file /etc/mail-gateway.env &
until [ -S /run/mail-gateway/lmtp.sock ]; do kill -0 $! && sleep 0.1; done
printf 'Subject: hello\n\nbody\n' | runuser -u mail-gateway -- env -i PATH=/usr/bin:/bin \
    /opt/mail-gateway/mail_gateway.py --sender=ann@b.test -- info@example.com
kill $! && wait $! || true
echo --- the journal
ls /var/lib/mail-gateway/journal/*.sqlite3
echo --- without a package
! PYTHON=false "$OLDPWD/systemd/install" 2>&1
echo --- and out again
rm -r /opt/mail-gateway/venv
/opt/mail-gateway/systemd/install --remove
echo --- what is left
ls -A /opt /etc/systemd/system | grep mail-gateway || true
"""


def on_a_machine(scripts: list[str], folder: Path, endpoint: Endpoint, **environ: str) -> dict[str, str]:
    """Run scripts, as root, on a machine that has never seen the gateway; return what they say behind each "---"."""
    for name, script in STUBS.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}")
        (folder / name).chmod(0o755)
    path = {"PATH": f"{folder}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"}
    finished = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-euc", "".join([MACHINE, *scripts])],
        cwd=ROOT,
        env=environ | path | {"URL": endpoint.url, "PASSWORD": PASSWORD, "PACKAGES": packages()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    return dict(re.findall(r"(?ms)^--- ([^\n]*)\n(.*?)(?=^--- |\Z)", finished.stdout))


def packages() -> str:
    """Return where those packages are that Debian 12 has not; they are the tests' own."""
    installed = Path(imapclient.__file__).parents[1]
    return " ".join(f"{path}" for pattern in ("imapclient*", "*oauthlib*") for path in installed.glob(pattern))


@pytest.mark.mta
def test_the_commands_of_the_readme_lead_from_nothing_to_the_first_mail(endpoint: Endpoint, tmp_path: Path) -> None:
    """As root, on a machine that has never seen the gateway; nobody says where the service is."""
    assert os.geteuid() == 0
    (block,) = re.findall(r"(?m)^    apt-get install(?:.*\n    )+.*\n", page("README.md"))
    commands = [f"echo '--- {number}'\n{line.strip()}\n" for number, line in enumerate(block.splitlines())]
    said = on_a_machine([*commands, WALK], tmp_path, endpoint, MTA="postfix")
    assert said["1"].startswith("useradd --system ")
    assert "\nsystemctl enable mail-gateway-lmtp\nnext: your database into /etc/mail-gateway.env, " in said["1"]
    assert said["3"].startswith("info@example.com: delivered as info@example.com")
    assert said["4"] == "systemctl enable --now mail-gateway-lmtp\n"
    assert said["again"] == (
        f"nothing to change\nroot:mail-gateway 640 {ENV_FILE}\nroot:mail-gateway 640 {PASSWORD_FILE}\n"
        "mail-gateway:mail-gateway 700 /var/lib/mail-gateway/held\nroot:root 755 /opt/mail-gateway\n"
    )
    assert said["mailboxes without a package"].startswith(
        "mail-gateway-mailboxes: needs the package imapclient: docs/mailboxes.md says how to install it\n"
        "install: so the mailboxes are not read\n"
    )
    assert said["mailboxes"] == "systemctl enable --now mail-gateway-mailboxes\nnothing to change\n"
    assert said["a mail"] == "2.0.0 delivered\n"
    assert endpoint.messages[0].endswith(b"\r\n\r\nbody\r\n")  # by way of the service
    assert said["the journal"] == "/var/lib/mail-gateway/journal/journal.sqlite3\n"
    assert said["without a package"].startswith("install: false has no package requests: apt-get install python3-requ")
    for unit in "mail-gateway-lmtp", "mail-gateway-mailboxes":
        assert f"systemctl disable --now {unit}\n" in said["and out again"]
    assert "the user mail-gateway stays: the folder is its own\n" in said["and out again"]
    assert said["what is left"] == ""


FETCHED = r"""
echo --- once
mail-gateway-mailboxes once
mail-gateway-mailboxes check
echo --- and out again
rm -r /opt/mail-gateway/venv
/opt/mail-gateway/systemd/install --remove
"""


@pytest.mark.mailboxes
def test_the_six_steps_lead_from_nothing_to_the_first_record_of_a_mailbox(endpoint: Endpoint, tmp_path: Path) -> None:
    """On a machine without a mail server. What comes from a network, and systemd, are not there."""
    assert os.geteuid() == 0
    text = page("docs/mailboxes.md").partition("\n## From nothing")[2].partition("\n## ")[0]
    steps = ["\n".join(re.findall(r"(?m)^ {7}(.*)$", step)) for step in re.split(r"(?m)^\d\. ", text)[1:]]
    assert len(steps) == 6
    with dovecot() as server:
        server.add_user("task@example.com")
        server.append("task@example.com", b"Message-ID: <1@outside.test>\r\nSubject: hello\r\n\r\nbody\r\n")
        url = server.url("imaps").replace("127.0.0.1", "localhost")
        assert 'server = "imaps://imap.example.com"' in steps[3]
        table = steps[3].replace("imaps://imap.example.com", url) + '\nca_file = "/etc/mail-gateway-ca.pem"'
        steps[3] = f"cp {server.ca_file} /etc/mail-gateway-ca.pem\ncat >{MAILBOXES_FILE} <<'END'\n{table}\nEND"
        downloaded = "/opt/mail-gateway/venv/bin/pip install 'IMAPClient>=2.3'"
        assert downloaded in steps[0]
        steps[0] = steps[0].replace(downloaded, "cp -r $PACKAGES /opt/mail-gateway/venv/lib/python3.*/site-packages")
        commands = [f"echo '--- {number}'\n{step}\n" for number, step in enumerate(steps, 1)]
        no_mail_server = "sed -i '/^postfix:/d; /^Debian-exim:/d' /etc/passwd\n"
        scripts = [no_mail_server, *commands, FETCHED]
        said = on_a_machine(scripts, tmp_path, endpoint, MAILBOX_PASSWORD=MAILBOX_PASSWORD)
        assert said["5"] == f"ok  task: {url} lets us in; messages: 1, new: 1\n"
        assert said["6"] == "systemctl enable --now mail-gateway-mailboxes\n"
        assert said["once"] == f"ok  task: {url} lets us in; messages: 1, new: 0\n"
        assert endpoint.messages[0].endswith(b"\r\n\r\nbody\r\n")
        (message,) = server.messages("task@example.com")
        assert set(message.flags) == {"$MailGatewayDone"}
