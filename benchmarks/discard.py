"""An LMTP server that takes every message and forgets it: what aiosmtpd does by itself."""

import asyncio
import socket
from typing import Any

from aiosmtpd.lmtp import LMTP


class Discard:
    async def handle_DATA(self, *_: Any) -> str:
        return "250 OK"


async def main() -> None:
    """Serve on a free port, which is printed first."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    await asyncio.get_running_loop().create_server(lambda: LMTP(Discard()), sock=listener)
    print(listener.getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
