"""How commands start: help comes at once, since nothing is imported that only the work needs; and all are listed."""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.__main__ import commands, list_commands

ROOT = Path(__file__).parents[1]
GUARD = '\nif __name__ == "__main__":\n'
COMMANDS = [
    *(f"pipeline.{file.parent.name}" for file in sorted(ROOT.glob("pipeline/*/__main__.py"))),
    *(f"jobs.{file.stem}" for file in sorted(ROOT.glob("jobs/*.py")) if GUARD in file.read_text(encoding="utf-8")),
]
FLAGS = {"pipeline.publish": "--repository", "pipeline.verify": "--repair"}
"""A flag of each command, where that is not --output."""
HEAVY = {"torch", "transformers", "accelerate", "matplotlib", "ray", "datasets"}
"""Packages that take long to import."""
MOST_SECONDS = 1.5
INPUT_FLAGS = {"--input", "--split", "--config-name"}
"""Of every command that reads documents."""


@dataclass(frozen=True)
class Start:
    """A command's help, as a new interpreter gives it."""

    exit_code: int
    printed: str
    imported: set[str]
    """Packages."""
    seconds: float
    """Of a processor's time."""


def start(command: str) -> Start:
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as printed,
        tempfile.TemporaryFile("w+", encoding="utf-8") as imports,
    ):
        words = [sys.executable, "-X", "importtime", "-m", command, "--help"]
        process = subprocess.Popen(words, cwd=ROOT, stdout=printed, stderr=imports)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # Popen would wait for it again
        printed.seek(0)
        imports.seek(0)
        packages = {line.rpartition("|")[2].strip().partition(".")[0] for line in imports}
        return Start(process.returncode, printed.read(), packages, usage.ru_utime + usage.ru_stime)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_comes_at_once(command: str) -> None:
    started = start(command)
    assert started.exit_code == 0
    assert FLAGS.get(command, "--output") in started.printed
    flags = set(re.findall(r"^│ (?:[* ]  )?(--[a-z-]+) ", started.printed, re.MULTILINE))
    assert flags.isdisjoint(INPUT_FLAGS) or flags >= INPUT_FLAGS
    assert "cyclopts" in started.imported and not started.imported & HEAVY
    again = (start(command).seconds for _ in range(3))  # the first start may have compiled modules
    assert started.seconds < MOST_SECONDS or any(seconds < MOST_SECONDS for seconds in again)


def listing(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_listing_has_every_command_and_a_sentence_on_it() -> None:
    shown = listing()
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = [line.split(maxsplit=1) for line in shown.stdout.splitlines()[2:]]
    assert [name for name, _ in lines] == COMMANDS and len(COMMANDS) >= 13
    assert all(sentence.endswith(".") for _, sentence in lines)
    assert listing("--help").stdout == shown.stdout


def test_it_is_what_the_module_lists_here(capsys: pytest.CaptureFixture[str]) -> None:
    list_commands([])
    assert capsys.readouterr().out == listing().stdout
    assert list(commands()) == COMMANDS
    with pytest.raises(SystemExit, match=r"is no command; the nearest is python -m pipeline\.report,"):
        list_commands(["reports"])


@pytest.mark.parametrize(
    ("argument", "nearest"), [("anotate", "pipeline.annotate"), ("jobs.train_estimater", "jobs.train_estimator")]
)
def test_what_is_no_command_is_told_the_nearest_in_one_line(argument: str, nearest: str) -> None:
    refused = listing(argument, "--output", "out")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"error: {argument} is no command; the nearest is python -m {nearest},")
    assert refused.stderr.count("\n") == 1
