"""Exact labels: the entropy of a token is the difference of the code lengths of two prefixes.

`entropy[n - 1] = C(n) - C(n - 1)`, where C(n) is the sum of the first n tokens' losses given the embedding of those n
tokens (paper section 4). C(0) is 0. The cost of the embedding itself is the same for every prefix and cancels.

The paper's procedure runs two padded, full-length forward passes per label. Here, one encoder pass gives the
embedding of every prefix, and each code length is computed once. A prefix of n tokens takes n decoder positions, and is
batched with prefixes of similar length. Decoder layers below the embedding's entry are computed once per window.

If the embedding enters above all layers, a prefix takes no decoder positions. Each logit is then a sum a + b, where a
depends on the prefix's embedding and b on the tokens. The sums of exp(a + b) over the vocabulary, for all prefixes and
tokens, are the product of the matrices exp(a) and exp(b).

B rows, T tokens, D decoder width, X width of the embedding as it enters the decoder, K prefixes whose code lengths are
wanted, R prefixes in a batch, S positions of a batch, V vocabulary, v part of the vocabulary in a chunk.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.data.windows import Window, budget_groups
from pipeline.labels.windowed import over_windows
from pipeline.models.causal_lm import OutputHead
from pipeline.models.cross_entropy import wide_product
from pipeline.models.estimator import Estimator
from pipeline.models.stacks import real_positions

# Decoder positions per batch. On two CPU cores with 1 MiB of cache, a decoder of width 256 labels 1.5 times as fast
# with 2,048, whose activations stay in the cache, as with 16,384.
CPU_BATCH_TOKENS, BATCH_TOKENS = 2048, 16384
# On a GPU, two matrices of 1,024 x 16,384 in float32 are 128 MiB. On a CPU, two of 1,024 x 1,024 stay in the cache.
CPU_CHUNK_VOCABULARY, CHUNK_VOCABULARY = 1024, 16384
# Entries of both tables of exponentials are at most 1, and underflow below 1e-38. Sums above this threshold lose
# nothing visible. Lower sums, in which every product of two entries is lower too, are computed in float64.
SMALLEST_SUM = 1e-30
PREFIXES = 128  # number of prefixes in a product, which covers no token after the longest of them
WIDTH_STEP = 8  # decoder batches are padded to multiples of this, so that a compiled decoder meets few widths


def default_batch_tokens(device: str) -> int:
    """Return the default number of decoder positions per batch on a device."""
    return CPU_BATCH_TOKENS if device == "cpu" else BATCH_TOKENS


@torch.no_grad()
def token_entropies(
    estimator: Estimator,
    input_ids_BT: Tensor,
    lengths_B: Tensor | None = None,
    positions_BT: Tensor | None = None,
    batch_tokens: int | None = None,
) -> Tensor:
    """Return exact entropies in nats, float32 [B, T]. They may be negative, and are not clipped.

    Because of rounding, a window's labels depend on the other windows of the batch: in the tests, by less than 1e-4
    nats in float32. A window that is labelled by itself and without padding always gets bit-identical labels.

    Args:
        estimator: the entropy estimation model, in evaluation mode. It may be in bfloat16, or compiled by
            `estimator.decode_states = torch.compile(estimator.decode_states, dynamic=True)`. Bfloat16 changed labels by
            at most 0.06 nats, and by 0.013 on average (windows of 48 tokens, untrained weights of the usual scale).
            With weights ten times as large, labels changed by at most 0.26 nats, and by 0.07 on average (windows of 64
            tokens). Logits in float32 would not reduce these errors.
        input_ids_BT: texts, padded on the right with any token. Texts longer than the estimator's context are labelled
            in windows of that length, which overlap by half.
        lengths_B: number of real tokens in each row; None for T in all rows.
        positions_BT: True at the positions to label; None for all positions. The cost is one code length per position,
            and one more per run of consecutive positions.
        batch_tokens: number of decoder positions per batch; by default 2,048 on a CPU and 16,384 on other devices.

    Returns:
        The labels, with NaN at padding and at all positions that are not to be labelled.
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


def _of_windows(estimator: Estimator, input_ids_BT: Tensor, wanted_BT: Tensor, batch_tokens: int) -> Tensor:
    """Return the labels of windows no longer than the estimator's context, with NaN at tokens that are not wanted."""
    codes_wanted_BT = wanted_BT.clone()
    codes_wanted_BT[:, :-1] |= wanted_BT[:, 1:]
    if estimator.adds_logits:
        codes_BT = _code_lengths_of_added_logits(estimator, input_ids_BT, codes_wanted_BT)
    else:
        codes_BT = _all_code_lengths(estimator, input_ids_BT, codes_wanted_BT, batch_tokens)
    previous_BT = pad(codes_BT[:, :-1], (1, 0))
    return torch.where(wanted_BT, codes_BT - previous_BT, torch.nan).float()


def _all_code_lengths(estimator: Estimator, input_ids_BT: Tensor, wanted_BT: Tensor, batch_tokens: int) -> Tensor:
    """Return the code length of the prefix that ends at each wanted token, float64 [B, T]; 0 at other tokens."""
    codes_BT = torch.zeros(wanted_BT.shape, dtype=torch.float64, device=wanted_BT.device)
    row_K, last_K = _longest_first(wanted_BT)
    width, context = input_ids_BT.shape[1], estimator.config.context
    widths = [_padded_width(last + 1, context) for last in last_K.tolist()]
    if widths:
        input_ids_BT = pad(input_ids_BT, (0, _padded_width(width, context) - width))
        embedding_BTX, states_BTD = estimator.embeddings_and_states(input_ids_BT)
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
    return context if tokens <= context < padded else padded  # a mixer has no weights for positions beyond the context


