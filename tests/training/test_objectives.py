"""Objectives against a loop over tokens, and the gradients that tell them apart."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.training.config import ObjectiveName, ObjectiveSettings
from pipeline.training.objectives import objective_function

THRESHOLD, LEVEL = 3.0, 4.0
TOKENWISE: tuple[ObjectiveName, ...] = ("flood", "floor", "weight", "mask", "cross-entropy")
LOSS = st.floats(0, 20, width=32)
ENTROPY = st.integers(-128, 2560).map(lambda value: value / 128) | st.just(math.nan)
Rows = list[list[tuple[float, float]]]
ROWS = st.integers(1, 6).flatmap(
    lambda tokens: st.lists(
        st.lists(st.tuples(LOSS, ENTROPY), min_size=tokens, max_size=tokens), min_size=1, max_size=3
    )
)


def slow(name: ObjectiveName, loss: float, entropy: float, row: list[float]) -> float:
    """Return the objective of one token; `row` holds the labels of its row."""
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


def fast(name: ObjectiveName, **changed: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the objective of losses and entropies if every token is real."""
    chosen = ObjectiveSettings(objective=name, **{"threshold": THRESHOLD, "level": LEVEL, **changed})
    function = objective_function(chosen, mean_entropy=0.0)
    return lambda losses_BT, entropies_BT: function(losses_BT, entropies_BT, torch.ones_like(losses_BT).bool())


def gradient(function: Callable[[Tensor, Tensor], Tensor], losses_BT: Tensor, entropies_BT: Tensor) -> Tensor:
    losses_BT = losses_BT.clone().requires_grad_()
    (gradient_BT,) = torch.autograd.grad(function(losses_BT, entropies_BT).sum(), losses_BT)
    return gradient_BT


def tensors(rows: Rows) -> tuple[Tensor, Tensor]:
    values_BT2 = torch.tensor(rows, dtype=torch.float32)
    return values_BT2[..., 0], values_BT2[..., 1]


@pytest.mark.parametrize("name", TOKENWISE)
@settings(max_examples=50, deadline=None)
@given(rows=ROWS)
def test_an_objective_equals_a_loop_over_tokens(name: ObjectiveName, rows: Rows) -> None:
    expected = [[slow(name, loss, e, [label for _, label in row]) for loss, e in row] for row in rows]
    torch.testing.assert_close(fast(name)(*tensors(rows)), torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TOKENWISE)
@settings(max_examples=50, deadline=None)
@given(rows=ROWS)
def test_no_gradient_is_nan(name: ObjectiveName, rows: Rows) -> None:
    assert gradient(fast(name), *tensors(rows)).isfinite().all()


@pytest.mark.parametrize("name", TOKENWISE)
def test_tokens_without_a_label_get_plain_cross_entropy(name: ObjectiveName) -> None:
    losses_BT = torch.tensor([[0.0, 1.0, 5.0], [2.0, 3.0, 4.0]])
    nothing_BT = torch.full((2, 3), torch.nan)
    assert torch.equal(fast(name)(losses_BT, nothing_BT), losses_BT)
    assert torch.equal(gradient(fast(name), losses_BT, nothing_BT), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("name", "below", "above"),
    [("flood", -1.0, 1.0), ("floor", 0.0, 1.0), ("cross-entropy", 1.0, 1.0)],
)
def test_gradients_below_and_above_the_entropy(name: ObjectiveName, below: float, above: float) -> None:
    losses_BT = torch.tensor([[1.0, 1.99, 2.01, 9.0]])
    gradient_BT = gradient(fast(name), losses_BT, torch.full((1, 4), 2.0))
    assert gradient_BT.tolist() == [[below, below, above, above]]


@settings(max_examples=50, deadline=None)
@given(rows=ROWS, scale=st.floats(0.5, 2), margin=st.floats(-2, 2))
def test_scale_and_margin_change_only_the_labels(rows: Rows, scale: float, margin: float) -> None:
    losses_BT, entropies_BT = tensors(rows)
    for name in TOKENWISE:
        moved = fast(name, scale=scale, margin=margin)(losses_BT, entropies_BT)
        torch.testing.assert_close(moved, fast(name)(losses_BT, scale * entropies_BT + margin), equal_nan=True)


