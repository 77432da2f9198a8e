"""postfix/configure puts the gateway into a Debian Postfix's configuration, and takes it out to the last byte."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.mta

SHIPPED = Path(__file__).parents[1] / "postfix"
SERVICE = "mail-gateway/unix"
SERVICES = (SERVICE, "mail-gateway-lmtp/unix")
# {config} stands for the folder of the configuration, wherever it is.
TRANSPORT = "texthash:{config}/mail-gateway/transport"
VIRTUAL = "texthash:{config}/mail-gateway/virtual"
LISTS = ("relay_domains", "transport_maps", "virtual_alias_maps")
OLD_DEFAULT = "${{$compatibility_level} <level {2} ? {$mydestination} : {}}"
# What Debian's postinst adds to main.cf.debian; the lines at the end keep `postfix check` out of /var and syslog.
POSTINST = """
smtpd_relay_restrictions = permit_mynetworks permit_sasl_authenticated defer_unauth_destination
myhostname = mx.example.com
alias_maps = hash:/etc/aliases
alias_database = hash:/etc/aliases
mydestination = $myhostname, localhost
relayhost =
mynetworks = 127.0.0.0/8 [::ffff:127.0.0.0]/104 [::1]/128
mailbox_size_limit = 0
recipient_delimiter = +
inet_interfaces = loopback-only
queue_directory = {config}/spool
data_directory = {config}/data
maillog_file = {config}/log
maillog_file_prefixes = {config}
"""
# What a main.cf says besides, and what the three lists are when the gateway is in.
MAIN_CF = {
    "stock": ("", TRANSPORT, TRANSPORT, VIRTUAL),
    "with lists": (
        "relay_domains = example.net\ntransport_maps = hash:/etc/postfix/transport\nvirtual_alias_maps=hash:/a hash:/b",
        f"example.net, {TRANSPORT}", f"hash:/etc/postfix/transport, {TRANSPORT}", f"hash:/a hash:/b, {VIRTUAL}",
    ),
    "with lists over several lines": (
        "relay_domains =\n  example.net,\n# example.org,\n\texample.edu,  \nrelayhost =   \n"
        "transport_maps = inline:{ { a = b },\n  { c = d } }\n",
        f"example.net, example.edu, {TRANSPORT}", "inline:{ { a = b }, { c = d } }, " + TRANSPORT, VIRTUAL,
    ),
    "without a newline at its end": ("relay_domains = example.net", f"example.net, {TRANSPORT}", TRANSPORT, VIRTUAL),
    "with a list twice": (
        "relay_domains = example.net\nrelay_domains = example.org\n", f"example.org, {TRANSPORT}", TRANSPORT, VIRTUAL,
    ),
    "with lists that refer": (
        "virtual_maps = hash:/old\nour =\ntransport_maps = $our\n",
        TRANSPORT, f"$our, {TRANSPORT}", f"$virtual_maps, {VIRTUAL}",
    ),
    "of compatibility level 0": ("compatibility_level = 0\n", f"{OLD_DEFAULT}, {TRANSPORT}", TRANSPORT, VIRTUAL),
    "of level 0 with an empty list": (
        "compatibility_level = 0\nrelay_domains =\n", TRANSPORT, TRANSPORT, VIRTUAL,
    ),
    "in Latin-1": ("# \udce9\ntransport_maps = pcre:/\udce9\n", TRANSPORT, f"pcre:/\udce9, {TRANSPORT}", VIRTUAL),
    "that has one of ours": (f"relay_domains = {TRANSPORT} a.example\n", f"{TRANSPORT} a.example", TRANSPORT, VIRTUAL),
}  # fmt: skip


class Postfix:
    """A configuration as Debian installs it, in a folder of its own."""

    def __init__(self, config: Path, kind: str = "stock") -> None:
        self.config = config
        config.mkdir(mode=0o755)
        (config / "spool").mkdir()
        (config / "data").mkdir()
        shutil.chown(config / "data", "postfix")
        for file in ("postfix-files", "dynamicmaps.cf"):
            shutil.copy(Path("/etc/postfix", file), config)
        shutil.copy("/etc/postfix/master.cf.proto", config / "master.cf")
        stock = Path("/usr/share/postfix/main.cf.debian").read_text() + POSTINST
        text = MAIN_CF[kind][0]
        if "compatibility_level" in text:
            stock = re.sub(r"(?m)^compatibility_level = .*\n", "", stock)
        (config / "main.cf").write_bytes(os.fsencode(self.there(stock + text)))

    def there(self, text: str) -> str:
        return text.replace("{config}", str(self.config))

    def settle(self) -> None:
        """Give each new file an older time: postconf(1) waits for two seconds over one that was just written."""
        for path in self.config.rglob("*"):
            if path.is_file() and path.stat().st_mtime > time.time() - 5:
                os.utime(path, ns=(time.time_ns() - 10**11,) * 2)

    def configure(self, *options: str, program: Path = SHIPPED / "configure") -> str:
        self.settle()
        finished = run(sys.executable, program, "-c", self.config, *options)
        assert (finished.returncode, finished.stderr) == (0, "")
        return finished.stdout

    def ask(self, *options: str) -> str:
        """Return what postconf(1) says, with {config} for the folder, as in what it is asked."""
        self.settle()
        said = run("postconf", "-c", self.config, *map(self.there, options)).stdout.strip()
        return said.replace(str(self.config), "{config}")

    def lists(self) -> list[str]:
        return [self.ask("-h", name) for name in LISTS]

    def expanded(self) -> list[str]:
        return [self.ask("-hx", name) for name in LISTS]

    def append(self, file: str, text: str) -> None:
        with (self.config / file).open("a", errors="surrogateescape") as stream:
            stream.write(self.there(text))

    def files(self) -> dict[str, tuple[bytes, int, int, int]]:
        """Return what may not change unasked: bytes, mode, owner and time of each file and folder."""
        self.settle()
        return {
            str(path.relative_to(self.config)): (
                path.read_bytes() if path.is_file() else b"",
                (stat := path.stat()).st_mode, stat.st_uid, stat.st_mtime_ns,
            )
            for path in (self.config, *self.config.rglob("*"))
        }  # fmt: skip

    def contents(self) -> dict[str, tuple[bytes, int, int]]:
        return {name: (content, mode, owner) for name, (content, mode, owner, _) in self.files().items()}


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="surrogateescape", **options)


def words(value: str) -> list[str]:
    return value.replace(",", " ").split()


def changes(output: str) -> list[str]:
    """Return the lines that a dry run and the run after it have in common."""
    return [line for line in output.splitlines() if not line.startswith("next: ")]


@pytest.fixture
def postfix(tmp_path: Path) -> Postfix:
    return Postfix(tmp_path / "etc")


@pytest.fixture(params=MAIN_CF)
def any_postfix(tmp_path: Path, request: pytest.FixtureRequest) -> Postfix:
    return Postfix(tmp_path / "etc", request.param)


@pytest.mark.parametrize("kind", MAIN_CF)
def test_each_list_keeps_what_it_has_and_gets_our_element_at_its_end(kind: str, tmp_path: Path) -> None:
    postfix = Postfix(tmp_path / "etc", kind)
    postfix.configure()
    assert postfix.lists() == list(MAIN_CF[kind][1:])


def test_the_services_are_word_for_word_the_shipped_ones(postfix: Postfix) -> None:
    postfix.configure()
    lines = (SHIPPED / "master.cf").read_text().replace("/etc/postfix/", "{config}/").splitlines()
    shipped = " ".join(line for line in lines if not line.startswith("#")).split()
    assert [word for service in SERVICES for word in postfix.ask("-Mf", service).split()] == shipped
    assert "${queue_id}" in shipped
    others = [line for line in postfix.ask("-M").splitlines() if not line.startswith("mail-gateway")]
    shutil.copy("/etc/postfix/master.cf.proto", postfix.config / "master.cf")
    assert others == postfix.ask("-M").splitlines()


def test_postfix_finds_no_fault_that_it_did_not_find_before(any_postfix: Postfix) -> None:
    def check() -> set[str]:
        any_postfix.settle()
        log = any_postfix.config / "log"
        log.write_text("")
        checked = run("postfix", "-c", any_postfix.config, "check")
        assert checked.returncode == 0
        # Postfix 3.10 says it on standard error, older ones in the log
        lines = (log.read_text(errors="surrogateescape") + checked.stderr).splitlines()
        return {re.sub(r"^.*?: |, line .*", "", line) for line in lines}

    (any_postfix.config / "not-roots").touch()  # something to complain of: the log is where we look
    shutil.chown(any_postfix.config / "not-roots", "postfix")
    before = check()
    any_postfix.configure()
    assert any("not-roots" in line for line in before)
    assert check() <= before


def test_what_the_operator_writes_into_the_tables_is_found_through_the_lists(postfix: Postfix) -> None:
    postfix.configure()
    postfix.append("mail-gateway/transport", "mail.example.com mail-gateway:database\n")
    postfix.append("mail-gateway/virtual", "info@example.com info@mail.example.com\n")
    keys = ("mail.example.com", "mail.example.com", "info@example.com")
    found = [
        run("postmap", "-c", postfix.config, "-q", key, postfix.there(postfix.ask("-hx", name))).stdout.strip()
        for key, name in zip(keys, LISTS, strict=True)
    ]
    assert found == ["mail-gateway:database", "mail-gateway:database", "info@mail.example.com"]


def test_every_local_user_can_read_the_tables(postfix: Postfix) -> None:
    postfix.settle()
    run(sys.executable, SHIPPED / "configure", "-c", postfix.config, umask=0o077)
    folder = postfix.config / "mail-gateway"
    assert folder.stat().st_mode & 0o777 == 0o755
    for table in ("delivery_status", "transport", "virtual"):
        assert (folder / table).read_bytes() == (SHIPPED / table).read_bytes()
        assert (folder / table).stat().st_mode & 0o777 == 0o644


def test_a_second_run_changes_nothing(any_postfix: Postfix) -> None:
    first = any_postfix.configure()
    assert "\nnext: " in first
    before = any_postfix.files()
    second = any_postfix.configure()
    assert [line for line in changes(second) if not line.startswith("warning: ")] == ["nothing to change"]
    assert "next: " not in second
    assert any_postfix.files() == before


@pytest.mark.parametrize("option", [[], ["--remove"]], ids=["configure", "remove"])
def test_a_dry_run_says_the_same_and_changes_nothing(option: list[str], any_postfix: Postfix) -> None:
    if option:
        any_postfix.configure()
    before = any_postfix.files()
    said = any_postfix.configure("--dry-run", *option)
    assert any_postfix.files() == before
    assert said.splitlines() == changes(any_postfix.configure(*option))
    assert any_postfix.files() != before


def test_each_change_has_its_line(postfix: Postfix) -> None:
    said = [line for line in postfix.configure().splitlines() if not line.startswith("warning: ")]
    folder = postfix.config / "mail-gateway"
    assert said == [
        f"{folder}: made",
        f"{folder}/delivery_status: written",
        f"{folder}/transport: written",
        f"{folder}/virtual: written",
        "master.cf: mail-gateway/unix: added",
        "master.cf: mail-gateway-lmtp/unix: added",
        postfix.there(f"main.cf: relay_domains: {TRANSPORT} added"),
        postfix.there(f"main.cf: transport_maps: {TRANSPORT} added"),
        postfix.there(f"main.cf: virtual_alias_maps: {VIRTUAL} added"),
        *(f"main.cf: {name}: 10000 added" for name in OWN),
        f"next: name your domains in {folder}/transport, then: "
        f"postfix -c {postfix.config} check && postfix -c {postfix.config} reload",
    ]


def test_remove_restores_every_byte(any_postfix: Postfix) -> None:
    before = any_postfix.contents()
    any_postfix.configure()
    any_postfix.configure()
    assert "edited since" not in any_postfix.configure("--remove")
    assert any_postfix.contents() == before


def test_private_files_keep_their_mode_and_owner_and_no_copy_tells_more(postfix: Postfix) -> None:
    for file in ("main.cf", "master.cf"):
        (postfix.config / file).chmod(0o640)
        shutil.chown(postfix.config / file, "postfix")
    before = postfix.contents()
    postfix.configure()
    for file in ("main.cf", "master.cf"):
        assert postfix.contents()[file][1:] == before[file][1:]
        for copy in (postfix.config / "mail-gateway").glob(f"{file}.*"):
            assert copy.stat().st_mode & 0o077 == 0
    postfix.configure("--remove")
    assert postfix.contents() == before


def test_a_file_behind_a_symbolic_link_is_changed_where_it_is(postfix: Postfix) -> None:
    link, file = postfix.config / "main.cf", postfix.config / "main.cf.real"
    link.rename(file)
    link.symlink_to(file.name)
    before = file.read_bytes()
    postfix.configure()
    assert link.is_symlink()
    assert postfix.there(TRANSPORT).encode() in file.read_bytes()
    postfix.configure("--remove")
    assert link.is_symlink()
    assert file.read_bytes() == before


@pytest.mark.parametrize("kind", MAIN_CF)
def test_edits_of_main_cf_survive_remove(kind: str, tmp_path: Path) -> None:
    postfix = Postfix(tmp_path / "etc", kind)
    before = [words(value) for value in postfix.expanded()]
    postfix.configure()
    postfix.append("main.cf", "\nmessage_size_limit = 4711\n# mine\n")
    assert "main.cf: edited since" in postfix.configure("--remove")
    assert [words(value) for value in postfix.expanded()] == [
        [word for word in value if "mail-gateway" not in word] for value in before
    ]
    text = (postfix.config / "main.cf").read_text(errors="surrogateescape")
    assert text.endswith("message_size_limit = 4711\n# mine\n")
    assert not (postfix.config / "mail-gateway").exists()
    assert (postfix.config / "master.cf").read_bytes() == Path("/etc/postfix/master.cf.proto").read_bytes()


def test_a_domain_that_is_local_as_well_is_pointed_out(postfix: Postfix) -> None:
    postfix.configure()
    postfix.append("mail-gateway/transport", "mail.company.test mail-gateway:database\n")
    assert "mydestination" not in postfix.configure()
    postfix.ask("-e", "mydestination = $myhostname, mail.company.test, localhost")
    assert "warning: mail.company.test is in mydestination, too: strangers get 550" in postfix.configure()


OWN = ("mail-gateway_destination_recipient_limit", "mail-gateway-lmtp_destination_recipient_limit")


@pytest.mark.parametrize("name", OWN)
def test_a_setting_of_a_service_s_own_stays_as_the_operator_has_it(name: str, postfix: Postfix) -> None:
    postfix.configure()
    assert postfix.ask("-h", name) == "10000"
    postfix.ask("-e", f"{name} = 500")
    assert "nothing to change" in postfix.configure()
    assert postfix.ask("-h", name) == "500"
    postfix.configure("--remove")
    assert name not in (postfix.config / "main.cf").read_text()


def test_no_list_is_named_in_main_cf_that_was_not_named_before_the_edits(postfix: Postfix) -> None:
    postfix.configure()
    postfix.append("main.cf", "message_size_limit = 4711\n")
    postfix.configure("--remove")
    assert [name for name in LISTS if f"{name} =" in (postfix.config / "main.cf").read_text()] == []


@pytest.mark.parametrize(
    ("now", "left"),
    [
        (f"{TRANSPORT}, hash:/x", "hash:/x"),
        (f"hash:/x {TRANSPORT} hash:/y", "hash:/x hash:/y"),
        (f"hash:/x, {TRANSPORT}, {TRANSPORT}", "hash:/x"),
        (f"{TRANSPORT}.more, {TRANSPORT}", f"{TRANSPORT}.more"),
        ("hash:/x", "hash:/x"),
    ],
)
def test_our_element_is_taken_out_wherever_the_operator_has_moved_it(now: str, left: str, postfix: Postfix) -> None:
    postfix.configure()
    postfix.ask("-e", f"transport_maps = {now}")
    postfix.configure("--remove")
    assert postfix.ask("-h", "transport_maps") == left


def test_edits_of_master_cf_survive_remove(postfix: Postfix) -> None:
    postfix.configure()
    postfix.ask("-F", f"{SERVICE}/process_limit=4")
    postfix.ask("-F", "smtp/inet/process_limit=7")
    assert "master.cf: edited since" in postfix.configure("--remove")
    assert "mail-gateway" not in (postfix.config / "master.cf").read_text()
    assert postfix.ask("-Fh", "smtp/inet/process_limit") == "7"


@pytest.mark.parametrize("change", [["-F", f"{SERVICE}/process_limit=4"], ["-P", f"{SERVICE}/pipe_time_limit=9s"]])
def test_a_service_that_the_operator_has_changed_is_left_alone(change: list[str], postfix: Postfix) -> None:
    postfix.configure()
    postfix.ask(*change)
    before = postfix.files()
    assert "warning: mail-gateway/unix in master.cf is not as shipped: it stays as it is\n" in postfix.configure()
    assert postfix.files() == before


# --- an installation by an older release ---


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The program and the files that name the variable."""
    shutil.copytree(SHIPPED, folder := tmp_path / "older")
    for file in ("main.cf", "master.cf"):
        text = (SHIPPED / file).read_text()
        assert "/etc/postfix/mail-gateway/" in text
        (folder / file).write_text(text.replace("/etc/postfix/mail-gateway/", "$config_directory/mail-gateway/"))
    return folder / "configure"


