"""Errors of labels compared with the truth, and tables of these errors."""

from dataclasses import replace

import pytest
import torch

from pipeline.experiments.accuracy import Accuracy, Contestant, markdown, measure, verdict

CAUSAL = Contestant(source="coin", method="causal", target="surprisal", token_passes=1, training_tflop=0.5)


def accuracy(method: str, source: str, error: float) -> Accuracy:
    truth_N = torch.arange(10.0)
    contestant = replace(CAUSAL, method=method, source=source)
    return measure(contestant, truth_N + error, truth_N)


def test_errors_of_labels_that_are_off_by_known_amounts() -> None:
    result = measure(CAUSAL, torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 3.0, 5.0]))
    assert result.mean_absolute_error == pytest.approx(2 / 3)
    assert result.bias == pytest.approx(0)
    assert result.r_squared == pytest.approx(1 - (2 / 3) / (8 / 3))


def test_scores_without_a_unit_have_only_a_correlation() -> None:
    truth_N = torch.tensor([1.0, 3.0, 5.0])
    result = measure(CAUSAL, 0.1 - truth_N / 100, truth_N, in_nats=False)
    assert (result.mean_absolute_error, result.bias) == (None, None)
    assert result.r_squared == pytest.approx(1)
    assert measure(CAUSAL, torch.zeros(3), truth_N, in_nats=False).r_squared == 0


def test_the_table_has_every_result_and_marks_the_nearest() -> None:
    results = [accuracy("causal", "coin", 0.1), accuracy("exact", "coin", 0.3), accuracy("exact", "die", 0.2)]
    table = markdown(results)
    assert "**0.100 (0.999)**" in table and "| 0.300 (0.989) | **0.200 (0.995)** |" in table


def test_the_verdict_names_where_a_method_beats_the_causal_model() -> None:
    results = [
        accuracy("causal", "coin", 0.1),
        accuracy("causal", "die", 0.1),
        accuracy("exact", "coin", 0.3),
        accuracy("exact", "die", 0.05),
    ]
    text = verdict(results)
    assert "coin: `causal` is nearest to the truth, 0.100 nats off" in text
    assert "`exact` is nearer to the truth than the causal model of equal compute on die." in text
    assert "On no source nearer to the truth than the causal model: `exact`." in verdict(results[:3:2])
