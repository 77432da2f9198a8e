"""The operator's desk: where a mail is, why it ended so, and what to do; and today's screen."""

import argparse
import json
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from admin_page import examples
from support.admin import ask
from support.desk import FATES, PAGE, WORLD, Desk, Fate, block
from support.gateway import Gateway
from support.journal import execute
from support.mail_database_server import PASSWORD, ROOT, served

from mailgate import journal
from mailgate.admin import mta
from mailgate.admin.__main__ import COMMANDS, parser
from mailgate.admin.desk import moment
from mailgate.settings import build

by_fate = pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.name)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """After ten mails of different fate."""
    folder = tmp_path_factory.mktemp("desk")
    with served(f"sqlite:///{folder}/mail.db", WORLD) as server:
        found = Desk(folder, server.url, LOGIN="admin")
        found.deliver_all()
        yield found


@by_fate
def test_trace_says_where_a_mail_is_why_and_what_to_do(desk: Desk, fate: Fate) -> None:
    """The page has the screens: tests/admin_page.py writes them into it."""
    screen = desk.run("trace", fate.message_id)
    assert (screen.status, screen.err) == (0, "")
    assert block(["trace", fate.message_id], screen) in PAGE.read_text()


@by_fate
def test_trace_tells_programs_the_same(desk: Desk, fate: Fate) -> None:
    (story,) = json.loads(desk.run("trace", "--json", fate.message_id).out)["messages"]
    assert story["ending"] == fate.ending == story["attempts"][-1]["ending"]
    assert story["recipients"] == [fate.to]
    assert story["advice"]
    assert [record["model"] for record in story["records"]] == [fate.model] * bool(fate.model)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["4Xy20"], ["held"]),
        (["<held@outside.test>"], ["held"]),
        (["HELD@outside.test"], ["held"]),
        (["stühle"], ["held"]),
        (["cleo@outside.test"], ["redirected"]),
        (["sales@example.net"], ["redirected"]),
        (["office", "out"], ["null"]),
        (["ann@", "--ending", "too_large"], ["large"]),
        (["ann@"], ["large", "password", "held", "unknown", "delivered"]),  # the newest first
        (["ann@", "--since", "1d"], ["large", "password", "held", "unknown", "delivered"]),
        (["ann@", "--since", "2099-01-01"], []),
        (["100%"], []),
        (["_held"], []),
    ],
)
def test_a_mail_is_found_by_what_is_known_of_it(desk: Desk, arguments: list[str], names: list[str]) -> None:
    screen = desk.run("trace", "--json", *arguments)
    assert screen.status == (0 if names else 1)
    found = [story["message_id"] for story in json.loads(screen.out)["messages"]]
    assert found == [f"<{name}@outside.test>" for name in names]


def test_the_mail_server_s_half_is_in_journald_where_no_file_has_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path, "http://127.0.0.1:9")
    line = "2026-11-30T09:00:01+0000 mx postfix/qmgr[7]: 4Xjournald: removed"
    desk.program("journalctl", f"echo \"$*\" > {tmp_path}/arguments\necho '{line}'")
    result = desk.gateway.run("--queue-id=4Xjournald", "info@example.com", message=FATES[0].message(0), MAX_SIZE=100)
    assert result.facts["outcome"] == "too_large"
    (story,) = desk.facts("trace", "4Xjournald")["messages"]
    assert story["mail_server"] == [line]
    assert line in " ".join(desk.run("trace", "4Xjournald").out.split())
    first = f"{story['attempts'][0]['at'] - mta.BEFORE_SECONDS:.0f}"
    words = f"--quiet --no-pager --output=short-iso --since=@{first} --facility=mail --grep=4Xjournald\n"
    assert (tmp_path / "arguments").read_text() == words


