"""Held-out figures: one number a token over a whole corpus, summed in float64.

B rows, T tokens of the longest row.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.data.corpus import Corpus
from pipeline.training.batches import Batch, Cut, epoch_batches


def held_out_batches(corpus: Corpus, cut: Cut, device: torch.device) -> Iterator[Batch]:
    """Every token of the corpus once, in an order that is always the same."""
    for batch in epoch_batches(corpus, cut, np.random.default_rng(0)):
        yield batch.to(device)


def mean_of(losses: Iterable[Tensor]) -> float:
    """Mean over all numbers of all tensors: of a corpus, batch by batch."""
    total, count = 0.0, 0
    for losses_N in losses:
        total, count = total + losses_N.double().sum().item(), count + losses_N.numel()
    return total / count


def r_squared(estimates_N: Tensor, truth_N: Tensor) -> float:
    """1 - mean squared error / variance of the truth, in float64: 0 for its mean, 1 for the truth itself."""
    estimates_N, truth_N = estimates_N.double(), truth_N.double()
    return 1 - ((estimates_N - truth_N).square().mean() / truth_N.var(correction=0)).item()
