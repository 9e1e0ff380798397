"""Documents packed into windows: every token and label once, with borders, and resumable after any window."""

import math
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.packing import (
    PADDING,
    BestFit,
    CutAtEnd,
    CutWithOverlap,
    Document,
    PackedWindow,
    Packing,
    best_fit,
    document_borders,
    position_ids,
)

LENGTHS = st.lists(st.integers(0, 25), max_size=30)
SEPARATORS = st.sampled_from([None, 0])
CUT = st.builds(CutAtEnd, length=st.integers(1, 12), separator=SEPARATORS)
OVERLAPPING = st.builds(CutWithOverlap, length=st.integers(2, 12), separator=SEPARATORS)
FITTED = st.builds(BestFit, length=st.integers(1, 12), separator=SEPARATORS, buffer=st.integers(1, 4))


def documents_of(lengths: list[int]) -> list[Document]:
    """Make documents in which no token occurs twice. A token determines its label; every third token has no label."""
    ids = np.split(np.arange(1, sum(lengths) + 1, dtype=np.int32), np.cumsum(lengths)[:-1]) if lengths else []
    return [(tokens_N, np.where(tokens_N % 3 == 0, np.nan, -tokens_N / 8).astype(np.float32)) for tokens_N in ids]


def separated(documents: list[Document], separator: int | None) -> list[list[int]]:
    before = [] if separator is None else [separator]
    return [before + tokens_N.tolist() for tokens_N, _ in documents]


def pieces_of(window: PackedWindow) -> list[list[int]]:
    """Split a window's tokens by `document_T`."""
    numbers = window.document_T[window.document_T != PADDING]
    assert numbers.tolist() == sorted(numbers) and set(numbers.tolist()) == set(range(len(set(numbers.tolist()))))
    return [window.input_ids_T[window.document_T == number].tolist() for number in sorted(set(numbers.tolist()))]


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, packing=CUT | FITTED)
def test_every_token_appears_once_in_its_document_with_its_label(lengths: list[int], packing: Packing) -> None:
    documents = documents_of(lengths)
    windows = [packed.window for packed in packing.windows(documents)]
    pieces = [piece for window in windows for piece in pieces_of(window)]
    expected = separated(documents, packing.separator)
    assert sorted(chain(*pieces)) == sorted(chain(*expected))
    joined = {(*document[at : at + size],) for document in expected for at in range(26) for size in range(1, 27)}
    assert all(0 < len(piece) <= packing.length and (*piece,) in joined for piece in pieces)
    for window in windows:
        ids_T, real_T = window.input_ids_T, window.document_T != PADDING
        assert [(array.dtype, array.shape) for array in window] == [
            (np.dtype(kind), (packing.length,)) for kind in (np.int32, np.float32, np.int32)
        ]
        expected_T = np.where((ids_T % 3 == 0) | ~real_T, np.nan, -ids_T / 8).astype(np.float32)
        np.testing.assert_array_equal(window.entropy_T, expected_T)
        assert real_T.any() and not ids_T[~real_T].any() and (np.diff(real_T.astype(int)) <= 0).all()


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, packing=OVERLAPPING)
def test_overlapping_windows_predict_every_token_once(lengths: list[int], packing: CutWithOverlap) -> None:
    documents = documents_of(lengths)
    windows = [packed.window for packed in packing.windows(documents)]
    held = [window.input_ids_T[window.document_T != PADDING].tolist() for window in windows]
    flat = [*chain(*separated(documents, packing.separator))]
    assert [token for ids in held for token in ids[1:]] == flat[1:]
    assert all(one[-1] == two[0] for one, two in pairwise(held)) and all(len(ids) > 1 for ids in held)
    for window in windows:
        ids_T, real_T = window.input_ids_T, window.document_T != PADDING
        expected_T = np.where((ids_T % 3 == 0) | ~real_T, np.nan, -ids_T / 8).astype(np.float32)
        np.testing.assert_array_equal(window.entropy_T[1:], expected_T[1:])
        assert np.isnan(window.entropy_T[0])
    stacked = packing.all_windows(documents)
    assert stacked.input_ids_T.shape == (len(windows), packing.length)
    assert [row.tolist() for row in stacked.input_ids_T] == [window.input_ids_T.tolist() for window in windows]


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, packing=CUT)
def test_windows_cut_at_their_ends_are_the_documents_end_to_end(lengths: list[int], packing: CutAtEnd) -> None:
    documents = documents_of(lengths)
    windows = [packed.window for packed in packing.windows(documents)]
    flat = [*chain(*separated(documents, packing.separator))]
    assert len(windows) == math.ceil(len(flat) / packing.length)
    assert [*chain(*(chain(*pieces_of(window)) for window in windows))] == flat
    owners = [number for number, ids in enumerate(separated(documents, packing.separator)) for _ in ids]
    for place, window in enumerate(windows):
        held = owners[place * packing.length : (place + 1) * packing.length]
        assert window.document_T[: len(held)].tolist() == [sorted(set(held)).index(owner) for owner in held]


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, packing=FITTED)
def test_best_fit_cuts_only_whole_windows_off_longer_documents(lengths: list[int], packing: BestFit) -> None:
    documents = documents_of(lengths)
    pieces = [piece for packed in packing.windows(documents) for piece in pieces_of(packed.window)]
    expected = [
        document[start : start + packing.length]
        for document in separated(documents, packing.separator)
        for start in range(0, len(document), packing.length)
    ]
    assert sorted(pieces) == sorted(expected)


