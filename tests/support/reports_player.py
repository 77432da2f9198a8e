"""reports_player.py [--verbose] PROJECT PYTHON FOLDER [NAME ...]: play FOLDER/cases.json against a checkout.

PROJECT is the checkout, PYTHON the interpreter of its virtual environment. Each case gets a fresh mail_database (SQLite
on loopback), and its mails go through PROJECT/mail_gateway.py as Postfix would hand them over, or by LMTP through the
service. What counts is what is stored before and after, and the exit status; the words of a log or an answer don't.
Prints a line for each difference and at the end "N agree, M differ"; exits with 0 only if none differ. --verbose: the
effects of each step, and the count of each class.

A case: name; class; title, what its user expects; steps; and, where it needs them
  world     FOLDER/NAME.json instead of world.json     with      lists to be added to the world's; same id: replaced
  rename    {text: other text}, in the whole world     settings  MAIL_GATEWAY_… without the prefix
A step: message (messages/NAME.eml) or recipe (list of texts and {repeat, times}; {i} counts), from, to, and maybe
  original  --original-recipient of each recipient     via       "service": by LMTP
  queue_id  else each delivery has its own             beside    mails that come while this one is worked on, a second
                                                                 after each other: steps with max_seconds and a list
                                                                 of exits ([0]), no expect
  expect    all of it must be so                       any_of    one of these expectations must be so
In a message @NOTICE-ID@ and @NOTICE-REFERENCES@ are those of the newest notice.

An expectation, any of:
  exit              0, 65, 67, 75 or a list of these; by LMTP 75 for any 4xx, else 67 (5.1.x) or 65 for any 5xx
  created           [model, part of the name] of each new record, no others
  posted            each new mail in a thread, no others: {model, id or "new", author (partner id or address), subject
                    (a part), body_contains, body_lacks, attachments (these at least: pattern of a name, or
                    {name, size, sha1}; size may be [least, most])}
  failed            ids of the notifications that turn failed, no others
  notices           [about or "*", to] of each new notice, no others
  unplaced          [about, part of the reason] of each message that is kept and is on no record, no others; also where
                    no expectation of the step names it
  sent              [model, id, address] of each mail of ours that goes out, no others; as above
  bounced_partners  addresses whose bounce count rises, no others
  nothing           true: none of all this, nor a file in the hold folder
  not_lost          true: something is stored (also among the dump's "unplaced"), told or held, or it was refused
                    (65, 67) or deferred (75)
  original_kept     true: all of "readable" is in body or subject, or the message as it came is an attachment;
                    without "readable" only the latter
  max_cpu           seconds that the database may work          max_seconds  wall clock, for the delivery
  max_stored        bytes of attachments                        max_memory   MiB, the database's peak
  from_start        true: look at the effects of all steps so far
"""

import concurrent.futures
import email.utils
import fnmatch
import functools
import html
import itertools
import json
import os
import re
import shutil
import smtplib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

AT_ONCE = 2  # cases
MAX_SECONDS = 90  # for a delivery without a limit of its own
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


