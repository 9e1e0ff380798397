"""Distillation from stored predictions: a student's cross-entropy against a teacher's likeliest or sampled ids.

B rows, T tokens of a row, N tokens, D width, V vocabulary of the student, K ids stored per token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from pipeline.data.annotated import AnnotatedDataset
from pipeline.data.shards import numbers_per_token
from pipeline.models.causal_lm import prepend_start
from pipeline.models.logit_sums import GivenIds, given_ids
from pipeline.training.batches import Batch
from schemas.annotations import LOGPROB_ROUNDING_NATS, PREDICTED

Rest = Literal["bucket", "spread"]
MOST_UNITS = 2**16 - 1  # 64 nats: smaller probabilities are held as 0


class SparseTargets(NamedTuple):
    """A teacher's distribution for each token: the probabilities of a few ids, and the total probability of all others.

    All probabilities of a token without a label are 0, and so are its loss and its gradient.
    """

    ids_NK: Tensor
    p_NK: Tensor
    rest_N: Tensor

    @property
    def given_ids_NK(self) -> Tensor:
        """Stored ids; an id without a probability is -1."""
        return self.ids_NK.masked_fill(self.p_NK == 0, -1)

    @property
    def labelled_N(self) -> Tensor:
        """True for each token with a label."""
        return self.p_NK.sum(dim=1) + self.rest_N > 0

    def known(self, vocabulary: int) -> Self:
        """Return targets in which the probabilities of ids outside the student's vocabulary are moved to `rest_N`.

        There may be such ids because a teacher's head may have more rows than its tokenizer has ids.
        """
        known_NK = self.ids_NK < vocabulary
        p_NK = self.p_NK * known_NK
        ids_NK = torch.where(known_NK, self.ids_NK, self.ids_NK[:, :1].clamp(max=vocabulary - 1))
        return type(self)(ids_NK, p_NK, self.rest_N + (self.p_NK - p_NK).sum(dim=1))


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
    log_q_NV, vocabulary = logits_NV.float().log_softmax(dim=1), logits_NV.shape[1]
    targets = targets.known(vocabulary)
    if rest == "bucket":
        return _cross_entropy(given_ids(log_q_NV, targets.given_ids_NK), targets, vocabulary)
    losses_N = -(targets.p_NK * log_q_NV.gather(1, targets.ids_NK)).sum(dim=1)
    stored_NV = torch.zeros_like(log_q_NV, dtype=torch.bool).scatter_(1, targets.ids_NK, True)
    others_N = (~stored_NV).sum(dim=1).clamp(min=1)
    return losses_N - targets.rest_N / others_N * log_q_NV.masked_fill(stored_NV, 0).sum(dim=1)


def distilled(given: GivenIds, targets: SparseTargets, own_BT: Tensor, vocabulary: int) -> Tensor:
    """Return a student's cross-entropy against the targets in nats, float32 [B, T].

    `given` has the student's predictions of the ids in the targets. At tokens without a label, the result is `own_BT`,
    the student's own cross-entropy.
    """
    losses_N = _cross_entropy(given, targets, vocabulary)
    return torch.where(targets.labelled_N, losses_N, own_BT.flatten()).view_as(own_BT)


def _cross_entropy(given: GivenIds, targets: SparseTargets, vocabulary: int) -> Tensor:
    losses_N = -(targets.p_NK * given.logprobs_NK).sum(dim=1)
    stores_all = targets.ids_NK.shape[1] >= vocabulary
    return losses_N if stores_all else losses_N - targets.rest_N * given.others_N


@dataclass(frozen=True)
class StoredTargets:
    """A teacher's predictions for all tokens of a dataset, in memory: 4 K + 2 bytes per token.

    Log-probabilities are held as whole multiples of LOGPROB_ROUNDING_NATS below 0, as annotation rounds them.
    """

    ids_NK: np.ndarray
    units_NK: np.ndarray
    rest_N: np.ndarray
    labelled_N: np.ndarray
    """True for each token that has a prediction."""

    @classmethod
    def of(cls, dataset: AnnotatedDataset, stop: int | None = None) -> Self:
        """Read the columns of `--top-k` of the rows before `stop`, or of all rows.

        Raises:
            ValueError: if the dataset does not have these columns.
            ValueError, OSError: as `AnnotatedDataset.batches` does.
        """
        if not dataset.provenance.top_k:
            raise ValueError(f"{dataset.source} has no predictions to distil; annotate with --method causal --top-k 50")
        parts = [
            _stored(*(numbers_per_token(name, batch.column(name)) for name in PREDICTED))
            for batch in dataset.batches(PREDICTED, 0, stop)
        ]
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def __call__(self, positions_N: Tensor) -> SparseTargets:
        """Return the targets of the tokens with these indices in the dataset, on the device of the indices."""
        index_N = positions_N.cpu().numpy()
        ids_NK, units_NK, rest_N = (
            torch.from_numpy(array[index_N].astype(np.int64)).to(positions_N.device)
            for array in (self.ids_NK, self.units_NK, self.rest_N)
        )
        unlabelled_N = torch.from_numpy(~self.labelled_N[index_N]).to(positions_N.device)
        top_NK, rest_N = (units.mul(-LOGPROB_ROUNDING_NATS) for units in (units_NK, rest_N))
        top_NK = top_NK.masked_fill(units_NK == MOST_UNITS, -torch.inf)
        top_NK = top_NK.masked_fill(unlabelled_N.unsqueeze(1), torch.nan)
        return top_k_targets(ids_NK, top_NK, rest_N.masked_fill(unlabelled_N, torch.nan))


def _stored(ids_NK: np.ndarray, top_NK: np.ndarray, rest_N: np.ndarray) -> tuple[np.ndarray, ...]:
    def units(logprobs: np.ndarray) -> np.ndarray:
        units: np.ndarray = np.round(-np.nan_to_num(logprobs) / LOGPROB_ROUNDING_NATS).clip(0, MOST_UNITS)
        return units.astype(np.uint16)

    labelled_N = ~np.isnan(ids_NK[:, 0])
    ids_NK = np.nan_to_num(ids_NK)
    kind = np.uint16 if ids_NK.max(initial=0) < 2**16 else np.int32
    return ids_NK.astype(kind), units(top_NK), units(rest_N), labelled_N


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
