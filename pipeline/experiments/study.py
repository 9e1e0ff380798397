"""The plan of the matched experiment: documents to overfit, their labels, and the trials that are compared on them.

Whatever differs between two trials is their objective, their labels or their dropout. `comparison` carries them out.

N tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from pipeline.data.corpus import Corpus
from pipeline.training.config import ObjectiveName

SHUFFLED, TRUTH = "shuffled", "truth"
Labelled = tuple[ObjectiveName, str | None]
"""An objective and the labels that it gets."""
CORRECTED: tuple[ObjectiveName, ...] = ("flood", "floor", "flood-mean")
"""Objectives whose labels are tried with every scale and margin; of flood-mean it is the level."""


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
class ObjectiveTrial:
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
) -> list[ObjectiveTrial]:
    """Every combination, once; all objectives of one seed before the next, so that an unfinished table is even."""
    every = product(range(seeds), dropouts, product(scales, margins), objectives)
    return list(
        dict.fromkeys(
            ObjectiveTrial(objective, labels, dropout, seed, *(correction if objective in CORRECTED else ()))
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