class Database:
    """A mail_database in a folder of its own, and the gateway's settings beside it."""

    def __init__(self, project, python, folder):
        self.project, self.python, self.folder = project, python, Path(folder)
        self.environment = ENVIRONMENT | {
            "MAIL_DATABASE_STORE": f"sqlite:///{folder}/mail.db",
            "MAIL_DATABASE_NAME": "mydatabase",
            "MAIL_DATABASE_LOGIN": "admin",
            "MAIL_DATABASE_PASSWORD": "secret",
        }
        self.processes, self.count = [], itertools.count(1)

    def command(self, *arguments):
        command = [self.python, "-m", "mail_database", *arguments]
        done = subprocess.run(command, cwd=self.project, env=self.environment, capture_output=True, timeout=120)
        if done.returncode:
            raise RuntimeError(f"mail_database {arguments[0]}: {done.stderr.decode(errors='replace')[-300:].strip()}")
        return done.stdout

    def dump(self):
        return json.loads(self.command("dump"))

    def start(self, *command, said=None):
        with open(self.folder / "process.log", "ab") as log:
            process = subprocess.Popen(
                command, cwd=self.project, env=self.environment, stdout=said or log, stderr=log, text=True
            )
        self.processes.append(process)
        return process

    def serve(self):
        command = [self.python, "-m", "mail_database", "serve", "--port", "0"]
        self.server = self.start(*command, said=subprocess.PIPE)
        self.url = next(found[0] for line in self.server.stdout if (found := re.search(r"http://\S+", line)))

    def configure(self, domains, settings):
        for name in ("hold", "journal"):
            (self.folder / name).mkdir(mode=0o700)
        values = {"URL": self.url, "DATABASE": "mydatabase", "LOGIN": "admin", "PASSWORD": "secret", "PATIENCE": "5",
                  "ALIAS_DOMAINS": ",".join(domains), "LOG": f"{self.folder}/log", "HOLD": f"{self.folder}/hold",
                  "JOURNAL": f"{self.folder}/journal", **settings}  # fmt: skip
        self.settings = self.folder / "gateway.env"
        self.settings.touch(0o600)
        self.settings.write_text("".join(f"MAIL_GATEWAY_{name}={value}\n" for name, value in values.items()))

    def start_service(self):
        self.socket = str(self.folder / "lmtp")
        with self.settings.open("a") as settings:
            settings.write(f"MAIL_GATEWAY_LMTP={self.socket}\n")
        self.start(self.python, "-m", "mailgate.service", "--env-file", self.settings)
        for _ in range(300):
            with socket.socket(socket.AF_UNIX) as probe:
                if not probe.connect_ex(self.socket):
                    break
            time.sleep(0.1)

    def cpu(self):
        """Return the seconds that the server has worked, and its peak of memory in MiB."""
        try:
            fields = Path(f"/proc/{self.server.pid}/stat").read_text().rpartition(")")[2].split()
            peak = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{self.server.pid}/status").read_text())
        except OSError:
            return 0.0, 0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(peak[1]) >> 10 if peak else 0

    def held(self):
        return sum(len(names) for _, _, names in os.walk(self.folder / "hold"))

    def deliver(self, mail, raw, seconds, stop):
        """Return the exit status, None if it takes longer than ``seconds`` or ``stop`` says so."""
        if mail.get("via") == "service":
            return self.by_lmtp(mail, raw, seconds)
        path = self.folder / f"message-{next(self.count)}"
        path.write_bytes(raw)
        command = [self.python, self.project / "mail_gateway.py", "--env-file", self.settings, "--sender", mail["from"]]
        command += ["--queue-id", mail.get("queue_id") or f"4Q{path.name[8:]}"]
        command += [f"--original-recipient={address}" for address in mail.get("original", [])]
        command += ["--", *mail["to"]]
        with open(path, "rb") as message:
            process = subprocess.Popen(command, stdin=message, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                       env={"PATH": "/usr/bin:/bin", "LANG": "C"}, cwd="/")  # fmt: skip
        end = time.monotonic() + seconds
        while process.poll() is None:
            if time.monotonic() > end or stop():
                process.kill()
                process.wait()
                return None
            time.sleep(0.02)
        return process.returncode

    def by_lmtp(self, mail, raw, seconds):
        sender, to = mail["from"], mail["to"]
        client = smtplib.LMTP()
        client.timeout = seconds
        end = time.monotonic() + seconds
        try:
            client.connect(self.socket)
            assert client.sock
            client.sock.settimeout(seconds)
            client.ehlo()
            utf8 = [] if all(address.isascii() for address in (sender, *to)) else ["SMTPUTF8"]
            client.command_encoding = "utf-8"
            client.mail(sender, utf8)
            answers = [client.rcpt(address) for address in to]
            if any(code == 250 for code, _ in answers):
                accepted = sum(code == 250 for code, _ in answers)
                client.docmd("DATA")
                lines = re.sub(rb"\r?\n", b"\r\n", raw)
                client.send(re.sub(rb"(?m)^\.", b"..", lines).removesuffix(b"\r\n") + b"\r\n.\r\n")
                answers = [answer for answer in answers if answer[0] != 250]
                answers += [client.getreply() for _ in range(accepted)]
            client.quit()
        except (OSError, smtplib.SMTPException):
            return 75 if time.monotonic() < end - 0.1 else None
        if any(400 <= code < 500 for code, _ in answers):
            return 75
        refused = [text for code, text in answers if code >= 500]
        return 0 if not refused else 67 if refused[0].startswith(b"5.1") else 65

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()


