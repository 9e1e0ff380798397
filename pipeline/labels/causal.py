"""Causal labels: the per-token loss of a causal language model.

B rows, T tokens.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.data.windows import Window
from pipeline.labels.windowed import over_windows
from pipeline.models.causal_lm import (
    longest_window,
    next_token_hidden,
    next_token_losses,
    output_head,
    predicted_entropies,
    prepend_start,
)


@torch.no_grad()
def token_entropies(model: PreTrainedModel, input_ids_BT: Tensor, start: int) -> Tensor:
    """-ln p(token | tokens before it in its row) in nats, float32 [B, T], of right-padded texts.

    `start` stands before each row, so that the first token has a label too: the token that the model read before
    documents in its training. Values at padding mean nothing. Texts beyond the model's context are labelled in windows
    of it that overlap by half, `start` before each.
    """

    def losses_BT(window: Window) -> Tensor:
        ids_BT = input_ids_BT[:, window.start : window.stop]
        return next_token_losses(model, prepend_start(ids_BT, start), ids_BT)

    return over_windows(losses_BT, input_ids_BT.shape[1], longest_window(model.config))


@torch.no_grad()
def expected_entropies(model: PreTrainedModel, input_ids_BT: Tensor, start: int) -> Tensor:
    """Entropy of the model's prediction of each token before it is seen, nats, float32 [B, T]; windows as above."""

    def entropies_BT(window: Window) -> Tensor:
        inputs_BT = prepend_start(input_ids_BT[:, window.start : window.stop], start)
        return predicted_entropies(next_token_hidden(model, inputs_BT), output_head(model))

    return over_windows(entropies_BT, input_ids_BT.shape[1], longest_window(model.config))
