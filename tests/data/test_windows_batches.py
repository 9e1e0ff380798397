"""Windows grouped into batches, and their labels gathered by document."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.windows import gather, window_batches

LENGTHS = st.lists(st.integers(0, 40), max_size=8)


def documents_of(lengths: list[int]) -> list[np.ndarray]:
    return [np.arange(length, dtype=np.int32) + 100 * place for place, length in enumerate(lengths)]


@settings(max_examples=100, deadline=None)
@given(
    LENGTHS, st.integers(1, 12), st.integers(0, 11), st.integers(1, 60), st.none() | st.integers(0, 12), st.floats(0, 1)
)
def test_every_wanted_token_is_labelled_once_at_its_place(
    lengths: list[int], window: int, overlap: int, budget: int, border: int | None, share: float
) -> None:
    documents, random = documents_of(lengths), np.random.default_rng(0)
    wanted = [random.random(length) < share for length in lengths]
    overlap = min(overlap, window - 1)
    batches = window_batches(documents, wanted, window=window, overlap=overlap, budget=budget, border=border)
    for batch in batches:
        assert batch.ids_BT.size <= max(budget, batch.ids_BT.shape[1]) and batch.ids_BT.shape[1] <= window
        assert batch.wanted_BT.any(axis=1).all() and (batch.lengths_B > 0).all()
        assert border is None or len(set((batch.lengths_B > border).tolist())) == 1
    labels = gather(
        documents, [(batch, {"label": batch.ids_BT.astype(np.float32)}) for batch in batches], {"label": ()}
    )
    for ids, asked, values in zip(documents, wanted, labels["label"], strict=True):
        np.testing.assert_array_equal(values, np.where(asked, ids, np.nan))
    assert sum(int(batch.wanted_BT.sum()) for batch in batches) == sum(int(asked.sum()) for asked in wanted)


def test_windows_of_a_batch_have_similar_lengths() -> None:
    documents = documents_of([3, 30, 4, 29])
    batches = window_batches(documents, [np.ones(len(ids), bool) for ids in documents], window=32, overlap=0, budget=60)
    assert [batch.lengths_B.tolist() for batch in batches] == [[30, 29], [4, 3]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_wanted_label_that_is_not_finite_is_refused(value: float) -> None:
    documents, wanted = documents_of([4]), [np.array([True, True, False, False])]
    (batch,) = window_batches(documents, wanted, window=8, overlap=0, budget=8)
    unwanted = np.array([[1, 2, value, value]], np.float32)
    assert np.array_equal(gather(documents, [(batch, {"label": unwanted})], {"label": ()})["label"][0][:2], [1, 2])
    with pytest.raises(ValueError, match="gives label that is not finite"):
        gather(documents, [(batch, {"label": unwanted[:, ::-1]})], {"label": ()})