class Effects:
    """What a step has done: the difference of two dumps."""

    def __init__(self, before, after, held):
        records = {(row["model"], row["id"]) for row in before["records"]}
        new = [row for row in after["records"] if (row["model"], row["id"]) not in records]
        self.created = [(row["model"], row["name"] or "") for row in new]
        messages = {row["id"] for row in before["messages"]}
        self.partners = {row["id"]: row for row in after["partners"]}
        self.posted = [
            {**row, "thread_id": row["thread_id"] if (row["model"], row["thread_id"]) in records else "new"}
            for row in after["messages"]
            if row["id"] not in messages and row["kind"] == "email"
        ]
        sent = {row["id"]: row["status"] for row in before["notifications"]}
        self.failed = [
            row["id"] for row in after["notifications"] if sent.get(row["id"], row["status"]) != row["status"]
        ]
        about = {row["id"]: row for row in after["messages"]}
        self.sent = [
            (
                about[row["message"]]["model"],
                about[row["message"]]["thread_id"],
                self.partners[row["partner_id"]]["email"],
            )
            for row in after["notifications"]
            if row["id"] not in sent
        ]
        notices = {row["id"] for row in before["notices"]}
        self.notices = [(row["about"], row["to"]) for row in after["notices"] if row["id"] not in notices]
        counts = {row["id"]: row["bounce_count"] for row in before["partners"]}
        self.bounced = [row["email"] for row in after["partners"] if row["bounce_count"] > counts.get(row["id"], 0)]
        unplaced = {row["id"] for row in before["unplaced"]}
        self.unplaced = [(row["about"], row["reason"]) for row in after["unplaced"] if row["id"] not in unplaced]
        self.held = held

    def author(self, message):
        partner = self.partners.get(message["author_id"])
        shown = (partner or {}).get("email") or message["email_from"] or ""
        bracketed = re.search(r"<([^<>]*)>\s*$", shown)
        return (bracketed[1] if bracketed else email.utils.parseaddr(shown)[1] or shown).strip().lower()

    def __str__(self):
        posted = [
            f"{m['model']} {m['thread_id']} author {m['author_id']} {self.author(m)!r} subject {m['subject']!r} "
            f"body {m['body'][:300]!r} attachments {[(a['name'], a['size']) for a in m['attachments']]}"
            for m in self.posted
        ]
        return (
            f"created {self.created}, posted {posted}, failed {self.failed}, notices {self.notices}, "
            f"bounced {self.bounced}, unplaced {self.unplaced}, sent {self.sent}, held {self.held}"
        )


