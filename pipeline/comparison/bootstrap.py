"""Paired bootstrap over documents and seeds: an interval for the difference of two methods' losses.

Shapes: S seeds, M documents, R resamples.
"""

from typing import NamedTuple

import numpy as np

RESAMPLES = 4000
LOW, HIGH = 2.5, 97.5


class Interval(NamedTuple):
    """A mean in nats per token, and the ends of its 95% interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def mean_loss(nats_SM: np.ndarray, tokens_M: np.ndarray, seed: int = 0) -> Interval:
    """Return the mean loss over seeds and documents in nats per token, with its interval.

    `nats_SM` has the sum of the losses of each document's tokens for each seed. `tokens_M` has the number of tokens.
    Documents and seeds are both drawn with replacement. If there is a single seed, only documents are drawn.
    """
    random = np.random.default_rng(seed)
    seeds, documents = nats_SM.shape
    seeds_RS = random.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    documents_RM = random.multinomial(documents, np.full(documents, 1 / documents), RESAMPLES)
    means_R = ((seeds_RS @ nats_SM) * documents_RM).sum(axis=1) / (documents_RM @ tokens_M)
    low, high = np.percentile(means_R, (LOW, HIGH))
    return Interval(float(nats_SM.mean(axis=0).sum() / tokens_M.sum()), float(low), float(high))


def paired_difference(nats_SM: np.ndarray, baseline_SM: np.ndarray, tokens_M: np.ndarray, seed: int = 0) -> Interval:
    """Return a method's mean loss minus the baseline's, in nats per token, with its interval.

    A resample takes the same documents and seeds for method and baseline, so that hard documents and lucky seeds affect
    both equally. The method is better than the baseline if the difference is below zero. A method with a single seed is
    compared with all of the baseline's seeds.
    """
    return mean_loss(nats_SM - baseline_SM, tokens_M, seed)
