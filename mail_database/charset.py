"""Bytes and the name of a charset -> text, and whether anything of it is a guess.

Senders name charsets wrongly in a few well-known ways. In this order: what the name says, strictly; UTF-8, where the
bytes can hardly be anything else; the larger charset that browsers read for the name (https://encoding.spec.whatwg.org);
UTF-8 in which each wrong byte is taken for windows-1252.
"""

import codecs
import functools
import re
from itertools import chain

import webencodings  # type: ignore[import-untyped]  # it has no types, and no stubs where none are installed

# Codecs that Python has and mail has not; the first two take quadratic time.
NO_CHARSETS = {"idna", "punycode", "raw-unicode-escape", "unicode-escape", "undefined"}

# What mail systems call charsets, beside the names that Python or the web's standard knows.
NAMES = (
    (r"utf[-_ ]?8.*|unicode-1-1-utf-8|(?:cp|codepage)[-_ ]?65001", "utf-8"),
    (r"(?:x-)?(?:cp|ibm|dos|ms|win|windows|codepage)?[-_ ]?(437|7\d\d|8\d\d|9\d\d|12\d\d|10006|10007)", r"cp\1"),
    (r"(?:x-)?(?:cp|codepage)[-_ ]?20127|(?:us[-_ ]?)?ascii|ansi_x3.*|7bit|646", "us-ascii"),
    (r"(?:x-)?(?:cp|codepage)[-_ ]?28591|latin[-_ ]?1|8859-1|(?:ms[-_ ])?ansi", "iso-8859-1"),
    (r"(?:x-)?iso[-_ ]?8859[-_ ]?(\d+)(?:-[ie])?(?![\d]).*", r"iso8859-\1"),
    (r"(?:x-)?(?:windows|win)[-_ ]?(\d{3,4}).*", r"cp\1"),
    (r"x-mac-(?:ce|centraleurroman)", "mac-latin2"),
    (r"x-mac-japanese", "shift_jis"),
    (r"x-mac-(\w+)", r"mac-\1"),
    (r"x-(?:ms-)?cp(\d+)", r"cp\1"),
    (r"(?:x-)?euc(?:-?jp)?(?:-?(?:ms|win))?|cp51932", "euc-jp"),
    (r"(?:x-)?(?:ibm|cp)-?943c?", "cp932"),
    (r"koi8-?([ru])", r"koi8-\1"),
    (r"x-(.+)", r"\1"),
)
# The larger charsets that are meant by a smaller one's name (the web's standard), as Python has them.
LARGER = {
    "ascii": ("cp1252",),
    "iso8859-1": ("cp1252",),
    "iso8859-2": ("cp1250",),
    "iso8859-6": ("cp1256",),
    "iso8859-7": ("cp1253",),
    "iso8859-8": ("cp1255",),
    "iso8859-9": ("cp1254",),
    "iso8859-11": ("cp874",),
    "iso8859-13": ("cp1257",),
    "tis-620": ("cp874",),
    "gb2312": ("gbk", "gb18030"),
    "gbk": ("gb18030",),
    "cp936": ("gbk", "gb18030"),
    "hz": ("gb18030",),
    "big5": ("cp950", "big5hkscs"),
    "cp950": ("big5hkscs",),
    "shift_jis": ("cp932",),
    "cp932": ("shift_jis_2004",),
    "euc_jp": ("euc_jis_2004",),
    "iso2022_jp": ("iso2022_jp_ext", "cp50220"),
    "euc_kr": ("cp949", "johab"),
    "koi8-r": ("koi8-u",),
}
# Of these the larger one is a guess: some of its letters are others.
GUESSED = {"ascii", "iso8859-2", "iso8859-6", "iso8859-7", "iso8859-13"}
# UTF-8 that another charset's name hides is told by so many bytes that only UTF-8 has in this order: one is enough
# where they would be an accented letter followed by a sign, which no language writes.
LATIN = {"ascii", "iso8859-1", "cp1252", "iso8859-15", "iso8859-2", "cp1250", "iso8859-9", "cp1254"}
TELLING_BYTES, TELLING_LATIN_BYTES = 4, 1
PLAIN = LATIN | {"utf-8", ""}  # in which what is ASCII is ASCII; senders also say them of what they are not

# That of UTF-32 begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
NO_LETTER = "\uf8f3"  # what cp932 makes of 0xFF

_SHIFTS = re.compile(rb"\x1b(\$[@B]|\([BJI])")
_JIS = re.compile(rb"\x1b\$[@B]|\x1b\(I")
_CONTROLS = re.compile("[\x80-\x9f]")  # which no text has; bytes that windows-1252 makes letters of
_CONTINUATION = bytes(range(0x80, 0xC0))
# What stands for a byte that is no UTF-8, as windows-1252 has it.
_WINDOWS_1252 = {0xDC00 + octet: bytes([octet]).decode("cp1252", "replace") for octet in range(0x80, 0x100)}
_FOREIGN = re.compile("[\0\ud800-\udfff]")
_BROKEN = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # the others stand for bytes


def decoded(content: bytes, charset: str) -> tuple[str, bool]:
    """Return text, and whether its charset had to be guessed or a character was lost."""
    text, guessed = _decoded(content, charset)
    return clean(text), guessed or bool(_FOREIGN.search(text))


