"""Objectives that use each token's entropy: functions from losses and labels to the values to minimise.

Each objective is a pure function of losses l and entropies e in nats, both [B, T], and of a mask of real tokens.
Training minimises the mean of the values over real tokens (paper section 5). For a token without a label (NaN), the
value is plain cross-entropy. `l - e` is not an objective here, since its gradient equals that of l.

A `StepObjective` compares all tokens of a step, for any number of batches and processes. The comparison determines a
factor for each token, by which the token's loss is multiplied.

Shapes: B rows, T tokens, N real tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, get_args

import torch
from torch import Tensor

from pipeline.training.config import ObjectiveName, ObjectiveSettings

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Function of (losses, entropies, real), each [B, T]. It returns the values to minimise, [B, T]; values at padding are
not used."""

Nats = TypeVar("Nats", float, Tensor)


@dataclass(frozen=True)
class StepObjective:
    """Objective that compares all tokens of a step with each other.

    The comparison gives each token a factor. The value to minimise for a token is factor * (loss - level), where the
    constant `level` is in nats.
    """

    factors: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Function that takes (losses, entropies, real) of all tokens of the step, in any shape, and returns factors of the
    same shape."""
    level: float = 0.0

    def __call__(self, losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor) -> Tensor:
        """Return the values to minimise, [B, T]. The arguments must have all tokens of the step."""
        return self.with_factors(losses_BT, self.factors(losses_BT.detach(), entropies_BT, real_BT))

    def with_factors(self, losses_BT: Tensor, factors_BT: Tensor) -> Tensor:
        """Return the values to minimise, [B, T], from the losses and factors of some of the step's tokens."""
        return factors_BT * (losses_BT - self.level)


def objective_function(settings: ObjectiveSettings, mean_entropy: float) -> Objective:
    """Return the objective that the settings name, with scale and margin applied to the labels.

    `mean_entropy` is the mean of the labels, in nats, before scale and margin.
    """
    mean = corrected(mean_entropy, settings)
    level = mean if settings.level is None else settings.level
    threshold = mean if settings.threshold is None else settings.threshold
    functions: dict[ObjectiveName, Objective] = {
        "flood": flood,
        "floor": floor,
        "weight": weight,
        "mask": partial(mask, threshold=threshold),
        "adaflood": partial(adaflood, gamma=settings.gamma),
        "probability": probability,
        "cross-entropy": cross_entropy,
        "flood-mean": StepObjective(partial(flood_mean, level=level), level),
        "iflood": partial(iflood, level=level),
        "random-share": StepObjective(partial(random_share, share=settings.share)),
        "reference-share": StepObjective(partial(reference_share, share=settings.share)),
        "loss-share": StepObjective(partial(loss_share, share=settings.share)),
    }
    assert set(functions) == set(get_args(ObjectiveName))
    chosen = functions[settings.objective]
    if isinstance(chosen, StepObjective):
        return StepObjective(_with_corrected_labels(chosen.factors, settings), chosen.level)
    return _with_corrected_labels(chosen, settings)


def corrected(nats: Nats, settings: ObjectiveSettings) -> Nats:
    """Return `nats`, multiplied by the scale and increased by the margin.

    `nats` has labels, or is the mean of the labels.
    """
    return settings.scale * nats + settings.margin


def flood(losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor) -> Tensor:
    """Return |l - e|. Minimising it raises losses below the entropy (flooding, Ishida et al. 2020, per token)."""
    return torch.where(entropies_BT.isnan(), losses_BT, (losses_BT - entropies_BT.nan_to_num()).abs())


def floor(losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor) -> Tensor:
    """Return max(l - e, 0), which has no gradient where the loss is below the entropy."""
    return torch.where(entropies_BT.isnan(), losses_BT, (losses_BT - entropies_BT.nan_to_num()).clamp(min=0))


def weight(losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor) -> Tensor:
    """Return (1 - ê) l, where ê is the entropy e, scaled to 0..1 over the labelled tokens of its row."""
    missing_BT = entropies_BT.isnan()
    lowest_B1 = entropies_BT.masked_fill(missing_BT, torch.inf).amin(dim=1, keepdim=True)
    highest_B1 = entropies_BT.masked_fill(missing_BT, -torch.inf).amax(dim=1, keepdim=True)
    scaled_BT = (entropies_BT - lowest_B1) / (highest_B1 - lowest_B1).clamp(min=1e-6)
    return (1 - scaled_BT.masked_fill(missing_BT, 0)) * losses_BT


def mask(losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor, *, threshold: float) -> Tensor:
    """Return l where e is below the threshold, else 0."""
    return losses_BT.masked_fill(entropies_BT >= threshold, 0)


