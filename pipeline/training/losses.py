"""Losses that models are trained with: a scalar for a batch, in nats or in units of the labels' variance.

The loss of a part of a batch is a part of the batch's loss: over processes and the batches of a step they add up.

B rows, T tokens, N labelled tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from pipeline.models.causal_lm import next_token_losses, prepend_start
from pipeline.models.second_order import SecondOrderModel
from pipeline.models.window_encoder import WindowEncoder
from pipeline.training.batches import Batch
from pipeline.training.objectives import Objective, StepObjective


def estimator_loss(model: WindowEncoder, batch: Batch) -> Tensor:
    """Nats per real token of an estimator or an autoencoder, given its window's embedding; padding has loss 0."""
    losses_BT: Tensor = model(batch.input_ids_BT, batch.lengths_B)
    return losses_BT.sum() / int(batch.whole.lengths_B.sum())


def document_losses(model: PreTrainedModel, batch: Batch, start: int) -> Tensor:
    """Losses [B, T] of a causal language model that reads `start` before each row's first token."""
    return next_token_losses(model, prepend_start(batch.input_ids_BT, start), batch.input_ids_BT)


def document_loss(model: PreTrainedModel, batch: Batch, start: int) -> Tensor:
    """Nats per real token of `document_losses`."""
    return document_losses(model, batch, start)[batch.real_BT].sum() / int(batch.whole.lengths_B.sum())


def window_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Losses [B, T - 1] of each window's tokens from the second on; the first is the last of the window before."""
    return next_token_losses(model, batch.input_ids_BT[:, :-1], batch.input_ids_BT[:, 1:])


@dataclass(frozen=True)
class ObjectiveLoss:
    """The mean of an objective over the tokens that a causal language model predicts."""

    objective: Objective
    start: int | None = None
    """Token to read before each row; where None a row's first token is read and not predicted."""

    @property
    def step_objective(self) -> StepObjective | None:
        """The objective, if it compares the tokens of a step."""
        return self.objective if isinstance(self.objective, StepObjective) else None

    def __call__(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        losses_BT, predicted_BT = self.token_losses(model, batch), self.predicted(batch)
        compares = self.step_objective
        if compares is not None and batch.factors_BT is not None:
            values_BT = compares.with_factors(losses_BT, batch.factors_BT)
        else:
            assert compares is None or batch.whole_batch is None, "a part cannot tell what follows from the whole"
            values_BT = self.objective(losses_BT, self.entropies(batch), predicted_BT)
        return values_BT[predicted_BT].sum() / max(1, int(self.predicted(batch.whole).sum()))

    def token_losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Cross-entropies [B, T]; those that count are `predicted`."""
        if self.start is None:
            return pad(window_losses(model, batch), (1, 0))
        return document_losses(model, batch, self.start)

    def entropies(self, batch: Batch) -> Tensor:
        """Labels [B, T] of the predicted tokens; NaN at others."""
        assert batch.labels_BT is not None
        return batch.labels_BT.masked_fill(~self.predicted(batch), torch.nan)

    def predicted(self, batch: Batch) -> Tensor:
        """True [B, T] at tokens that the model predicts."""
        predicted_BT = batch.real_BT
        if self.start is None:
            predicted_BT[:, 0] = False
        return predicted_BT


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
