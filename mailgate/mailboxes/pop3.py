"""A mailbox over POP3 (RFC 1939), by the standard library.

A maildrop has no flags: what is new is what is not among the UIDLs that are kept beside it. It is locked while it is
open, and shows what came meanwhile to the next connection only, so that one is made each minute. What is to be deleted
goes when the connection is left in order; what does not go then, goes next time, for its UIDL is kept.
"""

import io
import poplib
import re
from collections import Counter
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from datetime import date
from email.utils import parsedate_to_datetime
from typing import IO, Any

from mailgate.envelope import fields, unfold
from mailgate.mailboxes import oauth
from mailgate.mailboxes.box import (
    LINE_BYTES,
    LONG_LINE,
    MAX_ANSWER_BYTES,
    PIECE_BYTES,
    TIMEOUT_SECONDS,
    Bounds,
    Item,
    Kind,
    Mark,
    Trouble,
    check_plaintext,
    hidden,
    refused,
    said,
    sign_in,
    size_of,
    tls_context,
    understood,
)
from mailgate.mailboxes.config import DELETE, Mailbox

HEAD_BYTES = 2**16  # in which the topmost Received field stands
OLD = "old"  # is kept of a message that came before the first day
# Refusals that have nothing to do with the password (RFC 2449, 8.1; RFC 3206).
TEMPORARY = re.compile(r"\[(IN-USE|LOGIN-DELAY|SYS/TEMP)\]")


class Pop3:
    """An open maildrop; see box.Box. It is a class, for the connection has a state."""

    def __init__(
        self,
        mailbox: Mailbox,
        since: date,
        token: Callable[[str], str],
        ended: MutableMapping[str, str],
        is_first: bool,
    ) -> None:
        """Connect, log in, and list what is there. Raises Trouble.

        ``token`` gives what logs in without a password, and is not the token that it is given. ``ended`` has a mark for
        each UIDL whose message has ended: that of what is there no more goes. If it ``is_first``, what came before
        ``since`` is marked as old.
        """
        self.mailbox, self.since, self.ended = mailbox, since, ended
        with understood():
            self.client = _connected(mailbox)
        try:
            with understood():
                _log_in(self.client, mailbox, token)
                self.numbers = self._listed()
                if is_first:
                    for uidl, number in self.numbers.items():
                        if self._came_before(number):
                            ended.setdefault(uidl, OLD)
        except BaseException:  # a signal, too
            self.close()
            raise
        self.message_count = len(self.numbers)
        # a server that has lost all of them for a moment would give them as new the next time
        for gone in ended.keys() - self.numbers.keys() if self.numbers else ():
            del ended[gone]

    def _listed(self) -> dict[str, str]:
        """Return the number of each message by its UIDL."""
        try:
            _, lines, _ = self.client.uidl()
        except poplib.error_proto as error:
            raise Trouble(Kind.ANSWER, f"it has no UIDL, by which a message is known again: {said(error)}") from None
        numbers: dict[str, str] = {}
        counts: Counter[str] = Counter()
        for line in lines:
            number, _, uidl = line.decode("ascii", "backslashreplace").strip().partition(" ")
            if not uidl:
                raise Trouble(Kind.ANSWER, f"it has no UIDL for message {said(number)}, by which it is known again")
            # RFC 1939, 7: two messages that are the same may have the same, others must not; whichever, none is lost
            numbers[f"{uidl}\n{counts[uidl]}" if counts[uidl] else uidl] = number
            counts[uidl] += 1
        return numbers

    def _came_before(self, number: str) -> bool:
        """Tell by the topmost Received field whether a message came before the first day."""
        head = io.BytesIO()
        for command in (f"TOP {number} 0", f"RETR {number}"):  # RFC 1939, 7: not every server has TOP
            with suppress(poplib.error_proto):
                self._write(command, head, HEAD_BYTES)
                break
        received = next((field for name, field in fields(head.getvalue()) if name == b"received"), b"")
        try:
            moment = parsedate_to_datetime(unfold(received).rpartition(b";")[2].decode("ascii", "replace"))
        except (TypeError, ValueError):  # no date is no reason to leave a message out
            return False
        return moment.date() < self.since

    def new(self) -> list[Item]:
        """Return what is new, oldest first; what has ended before and should be gone is deleted. Raises Trouble."""
        with understood():
            for uidl, mark in self.ended.items():
                if mark != OLD and self._action(Mark[mark]) == DELETE:
                    self.client.dele(int(self.numbers[uidl]))
            _, lines, _ = self.client.list()
            sizes = {number: size for number, size, *_ in ([*line.split(), b"", b""] for line in lines)}
            return [
                Item(uidl, size_of(sizes.get(number.encode())))
                for uidl, number in self.numbers.items()
                if uidl not in self.ended
            ]

    def fetch(self, item: Item, file: IO[bytes], limit: int) -> bool:
        """Write the first bytes of a message to a file, as they come; tell whether it is there. Raises Trouble.

        Beyond ``limit`` the rest is read and left out, for the server sends all of it.
        """
        with understood():
            self._write(f"RETR {self.numbers[item.uid]}", file, limit, 2 * max(item.size, limit))
        return True

    def _write(self, command: str, file: IO[bytes], limit: int, most: int = 0) -> None:
        """Write the first bytes of the text that answers a command; it must end after ``most``, or what all must."""
        # poplib's own methods take no line over 2048 bytes, drop line ends, and keep all of it in memory
        self.client._shortcmd(command)  # type: ignore[attr-defined]  # it is private
        self.client.bounds.begin(max(most, MAX_ANSWER_BYTES))
        at_line_start = True
        while True:
            piece = self.client.file.readline(PIECE_BYTES)
            if not piece:
                raise EOFError("in the middle of a message")
            self.client.bounds.take(len(piece))
            if at_line_start and piece.startswith(b"."):
                if piece in (b".\r\n", b".\n"):
                    return
                piece = piece[1:]
            at_line_start = piece.endswith(b"\n")
            if file.tell() < limit:
                file.write(piece)

    def mark(self, item: Item, mark: Mark) -> str:
        """Note that a message has ended, and delete it where that is wanted. Raises Trouble."""
        self.ended[item.uid] = mark.name
        if self._action(mark) == DELETE:
            with understood():
                self.client.dele(int(self.numbers[item.uid]))
        return ""

    def _action(self, mark: Mark) -> str:
        return (self.mailbox.done if mark is Mark.DONE else self.mailbox.refused).verb

    def wait(self, seconds: float, is_over: Callable[[], bool]) -> bool:
        """Return False: what comes meanwhile shows itself to the next connection."""
        return False

    def leave(self) -> None:
        """Leave in order, so that what was deleted goes."""
        with suppress(poplib.error_proto, OSError):  # it is gone already; what was not deleted now is so next time
            self.client.quit()

    def close(self) -> None:
        """End the connection: what was deleted stays, until next time."""
        with suppress(OSError):  # it is gone already
            self.client.close()


