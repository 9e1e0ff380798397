"""Objectives that compare the tokens of a step, over all of its batches and processes.

A pass without gradients finds the loss of every token. From all of them each process takes the same factors, and the
pass with gradients multiplies by these: loss and gradient are those of one batch that holds the whole step. One batch
in one process is the whole step already.

B rows, T tokens of the longest row, S positions of all batches, padding among them.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TypeGuard, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim import AdamW

from pipeline.data.loader import Resumable
from pipeline.messages import say
from pipeline.models.cross_entropy import cut_cross_entropy
from pipeline.training import resume
from pipeline.training.batches import Batch
from pipeline.training.config import TrainingConfig, learning_rate_share
from pipeline.training.distributed import (
    FunctionModule,
    apply,
    full_tensor,
    new_accelerator,
    take_weights,
    trained_copy,
)
from pipeline.training.losses import ObjectiveLoss
from pipeline.training.metrics import Metrics, MetricsLog
from pipeline.training.resume import StoppedError, TrainingState, stop_requests

TokenLosses = Callable[[Batch], Tensor]
"""Losses [B, T] of a part of a batch, on its device."""


def compares(loss: object, batches: Sequence[Batch], accelerator: Accelerator) -> TypeGuard[ObjectiveLoss]:
    """True if the loss compares tokens of a step that no forward pass sees together."""
    several = len(batches) * accelerator.num_processes > 1
    return several and isinstance(loss, ObjectiveLoss) and loss.comparing is not None


def compared(
    loss: ObjectiveLoss, batches: Sequence[Batch], token_losses: TokenLosses, accelerator: Accelerator, seed: int
) -> list[Batch]:
    """The batches with the factors that follow from all of them; `seed`, for random ones, is that of all processes."""
    losses_S = torch.cat([_losses(batch, token_losses, accelerator).flatten() for batch in batches])
    losses_S = accelerator.reduce(losses_S)  # each process has zeros at the rows of others
    entropies_S = torch.cat([loss.entropies(batch).flatten() for batch in batches]).to(losses_S.device)
    predicted_S = torch.cat([loss.predicted(batch).flatten() for batch in batches]).to(losses_S.device)
    torch.manual_seed(seed)
    assert loss.comparing is not None
    factors_S = loss.comparing.factors(losses_S, entropies_S, predicted_S).cpu()
    each = factors_S.split([batch.input_ids_BT.numel() for batch in batches])
    return [
        replace(batch, factors_BT=factors_S.view(batch.input_ids_BT.shape))
        for batch, factors_S in zip(batches, each, strict=True)
    ]


def _losses(batch: Batch, token_losses: TokenLosses, accelerator: Accelerator) -> Tensor:
    """Losses [B, T] of this process's rows, and zeros."""
    process, processes = accelerator.process_index, accelerator.num_processes
    losses_BT = torch.zeros(batch.input_ids_BT.shape, device=accelerator.device)
    found_BT = token_losses(batch.part(process, processes).to(accelerator.device))  # FSDP asks every process
    rows = batch.rows(process, processes)
    if len(losses_BT[rows]):
        losses_BT[rows] = found_BT.float()
    return losses_BT