def clean(text: str) -> str:
    """Return the text as any database can store it: U+FFFD for NUL and for bytes that were no characters."""
    if not _FOREIGN.search(text):
        return text
    return _BROKEN.sub("\ufffd", text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _decoded(content: bytes, charset: str) -> tuple[str, bool]:
    """Return text, and whether its charset had to be guessed."""
    marked = _by_mark(content)
    if marked is not None:
        return marked, False
    codec = codec_of(charset)
    if codec.startswith("utf-16") or (b"\0" in content and codec in PLAIN):
        text = _utf_16(content, codec)
        if text is not None:
            return text, codec in PLAIN
    if codec in PLAIN and _JIS.search(content):
        return _strict(content, "iso2022_jp_ext") or _cp50220(content, "replace") or "", True
    if codec in PLAIN and content.isascii():
        return content.decode("ascii"), codec == ""
    if codec not in ("", "utf-8"):
        named = _by_name(content, codec)
        if named is not None:
            return named
    text = _strict(content, "utf-8")
    if text is not None:
        return text, codec != "utf-8"
    return content.decode("utf-8", "surrogateescape").translate(_WINDOWS_1252), True


def _by_name(content: bytes, codec: str) -> tuple[str, bool] | None:
    """Return text in the charset that is named, or in a larger one, and whether it was guessed; None if in neither."""
    hidden = _hidden_utf_8(content, TELLING_LATIN_BYTES if codec in LATIN else TELLING_BYTES)
    if hidden is not None:
        return hidden, True
    names = (codec, *LARGER.get(codec, ()))
    for name in names:
        text = _strict(content, name)
        if text is not None and not _CONTROLS.search(text):
            return text, name != codec and codec in GUESSED
    largest = names[-1]
    text = (_cp50220(content, "replace") or "") if largest == "cp50220" else content.decode(largest, "replace")
    others = len(content) - len(content.translate(None, bytes(range(0x80, 0x100))))
    if text.count("\ufffd") <= others // 4 + 1 or codec.startswith("iso2022"):
        return text, True
    return None


@functools.lru_cache(256)
def codec_of(charset: str) -> str:
    """Return the name of Python's codec for what a sender calls a charset, "" if there is none."""
    name = re.split(r"[;,\s(]", charset.strip().strip("\"'= \t").lower(), maxsplit=1)[0].strip("\"'")[:60]
    names = [name, *(re.sub(pattern, known, name) for pattern, known in NAMES if re.fullmatch(pattern, name))]
    if name == "x-user-defined":  # of the web's standard; in mail it says that nobody knows
        return ""
    for found in names:
        label = webencodings.lookup(found)
        candidates = [found, label.codec_info.name if label and label.name != "x-user-defined" else ""]
        for candidate in filter(None, candidates):
            try:
                codec = codecs.lookup(candidate)
            except (LookupError, ValueError):
                continue
            if getattr(codec, "_is_text_encoding", True) and codec.name not in NO_CHARSETS:
                return "utf-8" if codec.name == "utf-8-sig" else codec.name
    return ""


def _strict(content: bytes, codec: str) -> str | None:
    if codec == "cp50220":
        return _cp50220(content, "strict")
    try:
        return content.decode(codec)
    except (LookupError, ValueError):
        return None


def _by_mark(content: bytes) -> str | None:
    """Return the text behind a byte order mark, None where there is none, or not that text."""
    for mark, codec in MARKS:
        if content.startswith(mark):
            return _strict(content[len(mark) :], codec)
    return None


def _utf_16(content: bytes, codec: str) -> str | None:
    """Return text in UTF-16 without a mark; what is written in Latin letters shows which byte comes first."""
    high, low = content[0:2000:2].count(0), content[1:2000:2].count(0)
    if not codec.startswith("utf-16") and abs(high - low) * 4 < min(len(content), 2000) // 2 * 3:
        return None
    if high == low:  # one that has no Latin letters: the first bytes of its pairs differ less than the second
        high, low = len(set(content[1:2000:2])) // 2, len(set(content[0:2000:2])) // 2
    order = "utf-16-be" if high > low or (high == low and codec != "utf-16-le") else "utf-16-le"
    return _strict(content, order)


def _hidden_utf_8(content: bytes, telling: int) -> str | None:
    if len(content) - len(content.translate(None, _CONTINUATION)) < telling:
        return None
    return _strict(content, "utf-8")


def _cp50220(content: bytes, errors: str) -> str | None:
    """Return ISO-2022-JP with the letters of Windows, which Python has no codec for: its rows are those of cp932."""
    octets = bytearray()
    shift, start = b"(B", 0
    for found in chain(_SHIFTS.finditer(content), [None]):
        piece = content[start : found.start() if found else None]
        if shift.startswith(b"$"):
            for line in re.split(rb"([\r\n]+)", piece):
                octets += line if line[:1] in (b"\r", b"\n") else _shifted(line)
        elif shift == b"(I":
            octets += bytes(octet | 0x80 if octet > 0x20 else octet for octet in piece)
        else:
            octets += piece
        if found:
            shift, start = found[1], found.end()
    try:
        text = octets.decode("cp932", errors)
    except ValueError:
        return None
    return None if errors == "strict" and NO_LETTER in text else text.replace(NO_LETTER, "\ufffd")


def _shifted(line: bytes) -> bytes:
    """Return JIS X 0208's pairs as those of Shift JIS."""
    octets = bytearray()
    for row, cell in zip(line[::2], line[1::2] + b"\0" * (len(line) % 2), strict=True):
        if not (0x21 <= row <= 0x7E and 0x21 <= cell <= 0x7E):
            octets.append(0xFF)  # NO_LETTER
            continue
        octets.append((row + 1) // 2 + (0x70 if row < 0x5F else 0xB0))
        octets.append(cell + (0x7E if row % 2 == 0 else 0x20 if cell > 0x5F else 0x1F))
    return bytes(octets)
