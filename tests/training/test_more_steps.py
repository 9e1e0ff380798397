"""Finished trainings that continue with more steps, compared with trainings that had as many steps from the start."""

import json
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training import resume
from pipeline.training.config import Decay, TrainingConfig
from pipeline.training.trainer import train
from tests.training.test_resume import PowerCutError, dropped, until
from tests.training.test_trainer import Bigrams, circle, evaluate, metrics

CONFIG = TrainingConfig(
    steps=20, tokens_per_batch=40, learning_rate=0.1, evaluate_every=4, decay="trapezoid", warmup=5, cooldown=0.25
)


def settings_of(config: TrainingConfig) -> dict[str, Any]:
    return {"folds": 1, "training": config.fingerprint}


def finished(config: TrainingConfig, output: Path, loss: Any = dropped) -> Bigrams:
    """Train as the jobs do, and return the model."""
    model = Bigrams()
    resume.begin(output, settings_of(config), config)
    train(model, circle(), loss, evaluate, config, output)
    (output / "README.md").touch()
    resume.finish(output, config.lasting_step)
    return model


def without_seconds(output: Path) -> list[dict[str, float]]:
    return [{**record, "seconds": 0} for record in metrics(output)]


NAMES = ("parts", "whole")
VARIANTS: list[dict[str, Any]] = [
    {},
    {"cooldown": 7, "keep": 1, "save_every": 3},
    {"cooldown": 0, "save_as": "bfloat16"},
    {"save_as": "bfloat16", "optimizer": "muon", "accumulate": 2},
    {"average": "ema", "average_from": 0.6},
    {"average": "swa", "average_from": 0.0},
]


@pytest.mark.parametrize("changed", VARIANTS)
def test_more_steps_give_the_training_that_had_them_from_the_start(tmp_path: Path, changed: dict[str, Any]) -> None:
    few = replace(CONFIG, **changed)
    many = replace(few, steps=31)
    finished(few, tmp_path / "parts")
    assert resume.is_finished(tmp_path / "parts")
    assert len(without_seconds(tmp_path / "parts")) == 5
    found, expected = finished(many, tmp_path / "parts"), finished(many, tmp_path / "whole")
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), expected.parameters(), strict=True))
    assert without_seconds(tmp_path / "parts") == without_seconds(tmp_path / "whole")
    left = [sorted(str(file.relative_to(tmp_path / name)) for file in (tmp_path / name).rglob("*.*")) for name in NAMES]
    state = f"continue/unfinished-{many.lasting_step}.safetensors"
    assert left[0] == left[1] == ["README.md", state, "continue/unfinished.json", "metrics.jsonl"]


def test_a_continued_training_is_interrupted_and_continued_twice(tmp_path: Path) -> None:
    parts, expected = tmp_path / "parts", finished(replace(CONFIG, steps=40), tmp_path / "whole")
    finished(CONFIG, parts)
    with pytest.raises(PowerCutError):
        finished(replace(CONFIG, steps=30), parts, until(9))
    assert not resume.is_finished(parts)
    with pytest.raises(ValueError, match="holds another unfinished training"):
        finished(replace(CONFIG, steps=40), parts)
    finished(replace(CONFIG, steps=30), parts)
    found = finished(replace(CONFIG, steps=40), parts)
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), expected.parameters(), strict=True))
    assert without_seconds(parts) == without_seconds(tmp_path / "whole")


def test_only_the_steps_after_the_state_are_repeated(tmp_path: Path) -> None:
    finished(CONFIG, tmp_path)
    steps: list[int] = []
    finished(replace(CONFIG, steps=24), tmp_path, lambda m, b: steps.append(1) or dropped(m, b))  # type: ignore[func-returns-value]
    assert len(steps) == 24 - 15