def names_the_variable(postfix: Postfix) -> list[str]:
    texts = [(postfix.config / file).read_text(errors="surrogateescape") for file in ("main.cf", "master.cf")]
    return [line for text in texts for line in text.splitlines() if "$config_directory" in line]


def test_nothing_that_is_put_in_names_config_directory(any_postfix: Postfix) -> None:
    """Postfix 3.8 and later don't know it in a process that starts within two seconds of a change of main.cf."""
    any_postfix.configure()
    assert names_the_variable(any_postfix) == []


@pytest.mark.parametrize("kind", [kind for kind in MAIN_CF if kind != "that has one of ours"])
def test_a_second_run_puts_the_folder_where_an_older_release_had_the_variable(
    kind: str, tmp_path: Path, older: Path
) -> None:
    postfix = Postfix(tmp_path / "etc", kind)
    postfix.configure(program=older)
    assert "$config_directory" in postfix.ask("-h", "virtual_alias_maps")
    said = postfix.configure()
    assert f"main.cf: virtual_alias_maps: $config_directory/mail-gateway/ is now {postfix.config}/" in said
    assert f"master.cf: {SERVICE}: pipe_delivery_status_filter: $config_directory/mail-gateway/ is now " in said
    assert "is not as shipped" not in said
    assert names_the_variable(postfix) == []
    assert postfix.lists() == list(MAIN_CF[kind][1:])
    assert "nothing to change" in postfix.configure()


