"""The tutorial is run from its first line to its last. Only its trainings are made shorter."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.readme.conftest import RunHere
from tests.readme.document import ROOT, Document, lines_of
from tests.readme.rules import rule_for
from tests.readme.workspace import Workspace

TUTORIAL = Document((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"))


def test_the_tutorial_works_from_its_first_line_to_its_last(
    run_here: RunHere,
    there: Path,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(there / "cache"))
    names: dict[str, Any] = {}
    for kind, content in TUTORIAL.steps:
        if kind == "python":
            exec(compile(content, "tutorial.md", "exec"), names)
        else:
            for command in lines_of(content):
                run_here(command)
    printed = set(map(first_column, capsys.readouterr().out.splitlines()))
    assert printed >= set(map(first_column, outputs())), "the tutorial shows what is not printed"
    assert (there / "ten-report" / "report.html").exists()
    assert len(names["dataset"]) == 10
    for folder in ("memorised", "floored"):
        assert "held_out_loss" in json.loads(
            (there / folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        )
    published = rule_for("python -m pipeline.publish ten").applied(
        "python -m pipeline.publish ten hf://datasets/USER/NAME"
    )
    assert workspace.run(published)[0] == 0


def outputs() -> list[str]:
    """Return the lines that the tutorial shows as printed."""
    return [line for token in TUTORIAL.tokens if token.info == "text" for line in token.content.splitlines()]


def first_column(line: str) -> str:
    """Return the first column of a printed line, with `#` instead of each number.

    Numbers may differ between machines, because Python's help texts and the last digits of labels differ.
    """
    return re.sub(r"[\d.,]+", "#", line.strip().split("  ")[0])
