#!/usr/bin/env python3
"""Hand one message from a mail server to an Odoo database.

usage: mail_gateway.py [--env-file FILE] [--sender ADDRESS] [--original-recipient=ADDRESS ...] [--queue-id ID]
                       [--service SOCKET] [--model MODEL] [--dry-run] [--] [RECIPIENT ...] < message

  --env-file FILE       the settings file (else MAIL_GATEWAY_ENV_FILE, else /etc/mail-gateway.env)
  --sender ADDRESS      the envelope sender; "" or <> is the null sender (else SENDER from the environment)
  --original-recipient=ADDRESS ...
                        once for each recipient: what it was before the MTA's rewriting, in the order of the recipients
  --queue-id ID         the MTA's name for the message, for the log
  --service SOCKET      give the message to mail-gateway-lmtp there (a path, or 127.0.0.1:PORT) if it answers (else to
                        one at MAIL_GATEWAY_LMTP, else /run/mail-gateway/lmtp.sock, that has read the same settings
                        file); none: to no service
  --model MODEL         the model that takes what no alias takes (else MAIL_GATEWAY_MODEL)
  --dry-run             post nothing; print what matches, by which rule, and the header fields that would be added
  --help, --version     print this, or the version
  RECIPIENT             the envelope recipients (else RECIPIENT from the environment, else the message's header)

docs/settings.md lists the settings, docs/endings.md how a message may end. This page is the process around one
message; mailgate/walk.py is the message's walk. Any Python 3 can read this page: one that is too old for the rest
must end as 75 too. Each function imports what it needs, for an import is most of what a small mail costs.
"""

# signal's own half in C: the other, with its enums, takes a third of what a bare interpreter does.
import _signal as signal  # type: ignore[import-not-found]  # mypy has no stub of it
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mailgate.arguments import Arguments
    from mailgate.log import Facts, Log
    from mailgate.outcome import Verdict

EX_TEMPFAIL = 75  # sysexits.h
TICK_SECONDS = 1.0  # a signal that comes just before a call of the system begins to wait is taken at the next tick
SAY_WITHIN_SECONDS = 10.0  # for our line and the log: a log that blocks must not spoil the status

# Each would end the process in a way that some MTA takes for a permanent failure, except SIGALRM: our tick.
SIGNALS = {
    getattr(signal, name): name
    for name in ("SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGALRM")
}


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


def stop_at_signals(deadline: float) -> None:
    """Have signals end the run, and a tick that does so from ``deadline`` on, by the monotonic clock."""

    def stop(number: int, frame: object) -> None:
        if number != signal.SIGALRM or time.monotonic() >= deadline:
            raise Stopped(number)

    for number in SIGNALS:
        signal.signal(number, stop)
    signal.setitimer(signal.ITIMER_REAL, TICK_SECONDS, TICK_SECONDS)


def read_and_deliver(arguments: "Arguments", facts: "Facts", log: "Log") -> "Verdict | None":
    """Take the message on standard input to its ending, and note what the log needs. Returns None after a dry run.

    Raises Ended wherever there is no going on.
    """
    import contextlib
    import functools

    from mailgate import database, journal, plan, settings, walk
    from mailgate.envelope import MAX_HEADER_BYTES, envelope_of, spool
    from mailgate.outcome import Ended, Outcome, Verdict

    source = open(0, "rb", closefd=False)
    try:
        variables, wrong = settings.read(os.environ, arguments.env_file)
        log.target, log.form = variables.get("LOG", "syslog"), variables.get("LOG_FORMAT", "text")
        if arguments.model:
            variables["MODEL"] = arguments.model
        config = settings.build(variables, wrong)
    except Ended:
        head = b""
        with contextlib.suppress(Ended, OSError):
            head = spool(source, MAX_HEADER_BYTES).head()  # the log shall tell whose mail waits
        facts.describe(envelope_of(arguments, os.environ, head), head)
        raise
    log.secret, log.keep = config.password, functools.partial(journal.note_attempt, config)
    raw = spool(source, config.max_size)
    facts.size = raw.size
    envelope = envelope_of(arguments, os.environ, raw.head())
    if raw.size > config.max_size:
        facts.describe(envelope, raw.head())
        raise Ended(Outcome.TOO_LARGE, f"more than {config.max_size} bytes")
    if not arguments.dry_run:
        claim = functools.partial(journal.claim, report=lambda text: log.event(text, "LOG_ERR"))
        client = database.Client(config)
        return walk.deliver(config, client, envelope, raw, facts, claim=claim, on_answer=ignore_signals)
    planned = plan.plan(config.addresses, envelope, raw)
    os.write(1, plan.explanation(planned))
    return None if planned.choices[0] else Verdict(Outcome.UNKNOWN_RECIPIENT, "no rule matches")


def main(argv: "list[str]") -> int:
    """Deliver the message on standard input and return the exit status.

    It is longer than other functions: all the ways in which a run may end stand in one place.
    """
    import stat

    from mailgate import __version__
    from mailgate.arguments import Usage, check, parse_arguments
    from mailgate.log import Facts, Log, error_text, quoted
    from mailgate.outcome import Ended, Outcome, Verdict

    started = time.monotonic()
    facts, log, dry_run = Facts(), Log(os.environ.get("MAIL_GATEWAY_LOG") or "syslog"), False
    try:
        os.fstat(0), os.fstat(1)  # what is closed would be given to the next file that is opened
        os.set_blocking(0, True)  # or a pause would look like the end of the message
        arguments = parse_arguments(argv)
        facts.queue_id = arguments.queue_id
        check(arguments, os.environ, stat.S_ISCHR(os.fstat(0).st_mode), os.isatty(0))
        if arguments.help or arguments.version:
            print(__doc__ if arguments.help else f"mail-gateway {__version__}", flush=True)
            return os.EX_OK
        dry_run = arguments.dry_run
        verdict = read_and_deliver(arguments, facts, log)
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
        verdict = Verdict(Outcome.FAILED, error_text(error))
    ignore_signals()
    signal.setitimer(signal.ITIMER_REAL, SAY_WITHIN_SECONDS)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(verdict.outcome.exit_status))
    try:
        os.write(1, verdict.outcome.line.encode() + b"\n")
        if dry_run:
            os.write(1, quoted(verdict.cause).encode() + b"\n")
            return verdict.outcome.exit_status
    except OSError as error:
        verdict = Verdict(Outcome.FAILED, f"{verdict.outcome.name}, but standard output: {error}")
    log.message(facts, verdict, time.monotonic() - started)
    return verdict.outcome.exit_status


def ignore_signals() -> None:
    """Go on to the end, whatever comes."""
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
        stop_at_signals(time.monotonic() + DEADLINE)
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
