"""A database that makes a record of each message once, and says where it is when it is asked."""

import email
import socket

from support.endpoint import Endpoint, Request, returns

PARENT = "<0@example.com>"  # a message on a record of another model than that of support@


class Records:
    """What the endpoint answers with; ``messages`` is what it has made records of, by their ids."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.messages: dict[str, bytes] = {}
        endpoint.answers = [self]
        endpoint.inquiry = self

    def __call__(self, connection: socket.socket, request: Request) -> None:
        if b"message_process" not in request.body:
            connection.sendall(returns(self._found(request)))
            return
        message_id = str(email.message_from_bytes(request.message)["Message-ID"])
        is_new = message_id not in self.messages
        self.messages.setdefault(message_id, request.message)
        connection.sendall(returns(7 if is_new else False))

    def _found(self, request: Request) -> list[dict[str, object]]:
        """Return the rows that a search finds: of messages by their ids, or of aliases for another model."""
        *_, model, _, (terms,), _ = request.call[0]
        if model == "mail.message":
            asked = terms[0][2]
            is_known = not {PARENT, *self.messages}.isdisjoint([asked] if isinstance(asked, str) else asked)
            return [{"id": 1, "model": "crm.lead", "res_id": 7}] * is_known
        return [{"id": 1, "alias_full_name": "support@example.com", "alias_name": "support"}] * (
            terms[1][0] == "alias_model_id.model"
        )
