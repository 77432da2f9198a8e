"""Read an XML-RPC call: first who calls, then, if he may, what he calls.

XML can take forty times its size in memory, and XML-RPC has the login in the body. So a body is read in two steps: the
first MAX_LOGIN_BYTES for database, uid and password; then all of it, piece by piece, if these are right. Document types
are refused, so there are no entities, and the depth has a limit.
"""

import contextlib
import xmlrpc.client
from collections.abc import Callable, Iterable
from typing import Any
from xml.parsers import expat

MAX_LOGIN_BYTES = 2**14  # within these a large call must have told who calls; a smaller one may be anything
MAX_ELEMENT_DEPTH = 200  # elements within each other
PIECE_BYTES = 2**16

# The elements that a call may have before it has told who calls.
LOGIN_ELEMENTS = {"methodCall", "methodName", "params", "param", "value", "string", "int", "i4", "i8"}
TYPES = {"string", "int", "i4", "i8"}
LOGIN_PARAMETERS = 3


class _Enough(Exception):
    """The login is read, or can't be read."""


def _parser() -> Any:
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def refuse(*_: object) -> None:
        raise ValueError("a call has no document type")

    parser.StartDoctypeDeclHandler = refuse
    return parser


def read_login(head: bytes) -> tuple[str, ...]:
    """Return the first three parameters of a call as text (database, uid, password), those that are there."""
    found: list[str] = []
    text: list[str] = []
    is_open = False

    def start(name: str, _: object) -> None:
        nonlocal is_open
        if name not in LOGIN_ELEMENTS:
            raise _Enough
        if name == "value" or name in TYPES:
            text.clear()
            is_open = True

    def end(name: str) -> None:
        nonlocal is_open
        if name == "param":
            found.append("".join(text))
            if len(found) == LOGIN_PARAMETERS:
                raise _Enough
        is_open = is_open and name not in TYPES and name != "value"

    def data(piece: str) -> None:
        if is_open:
            text.append(piece)

    parser = _parser()
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, data
    with contextlib.suppress(_Enough, ValueError, expat.ExpatError):
        parser.Parse(head[:MAX_LOGIN_BYTES], False)
    return tuple(found)


def read_call(pieces: Iterable[bytes]) -> tuple[str, tuple[Any, ...]]:
    """Return a call's method and arguments. Raises whatever the libraries raise for what is no call."""
    unmarshaller = xmlrpc.client.Unmarshaller(use_builtin_types=True)
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_ELEMENT_DEPTH:
            raise ValueError("too deep")
        unmarshaller.start(name, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        unmarshaller.end(name)

    parser = _parser()
    parser.buffer_size = PIECE_BYTES  # or each line of a message would be a text of its own
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, unmarshaller.data
    unmarshaller.xml(None, None)  # type: ignore[arg-type]  # the texts are decoded already
    for piece in pieces:
        parser.Parse(piece, False)
    parser.Parse(b"", True)
    return unmarshaller.getmethodname() or "", unmarshaller.close()


def pieces_of(head: bytes, read: Callable[[int], bytes]) -> Iterable[bytes]:
    """Yield a body piece by piece: what was read of it, then the rest."""
    yield head
    while piece := read(PIECE_BYTES):
        yield piece
