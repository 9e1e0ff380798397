"""Values of label columns from a language model's predictions: surprisal, entropy, rank, likeliest ids, sampled ids.

N tokens, V vocabulary, K likeliest ids, S sampled ids, C candidates. B rows, T tokens of a row.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from schemas.annotations import (
    ENTROPY,
    EXPECTED_ENTROPY,
    LEAST_REST,
    RANK,
    REST_LOGPROB,
    SAMPLED_IDS,
    TOP_IDS,
    TOP_LOGPROBS,
    Shape,
)

# Ids in a group whose maximum is searched first. With 49,152 ids on one core, the 8 likeliest of a token were found in
# 9 microseconds instead of 92, and the 50 likeliest in 34 instead of 107; groups of 32 or 128 are slower.
GROUP = 64
FRACTION_BITS = 24  # bits of a random number that float32 holds
MIXERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # splitmix64's, as signed numbers


def labels_in_chunks(
    predictions: Callable[..., Tensor],
    states: Sequence[Tensor],
    targets_BT: Tensor,
    columns: Mapping[str, Shape],
    uniform_BT: Tensor | None,
    tokens: int,
) -> dict[str, Tensor]:
    """Return the columns of `label_values` by name, in float32.

    A column with one number per token has the shape [B, T]. A column with K numbers per token has the shape [K, B, T].

    Args:
        predictions: function that returns the log-probabilities [N, V] for N tokens. Its arguments are the targets [N]
            and, for each tensor of `states`, the tokens' states [N, D].
        states: tensors [B, T, D]; the widths D may differ.
        targets_BT: tokens to label.
        uniform_BT: a random number for each token, from which `sampled_ids` are drawn. None if `columns` does not
            include `sampled_ids`.
        tokens: number of tokens to compute at a time.
    """
    random_BT = torch.zeros_like(targets_BT, dtype=torch.float32) if uniform_BT is None else uniform_BT
    flat = [targets_BT.flatten(), random_BT.flatten(), *(states_BTD.flatten(0, 1) for states_BTD in states)]
    values: dict[str, list[Tensor]] = {name: [] for name in columns}
    for target_N, uniform_N, *states_ND in zip(*(each.split(tokens) for each in flat), strict=True):
        for name, value in label_values(predictions(target_N, *states_ND), target_N, uniform_N, columns):
            values[name].append(value)
    return {name: torch.cat(parts, dim=-1).unflatten(-1, targets_BT.shape) for name, parts in values.items()}


def label_values(
    log_p_NV: Tensor, target_N: Tensor, uniform_N: Tensor, columns: Mapping[str, Shape]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the requested columns as pairs of name and values, float32 [N], or [K, N] for values of the shape (K,).

    p is the predicted distribution, and `log_p_NV` is ln p. `entropy` is the surprisal -ln p(target) in nats.
    `expected_entropy` is the entropy of p in nats. `rank` is the number of tokens that are more probable than the
    target. `top_ids`, `top_logprobs` and `rest_logprob` are the K most probable ids, their ln p, and ln of the
    probability of all other ids together. `sampled_ids` are ids drawn with the random numbers `uniform_N`. Ids are
    exact in float32, because a vocabulary has at most 2**24 ids.
    """
    target_N1 = log_p_NV.gather(1, target_N.unsqueeze(1))
    if ENTROPY in columns:
        yield ENTROPY, -target_N1.squeeze(1)
    if RANK in columns:
        yield RANK, (log_p_NV > target_N1).sum(dim=1).float()
    if TOP_IDS in columns:
        top_NK, ids_NK = most_probable(log_p_NV, columns[TOP_IDS][0])
        yield TOP_IDS, ids_NK.T.float()
        yield TOP_LOGPROBS, top_NK.T
        rest_N = 1 - top_NK.double().exp().sum(dim=1)
        yield REST_LOGPROB, rest_N.clamp(min=LEAST_REST).log().float()
    if not {EXPECTED_ENTROPY, SAMPLED_IDS}.isdisjoint(columns):
        p_NV = log_p_NV.exp()
        if EXPECTED_ENTROPY in columns:
            yield EXPECTED_ENTROPY, -torch.linalg.vecdot(p_NV, log_p_NV)
        if SAMPLED_IDS in columns:
            yield SAMPLED_IDS, systematic_sample(p_NV, uniform_N, columns[SAMPLED_IDS][0]).T.float()


def most_probable(log_p_NV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest log-probabilities of each token in descending order, and their ids, [N, K] each.

    To save time, ids are divided into groups. Only the `count` groups with the largest maxima are searched, since
    they contain the result. Equal log-probabilities are in any order.
    """
    vocabulary = log_p_NV.shape[1]
    groups = vocabulary // GROUP
    if groups <= count:
        top_NK, ids_NK = log_p_NV.topk(count, dim=1)
        return top_NK, ids_NK
    highest_NG = log_p_NV[:, : groups * GROUP].unflatten(1, (groups, GROUP)).amax(dim=2)
    first_NK1 = highest_NG.topk(count, dim=1).indices.unsqueeze(2) * GROUP
    ungrouped = torch.arange(groups * GROUP, vocabulary, device=log_p_NV.device).expand(len(log_p_NV), -1)
    of_groups_NC = (first_NK1 + torch.arange(GROUP, device=log_p_NV.device)).flatten(1)
    ids_NC = torch.cat([of_groups_NC, ungrouped], dim=1)
    top_NK, place_NK = log_p_NV.gather(1, ids_NC).topk(count, dim=1)
    return top_NK, ids_NC.gather(1, place_NK)


def systematic_sample(p_NV: Tensor, uniform_N: Tensor, count: int) -> Tensor:
    """Return S = `count` ids drawn from each token's distribution, int64 [N, S], in ascending order.

    The ids are those at S evenly spaced points of the distribution function, the first of which is random. An id with
    probability p thus occurs S p times, rounded up or down. On average, it occurs exactly S p times. S independent
    draws would have the same mean and a larger variance.
    """
    total_NV = p_NV.cumsum(dim=1)
    last_N1 = total_NV[:, -1:]
    offset_S = torch.arange(count, device=p_NV.device)
    points_NS = (uniform_N.unsqueeze(1) + offset_S) / count * last_N1
    below_N1 = torch.nextafter(last_N1, torch.zeros_like(last_N1))  # a point may be rounded up to the end
    return torch.searchsorted(total_NV, torch.minimum(points_NS, below_N1), right=True)


def uniforms(input_ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Return a random number in [0, 1) for each token of right-padded rows, float32 [B, T].

    A number depends only on the tokens of its row and on its position in the row. Another batch, order of rows or
    device therefore gives the same numbers.
    """
    position_T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
    placed_BT = _mixed(input_ids_BT.long() + (position_T << 32))
    seed_B1 = placed_BT.masked_fill(position_T >= lengths_B.unsqueeze(1), 0).sum(dim=1, keepdim=True)
    bits_BT = _mixed(_mixed(seed_B1) + position_T)
    fraction_BT: Tensor = (bits_BT & (2**FRACTION_BITS - 1)).float() / 2**FRACTION_BITS
    return fraction_BT


def _mixed(values: Tensor) -> Tensor:
    """Return int64 values with their bits mixed by splitmix64's finalizer. Products overflow, as they should."""
    for shift, factor in zip((30, 27), MIXERS, strict=True):
        values = (values ^ _shifted(values, shift)) * factor
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Return int64 values shifted to the right, with zeros instead of copies of the sign."""
    shifted: Tensor = (values >> bits) & (2 ** (64 - bits) - 1)
    return shifted
