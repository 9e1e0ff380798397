"""Second-order labels: one pass of a regression model that was trained on first-order labels.

B rows, T tokens.
"""

import torch
from torch import Tensor

from pipeline.data.windows import Window
from pipeline.labels.windowed import over_windows
from pipeline.models.second_order import Entropies, SecondOrderModel


@torch.no_grad()
def token_entropies(model: SecondOrderModel, input_ids_BT: Tensor) -> Entropies:
    """Return entropies and expected entropies in nats, float32 [B, T] each, of right-padded texts.

    Estimates are not clipped and may be slightly negative. Values at padding are meaningless. Texts longer than the
    model's context are labelled in windows of that length, which overlap by half.
    """

    def both_2BT(window: Window) -> Tensor:
        return torch.stack(model.entropies(input_ids_BT[:, window.start : window.stop]))

    return Entropies(*over_windows(both_2BT, input_ids_BT.shape[1], model.config.context))
