"""Losses compared token by token. If labels were shifted by one position, every number here would change."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from pipeline.models.sizes import Form
from pipeline.models.stacks import llama_config, new_language_model
from pipeline.training.batches import Batch
from pipeline.training.distillation import StoredTargets
from pipeline.training.losses import ObjectiveLoss, second_order_loss
from pipeline.training.objectives import flood
from tests.tiny_models import frozen, random_tokens, tiny_second_order


@pytest.fixture
def batch() -> Batch:
    """Return a batch whose labels differ at every position; some are missing, and one row is padded."""
    input_ids_BT = random_tokens(2, 9)
    labels_BT = torch.rand(2, 9, generator=torch.Generator().manual_seed(1)) * 6
    labels_BT[0, 4] = labels_BT[1, 0] = torch.nan
    labels_BT[1, 6:] = torch.nan
    return Batch(input_ids_BT, torch.tensor([9, 6]), labels_BT)


def test_a_language_model_is_flooded_at_each_token_with_its_own_label(batch: Batch) -> None:
    torch.manual_seed(0)
    config = llama_config(vocab_size=97, width=24, layers=2, heads=2, context=32, initializer_range=0.2)
    model = frozen(new_language_model(config, start=0))
    values = []
    for row, length in enumerate(batch.lengths_B.tolist()):
        for position in range(1, length):
            logits = model(input_ids=batch.input_ids_BT[row : row + 1, :position]).logits[0, -1]
            loss = cross_entropy(logits, batch.input_ids_BT[row, position])
            assert batch.labels_BT is not None
            label = batch.labels_BT[row, position]
            values.append(loss if label.isnan() else (loss - label).abs())
    expected = torch.stack(values).mean()
    torch.testing.assert_close(ObjectiveLoss(flood)(model, batch), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("expected", [False, True])
def test_a_second_order_model_is_held_to_each_token_with_its_own_labels(batch: Batch, expected: bool) -> None:
    model = tiny_second_order()
    assert batch.labels_BT is not None
    targets = (batch.labels_BT, 5 - batch.labels_BT if expected else batch.labels_BT)
    batch = replace(batch, expected_BT=targets[1] if expected else None)
    errors: list[float] = []
    for estimates_BT, target_BT in zip(model.entropies(batch.input_ids_BT), targets, strict=True):
        squares = []
        for row, length in enumerate(batch.lengths_B.tolist()):
            for position in range(length):
                label = target_BT[row, position].item()
                if label == label:
                    squares.append(((estimates_BT[row, position].item() - label) / 2.0) ** 2)
        errors.append(sum(squares) / len(squares))
    assert second_order_loss(model, batch).item() == pytest.approx(sum(errors), rel=1e-4)


@pytest.mark.parametrize("form", ["direct", "residual"])
def test_a_second_order_model_learns_the_predictions_of_its_teacher(batch: Batch, form: Form) -> None:
    """The rows are the tokens 3 to 11 and 20 to 28 of the corpus. Token 7 has no prediction."""
    model, weight = tiny_second_order(form=form), 0.7
    batch = replace(batch, positions_BT=torch.stack([torch.arange(3, 12), torch.arange(20, 29)]))
    random = np.random.default_rng(0)
    ids_NK = random.permuted(np.tile(np.arange(97), (29, 1)), axis=1)[:, :3].astype(np.uint16)
    units_NK = np.tile(np.array([1000, 1500, 2000], np.uint16), (29, 1))
    rest_N = np.round(-1024 * np.log(1 - np.exp(units_NK / -1024).sum(axis=1))).astype(np.uint16)
    teacher = StoredTargets(ids_NK, units_NK, rest_N, np.arange(29) != 7)
    losses = []
    head, surprisal_BT = model.language_head, model(batch.input_ids_BT, with_surprisal=True).losses_BT
    before_BTD = model._hidden(model.transformer, batch.input_ids_BT)[:, :-1]
    for row, first, length in ((0, 3, 9), (1, 20, 6)):
        for place in range(length):
            q_V = head.logits(before_BTD[row, place : place + 1])[0].softmax(dim=0)
            top = {
                int(each): math.exp(-unit / 1024)
                for each, unit in zip(ids_NK[first + place], (1000, 1500, 2000), strict=True)
            }
            others = 1 - sum(q_V[each].item() for each in top)
            taught = -sum(p * q_V[each].log().item() for each, p in top.items()) - (1 - sum(top.values())) * math.log(
                others
            )
            losses.append(surprisal_BT[row, place].item() if (row, place) == (0, 4) else taught)
    expected = second_order_loss(model, batch).item() + weight * sum(losses) / len(losses)
    assert second_order_loss(model, batch, weight, teacher).item() == pytest.approx(expected, rel=1e-3)
