"""The one training loop. A job hands it a model, batches, a loss and an evaluation.

It knows nothing of labels or text: `loss(model, batch)` is a scalar in nats, `evaluate(model)` a dictionary
of figures. Figures go to the progress bar and, a JSON line an evaluation, to `metrics.jsonl`.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from pipeline.training.batches import Batch

Figures = dict[str, float]
ModelT = TypeVar("ModelT", bound=nn.Module)
METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What every training job can be told."""

    steps: int = 2000
    """Optimizer steps."""
    tokens_per_batch: int = 8192
    """Tokens in a batch, padding included."""
    learning_rate: float = 1e-3
    """Peak rate of AdamW; a linear warm-up before it, a cosine to zero after it."""
    warmup: float = 0.05
    """Share of the steps that warm up."""
    weight_decay: float = 0.1
    """On matrices; vectors are not decayed."""
    gradient_clip: float = 1.0
    """Largest norm of a gradient."""
    evaluate_every: int = 500
    """Steps between evaluations; there is one at the end too."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of the forward pass; weights stay in float32."""
    save_as: Literal["float32", "bfloat16"] = "float32"
    """Type of the saved weights; the last evaluation is of the weights as saved."""
    seed: int = 0
    """Decides the initial weights and the order of the data."""

    def __post_init__(self) -> None:
        for name in ("steps", "tokens_per_batch", "learning_rate", "gradient_clip", "evaluate_every"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--training.{name.replace('_', '-')} must be above 0, not {getattr(self, name)}")
        if not 0 < self.warmup < 1:
            raise ValueError(f"--training.warmup is a share between 0 and 1, not {self.warmup}")


def train(
    model: ModelT,
    batches: Iterator[Batch],
    loss: Callable[[ModelT, Batch], Tensor],
    evaluate: Callable[[ModelT], Figures],
    config: TrainingConfig,
    output: Path,
) -> Figures:
    """Trains `model` in place and returns the last line of metrics: step, tokens, seconds, held-out figures.

    Raises:
        ValueError: if the loss is not finite, with the step.
    """
    accelerator = Accelerator(mixed_precision=config.precision)
    optimizer = AdamW(_parameter_groups(model, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.95))
    schedule = LambdaLR(optimizer, lambda step: learning_rate_share((step + 1) / (config.steps + 1), config.warmup))
    model, optimizer = accelerator.prepare(model, optimizer)
    started, tokens, held_out, record = time.monotonic(), 0, Figures(), Figures()
    progress = tqdm(range(1, config.steps + 1), desc=f"training {output.name}", unit="step", mininterval=1.0)
    for step in progress:
        batch = next(batches).to(accelerator.device)
        with accelerator.autocast():
            loss_value = loss(model, batch)
        if not torch.isfinite(loss_value):
            raise ValueError(f"the loss is {loss_value.item()} at step {step}; try a lower --training.learning-rate")
        accelerator.backward(loss_value)
        accelerator.clip_grad_norm_(model.parameters(), config.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        tokens += int(batch.lengths_B.sum())
        if step == config.steps:
            _round_weights(model, getattr(torch, config.save_as))
        if step % config.evaluate_every == 0 or step == config.steps:
            held_out = _evaluated(model, evaluate)
            record = {"step": step, "tokens": tokens, "seconds": round(time.monotonic() - started, 1), **held_out}
            _append(output / METRICS_FILE, record)
        shown = {"loss": loss_value.item(), **held_out}
        progress.set_postfix_str(", ".join(f"{name} {value:.3f}" for name, value in shown.items()), refresh=False)
    return record


def learning_rate_share(progress: float, warmup: float) -> float:
    """Share of the peak rate at a share of the training: linear up to `warmup`, then a cosine to zero."""
    if progress < warmup:
        return progress / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (progress - warmup) / (1 - warmup))


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))


def _evaluated(model: ModelT, evaluate: Callable[[ModelT], Figures]) -> Figures:
    model.eval()
    with torch.no_grad():
        figures = evaluate(model)
    model.train()
    return figures


def _append(file: Path, record: dict[str, float]) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps(record) + "\n")
