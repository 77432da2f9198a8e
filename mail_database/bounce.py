"""Read a report: who failed, why, and which message it is about.

Who failed is told by the first of these that names anybody:

1. the per-recipient blocks of its delivery-status parts (RFC 3464, RFC 6533), then those of a report that it forwards;
2. such blocks in its text, where a gateway has flattened or quoted them;
3. flufl.bounce, which knows the words of many mail systems;
4. its text above the copy of the message: the addresses there that the database has sent the message to;
5. the whole of it, the copy's recipient fields included, where one such address is there and no other.

What 3 to 5 guess is never who wrote or received the report itself. Every address named stands in the report, and
nothing here raises, whatever the bytes: a report is written by strangers.
"""

import html
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from email.errors import MissingHeaderBodySeparatorDefect
from email.message import Message
from itertools import chain
from typing import NamedTuple

from flufl.bounce import all_failures

from mail_database import message as mail
from mail_database.message import decoded

# What the types of a report's parts begin with.
STATUS_TYPES = ("message/delivery-status", "message/global-delivery-status")
RETURNED_TYPES = ("message/", "text/rfc822-header")  # any other message: the one that came back, or its header
# What they contain in complaints and read receipts, which name nobody who has failed.
NO_BOUNCE_TYPES = ("feedback-report", "disposition-notification")

# Whether the recipient failed. Where the action is missing, or none of these, the status tells.
ACTIONS = {
    "failed": True,
    "failure": True,
    "error": True,  # OpenSMTPD
    "expired": True,  # SendGrid
    "delayed": False,
    "delivered": False,
    "relayed": False,
    "expanded": False,
    "deliverable": False,  # sendmail -bv
}

# What the subject or the first lines of a report say that tells of no failure, so that any guess would be wrong.
NO_FAILURE = re.compile(
    "|".join((
        r"^Subject:\s*(?:delayed|warning\b|delivery status notification\W+(?:delay|warning))",  # it'll be tried again
        r"\b(?:warning only|only a temporary failure)\b",
        r"^Subject:\s*(?:success|relayed|delivered|delivery status notification\W+(?:success|relay))",
        r"^Subject:\s*(?:auto(?:matic)?[ -]?reply|out of (?:the )?office)",
        r"^Subject:\s*complaint",
        r'"notificationType":"(?:Complaint|Delivery)"',  # Amazon SES
    )),
    re.IGNORECASE | re.MULTILINE,
)  # fmt: skip
FIRST_LINES = 1000  # characters

# Fields of the report's header; not X-Original-To, in which DragonFly's agent names who failed.
CORRESPONDENTS = ("from", "sender", "reply-to", "return-path", "to", "cc", "delivered-to")
# Fields of the message that came back.
RECIPIENTS = ("to", "cc", "delivered-to", "x-original-to", "envelope-to", "resent-to", "resent-cc")
MESSAGE_IDS = ("message-id", "x-microsoft-original-message-id")
# Fields that tell a copy of the message in the text from words that look like fields ("To: ...", "Reason: ...").
COPY_FIELDS = {"received", "return-path", "message-id", "delivered-to", "dkim-signature", "mime-version"}

LOOKED_AT = 2**20  # characters of text that are looked at
FLUFL_LIMIT = 2**16  # and those that flufl.bounce sees, which takes up to 20 s for a megabyte
REASON_LIMIT = 10_000  # characters
NO_REASON = "no error"  # as the documentation has it

