"""Finding input files, checking them, and reading their rows as tokens."""

import os
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipeline.data import documents
from pipeline.data.documents import document_tokens, find_files, iterate_rows, open_documents, read_rows


def text_file(file: Path, texts: list[str | None], row_group: int = 2) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), file, row_group_size=row_group)
    return file


def byte_tokenizer() -> Tokenizer:
    alphabet = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_a_file_a_folder_and_a_glob_are_found_in_order(tmp_path: Path) -> None:
    names = ("one/b.parquet", "one/a.parquet", "one/deep/c.parquet", "two/d.parquet", "two/e.parquet", "z.parquet")
    for name in names:
        text_file(tmp_path / name, ["x"])
    (tmp_path / "one" / "notes.txt").write_text("not data")
    found = find_files([str(tmp_path / "z.parquet"), str(tmp_path / "two" / "[de].parquet"), str(tmp_path / "one")])
    relative = [str(file.relative_to(tmp_path)) for file in found]
    assert relative == ["z.parquet", *names[3:5], "one/a.parquet", "one/b.parquet", "one/deep/c.parquet"]


@pytest.mark.parametrize("named", ["missing.parquet", "*.parquet", "."])
def test_an_input_that_names_nothing_is_refused(tmp_path: Path, named: str) -> None:
    with pytest.raises(ValueError, match="no Parquet file at"):
        find_files([str(tmp_path / named)])


def test_a_file_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    text_file(tmp_path / "once.parquet", ["x"])
    file = text_file(tmp_path / "twice.parquet", ["x"])
    with pytest.raises(ValueError, match=r"more than once.*twice\.parquet") as refusal:
        find_files([str(tmp_path), str(file)])
    assert "once.parquet" not in str(refusal.value)


def test_a_file_that_is_named_by_two_paths_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = text_file(tmp_path / "twice.parquet", ["x"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="more than once"):
        find_files([file.name, str(file)])


def test_a_folder_with_brackets_in_its_name_is_read(tmp_path: Path) -> None:
    file = text_file(tmp_path / "data[1]" / "a.parquet", ["x"])
    assert find_files([str(file.parent)]) == [file]


@pytest.mark.parametrize("content", [b"", b"text", os.urandom(64)])
def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.parquet is not a readable Parquet file"):
        open_documents(tmp_path / "broken.parquet", tokenized=False)


@pytest.mark.parametrize(("tokenized", "column"), [(False, "text"), (True, "input_ids")])
def test_a_file_without_the_column_is_refused(tmp_path: Path, tokenized: bool, column: str) -> None:
    pq.write_table(pa.table({"other": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=f"has no column `{column}`; it has other"):
        open_documents(tmp_path / "a.parquet", tokenized=tokenized)


@pytest.mark.parametrize(
    ("tokenized", "kind", "fits"),
    [
        (False, pa.string(), True),
        (False, pa.large_string(), True),
        (False, pa.binary(), False),
        (False, pa.list_(pa.string()), False),
        (True, pa.list_(pa.int32()), True),
        (True, pa.large_list(pa.uint16()), True),
        (True, pa.list_(pa.float32()), False),
        (True, pa.int32(), False),
    ],
)
def test_a_column_of_another_type_is_refused(tmp_path: Path, tokenized: bool, kind: pa.DataType, fits: bool) -> None:
    column = "input_ids" if tokenized else "text"
    pq.write_table(pa.table({column: pa.array([None], kind)}), tmp_path / "a.parquet")
    if fits:
        assert open_documents(tmp_path / "a.parquet", tokenized=tokenized).metadata.num_rows == 1
    else:
        with pytest.raises(ValueError, match=f"column `{column}` of .* holds"):
            open_documents(tmp_path / "a.parquet", tokenized=tokenized)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(1, 15), st.integers(0, 45), st.integers(0, 45), st.integers(1, 7))
def test_rows_are_those_of_the_whole_table(rows: int, row_group: int, start: int, stop: int, batch: int) -> None:
    table = pa.table({"text": [f"document {row}" for row in range(rows)], "row": pa.array(range(rows), pa.int64())})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=row_group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "ROWS_PER_BATCH", batch)
        batches = list(read_rows(pq.ParquetFile(sink.getvalue()), start, stop))
    assert all(0 < len(part) <= batch for part in batches)
    assert pa.Table.from_batches(batches, table.schema).equals(table.slice(start, max(0, stop - start)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=30) | st.none(), max_size=6))
def test_texts_become_tokens_and_null_becomes_none(texts: list[str | None]) -> None:
    tokenizer = byte_tokenizer()
    tokens = document_tokens(pa.table({"text": pa.array(texts, pa.string())}), tokenizer, 256)
    assert [len(ids) for ids in tokens] == [len((text or "").encode()) for text in texts]
    assert [tokenizer.decode(ids.tolist()) for ids in tokens] == [text or "" for text in texts]


def test_tokens_pass_through_and_null_becomes_none() -> None:
    rows = pa.table({"input_ids": pa.array([[0, 6], None, [], [3]], pa.list_(pa.uint16()))})
    tokens = document_tokens(rows, None, 7)
    assert [ids.tolist() for ids in tokens] == [[0, 6], [], [], [3]]
    assert all(ids.dtype == np.int32 for ids in tokens)


@pytest.mark.parametrize("ids", [[0, 7], [-1, 2], [2**40]])
def test_token_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="do not fit a vocabulary of 7"):
        document_tokens(pa.table({"input_ids": [[1, 2], ids]}), None, 7)


@settings(max_examples=20, deadline=None)
@given(limit=st.none() | st.integers(0, 12))
def test_a_limit_counts_rows_across_files(tmp_path_factory: pytest.TempPathFactory, limit: int | None) -> None:
    folder = tmp_path_factory.mktemp("files")
    texts = [[f"{file} {row}" for row in range(rows)] for file, rows in enumerate((5, 0, 3, 1))]
    files = [text_file(folder / f"{index}.parquet", [*part]) for index, part in enumerate(texts)]
    read = [text for rows in iterate_rows(files, tokenized=False, limit=limit) for text in rows.column(0).to_pylist()]
    assert read == [*chain(*texts)][:limit]
