"""Mixture of causal language models: labels from the mean of the probabilities that several models give each token.

The models read the same ids. The mean of their probabilities is itself a prediction, with a surprisal, an entropy and
ranks. Its surprisal is at most the mean of the models' surprisals.

B rows, T tokens, N tokens of all rows, V vocabulary, D width.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.labels.causal import in_windows
from pipeline.labels.ensemble import member_columns
from pipeline.models.causal_lm import (
    OutputHead,
    longest_window,
    next_token_hidden,
    output_head,
    prepend_start,
)
from pipeline.models.cross_entropy import chunk_tokens
from pipeline.models.predictions import labels_in_chunks
from schemas.annotations import Shape


class Teacher(NamedTuple):
    """A causal language model, and the token that it reads before each window."""

    model: PreTrainedModel
    start: int


@torch.no_grad()
def token_labels(
    teachers: Sequence[Teacher],
    input_ids_BT: Tensor,
    columns: Mapping[str, Shape],
    lengths_B: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the labels of right-padded texts, by column.

    `columns` has the requested columns, with the shape of one token's value in each. A column that `member_columns`
    names has the surprisals of one teacher. All other columns are computed from the mean of the teachers'
    probabilities, in the way in which `causal.token_labels` computes them from a single model. Labels are float32
    [B, T], or [K, B, T] for values of the shape (K,). If a text is longer than the shortest context of the teachers, it
    is labelled in windows of this length.
    """
    heads = [output_head(teacher.model) for teacher in teachers]

    def labels(ids_BT: Tensor, uniform_BT: Tensor | None) -> dict[str, Tensor]:
        hidden = [next_token_hidden(teacher.model, prepend_start(ids_BT, teacher.start)) for teacher in teachers]
        return mixture_labels(hidden, heads, ids_BT, columns, uniform_BT)

    contexts = [context for teacher in teachers if (context := longest_window(teacher.model.config)) is not None]
    return in_windows(labels, input_ids_BT, columns, min(contexts, default=None), lengths_B)


@torch.no_grad()
def mixture_labels(
    hidden: Sequence[Tensor],
    heads: Sequence[OutputHead],
    targets_BT: Tensor,
    columns: Mapping[str, Shape],
    uniform_BT: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the requested columns by name, as `predictive_labels` does for a single model; see `token_labels`.

    Args:
        hidden: last hidden states [B, T, D] of each model. The widths D may differ.
        heads: head of each model. Vocabularies may be padded to different lengths V. A model gives no probability to
            ids beyond its own vocabulary.
        targets_BT: tokens, with ids in all vocabularies.
        uniform_BT: a random number for each token, which `sampled_ids` needs.
    """
    tokens, widest = min(chunk_tokens(head.weight_VD) for head in heads), max(len(head.weight_VD) for head in heads)
    apart: dict[str, list[Tensor]] = {name: [] for name in member_columns(len(heads)) if name in columns}

    def predictions(target_N: Tensor, *states: Tensor) -> Tensor:
        log_p_NV = torch.full((len(target_N), widest), -torch.inf, device=target_N.device)
        for hidden_ND, head, name in zip(states, heads, member_columns(len(heads)), strict=True):
            own_NV = head.logits(hidden_ND).log_softmax(dim=1)
            if name in apart:
                apart[name].append(-own_NV.gather(1, target_N.unsqueeze(1)).squeeze(1))
            known_NV = log_p_NV[:, : own_NV.shape[1]]
            torch.logaddexp(known_NV, own_NV, out=known_NV)
        return log_p_NV.sub_(math.log(len(heads)))

    mixed = {name: shape for name, shape in columns.items() if name not in apart}
    labels = labels_in_chunks(predictions, hidden, targets_BT, mixed, uniform_BT, tokens)
    return labels | {name: torch.cat(parts).view(targets_BT.shape) for name, parts in apart.items()}
