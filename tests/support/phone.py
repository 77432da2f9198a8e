"""A person's phone: it reads the same mailbox at the same time.

Whoever fetches from such a mailbox must not

- take a mail for fetched because it has been seen: the person may have been first;
- take away what the person has set: it adds and removes single flags, and expunges no mail that is not its own;
- fail over a mail that is gone between two commands: it has been moved, and may come back;
- know a mail by its UID alone: one that was moved away and back has another, and is the same mail;
- name a mail by its place in the folder: these numbers change whenever another mail goes.
"""

import contextlib
import imaplib
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator

AWAY = "Later"  # the folder where mails are put aside


class Phone:
    """It does something every ``pause`` seconds or less, until it is closed; then all mail is in the inbox again.

    ``connect`` gives it a connection on which somebody has logged in, whenever it has none. ``done`` counts what it has
    done, and "lost the connection".
    """

    def __init__(self, connect: Callable[[], imaplib.IMAP4], pause: float = 0.1, seed: int = 1) -> None:
        self.connect, self.pause = connect, pause
        self.done: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop reading, and bring back what is put aside."""
        self._is_over.set()
        self._thread.join()
        with self._connected() as client:
            if client.select(AWAY)[0] == "OK" and _uids(client):
                self._move(client, "1:*", "INBOX")

    def __enter__(self) -> "Phone":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[imaplib.IMAP4]:
        client = self.connect()
        try:
            yield client
        finally:
            client.shutdown()  # without a word: the server may be gone

    def _read(self) -> None:
        while not self._is_over.wait(self._random.uniform(0, self.pause)):
            try:
                with self._connected() as client:
                    client.create(AWAY)
                    while not self._is_over.wait(self._random.uniform(0, self.pause)):
                        self._do_something(client)
            except (OSError, imaplib.IMAP4.error):
                self.done["lost the connection"] += 1

    def _do_something(self, client: imaplib.IMAP4) -> None:
        action = self._random.choice([self._see, self._flag, self._put_aside, self._bring_back, self._idle])
        if action(client):
            self.done[action.__name__.strip("_").replace("_", " ")] += 1

    def _one(self, client: imaplib.IMAP4, folder: str, criterion: str = "ALL") -> str:
        """Return the UID of a mail in a folder, if there is one."""
        client.select(folder)
        return self._random.choice(_uids(client, criterion) or [""])

    def _see(self, client: imaplib.IMAP4) -> bool:
        """Read a new mail: without PEEK, so that it is seen."""
        uid = self._one(client, "INBOX", "UNSEEN")
        return bool(uid) and client.uid("FETCH", uid, "(BODY[])")[0] == "OK"

    def _flag(self, client: imaplib.IMAP4) -> bool:
        uid = self._one(client, "INBOX")
        sign = self._random.choice("++-")
        return bool(uid) and client.uid("STORE", uid, f"{sign}FLAGS", "(\\Flagged)")[0] == "OK"

    def _put_aside(self, client: imaplib.IMAP4) -> bool:
        uid = self._one(client, "INBOX")
        return bool(uid) and self._move(client, uid, AWAY)

    def _bring_back(self, client: imaplib.IMAP4) -> bool:
        uid = self._one(client, AWAY)
        return bool(uid) and self._move(client, uid, "INBOX")

    def _move(self, client: imaplib.IMAP4, uids: str, folder: str) -> bool:
        return client.uid("MOVE", uids, folder)[0] == "OK"

    def _idle(self, client: imaplib.IMAP4) -> bool:
        """Wait for new mail for a while (RFC 2177)."""
        client.select("INBOX")
        client.send(b"idle IDLE\r\n")
        self._is_over.wait(self._random.uniform(0, self.pause))
        client.send(b"DONE\r\n")
        while (line := client.readline()) and not line.startswith(b"idle "):
            pass
        return line.startswith(b"idle OK")


def _uids(client: imaplib.IMAP4, criterion: str = "ALL") -> list[str]:
    return client.uid("SEARCH", criterion)[1][0].decode().split()
