"""The delivery of one message that came over LMTP: whom it is for by now, its walk, and the replies."""

import asyncio
import contextlib
import time
from functools import partial
from typing import IO, NamedTuple

from mailgate import walk
from mailgate.addresses import is_ours
from mailgate.envelope import Envelope, Recipient, queue_id, spooled
from mailgate.log import Facts, error_text
from mailgate.outcome import Ended, Outcome, Verdict
from mailgate.service.service import Service
from mailgate.service.workers import Call, claim

LOGGED_BYTES = 2**16  # of a message that is not taken: the log looks there for its Message-ID and queue id


class Received(NamedTuple):
    """A message as it has come; ``verdict`` is there where it has ended already."""

    file: IO[bytes]
    size: int  # bytes of the file that are the message's
    envelope: Envelope
    refused: list[str]  # the first addresses that were refused at RCPT
    began: float  # when the message began to come, and when it was there, in monotonic seconds
    ended: float
    verdict: Verdict | None = None


async def deliver(service: Service, received: Received) -> list[str]:
    """Return the replies to a message, one for each recipient; its file is closed when nothing needs it any more."""
    with contextlib.ExitStack() as owned:
        owned.callback(close, received.file)
        deferred = await _deferred(service, received.envelope.recipients)
        delivery = _Delivery(service, received)
        verdict = received.verdict or deferred
        if verdict:
            await asyncio.to_thread(delivery.end_undelivered, verdict)
        else:
            owned.pop_all()
            verdict = await service.workers.run(delivery.walk, received.size, lambda _: close(received.file))
    return delivery.replies(verdict.outcome if verdict else Outcome.BUSY)


async def _deferred(service: Service, recipients: tuple[Recipient, ...]) -> Verdict | None:
    """Return how a message ends if it is not known of a recipient whether it is the database's."""
    refusals = [await service.directory.refusal(recipient) for recipient in recipients]
    for refusal in refusals:
        if refusal and refusal.is_temporary:
            return Verdict(refusal, "it is not known whether a recipient is the database's")
    return None


class _Delivery:
    """What a message's walk needs; nothing of it changes when the settings or the list are read anew meanwhile."""

    def __init__(self, service: Service, received: Received) -> None:
        self.received, self.log, self.metrics, self.client = received, service.log, service.metrics, service.client
        self.report = partial(service.report, priority="LOG_ERR")
        self.directory = service.directory
        self.settings = self.directory.settings
        self.addresses = self.directory.deciding  # one list for the replies and for the walk
        self.facts = Facts()
        self.facts.describe(received.envelope, b"")
        self.facts.size = received.size
        self.seconds = {"receive": received.ended - received.began}  # by step

    def walk(self, is_last: bool, call: Call) -> Verdict:
        """Take the message to its ending, which is final if this try ``is_last`` or is not given back."""
        started = time.monotonic()
        file, envelope = self.received.file, self.received.envelope
        try:
            file.seek(self.received.size)
            raw = spooled(file)
            self.facts.queue_id = queue_id(raw.head())
            verdict = walk.deliver(
                self.settings,
                self.client,
                envelope,
                raw,
                self.facts,
                addresses=self.addresses,
                claim=partial(claim, call, self.report),
            )
        except Ended as ended:  # an empty message
            verdict = ended.verdict
        except Exception as error:  # a full disk, or our own bug
            verdict = Verdict(Outcome.FAILED, error_text(error))
        if is_last or not call.is_early:
            self.seconds.update(wait=started - self.received.ended, deliver=time.monotonic() - started)
            self._tell(verdict)
        return verdict

    def end_undelivered(self, verdict: Verdict) -> None:
        """Tell of a message that is not to be delivered."""
        self.received.file.seek(0)
        head = self.received.file.read(LOGGED_BYTES)
        self.facts.describe(self.received.envelope, head)
        self.facts.queue_id = queue_id(head)
        self._tell(verdict)

    def _tell(self, verdict: Verdict) -> None:
        self.facts.unmatched = [*self.received.refused, *self.facts.unmatched]
        self.log.message(self.facts, verdict, sum(self.seconds.values()))
        self.directory.note_answer(self.client, verdict.outcome)
        if self.metrics:
            self.metrics.message(verdict.outcome, self.received.size, self.seconds)

    def replies(self, outcome: Outcome) -> list[str]:
        """Return a reply for each recipient; one that turned out to be unknown has its own, if the rest has ended."""
        return [
            (outcome if outcome.is_temporary or is_ours(self.addresses, recipient) else Outcome.UNKNOWN_RECIPIENT).reply
            for recipient in self.received.envelope.recipients
        ]


def close(file: IO[bytes]) -> None:
    """Close a spool, which is gone then."""
    with contextlib.suppress(OSError):  # a full disk: it tries to write what it could not write before
        file.close()
