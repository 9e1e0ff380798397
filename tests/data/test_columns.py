"""Merged columns of several files keep the features of `datasets`, whether or not `datasets` is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Array2D, ClassLabel, Features, Json, List, Value

from pipeline.data.columns import FileColumns, is_json, merged_schema, plain_field, plain_schema

FEATURES = Features(
    text=Value("string"),
    kind=ClassLabel(names=["ham", "spam"]),
    shape=Array2D((2, 2), "float32"),
    inside={"shapes": List(Array2D((None, 2), "int32")), "json": Json()},
)
ROWS = {
    "text": ["a document", None],
    "kind": [1, None],
    "shape": [[[1, 2], [3, 4]], None],
    "inside": [{"shapes": [[[1, 2]], None], "json": '{"a": 1}'}, None],
}
# Reads a file's rows, as a worker does, and writes them again.
COPY = """
import sys, hashlib
if sys.argv[3] == "imported": import datasets
import pyarrow as pa
from pipeline.data.documents import Column, inspect_file, read_rows, unified
from pipeline.data.files import find_files
from pipeline.data.shards import write_shard
from pathlib import Path
(file,) = find_files([sys.argv[1]])
schema = unified([inspect_file(file, Column())], [file], Column())
rows = pa.Table.from_batches(read_rows(file, 0, 9, schema, Column()))
write_shard(Path(sys.argv[2]), [rows], schema)
assert ("datasets" in sys.modules) == (sys.argv[3] == "imported")
"""


def stored_storage() -> pa.Table:
    """Make a table of ROWS, in which a column with an extension type of `datasets` has the storage type instead."""
    stored = plain_schema(FEATURES.arrow_schema, "")
    columns = [pa.array(ROWS[field.name], field.type) for field in stored]
    return pa.Table.from_arrays(columns, schema=stored)


def write_source(file: Path) -> None:
    """Write ROWS to a file as `datasets` does, so that its schema has the extension types of `datasets`."""
    pq.write_table(stored_storage(), file)
    assert pq.read_schema(file) == FEATURES.arrow_schema
    assert Features.from_arrow_schema(pq.read_schema(file)) == FEATURES


def test_copies_are_identical_with_and_without_datasets_imported(tmp_path: Path) -> None:
    write_source(tmp_path / "in.parquet")
    copies = [tmp_path / name for name in ("imported", "alone")]
    for copy in copies:
        subprocess.run([sys.executable, "-c", COPY, str(tmp_path / "in.parquet"), str(copy), copy.name], check=True)
    assert copies[0].read_bytes() == copies[1].read_bytes()
    schema = pq.read_schema(copies[0])
    assert schema == FEATURES.arrow_schema and Features.from_arrow_schema(schema) == FEATURES
    assert pq.read_table(copies[0]).cast(stored_storage().schema).to_pydict() == stored_storage().to_pydict()


def test_a_plain_schema_is_the_same_from_either_form() -> None:
    schema = FEATURES.arrow_schema
    plain = plain_schema(schema, "")
    assert plain_schema(plain, "").equals(plain, check_metadata=True)
    assert plain.field("shape").type == pa.list_(pa.list_(pa.float32()))
    assert is_json(plain.field("inside").type.field("json")) and not is_json(plain.field("text"))
    # If read again with `datasets` imported, the schema has the extension types again.
    assert pa.ipc.read_schema(plain.serialize()).equals(schema)


@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (pa.list_(pa.string_view(), 2), pa.list_(pa.string(), 2)),
        (pa.large_list(pa.binary_view()), pa.large_list(pa.binary())),
        (pa.map_(pa.string_view(), pa.string_view()), pa.map_(pa.string(), pa.string())),
        (pa.dictionary(pa.int8(), pa.string_view()), pa.dictionary(pa.int8(), pa.string())),
        (pa.list_view(pa.int8()), pa.list_(pa.int8())),
        (pa.struct([pa.field("a", pa.json_(), nullable=False)]), pa.struct([("a", pa.string())])),
        (pa.timestamp("us", "Europe/Berlin"), pa.timestamp("us", "Europe/Berlin")),
        (pa.decimal128(9, 2), pa.decimal128(9, 2)),
    ],
)
def test_nested_types_become_plain_at_any_depth(kind: pa.DataType, plain: pa.DataType) -> None:
    field = plain_field(pa.field("x", kind, nullable=False, metadata={"PARQUET:field_id": "1"}))
    assert field.equals(pa.field("x", plain)) and not field.metadata
    outer = plain_field(pa.field("x", pa.list_(pa.struct([pa.field("y", kind, nullable=False)]))))
    assert outer.type == pa.list_(pa.struct([("y", plain)]))


def part(place: str, **features: object) -> FileColumns:
    return FileColumns(plain_schema(Features(features).arrow_schema, place), place)


def test_features_are_taken_from_any_file_that_declares_them() -> None:
    label = ClassLabel(names=["a", "b"])
    parts = [part("a", text=Value("string"), kind=Value("int64")), part("b", kind=label, text=Value("string"))]
    bare = FileColumns(parts[0].schema.remove_metadata(), "a")
    merged = merged_schema([bare, parts[1]], {"text", "kind"}, "text")
    assert Features.from_arrow_schema(merged) == Features(text=Value("string"), kind=label)
    others = [part("c", text=Value("string"), kind=ClassLabel(names=["b", "a"])), parts[0]]
    for other in others:
        with pytest.raises(ValueError, match=rf"column `kind` of {other.url} differently from that of b, for example"):
            merged_schema([parts[1], other], {"text", "kind"}, "text")
        assert merged_schema([parts[1], other], {"text"}, "text").names == ["text"]


def test_arrays_of_different_shapes_are_incompatible() -> None:
    parts = [part(name, text=Value("string"), x=Array2D((rows, 2), "int8")) for name, rows in (("a", 1), ("b", 2))]
    with pytest.raises(ValueError, match=r"`x` of b holds .*Array2DExtensionType\), that of a .*Array2D.*; annotate"):
        merged_schema(parts, {"text", "x"}, "text")
    inside = [part(name, text=Value("string"), x={"y": Array2D((n, 2), "int8")}) for name, n in (("a", 1), ("b", 2))]
    with pytest.raises(ValueError, match="`x` of b holds"):
        merged_schema(inside, {"text", "x"}, "text")


def test_other_metadata_is_dropped() -> None:
    schema = pa.schema([("text", pa.string())], metadata={"pandas": json.dumps({"columns": []}), "other": "x"})
    assert not plain_schema(schema, "").metadata
