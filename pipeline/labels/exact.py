"""Exact labels: the entropy of a token is the difference of the code lengths of two prefixes.

`entropy[n - 1] = C(n) - C(n - 1)`, where C(n) is the sum of the first n tokens' losses given the embedding
of those n tokens (paper section 4). The embedding's own cost is the same for every prefix and cancels;
C(0) is 0. The published procedure runs two padded, full-length forward passes a label. Here one encoder
pass gives the embedding of every prefix, each code length is computed once, and a prefix of n tokens
takes n decoder positions, batched with prefixes of neighbouring lengths. Layers below the embedding's entry are
computed once a window. Where the embedding enters above all of them, it adds to the logits, and a prefix takes none:
the sums of exp(a + b) over the vocabulary, for all prefixes and tokens, are the product of matrices exp(a) and exp(b).

B rows, T tokens, D decoder width, X what the embedding is when it enters, K code lengths wanted, R of them in a batch,
S positions of a batch, V vocabulary, v of it in a chunk.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.data.windows import Window, budget_groups
from pipeline.labels.windowed import over_windows
from pipeline.models.cross_entropy import token_cross_entropy, wide_product
from pipeline.models.estimator import EntropyEstimator
from pipeline.models.stacks import real_positions

# Decoder positions at a time. On two CPU cores with 1 MiB of cache a decoder of width 256 labels 1.5 times as fast with
# 2,048, whose activations stay there, as with 16,384.
CPU_BATCH_TOKENS, BATCH_TOKENS = 2048, 16384
CHUNK_VOCABULARY = 16384  # two matrices of 1,024 x 16,384 in float32 are 128 MiB
# Both tables of exponentials are at most 1 and lose what is below 1e-38 of it. Sums above this lose nothing that shows;
# lower ones, of logits that differ by 69 nats from those added, are computed in float64.
SMALLEST_SUM = 1e-30
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
        input_ids_BT: texts, padded on the right with any token. Those beyond the estimator's context are labelled in
            windows of it that overlap by half.
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

    def of_window(window: Window) -> Tensor:
        inside = slice(window.start, window.stop)
        labelled_T = torch.arange(window.start, window.stop, device=wanted_BT.device) >= window.label_from
        return _of_windows(estimator, input_ids_BT[:, inside], wanted_BT[:, inside] & labelled_T, batch_tokens)

    return over_windows(of_window, width, estimator.config.context)


def _of_windows(estimator: EntropyEstimator, input_ids_BT: Tensor, wanted_BT: Tensor, batch_tokens: int) -> Tensor:
    """Labels where wanted, NaN elsewhere, of windows that the estimator can read."""
    codes_wanted_BT = wanted_BT.clone()
    codes_wanted_BT[:, :-1] |= wanted_BT[:, 1:]
    if estimator.config.adds_logits:
        codes_BT = _code_lengths_of_added_logits(estimator, input_ids_BT, codes_wanted_BT)
    else:
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


def _code_lengths_of_added_logits(estimator: EntropyEstimator, input_ids_BT: Tensor, wanted_BT: Tensor) -> Tensor:
    """As `_all_code_lengths`, where the logits of token i given the embedding of n tokens are a sum of two vectors."""
    codes_BT = torch.zeros(wanted_BT.shape, dtype=torch.float64, device=wanted_BT.device)
    embedding_BTX, states_BTD = estimator.prefix_embeddings(input_ids_BT), estimator.token_states(input_ids_BT)
    for row, wanted_T in enumerate(wanted_BT):
        if wanted_T.any():
            added_KX, states_TD, tokens_T = embedding_BTX[row, wanted_T], states_BTD[row], input_ids_BT[row]
            losses_KT = _losses_of_sums(added_KX, states_TD, estimator.head_VD, tokens_T)
            codes_BT[row, wanted_T] = losses_KT.cumsum(dim=1)[:, wanted_T].diagonal()
    return codes_BT


def _losses_of_sums(added_KD: Tensor, states_TD: Tensor, head_VD: Tensor, tokens_T: Tensor) -> Tensor:
    """-ln p of every token under `(added[k] + states[t]) @ head.T`, float64 [K, T]: K x T x V products, not times D."""
    normalizer_KT = added_KD.new_full((len(added_KD), len(states_TD)), -torch.inf, dtype=torch.float64)
    for head_vD in head_VD.split(CHUNK_VOCABULARY):
        normalizer_KT = normalizer_KT.logaddexp(
            _log_sum_exp(wide_product(added_KD, head_vD), wide_product(states_TD, head_vD))
        )
    target_TD = head_VD[tokens_T]
    return normalizer_KT - (added_KD @ target_TD.T).double() - (states_TD * target_TD).sum(dim=1).double()


def _log_sum_exp(one_Kv: Tensor, other_Tv: Tensor) -> Tensor:
    """ln of the sum over v of exp(one[k, v] + other[t, v]), float64 [K, T]."""
    top_K1, top_T1 = one_Kv.amax(dim=1, keepdim=True), other_Tv.amax(dim=1, keepdim=True)
    sums_KT = (one_Kv - top_K1).exp() @ (other_Tv - top_T1).exp().T
    if sums_KT.min() < SMALLEST_SUM:
        sums_KT = (one_Kv - top_K1).double().exp() @ (other_Tv - top_T1).double().exp().T
    return sums_KT.double().log() + top_K1 + top_T1.T
