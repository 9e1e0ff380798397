"""Intervals of the paired bootstrap: coverage on drawn data, and pairing."""

import numpy as np

from pipeline.comparison.bootstrap import mean_loss, paired_difference

TOKENS = np.array([10, 20, 30, 40, 50] * 8)


def drawn(random: np.random.Generator, effect: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the nats of each document [seeds, documents], for a method and for a baseline.

    Documents differ from each other far more than the method differs from the baseline.
    """
    hard_M = random.normal(3, 1, len(TOKENS))
    baseline_SM = hard_M + random.normal(0, 0.1, (5, len(TOKENS)))
    method_SM = hard_M + effect + random.normal(0, 0.1, (5, len(TOKENS)))
    return method_SM * TOKENS, baseline_SM * TOKENS


def test_the_mean_weighs_every_token_alike() -> None:
    nats_SM = np.array([[10.0, 80.0], [20.0, 40.0]])
    assert mean_loss(nats_SM, np.array([10, 20])).mean == (15 + 60) / 30


def test_the_interval_of_a_difference_covers_it_about_as_often_as_it_says() -> None:
    covered = []
    for seed in range(120):
        interval = paired_difference(*drawn(np.random.default_rng(seed), 0.05), TOKENS, seed)
        covered.append(interval.low <= 0.05 <= interval.high)
    assert 0.88 <= np.mean(covered) <= 1


def test_a_small_difference_is_found_since_documents_are_paired() -> None:
    method_SM, baseline_SM = drawn(np.random.default_rng(0), 0.1)
    assert paired_difference(method_SM, baseline_SM, TOKENS).excludes_zero
    alone, other = mean_loss(method_SM, TOKENS), mean_loss(baseline_SM, TOKENS)
    assert alone.low < other.mean < alone.high  # without pairing, the difference would not be found
    assert not paired_difference(baseline_SM, baseline_SM, TOKENS).excludes_zero


def test_seeds_that_differ_widen_the_interval() -> None:
    alike_SM = np.tile(TOKENS * 3.0, (5, 1))
    differing_SM = alike_SM + TOKENS * np.array([-0.4, -0.2, 0, 0.2, 0.4])[:, None]
    narrow, wide = (mean_loss(nats_SM, TOKENS) for nats_SM in (alike_SM, differing_SM))
    assert narrow.high - narrow.low < 1e-9 and wide.high - wide.low > 0.3