def test_an_interruption_while_the_folder_is_reopened_is_harmless(tmp_path: Path) -> None:
    finished(CONFIG, tmp_path)
    (tmp_path / "continue" / "unfinished-15.safetensors").rename(tmp_path / "unfinished-15.safetensors")
    finished(replace(CONFIG, steps=24), tmp_path)
    assert metrics(tmp_path)[-1]["step"] == 24


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "holds this training, finished with 20 steps; give more steps to continue it, or choose another folder"),
        ({"steps": 12}, "holds this training, finished with 20 steps"),
        ({"steps": 30, "seed": 1}, r"holds a finished training with other settings \(training\); choose another"),
        ({"steps": 30, "warmup": 6}, r"with other settings \(training\)"),
    ],
)
def test_other_settings_or_no_more_steps_are_refused_and_nothing_changes(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    finished(CONFIG, tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    with pytest.raises(ValueError, match=message):
        finished(replace(CONFIG, **changed), tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before


def test_an_average_that_began_too_early_is_refused(tmp_path: Path) -> None:
    config = replace(CONFIG, average="swa", average_from=0.5)
    finished(config, tmp_path)
    message = r"began at step 11; with 24 steps it would begin at step 13, .* passed; give at least 30 steps"
    with pytest.raises(ValueError, match=message):
        finished(replace(config, steps=24), tmp_path)
    finished(replace(config, steps=30), tmp_path)


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_a_decay_that_depends_on_all_steps_cannot_be_continued(tmp_path: Path, decay: Decay) -> None:
    config = replace(CONFIG, decay=decay)
    finished(config, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "metrics.jsonl"]
    with pytest.raises(ValueError, match=r"with `training.decay` trapezoid, a finished training takes more steps"):
        finished(replace(config, steps=30), tmp_path)


def test_a_lost_state_and_damaged_settings_are_refused(tmp_path: Path) -> None:
    finished(CONFIG, tmp_path)
    (tmp_path / "continue" / "unfinished-15.safetensors").unlink()
    with pytest.raises(ValueError, match=r"continue/unfinished-15.safetensors is gone, from which"):
        finished(replace(CONFIG, steps=24), tmp_path)
    for content in ("", "[]", "{}", '{"training": {}}', '{"training": {"steps": "many"}}'):
        (tmp_path / "continue" / "unfinished.json").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"continue/unfinished.json is damaged .*; choose another folder"):
            finished(replace(CONFIG, steps=24), tmp_path)


@given(
    steps=st.integers(10, 200),
    more=st.integers(1, 200),
    warmup=st.integers(1, 5),
    cooldown=st.floats(0, 0.5) | st.integers(1, 5),
)
def test_learning_rates_up_to_the_lasting_step_do_not_depend_on_the_number_of_steps(
    steps: int, more: int, warmup: int, cooldown: float
) -> None:
    few = TrainingConfig(steps=steps, decay="trapezoid", warmup=warmup, cooldown=cooldown, learning_rate=0.3)
    many = replace(few, steps=steps + more)
    assert few.lasting_step is not None and many.lasting_step is not None and few.lasting_step < steps
    for step in range(1, min(few.lasting_step, many.lasting_step) + 1):
        assert few.learning_rate_at(step) == many.learning_rate_at(step)


def test_the_learning_rate_is_a_trapezoid() -> None:
    config = TrainingConfig(steps=20, learning_rate=1, decay="trapezoid", warmup=4, cooldown=0.2)
    rates = [config.learning_rate_at(step) for step in range(22)]
    assert rates[:5] == [0, 0.25, 0.5, 0.75, 1] and rates[5:17] == [1] * 12
    assert rates[17:] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0])
    assert config.lasting_step == 16
    constant = replace(config, cooldown=0)
    assert [constant.learning_rate_at(step) for step in range(4, 21)] == [1] * 17 and constant.lasting_step == 19


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_a_warm_up_in_steps_is_that_of_its_share(decay: Decay) -> None:
    share = TrainingConfig(steps=99, learning_rate=1, warmup=0.2, decay=decay)
    in_steps = replace(share, warmup=20)
    rates = [in_steps.learning_rate_at(step) for step in range(101)]
    assert rates == pytest.approx([share.learning_rate_at(step) for step in range(101)])
    assert all(one > other for one, other in pairwise(islice(rates, 20, None)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"warmup": 0}, "`training.warmup` must be a share above 0, or a number of steps, not 0"),
        ({"warmup": 2.5}, "`training.warmup` must be a share above 0, or a number of steps, not 2.5"),
        ({"warmup": float("nan")}, "`training.warmup` must be a share"),
        ({"warmup": float("inf")}, "`training.warmup` must be a share"),
        ({"cooldown": -1}, "`training.cooldown` must be a share, or a number of steps, not -1"),
        ({"cooldown": 1.5}, "`training.cooldown` must be a share, or a number of steps, not 1.5"),
        ({"warmup": 0.1}, "`training.decay` trapezoid needs `training.warmup` as a number of steps"),
        ({"warmup": 16}, "`training.warmup` and `training.cooldown` take 21 steps of a training of 20; give fewer"),
        ({"decay": "cosine", "warmup": 21}, "take 21 steps of a training of 20"),
    ],
)
def test_impossible_ramps_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changed)


def test_a_training_older_than_the_trapezoid_resumes() -> None:
    assert "cooldown" not in TrainingConfig().fingerprint
    assert json.dumps(CONFIG.fingerprint["cooldown"]) == "0.25"
