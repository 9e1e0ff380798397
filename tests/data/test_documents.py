"""Files of documents: inspected, read by any range of rows in bounded batches, and converted to tokens."""

import gzip
import json
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipeline.data.columns import is_json
from pipeline.data.documents import Column, document_tokens, inspect_file, iterate_rows, read_rows, unified
from pipeline.data.files import File, find_files
from tests.file_server import file_server

TEXT, IDS = Column(), Column("input_ids", tokenized=True)


def found(file: Path) -> File:
    return find_files([str(file)])[0]


def text_file(file: Path, texts: list[str | None], row_group: int = 2) -> File:
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), file, row_group_size=row_group)
    return found(file)


def json_file(file: Path, rows: list[Any]) -> File:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return found(file)


def read(file: File, column: Column = TEXT, start: int = 0, stop: int = 10**6) -> list[pa.RecordBatch]:
    return list(read_rows(file, start, stop, unified([inspect_file(file, column)], [file], column), column))


def texts_of(read: list[pa.RecordBatch]) -> list[str | None]:
    return [text for rows in read for text in rows.column("text").to_pylist()]


def byte_tokenizer() -> Tokenizer:
    alphabet = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.mark.parametrize("content", [b"", b"text", bytes(range(64)), b"PAR1" + bytes(64) + b"\x40\0\0\0PAR1"])
def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.parquet is not a readable Parquet file") as refusal:
        inspect_file(found(tmp_path / "broken.parquet"), TEXT)
    assert "\n" not in str(refusal.value)


def test_a_damaged_footer_is_refused_whatever_it_says(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "näme": ["b"]}), tmp_path / "a.parquet", store_schema=False)
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content.replace("näme".encode(), b"n\xff\xffme"))
    with pytest.raises(ValueError, match=r"a\.parquet is not a readable Parquet file: .*can't decode byte 0xff"):
        inspect_file(found(tmp_path / "a.parquet"), TEXT)