@pytest.mark.parametrize("upgraded", [False, True])
def test_remove_restores_every_byte_after_an_older_release(any_postfix: Postfix, older: Path, upgraded: bool) -> None:
    before = any_postfix.contents()
    any_postfix.configure(program=older)
    if upgraded:
        any_postfix.configure()
    assert "edited since" not in any_postfix.configure("--remove")
    assert any_postfix.contents() == before


@pytest.mark.parametrize("upgraded", [False, True])
def test_edits_survive_remove_after_an_older_release(postfix: Postfix, older: Path, upgraded: bool) -> None:
    postfix.configure(program=older)
    postfix.append("main.cf", "\nmessage_size_limit = 4711\n")
    postfix.ask("-F", "smtp/inet/process_limit=7")
    if upgraded:
        postfix.configure()
    said = postfix.configure("--remove")
    assert "main.cf: edited since" in said
    assert "master.cf: edited since" in said
    assert not [name for name in LISTS if "mail-gateway" in postfix.ask("-h", name)]
    assert "mail-gateway" not in (postfix.config / "master.cf").read_text()
    assert postfix.ask("-h", "message_size_limit") == "4711"
    assert postfix.ask("-Fh", "smtp/inet/process_limit") == "7"


def test_a_service_that_the_operator_has_changed_keeps_all_but_the_variable(postfix: Postfix, older: Path) -> None:
    postfix.configure(program=older)
    postfix.ask("-F", f"{SERVICE}/process_limit=4")
    said = postfix.configure()
    assert f"warning: {SERVICE} in master.cf is not as shipped: it stays as it is\n" in said
    assert names_the_variable(postfix) == []
    assert postfix.ask("-Fh", f"{SERVICE}/process_limit") == "4"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["-e", "relay_recipient_maps = texthash:$config_directory/mail-gateway-recipients"], "relay_recipient_maps"),
        (["-e", "relay_recipient_maps = hash:/x, pcre:${config_directory}/y"], "relay_recipient_maps"),
        (["-e", "transport_maps = hash:$(config_directory)/x"], "transport_maps"),
        (["-P", "smtp/inet/alias_maps=hash:$config_directory/x"], "smtp/inet/alias_maps"),
        (["-e", "our_config_directory = /x", "relay_recipient_maps = hash:$config_directory_of_ours/x"], ""),
    ],
)
def test_the_variable_in_what_is_not_ours_is_pointed_out(options: list[str], name: str, postfix: Postfix) -> None:
    postfix.ask(*options)
    warned = [line for line in postfix.configure().splitlines() if "$config_directory" in line]
    said = f"warning: {name} names $config_directory, which Postfix 3.8 and later may forget: write {postfix.config}"
    assert warned == ([said] if name else [])


