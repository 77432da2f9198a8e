"""The resident service: LMTP (RFC 2033) as an MTA speaks it, over a socket, and the same endings as the pipe's."""

from endpoint import Endpoint
from service import Service

MESSAGE = b"Message-ID: <1@outside.test>\r\nSubject: hello\r\n\r\nbody\r\n"


def test_one_post_and_one_answer_for_each_recipient(service: Service, endpoint: Endpoint) -> None:
    with service.client() as client:
        assert client.begin("info@example.com", "x@elsewhere.test", "jobs@example.com") == [
            "250 2.1.5 one of ours",
            "550 5.1.1 no such address here",
            "250 2.1.5 one of ours",
        ]
        assert client.data(MESSAGE, 2) == ["250 2.0.0 delivered"] * 2
    added = b"Return-Path: <ann@outside.test>\r\nDelivered-To: <info@example.com>\r\nDelivered-To: <jobs@example.com>\r\n"
    assert endpoint.messages == [added + MESSAGE]
