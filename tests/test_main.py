"""The list of commands that `python -m pipeline` prints."""

import importlib.util
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from pipeline import __main__ as main

ROOT = Path(__file__).parents[1]
RUNNABLE = [
    *(f"pipeline.{file.parent.name}" for file in sorted(ROOT.glob("pipeline/*/__main__.py"))),
    *(f"jobs.{file.stem}" for file in sorted(ROOT.glob("jobs/*.py")) if file.stem != "__init__"),
]
HEAVY = {"torch", "transformers", "ray", "datasets", "pyarrow"}
"""Packages that take long to import."""


def listing(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-X", "importtime", "-m", "pipeline", *arguments]
    return subprocess.run(
        words, cwd=ROOT, env=os.environ | {"COLUMNS": "200"} | variables, capture_output=True, text=True, check=False
    )


def imported(process: subprocess.CompletedProcess[str]) -> set[str]:
    """Return the packages that a process imported."""
    lines = [line for line in process.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def said(process: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines of standard error, without the import times."""
    return [line for line in process.stderr.splitlines() if not line.startswith("import time:")]


def test_every_module_that_can_be_run_is_listed_with_a_sentence() -> None:
    shown = listing()
    assert (shown.returncode, said(shown)) == (0, [])
    lines = [line.strip("│ ").split(maxsplit=1) for line in shown.stdout.splitlines() if line.startswith("│")]
    assert [name for name, _ in lines] == RUNNABLE == list(main.commands())
    assert all(sentence.endswith(".") and ". " not in sentence for _, sentence in lines)
    assert len(RUNNABLE) >= 13 and RUNNABLE[0] == "pipeline.annotate"


def test_the_sentence_is_the_beginning_of_the_commands_help() -> None:
    words = [sys.executable, "-m", "jobs.train_tokenizer", "--help"]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert main.commands()["jobs.train_tokenizer"] in told


def test_help_is_the_list_and_nothing_heavy_is_imported() -> None:
    shown, bare = listing("--help"), listing()
    assert shown.stdout == listing("-h").stdout == bare.stdout
    assert "cyclopts" in imported(bare) and not imported(bare) & HEAVY


def test_a_terminal_without_unicode_shows_the_list() -> None:
    assert "| pipeline.annotate " in listing(PYTHONIOENCODING="ascii").stdout


def test_jobs_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without_jobs(name: str) -> ModuleSpec | None:
        return None if name == "jobs" else find(name)

    monkeypatch.setattr(main, "find_spec", without_jobs)
    assert list(main.commands()) == [name for name in RUNNABLE if name.startswith("pipeline.")]


@pytest.mark.parametrize(
    ("arguments", "shown", "nearest"),
    [
        (["anotate", "--output", "out"], "anotate", "pipeline.annotate"),
        (["jobs.train_estimater"], "jobs.train_estimater", "jobs.train_estimator"),
        (["--helps"], "--helps", ""),
        (["a\nb"], "a\\nb", ""),
    ],
)
def test_anything_else_is_refused_in_one_line_that_names_the_nearest_command(
    arguments: list[str], shown: str, nearest: str
) -> None:
    refused = listing(*arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = said(refused)
    assert line.startswith(f"error: {shown} is not a command: did you mean python -m {nearest}")
    assert line.endswith("? python -m pipeline lists all commands")
