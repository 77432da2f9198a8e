"""Time and memory to read a message, by shape and size: ``python benchmarks/reading.py``.

Each shape is what once took more than linear time or memory, here or elsewhere. Each reading has a process of its own.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable

from page import Figure, report

SIZES = (62_500, 250_000, 1_000_000)  # bytes
CPU_SECONDS = 2.0
MEMORY_FACTOR = 10
MEMORY_CONSTANT = 32  # MiB, beside the factor: the parts, tokens and tags that the limits allow in a small message
# Time may grow by this factor beyond the size's: of times so short, a part is noise.
LINEAR_SLACK = 2.0
NOTICEABLE = 0.1  # seconds; what takes less is not compared
SECONDS = Figure("reading a message of 1 MB, the slowest of all shapes, seconds of CPU", "at most", CPU_SECONDS)
MEMORY = Figure(
    f"reading a message, memory / ({MEMORY_FACTOR} times its size + {MEMORY_CONSTANT} MiB), the largest of all shapes",
    "at most",
    1,
)
HEAD = b"From: Ann <ann@outside.example>\nTo: info@example.com\nMessage-ID: <a@b>\n"
MIXED = b"Content-Type: multipart/mixed; boundary=b\n\n"
HTML = b"Content-Type: text/html\n\n"


def _repeated(before: bytes, piece: bytes, after: bytes = b"\n\nx\n") -> Callable[[int], bytes]:
    return lambda size: before + piece * (size // len(piece)) + after


def _numbered(before: bytes, piece: bytes, after: bytes = b"\n\nx\n") -> Callable[[int], bytes]:
    return lambda size: before + b"".join(piece % n for n in range(size // (len(piece) + 3))) + after


SHAPES = {
    "semicolons in Content-Type": _repeated(b"Content-Type: text/plain", b";"),
    "quotes in Cc": _repeated(b"Cc: ", b'"'),
    "words in To": _repeated(b"To: ", b"a "),
    "words in Subject": _repeated(b"Subject: ", b"a "),
    "brackets in Cc": lambda size: b"Cc: " + b"(" * (size // 2) + b")" * (size // 2) + b" x@y.example\n\nx\n",
    "open brackets in Cc": _repeated(b"Cc: x@y.example ", b"("),
    "encoded words in Subject": _repeated(b"Subject: ", b"=?utf-8?q?=C3=BC?= "),
    "beginnings of encoded words": _repeated(b"Subject: ", b"=?a?q?"),
    "addresses in Cc": _numbered(b"Cc: a@b.test", b', "User" <u%d@h.example>'),
    "domains in letters": _numbered(b"Cc: a@b.test", b", a@\xc3\xa4%d.x"),
    "ids in References": _numbered(b"References: ", b"<%d@b.test> "),
    "fields": _repeated(b"", b"a:\n"),
    "nested div": _repeated(HTML, b"<div>"),
    "nested font": _numbered(HTML, b"<font size=%d>"),
    "formatting that never ends": _numbered(HTML, b"<b title=%d>"),
    "formatting around paragraphs": lambda size: (
        HTML + b"".join(b"<b title=%d>" % n for n in range(150)) + b"<p>x" * (size // 4)
    ),
    "tables within each other": _repeated(HTML, b"<table><tr><td>"),
    "less-than signs": _repeated(HTML, b"<"),
    "ampersands": _repeated(HTML, b"&"),
    "comments that never end": _repeated(HTML, b"<!--"),
    "scripts that never end": _repeated(HTML, b"<script>"),
    "quotes in a tag": _repeated(HTML, b'<a x="<'),
    "parts": _repeated(MIXED, b"--b\n\n"),
    "boundaries of others": _repeated(MIXED, b"--c\n"),
    "multiparts within each other": lambda size: b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(size // 54)
    ),
    "forwards within each other": _repeated(b"", b"Content-Type: message/rfc822\n\nFrom: a@b.example\n"),
    "base64 of one letter": _repeated(b"Content-Transfer-Encoding: base64\n\n", b"QQ==\n"),
    "quoted-printable": _repeated(b"Content-Transfer-Encoding: quoted-printable\n\n", b"=3D="),
    "uuencode that promises much": _repeated(b"Content-Transfer-Encoding: x-uuencode\n\nbegin 644 x\n", b"M\n"),
    "wrong UTF-8": _repeated(b"Content-Type: text/plain; charset=utf-8\n\n\xc3\xa9", b"\xff"),
    "ISO-2022-JP": _repeated(b"Content-Type: text/plain; charset=iso-2022-jp\n\n", b"\x1b$B!"),
    "empty lines": _repeated(b"\n", b"\n"),
    "an ordinary text": _repeated(b"\n", b"An ordinary line of an ordinary letter, as people write.\n"),
}


def main() -> int:
    """Read each shape in each size, and report the worst of each."""
    missed = []
    slowest, largest = (0.0, ""), (0.0, "")
    for shape in SHAPES:
        costs = [_measured(shape, size) for size in SIZES]
        line = "   ".join(f"{seconds:5.2f} s {memory:6.1f} MiB" for seconds, memory in costs)
        wrong = []
        for size, earlier, (seconds, memory) in zip(SIZES, [None, *costs], costs, strict=False):
            if seconds > CPU_SECONDS:
                wrong.append("time")
            if _share(size, memory) > 1:
                wrong.append("memory")
            if earlier and earlier[0] > NOTICEABLE and seconds > LINEAR_SLACK * 4 * earlier[0]:
                wrong.append("not linear")
        print(f"{shape:32} {line}   {', '.join(dict.fromkeys(wrong))}".rstrip(), flush=True)
        missed += [f"{shape}: {what}" for what in wrong]
        slowest = max(slowest, (costs[-1][0], shape))
        largest = max(largest, (max(map(_share, SIZES, (memory for _, memory in costs))), shape))
    status = report(SECONDS.row(*slowest), MEMORY.row(*largest))
    print(*missed, sep="\n")
    return int(bool(missed) or status)


def _share(size: int, memory: float) -> float:
    return memory / (MEMORY_CONSTANT + MEMORY_FACTOR * size / 2**20)


def _measured(shape: str, size: int) -> tuple[float, float]:
    """Return the seconds of CPU and the MiB beyond what was there before that one reading takes."""
    done = subprocess.run([sys.executable, __file__, shape, str(size)], capture_output=True, check=True, text=True)
    seconds, memory = done.stdout.split()
    return float(seconds), float(memory)


def _read(shape: str, size: int) -> None:
    from mail_database.message import parse

    raw = HEAD + SHAPES[shape](size)
    parse(HEAD + b"Content-Type: text/html; charset=gb2312\n\n<p>\xd6\xd0</p>")  # what is loaded at first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    parse(raw)
    seconds = time.process_time() - begun
    print(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        _read(sys.argv[1], int(sys.argv[2]))
    else:
        sys.exit(main())
