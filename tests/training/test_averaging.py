"""Averages of weights, compared with a slow loop over the weights of all steps.

A training that is interrupted and resumed must end with a bit-identical average.
"""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.training import resume
from pipeline.training.averaging import WeightAverage
from pipeline.training.batches import Batch
from pipeline.training.config import Average, TrainingConfig
from pipeline.training.metrics import Metrics
from pipeline.training.trainer import train
from tests.training.test_resume import PowerCutError, dropped, until
from tests.training.test_trainer import Bigrams, circle, evaluate, loss, metrics

CONFIG = TrainingConfig(steps=12, tokens_per_batch=40, learning_rate=0.1, evaluate_every=2)
AVERAGES: tuple[Average, ...] = ("ema", "swa")


def flat(model: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def slow_average(steps: list[Tensor], config: TrainingConfig) -> Tensor:
    """Return the average after the last of these steps, in float64; `steps` has the weights after each step."""
    begins = config.average_from * config.steps
    averaged = [weights.double() for step, weights in enumerate(steps, start=1) if step > begins]
    if not averaged:
        return steps[-1].double()
    if config.average == "swa":
        return torch.stack(averaged).mean(dim=0)
    result = averaged[0]
    for number, weights in enumerate(averaged[1:], start=1):
        decay = min(config.average_decay, (1 + number) / (10 + number))
        result = decay * result + (1 - decay) * weights
    return result


def trained_weights(config: TrainingConfig, folder: Path) -> tuple[list[Tensor], list[Tensor], nn.Module]:
    """Train a bigram model. Return two lists of weights, and the trained model.

    The first list has the weights after every step except the last step. The second list has the weights that each
    evaluation saw.
    """
    before_steps: list[Tensor] = []
    evaluated: list[Tensor] = []

    def recorded(model: nn.Module, batch: Batch) -> Tensor:
        before_steps.append(flat(model))
        return loss(model, batch)

    def seen(model: nn.Module) -> Metrics:
        evaluated.append(flat(model))
        return evaluate(model)

    folder.mkdir()
    model = Bigrams()
    train(model, circle(), recorded, seen, config, folder)
    return before_steps[1:], evaluated, model


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("begins", [0.0, 0.5, 0.7])
def test_the_average_is_evaluated_and_kept_and_training_does_not_see_it(
    tmp_path: Path, average: Average, begins: float
) -> None:
    plain, _, last = trained_weights(CONFIG, tmp_path / "plain")
    config = replace(CONFIG, average=average, average_from=begins, average_decay=0.6)
    steps, evaluated, model = trained_weights(config, tmp_path / "averaged")
    assert all(torch.equal(one, other) for one, other in zip(steps, plain, strict=True))
    steps.append(flat(last))
    for number, found in enumerate(evaluated, start=1):
        wanted = slow_average(steps[: number * CONFIG.evaluate_every], config)
        torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-6)
    assert torch.equal(evaluated[-1], flat(model)) and (flat(model) - flat(last)).norm() > 1e-3
    assert metrics(tmp_path / "averaged")[-1]["loss"] == loss(model, next(circle())).item()


@settings(max_examples=40, deadline=None)
@given(
    average=st.sampled_from(AVERAGES),
    steps=st.integers(1, 30),
    begins=st.floats(0, 0.999),
    decay=st.floats(0.01, 0.999),
)
def test_an_average_equals_a_loop_over_stored_weights(
    average: Average, steps: int, begins: float, decay: float
) -> None:
    torch.manual_seed(steps)
    config = TrainingConfig(steps=steps, average=average, average_from=begins, average_decay=decay)
    model, stored = nn.Linear(3, 2), list[Tensor]()
    found = WeightAverage(model, config)
    for step in range(1, steps + 1):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        stored.append(flat(model))
        found.update(step)
        with found.applied(step):
            torch.testing.assert_close(flat(model).double(), slow_average(stored, config), atol=1e-5, rtol=1e-5)
        assert step == steps or torch.equal(flat(model), stored[-1])


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("stops", [(3,), (8, 9), (12,)])
def test_an_interrupted_training_ends_with_the_same_average(
    tmp_path: Path, average: Average, stops: tuple[int, ...]
) -> None:
    whole, parts, config = tmp_path / "whole", tmp_path / "parts", replace(CONFIG, average=average, save_every=1)
    for folder in (whole, parts):
        folder.mkdir()
    expected, found, done = Bigrams(), Bigrams(), 0
    train(expected, circle(), dropped, evaluate, config, whole)
    for stop in stops:
        with pytest.raises(PowerCutError):
            train(Bigrams(), circle(), until(stop - done), evaluate, config, parts)
        done = stop - 1
    train(found, circle(), dropped, evaluate, config, parts)
    assert torch.equal(flat(found), flat(expected))
    lines, wanted = ([{**line, "seconds": 0} for line in metrics(folder)] for folder in (parts, whole))
    assert lines == wanted
    (one,), (other,) = ([load_file(file) for file in resume.states(folder)[-1:]] for folder in (parts, whole))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_finished_but_unsaved_training_keeps_its_average(tmp_path: Path) -> None:
    first, second, config = Bigrams(), Bigrams(), replace(CONFIG, average="swa")
    train(first, circle(), loss, evaluate, config, tmp_path)
    train(second, islice(circle(), 0), loss, evaluate, config, tmp_path)
    assert torch.equal(flat(first), flat(second))


