"""Objectives that know each token's entropy: losses and labels in, what to minimise out, token by token.

Each is a pure function of losses l and entropies e in nats, [B, T] each, and of which tokens are real; its mean over
real tokens is minimised (paper section 5). A token without a label (NaN) gets plain cross-entropy. `l - e` would be no
objective: its gradient is that of l.

B rows, T tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar, get_args

import torch
from torch import Tensor

from pipeline.training.config import ObjectiveName, ObjectiveSettings

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(losses, entropies, real), [B, T] each, to what is minimised, [B, T]; padding counts for nothing."""

Nats = TypeVar("Nats", float, Tensor)


def flood(losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor) -> Tensor:
    """|l - e|: gradient ascent below the entropy (flooding, Ishida et al. 2020, token by token)."""
    return torch.where(entropies_BT.isnan(), losses_BT, (losses_BT - entropies_BT.nan_to_num()).abs())


def floor(losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor) -> Tensor:
    """max(l - e, 0): no gradient below the entropy."""
    return torch.where(entropies_BT.isnan(), losses_BT, (losses_BT - entropies_BT.nan_to_num()).clamp(min=0))


def weight(losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor) -> Tensor:
    """(1 - ê) l, where ê is e scaled to 0..1 over the labelled tokens of its row."""
    missing_BT = entropies_BT.isnan()
    lowest_B1 = entropies_BT.masked_fill(missing_BT, torch.inf).amin(dim=1, keepdim=True)
    highest_B1 = entropies_BT.masked_fill(missing_BT, -torch.inf).amax(dim=1, keepdim=True)
    scaled_BT = (entropies_BT - lowest_B1) / (highest_B1 - lowest_B1).clamp(min=1e-6)
    return (1 - scaled_BT.masked_fill(missing_BT, 0)) * losses_BT


def mask(losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor, *, threshold: float) -> Tensor:
    """l where e is below the threshold, else 0."""
    return losses_BT.masked_fill(entropies_BT >= threshold, 0)


def cross_entropy(losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor) -> Tensor:
    """l: the control."""
    return losses_BT


def flood_mean(losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor, *, level: float) -> Tensor:
    """What has the mean, and the gradient, of |mean l - level|: flooding with one number in place of labels."""
    above = (losses_BT.detach()[real_BT].mean() - level).sign().nan_to_num()  # of no token, in a process without rows
    return above * (losses_BT - level)


def random_share(losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor, *, share: float) -> Tensor:
    """l of a random share of the tokens: the control of every selection."""
    return _selected(losses_BT, real_BT, torch.rand_like(losses_BT), share)


def reference_share(losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor, *, share: float) -> Tensor:
    """l of the share of the batch's tokens with the largest l - e, those without a label among them."""
    excess_BT = (losses_BT.detach() - entropies_BT).masked_fill(entropies_BT.isnan(), torch.inf)
    return _selected(losses_BT, real_BT, excess_BT, share)


def objective_function(settings: ObjectiveSettings, mean_entropy: float) -> Objective:
    """The objective with its settings; `mean_entropy`, in nats, is the labels' mean before scale and margin."""
    functions: dict[ObjectiveName, Objective] = {
        "flood": flood,
        "floor": floor,
        "weight": weight,
        "mask": partial(mask, threshold=_given(settings.threshold, corrected(mean_entropy, settings))),
        "cross-entropy": cross_entropy,
        "flood-mean": partial(flood_mean, level=_given(settings.level, corrected(mean_entropy, settings))),
        "random-share": partial(random_share, share=settings.share),
        "reference-share": partial(reference_share, share=settings.share),
    }
    assert set(functions) == set(get_args(ObjectiveName))
    chosen = functions[settings.objective]
    return lambda losses_BT, entropies_BT, real_BT: chosen(losses_BT, corrected(entropies_BT, settings), real_BT)


def corrected(nats: Nats, settings: ObjectiveSettings) -> Nats:
    """Labels with their scale and margin."""
    return settings.scale * nats + settings.margin


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _selected(losses_BT: Tensor, real_BT: Tensor, order_BT: Tensor, share: float) -> Tensor:
    """The losses of the share of real tokens that come first, largest first, times what keeps their mean over all."""
    real = int(real_BT.sum())
    wanted = max(1, round(share * real))
    kept_BT = torch.zeros_like(real_BT)
    kept_N = torch.zeros(real, dtype=torch.bool, device=real_BT.device)
    kept_N[order_BT[real_BT].topk(min(wanted, real)).indices] = True
    kept_BT[real_BT] = kept_N
    return losses_BT * kept_BT * (real / wanted)
