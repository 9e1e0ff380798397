"""Penalties of a prediction that need no label, added to the values of any objective: regularisers without a teacher.

Each penalty is a function of sums over the vocabulary, which are computed along with the cross-entropy l. Penalties do
not change l itself. Training minimises the sum of objective and penalties, averaged over the predicted tokens.

V vocabulary, q distribution that the model predicts for a token.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.models.logit_sums import LogitSums
from pipeline.training.config import ObjectiveSettings

Penalty = Callable[[LogitSums], Tensor]
"""Function that takes the `LogitSums` of tokens and returns a penalty per token, to add to the objective's values.

The result has the shape of each sum."""


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
    """Return the mean of -ln q(v) over all ids v, minus l (label smoothing, Szegedy et al. 2016, arXiv 1512.00567).

    q is the predicted distribution, and l is the plain cross-entropy of the token. l plus eps times the returned
    value is the cross-entropy with a smoothed target, as in torch. The smoothed target is (1 - eps) times the one-hot
    target, plus eps / V for each of the V ids.
    """
    return sums.logsumexp - sums.mean_logit - sums.losses


def confidence(sums: LogitSums) -> Tensor:
    """Return minus the prediction's entropy in nats (confidence penalty, Pereyra et al. 2017, arXiv 1701.06548)."""
    return -sums.entropies


def square_of_logsumexp(sums: LogitSums) -> Tensor:
    """Return the square of the logarithm of the softmax's denominator (z-loss, PaLM, arXiv 2204.02311, section 5)."""
    return sums.logsumexp.square()