# None of these takes more than linear time, whatever the text.
_ATOM = r'[^\x00-\x20\x7f<>()\[\]\\,;:"@\s\ufffd]'
_ADDRESS = re.compile(rf'(?<!{_ATOM})(?:"[^"\\\s@]+"|{_ATOM}+)@(?:\[[\w.:]+\]|[\w-]+(?:\.[\w-]+)*)')
_TYPE = re.compile(r"^[\w.-]*[ \t]*;")  # of an address or a diagnostic: rfc822; utf-8; smtp;
_STATUS = re.compile(r"\b[245]\.\d{1,3}\.\d{1,3}\b")
_CHARSET = re.compile(r"charset\*?\s*=\s*[\"']?([\w.:-]+)")
_FIELD = re.compile(r"^([!-9;-~]+)[ \t]*:(.*(?:\n[ \t]+.*)*)", re.MULTILINE)
_FIELD_LINE = re.compile(r"[>|\s]*([\w-]+)[ \t]*:(?:\s|<|$)")
_ID = re.compile(r"<[^<>]+>")
_QUOTED_ID = re.compile(rf"^[>| \t]*(?:{'|'.join(MESSAGE_IDS)})[ \t]*:[>|\s]*(<[^<>]+>)", re.MULTILINE | re.IGNORECASE)
_HIDDEN = re.compile(r"<!--(?:(?!-->).)*(?:-->)?|<(style|script|title)\b(?:(?!</\1).)*", re.DOTALL | re.IGNORECASE)
_LINE_END = re.compile(r"<(?:br|/p|/div|/tr|/table|/li|/h\d)\b[^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"<[/!?]?[a-z][\w:-]*(?:[\s/][^<>]*)?>", re.IGNORECASE)  # but not <ann@b.test>

logging.getLogger("flufl.bounce").setLevel(logging.CRITICAL)  # it logs a traceback of what it raises; we handle that

Fields = dict[str, list[str]]  # names are in lower case


class Bounce(NamedTuple):
    """A recipient who failed, in lower case, and the report's own words, ``""`` where it has none."""

    final_recipient: str
    action: str = ""
    status: str = ""
    diagnostic: str = ""


class Report(NamedTuple):
    """What a report says; the ids are those of the message that it is about, best first.

    ``is_silent``: it is a delivery report that names nobody, neither one who failed nor one who did not.
    """

    failures: tuple[Bounce, ...]
    message_ids: tuple[str, ...]
    reason: str
    is_silent: bool


class _Opened(NamedTuple):
    """A report's header, the types of it and its parts, the texts that people read, the statuses, what came back."""

    header: Fields
    types: list[str]
    texts: list[str]
    statuses: list[str]
    returned: list[Fields]


def is_report(message: mail.Message, at_bounce_address: bool) -> bool:
    """Tell whether a mail reports on mail that came back."""
    from_daemon = message.sender_address.partition("@")[0] == "mailer-daemon"
    by_machine = message.is_automatic or message.return_path == ""
    return message.is_report or from_daemon or (at_bounce_address and by_machine)


def read_report(message: Message, notified: Callable[[tuple[str, ...]], Iterable[str]] = lambda ids: ()) -> Report:
    """Return who failed, which message that was, and what a person should read about it.

    ``message`` comes from ``email.message_from_bytes(raw, policy=email.policy.compat32)``, which itself raises
    RecursionError for a thousand nested parts. ``notified`` returns the addresses that the messages with these
    ids were sent to.
    """
    reports = _open(message)
    report = reports[0]
    message_ids = _message_ids(reports)
    failures: tuple[Bounce, ...] = ()
    spared: set[str] = set()
    if not any(kind in found for kind in NO_BOUNCE_TYPES for found in report.types):
        known = {address.strip().lower() for address in notified(message_ids)}
        failures, spared = _failures(reports, message_ids, known)
    is_silent = not failures and not spared and bool(report.statuses)
    readable = chain((text.strip() for text in report.texts), (failure.diagnostic for failure in failures))
    return Report(failures, message_ids, next(filter(None, readable), NO_REASON)[:REASON_LIMIT], is_silent)


def _message_ids(reports: list[_Opened]) -> tuple[str, ...]:
    """Return the ids of what came back, else those that the text quotes, else the report's own references."""
    report = reports[0]
    own = set(_ids(_values(report.header, "message-id")))
    for values in (
        [value for opened in reports for header in opened.returned for value in _values(header, *MESSAGE_IDS)],
        [quoted for text in report.texts for quoted in _QUOTED_ID.findall(text)],
        _values(report.header, "in-reply-to"),
        _ids(_values(report.header, "references"))[::-1],  # the last is the nearest
    ):
        if message_ids := [found for found in dict.fromkeys(_ids(values)) if found not in own]:
            return tuple(message_ids)
    return ()


def _failures(
    reports: list[_Opened], message_ids: tuple[str, ...], known: set[str]
) -> tuple[tuple[Bounce, ...], set[str]]:
    """Return those who failed, by the first of the ways in the module's docstring that tells, and who did not."""
    spared: set[str] = set()
    unquoted = [re.sub(r"^>+ ?", "", text, flags=re.MULTILINE) for text in reports[0].texts]
    for texts in (*(report.statuses for report in reports), unquoted):
        failed, others, unreadable = _stated(texts, known)
        spared |= others
        if failed or (others and not unreadable):
            return failed, spared
    correspondents = _addresses(_values(reports[0].header, *CORRESPONDENTS))
    impossible = spared | correspondents | {found[1:-1].lower() for found in message_ids}
    return tuple(Bounce(address) for address in sorted(_guessed(reports[0], known, impossible))), spared


def _stated(texts: Iterable[str], known: set[str]) -> tuple[tuple[Bounce, ...], set[str], bool]:
    """Return who failed, who did not, and whether somebody failed whose address can't be read.

    The address is the final one, unless the database knows only the original one (the mail was forwarded) or only
    the recipient's own system knows the final one (``|command``, ``ann@localhost``).
    """
    failed: dict[str, Bounce] = {}
    spared, unreadable = set(), False
    for block in chain.from_iterable(re.split(r"\n[ \t]*\n", text) for text in texts):
        fields = _fields(block)
        recipients = _values(fields, "final-recipient", "original-recipient")
        if not recipients or not fields.keys() & {"final-recipient", "action"}:
            continue
        addresses = [address for recipient in recipients if (address := _address(recipient))]
        address = max(addresses, key=lambda address: (address in known, "." in address.rpartition("@")[2]), default="")
        action = _first(fields, "action").partition("(")[0].strip().lower()
        status = _STATUS.search(_first(fields, "status"))
        status_code = status[0] if status else ""
        if not ACTIONS.get(action, status_code.startswith("5") or not (action or status)):
            spared.add(address)
        elif address:
            diagnostic = " ".join(_TYPE.sub("", _first(fields, "diagnostic-code"), count=1).split())[:REASON_LIMIT]
            failed.setdefault(address, Bounce(address, action, status_code, diagnostic))
        else:
            unreadable = True
    return tuple(failed.values()), spared, unreadable


def _guessed(report: _Opened, known: set[str], impossible: set[str]) -> set[str]:
    """Return the addresses that failed as far as a report's words tell."""
    first_lines = [f"Subject:{_first(report.header, 'subject')}", *(text[:FIRST_LINES] for text in report.texts)]
    if any(map(NO_FAILURE.search, first_lines)):
        return set()
    temporary, permanent = _flufl_failures(report)
    seen = _addresses([*chain.from_iterable(report.header.values()), *report.texts])
    failed = permanent & seen - impossible
    if failed or temporary:
        return failed
    if failed := known & _addresses(map(_above_copy, report.texts)) - impossible:
        return failed
    copy = chain.from_iterable(_values(header, *RECIPIENTS) for header in report.returned)
    only = known & _addresses([*report.texts, *copy]) - impossible
    return only if len(only) == 1 and "".join(report.texts).strip() else set()


def _flufl_failures(report: _Opened) -> tuple[set[str], set[str]]:
    """Return the addresses that failed for now, and for good, by the header and the text: all that it has to see."""
    copy = Message()
    for name, values in report.header.items():
        if not name.startswith("content-"):
            copy[name] = " ".join(values[0].split())
    text = "\n\n".join(report.texts)[:FLUFL_LIMIT]
    if report.types[0].startswith("multipart/"):  # some of its detectors want a part, and some the message itself
        copy["Content-Type"] = "multipart/mixed"
        part = Message()
        part.set_payload(text)
        copy.attach(part)
    else:
        copy.set_payload(text)
    try:
        temporary, permanent = all_failures(copy)
    except Exception:  # its detectors expect better manners than strangers have
        return set(), set()
    return _lowered(temporary), _lowered(permanent)


def _lowered(addresses: Iterable[bytes]) -> set[str]:
    return {address.decode("ascii", "replace").lower() for address in addresses}


def _above_copy(text: str) -> str:
    """Return what stands above the copy of the message: a run of fields of which one stands in headers only."""
    start = end = 0
    for line in text.splitlines(keepends=True):
        field = _FIELD_LINE.match(line)
        if field and field[1].lower() in COPY_FIELDS:
            return text[:start]
        end += len(line)
        if not field and not (line[:1] in (" ", "\t") and line.strip()):
            start = end
    return text


def _open(message: Message) -> list[_Opened]:
    """Return the report, and behind it the reports that it returns or forwards."""
    reports = []
    waiting = [message]
    for report in waiting:
        header = _fields(_head(report))
        opened = _Opened(header, [_content_type(header)], [], [], [])
        room = LOOKED_AT
        for part, fields, content_type in _parts(report):
            opened.types.append(content_type)
            if not content_type.startswith(("text/", "message/", "multipart/")):
                continue
            text = _text(part, fields, LOOKED_AT)
            if content_type.startswith(STATUS_TYPES):
                opened.statuses.append(text)
            elif content_type.startswith(RETURNED_TYPES):
                opened.returned.append(_fields(text.partition("\n\n")[0]))
                waiting += [
                    child for child in _children(part) if "multipart/report" in _content_type(_fields(_head(child)))
                ]
            else:  # text, or a multipart so broken that it has no parts
                opened.texts.append((_plain(text) if "html" in content_type else text)[:room])
                room -= len(opened.texts[-1])
                if part is not report and fields.keys() & set(MESSAGE_IDS):  # the message came back without a wrapper
                    opened.returned.append(fields)
        reports.append(opened)
    return reports


def _parts(message: Message) -> Iterator[tuple[Message, Fields, str]]:
    """Yield the parts that aren't made of parts, their fields and types; attached messages are not entered."""
    waiting = [message]
    while waiting:  # Message.walk() fails for deeply nested parts
        part = waiting.pop()
        fields = _fields(_head(part))
        children = _children(part)
        if children and not _content_type(fields).startswith("message/"):
            waiting += reversed(children)
        else:
            yield part, fields, _content_type(fields)


def _children(part: Message) -> list[Message]:
    return [child for child in part.get_payload() if isinstance(child, Message)] if part.is_multipart() else []


def _text(part: Message, fields: Fields, limit: int) -> str:
    """Return the text of a part; of an attached message or a status the source, as far as it has no parts itself."""
    content = _body(part)
    if children := _children(part):
        content = b"\n".join(_source(child) for child in children)[: 2 * limit]
        encoding = _first(fields, "content-transfer-encoding")
        if encoding.lower() != "base64" or not any(child.keys() for child in children):  # or fields could be read
            carrier = Message()  # the parser has taken the encoded text for a message
            carrier["Content-Transfer-Encoding"] = encoding
            carrier.set_payload(content.decode("ascii", "surrogateescape"))
            content = _body(carrier)
    charset = _CHARSET.search(_content_type(fields))
    return _decoded(content[:limit], charset[1] if charset else "utf-8")


def _source(message: Message) -> bytes:
    broken = any(isinstance(defect, MissingHeaderBodySeparatorDefect) for defect in message.defects)
    return _head(message).encode() + b"\n" * (not broken) + _body(message)


def _body(part: Message) -> bytes:
    content = part.get_payload(decode=True)
    return content if isinstance(content, bytes) else b""


def _head(part: Message) -> str:
    head = "".join(f"{name}: {value}\n" for name, value in part.raw_items())
    return _decoded(head.encode("utf-8", "surrogateescape"), "utf-8")


def _fields(head: str) -> Fields:
    fields: Fields = {}
    for name, value in _FIELD.findall(head):
        fields.setdefault(name.lower(), []).append(value.strip())
    return fields


def _values(fields: Fields, *names: str) -> list[str]:
    return [value for name in names for value in fields.get(name, [])]


def _first(fields: Fields, name: str) -> str:
    return fields.get(name, [""])[0]


def _content_type(fields: Fields) -> str:
    """Return type and parameters in lower case; the email package's own reading of them raises for some."""
    return _first(fields, "content-type").lower() or "text/plain"


def _ids(values: Iterable[str]) -> list[str]:
    return ["".join(found.split()) for value in values for found in _ID.findall(value)]


def _address(recipient: str) -> str:
    """Return the address of a recipient field (``rfc822; <Ann@b.test> (Ann)``) in lower case, "" if it has none."""
    address = re.sub(r"\([^()]*\)", "", _TYPE.sub("", recipient, count=1)).strip(" \t\n<>.").lower()
    return address if _ADDRESS.fullmatch(address) else ""


def _addresses(texts: Iterable[str]) -> set[str]:
    found = {address.lower() for text in texts for address in _ADDRESS.findall(text)}
    return found | {address.lstrip("'`*|=/") for address in found}


def _plain(source: str) -> str:
    """Return what HTML shows, without any claim to beauty."""
    text = html.unescape(_TAG.sub("", _LINE_END.sub("\n", _HIDDEN.sub("", source))))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.strip() for line in text.split("\n")))


def _decoded(data: bytes, charset: str) -> str:
    return decoded(data, charset)[0].replace("\r\n", "\n").replace("\r", "\n")
