"""Gradients of one step of every objective, in one process or several."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.models.stacks import llama_config, new_language_model
from pipeline.training.batches import Batch
from pipeline.training.config import ObjectiveName, ObjectiveSettings, TrainingConfig
from pipeline.training.distributed import DistributedModel, process_group
from pipeline.training.losses import ObjectiveLoss
from pipeline.training.objectives import objective_function
from pipeline.training.penalties import penalty_function
from pipeline.training.trainer import Stepper, joined, steps_of

VOCABULARY = 23
CONFIG = TrainingConfig(steps=3, gradient_clip=1e9)
STARTS = {"windows": None, "documents": 0}
PENALTIES = {"label_smoothing": 0.1, "confidence_penalty": 0.1, "z_loss": 0.1}


class Kept(torch.optim.SGD):
    """Optimizer that keeps the gradients instead of stepping."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.gradients = torch.cat(
            [parameter.grad.flatten() for group in self.param_groups for parameter in group["params"]]
        )


def language_model() -> nn.Module:
    """Build a model with weights ten times the usual size, so that the batches have different losses."""
    torch.manual_seed(0)
    sizes = {"width": 8, "layers": 1, "heads": 2, "context": 12, "initializer_range": 0.2}
    return new_language_model(llama_config(vocab_size=VOCABULARY, **sizes), start=0)  # type: ignore[arg-type]


def batches() -> list[Batch]:
    """Return three batches of one, three and two rows; all tokens of the second batch are the same."""
    random = torch.Generator().manual_seed(3)
    made = []
    for lengths in ((9,), (4, 7, 3), (6, 5)):
        ids_BT = torch.randint(VOCABULARY, (len(lengths), max(lengths)), generator=random)
        labels_BT = torch.rand(ids_BT.shape, generator=random) * 4
        lengths_B = torch.tensor(lengths)
        labels_BT[torch.arange(max(lengths)) >= lengths_B.unsqueeze(1)] = torch.nan
        labels_BT[0, 2] = torch.nan
        made.append(Batch(ids_BT, lengths_B, labels_BT))
    made[1].input_ids_BT[:] = 7
    return made


def mean_loss(model: nn.Module, batch: Batch, start: int | None) -> float:
    """Return the mean cross-entropy of the predicted tokens."""
    loss = ObjectiveLoss(objective_function(ObjectiveSettings(objective="cross-entropy"), 0.0), start)
    with torch.no_grad():
        return loss(model, batch).item()  # type: ignore[arg-type]


def level(start: int | None) -> float:
    """Return a level between the mean loss of the whole step and the mean loss of one of its batches.

    With this level, flood-mean computed batch by batch would differ from flood-mean of the whole step.
    """
    model, whole = language_model(), joined(batches())
    means = [mean_loss(model, batch, start) for batch in batches()]
    mean = mean_loss(model, whole, start)
    return mean + 0.1 if max(means) > mean + 0.1 else mean - 0.1


def gradients(way: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of every objective with the gradients and the loss of one step.

    If `way` is `whole`, all rows are in one batch. If it is `parts`, they are in several batches. Every objective is
    yielded twice: for windows without penalties, and for documents with penalties.
    """
    for name in get_args(ObjectiveName):
        for kind, start in STARTS.items():
            yield f"{name} of {kind}", gradient(way, name, start)


def gradient(way: str, name: ObjectiveName, start: int | None) -> Tensor:
    penalties = {} if start is None else PENALTIES
    settings = ObjectiveSettings(objective=name, level=level(start), share=0.4, **penalties)
    loss = ObjectiveLoss(objective_function(settings, 2.0), start, penalty_function(settings))
    accelerator = Accelerator(cpu=True)
    kept: list[Kept] = []

    def new_optimizer(model: nn.Module) -> Kept:
        kept.append(Kept(model.parameters(), lr=1.0))
        return kept[0]

    trained = DistributedModel(language_model(), new_optimizer, accelerator)
    (step,) = steps_of(iter([joined(batches())] if way == "whole" else batches()), 3)
    assert accelerator.num_processes == int(os.environ.get("WORLD_SIZE", 1))
    total, _ = Stepper(trained, loss, loss, CONFIG, Path())(1, step, lambda: False)
    return torch.cat([kept[0].gradients, torch.tensor([total])])


def step_gradients(way: str, file: Path) -> None:
    """Write the results of `gradients` to a file."""
    with process_group():
        found = dict(gradients(way))
        if Accelerator(cpu=True).is_main_process:
            save_file(found, file)
