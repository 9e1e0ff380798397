"""Second-order labels: one pass of a regressor that was trained on first-order labels.

B rows, T tokens.
"""

import torch
from torch import Tensor

from pipeline.models.second_order import Entropies, SecondOrderModel


@torch.no_grad()
def token_entropies(model: SecondOrderModel, input_ids_BT: Tensor) -> Entropies:
    """Entropies and expected entropies in nats, float32 [B, T] each, of right-padded windows.

    Nothing is clipped: an estimate may fall slightly below zero. Values at padding mean nothing.
    """
    return model.entropies(input_ids_BT)
