"""An annotated dataset as a language model reads it: every label stays at its token, and reading resumes anywhere."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.data.annotated import find_annotations, read_labelled
from pipeline.data.files import File
from pipeline.data.loader import Resumable
from pipeline.data.packing import PADDING, CutWithOverlap
from pipeline.data.tokenizer import encode, load_tokenizer
from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
from pipeline.training.batches import Batch, labelled_batches
from pipeline.training.data import LabelledDocuments, ModelTokens
from tests.annotated import write_annotated
from tests.builders import sample_texts

DOCUMENTS, SEPARATOR = 30, 97
PACKING = CutWithOverlap(length=17, separator=SEPARATOR)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Write a dataset in which each label is an eighth of the token's id, and every seventh token has no label."""
    random = np.random.default_rng(0)
    tokens = [random.integers(97, size=random.integers(0, 40)).tolist() for _ in range(DOCUMENTS)]
    nats = [[np.nan if place % 7 == 3 else token / 8 for place, token in enumerate(document)] for document in tokens]
    return write_annotated(tmp_path / "labels", tokens, nats, shards=2, vocabulary=97, tokenizer_sha256=None)


def read(
    labels: Path, start: int = 0, stop: int = DOCUMENTS, at_a_time: int | None = None, shuffled: int | None = None
) -> LabelledDocuments:
    dataset = find_annotations(str(labels))
    return LabelledDocuments(dataset, ModelTokens.of(dataset, None), PACKING, start, stop, at_a_time, shuffled)


def tensors(batches: list[Batch]) -> list[torch.Tensor]:
    each = [(batch.input_ids_BT, batch.lengths_B, batch.labels_BT) for batch in batches]
    return [tensor.nan_to_num(-1) for batch in each for tensor in batch if tensor is not None]


@pytest.mark.parametrize("at_a_time", [None, 50, 1])
def test_every_label_stays_at_its_token_on_the_way_to_a_batch(labels: Path, at_a_time: int | None) -> None:
    seen = 0
    for batch in islice(labelled_batches(read(labels, 3, 28, at_a_time), 120, seed=0), 60):
        assert batch.labels_BT is not None
        labelled_BT = ~batch.labels_BT.isnan()
        assert (batch.labels_BT == batch.input_ids_BT / 8)[labelled_BT].all()
        assert not labelled_BT[~batch.real_BT].any() and not labelled_BT[batch.input_ids_BT == SEPARATOR].any()
        seen += int(labelled_BT.sum())
    assert seen > 500


def test_every_token_is_predicted_once_per_epoch_with_a_separator_before_each_document(labels: Path) -> None:
    corpus = find_annotations(str(labels)).corpus()
    expected = sorted([*corpus.tokens_N.tolist(), *[SEPARATOR] * DOCUMENTS])
    for at_a_time in (None, 60):
        documents = read(labels, at_a_time=at_a_time)
        blocks, found, done = documents.blocks(), list[int](), 0
        while done < DOCUMENTS:
            block = next(blocks)
            done += block.documents
            real_WT = block.windows.document_T != PADDING
            real_WT[1:, 0] = False
            found += block.windows.input_ids_T[real_WT].tolist()
        assert done == DOCUMENTS and sorted(found) == expected


def test_blocks_exceed_their_size_by_less_than_a_document(labels: Path) -> None:
    blocks = [(block.documents, block.windows) for block in islice(read(labels, at_a_time=60).blocks(), 40)]
    longest = max(find_annotations(str(labels)).corpus().by_document(np.zeros(10_000)), key=len)
    for documents, windows in blocks:
        assert (windows.document_T != PADDING).sum() <= 60 + len(longest) + documents + len(windows.document_T)
    ends = np.cumsum([documents for documents, _ in blocks])
    assert {DOCUMENTS, 2 * DOCUMENTS} <= {*ends.tolist()}


