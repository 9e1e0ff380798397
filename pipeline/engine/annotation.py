"""One unit from rows to a committed shard: read, tokenize, label, write, receipt. No Ray here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from pipeline.data.documents import document_tokens, open_documents, read_rows
from pipeline.data.shards import annotated_rows, write_shard
from pipeline.data.windows import sample_positions
from pipeline.engine.labelling import Labeller, label_documents
from pipeline.engine.ledger import Counts, Receipt, record
from pipeline.engine.plan import Unit
from schemas.annotations import DATA_FOLDER, ENTROPY, NUM_TOKENS, Provenance, annotated_schema, shard_name
from schemas.documents import TEXT_COLUMN


@dataclass(frozen=True)
class Run:
    """What every unit of a run shares."""

    output: Path
    checkpoint: Path
    tokenizer: Path | None
    provenance: Provenance
    units: int


@dataclass(frozen=True)
class Annotator:
    """A run with its label method and tokenizer loaded; the tokenizer is None for documents tokenized already."""

    run: Run
    labeller: Labeller
    tokenizer: Tokenizer | None

    def annotate(self, unit: Unit) -> Receipt:
        """Labels the unit's rows, commits their shard and then its receipt.

        Row groups go to disk as they fill, so memory does not grow with the unit.
        """
        shard = shard_name(unit.index, self.run.units)
        parquet = open_documents(Path(unit.file), tokenized=self.tokenizer is None)
        schema = annotated_schema(parquet.schema_arrow, self.run.provenance)
        counts: list[Counts] = []
        tables = self._tables(unit, parquet, schema, counts)
        digest = write_shard(self.run.output / DATA_FOLDER / shard, tables, schema)
        receipt = Receipt(unit=unit.index, shard=shard, sha256=digest, counts=sum(counts, start=Counts()))
        record(self.run.output, receipt)
        return receipt

    def _tables(
        self, unit: Unit, parquet: pq.ParquetFile, schema: pa.Schema, counts: list[Counts]
    ) -> Iterator[pa.Table]:
        settings = self.run.provenance
        random = np.random.default_rng(unit.index)
        for rows in read_rows(parquet, unit.start, unit.stop):
            documents = document_tokens(rows, self.tokenizer, settings.vocabulary)
            wanted = [sample_positions(len(ids), settings.share, random) for ids in documents]
            labels = label_documents(documents, wanted, self.labeller, window=settings.window, overlap=settings.overlap)
            table = annotated_rows(rows, documents, labels, schema)
            counts.append(count(rows, table))
            yield table


def count(source: pa.RecordBatch, annotated: pa.Table) -> Counts:
    """Counts of some rows, before and after annotation."""
    entropies = pc.list_flatten(annotated.column(ENTROPY)).drop_null().to_numpy()
    text_bytes = 0
    if TEXT_COLUMN in source.schema.names:
        text_bytes = pc.sum(pc.binary_length(source.column(TEXT_COLUMN))).as_py() or 0
    return Counts(
        rows=len(source),
        tokens=pc.sum(annotated.column(NUM_TOKENS)).as_py() or 0,
        labelled_tokens=len(entropies),
        text_bytes=text_bytes,
        nats=float(entropies.sum(dtype=np.float64)),
    )
