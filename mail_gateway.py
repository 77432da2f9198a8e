#!/usr/bin/env python3
"""Hand one message from a mail server to an Odoo database.

usage: mail_gateway.py [--env-file FILE] [--sender ADDRESS] [--original-recipient=ADDRESS ...] [--queue-id ID]
                       [--service SOCKET] [--model MODEL] [--dry-run] [--] [RECIPIENT ...] < message

  --env-file FILE       the settings file (else MAIL_GATEWAY_ENV_FILE, else /etc/mail-gateway.env)
  --sender ADDRESS      the envelope sender; "" or <> is the null sender (else SENDER from the environment)
  --original-recipient=ADDRESS ...
                        once for each recipient: what it was before the MTA's rewriting, in the order of the recipients
  --queue-id ID         the MTA's name for the message, for the log
  --service SOCKET      give the message to mail-gateway-lmtp there (a path, or 127.0.0.1:PORT) if it answers
  --model MODEL         the model that takes what no alias takes (else MAIL_GATEWAY_MODEL)
  --dry-run             post nothing; print what matches, by which rule, and the header fields that would be added
  --help, --version     print this, or the version
  RECIPIENT             the envelope recipients (else RECIPIENT from the environment, else the message's header)

README.md lists the settings and the ways in which a message may end. This page is the whole walk of one message;
its steps are in mailgate/. It is written so that any Python 3 can read it: one that is too old for the rest must
end as 75 too. Each function imports what it needs, for an import is most of what a small mail costs.
"""

# signal's own half in C: the other, with its enums, takes a third of what a bare interpreter does.
import _signal as signal  # type: ignore[import-not-found]  # mypy has no stub of it
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from mailgate.arguments import Arguments
    from mailgate.database import Client
    from mailgate.envelope import Envelope, Raw
    from mailgate.outcome import Verdict
    from mailgate.settings import Settings
    from mailgate.state import Claim

EX_TEMPFAIL = 75  # sysexits.h
TO_SAY = 10.0  # seconds, for our line and the log: a log that blocks must not spoil the status

# Each would end the process in a way that some MTA takes for a permanent failure, except SIGALRM: our deadline.
SIGNALS = {
    getattr(signal, name): name
    for name in ("SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGALRM")
}

# What Postfix and Exim put into the environment of what they run.
MTA_VARIABLES = ("MAIL_CONFIG", "LOCAL_PART")


def fail(error: BaseException) -> None:
    """End as everything must that nobody foresaw: the mail stays in the MTA's queue."""
    try:
        import syslog

        syslog.openlog("mail-gateway", syslog.LOG_PID, syslog.LOG_MAIL)
        syslog.syslog(syslog.LOG_ERR, f"outcome=failed cause={type(error).__name__}")
        os.write(1, b"4.3.0 mail gateway failed, will try again\n")
    finally:
        os._exit(EX_TEMPFAIL)