def slow_best_fit(sizes: list[int], room: int) -> list[list[int]]:
    """Return the pieces of each window of a best-fit packing, found by a search of all windows for each piece.

    If several windows have equal room, the piece goes to the window that was opened first.
    """
    windows: list[list[int]] = []
    for piece in sorted(range(len(sizes)), key=lambda piece: (-sizes[piece], piece)):
        left = [room - sum(sizes[other] for other in window) for window in windows]
        enough = [(space, number) for number, space in enumerate(left) if space >= sizes[piece]]
        if enough:
            windows[min(enough)[1]].append(piece)
        else:
            windows.append([piece])
    return sorted(sorted(window) for window in windows)


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(1, 20), max_size=40))
def test_best_fit_chooses_the_window_with_the_least_room(sizes: list[int]) -> None:
    assert best_fit(sizes, 20) == slow_best_fit(sizes, 20)


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, packing=CUT | OVERLAPPING | FITTED, data=st.data())
def test_packing_resumes_after_any_window(lengths: list[int], packing: Packing, data: st.DataObject) -> None:
    documents = documents_of(lengths)
    whole = list(packing.windows(documents))
    if whole:
        place = data.draw(st.integers(0, len(whole) - 1))
        after = whole[place]
        rest = list(packing.windows(documents[after.documents :], after.within))
        assert len(rest) == len(whole) - place - 1
        for packed, expected in zip(rest, whole[place + 1 :], strict=True):
            assert (packed.documents + after.documents, packed.within) == (expected.documents, expected.within)
            for array, other in zip(packed.window, expected.window, strict=True):
                np.testing.assert_array_equal(array, other)


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, packing=CUT | FITTED)
def test_borders_and_positions_agree_with_the_documents(lengths: list[int], packing: Packing) -> None:
    windows = [packed.window for packed in packing.windows(documents_of(lengths))]
    document_BT = np.stack([np.full(packing.length, PADDING), *(window.document_T for window in windows)])
    positions_BT, borders = position_ids(document_BT), document_borders(document_BT)
    assert positions_BT.dtype == borders.dtype == np.int32
    expected: list[int] = []
    for row, documents_T in enumerate(document_BT.tolist()):
        for place, document in enumerate(documents_T):
            begins = place == 0 or documents_T[place - 1] != document
            assert positions_BT[row, place] == (0 if begins else positions_BT[row, place - 1] + 1)
            expected += [row * packing.length + place] * begins
    assert borders.tolist() == [*expected, document_BT.size]
    for window in windows:
        segments = [window.document_T[start:stop] for start, stop in pairwise(document_borders(window.document_T))]
        assert all(len(set(segment.tolist())) == 1 for segment in segments)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 token, not 0"):
        CutAtEnd(length=0)
    with pytest.raises(ValueError, match="token id, not -1"):
        BestFit(length=4, separator=-1)
    with pytest.raises(ValueError, match="windows of 1 tokens cannot share 1"):
        CutWithOverlap(length=1)
    with pytest.raises(ValueError, match="at least 1 window, not 0"):
        BestFit(length=4, buffer=0)
