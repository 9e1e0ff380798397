"""Distillation from stored predictions: a student's cross-entropy against a teacher's likeliest or sampled ids.

B rows, T tokens of a row, N tokens, V vocabulary of the student, K ids stored per token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from pipeline.models.causal_lm import prepend_start
from pipeline.training.batches import Batch

Rest = Literal["bucket", "spread"]


class SparseTargets(NamedTuple):
    """A teacher's distribution for each token: the probabilities of a few ids, and the total probability of all others.

    All probabilities of a token without a label are 0, and so are its loss and its gradient.
    """

    ids_NK: Tensor
    p_NK: Tensor
    rest_N: Tensor


def top_k_targets(top_ids_NK: Tensor, top_logprobs_NK: Tensor, rest_logprob_N: Tensor) -> SparseTargets:
    """Return targets from the columns of `--top-k`, as `labelled_rows` gives them: float32, with NaN for null.

    Probabilities are scaled to add up to 1, since the stored ones are rounded.
    """
    p_NK, rest_N = top_logprobs_NK.exp().nan_to_num(0), rest_logprob_N.exp().nan_to_num(0)
    total_N = (p_NK.sum(dim=1) + rest_N).clamp(min=torch.finfo(p_NK.dtype).tiny)
    return SparseTargets(top_ids_NK.nan_to_num(0).long(), p_NK / total_N.unsqueeze(1), rest_N / total_N)


def sampled_targets(sampled_ids_NK: Tensor) -> SparseTargets:
    """Return targets from the column of `--sampled-ids`: an id has the probability 1/K for each time it was drawn.

    On average over draws, the gradient equals that of the teacher's whole distribution.
    """
    labelled_NK = ~sampled_ids_NK.isnan()
    p_NK = labelled_NK.float() / sampled_ids_NK.shape[1]
    return SparseTargets(sampled_ids_NK.nan_to_num(0).long(), p_NK, torch.zeros_like(p_NK[:, 0]))


def distillation(logits_NV: Tensor, targets: SparseTargets, rest: Rest = "bucket") -> Tensor:
    """Return the student's cross-entropy against the targets in nats, float32 [N].

    `rest` says how to treat the ids that are not stored. With `bucket`, the student learns only their total
    probability. With `spread`, it learns to divide this probability evenly among them. Stored ids outside the student's
    vocabulary count as not stored. If all probability lies on stored ids, the gradient with respect to the logits is
    q - p, where q is the student's distribution and p the teacher's.
    """
    log_q_NV = logits_NV.float().log_softmax(dim=1)
    ids_NK, p_NK, rest_N = _known(targets, logits_NV.shape[1])
    losses_N = -(p_NK * log_q_NV.gather(1, ids_NK)).sum(dim=1)
    if ids_NK.shape[1] >= logits_NV.shape[1]:
        return losses_N
    stored_NV = torch.zeros_like(log_q_NV, dtype=torch.bool).scatter_(1, ids_NK, True)
    if rest == "bucket":
        return losses_N - rest_N * log_q_NV.masked_fill(stored_NV, -torch.inf).logsumexp(dim=1)
    others_N = (~stored_NV).sum(dim=1)
    return losses_N - rest_N / others_N * log_q_NV.masked_fill(stored_NV, 0).sum(dim=1)


@dataclass(frozen=True)
class DistillationLoss:
    """Loss of a student in nats per token: the weighted mean of two cross-entropies.

    One cross-entropy is against a teacher, and one is against the tokens themselves.
    """

    targets: Callable[[Tensor], SparseTargets]
    """Function that returns the teacher's targets of tokens, given the index of each token [N] in the corpus."""
    start: int
    """Id of the token to read before each row."""
    weight: float = 1.0
    """Weight of the teacher, from 0 to 1. The weight of the tokens themselves is 1 minus this."""

    def __call__(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        assert batch.positions_BT is not None
        real_BT = batch.real_BT
        logits_NV = model(input_ids=prepend_start(batch.inputs_BT, self.start), use_cache=False).logits[real_BT].float()
        taught_N = distillation(logits_NV, self.targets(batch.positions_BT[real_BT]))
        own_N = cross_entropy(logits_NV, batch.input_ids_BT[real_BT], reduction="none")
        losses_N = self.weight * taught_N + (1 - self.weight) * own_N
        return losses_N.sum() / int(batch.whole.lengths_B.sum())


def _known(targets: SparseTargets, vocabulary: int) -> SparseTargets:
    """Move the probabilities of ids outside the student's vocabulary to `rest_N`, and return the new targets.

    There may be such ids because a teacher's head may have more rows than its tokenizer has ids.
    """
    known_NK = targets.ids_NK < vocabulary
    ids_NK = torch.where(known_NK, targets.ids_NK, targets.ids_NK[:, :1].clamp(max=vocabulary - 1))
    p_NK = targets.p_NK * known_NK
    return SparseTargets(ids_NK, p_NK, targets.rest_N + (targets.p_NK - p_NK).sum(dim=1))
