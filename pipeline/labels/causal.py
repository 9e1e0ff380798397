"""Causal labels: each token's loss under a causal language model, its rank, and the entropy of the prediction.

B rows, T tokens, C columns.
"""

from collections.abc import Sequence

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
from schemas.annotations import ENTROPY


def token_entropies(model: PreTrainedModel, input_ids_BT: Tensor, start: int) -> Tensor:
    """Return -ln p(token | earlier tokens of the row) in nats, float32 [B, T]; see `token_labels`."""
    return token_labels(model, input_ids_BT, start, (ENTROPY,))[ENTROPY]


@torch.no_grad()
def token_labels(model: PreTrainedModel, input_ids_BT: Tensor, start: int, columns: Sequence[str]) -> dict[str, Tensor]:
    """Return the labels of right-padded texts by column, float32 [B, T] each; `predictive_labels` explains the columns.

    The model reads the token `start` before each row, so that the first token has a label too. `start` is the token
    that preceded documents in the model's training. Values at padding are meaningless. Texts longer than the model's
    context are labelled in windows of that length, which overlap by half. The model reads `start` before each window.
    """

    def labels_CBT(window: Window) -> Tensor:
        ids_BT = input_ids_BT[:, window.start : window.stop]
        hidden_BTD = next_token_hidden(model, prepend_start(ids_BT, start))
        labels = predictive_labels(hidden_BTD, output_head(model), ids_BT, columns)
        return torch.stack([labels[name] for name in columns])

    labelled_CBT = over_windows(labels_CBT, input_ids_BT.shape[1], longest_window(model.config))
    return dict(zip(columns, labelled_CBT, strict=True))