class Step:
    """What was seen of a step: exit status, effects, the messages as they were sent, the costs."""

    def __init__(self, status, effects, raw, cpu, seconds, memory):
        self.status, self.effects, self.raw = status, effects, raw
        self.cpu, self.seconds, self.memory = cpu, seconds, memory

    def differences(self, expected, effects):
        """Yield how what was seen differs from an expectation."""
        exits = expected.get("exit")
        if exits is not None and self.status not in (exits if isinstance(exits, list) else [exits]):
            yield f"exit {self.status}, not {exits}"
        yield from self.misplaced(expected, effects)
        something = effects.created or effects.posted or effects.notices or effects.held
        if expected.get("nothing") and (something or effects.failed or effects.bounced):
            yield f"not nothing: {effects}"
        if expected.get("not_lost") and not (something or effects.unplaced or self.status in (65, 67, 75)):
            yield f"lost without a trace, exit {self.status}"
        if expected.get("original_kept") and not self.keeps_original(expected.get("readable"), effects):
            wanted = f"{expected['readable']} is not readable" if "readable" in expected else "something is missing"
            seen = [(m["subject"], m["body"][:200]) for m in effects.posted]
            yield f"{wanted}, and the original is not attached: {seen}"
        yield from self.too_much(expected, effects)

    def misplaced(self, expected, effects):
        """Yield what was not created, posted or told as it should be."""
        created, notices = expected.get("created"), expected.get("notices")
        if not fits(created, effects.created, lambda want, got: want[0] == got[0] and want[1] in got[1]):
            yield f"created {effects.created}, not {created}"
        if "posted" in expected:
            yield from self.unlike(expected["posted"], effects)
        for name, seen in (("failed", effects.failed), ("bounced_partners", effects.bounced)):
            if name in expected and sorted(expected[name]) != sorted(seen):
                yield f"{name} {seen}, not {expected[name]}"
        unplaced = expected.get("unplaced")
        if not fits(unplaced, effects.unplaced, lambda want, got: want[0] == got[0] and want[1] in got[1]):
            yield f"unplaced {effects.unplaced}, not {unplaced}"
        if not fits(expected.get("sent"), effects.sent, lambda want, got: (*want,) == got):
            yield f"sent {effects.sent}, not {expected['sent']}"
        if not fits(notices, effects.notices, lambda want, got: want[0] in ("*", got[0]) and want[1] == got[1]):
            yield f"notices {effects.notices}, not {notices}"

    def too_much(self, expected, effects):
        """Yield what took more than it may: time, memory or place."""
        stored = sum(file["size"] for message in effects.posted for file in message["attachments"])
        for name, seen, unit in (
            ("max_cpu", self.cpu, "s of CPU"),
            ("max_seconds", self.seconds, "s"),
            ("max_memory", self.memory, "MiB of memory"),
            ("max_stored", stored, "bytes stored"),
        ):
            if seen > expected.get(name, seen):
                yield f"{seen:.4g} {unit}, not at most {expected[name]}"

    def unlike(self, wanted, effects):
        if len(wanted) != len(effects.posted):
            seen = [(m["model"], m["thread_id"]) for m in effects.posted]
            yield f"posted {seen}, not {[(w['model'], w['id']) for w in wanted]}"
            return
        tries = []
        for order in itertools.islice(itertools.permutations(effects.posted), 120):
            pairs = zip(wanted, order, strict=False)
            tries.append([line for want, message in pairs for line in unlike_message(want, message, effects)])
        yield from min(tries, key=len)

    def keeps_original(self, readable, effects):
        seen = [text for m in effects.posted for text in (*texts(m["body"]), " ".join((m["subject"] or "").split()))]
        if readable is not None and effects.posted and all(any(part in text for text in seen) for part in readable):
            return True
        files = [file for message in effects.posted for file in message["attachments"]]
        mails = [file for file in files if file["mimetype"] == "message/rfc822" or file["name"].endswith(".eml")]
        return any(file["size"] >= len(self.raw) for file in mails)


def texts(body):
    """Return a body as it is, and as it is read."""
    return [body, *(" ".join(html.unescape(re.sub(r"<[^>]*>", between, body)).split()) for between in ("", " "))]


def unlike_message(want, message, effects):
    """Yield how a posted message differs from what is wanted of it."""
    where = (message["model"], message["thread_id"])
    if where != (want["model"], want["id"]):
        yield f"posted to {where}, not to {(want['model'], want['id'])}"
    author = want.get("author")
    if author is not None and author != (message["author_id"] if isinstance(author, int) else effects.author(message)):
        yield f"author {message['author_id']} {effects.author(message)!r}, not {author!r}"
    if want.get("subject", "") not in " ".join((message["subject"] or "").split()):
        yield f"subject {message['subject']!r} without {want['subject']!r}"
    body = texts(message["body"])
    for part in want.get("body_contains", []):
        if not any(part in text for text in body):
            yield f"body {message['body'][:300]!r} without {part!r}"
    for part in want.get("body_lacks", []):
        if any(part in text for text in body):
            yield f"body {message['body'][:300]!r} with {part!r}"
    files = message["attachments"]
    if not fits(want.get("attachments", []), files, is_file, at_least=True):
        yield f"attachments {[(file['name'], file['size']) for file in files]} without {want['attachments']}"


