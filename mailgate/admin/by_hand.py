"""held mend, forward and drop: what an operator does himself with a message that the database could not digest."""

import os
import shlex
import subprocess
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

from mailgate import hold, journal, log
from mailgate.addresses import is_surely_ours
from mailgate.admin import mta
from mailgate.admin.desk import Answer, Desk, Failed, Usage, as_caller
from mailgate.admin.hold_folder import File, cause_of, facts, named
from mailgate.admin.meaning import BY_HAND
from mailgate.admin.screen import say
from mailgate.envelope import MAX_HEADER_BYTES, Envelope, is_address
from mailgate.outcome import Outcome, Verdict

DROPPED = "dropped"  # the folder of what was dropped, beside new/


def add_mend(parser: ArgumentParser) -> None:
    """Add what `held mend` takes."""
    _add_name(parser)
    parser.set_defaults(answer=mend)


def add_forward(parser: ArgumentParser) -> None:
    """Add what `held forward` takes."""
    _add_name(parser)
    parser.add_argument("address", help="who gets it, as an attachment")
    parser.set_defaults(answer=forward)


def add_drop(parser: ArgumentParser) -> None:
    """Add what `held drop` takes."""
    _add_name(parser)
    parser.add_argument("--why", required=True, metavar="TEXT", help="why nobody needs it; the journal keeps that")
    parser.set_defaults(answer=drop)


def _add_name(parser: ArgumentParser) -> None:
    parser.add_argument("name", help="the file's name, or the beginning of it")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")


def mend(desk: Desk, arguments: Namespace) -> Answer:
    """Open a copy of a message in the caller's editor, and put it in the message's place if it was changed."""
    file = named(desk, arguments.name)
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "editor"
    if arguments.dry_run:
        return _said(file, f"Would open a copy of {file.name} in {editor}; the original would be kept.")
    say(f"Opening a copy of {file.name} in {editor}; what you save takes its place, and the original is kept.")
    before = Path(file.path).read_bytes()
    after = _edited(editor, before)
    if after == before:
        return _said(file, "Nothing was changed.")
    if not after.strip():
        raise Failed("the mended copy is empty: nothing is changed")
    original = hold.mend(file.path, after)
    release = f"To deliver it: mail-gateway-admin held release {file.name}"
    return _said(file, f"Mended. The original is kept: {original}", release)


def _edited(editor: str, before: bytes) -> bytes:
    """Return what the caller makes of a message. The editor is his, and runs as he, in a folder of his."""
    with as_caller(), tempfile.TemporaryDirectory(prefix="mail-gateway-") as folder:
        copy = Path(folder, "message.eml")
        copy.write_bytes(before)
        try:
            status = subprocess.run([*shlex.split(editor), str(copy)], check=False).returncode
        except (OSError, ValueError) as error:
            raise Failed(f"the editor {editor!r} can't be run ({error}): set EDITOR") from None
        if status:
            raise Failed(f"the editor {editor!r} ended with status {status}: nothing is changed")
        return copy.read_bytes()


def forward(desk: Desk, arguments: Namespace) -> Answer:
    """Send a message to somebody, as an attachment, by the mail server's sendmail; it stays held."""
    file, address = named(desk, arguments.name), arguments.address
    if not is_address(address) or address.startswith("-") or "@" not in address.strip("@"):
        raise Usage(f"not an address: {address}")
    if is_surely_ours(desk.settings.addresses, address):
        raise Usage(f"{address} is the database's: held release gives it to the database")
    text = f"{file.name} to {address}, as an attachment; it stays held."
    if arguments.dry_run:
        return _said(file, f"Would send {text}")
    say(f"Sending {text}")
    mta.send(_with_attachment(file, address, cause_of(desk, file)), address)
    return _said(file, f"Sent {text}", "When nobody needs it here any more: mail-gateway-admin held drop.")


def _with_attachment(file: File, address: str, cause: str) -> bytes:
    """Return a mail that has a message, byte for byte, as its attachment (RFC 2046, 5.2.1)."""
    boundary = f"=_{os.urandom(16).hex()}"
    text = f"The database could not digest the attached mail.\n\nCause: {cause or 'not known'}\nFile: {file.path}\n"
    head = [
        f"To: {address}",
        f"Subject: Held mail: {file.name}",
        "Auto-Submitted: auto-generated",
        "MIME-Version: 1.0",
        f'Content-Type: multipart/mixed; boundary="{boundary}"',
        "",
        f"--{boundary}",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: 8bit",
        "",
        text,
        f"--{boundary}",
        "Content-Type: message/rfc822",
        "Content-Transfer-Encoding: 8bit",
        "Content-Disposition: attachment",
        "",
        "",
    ]
    before = "\n".join(head).encode("utf-8", "backslashreplace")
    return before + Path(file.path).read_bytes() + f"\n--{boundary}--\n".encode()


def drop(desk: Desk, arguments: Namespace) -> Answer:
    """Move a message out of the way, into a folder where it is kept; the journal has the reason first."""
    file = named(desk, arguments.name)
    if not arguments.why.strip():
        raise Usage("--why says why nobody needs it")
    if arguments.dry_run:
        return _said(file, f"Would move {file.name} to {DROPPED}/.")
    say(f"Moving {file.name} to {DROPPED}/.")
    config, told, verdict = desk.settings, log.Facts(), Verdict(Outcome.DROPPED, f"{BY_HAND}{arguments.why}")
    with open(file.path, "rb") as opened:
        told.describe(Envelope(file.sender, ()), opened.read(MAX_HEADER_BYTES))
    told.message_id, told.size, told.model = file.message_id, file.size, config.model
    journal.note_attempt(config, log.attempt(told, verdict, 0.0))
    log.Log(config.log, config.log_format, config.password, is_shown=False).message(told, verdict, 0.0)
    return _said(file, f"Dropped. It is kept: {hold.move(file.path, DROPPED)}")


def _said(file: File, *lines: str) -> Answer:
    return Answer(facts(file) | {"text": lines[0]}, [*lines])
