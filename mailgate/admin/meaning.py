"""What each ending means to an operator, and what he does now; docs/endings.md says it at length."""

from typing import NamedTuple

from mailgate.outcome import Outcome


class Meaning(NamedTuple):
    """What became of the mail, in a sentence, and what is to be done."""

    became: str
    advice: str


NOTHING = "Nothing."

MEANINGS = {
    Outcome.DELIVERED: Meaning("It is on its record.", NOTHING),
    Outcome.KNOWN: Meaning("The database had it before; it was not added again.", NOTHING),
    Outcome.ACCEPTED: Meaning(
        "The database took it and made no record: it is a delivery report, or its sender was told why not.",
        "If its sender should have got a record: may he write to that alias (its contact policy)? Was it sent to the "
        "catchall address?",
    ),
    Outcome.DROPPED: Meaning(
        "The database stopped a loop: this sender opened too many records in two hours. The sender was told.",
        "If the mail was wanted: raise mail.gateway.loop.threshold, or put the sender among the allowed ones. "
        "MAIL_GATEWAY_HOLD_LOOPS=yes keeps such mail.",
    ),
    Outcome.HELD: Meaning(
        "The database can't digest it. It is kept in the hold folder; its sender was told nothing.",
        "Mend what the cause names, then: mail-gateway-admin held release NAME, or --all.",
    ),
    Outcome.UNKNOWN_RECIPIENT: Meaning(
        "It was refused; its sender got a bounce.",
        "If the address should exist: mail-gateway-admin explain --address ADDRESS.",
    ),
    Outcome.TOO_LARGE: Meaning(
        "It was refused as too large; its sender got a bounce.",
        "Nothing; or raise MAIL_GATEWAY_MAX_SIZE, the proxy's limit and the mail server's.",
    ),
    Outcome.NOT_A_MESSAGE: Meaning("Nothing came on standard input.", "Who calls the program so?"),
    Outcome.IN_PROGRESS: Meaning(
        "It waits in the mail server's queue: another delivery of it runs, or may still run.",
        "Nothing; the mail server tries again.",
    ),
    Outcome.BUSY: Meaning(
        "It waits in the mail server's queue: the service had as much mail as it takes.",
        "Nothing; if it lasts, the database is slow.",
    ),
    Outcome.NO_ANSWER: Meaning(
        "It waits in the mail server's queue: the database server can't be reached.",
        "Is Odoo up? URL, port, firewall, certificate: mail-gateway-admin check. Then postqueue -f, or exim -qff.",
    ),
    Outcome.CUT_OFF: Meaning(
        "It waits in the mail server's queue: no whole answer came. The database may have it.",
        "Look at Odoo and its proxy (limit_time_real, time-outs). It is not posted again before READ_TIMEOUT is over.",
    ),
    Outcome.ACCESS_DENIED: Meaning(
        "It waits in the mail server's queue: the database does not admit the gateway.",
        "Login, password or API key (it may have ended), the user's rights: mail-gateway-admin check. Then "
        "postqueue -f, or exim -qff.",
    ),
    Outcome.SETTINGS: Meaning(
        "It waits in the mail server's queue: the gateway is not set up correctly.",
        "Mend what the cause names in the settings file. Then postqueue -f, or exim -qff.",
    ),
    Outcome.DATABASE_DOWN: Meaning(
        "It waits in the mail server's queue: PostgreSQL or Odoo is starting, stopped or overloaded.",
        "Start it, or wait.",
    ),
    Outcome.DATABASE_ERROR: Meaning(
        "It waits in the mail server's queue: the database answered with a fault.",
        "Read the cause and Odoo's log. Without a hold folder, mail to be held ends so.",
    ),
    Outcome.FAILED: Meaning(
        "It waits in the mail server's queue: the gateway itself failed.",
        "Read the cause: a full disk, a broken installation, a journal that can't be written, or our bug.",
    ),
}
BY_HAND = "by hand: "  # begins the cause of what the postmaster has dropped
DROPPED_BY_HAND = Meaning("The postmaster has dropped it; the cause says why. It is kept in dropped/.", NOTHING)
REMOVED = f"{BY_HAND}send-test removed its record"
TEST_REMOVED = Meaning("It was a test, whose record send-test has removed.", NOTHING)
STYLE_BY_STATUS = {0: "good", 65: "bad", 67: "bad", 75: "waits"}


def of(outcome: Outcome, cause: str) -> Meaning:
    """Return what an ending with this cause means."""
    if outcome is Outcome.DROPPED and cause.startswith(BY_HAND):
        return TEST_REMOVED if cause == REMOVED else DROPPED_BY_HAND
    return MEANINGS[outcome]


def style(outcome: Outcome) -> str:
    """Return the style in which an ending is shown."""
    return "bad" if outcome in (Outcome.HELD, Outcome.DROPPED) else STYLE_BY_STATUS[outcome.exit_status]


def word(outcome: Outcome) -> str:
    """Return an ending's name, as the log has it."""
    return outcome.name.lower()
