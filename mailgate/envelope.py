"""Who a message is from and for, the MTA's name for it, and the message itself, from what an MTA gives.

An MTA gives an envelope as arguments (Postfix pipe, Exim pipe transport), in the environment (an alias
``|command``), or not at all; then the message's own header has to tell. Over LMTP there is no place for the queue id:
it is read from the Received field that the MTA has put on top.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import IO, NamedTuple

from mailgate.arguments import Arguments
from mailgate.outcome import Ended, Outcome

# The header fields that may name recipients where no envelope does. Those of the MTAs have nothing but addresses,
# which may stand without commas between them.
MTA_FIELDS = (b"delivered-to", b"x-original-to", b"envelope-to")
RECIPIENT_FIELDS = (*MTA_FIELDS, b"to", b"cc", b"resent-to", b"resent-cc")

SPOOL_IN_MEMORY_BYTES = 2**20  # a larger message goes to a file
MAX_HEADER_BYTES = 2**20  # of header that are looked at: as much as stays in memory
PIECE_BYTES = 57 * 2**10  # read at a time: a multiple of three, for base64

# A line as Python's email parser, and so the database, takes it, and what such a line may be in a header.
_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n|\Z)")
_FIELD_NAME = re.compile(rb"([\x21-\x39\x3b-\x7e]*):|From ")
_ATOMS = re.compile(r"[^\x00-\x20\x7f()<>\[\]:;@\\,\"]+")  # RFC 5322 atext and dots, RFC 6531's letters too
_DOMAIN = re.compile(rf"{_ATOMS.pattern}|\[[\w.:-]*\]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
MAX_DOMAIN_OCTETS = 255  # (RFC 5321, 4.5.3.1.2); the library's time is quadratic beyond


class Recipient(NamedTuple):
    """Whom a message is for, and the address before the MTA's rewriting, ``""`` where it is not known."""

    address: str
    original_recipient: str = ""


class Envelope(NamedTuple):
    """Who a message is from and for. The sender ``""`` is the null sender, None is an unknown one."""

    sender: str | None
    recipients: tuple[Recipient, ...]


class Raw(NamedTuple):
    """The message as received: ``size`` bytes of ``file`` from ``start``, the mbox line before them left out."""

    file: IO[bytes]
    start: int
    size: int

    def head(self) -> bytes:
        """Return the first bytes, as far as a header is looked at."""
        self.file.seek(self.start)
        return self.file.read(MAX_HEADER_BYTES)

    def chunks(self, offset: int = 0) -> Iterator[bytes]:
        """Yield the bytes from ``offset`` on."""
        self.file.seek(self.start + offset)
        while chunk := self.file.read(PIECE_BYTES):
            yield chunk


def spool(source: IO[bytes], max_size: int) -> Raw:
    """Return the message that ``source`` holds, on disk when it is large; the file has no name.

    Beyond ``max_size`` bytes it is read no further, so what is larger than that is not whole. Raises Ended as
    ``spooled`` does, and OSError where the disk is full.
    """
    from tempfile import SpooledTemporaryFile  # 8 ms, which a run that ends before it need not pay

    # closed, and gone, with the process
    file = SpooledTemporaryFile(max_size=SPOOL_IN_MEMORY_BYTES, dir=spool_folder(os.environ))
    while chunk := source.read(PIECE_BYTES):
        file.write(chunk)
        if file.tell() > max_size:
            break
    try:
        return spooled(file)
    except Ended:
        file.close()
        raise


def spool_folder(environ: Mapping[str, str]) -> str | None:
    """Return where large messages go, None for where TMPDIR says: /tmp may be memory."""
    return None if environ.get("TMPDIR") or not os.access("/var/tmp", os.W_OK | os.X_OK) else "/var/tmp"


