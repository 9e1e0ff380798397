"""Penalties added to objectives: values and gradients equal those that torch computes from the matrix of all logits."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from pipeline.models import cross_entropy as chunked
from pipeline.models.logit_sums import LogitSums
from pipeline.training import config, losses
from pipeline.training.batches import Batch
from pipeline.training.config import ObjectiveSettings, TrainingConfig
from pipeline.training.losses import ObjectiveLoss
from pipeline.training.objectives import objective_function
from pipeline.training.penalties import penalty_function
from tests.tiny_models import random_tokens, tiny_language_model

NAMES = ("label_smoothing", "confidence_penalty", "z_loss")
ALL: dict[str, Any] = {"label_smoothing": 0.1, "confidence_penalty": 0.3, "z_loss": 0.01}
LENGTHS = (9, 6)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CPU_CHUNK_LOGITS", 4 * 97)


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_language_model().double().requires_grad_(True)


@pytest.fixture
def batch() -> Batch:
    """Return a batch with a padded row, and a token without a label."""
    labels_BT = torch.rand(2, 9, generator=torch.Generator().manual_seed(1)).double() * 6
    labels_BT[0, 4] = torch.nan
    labels_BT[1, LENGTHS[1] :] = torch.nan
    return Batch(random_tokens(2, 9), torch.tensor(LENGTHS), labels_BT)


def new_loss(start: int | None = None, **settings: Any) -> ObjectiveLoss:
    chosen = ObjectiveSettings(**settings)
    return ObjectiveLoss(objective_function(chosen, 3.0), start, penalty_function(chosen))


def predictions(model: PreTrainedModel, batch: Batch, start: int | None) -> tuple[Tensor, Tensor]:
    """Return the logits [N, V] and the targets [N] of all predicted tokens, row by row."""
    logits, targets = [], []
    for ids_T, length in zip(batch.input_ids_BT, LENGTHS, strict=True):
        read_T = ids_T[:length] if start is None else torch.cat([torch.tensor([start]), ids_T[:length]])
        logits.append(model(input_ids=read_T[None, :-1]).logits[0])
        targets.append(read_T[1:])
    return torch.cat(logits), torch.cat(targets)


def slow_penalty(logits_NV: Tensor, target_N: Tensor, name: str, coefficient: float) -> Tensor:
    """Return the mean penalty, by torch's functions on all logits."""
    if name == "label_smoothing":
        return cross_entropy(logits_NV, target_N, label_smoothing=coefficient) - cross_entropy(logits_NV, target_N)
    if name == "confidence_penalty":
        entropy_N: Tensor = Categorical(logits=logits_NV).entropy()
        return -coefficient * entropy_N.mean()
    return coefficient * logits_NV.exp().sum(dim=1).log().square().mean()


def assert_equal_with_gradients(model: PreTrainedModel, found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    parameters = list(model.parameters())
    gradients, wanted = (torch.autograd.grad(value, parameters) for value in (found, expected))
    assert max(float(each.abs().max()) for each in wanted) > 1e-3
    torch.testing.assert_close(gradients, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("start", [None, 5])
@pytest.mark.parametrize("share", [0.05, 0.9])
def test_a_smoothed_cross_entropy_is_that_of_torch(
    model: PreTrainedModel, batch: Batch, start: int | None, share: float
) -> None:
    found = new_loss(start, objective="cross-entropy", label_smoothing=share)(model, batch)
    expected = cross_entropy(*predictions(model, batch, start), label_smoothing=share)
    assert_equal_with_gradients(model, found, expected)


@pytest.mark.parametrize("start", [None, 5])
@pytest.mark.parametrize("objective", ["flood", "mask", "flood-mean", "reference-share"])
@pytest.mark.parametrize("names", [NAMES[:1], NAMES[1:2], NAMES[2:], NAMES])
def test_penalties_are_added_to_any_objective(
    model: PreTrainedModel, batch: Batch, start: int | None, objective: Any, names: tuple[str, ...]
) -> None:
    found = new_loss(start, objective=objective, **{name: ALL[name] for name in names})(model, batch)
    of_all = predictions(model, batch, start)
    expected = new_loss(start, objective=objective)(model, batch)
    expected = expected + sum(slow_penalty(*of_all, name, ALL[name]) for name in names)
    assert_equal_with_gradients(model, found, expected)


def test_without_penalties_only_the_cross_entropy_is_computed(
    model: PreTrainedModel, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "next_token_sums", None)
    loss = new_loss()
    assert loss.penalty is None
    assert torch.equal(loss(model, batch), ObjectiveLoss(loss.objective)(model, batch))


def test_the_losses_that_a_step_compares_have_no_penalty(model: PreTrainedModel, batch: Batch) -> None:
    plain, penalised = (new_loss(objective="flood-mean", level=3.0, **each) for each in ({}, ALL))
    assert torch.equal(plain.token_losses(model, batch), penalised.token_losses(model, batch))
    factors = replace(batch, factors_BT=torch.full((2, 9), -1.0))
    penalties = [slow_penalty(*predictions(model, batch, None), *each) for each in ALL.items()]
    expected = plain(model, factors) + sum(penalties)
    torch.testing.assert_close(penalised(model, factors), expected, atol=1e-6, rtol=1e-6)


def test_a_penalty_is_zero_for_even_logits() -> None:
    sums = LogitSums(*torch.tensor([[2.0], [2.0 + 1.5], [1.5], [2.0]]))
    penalty = penalty_function(ObjectiveSettings(label_smoothing=0.5))
    assert penalty is not None and penalty(sums).tolist() == [0.0]


def test_a_training_older_than_the_penalties_resumes() -> None:
    assert not set(NAMES) & set(ObjectiveSettings().fingerprint)
    assert ObjectiveSettings(z_loss=0.1).fingerprint["z_loss"] == 0.1


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_label_smoothing_must_be_a_share_below_one(value: float) -> None:
    with pytest.raises(ValueError, match="`label_smoothing` must be at least 0 and below 1, not"):
        ObjectiveSettings(label_smoothing=value)


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_other_coefficients_must_be_at_least_zero(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be 0 or more, not"):
        ObjectiveSettings(**{name: value})  # type: ignore[arg-type]


def test_the_kernel_that_returns_no_sums_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "find_spec", lambda name: object())
    kernel = TrainingConfig(cross_entropy="cut-cross-entropy")
    ObjectiveSettings().require_logits(kernel)
    ObjectiveSettings(z_loss=0.1).require_logits(TrainingConfig())
    message = "`training.cross_entropy` cut-cross-entropy cannot compute `label_smoothing`, `z_loss`; take torch"
    with pytest.raises(ValueError, match=message):
        ObjectiveSettings(label_smoothing=0.1, z_loss=0.1).require_logits(kernel)
