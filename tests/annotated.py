"""Handmade annotated datasets."""

from collections.abc import Sequence
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
    **settings: Any,
) -> Path:
    """Write a dataset of these documents; `settings` are fields of its provenance."""
    needed = 1 + max((token for document in tokens for token in document), default=0)
    settings = {"vocabulary": max(PROVENANCE.vocabulary, needed), **settings}
    schema = annotated_schema(SOURCE, replace(PROVENANCE, **settings))
    rows_a_shard = -(-len(tokens) // shards)
    for index in range(shards):
        rows = slice(index * rows_a_shard, (index + 1) * rows_a_shard)
        ids = [np.array(document, dtype=np.int32) for document in tokens[rows]]
        entropies = [np.array(row, dtype=np.float32) for row in labels[rows]]
        source = pa.RecordBatch.from_pylist([{"text": "text"}] * len(ids), schema=SOURCE)
        table = annotated_rows(source, ids, {"entropy": entropies}, schema)
        write_shard(Subset(SUBSET, folder).data / shard_name(index, shards), [table], schema)
    return folder
