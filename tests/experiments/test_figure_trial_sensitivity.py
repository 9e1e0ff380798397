"""The scan that rounds one layer at a time: it finds every layer, yields the right changes, and restores the model."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.experiments.figure_trial import Sensitivity, rounded, sensitivities
from pipeline.models.estimator import EntropyEstimator
from tests.tiny_models import random_tokens, tiny_autoencoder, tiny_estimator, tiny_language_model

INPUT_IDS_BT = random_tokens(3, 12)
LENGTHS_B = torch.full((3,), 12)


@torch.no_grad()
def loss(model: PreTrainedModel) -> float:
    return float(model(INPUT_IDS_BT, LENGTHS_B).double().mean())


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone().view(torch.uint8) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "make",
    [
        tiny_estimator,
        lambda: tiny_estimator(encoder_kind="mixer", decoder_kind="mixer", introduction="embedding"),
        lambda: tiny_autoencoder(bottleneck_width=3),
    ],
)
def test_every_matrix_is_scanned_once_and_the_model_is_restored(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    if isinstance(output := getattr(model, "output", None), nn.Linear):
        nn.init.normal_(output.weight, std=0.3)  # it starts as ones and zeros, which rounding does not change
    before, exact = bits(model), loss(model)
    found = list(sensitivities(model, loss, kinds=("int8", "float8_e5m2")))
    matrices = {name.rpartition(".")[0] for name, weight in model.named_parameters() if weight.ndim > 1}
    for kind in ("int8", "float8_e5m2"):
        weights = [one for one in found if (one.what, one.kind) == ("weights", kind)]
        assert sorted(one.layer for one in weights) == sorted(matrices)
        assert all(one.loss_change for one in weights)
    called = {one.layer for one in found if one.what == "activations"}
    assert called == matrices - {"head", "start"}  # tables that are used without being called
    after = bits(model)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert loss(model) == exact and not any(module._forward_hooks for module in model.modules())


def test_loss_changes_equal_those_of_a_model_rounded_by_hand() -> None:
    found = list(sensitivities(tiny_estimator(), loss, kinds=("float8_e4m3fn",)))

    def change(alter: Callable[[EntropyEstimator], object]) -> float:
        model = tiny_estimator()
        alter(model)
        return loss(model) - loss(tiny_estimator())

    def round_weights(model: EntropyEstimator) -> None:
        weight = model.get_parameter("up.weight")
        weight.copy_(weight.to(torch.float8_e4m3fn).float())

    def round_activations(model: EntropyEstimator) -> None:
        model.up = nn.Sequential(model.up, Rounding())

    up = Sensitivity(layer="up", what="weights", kind="float8_e4m3fn", loss_change=change(round_weights))
    assert up in found
    assert replace(up, what="activations", loss_change=change(round_activations)) in found


class Rounding(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values.to(torch.float8_e4m3fn).float()


def test_an_integer_has_127_steps_to_the_tensor_s_largest_value() -> None:
    values = torch.tensor([[127.0, -3.4], [0.6, 9.5]]) / 100
    torch.testing.assert_close(rounded(values, "int8"), torch.tensor([[1.27, -0.03], [0.01, 0.10]]))


def test_a_table_that_two_layers_share_is_rounded_once() -> None:
    def logits_loss(model: PreTrainedModel) -> float:
        return float(model(INPUT_IDS_BT).logits.logsumexp(dim=2).mean())

    found = list(sensitivities(tiny_language_model(), logits_loss))
    ends = ("model.embed_tokens", "lm_head")
    assert [(one.layer, one.what) for one in found if one.layer in ends] == [
        ("model.embed_tokens", "weights"),
        ("model.embed_tokens", "activations"),
        ("lm_head", "activations"),
    ]


def test_the_model_is_restored_when_the_loss_fails() -> None:
    model, calls = tiny_estimator(), iter(range(5))

    def failing(model: EntropyEstimator) -> float:
        if next(calls) == 4:
            raise ArithmeticError
        return loss(model)

    before = bits(model)
    with pytest.raises(ArithmeticError):
        list(sensitivities(model, failing))
    assert all(torch.equal(bits(model)[name], tensor) for name, tensor in before.items())
    assert not any(module._forward_hooks for module in model.modules())
