"""The built-in sample of documents."""

from pathlib import Path
from pydoc_data.topics import topics

import pyarrow.parquet as pq

from pipeline.data.documents import Column, inspect_file
from pipeline.data.files import find_files
from pipeline.data.sample import sample_documents, write_sample
from schemas.rows import FINEWEB


def test_the_sample_has_the_columns_of_fineweb() -> None:
    assert sample_documents().schema.equals(FINEWEB)


def test_every_sample_document_has_text_and_its_own_id() -> None:
    table = sample_documents()
    assert table.num_rows > 50
    texts = table.column("text").to_pylist()
    assert all(text.strip() and len(text) <= 4000 for text in texts)
    assert all(topics[name].startswith(text) for name, text in zip(sorted(topics), texts, strict=True))
    names = [row.removeprefix("<python:topic:").removesuffix(">") for row in table.column("id").to_pylist()]
    assert names == sorted(set(names))


def test_the_sample_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_sample(tmp_path / name / "sample.parquet")
    first, second = (tmp_path / name / "sample.parquet" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    assert pq.read_table(first).equals(sample_documents())


def test_the_sample_is_valid_input(tmp_path: Path) -> None:
    write_sample(tmp_path / "sample.parquet")
    layout = inspect_file(find_files([str(tmp_path)])[0], Column())
    assert layout.rows == sample_documents().num_rows
