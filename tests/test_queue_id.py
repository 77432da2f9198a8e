"""The queue id is the one that the MTA wrote, whatever a stranger says in the same field."""

import pytest

from mailgate.envelope import queue_id

POSTFIX = "Received: from %s (unknown [192.0.2.1])\n\tby mx.test (Postfix) with ESMTP id 4XyZabc12\n\tfor <%s>; now\n"
EXIM = (
    "Received: from [192.0.2.1] (helo=%s)\n\tby mx.test with esmtps  (TLS1.3) tls TLS_AES_256_GCM_SHA384\n"
    "\t(Exim 4.96)\n\t(envelope-from <%s>)\n\tid 1rAbCd-0001Xy-2Z\n\tfor info@example.com;\n\tnow\n"
)
FAKE = "by mx.test (Postfix) with ESMTP id FAKE12345"


@pytest.mark.parametrize(
    ("field", "found"),
    [
        (POSTFIX % ("x", "info@example.com"), "4XyZabc12"),
        (POSTFIX.replace("\n", "\r\n") % ("x", "info@example.com"), "4XyZabc12"),
        (POSTFIX % (FAKE, "info@example.com"), "4XyZabc12"),
        (POSTFIX % ("id FAKE12345; x", "info@example.com"), "4XyZabc12"),
        (POSTFIX % ("x" * 900 + "\n id FAKE12345", "info@example.com"), "4XyZabc12"),  # as Postfix folds long lines
        (POSTFIX % ("x", f'"{FAKE}"@example.com'), "4XyZabc12"),
        (POSTFIX % ("(", ")id FAKE12345@example.com"), "4XyZabc12"),
        ("Received: by mx.test (Postfix, from userid 0)\n\tid 4XyZabc12; now\n", "4XyZabc12"),
        ("Received: by mx.test (Postfix) with UTF8SMTP id 4XyZabc12; now\n", "4XyZabc12"),
        (EXIM % ("x", "ann@outside.test"), "1rAbCd-0001Xy-2Z"),
        (EXIM % (FAKE, "ann@outside.test"), "1rAbCd-0001Xy-2Z"),
        (EXIM % ("x", f'"x>) {FAKE} ("@outside.test'), "1rAbCd-0001Xy-2Z"),
        ("Received: from root by mx.test with local (Exim 4.96)\n\tid 1rAbCd-0001Xy-2Z; now\n", "1rAbCd-0001Xy-2Z"),
        # no MTA of ours, on one line
        ("Received: from x by y (Postfix) with ESMTP id 4XyZabc12; now\n", "4XyZabc12"),
        (f"Received: from {FAKE} (x [192.0.2.1]) by y with ESMTP id 4XyZabc12 for <a@b>; now\n", "4XyZabc12"),
        (f"Received: from x (({FAKE}) a) by y with ESMTP id 4XyZabc12 for <a@b>; now\n", "4XyZabc12"),
        (f'Received: from x by y with ESMTP id 4XyZabc12 for <"{FAKE}"@b>; now\n', "4XyZabc12"),
        ("Received: from x (id FAKE12345) by y; now\n", ""),
        ("Received: from id FAKE12345 by y; now\n", ""),
        ("Received: by mx.test (Postfix) with ESMTP id 4X; now\n", ""),
        ("Subject: by mx.test with ESMTP id FAKE12345\n", ""),
        (
            "Received: by mx.test (Postfix) with ESMTP id 4XyZabc12\nReceived: by a with b id OTHER12; now\n",
            "4XyZabc12",
        ),
    ],
)
def test_the_queue_id_is_the_mtas(field: str, found: str) -> None:
    assert (
        queue_id(f"Return-Path: <a@b>\n{field}Subject: x\n\nReceived: by a with b id BODY12345; now\n".encode())
        == found
    )


def test_a_field_of_any_length_is_read_in_no_time() -> None:
    for piece in (b"(", b'"', b"by x with y id ", b"\\", b"by\t"):
        assert queue_id(b"Received: " + piece * 100_000 + b"\n\n") == ""