@pytest.mark.parametrize(("setting", "is_off"), [("no", True), ("No", True), ("yes", False), ("normalize", False)])
def test_it_is_said_where_a_line_feed_may_end_a_message(setting: str, is_off: bool, postfix: Postfix) -> None:
    postfix.ask("-e", f"smtpd_forbid_bare_newline = {setting}")
    said = postfix.configure()
    assert ("postconf -e smtpd_forbid_bare_newline=yes" in said) is is_off
    assert postfix.ask("-h", "smtpd_forbid_bare_newline") == setting


@pytest.mark.parametrize("name", ["a b", "a,b", "$a", "{a}"])
def test_a_folder_that_a_list_can_not_name_is_refused(name: str, tmp_path: Path) -> None:
    finished = run(sys.executable, SHIPPED / "configure", "-c", tmp_path / name)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert_one_line(finished.stderr, str(tmp_path / name))


# --- what was there before, and what the administrator has changed ---


@pytest.mark.parametrize("edited", [False, True])
def test_a_service_that_was_there_before_us_is_never_touched(edited: bool, postfix: Postfix) -> None:
    postfix.append("master.cf", "mail-gateway unix - n n - - pipe user=nobody argv=/bin/true\n")
    before, theirs = postfix.contents(), postfix.ask("-M", SERVICE)
    assert "it stays as it is\n" in postfix.configure()
    assert postfix.ask("-M", SERVICE) == theirs
    assert postfix.lists()[1] == TRANSPORT
    if edited:
        postfix.append("master.cf", "another unix - n n - - pipe user=nobody argv=/bin/true\n")
    assert "warning: mail-gateway/unix in master.cf is not ours: it stays\n" in postfix.configure("--remove")
    assert postfix.ask("-M", SERVICE) == theirs
    assert postfix.ask("-M", SERVICES[1]) == ""
    assert (postfix.contents() == before) is not edited


