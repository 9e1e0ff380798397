"""Rows of Parquet files: any range is read in bounded memory and as valid text, and damage is noticed."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import iterators, parquet
from pipeline.data.documents import Column, inspect_file, iterate_rows, read_rows
from pipeline.data.files import File, find_files
from pipeline.data.parquet import dictionary_bytes, first_pages
from pipeline.data.streams import DamagedError
from tests.conftest import ROOT

TEXT = Column(longest=2**24)


def found(file: Path) -> File:
    return find_files([str(file)])[0]


def read(file: File) -> list[pa.RecordBatch]:
    return list(read_rows(file, 0, 10**6, inspect_file(file, TEXT).schema, TEXT))


def texts_of(read: list[pa.RecordBatch]) -> list[str | None]:
    return [text for rows in read for text in rows.column("text").to_pylist()]


def truncated_parquet(file: Path) -> None:
    """Write a file with a complete footer, in which zeros replace some bytes of the rows."""
    pq.write_table(pa.table({"text": [f"{row} " * 50 for row in range(100)]}), file)
    content = file.read_bytes()
    file.write_bytes(content[:40] + bytes(200) + content[240:])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.none() | st.text(max_size=12), max_size=40),
    st.integers(1, 15),
    st.integers(0, 45),
    st.integers(0, 45),
    st.integers(1, 7),
)
def test_any_rows_equal_those_of_the_whole_table(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str | None],
    row_group: int,
    start: int,
    stop: int,
    batch: int,
) -> None:
    nested = pa.array([{"a": [row]} for row in range(len(texts))], pa.struct([("a", pa.list_(pa.int64()))]))
    table = pa.table({"n": nested, "text": pa.array(texts, pa.string()), "text.more": [b"x"] * len(texts)})
    path = tmp_path_factory.mktemp("rows") / "a.parquet"
    pq.write_table(table, path, row_group_size=row_group)
    for columns in (["n", "text", "text.more"], ["text"], ["text", "n"]):
        schema = pa.schema([table.schema.field(name) for name in columns])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(iterators, "ROWS_PER_BATCH", batch)
            patch.setattr("pipeline.data.parquet.MOST_ROWS_READ", 3)
            parts = list(read_rows(found(path), start, stop, schema, TEXT))
        assert all(0 < len(part) <= max(batch, 3) for part in parts)
        wanted = table.select(columns).slice(start, max(0, stop - start))
        assert pa.Table.from_batches(parts, schema).equals(wanted)


ENCODINGS = (
    {"use_dictionary": True},
    {"use_dictionary": False},
    {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
)
"""Settings of a Parquet writer. With the first, a repeated value is stored once. With the second, it is stored in every
row. With the third, each repetition is stored as an empty difference from the value before."""


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_batches_are_bounded_whatever_the_lengths(tmp_path: Path, encoding: dict[str, Any]) -> None:
    """The file has a text of 10 MB, short texts, and 20 rows with the same text of 700 kB.

    Two of the three settings in ENCODINGS store the repeated text only once.
    """
    texts = ["a" * 10_000_000, *["b" * 10] * 300, *["c" * 700_000] * 20, "d"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", **encoding)
    parts = read(found(tmp_path / "a.parquet"))
    assert texts_of(parts) == texts
    assert all(len(part) == 1 or part.nbytes <= iterators.BATCH_BYTES for part in parts)
    assert len(parts) < 40


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_text_that_is_not_unicode_is_replaced_and_the_rest_is_kept(tmp_path: Path, kind: pa.DataType) -> None:
    stored = [b"a\xffb", b"\xed\xa0\x80", "naïve\0".encode(), None, b""]
    raw = pa.array(stored, pa.large_binary() if kind == pa.large_string() else pa.binary())
    pq.write_table(pa.table({"text": raw.view(kind)}), tmp_path / "a.parquet")
    assert texts_of(read(found(tmp_path / "a.parquet"))) == ["a\ufffdb", "\ufffd" * 3, "naïve\0", None, ""]


def test_views_are_read_as_plain_types(tmp_path: Path) -> None:
    long = "longer than the twelve bytes that a view holds itself"
    text = pa.array([b"a\xff" + long.encode(), None, b"", long.encode()], pa.binary_view()).view(pa.string_view())
    values = {"s": ["a", None, long, ""], "b": [long.encode(), b"\xff", None, b""], "n": [1, 2, 3, 4]}
    values |= {"list": [[long, None], None, [], ["a"]], "struct": [{"a": [long]}, None, {"a": None}, {"a": []}]}
    views = {"s": pa.string_view(), "b": pa.binary_view(), "n": pa.int64(), "list": pa.large_list(pa.string_view())}
    views |= {"struct": pa.struct([pa.field("a", pa.list_(pa.binary_view()))])}
    table = pa.table({"text": text, **{name: pa.array(values[name], kind) for name, kind in views.items()}})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    file = found(tmp_path / "a.parquet")
    kinds = {"text": pa.string(), "s": pa.string(), "b": pa.binary(), "n": pa.int64()}
    kinds |= {"list": pa.large_list(pa.string()), "struct": pa.struct([("a", pa.list_(pa.binary()))])}
    assert inspect_file(file, TEXT).schema == pa.schema([*kinds.items()])
    rows = pa.Table.from_batches(read(file), pa.schema([*kinds.items()]))
    rows.validate(full=True)
    texts = ["a\ufffd" + long, None, "", long]
    assert rows.to_pydict() == table.select([*values]).to_pydict() | {"text": texts}
    assert [part.column(0).type for part in iterate_rows([file], TEXT)] == [pa.string()]


def test_batches_of_views_are_as_large_as_others(tmp_path: Path) -> None:
    """`nbytes` of a slice of views counts the bytes of the whole array. Batches bounded by this would be too small."""
    table = pa.table({"text": pa.array([f"{row} " * 30_000 for row in range(100)])})
    pq.write_table(table, tmp_path / "plain.parquet")
    pq.write_table(table.cast(pa.schema([("text", pa.string_view())])), tmp_path / "views.parquet")
    plain, views = (read(found(tmp_path / f"{name}.parquet")) for name in ("plain", "views"))
    assert views == plain


def test_large_and_dictionary_encoded_text_is_passed_on_as_it_is(tmp_path: Path) -> None:
    values = [f"value {row % 9}" for row in range(300)]
    columns = {"text": pa.array(values, pa.large_string()), "n": pa.array(values).dictionary_encode()}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=7)
    file = found(tmp_path / "a.parquet")
    schema = inspect_file(file, TEXT).schema
    assert schema == pa.table(columns).schema
    assert pa.Table.from_batches(read(file), schema).to_pydict() == {"text": values, "n": values}


def test_damaged_rows_name_their_file(tmp_path: Path) -> None:
    truncated_parquet(tmp_path / "a.parquet")
    file = found(tmp_path / "a.parquet")
    schema = inspect_file(file, TEXT).schema
    with pytest.raises(ValueError, match=r"a\.parquet is not a readable Parquet file"):
        list(read_rows(file, 0, 100, schema, TEXT))


def test_a_column_that_one_file_lacks_is_damage_and_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "lacks.parquet"
    pq.write_table(pa.table({"text": ["a", "b"]}), file)
    schema = pa.schema([pa.field("text", pa.string()), pa.field("score", pa.float32())])
    with pytest.raises(ValueError, match=r"lacks\.parquet .*no column `score`"):
        list(read_rows(found(file), 0, 2, schema, TEXT))


@pytest.mark.parametrize("checksums", [True, False])
def test_pages_with_checksums_are_verified(tmp_path: Path, checksums: bool) -> None:
    """A changed byte in an uncompressed page makes a different valid text. Only a checksum reveals this damage."""
    path, plain = tmp_path / "a.parquet", {"use_dictionary": False, "compression": "none"}
    pq.write_table(pa.table({"text": ["a plain text"]}), path, write_page_checksum=checksums, **plain)
    assert texts_of(read(found(path))) == ["a plain text"]
    path.write_bytes(path.read_bytes().replace(b"a plain text", b"a plane text"))
    if not checksums:
        assert texts_of(read(found(path))) == ["a plane text"]
        return
    with pytest.raises(DamagedError, match=r"a\.parquet is not a readable Parquet file: .*; write or download it"):
        read(found(path))


def test_a_footer_with_damaged_columns_does_not_end_the_process(tmp_path: Path) -> None:
    """For some damaged bytes, pyarrow would end the process if it were asked for a column's metadata.

    The test therefore reads in another process.
    """
    path = tmp_path / "a.parquet"
    lists = [[row] * (row % 3) for row in range(50)]
    pq.write_table(pa.table({"text": ["text"] * 50, "input_ids": lists}), path)
    program = f"""