def adaflood(losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor, *, gamma: float) -> Tensor:
    """Return |l - b| with b = -ln((1 - gamma) exp(-e) + gamma) (AdaFlood, Bae et al. 2024, arXiv 2311.02891).

    The level b is the loss of a probability that is corrected from exp(-e) towards 1. It is finite for every finite e.
    A label below 0 gives a level below 0, which no loss reaches.
    """
    label_BT = torch.full_like(entropies_BT, 1 - gamma).log() - entropies_BT
    certain_BT = torch.full_like(entropies_BT, gamma).log()
    return flood(losses_BT, -torch.logaddexp(label_BT, certain_BT), real_BT)


def probability(losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor) -> Tensor:
    """Return -(p ln q + (1 - p) ln(1 - q)) for each token, with q = exp(-l) and p = exp(-e).

    The value is lowest at l = e. If e is below 0, or if the token has no label, p is set to 1. For p = 1, the value is
    the loss l. If e is a teacher's loss, this objective distils only the teacher's probability of the actual token,
    instead of the teacher's whole distribution.
    """
    nats_BT = entropies_BT.nan_to_num().clamp(min=0)
    # ln(1 - q) is infinite at l = 0, so l is raised to at least eps, which is near a softmax's smallest loss above 0.
    # The raised value still has the gradient 1 with respect to l.
    raised_BT = losses_BT + (torch.finfo(losses_BT.dtype).eps - losses_BT.detach()).clamp(min=0)
    return (-nats_BT).exp() * losses_BT + (-nats_BT).expm1() * _log_of_complement(raised_BT)


def cross_entropy(losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor) -> Tensor:
    """Return the loss l unchanged. This is plain cross-entropy, the control that uses no labels."""
    return losses_BT


def flood_mean(losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor, *, level: float) -> Tensor:
    """Return factors that are all 1 if the mean loss is above the level, and all -1 if it is below.

    The factors give the gradient of |mean l - level|. This is flooding with one level for all tokens instead of a label
    for each token.
    """
    above = (losses_BT[real_BT].mean() - level).sign().nan_to_num()  # NaN in a process without rows
    return above.expand_as(losses_BT)


def iflood(losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor, *, level: float) -> Tensor:
    """Return |l - level|. This is flooding per token, with the same level for all tokens (iFlood, Xie et al. 2022)."""
    return flood(losses_BT, torch.full_like(losses_BT, level), real_BT)


def random_share(losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor, *, share: float) -> Tensor:
    """Return factors that select a random share of the tokens, as a control for selection by loss and label."""
    return _selected(real_BT, torch.rand(int(real_BT.sum()), device=losses_BT.device), share)


def reference_share(losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor, *, share: float) -> Tensor:
    """Return factors that select a share of the tokens. The tokens with the largest loss minus entropy are selected.

    Tokens without a label are selected before all other tokens.
    """
    excess_BT = (losses_BT - entropies_BT).masked_fill(entropies_BT.isnan(), torch.inf)
    return _selected(real_BT, excess_BT[real_BT], share)


def loss_share(losses_BT: Tensor, entropies_BT: Tensor, real_BT: Tensor, *, share: float) -> Tensor:
    """Return factors that select a share of the tokens: those with the largest loss.

    The smallest loss of a selected token is the value at risk at the level 1 - share. The mean loss of the selected
    tokens is the conditional value at risk at this level (ESLM, Bal et al. 2025, arXiv 2505.19893).
    """
    return _selected(real_BT, losses_BT[real_BT], share)


def _with_corrected_labels(function: Objective, settings: ObjectiveSettings) -> Objective:
    return lambda losses_BT, entropies_BT, real_BT: function(losses_BT, corrected(entropies_BT, settings), real_BT)


def _log_of_complement(losses_BT: Tensor) -> Tensor:
    """Return ln(1 - exp(-l)) for losses l > 0, exact to float precision.

    One formula is exact for losses below ln 2, and another for larger losses. Each loss gets the formula that is exact.
    """
    near_zero_BT, far_BT = (-(-losses_BT).expm1()).log(), (-(-losses_BT).exp()).log1p()
    return torch.where(losses_BT < math.log(2), near_zero_BT, far_BT)


def _selected(real_BT: Tensor, order_N: Tensor, share: float) -> Tensor:
    """Return factors that select a share of the real tokens: those with the largest values of `order_N`.

    All selected tokens have the same factor, and other tokens have factor 0. The mean factor of real tokens is 1.
    """
    real = len(order_N)
    kept = max(1, round(share * real))
    factors_N = torch.zeros(real, device=real_BT.device)
    factors_N[order_N.topk(min(kept, real)).indices] = real / kept
    factors_BT = torch.zeros(real_BT.shape, device=real_BT.device)
    factors_BT[real_BT] = factors_N
    return factors_BT
