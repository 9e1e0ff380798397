"""The training loop on a model of one table: a bigram model of tokens that follow each other in a circle."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.training.batches import Batch
from pipeline.training.config import TrainingConfig
from pipeline.training.log import Figures
from pipeline.training.loop import train

VOCABULARY = 5
CONFIG = TrainingConfig(steps=25, tokens_per_batch=40, learning_rate=0.1, evaluate_every=10)


class Bigrams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.logits = nn.Embedding(VOCABULARY, VOCABULARY)
        self.bias = nn.Parameter(torch.randn(VOCABULARY))

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        logits_BTV: Tensor = self.logits(input_ids_BT) + self.bias
        return logits_BTV


def circle() -> Iterator[Batch]:
    input_ids_BT = (torch.arange(4).unsqueeze(1) + torch.arange(10)) % VOCABULARY
    while True:
        yield Batch(input_ids_BT, torch.tensor([10, 10, 9, 8]))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    logits_BTV = model(batch.input_ids_BT[:, :-1])
    return functional.cross_entropy(logits_BTV.flatten(0, 1), batch.input_ids_BT[:, 1:].flatten())


def figures(model: nn.Module) -> Figures:
    assert not model.training and not torch.is_grad_enabled()
    return {"loss": loss(model, next(circle())).item()}


def metrics(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    model = Bigrams()
    before = loss(model, next(circle())).item()
    after = train(model, circle(), loss, figures, CONFIG, tmp_path)
    assert after["loss"] < before / 2
    assert loss(model, next(circle())).item() == pytest.approx(after["loss"])
    assert model.training


def test_every_evaluation_writes_a_line(tmp_path: Path) -> None:
    last = train(Bigrams(), circle(), loss, figures, CONFIG, tmp_path)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [10, 20, 25]
    assert [line["tokens"] for line in lines] == [37 * 10, 37 * 20, 37 * 25]
    assert lines[0]["loss"] > lines[-1]["loss"] == last["loss"]


@pytest.mark.parametrize("steps", [20, 25])
def test_the_last_step_is_evaluated_once(tmp_path: Path, steps: int) -> None:
    train(Bigrams(), circle(), loss, figures, replace(CONFIG, steps=steps), tmp_path)
    assert [line["step"] for line in metrics(tmp_path)].count(steps) == 1


def test_weights_and_the_last_evaluation_are_as_saved(tmp_path: Path) -> None:
    exact, rounded = Bigrams(), Bigrams()
    for name in ("exact", "rounded"):
        (tmp_path / name).mkdir()
    train(exact, circle(), loss, figures, CONFIG, tmp_path / "exact")
    last = train(rounded, circle(), loss, figures, replace(CONFIG, save_as="bfloat16"), tmp_path / "rounded")
    for wanted, found in zip(exact.parameters(), rounded.parameters(), strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, wanted.bfloat16().float()) and not torch.equal(found, wanted)
    assert last["loss"] == loss(rounded, next(circle())).item()


def test_the_same_batches_give_the_same_weights(tmp_path: Path) -> None:
    first, second = Bigrams(), Bigrams()
    for name, model in (("first", first), ("second", second)):
        (tmp_path / name).mkdir()
        train(model, circle(), loss, figures, CONFIG, tmp_path / name)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_vectors_are_not_decayed(tmp_path: Path) -> None:
    model = Bigrams()
    table, bias = model.logits.weight.detach().clone(), model.bias.detach().clone()
    train(model, circle(), lambda trained, batch: 0 * loss(trained, batch), figures, CONFIG, tmp_path)
    assert torch.equal(model.bias, bias)
    assert (model.logits.weight.abs() < table.abs()).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_stops_at_its_step(tmp_path: Path, value: float) -> None:
    steps = iter(range(1, 100))
    model = Bigrams()
    with pytest.raises(ValueError, match=r"at step 3 \(4 windows, 37 tokens, written to .*\); try a lower"):
        train(model, circle(), lambda m, b: loss(m, b) * (value if next(steps) == 3 else 1), figures, CONFIG, tmp_path)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


# 19 steps at a warm-up of 0.05 make the warm-up end at the first step; 1 step is the shortest training there is
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.05), (2, 0.05), (19, 0.05), (9, 0.1), (4, 0.9)])
def test_any_number_of_steps_can_be_trained(tmp_path: Path, steps: int, warmup: float) -> None:
    train(Bigrams(), circle(), loss, figures, replace(CONFIG, steps=steps, warmup=warmup), tmp_path)
    assert metrics(tmp_path)[-1]["step"] == steps


@pytest.mark.parametrize("name", ["steps", "tokens_per_batch", "learning_rate", "gradient_clip", "evaluate_every"])
@pytest.mark.parametrize("value", [0, -1])
def test_settings_that_must_be_above_zero_are_checked(name: str, value: int) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"--training.{name.replace('_', '-')} must be above 0, not {value}"):
        TrainingConfig(**settings)


@pytest.mark.parametrize("warmup", [-0.1, 0.0, 1.0, 2.0])
def test_a_warmup_that_is_no_share_is_refused(warmup: float) -> None:
    with pytest.raises(ValueError, match=r"--training\.warmup is a share between 0 and 1"):
        TrainingConfig(warmup=warmup)