def test_the_screen_fits_80_columns_and_has_nothing_of_a_stranger_that_a_terminal_acts_on(desk: Desk) -> None:
    message = b"From: \x1b]0;x\x07 <eve@outside.test>\nMessage-ID: <eve@outside.test>\nSubject: \x1b[31m%b\n\nx\n"
    desk.gateway.run("--sender=eve@outside.test", "info@example.com", message=message % (b"[red]" + b"x" * 300))
    for arguments in [], ["trace", "eve@outside.test"], ["trace", "outside.test"], ["held", "list"]:
        out = desk.run(*arguments).out
        assert not {"\x1b", "\x07"} & set(out)
        assert max(map(len, out.splitlines())) <= 80
    assert "[red]" in desk.run("trace", "eve@outside.test").out


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["trace", "x", "--since", "soon"], 2, "--since takes 2d, 90m, 2026-11-30 or '2026-11-30 14:00', not 'soon'"),
        (["trace", "x", "--since", "9" * 400 + "d"], 2, "--since takes 2d, 90m"),
        (["trace", "x", "--limit", "0"], 2, "--limit takes 1 or more"),
        (["trace", "\udcff"], 1, ""),
        (["trace", "x" * 100_000], 1, ""),
        (["trace", "x", "--ending", "lost"], 2, "--ending takes one of: delivered, known, accepted, dropped, held, "),
        (["held", "show", "x"], 2, "0 held messages have a name that begins with 'x'"),
        (["trace"], 2, "the following arguments are required: what"),
        (["frobnicate"], 2, "invalid choice: 'frobnicate'"),
        (["trace", "nobody-knows"], 1, ""),
        (["--help"], 0, ""),
        (["trace", "--help"], 0, ""),
    ],
)
def test_the_exit_status_tells_wrong_usage_from_what_was_found(
    desk: Desk, arguments: list[str], status: int, text: str
) -> None:
    screen = desk.run(*arguments)
    assert screen.status == status
    assert text in screen.err


def test_settings_that_can_not_be_used_are_named(desk: Desk) -> None:
    screen = desk.run("trace", "x", environ={"MAIL_GATEWAY_URL": "odoo"})
    assert (screen.status, screen.out) == (2, "")
    assert screen.err == "mail-gateway-admin: MAIL_GATEWAY_URL is not a URL like https://odoo.example.com\n"


def test_without_a_journal_nothing_is_said_of_what_it_would_know(tmp_path: Path) -> None:
    desk = Desk(tmp_path, "http://127.0.0.1:9")
    desk.gateway.settings["JOURNAL"] = None
    desk.gateway.command()  # writes the settings
    for arguments in ["trace", "x"], ["audit"]:
        screen = desk.run(*arguments)
        assert (screen.status, screen.out) == (1, "")
        assert "there is no journal (MAIL_GATEWAY_JOURNAL)" in screen.err
    assert "No mail since yesterday." not in desk.run().out
    facts = json.loads(desk.run("today", "--json").out)
    assert (facts["today"], facts["failing"]) == (None, None)


ODD = b"\xff\xfe caf\xe9 \xed\xa0\xbd " + "\u6f22\u5b57\u202e ".encode() + b"x" * 5000
IN_ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_an_odd_subject_breaks_no_screen_and_no_json(tmp_path: Path) -> None:
    message = b"From: odd@outside.test\nMessage-ID: <odd@outside.test>\nSubject: %b\n\nx\n" % ODD
    with served(f"sqlite:///{tmp_path}/mail.db", WORLD) as server:
        desk = Desk(tmp_path, server.url)
        desk.gateway.run("--sender=odd@outside.test", "broken@example.com", message=message)
        desk.gateway.run("--sender=odd@outside.test", "info@example.com", message=message.replace(b"<odd", b"<even"))
        desk.gateway.command()
        for arguments in [], ["trace", "odd@outside.test"], ["held", "list"]:
            screen = desk.run(*arguments)
            assert "caf\\xe9" in screen.out
            assert len(screen.out.splitlines()) < 40
            screen = desk.run(*arguments, environ=IN_ASCII)
            assert (screen.err, "caf" in screen.out) == ("", True)
        for arguments in ["trace", "odd@outside.test"], ["held", "list"]:
            facts = json.loads(desk.run(*arguments, "--json").out)
            json.dumps(facts, ensure_ascii=False).encode()  # there is no half of a letter


