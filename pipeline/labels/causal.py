"""Causal labels: each token's loss under a causal language model, and columns that describe its prediction.

B rows, T tokens, K values per token of one column, C values per token of all columns together.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.data.windows import Window
from pipeline.labels.windowed import over_windows
from pipeline.models.causal_lm import (
    longest_window,
    next_token_hidden,
    output_head,
    predictive_labels,
    prepend_start,
)
from pipeline.models.predictions import uniforms
from schemas.annotations import ENTROPY, SAMPLED_IDS, Shape


def token_entropies(model: PreTrainedModel, input_ids_BT: Tensor, start: int) -> Tensor:
    """Return -ln p(token | earlier tokens of the row) in nats, float32 [B, T]; see `token_labels`."""
    return token_labels(model, input_ids_BT, start, {ENTROPY: ()})[ENTROPY]


@torch.no_grad()
def token_labels(
    model: PreTrainedModel,
    input_ids_BT: Tensor,
    start: int,
    columns: Mapping[str, Shape],
    lengths_B: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the labels of right-padded texts by column, float32 [B, T], or [K, B, T] for values of the shape (K,).

    `label_values` explains the columns. The model reads the token `start` before each row, so that the first token has
    a label too. `start` is the token that preceded documents in the model's training. Values at padding are
    meaningless. Texts longer than the model's context are labelled in windows of that length, which overlap by half.
    The model reads `start` before each window.

    `lengths_B` has the number of tokens of each text, by default T. It is used only to sample ids: the random numbers
    for a text depend on the text's tokens, without its padding.
    """

    def labels(ids_BT: Tensor, uniform_BT: Tensor | None) -> dict[str, Tensor]:
        hidden_BTD = next_token_hidden(model, prepend_start(ids_BT, start))
        return predictive_labels(hidden_BTD, output_head(model), ids_BT, columns, uniform_BT)

    return in_windows(labels, input_ids_BT, columns, longest_window(model.config), lengths_B)


def in_windows(
    labels: Callable[[Tensor, Tensor | None], dict[str, Tensor]],
    input_ids_BT: Tensor,
    columns: Mapping[str, Shape],
    context: int | None,
    lengths_B: Tensor | None,
) -> dict[str, Tensor]:
    """Return the labels of right-padded texts by column, made in overlapping windows of at most `context` tokens.

    `labels` returns the columns of a window, given its tokens and, for sampled ids, a random number for each token.
    """
    batch, tokens = input_ids_BT.shape
    uniform_BT = None
    if SAMPLED_IDS in columns:
        whole_B = input_ids_BT.new_full((batch,), tokens) if lengths_B is None else lengths_B
        uniform_BT = uniforms(input_ids_BT, whole_B)

    def labels_CBT(window: Window) -> Tensor:
        part = (slice(None), slice(window.start, window.stop))
        made = labels(input_ids_BT[part], None if uniform_BT is None else uniform_BT[part])
        return torch.cat([made[name].reshape(-1, *made[name].shape[-2:]) for name in columns])

    parts = over_windows(labels_CBT, tokens, context).split([math.prod(shape) for shape in columns.values()])
    return {name: part.view(*columns[name], batch, tokens) for name, part in zip(columns, parts, strict=True)}
