"""Penalties of a prediction that need no label, added to the values of any objective: regularisers without a teacher.

Each penalty is a function of sums over the vocabulary that are computed along with the cross-entropy l, and l itself
stays the plain cross-entropy. Training minimises the mean of objective plus penalties over the predicted tokens.

V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.models.cross_entropy import LogitSums
from pipeline.training.config import ObjectiveSettings

Penalty = Callable[[LogitSums], Tensor]
"""Function of the sums of each token. It returns the values to add to those of the objective, of the same shape."""


def penalty_function(settings: ObjectiveSettings) -> Penalty | None:
    """Return a function that adds up the penalties, each times its coefficient; None if all coefficients are 0."""
    coefficients: dict[Penalty, float] = {
        smoothing: settings.label_smoothing,
        confidence: settings.confidence_penalty,
        square_of_logsumexp: settings.z_loss,
    }
    chosen = [(function, coefficient) for function, coefficient in coefficients.items() if coefficient]
    if not chosen:
        return None
    return lambda sums: torch.stack([coefficient * function(sums) for function, coefficient in chosen]).sum(dim=0)


def smoothing(sums: LogitSums) -> Tensor:
    """Return the mean of -ln q(v) over the V ids v, minus l (label smoothing, Szegedy et al. 2016, arXiv 1512.00567).

    l plus eps times this is the cross-entropy with the target (1 - eps) one-hot + eps / V, as in torch.
    """
    return sums.logsumexp - sums.mean_logit - sums.losses


def confidence(sums: LogitSums) -> Tensor:
    """Return the negative entropy of q in nats (confidence penalty, Pereyra et al. 2017, arXiv 1701.06548)."""
    return -sums.entropies


def square_of_logsumexp(sums: LogitSums) -> Tensor:
    """Return the square of the logarithm of the softmax's denominator (z-loss, PaLM, arXiv 2204.02311, section 5)."""
    return sums.logsumexp.square()
