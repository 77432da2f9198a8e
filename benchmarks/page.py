"""What the benchmarks find, and the page it is written to: docs/benchmarks.md."""

import os
import platform
import re
import sys
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[1] / "docs/benchmarks.md"
HEAD = """\
# Benchmarks

`make bench` writes this page. Each figure compares two things measured in turn in the same run, so that it says the
same on another machine. The database server behind them answers at once, for what is measured is the way there; where
Odoo 19 is named, it is a real one, if `make test-odoo` has fetched it. The peers are Odoo's own script
`odoo-mailgate.py`, `rt-mailgate` of Debian's package rt5-clients, and `curl`. A figure without a goal stands beside for
information.

The last run had {cores} cores and Python {python}.

| figure | goal | measured | by |
|---|---|---|---|
"""


class Row(NamedTuple):
    """A line of the page."""

    figure: str
    goal: str
    measured: str
    is_missed: bool = False


class Figure(NamedTuple):
    """A figure and its goal: ``at most`` or ``at least`` the limit, or none."""

    name: str
    relation: str = ""
    limit: float = 0.0

    def row(self, value: float, detail: str = "") -> Row:
        is_missed = {"at most": value > self.limit, "at least": value < self.limit}.get(self.relation, False)
        measured = f"{value:.2f} ({detail})" if detail else f"{value:.2f}"
        return Row(self.name, self.goal, f"{measured}, **missed**" if is_missed else measured, is_missed)

    def skipped(self, reason: str) -> Row:
        return Row(self.name, self.goal, f"not measured: {reason}")

    @property
    def goal(self) -> str:
        return f"{self.relation} {self.limit:g}" if self.relation else ""


def report(*rows: Row, is_firm: bool = True) -> int:
    """Print the rows, put them into the page, and return the exit status, which is 1 when a firm goal is missed.

    A goal is not firm where whatever else the machine does can make it be missed: rates and delays. The page keeps its
    other rows: they are another benchmark's.
    """
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    lines = dict(re.findall(r"(?m)^\| (?!figure)([^|]+) \| (.*)$", PAGE.read_text() if PAGE.exists() else ""))
    for row in rows:
        print(f"{row.figure}: {row.measured}   {row.goal}".rstrip(), flush=True)
        lines[row.figure] = f"{row.goal} | {row.measured} | `{command}` |"
    table = "".join(f"| {figure} | {line}\n" for figure, line in lines.items())
    PAGE.write_text(HEAD.format(cores=os.cpu_count(), python=platform.python_version()) + table)
    return int(is_firm and any(row.is_missed for row in rows))
