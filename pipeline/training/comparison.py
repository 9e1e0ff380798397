"""The matched experiment: the same small model on the same few documents for many epochs, once for every objective.

Whatever differs between two trials is their objective, their labels or their dropout. Documents are windows with the
start token before each; a trial is one process's, and goes on where it was interrupted.

N tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from pipeline.data.corpus import Corpus
from pipeline.models.stack import new_language_model
from pipeline.models.transformer import add_dropout, llama_config
from pipeline.training import resume
from pipeline.training.batches import Cut, endless_batches
from pipeline.training.config import TrainingConfig
from pipeline.training.evaluation import held_out_batches, mean_of
from pipeline.training.log import Figures, evaluations
from pipeline.training.loop import train
from pipeline.training.losses import document_loss, document_losses
from pipeline.training.objectives import ObjectiveName, ObjectiveSettings, objective_function

SHUFFLED, TRUTH = "shuffled", "truth"
Labelled = tuple[ObjectiveName, str | None]
"""An objective and the labels that it gets."""
CORRECTED: tuple[ObjectiveName, ...] = ("flood", "floor", "flood-mean")
"""Objectives whose labels are tried with every scale and margin; of flood-mean it is the level."""
DONE_FILE = "done"


@dataclass(frozen=True)
class Study:
    """Documents to train on, with the labels that are compared, and those to evaluate on."""

    seen: Corpus
    labels: Mapping[str, np.ndarray]
    """Nats [N] of the tokens of `seen`, by what made them."""
    held_out: Mapping[str, Corpus]
    """By name; `held_out` is of the same kind as `seen`."""
    vocabulary: int
    start: int
    """The token before each window."""

    def with_labels(self, name: str | None, seed: int) -> Corpus:
        """The documents to train on, labelled; with `shuffled NAME` each label of that name is at a token of chance."""
        if name is None:
            return replace(self.seen, labels_N=np.full(len(self.seen.tokens_N), np.nan, np.float32))
        labelled = replace(self.seen, labels_N=self.labels[name.removeprefix(f"{SHUFFLED} ")])
        return labelled.with_shuffled_labels(np.random.default_rng(seed)) if name.startswith(SHUFFLED) else labelled


@dataclass(frozen=True)
class Sizes:
    """The model of every trial."""

    context: int = 64
    """Longest window, in tokens."""
    width: int = 64
    """Hidden size."""
    layers: int = 2
    """Blocks."""
    heads: int = 4
    """Attention heads."""


@dataclass(frozen=True)
class Trial:
    """What one model is trained with."""

    objective: ObjectiveName
    labels: str | None
    dropout: float
    seed: int
    scale: float = 1.0
    margin: float = 0.0

    @property
    def corrected_labels(self) -> str:
        """Its labels for a reader: `none`, `exact`, `exact x 1.5`, `exact x 0.8 + 1`."""
        scale = f" x {self.scale:g}" if self.scale != 1 else ""
        return (self.labels or "none") + scale + (f" + {self.margin:g}" if self.margin else "")

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.objective} {self.corrected_labels} dropout {self.dropout:g} seed {self.seed}".replace(" ", "-")


def trials(
    objectives: Sequence[Labelled],
    dropouts: Sequence[float],
    seeds: int,
    scales: Sequence[float] = (1.0,),
    margins: Sequence[float] = (0.0,),
) -> list[Trial]:
    """Every combination, once; all objectives of one seed before the next, so that an unfinished table is even."""
    every = product(range(seeds), dropouts, product(scales, margins), objectives)
    return list(
        dict.fromkeys(
            Trial(objective, labels, dropout, seed, *(correction if objective in CORRECTED else ()))
            for seed, dropout, correction, (objective, labels) in every
        )
    )


def default_objectives(labels: Sequence[str], chosen: str) -> list[Labelled]:
    """Flood and floor with all labels, the other objectives with the chosen ones, and the controls."""
    with_all: list[Labelled] = [*(("flood", name) for name in labels), *(("floor", name) for name in labels)]
    with_chosen: list[Labelled] = [("weight", chosen), ("mask", chosen), ("reference-share", chosen)]
    # One number is all that flooding of the mean takes from labels: it gets the true one where that is known.
    means: list[Labelled] = [("flood-mean", name) for name in dict.fromkeys((chosen, TRUTH)) if name in labels]
    controls: list[Labelled] = [("cross-entropy", None), ("random-share", None), ("flood", f"{SHUFFLED} {chosen}")]
    return [*controls, *means, *with_all, *with_chosen]


def carry_out(trial: Trial, study: Study, sizes: Sizes, config: TrainingConfig, folder: Path) -> list[dict[str, float]]:
    """Trains the trial's model, if that is not done, and returns its figures at each evaluation.

    `seen_loss` and one for each of `held_out` are plain cross-entropy in nats a token.
    """
    output = folder / trial.name
    if not (output / DONE_FILE).is_file():
        output.mkdir(parents=True, exist_ok=True)
        _train(trial, study, sizes, replace(config, seed=trial.seed), output)
        (output / DONE_FILE).touch()
        resume.finish(output)
    return evaluations(output)


def _train(trial: Trial, study: Study, sizes: Sizes, config: TrainingConfig, output: Path) -> None:
    torch.manual_seed(trial.seed)
    vocabulary = max(study.vocabulary, study.start + 1)
    model = new_language_model(llama_config(vocab_size=vocabulary, **vars(sizes)), study.start)
    add_dropout(model, trial.dropout)
    labelled = study.with_labels(trial.labels, trial.seed)
    settings = ObjectiveSettings(objective=trial.objective, scale=trial.scale, margin=trial.margin)
    objective = objective_function(settings, labelled.mean_label)
    cut = Cut(sizes.context, config.tokens_per_batch)
    evaluated = {"seen": study.seen, **study.held_out}

    def figures(trained: PreTrainedModel) -> Figures:
        return {
            f"{name}_loss": mean_loss(trained, documents, cut, study.start) for name, documents in evaluated.items()
        }

    train(
        model,
        endless_batches([labelled], cut, trial.seed),
        partial(document_loss, start=study.start, objective=objective),
        figures,
        config,
        output,
    )


def mean_loss(model: PreTrainedModel, corpus: Corpus, cut: Cut, start: int) -> float:
    """Plain cross-entropy in nats a token."""
    batches = held_out_batches(corpus, cut, model.device)
    return mean_of(document_losses(model, batch, start)[batch.real_BT] for batch in batches)
