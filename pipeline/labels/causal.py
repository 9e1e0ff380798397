"""Causal labels: the per-token loss of a causal language model.

B rows, T tokens.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.models.language_model import next_token_hidden, next_token_losses, predicted_entropies, with_start


@torch.no_grad()
def token_entropies(model: PreTrainedModel, input_ids_BT: Tensor, start: int) -> Tensor:
    """-ln p(token | tokens before it in its row) in nats, float32 [B, T], of right-padded windows.

    `start` stands before each row, so that the first token has a label too: the token that the model read before
    documents in its training. Values at padding mean nothing.
    """
    return next_token_losses(model, with_start(input_ids_BT, start), input_ids_BT)


@torch.no_grad()
def expected_entropies(model: PreTrainedModel, input_ids_BT: Tensor, start: int) -> Tensor:
    """Entropy of the model's prediction of each token before it is seen, nats, float32 [B, T]."""
    hidden_BTD = next_token_hidden(model, with_start(input_ids_BT, start))
    return predicted_entropies(hidden_BTD, model.get_output_embeddings().weight)