@pytest.mark.parametrize("column", [TEXT, IDS, Column("body")])
def test_a_file_without_the_column_is_refused(tmp_path: Path, column: Column) -> None:
    pq.write_table(pa.table({"other": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=f"has no column `{column.name}`; it has other"):
        inspect_file(found(tmp_path / "a.parquet"), column)
    keys: dict[str, Any] = {f"k{number}": 1 for number in range(22)}
    for rows, told in (
        ([{"other": 1}, {}], "has no column `{}`; it has other"),
        ([keys], "has no column `{}`; it has k0, .*, k19 and 2 more"),
        ([{}], "has no column `{}`; it has none"),
        ([{column.name: {}}, {column.name: None}], "holds an object in column `{}`, not "),
        ([{column.name: 5}], "holds a number in column `{}`, not "),
    ):
        file = json_file(tmp_path / "a.jsonl", rows)
        for look in (lambda file: inspect_file(file, column), lambda file: list(iterate_rows([file], column))):
            with pytest.raises(ValueError, match=rf"a\.jsonl {told.format(column.name)}") as refusal:
                look(file)
            assert ("`text_column`" in str(refusal.value)) == ("no column" in told and not column.tokenized)


@pytest.mark.parametrize("column", [TEXT, IDS])
def test_a_file_of_only_nulls_is_read_together_with_others(tmp_path: Path, column: Column) -> None:
    good = json_file(tmp_path / "0.jsonl", [{column.name: [1] if column.tokenized else "a"}])
    nulls = json_file(tmp_path / "1.jsonl", [{column.name: None}, {"other": 1}])
    pq.write_table(pa.table({column.name: pa.nulls(2)}), tmp_path / "2.parquet")
    pq.write_table(pa.table({column.name: pa.nulls(0)}), tmp_path / "3.parquet")
    empty = [found(tmp_path / name) for name in ("2.parquet", "3.parquet")]
    for file in (nulls, *empty):
        assert inspect_file(file, column).schema.field(column.name) == inspect_file(good, column).schema.field(0)
        assert all(rows.column(0).null_count == len(rows) for rows in iterate_rows([file], column))
        assert sum(map(len, read(file, column))) == inspect_file(file, column).rows
    assert sum(map(len, iterate_rows([good, nulls, *empty], column))) == 5


@pytest.mark.parametrize(
    ("column", "kind", "fits"),
    [
        (TEXT, pa.string(), True),
        (TEXT, pa.large_string(), True),
        (TEXT, pa.string_view(), True),
        (TEXT, pa.binary(), False),
        (TEXT, pa.dictionary(pa.int32(), pa.string()), False),
        (TEXT, pa.list_(pa.string()), False),
        (IDS, pa.list_(pa.int32()), True),
        (IDS, pa.large_list(pa.uint16()), True),
        (IDS, pa.list_(pa.float32()), False),
        (IDS, pa.int32(), False),
    ],
)
def test_a_column_of_another_type_is_refused(tmp_path: Path, column: Column, kind: pa.DataType, fits: bool) -> None:
    pq.write_table(pa.table({column.name: pa.array([None], kind)}), tmp_path / "a.parquet")
    file = found(tmp_path / "a.parquet")
    if fits:
        assert inspect_file(file, column).rows == 1 and sum(map(len, read(file, column))) == 1
    else:
        with pytest.raises(ValueError, match=f"column `{column.name}` of .* holds"):
            inspect_file(file, column)


def test_columns_with_the_same_name_are_refused(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array([1]), pa.array([2]), pa.array([3])]
    for names, passed in ((["text", "text", "a", "b"], []), (["text", "n", "n", "b"], None)):
        pq.write_table(pa.Table.from_arrays(columns, names=names), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=f"a.parquet has more than one column `{names[1]}`"):
            together(found(tmp_path / "a.parquet"), passed=passed)
    schema = together(found(tmp_path / "a.parquet"), passed=["b"])
    (rows,) = read_rows(found(tmp_path / "a.parquet"), 0, 9, schema, TEXT)
    assert rows.to_pylist() == [{"text": "a", "b": 3}]


def test_inspection_finds_rows_groups_columns_and_digest(tmp_path: Path) -> None:
    layouts = []
    for name, texts in (("a", ["x", "y", "z"]), ("b", ["x", "y", "z"]), ("a", ["x", "y", "zz"])):
        layouts.append(inspect_file(text_file(tmp_path / f"{name}.parquet", [*texts]), TEXT))
        assert layouts[-1].rows == 3 and layouts[-1].groups == (2, 1)
        assert layouts[-1].schema == pa.schema([("text", pa.string())]) and not layouts[-1].schema.metadata
    assert len({layout.sha256 for layout in layouts}) == 3
    lines = inspect_file(json_file(tmp_path / "a.jsonl", [{"text": "x", "n": 1}, {"text": None}]), TEXT)
    assert (lines.rows, lines.groups) == (2, (2,))
    assert lines.schema == pa.schema([("text", pa.string()), ("n", pa.int64())])
    empty = json_file(tmp_path / "b.jsonl", [])
    assert inspect_file(empty, TEXT).groups == () and read(empty) == []


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_many_short_documents_are_read_fast(tmp_path: Path, suffix: str) -> None:
    texts = [f"word{row % 100}" for row in range(100_000)]
    path = tmp_path / f"a.{suffix}"
    file = (
        text_file(path, [*texts], 10**6) if suffix == "parquet" else json_file(path, [{"text": text} for text in texts])
    )
    started = time.perf_counter()
    parts = read(file)
    assert time.perf_counter() - started < 10  # one second on an idle machine
    assert texts_of(parts) == texts
    assert len(parts) == -(-100_000 // 4096) or (suffix == "parquet" and len(parts) < 30)


def test_compressed_json_lines_read_like_plain_ones(tmp_path: Path) -> None:
    rows = [{"text": f"document {row}" * row, "n": row} for row in range(300)]
    plain = json_file(tmp_path / "a.jsonl", rows)
    content = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "b.ndjson.gz").write_bytes(gzip.compress(content[:999]) + gzip.compress(content[999:]))
    frames = [pa.compress(part, "zstd", asbytes=True) for part in (content[:999], content[999:])]
    (tmp_path / "c.json.zst").write_bytes(b"".join(frames))
    layout = inspect_file(plain, TEXT)
    for name in ("b.ndjson.gz", "c.json.zst"):
        file = found(tmp_path / name)
        assert inspect_file(file, TEXT) == layout
        assert read(file, start=17, stop=250) == read(plain, start=17, stop=250)
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ValueError, match=rf"{name} is not a readable JSON lines file: .*[Tt]runcated"):
            inspect_file(found(path), TEXT)
        with pytest.raises(ValueError, match=f"{name} is not a readable JSON lines file"):
            list(read_rows(found(path), 0, 300, layout.schema, TEXT))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_a_file_that_changed_or_disappeared_is_not_read(tmp_path: Path, name: str) -> None:
    write: Callable[[list[Any]], File] = {
        "a.parquet": lambda texts: text_file(tmp_path / name, texts),
        "a.jsonl": lambda texts: json_file(tmp_path / name, [{"text": text} for text in texts]),
    }[name]
    file = write(["a"])
    schema = inspect_file(file, TEXT).schema
    write(["a", "b"])
    with pytest.raises(ValueError, match=f"{name} has changed since"):
        list(read_rows(file, 0, 1, schema, TEXT))
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} has disappeared since"):
        list(read_rows(file, 0, 1, schema, TEXT))


