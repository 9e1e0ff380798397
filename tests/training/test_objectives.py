"""Objectives compared with a loop over tokens, and the gradients in which they differ."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.training.config import NEED_LABELS, ObjectiveName, ObjectiveSettings
from pipeline.training.objectives import objective_function

THRESHOLD, LEVEL, GAMMA = 3.0, 4.0, 0.3
EPS = 2.0**-23
PLAIN_WITHOUT_LABEL: tuple[ObjectiveName, ...] = (
    "flood",
    "floor",
    "weight",
    "mask",
    "adaflood",
    "probability",
    "cross-entropy",
)
TOKENWISE: tuple[ObjectiveName, ...] = (*PLAIN_WITHOUT_LABEL, "iflood")
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
    if name == "iflood":
        return abs(loss - LEVEL)
    if math.isnan(entropy) or name == "cross-entropy":
        return loss
    labels = [label for label in row if not math.isnan(label)]
    if name == "flood":
        return abs(loss - entropy)
    if name == "floor":
        return max(loss - entropy, 0.0)
    if name == "adaflood":
        return abs(loss + math.log((1 - GAMMA) * math.exp(-entropy) + GAMMA))
    if name == "probability":
        return slow_probability(loss, entropy)
    if name == "weight":
        lowest, highest = min(labels), max(labels)
        return loss if lowest == highest else loss * (1 - (entropy - lowest) / (highest - lowest))
    return loss if entropy < THRESHOLD else 0.0


def slow_probability(loss: float, entropy: float) -> float:
    """Return the binary cross-entropy of a token's probability q = exp(-loss), with exp(-entropy) as the target.

    The target is at most 1. In the term ln(1 - q), a loss below EPS is replaced by EPS.
    """
    target = min(1.0, math.exp(-entropy))
    return target * loss - (1 - target) * math.log(-math.expm1(-max(loss, EPS)))


def fast(name: ObjectiveName, **changed: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function that computes an objective's values, for tokens without padding."""
    chosen = ObjectiveSettings(objective=name, **{"threshold": THRESHOLD, "level": LEVEL, "gamma": GAMMA, **changed})
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


@pytest.mark.parametrize("name", PLAIN_WITHOUT_LABEL)
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
    for name in ("flood-mean", "reference-share", "random-share", "loss-share"):
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


def test_loss_share_keeps_the_tokens_with_the_highest_loss_whatever_their_labels() -> None:
    losses_BT = torch.tensor([[5.0, 3.0, 4.0], [1.0, 2.0, 6.0]])
    entropies_BT = torch.tensor([[9.0, 0.0, 9.0], [torch.nan, 0.0, 9.0]])
    values_BT = fast("loss-share", share=0.5)(losses_BT, entropies_BT)
    assert values_BT.tolist() == [[10.0, 0.0, 8.0], [0.0, 0.0, 12.0]]
    assert gradient(fast("loss-share", share=0.5), losses_BT, entropies_BT).tolist() == [[2.0, 0.0, 2.0], [0, 0, 2.0]]


@settings(max_examples=50, deadline=None)
@given(rows=ROWS, share=st.floats(0.01, 1))
def test_loss_share_is_the_mean_of_the_highest_losses(rows: Rows, share: float) -> None:
    losses_BT, entropies_BT = tensors(rows)
    kept = max(1, round(share * losses_BT.numel()))
    highest = sorted(losses_BT.flatten().tolist())[-kept:]
    found = fast("loss-share", share=share)(losses_BT, entropies_BT).mean().item()
    assert found == pytest.approx(sum(highest) / kept, rel=1e-5, abs=1e-6)
    assert torch.equal(fast("loss-share", share=1.0)(losses_BT, entropies_BT), losses_BT)


def test_a_random_share_differs_each_time_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    losses_BT = torch.ones(4, 25)
    kept = [fast("random-share", share=0.3)(losses_BT, losses_BT) for _ in range(2)]
    assert all(values_BT.count_nonzero() == 30 and values_BT.mean() == pytest.approx(1.0) for values_BT in kept)
    assert not torch.equal(*kept)


def test_a_share_is_checked() -> None:
    with pytest.raises(ValueError, match="`share` must be above 0 and at most 1, not 0"):
        ObjectiveSettings(share=0)


@pytest.mark.parametrize("gamma", [-0.1, 1.1])
def test_gamma_is_checked(gamma: float) -> None:
    with pytest.raises(ValueError, match=f"`gamma` must be at least 0 and at most 1, not {gamma}"):
        ObjectiveSettings(gamma=gamma)


@settings(max_examples=50, deadline=None)
@given(rows=ROWS)
def test_adaflood_lies_between_flood_and_cross_entropy(rows: Rows) -> None:
    losses_BT, entropies_BT = tensors(rows)
    assert torch.equal(fast("adaflood", gamma=0.0)(losses_BT, entropies_BT), fast("flood")(losses_BT, entropies_BT))
    assert torch.equal(fast("adaflood", gamma=1.0)(losses_BT, entropies_BT), losses_BT)


@settings(max_examples=100, deadline=None)
@given(entropy=st.floats(-100, 100, width=32), gamma=st.just(0.0) | st.floats(1e-30, 1) | st.just(1.0))
def test_the_level_of_adaflood_is_finite_for_any_label(entropy: float, gamma: float) -> None:
    """In float32, exp(-e) overflows for labels e below -88 nats, and underflows for labels above 103 nats."""
    level = -math.log((1 - gamma) * math.exp(-entropy) + gamma)
    found = fast("adaflood", gamma=gamma)(torch.tensor([[200.0]]), torch.tensor([[entropy]])).item()
    assert found == pytest.approx(200 - level, abs=5e-5)


@pytest.mark.parametrize(
    ("entropy", "gamma", "level"),
    [
        (math.log(4), 0.5, math.log(8 / 5)),
        (math.log(4), 1 / 3, math.log(2)),
        (30.0, 0.5, math.log(2) - math.exp(-30)),
        (30.0, 0.0, 30.0),
        (0.0, 0.7, 0.0),
        (-math.log(3), 0.5, -math.log(2)),
    ],
)
def test_planted_levels_of_adaflood(entropy: float, gamma: float, level: float) -> None:
    function = fast("adaflood", gamma=gamma)
    around_BT, entropies_BT = torch.tensor([[level - 0.5, level, level + 0.5]]), torch.full((1, 3), entropy)
    torch.testing.assert_close(function(around_BT, entropies_BT), torch.tensor([[0.5, 0.0, 0.5]]), atol=1e-6, rtol=1e-6)
    assert gradient(function, around_BT, entropies_BT)[0, ::2].tolist() == [-1.0, 1.0]


@settings(max_examples=50, deadline=None)
@given(rows=ROWS, level=st.floats(0, 10, width=32))
def test_iflood_is_flood_on_a_constant_column(rows: Rows, level: float) -> None:
    losses_BT, entropies_BT = tensors(rows)
    constant_BT = torch.full_like(losses_BT, level)
    iflood, flood = fast("iflood", level=level), fast("flood")
    assert torch.equal(iflood(losses_BT, entropies_BT), flood(losses_BT, constant_BT))
    assert torch.equal(gradient(iflood, losses_BT, entropies_BT), gradient(flood, losses_BT, constant_BT))


def test_the_default_level_of_iflood_is_the_mean_label_with_scale_and_margin() -> None:
    chosen = ObjectiveSettings(objective="iflood", scale=2.0, margin=1.0)
    losses_BT, real_BT = torch.tensor([[6.0, 3.0]]), torch.ones(1, 2).bool()
    values_BT = objective_function(chosen, mean_entropy=2.0)(losses_BT, torch.full((1, 2), torch.nan), real_BT)
    assert values_BT.tolist() == [[1.0, 2.0]]


@settings(max_examples=50, deadline=None)
@given(losses=st.lists(LOSS | st.just(200.0), min_size=1, max_size=6), entropy=st.sampled_from([0.0, -0.0, -0.5, -3.0]))
def test_a_sure_teacher_gives_cross_entropy(losses: list[float], entropy: float) -> None:
    losses_BT = torch.tensor([losses])
    entropies_BT = torch.full_like(losses_BT, entropy)
    assert torch.equal(fast("probability")(losses_BT, entropies_BT), losses_BT)
    assert torch.equal(gradient(fast("probability"), losses_BT, entropies_BT), torch.ones_like(losses_BT))


