"""Training loop with a bigram model, on tokens that follow each other in a circle."""

import json
from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from pipeline.data.loader import Position, Resumable
from pipeline.training import resume
from pipeline.training.batches import Batch
from pipeline.training.config import Decay, TrainingConfig
from pipeline.training.metrics import Metrics
from pipeline.training.trainer import train

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


def evaluate(model: nn.Module) -> Metrics:
    assert not model.training and not torch.is_grad_enabled()
    return {"loss": loss(model, next(circle())).item()}


def metrics(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    model = Bigrams()
    before = loss(model, next(circle())).item()
    after = train(model, circle(), loss, evaluate, CONFIG, tmp_path)
    assert after["loss"] < before / 2
    assert loss(model, next(circle())).item() == pytest.approx(after["loss"])
    assert model.training


def test_every_evaluation_writes_a_line(tmp_path: Path) -> None:
    last = train(Bigrams(), circle(), loss, evaluate, CONFIG, tmp_path)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [10, 20, 25]
    assert [line["tokens"] for line in lines] == [37 * 10, 37 * 20, 37 * 25]
    assert lines[0]["loss"] > lines[-1]["loss"] == last["loss"]


def numbered(position: Position) -> Generator[tuple[Batch, Position], None, None]:
    """Yield the batches of `circle`, each with the position after it, starting at `position`."""
    for number, batch in enumerate(circle(), position.rows):
        yield batch, Position(number + 1)


def test_batches_with_a_position_are_not_reread(tmp_path: Path) -> None:
    begun: list[int] = []

    def begin(position: Position) -> Generator[tuple[Batch, Position], None, None]:
        begun.append(position.rows)
        return numbered(position)

    config = replace(CONFIG, accumulate=2, save_every=10)
    train(Bigrams(), Resumable(begin, {}), loss, evaluate, replace(config, steps=20), tmp_path)
    train(Bigrams(), Resumable(begin, {}), loss, evaluate, config, tmp_path)
    assert begun == [0, 40]


def test_steps_of_an_older_version_that_read_in_another_order_are_refused(tmp_path: Path) -> None:
    model = Bigrams()
    resume.save(tmp_path, model, torch.optim.AdamW(model.parameters()), resume.TrainingState(step=3))
    with pytest.raises(ValueError, match="begun by an older version, which read in another order; delete the folder"):
        train(Bigrams(), Resumable(numbered, {}), loss, evaluate, CONFIG, tmp_path)


@pytest.mark.parametrize("steps", [20, 25])
def test_the_last_step_is_evaluated_once(tmp_path: Path, steps: int) -> None:
    train(Bigrams(), circle(), loss, evaluate, replace(CONFIG, steps=steps), tmp_path)
    assert [line["step"] for line in metrics(tmp_path)].count(steps) == 1


def test_weights_and_the_last_evaluation_are_as_saved(tmp_path: Path) -> None:
    exact, rounded = Bigrams(), Bigrams()
    for name in ("exact", "rounded"):
        (tmp_path / name).mkdir()
    train(exact, circle(), loss, evaluate, CONFIG, tmp_path / "exact")
    last = train(rounded, circle(), loss, evaluate, replace(CONFIG, save_as="bfloat16"), tmp_path / "rounded")
    for unrounded, found in zip(exact.parameters(), rounded.parameters(), strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, unrounded.bfloat16().float()) and not torch.equal(found, unrounded)
    assert last["loss"] == loss(rounded, next(circle())).item()


def test_the_same_batches_give_the_same_weights(tmp_path: Path) -> None:
    first, second = Bigrams(), Bigrams()
    for name, model in (("first", first), ("second", second)):
        (tmp_path / name).mkdir()
        train(model, circle(), loss, evaluate, CONFIG, tmp_path / name)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_vectors_are_not_decayed(tmp_path: Path) -> None:
    model = Bigrams()
    table, bias = model.logits.weight.detach().clone(), model.bias.detach().clone()
    train(model, circle(), lambda trained, batch: 0 * loss(trained, batch), evaluate, CONFIG, tmp_path)
    assert torch.equal(model.bias, bias)
    assert (model.logits.weight.abs() < table.abs()).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_stops_at_its_step(tmp_path: Path, value: float) -> None:
    steps = iter(range(1, 100))
    model = Bigrams()
    with pytest.raises(ValueError, match=r"at step 3 \(4 windows, 37 tokens, written to .*\); try a lower"):
        train(model, circle(), lambda m, b: loss(m, b) * (value if next(steps) == 3 else 1), evaluate, CONFIG, tmp_path)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


# 19 steps at a warm-up of 0.05 make the warm-up end at the first step; 1 step is the shortest training there is
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.05), (2, 0.05), (19, 0.05), (9, 0.1), (4, 0.9)])
def test_any_number_of_steps_can_be_trained(tmp_path: Path, steps: int, warmup: float) -> None:
    train(Bigrams(), circle(), loss, evaluate, replace(CONFIG, steps=steps, warmup=warmup), tmp_path)
    assert metrics(tmp_path)[-1]["step"] == steps


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(decay: Decay) -> None:
    config = TrainingConfig(steps=99, learning_rate=1, warmup=0.2, decay=decay)
    shares = [config.learning_rate_at(step) for step in range(101)]
    assert shares[:21] == pytest.approx([done / 20 for done in range(21)])
    assert all(before > after for before, after in pairwise(shares[20:]))
    assert shares[60] == pytest.approx(0.5) and shares[100] == pytest.approx(0)
    assert (shares[40] == pytest.approx(0.75)) == (decay == "linear")


