"""Attribution: how much the prediction of each token depends on the embedding of the whole window.

What the decoder does with the embedding stands in for what the token adds to it (paper section 4: occlusion,
memory shift, gradient x input). This takes two decoder passes a window where exact labels take one a token,
but the scores have no unit and agree poorly with exact labels.

B rows, T tokens, E bottleneck width, X what the embedding is when it enters, D decoder width, N real tokens of all rows
(n of them in a chunk), V vocabulary.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cosine_similarity, pad

from pipeline.models.cross_entropy import chunk_tokens, token_cross_entropy, wide_product
from pipeline.models.estimator import EntropyEstimator
from pipeline.models.stacks import causal_hidden, input_embeddings, real_positions

Measure = Literal["occlusion-l1", "occlusion-cosine", "occlusion-loss", "memory-shift", "gradient-input"]
OfTwo = Callable[[Tensor, Tensor], Tensor]
LARGEST_SHIFT = 2**-2


@torch.no_grad()
def token_entropies(
    estimator: EntropyEstimator,
    input_ids_BT: Tensor,
    lengths_B: Tensor | None = None,
    *,
    measure: Measure,
    seed: int = 0,
) -> Tensor:
    """Attribution scores, float32 [B, T], from 0 at the row's lowest token to 1 at its highest.

    Args:
        estimator: the entropy estimation model, in evaluation mode. In bfloat16 rounding drowns the memory shift
            (R^2 0.6 with its float32 scores, shipped estimator) and leaves the other measures as they are (0.999).
        input_ids_BT: windows, padded on the right with any token.
        lengths_B: real tokens in each row; all T where None.
        measure: what is scored. Occlusion takes the embedding away and compares the logits by L1 distance or by
            1 - cosine, or the loss by |change|; memory-shift is |change of loss| under noise in the bottleneck;
            gradient-input is |d loss / d embedding . embedding|.
        seed: of the memory shift's noise. All rows share one draw, so that no score depends on a row's neighbours.

    Returns:
        The scores, NaN at padding; zeros in a row whose tokens all score the same.

    Raises:
        ValueError: if `measure` is none of `Measure`, if occlusion is asked of an estimator that it is not defined for,
            or if windows are longer than the estimator's context: scores of two windows do not compare.
    """
    if measure not in get_args(Measure):
        raise ValueError(f"unknown measure {measure!r}; choose one of {', '.join(get_args(Measure))}")
    rows, width = input_ids_BT.shape
    if width > (context := estimator.config.context):
        raise ValueError(f"windows of {width} tokens are beyond the {context} that the estimator reads; cut them")
    if lengths_B is None:
        lengths_B = torch.full((rows,), width, device=input_ids_BT.device)
    real_BT = real_positions(lengths_B, width)
    scores_BT = torch.zeros(rows, width, device=input_ids_BT.device)
    bottleneck_BE = estimator.window_bottlenecks(input_ids_BT, lengths_B)
    scores_BT[real_BT] = _scores(estimator, bottleneck_BE, input_ids_BT, real_BT, measure, seed).float()
    return _normalised(scores_BT, real_BT)


def decode_alone(estimator: EntropyEstimator, input_ids_BT: Tensor) -> Tensor:
    """Hidden states [B, T, D] as `estimator.decode` gives them for a zero embedding that is hidden from every token.

    The tokens run without the embedding's position. That is the same and needs no mask: rotary positions count
    by their differences, and Llama blocks, which have no bias, keep a zero vector zero. So the first token is
    predicted from nothing, with all its logits 0, and often scores highest.

    Raises:
        ValueError: if the embedding is no position of a transformer, below all layers: it cannot be hidden then.
    """
    if not estimator.config.prepends:
        raise ValueError("occlusion hides a position: it is for transformers that begin with the embedding as a token")
    hidden_BTD = causal_hidden(estimator.decoder, input_embeddings(estimator.decoder)(input_ids_BT))
    return pad(hidden_BTD[:, :-1], (0, 0, 1, 0))


def _scores(
    estimator: EntropyEstimator,
    bottleneck_BE: Tensor,
    input_ids_BT: Tensor,
    real_BT: Tensor,
    measure: Measure,
    seed: int,
) -> Tensor:
    """Scores of the real tokens [N], not yet normalised."""
    head_VD, target_N = estimator.head_VD, input_ids_BT[real_BT]
    embedding_BX = estimator.introduced(bottleneck_BE)

    def decode(embedding_BX: Tensor) -> Tensor:
        return estimator.decode(embedding_BX, input_ids_BT)[real_BT]

    if measure == "gradient-input":
        return _loss_slopes(decode, embedding_BX, head_VD, target_N).abs()
    seen_ND = decode(embedding_BX)
    if measure == "memory-shift":
        other_ND = decode(estimator.introduced(bottleneck_BE + _shift(bottleneck_BE, seed)))
    else:
        other_ND = decode_alone(estimator, input_ids_BT)[real_BT]
    if measure == "occlusion-l1":
        return _over_logits(_l1, seen_ND, other_ND, head_VD)
    if measure == "occlusion-cosine":
        return _over_logits(_one_minus_cosine, seen_ND, other_ND, head_VD)
    return (token_cross_entropy(seen_ND, head_VD, target_N) - token_cross_entropy(other_ND, head_VD, target_N)).abs()


def _loss_slopes(decode: Callable[[Tensor], Tensor], embedding_BX: Tensor, head_VD: Tensor, target_N: Tensor) -> Tensor:
    """d loss / d embedding . embedding of every token [N], from one pass in place of one backward a token.

    It is a derivative along the embedding, which forward mode carries to all tokens' logits at once; the loss
    changes by their expected change less the target's. No other attention kernel has a forward-mode derivative.
    """
    with sdpa_kernel(SDPBackend.MATH):
        hidden_ND, change_ND = torch.func.jvp(decode, (embedding_BX,), (embedding_BX,))[:2]
    target_change_N: Tensor = (change_ND * head_VD[target_N]).sum(dim=-1)
    return _over_logits(_expectation, hidden_ND, change_ND, head_VD) - target_change_N


def _shift(bottleneck_BE: Tensor, seed: int) -> Tensor:
    """Noise [E] between -1/4 and 1/4, drawn on the CPU so that every device gets the same."""
    uniform_E = torch.rand(bottleneck_BE.shape[-1], generator=torch.Generator().manual_seed(seed))
    return (LARGEST_SHIFT * (2 * uniform_E - 1)).to(bottleneck_BE)


def _over_logits(function: OfTwo, one_ND: Tensor, other_ND: Tensor, head_VD: Tensor) -> Tensor:
    """The function [N] of two sets of logits, of which a chunk of tokens exists at a time."""
    tokens = chunk_tokens(head_VD)
    chunks = zip(one_ND.split(tokens), other_ND.split(tokens), strict=True)
    return torch.cat([function(wide_product(one, head_VD), wide_product(other, head_VD)) for one, other in chunks])


def _l1(seen_nV: Tensor, other_nV: Tensor) -> Tensor:
    return (seen_nV - other_nV).abs().sum(dim=-1)


def _one_minus_cosine(seen_nV: Tensor, other_nV: Tensor) -> Tensor:
    return 1 - cosine_similarity(seen_nV, other_nV, dim=-1)


def _expectation(logits_nV: Tensor, values_nV: Tensor) -> Tensor:
    return (logits_nV.softmax(dim=-1) * values_nV).sum(dim=-1)


def _normalised(scores_BT: Tensor, real_BT: Tensor) -> Tensor:
    """Scores from 0 to 1 over each row's real tokens, NaN elsewhere."""
    low_B1 = scores_BT.where(real_BT, torch.inf).amin(dim=1, keepdim=True)
    spread_B1 = scores_BT.where(real_BT, -torch.inf).amax(dim=1, keepdim=True) - low_B1
    normal_BT = (scores_BT - low_B1) / spread_B1.where(spread_B1 > 0, 1)
    return normal_BT.where(real_BT, torch.nan)
