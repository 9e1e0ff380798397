"""Objectives that know each token's entropy: loss and label in, what to minimise out, token by token.

Each is a pure function of losses l and entropies e in nats, [B, T] each (paper section 5). A token without
a label (NaN) gets plain cross-entropy. `l - e` would be no objective: its gradient is that of l.

B rows, T tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

Objective = Literal["flood", "floor", "weight", "mask", "cross-entropy"]


def flood(losses_BT: Tensor, entropies_BT: Tensor) -> Tensor:
    """|l - e|: gradient ascent below the entropy (flooding, Ishida et al. 2020, token by token)."""
    return torch.where(entropies_BT.isnan(), losses_BT, (losses_BT - entropies_BT.nan_to_num()).abs())


def floor(losses_BT: Tensor, entropies_BT: Tensor) -> Tensor:
    """max(l - e, 0): no gradient below the entropy."""
    return torch.where(entropies_BT.isnan(), losses_BT, (losses_BT - entropies_BT.nan_to_num()).clamp(min=0))


def weight(losses_BT: Tensor, entropies_BT: Tensor) -> Tensor:
    """(1 - ê) l, where ê is e scaled to 0..1 over the labelled tokens of its row."""
    missing_BT = entropies_BT.isnan()
    lowest_B1 = entropies_BT.masked_fill(missing_BT, torch.inf).amin(dim=1, keepdim=True)
    highest_B1 = entropies_BT.masked_fill(missing_BT, -torch.inf).amax(dim=1, keepdim=True)
    scaled_BT = (entropies_BT - lowest_B1) / (highest_B1 - lowest_B1).clamp(min=1e-6)
    return (1 - scaled_BT.masked_fill(missing_BT, 0)) * losses_BT


def mask(losses_BT: Tensor, entropies_BT: Tensor, threshold: float) -> Tensor:
    """l where e is below the threshold, else 0."""
    return losses_BT.masked_fill(entropies_BT >= threshold, 0)


def cross_entropy(losses_BT: Tensor, entropies_BT: Tensor) -> Tensor:
    """l: the control."""
    return losses_BT


def objective_function(name: Objective, *, threshold: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The named objective as a function of losses and entropies; the threshold, in nats, is mask's."""
    functions: dict[Objective, Callable[[Tensor, Tensor], Tensor]] = {
        "flood": flood,
        "floor": floor,
        "weight": weight,
        "mask": partial(mask, threshold=threshold),
        "cross-entropy": cross_entropy,
    }
    return functions[name]
