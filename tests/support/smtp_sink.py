"""A mail server that keeps what it is given, on a free port."""

import contextlib
import socketserver
import threading
from collections.abc import Iterator


class Sink(socketserver.ThreadingTCPServer):
    """``mails`` are (sender, recipients, data); what goes to an address in ``refused`` gets that reply code."""

    daemon_threads = True

    def __init__(self) -> None:
        self.mails: list[tuple[str, list[str], bytes]] = []
        self.refused: dict[str, int] = {}
        self.arrived = threading.Event()
        super().__init__(("127.0.0.1", 0), _Session)
        self.address: tuple[str, int] = self.socket.getsockname()


class _Session(socketserver.StreamRequestHandler):
    server: Sink

    def handle(self) -> None:
        self.wfile.write(b"220 sink\r\n")
        sender, recipients = "", list[str]()
        for line in self.rfile:
            command, _, argument = line.decode().strip().partition(":")
            address = argument.split(">")[0].strip(" <")
            if command.upper() == "MAIL FROM":
                sender, recipients = address, []
            elif command.upper() == "RCPT TO":
                if address in self.server.refused:
                    self.wfile.write(b"%d no\r\n" % self.server.refused[address])
                    continue
                recipients.append(address)
            elif line.strip().upper() == b"DATA":
                self.wfile.write(b"354 go\r\n")
                data = b""
                while not data.endswith(b"\r\n.\r\n"):
                    data += self.rfile.readline()
                self.server.mails.append((sender, recipients, data[:-3]))
                self.server.arrived.set()
            elif line.strip().upper() == b"QUIT":
                return
            self.wfile.write(b"250 ok\r\n")


@contextlib.contextmanager
def sink() -> Iterator[Sink]:
    with Sink() as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