def _longest_first(wanted_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row and the last token's index of every wanted prefix, sorted from the longest to the shortest."""
    row_K, last_K = wanted_BT.nonzero(as_tuple=True)
    order_K = last_K.argsort(descending=True, stable=True)
    return row_K[order_K], last_K[order_K]


def _code_lengths(
    estimator: Estimator, embedding_RX: Tensor, states_RSD: Tensor, input_ids_RS: Tensor, last_R: Tensor
) -> Tensor:
    """Return each row's code length, float64 [R]: the sum of the losses of tokens 0..last, given the row's embedding.

    The sum is in float64, because labels are differences of two sums of hundreds of nats.
    """
    hidden_RSD = estimator.decode_states(embedding_RX, states_RSD)
    real_RS = real_positions(last_R + 1, input_ids_RS.shape[1])
    losses_RS = torch.zeros(input_ids_RS.shape, dtype=torch.float64, device=last_R.device)
    losses_RS[real_RS] = estimator.output_head.losses(hidden_RSD[real_RS], input_ids_RS[real_RS]).double()
    return losses_RS.sum(dim=1)


def _code_lengths_of_added_logits(estimator: Estimator, input_ids_BT: Tensor, wanted_BT: Tensor) -> Tensor:
    """Return the result of `_all_code_lengths` for an estimator whose embedding only adds to the logits."""
    codes_BT = torch.zeros(wanted_BT.shape, dtype=torch.float64, device=wanted_BT.device)
    embedding_BTX, states_BTD = estimator.embeddings_and_states(input_ids_BT)
    for row, wanted_T in enumerate(wanted_BT):
        last_K = wanted_T.nonzero().squeeze(1)
        if len(last_K):
            tokens = int(last_K[-1]) + 1
            losses_KT = _losses_of_sums(
                embedding_BTX[row, last_K],
                states_BTD[row, :tokens],
                estimator.output_head,
                input_ids_BT[row, :tokens],
                last_K,
            )
            codes_BT[row, last_K] = losses_KT.cumsum(dim=1).gather(1, last_K.unsqueeze(1)).squeeze(1)
    return codes_BT


def _losses_of_sums(added_KD: Tensor, states_TD: Tensor, head: OutputHead, tokens_T: Tensor, last_K: Tensor) -> Tensor:
    """Return the loss -ln p of each token t, given the embedding of each prefix k, float64 [K, T].

    The logits are those of state t plus `added[k] @ head.weight.T`. Losses are valid only for the prefix's own tokens,
    from 0 to `last[k]`. The sums over the vocabulary take K x T x V / 2 multiplications. They would take
    K x T x V x D multiplications if the logits of every prefix and token were computed.
    """
    normalizer_KT = _log_normalizers(added_KD, states_TD, head, last_K)
    added_KT = (added_KD @ head.weight_VD[tokens_T].T).double()
    return normalizer_KT - added_KT - head.target_logits(states_TD, tokens_T).double()


def _log_normalizers(added_KD: Tensor, states_TD: Tensor, head: OutputHead, last_K: Tensor) -> Tensor:
    """Return ln of the sum of exp(logit) over the vocabulary for each prefix k and token t, float64 [K, T].

    A value is valid only if token t belongs to prefix k, which has the tokens from 0 to `last[k]`.
    """
    own_KT = torch.arange(len(states_TD), device=last_K.device) <= last_K.unsqueeze(1)
    for dtype in (torch.float32, torch.float64):
        sums_KT, top_K, top_T = _sums_of_products(added_KD, states_TD, head, last_K, dtype)
        if sums_KT[own_KT].min() >= SMALLEST_SUM:
            break
    return sums_KT.double().log() + top_K.double().unsqueeze(1) + top_T.double()


def _sums_of_products(
    added_KD: Tensor, states_TD: Tensor, head: OutputHead, last_K: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums over the vocabulary of exp(a - max a) exp(b - max b) [K, T], max a [K] and max b [T].

    A logit is the sum a + b. a is the part that the embedding of a prefix adds, and b is the part from the state of a
    token. The maxima are over the vocabulary: max a for each prefix, and max b for each token.
    """
    sums_KT = torch.zeros(len(added_KD), len(states_TD), dtype=dtype, device=added_KD.device)
    top_K1, top_T1 = (torch.full((len(part), 1), -torch.inf, device=part.device) for part in (added_KD, states_TD))
    for part in head.split(CPU_CHUNK_VOCABULARY if added_KD.device.type == "cpu" else CHUNK_VOCABULARY):
        one_Kv, other_Tv = wide_product(added_KD, part.weight_VD), part.logits(states_TD)
        before_K1, before_T1 = top_K1, top_T1
        top_K1 = before_K1.maximum(one_Kv.amax(dim=1, keepdim=True))
        top_T1 = before_T1.maximum(other_Tv.amax(dim=1, keepdim=True))
        sums_KT *= (before_K1 - top_K1).to(dtype).exp() * (before_T1 - top_T1).to(dtype).exp().T
        one_Kv, other_Tv = one_Kv.sub_(top_K1).to(dtype).exp_(), other_Tv.sub_(top_T1).to(dtype).exp_()
        for first in range(0, len(one_Kv), PREFIXES):
            rows = slice(first, first + PREFIXES)
            tokens = int(last_K[rows][-1]) + 1
            sums_KT[rows, :tokens] += one_Kv[rows] @ other_Tv[:tokens].T
    return sums_KT, top_K1.squeeze(1), top_T1.squeeze(1)
