"""The one training loop. A job hands it a model, batches, a loss and an evaluation.

It knows nothing of labels or text: `loss(model, batch)` is a scalar in nats, `evaluate(model)` a dictionary
of figures. A step is taken by `stepper`, figures are written by `log`, states kept by `resume`.

Every process reads the same batches and takes its rows of each, so that any number of processes trains the same model.
"""

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW

from pipeline.messages import say
from pipeline.models.cross_entropy import cut_cross_entropy
from pipeline.training import resume
from pipeline.training.batches import Batch
from pipeline.training.config import TrainingConfig
from pipeline.training.log import Figures, Log
from pipeline.training.processes import Applied, apply, new_accelerator, take_weights, trained_copy
from pipeline.training.stepper import Stepper
from pipeline.training.steps import steps_of
from pipeline.training.stopping import StoppedError, stop_requests

ModelT = TypeVar("ModelT", bound=nn.Module)


def train(
    model: ModelT,
    batches: Iterator[Batch],
    loss: Callable[[ModelT, Batch], Tensor],
    evaluate: Callable[[ModelT], Figures],
    config: TrainingConfig,
    output: Path,
) -> Figures:
    """Trains `model` in place and returns the last line of metrics: step, tokens, seconds, losses, held-out figures.

    Goes on from the newest state in `output`, if there is one, with the batches that come next.

    Raises:
        ValueError: if a loss is not finite, with the step and the batch.
        StoppedError: after SIGTERM, when the state is saved.
    """
    accelerator = new_accelerator(config, output)
    trained = trained_copy(model, accelerator)
    optimizer = AdamW(_parameter_groups(trained, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.95))
    module, prepared = accelerator.prepare(Applied(trained), optimizer)
    place = resume.load(output, trained, optimizer)
    _require_same(place.step, accelerator)
    stepper = Stepper(accelerator, module, prepared, loss, _compiled(loss, config), config, output)
    remaining = steps_of(islice(batches, place.step * config.accumulate, None), config.accumulate)
    stopping = False
    kernel = cut_cross_entropy(config.cross_entropy == "cut-cross-entropy")
    with kernel, stop_requests() as asked, Log(accelerator, config, output, place) as log:
        for step, of_step in zip(range(place.step + 1, config.steps + 1), remaining, strict=False):
            total, stopping = stepper(step, of_step, asked)
            log.add(total, of_step)
            if step == config.steps:
                _round_weights(trained, getattr(torch, config.save_as))
            if config.evaluates(step):
                log.evaluated(apply(module, evaluate, accelerator.device), prepared.param_groups[0]["lr"])
            if config.saves(step) or stopping:
                resume.save(output, trained, optimizer, log.place, keep=config.keep, writes=log.shown)
            if stopping:
                accelerator.wait_for_everyone()  # a launcher kills the others when one has ended
                break
    if stopping:
        _stop(log.place.step, accelerator)
    take_weights(model, trained)
    return log.record


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
