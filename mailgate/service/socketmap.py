"""Answer Postfix whether an address is the database's, from the same list as RCPT: socketmap_table(5).

A request is the netstring of "NAME KEY"; the answer that of "OK KEY", "NOTFOUND " or "TEMP REASON". The name of the map
does not matter. Postfix also asks for parts of an address (RCPT TO:<a@b>: a@b, @b), of which none is known here.
"""

import asyncio
from collections.abc import Awaitable, Callable

from mailgate.envelope import Recipient
from mailgate.outcome import Outcome

MAX_REQUEST_BYTES = 1000  # an address has no more than 320 (RFC 5321, 4.5.3.1)
IDLE_SECONDS = 300.0  # Postfix keeps its connection for 100 s at the most


async def answer(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    refusal: Callable[[Recipient], Awaitable[Outcome | None]],
) -> None:
    """Answer the requests of one connection until it ends; what is no request ends it."""
    loop = asyncio.get_running_loop()
    silence = loop.call_later(IDLE_SECONDS, writer.transport.abort)
    try:
        while True:
            request = await _netstring(reader)
            silence.cancel()
            silence = loop.call_later(IDLE_SECONDS, writer.transport.abort)
            _, _, key = request.decode("utf-8", "surrogateescape").partition(" ")
            found = await refusal(Recipient(key)) if key.rpartition("@")[0] else Outcome.UNKNOWN_RECIPIENT
            text = f"OK {key}"
            if found:
                text = "NOTFOUND " if found is Outcome.UNKNOWN_RECIPIENT else f"TEMP {found.text}"
            data = text.encode("utf-8", "surrogateescape")
            writer.write(b"%d:%b," % (len(data), data))
            await writer.drain()
            await asyncio.sleep(0)  # others have their turn
    except (OSError, ValueError, EOFError):  # it has gone, is silent, does not read, or sends no netstrings
        pass
    finally:
        silence.cancel()


async def _netstring(reader: asyncio.StreamReader) -> bytes:
    """Read a netstring. Raises ValueError for anything else, EOFError at the end."""
    digits = b""
    while (byte := await reader.readexactly(1)) != b":":
        digits += byte
        if not digits.isdigit() or len(digits) > 4:
            raise ValueError("no netstring")
    if not digits or int(digits) > MAX_REQUEST_BYTES:
        raise ValueError("too long")
    data = await reader.readexactly(int(digits) + 1)
    if data[-1:] != b",":
        raise ValueError("no netstring")
    return data[:-1]
