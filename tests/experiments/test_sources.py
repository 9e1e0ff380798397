"""True values of drawn documents agree with enumerated paths and with the frequencies of the drawn tokens."""

import itertools

import numpy as np
import pytest

from pipeline.experiments.sources import SOURCES, HiddenMarkov, MarkovChain, NoisyCopy, draw, shannon_entropy


def tiny_hidden_markov() -> HiddenMarkov:
    random = np.random.default_rng(5)
    return HiddenMarkov(random.dirichlet(np.ones(3)), random.dirichlet(np.ones(3), 3), random.dirichlet(np.ones(4), 3))


def path_probability(source: HiddenMarkov, tokens: tuple[int, ...]) -> float:
    """Return p(tokens), summed over every path through the hidden states."""
    total = 0.0
    for path in itertools.product(range(3), repeat=len(tokens)):
        probability = source.initial_H[path[0]]
        for here, there in itertools.pairwise(path):
            probability *= source.transition_HH[here, there]
        for state, token in zip(path, tokens, strict=True):
            probability *= source.emission_HV[state, token]
        total += probability
    return total


def test_the_forward_algorithm_equals_a_sum_over_all_paths() -> None:
    source = tiny_hidden_markov()
    drawn = draw(source, 20, 5, np.random.default_rng(0))
    for tokens, surprisals in zip(drawn.tokens_MT.tolist(), drawn.surprisal_MT, strict=True):
        assert -np.log(path_probability(source, tuple(tokens))) == pytest.approx(surprisals.sum())


def test_the_conditional_entropy_equals_a_sum_over_next_tokens() -> None:
    source = tiny_hidden_markov()
    drawn = draw(source, 10, 4, np.random.default_rng(0))
    for tokens, entropies in zip(drawn.tokens_MT.tolist(), drawn.entropy_MT, strict=True):
        prefix = tuple(tokens[:3])
        joint = [path_probability(source, (*prefix, token)) for token in range(4)]
        conditional = np.array(joint) / path_probability(source, prefix)
        assert entropies[3] == pytest.approx(-(conditional * np.log(conditional)).sum())


def test_a_chain_of_order_two_looks_two_symbols_back() -> None:
    table = np.random.default_rng(0).dirichlet(np.ones(3), 9)
    drawn = draw(MarkovChain(table), 4, 30, np.random.default_rng(1))
    for tokens, surprisals in zip(drawn.tokens_MT.tolist(), drawn.surprisal_MT, strict=True):
        padded = [0, 0, *tokens]
        expected = [-np.log(table[3 * padded[i] + padded[i + 1], padded[i + 2]]) for i in range(30)]
        np.testing.assert_allclose(surprisals, expected)


def test_a_noisy_copy_repeats_the_token_of_a_lag_ago() -> None:
    drawn = draw(NoisyCopy(vocabulary=10, lag=8, noise=0.2), 4000, 16, np.random.default_rng(0))
    first_MT, second_MT = drawn.tokens_MT[:, :8], drawn.tokens_MT[:, 8:]
    assert (first_MT == second_MT).mean() == pytest.approx(0.8 + 0.02, abs=0.01)
    np.testing.assert_allclose(drawn.surprisal_MT[:, :8], np.log(10))
    expected = np.where(first_MT == second_MT, -np.log(0.82), -np.log(0.02))
    np.testing.assert_allclose(drawn.surprisal_MT[:, 8:], expected)


def test_early_tokens_of_a_topic_mixture_predict_later_ones() -> None:
    drawn = draw(SOURCES["topic-mixture"](np.random.default_rng(0)), 2000, 64, np.random.default_rng(1))
    by_position = drawn.surprisal_MT.mean(axis=0)
    assert by_position[:2].mean() > by_position[32:].mean() + 0.3


@pytest.mark.parametrize("name", SOURCES)
def test_drawn_tokens_have_the_stated_probabilities(name: str) -> None:
    """The mean of surprisal - entropy must be 0 within four standard errors."""
    source = SOURCES[name](np.random.default_rng(0))
    drawn = draw(source, 2000, 64, np.random.default_rng(1))
    assert np.isfinite(drawn.surprisal_MT).all() and drawn.tokens_MT.max() < source.vocabulary
    difference = (drawn.surprisal_MT - drawn.entropy_MT).mean(axis=1)
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(2000)
    assert drawn.surprisal_MT.std() > 0.5, "labels are too similar to tell methods apart"


def test_the_same_seed_draws_the_same_documents() -> None:
    source = SOURCES["markov-1"](np.random.default_rng(0))
    first, again = (draw(source, 5, 9, np.random.default_rng(3)) for _ in range(2))
    other = draw(source, 5, 9, np.random.default_rng(4))
    assert np.array_equal(first.tokens_MT, again.tokens_MT) and not np.array_equal(first.tokens_MT, other.tokens_MT)


def test_impossible_symbols_add_no_entropy() -> None:
    np.testing.assert_allclose(shannon_entropy(np.array([[1.0, 0.0], [0.5, 0.5]])), [0, np.log(2)])
