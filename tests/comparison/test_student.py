"""Students of a study: the small language models that are trained with each method.

Trials with different settings or seeds give different models. A finished trial is not trained again. Losses are
computed for each document.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.comparison.known_study import drawn_study
from pipeline.comparison.methods import Method, Trial, methods_for, trials_of
from pipeline.comparison.student import Student, document_nats, saved_test_losses
from pipeline.comparison.teachers import load_best
from pipeline.experiments.sources import ContestSettings
from pipeline.models.sizes import TransformerSizes
from pipeline.training.batches import Batch
from pipeline.training.config import TrainingConfig
from pipeline.training.losses import document_losses
from tests.comparison.studies import WINDOWING, random_corpus, small_student

COMMON = {"learning_rate": (0.01,), "weight_decay": (0.1,), "dropout": (0.1,)}


@pytest.fixture
def student(tmp_path: Path) -> Student:
    return small_student(tmp_path)


def final(student: Student, trial: Trial) -> float:
    return student.search(trial)[-1]["development_loss"]


def test_every_method_trains_and_no_two_train_the_same_model(student: Student) -> None:
    methods = methods_for(["truth", "causal"], "truth", distils=(0, 50), from_teacher=True)
    losses = {method.name: final(student, trials_of(method, COMMON, 1)[0]) for method in methods}
    assert losses.pop("adaflood") == losses["cross-entropy"]  # as long as all losses are above its lowered levels
    assert len(set(losses.values())) == len(methods) - 1, losses
    assert all(np.isfinite([*losses.values()]))


def test_trials_differ_by_settings_and_seed_and_are_not_repeated(student: Student) -> None:
    flood = Method(name="flood", objective="flood", labels="truth")
    trials = [
        Trial(method=flood),
        Trial(method=flood, seed=1),
        Trial(method=flood, settings=(("dropout", 0.2),)),
        Trial(method=flood, settings=(("margin", 0.5),)),
        Trial(method=flood, settings=(("weight_decay", 2.0),)),
        Trial(method=flood, settings=(("learning_rate", 0.002),)),
    ]
    curves = [student.search(trial) for trial in trials]
    assert all([record["step"] for record in curve] == [3, 6] for curve in curves)
    assert len({curve[-1]["development_loss"] for curve in curves}) == len(trials)
    assert [student.search(trial) for trial in trials] == curves
    assert not list(student.folder.rglob("unfinished*")) and not list(student.folder.rglob("*.safetensors"))


def test_a_margin_equals_changed_labels(student: Student, tmp_path: Path) -> None:
    moved = replace(student.study, labels={"truth": student.study.labels["truth"] + 0.5})
    other = replace(student, study=moved, folder=tmp_path / "other")
    flood = Method(name="flood", objective="flood", labels="truth")
    with_margin = final(student, Trial(method=flood, settings=(("margin", 0.5),)))
    assert with_margin == pytest.approx(final(other, Trial(method=flood)), abs=1e-6)
    assert with_margin != pytest.approx(final(other, Trial(method=flood, seed=1)), abs=1e-6)


def test_the_test_documents_are_read_by_the_best_and_the_last_model(student: Student) -> None:
    trial = Trial(method=Method(name="cross-entropy"), seed=3)
    curve = student.test(trial)
    folder = student.folder / trial.folder
    best = document_nats(load_best(folder), student.study.test, WINDOWING, student.study.start)
    np.testing.assert_allclose(saved_test_losses(folder, "best"), best)
    assert student.search(trial) == curve
    last, elsewhere = saved_test_losses(folder, "last"), saved_test_losses(folder, "best elsewhere")
    assert len(last) == 12 and len(elsewhere) == 4
    written = (folder / "test.npz").stat().st_mtime_ns
    assert student.test(trial) == curve and (folder / "test.npz").stat().st_mtime_ns == written


def test_a_student_from_the_teacher_begins_with_its_loss(student: Student) -> None:
    method = Method(name="from the teacher", from_teacher=True)
    trial = Trial(method=method, settings=(("learning_rate", 1e-9), ("weight_decay", 0.0)))
    assert student.study.teacher is not None
    teacher = load_best(student.study.teacher)
    own = document_nats(teacher, student.study.development, WINDOWING, student.study.start).sum()
    tokens = len(student.study.development.tokens_N)
    assert final(student, trial) == pytest.approx(own / tokens, abs=1e-5)


def test_nats_of_documents_are_sums_over_their_windows(student: Student) -> None:
    model, corpus = student.new_model(0), random_corpus(5)
    nats_M = document_nats(model, corpus, WINDOWING, student.study.start)
    for tokens_N, nats in zip(corpus.by_document(corpus.tokens_N), nats_M, strict=True):
        windows = torch.from_numpy(tokens_N).long().split(WINDOWING.window)
        with torch.no_grad():
            slow = sum(
                document_losses(model, Batch(ids[None], torch.tensor([len(ids)])), student.study.start).sum().item()
                for ids in windows
            )
        assert nats == pytest.approx(slow, abs=1e-4)


@pytest.mark.long
def test_flooding_with_the_truth_does_not_overfit_and_cross_entropy_does(tmp_path: Path) -> None:
    study = drawn_study("markov-1", ContestSettings(document_tokens=32, fresh_documents=2), 32, 32)
    training = TrainingConfig(steps=120, tokens_per_batch=1024, learning_rate=5e-3, evaluate_every=20)
    student = Student(study, TransformerSizes(context=32, width=64, layers=2, heads=4), training, tmp_path)
    flooded, plain = (
        student.search(Trial(method=method))
        for method in (Method(name="flood", objective="flood", labels="truth"), Method(name="cross-entropy"))
    )
    best = min(record["development_loss"] for record in plain)
    assert plain[-1]["development_loss"] > best + 1 and plain[-1]["seen_loss"] < 1
    assert flooded[-1]["development_loss"] < best
