"""Keys of documents: digests that a database can compute too, and the file and row of each document."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.documents import Column, inspect_file, read_rows
from pipeline.data.files import find_files
from pipeline.data.sidecar_keys import digests, with_keys
from schemas.sidecars import DIGEST, SOURCE_FILE, SOURCE_ROW
from tests.builders import write_documents

IDS = st.lists(st.one_of(st.none(), st.lists(st.integers(0, 2**31 - 1))))


@given(st.lists(st.one_of(st.none(), st.text())), st.sampled_from([pa.string(), pa.large_string()]), st.integers(0, 3))
def test_a_digest_is_half_of_the_sha256_of_the_text(texts: Sequence[str | None], kind: pa.DataType, start: int) -> None:
    wanted = [None if text is None else hashlib.sha256(text.encode()).digest()[:16] for text in texts]
    assert digests(pa.array(texts, kind).slice(start)).to_pylist() == wanted[start:]


@given(IDS, st.sampled_from([pa.int32(), pa.int64(), pa.uint32()]), st.integers(0, 3))
def test_token_ids_have_one_digest_in_any_type(
    lists: Sequence[list[int] | None], kind: pa.DataType, start: int
) -> None:
    wanted = [None if ids is None else hashlib.sha256(np.array(ids, "<i4").tobytes()).digest()[:16] for ids in lists]
    assert digests(pa.array(lists, pa.list_(kind)).slice(start)).to_pylist() == wanted[start:]


def test_a_database_finds_the_same_digest(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    text = "naïve 🙂 text"
    (digest,) = digests(pa.array([text])).to_pylist()
    assert duckdb.sql(f"SELECT left(sha256('{text}'), 32)").fetchall() == [(digest.hex(),)]


def test_keys_say_where_a_document_was_read(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_documents(tmp_path / "in" / f"{name}.parquet", ["one", None, "three", "four"], source_row=["x"] * 4)
    file = find_files([str(tmp_path / "in")])[1]
    column = Column()
    rows = read_rows(file, 1, 4, inspect_file(file, column).schema, column)
    (keyed,) = with_keys(rows, file, 1, column)
    assert keyed.column("text").to_pylist() == [None, "three", "four"]
    assert keyed.column(SOURCE_FILE).to_pylist() == ["b.parquet"] * 3
    assert keyed.column(SOURCE_ROW).to_pylist() == [1, 2, 3]
    assert keyed.column(DIGEST).null_count == 1
