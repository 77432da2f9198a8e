"""Post: the call that hands the message over, and the retries; what the answers mean is judge.py's."""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache, cached_property
from typing import Any

from mailgate import DEADLINE, __version__
from mailgate.envelope import PIECE_BYTES, Raw
from mailgate.judge import MAX_ANSWER_BYTES, NOT_TAKEN, Reply, user_id_of, value_of
from mailgate.outcome import Ended, Outcome
from mailgate.settings import Settings

QUESTION_SECONDS = 15.0  # that the answer to a question may take: a message may need several of them
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 8.0


class Body:
    """The body of a request, made anew by ``pieces`` for each try; ``is_leaving`` tells whether any of it has left.

    requests sends what has a length and can be iterated as it comes, with a Content-Length; it begins when there is
    a connection, with TLS where that is used. ``on_leaving`` is called then, and again, with True, when all of it has
    left: a proxy may pass it on only now. Between two pieces of a large message there is a pause of ``large_pause``
    seconds, for a service that has other messages to send.
    """

    def __init__(
        self,
        size: int,
        pieces: Callable[[], Iterable[bytes]],
        on_leaving: Callable[[bool], None] = lambda has_left: None,
        large_pause: float = 0.0,
    ) -> None:
        self.size, self.pieces, self.on_leaving, self.large_pause = size, pieces, on_leaving, large_pause
        self.is_leaving = False

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[bytes]:
        self.is_leaving = True
        self.on_leaving(False)
        for number, piece in enumerate(_joined(self.pieces())):
            if number and self.large_pause:
                time.sleep(self.large_pause)
            yield piece
        self.on_leaving(True)


def _body(call: str) -> Body:
    data = call.encode()
    return Body(len(data), lambda: [data])