class _Bounded(poplib.POP3):
    """A connection of poplib's, whose answers have bounds: it keeps lists in memory."""

    def __init__(self, *args: Any, **keys: Any) -> None:
        self.bounds = Bounds()
        super().__init__(*args, **keys)

    def _putcmd(self, line: str) -> None:
        self.bounds.begin()
        super()._putcmd(line)  # type: ignore[misc]  # it is private

    def _getline(self) -> tuple[bytes, int]:
        try:
            line, count = super()._getline()  # type: ignore[misc]  # it is private
        except poplib.error_proto as error:
            if error.args == ("-ERR EOF",):  # no answer is no refusal
                raise EOFError("it hangs up") from None
            raise Trouble(Kind.ANSWER, LONG_LINE) from None
        self.bounds.take(count + LINE_BYTES)
        return line, count


class _Tls(_Bounded, poplib.POP3_SSL):
    pass


def _connected(mailbox: Mailbox) -> _Bounded:
    """Return a connection that is safe for a password. Raises Trouble and what understood() makes one of."""
    context = tls_context(mailbox)
    if mailbox.is_tls:
        return _Tls(mailbox.host, mailbox.port, timeout=TIMEOUT_SECONDS, context=context)
    client = _Bounded(mailbox.host, mailbox.port, timeout=TIMEOUT_SECONDS)
    try:
        if "STLS" in client.capa():
            client.stls(context)
        else:
            check_plaintext(mailbox)
    except BaseException:  # a signal, too
        with suppress(OSError):  # a TLS that failed has closed it
            client.close()
        raise
    return client


def _log_in(client: poplib.POP3, mailbox: Mailbox, token: Callable[[str], str]) -> None:
    def with_token(word: str) -> None:
        say = client._shortcmd  # type: ignore[attr-defined]  # it is private, and poplib has no AUTH
        with hidden(word):
            say("AUTH XOAUTH2")
            if not say(oauth.xoauth2(mailbox.login, word).decode()).startswith(b"+OK"):
                say("")  # answers the reason of a refusal, which comes then

    def with_password(word: str) -> None:
        with hidden(word):
            client.user(mailbox.login)
            client.pass_(word)

    try:
        if mailbox.grant:
            sign_in(with_token, token, poplib.error_proto)
        else:
            with_password(mailbox.password)
    except poplib.error_proto as error:
        if TEMPORARY.search(str(error)):
            raise Trouble(Kind.ANSWER, f"it says: {said(error)}") from None
        raise refused(mailbox, error) from None
