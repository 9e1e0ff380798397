"""Commands in recipes, parsed by the parsers of Ray and of the commands themselves."""

import re
import shlex
import sys
from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from ray.dashboard.modules.job.cli import submit
from ray.scripts.scripts import start

from pipeline.annotate.config import Config
from pipeline.cli import run
from tests.builders import command_of
from tests.checkers import ROOT

IN_IMAGE = "/opt/token-entropy/"
MODULE = "pipeline.annotate"
ANNOTATE = f"python -m {MODULE} "


def in_comments(file: Path) -> list[str]:
    """Return the commands in a file's comments, each on one line."""
    lines = [line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    whole = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [line for line in whole.splitlines() if re.match(r"(ray|docker|kubectl|python|accelerate launch) ", line)]


def annotations(commands: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Return the settings of each annotate command, and skip other commands."""
    monkeypatch.chdir(ROOT)
    parts = [command.partition(ANNOTATE) for command in commands if ANNOTATE in command]
    for before, _, _ in parts:
        if "ray job submit" in before:
            require_submit(before.partition("ray job submit")[2])
    return [understood(shlex.split(flags.replace(IN_IMAGE, "")), monkeypatch, MODULE) for _, _, flags in parts]


def understood(flags: Sequence[str], monkeypatch: pytest.MonkeyPatch, module: str) -> Any:
    """Return the settings that the command line parser of a module reads from the flags."""
    seen: list[Any] = []

    @wraps(command_of(module))
    def command(config: Any) -> None:
        seen.append(config)

    monkeypatch.setattr(sys, "argv", [module, *flags])
    with pytest.raises(SystemExit) as stopped:
        run(command, module)
    assert not stopped.value.code, stopped.value.code
    return seen[0]


def require_submit(options: str) -> None:
    """Fail if `ray job submit` does not accept the options."""
    submit.make_context("submit", [*shlex.split(options), "true"])


def ray_start_flags(command: str) -> dict[str, Any]:
    """Return the parameters of a `ray start` command, and fail if one of its flags is unknown."""
    words = shlex.split(command)
    assert words[:2] == ["ray", "start"]
    return dict(start.make_context("start", words[2:]).params)
