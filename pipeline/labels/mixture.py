"""Mixture of causal language models: labels from the mean of the probabilities that several models give each token.

The models read the same ids. The mean of their probabilities is itself a prediction, with a surprisal, an entropy and
ranks. Its surprisal is at most the mean of the models' surprisals.

B rows, T tokens, N tokens of all rows, V vocabulary, D width, C columns.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.data.windows import Window
from pipeline.labels.ensemble import member_columns
from pipeline.labels.windowed import over_windows
from pipeline.models.causal_lm import (
    OutputHead,
    append_labels,
    longest_window,
    next_token_hidden,
    output_head,
    prepend_start,
)
from pipeline.models.cross_entropy import chunk_tokens


class Teacher(NamedTuple):
    """A causal language model, and the token that it reads before each window."""

    model: PreTrainedModel
    start: int


@torch.no_grad()
def token_labels(teachers: Sequence[Teacher], input_ids_BT: Tensor, columns: Sequence[str]) -> dict[str, Tensor]:
    """Return the labels of right-padded texts by column, float32 [B, T] each.

    The columns are those of `predictive_labels`, for the mean of the teachers' probabilities, and those of
    `member_columns`, for the surprisals of each teacher. Texts longer than the shortest context are labelled in windows
    of that length, as by a single model.
    """

    def labels_CBT(window: Window) -> Tensor:
        ids_BT = input_ids_BT[:, window.start : window.stop]
        hidden = [next_token_hidden(teacher.model, prepend_start(ids_BT, teacher.start)) for teacher in teachers]
        labels = mixture_labels(hidden, [output_head(teacher.model) for teacher in teachers], ids_BT, columns)
        return torch.stack([labels[name] for name in columns])

    contexts = [context for teacher in teachers if (context := longest_window(teacher.model.config)) is not None]
    labelled_CBT = over_windows(labels_CBT, input_ids_BT.shape[1], min(contexts, default=None))
    return dict(zip(columns, labelled_CBT, strict=True))


@torch.no_grad()
def mixture_labels(
    hidden: Sequence[Tensor], heads: Sequence[OutputHead], targets_BT: Tensor, columns: Sequence[str]
) -> dict[str, Tensor]:
    """Return the requested columns by name, float32 [B, T] each; see `token_labels`.

    Args:
        hidden: last hidden states [B, T, D] of each model. The widths D may differ.
        heads: head of each model. Vocabularies may be padded to different lengths V. A model gives no probability to
            ids beyond its own vocabulary.
        targets_BT: tokens, with ids in all vocabularies.
    """
    values: dict[str, list[Tensor]] = {name: [] for name in columns}
    apart = [values.get(name) for name in member_columns(len(heads))]
    for states, target_N in _in_chunks(hidden, heads, targets_BT):
        widest = max(len(head.weight_VD) for head in heads)
        log_p_NV = torch.full((len(target_N), widest), -torch.inf, device=target_N.device)
        for hidden_ND, head, surprisals in zip(states, heads, apart, strict=True):
            own_NV = head.logits(hidden_ND).log_softmax(dim=1)
            if surprisals is not None:
                surprisals.append(-own_NV.gather(1, target_N.unsqueeze(1)).squeeze(1))
            known_NV = log_p_NV[:, : own_NV.shape[1]]
            torch.logaddexp(known_NV, own_NV, out=known_NV)
        append_labels(values, log_p_NV.sub_(math.log(len(heads))), target_N)
    return {name: torch.cat(parts).view(targets_BT.shape) for name, parts in values.items()}


def _in_chunks(
    hidden: Sequence[Tensor], heads: Sequence[OutputHead], targets_BT: Tensor
) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Return each model's states [N, D] and the targets [N] of as many tokens at a time as the widest head allows."""
    tokens = min(chunk_tokens(head.weight_VD) for head in heads)
    parts = [hidden_BTD.flatten(0, 1).split(tokens) for hidden_BTD in hidden]
    return zip(zip(*parts, strict=True), targets_BT.flatten().split(tokens), strict=True)