def parsers(of: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parsers of what a command has, of all depths."""
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield each
                yield from parsers(each)


@pytest.mark.parametrize("each", [*parsers(parser())], ids=lambda each: each.prog)
def test_each_help_has_an_example_that_can_be_typed(each: argparse.ArgumentParser) -> None:
    assert [*examples(each)]
    for example in examples(each):
        program, *arguments = shlex.split(example)
        assert f"{program} {' '.join(arguments)}".startswith(each.prog.replace("__main__.py", program))
        assert parser().parse_args(arguments)


# What is typed for each row of the page's table; the name is that of a held message.
TYPED = {
    "today": ["today"],
    "trace": ["trace", "held@outside.test"],
    "explain": ["explain", str(ROOT / "demo" / "1-new-lead.eml")],
    "explain --address": ["explain", "--address", "info@example.com"],
    "check": ["check"],
    "audit": ["audit"],
    "held list": ["held", "list"],
    "held show": ["held", "show", "2"],
    "held release": ["held", "release", "2", "--dry-run"],
    "held mend": ["held", "mend", "2", "--dry-run"],
    "held forward": ["held", "forward", "2", "a@elsewhere.test", "--dry-run"],
    "held drop": ["held", "drop", "2", "--why=spam", "--dry-run"],
    "addresses": ["addresses"],
    "redirections": ["redirections", "--to", "mail.example.net"],
    "settings": ["settings", "--update", "--dry-run"],
    "send-test": ["send-test", "info@example.com", "--direct"],
    "postmaster": ["postmaster", "--dry-run"],
}
COMMAND_ROWS, PART_ROWS = (
    re.findall(r"(?m)^\| (`[a-z].*?) \| (.*) \|$", text)
    for text in PAGE.read_text().partition("## For programs")[2].split("| part | has |")
)
DOCUMENTED = {name: has for names, has in COMMAND_ROWS for name in re.findall(r"`(.*?)`", names)}
PARTS = {name: has for names, has in PART_ROWS for name in names.replace("`", "").split(", ")}


def test_the_page_has_each_command_s_answer_for_programs() -> None:
    assert DOCUMENTED.keys() == TYPED.keys() | {"redirections watch"}
    assert {name.split()[0] for name in DOCUMENTED} == {command.name for command in COMMANDS}


@pytest.mark.parametrize("name", TYPED)
def test_a_program_gets_what_the_page_says(desk: Desk, name: str) -> None:
    screen = desk.run(*TYPED[name], "--json", environ={"MAIL_GATEWAY_POSTMASTER": "pat@elsewhere.test"})
    assert screen.out.isascii()
    facts = json.loads(screen.out)
    assert [key for key in facts if f"`{key}`" not in DOCUMENTED[name]] == []
    always = re.split(": |; with ", DOCUMENTED[name])[0]
    assert not set(re.findall("`([a-z_]+)`", always)) - facts.keys()


def parts(facts: dict[str, Any], command: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the name of each part of an answer, as the page has it, and its keys."""
    for key, value in facts.items():
        name = f"{key} of {command}" if f"{key} of {command}" in PARTS else key
        rows = [value] if key == "record" else [*value.values()] if key == "changes" else value
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, dict):
                yield name, {*row}
                yield from parts(row, command)


