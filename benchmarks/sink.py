"""A database server that takes every message at once, in a process of its own: what is measured is the client."""

import re
import socket
import sys
import xmlrpc.client


def main() -> None:
    """Answer every request on a free port, which is printed first, with a record id."""
    body = xmlrpc.client.dumps((4,), methodresponse=True).encode()
    answer = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
        + body
    )
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    print(listener.getsockname()[1], flush=True)
    buffer = bytearray(2**18)
    while True:
        connection, _ = listener.accept()
        with connection:
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(65536)
            head, _, rest = data.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            left = int(length[1]) - len(rest) if length else 0
            while left > 0:
                left -= connection.recv_into(buffer, min(left, len(buffer)))
            connection.sendall(answer)


if __name__ == "__main__":
    sys.exit(main())
