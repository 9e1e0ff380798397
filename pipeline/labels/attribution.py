"""Attribution: scores of how much the prediction of each token depends on the embedding of the whole window.

The score of a token is a proxy for the information that this token adds to the embedding (paper section 4: occlusion,
memory shift, gradient x input). Attribution takes two decoder passes per window, whereas exact labels take one pass per
token. However, the scores have no unit and agree poorly with exact labels.

B rows, T tokens, E bottleneck width, X width of the embedding as it enters the decoder, D decoder width, N real tokens
of all rows (n of them in a chunk), V vocabulary.
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
    """Return attribution scores, float32 [B, T], scaled to the range from 0 to 1 within each row.

    Args:
        estimator: the entropy estimation model, in evaluation mode. In bfloat16, rounding errors dominate the memory
            shift: its R^2 with float32 scores is 0.6 (shipped estimator). For the other measures, R^2 is 0.999.
        input_ids_BT: windows, padded on the right with any token.
        lengths_B: number of real tokens in each row; None for T in all rows.
        measure: name of the score. The three occlusions compare predictions with and without the embedding: the logits
            by their L1 distance or by 1 - cosine similarity, or the losses by their absolute difference. memory-shift
            is the absolute change of the loss when noise is added to the bottleneck values. gradient-input is
            |d loss / d embedding . embedding|.
        seed: seed of the memory shift's noise. All rows get the same noise, so that no score depends on other rows.

    Returns:
        The scores, with NaN at padding. A row whose tokens all have the same score gets zeros.

    Raises:
        ValueError: if `measure` is unknown, if it is an occlusion that `decode_alone` cannot compute for the estimator,
            or if windows are longer than the estimator's context. Longer texts are not split, because scores of
            different windows are not comparable.
    """
    if measure not in get_args(Measure):
        raise ValueError(f"unknown measure {measure!r}; choose one of {', '.join(get_args(Measure))}")
    rows, width = input_ids_BT.shape
    if width > (context := estimator.config.context):
        raise ValueError(f"windows of {width} tokens exceed the estimator's context of {context}; cut them")
    if lengths_B is None:
        lengths_B = torch.full((rows,), width, device=input_ids_BT.device)
    real_BT = real_positions(lengths_B, width)
    scores_BT = torch.zeros(rows, width, device=input_ids_BT.device)
    bottleneck_BE = estimator.window_bottlenecks(input_ids_BT, lengths_B)
    scores_BT[real_BT] = _scores(estimator, bottleneck_BE, input_ids_BT, real_BT, measure, seed).float()
    return _normalised(scores_BT, real_BT)


def decode_alone(estimator: EntropyEstimator, input_ids_BT: Tensor) -> Tensor:
    """Return the decoder's hidden states [B, T, D] with the embedding hidden from every token.

    The embedding's position is left out of the sequence. This has the same effect as giving `estimator.decode` an
    embedding of zeros that no token attends to, because rotary attention depends only on differences of positions.

    The state at the embedding's position, which predicts the first token, is set to zeros. Llama blocks have no bias,
    so they turn an embedding of zeros into this state. All logits of the first token are then 0. The first token
    therefore often has the highest score.

    Raises:
        ValueError: if the embedding cannot be hidden, because it does not enter a transformer as its first position.
    """
    if not estimator.config.prepends:
        raise ValueError("occlusion needs a transformer that begins with the embedding as a token; use another measure")
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
    """Return the scores of the real tokens [N], before they are normalised."""
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
    """Return d loss / d embedding . embedding of every token [N], without a backward pass per token.

    The product is the loss's derivative in the direction of the embedding. Forward-mode differentiation gives the
    change of all tokens' logits in one pass. The loss changes by the expected change of the logits minus the change of
    the target's logit. Only the MATH attention kernel has a forward-mode derivative.
    """
    with sdpa_kernel(SDPBackend.MATH):
        hidden_ND, change_ND = torch.func.jvp(decode, (embedding_BX,), (embedding_BX,))[:2]
    target_change_N: Tensor = (change_ND * head_VD[target_N]).sum(dim=-1)
    return _over_logits(_expectation, hidden_ND, change_ND, head_VD) - target_change_N


def _shift(bottleneck_BE: Tensor, seed: int) -> Tensor:
    """Return uniform noise [E] between -1/4 and 1/4. It is drawn on the CPU, so that all devices use the same noise."""
    uniform_E = torch.rand(bottleneck_BE.shape[-1], generator=torch.Generator().manual_seed(seed))
    return (LARGEST_SHIFT * (2 * uniform_E - 1)).to(bottleneck_BE)


def _over_logits(function: OfTwo, one_ND: Tensor, other_ND: Tensor, head_VD: Tensor) -> Tensor:
    """Apply a function to the logits of two sets of states, in chunks of tokens, and return its values [N]."""
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
    """Return scores scaled to the range from 0 to 1 over each row's real tokens, with NaN at padding."""
    low_B1 = scores_BT.where(real_BT, torch.inf).amin(dim=1, keepdim=True)
    spread_B1 = scores_BT.where(real_BT, -torch.inf).amax(dim=1, keepdim=True) - low_B1
    normal_BT = (scores_BT - low_B1) / spread_B1.where(spread_B1 > 0, 1)
    return normal_BT.where(real_BT, torch.nan)
