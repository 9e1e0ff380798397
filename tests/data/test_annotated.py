"""Reading an annotated dataset back as a corpus."""

import math
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.annotated import find_annotations
from schemas.layout import shard_name
from tests.annotated import write_annotated
from tests.builders import PROVENANCE

TOKENS = [[3, 1, 4], [], [1, 5, 9, 2], [6]]
LABELS = [[0.5, math.nan, 2.0], [], [-0.25, 1.0, math.nan, math.nan], [8.0]]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_annotated(tmp_path, TOKENS, LABELS, shards=2)


def test_shards_read_back_as_one_corpus_in_order(dataset: Path) -> None:
    corpus = find_annotations(str(dataset)).corpus()
    assert corpus.offsets.tolist() == [0, 3, 3, 7, 8]
    assert corpus.tokens_N.tolist() == [*chain(*TOKENS)]
    assert corpus.labels_N is not None and corpus.labels_N.dtype == np.float32
    np.testing.assert_array_equal(corpus.labels_N, np.array([*chain(*LABELS)], dtype=np.float32))


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 9])
def test_a_limit_keeps_the_first_rows(dataset: Path, limit: int) -> None:
    corpus = find_annotations(str(dataset)).corpus(stop=limit)
    assert len(corpus) == min(limit, 4)
    assert corpus.tokens_N.tolist() == [*chain(*TOKENS[:limit])]
    assert corpus.labels_N is not None
    np.testing.assert_array_equal(corpus.labels_N, np.array([*chain(*LABELS[:limit])], dtype=np.float32))


def test_provenance_is_read_from_the_shards(dataset: Path) -> None:
    assert find_annotations(str(dataset)).provenance == PROVENANCE


def test_the_tokenizer_is_found_where_there_is_one(dataset: Path) -> None:
    assert find_annotations(str(dataset)).tokenizer is None
    (dataset / "tokenizer" / "exact").mkdir(parents=True)
    (dataset / "tokenizer" / "exact" / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert find_annotations(str(dataset)).tokenizer == dataset / "tokenizer" / "exact"


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not an annotated dataset"):
        find_annotations(str(tmp_path))


@pytest.mark.parametrize("columns", [["text"], ["input_ids"], ["input_ids", "entropy"]])
def test_parquet_without_labels_or_provenance_is_refused(tmp_path: Path, columns: list[str]) -> None:
    (tmp_path / "data" / "exact").mkdir(parents=True)
    pq.write_table(pa.table({name: [[1]] for name in columns}), tmp_path / "data" / "exact" / shard_name(0, 1))
    with pytest.raises(ValueError, match="lacks labels or their provenance"):
        find_annotations(str(tmp_path))


def test_a_dataset_may_lie_in_a_folder_named_data(tmp_path: Path) -> None:
    folder = write_annotated(tmp_path / "data" / "annotated", [[1, 2]], [[0.5, 1.0]])
    for named in (folder, folder / "data" / "exact"):
        np.testing.assert_array_equal(find_annotations(str(named)).corpus().labels_N, [0.5, 1.0])


@pytest.mark.parametrize("label", [math.inf, -math.inf])
def test_an_infinite_label_is_refused(tmp_path: Path, label: float) -> None:
    write_annotated(tmp_path, [[1, 2]], [[label, 1.0]])
    with pytest.raises(ValueError, match="a label in `entropy` that is not finite"):
        find_annotations(str(tmp_path)).corpus()


def test_a_number_of_labels_other_than_that_of_tokens_is_refused(tmp_path: Path) -> None:
    write_annotated(tmp_path, [[1, 2], [3]], [[1.0], [1.0]])
    with pytest.raises(ValueError, match=r"row 0 .*1 labels in `entropy` for 2 tokens"):
        find_annotations(str(tmp_path)).corpus()


def test_label_counts_that_match_only_in_total_are_refused(tmp_path: Path) -> None:
    write_annotated(tmp_path, [[1, 2], [3]], [[1.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match=r"row 0 .*1 labels in `entropy` for 2 tokens"):
        find_annotations(str(tmp_path)).corpus()


def test_an_unfinished_run_is_refused(dataset: Path) -> None:
    (dataset / "data" / "exact" / shard_name(0, 2)).unlink()
    with pytest.raises(ValueError, match="does not hold one finished run"):
        find_annotations(str(dataset))


def test_a_huge_number_of_shards_in_a_file_name_costs_no_time(tmp_path: Path) -> None:
    write_annotated(tmp_path, TOKENS, LABELS)
    data = tmp_path / "data" / "exact"
    (data / shard_name(0, 1)).rename(data / Path(shard_name(0, 10**9)).name)
    started = time.process_time()
    with pytest.raises(ValueError, match="does not hold one finished run"):
        find_annotations(str(tmp_path))
    assert time.process_time() - started < 10  # a set of that many names would take minutes and all memory


def test_a_subset_is_selected_by_its_folder(dataset: Path) -> None:
    (dataset / "data" / "exact").rename(dataset / "data" / "other")
    write_annotated(dataset, TOKENS[:1], LABELS[:1])
    with pytest.raises(ValueError, match=r"has subsets exact, other; name one, as in .*/data/exact"):
        find_annotations(str(dataset))
    sizes = [len(find_annotations(f"{dataset}/data/{name}").corpus()) for name in ("exact", "other")]
    assert sizes == [1, 4]


def test_shards_in_groups_are_found(tmp_path: Path) -> None:
    write_annotated(tmp_path, TOKENS, LABELS, shards=2)
    data = tmp_path / "data" / "exact"
    (data / "000").mkdir()
    for shard in data.glob("*.parquet"):
        shard.rename(data / "000" / shard.name)
    with pytest.raises(ValueError, match="does not hold one finished run"):  # two shards are not stored in groups
        find_annotations(str(tmp_path))