def test_each_part_of_an_answer_has_what_the_page_says(tmp_path: Path) -> None:
    row: dict[str, Any] = {"queue_name": "deferred", "queue_id": "4Xy", "arrival_time": 1, "sender": ""}
    row |= {"recipients": [{"address": "info@example.com"}]}
    message = FATES[0].message(1)
    answer = message.replace(b"Date:", b"In-Reply-To: <known@outside.test>\nDate:")
    (tmp_path / "answer.eml").write_bytes(answer)
    (tmp_path / "notice.eml").write_bytes(message.replace(b"info@", b"catchall@"))
    aliases = "info@example.com,broken@example.com,catchall@example.com,old@example.com"
    commands = [*TYPED.values(), ["trace", "outside.test"], ["held", "release", "--all"]]
    commands += [["explain", str(path)] for path in tmp_path.glob("*.eml")]
    with served(f"sqlite:///{tmp_path}/mail.db", WORLD) as server:
        desk = Desk(tmp_path, server.url, LOGIN="admin", ALIASES=aliases, POSTMASTER="pat@elsewhere.test")
        desk.program("postqueue", f"echo '{json.dumps(row)}'")
        for number in (0, 2, 4):
            desk.deliver(FATES[number], number)
        desk.gateway.run("--queue-id=jobs.0123456789ab", "info@example.com", message=answer, PASSWORD="an old key")
        desk.gateway.command()
        lost, known = server.search("mail.message", [["message_id", "like", "@outside.test"]], "message_id")
        server.call("mail.message", "unlink", [lost["id"]])
        doubled = {"message_id": known["message_id"], "model": "crm.lead", "res_id": 1, "body": "again"}
        server.call("mail.message", "create", doubled)
        found: dict[str, list[set[str]]] = {}
        for words in commands:
            for name, keys in parts(desk.facts(*words), " ".join(words[:2] if words[0] == "held" else words[:1])):
                found.setdefault(name, []).append(keys)
    assert found.keys() == PARTS.keys()
    for name, has in PARTS.items():
        always, every = (set(re.findall("`([a-z_]+)`", text)) for text in (has.partition(";")[0], has))
        assert set.intersection(*found[name]) == always, name
        assert set.union(*found[name]) == every, name


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become another user")
@pytest.mark.parametrize("name", ["JOURNAL", "STATE"])
@pytest.mark.parametrize("user_id", [65534, 54321], ids=["nobody", "without a name"])
def test_root_goes_on_as_the_owner_of_the_journal(name: str, user_id: int) -> None:
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        folder.chmod(0o755)
        gateway = Gateway(folder, URL="http://127.0.0.1:9", LOG="stderr")
        gateway.command(**{"JOURNAL": None, name: folder / "journal"})
        (folder / "journal").chmod(0o700)
        os.chown(folder / "journal", user_id, 65534)
        done = ask(gateway.env_file, "trace", "nothing")
        assert (done.returncode, done.stderr) == (1, "")
        assert {file.stat().st_uid for file in (folder / "journal").iterdir()} == {user_id}


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become another user")
def test_what_the_owner_can_not_write_root_can_not_write_as_him() -> None:
    """What root could do counts for nothing; a service that runs as him would see the same."""
    with tempfile.TemporaryDirectory() as path:
        gateway = Gateway(Path(path), URL="http://127.0.0.1:9", LOG="stderr")
        settings = build({name: str(value) for name, value in gateway.settings.items()})
        Path(path).chmod(0o755)
        journal_folder = Path(settings.journal)
        journal_folder.chmod(0o500)
        os.chown(journal_folder, 65534, 65534)
        gateway.command()
        done = ask(gateway.env_file, "trace", "nothing")
        why = f"MAIL_GATEWAY_JOURNAL is not a folder that can be written: {journal_folder}"
        assert (done.returncode, done.stderr) == (2, f"mail-gateway-admin: {why}\n")
        os.seteuid(65534)
        try:
            assert not journal.can_write(settings)
        finally:
            os.seteuid(0)


def test_today_counts_what_ended_how(desk: Desk) -> None:
    screen = desk.run("today", "--json")
    facts = json.loads(screen.out)
    assert screen.status == 1
    endings = {fate.ending for fate in FATES}
    assert facts["today"].keys() | facts["yesterday"].keys() == endings
    assert facts["today"].get("held", 0) + facts["yesterday"].get("held", 0) == 1
    assert [held["subject"] for held in facts["held"]] == ["Stühle"]
    assert {row["ending"] for row in facts["failing"]} == {"unknown_recipient", "access_denied", "too_large"}


