"""An annotated dataset as a language model reads it: every label stays at its token."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.annotated import find_annotations
from pipeline.data.tokenizer import encode, load_tokenizer
from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
from pipeline.training.batches import Windowing, endless_batches
from pipeline.training.data import ModelTokens, PackedDocuments
from tests.annotated import write_annotated
from tests.builders import sample_texts


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Documents of token ids, the label of each an eighth of its id; every seventh token has none."""
    random = np.random.default_rng(0)
    tokens = [random.integers(97, size=random.integers(0, 40)).tolist() for _ in range(30)]
    nats = [[np.nan if place % 7 == 3 else token / 8 for place, token in enumerate(document)] for document in tokens]
    return write_annotated(tmp_path / "labels", tokens, nats, shards=2, vocabulary=97, tokenizer_sha256=None)


@pytest.mark.parametrize("at_a_time", [None, 50, 1])
def test_every_label_stays_at_its_token_on_the_way_to_a_batch(labels: Path, at_a_time: int | None) -> None:
    dataset = find_annotations(str(labels))
    documents = PackedDocuments(dataset, ModelTokens.of(dataset, None), 3, 28, at_a_time)
    seen = 0
    for batch in islice(endless_batches(documents, Windowing(17, 120, overlap=1), seed=0), 60):
        assert batch.labels_BT is not None
        labelled_BT = ~batch.labels_BT.isnan()
        assert (batch.labels_BT == batch.input_ids_BT / 8)[labelled_BT].all()
        assert not labelled_BT[~batch.real_BT].any() and not labelled_BT[batch.input_ids_BT == 97].any()
        seen += int(labelled_BT.sum())
    assert seen > 500


def test_documents_are_the_same_again_each_with_a_separator_before_it(labels: Path) -> None:
    dataset = find_annotations(str(labels))
    tokens = ModelTokens.of(dataset, None)
    pieces = PackedDocuments(dataset, tokens, 0, 30, at_a_time=60)
    once, again = (np.concatenate([corpus.tokens_N for corpus in pieces]) for _ in range(2))
    whole = PackedDocuments(dataset, tokens, 0, 30).whole()
    assert np.array_equal(once, again) and np.array_equal(once, whole.tokens_N)
    assert (whole.tokens_N == 97).sum() == 30 and len(whole.tokens_N) == 30 + len(dataset.corpus().tokens_N)


def test_shuffled_labels_are_shuffled_the_same_each_time(labels: Path) -> None:
    dataset = find_annotations(str(labels))
    tokens = ModelTokens.of(dataset, None)
    (plain,) = PackedDocuments(dataset, tokens, 0, 30)
    shuffled = PackedDocuments(dataset, tokens, 0, 30, at_a_time=10**6, shuffled=4)
    (one,), (other,) = shuffled, shuffled
    assert one.labels_N is not None and other.labels_N is not None and plain.labels_N is not None
    np.testing.assert_array_equal(one.labels_N, other.labels_N)
    assert not np.array_equal(one.labels_N, plain.labels_N, equal_nan=True)
    np.testing.assert_array_equal(np.isnan(one.labels_N), np.isnan(plain.labels_N))
    assert sorted(one.given_labels) == sorted(plain.given_labels)


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
    whole = PackedDocuments(dataset, moved, 0, 3).whole()
    assert len(whole.tokens_N) == 3 + sum(map(len, documents))
    np.testing.assert_allclose(whole.given_labels, 1.0, atol=1e-6)