def test_scale_and_margin_change_the_default_threshold_and_level() -> None:
    chosen = ObjectiveSettings(objective="flood-mean", scale=2.0, margin=1.0)
    losses_BT, real_BT = torch.tensor([[6.0, 9.0]]), torch.ones(1, 2).bool()
    values_BT = objective_function(chosen, mean_entropy=2.0)(losses_BT, losses_BT, real_BT)
    assert values_BT.tolist() == [[1.0, 4.0]]


def test_weights_fall_from_one_to_zero_with_the_entropy() -> None:
    gradient_BT = gradient(fast("weight"), torch.ones(2, 3), torch.tensor([[1.0, 2.0, 5.0], [8.0, 4.0, 0.0]]))
    torch.testing.assert_close(gradient_BT, torch.tensor([[1.0, 0.75, 0.0], [0.0, 0.5, 1.0]]))


def test_mask_keeps_the_gradient_only_below_the_threshold() -> None:
    entropies_BT = torch.tensor([[THRESHOLD - 0.5, THRESHOLD, THRESHOLD + 0.5]])
    assert gradient(fast("mask"), torch.ones(1, 3), entropies_BT).tolist() == [[1.0, 0.0, 0.0]]


def test_subtracting_the_entropy_is_a_no_op_and_flood_is_not() -> None:
    losses_BT, entropies_BT = torch.tensor([[0.5, 1.5, 4.0]]), torch.tensor([[1.0, 1.0, 5.0]])
    plain = gradient(fast("cross-entropy"), losses_BT, entropies_BT)
    assert torch.equal(gradient(torch.sub, losses_BT, entropies_BT), plain)
    assert not torch.equal(gradient(fast("flood"), losses_BT, entropies_BT), plain)


@settings(max_examples=50, deadline=None)
@given(rows=ROWS)
def test_flooding_the_mean_has_its_value_and_gradient(rows: Rows) -> None:
    losses_BT, entropies_BT = tensors(rows)
    values_BT = fast("flood-mean")(losses_BT, entropies_BT)
    torch.testing.assert_close(values_BT.mean(), (losses_BT.mean() - LEVEL).abs(), atol=1e-4, rtol=1e-4)

    def written_out(losses_BT: Tensor, entropies_BT: Tensor) -> Tensor:
        return (losses_BT.mean() - LEVEL).abs() * losses_BT.numel()

    expected = gradient(written_out, losses_BT, entropies_BT)
    torch.testing.assert_close(gradient(fast("flood-mean"), losses_BT, entropies_BT), expected)


def test_means_and_shares_exclude_padding() -> None:
    losses_BT, entropies_BT = torch.tensor([[5.0, 3.0, 90.0]]), torch.zeros(1, 3)
    real_BT = torch.tensor([[True, True, False]])
    for name in ("flood-mean", "reference-share", "random-share"):
        chosen = ObjectiveSettings(objective=name, level=4.5, share=0.5)
        values_BT = objective_function(chosen, mean_entropy=0.0)(losses_BT, entropies_BT, real_BT)
        if name == "flood-mean":
            assert values_BT[0, :2].tolist() == [-0.5, 1.5]
        else:
            assert values_BT[0, 2] == 0 and values_BT[real_BT].count_nonzero() == 1


def test_reference_share_keeps_the_tokens_furthest_above_their_reference() -> None:
    losses_BT = torch.tensor([[5.0, 3.0, 4.0, 1.0, 2.0]])
    entropies_BT = torch.tensor([[4.9, 1.0, 3.0, 0.9, torch.nan]])
    values_BT = fast("reference-share", share=0.4)(losses_BT, entropies_BT)
    assert values_BT.tolist() == [[0.0, 7.5, 0.0, 0.0, 5.0]]


def test_a_random_share_differs_each_time_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    losses_BT = torch.ones(4, 25)
    kept = [fast("random-share", share=0.3)(losses_BT, losses_BT) for _ in range(2)]
    assert all(values_BT.count_nonzero() == 30 and values_BT.mean() == pytest.approx(1.0) for values_BT in kept)
    assert not torch.equal(*kept)


def test_a_share_is_checked() -> None:
    with pytest.raises(ValueError, match="`share` must be above 0 and at most 1, not 0"):
        ObjectiveSettings(share=0)