class Stopped(BaseException):
    """Raised by a signal, wherever the run is; no ``except Exception`` on its way takes it for its own."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name = SIGNALS[number]


def stop(number: int, frame: object) -> None:
    """Take a signal."""
    raise Stopped(number)


def walk(arguments: "Arguments", facts: "dict[str, object]") -> "Verdict | None":
    """Take the message on standard input to its ending, and note what the log will tell of it.

    Returns None after a dry run. Raises Ended wherever there is no going on.
    """
    import contextlib

    from mailgate import database, log, settings
    from mailgate.envelope import HEADER_LIMIT, envelope_of, spool
    from mailgate.outcome import Ended, Outcome

    # read
    source = open(0, "rb", closefd=False)
    try:
        values, wrong = settings.read(os.environ, arguments.env_file)
        facts["log"] = values.get("LOG", "syslog"), values.get("LOG_FORMAT", "text")
        if arguments.model:
            values["MODEL"] = arguments.model
        config = settings.build(values, wrong)
    except Ended:
        head = b""
        with contextlib.suppress(Ended, OSError):
            head = spool(source, HEADER_LIMIT).head()  # the log shall tell whose mail waits
        facts.update(log.known(envelope_of(arguments, os.environ, head), head))
        raise
    facts["secret"] = config.password
    raw = spool(source, config.max_size)
    envelope = envelope_of(arguments, os.environ, raw.head())
    if raw.size > config.max_size:
        facts.update(log.known(envelope, raw.head()))
        raise Ended(Outcome.TOO_LARGE, f"more than {config.max_size} bytes")
    return deliver(config, database.Client(config), envelope, raw, facts, ignore_signals, arguments.dry_run)


def deliver(
    config: "Settings",
    client: "Client",
    envelope: "Envelope",
    raw: "Raw",
    facts: "dict[str, object]",
    settled: "Callable[[], None]",
    dry_run: bool = False,
    claiming: "Callable[..., AbstractContextManager[Claim]] | None" = None,
    known: "Settings | None" = None,
) -> "Verdict | None":
    """Take a message that has been read to its ending; ``settled`` is called when the database has answered.

    The pipe comes here with its one message, the LMTP service with each of its own; ``claiming`` is what it does at
    state.claim(), ``known`` has the addresses that the database has. Returns and raises as walk().
    """
    import time

    from mailgate import addresses, hold, log, message, rules, shapes, state
    from mailgate.judge import judge
    from mailgate.outcome import Outcome, Verdict

    # match
    facts.update(log.known(envelope, raw.head()), model=config.model)
    matches = rules.match(config, envelope.recipients, known)
    if not dry_run:
        matches = addresses.settled(client, config, matches)
    choices = rules.choices(matches)
    facts["unmatched"] = [match.recipient.address for match in matches if not match.rule]

    # prepare
    added, message_id = message.prepare(raw, envelope.sender, choices[0])
    facts["message_id"] = message_id
    if dry_run:
        os.write(1, log.explanation(matches) + added)
    if not choices[0]:
        return Verdict(Outcome.UNKNOWN_RECIPIENT, "no rule matches")
    if dry_run:
        return None

    # post and judge, unless another delivery of this message runs, or the database has answered this one already
    until = time.monotonic() + config.patience
    with (claiming or state.claim)(config, message_id, str(facts["queue_id"]), added, until) as claim:
        cause = "" if claim.answer else shapes.too_slow(raw.head())
        slow = cause and not client.reads_all_shapes() and Verdict(Outcome.HELD, cause)
        verdict = claim.answer or slow or judge(client.post(added, raw, until, claim.begin))
        for others in choices[1:]:  # where it knows none of these, nothing is stored, and it may know the others
            if verdict.outcome is Outcome.UNKNOWN_RECIPIENT:
                added, _ = message.prepare(raw, envelope.sender, others)
                verdict = judge(client.post(added, raw, until, claim.begin))
        settled()  # it has happened, and no late signal shall say otherwise
        claim.end(verdict)
        if verdict.outcome is Outcome.HELD:
            if not config.hold:
                return Verdict(Outcome.DATABASE_ERROR, verdict.cause)
            path = hold.keep(config.hold, added, raw)
            verdict = verdict._replace(cause=f"{verdict.cause}; kept as {path}")
            claim.end(verdict._replace(outcome=Outcome.ACCEPTED))  # for a next try: it is kept already
    return verdict


def main(argv: "list[str]") -> int:
    """Deliver the message on standard input and return the exit status."""
    import stat
    import time

    from mailgate import __version__, log
    from mailgate.arguments import Usage, parse_arguments
    from mailgate.outcome import Ended, Outcome, Verdict

    started = time.monotonic()
    facts: dict[str, object] = {"log": (os.environ.get("MAIL_GATEWAY_LOG") or "syslog", "text"), "queue_id": ""}
    dry_run = False
    try:
        os.fstat(0), os.fstat(1)  # what is closed would be given to the next file that is opened
        os.set_blocking(0, True)  # or a pause would look like the end of the message
        arguments = parse_arguments(argv)
        facts["queue_id"] = arguments.queue_id
        if arguments.help or arguments.version:
            if not stat.S_ISCHR(os.fstat(0).st_mode):  # neither a terminal nor /dev/null
                raise Usage("--help and --version would lose the mail on standard input")
            print(__doc__ if arguments.help else f"mail-gateway {__version__}", flush=True)
            return os.EX_OK
        if os.isatty(0):
            raise Usage("the message is expected on standard input")
        if arguments.dry_run and any(name in os.environ for name in MTA_VARIABLES):
            raise Usage("--dry-run would lose the mail of the MTA that runs it")
        dry_run = arguments.dry_run
        verdict = walk(arguments, facts)
        if verdict is None:
            return os.EX_OK
    except Usage as error:
        if os.isatty(0):
            os.write(2, os.fsencode(f"mail_gateway.py: {error}; mail_gateway.py --help says more\n"))
            return os.EX_USAGE
        verdict = Verdict(Outcome.SETTINGS, f"wrong usage: {error}")
    except Ended as ended:
        verdict = ended.verdict
    except Stopped as stopped:
        outcome = Outcome.CUT_OFF if stopped.name == "SIGALRM" else Outcome.FAILED
        verdict = Verdict(outcome, f"stopped by {stopped.name}")
    except Exception as error:  # our own bug, or a full disk
        verdict = Verdict(Outcome.FAILED, log.where(error))
    ignore_signals()
    signal.setitimer(signal.ITIMER_REAL, TO_SAY)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(verdict.outcome.exit_status))
    try:
        os.write(1, verdict.outcome.line.encode() + b"\n")
        if dry_run:
            os.write(1, log.quoted(verdict.cause).encode() + b"\n")
            return verdict.outcome.exit_status
    except OSError as error:
        verdict = Verdict(Outcome.FAILED, f"{verdict.outcome.name}, but standard output: {error}")
    log.write(facts, verdict, time.monotonic() - started)
    return verdict.outcome.exit_status


def ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def run() -> None:
    """Hand the message over to the service, or deliver it, in the last net, and leave at once.

    The interpreter's own shutdown can only spoil the status.
    """
    try:
        from mailgate import DEADLINE
        from mailgate.handover import hand_over

        sys.stderr = None  # the MTA would take a library's warning for our line
        for number in SIGNALS:
            signal.signal(number, stop)
        signal.setitimer(signal.ITIMER_REAL, DEADLINE)
        answered = hand_over(sys.argv[1:], os.environ)
        if answered:
            ignore_signals()
            status, line = answered
            os.write(1, line)
        else:
            status = main(sys.argv[1:])
    except BaseException as error:  # a signal where main() can't catch it any more, a broken installation
        fail(error)
    os._exit(status)


if __name__ == "__main__":
    run()
