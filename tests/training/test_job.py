"""The closing message of a training."""

import json
from pathlib import Path

import pytest

from pipeline.training.job import _best


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([3.0, 2.0, 2.5], ", at best 2.000 (step 2,000)"),
        ([2.5, 2.5], ", at best 2.500 (step 1,000)"),
        ([3.0, 2.0], ""),
        ([3.0], ""),
    ],
)
def test_the_best_evaluation_is_told_if_it_is_not_the_last(losses: list[float], told: str, tmp_path: Path) -> None:
    lines = [json.dumps({"step": 1000 * step, "held_out_loss": loss}) for step, loss in enumerate(losses, 1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert _best(tmp_path) == told


def test_a_model_without_a_loss_has_no_best(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "r2_seeing": 0.5}', encoding="utf-8")
    assert _best(tmp_path) == ""
