"""A database server that takes every message at once, in a process of its own: what is measured is the client.

``sink.py [SECONDS]``: each answer takes so long, and others are given meanwhile. As behind a reverse proxy, connections
are kept. ``GET /count`` tells how many messages came.
"""

import itertools
import socket
import sys
import threading
import time
import xmlrpc.client

XML_RPC = xmlrpc.client.dumps((4,), methodresponse=True).encode()
OTHERS = b"ok\n"  # what rt-mailgate wants to hear
FIELDS = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n"


def main(delay: float = 0.0) -> None:
    """Answer on a free port, which is printed first, each connection in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    print(listener.getsockname()[1], flush=True)
    counter, count = itertools.count(1), [0]

    def answer(connection: socket.socket) -> None:
        buffer = memoryview(bytearray(2**18))
        with connection, connection.makefile("rb") as file:
            while line := file.readline():
                began = time.perf_counter()
                fields = dict(field.lower().split(b":", 1) for field in iter(file.readline, b"\r\n"))
                if b"expect" in fields:  # curl's, and it would wait for a second
                    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                left = int(fields.get(b"content-length", 0))
                while left > 0:
                    left -= file.readinto(buffer[:left]) or left
                body = XML_RPC if b"/xmlrpc/" in line else OTHERS
                if line.startswith(b"GET"):
                    body = b"%d" % count[0]
                else:
                    time.sleep(max(0.0, began + delay - time.perf_counter()))  # its own time counts as well
                    count[0] = next(counter)
                connection.sendall(FIELDS % len(body) + body)

    while True:
        threading.Thread(target=answer, args=[listener.accept()[0]], daemon=True).start()


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
