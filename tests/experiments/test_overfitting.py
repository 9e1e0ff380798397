"""Trials that differ in a single setting, and their summary."""

from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.corpus import Corpus
from pipeline.experiments.overfitting import run_trial
from pipeline.experiments.sources import SOURCES, draw
from pipeline.experiments.study import (
    ObjectiveTrial,
    Study,
    default_objectives,
    interval,
    markdown,
    summarise,
    trials,
    write_results,
)
from pipeline.models.sizes import TransformerSizes
from pipeline.training.config import TrainingConfig

SIZES = TransformerSizes(context=8, width=16, layers=1, heads=2)
CONFIG = TrainingConfig(steps=6, tokens_per_batch=64, learning_rate=0.01, evaluate_every=3)


@pytest.fixture
def study() -> Study:
    random = np.random.default_rng(0)
    seen, held_out = (Corpus.of([random.integers(9, size=8).astype(np.int32) for _ in range(12)]) for _ in range(2))
    labels = {name: random.gamma(2, size=96).astype(np.float32) for name in ("truth", "second-order")}
    return Study(seen, labels, {"held_out": held_out}, vocabulary=9, start=9)


def test_every_objective_meets_every_dropout_and_seed_once() -> None:
    objectives = default_objectives(["truth", "second-order"], "second-order")
    planned = trials(objectives, (0.0, 0.1), 3)
    assert max(Counter(trial.name for trial in planned).values()) == 1
    assert len(planned) == 6 * len(objectives) == 6 * len(set(objectives))
    assert {"cross-entropy", "flood", "floor", "weight", "mask", "flood-mean", "random-share", "reference-share"} == {
        trial.objective for trial in planned
    }
    assert {trial.labels for trial in planned} == {None, "truth", "second-order", "shuffled second-order"}


def test_only_objectives_that_approach_their_labels_are_tried_with_every_correction() -> None:
    objectives = default_objectives(["truth", "second-order"], "second-order")
    planned = trials(objectives, (0.0,), 1, (1.0, 1.5), (0.0, 2.0))
    assert max(Counter(trial.name for trial in planned).values()) == 1
    corrected = {trial.objective for trial in planned if (trial.scale, trial.margin) == (1.5, 2.0)}
    assert corrected == {"flood", "floor", "flood-mean"}
    assert len(planned) == len(objectives) + 3 * sum(objective in corrected for objective, _ in objectives)
    assert "second-order x 1.5 + 2" in {trial.corrected_labels for trial in planned}


def test_a_correction_equals_changed_labels(study: Study, tmp_path: Path) -> None:
    other = replace(study, labels={"truth": study.labels["truth"] / 2 + 1})
    tried = {"corrected": ((0.5, 1.0), study), "changed": ((), other), "whole": ((), study)}
    final = {}
    for name, (correction, each) in tried.items():
        curve = run_trial(ObjectiveTrial("flood", "truth", 0.0, 0, *correction), each, SIZES, CONFIG, tmp_path / name)
        final[name] = curve[-1]["held_out_loss"]
    assert final["corrected"] == final["changed"] != final["whole"]


def test_trials_differ_by_objective_labels_and_seed(study: Study, tmp_path: Path) -> None:
    planned = [
        ObjectiveTrial("cross-entropy", None, 0.0, 0),
        ObjectiveTrial("cross-entropy", None, 0.1, 0),
        ObjectiveTrial("cross-entropy", None, 0.0, 1),
        ObjectiveTrial("flood", "truth", 0.0, 0),
        ObjectiveTrial("flood", "second-order", 0.0, 0),
        ObjectiveTrial("flood", "shuffled truth", 0.0, 0),
    ]
    curves = [run_trial(trial, study, SIZES, CONFIG, tmp_path) for trial in planned]
    assert all([record["step"] for record in curve] == [3, 6] for curve in curves)
    assert len({curve[-1]["held_out_loss"] for curve in curves}) == len(planned)
    again = [run_trial(trial, study, SIZES, CONFIG, tmp_path) for trial in planned]
    assert again == curves
    assert not list(tmp_path.rglob("unfinished*"))


