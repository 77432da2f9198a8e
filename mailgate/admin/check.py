"""check: is everything set up? A line for each finding, good or bad, each bad one with what to do."""

import re
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from rich.table import Table

from mailgate.admin import mta
from mailgate.admin.checks import (
    BAD,
    GOOD,
    UNKNOWN,
    Check,
    Finding,
    Site,
    addresses,
    bad,
    exim,
    good,
    host,
    mailboxes,
    mx,
    postfix,
    rights,
    server,
    unknown,
    why,
)
from mailgate.admin.desk import Answer, Command, Desk
from mailgate.admin.screen import words
from mailgate.outcome import Ended
from mailgate.settings import PREFIX

SETTINGS = "settings"
# By the code that programs know each by, in the order in which they are made.
CHECKS: dict[str, Check] = {
    SETTINGS: Check(lambda site: [good("The settings can be used.")]),
    **server.CHECKS,
    **rights.CHECKS,
    **addresses.CHECKS,
    **host.CHECKS,
    **mailboxes.CHECKS,
    **postfix.CHECKS,
    **exim.CHECKS,
    **mx.CHECKS,
}
_EACH = re.compile(f"; (?={PREFIX}|settings file )")  # what stands between two causes
STYLES = {GOOD: "good", BAD: "bad", UNKNOWN: "dim"}


class Line(NamedTuple):
    """A finding, with the code of its check."""

    code: str
    finding: Finding


def findings(site: Site) -> tuple[list[Line], list[str]]:
    """Return what the checks find, and the codes of those that could not be made for what others found."""
    lines: list[Line] = []
    left_out: list[str] = []
    shaky: set[str] = set()  # what stands on these can't be looked at
    for code, check in CHECKS.items():
        if shaky.intersection(check.after):
            shaky.add(code)
            left_out.append(code)
            continue
        try:
            found = [*check.ask(site)]
        except Ended as ended:
            found = [unknown(f"It can't be told: {why(ended)}.")]
            shaky.add(code)
        lines += [Line(code, each) for each in found]
        if any(each.state == BAD for each in found):
            shaky.add(code)
    return lines, left_out


def _add_arguments(parser: ArgumentParser) -> None:
    mta.add_config(parser)
    parser.add_argument(
        "--dns", metavar="SERVER", nargs="?", const="", help="ask the DNS, or this server of it, where mail goes"
    )


def _answer(desk: Desk, arguments: Namespace) -> Answer:
    return _shown(*findings(Site(desk, arguments)))


def _of_wrong_settings(cause: str) -> Answer:
    """Return what is found where the settings can't be used: nothing else can be looked at."""
    advice = "Mend it in the settings file: docs/settings.md."
    return _shown([Line(SETTINGS, bad(f"{each}.", advice)) for each in _EACH.split(cause)], [*CHECKS][1:])


def _shown(lines: list[Line], left_out: list[str]) -> Answer:
    counts = Counter(line.finding.state for line in lines)
    facts = {
        "findings": [{"code": line.code, **line.finding._asdict()} for line in lines],
        "not_checked": left_out,
    }
    total = f"{counts[GOOD]} good, {counts[BAD]} bad, {counts[UNKNOWN]} can't be told."
    screen: list[Any] = [_table(lines), "", words(total, "bad" if counts[BAD] else "good")]
    if left_out:
        screen.append(
            words(f"Not looked at, for it stands on what is bad or not told above: {', '.join(left_out)}.", "dim")
        )
    return Answer(facts, screen, is_good=not counts[BAD])


def _table(lines: Iterable[Line]) -> Table:
    made = Table.grid(padding=(0, 1, 0, 0))
    made.add_column(no_wrap=True)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for code, finding in lines:
        style = STYLES[finding.state]
        said = "dim" if finding.state == UNKNOWN else ""
        state = "?" if finding.state == UNKNOWN else finding.state
        made.add_row(words(state, style), words(code, said), words(finding.sentence, said))
        if finding.advice:
            made.add_row("", "", words(f"To do: {finding.advice}", "name"))
    return made


COMMAND = Command(
    "check",
    "Tell whether everything is set up: settings, database, rights, addresses, mail server.",
    "mail-gateway-admin check",
    _add_arguments,
    _answer,
    _of_wrong_settings,
)