def test_today_lists_what_waits_for_us_by_its_recipient_or_its_queue_id(tmp_path: Path) -> None:
    """A redirected mail has its first address in Exim's queue. Mail for others is none of ours."""
    desk = Desk(tmp_path, "http://127.0.0.1:9")
    desk.deliver(FATES[8]._replace(ending="no_answer"), 8)
    waiting = {"4Xy80": "sales@example.net", "4Xz1": "info@example.com", "4Xz2": "ann@outside.test"}
    rows = [
        {"queue_name": "deferred", "queue_id": name, "arrival_time": 0, "sender": "", "recipients": [{"address": to}]}
        for name, to in waiting.items()
    ]
    desk.program("postqueue", "\n".join(f"echo '{json.dumps(row)}'" for row in rows))
    assert [each["queue_id"] for each in desk.facts("today")["waiting"]] == ["4Xy80", "4Xz1"]
    desk.program("postqueue", f"echo '{json.dumps(rows[-1])}'")
    desk.gateway.settings["JOURNAL"] = None
    desk.gateway.command()
    assert (desk.run("today").status, desk.facts("today")["waiting"]) == (0, [])


def test_today_tells_yesterday_apart_and_shows_first_what_fails_most_and_longest(tmp_path: Path) -> None:
    desk = Desk(tmp_path, "http://127.0.0.1:9")
    for name, size in {"old": 90, "new": 80, "one": 100, "two": 100}.items():
        message = f"Message-ID: <{name}@outside.test>\n\n{'x' * 100}\n".encode()
        result = desk.gateway.run(f"--queue-id={name}", "info@example.com", message=message, MAX_SIZE=size)
        assert result.facts["outcome"] == "too_large"
    execute(desk.gateway.settings["JOURNAL"], "update attempt set at = at - 86400 where queue_id = 'old'")
    facts = desk.facts("today")
    assert (facts["today"], facts["yesterday"]) == ({"too_large": 3}, {"too_large": 1})
    failing = [(row["cause"], row["messages"]) for row in facts["failing"]]
    assert failing == [("more than 100 bytes", 2), ("more than 90 bytes", 1), ("more than 80 bytes", 1)]
    assert re.search(r"(?m)^too_large +3 +1$", desk.run("today").out)


def test_held_mail_is_listed_with_its_cause_and_shown(desk: Desk) -> None:
    (held,) = json.loads(desk.run("held", "list", "--json").out)["held"]
    assert held["cause"] == "fault 1: ValueError: Invalid field 'colour' in 'crm.lead'"
    shown = desk.run("held", "show", held["name"][:20])
    assert shown.status == 0
    lines = [re.sub("  +", " ", line).rstrip() for line in shown.out.splitlines()]
    has = {f"Since {moment(held['since'])}", f"Cause {held['cause']}", "Subject: =?utf-8?q?St=C3=BChle?=", "words"}
    assert has <= {*lines}


def test_an_audit_names_what_is_lost_and_doubled_and_nothing_else(tmp_path: Path) -> None:
    with served(f"sqlite:///{tmp_path}/mail.db", WORLD) as server:
        desk = Desk(tmp_path, server.url)
        desk.deliver_all()
        good = desk.run("audit", "--json", "--textfile", str(tmp_path / "audit.prom"))
        assert (good.status, good.err) == (0, "")
        places = {
            "on records": 4 + 2,  # those of the loop that came before it was one
            "bounces and notices": 1,
            "dropped by the database, the sender told": 1,
            "held": 1,
            "refused": 2,
        }
        facts = json.loads(good.out)
        counts = {place: count for place, count in facts["places"].items() if count}
        assert counts == {**places, "waiting, as far as can be told": 1}
        assert facts["taken"] == sum(counts.values())
        assert (facts["lost"], facts["doubled"]) == ([], [])
        assert "mail_gateway_audit_lost 0\n" in (tmp_path / "audit.prom").read_text()

        (deleted,) = server.search("mail.message", [["message_id", "=", "<delivered@outside.test>"]], "id")
        server.call("mail.message", "unlink", [deleted["id"]])
        (known,) = server.search("mail.message", [["message_id", "=", "<known@outside.test>"]], "res_id")
        server.call(
            "mail.message",
            "create",
            {"message_id": "<known@outside.test>", "model": "crm.lead", "res_id": known["res_id"], "body": "again"},
        )
        refused = FATES[0]._replace(to="nobody@example.com", ending="unknown_recipient")  # it hides nothing
        desk.deliver(refused, 99)
        (held,) = (tmp_path / "held" / "new").iterdir()
        held.unlink()
        bad = desk.run("audit", "--json", "--textfile", str(tmp_path / "audit.prom"))
        assert bad.status == 1
        facts = json.loads(bad.out)
        assert {row["message_id"] for row in facts["lost"]} == {"<held@outside.test>", "<delivered@outside.test>"}
        assert [row["message_id"] for row in facts["doubled"]] == ["<known@outside.test>"]
        assert "mail_gateway_audit_lost 2\n" in (tmp_path / "audit.prom").read_text()
        screen = desk.run("audit").lasting
        assert "the database has no message <delivered@outside.test>" in re.sub(r"\s+", " ", screen)


