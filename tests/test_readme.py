"""The documentation says what the code does."""

import re
import subprocess
from pathlib import Path

from mailgate.arguments import TAKES_VALUE
from mailgate.outcome import Outcome
from mailgate.settings import HOLD, REQUIRED, STATE, VARIABLES, read

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def rows_below(text: str, heading: str) -> list[list[str]]:
    """Return the rows of the first table that begins with this heading, without the heading."""
    lines = text[text.index(f"| {heading} |") :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_settings_are_those_of_the_code() -> None:
    rows = {cells[0].strip("`"): cells[2] for cells in rows_below(README, "variable")}
    assert list(rows) == [f"MAIL_GATEWAY_{name}" for name in VARIABLES]
    for name, variable in VARIABLES.items():
        documented = rows[f"MAIL_GATEWAY_{name}"]
        default = variable.default
        if name in ("PASSWORD", "PASSWORD_FILE", "CA_FILE", "HOLD", "STATE", "ALLOW_PLAINTEXT"):
            assert default in ("", False)
            assert {"HOLD": HOLD, "STATE": STATE}.get(name, "") in documented
        elif default is REQUIRED:
            assert documented == "required"
        elif name == "SOCKET_MODE":
            assert documented == f"`{default:04o}`"
        elif isinstance(default, frozenset):
            assert documented == (f"`{','.join(default)}`" if default else "empty")
        else:
            assert documented == (
                f"`{default:g}`" if isinstance(default, float) else f"`{default}`" if default else "empty"
            )


def test_the_endings_are_those_of_the_code() -> None:
    rows = [(name.strip("`"), *numbers) for name, *numbers, _ in rows_below(README, "ending")]
    codes = [(row.name.lower(), f"{row.exit_status}", f"{row.reply_code}", row.status_code) for row in Outcome]
    assert sorted(rows) == sorted(codes)


def test_the_example_has_every_setting_and_can_be_read(tmp_path: Path) -> None:
    text = (ROOT / ".env.example").read_text()
    named = re.findall(r"^#?(MAIL_GATEWAY_\w+)=", text, re.MULTILINE)
    left_out = {"PASSWORD_FILE", "ALLOW_PLAINTEXT"}  # that one should not begin with
    assert sorted(named) == sorted(f"MAIL_GATEWAY_{name}" for name in VARIABLES if name not in left_out)
    path = tmp_path / "settings.env"
    path.write_text(re.sub(r"^#(?=MAIL_)", "", text, flags=re.MULTILINE))
    path.chmod(0o600)
    assert len(read({}, str(path))[0]) == len(
        [name for name in named if not re.search(rf"^#?{name}=$", text, re.MULTILINE)]
    )


def test_the_help_names_every_option() -> None:
    help_text = (ROOT / "mail_gateway.py").read_text().split('"""')[1]
    assert all(option in help_text for option in TAKES_VALUE)


def test_the_commands_of_the_readme_are_there() -> None:
    targets = re.findall(r"(?:`|^    )make ([a-z0-9-]+)", README, re.MULTILINE)
    assert targets
    for target in set(targets):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)
