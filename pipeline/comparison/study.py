"""Study of training methods on few documents: the documents, their kinds of labels, and a teacher's predictions.

Methods train on the training documents, are chosen on the development documents and are compared on the test documents,
which are read once.

Shapes: N tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from pipeline.comparison.ngrams import cross_fitted_surprisals
from pipeline.comparison.stored_predictions import StoredPredictions
from pipeline.data.corpus import Corpus

STUDY_FILE, PREDICTIONS, TEACHER = "study.npz", "predictions", "teacher"
SHUFFLED, WITHIN_TOKENS = "shuffled ", "shuffled within tokens "
NGRAMS = {"unigram": 1, "trigram": 3}
"""Orders of the n-gram models whose surprisals are labels, by the name of the labels."""
FOLDS = 4
CORPORA, BY_LABELS = ("seen", "development", "test", "elsewhere"), ("labels", "teacher_nats", "labelling_flop")


@dataclass(frozen=True)
class Study:
    """Documents to train on, several kinds of labels for these documents, and documents to evaluate on."""

    seen: Corpus
    labels: Mapping[str, np.ndarray]
    """Labels [N] in nats by name. Index i is for token i of `seen`."""
    development: Corpus
    test: Corpus
    vocabulary: int
    """Number of token ids, including the start token."""
    start: int
    """Id of the start token, which precedes each window."""
    elsewhere: Corpus | None = None
    """Test documents of another kind than the training documents."""
    predictions: StoredPredictions | None = None
    """A teacher's predictions for each token of `seen`; None for a study without a teacher."""
    teacher: Path | None = None
    """Folder of a teacher's weights, from which a student can start."""
    teacher_nats: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Loss of a teacher on each test document in nats, summed over the document's tokens. The key is the name of the
    labels that the teacher made."""
    labelling_flop: Mapping[str, float] = field(default_factory=dict)
    """FLOP of making labels, by the labels' name. Labels that were given, or whose FLOP is unknown, have no entry."""
    truth: float | None = None
    """Loss of the distribution that the test documents were drawn from, in nats per token. No model can have a lower
    expected loss. None for text, whose distribution is unknown."""
    folds: int = FOLDS
    """Number of cross-validation folds of the n-gram models."""

    def save(self, folder: Path) -> None:
        """Write the study to a file in `folder`. The teacher and the predictions must be in `folder` already."""
        arrays: dict[str, Any] = {"numbers": np.array([self.vocabulary, self.start, self.folds])}
        for name in CORPORA:
            if (corpus := getattr(self, name)) is not None:
                arrays |= {f"{name}/tokens": corpus.tokens_N, f"{name}/offsets": corpus.offsets}
        for name in BY_LABELS:
            arrays |= {f"{name}/{labels}": np.asarray(values) for labels, values in getattr(self, name).items()}
        if self.truth is not None:
            arrays["truth"] = np.array(self.truth)
        unfinished = folder / f"unfinished.{STUDY_FILE}"
        np.savez(unfinished, **arrays)
        unfinished.replace(folder / STUDY_FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a study from the folder that `save` wrote it to."""
        with np.load(folder / STUDY_FILE, allow_pickle=False) as stored:
            arrays = dict(stored)
        corpora: dict[str, Any] = {
            name: Corpus(arrays[f"{name}/tokens"], arrays[f"{name}/offsets"])
            for name in CORPORA
            if f"{name}/tokens" in arrays
        }
        by_labels: dict[str, Any] = {name: {} for name in BY_LABELS}
        for key, values in arrays.items():
            name, _, labels = key.partition("/")
            if name in by_labels:
                by_labels[name][labels] = values if values.ndim else float(values)
        vocabulary, start, folds = arrays["numbers"].tolist()
        return cls(
            **corpora,
            **by_labels,
            vocabulary=vocabulary,
            start=start,
            folds=folds,
            predictions=StoredPredictions(folder / PREDICTIONS) if (folder / PREDICTIONS).is_dir() else None,
            teacher=folder / TEACHER if (folder / TEACHER).is_dir() else None,
            truth=float(arrays["truth"]) if "truth" in arrays else None,
        )

    def with_labels(self, name: str | None, seed: int) -> Corpus:
        """Return the training documents with the labels called `name`, or without labels if `name` is None.

        The name `shuffled NAME` stands for the labels called NAME, randomly permuted among all tokens. The name
        `shuffled within tokens NAME` stands for the labels called NAME, randomly permuted among tokens with the same id
        and about the same position. The names in NGRAMS stand for surprisals of n-gram models.
        """
        if name is None:
            return replace(self.seen, labels_N=np.full(len(self.seen.tokens_N), np.nan, np.float32))
        if name in NGRAMS:
            nats_N = cross_fitted_surprisals(self.seen, NGRAMS[name], self.vocabulary, self.folds)
            return replace(self.seen, labels_N=nats_N)
        random = np.random.default_rng(seed)
        if name.startswith(WITHIN_TOKENS):
            nats_N = self.labels[name.removeprefix(WITHIN_TOKENS)]
            return replace(self.seen, labels_N=shuffled_within(nats_N, self._kinds(), random))
        labelled = replace(self.seen, labels_N=self.labels[name.removeprefix(SHUFFLED)])
        return labelled.with_shuffled_labels(random) if name.startswith(SHUFFLED) else labelled

    def _kinds(self) -> np.ndarray:
        """Return one number per token [N], the same for tokens with the same id and about the same position.

        Positions, counted from 1, are about the same if they lie between the same two successive powers of two.
        """
        starts_N = np.repeat(self.seen.offsets[:-1], np.diff(self.seen.offsets))
        octave_N = np.log2(np.arange(len(self.seen.tokens_N)) - starts_N + 1).astype(np.int64)
        kinds_N: np.ndarray = octave_N * self.vocabulary + self.seen.tokens_N
        return kinds_N


def shuffled_within(values_N: np.ndarray, kinds_N: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the values after a random permutation among the tokens of each kind."""
    from_N = np.lexsort((random.random(len(values_N)), kinds_N))
    to_N = np.argsort(kinds_N, kind="stable")
    shuffled_N = np.empty_like(values_N)
    shuffled_N[to_N] = values_N[from_N]
    return shuffled_N
