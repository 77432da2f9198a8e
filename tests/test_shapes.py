"""Shapes: a header that keeps an Odoo busy for minutes is held unasked; an ordinary one never is."""

from pathlib import Path

import pytest
from support.cost import STEP, grows_linearly
from support.endpoint import Endpoint, returns
from support.gateway import Gateway

from mailgate.shapes import too_slow

BODY = "Message-ID: <a@b>\n\nhello\n"
PART = "Content-Type: multipart/mixed; boundary=x\n\n--x\n"

# Each keeps an Odoo 19 busy for more than ten seconds of one core, most for minutes.
HOSTILE = {
    "content-type": f"Content-Type: text/plain{';' * 25_000}\n{BODY}",
    "content-type in words": f"Content-Type: text/plain; {'a ' * 20_000}\n{BODY}",
    "content-type in parameters": f"Content-Type: text/plain{';a=&b&' * 8_000}\n{BODY}".replace("&", '"'),
    "content-type in several fields": f"Content-Type: text/plain{';' * 7_000}\n" * 20 + BODY,
    "content-type of a part": f"{PART}Content-Type: text/plain{';' * 25_000}\n\nx\n--x--\n",
    "content-type of a part behind bare CRs": PART.replace("\n", "\r")
    + f"Content-Type: text/plain{';' * 25_000}\r\rx\r",
    "content-type of a part folded by bare CRs": PART
    + "Content-Type: text/plain"
    + ";;;;\r " * 6_000
    + "\n\nx\n--x--\n",
    "content-disposition": f"Content-Disposition: attachment{'; ' * 25_000}\n{BODY}",
    "content-disposition of a part": f"{PART}Content-Disposition: a{';' * 25_000}\n\nx\n--x--\n",
    "content-transfer-encoding": f"Content-Transfer-Encoding: base64{';' * 25_000}\n{BODY}",
    "cc": f"Cc: {chr(34) * 50_000}\n{BODY}",
    "to in words": f"To: info@example.com, {'a ' * 50_000}\n{BODY}",
    "to in folded words": "To: info@example.com,\n" + " a a a a\n" * 12_000 + BODY,
    "to in several fields": f"To: {chr(34) * 7_000}\n" * 20 + BODY,
    "from": f"From: {'.' * 50_000}\n{BODY}",
    "reply-to": f"Reply-To: {'; ' * 50_000}\n{BODY}",
    "resent-to": f"Resent-To: {chr(92) * 50_000}\n{BODY}",
    "to in quotes within words": f"To: {(chr(34) + 'a,') * 20_000}\n{BODY}",
    "to in commas": f"To: {',' * 100_000}\n{BODY}",
    "subject": f"Subject: {'a ' * 490_000}\n{BODY}",
}

RECIPIENTS = ",\n ".join(f'"Müller, Anna {number}" <anna.mueller.{number}@customer.example>' for number in range(3_000))
WORDS = ", ".join(f"Anna von der Aue <anna{number}@customer.example>" for number in range(3_000))
USERS = ",\n ".join(f'"User {number}" <u{number}@h.example>' for number in range(10_000))
NAME = ";\n ".join(f'name*{number}="{"Rechnung Nr. 17 (Kopie); " * 36}"' for number in range(10))
ENCODED = ";\n ".join(f"filename*{number}*={'%C3%BC' * 150}" for number in range(10))
IDS = "\n ".join(f"<{number}.{'x' * 40}.=?{number}@mail.example.com>" for number in range(500))
PDF = f"""Content-Type: application/pdf;\n name="{"x y " * 30}"\n\nx\n--x\n"""
ORDINARY = {
    "3,000 recipients": f"To: {RECIPIENTS}\n{BODY}",
    "3,000 recipients with names of words": f"Cc: {WORDS}\n{BODY}",
    "10,000 recipients": f"Cc: {USERS}\n{BODY}",
    "long file names in ten continuations": f"Content-Type: application/pdf;\n {NAME}\n{BODY}",
    "long encoded file names in ten continuations": f"Content-Disposition: attachment;\n {ENCODED}\n{BODY}",
    "100 parts with such names": PART + PDF * 100,
    "references of 500 ids": f"References: {IDS}\n{BODY}",
    "a long subject": f"Subject: {'long words ' * 20_000}\n{BODY}",
    "500 brackets": f"Cc: {'(' * 500}x{')' * 500} x@y.example\n{BODY}",
    "semicolons in the text": f"Subject: x\n{BODY}{';' * 100_000}",
    "a long header line of another field": f"X-Spam-Report: {'; ' * 100_000}\n{BODY}",
}


@pytest.mark.parametrize(("name", "text"), HOSTILE.items(), ids=HOSTILE)
def test_what_would_keep_an_odoo_busy_is_held_and_its_field_named(name: str, text: str) -> None:
    assert too_slow(text.encode()).partition(":")[0] == name.partition(" ")[0]


@pytest.mark.parametrize("text", ORDINARY.values(), ids=ORDINARY)
def test_an_ordinary_message_is_not(text: str) -> None:
    assert too_slow(text.encode()) == ""


def test_the_database_is_not_given_such_a_message(gateway: Gateway, endpoint: Endpoint, tmp_path: Path) -> None:
    hold = tmp_path / "held"
    hold.mkdir()
    message = HOSTILE["content-type"].encode()
    result = gateway.run("info@example.com", message=message, HOLD=hold)
    assert result.ending == (0, "2.0.0", "held")
    assert result.facts["cause"].startswith("content-type: ")
    assert endpoint.messages == []
    (kept,) = (hold / "new").iterdir()
    assert kept.read_bytes().endswith(message)


def test_without_a_hold_folder_it_waits(gateway: Gateway, endpoint: Endpoint) -> None:
    result = gateway.run("info@example.com", message=HOSTILE["cc"].encode())
    assert result.ending == (75, "4.3.0", "database_error")
    assert result.facts["cause"].startswith("cc: ")
    assert endpoint.messages == []


def test_a_server_that_says_that_it_reads_all_shapes_gets_it(gateway: Gateway, endpoint: Endpoint) -> None:
    endpoint.version = returns({"server_version_info": [17, 0], "reads_all_shapes": True})
    assert gateway.run("info@example.com", message=HOSTILE["cc"].encode()).ending == (0, "2.0.0", "delivered")


@pytest.mark.parametrize("name", ["3,000 recipients", "long file names in ten continuations", "references of 500 ids"])
def test_ordinary_mail_of_a_large_header_is_delivered(gateway: Gateway, endpoint: Endpoint, name: str) -> None:
    message = ORDINARY[name].encode()
    assert gateway.run("info@example.com", message=message).ending == (0, "2.0.0", "delivered")
    assert endpoint.messages[0].endswith(message)


UNITS = [
    '"',
    '\\"',
    '"\\',
    ",",
    ";",
    "a ",
    '","',
    '"a',
    "\n ",
    "a@b,",
    "(",
    "Content-Type: a;\n",
    "x\n\nContent-Type:\n ",
]


@pytest.mark.parametrize("field", ["To: ", "Content-Type: ", "Subject: "])
@pytest.mark.parametrize("unit", UNITS)
def test_the_look_at_the_header_takes_linear_time(field: str, unit: str) -> None:
    small, large = ((field + unit * (size // len(unit))).encode() for size in (2**18, 2**18 * STEP))
    assert grows_linearly(too_slow, small, large)
