"""Samples spread over a dataset, and rows read with their labels."""

import re
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.annotated import find_annotations
from pipeline.report.sampling import RUNS, LabelledSource, sampled_rows
from tests.annotated import write_annotated
from tests.labelled import LABELS, TOKENS, write_labelled
from tests.report.labelled_texts import HOSTILE, TEXTS, write_texts


@settings(max_examples=100, deadline=None)
@given(rows=st.integers(0, 10**9), wanted=st.integers(1, 3000), seed=st.integers(0, 99))
def test_a_sample_has_as_many_rows_as_are_wanted_each_once_and_in_order(rows: int, wanted: int, seed: int) -> None:
    runs = sampled_rows(rows, wanted, seed)
    sampled = [*chain.from_iterable(runs)]
    assert len(sampled) == min(rows, wanted) and len(runs) <= RUNS
    assert sampled == sorted(set(sampled)) and all(0 <= row < rows for row in sampled)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 99))
def test_a_sample_reaches_every_part_of_a_large_dataset(seed: int) -> None:
    runs = sampled_rows(1_000_000, 2000, seed)
    assert [run.start * RUNS // 1_000_000 for run in runs] == [*range(RUNS)]


def test_another_seed_draws_another_sample() -> None:
    assert sampled_rows(10_000, 100, 0) == sampled_rows(10_000, 100, 0) != sampled_rows(10_000, 100, 1)


@pytest.mark.parametrize("rows", [range(0, 23), range(7, 9), range(5, 20), range(0, 0)])
def test_rows_are_read_across_shards_with_their_labels(tmp_path: Path, rows: range) -> None:
    documents = list(LabelledSource(write_labelled(tmp_path)).documents(rows))
    assert [document.row for document in documents] == [*rows]
    for row, document in zip(rows, documents, strict=True):
        assert document.tokens_N.tolist() == TOKENS[row]
        np.testing.assert_array_equal(document.labels_SN, np.array([LABELS[row]], np.float32))


def test_both_label_columns_and_the_sources_are_read(tmp_path: Path) -> None:
    source = LabelledSource(find_annotations(str(write_texts(tmp_path, shards=2))))
    assert source.series == ["entropy", "expected entropy"] and source.source_columns == ["id", "dump"]
    documents = list(source.documents(range(len(TEXTS)), ["dump"]))
    assert [document.source["dump"] for document in documents] == ["a", HOSTILE] * 3
    for document in documents:
        first, second, difference = document.measured(0, document.size)
        np.testing.assert_array_equal(difference, first - second)


def test_two_datasets_of_the_same_documents_are_read_together(tmp_path: Path) -> None:
    one = find_annotations(str(write_annotated(tmp_path / "one", TOKENS, LABELS, shards=3)))
    doubled = [[2 * label for label in labels] for labels in LABELS]
    other = find_annotations(str(write_annotated(tmp_path / "other", TOKENS, doubled)))
    source = LabelledSource(one, other)
    assert source.series == ["one/exact", "other/exact"]
    for row, document in zip(range(3, 20), source.documents(range(3, 20)), strict=True):
        np.testing.assert_array_equal(document.labels_SN, np.array([LABELS[row], doubled[row]], np.float32))


def test_two_datasets_of_one_name_are_told_apart_by_their_places(tmp_path: Path) -> None:
    one, other = (
        find_annotations(str(write_annotated(tmp_path / folder / "annotated", [[1]], [[0.0]]))) for folder in "ab"
    )
    assert LabelledSource(one, other).series == [one.source, other.source]


def test_datasets_of_other_documents_are_refused(tmp_path: Path) -> None:
    one = find_annotations(str(write_annotated(tmp_path / "one", [[1, 2], [3]], [[0, 0], [0]])))
    longer = find_annotations(str(write_annotated(tmp_path / "longer", [[1, 2]] * 3, [[0, 0]] * 3)))
    other = find_annotations(str(write_annotated(tmp_path / "other", [[1, 2], [4]], [[0, 0], [0]])))
    with pytest.raises(ValueError, match=r"one has 2 documents and .*longer 3; compare labels of the same documents"):
        LabelledSource(one, longer)
    with pytest.raises(ValueError, match=r"row 1 has other tokens in .*other than in .*one; compare .* and tokenizer"):
        list(LabelledSource(one, other).documents(range(2)))


@pytest.mark.parametrize("backward", [False, True])
def test_labels_of_another_tokenizer_are_refused_with_how_to_move_them(tmp_path: Path, backward: bool) -> None:
    bare = write_annotated(tmp_path / "bare", [[1, 2]], [[0, 0]], tokenizer_sha256=None)
    of_text, other_text = (write_texts(tmp_path / name, [text]) for name, text in (("text", "The cat"), ("other", "A")))
    pair = [find_annotations(str(dataset)) for dataset in (bare, of_text)]
    remedy = f"annotate those of {bare} again with --tokenizer {of_text}/tokenizer/second-order, which moves"
    with pytest.raises(ValueError, match=re.escape(remedy)):
        list(LabelledSource(*pair[:: -1 if backward else 1]).documents(range(1)))
    with pytest.raises(ValueError, match=r"other tokens in .*; compare labels of the same documents$"):
        list(LabelledSource(pair[1], find_annotations(str(other_text))).documents(range(1)))