def test_a_service_that_an_older_release_did_not_have_is_added_and_removed_like_the_others(postfix: Postfix) -> None:
    before = (postfix.config / "master.cf").read_bytes()
    postfix.configure()
    postfix.ask("-MX", SERVICES[1])
    assert "master.cf: mail-gateway-lmtp/unix: added\n" in postfix.configure()
    postfix.configure("--remove")
    assert (postfix.config / "master.cf").read_bytes() == before


def test_the_operators_tables_survive_both(postfix: Postfix) -> None:
    postfix.configure()
    table, delivery_status = (
        postfix.config / "mail-gateway" / "virtual",
        postfix.config / "mail-gateway/delivery_status",
    )
    table.write_text("info@example.com info@mail.example.com\n")
    (table.parent / "notes").touch()
    delivery_status.write_text("# of an older release\n")
    assert changes(postfix.configure())[0] == f"{delivery_status}: written"
    assert delivery_status.read_bytes() == (SHIPPED / "delivery_status").read_bytes()
    assert table.read_text() == "info@example.com info@mail.example.com\n"
    assert f"warning: {table} is not as shipped: it stays\n" in postfix.configure("--remove")
    assert sorted(os.listdir(table.parent)) == ["notes", "virtual"]
    assert table.read_text() == "info@example.com info@mail.example.com\n"
    assert postfix.configure("--remove").splitlines()[-1] == "nothing to remove"
    postfix.configure()
    assert table.read_text() == "info@example.com info@mail.example.com\n"


