"""Start of every command: help comes at once, because only the work itself imports heavy packages."""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.__main__ import commands

ROOT = Path(__file__).parents[1]
FLAGS = {"pipeline.publish": "--repository", "pipeline.verify": "--repair", "jobs.measure_agreement": "--reference"}
"""For each command without --output, one of its flags."""
HEAVY = {"torch", "transformers", "accelerate", "matplotlib", "ray", "datasets"}
"""Packages that take long to import."""
MOST_SECONDS = 3.0  # 1.1 to 1.9 s on a slow idle core, up to 2.3 s on one that others share
INPUT_FLAGS = {"--input", "--split", "--config-name"}
"""Flags of every command that reads documents."""


@dataclass(frozen=True)
class Start:
    """A command's help, printed by a new interpreter."""

    exit_code: int
    printed: str
    imported: set[str]
    """Names of the packages that the command has imported."""
    seconds: float
    """Processor time of the command."""


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


@pytest.mark.parametrize("command", commands())
def test_help_comes_at_once(command: str) -> None:
    started = start(command)
    assert started.exit_code == 0
    assert FLAGS.get(command, "--output") in started.printed
    flags = set(re.findall(r"^│ (?:[* ]  )?(--[a-z-]+) ", started.printed, re.MULTILINE))
    assert flags.isdisjoint(INPUT_FLAGS) or flags >= INPUT_FLAGS
    assert "cyclopts" in started.imported and not started.imported & HEAVY
    again = (start(command).seconds for _ in range(3))  # the first start may have compiled modules
    assert started.seconds < MOST_SECONDS or any(seconds < MOST_SECONDS for seconds in again)
