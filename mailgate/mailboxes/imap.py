"""A mailbox over IMAP (RFC 3501), by IMAPClient.

What is new bears none of our keywords: who reads the mailbox first takes nothing away. Where the server keeps no
keywords, it is what nobody has seen. Either way the server looks for it, so that old mail costs nothing.
"""

import imaplib
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import date, timedelta
from typing import IO, Any

import imapclient
from imapclient.exceptions import IMAPClientAbortError, IMAPClientError, IMAPClientReadOnlyError, LoginError

from mailgate.mailboxes.box import (
    LINE_BYTES,
    LONG_LINE,
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
from mailgate.mailboxes.config import DELETE, MOVE, SEEN, Action, Mailbox

TICK_SECONDS = 1.0  # between two looks at whether the process shall end
SIZES_AT_A_TIME = 500  # messages whose sizes are asked for in one command
imaplib._MAXLINE = 2**24  # type: ignore[attr-defined]  # bytes: the numbers of a million messages are one line
LARGEST_UID = 2**32 - 1
ANY_KEYWORD = rb"\*"  # in PERMANENTFLAGS: a client may make keywords (RFC 3501, 7.1)


class Imap:
    """An open mailbox; see box.Box. It is a class, for the connection has a state."""

    def __init__(self, mailbox: Mailbox, since: date, token: Callable[[str], str]) -> None:
        """Connect, log in, and open the folder. Raises Trouble.

        ``token`` gives what logs in without a password, and is not the token that it is given.
        """
        self.mailbox, self.since = mailbox, since
        self.first = ""  # the lowest uid that came after the first run began, where that is known
        with understood():
            self.client = _connected(mailbox)
        try:
            with understood():
                _log_in(self.client, mailbox, token)
                self.capabilities = {each.upper() for each in self.client.capabilities()}
                selected = self._select()
        except BaseException:  # a signal, too
            self.close()
            raise
        self.message_count = selected.get(b"EXISTS", 0)
        self.validity = selected.get(b"UIDVALIDITY", 0)
        uid_next = selected.get(b"UIDNEXT")
        self.next = f"{self.validity}.{uid_next}" if uid_next else ""
        permanent = {flag.lower() for flag in selected.get(b"PERMANENTFLAGS", ())}
        self.has_keywords = ANY_KEYWORD in permanent or {mark.value.encode().lower() for mark in Mark} <= permanent

    def _select(self) -> dict[bytes, Any]:
        try:
            selected: dict[bytes, Any] = self.client.select_folder(self.mailbox.folder)
        except IMAPClientError as error:
            # a connection that ends is none; that a folder can only be read is one, which the library has among them
            if isinstance(error, IMAPClientAbortError) and not isinstance(error, IMAPClientReadOnlyError):
                raise
            raise Trouble(Kind.FOLDER, f"folder {self.mailbox.folder} can't be opened: {said(error)}") from None
        return selected

    def new(self) -> list[Item]:
        """Return what is new, oldest first. Raises Trouble."""
        with understood():
            self._is_told()  # of what this look finds
            marks = [word for mark in Mark for word in ("UNKEYWORD", mark.value)]
            looked_for = marks if self.has_keywords else ["UNSEEN"]
            uids = self.client.search([*looked_for, "UNDELETED", *self._in_time()])
            items = []
            for start in range(0, len(uids), SIZES_AT_A_TIME):
                some = uids[start : start + SIZES_AT_A_TIME]
                found = self.client.fetch(some, ["RFC822.SIZE"])
                # of what somebody has taken away meanwhile there is no word; of others there may be
                items += [(uid, found[uid].get(b"RFC822.SIZE")) for uid in sorted(found.keys() & set(some))]
            return [Item(f"{self.validity}.{uid}", size_of(size)) for uid, size in items]

    def _in_time(self) -> list[Any]:
        """Return what is searched for, so that nothing is taken that came before the first day.

        The day is the server's (RFC 3501, 6.4.4), which may still be the one before ours: what comes then is told by
        its uid.
        """
        validity, _, uid = self.first.partition(".")
        if validity != str(self.validity) or not uid.isdecimal():
            return ["SINCE", self.since]
        # not N:*, which always has the last message in it
        return ["SINCE", self.since - timedelta(1), "OR", "SINCE", self.since, "UID", f"{uid}:{LARGEST_UID}"]

    def fetch(self, item: Item, file: IO[bytes], limit: int) -> bool:
        """Write the first bytes of a message to a file, in pieces, and leave it unseen; tell whether it is there."""
        uid, begin = _uid(item), 0
        with understood():
            while begin < limit:
                wanted = min(PIECE_BYTES, limit - begin)
                found = self.client.fetch([uid], [f"BODY.PEEK[]<{begin}.{wanted}>"]).get(uid)
                if not found:  # somebody has deleted or moved it
                    return False
                piece = found.get(b"BODY[]<%d>" % begin, found.get(b"BODY[]"))
                if piece is None or (not piece and not begin and item.size):  # no text is not the end of a text
                    raise Trouble(Kind.ANSWER, f"it does not give message {uid}")
                file.write(piece)
                begin += len(piece)
                # The end, or a server that gives all at once. Another gives less than it was asked for, and goes on;
                # and the size that is told may be wrong, so that it alone does not tell the end.
                if not piece or (len(piece) != wanted and begin >= item.size):
                    break
        return True

    def mark(self, item: Item, mark: Mark) -> str:
        """Mark a message, then move or delete it; return what could not be done. Raises Trouble."""
        uid = _uid(item)
        action = self.mailbox.done if mark is Mark.DONE else self.mailbox.refused
        flags = [mark.value] if self.has_keywords else [imapclient.SEEN]
        flags += [imapclient.SEEN] if action.verb == SEEN else []
        with understood():
            self.client.add_flags([uid], flags, silent=True)
            try:
                self._act(uid, action)
            except IMAPClientAbortError:
                raise
            except IMAPClientError as error:  # it is marked: what fails now is not worth another delivery
                return f"{action.verb} {action.folder}".strip() + f": {said(error)}"
        return ""

    def _act(self, uid: int, action: Action) -> None:
        if action.verb == MOVE:
            self._move(uid, action.folder)
        elif action.verb == DELETE:
            self._expunge(uid)

    def _move(self, uid: int, folder: str) -> None:
        """Move a message, into a folder that is made where it is missing (RFC 6851; without it, RFC 3501)."""
        can_move = b"MOVE" in self.capabilities
        move = self.client.move if can_move else self.client.copy
        try:
            move([uid], folder)
        except IMAPClientError:
            if self.client.folder_exists(folder):
                raise
            self.client.create_folder(folder)
            move([uid], folder)
        if not can_move:
            self._expunge(uid)

    def _expunge(self, uid: int) -> None:
        """Delete this message and no other: without UIDPLUS (RFC 4315) it stays as deleted, for a person to expunge."""
        self.client.delete_messages([uid], silent=True)
        if b"UIDPLUS" in self.capabilities:
            self.client.uid_expunge([uid])

    def wait(self, seconds: float, is_over: Callable[[], bool]) -> bool:
        """Wait for new mail by IDLE (RFC 2177), which ends after so long: a server may forget one. Raises Trouble."""
        until = time.monotonic() + (min(TICK_SECONDS, seconds) if self._is_told() else seconds)
        if b"IDLE" not in self.capabilities:
            while time.monotonic() < until and not is_over():
                time.sleep(min(TICK_SECONDS, max(0.0, until - time.monotonic())))
            return True
        with understood():
            self._idle(until, is_over)
        return True

    def _idle(self, until: float, is_over: Callable[[], bool]) -> None:
        """Wait for word of new mail until a monotonic time."""
        if not self._begin_idle():
            self.capabilities -= {b"IDLE"}
            return
        if self._is_told() or self._has_more():
            until = min(until, time.monotonic() + TICK_SECONDS)
        while time.monotonic() < until and not is_over():
            began = time.monotonic()
            answers = self.client.idle_check(timeout=min(TICK_SECONDS, max(0.0, until - began)))
            # a connection that has ended looks like silence that comes at once
            if any(b"EXISTS" in answer for answer in answers) or (not answers and time.monotonic() - began < 0.1):
                break
        self.client.idle_done()

    def _has_more(self) -> bool:
        """Tell whether more of the server's words came with the last one: idle_check() looks at the socket alone."""
        connection = self.client._imap
        connection.sock.setblocking(False)
        try:
            return bool(connection.file.peek(1))
        except OSError:  # there is nothing yet
            return False
        finally:
            connection.sock.settimeout(TIMEOUT_SECONDS)

    def _begin_idle(self) -> bool:
        """Begin to IDLE, and tell whether the server does: other words may come before its own, or a refusal."""
        # IMAPClient's idle() takes any other word for a mistake
        connection = self.client._imap
        tag = self.client._idle_tag = connection._command("IDLE")
        while connection._get_response() is not None:
            if connection.tagged_commands.get(tag):
                return False
        return True

    def _is_told(self) -> bool:
        """Tell whether an answer since the last time had word of new mail: the server does not say it again in IDLE."""
        # RFC 3501, 7: any answer may. IMAPClient shows those to NOOP and IDLE alone; imaplib keeps the others.
        return bool(self.client._imap.response("EXISTS")[1] != [None])

    def has_folder(self, name: str) -> bool:
        """Tell whether there is a folder of this name. Raises Trouble."""
        with understood():
            return bool(self.client.folder_exists(name))

    def leave(self) -> None:
        """Log out."""
        with suppress(IMAPClientError, OSError):  # it is gone already
            self.client.logout()

    def close(self) -> None:
        """End the connection: a server that has lost the thread would not understand a word."""
        with suppress(OSError):  # it is gone already
            self.client.shutdown()


class _Bounded(imaplib.IMAP4):
    """A connection of imaplib's, whose answers have bounds: it keeps all of them in memory."""

    def __init__(self, *args: Any) -> None:
        self.bounds = Bounds()
        super().__init__(*args)

    def _new_tag(self) -> bytes:
        self.bounds.begin()
        return super()._new_tag()  # type: ignore[misc, no-any-return]  # it is private

    def read(self, size: int) -> bytes:
        """Return the bytes of a literal. Raises Trouble."""
        self.bounds.take(size)
        return imaplib.IMAP4.read(self, size)

    def readline(self) -> bytes:
        """Return a line. Raises Trouble."""
        try:
            line = imaplib.IMAP4.readline(self)  # IMAPClient 2.3 has one without any bound
        except imaplib.IMAP4.error:
            raise Trouble(Kind.ANSWER, LONG_LINE) from None
        self.bounds.take(len(line) + LINE_BYTES)
        return line


class _Plain(_Bounded, imapclient.imap4.IMAP4WithTimeout):  # type: ignore[misc]  # it has no types
    pass


class _Tls(_Bounded, imapclient.tls.IMAP4_TLS):  # type: ignore[misc]  # it has no types
    pass


class _Client(imapclient.IMAPClient):  # type: ignore[misc]  # it has no types
    def _create_IMAP4(self) -> imaplib.IMAP4:
        where = self.host, self.port
        return _Tls(*where, self.ssl_context, TIMEOUT_SECONDS) if self.ssl else _Plain(*where, TIMEOUT_SECONDS)


def _connected(mailbox: Mailbox) -> imapclient.IMAPClient:
    """Return a connection that is safe for a password. Raises Trouble and what understood() makes one of."""
    context = tls_context(mailbox)
    client = _Client(mailbox.host, mailbox.port, ssl=mailbox.is_tls, ssl_context=context, timeout=TIMEOUT_SECONDS)
    try:
        if not mailbox.is_tls and client.has_capability("STARTTLS"):
            client.starttls(context)
        elif not mailbox.is_tls:
            check_plaintext(mailbox)
    except BaseException:  # a signal, too
        with suppress(OSError):  # a TLS that failed has closed it
            client.shutdown()
        raise
    return client


def _log_in(client: imapclient.IMAPClient, mailbox: Mailbox, token: Callable[[str], str]) -> None:
    def log_in(word: str) -> None:
        try:
            if not mailbox.grant and f"{mailbox.login}{word}".isascii():
                client.login(mailbox.login, word)
            elif not mailbox.grant:  # LOGIN takes no other letters (RFC 3501, 9); PLAIN takes UTF-8 (RFC 4616)
                client.plain_login(mailbox.login, word)
            elif client.has_capability("AUTH=XOAUTH2"):
                client.oauth2_login(mailbox.login, word)
            else:
                client.oauthbearer_login(mailbox.login, word)
        except LoginError as error:
            if isinstance(error.__context__, IMAPClientAbortError):  # no answer is no refusal
                raise error.__context__ from None
            raise

    def log_in_hidden(word: str) -> None:
        with hidden(word):
            log_in(word)

    try:
        if mailbox.grant:
            sign_in(log_in_hidden, token, LoginError)
        else:
            log_in_hidden(mailbox.password)
    except LoginError as error:
        raise refused(mailbox, error) from None


def _uid(item: Item) -> int:
    return int(item.uid.partition(".")[2])
