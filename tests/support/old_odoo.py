"""An Odoo 14, 15 or 16 as far as its addresses go: what it tells of them, and what it takes.

docs/odoo.md, "The list of addresses" and "Aliases", has what was measured.
"""

import re
import socket
from collections.abc import Mapping, Sequence

from support.endpoint import Answer, Endpoint, Request, fault, returns, traceback

FIELDS = {
    "mail.alias": {"id", "alias_name", "alias_model_id", "alias_defaults", "alias_contact", "alias_domain"},
    "ir.config_parameter": {"id", "key", "value"},
}
INSTALLED = {"mail.catchall.alias": "catchall", "mail.bounce.alias": "bounce"}


class OldOdoo(Endpoint):
    """The server. ``parameters`` and ``names`` are what it has; ``is_open`` is whether our user may read the former."""

    def __init__(self, version: int, names: Sequence[str], parameters: Mapping[str, str]) -> None:
        self.number, self.names, self.parameters = version, [*names], INSTALLED | dict(parameters)
        self.is_open = True
        super().__init__()
        self.version = returns({"server_version_info": [version, 0]})

    def _answer(self, request: Request) -> Answer:
        if not request.path.endswith("/object"):
            return self.version
        (*_, model, method, arguments, options), _ = request.call
        if method == "message_process":
            return self._process
        if model == "ir.config_parameter" and not self.is_open:
            return fault(4, "Access Error")
        if model not in FIELDS:
            return fault(1, traceback(f"KeyError: '{model}'"))
        terms = arguments[0]
        unknown = ({*options["fields"]} | {field for field, *_ in terms}) - FIELDS[model]
        if unknown:
            return fault(1, traceback(f"ValueError: Invalid field {unknown.pop()!r} on model '{model}'"))
        return returns(self._rows(model, terms, options["limit"]))

    def _rows(self, model: str, terms: list[tuple[str, str, object]], limit: int) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = [{"id": 1, "alias_name": False}]  # each team has one, with or without a name
        rows += [{"id": number, "alias_name": name} for number, name in enumerate(self.names, 2)]
        if model == "ir.config_parameter":
            rows = [{"id": number, "key": key, "value": value}
                    for number, (key, value) in enumerate(self.parameters.items(), 1)]  # fmt: skip
        compare = {">": lambda value, wanted: value > wanted, "in": lambda value, wanted: value in wanted}
        return [row for row in rows if all(compare[how](row[field], wanted) for field, how, wanted in terms)][:limit]

    def takes(self, address: str) -> bool:
        """Tell whether it takes a mail for this address alone."""
        local_part, _, domain = address.lower().partition("@")
        if local_part == self.parameters["mail.catchall.alias"]:
            return True
        bounce = self.parameters["mail.bounce.alias"]
        if re.match(rf"{bounce}\+\d+", local_part) if self.number == 14 else local_part == bounce:
            return True
        allowed = self.parameters.get("mail.catchall.domain.allowed", "").split(",")
        own = self.parameters.get("mail.catchall.domain")
        if self.number > 14 and own and allowed != [""] and domain not in [*allowed, own]:
            return False
        return local_part in self.names

    def _process(self, connection: socket.socket, request: Request) -> None:
        (address,) = re.findall(rb"(?m)^Delivered-To: .*<([^<>]*)>", request.message)
        text = f"ValueError: No possible route found for incoming message from a@b.test to {address.decode()}"
        connection.sendall(returns(7) if self.takes(address.decode()) else fault(1, traceback(text)))