def spooled(file: IO[bytes]) -> Raw:
    """Return the message that has been written to a file, without a leading mbox line (``From sender date``).

    Raises Ended(NOT_A_MESSAGE) for nothing at all.
    """
    size = file.tell()
    raw = Raw(file, 0, size)
    mbox_line = _LINE.match(raw.head())
    if mbox_line and mbox_line[0].startswith(b"From ") and mbox_line.end() < MAX_HEADER_BYTES:
        raw = Raw(file, mbox_line.end(), size - mbox_line.end())
    if not raw.size:
        raise Ended(Outcome.NOT_A_MESSAGE, "empty input")
    return raw


def fields(head: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield each header field as (name in lower case, all of its bytes), up to where the header ends.

    It ends where it ends for the database: at an empty line, or at the first line that is no field.
    """
    name, start = b"", 0
    for line in _LINE.finditer(head):
        if line[0][:1] in (b" ", b"\t"):
            continue
        if line.start():
            yield name, head[start : line.start()]
        field = _FIELD_NAME.match(line[0])
        if not field:
            return
        name, start = (field[1] or b"").lower(), line.start()


def unfold(field: bytes) -> bytes:
    """Return a field's value on one line."""
    return field.partition(b":")[2].translate(None, b"\r\n").strip(b" \t")


def envelope_of(arguments: Arguments, environ: Mapping[str, str], head: bytes) -> Envelope:
    """Return the envelope: the arguments', else the environment's, else the one that the header tells."""
    sender = arguments.sender
    if sender is None:
        sender = environ.get("SENDER")
    if sender is None:
        sender = next((os.fsdecode(unfold(field)) for name, field in fields(head) if name == b"return-path"), None)

    recipients, original_recipients = arguments.recipients, arguments.original_recipients
    if not recipients and not original_recipients:
        recipients = tuple(filter(None, [environ.get("RECIPIENT")]))
        original_recipients = tuple(filter(None, [environ.get("ORIGINAL_RECIPIENT")]))
        # Exim sets RECIPIENT to @domain for a batch of recipients
        recipients = tuple(recipient for recipient in recipients if not recipient.startswith("@"))
    if not recipients and not original_recipients:
        recipients = tuple(_header_recipients(head))
    return Envelope(
        None if sender is None else _reverse_path(sender),
        tuple(
            Recipient(recipient, original) if recipient else Recipient(original)
            for recipient, original in zip_longest(recipients, original_recipients, fillvalue="")
        ),
    )


def _reverse_path(sender: str) -> str | None:
    """Return the sender without brackets; Postfix calls the null sender MAILER-DAEMON unless told otherwise."""
    sender = sender.strip(" \t").removeprefix("<").removesuffix(">")
    if _CONTROL.search(sender):
        return None
    return "" if sender.upper() == "MAILER-DAEMON" else sender


def _header_recipients(head: bytes) -> Iterable[str]:
    found: dict[bytes, list[str]] = {}
    for name, field in fields(head):
        value = os.fsdecode(unfold(field))
        listed = name in MTA_FIELDS and '"' not in value
        found.setdefault(name, []).append(",".join(value.split()) if listed else value)
    # one after the other: what is not closed in one field would swallow the next
    addresses = [
        address for name in RECIPIENT_FIELDS for value in found.get(name, []) for address in addresses_of(value)
    ]
    return dict.fromkeys(address for address in addresses if "@" in address)


def addresses_of(value: str) -> list[str]:
    """Return the addresses of a header field."""
    from email.utils import getaddresses

    try:
        try:
            pairs = getaddresses([value], strict=False)  # strict, it takes no list without commas for one
        except TypeError:  # a Python from before that option
            pairs = getaddresses([value])
    except RecursionError:  # a thousand brackets
        return []
    return [address for _, address in pairs]


# What a stranger said stands in the same Received field as the queue id: the name in HELO, in the first line; his
# address, within a comment of Exim's; the recipient, behind "for". None of them can hold a line break, so a line says
# who wrote it:
#
#     Postfix    Received: from HELO (NAME [ADDRESS])      Exim    Received: from NAME ([ADDRESS] helo=HELO)
#                        by HOST (Postfix) with ESMTP id ID                by HOST with esmtp (Exim 4.98)
#                        for <RECIPIENT>; DATE                             (envelope-from <SENDER>)
#                                                                          id ID
MAX_RECEIVED_BYTES = 4096  # of a field that are looked at
_QUEUE_ID = rb"id[ \t]+([\w-]{5,50})(?=[\s;]|\Z)"

# Both fold with a tab; a blank is what Postfix folds with where a line is too long, and so is a stranger's to place.
_QUEUE_ID_LINE = re.compile(rb"(?:\A[^:]*: |\r?\n\t)(?:by \S+ (?:\([^()\r\n]*\) )?with \S+ )?" + _QUEUE_ID)
_QUEUE_ID_CLAUSES = re.compile(rb"\bby[ \t]+\S+[ \t]+(?:with[ \t]+\S+[ \t]+)?" + _QUEUE_ID)
_TOKEN = re.compile(rb'\\.|[()]|"(?:[^"\\]|\\.)*"|[^\\()"]+|.', re.DOTALL)


def queue_id(head: bytes) -> str:
    """Return the queue id that the topmost Received field of a message has, "" without one."""
    received = next((field for name, field in fields(head) if name == b"received"), b"")[:MAX_RECEIVED_BYTES]
    found = _QUEUE_ID_LINE.search(received)
    if not found:  # another MTA's, on one line: of several that look alike, the MTA wrote the last
        found = next(reversed([*_QUEUE_ID_CLAUSES.finditer(_without_comments(unfold(received)))]), None)
    return found[1].decode() if found else ""


def _without_comments(value: bytes) -> bytes:
    """Return a field's value without comments and quoted strings (RFC 5322, 3.2)."""
    kept, depth = [], 0
    for token in _TOKEN.findall(value):
        depth = max(0, depth + {b"(": 1, b")": -1}.get(token, 0))
        if not depth and token not in (b"(", b")") and token[:1] != b'"':
            kept.append(token)
    return b"".join(kept)


def split_address(address: str) -> tuple[str, str]:
    """Return local-part and domain, without brackets and quotes; no domain is ``""`` (RFC 5321, 4.1.2)."""
    address = address.strip(" \t").removeprefix("<").removesuffix(">")
    local_part, at, domain = address.rpartition("@")
    if not at:
        local_part, domain = address, ""
    if len(local_part) > 1 and local_part[0] == local_part[-1] == '"':
        local_part = re.sub(r"\\(.)", r"\1", local_part[1:-1])
    return local_part, domain


def join_address(local_part: str, domain: str) -> str:
    """Return the address, its local-part quoted where it must be; the reverse of ``split_address``.

    What stands behind the @ and can be no domain is quoted with the rest, so that nothing of it acts in a header.
    """
    if domain and not _DOMAIN.fullmatch(domain):
        local_part, domain = f"{local_part}@{domain}", ""
    if not _ATOMS.fullmatch(local_part):
        local_part = '"' + re.sub(r'(["\\])', r"\\\1", local_part) + '"'
    return f"{local_part}@{domain}" if domain else local_part


def ascii_domain(domain: str) -> str:
    """Return a domain with A-labels, as Odoo has it: in letters it takes none (RFC 5891, 4.4)."""
    if domain.isascii() or len(domain) > MAX_DOMAIN_OCTETS:
        return domain
    from idna import IDNAError, encode  # requests brings it; few domains need it

    try:
        return encode(domain, uts46=True).decode()
    except IDNAError:  # it is no domain name, and stays as it is
        return domain


def canonical_address(address: str) -> str:
    """Return an address, or a domain, by which it is known again: in lower case, with A-labels."""
    local_part, at, domain = address.lower().rpartition("@")
    return local_part + at + ascii_domain(domain)


def is_address(address: str) -> bool:
    """Tell whether this can stand in a header field: no address has a control character (RFC 5321, 4.1.2)."""
    return bool(address) and not _CONTROL.search(address)
