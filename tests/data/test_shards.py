"""Annotated shards: the content of their rows, and its storage in Parquet."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import shards
from pipeline.data.atomic import write_text
from pipeline.data.shards import annotated_rows, write_shard
from schemas.annotations import PROVENANCE_KEY, Provenance, annotated_schema
from tests import builders

SOURCE = pa.schema([("text", pa.string()), ("id", pa.string()), ("score", pa.float64())])
PROVENANCE = replace(
    builders.PROVENANCE,
    method="second-order",
    share=0.5,
    source=("a.parquet", "b é.parquet"),
    source_rows=3,
    source_seen_by_estimator="unknown",
)
NATS = st.floats(-8, 40, width=32) | st.just(math.nan)
DOCUMENTS = st.lists(st.lists(st.tuples(st.integers(0, 99), NATS, NATS), max_size=6), max_size=5)
Documents = Sequence[Sequence[tuple[int, float, float]]]


def annotated(documents: Documents, provenance: Provenance = PROVENANCE) -> pa.Table:
    rows = [{"text": "x" * index, "id": f"row {index}", "score": index / 3} for index in range(len(documents))]
    tokens = [np.array([token for token, _, _ in document], dtype=np.int32) for document in documents]
    names = ("entropy", "expected_entropy")
    entropies = {
        name: [np.array([labels[column] for labels in document], dtype=np.float32) for document in documents]
        for column, name in enumerate(names, start=1)
    }
    source = pa.RecordBatch.from_pylist(rows, schema=SOURCE)
    return annotated_rows(source, tokens, entropies, annotated_schema(SOURCE, provenance))


def written(path: Path, *tables: pa.Table) -> pq.ParquetFile:
    write_shard(path, tables, tables[0].schema)
    return pq.ParquetFile(path)


def rounded(nats: float) -> float | None:
    return None if math.isnan(nats) else round(nats * 128) / 128


@settings(max_examples=50, deadline=None)
@given(DOCUMENTS)
def test_rows_hold_tokens_and_rounded_labels(tmp_path_factory: pytest.TempPathFactory, documents: Documents) -> None:
    path = tmp_path_factory.getbasetemp() / "rounded" / "shard.parquet"
    rows = written(path, annotated(documents)).read().to_pylist()
    assert [row["input_ids"] for row in rows] == [[token for token, _, _ in document] for document in documents]
    assert [row["entropy"] for row in rows] == [[rounded(nats) for _, nats, _ in document] for document in documents]
    assert [row["expected_entropy"] for row in rows] == [[rounded(e) for _, _, e in document] for document in documents]


@settings(max_examples=50, deadline=None)
@given(DOCUMENTS)
def test_scalars_are_computed_from_the_stored_lists(documents: Documents) -> None:
    for row in annotated(documents).to_pylist():
        nats = [value for value in row["entropy"] if value is not None]
        assert row["num_tokens"] == len(row["input_ids"])
        assert row["mean_entropy"] == (np.float32(math.fsum(nats) / len(nats)) if nats else None)


def test_a_document_without_labels_has_no_mean() -> None:
    table = annotated([[], [(1, math.nan, 1.0)], [(1, 2.0, math.nan), (2, math.nan, math.nan)]])
    assert table.column("mean_entropy").to_pylist() == [None, None, 2.0]


@pytest.mark.parametrize("keep_text", [False, True])
def test_columns_of_the_source_pass_through(tmp_path: Path, keep_text: bool) -> None:
    table = annotated([[(1, 1.0, 1.0)], [], []], replace(PROVENANCE, keep_text=keep_text))
    read = written(tmp_path / "shard.parquet", table).read()
    passed = ["text", "id", "score"] if keep_text else ["id", "score"]
    assert read.column_names[: len(passed)] == passed and ("text" in read.column_names) == keep_text
    assert read.column("id").to_pylist() == ["row 0", "row 1", "row 2"]
    assert read.column("score").to_pylist() == [0.0, 1 / 3, 2 / 3]


def test_only_a_second_order_model_has_expectations() -> None:
    assert "expected_entropy" in annotated_schema(SOURCE, PROVENANCE).names
    assert "expected_entropy" not in annotated_schema(SOURCE, replace(PROVENANCE, method="exact")).names


@pytest.mark.parametrize("name", ["entropy", "num_tokens", "mean_entropy", "expected_entropy"])
def test_a_source_column_with_the_name_of_ours_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"columns that annotation writes: {name}; rename"):
        annotated_schema(SOURCE.append(pa.field(name, pa.int8())), PROVENANCE)


def test_provenance_is_read_back_from_the_file(tmp_path: Path) -> None:
    file = written(tmp_path / "shard.parquet", annotated([[(1, 1.0, 1.0)]]))
    assert Provenance.from_json(file.schema_arrow.metadata[PROVENANCE_KEY].decode()) == PROVENANCE


def test_labels_have_a_dictionary_and_tokens_have_none(tmp_path: Path) -> None:
    documents = [[(token % 100, token % 7, token % 5) for token in range(200)] for _ in range(50)]
    group = written(tmp_path / "shard.parquet", annotated(documents)).metadata.row_group(0)
    chunks = {group.column(index).path_in_schema.split(".")[0]: group.column(index) for index in range(7)}
    for name in ("entropy", "expected_entropy"):
        assert chunks[name].has_dictionary_page and "RLE_DICTIONARY" in chunks[name].encodings
    assert not chunks["input_ids"].has_dictionary_page and "RLE_DICTIONARY" not in chunks["input_ids"].encodings
    assert all(chunk.compression == "ZSTD" for chunk in chunks.values())
    assert all(chunk.has_offset_index and chunk.has_column_index for chunk in chunks.values())


def test_the_digest_is_that_of_the_file_and_no_other_file_is_left(tmp_path: Path) -> None:
    path = tmp_path / "data" / "shard.parquet"
    table = annotated([[(1, 1.0, 1.0)]])
    assert write_shard(path, [table], table.schema) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [file.name for file in path.parent.iterdir()] == ["shard.parquet"]


def test_an_interrupted_shard_does_not_get_its_name(tmp_path: Path) -> None:
    table = annotated([[(1, 1.0, 1.0)]])

    def interrupted() -> Iterator[pa.Table]:
        yield table
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "shard.parquet", interrupted(), table.schema)
    assert not (tmp_path / "shard.parquet").exists()


def test_row_groups_stay_within_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [annotated([[(index, 1.0, 1.0)] * 50]) for index in range(7)]
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 2 * tables[0].nbytes)
    file = written(tmp_path / "shard.parquet", *tables)
    assert [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] == [2, 2, 2, 1]
    assert file.read().equals(pa.concat_tables(tables))


def test_the_same_rows_make_the_same_file(tmp_path: Path) -> None:
    table = annotated([[(1, 1.0, 1.0)] * 20, []])
    first, second = (write_shard(tmp_path / name, [table], table.schema) for name in ("first", "second"))
    assert first == second


def test_a_small_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for text in ("a longer text", "é"):
        write_text(tmp_path / "notes" / "a.txt", text)
    assert [(file.name, file.read_text(encoding="utf-8")) for file in (tmp_path / "notes").iterdir()] == [
        ("a.txt", "é")
    ]
