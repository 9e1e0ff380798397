"""Comparison of ensembles with single models: rank correlations, groups of models, the report."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.experiments.ensembles import (
    EnsembleAccuracy,
    compare_ensembles,
    markdown,
    mean_of,
    measure_ensemble,
    rank_correlation,
    verdict,
)
from pipeline.experiments.sources import ContestSettings
from pipeline.labels import causal
from pipeline.labels.mixture import Teacher
from tests.tiny_models import random_tokens, tiny_language_model

TINY = ContestSettings(
    width=16, layers=1, heads=2, document_tokens=40, steps=3, batch=8, fresh_documents=6, bottleneck_width=1
)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=30))
def test_a_rank_correlation_is_the_correlation_of_mean_ranks(pairs: list[tuple[int, int]]) -> None:
    x, y = (np.array(side, float) for side in zip(*pairs, strict=True))
    # A value's rank is the number of smaller values, plus half the number of other values that are equal to it.
    ranks = [(side[:, None] > side).sum(1) + ((side[:, None] == side).sum(1) - 1) / 2 for side in (x, y)]
    found = rank_correlation(torch.from_numpy(x), torch.from_numpy(y))
    if min(np.ptp(x), np.ptp(y)) == 0:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(np.corrcoef(ranks)[0, 1], abs=1e-9)


def test_an_ensemble_is_measured_against_the_truth() -> None:
    one, other, input_ids_MT = tiny_language_model(), tiny_language_model(), random_tokens(3, 12)
    for weight in other.parameters():
        weight.add_(0.05 * torch.randn_like(weight))
    labels_MT = causal.token_entropies(one, input_ids_MT, 5).double()
    alone = measure_ensemble("coin", [Teacher(one, 5)], input_ids_MT, labels_MT - 0.5)
    assert alone.mean_absolute_error == pytest.approx(0.5) == alone.bias and alone.spearman is None
    equal = measure_ensemble("coin", [Teacher(one, 5), Teacher(one, 5)], input_ids_MT, labels_MT - 0.5)
    assert equal.mean_absolute_error == pytest.approx(0.5, abs=1e-5)
    pair = measure_ensemble("coin", [Teacher(one, 5), Teacher(other, 5)], input_ids_MT, labels_MT)
    assert pair.spearman is not None and pair.spearman > 0.8, "the error is the distance of the other model"


def test_models_are_trained_once_and_each_is_in_one_ensemble_of_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = list(compare_ensembles("markov-1", TINY, (2, 4), tmp_path))
    assert [(each.models, each.ensembles) for each in measured] == [(1, 4), (2, 2), (4, 1)]
    weights = sorted(tmp_path.glob("member-*/causal/model.safetensors"))
    assert len({file.read_bytes() for file in weights}) == 4
    monkeypatch.setattr("pipeline.experiments.trial.train", None)
    assert list(compare_ensembles("markov-1", TINY, (2, 4), tmp_path)) == measured


def test_the_report_says_on_how_many_sources_several_are_nearer() -> None:
    one = EnsembleAccuracy(
        source="a", models=1, ensembles=2, mean_absolute_error=0.5, bias=0.0, spearman=None, spearman_of_documents=None
    )
    two = replace(one, models=2, mean_absolute_error=0.4, spearman=0.6, spearman_of_documents=0.7)
    worse = replace(two, source="b", mean_absolute_error=0.6, spearman=0.4)
    measured = [one, replace(one, source="b"), two, worse]
    assert "| 2 | 0.4000 (0.60, 0.70) | 0.6000 (0.40, 0.70) |" in markdown(measured)
    assert "2 models are nearer to the truth than one on 1 of 2 sources" in verdict(measured)
    assert "above 0.5 on 1." in verdict(measured)
    mean = mean_of([two, replace(two, mean_absolute_error=0.2, spearman=0.8)])
    assert mean.mean_absolute_error == pytest.approx(0.3) and mean.spearman == pytest.approx(0.7)
    assert mean_of([one, one]).spearman is None and mean.ensembles == 2