def _message_body(call: str, added: bytes, raw: Raw, on_leaving: Callable[[bool], None], large_pause: float) -> Body:
    """Return the body of a call that has an empty message: with this one, in base64, in its place."""
    from itertools import chain

    before, after = (part.encode() for part in call.split("<base64>\n</base64>"))
    before, after = before + b"<base64>", b"</base64>" + after
    size = len(before) + (len(added) + raw.size + 2) // 3 * 4 + len(after)
    return Body(size, lambda: chain([before], _base64(chain([added], raw.chunks())), [after]), on_leaving, large_pause)


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in fewer pieces: a small message leaves in one."""
    joined = b""
    for piece in pieces:
        joined += piece
        if len(joined) >= PIECE_BYTES:
            yield joined
            joined = b""
    yield joined


def _base64(chunks: Iterable[bytes]) -> Iterator[bytes]:
    from binascii import b2a_base64

    rest = b""
    for chunk in chunks:
        chunk = rest + chunk
        whole = len(chunk) // 3 * 3
        yield b2a_base64(chunk[:whole], newline=False)
        rest = chunk[whole:]
    yield b2a_base64(rest, newline=False)


class Unreached(Exception):
    """Raised when a request surely never reached the database, so that it can be sent again at once."""

    def __init__(self, cause: str, reply: Reply | None = None) -> None:
        super().__init__(cause)
        self.reply = reply  # of who stood in the way
        self.retry_after = reply.retry_after if reply else 0.0  # seconds


FIRST_WITH_DOMAINS = 17  # the first version whose aliases have domains
CATCHALL, BOUNCE = "mail.catchall.alias", "mail.bounce.alias"  # parameters that earlier ones have
USER_ID_SECONDS = 60.0  # then the login is asked for its user id again, for the user may be another by then


class Client:
    """The database, as the one user that the settings name: threads share its connections, which are kept."""

    def __init__(
        self, settings: Settings, retrying: Callable[[], None] = lambda: None, large_pause: float = 0.0
    ) -> None:
        """``retrying`` is called before each try but the first; ``large_pause`` is as Body has it."""
        self.settings, self.retrying, self.large_pause = settings, retrying, large_pause
        self.user_id, self.known_until = 0, 0.0
        self.had_domains = False  # of aliases; what it said when it was asked last
        self.replied_at = float("-inf")  # when the server answered a call last, in monotonic seconds

    @cached_property
    def adapter(self) -> Any:
        """The connections, which are kept."""
        from requests.adapters import HTTPAdapter  # 100 ms; mail that no rule matches never gets here

        return HTTPAdapter(pool_maxsize=self.settings.workers)

    @cached_property
    def authorities(self) -> str | bool:
        """Where the certificate authorities are that are trusted."""
        return self.settings.ca_file or system_ca()

    def post(self, added: bytes, raw: Raw, until: float, on_leaving: Callable[[bool], None]) -> Reply:
        """Send ``added`` and the message to message_process and return what answers.

        ``on_leaving`` is called each time before the message leaves, and with True when it has left. Failures that
        surely never reached the database are retried until the monotonic clock says ``until``. Raises Ended when there
        is no answer, when it is ambiguous whether the database has the message, and when the login fails.
        """
        from xmlrpc.client import Binary

        # False is "no model": XML-RPC has no null
        call = self._call("mail.thread", "message_process", [self.settings.model or False, Binary(b"")], {}, until)
        return self._send("object", _message_body(call, added, raw, on_leaving, self.large_pause), until)

    def execute(self, model: str, method: str, arguments: list[Any], options: dict[str, Any], until: float) -> object:
        """Return what a method of a model returns. Raises Ended."""
        call = self._call(model, method, arguments, options, until)
        return value_of(self._send("object", _body(call), until, QUESTION_SECONDS))

    def version(self, until: float) -> object:
        """Return what the server says of its version. Raises Ended."""
        from xmlrpc.client import dumps

        return value_of(self._send("common", _body(dumps((), "version")), until, QUESTION_SECONDS))

    def number(self) -> int:
        """Return the number of the server's version, 0 where it says none. Raises Ended."""
        version = self.version(time.monotonic())
        number = version.get("server_version_info", [0])[0] if isinstance(version, dict) else 0
        number = number if isinstance(number, int) else FIRST_WITH_DOMAINS  # saas~17 and the like
        self.had_domains = number >= FIRST_WITH_DOMAINS
        return number

    def has_domains(self) -> bool:
        """Tell whether aliases have domains; what once was so is not asked again. Raises Ended."""
        return self.had_domains or self.number() >= FIRST_WITH_DOMAINS

    def log_in(self, until: float) -> int:
        """Return the user id of the login, which may be one already. Raises Ended."""
        return self._user_id(until)

    def reads_all_shapes(self) -> bool:
        """Tell whether the server says that any header is read in linear time, as mail_database does; no Odoo does."""
        try:
            version = self.version(time.monotonic())
        except Ended:  # who can't be asked is taken for the one that can't
            return False
        return isinstance(version, dict) and version.get("reads_all_shapes") is True

    def _call(self, model: str, method: str, arguments: list[Any], options: dict[str, Any], until: float) -> str:
        from xmlrpc.client import dumps

        settings = self.settings
        user = (settings.database, self._user_id(until), str(settings.password))
        return dumps((*user, model, method, arguments, options), "execute_kw")

    def _user_id(self, until: float) -> int:
        """Return the user id of the login, which may be one already. Raises Ended."""
        login = self.settings.login
        if login.isascii() and login.isdigit() and int(login) < 2**31:  # XML-RPC has no larger numbers
            return int(login)
        if time.monotonic() >= self.known_until:
            from xmlrpc.client import dumps

            credentials: tuple[Any, ...] = (self.settings.database, login, str(self.settings.password), {})
            self.user_id = user_id_of(self._send("common", _body(dumps(credentials, "authenticate")), until))
            self.known_until = time.monotonic() + USER_ID_SECONDS
        return self.user_id

    def _send(self, service: str, body: Body, until: float, longest: float = DEADLINE) -> Reply:
        """Return the answer, for which is waited READ_TIMEOUT, and ``longest`` at most. Raises Ended."""
        url, read_timeout = f"{self.settings.url}/xmlrpc/2/{service}", min(self.settings.read_timeout, longest)
        reply = _patiently(lambda: _send(self, url, body, read_timeout), until, self.retrying)
        if reply.status == 200:
            self.replied_at = time.monotonic()
        return reply


def system_ca() -> str | bool:
    """Return where the system keeps its certificate authorities; requests would take its own list."""
    from ssl import get_default_verify_paths

    paths = get_default_verify_paths()
    return paths.cafile or paths.capath or True


@cache
def _prepared(url: str) -> Any:
    """Return a request without a body; to read a URL takes a tenth of a small message's time."""
    from requests import Request

    headers = {
        "Content-Type": "text/xml",
        "Accept-Encoding": "identity",
        "User-Agent": f"mail-gateway/{__version__}",
    }
    return Request("POST", url, headers).prepare()


def _send(client: Client, url: str, body: Body, read_timeout: float) -> Reply:
    """Send one request and return the answer. Raises Unreached or Ended.

    What the library raises is of many kinds, and more with each version. What counts is whether the request had begun
    to leave: if so, it is ambiguous whether the database has it; if not, it surely never did.
    """
    body.is_leaving = False
    try:
        request = _prepared(url).copy()
        request.prepare_body(body, None)
        # Without a session: no proxies and no netrc of the environment, no cookies, no redirects; the settings say all.
        with client.adapter.send(
            request,
            timeout=(client.settings.connect_timeout, read_timeout),
            verify=client.authorities,
            stream=True,  # so that no more of the answer is read than _reply reads
        ) as response:
            reply = _reply(response)
    except Ended:  # the journal's
        raise
    except Exception as error:  # of whatever kind, see above
        ending = _ending(error, body.is_leaving)
        if ending is None:
            raise
        raise ending from None
    if reply.status in NOT_TAKEN:
        raise Unreached(f"HTTP {reply.status}", reply)
    return reply


