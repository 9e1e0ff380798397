"""Windows of an epoch, counted before training, compared with the batches of training."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.annotated import find_annotations
from pipeline.data.corpus import Corpus
from pipeline.data.packing import CutWithOverlap
from pipeline.training.batches import Windowing, batches_in_order, endless_batches, epoch_batches
from pipeline.training.data import DocumentSettings, LabelledDocuments, ModelTokens
from pipeline.training.epoch import Epoch
from tests.annotated import write_annotated

RANDOM = np.random.default_rng(0)


def corpus(lengths: list[int], labelled: float | None = None) -> Corpus:
    documents = [np.arange(length, dtype=np.int32) % 90 for length in lengths]
    if labelled is None:
        return Corpus.of(documents)
    labels = [np.where(RANDOM.random(length) < labelled, 1.0, np.nan).astype(np.float32) for length in lengths]
    return Corpus.of(documents, labels)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=30).filter(any), st.integers(0, 7))
def test_windows_are_those_of_training(lengths: list[int], overlap: int) -> None:
    cut = Windowing(8, 32, overlap=overlap)
    epoch, batches = Epoch.of_corpus(corpus(lengths), cut), [*epoch_batches(corpus(lengths), cut, RANDOM)]
    assert epoch.tokens == sum(int(batch.lengths_B.sum()) for batch in batches)
    assert epoch.longest.input_ids_BT.shape[1] == max(batch.input_ids_BT.shape[1] for batch in batches)


def test_windows_without_a_label_are_left_out() -> None:
    cut, documents = Windowing(8, 32, overlap=4, labelled_only=True), corpus([50] * 20, labelled=0.1)
    batches = [*epoch_batches(documents, cut, RANDOM)]
    assert 0 < Epoch.of_corpus(documents, cut).tokens == sum(int(batch.lengths_B.sum()) for batch in batches)
    with pytest.raises(ValueError, match="every document is empty or without a label"):
        Epoch.of_corpus(corpus([50], labelled=0), cut)


@pytest.mark.parametrize("varied", [False, True])
def test_a_batch_has_as_many_tokens_as_in_training(varied: bool) -> None:
    cut, documents = Windowing(32, 256, varied=varied), corpus(np.random.default_rng(1).integers(1, 200, 400).tolist())
    epoch, batches = Epoch.of_corpus(documents, cut), [*epoch_batches(documents, cut, RANDOM)]
    tokens = sum(int(batch.lengths_B.sum()) for batch in batches) / len(batches)
    assert epoch.tokens_of_batch(256) == pytest.approx(tokens, rel=0.03)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=30).filter(any), st.integers(0, 7), st.integers(8, 50))
def test_the_batches_of_an_epoch_are_those_of_training(lengths: list[int], overlap: int, budget: int) -> None:
    cut = Windowing(8, budget, overlap=overlap)
    epoch, batches = Epoch.of_corpus(corpus(lengths), cut), [*epoch_batches(corpus(lengths), cut, RANDOM)]
    assert epoch.batches(budget) == len(batches)
    assert epoch.tokens_of_batch(budget) * len(batches) == pytest.approx(epoch.tokens)


def test_an_epoch_of_a_fold_lacks_its_share() -> None:
    whole = Epoch.of_corpus(corpus([64] * 40), Windowing(8, 32))
    fold = whole.of_fold(4)
    assert (fold.tokens, fold.batches(32), fold.documents) == (0.75 * whole.tokens, 0.75 * whole.batches(32), 30)
    assert fold.tokens_of_batch(32) == whole.tokens_of_batch(32) and whole.of_fold(1) is whole


def test_the_documents_of_a_stream_are_not_counted_for_the_tokens_of_a_batch() -> None:
    def counted() -> int:
        raise AssertionError

    epoch = Epoch.of_corpus(corpus([64] * 3), Windowing(8, 40), counted)
    assert epoch.tokens_of_batch(40) == pytest.approx(40)


@pytest.mark.parametrize("limit", [None, 30])
def test_the_held_out_documents_of_a_stream_stand_for_all(tmp_path: Path, limit: int | None) -> None:
    tokens = pa.array([[1] * 20] * 50, pa.list_(pa.int32()))
    for name in ("a", "b"):
        pq.write_table(pa.table({"input_ids": tokens}), tmp_path / f"{name}.parquet")
    settings = DocumentSettings(
        input=(str(tmp_path),), tokenizer="none", vocabulary=9, stream=100, held_out=4, limit=limit
    )
    documents = settings.read()
    epoch = Epoch.of_documents(documents, Windowing(16, 64))
    assert (epoch.sampled, epoch.documents) == (4, (limit or 100) - 4)
    streamed = sum(len(block.tokens_N) for block in documents.blocks)
    assert epoch.tokens == streamed and epoch.batches(64) == streamed / epoch.tokens_of_batch(64)
    assert next(endless_batches(documents.blocks, Windowing(16, 64), 0)).input_ids_BT.shape[1] <= 16


@pytest.mark.parametrize("stream", [None, 300])
def test_packed_windows_are_those_of_training(tmp_path: Path, stream: int | None) -> None:
    tokens = [[1] * int(size) for size in np.random.default_rng(1).integers(5, 60, 40)]
    dataset = find_annotations(str(write_annotated(tmp_path, tokens, [[1.0] * len(ids) for ids in tokens])))
    model, packing = ModelTokens.of(dataset, None), CutWithOverlap(length=17, separator=0)
    seen = LabelledDocuments(dataset, model, packing, 0, 30, at_a_time=stream)
    held_out = LabelledDocuments(dataset, model, packing, 30, 40).held_out()
    epoch = Epoch.of_labelled(seen, held_out, 10, 68)
    windows = seen.whole.windows
    predicted = sum(int(batch.real_BT[:, 1:].sum()) for batch in batches_in_order(windows, 68))
    assert epoch.tokens == pytest.approx(predicted, rel=0 if stream is None else 0.3)
    if stream is None:
        assert epoch.batches(68) == len([*batches_in_order(windows, 68)])
    assert epoch.tokens_of_batch(68) == pytest.approx(64, rel=0.1) and epoch.longest.input_ids_BT.shape == (4, 17)
