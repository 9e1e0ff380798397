"""Objectives that compare the tokens of a step, over all of its batches and processes.

A pass without gradients finds the loss of every token. From all of them each process takes the same factors, and the
pass with gradients multiplies by these: loss and gradient are those of one batch that holds the whole step. One batch
in one process is the whole step already.

B rows, T tokens of the longest row, S positions of all batches, padding among them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeGuard

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.training.batches import Batch
from pipeline.training.losses import ObjectiveLoss

TokenLosses = Callable[[Batch], Tensor]
"""Losses [B, T] of a part of a batch, on its device."""


def compares(loss: object, batches: Sequence[Batch], accelerator: Accelerator) -> TypeGuard[ObjectiveLoss]:
    """True if the loss compares tokens of a step that no forward pass sees together."""
    several = len(batches) * accelerator.num_processes > 1
    return several and isinstance(loss, ObjectiveLoss) and loss.comparing is not None


def compared(
    loss: ObjectiveLoss, batches: Sequence[Batch], token_losses: TokenLosses, accelerator: Accelerator, seed: int
) -> list[Batch]:
    """The batches with the factors that follow from all of them; `seed`, for random ones, is that of all processes."""
    losses_S = torch.cat([_losses(batch, token_losses, accelerator).flatten() for batch in batches])
    losses_S = accelerator.reduce(losses_S)  # each process has zeros at the rows of others
    entropies_S = torch.cat([loss.entropies(batch).flatten() for batch in batches]).to(losses_S.device)
    predicted_S = torch.cat([loss.predicted(batch).flatten() for batch in batches]).to(losses_S.device)
    torch.manual_seed(seed)
    assert loss.comparing is not None
    factors_S = loss.comparing.factors(losses_S, entropies_S, predicted_S).cpu()
    each = factors_S.split([batch.input_ids_BT.numel() for batch in batches])
    return [
        replace(batch, factors_BT=factors_S.view(batch.input_ids_BT.shape))
        for batch, factors_S in zip(batches, each, strict=True)
    ]


def _losses(batch: Batch, token_losses: TokenLosses, accelerator: Accelerator) -> Tensor:
    """Losses [B, T] of this process's rows, and zeros."""
    process, processes = accelerator.process_index, accelerator.num_processes
    losses_BT = torch.zeros(batch.input_ids_BT.shape, device=accelerator.device)
    found_BT = token_losses(batch.part(process, processes).to(accelerator.device))  # FSDP asks every process
    rows = batch.rows(process, processes)
    if len(losses_BT[rows]):
        losses_BT[rows] = found_BT.float()
    return losses_BT
