"""The pages, and how a test reads them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for folder in (ROOT, ROOT / "docs", ROOT / "postfix", ROOT / "exim", ROOT / "systemd")
    for path in folder.glob("*.md")
)


def page(name: str) -> str:
    """Return the text of a page, by its path in the checkout."""
    return (ROOT / name).read_text()


def tables_below(text: str, heading: str) -> list[list[list[str]]]:
    """Return the tables that begin with this heading, each a list of rows, without the heading."""
    tables = [part.partition("\n\n")[0].splitlines()[2:] for part in re.split(rf"(?m)^(?=\| {heading} \|)", text)[1:]]
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in lines] for lines in tables]


def rows_below(text: str, heading: str) -> list[list[str]]:
    """Return the rows of the first table that begins with this heading, without the heading."""
    return tables_below(text, heading)[0]


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    """Return the targets of a page's links and pictures."""
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)
