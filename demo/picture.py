"""The output of the demonstration as a picture, docs/demo.svg: ``make demo-picture``."""

import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "demo.svg"
# What differs from run to run, and what stands for it in the picture.
CHANGING = {r"127\.0\.0\.1:\d+": "127.0.0.1:8069", r"\d{4}-\d\d-\d\d \d\d:\d\d": "2026-01-15 09:30"}


def main() -> int:
    """Draw the picture, print the session that it shows, and return the exit status."""
    run = subprocess.run([sys.executable, HERE / "run.py"], stdout=subprocess.PIPE, text=True, check=True)
    session = f"$ make demo\n{run.stdout.strip()}"
    for pattern, fixed in CHANGING.items():
        session = re.sub(pattern, fixed, session)
    console = Console(record=True, width=max(map(len, session.splitlines())), highlight=False)
    console.print(session, markup=False, emoji=False, no_wrap=True)
    drawn = console.export_svg(title="make demo", unique_id="demo", font_aspect_ratio=0.65)  # room for wide fonts
    # Whoever looks at the picture asks no other server for a font: their own has columns, too.
    drawn = re.sub(r"\s*(@font-face \{.*?\}|<!--.*?-->)", "", drawn, flags=re.DOTALL)
    PICTURE.write_text(drawn.replace("Fira Code, monospace", "monospace"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
