"""A training step with each objective beside one of plain cross-entropy: the same model, the same batch, in turns."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch.optim import AdamW

from pipeline.models.stack import new_language_model
from pipeline.models.transformer import llama_config
from pipeline.training.batches import Batch
from pipeline.training.losses import objective_loss
from pipeline.training.objectives import ObjectiveName, ObjectiveSettings, objective_function
from tests.benchmarks.figure import Figure, median_seconds
from tests.tiny_models import random_tokens


@dataclass(frozen=True)
class Size:
    """The default model of `jobs.train_language_model` and half its default batch."""

    context: int = 256
    width: int = 192
    layers: int = 4
    heads: int = 6
    vocabulary: int = 8192
    windows: int = 16
    repeats: int = 9


QUICK = Size(context=16, width=16, layers=1, heads=1, vocabulary=97, windows=2, repeats=1)


def figures(size: Size, device: torch.device) -> Iterator[Figure]:
    names: tuple[ObjectiveName, ...] = ("cross-entropy", "flood", "reference-share")
    seconds = median_seconds({name: step(name, size, device) for name in names}, size.repeats)
    plain = seconds["cross-entropy"]
    what = "training: a step against one of cross-entropy"
    yield Figure(f"{what} ({plain:.2f} s), flood", seconds["flood"] / plain, at_most=1.03)
    yield Figure(f"{what}, the share furthest above a reference", seconds["reference-share"] / plain)


def step(name: ObjectiveName, size: Size, device: torch.device) -> Callable[[], None]:
    """Forward, backward and optimizer."""
    torch.manual_seed(0)
    config = llama_config(
        vocab_size=size.vocabulary, width=size.width, layers=size.layers, heads=size.heads, context=size.context
    )
    model = new_language_model(config, start=0).to(device)  # type: ignore[arg-type]
    optimizer = AdamW(model.parameters(), lr=1e-4)
    ids_BT = random_tokens(size.windows, size.context + 1, vocabulary=size.vocabulary)
    lengths_B = torch.full((size.windows,), size.context + 1)
    batch = Batch(ids_BT, lengths_B, torch.rand(ids_BT.shape) * 9).to(device)
    loss = partial(objective_loss, objective=objective_function(ObjectiveSettings(objective=name), mean_entropy=4.5))

    def one() -> None:
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return one
