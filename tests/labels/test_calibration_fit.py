"""Fits of calibrations to labels whose relation to the reference is planted."""

import numpy as np
import pytest

from pipeline.labels.agreement import Pair, agreement, joined
from pipeline.labels.calibration import apply_fit
from pipeline.labels.calibration_fit import calibrated_pairs, column_fit, fit_of, is_held_out
from schemas.calibrations import MOST_FITS, MOST_KNOTS, Calibration, CalibrationKind
from tests.labels.calibrations import LINEAR, calibration

PLANTED = {"a": (0.5, 1.0), "b": (2.0, -0.25), "c": (1.0, 0.0)}


def planted(documents: int, tokens: int, noise: float = 0.0, seed: int = 0) -> list[Pair]:
    """Return pairs of documents with planted labels.

    A reference label is a linear function of the label, plus noise. PLANTED has the function of each domain.
    """
    random = np.random.default_rng(seed)
    pairs = []
    for number in range(documents):
        domain = "abc"[number % 3]
        labels_T = random.gamma(2, 2, tokens).astype(np.float32)
        slope, bias = PLANTED[domain]
        reference_T = (slope * labels_T + bias + noise * random.standard_normal(tokens)).astype(np.float32)
        ids_T = random.integers(0, 100, tokens, dtype=np.int32)
        pairs.append(Pair(ids_T, {"entropy": labels_T}, {"entropy": reference_T}, domain))
    return pairs


def test_planted_lines_are_found_for_each_domain_and_for_all() -> None:
    pairs = planted(30, 200)
    fitted = column_fit(pairs, "entropy", "linear", 100)
    assert {each.domain for each in fitted.domains} == {*PLANTED}
    for each in fitted.domains:
        np.testing.assert_allclose((each.fit.slope, each.fit.bias), PLANTED[each.domain], atol=1e-5)
        assert each.fit.tokens == 2000
    labels_N, reference_N = joined(pairs, "entropy")
    wanted = np.polyfit(labels_N, reference_N, 1)
    np.testing.assert_allclose((fitted.pooled.slope, fitted.pooled.bias), wanted, rtol=1e-9)
    assert fitted.pooled.tokens == 6000


def test_domains_of_few_tokens_of_one_label_or_of_none_have_no_fit() -> None:
    equal = Pair(np.arange(50, dtype=np.int32), *({"entropy": np.full(50, 2, np.float32)},) * 2, "equal")
    falling = equal._replace(
        labels={"entropy": np.arange(50.0)}, reference={"entropy": -np.arange(50.0)}, domain="falling"
    )
    one = Pair(np.zeros(1, np.int32), *({"entropy": np.ones(1, np.float32)},) * 2, "one")
    empty = Pair(np.zeros(0, np.int32), *({"entropy": np.ones(0, np.float32)},) * 2, "empty")
    unlabelled = equal._replace(labels={"entropy": np.full(50, np.nan, np.float32)}, domain="unlabelled")
    others = [equal, falling, one, empty, unlabelled, *(pair._replace(domain=None) for pair in planted(3, 50, seed=1))]
    fitted = column_fit([*planted(30, 200), *others], "entropy", "linear", 1)
    assert {each.domain for each in fitted.domains} == {*PLANTED}
    assert fitted.pooled.tokens == 6000 + 50 + 50 + 1 + 150
    assert column_fit(planted(30, 200), "entropy", "linear", 2001).domains == ()


def test_labels_that_say_nothing_about_the_reference_are_refused() -> None:
    for labels, reference in (
        ([1.0, 1.0], [1.0, 2.0]),
        ([1.0, 2.0], [2.0, 1.0]),
        ([1.0], [1.0]),
        ([np.nan] * 3, [1.0] * 3),
    ):
        pair = Pair(np.arange(len(labels)), {"entropy": np.array(labels)}, {"entropy": np.array(reference)}, None)
        with pytest.raises(ValueError, match=r"`entropy` does not rise with the reference's .*; label more documents"):
            column_fit([pair], "entropy", "linear", 1)


def test_too_many_domains_are_refused() -> None:
    (pair,) = planted(1, 50)
    pairs = [pair._replace(domain=str(number)) for number in range(MOST_FITS + 1)]
    with pytest.raises(
        ValueError, match=f"257 domains have enough tokens, more than {MOST_FITS}; raise --fewest-tokens"
    ):
        column_fit(pairs, "entropy", "linear", 1)


@pytest.mark.parametrize("kind", ["linear", "isotonic"])
def test_on_other_documents_the_mean_reference_of_a_calibrated_label_is_the_label(kind: CalibrationKind) -> None:
    if kind == "isotonic":
        pytest.importorskip("sklearn")
    pairs = [pair for pair in planted(600, 200, noise=1.0) if pair.domain == "a"]
    held_out = [pair for pair in pairs if is_held_out(pair, 0.5)]
    fitted = [pair for pair in pairs if not is_held_out(pair, 0.5)]
    assert 60 < len(held_out) < 140
    column = column_fit(fitted, "entropy", kind, 1)
    found = Calibration(**{**vars(calibration(pooled=LINEAR, by="x")), "kind": kind, "columns": (column,)})
    found.require_possible()
    after = agreement([*calibrated_pairs(held_out, "entropy", found)], "entropy")
    before = agreement(held_out, "entropy")
    assert before is not None and after is not None
    assert abs(before.slope - 0.5) < 0.02 and abs(after.slope - 1) < 0.02 and abs(after.bias) < 0.05
    assert after.mean_absolute_error < before.mean_absolute_error and abs(after.mean_difference) < 0.02


def test_isotonic_fits_rise_and_follow_a_curve_that_a_line_misses() -> None:
    pytest.importorskip("sklearn")
    random = np.random.default_rng(0)
    labels_N = random.gamma(2, 2, 20000)
    reference_N = np.sqrt(labels_N) + 0.1 * random.standard_normal(20000)
    curve, line = fit_of(labels_N, reference_N, "isotonic"), fit_of(labels_N, reference_N, "linear")
    assert curve is not None and line is not None
    curve.require_possible("isotonic")
    assert (curve.slope, curve.bias) == (line.slope, line.bias) and 50 < len(curve.labels) <= MOST_KNOTS
    inner_N = np.linspace(0.5, 12, 100)
    assert np.abs(apply_fit(curve, inner_N) - np.sqrt(inner_N)).max() < 0.06
    assert np.abs(apply_fit(line, inner_N) - np.sqrt(inner_N)).max() > 0.2
    ends_N = apply_fit(curve, np.array([-1e6, 1e6], np.float32))
    assert ends_N.tolist() == np.array([curve.reference[0], curve.reference[-1]], np.float32).tolist()
