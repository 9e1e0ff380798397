"""What each model is trained to make small: a scalar in nats, or in units of the labels' variance, a batch.

B rows, T tokens, N labelled tokens.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.models.estimator import EntropyEstimator
from pipeline.models.language_model import next_token_losses, with_start
from pipeline.models.second_order import SecondOrderModel
from pipeline.training.batches import Batch


def estimator_loss(model: EntropyEstimator, batch: Batch) -> Tensor:
    """Nats a real token, given the embedding of the token's window; padding has loss 0."""
    losses_BT: Tensor = model(batch.input_ids_BT, batch.lengths_B)
    return losses_BT.sum() / batch.lengths_B.sum()


def document_loss(model: PreTrainedModel, batch: Batch, start: int) -> Tensor:
    """Nats a real token of a causal language model that reads `start` before each row's first token."""
    losses_BT = next_token_losses(model, with_start(batch.input_ids_BT, start), batch.input_ids_BT)
    return losses_BT[batch.real_BT].mean()


def second_order_loss(model: SecondOrderModel, batch: Batch, causal_weight: float = 0.0) -> Tensor:
    """Mean squared error of both outputs over labelled tokens, in units of the labels' variance, and
    `causal_weight` times the model's own loss as a language model over all real tokens, in nats.

    Tokens without a label and padding count for nothing in the first part.
    """
    assert batch.labels_BT is not None
    labelled_BT = ~batch.labels_BT.isnan()
    estimates, surprisal_BT = model(batch.input_ids_BT, with_surprisal=causal_weight > 0)
    errors = [(estimate_BT - batch.labels_BT)[labelled_BT] / model.config.label_deviation for estimate_BT in estimates]
    loss = torch.stack([error_N.square().mean() for error_N in errors]).sum()
    return loss + causal_weight * surprisal_BT[batch.real_BT].mean() if causal_weight > 0 else loss
