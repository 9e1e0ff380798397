"""One optimizer step after the other, alike in every process."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.training.batches import Batch
from pipeline.training.comparing import compared, compares
from pipeline.training.config import TrainingConfig
from pipeline.training.processes import whole
from pipeline.training.schedule import learning_rate_share
from pipeline.training.steps import joined

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
        norm = whole(self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.gradient_clip))
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
