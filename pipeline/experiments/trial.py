"""Trials of an experiment. Each trial is trained once, in a folder of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from transformers import PreTrainedModel

from pipeline.data.corpus import Corpus
from pipeline.training import resume
from pipeline.training.batches import Batch, Windowing, endless_batches
from pipeline.training.config import TrainingConfig
from pipeline.training.metrics import Metrics
from pipeline.training.trainer import train

ModelT = TypeVar("ModelT", bound=PreTrainedModel)
DONE_FILE = "done"


def train_once(
    model: ModelT,
    corpus: Corpus,
    windowing: Windowing,
    loss: Callable[..., Tensor],
    evaluate: Callable[[PreTrainedModel], Metrics],
    config: TrainingConfig,
    folder: Path,
    *,
    keep_weights: bool = False,
    change: Callable[[Batch, int], Batch] | None = None,
) -> ModelT:
    """Train the model and return it. An interrupted run in `folder` is resumed, and a finished run is not repeated.

    Metrics are written to `folder`. `change` takes a batch of the corpus and the batch's number, counted from 0, and
    returns the batch to train on.

    If `keep_weights` is True, the trained weights are saved, and a finished run returns a model with the saved weights.
    If `keep_weights` is False, no weights are saved, and a finished run returns `model` unchanged.
    """
    if (folder / DONE_FILE).is_file():
        return type(model).from_pretrained(folder, use_safetensors=True) if keep_weights else model
    folder.mkdir(parents=True, exist_ok=True)
    batches = endless_batches([corpus], windowing, config.seed)
    if change is not None:
        batches = (change(batch, step) for step, batch in enumerate(batches))
    train(model, batches, loss, evaluate, config, folder)
    if keep_weights:
        model.save_pretrained(folder)
    (folder / DONE_FILE).touch()
    resume.finish(folder)
    model.eval()  # type: ignore[no-untyped-call]
    return model
