"""Handmade annotated datasets."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.shards import annotated_rows, write_shard
from schemas.annotations import annotated_schema
from schemas.layout import Subset, shard_name
from tests.builders import PROVENANCE

SUBSET = "exact"
SOURCE = pa.schema([("text", pa.string())])


def write_annotated(
    folder: Path,
    tokens: Sequence[Sequence[int]],
    labels: Sequence[Sequence[float]],
    *,
    shards: int = 1,
    columns_of_source: Mapping[str, Sequence[str | None]] | None = None,
    **settings: Any,
) -> Path:
    """Write a dataset of these documents and columns of text; `settings` are fields of its provenance."""
    needed = 1 + max((token for document in tokens for token in document), default=0)
    settings = {"vocabulary": max(PROVENANCE.vocabulary, needed), **settings}
    more = columns_of_source or {}
    schema_of_source = pa.schema([*SOURCE, *(pa.field(name, pa.string()) for name in more)])
    schema = annotated_schema(schema_of_source, replace(PROVENANCE, **settings))
    rows_a_shard = -(-len(tokens) // shards)
    for index in range(shards):
        rows = slice(index * rows_a_shard, (index + 1) * rows_a_shard)
        ids = [np.array(document, dtype=np.int32) for document in tokens[rows]]
        entropies = [np.array(row, dtype=np.float32) for row in labels[rows]]
        columns = {"text": ["text"] * len(ids), **{name: values[rows] for name, values in more.items()}}
        source = pa.RecordBatch.from_pydict(columns, schema=schema_of_source)
        table = annotated_rows(source, ids, {"entropy": entropies}, schema)
        write_shard(Subset(SUBSET, folder).data / shard_name(index, shards), [table], schema)
    return folder