@pytest.mark.parametrize("entropy", [1e-3, 0.1, math.log(2), 2.0, 5.0, 12.0])
def test_the_probability_is_learned_at_the_label(entropy: float) -> None:
    losses_BT = torch.tensor([[0.0, 1e-7, 0.5 * entropy, 0.9 * entropy, entropy, 1.1 * entropy, 2 * entropy, 50.0]])
    entropies_BT = torch.full_like(losses_BT, entropy)
    values_BT = fast("probability")(losses_BT, entropies_BT)
    gradient_BT = gradient(fast("probability"), losses_BT, entropies_BT)
    p = math.exp(-entropy)
    least = -p * math.log(p) - (1 - p) * math.log1p(-p)
    assert values_BT[0, 4].item() == pytest.approx(least, rel=1e-6, abs=1e-7) == values_BT.min().item()
    assert gradient_BT[0, 4].item() == pytest.approx(0, abs=1e-6 * p)
    assert (gradient_BT[0, :4] < 0).all() and (gradient_BT[0, 5:] > 0).all()


@pytest.mark.parametrize("entropy", [0.3, 8.0, 60.0])
def test_a_planted_gradient_of_the_probability(entropy: float) -> None:
    """The gradient with respect to the loss l must be p - (1 - p) / (exp(l) - 1), where p = exp(-entropy).

    For a sure model, l is near 0. The absolute value of the gradient then grows to at most 2 ** 23, and stays finite.
    """
    losses_BT = torch.tensor([[0.0, 1e-6, 0.01, 0.7, 3.0, 30.0, 100.0]])
    gradient_BT = gradient(fast("probability"), losses_BT, torch.full_like(losses_BT, entropy))
    p = math.exp(-entropy)
    expected = [p - (1 - p) / math.expm1(max(loss, EPS)) for loss in losses_BT[0].tolist()]
    torch.testing.assert_close(gradient_BT, torch.tensor([expected]), atol=1e-8, rtol=1e-5)


def test_the_gradient_of_the_probability_stays_small_at_the_logits() -> None:
    """The gradient at the logits stays small even for a sure model, whose probability q of the token is near 1.

    This gradient is the gradient of cross-entropy at the logits, multiplied by (p - q) / (1 - q). p is the target
    probability. The factor grows as q approaches 1, but the norm of the gradient of cross-entropy falls with 1 - q.
    """
    logits_TV = torch.tensor([[0.0, 0.0], [9.0, 0.0], [15.0, 0.0], [17.0, 0.0], [40.0, 0.0]], requires_grad=True)
    losses_BT = torch.nn.functional.cross_entropy(logits_TV, torch.zeros(5).long(), reduction="none").unsqueeze(0)
    values_BT = fast("probability")(losses_BT, torch.full_like(losses_BT, 3.0))
    (gradient_TV,) = torch.autograd.grad(values_BT.sum(), logits_TV)
    q_TV = logits_TV.detach().double().softmax(dim=1)
    torch.testing.assert_close(gradient_TV[:2, 0], (q_TV[:2, 0] - math.exp(-3)).float(), atol=2e-3, rtol=0)
    assert gradient_TV.isfinite().all() and (gradient_TV.abs() <= 2).all()


@pytest.mark.parametrize("name", get_args(ObjectiveName))
def test_an_objective_needs_labels_if_they_change_its_values(name: ObjectiveName) -> None:
    losses_BT = torch.tensor([[5.0, 3.0, 4.0, 1.0, 2.0]])
    labels = (torch.tensor([[0.5, 5.0, 4.5, 0.25, 3.0]]), torch.full((1, 5), torch.nan))
    values = []
    for entropies_BT in labels:
        torch.manual_seed(0)
        values.append(fast(name)(losses_BT, entropies_BT))
    assert torch.equal(*values) == (name not in NEED_LABELS)


def test_the_table_of_the_documentation_has_every_objective() -> None:
    page = Path(__file__).parent.parent.parent / "docs" / "training.md"
    (table,) = re.findall(
        r"^\| `--objective` \|.*\n\|---\|---\|\n((?:\|.*\n)+)", page.read_text(encoding="utf-8"), re.M
    )
    named = [name for row in table.splitlines() for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert sorted(named) == sorted(get_args(ObjectiveName))
