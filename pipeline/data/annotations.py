"""Reading an annotated dataset back: tokens and labels as a corpus, and where they came from."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.corpus import Corpus
from pipeline.data.tokenizer import TOKENIZER_FILE
from schemas.annotations import (
    DATA_FOLDER,
    ENTROPY,
    INPUT_IDS,
    LEDGER_FOLDER,
    PROVENANCE_KEY,
    TOKENIZER_FOLDER,
    Provenance,
    shard_name,
    shards_in_all,
)
from schemas.ledger import QUARANTINE, Quarantined


@dataclass(frozen=True)
class AnnotatedDataset:
    """Documents with labels (NaN where a token has none), their provenance, and the tokenizer's folder, if any."""

    corpus: Corpus
    provenance: Provenance
    tokenizer: Path | None


def read_annotations(folder: Path, limit: int | None = None) -> AnnotatedDataset:
    """Every row of an annotated dataset on disk, in order, `limit` rows at the most.

    Raises:
        ValueError: if the folder is not an annotated dataset, an unfinished one, or a label is not finite.
    """
    shards = sorted((folder / DATA_FOLDER).glob("*.parquet"))
    if not shards:
        raise ValueError(f"{folder} is not an annotated dataset: no data/*.parquet; make one with pipeline.annotate")
    provenance = _shared_provenance(shards)
    tables: list[pa.Table] = []
    for shard in shards:
        if not tables or limit is None or sum(map(len, tables)) < limit:
            tables.append(pq.read_table(shard, columns=[INPUT_IDS, ENTROPY]))
    rows = pa.concat_tables(tables).slice(0, limit)
    tokenizer = folder / TOKENIZER_FOLDER
    return AnnotatedDataset(
        _corpus(rows, folder), provenance, tokenizer if (tokenizer / TOKENIZER_FILE).is_file() else None
    )


def read_quarantine(folder: Path) -> list[Quarantined]:
    """The units of rows that were given up and have no shard, in their order."""
    files = sorted((folder / LEDGER_FOLDER / QUARANTINE).glob("*.json"))
    return [Quarantined.from_json(file.read_text()) for file in files]


def _shared_provenance(shards: list[Path]) -> Provenance:
    """The provenance of all shards, which must be of one finished run."""
    found: set[bytes] = set()
    for shard in shards:
        schema = pq.read_schema(shard)
        if not {INPUT_IDS, ENTROPY} <= set(schema.names) or PROVENANCE_KEY not in (schema.metadata or {}):
            raise ValueError(f"{shard} was not written by pipeline.annotate: it lacks labels or their provenance")
        found.add(schema.metadata[PROVENANCE_KEY])
    units = shards_in_all(shards[0].name)
    given_up = {unit.shard for unit in read_quarantine(shards[0].parent.parent)}
    expected = {shard_name(index, units) for index in range(units)} - given_up
    if len(found) > 1 or {shard.name for shard in shards} != expected:
        raise ValueError(f"{shards[0].parent} does not hold one finished run; give the same annotate command again")
    return Provenance.from_json(found.pop().decode())


def _corpus(rows: pa.Table, folder: Path) -> Corpus:
    tokens = rows.column(INPUT_IDS).combine_chunks()
    labels = rows.column(ENTROPY).combine_chunks().flatten()
    if not np.isfinite(labels.drop_null().to_numpy()).all():
        raise ValueError(
            f"{folder} has entropies that are not finite; annotate it again (a token without a label is null)"
        )
    lengths = tokens.value_lengths().to_numpy()
    label_lengths = rows.column(ENTROPY).combine_chunks().value_lengths().to_numpy()
    if not np.array_equal(lengths, label_lengths):
        row = int(np.argmax(lengths != label_lengths))
        raise ValueError(f"row {row} of {folder} has {label_lengths[row]} entropies for {lengths[row]} tokens")
    return Corpus(
        tokens_N=tokens.flatten().to_numpy(),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        labels_N=labels.to_numpy(zero_copy_only=False).astype(np.float32),
    )
