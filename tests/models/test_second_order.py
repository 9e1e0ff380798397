"""The second-order model: what seeing and expecting may see, and its warm start."""

import pytest
import torch

from pipeline.models.second_order import SecondOrderModel
from tests.builders import random_tokens, tiny_estimator, tiny_second_order


@pytest.mark.parametrize("changed", [0, 3, 7])
def test_seeing_reads_the_token_itself_and_expecting_only_what_is_before(changed: int) -> None:
    model, input_ids_BT = tiny_second_order(), random_tokens(1, 8)
    other_BT = input_ids_BT.clone()
    other_BT[0, changed] = (other_BT[0, changed] + 1) % 97
    before, after = model.entropies(input_ids_BT), model.entropies(other_BT)
    seeing_T = (after.entropy_BT - before.entropy_BT)[0].abs()
    expecting_T = (after.expected_entropy_BT - before.expected_entropy_BT)[0].abs()
    assert seeing_T[:changed].lt(1e-5).all()
    assert seeing_T[changed] > 1e-4
    assert expecting_T[: changed + 1].lt(1e-5).all()
    assert changed == 7 or expecting_T[changed + 1] > 1e-4


def test_outputs_are_in_nats() -> None:
    model = tiny_second_order()
    model.seeing.weight.zero_()
    model.seeing.bias.fill_(0.5)
    assert model.entropies(random_tokens(2, 5)).entropy_BT.eq(3.0 + 2.0 * 0.5).all()


def test_a_model_made_from_an_estimator_has_its_decoder() -> None:
    estimator, input_ids_BT = tiny_estimator(), random_tokens(2, 9)
    model = SecondOrderModel.from_estimator(estimator, label_mean=3.0, label_deviation=2.0)
    start_BD = estimator.introduced(torch.zeros(2, 3))
    hidden_BTD = estimator.decode(start_BD, input_ids_BT)
    expected_BT = 3.0 + 2.0 * model.expecting(hidden_BTD).squeeze(-1)
    torch.testing.assert_close(model.entropies(input_ids_BT).expected_entropy_BT, expected_BT, atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_weight() -> None:
    model = tiny_second_order().requires_grad_(True)
    entropy_BT, expected_BT = model.entropies(random_tokens(4, 12))
    (entropy_BT.square().mean() + expected_BT.square().mean()).backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []
