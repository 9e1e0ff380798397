"""Times of training: a step with several objectives against cross-entropy, and the training loop against bare steps.

Each comparison uses the same model and the same batches, and its functions run in turns.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
from torch.optim import AdamW
from transformers import PreTrainedModel

from pipeline.models.stacks import llama_config, new_language_model
from pipeline.training.batches import Batch
from pipeline.training.config import ObjectiveName, ObjectiveSettings, TrainingConfig
from pipeline.training.losses import ObjectiveLoss
from pipeline.training.objectives import objective_function
from pipeline.training.trainer import train
from tests.benchmarks.figure import Figure, median_seconds
from tests.tiny_models import random_tokens


@dataclass(frozen=True)
class Size:
    """Sizes of the model, the batches and the measurement.

    The default values are those of `jobs.train_language_model`, but the batch is half as large.
    """

    context: int = 256
    width: int = 192
    layers: int = 4
    heads: int = 6
    vocabulary: int = 8192
    windows: int = 16
    steps: int = 8
    repeats: int = 9
    loops: int = 5
    precision: Literal["no", "bf16"] = "no"


QUICK = Size(context=16, width=16, layers=1, heads=1, vocabulary=97, windows=2, steps=2, repeats=1, loops=1)
LOSS = ObjectiveLoss(objective_function(ObjectiveSettings(objective="cross-entropy"), mean_entropy=4.5))


def figures(size: Size, device: torch.device) -> Iterator[Figure]:
    names: tuple[ObjectiveName, ...] = ("cross-entropy", "flood", "reference-share")
    seconds = median_seconds({name: step(name, size, device) for name in names}, size.repeats)
    plain = seconds["cross-entropy"]
    what = "training: a step against one of cross-entropy"
    yield Figure(f"{what} ({plain:.2f} s), flood", seconds["flood"] / plain, at_most=1.03)
    yield Figure(f"{what}, the share furthest above a reference", seconds["reference-share"] / plain)
    seconds = median_seconds({"bare": lambda: bare(size, device), "loop": lambda: looped(size)}, size.loops)
    tokens = tokens_of(size) / seconds["bare"]
    what = f"training: tokens a second of the loop against bare steps ({tokens:,.0f})"
    yield Figure(what, seconds["bare"] / seconds["loop"], at_least=0.9)


def model_of(size: Size) -> PreTrainedModel:
    torch.manual_seed(0)
    config = llama_config(
        vocab_size=size.vocabulary, width=size.width, layers=size.layers, heads=size.heads, context=size.context
    )
    return new_language_model(config, start=0)


def tokens_of(size: Size) -> int:
    """Return the number of tokens in all steps."""
    return sum(int(batch.lengths_B.sum()) for batch in batches(size))


def autocast(size: Size, device: torch.device) -> torch.autocast:
    """Return a context that runs the forward pass of bare steps in the precision of the training loop."""
    return torch.autocast(device.type, torch.bfloat16, enabled=size.precision == "bf16")


def bare(size: Size, device: torch.device) -> None:
    """Train with bare steps: forward, backward and optimizer, batch after batch, and nothing else."""
    model = model_of(size).to(device)  # type: ignore[arg-type]
    optimizer = AdamW(model.parameters(), lr=1e-4)
    for batch in batches(size):
        with autocast(size, device):
            loss = LOSS(model, batch.to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def looped(size: Size) -> None:
    """Train with the project's training loop, on the same batches as `bare`. The loop also saves a state at the end."""
    config = TrainingConfig(steps=size.steps, evaluate_every=size.steps, precision=size.precision)
    with TemporaryDirectory() as folder:
        train(model_of(size), batches(size), LOSS, lambda trained: {}, config, Path(folder))


def batches(size: Size) -> Iterator[Batch]:
    """Yield the batches of a training run. A batch is made when the next one is requested.

    The times of bare steps and of the training loop therefore both include the making of the batches.
    """
    generator = np.random.default_rng(0)
    for _ in range(size.steps):
        ids_BT = torch.from_numpy(generator.integers(size.vocabulary, size=(size.windows, size.context + 1)))
        labels_BT = torch.from_numpy(generator.random(ids_BT.shape, np.float32)) * 9
        yield Batch(ids_BT, torch.full((size.windows,), size.context + 1), labels_BT)


def step(name: ObjectiveName, size: Size, device: torch.device) -> Callable[[], None]:
    """Return a function that takes one step with this objective: forward, backward and optimizer."""
    model = model_of(size).to(device)  # type: ignore[arg-type]
    optimizer = AdamW(model.parameters(), lr=1e-4)
    ids_BT = random_tokens(size.windows, size.context + 1, vocabulary=size.vocabulary)
    lengths_B = torch.full((size.windows,), size.context + 1)
    batch = Batch(ids_BT, lengths_B, torch.rand(ids_BT.shape) * 9).to(device)
    loss = ObjectiveLoss(objective_function(ObjectiveSettings(objective=name), mean_entropy=4.5))

    def one() -> None:
        with autocast(size, device):
            value = loss(model, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return one