@pytest.mark.parametrize("average", AVERAGES)
def test_the_average_is_rounded_to_the_dtype_in_which_it_is_saved(tmp_path: Path, average: Average) -> None:
    config = replace(CONFIG, average=average)
    _, _, exact = trained_weights(config, tmp_path / "exact")
    _, evaluated, rounded = trained_weights(replace(config, save_as="bfloat16"), tmp_path / "rounded")
    assert torch.equal(flat(rounded), flat(exact).bfloat16().float())
    assert torch.equal(evaluated[-1], flat(rounded)) and not torch.equal(flat(rounded), flat(exact))


def test_an_evaluation_that_fails_leaves_the_weights_as_they_were() -> None:
    model = nn.Linear(2, 2)
    average = WeightAverage(model, replace(CONFIG, average="ema", average_from=0.0))
    average.update(1)
    with torch.no_grad():
        model.weight += 1
    before = flat(model)
    with pytest.raises(PowerCutError), average.applied(2):
        assert not torch.equal(flat(model), before)
        raise PowerCutError
    assert torch.equal(flat(model), before)


def test_frozen_weights_are_not_averaged_and_tied_ones_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    model[2].weight = model[1].weight
    assert list(WeightAverage(model, replace(CONFIG, average="ema")).tensors) == ["1.weight", "1.bias", "2.bias"]


def test_without_an_average_states_and_fingerprint_are_those_of_older_versions(tmp_path: Path) -> None:
    train(Bigrams(), circle(), loss, evaluate, CONFIG, tmp_path)
    (*_, file) = resume.states(tmp_path)
    assert {name.split()[0] for name in load_file(file)} == {"model", "optimizer"}
    assert not any(name.startswith("average") for name in CONFIG.fingerprint)
    assert replace(CONFIG, average="ema").fingerprint["average"] == "ema"
    assert CONFIG.averaged == {}


def test_a_state_without_an_average_does_not_resume_a_training_with_one(tmp_path: Path) -> None:
    with pytest.raises(PowerCutError):
        train(Bigrams(), circle(), until(5), evaluate, CONFIG, tmp_path)
    with pytest.raises(ValueError, match=r"none of the states in .* can be read; delete the folder"):
        train(Bigrams(), circle(), loss, evaluate, replace(CONFIG, average="ema"), tmp_path)


def test_a_card_names_the_average() -> None:
    ema = replace(CONFIG, average="ema", average_from=0.3)
    assert ema.averaged == {"weights": "moving average with decay up to 0.999, of steps 4 to 12"}
    assert replace(ema, average="swa").averaged == {"weights": "mean with equal weights, of steps 4 to 12"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"average_decay": 1.0}, "`training.average_decay` must be above 0 and below 1, not 1.0"),
        ({"average_decay": 0.0}, "`training.average_decay` must be above 0 and below 1, not 0.0"),
        ({"average_from": 1.0}, "`training.average_from` must be at least 0 and below 1, not 1.0"),
        ({"average_from": -0.1}, "`training.average_from` must be at least 0 and below 1, not -0.1"),
    ],
)
def test_averages_without_a_step_or_without_end_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(average="ema", **changed)
