"""Sidecars of documents of token ids, with labels drawn at random, and their sources."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.files import local_file
from pipeline.data.shards import annotated_rows, write_shard
from pipeline.data.sidecar_keys import with_keys
from pipeline.data.source_documents import column_of
from schemas.annotations import INPUT_IDS, Provenance
from schemas.layout import Subset, shard_name
from schemas.sidecars import sidecar_schema
from tests.builders import PROVENANCE

SETTINGS = replace(
    PROVENANCE, tokenizer_sha256=None, text_column=INPUT_IDS, sidecar=True, keep_text=False, columns=None
)


@dataclass(frozen=True)
class KeyedDocument:
    """A document of token ids, with its key in the source and its labels."""

    id: str | None
    tokens: tuple[int, ...] | None
    labels: tuple[float, ...] = ()


def labelled(documents: Sequence[tuple[str | None, tuple[int, ...] | None]], seed: int = 0) -> list[KeyedDocument]:
    """Return the documents, each with its own random labels in steps of 1/128 nat."""
    random = np.random.default_rng(seed)
    return [
        KeyedDocument(id, tokens, tuple((random.integers(0, 2000, len(tokens or ())) / 128).tolist()))
        for id, tokens in documents
    ]


def write_source(file: Path, documents: Sequence[KeyedDocument], *, ids: bool = True) -> Path:
    """Write a Parquet file with the documents' tokens and, if `ids`, their keys in a column `id`."""
    columns: dict[str, pa.Array] = {INPUT_IDS: pa.array([each.tokens for each in documents], pa.list_(pa.int64()))}
    if ids:
        columns["id"] = pa.array([each.id for each in documents], pa.string())
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file, row_group_size=3)
    return file


def write_sidecar(
    folder: Path,
    documents: Sequence[KeyedDocument],
    *,
    shards: int = 1,
    ids: bool = True,
    settings: Provenance = SETTINGS,
) -> Path:
    """Write the documents to `folder/source.parquet`, and their labels to a sidecar. Return the sidecar's folder."""
    source = write_source(folder / "source.parquet", documents, ids=ids)
    file, rows = replace(local_file(source), path=source.name), pq.read_table(source)
    schema = sidecar_schema(rows.schema, settings)
    table_schema = pa.schema([*schema, pa.field(INPUT_IDS, pa.list_(pa.int32()))], metadata=schema.metadata)
    size = -(-len(documents) // shards) if documents else 1
    for index in range(shards):
        start = min(len(documents), index * size)
        own = documents[start : start + size]
        (batch,) = with_keys(_batch(rows, start, len(own)), file, start, column_of(SETTINGS))
        tokens = [np.array(each.tokens or (), np.int32) for each in own]
        labels = {"entropy": [np.array(each.labels, np.float32) for each in own]}
        table = annotated_rows(batch, tokens, labels, table_schema).select(schema.names)
        write_shard(Subset("exact", folder / "labels").data / shard_name(index, shards), [table], schema)
    return folder / "labels"


def _batch(rows: pa.Table, start: int, size: int) -> Iterator[pa.RecordBatch]:
    part = rows.slice(start, size).combine_chunks()
    yield pa.record_batch([column.combine_chunks() for column in part.columns], names=part.schema.names)
