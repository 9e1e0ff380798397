"""Documents joined to one array in memory: their slices, held-out documents and folds."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from pipeline.data.corpus import Corpus, fold_of, read_corpus
from pipeline.data.documents import Column
from pipeline.data.files import find_files

LENGTHS = st.lists(st.integers(0, 6), max_size=8)


def token_arrays(lengths: list[int]) -> list[np.ndarray]:
    return [np.arange(10 * index, 10 * index + length, dtype=np.int32) for index, length in enumerate(lengths)]


def labelled(lengths: list[int]) -> Corpus:
    tokens = token_arrays(lengths)
    return Corpus.of(tokens, [ids.astype(np.float32) / 2 for ids in tokens], [3 * length for length in lengths])


def parts(corpus: Corpus) -> list[list[int]]:
    borders = zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True)
    return [corpus.tokens_N[start:stop].tolist() for start, stop in borders]


@settings(max_examples=50, deadline=None)
@given(LENGTHS)
def test_documents_lie_end_to_end(lengths: list[int]) -> None:
    corpus = labelled(lengths)
    assert len(corpus) == len(lengths)
    assert parts(corpus) == [ids.tolist() for ids in token_arrays(lengths)]
    assert corpus.labels_N is not None and corpus.labels_N.tolist() == (corpus.tokens_N / 2).tolist()
    assert corpus.tokens_N.dtype == np.int32 and corpus.labels_N.dtype == np.float32


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(0, 8), st.integers(0, 8))
def test_a_slice_holds_the_same_documents(lengths: list[int], first: int, second: int) -> None:
    start, stop = sorted(min(bound, len(lengths)) for bound in (first, second))
    part = labelled(lengths).documents(start, stop)
    assert parts(part) == [ids.tolist() for ids in token_arrays(lengths)[start:stop]]
    assert part.labels_N is not None and part.labels_N.tolist() == (part.tokens_N / 2).tolist()
    assert part.text_bytes_M is not None and part.text_bytes_M.tolist() == [3 * n for n in lengths[start:stop]]


def test_a_slice_of_bare_tokens_has_no_labels() -> None:
    part = Corpus.of(token_arrays([2, 3])).documents(1, 2)
    assert part.labels_N is None and part.text_bytes_M is None and part.total_bytes is None


@pytest.mark.parametrize(
    ("documents", "asked", "expected"), [(10, 3, 3), (2, None, 1), (39, None, 1), (100, None, 5), (20_000, None, 500)]
)
def test_the_last_documents_are_held_out(documents: int, asked: int | None, expected: int) -> None:
    corpus = Corpus.of([np.array([index], dtype=np.int32) for index in range(documents)])
    seen, held_out = corpus.held_out(asked)
    assert seen.tokens_N.tolist() == list(range(documents - expected))
    assert held_out.tokens_N.tolist() == list(range(documents - expected, documents))


@pytest.mark.parametrize(("documents", "asked"), [(0, None), (1, None), (5, 0), (5, -1), (5, 5), (5, 6)])
def test_holding_out_none_or_all_is_refused(documents: int, asked: int | None) -> None:
    with pytest.raises(ValueError, match=f"of {documents} documents and train on the others; add"):
        labelled([1] * documents).held_out(asked)


def test_tokens_and_bytes_are_counted_while_reading(tmp_path: Path) -> None:
    alphabet = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**alphabet, "th": 256}, merges=[("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for index, texts in enumerate((["the", None, "é"], ["thth", "x"])):
        pq.write_table(pa.table({"text": texts}), tmp_path / f"{index}.parquet")
    corpus = read_corpus(find_files([str(tmp_path)]), column=Column(), tokenizer=tokenizer, vocabulary=257, limit=4)
    assert [len(ids) for ids in parts(corpus)] == [2, 0, 2, 2]
    assert corpus.text_bytes_M is not None and corpus.text_bytes_M.tolist() == [3, 0, 2, 4]
    assert len(corpus.tokens_N) == 6 and corpus.total_bytes == 9


def test_documents_that_came_as_tokens_have_no_byte_count(tmp_path: Path) -> None:
    pq.write_table(pa.table({"input_ids": [[1, 2], [], [3]]}), tmp_path / "a.parquet")
    column = Column("input_ids", tokenized=True)
    corpus = read_corpus(find_files([str(tmp_path)]), column=column, tokenizer=None, vocabulary=4)
    assert parts(corpus) == [[1, 2], [], [3]] and corpus.total_bytes is None


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(2, 5))
def test_folds_partition_the_documents(lengths: list[int], folds: int) -> None:
    corpus = labelled(lengths)
    fold_M = [fold_of(ids, folds) for ids in token_arrays(lengths)]
    if len(set(fold_M)) < folds:
        with pytest.raises(ValueError, match="too few for `folds`"):
            corpus.leave_one_fold_out(folds)
        return
    for fold, part in enumerate(corpus.leave_one_fold_out(folds)):
        kept = [ids for ids, own in zip(token_arrays(lengths), fold_M, strict=True) if own != fold]
        assert parts(part) == [ids.tolist() for ids in kept]
        assert part.labels_N is not None and part.labels_N.tolist() == (part.tokens_N / 2).tolist()
        assert part.text_bytes_M is not None and part.text_bytes_M.tolist() == [3 * len(ids) for ids in kept]


def test_a_copy_of_a_document_shares_its_fold_whatever_its_type_or_place() -> None:
    ids = np.arange(50)
    assert len({fold_of(copy, 1000) for copy in (ids, ids.astype(np.int32), np.arange(100)[:50], ids.copy())}) == 1
    assert 150 < sum(fold_of(np.array([number]), 3) == 0 for number in range(600)) < 250


def test_one_fold_is_everything() -> None:
    corpus = labelled([2, 3])
    assert corpus.leave_one_fold_out(1) == [corpus]
