"""Training losses: a scalar per batch, in nats or in units of the labels' variance.

The losses of all processes and of all batches of a step add up to the loss of the whole step.

Shapes: B rows, T tokens, N labelled tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from pipeline.models.causal_lm import next_token_losses, next_token_sums, prepend_start
from pipeline.models.second_order import Entropies, SecondOrderModel
from pipeline.models.window_encoder import WindowEncoder
from pipeline.training.batches import Batch
from pipeline.training.distillation import StoredTargets, distilled
from pipeline.training.objectives import Objective, StepObjective
from pipeline.training.penalties import Penalty


def estimator_loss(model: WindowEncoder, batch: Batch) -> Tensor:
    """Return the loss of an estimator or autoencoder in nats per real token, without the cost of storing embeddings.

    The model returns losses of 0 at padding, so that the sum contains only real tokens.
    """
    losses_BT: Tensor = model(batch.input_ids_BT, batch.lengths_B)
    return losses_BT.sum() / int(batch.whole.lengths_B.sum())


def document_losses(model: PreTrainedModel, batch: Batch, start: int) -> Tensor:
    """Return the losses [B, T] of a causal language model that reads the token `start` before each row.

    Index i is for token i, given `start` and the tokens before it.
    """
    return next_token_losses(model, prepend_start(batch.inputs_BT, start), batch.input_ids_BT)


def document_loss(model: PreTrainedModel, batch: Batch, start: int) -> Tensor:
    """Return the mean of `document_losses` in nats per real token."""
    return document_losses(model, batch, start)[batch.real_BT].sum() / int(batch.whole.lengths_B.sum())


def window_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return a causal language model's losses [B, T - 1] of all tokens except the first of each window.

    Index i is for token i + 1, given the tokens before it. The first token of a window needs no loss here, because it
    is also the last token of the previous window.
    """
    return next_token_losses(model, batch.inputs_BT[:, :-1], batch.input_ids_BT[:, 1:])


@dataclass(frozen=True)
class ObjectiveLoss:
    """Mean of an objective, and of any penalty, over the tokens that a causal language model predicts."""

    objective: Objective
    start: int | None = None
    """Id of the token to read before each row. If None, a row's first token is read but not predicted."""
    penalty: Penalty | None = None
    """Penalty to add to the objective's values. None means no penalty; then only the cross-entropy is computed."""

    @property
    def step_objective(self) -> StepObjective | None:
        """The objective if it is a `StepObjective`, which compares all tokens of a step; otherwise None."""
        return self.objective if isinstance(self.objective, StepObjective) else None

    def __call__(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        predicted_BT = self.predicted(batch)
        losses_BT, penalties_BT = self._losses_and_penalties(model, batch)
        compares = self.step_objective
        if compares is not None and batch.factors_BT is not None:
            values_BT = compares.with_factors(losses_BT, batch.factors_BT)
        else:
            assert compares is None or batch.whole_batch is None, "a part of a step needs factors of the whole step"
            values_BT = self.objective(losses_BT, self.entropies(batch), predicted_BT)
        if penalties_BT is not None:
            values_BT = values_BT + penalties_BT
        return values_BT[predicted_BT].sum() / max(1, int(self.predicted(batch.whole).sum()))

    def token_losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Return the cross-entropy [B, T]; index i is for token i. Values are valid only where `predicted` is True."""
        if self.start is None:
            return pad(window_losses(model, batch), (1, 0))
        return document_losses(model, batch, self.start)

    def _losses_and_penalties(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return `token_losses` and the penalties, [B, T] each. Without a penalty, the second value is None."""
        if self.penalty is None:
            return self.token_losses(model, batch), None
        read_BT, ids_BT = batch.inputs_BT, batch.input_ids_BT
        if self.start is None:
            sums = next_token_sums(model, read_BT[:, :-1], ids_BT[:, 1:])
            return pad(sums.losses, (1, 0)), pad(self.penalty(sums), (1, 0))
        sums = next_token_sums(model, prepend_start(read_BT, self.start), ids_BT)
        return sums.losses, self.penalty(sums)

    def entropies(self, batch: Batch) -> Tensor:
        """Return the labels [B, T], with NaN at tokens that the model does not predict."""
        assert batch.labels_BT is not None
        return batch.labels_BT.masked_fill(~self.predicted(batch), torch.nan)

    def predicted(self, batch: Batch) -> Tensor:
        """Return a mask [B, T], True at tokens that the model predicts."""
        predicted_BT = batch.real_BT
        if self.start is None:
            predicted_BT[:, 0] = False
        return predicted_BT


def second_order_loss(
    model: SecondOrderModel, batch: Batch, causal_weight: float = 0.0, teacher: StoredTargets | None = None
) -> Tensor:
    """Return the sum of the two outputs' mean squared errors, plus `causal_weight` times the language-model loss.

    The seeing output, which has read the token, learns the labels. The expecting output, which reads only the tokens
    before, learns the expected entropies. If the batch has no expected entropies, both outputs learn the labels. The
    squared errors are in units of the labels' variance. Padding and tokens without a label are ignored. The
    language-model loss is the model's own cross-entropy, in nats per real token. With a teacher, it is the
    cross-entropy against the teacher's predictions instead, except at tokens for which none is stored.
    """
    assert batch.labels_BT is not None and batch.whole.labels_BT is not None
    labelled_BT, labelled = ~batch.labels_BT.isnan(), int((~batch.whole.labels_BT.isnan()).sum())
    estimates, causal_BT = _estimates_and_causal_losses(model, batch, causal_weight, teacher)
    targets = (batch.labels_BT, batch.labels_BT if batch.expected_BT is None else batch.expected_BT)
    errors = [
        (estimate_BT - target_BT)[labelled_BT & ~target_BT.isnan()] / model.config.label_deviation
        for estimate_BT, target_BT in zip(estimates, targets, strict=True)
    ]
    loss = torch.stack([error_N.square().sum() for error_N in errors]).sum() / labelled
    if causal_BT is not None and causal_weight > 0:
        loss = loss + causal_weight * causal_BT[batch.real_BT].sum() / int(batch.whole.lengths_B.sum())
    return loss


def _estimates_and_causal_losses(
    model: SecondOrderModel, batch: Batch, causal_weight: float, teacher: StoredTargets | None
) -> tuple[Entropies, Tensor | None]:
    if teacher is None or not causal_weight:
        output = model(batch.input_ids_BT, with_surprisal=causal_weight > 0)
        return output.entropies, output.losses_BT
    assert batch.positions_BT is not None
    vocabulary = len(model.language_head.weight_VD)
    targets = teacher(batch.positions_BT.flatten()).known(vocabulary)
    ids_BTK = targets.given_ids_NK.view(*batch.input_ids_BT.shape, -1)
    output = model(batch.input_ids_BT, given_ids_BTK=ids_BTK)
    return output.entropies, distilled(output.given, targets, output.losses_BT, vocabulary)