def test_a_random_share_ignores_labels(study: Study, tmp_path: Path) -> None:
    one, other = (
        run_trial(ObjectiveTrial("random-share", labels, 0.0, 0), study, SIZES, CONFIG, tmp_path)
        for labels in (None, "truth")
    )
    assert [record["held_out_loss"] for record in one] == [record["held_out_loss"] for record in other]


def test_flooding_with_the_truth_does_not_overfit_and_cross_entropy_does(tmp_path: Path) -> None:
    source = SOURCES["markov-1"](np.random.default_rng(0))
    seen, held_out = (draw(source, 32, 32, np.random.default_rng([0, stream])) for stream in (1, 2))
    corpora = [Corpus.of(list(drawn.tokens_MT.astype(np.int32))) for drawn in (seen, held_out)]
    labels = {"truth": seen.surprisal_MT.ravel().astype(np.float32)}
    study = Study(corpora[0], labels, {"held_out": corpora[1]}, source.vocabulary, source.vocabulary)
    sizes, config = (
        TransformerSizes(context=32, width=64, layers=2, heads=4),
        TrainingConfig(steps=120, tokens_per_batch=1024, learning_rate=5e-3, evaluate_every=20),
    )
    flooded, plain = (
        run_trial(ObjectiveTrial(objective, "truth", 0.0, 0), study, sizes, config, tmp_path)
        for objective in ("flood", "cross-entropy")
    )
    best = min(record["held_out_loss"] for record in plain)
    assert plain[-1]["held_out_loss"] > best + 1 and plain[-1]["seen_loss"] < 1
    assert flooded[-1]["held_out_loss"] < best


def test_shuffled_labels_are_the_same_labels_at_other_tokens(study: Study) -> None:
    shuffled, again = (study.with_labels("shuffled truth", seed).labels_N for seed in (0, 0))
    assert shuffled is not None and again is not None
    np.testing.assert_array_equal(shuffled, again)
    assert sorted(shuffled) == sorted(study.labels["truth"]) and not np.array_equal(shuffled, study.labels["truth"])


def curve(*held_out: float, seen: float = 1.0) -> list[dict[str, float]]:
    return [{"step": step, "held_out_loss": loss, "seen_loss": seen} for step, loss in enumerate(held_out)]


def test_a_summary_is_over_all_seeds(tmp_path: Path) -> None:
    figures = {
        ObjectiveTrial("flood", "truth", 0.0, 0): curve(3.0, 2.0, 2.5),
        ObjectiveTrial("flood", "truth", 0.0, 1): curve(3.0, 2.2, 2.1),
        ObjectiveTrial("cross-entropy", None, 0.0, 0): curve(3.0, 2.4, 6.0, seen=0.5),
    }
    flood, plain = summarise(figures)
    assert (flood.final, flood.best, flood.gap, flood.seeds) == pytest.approx((2.3, 2.05, 1.3, 2))
    assert flood.final_error == pytest.approx(12.71 * 0.2)  # two seeds: a deviation of 0.283 divided by the root of two
    assert (plain.labels, plain.final, plain.best, plain.gap) == ("none", 6.0, 2.4, 5.5)
    table = write_results(tmp_path, figures, [flood, plain], 2.0, "a command")
    assert table.index("| flood | truth | 0 | 2.300 (2.542)") < table.index("| cross-entropy | none")
    assert {file.name for file in tmp_path.iterdir()} == {"results.csv", "curves.csv", "results.md", "curves.png"}
    assert len((tmp_path / "curves.csv").read_text(encoding="utf-8").splitlines()) == 1 + len(
        [*chain(*figures.values())]
    )
    assert "other text" not in markdown([flood], None)


def test_one_seed_has_no_interval() -> None:
    assert np.isnan(interval([1.0])) and interval([1.0, 1.0, 1.0]) == 0
