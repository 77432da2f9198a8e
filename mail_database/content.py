"""What a message holds: the text that a person reads, as HTML, and the files that came with it.

If a letter or a byte was lost, a charset guessed or a limit reached, the message itself is attached as it came.
"""

import html
import re
from typing import NamedTuple

from mail_database.charset import decoded
from mail_database.header import Parameters, Part, parameters, raw_values, text_of, unfolded
from mail_database.markup import charset_of, shown
from mail_database.parts import Branch, Leaf, leaves, type_of
from mail_database.transfer_encoding import IDENTITY, undone

MAX_TEXT_CHARACTERS = 2**20  # of one text, and of all of them
MAX_WORDS_CHARACTERS = 1000  # of a plain text, which are looked for in the HTML beside it
MIN_TELLING_LETTERS = 8  # fewer letters say too little
MAX_NAME_CHARACTERS = 200  # of a file's name
ORIGINAL = "original.eml"
MESSAGE = "message/rfc822"
HTML = {"text/html", "text/htm", "html"}  # and what programs call it
MESSAGES = {MESSAGE, "message/global"}  # a message within the message (RFC 2046, 5.2.1; RFC 6532, 3.7)

# Texts that programs read.
NOT_FOR_PEOPLE = {"text/calendar", "text/vcard", "text/x-vcard", "text/xml", "text/css", "text/csv", "text/rtf"}

# How the name of a file ends that came without one; any other type: .bin.
SUFFIXES = {
    "application/gzip": ".gz",
    "application/json": ".json",
    "application/ms-tnef": ".dat",
    "application/msword": ".doc",
    "application/pdf": ".pdf",
    "application/pgp-encrypted": ".asc",
    "application/pgp-keys": ".asc",
    "application/pgp-signature": ".asc",
    "application/pkcs7-mime": ".p7m",
    "application/pkcs7-signature": ".p7s",
    "application/rtf": ".rtf",
    "application/vnd.ms-excel": ".xls",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/x-pkcs7-mime": ".p7m",
    "application/x-pkcs7-signature": ".p7s",
    "application/xml": ".xml",
    "application/zip": ".zip",
    "application/ics": ".ics",
    "audio/mpeg": ".mp3",
    "audio/ogg": ".ogg",
    "audio/wav": ".wav",
    "audio/x-wav": ".wav",
    "image/bmp": ".bmp",
    "image/gif": ".gif",
    "image/heic": ".heic",
    "image/jpeg": ".jpg",
    "image/jpg": ".jpg",
    "image/pjpeg": ".jpg",
    "image/png": ".png",
    "image/svg+xml": ".svg",
    "image/tiff": ".tif",
    "image/webp": ".webp",
    "message/delivery-status": ".txt",
    "message/disposition-notification": ".txt",
    "message/global": ".eml",
    "message/rfc822": ".eml",
    "text/calendar": ".ics",
    "text/css": ".css",
    "text/csv": ".csv",
    "text/html": ".html",
    "text/markdown": ".md",
    "text/plain": ".txt",
    "text/rfc822-headers": ".txt",
    "text/rtf": ".rtf",
    "text/vcard": ".vcf",
    "text/x-vcard": ".vcf",
    "text/xml": ".xml",
    "video/mp4": ".mp4",
    "video/quicktime": ".mov",
}


_ELEMENT = re.compile(r"<[^<>]*>")
_WORD = re.compile(r"\w{2,}")


class Attachment(NamedTuple):
    """A file that came with the message. By its content id, without <>, the body names it (``cid:``)."""

    name: str
    mimetype: str
    content: bytes
    content_id: str = ""


class Content(NamedTuple):
    """What a message holds."""

    body: str  # HTML that can be shown
    attachments: list[Attachment]
    is_report: bool  # multipart/report: a bounce, a read receipt
    lost: bool  # something is in neither


class _Text(NamedTuple):
    """A text that is shown, unless another form of it is."""

    branch: Branch | None
    is_html: bool
    html: str
    has_words: bool


def read_content(raw: bytes, message: Part) -> Content:
    """Return what the message with this header holds."""
    texts: list[_Text] = []
    named: list[_Text] = []  # texts that are files (a name, another type); shown where there are no others
    attachments: list[Attachment] = []
    lost = False
    for leaf in leaves(raw, message):
        if leaf is None:
            lost = True
            continue
        content, broken = undone(leaf.content, _transfer_encoding(leaf.header))
        lost = lost or broken or leaf.is_broken
        disposition = parameters(leaf.header, "Content-Disposition")
        given = _given_name(leaf, disposition)
        lost = lost or (disposition.lost or leaf.content_type.lost)
        kind = "text/plain" if leaf.is_broken else leaf.content_type.value
        is_file = not leaf.is_broken and (bool(given) or disposition.value == "attachment")
        is_file = is_file or kind not in ("text/plain", "text/html")
        if kind.startswith("text/") or kind == "plain/text":
            text, guessed = _text(content, leaf, kind in HTML)
            if not is_file or kind not in NOT_FOR_PEOPLE:
                (named if is_file else texts).append(text)
            lost = lost or (guessed and not is_file)
        if is_file:
            name = _file_name(given, kind)
            lost = lost or len(given) > MAX_NAME_CHARACTERS
            attachments.append(Attachment(name, kind, content, _content_id(leaf.header)))
    if not any(text.has_words for text in texts):
        texts += named
    if not any(text.has_words for text in texts):
        lost = lost or _has_preamble(raw, message)
    body, is_cut = _body(texts)
    lost = lost or _differs(texts)
    return Content(body, attachments, type_of(message.header).value == "multipart/report", lost or is_cut)