def test_rows_are_read_over_the_web(tmp_path: Path) -> None:
    table = pa.table({"text": [f"document {row} " * 200 for row in range(1000)], "n": range(1000)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    with file_server({"/a.parquet": (tmp_path / "a.parquet").read_bytes(), "/b.parquet": b"no"}) as address:
        file, broken = find_files([f"{address}/a.parquet", f"{address}/b.parquet"])
        assert inspect_file(file, TEXT) == inspect_file(found(tmp_path / "a.parquet"), TEXT)
        assert pa.Table.from_batches(read(file, start=250, stop=701)).equals(table.slice(250, 451))
        with pytest.raises(ValueError, match=r"http.*b\.parquet is not a readable Parquet file"):
            inspect_file(broken, TEXT)


def test_json_lines_are_merged(tmp_path: Path) -> None:
    rows = [
        [{"text": "a", "n": 1, "gone": None, "x": 1}],
        [{"id": "b", "text": "b", "n": 0.5, "gone": None, "x": [2], "late": 3}],
        [],
    ]
    files = [json_file(tmp_path / f"{index}.jsonl", part) for index, part in enumerate(rows)]
    schema = unified([inspect_file(file, TEXT) for file in files], files, TEXT)
    types = {"text": "string", "n": "double", "gone": "null", "x": "string", "id": "string", "late": "int64"}
    assert {field.name: str(field.type) for field in schema} == types and schema.names == list(types)
    assert [field.name for field in schema if is_json(field)] == ["x"]
    read = [row for file in files for part in read_rows(file, 0, 9, schema, TEXT) for row in part.to_pylist()]
    empty = dict.fromkeys(types)
    assert read == [
        {**empty, "text": "a", "n": 1.0, "x": "1"},
        {**empty, "text": "b", "n": 0.5, "x": "[2]", "id": "b", "late": 3},
    ]


def together(*files: File, passed: list[str] | None = None, column: Column = TEXT) -> pa.Schema:
    return unified([inspect_file(file, column) for file in files], files, column, passed)


def table_file(file: Path, **columns: pa.Array) -> File:
    pq.write_table(pa.table(columns), file)
    return found(file)


def test_a_missing_column_is_named_with_compatible_columns(tmp_path: Path) -> None:
    first, same = text_file(tmp_path / "a.parquet", ["x"]), text_file(tmp_path / "b.parquet", [None])
    lines = json_file(tmp_path / "c.jsonl", [{"text": "a"}])
    more = json_file(tmp_path / "d.jsonl", [{"text": "a", "n": None}])
    table = table_file(tmp_path / "e.parquet", text=["a"], n=[1])
    (tmp_path / "f.txt").write_text("a", encoding="utf-8")
    text = found(tmp_path / "f.txt")
    only_text = pa.schema([("text", pa.string())])
    assert together(first, same, lines) == together(lines, same) == together(first, text, lines) == only_text
    for other in (more, table):
        for one in (first, text):
            assert together(one, lines, other, passed=[]) == only_text
            with pytest.raises(ValueError, match=f"{one.name} has no column `n`, which .*{other.name} has; annotate"):
                together(one, lines, other)
    # A line may lack a key, and so may a file of lines.
    assert together(table, lines, more) == pa.schema([("text", pa.string()), ("n", pa.int64())])
    third = table_file(tmp_path / "g.parquet", text=["a"], id=["b"], n=[1])
    with pytest.raises(ValueError, match=r"`m`, which .*h\.parquet has; .* leave it out: `columns` id n$"):
        together(third, table_file(tmp_path / "h.parquet", text=["a"], m=[1], n=[2], id=["c"]))
    with pytest.raises(ValueError, match="the source has no column url; it has text, n"):
        together(table, passed=["url"])


def test_an_empty_file_is_no_obstacle(tmp_path: Path) -> None:
    """pandas writes a text column without values with the type null, which must merge with the text of other files."""
    whole = table_file(tmp_path / "a.parquet", text=["x"], id=pa.array([1], pa.int8()))
    empty = table_file(tmp_path / "b.parquet", text=pa.array([], pa.null()), other=pa.array([], pa.float64()))
    nothing = table_file(tmp_path / "c.parquet")
    nulls = table_file(tmp_path / "d.parquet", id=pa.nulls(2), text=pa.nulls(2))
    lines = json_file(tmp_path / "e.jsonl", [{"text": None, "id": None}])
    wanted = pa.schema([("text", pa.string()), ("id", pa.int8())])
    for files in ([empty, whole, nothing, nulls, lines], [lines, nothing, nulls, empty, whole]):
        schema = together(*files)
        assert {*schema} == {*wanted}
        rows = [row for file in files for part in read_rows(file, 0, 9, schema, TEXT) for row in part.to_pylist()]
        assert len(rows) == 4 and {"text": "x", "id": 1} in rows
        assert rows.count({"text": None, "id": None}) == 3
        assert sorted(map(str, texts_of([*iterate_rows(files, TEXT)]))) == ["None", "None", "None", "x"]
    assert together(nulls) == pa.schema([("id", pa.null()), ("text", pa.string())])
    assert texts_of(read(nulls)) == [None, None] and read(nothing) == [] == read(empty)


def test_files_are_widened_and_read_as_one(tmp_path: Path) -> None:
    """The files have different orders of columns, types of text, widths of numbers, and fields of structs."""
    struct = pa.struct([pa.field("a", pa.int8(), nullable=False)])
    one = {
        "text": pa.array(["x"], pa.large_string()),
        "n": pa.array([1], pa.int32()),
        "s": pa.array([{"a": 1}], struct),
    }
    other = {"s": pa.array([{"b": "q", "a": 2}]), "n": pa.array([0.5]), "text": pa.array(["y"], pa.string_view())}
    one["w"], other["w"] = pa.array(["u"]).dictionary_encode(), pa.array(["v"])
    one["l"], other["l"] = pa.array([[1]], pa.list_(pa.int8())), pa.array([None], pa.large_list(pa.int64()))
    strict = pa.schema([pa.field(name, column.type, nullable=name != "n") for name, column in one.items()])
    pq.write_table(pa.table(one, schema=strict), tmp_path / "a.parquet")
    files = [found(tmp_path / "a.parquet"), table_file(tmp_path / "b.parquet", **other)]
    schema = together(*files)
    kinds = {"text": pa.large_string(), "n": pa.float64(), "s": pa.struct([("a", pa.int64()), ("b", pa.string())])}
    assert schema == pa.schema([*kinds.items(), ("w", pa.string()), ("l", pa.large_list(pa.int64()))])
    assert together(*reversed(files)).field("n") == schema.field("n")
    assert [row for file in files for part in read_rows(file, 0, 9, schema, TEXT) for row in part.to_pylist()] == [
        {"text": "x", "n": 1.0, "s": {"a": 1, "b": None}, "w": "u", "l": [1]},
        {"text": "y", "n": 0.5, "s": {"a": 2, "b": "q"}, "w": "v", "l": None},
    ]


def test_incompatible_types_are_refused_with_their_column(tmp_path: Path) -> None:
    def file(name: str, column: pa.Array) -> File:
        return table_file(tmp_path / name, id=["a"], text=["x"], n=column)

    pairs = [
        (pa.array([1]), pa.array(["1"])),
        (pa.array([[1]]), pa.array([1])),
        (pa.array([True]), pa.array([1])),
        (pa.array([b"a"]), pa.array(["a"])),
        (pa.array([0], pa.timestamp("s")), pa.array([0], pa.timestamp("s", "UTC"))),
        (pa.array(["{}"], pa.json_()), pa.array(["{}"])),
    ]
    for one, other in pairs:
        files = [file("a.parquet", pa.nulls(1)), file("b.parquet", one), file("c.parquet", other)]
        with pytest.raises(ValueError, match=r"`n` of .*c\.parquet holds .*, that of .*b\.parquet .*`columns` id$"):
            together(*files)
        assert together(*files, passed=["id"]).names == ["id", "text"]


def test_a_value_that_the_common_type_cannot_hold_is_refused(tmp_path: Path) -> None:
    files = [
        table_file(tmp_path / "a.parquet", text=["x"], n=pa.array([2**53 + 1])),
        table_file(tmp_path / "b.parquet", text=["x"], n=[0.5]),
    ]
    with pytest.raises(ValueError, match=r"`n` of .*a\.parquet has a value that double cannot hold .*`columns`"):
        list(read_rows(files[0], 0, 9, together(*files), TEXT))


def test_columns_without_a_common_type_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = json_file(tmp_path / "a.jsonl", [{"text": "x", "m": {"a": [1, "b"]}, "n": {"c": 1}}])
    together(file, passed=["n"])
    assert not caplog.records
    together(file)
    assert [record.getMessage() for record in caplog.records] == [
        "m: objects whose keys differ, or values of several types; passed on as JSON text"
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=30) | st.none(), max_size=6))
def test_texts_become_tokens_and_null_becomes_an_empty_document(texts: list[str | None]) -> None:
    tokenizer = byte_tokenizer()
    tokens = document_tokens(pa.table({"body": pa.array(texts, pa.string())}), Column("body"), tokenizer, 256)
    assert [len(ids) for ids in tokens] == [len((text or "").encode()) for text in texts]
    assert [tokenizer.decode(ids.tolist()) for ids in tokens] == [text or "" for text in texts]