def test_the_decay_follows_the_settings(tmp_path: Path) -> None:
    rates = {}
    for decay in get_args(Decay):
        (tmp_path / decay).mkdir()
        model = Bigrams()
        train(model, circle(), loss, evaluate, replace(CONFIG, decay=decay, warmup=2), tmp_path / decay)
        rates[decay] = model.bias.detach()
    assert all(not torch.equal(rates[one], rates[other]) for one, other in combinations(rates, 2))


@pytest.mark.long
def test_a_compiled_training_differs_only_by_rounding(tmp_path: Path) -> None:
    plain, compiled, seen = Bigrams(), Bigrams(), []

    def traced(model: nn.Module, batch: Batch) -> Tensor:
        seen.append(torch.compiler.is_compiling())
        return loss(model, batch)

    for name, model in (("plain", plain), ("compiled", compiled)):
        (tmp_path / name).mkdir()
        config = replace(CONFIG, steps=9, compile=model is compiled)
        train(model, circle(), traced if model is plain else loss, evaluate, config, tmp_path / name)
    assert seen == [False] * 9
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_the_batch_behind_a_loss_that_is_not_finite_is_kept(tmp_path: Path) -> None:
    model, calls = Bigrams(), iter(range(1, 100))
    before: list[Tensor] = []
    labels_BT = torch.rand(4, 10)

    def broken(trained: nn.Module, batch: Batch) -> Tensor:
        call = next(calls)
        before[:] = [parameter.detach().clone() for parameter in trained.parameters()] if call == 7 else before
        return loss(trained, batch) * (torch.nan if call == 8 else 1)  # three per step: the second of the third step

    batches = (replace(batch, labels_BT=labels_BT + number) for number, batch in enumerate(circle(), start=1))
    message = r"the loss is nan at step 3 in batch 2 of 3 \(4 windows, 37 tokens, written to "
    with pytest.raises(ValueError, match=message):
        train(model, batches, broken, evaluate, replace(CONFIG, accumulate=3), tmp_path)
    for parameter, was in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, was)
    kept, batch = load_file(tmp_path / "not-finite.safetensors"), next(circle())
    assert torch.equal(kept["labels"], labels_BT + 8)
    assert torch.equal(kept["input_ids"], batch.input_ids_BT) and torch.equal(kept["lengths"], batch.lengths_B)


def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights(tmp_path: Path) -> None:
    model = Bigrams()

    def steep(trained: nn.Module, batch: Batch) -> Tensor:
        return loss(trained, batch) + 0 * next(trained.parameters()).sum().mul(0).sqrt()

    with pytest.raises(ValueError, match="the norm of the gradient is nan at step 1"):
        train(model, circle(), steep, evaluate, CONFIG, tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), Bigrams().parameters(), strict=True))


@pytest.mark.parametrize(
    "name",
    [
        *("steps", "tokens_per_batch", "accumulate", "learning_rate", "gradient_clip", "evaluate_every"),
        *("save_every", "keep"),
    ],
)
@pytest.mark.parametrize("value", [0, -1])
def test_settings_that_must_be_above_zero_are_checked(name: str, value: int) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"`training.{name}` must be above 0, not {value}"):
        TrainingConfig(**settings)


@pytest.mark.parametrize("warmup", [-0.1, 0.0, 1.5])
def test_a_warmup_that_is_neither_a_share_nor_a_number_is_refused(warmup: float) -> None:
    with pytest.raises(ValueError, match=r"`training\.warmup` must be a share above 0, or a number of steps"):
        TrainingConfig(warmup=warmup)
