"""Exact labels: the entropy of a token is the difference of the code lengths of two prefixes.

`entropy[n - 1] = C(n) - C(n - 1)`, where C(n) is the sum of the first n tokens' losses given the embedding
of those n tokens (paper section 4). The embedding's own cost is the same for every prefix and cancels;
C(0) is 0. The published procedure runs two padded, full-length forward passes a label. Here one encoder
pass gives the embedding of every prefix, each code length is computed once, and a prefix of n tokens
takes n decoder positions, batched with prefixes of neighbouring lengths. Layers below the embedding's entry are
computed once a window.

B rows, T tokens, D decoder width, X what the embedding is when it enters, K code lengths wanted, R of them in a batch,
S positions of a batch.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.data.windows import budget_groups
from pipeline.models.cross_entropy import token_cross_entropy
from pipeline.models.estimator import EntropyEstimator
from pipeline.models.transformer import real_positions

# Decoder positions at a time. On two CPU cores with 1 MiB of cache a decoder of width 256 labels 1.5 times as fast with
# 2,048, whose activations stay there, as with 16,384.
CPU_BATCH_TOKENS, BATCH_TOKENS = 2048, 16384
WIDTH_STEP = 8  # decoder batches are padded to multiples of it, so that a compiled decoder meets few widths


def default_batch_tokens(device: str) -> int:
    """Decoder positions that are computed at a time on a device."""
    return CPU_BATCH_TOKENS if device == "cpu" else BATCH_TOKENS


@torch.no_grad()
def token_entropies(
    estimator: EntropyEstimator,
    input_ids_BT: Tensor,
    lengths_B: Tensor | None = None,
    positions_BT: Tensor | None = None,
    batch_tokens: int | None = None,
) -> Tensor:
    """Exact entropies in nats, float32 [B, T]; differences of code lengths may be negative and are kept so.

    What windows are labelled together moves labels by rounding, in the tests by less than 1e-4 nats in float32; one
    that is labelled alone and without padding always has the same bits.

    Args:
        estimator: the entropy estimation model, in evaluation mode, in bfloat16 or with
            `estimator.decode_states = torch.compile(estimator.decode_states, dynamic=True)` too. Bfloat16 was seen to
            move a label by at most 0.06 nats (0.013 on average; windows of 48, untrained weights of the usual scale),
            and by at most 0.26 (0.07; windows of 64) with weights ten times as large. That float32 logits would not
            change.
        input_ids_BT: windows, padded on the right with any token.
        lengths_B: real tokens in each row; all T where None.
        positions_BT: True where a label is wanted; everywhere where None. The cost is one code length a
            position and one more for every run of neighbouring positions.
        batch_tokens: decoder positions computed at a time; 2,048 on a CPU and 16,384 elsewhere by default.

    Returns:
        The labels, NaN at padding and at positions not asked for.
    """
    rows, width = input_ids_BT.shape
    if lengths_B is None:
        lengths_B = torch.full((rows,), width, device=input_ids_BT.device)
    if batch_tokens is None:
        batch_tokens = default_batch_tokens(input_ids_BT.device.type)
    wanted_BT = real_positions(lengths_B, width)
    if positions_BT is not None:
        wanted_BT = wanted_BT & positions_BT
    codes_wanted_BT = wanted_BT.clone()
    codes_wanted_BT[:, :-1] |= wanted_BT[:, 1:]
    codes_BT = _all_code_lengths(estimator, input_ids_BT, codes_wanted_BT, batch_tokens)
    previous_BT = pad(codes_BT[:, :-1], (1, 0))
    return torch.where(wanted_BT, codes_BT - previous_BT, torch.nan).float()


def _all_code_lengths(
    estimator: EntropyEstimator, input_ids_BT: Tensor, wanted_BT: Tensor, batch_tokens: int
) -> Tensor:
    """Code length of the prefix that ends at each wanted token, float64 [B, T]; 0 elsewhere."""
    codes_BT = torch.zeros(wanted_BT.shape, dtype=torch.float64, device=wanted_BT.device)
    row_K, last_K = _longest_first(wanted_BT)
    width, context = input_ids_BT.shape[1], estimator.config.context
    widths = [_padded_width(last + 1, context) for last in last_K.tolist()]
    if widths:
        input_ids_BT = pad(input_ids_BT, (0, _padded_width(width, context) - width))
        embedding_BTX, states_BTD = estimator.prefix_embeddings(input_ids_BT), estimator.token_states(input_ids_BT)
    for group in budget_groups(widths, batch_tokens):
        row_R, last_R = row_K[group], last_K[group]
        codes_BT[row_R, last_R] = _code_lengths(
            estimator,
            embedding_BTX[row_R, last_R],
            states_BTD[row_R, : widths[group.start]],
            input_ids_BT[row_R, : widths[group.start]],
            last_R,
        )
    return codes_BT


def _padded_width(tokens: int, context: int) -> int:
    padded = -(-tokens // WIDTH_STEP) * WIDTH_STEP
    return context if tokens <= context < padded else padded  # a mixer knows no position beyond


def _longest_first(wanted_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Row and last token of every prefix wanted."""
    row_K, last_K = wanted_BT.nonzero(as_tuple=True)
    order_K = last_K.argsort(descending=True, stable=True)
    return row_K[order_K], last_K[order_K]


def _code_lengths(
    estimator: EntropyEstimator, embedding_RX: Tensor, states_RSD: Tensor, input_ids_RS: Tensor, last_R: Tensor
) -> Tensor:
    """Sum of the losses of tokens 0..last given each row's embedding, float64 [R].

    Summed in float64: the difference of two sums of hundreds of nats would cancel badly in float32.
    """
    hidden_RSD = estimator.decode_states(embedding_RX, states_RSD)
    real_RS = real_positions(last_R + 1, input_ids_RS.shape[1])
    losses_RS = torch.zeros(input_ids_RS.shape, dtype=torch.float64, device=last_R.device)
    losses_RS[real_RS] = token_cross_entropy(hidden_RSD[real_RS], estimator.head_VD, input_ids_RS[real_RS]).double()
    return losses_RS.sum(dim=1)
