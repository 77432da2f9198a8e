"""What stands between the gateway and mail_database: it passes calls on, or answers some of them as another Odoo would.

With a certificate, it is the proxy that speaks TLS before a database server.
"""

import email.utils
import http.client
import time
import xmlrpc.client
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from support.endpoint import Answer, Endpoint, Request
from support.endpoint import http as answer_of

Called = tuple[str, str]  # a model and a method, or "common" and a method


class Between(Endpoint):
    """The server: ``instead`` has answers in place of the database's, by what is called."""

    def __init__(self, url: str, instead: Mapping[Called, Answer] = {}, certificate: Path | None = None) -> None:
        self.behind = urlsplit(url)
        self.instead = instead
        self.ahead = 0.0  # seconds that its clock is ahead of ours
        super().__init__(certificate)

    def _answer(self, request: Request) -> Answer:
        if not request.body:
            return answer_of(405, b"", self._date())
        found = self.instead.get(called(request))
        if found is not None:
            return found
        connection = http.client.HTTPConnection(self.behind.hostname or "", self.behind.port or 80, timeout=60)
        try:
            connection.request("POST", request.path, request.body, {"Content-Type": "text/xml"})
            response = connection.getresponse()
            return answer_of(response.status, response.read(), self._date())
        finally:
            connection.close()

    def _date(self) -> str:
        return f"Date: {email.utils.formatdate(time.time() + self.ahead, usegmt=True)}"


def called(request: Request) -> Called:
    """Return what a request calls."""
    arguments, method = xmlrpc.client.loads(request.body, use_builtin_types=True)
    words: tuple[Any, ...] = arguments
    return (words[3], words[4]) if method == "execute_kw" else ("common", str(method))
