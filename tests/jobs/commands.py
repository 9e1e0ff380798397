"""Commands in recipes, parsed by the parsers they are meant for: Ray's, and the main job's."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ray.dashboard.modules.job.cli import submit
from ray.scripts.scripts import start

from pipeline.annotate.config import Config
from pipeline.cli import run
from tests.checkers import ROOT

IN_IMAGE = "/opt/token-entropy/"
ANNOTATE = "python -m pipeline.annotate "
DEFAULTS = Config()


def in_comments(file: Path) -> list[str]:
    """Return the commands in a file's comments, each on one line."""
    lines = [line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    whole = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [line for line in whole.splitlines() if re.match(r"(ray|docker|kubectl|python) ", line)]


def annotations(commands: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Return the settings of each annotate command, and skip other commands."""
    monkeypatch.chdir(ROOT)
    parts = [command.partition(ANNOTATE) for command in commands if ANNOTATE in command]
    for before, _, _ in parts:
        if "ray job submit" in before:
            require_submit(before.partition("ray job submit")[2])
    return [understood(shlex.split(flags.replace(IN_IMAGE, "")), monkeypatch) for _, _, flags in parts]


def understood(flags: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Config:
    """Return the main job's settings, from its own parser."""
    seen: list[Config] = []

    def annotate(config: Config = DEFAULTS) -> None:
        seen.append(config)

    monkeypatch.setattr(sys, "argv", ["pipeline.annotate", *flags])
    with pytest.raises(SystemExit) as stopped:
        run(annotate, "pipeline.annotate")
    assert not stopped.value.code, stopped.value.code
    return seen[0]


def require_submit(options: str) -> None:
    """Fail if `ray job submit` does not accept the options."""
    submit.make_context("submit", [*shlex.split(options), "true"])


def ray_start_flags(command: str) -> dict[str, Any]:
    """Return the parameters of `ray start`, and fail on an unknown one."""
    words = shlex.split(command)
    assert words[:2] == ["ray", "start"]
    return dict(start.make_context("start", words[2:]).params)
