"""How a message is read: text that its sender wrote badly is readable or kept, and hostile mail costs little."""

import base64

import pytest
import sqlalchemy as sa
from support.cost import STEP, grows_linearly

from mail_database.addresses import ascii_domain, split
from mail_database.message import ORIGINAL, Message, normalize, parse
from mail_database.store import open_database, transaction
from mail_database.tables import attachments


def text_part(charset: str, content: bytes, encoding: str = "8bit") -> bytes:
    head = f"Content-Type: text/plain; charset={charset}\nContent-Transfer-Encoding: {encoding}\n\n"
    return head.encode() + content


def names(message: Message) -> list[str]:
    return [attachment.name for attachment in message.attachments]


CHARSETS = [  # charset, bytes, what is read, whether the original is attached
    ("iso-8859-1", b"\x93Hello\x94 5 \x80", "\u201cHello\u201d 5 \u20ac", False),
    ("iso-8859-1;", b"Gr\xfc\xdfe", "Gr\u00fc\u00dfe", False),
    ("\"'utf8'\"", "Gr\u00fc\u00dfe".encode(), "Gr\u00fc\u00dfe", False),
    ("utf8mb4", "Gr\u00fc\u00dfe".encode(), "Gr\u00fc\u00dfe", False),
    ("utf-8", b"\xef\xbb\xbfGr\xc3\xbc\xc3\x9fe", "Gr\u00fc\u00dfe", False),
    ("utf-8", b"Gr\xc3\xbc\xc3\x9fe K\xf6ln", "Gr\u00fc\u00dfe K\u00f6ln", True),
    ("us-ascii", "Gr\u00fc\u00dfe".encode(), "Gr\u00fc\u00dfe", True),
    ("us-ascii", b"Za\xbf\xf3\xb3\xe6", "Za\u00bf\u00f3\u00b3\u00e6", True),
    ("windows-1252", "Dzie\u0144 dobry".encode(), "Dzie\u0144 dobry", True),
    ("x-user-defined", b"Gr\xfc\xdfe", "Gr\u00fc\u00dfe", True),
    ("x-unknown", b"Gr\xfc\xdfe", "Gr\u00fc\u00dfe", True),
    ("cp-850", b"St\x81hle", "St\u00fchle", False),
    (
        "win-1251",
        "\u041f\u0440\u0438\u0432\u0435\u0442".encode("cp1251"),
        "\u041f\u0440\u0438\u0432\u0435\u0442",
        False,
    ),
    ("koi8-r", "\u041f\u0440\u0438\u0432\u0435\u0442".encode("koi8-r"), "\u041f\u0440\u0438\u0432\u0435\u0442", False),
    ("x-mac-cyrillic", b"\x8f\xf0\xe8\xe2\xe5\xf2", "\u041f\u0440\u0438\u0432\u0435\u0442", False),
    ("windows-1255", "\u05e9\u05dc\u05d5\u05dd".encode("cp1255"), "\u05e9\u05dc\u05d5\u05dd", False),
    ("iso-8859-8-i", "\u05e9\u05dc\u05d5\u05dd".encode("cp1255"), "\u05e9\u05dc\u05d5\u05dd", False),
    ("windows-874", b"\xca\xc7\xd1\xca", "\u0e2a\u0e27\u0e31\u0e2a", False),
    ("gb2312", "\u9555\u5586".encode("gbk"), "\u9555\u5586", False),
    ("big5", "\u4e2d\u6587".encode("big5"), "\u4e2d\u6587", False),
    ("ks_c_5601-1987", "\ub620\ubc29".encode("cp949"), "\ub620\ubc29", False),
    ("shift_jis", "\u2460\u9ad9\u6a4b".encode("cp932"), "\u2460\u9ad9\u6a4b", False),
    ("iso-2022-jp", "\u30c6\u30b9\u30c8".encode("iso-2022-jp"), "\u30c6\u30b9\u30c8", False),
    ("iso-2022-jp", b"\x1b$B-!9b66\x1b(B", "\u2460\u9ad8\u6a4b", False),  # a letter of Windows
    ("iso-2022-jp", b"\x1b$B-!\xff\xff\xfe", "\u2460\ufffd\ufffd", True),
    ("us-ascii", "\u30c6\u30b9\u30c8".encode("iso-2022-jp"), "\u30c6\u30b9\u30c8", True),
    ("utf-7", b"Gr+APwA3w-e", "Gr\u00fc\u00dfe", False),
    ("utf-16", "Gr\u00fc\u00dfe".encode("utf-16-le"), "Gr\u00fc\u00dfe", False),
    ("utf-8", "Gr\u00fc\u00dfe".encode("utf-16"), "Gr\u00fc\u00dfe", False),
    ("utf-32", "Gr\u00fc\u00dfe".encode("utf-32"), "Gr\u00fc\u00dfe", False),
    (
        "iso-10646-ucs-2",
        "\u041f\u0440\u0438\u0432\u0435\u0442".encode("utf-16-be"),
        "\u041f\u0440\u0438\u0432\u0435\u0442",
        False,
    ),
    ("eucjp-win", "\u30c6\u30b9\u30c8".encode("euc-jp"), "\u30c6\u30b9\u30c8", False),
    ("x-ibm-943c", "\u30c6\u30b9\u30c8".encode("cp932"), "\u30c6\u30b9\u30c8", False),
    ("koi8r", "\u041f\u0440\u0438\u0432\u0435\u0442".encode("koi8-r"), "\u041f\u0440\u0438\u0432\u0435\u0442", False),
    ("iso-8859-2", "\u201e\u017elu\u0165\u201c".encode("cp1250"), "\u201e\u017elu\u0165\u201c", True),
    (
        "iso-8859-7",
        b"\x93" + "\u03ac\u03bb\u03c6\u03b1".encode("cp1253") + b"\x94",
        "\u201c\u03ac\u03bb\u03c6\u03b1\u201d",
        True,
    ),
    ("idna", b"abc", "abc", True),
    ("utf-8", b"a\0b", "a\ufffdb", True),
]


