"""Exact labels: the entropy of a token is the difference of the code lengths of two prefixes.

`entropy[n - 1] = C(n) - C(n - 1)`, where C(n) is the sum of the first n tokens' losses given the embedding
of those n tokens (paper section 4). The embedding's own cost is the same for every prefix and cancels;
C(0) is 0. The published procedure runs two padded, full-length forward passes a label. Here one encoder
pass gives the embedding of every prefix, each code length is computed once, and a prefix of n tokens
takes n decoder positions, batched with prefixes of neighbouring lengths.

B rows, T tokens, D decoder width, K code lengths wanted, R of them in a batch, S tokens of the batch's longest.
"""

import torch
from torch import Tensor

from pipeline.data.windows import budget_groups
from pipeline.models.cross_entropy import token_cross_entropy
from pipeline.models.estimator import EntropyEstimator
from pipeline.models.transformer import real_positions

BATCH_TOKENS = 16384


@torch.no_grad()
def token_entropies(
    estimator: EntropyEstimator,
    input_ids_BT: Tensor,
    lengths_B: Tensor | None = None,
    positions_BT: Tensor | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> Tensor:
    """Exact entropies in nats, float32 [B, T]; differences of code lengths may be negative and are kept so.

    Args:
        estimator: the entropy estimation model, in evaluation mode.
        input_ids_BT: windows, padded on the right with any token.
        lengths_B: real tokens in each row; all T where None.
        positions_BT: True where a label is wanted; everywhere where None. The cost is one code length a
            position and one more for every run of neighbouring positions.
        batch_tokens: decoder positions computed at a time.

    Returns:
        The labels, NaN at padding and at positions not asked for.
    """
    rows, width = input_ids_BT.shape
    device = input_ids_BT.device
    if lengths_B is None:
        lengths_B = torch.full((rows,), width, device=device)
    wanted_BT = real_positions(lengths_B, width)
    if positions_BT is not None:
        wanted_BT = wanted_BT & positions_BT
    codes_wanted_BT = wanted_BT.clone()
    codes_wanted_BT[:, :-1] |= wanted_BT[:, 1:]
    codes_BT = torch.zeros(rows, width, dtype=torch.float64, device=device)
    embedding_BTD = estimator.prefix_embeddings(input_ids_BT)
    row_K, last_K = _longest_first(codes_wanted_BT)
    for group in budget_groups((last_K + 1).tolist(), batch_tokens):
        row_R, last_R = row_K[group], last_K[group]
        codes_BT[row_R, last_R] = _code_lengths(
            estimator, embedding_BTD[row_R, last_R], input_ids_BT[row_R, : int(last_R[0]) + 1], last_R
        )
    previous_BT = torch.nn.functional.pad(codes_BT[:, :-1], (1, 0))
    return torch.where(wanted_BT, codes_BT - previous_BT, torch.nan).float()


def _longest_first(wanted_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Row and last token of every prefix wanted."""
    row_K, last_K = wanted_BT.nonzero(as_tuple=True)
    order_K = last_K.argsort(descending=True, stable=True)
    return row_K[order_K], last_K[order_K]


def _code_lengths(estimator: EntropyEstimator, embedding_RD: Tensor, input_ids_RS: Tensor, last_R: Tensor) -> Tensor:
    """Sum of the losses of tokens 0..last given each row's embedding, float64 [R].

    Summed in float64: the difference of two sums of hundreds of nats would cancel badly in float32.
    """
    hidden_RSD = estimator.decode(embedding_RD, input_ids_RS)
    real_RS = real_positions(last_R + 1, input_ids_RS.shape[1])
    losses_RS = torch.zeros(input_ids_RS.shape, dtype=torch.float64, device=last_R.device)
    losses_RS[real_RS] = token_cross_entropy(hidden_RSD[real_RS], estimator.head_VD, input_ids_RS[real_RS]).double()
    return losses_RS.sum(dim=1)
