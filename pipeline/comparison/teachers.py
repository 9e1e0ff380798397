"""Teachers of a comparison: language models that are trained up to their lowest loss on the development documents."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from pipeline.data.corpus import Corpus
from pipeline.experiments.trial import train_once
from pipeline.models.loading import load_causal
from pipeline.training.batches import Windowing
from pipeline.training.config import TrainingConfig
from pipeline.training.evaluation import held_out_batches, mean_of
from pipeline.training.losses import document_loss, document_losses
from pipeline.training.metrics import METRICS_FILE, Metrics, evaluations

BEST, DEVELOPMENT = "best", "development_loss"


@dataclass(frozen=True)
class KeepBest:
    """Evaluation of a training that also saves the model whenever its development loss is the lowest so far."""

    evaluate: Callable[[PreTrainedModel], Metrics]
    folder: Path
    """Folder of the training. The model is saved in its folder `best`."""

    def __call__(self, model: PreTrainedModel) -> Metrics:
        metrics = self.evaluate(model)
        if metrics[DEVELOPMENT] < lowest_loss(self.folder):
            model.save_pretrained(self.folder / BEST)
        return metrics


def lowest_loss(folder: Path) -> float:
    """Return the lowest development loss of all evaluations so far of the training in a folder."""
    before = evaluations(folder) if (folder / METRICS_FILE).is_file() else []
    return min((record[DEVELOPMENT] for record in before), default=np.inf)


def train_teacher(
    model: PreTrainedModel,
    seen: Corpus,
    development: Corpus,
    start: int,
    windowing: Windowing,
    config: TrainingConfig,
    folder: Path,
) -> PreTrainedModel:
    """Train a teacher with cross-entropy, and return it as it was at its lowest development loss.

    An interrupted training is resumed, and a finished one is loaded.
    """

    def evaluate(trained: PreTrainedModel) -> Metrics:
        return {DEVELOPMENT: mean_loss(trained, development, windowing, start)}

    loss = partial(document_loss, start=start)
    train_once(model, seen, windowing, loss, KeepBest(evaluate, folder), config, folder)
    return load_best(folder)


def mean_loss(model: PreTrainedModel, corpus: Corpus, windowing: Windowing, start: int) -> float:
    """Return the model's plain cross-entropy on a corpus, in nats per token."""
    batches = held_out_batches(corpus, windowing, model.device)
    return mean_of(document_losses(model, batch, start)[batch.real_BT] for batch in batches)


def load_best(folder: Path) -> PreTrainedModel:
    """Load the model that `KeepBest` saved last in the folder of a training."""
    return load_causal(folder / BEST)
