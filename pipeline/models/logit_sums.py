"""Sums over the vocabulary and predictions of given ids, from a matrix of logits, and their gradient.

`pipeline.models.cross_entropy` uses these functions on chunks of a larger matrix. The results that it differentiates
are the rows of a matrix [R, N]: the S fields of `LogitSums` and, if ids are given, the 1 + K rows of `GivenIds`.

N tokens, V vocabulary, K given ids per token, S sums, R rows.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor

NEARLY_ALL = 0.999  # 1 - this has a relative error of 1e-4 in float32
LEAST = 1e-30  # smallest probability by which a gradient is divided


class LogitSums(NamedTuple):
    """Sums over the vocabulary for each token, all of the same shape. p is the softmax of the logits."""

    losses: Tensor
    """Cross-entropy -ln p(target) in nats, where p is the softmax of the logits."""
    logsumexp: Tensor
    """ln of the sum of the logits' exponentials."""
    mean_logit: Tensor
    """Mean of the logits over all ids of the vocabulary, with equal weights."""
    entropies: Tensor
    """Entropy in nats of p, the softmax of the logits."""


SUMS = len(LogitSums._fields)


class GivenIds(NamedTuple):
    """Predictions of a few given ids for each token, and of all other ids together."""

    logprobs_NK: Tensor
    """ln p of each given id; 0 at an id of -1, which stands for none."""
    others_N: Tensor
    """ln of the total probability of all ids that are not given."""

    def rows(self) -> Tensor:
        """Return both as the rows of one matrix [1 + K, N]."""
        return torch.cat([self.others_N.unsqueeze(0), self.logprobs_NK.T])

    @classmethod
    def from_rows(cls, rows: Tensor) -> Self:
        """Return the predictions of which `rows` made a matrix."""
        return cls(rows[1:].T, rows[0])


def logit_sums(logits_NV: Tensor, target_N: Tensor) -> LogitSums:
    """Return all fields of `LogitSums`, [N] each."""
    return sums_of(logits_NV, logits_NV.log_softmax(dim=1), target_N)


def sums_of(logits_NV: Tensor, log_p_NV: Tensor, target_N: Tensor) -> LogitSums:
    """Return the same as `logit_sums`, if the logits' log-softmax is already known."""
    target_N1 = target_N.unsqueeze(1)
    losses_N1 = -log_p_NV.gather(1, target_N1)
    logsumexp_N1 = logits_NV.gather(1, target_N1) + losses_N1
    entropies_N = -torch.linalg.vecdot(log_p_NV.exp(), log_p_NV)
    return LogitSums(losses_N1.squeeze(1), logsumexp_N1.squeeze(1), logits_NV.mean(dim=1), entropies_N)


def given_ids(log_p_NV: Tensor, ids_NK: Tensor) -> GivenIds:
    """Return the predictions of the given ids, from the log-probabilities of all ids.

    An id of -1 stands for none. The probability of the other ids is 1 minus that of the given ones. Where this would
    not be exact, they are summed. To sum them for all tokens takes twice as long as all the rest of a loss against a
    few ids.
    """
    is_given_NK = ids_NK >= 0
    logprobs_NK = log_p_NV.gather(1, ids_NK.clamp(min=0)).masked_fill(~is_given_NK, 0)
    total_N = (logprobs_NK.exp() * is_given_NK).sum(dim=1)
    near_N = total_N > NEARLY_ALL
    others_N = (-total_N.clamp(max=NEARLY_ALL)).log1p()
    given_nV = torch.zeros_like(log_p_NV[near_N], dtype=torch.bool).scatter_(1, _filled(ids_NK[near_N]), True)
    summed_n = log_p_NV[near_N].masked_fill(given_nV, -torch.inf).logsumexp(dim=1)
    return GivenIds(logprobs_NK, others_N.masked_scatter(near_N, summed_n))


def gradient_of_sums(
    logits_NV: Tensor,
    target_N: Tensor,
    upstream_RN: Tensor,
    given: tuple[Tensor, ...] = (),
    softcap: float | None = None,
) -> Tensor:
    """Return the gradient of all rows with respect to the logits before the cap, [N, V].

    p is the softmax of the logits. Without a cap, the gradient has a term for each sum: p - one-hot target for the
    losses, p for the logsumexp, 1 / V for the mean logit, and -p x (logits - their mean under p) for the entropies.
    `_multiply_given` has the terms of given ids. Each term is multiplied by the upstream gradient of its row. To save
    memory, this function overwrites the logits. It needs as many matrices as the gradient of the losses alone.

    Args:
        logits_NV: logits, after the cap.
        target_N: the tokens.
        upstream_RN: upstream gradients of the rows.
        given: the ids [N, K], and the `others_N` that `given_ids` returned for them; or nothing.
        softcap: the cap, if there is one.
    """
    of_losses_N1, of_logsumexp_N1, of_mean_N1, of_entropies_N1 = upstream_RN[:SUMS].unsqueeze(2)
    slope_NV = None if softcap is None else 1 - (logits_NV / softcap).square_()
    gradient_NV = logits_NV.softmax(dim=1)
    factor = of_losses_N1 + of_logsumexp_N1
    if of_entropies_N1.any():
        expected_N1 = torch.linalg.vecdot(gradient_NV, logits_NV).unsqueeze(1)
        factor = logits_NV.sub_(expected_N1).mul_(-of_entropies_N1).add_(factor)
    if given:
        ids_NK, others_N = given
        _multiply_given(gradient_NV, factor, ids_NK, others_N, upstream_RN[SUMS:])
    else:
        gradient_NV *= factor
    if of_mean_N1.any():
        gradient_NV += of_mean_N1 / gradient_NV.shape[1]
    gradient_NV[torch.arange(len(target_N), device=target_N.device), target_N] -= of_losses_N1.squeeze(1)
    return gradient_NV if slope_NV is None else gradient_NV.mul_(slope_NV)


def _multiply_given(p_NV: Tensor, factor: Tensor, ids_NK: Tensor, others_N: Tensor, upstream_RN: Tensor) -> None:
    """Multiply p by `factor`, [N, V] or [N, 1], and add the gradient of `GivenIds`, in place.

    The gradient of a log-probability is one-hot id - p. The gradient of `others_N` is -p at given ids, and
    p / (probability of the others) - p at other ids. This quotient can be large, and would not cancel exactly at given
    ids. The gradient at given ids is therefore computed separately and written over the rest.
    """
    is_given_NK, columns_NK = ids_NK >= 0, _filled(ids_NK)
    of_others_N1, of_given_NK = upstream_RN[0].unsqueeze(1), upstream_RN[1:].T * is_given_NK
    factor = factor - of_others_N1 - of_given_NK.sum(dim=1, keepdim=True)
    factor_NK = factor.expand_as(p_NV).gather(1, columns_NK)
    gradient_NK = p_NV.gather(1, columns_NK) * factor_NK + of_given_NK
    gradient_NK = torch.where(is_given_NK, gradient_NK, gradient_NK.gather(1, ids_NK.argmax(dim=1, keepdim=True)))
    p_NV *= factor + of_others_N1 / others_N.exp().clamp(min=LEAST).unsqueeze(1)
    any_N1 = is_given_NK.any(dim=1, keepdim=True)
    p_NV.scatter_(1, columns_NK, torch.where(any_N1, gradient_NK, p_NV.gather(1, columns_NK)))


def _filled(ids_NK: Tensor) -> Tensor:
    """Replace each -1 by the largest id of its row, or by 0 if the row has no ids."""
    return torch.where(ids_NK >= 0, ids_NK, ids_NK.amax(dim=1, keepdim=True)).clamp(min=0)
