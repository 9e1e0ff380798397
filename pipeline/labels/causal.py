"""Causal labels: the per-token loss of a causal language model.

B rows, T tokens.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.models.language_model import next_token_losses, start_token


@torch.no_grad()
def token_entropies(model: PreTrainedModel, input_ids_BT: Tensor) -> Tensor:
    """-ln p(token | tokens before it in its row) in nats, float32 [B, T], of right-padded windows.

    The model's start token stands before each row, so that the first token has a label too. Values at padding
    mean nothing.
    """
    start_B1 = torch.full_like(input_ids_BT[:, :1], start_token(model))
    return next_token_losses(model, torch.cat([start_B1, input_ids_BT[:, :-1]], dim=1), input_ids_BT)