@pytest.mark.parametrize(("charset", "content", "shown", "original"), CHARSETS)
def test_a_text_is_read_whatever_its_charset_is_called(
    charset: str, content: bytes, shown: str, original: bool
) -> None:
    message = parse(text_part(charset, base64.b64encode(content), "base64"))
    assert message.body == f"<pre>{shown}</pre>\n"
    assert names(message) == ([ORIGINAL] if original else [])


@pytest.mark.parametrize(
    ("value", "shown", "original"),
    [
        (b"=?utf-8?B?SWhyZSBTdXBwb3J0?==?utf-8?B?OiBBbmZyYWdl?= raw", "Ihre Support: Anfrage raw", False),
        (b"=?utf-8?q?Gr=C3?= =?utf-8?q?=BC=C3=9Fe?=", "Gr\u00fc\u00dfe", False),
        (b"=?utf-8?B?R3LDvMOfZQ?=", "Gr\u00fc\u00dfe", False),
        (b"=?utf-8?B?R3LD\n vMOfZQ==?=", "Gr\u00fc\u00dfe", False),
        (b"=?utf-8?Q?Hello w=C3=B6rld?=", "Hello w\u00f6rld", False),
        (b"=?gb2312?B?6UaGtM3Lv+4=?=", "\u9555\u5586\u9000\u6b3e", False),
        (b"=?utf-8*de?q?Gr=C3=BC=C3=9Fe?=", "Gr\u00fc\u00dfe", False),
        (b"R\xfcckfrage", "R\u00fcckfrage", True),
        ("Gr\u00fc\u00dfe".encode(), "Gr\u00fc\u00dfe", False),
        (b"=?utf-8?x?abc?=", "=?utf-8?x?abc?=", True),
        (b"nul\0x", "nul\ufffdx", True),
    ],
)
def test_a_subject_is_readable_or_the_original_kept(value: bytes, shown: str, original: bool) -> None:
    message = parse(b"Subject: " + value + b"\n\nx")
    assert message.subject == shown
    assert names(message) == ([ORIGINAL] if original else [])