import random
from pathlib import Path
from tests.data.test_parquet import found, read
path, at = Path({str(path)!r}), random.Random(0)
sound = path.read_bytes()
footer = int.from_bytes(sound[-8:-4], "little")
for _ in range(1500):
    place = len(sound) - 8 - at.randrange(1, footer)
    path.write_bytes(sound[:place] + bytes([at.randrange(256)]) + sound[place + 1:])
    try:
        read(found(path))
    except (ValueError, OSError):
        pass
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize(("texts", "size"), [(["abc", "de"] * 50, 4 + 3 + 4 + 2), (["x" * 10**6] * 20, 10**6 + 4)])
def test_a_dictionary_is_as_large_as_its_values(tmp_path: Path, compression: str, texts: list[str], size: int) -> None:
    for dictionary in (True, False):
        file = tmp_path / "a.parquet"
        pq.write_table(pa.table({"text": texts}), file, compression=compression, use_dictionary=dictionary)
        stored = pa.OSFile(str(file))
        ((page,),) = first_pages(stored, 1)
        assert dictionary_bytes(stored, page) == (size if dictionary else 0)


@pytest.mark.parametrize("dictionary", [True, False, ["text"]])
def test_first_pages_are_where_pyarrow_finds_them(tmp_path: Path, dictionary: bool | list[str]) -> None:
    table = pa.table(
        {
            "text": [f"text {row % 7}" for row in range(100)],
            "ids": [[row] * (row % 3) for row in range(100)],
            "inside": [{"a": row, "b": [{"c": 0.5}]} for row in range(100)],
            "none": pa.nulls(100, pa.bool_()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=30, use_dictionary=dictionary, write_page_index=True)
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    found = first_pages(pa.OSFile(str(tmp_path / "a.parquet")), metadata.num_row_groups)
    assert len(found) == 4
    for group, pages in enumerate(found):
        columns = [metadata.row_group(group).column(index) for index in range(metadata.num_columns)]
        assert [page.column for page in pages] == [each.path_in_schema.partition(".")[0] for each in columns]
        assert [page.offset for page in pages] == [
            each.dictionary_page_offset or each.data_page_offset for each in columns
        ]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_rows_that_repeat_a_long_value_are_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: dict[str, Any]
) -> None:
    """A value that many rows repeat may be stored only once. The row group of large rows then seems small."""
    monkeypatch.setattr(parquet, "BYTES_READ", 24 * 10**6)
    monkeypatch.setattr(parquet, "BATCH_BYTES", 2**40)
    read_at_a_time, sizes = pq.ParquetFile.iter_batches, []

    def iter_batches(parquet: pq.ParquetFile, size: int, **options: Any) -> Iterator[pa.RecordBatch]:
        sizes.append(size)
        yield from read_at_a_time(parquet, size, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    texts = ["x" * 10**6] * 70
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", **encoding)
    assert texts_of(read(found(tmp_path / "a.parquet"))) == texts
    (size,) = sizes
    assert size <= 24


def test_a_page_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MOST_PAGE_BYTES", 1000)
    for dictionary in (True, False):
        pq.write_table(pa.table({"text": ["x" * 2000]}), tmp_path / "a.parquet", use_dictionary=dictionary)
        (file,) = find_files([str(tmp_path / "a.parquet")])
        schema = inspect_file(file, Column()).schema
        with pytest.raises(
            ValueError, match=r"a.parquet has a page of 2,0\d\d bytes in column `text`, more than 1,000"
        ):
            list(read_rows(file, 0, 1, schema, Column()))


@pytest.mark.parametrize("header", [b"", b"\x15", b"\x15\xff\xff", b"PAR1", b"\x15" + b"\xff" * 40])
def test_an_invalid_header_has_size_zero(header: bytes) -> None:
    assert parquet._kind_and_size(header)[1] == 0
