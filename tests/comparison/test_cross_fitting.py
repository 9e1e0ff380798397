"""Cross-fitted labels: no teacher has read the documents that it labels, and the cost of the labels is counted."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.comparison.cross_fitting import cross_fitted
from pipeline.comparison.methods import Method, Trial
from pipeline.comparison.stored_predictions import StoredPredictions
from pipeline.comparison.student import document_nats, token_nats
from pipeline.comparison.teachers import load_best
from pipeline.data.corpus import Corpus, fold_of
from pipeline.training.metrics import evaluations
from tests.comparison.studies import CONFIG, VOCABULARY, WINDOWING, small_student

START = VOCABULARY - 1


TRIAL = Trial(method=Method(name="cross-entropy"), settings=(("dropout", 0.1), ("weight_decay", 0.5)))


def place(folder: Path, fold: int, number: int = 0) -> Path:
    return folder / "fitted" / f"fold-{fold}" / f"teacher-{number}"


def test_cross_fitted_teachers_never_read_what_they_label(tmp_path: Path) -> None:
    student = small_student(tmp_path)
    study = cross_fitted(student, TRIAL, tmp_path / "fitted")
    assert [*study.labels] == ["cross-fitted", "cross-fitted expected"]
    seen = student.study.seen
    models = [load_best(place(tmp_path, fold)) for fold in range(3)]
    for tokens_N, labels_N in zip(
        seen.by_document(seen.tokens_N), seen.by_document(study.labels["cross-fitted"]), strict=True
    ):
        only = type(seen).of([tokens_N])
        nats = [document_nats(model, only, WINDOWING, START)[0] for model in models]
        assert nats[fold_of(tokens_N, 3)] == pytest.approx(labels_N.sum(), abs=1e-4)
    every = [document_nats(model, study.test, WINDOWING, START) for model in models]
    np.testing.assert_allclose(study.teacher_nats["cross-fitted"], np.mean(every, axis=0))
    tokens = sum(evaluations(place(tmp_path, fold))[-1]["tokens"] for fold in range(3))
    assert study.labelling_flop["cross-fitted"] > 6 * models[0].num_parameters() * tokens
    assert [*cross_fitted(student, TRIAL, tmp_path / "fitted").labels["cross-fitted"]] == [
        *study.labels["cross-fitted"]
    ]
    assert CONFIG.steps == evaluations(place(tmp_path, 0))[-1]["step"]


def test_teachers_of_a_fold_label_as_their_mixture(tmp_path: Path) -> None:
    student = small_student(tmp_path)
    study, folder = cross_fitted(student, TRIAL, tmp_path / "fitted", teachers=2), tmp_path / "fitted"
    seen = student.study.seen
    nats_SN = np.stack([_labelled(seen, [place(tmp_path, fold, number) for fold in range(3)]) for number in range(2)])
    np.testing.assert_allclose(study.labels["cross-fitted"], -np.log(np.exp(-nats_SN).mean(axis=0)), atol=1e-4)
    deviation_N = np.abs(nats_SN[0] - nats_SN[1]) / np.sqrt(2)
    assert StoredPredictions(folder / "predictions").labels("entropy_deviation") == pytest.approx(deviation_N, abs=1e-4)
    certain_N = study.labels["cross-fitted certain"]
    assert (~np.isnan(certain_N)).sum() == (len(certain_N) + 1) // 2
    assert deviation_N[np.isnan(certain_N)].min() >= deviation_N[~np.isnan(certain_N)].max() - 1e-4
    alone = cross_fitted(student, TRIAL, tmp_path / "alone")
    assert study.teacher_nats["cross-fitted"].mean() < alone.teacher_nats["cross-fitted"].mean()
    assert study.labelling_flop["cross-fitted"] == pytest.approx(2 * alone.labelling_flop["cross-fitted"], rel=0.2)


def _labelled(seen: Corpus, places: list[Path]) -> np.ndarray:
    """Return the loss in nats of each token, computed by the model for the fold of the token's document.

    `places` are the folders of the models, one per fold. A model reads one document at a time.
    """
    models = [load_best(each) for each in places]
    documents = [Corpus.of([tokens_N]) for tokens_N in seen.by_document(seen.tokens_N)]
    return np.concatenate(
        [token_nats(models[fold_of(only.tokens_N, len(models))], only, WINDOWING, START) for only in documents]
    )
