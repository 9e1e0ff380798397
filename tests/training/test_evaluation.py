"""Held-out figures against loops and sums by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.data.corpus import Corpus
from pipeline.training.batches import Batch, Windowing
from pipeline.training.evaluation import held_out_batches, mean_of, r_squared

CPU = torch.device("cpu")


def documents(lengths: list[int]) -> Corpus:
    """Every token of the corpus has an id of its own: its position."""
    return Corpus(np.arange(sum(lengths), dtype=np.int32), np.cumsum([0, *lengths]))


def loss_of(token: int) -> float:
    return math.sin(token) + 2


def losses(batch: Batch) -> Tensor:
    return (batch.input_ids_BT.double().sin() + 2)[batch.real_BT]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=8).filter(any), st.integers(1, 12), st.integers(1, 50))
def test_a_mean_is_over_tokens_and_not_over_batches(lengths: list[int], window: int, budget: int) -> None:
    batches = held_out_batches(documents(lengths), Windowing(window, budget), CPU)
    expected = math.fsum(loss_of(token) for token in range(sum(lengths))) / sum(lengths)
    assert mean_of(map(losses, batches)) == pytest.approx(expected, rel=1e-12)


def test_sums_are_in_float64() -> None:
    mean = mean_of(torch.full((10_000,), 0.1, dtype=torch.float32) for _ in range(4))
    assert mean == pytest.approx(float(np.float32(0.1)), rel=1e-13)


def test_held_out_batches_are_always_the_same() -> None:
    corpus, cut = documents([30, 5, 17]), Windowing(8, 20, varied=True)
    first, second = ([batch.input_ids_BT.tolist() for batch in held_out_batches(corpus, cut, CPU)] for _ in range(2))
    assert first == second


def test_r_squared_by_hand() -> None:
    truth_N = torch.tensor([1.0, 2.0, 3.0, 6.0])
    # the mean is 3, the variance 14 / 4; errors of 1, 0, 1, 2 have a mean square of 6 / 4
    assert r_squared(torch.tensor([2.0, 2.0, 2.0, 4.0]), truth_N) == pytest.approx(1 - 6 / 14)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-100, 100), min_size=2, max_size=20).filter(lambda values: len(set(values)) > 1))
def test_r_squared_is_one_for_the_truth_and_zero_for_its_mean(values: list[int]) -> None:
    truth_N = torch.tensor(values, dtype=torch.float64)
    assert r_squared(truth_N, truth_N) == 1
    assert r_squared(truth_N.mean().expand(len(values)), truth_N) == pytest.approx(0, abs=1e-12)
