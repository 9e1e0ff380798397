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
from pipeline.engine.ledger import DATA, Receipt, record
from pipeline.engine.plan import Unit
from schemas.annotations import ENTROPY, NUM_TOKENS, Provenance, annotated_schema
from schemas.documents import TEXT_COLUMN


@dataclass(frozen=True)
class Run:
    """What every unit of a run shares."""

    output: Path
    checkpoint: Path
    tokenizer: Path | None
    provenance: Provenance
    units: int


@dataclass
class Totals:
    """Counts that grow while a unit is labelled."""

    rows: int = 0
    tokens: int = 0
    labelled_tokens: int = 0
    text_bytes: int = 0
    nats: float = 0.0

    def add(self, rows: pa.RecordBatch, table: pa.Table) -> None:
        entropies = pc.list_flatten(table.column(ENTROPY)).drop_null().to_numpy()
        self.rows += len(rows)
        self.tokens += pc.sum(table.column(NUM_TOKENS)).as_py() or 0
        self.labelled_tokens += len(entropies)
        self.nats += float(entropies.sum(dtype=np.float64))
        if TEXT_COLUMN in rows.schema.names:
            self.text_bytes += pc.sum(pc.binary_length(rows.column(TEXT_COLUMN))).as_py() or 0


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
        shard = f"train-{unit.index:05d}-of-{self.run.units:05d}.parquet"
        parquet = open_documents(Path(unit.file), tokenized=self.tokenizer is None)
        schema = annotated_schema(parquet.schema_arrow, self.run.provenance)
        totals = Totals()
        digest = write_shard(self.run.output / DATA / shard, self._tables(unit, parquet, schema, totals), schema)
        receipt = Receipt(unit=unit.index, shard=shard, sha256=digest, **vars(totals))
        record(self.run.output, receipt)
        return receipt

    def _tables(self, unit: Unit, parquet: pq.ParquetFile, schema: pa.Schema, totals: Totals) -> Iterator[pa.Table]:
        settings = self.run.provenance
        random = np.random.default_rng(unit.index)
        for rows in read_rows(parquet, unit.start, unit.stop):
            documents = document_tokens(rows, self.tokenizer, settings.vocabulary)
            wanted = [sample_positions(len(ids), settings.share, random) for ids in documents]
            labels = label_documents(documents, wanted, self.labeller, window=settings.window, overlap=settings.overlap)
            table = annotated_rows(rows, documents, labels, schema)
            totals.add(rows, table)
            yield table
