"""Training loop: optimizer steps on batches, in one process or several that train one model.

A step adds up the gradients of its batches, and each process computes its own rows of every batch. Loss and gradient
therefore equal those of one batch that holds the whole step. A `StepObjective`, which compares all tokens of a step,
needs the losses of the whole step first. A forward pass without gradients computes these losses, and every process
derives the same factors from them.

`distributed` handles devices and shards. `averaging` handles the average of the weights. `resume` handles states and
signals. `metrics` writes the metrics.

Shapes: B rows, T tokens of the longest row, S positions of all batches, including padding.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from pipeline.data.loader import Resumable
from pipeline.models.cross_entropy import cut_cross_entropy
from pipeline.training import resume
from pipeline.training.averaging import WeightAverage
from pipeline.training.batches import Batch
from pipeline.training.config import TrainingConfig
from pipeline.training.distributed import DistributedModel, full_tensor, new_accelerator
from pipeline.training.losses import ObjectiveLoss
from pipeline.training.metrics import Metrics, MetricsLog
from pipeline.training.optimizer import new_optimizer

Loss = Callable[[Any, Batch], Tensor]
ModelT = TypeVar("ModelT", bound=nn.Module)
OFFENDING_FILE = "not-finite.safetensors"


def train(
    model: ModelT,
    batches: Iterator[Batch],
    loss: Callable[[ModelT, Batch], Tensor],
    evaluate: Callable[[ModelT], Metrics],
    config: TrainingConfig,
    output: Path,
) -> Metrics:
    """Train `model` in place and return the last evaluation: step, tokens, seconds, training loss, held-out metrics.

    If the settings name an average of the weights, the average is evaluated and left in `model`.

    If `output` has states, training resumes from the newest state, with the batch after the last batch of this state.

    Raises:
        ValueError: if a loss or gradient is not finite; the message names the step and the batch.
        SystemExit: after SIGTERM, once the state is saved.
    """
    accelerator = new_accelerator(config, output)
    trained = DistributedModel(model, lambda model: new_optimizer(model, config), accelerator)
    average = WeightAverage(trained.model, config)
    state = resume.load(output, trained.model, trained.optimizer, average.tensors)
    stepper = Stepper(trained, loss, compiled(loss, config), config, output, average)
    remaining = steps_of(_remaining(batches, state, config, output), config.accumulate)
    stopping, save = False, partial(resume.save, keep=config.keep, lasting=config.lasting_step)
    kernel = cut_cross_entropy(config.cross_entropy == "cut-cross-entropy")
    with kernel, resume.stop_requests() as requested, MetricsLog(accelerator, config, output, state) as log:
        for step, of_step in zip(range(state.step + 1, config.steps + 1), remaining, strict=False):
            total, stopping = stepper(step, of_step, requested)
            log.add(total, of_step)
            if config.evaluates(step):
                with average.applied(step):
                    held_out = trained.evaluate(evaluate)
                log.evaluated(held_out, config.learning_rate_at(step))
            if config.saves(step) or stopping:
                position = batches.state_dict() if isinstance(batches, Resumable) else {}
                state = replace(log.state, batches=position)
                save(output, trained.model, trained.optimizer, state, average.tensors)
            if stopping:
                break
    if stopping:
        resume.stop(log.state)
    trained.copy_to(model)
    return log.record


@dataclass(frozen=True)
class Stepper:
    """Function that performs one optimizer step on a model, to minimise `loss`."""

    trained: DistributedModel[Any]
    loss: Loss
    compiled: Loss
    """`loss`, compiled if `compile` is set in `config`; otherwise `loss` itself."""
    config: TrainingConfig
    output: Path
    average: WeightAverage | None = None

    def __call__(self, step: int, batches: Sequence[Batch], requested: Callable[[], bool]) -> tuple[float, bool]:
        """Perform the optimizer step with index `step`, on this process's part of the batches.

        After the last step of the run, the weights or their average are rounded to the dtype in which they are saved.

        Returns:
            The loss of the step over all batches and processes, and whether any process was requested to stop.

        Raises:
            ValueError: if a loss or the gradient is not finite; weights stay unchanged.
        """
        accelerator, optimizer = self.trained.accelerator, self.trained.stepping
        self._seed(step)
        for group in optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(step)
        batches = self._with_factors(step, batches)
        losses = [self._add_gradients(batch, last=batch is batches[-1]) for batch in batches]
        norm = full_tensor(
            accelerator.clip_grad_norm_(self.trained.module.parameters(), self.config.gradient_clip)
        ).detach()
        stop = torch.tensor(float(requested()), device=accelerator.device)
        *parts, total_norm, stops = accelerator.reduce(torch.stack([*losses, norm, stop])).tolist()
        if not all(map(math.isfinite, (*parts, total_norm))):
            self._refuse(step, batches, parts, total_norm)
        optimizer.step()
        optimizer.zero_grad()
        if self.average is not None:
            self.average.update(step)
        if step == self.config.steps:
            self.trained.round_weights(getattr(torch, self.config.save_as))
        return sum(parts), stops > 0

    def _seed(self, step: int) -> None:
        torch.manual_seed(self._seed_of(step, self.trained.accelerator.process_index))

    def _seed_of(self, step: int, process: int) -> int:
        return int(np.random.SeedSequence([self.config.seed, step, process]).generate_state(1)[0])

    def _add_gradients(self, batch: Batch, *, last: bool) -> Tensor:
        """Add the gradients of this process's part of a batch to those of the step, and return the part's loss.

        With the last batch of the step, gradients are averaged over processes.
        """
        accelerator, module = self.trained.accelerator, self.trained.module
        with nullcontext() if last else accelerator.no_sync(module):
            with accelerator.autocast():
                loss: Tensor = module(self.compiled, self._part(batch))
            accelerator.backward(loss * accelerator.num_processes)  # undoes the average, since parts add up
        return loss.detach().float()

    def _part(self, batch: Batch) -> Batch:
        """Return this process's rows of the batch, on its device."""
        accelerator = self.trained.accelerator
        return batch.part(accelerator.process_index, accelerator.num_processes).to(accelerator.device)

    def _refuse(self, step: int, batches: Sequence[Batch], losses: Sequence[float], norm: float) -> NoReturn:
        broken = next((number for number, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if broken is None:
            batch, what, of = joined(batches), f"the norm of the gradient is {norm}", ""
        else:
            batch, what = batches[broken], f"the loss is {losses[broken]}"
            of = f" in batch {broken + 1} of {len(batches)}" if len(batches) > 1 else ""
        file = self.output / OFFENDING_FILE
        if self.trained.accelerator.is_main_process:
            _save_batch(batch, file)
        self.trained.accelerator.wait_for_everyone()
        windows, tokens = len(batch.lengths_B), int(batch.lengths_B.sum())
        raise ValueError(
            f"{what} at step {step}{of} ({windows} windows, {tokens} tokens, written to {file}); try a lower "
            "`training.learning_rate`"
        )

    def _with_factors(self, step: int, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Return the batches with a factor for each token, if the objective compares all tokens of a step.

        With any other objective, the batches are returned unchanged. This is also the case if one forward pass sees all
        tokens of the step.
        """
        loss, accelerator = self.loss, self.trained.accelerator
        together = len(batches) * accelerator.num_processes == 1
        if together or not isinstance(loss, ObjectiveLoss) or loss.step_objective is None:
            return batches
        losses_S = torch.cat([self._token_losses(loss, batch).flatten() for batch in batches])
        losses_S = accelerator.reduce(losses_S)  # the sum over processes: each has zeros at the others' rows
        entropies_S = torch.cat([loss.entropies(batch).flatten() for batch in batches]).to(losses_S.device)
        predicted_S = torch.cat([loss.predicted(batch).flatten() for batch in batches]).to(losses_S.device)
        torch.manual_seed(self._seed_of(step, 0))  # random factors are the same in every process
        factors_S = loss.step_objective.factors(losses_S, entropies_S, predicted_S).cpu()
        self._seed(step)  # the next forward pass gets the same dropout
        each = factors_S.split([batch.input_ids_BT.numel() for batch in batches])
        return [
            replace(batch, factors_BT=factors_S.view(batch.input_ids_BT.shape))
            for batch, factors_S in zip(batches, each, strict=True)
        ]

    def _token_losses(self, loss: ObjectiveLoss, batch: Batch) -> Tensor:
        """Return a batch's losses [B, T], computed without gradients. The rows of other processes are 0."""
        accelerator = self.trained.accelerator
        with torch.no_grad(), accelerator.autocast():  # even without rows: FSDP gathers weights from all processes
            part_BT: Tensor = self.trained.module(loss.token_losses, self._part(batch))
        losses_BT = torch.zeros(batch.input_ids_BT.shape, device=accelerator.device)
        rows = batch.rows(accelerator.process_index, accelerator.num_processes)
        if len(losses_BT[rows]):
            losses_BT[rows] = part_BT.float()
        return losses_BT


def steps_of(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Group batches into steps of `size` batches each; the last step may have fewer batches."""
    while step := list(islice(batches, size)):
        if len(step) > 1:
            whole = joined(step)
            step = [replace(batch, whole_batch=whole) for batch in step]
        yield step


def joined(batches: Sequence[Batch]) -> Batch:
    """Return one batch with the rows of all batches, padded to the longest row."""
    longest = max(batch.input_ids_BT.shape[1] for batch in batches)

    def padded(rows_BT: Tensor, value: float) -> Tensor:
        return pad(rows_BT, (0, longest - rows_BT.shape[1]), value=value)

    lengths_B = torch.cat([batch.lengths_B for batch in batches])
    input_ids_BT = torch.cat([padded(batch.input_ids_BT, 0) for batch in batches])
    labels = [padded(batch.labels_BT, torch.nan) for batch in batches if batch.labels_BT is not None]
    return Batch(input_ids_BT, lengths_B, torch.cat(labels) if labels else None)


def _remaining(
    batches: Iterator[Batch], state: resume.TrainingState, config: TrainingConfig, output: Path
) -> Iterator[Batch]:
    """Return an iterator over the batches that follow the finished steps.

    Raises:
        ValueError: if an older version took the finished steps, since older versions read documents in another order.
    """
    if not isinstance(batches, Resumable):
        return islice(batches, state.step * config.accumulate, None)
    if state.step and not state.batches:
        raise ValueError(
            f"{output} holds a training begun by an older version, which read in another order; delete the folder to"
            " begin again"
        )
    if state.step:
        batches.load_state_dict(state.batches)
    return batches


def _save_batch(batch: Batch, file: Path) -> None:
    tensors = {"input_ids": batch.input_ids_BT, "lengths": batch.lengths_B, "labels": batch.labels_BT}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}, file)


def compiled(loss: Loss, config: TrainingConfig) -> Loss:
    """Return the loss function, compiled if `compile` is set."""
    return torch.compile(loss, dynamic=True) if config.compile else loss  # windows have many lengths