@pytest.mark.parametrize("name", ["mail-gateway-admin.1", "mail-gateway-admin.bash", "_mail-gateway-admin"])
def test_the_man_page_and_the_completions_have_each_command_and_option(name: str) -> None:
    """``make admin-pages`` writes them."""
    text = (ROOT / "docs" / "man" / name).read_text().replace("\\-", "-")
    for command in COMMANDS:
        made = argparse.ArgumentParser(add_help=False)
        command.add_arguments(made)
        options = re.findall(r"--[a-z-]+", made.format_help())
        assert [word for word in (command.name, *options) if word not in text] == []


def test_an_audit_knows_a_held_message_by_the_id_that_it_came_with_and_by_that_of_its_call(tmp_path: Path) -> None:
    """Another Date is another message, which is held under an id of its own."""
    with served(f"sqlite:///{tmp_path}/mail.db", WORLD) as server:
        desk = Desk(tmp_path, server.url)
        (held,) = (fate for fate in FATES if fate.name == "held")
        desk.deliver(held, 0)
        execute(desk.gateway.settings["JOURNAL"], "update attempt set at = at - 86400 * 8")
        later = held.message(0).replace(b"Mon, 30 Nov 2026 09:00", b"Mon, 30 Nov 2026 10:00")
        desk.gateway.run("--queue-id=4Xz", "--sender=ann@outside.test", held.to, message=later)
        facts = json.loads(desk.run("audit", "--json").out)
        assert (facts["places"]["held"], facts["lost"]) == (1, [])


def test_another_date_is_another_message_to_trace_and_to_an_audit(tmp_path: Path) -> None:
    with served(f"sqlite:///{tmp_path}/mail.db", WORLD) as server:
        desk = Desk(tmp_path, server.url)
        first = FATES[0]
        later = first.message(0).replace(b"Mon, 30 Nov 2026 09:00", b"Mon, 30 Nov 2026 10:00")
        desk.deliver(first, 0)
        for password in "an old key", PASSWORD:
            words = ("--queue-id=4XzA", "--sender=ann@outside.test", first.to)
            desk.gateway.run(*words, message=later, PASSWORD=password)
        desk.gateway.command()

        found = json.loads(desk.run("trace", "--json", first.message_id).out)["messages"]
        assert [[each["queue_id"] for each in story["attempts"]] for story in found] == [["4XzA", "4XzA"], ["4Xy00"]]
        one = json.loads(desk.run("trace", "--json", "4Xy00").out)["messages"]
        assert [each["record_id"] for each in one[0]["attempts"]] == [1]
        assert [record["id"] for record in one[0]["records"]] == [1]

        facts = json.loads(desk.run("audit", "--json").out)
        assert (facts["taken"], facts["places"]["on records"], facts["lost"]) == (2, 2, [])
        (row,) = server.search("mail.message", [["message_id", "=", first.message_id]], "id")
        server.call("mail.message", "unlink", [row["id"]])
        facts = json.loads(desk.run("audit", "--json").out)
        why = f"the database has no message {first.message_id}"
        assert (facts["places"]["on records"], facts["lost"]) == (1, [{"message_id": first.message_id, "why": why}])