def test_tokens_pass_through_and_null_becomes_an_empty_document() -> None:
    rows = pa.table({"input_ids": pa.array([[0, 6], None, [], [3]], pa.list_(pa.uint16()))})
    tokens = document_tokens(rows, IDS, None, 7)
    assert [ids.tolist() for ids in tokens] == [[0, 6], [], [], [3]]
    assert all(ids.dtype == np.int32 for ids in tokens)


@pytest.mark.parametrize("ids", [[0, 7], [-1, 2], [2**40]])
def test_token_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="do not fit a vocabulary of 7"):
        document_tokens(pa.table({"input_ids": [[1, 2], ids]}), IDS, None, 7)


@settings(max_examples=20, deadline=None)
@given(limit=st.none() | st.integers(0, 12))
def test_a_limit_counts_rows_across_files(tmp_path_factory: pytest.TempPathFactory, limit: int | None) -> None:
    folder = tmp_path_factory.mktemp("files")
    texts = [[f"{file} {row}" for row in range(rows)] for file, rows in enumerate((5, 0, 3, 1))]
    files = [
        text_file(folder / f"{index}.parquet", [*part])
        if index % 2
        else json_file(folder / f"{index}.jsonl", [{"n": 0, "text": text} for text in part])
        for index, part in enumerate(texts)
    ]
    batches = list(iterate_rows(files, TEXT, limit))
    assert all(rows.schema.names == ["text"] for rows in batches)
    assert texts_of(batches) == [*chain(*texts)][:limit]
