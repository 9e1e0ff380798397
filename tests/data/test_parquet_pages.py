"""Sizes of pages: those that headers tell are those of the values, whatever the footer says."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import parquet as parquet_pages
from pipeline.data.documents import Column, inspect_file, read_rows
from pipeline.data.files import find_files
from pipeline.data.parquet import dictionary_bytes, first_pages
from tests.data.test_parquet import texts_of


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


def test_rows_that_repeat_a_long_value_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The footer tells the size of a dictionary once, and eight rows of it were read at a time."""
    monkeypatch.setattr("pipeline.data.parquet.BYTES_READ", 3 * 10**6)
    monkeypatch.setattr("pipeline.data.parquet.BATCH_BYTES", 2**40)
    monkeypatch.setattr("pipeline.data.iterators.BATCH_BYTES", 0)
    texts = ["x" * 10**6] * 20
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    (file,) = find_files([str(tmp_path / "a.parquet")])
    column = Column(longest=2**24)
    parts = list(read_rows(file, 0, 20, inspect_file(file, column).schema, column))
    assert texts_of(parts) == texts and {len(part) for part in parts} <= {1, 2}


def test_a_page_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_pages, "MOST_PAGE_BYTES", 1000)
    for dictionary in (True, False):
        pq.write_table(pa.table({"text": ["x" * 2000]}), tmp_path / "a.parquet", use_dictionary=dictionary)
        (file,) = find_files([str(tmp_path / "a.parquet")])
        schema = inspect_file(file, Column()).schema
        with pytest.raises(
            ValueError, match=r"a.parquet has a page of 2,0\d\d bytes in column `text`, more than 1,000"
        ):
            list(read_rows(file, 0, 1, schema, Column()))


@pytest.mark.parametrize("header", [b"", b"\x15", b"\x15\xff\xff", b"PAR1", b"\x15" + b"\xff" * 40])
def test_what_is_no_header_tells_nothing(header: bytes) -> None:
    assert parquet_pages._kind_and_size(header)[1] == 0
