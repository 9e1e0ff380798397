"""Windows of a corpus, and their batches."""

from dataclasses import replace
from itertools import chain, islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.corpus import Corpus
from pipeline.training.batches import Batch, Windowing, cut_windows, endless_batches, epoch_batches

LENGTHS = st.lists(st.integers(0, 25), max_size=10)
CUTS = st.builds(Windowing, window=st.integers(1, 12), tokens_per_batch=st.integers(1, 60), varied=st.booleans())
SEEDS = st.integers(0, 2**32)


def label_of(tokens_N: np.ndarray) -> np.ndarray:
    return np.where(tokens_N % 7 < 4, np.nan, tokens_N / 2).astype(np.float32)


def corpus_of(lengths: list[int], *, labels: bool = True) -> Corpus:
    """Return a corpus in which the id of every token is the token's position."""
    tokens_N = np.arange(sum(lengths), dtype=np.int32)
    return Corpus(tokens_N, np.cumsum([0, *lengths]), label_of(tokens_N) if labels else None)


def rows_of(batch: Batch) -> list[tuple[int, ...]]:
    return [
        tuple(row[:length].tolist()) for row, length in zip(batch.input_ids_BT, batch.lengths_B.tolist(), strict=True)
    ]


def epoch(corpus: Corpus, cut: Windowing, seed: int) -> list[Batch]:
    return list(epoch_batches(corpus, cut, np.random.default_rng(seed)))


@settings(max_examples=50, deadline=None)
@given(LENGTHS, CUTS, SEEDS)
def test_an_epoch_holds_every_token_once(lengths: list[int], cut: Windowing, seed: int) -> None:
    batches = epoch(corpus_of(lengths), cut, seed)
    tokens = sorted(token for batch in batches for row in rows_of(batch) for token in row)
    assert tokens == list(range(sum(lengths)))
    real = [batch.input_ids_BT[batch.real_BT].tolist() for batch in batches]
    assert real == [[token for row in rows_of(batch) for token in row] for batch in batches]


@settings(max_examples=50, deadline=None)
@given(LENGTHS, CUTS, SEEDS)
def test_a_window_is_a_stretch_of_one_document(lengths: list[int], cut: Windowing, seed: int) -> None:
    corpus = corpus_of(lengths)
    document_N = np.repeat(np.arange(len(lengths)), lengths)
    for batch in epoch(corpus, cut, seed):
        for row in rows_of(batch):
            assert 1 <= len(row) <= cut.window
            assert row == tuple(range(row[0], row[0] + len(row)))
            assert len(set(document_N[list(row)].tolist())) == 1


@settings(max_examples=50, deadline=None)
@given(LENGTHS, CUTS, SEEDS)
def test_a_padded_batch_stays_within_the_budget(lengths: list[int], cut: Windowing, seed: int) -> None:
    for batch in epoch(corpus_of(lengths), cut, seed):
        rows, longest = batch.input_ids_BT.shape
        assert longest == int(batch.lengths_B.max())
        assert rows == 1 or rows * longest <= cut.tokens_per_batch


@settings(max_examples=50, deadline=None)
@given(LENGTHS, CUTS, SEEDS)
def test_labels_stay_at_their_tokens_and_padding_has_none(lengths: list[int], cut: Windowing, seed: int) -> None:
    for batch in epoch(corpus_of(lengths), cut, seed):
        assert batch.labels_BT is not None and batch.labels_BT.dtype == torch.float32
        expected = np.where(batch.real_BT.numpy(), label_of(batch.input_ids_BT.numpy()), np.nan)
        np.testing.assert_array_equal(batch.labels_BT.numpy(), expected)


def test_a_corpus_without_labels_has_batches_without_labels() -> None:
    assert all(batch.labels_BT is None for batch in epoch(corpus_of([5, 9], labels=False), Windowing(4, 8), 0))


def test_fixed_windows_are_as_long_as_the_document_allows() -> None:
    pieces_P3 = cut_windows(np.array([0, 10, 10, 13]), Windowing(4, 8), np.random.default_rng(0))
    assert pieces_P3.tolist() == [[0, 4, 0], [4, 8, 4], [8, 10, 8], [10, 13, 10]]


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 12), st.data(), SEEDS)
def test_overlapping_windows_label_every_token_once_and_share_context(
    lengths: list[int], window: int, data: st.DataObject, seed: int
) -> None:
    overlap = data.draw(st.integers(0, window - 1))
    tokens_N = np.arange(sum(lengths), dtype=np.int32)
    corpus = Corpus(tokens_N, np.cumsum([0, *lengths]), tokens_N.astype(np.float32))
    labelled: list[float] = []
    for batch in epoch(corpus, Windowing(window, 24, overlap=overlap), seed):
        assert batch.labels_BT is not None
        given_BT = ~batch.labels_BT.isnan()
        assert batch.labels_BT[given_BT].equal(batch.input_ids_BT[given_BT].float())
        labelled += batch.labels_BT[given_BT].tolist()
        for row, given_T in zip(batch.input_ids_BT.tolist(), given_BT, strict=True):
            first = int(given_T.nonzero()[0])
            assert first in (0, overlap) and (first == overlap or row[0] in corpus.offsets)
    assert sorted(labelled) == tokens_N.tolist()