def test_an_element_that_the_operator_has_taken_out_comes_back_and_his_edits_still_survive(postfix: Postfix) -> None:
    postfix.configure()
    postfix.ask("-X", "relay_domains")
    postfix.append("main.cf", "message_size_limit = 4711\n")
    postfix.configure()
    assert postfix.lists()[0] == TRANSPORT
    postfix.configure("--remove")
    assert postfix.ask("-h", "message_size_limit") == "4711"
    assert postfix.lists() == [OLD_DEFAULT, "", "$virtual_maps"]


def test_a_configuration_put_back_by_hand_counts_as_new(postfix: Postfix) -> None:
    original = (postfix.config / "main.cf").read_bytes()
    postfix.configure()
    (postfix.config / "main.cf").write_bytes(original + b"message_size_limit = 4711")
    postfix.configure()
    postfix.configure("--remove")
    assert (postfix.config / "main.cf").read_bytes() == original + b"message_size_limit = 4711"


@pytest.mark.parametrize(
    ("folder", "options", "environment", "then"),
    [
        ("etc", ["-c", "etc"], {}, "postfix -c {config} check"),
        ("etc", [], {"MAIL_CONFIG": "{config}"}, "postfix check"),
        ("\udce9tc", ["-c", "\udce9tc"], {"PYTHONIOENCODING": "utf-8:strict"}, "postfix -c {config} check"),
    ],
    ids=["relative", "what postconf says", "in Latin-1"],
)
def test_the_folder_may_be_named_in_several_ways(
    folder: str, options: list[str], environment: dict[str, str], then: str, tmp_path: Path
) -> None:
    postfix = Postfix(tmp_path / folder)
    postfix.settle()
    environment = {name: value.format(config=postfix.config) for name, value in environment.items()}
    finished = run(SHIPPED / "configure", *options, cwd=tmp_path, env={**os.environ, **environment})
    assert (finished.returncode, finished.stderr) == (0, "")
    said = then.format(config=str(postfix.config).replace("\udce9", r"\udce9"))
    assert f"transport, then: {said} && " in finished.stdout
    assert postfix.lists()[1] == TRANSPORT