@pytest.mark.parametrize(
    ("encoding", "content", "shown", "original"),
    [
        ("base64 ", b"R3LDvMOfZQ==", "Gr\u00fc\u00dfe", False),
        ("base64 (RFC 2045)", b"R3LDvMOfZQ==", "Gr\u00fc\u00dfe", False),
        ('"base64";', b"R3LDvMOfZQ==", "Gr\u00fc\u00dfe", False),
        ("BASE64", b"R3LDvA==\nw59l\n", "Gr\u00fc\u00dfe", False),  # two pieces
        ("base64", b"R3LDvMOfZQ", "Gr\u00fc\u00dfe", True),
        ("base64", b"R3LDvMOfZQ==\n-- \na list's words", "Gr\u00fc\u00dfe", True),
        ("base64", b"It is no base64.", "It is no base64.", True),
        ("utf-8", b"Gr\xc3\xbc\xc3\x9fe", "Gr\u00fc\u00dfe", True),
        ("quoted-printable; x", b"Gr=C3=BC=\n=C3=9Fe", "Gr\u00fc\u00dfe", False),
        ("quoted-printable", b"a =ZZ b", "a =ZZ b", True),
        ("(a comment) base64", b"R3LDvMOfZQ==", "Gr\u00fc\u00dfe", False),
        ("base 64", b"R3LDvMOfZQ==", "Gr\u00fc\u00dfe", False),
        ("x-base64", b"R3LDvMOfZQ==", "Gr\u00fc\u00dfe", False),
        ("7bit\nContent-Transfer-Encoding: base64", b"R3LDvMOfZQ==", "Gr\u00fc\u00dfe", False),
        ("quoted_printible", b"Gr=C3=BC=C3=9Fe", "Gr\u00fc\u00dfe", False),
        ("quoted-printable", b"Gr=C3=BC= \n=C3=9Fe", "Gr\u00fc\u00dfe", False),
        ("x-uuencode", b"words\nbegin 644 x\n#0V%T\n`\nend\n", "Cat", True),
        ("x-uuencode", b"begin 644 x\n#0V%T\n`\nend\nwords\n", "Cat", True),
        ("x-uuencode", b"begin 644 x\n#0V%T\n`\nend\n", "Cat", False),
        ("x-uuencode", b"begin 644 x\nM\nM\nend\n", "", True),
    ],
)
def test_a_transfer_encoding_is_undone_or_the_original_kept(
    encoding: str, content: bytes, shown: str, original: bool
) -> None:
    message = parse(text_part("utf-8", content, encoding))
    assert message.body == f"<pre>{shown}</pre>\n"
    assert names(message) == ([ORIGINAL] if original else [])


def alternative(*forms: tuple[str, str]) -> bytes:
    parts = "".join(f"--b\nContent-Type: {kind}\n\n{text}\n" for kind, text in forms)
    return f"Content-Type: multipart/alternative; boundary=b\n\n{parts}--b--\n".encode()


@pytest.mark.parametrize("form", ["", "<img src='cid:1'>", "<p>&nbsp;&#8203;</p>", "<!-- x -->", "<style>p{}</style>",
                                  "<div style='display:none'>x</div>"])  # fmt: skip
def test_an_empty_form_does_not_hide_the_text(form: str) -> None:
    assert "Please cancel" in parse(alternative(("text/plain", "Please cancel"), ("text/html", form))).body
    assert "Please cancel" not in parse(alternative(("text/plain", "Please cancel"), ("text/html", "<p>x</p>"))).body


@pytest.mark.parametrize(
    "form",
    ["<p style='color:white;background:white'>x</p>", "<style>.a{display:none}</style><p class=a>x</p>",
     "<div style='max-height:0;overflow:hidden'>x</div>", "<html><head><style>p{", "<body style='display:none'>x"],
)  # fmt: skip
def test_a_plain_form_of_which_the_html_has_no_word_is_kept(form: str) -> None:
    assert names(parse(alternative(("text/plain", "Please cancel my order"), ("text/html", form)))) == [ORIGINAL]
    japanese = "\u3054\u6ce8\u6587\u306e\u53d6\u308a\u6d88\u3057\u3092\u304a\u9858\u3044"  # no blanks
    assert names(parse(alternative(("text/plain; charset=utf-8", japanese), ("text/html", form)))) == [ORIGINAL]
    same = alternative(("text/plain", "Please cancel my order"), ("text/html", "<p>Please <b>can</b>cel my order</p>"))
    assert names(parse(same)) == []