def _reply(response: Any) -> Reply:
    """Return the answer, of which no more is read than an answer can have."""
    # After an interim one, the answer is still to come: unread, the connection is closed, and nobody gets it.
    is_final = response.status_code >= 200
    answer = response.raw.read(MAX_ANSWER_BYTES + 1, decode_content=False) if is_final else b""
    if response.status_code == 200:
        answer = _decoded(answer, response.headers.get("Content-Encoding", ""))
    asks = response.headers.get("Retry-After", "") if response.status_code in NOT_TAKEN else ""
    return Reply(response.status_code, answer, _retry_after(asks))


def _ending(error: Exception, is_leaving: bool) -> Exception | None:
    """Return what is raised for an error of the library's, None for what is none: our own bug."""
    import requests
    from urllib3.exceptions import HTTPError

    if is_leaving:
        return Ended(Outcome.CUT_OFF, _cause(error))
    if isinstance(error, requests.exceptions.SSLError):  # a certificate that is not trusted will not be at once
        return Ended(Outcome.NO_ANSWER, _cause(error))
    if isinstance(error, requests.exceptions.Timeout | requests.exceptions.ConnectionError | HTTPError):
        return Unreached(_cause(error))
    if isinstance(error, requests.exceptions.RequestException | OSError):  # a bad URL, an unusable CA file
        return Ended(Outcome.SETTINGS, _cause(error))
    return None


def _decoded(answer: bytes, encoding: str) -> bytes:
    """Return the answer's body; a proxy may compress it, though nobody asked for that (RFC 9110, 8.4)."""
    if encoding.lower() not in ("gzip", "x-gzip"):
        return answer
    from zlib import decompressobj

    return decompressobj(31).decompress(answer, MAX_ANSWER_BYTES + 1)  # raises for what is none: it is ambiguous then


def _reason(error: BaseException) -> object:
    """Return what requests and urllib3 wrapped: the failure itself."""
    inner = error.args[0] if error.args else error
    return getattr(inner, "reason", inner)


def _cause(error: BaseException) -> str:
    reason = _reason(error)
    return f"{type(reason if isinstance(reason, BaseException) else error).__name__}: {reason}"


def _retry_after(value: str) -> float:
    """Return the seconds that a Retry-After asks for, 0 where it is missing or means nothing (RFC 9110, 10.2.3)."""
    if not value:
        return 0.0
    from urllib3.exceptions import InvalidHeader
    from urllib3.util import Retry

    try:
        return float(Retry().parse_retry_after(value))
    except (InvalidHeader, TypeError, ValueError, OverflowError, IndexError):  # what a date out of this world raises
        return 0.0


def _patiently(send: Callable[[], Reply], until: float, retrying: Callable[[], None]) -> Reply:
    """Return what ``send`` returns; send again what surely never reached the database. Raises Ended.

    Before the n-th of the other tries there is a pause. It is random, up to 0.5 * 2 ** (n - 1) seconds and at most 8,
    and no shorter than a Retry-After. Pauses and tries go on until the monotonic clock says ``until``, when the last
    try begins: so all of it takes the settings' PATIENCE (30 seconds), and what the last try takes.
    """
    try:
        return send()
    except Unreached as unreached:
        try:
            return _sent_again(send, unreached, until, retrying)
        except Unreached as last:
            if last.reply:
                return last.reply
            raise Ended(Outcome.NO_ANSWER, str(last)) from None


def _sent_again(send: Callable[[], Reply], first: Unreached, until: float, retrying: Callable[[], None]) -> Reply:
    """Return what ``send`` returns after ``first``. Raises Unreached when the patience ends."""
    from random import uniform

    from tenacity import Retrying, retry_if_exception_type, wait_random_exponential  # 14 ms, for those who wait

    def is_over(unreached: Unreached) -> bool:
        return time.monotonic() + unreached.retry_after >= until

    def pause(random: float, unreached: Unreached) -> float:
        return min(max(random, unreached.retry_after), max(0.0, until - time.monotonic()))

    def last(state: Any) -> Unreached:
        unreached: Unreached = state.outcome.exception()
        return unreached

    def send_again() -> Reply:
        retrying()
        return send()

    if is_over(first):
        raise first
    time.sleep(pause(uniform(0, FIRST_PAUSE_SECONDS), first))
    jitter = wait_random_exponential(multiplier=2 * FIRST_PAUSE_SECONDS, max=LONGEST_PAUSE_SECONDS)
    tries = Retrying(
        retry=retry_if_exception_type(Unreached),
        wait=lambda state: pause(jitter(state), last(state)),
        stop=lambda state: is_over(last(state)),
        reraise=True,
    )
    return tries(send_again)
