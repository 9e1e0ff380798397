"""What each model is trained to make small: a scalar in nats, or in units of the labels' variance, a batch.

Where a batch is one process's part of a whole, its loss is its part of the whole batch's: they add up.

B rows, T tokens, N labelled tokens.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.models.language_model import next_token_losses, with_start
from pipeline.models.second_order import SecondOrderModel
from pipeline.models.window_encoder import WindowEncoder
from pipeline.training.batches import Batch
from pipeline.training.objectives import Objective, cross_entropy


def estimator_loss(model: WindowEncoder, batch: Batch) -> Tensor:
    """Nats a real token of an estimator or an autoencoder, given the embedding of its window; padding has loss 0."""
    losses_BT: Tensor = model(batch.input_ids_BT, batch.lengths_B)
    return losses_BT.sum() / int(batch.whole.lengths_B.sum())


def document_losses(model: PreTrainedModel, batch: Batch, start: int) -> Tensor:
    """Losses [B, T] of a causal language model that reads `start` before each row's first token."""
    return next_token_losses(model, with_start(batch.input_ids_BT, start), batch.input_ids_BT)


def document_loss(model: PreTrainedModel, batch: Batch, start: int, objective: Objective = cross_entropy) -> Tensor:
    """The objective's mean over the real tokens of `document_losses`; nats a token where none is named."""
    losses_BT = document_losses(model, batch, start)
    labels_BT = torch.full_like(losses_BT, torch.nan) if batch.labels_BT is None else batch.labels_BT
    values_BT = objective(losses_BT, labels_BT, batch.real_BT)
    return values_BT[batch.real_BT].sum() / int(batch.whole.lengths_B.sum())


def window_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Losses [B, T - 1] of each window's tokens from the second on; the first is the last of the window before."""
    return next_token_losses(model, batch.input_ids_BT[:, :-1], batch.input_ids_BT[:, 1:])


def objective_loss(model: PreTrainedModel, batch: Batch, objective: Objective) -> Tensor:
    """The objective's mean over the real tokens of `window_losses`."""
    assert batch.labels_BT is not None
    real_BT = batch.real_BT[:, 1:]
    values_BT = objective(window_losses(model, batch), batch.labels_BT[:, 1:], real_BT)
    return values_BT[real_BT].sum() / max(1, int(batch.whole.real_BT[:, 1:].sum()))


def second_order_loss(model: SecondOrderModel, batch: Batch, causal_weight: float = 0.0) -> Tensor:
    """Mean squared error of both outputs over labelled tokens, in units of the labels' variance, and
    `causal_weight` times the model's own loss as a language model over all real tokens, in nats.

    Tokens without a label and padding count for nothing in the first part.
    """
    assert batch.labels_BT is not None and batch.whole.labels_BT is not None
    labelled_BT, labelled = ~batch.labels_BT.isnan(), int((~batch.whole.labels_BT.isnan()).sum())
    estimates, surprisal_BT = model(batch.input_ids_BT, with_surprisal=causal_weight > 0)
    errors = [(estimate_BT - batch.labels_BT)[labelled_BT] / model.config.label_deviation for estimate_BT in estimates]
    loss = torch.stack([error_N.square().sum() for error_N in errors]).sum() / labelled
    if causal_weight > 0:
        loss = loss + causal_weight * surprisal_BT[batch.real_BT].sum() / int(batch.whole.lengths_B.sum())
    return loss