def test_varied_windows_have_every_length_equally_often() -> None:
    window = 8
    offsets = np.array([0, 80_000])
    pieces_P3 = cut_windows(offsets, Windowing(window, 8, varied=True), np.random.default_rng(0))
    counts = np.bincount(pieces_P3[:, 1] - pieces_P3[:, 0], minlength=window + 1)[1:]
    expected = len(pieces_P3) / window
    assert counts.shape == (window,)
    assert (np.abs(counts - expected) < 4.5 * np.sqrt(expected)).all()


def test_expected_entropies_stay_at_their_tokens() -> None:
    corpus = corpus_of([30, 0, 17, 40, 25, 9])
    labels_N = corpus.labels_N
    assert labels_N is not None
    corpus = replace(corpus, expected_N=labels_N + 1).without_fold(0, 2)
    corpus = corpus.documents(1, len(corpus))
    for batch in epoch(corpus, Windowing(8, 24, overlap=3), 0):
        for part in (batch, batch.part(1, 2), batch.first(1)):
            assert part.labels_BT is not None and part.expected_BT is not None
            torch.testing.assert_close(part.expected_BT, part.labels_BT + 1, equal_nan=True)


def test_windows_that_are_cut_once_are_the_same_in_every_epoch_in_another_order() -> None:
    corpus = corpus_of([32, 0, 16, 40])
    for recut in (False, True):
        cut = Windowing(8, 24, varied=True, recut=recut)
        first, second = ([rows_of(batch) for batch in epoch(corpus, cut, seed)] for seed in (0, 1))
        assert first != second
        assert (sorted(chain(*first)) == sorted(chain(*second))) == (not recut)


@settings(max_examples=50, deadline=None)
@given(LENGTHS, CUTS, SEEDS)
def test_labelled_only_skips_windows_without_a_label(lengths: list[int], cut: Windowing, seed: int) -> None:
    corpus = corpus_of(lengths)
    chosen = Windowing(cut.window, cut.tokens_per_batch, varied=cut.varied, labelled_only=True)
    everything = sorted(row for batch in epoch(corpus, cut, seed) for row in rows_of(batch))
    kept = sorted(row for batch in epoch(corpus, chosen, seed) for row in rows_of(batch))
    assert kept == [row for row in everything if not np.isnan(label_of(np.array(row))).all()]


@pytest.mark.parametrize("varied", [False, True])
def test_the_seed_decides_the_order_of_batches(varied: bool) -> None:
    corpus, cut = corpus_of([30, 0, 17, 40]), Windowing(8, 24, varied=varied)

    def order(seed: int) -> list[list[tuple[int, ...]]]:
        return [rows_of(batch) for batch in islice(endless_batches([corpus], cut, seed), 40)]

    assert order(5) == order(5)
    assert order(5) != order(6)


def test_another_epoch_has_the_same_tokens_in_another_order() -> None:
    corpus, cut = corpus_of([32, 0, 16, 40]), Windowing(8, 24)
    per_epoch = len(epoch(corpus, cut, 0))
    rows = [rows_of(batch) for batch in islice(endless_batches([corpus], cut, 0), 2 * per_epoch)]
    first, second = rows[:per_epoch], rows[per_epoch:]
    assert first != second
    assert sorted(chain(*first)) == sorted(chain(*second))


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_the_parts_of_a_batch_are_its_rows(processes: int) -> None:
    lengths_B = torch.tensor([4, 3, 3, 1])
    batch = Batch(torch.arange(16).view(4, 4), lengths_B, torch.arange(16).view(4, 4).float())
    parts = [batch.part(process, processes) for process in range(processes)]
    rows = [
        row for part in parts for row, length in zip(part.input_ids_BT.tolist(), part.lengths_B, strict=True) if length
    ]
    assert sorted(rows) == batch.input_ids_BT.tolist()
    assert sum(int(part.real_BT.sum()) for part in parts) == 11
    for part in parts:
        assert part.whole is batch and part.labels_BT is not None
        here_B = part.lengths_B > 0
        assert torch.equal(part.labels_BT[here_B], part.input_ids_BT[here_B].float())
        assert part.labels_BT[~here_B].isnan().all()