@pytest.mark.parametrize("at_a_time", [None, 60, 1])
def test_batches_resume_from_every_position(labels: Path, at_a_time: int | None) -> None:
    batches = labelled_batches(read(labels, at_a_time=at_a_time), 40, seed=1)
    states, found = [json.dumps(batches.state_dict())], list[Batch]()
    for batch in islice(batches, 90):
        found.append(batch)
        states.append(json.dumps(batches.state_dict()))
    assert len(set(states)) == 91
    resumed = labelled_batches(read(labels, at_a_time=at_a_time), 40, seed=1)
    for place in range(0, 90, 7):
        resumed.load_state_dict(json.loads(states[place]))
        following = tensors(list(islice(resumed, 3)))
        assert all(map(torch.equal, following, tensors(found[place : place + 3])))


def test_resuming_reads_only_one_block(labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def batches() -> Resumable[Batch]:
        return labelled_batches(read(labels, at_a_time=60), 40, seed=1)

    stopped, starts = batches(), list[int]()
    while stopped.position.documents < DOCUMENTS + 20:
        next(stopped)
    stopped.close()  # documents that it reads ahead are not noted

    def noting(file: File, start: int, *others: Any) -> Iterator[pa.RecordBatch]:
        starts.append(start)
        return read_labelled(file, start, *others)

    resumed = batches()
    resumed.load_state_dict(stopped.state_dict())
    monkeypatch.setattr("pipeline.data.annotated.read_labelled", noting)
    next(resumed)
    assert starts[0] == stopped.position.documents - DOCUMENTS - 15  # in the second of two shards


def test_shuffled_labels_are_shuffled_the_same_each_time(labels: Path) -> None:
    plain, *shuffled = (read(labels, shuffled=seed).whole.windows.entropy_T for seed in (None, 4, 4, 5))
    assert not np.array_equal(shuffled[0], plain, equal_nan=True)
    assert np.array_equal(shuffled[0], shuffled[1], equal_nan=True)
    assert not np.array_equal(shuffled[0], shuffled[2], equal_nan=True)
    np.testing.assert_array_equal(np.isnan(shuffled[0]), np.isnan(plain))
    assert sorted(shuffled[0][~np.isnan(plain)]) == sorted(plain[~np.isnan(plain)])


def test_having_nothing_to_train_on_is_an_error(tmp_path: Path) -> None:
    labels = write_annotated(tmp_path, [[], []], [[], []], vocabulary=97, tokenizer_sha256=None)
    dataset = find_annotations(str(labels))
    unseparated = CutWithOverlap(length=17)
    for at_a_time in (None, 1):
        documents = LabelledDocuments(dataset, ModelTokens.of(dataset, None), unseparated, 0, 2, at_a_time)
        with pytest.raises(ValueError, match="there is nothing to train on: every document"):
            documents.labels()
        with pytest.raises(ValueError, match="there is nothing to train on: every document"):
            next(labelled_batches(documents, 40, seed=0))
    with pytest.raises(ValueError, match="the 2 documents held out are empty"):
        documents.held_out()


def test_labels_move_to_the_tokens_of_another_tokenizer(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(SHIPPED / "tokenizer")
    documents = encode(tokenizer, sample_texts(3, characters=300))
    labels = write_annotated(
        tmp_path / "labels", [ids.tolist() for ids in documents], [[1.0] * len(ids) for ids in documents]
    )
    with pytest.raises(ValueError, match="these documents came as tokens"):
        ModelTokens.of(find_annotations(str(labels)), SHIPPED / "tokenizer")
    copy_tokenizer(SHIPPED / "tokenizer", labels / "tokenizer" / "exact")
    dataset = find_annotations(str(labels))
    moved = ModelTokens.of(dataset, SHIPPED / "tokenizer")
    assert moved.moved and moved.vocabulary == 8192
    packing = CutWithOverlap(length=2000, separator=moved.separator)
    windows = LabelledDocuments(dataset, moved, packing, 0, 3).whole.windows
    assert (windows.document_T != PADDING).sum() == 3 + sum(map(len, documents))
    np.testing.assert_allclose(windows.entropy_T[~np.isnan(windows.entropy_T)], 1.0, atol=1e-6)