def test_remove_where_there_is_nothing_says_so(postfix: Postfix) -> None:
    before = postfix.files()
    assert postfix.configure("--remove") == "nothing to remove\n"
    assert postfix.files() == before


@pytest.mark.parametrize(
    ("service", "warnings"),
    [
        ("user=nobody argv=/bin/true", 0),
        ("user=nobody:nogroup argv=/bin/true x", 0),
        ("user=of-nobody argv=/bin/true", "there is no user of-nobody"),
        ("user=nobody argv=/bin/no-such", "there is no program /bin/no-such"),
        ("user=nobody argv=/etc/passwd", "there is no program /etc/passwd"),
        ("user=nobody argv=/bin", "there is no program /bin"),
    ],
)
def test_what_would_keep_the_service_from_running_is_warned_of(
    service: str, warnings: str | int, postfix: Postfix
) -> None:
    postfix.append("master.cf", f"mail-gateway unix - n n - - pipe {service}\n")
    said = [line for line in postfix.configure().splitlines() if line.startswith("warning: there is no")]
    assert said == ([f"warning: {warnings}"] if warnings else [])


@pytest.fixture
def seen_by_nobody() -> Iterator[Postfix]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Postfix(Path(folder, "etc"))


def test_who_is_not_root_may_look_but_gets_one_line(seen_by_nobody: Postfix) -> None:
    with tempfile.TemporaryDirectory() as program:  # nobody need not be able to read the checkout
        shutil.copytree(SHIPPED, program, dirs_exist_ok=True)
        Path(program).chmod(0o755)
        command = ("/usr/bin/python3", Path(program, "configure"), "-c", seen_by_nobody.config)
        before = seen_by_nobody.files()
        environment = {**os.environ, "PATH": "/usr/bin:/usr/sbin"}
        looked = run(*command, "--dry-run", user="nobody", env=environment)
        assert (looked.returncode, looked.stderr) == (0, "")
        assert "master.cf: mail-gateway/unix: added\n" in looked.stdout
        tried = run(*command, user="nobody", env=environment)
        assert (tried.returncode, tried.stdout) == (1, "")
        assert_one_line(tried.stderr, "Permission denied")
        assert seen_by_nobody.files() == before


