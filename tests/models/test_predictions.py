"""Likeliest and sampled ids of a prediction.

N tokens, V vocabulary, K likeliest ids, S sampled ids. B rows, T tokens of a row.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.predictions import label_values, most_probable, systematic_sample, uniforms
from schemas.annotations import LEAST_REST, REST_LOGPROB, TOP_IDS, TOP_LOGPROBS, Shape


def predictions(tokens: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    """Return log-probabilities [N, V] of which some are equal."""
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(tokens, vocabulary, generator=random) * 3).bfloat16().float().log_softmax(dim=1)


@given(
    vocabulary=st.integers(1, 700) | st.sampled_from([64, 128, 640, 4096]),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_the_most_probable_ids_are_those_of_a_search_among_all(vocabulary: int, share: float, seed: int) -> None:
    log_p_NV = predictions(3, vocabulary, seed)
    count = max(1, round(share * vocabulary))
    top_NK, ids_NK = most_probable(log_p_NV, count)
    assert torch.equal(top_NK, log_p_NV.topk(count, dim=1).values)
    assert torch.equal(log_p_NV.gather(1, ids_NK), top_NK)
    assert all(len(set(ids_K.tolist())) == count for ids_K in ids_NK)


@pytest.mark.parametrize("count", [1, 5, 101])
def test_probabilities_and_the_rest_add_up_to_one(count: int) -> None:
    log_p_NV = predictions(50, 101)
    columns: dict[str, Shape] = {TOP_IDS: (count,), TOP_LOGPROBS: (count,), REST_LOGPROB: ()}
    values = dict(label_values(log_p_NV, torch.zeros(50, dtype=torch.long), torch.zeros(50), columns))
    assert values[TOP_IDS].shape == (count, 50)
    total_N = values[TOP_LOGPROBS].exp().sum(dim=0) + values[REST_LOGPROB].exp()
    torch.testing.assert_close(total_N, torch.ones(50), atol=2e-6, rtol=0)
    rest_N = values[REST_LOGPROB].exp()
    slow_N = log_p_NV.sort(dim=1, descending=True).values[:, count:].exp().sum(dim=1).clamp(min=LEAST_REST)
    torch.testing.assert_close(rest_N, slow_N, atol=1e-6, rtol=0)


@given(vocabulary=st.integers(1, 300), count=st.integers(1, 60), seed=st.integers(0, 99))
def test_an_id_is_drawn_as_often_as_its_probability_says(vocabulary: int, count: int, seed: int) -> None:
    p_NV = predictions(4, vocabulary, seed).exp()
    uniform_N = torch.rand(4, generator=torch.Generator().manual_seed(seed))
    ids_NS = systematic_sample(p_NV, uniform_N, count)
    assert ids_NS.shape == (4, count) and (ids_NS.diff(dim=1) >= 0).all()
    counts_NV = torch.zeros_like(p_NV).scatter_add_(1, ids_NS, torch.ones(4, count))
    assert ((counts_NV - count * p_NV).abs() < 1 + 1e-4).all()


def test_the_mean_of_the_draws_is_the_distribution() -> None:
    """Evenly spaced numbers replace the random ones, so the mean of the draws is exact up to the spacing."""
    p_NV = predictions(1, 40).exp()
    uniform_N = (torch.arange(4096) + 0.5) / 4096
    ids_NS = systematic_sample(p_NV.expand(4096, -1), uniform_N, 3)
    mean_V = torch.bincount(ids_NS.flatten(), minlength=40) / ids_NS.numel()
    torch.testing.assert_close(mean_V, p_NV[0], atol=1 / 4096, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_ids_without_probability_are_never_drawn(uniform: float) -> None:
    p_NV = torch.tensor([[0, 0, 0.5, 0, 0.5, 0]])
    assert set(systematic_sample(p_NV, torch.tensor([uniform]), 1000)[0].tolist()) == {2, 4}


def test_random_numbers_depend_on_the_row_alone() -> None:
    ids_BT = torch.randint(0, 49152, (64, 300), generator=torch.Generator().manual_seed(0))
    lengths_B = torch.arange(300, 236, -1)
    together_BT = uniforms(ids_BT, lengths_B)
    for row in (0, 17, 63):
        length = int(lengths_B[row])
        alone_1T = uniforms(ids_BT[row : row + 1, :length], lengths_B[row : row + 1])
        assert torch.equal(alone_1T[0], together_BT[row, :length])
    assert (together_BT >= 0).all() and (together_BT < 1).all()


def test_random_numbers_are_spread_evenly_and_differ() -> None:
    """The second row differs from the first in one token. The third row is the first without its last token."""
    ids_BT = torch.randint(0, 49152, (1, 4000), generator=torch.Generator().manual_seed(0)).repeat(3, 1)
    ids_BT[1, 7] += 1
    uniform_BT = uniforms(ids_BT, torch.tensor([4000, 4000, 3999]))
    assert (uniform_BT[0] == uniform_BT[1]).float().mean() < 0.01
    assert (uniform_BT[0] == uniform_BT[2]).float().mean() < 0.01
    for uniform_T in uniform_BT:
        counts = torch.histc(uniform_T, 10, 0, 1)
        assert ((counts - 400).abs() < 100).all(), "off by more than five standard deviations"
        assert abs(torch.corrcoef(torch.stack([uniform_T[1:], uniform_T[:-1]]))[0, 1]) < 0.08
