"""What systemd is told about a process's state."""

import contextlib
import socket
from collections.abc import Mapping


def notify(environ: Mapping[str, str], state: str) -> None:
    """Tell systemd about the process's state (sd_notify(3)); without systemd, nobody."""
    address = environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
