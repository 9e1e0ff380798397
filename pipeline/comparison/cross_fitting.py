"""Cross-fitted labels: the training documents are labelled by models that were trained on other training documents.

The training documents are divided into folds. For each fold, teachers are trained on the documents of the other folds.
The teachers have the sizes of the student, which is the model that the study trains. They are trained with the best
settings of the baseline method. The mixture of the teachers' predictions labels the documents of the fold. The teachers
learn only from training documents.

Shapes: M documents, N tokens, K folds, S teachers of a fold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copytree

import numpy as np
import torch
from transformers import PreTrainedModel

from pipeline.comparison.methods import Trial
from pipeline.comparison.stored_predictions import StoredPredictions, mixture
from pipeline.comparison.student import Student, sums_by_document, token_nats, with_dropout
from pipeline.comparison.study import PREDICTIONS, TEACHER, Study
from pipeline.comparison.teachers import BEST, load_best, train_teacher
from pipeline.experiments.contest import parameters
from pipeline.experiments.parallel import side_by_side
from pipeline.training.metrics import evaluations
from schemas.annotations import ENTROPY_DEVIATION

CROSS_FITTED = "cross-fitted"


def label_names(teachers: int) -> list[str]:
    """Return the names of cross-fitted labels: surprisals, entropies of the predictions, and `certain` surprisals.

    Only folds with several teachers have `certain` labels: the surprisals of the half of the tokens for which the
    teachers' surprisals differ least. The other half has no label.
    """
    certain = [f"{CROSS_FITTED} certain"] if teachers > 1 else []
    return [CROSS_FITTED, f"{CROSS_FITTED} expected", *certain]


def cross_fitted(
    student: Student, baseline: Trial, folder: Path, teachers: int = 1, processes: int | None = None
) -> Study:
    """Return the student's study with cross-fitted labels instead of its own.

    First, `teachers` models are trained for each fold on the documents of the other folds. They are trained in
    `folder`, in `processes` processes at a time.

    Raises:
        ValueError: if a fold has no document.
    """
    study, windowing = student.study, student.windowing
    study.seen.leave_one_fold_out(study.folds)  # checks that every fold has a document
    every = [(fold, number) for fold in range(study.folds) for number in range(teachers)]
    train = partial(_train, student=student, baseline=baseline, folder=folder)
    side_by_side(train, every, processes, progress="teachers")
    trained = {
        fold: [load_best(_place(folder, fold, number)) for number in range(teachers)] for fold in range(study.folds)
    }
    predictions = StoredPredictions(folder / PREDICTIONS)
    predictions.write(study.seen, trained, study.vocabulary, study.start, windowing)
    copytree(_place(folder, 0, 0) / BEST, folder / TEACHER / BEST, dirs_exist_ok=True)
    labels = _labels(predictions, teachers)
    flop = _flop(study, trained, folder)
    return replace(
        study,
        labels=labels,
        predictions=predictions,
        teacher=folder / TEACHER,
        teacher_nats={CROSS_FITTED: np.mean([_mixture_nats(student, models) for models in trained.values()], axis=0)},
        labelling_flop=dict.fromkeys(labels, flop),
    )


def _train(teacher: tuple[int, int], student: Student, baseline: Trial, folder: Path) -> None:
    """Train a teacher, given its fold and number, on all documents of the other folds."""
    (fold, number), study, place = teacher, student.study, _place(folder, *teacher)
    others = study.seen.without_fold(fold, study.folds)
    config = student.configured(baseline, seed=student.training.seed + number)
    model = with_dropout(student.new_model(number * study.folds + fold), baseline)
    train_teacher(model, others, study.development, study.start, student.windowing, config, place)


def _place(folder: Path, fold: int, number: int) -> Path:
    return folder / f"fold-{fold}" / f"teacher-{number}"


def _labels(predictions: StoredPredictions, teachers: int) -> dict[str, np.ndarray]:
    labels = predictions.named_labels(CROSS_FITTED)
    if teachers > 1:
        deviation_N = predictions.labels(ENTROPY_DEVIATION)
        certain_N = deviation_N <= np.median(deviation_N)
        labels[f"{CROSS_FITTED} certain"] = np.where(certain_N, labels[CROSS_FITTED], np.float32(np.nan))
    assert [*labels] == label_names(teachers)
    return labels


def _mixture_nats(student: Student, models: Sequence[PreTrainedModel]) -> np.ndarray:
    """Return the loss in nats that the mixture of the models has on each test document [M]."""
    study = student.study
    nats_SN = [token_nats(model, study.test, student.windowing, study.start) for model in models]
    return sums_by_document(-mixture(-torch.from_numpy(np.stack(nats_SN))).numpy(), study.test)


def _flop(study: Study, trained: Mapping[int, Sequence[PreTrainedModel]], folder: Path) -> float:
    """Return the total FLOP of training all teachers and of labelling each document with the teachers of its fold."""
    places = [_place(folder, fold, number) for fold, models in trained.items() for number in range(len(models))]
    tokens = sum(evaluations(place)[-1]["tokens"] for place in places)
    return parameters(trained[0][0]) * (6.0 * tokens + 2.0 * len(trained[0]) * len(study.seen.tokens_N))