@pytest.mark.parametrize(
    ("header", "name"),
    [("text/markdown", "attachment.md"), ("text/enriched", "attachment.bin"), ("plain/text", "attachment.bin"),
     ("text/plain\nContent-Disposition: attachment", "attachment.txt")],
)  # fmt: skip
def test_a_text_that_is_a_file_is_shown_where_there_is_no_other(header: str, name: str) -> None:
    message = parse(f"Content-Type: {header}\n\nPlease cancel".encode())
    assert (message.body, names(message)) == ("<pre>Please cancel</pre>\n", [name])


@pytest.mark.parametrize(
    ("before", "original"), [("Dear Sirs, cancel 4711.", True), ("This is a multi-part message in MIME format.", False)]
)
def test_words_before_the_first_boundary_are_kept_where_there_are_no_others(before: str, original: bool) -> None:
    raw = f"Content-Type: multipart/mixed; boundary=b\n\n{before}\n--b\nContent-Type: image/png\n\nP\n--b--\n"
    assert (ORIGINAL in names(parse(raw.encode()))) == original


def test_an_address_in_brackets_is_no_element_of_html() -> None:
    assert "&lt;ann@b.test&gt;" in parse(b"Content-Type: text/html\n\n<p>Write to <ann@b.test>.</p>").body


@pytest.mark.parametrize(
    "defect", [b".", b">>From ann@b Tue", b"HTTP/1.1 200 OK", b"\xa0", b"Gr\xfc\xdfe: x", b"X Name: x"]
)
@pytest.mark.parametrize("first", [b"", b"To: info@b.test\n"])
def test_a_line_that_is_no_field_does_not_end_a_header_that_goes_on(first: bytes, defect: bytes) -> None:
    message = parse(first + defect + b"\n" + b"From: ann@b.test\nSubject: hello\n\nwords")
    assert (message.sender_address, message.subject) == ("ann@b.test", "hello")
    assert message.body == "<pre>words</pre>\n"


def test_an_empty_field_does_not_hide_the_next_of_its_name() -> None:
    message = parse(b"From: \nFrom : ann@b.test\nSubject: \nSubject: hello\n\nx")
    assert (message.sender_address, message.subject) == ("ann@b.test", "hello")


def test_line_ends_of_a_macintosh_are_read_where_a_host_added_one_of_its_own() -> None:
    assert parse(b"Subject: hello\r\rwords\r\n").subject == "hello"


def test_a_text_with_a_name_is_the_text_where_there_is_no_other() -> None:
    named = b"Content-Type: text/plain; name=a.txt\n\nwords\n"
    assert parse(named).body == "<pre>words\n</pre>\n"
    assert names(parse(named)) == ["a.txt"]
    both = b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\nmine\n--b\n" + named + b"--b--\n"
    assert parse(both).body == "<pre>mine</pre>\n"


def test_a_charset_that_only_the_html_names_counts() -> None:
    raw = b"Content-Type: text/html\n\n<meta charset=windows-1251><p>\xcf\xf0\xe8</p>"
    assert parse(raw).body == "<p>\u041f\u0440\u0438</p>"
    assert names(parse(raw)) == []


INNER = b"From: x@y.example\nSubject: inner\nContent-Type: multipart/mixed; boundary=i\n\n--i\n\nSECRET\n--i--\n"


@pytest.mark.parametrize("kind", ["message/rfc822", "message/global"])
@pytest.mark.parametrize("encoding", ["7bit", "base64"])
def test_an_attached_message_is_a_file(kind: str, encoding: str) -> None:
    content = base64.encodebytes(INNER) if encoding == "base64" else INNER
    raw = (
        b"Content-Type: multipart/mixed; boundary=o\n\n--o\n\nouter\n--o\n"
        + f"Content-Type: {kind}; name=old\nContent-Transfer-Encoding: {encoding}\n\n".encode()
        + content
        + b"\n--o--\n"
    )
    message = parse(raw)
    assert message.body == "<pre>outer</pre>\n"
    assert [(file.name, file.content) for file in message.attachments] == [("old.eml", INNER)]


