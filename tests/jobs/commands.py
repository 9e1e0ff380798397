"""Commands that recipes name, understood by the parsers that would get them: Ray's, and that of the main job."""

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
    """The commands in the comments of a file, each on one line."""
    lines = [line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    whole = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [line for line in whole.splitlines() if re.match(r"(ray|docker|kubectl|python) ", line)]


def annotations(commands: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """What each of the commands that annotate is told; those that do other things are left out."""
    monkeypatch.chdir(ROOT)
    parts = [command.partition(ANNOTATE) for command in commands if ANNOTATE in command]
    for before, _, _ in parts:
        if "ray job submit" in before:
            require_submit(before.partition("ray job submit")[2])
    return [understood(shlex.split(flags.replace(IN_IMAGE, "")), monkeypatch) for _, _, flags in parts]


def understood(flags: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Config:
    """The main job's settings, from its own parser."""
    seen: list[Config] = []

    def annotate(config: Config = DEFAULTS) -> None:
        seen.append(config)

    monkeypatch.setattr(sys, "argv", ["pipeline.annotate", *flags])
    with pytest.raises(SystemExit) as stopped:
        run(annotate, "pipeline.annotate")
    assert not stopped.value.code, stopped.value.code
    return seen[0]


def require_submit(options: str) -> None:
    """Fails where `ray job submit` does not know an option."""
    submit.make_context("submit", [*shlex.split(options), "true"])


def ray_start_flags(command: str) -> dict[str, Any]:
    """The parameters of `ray start`, which fails where it does not know one."""
    words = shlex.split(command)
    assert words[:2] == ["ray", "start"]
    return dict(start.make_context("start", words[2:]).params)
