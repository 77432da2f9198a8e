"""The service's sockets: those that systemd hands over, or our own; who may use them."""

import contextlib
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Mapping
from pwd import getpwnam

NAMES = {"lmtp", "socketmap"}
FIRST_DESCRIPTOR = 3  # of those that systemd hands over: sd_listen_fds(3)


def inherited(environ: Mapping[str, str]) -> dict[str, socket.socket]:
    """Return the listening sockets that systemd hands over, by their FileDescriptorName (sd_listen_fds(3)).

    Raises OSError for any that is not known: whoever connects to it would wait for ever.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    descriptors = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(environ.get("LISTEN_FDS", "0")))
    if len(set(names)) < len(descriptors) or not NAMES.issuperset(names):
        raise OSError(f"systemd hands over {', '.join(names)}; known are {', '.join(sorted(NAMES))}, one of each")
    return {name: socket.socket(fileno=descriptor) for name, descriptor in zip(names, descriptors, strict=False)}


def listen(address: str, mode: int) -> socket.socket:
    """Return a socket that listens at a path, with this mode, or at a loopback address and port.

    A socket that a killed service left behind is replaced. Raises OSError, also where somebody listens already: the
    path's lock, a file beside it, is held until the process ends, so that of two that start one gets it.
    """
    if not os.path.isabs(address):
        host, _, port = address.rpartition(":")
        family = socket.AF_INET6 if "[" in host else socket.AF_INET
        return socket.create_server((host.strip("[]"), int(port)), family=family, backlog=BACKLOG)
    _lock(address + LOCK)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(address).st_mode):
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(ConnectionRefusedError):
                probe.settimeout(1.0)
                probe.connect(address)
                raise OSError(TAKEN)
            os.unlink(address)
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o777)  # so that nobody gets in before the mode is set
    try:
        listener.bind(address)
        os.chmod(address, mode)
    finally:
        os.umask(mask)
    listener.listen(BACKLOG)
    return listener


def _lock(path: str) -> None:
    """Lock a file for as long as this process lives. Raises OSError where another one has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return  # it stays open: the kernel lifts the lock when the process ends
        except FileNotFoundError:  # a service that has stopped took it away meanwhile
            pass
        except BlockingIOError:
            raise OSError(TAKEN) from None
        os.close(descriptor)


LOCK = ".lock"  # behind a socket's path
TAKEN = "another service listens there"
BACKLOG = 512  # connections that the kernel keeps until they are accepted


def peer(connection: socket.socket) -> int | None:
    """Return the user id of the process at the other end, None where there is none to be had: over TCP."""
    if connection.family != socket.AF_UNIX:
        return None
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    user_id: int = struct.unpack("3i", credentials)[1]
    return user_id


def user_ids(users: frozenset[str]) -> frozenset[int]:
    """Return the ids of users by name. Raises KeyError."""
    return frozenset(getpwnam(user).pw_uid for user in users)
