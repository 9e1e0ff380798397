"""A small study of random documents, and the student that the tests train on it."""

from pathlib import Path

import numpy as np

from pipeline.comparison.stored_predictions import StoredPredictions
from pipeline.comparison.student import Student
from pipeline.comparison.study import PREDICTIONS, TEACHER, Study
from pipeline.comparison.teachers import BEST
from pipeline.data.corpus import Corpus
from pipeline.models.sizes import TransformerSizes
from pipeline.training.batches import Windowing
from pipeline.training.config import TrainingConfig
from tests.tiny_models import tiny_language_model

VOCABULARY = 60
SIZES = TransformerSizes(context=8, width=16, layers=1, heads=2)
CONFIG = TrainingConfig(steps=6, tokens_per_batch=64, learning_rate=0.01, evaluate_every=3)
WINDOWING = Windowing(SIZES.context, CONFIG.tokens_per_batch)


def random_corpus(seed: int, documents: int = 12) -> Corpus:
    """Return documents of 5 to 12 tokens, so that some have two windows."""
    random = np.random.default_rng(seed)
    sizes = random.integers(5, 13, size=documents)
    return Corpus.of([random.integers(VOCABULARY - 1, size=size).astype(np.int32) for size in sizes])


def small_study(folder: Path) -> Study:
    """Return a study with random labels, and with a teacher whose predictions and weights are in the folder."""
    seen, random = random_corpus(0), np.random.default_rng(9)
    labels = {name: random.gamma(5, size=len(seen.tokens_N)).astype(np.float32) for name in ("truth", "causal")}
    predictions, model = StoredPredictions(folder / PREDICTIONS), tiny_language_model(vocabulary=VOCABULARY)
    predictions.write(seen, {0: [model]}, VOCABULARY, VOCABULARY - 1, WINDOWING)
    model.save_pretrained(folder / TEACHER / BEST)
    return Study(
        seen,
        labels,
        random_corpus(1),
        random_corpus(2),
        vocabulary=VOCABULARY,
        start=VOCABULARY - 1,
        elsewhere=random_corpus(3, 4),
        predictions=predictions,
        teacher=folder / TEACHER,
        teacher_nats={"causal": np.full(12, 20.0)},
        folds=3,
    )


def small_student(folder: Path) -> Student:
    return Student(small_study(folder / "labels"), SIZES, CONFIG, folder / "trials")