def steps_of(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """So many batches at a time; fewer in the end, where batches end."""
    while step := list(islice(batches, size)):
        if len(step) > 1:
            whole_batch = joined(step)
            step = [replace(batch, whole_batch=whole_batch) for batch in step]
        yield step


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of the rows of all, padded to the longest."""
    longest = max(batch.input_ids_BT.shape[1] for batch in batches)
    lengths_B = torch.cat([batch.lengths_B for batch in batches])
    input_ids_BT = torch.cat([_padded(batch.input_ids_BT, longest, 0) for batch in batches])
    labels = [_padded(batch.labels_BT, longest, torch.nan) for batch in batches if batch.labels_BT is not None]
    return Batch(input_ids_BT, lengths_B, torch.cat(labels) if labels else None)


def _padded(rows_BT: Tensor, length: int, value: float) -> Tensor:
    return pad(rows_BT, (0, length - rows_BT.shape[1]), value=value)


Loss = Callable[[Any, Batch], Tensor]
OFFENDING_FILE = "not-finite.safetensors"


@dataclass(frozen=True)
class Stepper:
    """Steps of `loss` on `module`, a model that applies functions to itself."""

    accelerator: Accelerator
    module: nn.Module
    optimizer: Any
    loss: Loss
    compiled: Loss
    """The same, or what torch.compile made of it."""
    config: TrainingConfig
    output: Path

    def __call__(self, step: int, batches: Sequence[Batch], asked: Callable[[], bool]) -> tuple[float, bool]:
        """Takes a step on this process's part of the batches.

        Returns:
            The loss of all of them in all processes, and whether any process is asked to stop.

        Raises:
            ValueError: if a loss or the gradient is not finite; weights stay as they were.
        """
        self._seed(step)
        self._set_rate(step)
        batches = self._compared(step, batches)
        losses = [self._add_gradients(batch, last=batch is batches[-1]) for batch in batches]
        norm = full_tensor(self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.gradient_clip))
        stop = torch.tensor(float(asked()), device=self.accelerator.device)
        *parts, total_norm, stops = self.accelerator.reduce(torch.stack([*losses, norm.detach(), stop])).tolist()
        if not all(map(math.isfinite, (*parts, total_norm))):
            self._refuse(step, batches, parts, total_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return sum(parts), stops > 0

    def _seed(self, step: int) -> None:
        torch.manual_seed(self._seed_of(step, self.accelerator.process_index))

    def _seed_of(self, step: int, process: int) -> int:
        return int(np.random.SeedSequence([self.config.seed, step, process]).generate_state(1)[0])

    def _compared(self, step: int, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The batches, with the factors that an objective which compares tokens has of all of them."""
        loss, accelerator = self.loss, self.accelerator
        if not compares(loss, batches, accelerator):
            return batches

        def token_losses(part: Batch) -> Tensor:
            with torch.no_grad(), accelerator.autocast():
                found: Tensor = self.module(loss.token_losses, part)
            return found

        found = compared(loss, batches, token_losses, accelerator, self._seed_of(step, 0))
        self._seed(step)  # what is dropped is dropped again
        return found

    def _set_rate(self, step: int) -> None:
        share = learning_rate_share(step / (self.config.steps + 1), self.config.warmup, self.config.decay)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * share

    def _add_gradients(self, batch: Batch, *, last: bool) -> Tensor:
        """The loss of this process's part; gradients are averaged over processes once, after the last batch."""
        accelerator, processes = self.accelerator, self.accelerator.num_processes
        part = batch.part(accelerator.process_index, processes).to(accelerator.device)
        with nullcontext() if last else accelerator.no_sync(self.module):
            with accelerator.autocast():
                loss: Tensor = self.module(self.compiled, part)
            accelerator.backward(loss * processes)  # they are averaged, and parts add up
        return loss.detach().float()

    def _refuse(self, step: int, batches: Sequence[Batch], losses: Sequence[float], norm: float) -> NoReturn:
        broken = next((number for number, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if broken is None:
            batch, what, of = joined(batches), f"the norm of the gradient is {norm}", ""
        else:
            batch, what = batches[broken], f"the loss is {losses[broken]}"
            of = f" in batch {broken + 1} of {len(batches)}" if len(batches) > 1 else ""
        file = self.output / OFFENDING_FILE
        if self.accelerator.is_main_process:
            save_batch(batch, file)
        self.accelerator.wait_for_everyone()
        windows, tokens = len(batch.lengths_B), int(batch.lengths_B.sum())
        raise ValueError(
            f"{what} at step {step}{of} ({windows} windows, {tokens} tokens, written to {file}); try a lower "
            "--training.learning-rate"
        )


def save_batch(batch: Batch, file: Path) -> None:
    """Writes a batch's tensors by their names."""
    tensors = {"input_ids": batch.input_ids_BT, "lengths": batch.lengths_B}
    if batch.labels_BT is not None:
        tensors["labels"] = batch.labels_BT
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


ModelT = TypeVar("ModelT", bound=nn.Module)


def train(
    model: ModelT,
    batches: Iterator[Batch],
    loss: Callable[[ModelT, Batch], Tensor],
    evaluate: Callable[[ModelT], Metrics],
    config: TrainingConfig,
    output: Path,
) -> Metrics:
    """Trains `model` in place and returns the last line of metrics: step, tokens, seconds, losses, held-out figures.

    Goes on from the newest state in `output`, if there is one, with the batches that come next.

    Raises:
        ValueError: if a loss is not finite, with the step and the batch.
        StoppedError: after SIGTERM, when the state is saved.
    """
    accelerator = new_accelerator(config, output)
    trained = trained_copy(model, accelerator)
    optimizer = AdamW(_parameter_groups(trained, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.95))
    module, prepared = accelerator.prepare(FunctionModule(trained), optimizer)
    place = resume.load(output, trained, optimizer)
    _require_same(place.step, accelerator)
    stepper = Stepper(accelerator, module, prepared, loss, _compiled(loss, config), config, output)
    remaining = steps_of(_remaining(batches, place, config, output), config.accumulate)
    stopping = False
    kernel = cut_cross_entropy(config.cross_entropy == "cut-cross-entropy")
    with kernel, stop_requests() as asked, MetricsLog(accelerator, config, output, place) as log:
        for step, of_step in zip(range(place.step + 1, config.steps + 1), remaining, strict=False):
            total, stopping = stepper(step, of_step, asked)
            log.add(total, of_step)
            if step == config.steps:
                _round_weights(trained, getattr(torch, config.save_as))
            if config.evaluates(step):
                log.evaluated(apply(module, evaluate, accelerator.device), prepared.param_groups[0]["lr"])
            if config.saves(step) or stopping:
                place = replace(log.place, batches=batches.state_dict() if isinstance(batches, Resumable) else {})
                resume.save(output, trained, optimizer, place, keep=config.keep, writes=log.shown)
            if stopping:
                accelerator.wait_for_everyone()  # a launcher kills the others when one has ended
                break
    if stopping:
        _stop(log.place.step, accelerator)
    take_weights(model, trained)
    return log.record


def _remaining(batches: Iterator[Batch], place: TrainingState, config: TrainingConfig, output: Path) -> Iterator[Batch]:
    """The batches after those of the steps that are done.

    Raises:
        ValueError: if an older version, which read in another order, took these steps.
    """
    if not isinstance(batches, Resumable):
        return islice(batches, place.step * config.accumulate, None)
    if place.step and not place.batches:
        raise ValueError(
            f"{output} holds a training that an older version began, which read in another order; delete the folder to"
            " begin again"
        )
    if place.step:
        batches.load_state_dict(place.batches)
    return batches


def _require_same(step: int, accelerator: Accelerator) -> None:
    """Also waits until every process has read the state, before any can remove it.

    Raises:
        ValueError: if processes are at different steps.
    """
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise ValueError(f"processes go on from steps {steps}: --output must be one folder that all of them see")


def _stop(step: int, accelerator: Accelerator) -> NoReturn:
    if accelerator.is_main_process:
        say(f"stopped at step {step}; the same command goes on", file=sys.stderr)
    raise StoppedError


def _compiled(loss: Callable[[ModelT, Batch], Tensor], config: TrainingConfig) -> Callable[[ModelT, Batch], Tensor]:
    return torch.compile(loss, dynamic=True) if config.compile else loss  # windows are of many lengths


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
