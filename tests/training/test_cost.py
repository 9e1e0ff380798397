"""Cost of a training: memory compared with that of a real step, speed within a time limit, and printed lines."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.corpus import Corpus
from pipeline.models.estimator import EntropyEstimator, EstimatorConfig
from pipeline.training import cost
from pipeline.training.averaging import WeightAverage
from pipeline.training.batches import Batch, Windowing
from pipeline.training.config import DryRunSettings, TrainingConfig
from pipeline.training.cost import Cost, kept_bytes, measured_speed, print_cost
from pipeline.training.epoch import Epoch
from pipeline.training.losses import estimator_loss
from pipeline.training.optimizer import new_optimizer

CONFIG = TrainingConfig(steps=1000, tokens_per_batch=512)
EPOCH = Epoch.of_corpus(Corpus.of([np.arange(512, dtype=np.int32) % 97] * 20), Windowing(64, 512))


def new_model(**variant: Any) -> EntropyEstimator:
    sizes = {"vocab_size": 97, "context": 64, "decoder_width": 96, "decoder_layers": 3}
    return EntropyEstimator(EstimatorConfig(**{**sizes, **variant}))


def cost_of(model: EntropyEstimator, config: TrainingConfig = CONFIG, **settings: Any) -> Cost:
    return Cost(model, estimator_loss, EPOCH, config, DryRunSettings(**settings))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_states_take_the_memory_of_weights_gradients_and_optimizer(name: Any) -> None:
    model, config = new_model(), replace(CONFIG, optimizer=name)
    optimizer = new_optimizer(model, config)
    estimator_loss(model, EPOCH.longest).backward()
    optimizer.step()
    moments: list[torch.Tensor] = [tensor for state in optimizer.state.values() for tensor in state.values()]
    gradients: list[torch.Tensor] = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    measured: dict[str, list[torch.Tensor]] = {
        "weights": [*model.parameters()],
        "gradients": gradients,
        "optimizer": moments,
    }
    for part, size in cost_of(model, config).state_bytes.items():
        assert size == pytest.approx(sum(tensor.nbytes for tensor in measured[part]), rel=0.001)


def test_an_average_takes_the_memory_of_the_trained_weights() -> None:
    model, config = new_model(), replace(CONFIG, average="ema")
    model.encoder.requires_grad_(False)
    sizes = cost_of(model, config).state_bytes
    average = WeightAverage(model, config).tensors.values()
    assert sizes["average"] == sum(tensor.nbytes for tensor in average) == sizes["gradients"]
    assert "average" not in cost_of(model).state_bytes


def test_frozen_weights_have_no_gradients_or_optimizer_states() -> None:
    model = new_model()
    frozen = model.encoder.requires_grad_(False)
    of_encoder = sum(parameter.nbytes for parameter in frozen.parameters())
    sizes = cost_of(model).state_bytes
    assert sizes["weights"] - sizes["gradients"] == of_encoder and sizes["optimizer"] == 2 * sizes["gradients"]


@pytest.mark.parametrize("kind", ["transformer", "mixer"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_activations_are_those_of_a_whole_batch(monkeypatch: pytest.MonkeyPatch, precision: Any, kind: str) -> None:
    """The computed cost includes the logits of a chunk, which the test subtracts.

    The measured bytes include no logits, because logits are not kept for the backward pass.
    """
    monkeypatch.setattr(cost, "PROBE_TOKENS", 16)
    config, model = replace(CONFIG, precision=precision), new_model(decoder_kind=kind, introduction="projection")
    measured = kept_bytes(model, estimator_loss, EPOCH.longest, config)
    logits = cost.LOGIT * EPOCH.longest.input_ids_BT.numel() * 97
    assert cost_of(model, config).activation_bytes - logits == pytest.approx(measured, rel=0.05)


def test_rows_of_a_batch_are_divided_among_gpus() -> None:
    assert [cost_of(new_model(), gpus=gpus).positions_per_gpu for gpus in (1, 3, 8, 9)] == [512, 192, 64, 64]
    one, two = (cost_of(new_model(), gpus=gpus).activation_bytes for gpus in (1, 2))
    assert two == pytest.approx(one / 2, rel=0.05)


def test_hours_follow_from_the_steps_and_the_computed_speed() -> None:
    config = replace(CONFIG, precision="bf16", accumulate=2)
    plan = cost_of(new_model(), config, gpu="h100", gpus=4, utilisation=0.5)
    assert plan.tokens_per_step == 1024 and plan.tokens == 1024_000
    assert plan.hours == pytest.approx(1024_000 * plan.total_flop_per_token / (4 * 989e12 * 0.5) / 3600)
    assert replace(plan, models=3).hours == pytest.approx(3 * plan.hours)


def test_hours_of_a_gpu_are_refused_in_float32() -> None:
    with pytest.raises(ValueError, match="`gpu` computes hours for bfloat16"):
        cost_of(new_model(), gpu="h100")


def test_a_loss_that_compares_the_tokens_of_a_step_takes_another_forward_pass() -> None:
    plan = replace(cost_of(new_model(), gpus=2), compares=True)
    one = replace(plan, settings=DryRunSettings())
    assert plan.flop_per_token["decoder"] == pytest.approx(4 / 3 * one.flop_per_token["decoder"])
    assert plan.flop_per_token["vocabulary"] == pytest.approx(5 / 4 * one.flop_per_token["vocabulary"])


@pytest.mark.parametrize(("limit", "tokens"), [(1e6, 512), (10.0, 256), (1.0, 64)])
def test_the_speed_is_measured_within_the_time_limit(
    monkeypatch: pytest.MonkeyPatch, limit: float, tokens: int
) -> None:
    spent: list[float] = []

    def step(trained: Any, loss: Any, batch: Batch) -> float:
        spent.append(float(batch.lengths_B.sum()) / 64)
        return spent[-1]

    monkeypatch.setattr(cost, "MEASURED_SECONDS", limit)
    monkeypatch.setattr(cost, "_seconds_of_step", step)
    speed = measured_speed(new_model(), estimator_loss, EPOCH.longest, CONFIG)
    assert speed.tokens_per_second == 64 and f"a step of {tokens} tokens" in speed.origin
    assert sum(spent) <= max(limit, 1.0)


def test_a_measured_step_trains() -> None:
    model = new_model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    speed = measured_speed(model, estimator_loss, EPOCH.longest, CONFIG)
    assert speed.tokens_per_second > 0 and speed.origin.startswith("measured on 1 CPU process here")
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_the_printed_lines_say_what_is_computed(capsys: pytest.CaptureFixture[str]) -> None:
    plan = cost_of(new_model(), replace(CONFIG, precision="bf16"), gpu="h100", gpus=8)
    print_cost(replace(plan, models=2))
    printed = capsys.readouterr().out
    total, embedded = (sum(p.numel() for p in parts) for parts in (plan.model.parameters(), embeddings(plan.model)))
    assert f"parameters     {total:,}, {embedded:,} of them in embeddings\n" in printed
    assert "training       1,000 steps, 512,000 tokens, 50.00 epochs\n" in printed
    assert "GB per GPU in replicas (DDP)" in printed and "in shards (FSDP2)" in printed
    assert "computed for 8 × h100 at 40% of 989 TFLOP/s, not measured" in printed and "models         2" in printed


def embeddings(model: torch.nn.Module) -> list[torch.Tensor]:
    return [layer.weight for layer in model.modules() if isinstance(layer, torch.nn.Embedding)]
