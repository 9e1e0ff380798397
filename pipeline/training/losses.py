"""Training losses: a scalar per batch, in nats or in units of the labels' variance.

Losses add up: summed over processes and over the batches of a step, they are the loss of the whole step.

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
    """Return nats per real token of an estimator or autoencoder, given each window's embedding; padding has loss 0."""
    losses_BT: Tensor = model(batch.input_ids_BT, batch.lengths_B)
    return losses_BT.sum() / int(batch.whole.lengths_B.sum())


def document_losses(model: PreTrainedModel, batch: Batch, start: int) -> Tensor:
    """Return losses [B, T] of a causal language model that reads `start` before each row's first token."""
    return next_token_losses(model, prepend_start(batch.input_ids_BT, start), batch.input_ids_BT)


def document_loss(model: PreTrainedModel, batch: Batch, start: int) -> Tensor:
    """Return the mean of `document_losses` in nats per real token."""
    return document_losses(model, batch, start)[batch.real_BT].sum() / int(batch.whole.lengths_B.sum())


def window_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return losses [B, T - 1] of each window's tokens from the second on; the first ends the previous window."""
    return next_token_losses(model, batch.input_ids_BT[:, :-1], batch.input_ids_BT[:, 1:])


@dataclass(frozen=True)
class ObjectiveLoss:
    """Mean of an objective over the tokens that a causal language model predicts."""

    objective: Objective
    start: int | None = None
    """Token to read before each row; if None, a row's first token is read but not predicted."""

    @property
    def step_objective(self) -> StepObjective | None:
        """The objective if it compares the tokens of a step, else None."""
        return self.objective if isinstance(self.objective, StepObjective) else None

    def __call__(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        losses_BT, predicted_BT = self.token_losses(model, batch), self.predicted(batch)
        compares = self.step_objective
        if compares is not None and batch.factors_BT is not None:
            values_BT = compares.with_factors(losses_BT, batch.factors_BT)
        else:
            assert compares is None or batch.whole_batch is None, "a part of a step needs factors of the whole step"
            values_BT = self.objective(losses_BT, self.entropies(batch), predicted_BT)
        return values_BT[predicted_BT].sum() / max(1, int(self.predicted(batch.whole).sum()))

    def token_losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Return cross-entropies [B, T]; only those of `predicted` tokens are valid."""
        if self.start is None:
            return pad(window_losses(model, batch), (1, 0))
        return document_losses(model, batch, self.start)

    def entropies(self, batch: Batch) -> Tensor:
        """Return the labels [B, T] of predicted tokens, NaN elsewhere."""
        assert batch.labels_BT is not None
        return batch.labels_BT.masked_fill(~self.predicted(batch), torch.nan)

    def predicted(self, batch: Batch) -> Tensor:
        """Return a mask [B, T], True at tokens that the model predicts."""
        predicted_BT = batch.real_BT
        if self.start is None:
            predicted_BT[:, 0] = False
        return predicted_BT


def second_order_loss(model: SecondOrderModel, batch: Batch, causal_weight: float = 0.0) -> Tensor:
    """Return the mean squared error of both outputs, plus `causal_weight` times the model's loss as a language model.

    The error is in units of the labels' variance and ignores padding and tokens without a label. The language-model
    loss is in nats per real token.
    """
    assert batch.labels_BT is not None and batch.whole.labels_BT is not None
    labelled_BT, labelled = ~batch.labels_BT.isnan(), int((~batch.whole.labels_BT.isnan()).sum())
    estimates, surprisal_BT = model(batch.input_ids_BT, with_surprisal=causal_weight > 0)
    errors = [(estimate_BT - batch.labels_BT)[labelled_BT] / model.config.label_deviation for estimate_BT in estimates]
    loss = torch.stack([error_N.square().sum() for error_N in errors]).sum() / labelled
    if causal_weight > 0:
        loss = loss + causal_weight * surprisal_BT[batch.real_BT].sum() / int(batch.whole.lengths_B.sum())
    return loss