def assert_one_line(said: str, what: str) -> None:
    assert said.startswith("configure: ")
    assert said.count("\n") == 1
    assert what in said


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        ("rm {config}/main.cf", "{config}/main.cf: No such file or directory"),
        ("rm {config}/master.cf", "{config}/master.cf: No such file or directory"),
        ("rm -r {config}", "No such file or directory"),
        ("rm {config}/main.cf && mkdir {config}/main.cf", "Is a directory"),
        ("echo junk >> {config}/main.cf", "missing '=' after attribute name"),
        ("echo junk junk >> {config}/master.cf", "bad field count"),
        ("touch {config}/mail-gateway", "File exists"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_and_changes_nothing(damage: str, what: str, postfix: Postfix) -> None:
    subprocess.run(damage.format(config=postfix.config), shell=True, check=True)
    before = postfix.contents() if postfix.config.exists() else {}
    finished = run(sys.executable, SHIPPED / "configure", "-c", postfix.config)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert_one_line(finished.stderr, what.format(config=postfix.config))
    assert (postfix.contents() if postfix.config.exists() else {}) == before


def test_without_postconf_the_error_says_so(postfix: Postfix) -> None:
    finished = run(sys.executable, SHIPPED / "configure", "-c", postfix.config, env={"PATH": "/nonexistent"})
    assert finished.returncode == 1
    assert_one_line(finished.stderr, "there is no postconf in PATH")


def test_half_a_change_is_said_and_remove_undoes_it(postfix: Postfix) -> None:
    before = postfix.contents()
    obstacle = postfix.config / "mail-gateway" / "main.cf.before"
    obstacle.mkdir(parents=True)
    finished = run(sys.executable, SHIPPED / "configure", "-c", postfix.config)
    assert finished.returncode == 1
    assert finished.stdout.splitlines()[-1] == "master.cf: mail-gateway-lmtp/unix: added"
    assert_one_line(finished.stderr, "; what stands above is done: run this again, or with --remove to undo it")
    assert postfix.contents()["main.cf"] == before["main.cf"]
    obstacle.rmdir()
    postfix.configure("--remove")
    assert postfix.contents() == before
