"""The one training loop. A job hands it a model, batches, a loss and an evaluation.

It knows nothing of labels or text: `loss(model, batch)` is a scalar in nats, `evaluate(model)` a dictionary
of figures. Figures go to the progress bar and, a JSON line an evaluation, to `metrics.jsonl`.

Every process reads the same batches and takes its rows of each, so that any number of processes trains the same model.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn
from torch.optim import AdamW
from tqdm import tqdm

from pipeline.training import resume
from pipeline.training.batches import Batch

Figures = dict[str, float]
ModelT = TypeVar("ModelT", bound=nn.Module)
Loss = Callable[[Any, Batch], Tensor]
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
    """Steps between evaluations; there is one at the end too. At each, what an interrupted training goes on from is
    kept."""
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
    """Trains `model` in place and returns the last line of metrics: step, tokens, seconds, losses, held-out figures.

    Goes on from the checkpoint in `output`, if there is one, with the batches that come next.

    Raises:
        ValueError: if the loss is not finite, with the step.
    """
    accelerator = Accelerator(mixed_precision=config.precision, cpu=_on_processors())
    optimizer = AdamW(_parameter_groups(model, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.95))
    module, prepared = accelerator.prepare(WithLoss(model, loss), optimizer)
    stepper = Stepper(accelerator, module, prepared, config)
    place = resume.load(output, model, optimizer)
    log = Log(output, place, shown=accelerator.is_main_process)
    steps = range(place.step + 1, config.steps + 1)
    progress = tqdm(
        steps, f"training {output.name}", config.steps, unit="step", initial=place.step, disable=not log.shown
    )
    for step, batch in zip(progress, islice(batches, place.step, None), strict=False):
        log.add(stepper(step, batch), batch)
        if step == config.steps:
            _round_weights(model, getattr(torch, config.save_as))
        if step % config.evaluate_every == 0 or step == config.steps:
            log.write(step, _evaluated(model, evaluate))
            if accelerator.is_main_process:
                resume.save(output, model, optimizer, log.place(step))
        progress.set_postfix_str(log.state(), refresh=False)
    return log.record


def this_process() -> PartialState:
    """This process's place among those that train together; the first call joins them."""
    return PartialState(cpu=_on_processors())


def _on_processors() -> bool:
    """Whether processes that were started together have no GPU; accelerate has to be told."""
    return "LOCAL_RANK" in os.environ and not torch.cuda.is_available()


class WithLoss(nn.Module):
    """A model whose forward pass is its loss: what averages gradients over processes looks at the forward pass."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(self.model, batch)


@dataclass(frozen=True)
class Stepper:
    """One optimizer step after the other."""

    accelerator: Accelerator
    module: nn.Module
    optimizer: Any
    config: TrainingConfig

    def __call__(self, step: int, batch: Batch) -> float:
        """Takes a step on this process's part of the batch, and returns the loss of the whole.

        Raises:
            ValueError: if that is not finite.
        """
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        torch.manual_seed(int(np.random.SeedSequence([self.config.seed, step, process]).generate_state(1)[0]))
        for group in self.optimizer.param_groups:
            share = learning_rate_share(step / (self.config.steps + 1), self.config.warmup)
            group["lr"] = self.config.learning_rate * share
        with self.accelerator.autocast():
            loss = self.module(batch.part(process, processes).to(self.accelerator.device))
        total: float = self.accelerator.reduce(loss.detach()).item()
        if not math.isfinite(total):
            raise ValueError(f"the loss is {total} at step {step}; try a lower --training.learning-rate")
        self.accelerator.backward(loss * processes)  # gradients are averaged over processes, and parts add up
        self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total


class Log:
    """Figures of a training: in `metrics.jsonl`, and on the progress bar."""

    def __init__(self, output: Path, place: resume.Place, *, shown: bool) -> None:
        self.file, self.shown = output / METRICS_FILE, shown
        self.tokens, self.started = place.tokens, time.monotonic() - place.seconds
        self.latest, self.losses = math.nan, list[float]()
        self.held_out = Figures()
        written = self.file.read_text().splitlines() if shown and place.step else []
        records = [record for line in written if (record := json.loads(line))["step"] <= place.step]
        self.record: Figures = records[-1] if records else {}
        if shown:  # what an interrupted training wrote after its last checkpoint comes again
            self.file.write_text("".join(json.dumps(record) + "\n" for record in records))

    def add(self, loss: float, batch: Batch) -> None:
        """A step."""
        self.latest = loss
        self.losses.append(loss)
        self.tokens += int(batch.lengths_B.sum())

    def write(self, step: int, held_out: Figures) -> None:
        """An evaluation; `training_loss` is the mean since the last one of what is minimised."""
        place, self.held_out = self.place(step), held_out
        seconds, mean = round(place.seconds, 1), sum(self.losses) / len(self.losses)
        self.record = {"step": step, "tokens": place.tokens, "seconds": seconds, "training_loss": mean, **held_out}
        self.losses = []
        if self.shown:
            with self.file.open("a") as lines:
                lines.write(json.dumps(self.record) + "\n")

    def place(self, step: int) -> resume.Place:
        """Where the training is now."""
        return resume.Place(step, self.tokens, time.monotonic() - self.started)

    def state(self) -> str:
        """For the progress bar."""
        shown = {"loss": self.latest, **self.held_out}
        return ", ".join(f"{name} {value:.3f}" for name, value in shown.items())


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
