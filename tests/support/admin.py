"""The operator's desk, run as he types it, with a settings file."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from support.gateway import ENVIRONMENT, coverage_environment

ROOT = Path(__file__).parents[2]


def command(env_file: Path, *words: object, python: str = sys.executable) -> list[str]:
    """Return what is typed for a command of the desk."""
    return [python, "-m", "mailgate.admin", "--env-file", str(env_file), *map(str, words)]


def ask(
    env_file: Path,
    *words: object,
    python: str = sys.executable,
    folder: Path = ROOT,
    environ: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    """Run a command of the desk in ``folder`` and return how it ended; what it prints has no password."""
    finished = subprocess.run(
        command(env_file, *words, python=python),
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        env={**ENVIRONMENT, **coverage_environment(), **environ},
    )
    assert "s3cret" not in finished.stdout + finished.stderr
    return finished


def facts(env_file: Path, *words: object) -> Any:
    """Return what a command of the desk tells a program."""
    finished = ask(env_file, *words, "--json")
    assert not finished.stderr, finished.stderr
    return json.loads(finished.stdout)