def is_file(want, file):
    want = want if isinstance(want, dict) else {"name": want}
    size = want.get("size", file["size"])
    least, most = size if isinstance(size, list) else (size, size)
    return (fnmatch.fnmatchcase(file["name"], want.get("name", "*")) and least <= file["size"] <= most
            and want.get("sha1", file["sha1"]) == file["sha1"])  # fmt: skip


def fits(wanted, seen, alike, at_least=False):
    """Tell whether each that is wanted has one of its own among those seen, and these no other unless ``at_least``.

    Where nothing is said of what is wanted (None), everything fits.
    """
    if not wanted:
        return wanted is None or at_least or not seen
    places = [place for place, one in enumerate(seen) if alike(wanted[0], one)]
    return any(fits(wanted[1:], seen[:place] + seen[place + 1 :], alike, at_least) for place in places)


class Player:
    """Plays the cases of one folder."""

    def __init__(self, project, python, folder, verbose=False):
        self.project = Path(project).absolute()
        self.python = os.path.abspath(shutil.which(python) or python)  # not resolved: a link into its environment
        self.folder, self.verbose = Path(folder), verbose
        self.making = threading.Lock()

    def world(self, case):
        world = (self.folder / f"{case.get('world', 'world')}.json").read_text(encoding="utf-8")
        for old, new in case.get("rename", {}).items():
            world = world.replace(old, new)
        world = json.loads(world)
        for name, rows in case.get("with", {}).items():
            if isinstance(rows, dict):
                world[name] = world.get(name, {}) | rows
                continue
            ids = [row.get("id") for row in rows]
            world[name] = [row for row in world.get(name, []) if row.get("id") not in ids] + rows
        return json.dumps(world)

    @functools.cache  # noqa: B019 a player lives as long as the process
    def prepared(self, world):
        """Return a folder with a store that holds the world, and its dump."""
        folder = tempfile.mkdtemp(dir=self.temporary)
        database = Database(self.project, self.python, folder)
        Path(folder, "world.json").write_text(world, encoding="utf-8")
        database.command("load", f"{folder}/world.json")
        try:
            database.serve()  # what it adds at its first start is no effect of a mail
            return folder, database.dump()
        finally:
            database.stop()

    def play(self, case):
        """Return the differences of a case, a line each."""
        world = self.world(case)
        with self.making:
            prepared, start = self.prepared(world)
        lines: list[str] = []
        folder = tempfile.mkdtemp(dir=self.temporary)
        for file in Path(prepared).glob("mail.db*"):
            shutil.copy(file, folder)
        database = Database(self.project, self.python, folder)
        number = 0
        try:
            database.serve()
            database.configure([row["name"] for row in start["alias_domains"]], case.get("settings", {}))
            if any(mail.get("via") for step in case["steps"] for mail in (step, *step.get("beside", []))):
                database.start_service()
            before = start
            for number, step in enumerate(case["steps"], 1):
                after = self.step(database, case["name"], number, step, start, before, lines)
                if after is None:
                    break
                before = after
        except Exception as error:  # a case that can't be played is a difference, and the others go on
            lines.append(f"{case['name']} step {number}: {type(error).__name__}: {error}")
        finally:
            database.stop()
            shutil.rmtree(folder, ignore_errors=True)
        return lines

    def step(self, database, name, number, step, start, before, lines):
        """Play a step, add its differences to the lines, and return the dump after it; None if it was cut short.

        It is long, for it has each expectation that a step may have.
        """
        mails = [step, *step.get("beside", [])]
        expected = step.get("expect", {})
        cpu, held = database.cpu()[0], database.held()
        most = expected.get("max_cpu", float("inf"))
        notice = before["notices"][-1] if before["notices"] else {}

        def one(place, mail):
            time.sleep(place)
            raw = self.filled(mail, notice)
            limit = mail.get("max_seconds") or (expected.get("max_seconds") if mail is step else None) or MAX_SECONDS
            begun = time.monotonic()
            status = database.deliver(mail, raw, limit, lambda: database.cpu()[0] - cpu > most + 0.5)
            return status, raw, time.monotonic() - begun, limit

        with concurrent.futures.ThreadPoolExecutor(len(mails)) as pool:
            ends = list(pool.map(one, itertools.count(), mails))
        status, raw, seconds, _ = ends[0]
        worked, memory = database.cpu()
        worked -= cpu
        late = []
        for place, (end, _, _, limit) in enumerate(ends):
            if end is None or (place and end not in mails[place].get("exit", [0])):
                which = "a mail beside it" if place else "it"
                late.append(f"{which} {f'was not done after {limit} s' if end is None else f'ended with {end}'}")
        if worked > most:
            late = [f"{worked:.3g} s of CPU and more, not at most {most}"]
        if late:
            lines += [f"{name} step {number}: {line}" for line in late]
            return None
        after = database.dump()
        seen = Step(status, Effects(before, after, database.held() - held), raw, worked, seconds, memory)
        of_all = Effects(start, after, database.held())

        def found(one):
            return list(seen.differences(one, of_all if one.get("from_start") else seen.effects))

        named = {name for one in (expected, *step.get("any_of", [])) for name in one}
        unnamed: dict[str, list] = {name: [] for name in ("unplaced", "sent") if name not in named}
        of_any = min(map(found, step.get("any_of", [{}])), key=len)
        differences = [*seen.differences(unnamed, seen.effects), *found(expected), *of_any]
        if self.verbose:
            costs = f"{seconds:.1f} s, {worked:.2f} s of CPU, {memory} MiB"
            lines.append(f"  {name} step {number}: exit {status}, {costs}; {seen.effects}")
        lines += [f"{name} step {number}: {difference}" for difference in differences]
        return after

    def filled(self, mail, notice):
        """Return a message with what it quotes of a notice."""
        if "recipe" in mail:
            pieces = [piece if isinstance(piece, dict) else {"repeat": piece, "times": 1} for piece in mail["recipe"]]
            raw = "".join(
                piece["repeat"].replace("{i}", str(i)) for piece in pieces for i in range(piece["times"])
            ).encode()
        else:
            raw = (self.folder / "messages" / f"{mail['message']}.eml").read_bytes()
        raw = raw.replace(b"@NOTICE-ID@", (notice.get("message_id") or "<no-notice@invalid.example>").encode())
        return raw.replace(b"@NOTICE-REFERENCES@", (notice.get("references") or "<none@invalid.example>").encode())

    def play_all(self, names):
        """Play the cases, print what differs, and return how many agree and differ."""
        cases = json.loads((self.folder / "cases.json").read_text(encoding="utf-8"))
        unknown = set(names) - {case["name"] for case in cases}
        if unknown:
            sys.exit(f"no such case: {', '.join(sorted(unknown))}")
        cases = [case for case in cases if not names or case["name"] in names]
        classes: dict[str, list[bool]] = {}
        with (
            tempfile.TemporaryDirectory(prefix="reports-") as self.temporary,
            concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool,
        ):
            for case, lines in zip(cases, pool.map(self.play, cases), strict=True):
                differs = any(not line.startswith("  ") for line in lines)
                classes.setdefault(case["class"], []).append(differs)
                if lines:
                    print(*lines, sep="\n", flush=True)
        if self.verbose:
            for name, results in sorted(classes.items()):
                print(f"{name}: {results.count(False)} agree, {results.count(True)} differ")
        results = [differs for results in classes.values() for differs in results]
        return results.count(False), results.count(True)


def main():
    arguments = [argument for argument in sys.argv[1:] if argument != "--verbose"]
    if len(arguments) < 3 or arguments[0].startswith("-"):
        print(__doc__)
        return 2
    project, python, folder = arguments[:3]
    agree, differ = Player(project, python, folder, verbose="--verbose" in sys.argv).play_all(arguments[3:])
    print(f"{agree} agree, {differ} differ")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