@pytest.mark.parametrize(
    ("value", "shown", "address"),
    [
        ("sales@shop <bill@x.test>", '"sales@shop" <bill@x.test>', "bill@x.test"),
        ('"a@b" <c@d.test>', '"a@b" <c@d.test>', "c@d.test"),
        ("a@b.test (Name)", '"Name" <a@b.test>', "a@b.test"),
        ("=?utf-8?q?a=40b?= <c@d.test>", '"a@b" <c@d.test>', "c@d.test"),
        ("=?utf-8?q?Ann_=3Cann=40b=2Etest=3E?=", '"Ann" <ann@b.test>', "ann@b.test"),
        ("=?utf-8?q?evil=40x=2Etest=2C_?= <c@d.test>", '"evil@x.test," <c@d.test>', "c@d.test"),
        ("'ann@b.test' <ann@b.test>", "\"'ann@b.test'\" <ann@b.test>", "ann@b.test"),
        ('"Ann" [SMTP:ann@b.test]', '"Ann" <ann@b.test>', "ann@b.test"),
        ("<@relay.test,@b.test:ann@c.test>", "ann@c.test", "ann@c.test"),
        ("0301234567", "0301234567", ""),
        ("Scanner <>", '"Scanner <>"', ""),
    ],
)
def test_who_stands_in_brackets_is_the_sender(value: str, shown: str, address: str) -> None:
    message = parse(f"From: {value}\n\nx".encode())
    assert (message.sender, message.sender_address) == (shown, address)


@pytest.mark.parametrize(
    ("header", "address"),
    [("Return-Path: <ann@b.test>", "ann@b.test"), ("Sender: Bob <bob@b.test>\nReturn-Path: <a@b.test>", "bob@b.test"),
     ("From: \nReturn-Path: <ann@b.test>", "ann@b.test"), ("Return-Path: <>", "")],
)  # fmt: skip
def test_where_from_is_missing_the_envelope_says_who_sent_it(header: str, address: str) -> None:
    assert parse(f"{header}\n\nx".encode()).sender_address == address


@pytest.mark.parametrize(
    ("value", "addresses"),
    [
        ("a@b.c; d@e.f; g@h.i", ["a@b.c", "d@e.f", "g@h.i"]),
        ("a@b.c d@e.f", ["a@b.c", "d@e.f"]),
        ('"Sales desk <a@b.c>', ["a@b.c"]),
        ("(c):;", []),
        ("(x): a@b.c;", ["a@b.c"]),
        ("Team: Ann <a@b.c>, d@e.f;, g@h.i", ["a@b.c", "d@e.f", "g@h.i"]),
        ("undisclosed-recipients:;", []),
        ("(" * 500 + "x" + ")" * 500 + " a@b.c", ["a@b.c"]),
        ("(" * 500 + " <a@b.c>", ["a@b.c"]),
        (" ".join(f"a{number}@b.c" for number in range(3000)), [f"a{number}@b.c" for number in range(3000)]),
        (", ".join(f'"U, {n}" <u{n}@b.c>' for n in range(10_000)), [f"u{n}@b.c" for n in range(10_000)]),
    ],
)
def test_a_badly_written_list_has_its_addresses(value: str, addresses: list[str]) -> None:
    assert [entry.address for entry in split(value)] == addresses


def test_a_domain_in_letters_and_in_ascii_is_one() -> None:
    assert normalize("Ann <Ann@M\u00fcller.example>") == normalize("ann@XN--MLLER-KVA.example")
    assert ascii_domain("\u2603\u2603.example") == "\u2603\u2603.example"  # none that DNS may have stays


@pytest.mark.parametrize(
    "before", [b"\n", b"\r\n", b">From a@b Tue\n", b"From a@b Tue\n", b"\xef\xbb\xbf", b"\n\n>From x y\n"]
)
@pytest.mark.parametrize("added", [b"", b"Return-Path: <a@b>\nDelivered-To: <c@d>\n"])
def test_what_stands_before_the_header_does_not_hide_it(added: bytes, before: bytes) -> None:
    message = parse(added + before + b"From: ann@b.test\nSubject: hello\n\nwords: yes\n")
    assert (message.sender_address, message.subject) == ("ann@b.test", "hello")
    assert message.body == "<pre>words: yes\n</pre>\n"


