"""Documents and a provenance for tests, made quickly and without torch, and the functions that commands run."""

import importlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.sample import sample_documents
from schemas.annotations import Provenance

VOCABULARY = 97
PROVENANCE = Provenance(
    method="exact",
    checkpoint_sha256="c" * 64,
    tokenizer_sha256="t" * 64,
    vocabulary=100,
    window=8,
    overlap=4,
    share=1.0,
    keep_text=False,
    source=("a.parquet",),
    source_sha256="s" * 64,
    source_rows=4,
    text_column="text",
    columns=None,
    rows_per_unit=2,
    source_seen_by_estimator="no",
)


def write_documents(file: Path, texts: Sequence[str | None], **columns: Sequence[object]) -> Path:
    """Write a Parquet file of documents."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": pa.array(texts, pa.string()), **columns}), file)
    return file


def sample_texts(count: int, characters: int = 1500) -> list[str]:
    """Return the texts of the first `count` sample documents, each cut after a number of characters."""
    return [text[:characters] for text in sample_documents().column("text").to_pylist()[:count]]


def command_of(module: str) -> Callable[..., Any]:
    """Return the function that `python -m MODULE` runs.

    The function has the same name as the module. If the module is a package, the function is in its `__main__`.
    """
    found = find_spec(module)
    is_package = found is not None and found.submodule_search_locations is not None
    holder = importlib.import_module(f"{module}.__main__" if is_package else module)
    function: Callable[..., Any] = getattr(holder, module.rpartition(".")[2])
    return function
