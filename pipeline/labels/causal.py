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
    """Return -ln p(token | earlier tokens of the row) in nats, float32 [B, T], of right-padded texts.

    The model reads the token `start` before each row, so that the first token has a label too. `start` is the token
    that preceded documents in the model's training. Values at padding are meaningless. Texts longer than the model's
    context are labelled in windows of that length, which overlap by half. The model reads `start` before each window.
    """

    def losses_BT(window: Window) -> Tensor:
        ids_BT = input_ids_BT[:, window.start : window.stop]
        return next_token_losses(model, prepend_start(ids_BT, start), ids_BT)

    return over_windows(losses_BT, input_ids_BT.shape[1], longest_window(model.config))


@torch.no_grad()
def expected_entropies(model: PreTrainedModel, input_ids_BT: Tensor, start: int) -> Tensor:
    """Return the entropy of the model's prediction of each token in nats, float32 [B, T].

    Start token, padding and long texts are treated as in `token_entropies`.
    """

    def entropies_BT(window: Window) -> Tensor:
        inputs_BT = prepend_start(input_ids_BT[:, window.start : window.stop], start)
        return predicted_entropies(next_token_hidden(model, inputs_BT), output_head(model))

    return over_windows(entropies_BT, input_ids_BT.shape[1], longest_window(model.config))
