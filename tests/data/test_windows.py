"""Windows that cover a document, and the selection of the tokens to label."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.windows import RUN, cover, sample_positions

SHAPES = st.integers(1, 40).flatmap(lambda window: st.tuples(st.just(window), st.integers(0, window - 1)))
TOKENS = st.integers(0, 300)


@settings(max_examples=50, deadline=None)
@given(TOKENS, SHAPES)
def test_every_token_is_labelled_once(tokens: int, shape: tuple[int, int]) -> None:
    window, overlap = shape
    labelled = np.zeros(tokens, dtype=int)
    for piece in cover(3, tokens, window=window, overlap=overlap):
        assert piece.document == 3
        assert piece.start <= piece.label_from < piece.stop <= tokens
        labelled[piece.label_from : piece.stop] += 1
    assert (labelled == 1).all()


@settings(max_examples=50, deadline=None)
@given(TOKENS, SHAPES)
def test_no_window_is_longer_than_the_context(tokens: int, shape: tuple[int, int]) -> None:
    window, overlap = shape
    pieces = list(cover(0, tokens, window=window, overlap=overlap))
    assert all(len(piece) == piece.stop - piece.start <= window for piece in pieces)
    assert all(len(piece) == window for piece in pieces[:-1])


@settings(max_examples=50, deadline=None)
@given(TOKENS, SHAPES)
def test_in_later_windows_each_label_has_at_least_the_overlap_as_context(tokens: int, shape: tuple[int, int]) -> None:
    window, overlap = shape
    pieces = list(cover(0, tokens, window=window, overlap=overlap))
    assert all(piece.start == 0 for piece in pieces[:1])
    assert all(piece.label_from - piece.start == overlap for piece in pieces[1:])


@settings(max_examples=50, deadline=None)
@given(TOKENS, SHAPES)
def test_each_token_is_labelled_where_it_has_the_most_context(tokens: int, shape: tuple[int, int]) -> None:
    window, overlap = shape
    pieces = list(cover(0, tokens, window=window, overlap=overlap))
    for piece in pieces:
        for token in range(piece.label_from, piece.stop):
            context = [token - other.start for other in pieces if other.start <= token < other.stop]
            assert token - piece.start == max(context)


def test_an_empty_document_has_no_window() -> None:
    assert list(cover(0, 0, window=8, overlap=4)) == []


@settings(max_examples=50, deadline=None)
@given(TOKENS, st.integers(0, 2**32))
def test_a_share_of_one_labels_all(tokens: int, seed: int) -> None:
    chosen = sample_positions(tokens, 1.0, np.random.default_rng(seed))
    assert chosen.shape == (tokens,) and chosen.dtype == bool and chosen.all()


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_the_share_of_selected_positions_is_as_requested(share: float) -> None:
    tokens = 80_000
    chosen = sample_positions(tokens, share, np.random.default_rng(0))
    error = np.sqrt(share * (1 - share) / (tokens / RUN))
    assert abs(chosen.mean() - share) < 4 * error


def test_every_position_of_a_short_document_is_selected_equally_often() -> None:
    share, draws, random = 0.3, 4000, np.random.default_rng(0)
    chosen = np.stack([sample_positions(11, share, random) for _ in range(draws)])
    error = np.sqrt(share * (1 - share) / draws)
    assert (np.abs(chosen.mean(axis=0) - share) < 4 * error).all()


@settings(max_examples=50, deadline=None)
@given(TOKENS, st.floats(0.05, 0.95), st.integers(0, 2**32))
def test_positions_are_selected_in_aligned_runs_of_eight(tokens: int, share: float, seed: int) -> None:
    chosen = sample_positions(tokens, share, np.random.default_rng(seed))
    assert chosen.shape == (tokens,)
    changes = np.flatnonzero(chosen[1:] != chosen[:-1]) + 1
    assert len(set((changes % 8).tolist())) <= 1


def test_runs_begin_at_every_phase() -> None:
    draws = (sample_positions(400, 0.5, np.random.default_rng(seed)) for seed in range(100))
    phases = {int(np.flatnonzero(chosen[1:] != chosen[:-1])[0] + 1) % 8 for chosen in draws}
    assert phases == set(range(8))


@settings(max_examples=50, deadline=None)
@given(TOKENS, st.floats(0.05, 0.95), st.integers(0, 2**32))
def test_the_same_seed_selects_the_same_positions(tokens: int, share: float, seed: int) -> None:
    first, second = (sample_positions(tokens, share, np.random.default_rng(seed)) for _ in range(2))
    assert (first == second).all()


def test_another_seed_selects_other_positions() -> None:
    first, second = (sample_positions(800, 0.5, np.random.default_rng(seed)) for seed in (1, 2))
    assert (first != second).any()
