"""Objectives against a loop over tokens, and the gradients that tell them apart."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.training.objectives import Objective, flood, objective_function

THRESHOLD = 3.0
NAMES: tuple[Objective, ...] = ("flood", "floor", "weight", "mask", "cross-entropy")
LOSS = st.floats(0, 20, width=32)
ENTROPY = st.integers(-128, 2560).map(lambda value: value / 128) | st.just(math.nan)
Rows = list[list[tuple[float, float]]]
ROWS = st.integers(1, 6).flatmap(
    lambda tokens: st.lists(
        st.lists(st.tuples(LOSS, ENTROPY), min_size=tokens, max_size=tokens), min_size=1, max_size=3
    )
)


def slow(name: Objective, loss: float, entropy: float, row: list[float]) -> float:
    """The objective of one token; `row` holds the labels of its row."""
    if math.isnan(entropy) or name == "cross-entropy":
        return loss
    labels = [label for label in row if not math.isnan(label)]
    if name == "flood":
        return abs(loss - entropy)
    if name == "floor":
        return max(loss - entropy, 0.0)
    if name == "weight":
        lowest, highest = min(labels), max(labels)
        return loss if lowest == highest else loss * (1 - (entropy - lowest) / (highest - lowest))
    return loss if entropy < THRESHOLD else 0.0


def fast(name: Objective) -> Callable[[Tensor, Tensor], Tensor]:
    return objective_function(name, threshold=THRESHOLD)


def gradient(function: Callable[[Tensor, Tensor], Tensor], losses_BT: Tensor, entropies_BT: Tensor) -> Tensor:
    losses_BT = losses_BT.clone().requires_grad_()
    (gradient_BT,) = torch.autograd.grad(function(losses_BT, entropies_BT).sum(), losses_BT)
    return gradient_BT


def tensors(rows: Rows) -> tuple[Tensor, Tensor]:
    values_BT2 = torch.tensor(rows, dtype=torch.float32)
    return values_BT2[..., 0], values_BT2[..., 1]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50, deadline=None)
@given(rows=ROWS)
def test_an_objective_is_what_a_loop_over_tokens_gives(name: Objective, rows: Rows) -> None:
    expected = [[slow(name, loss, e, [label for _, label in row]) for loss, e in row] for row in rows]
    torch.testing.assert_close(fast(name)(*tensors(rows)), torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50, deadline=None)
@given(rows=ROWS)
def test_no_gradient_is_nan(name: Objective, rows: Rows) -> None:
    assert gradient(fast(name), *tensors(rows)).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_tokens_without_a_label_get_plain_cross_entropy(name: Objective) -> None:
    losses_BT = torch.tensor([[0.0, 1.0, 5.0], [2.0, 3.0, 4.0]])
    nothing_BT = torch.full((2, 3), torch.nan)
    assert torch.equal(fast(name)(losses_BT, nothing_BT), losses_BT)
    assert torch.equal(gradient(fast(name), losses_BT, nothing_BT), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("name", "below", "above"),
    [("flood", -1.0, 1.0), ("floor", 0.0, 1.0), ("cross-entropy", 1.0, 1.0)],
)
def test_gradients_below_and_above_the_entropy(name: Objective, below: float, above: float) -> None:
    losses_BT = torch.tensor([[1.0, 1.99, 2.01, 9.0]])
    gradient_BT = gradient(fast(name), losses_BT, torch.full((1, 4), 2.0))
    assert gradient_BT.tolist() == [[below, below, above, above]]


def test_weights_fall_from_one_to_zero_with_the_entropy() -> None:
    gradient_BT = gradient(fast("weight"), torch.ones(2, 3), torch.tensor([[1.0, 2.0, 5.0], [8.0, 4.0, 0.0]]))
    torch.testing.assert_close(gradient_BT, torch.tensor([[1.0, 0.75, 0.0], [0.0, 0.5, 1.0]]))


def test_mask_keeps_the_gradient_below_the_threshold_alone() -> None:
    entropies_BT = torch.tensor([[THRESHOLD - 0.5, THRESHOLD, THRESHOLD + 0.5]])
    assert gradient(fast("mask"), torch.ones(1, 3), entropies_BT).tolist() == [[1.0, 0.0, 0.0]]


def test_subtracting_the_entropy_is_a_no_op_and_flood_is_not() -> None:
    losses_BT, entropies_BT = torch.tensor([[0.5, 1.5, 4.0]]), torch.tensor([[1.0, 1.0, 5.0]])
    plain = gradient(fast("cross-entropy"), losses_BT, entropies_BT)
    assert torch.equal(gradient(torch.sub, losses_BT, entropies_BT), plain)
    assert not torch.equal(gradient(flood, losses_BT, entropies_BT), plain)