def _transfer_encoding(header: bytes) -> str:
    found = [unfolded(value).decode("ascii", "replace") for value in raw_values(header, "Content-Transfer-Encoding")]
    return next((value for value in found if value.lower() not in IDENTITY), "")  # it may stand there twice


def _text(content: bytes, leaf: Leaf, is_html: bool) -> tuple[_Text, bool]:
    """Return a text, and whether something of it was guessed or lost."""
    charset = leaf.content_type.parameters.get("charset", "")
    own = charset_of(content) if is_html else ""
    text, guessed = decoded(content[: 4 * MAX_TEXT_CHARACTERS], charset or own or "utf-8")
    if guessed and charset and own:  # the header is wrong; what the HTML says of itself may be right
        other, is_guess = decoded(content[: 4 * MAX_TEXT_CHARACTERS], own)
        text, guessed = (text, True) if is_guess else (other, True)
    if is_html:
        seen = shown(text)
        found = _Text(leaf.branch, True, seen.html, seen.has_words)
        return found, guessed or seen.lost or len(content) > 4 * MAX_TEXT_CHARACTERS
    escaped = html.escape(text[:MAX_TEXT_CHARACTERS], quote=False)
    return _Text(leaf.branch, False, f"<pre>{escaped}</pre>\n", not text.isspace() and bool(text)), len(
        text
    ) > MAX_TEXT_CHARACTERS or guessed


def _body(texts: list[_Text]) -> tuple[str, bool]:
    """Return the texts as one, and whether it was cut. Of the forms of one text, HTML hides the plain one, if it has
    any words itself.
    """
    forms = {text.branch.of: text.branch.number for text in texts if text.branch and text.is_html and text.has_words}
    kept: list[str] = []
    room = 4 * MAX_TEXT_CHARACTERS
    for text in texts:
        if text.branch and forms.get(text.branch.of, text.branch.number) != text.branch.number:
            continue
        room -= len(text.html)
        if room < 0:
            return "".join(kept), True
        kept.append(text.html)
    return "".join(kept), False


def _has_preamble(raw: bytes, message: Part) -> bool:
    """Tell whether words stand before the first boundary that are not the customary hint at MIME."""
    boundary = type_of(message.header).parameters.get("boundary", "").encode("utf-8", "replace")
    end = raw.find(b"--" + boundary, message.body) if boundary else -1
    words = raw[message.body : end] if end > 0 else b""
    return bool(words.strip()) and not re.search(rb"(?i)MIME|multi-?part", words)


def _differs(texts: list[_Text]) -> bool:
    """Tell whether HTML hides a plain form of which it has hardly a word: a hidden or half a text, another one."""
    shown_forms: dict[int, list[str]] = {}
    for text in texts:
        if text.branch and text.is_html and text.has_words:
            shown_forms.setdefault(text.branch.of, []).append(html.unescape(_ELEMENT.sub("", text.html)))
    seen = {of: "".join(forms) for of, forms in shown_forms.items()}
    for text in texts:
        if text.branch and not text.is_html and text.branch.of in seen:
            plain = html.unescape(text.html.removeprefix("<pre>").removesuffix("</pre>\n")[:MAX_WORDS_CHARACTERS])
            words = {word[:8] for word in _WORD.findall(plain)}
            if sum(map(len, words)) >= MIN_TELLING_LETTERS and sum(
                word in seen[text.branch.of] for word in words
            ) * 2 < len(words):
                return True
    return False


def _given_name(leaf: Leaf, disposition: Parameters) -> str:
    return disposition.parameters.get("filename", "") or leaf.content_type.parameters.get("name", "")


def _file_name(given: str, kind: str) -> str:
    """Return a file's name: the given one, else one that ends as its type does. A message is known by .eml."""
    suffix = SUFFIXES.get(kind, ".bin")
    if len(given) > MAX_NAME_CHARACTERS:
        _, dot, ending = given.rpartition(".")
        given = given[: MAX_NAME_CHARACTERS - 20] + (dot + ending if len(ending) < 20 else "")
    if not given:
        return f"attachment{suffix}"
    return f"{given}.eml" if kind in MESSAGES and not given.lower().endswith(".eml") else given


def _content_id(header: bytes) -> str:
    value = text_of(next(iter(raw_values(header, "Content-ID")), b"")).text
    found = re.search(r"<([^<>]+)>", value)
    return (found[1] if found else value).strip()