@pytest.mark.parametrize("added", [b"", b"Return-Path: <a@b>\n", b"Received: by c\r\nReturn-Path: <a@b>\r\n"])
def test_line_ends_of_old_are_read_behind_what_hosts_put_in_front(added: bytes) -> None:
    message = parse(added + b"From: ann@b.test\rSubject: hello\r\rwords\rmore\r")
    assert (message.sender_address, message.subject, message.body) == (
        "ann@b.test",
        "hello",
        "<pre>words\nmore\n</pre>\n",
    )


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("Content-Type: text/calendar; method=REQUEST", "attachment.ics"),
        ("Content-Type: image/png", "attachment.png"),
        ("Content-Type: message/rfc822", "attachment.eml"),
        ("Content-Type: application/x-unheard-of", "attachment.bin"),
        ("Content-Type: application/ms-tnef", "attachment.dat"),
        ("Content-Type: a/b\nContent-Disposition: filename=a.pdf", "a.pdf"),
        ("Content-Type: a/b; name*0*=ISO-8859-1''f%FCr%20; name*1=M.pdf", "f\u00fcr M.pdf"),
        ("Content-Type: a/b; name*=koi8-r'ru'%F0%F2.pdf", "\u041f\u0440.pdf".replace("\u0440", "\u0420")),
        ('Content-Type: a/b; name="=?gb2312?B?6UaGtA==?=.pdf"', "\u9555\u5586.pdf"),
        ('Content-Type: a/b; name="a;b\\"c.pdf"', 'a;b"c.pdf'),
    ],
)
def test_a_file_has_a_name_that_opens_it(header: str, name: str) -> None:
    assert names(parse(f"{header}\n\nx".encode())) == [name]


def test_a_picture_is_found_by_its_content_id(tmp_path) -> None:
    raw = (
        b"Content-Type: multipart/related; boundary=b\n\n--b\nContent-Type: text/html\n\n<img src='cid:p1@x'>\n"
        b"--b\nContent-Type: image/png\nContent-ID: <p1@x>\n\nPNG\n--b--\n"
    )
    message = parse(raw)
    assert 'src="cid:p1@x"' in message.body
    assert [file.content_id for file in message.attachments] == ["p1@x"]
    url = f"sqlite:///{tmp_path}/mail.db"
    engine = open_database(url)
    with engine.begin() as connection:  # a store from before that column
        connection.execute(sa.text("ALTER TABLE attachments DROP COLUMN content_id"))
    engine.dispose()
    engine = open_database(url)
    with transaction(engine) as store:
        store.post("<a@b>", message.attachments, model="crm.lead", thread_id=1)
    with engine.begin() as connection:
        assert connection.execute(sa.select(attachments.c.content_id)).scalars().all() == ["p1@x"]
    engine.dispose()


def test_forwards_within_each_other_are_stored_once() -> None:
    raw = b"Content-Type: message/rfc822\n\nSubject: s\n" * 40 + b"\n" + b"y" * 100_000
    assert sum(len(file.content) for file in parse(raw).attachments) < 2 * len(raw)


@pytest.mark.parametrize(
    ("before", "piece", "times"),
    [
        (b"Content-Type: text/plain", b";", 200_000),
        (b"Cc: ", b'"', 200_000),
        (b"Subject: ", b"a ", 200_000),
        (b"Content-Type: text/html\n\n", b"<div>", 60_000),
        (b"Content-Type: text/html\n\n", b"<b title=1><p>", 20_000),
        (b"Content-Type: text/html\n\n", b"&", 200_000),
        (b"Content-Type: multipart/mixed; boundary=b\n\n", b"--b\n\n", 60_000),
    ],
)
def test_hostile_mail_costs_no_more_than_its_size(before: bytes, piece: bytes, times: int) -> None:
    small, large = (before + piece * number + b"\n\nx\n" for number in (times // STEP, times))
    assert grows_linearly(parse, small, large)
