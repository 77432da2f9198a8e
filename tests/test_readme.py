"""README.md shows on its first screen what this is, and what it has typed is what the other pages say."""

import re

from support.pages import ROOT, page

from mailgate.arguments import TAKES_VALUE

README = page("README.md")
FIRST_SCREEN = 40  # lines


def test_the_first_screen_has_the_demonstration_and_two_commands() -> None:
    screen = README.splitlines()[:FIRST_SCREEN]
    assert any(line.startswith("    make demo") for line in screen)
    assert any(line.startswith("    make test") for line in screen)
    assert any("(docs/demo.svg)" in line for line in screen)
    assert any("(docs/try.md)" in line for line in screen)
    assert any(re.search(r"!\[.+\]\(docs/try/.+\.png\)", line) for line in screen)
    assert "    $ make demo" in screen
    assert "## Why" in README.splitlines()[FIRST_SCREEN - 5 : FIRST_SCREEN + 5]  # so all of the session is before it


def test_what_it_installs_with_is_what_the_page_about_it_says() -> None:
    (commands,) = re.findall(r"(?m)^    apt-get install(?:.*\n    )+.*\n", README)
    assert commands.count("make install") == 2
    assert commands in page("docs/install.md")


def test_the_help_names_every_option() -> None:
    help_text = (ROOT / "mail_gateway.py").read_text().split('"""')[1]
    assert all(option in help_text for option in TAKES_VALUE)
