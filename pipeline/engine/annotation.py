"""One unit from rows to a committed shard: read, tokenize, label, write, receipt. No Ray here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from pipeline.data.corpus import fold_of
from pipeline.data.documents import document_tokens, open_documents, read_rows
from pipeline.data.shards import annotated_rows, write_shard
from pipeline.data.windows import sample_positions
from pipeline.engine.labelling import Labeller, label_documents
from pipeline.engine.ledger import Counts, Receipt, record
from pipeline.engine.plan import Unit
from pipeline.labels.retokenize import encode_with_ends, move_nats
from schemas.annotations import DATA_FOLDER, ENTROPY, NUM_TOKENS, Provenance, annotated_schema, shard_name
from schemas.documents import TEXT_COLUMN

Labels = dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class Run:
    """What every unit of a run shares."""

    output: Path
    checkpoints: tuple[Path, ...]
    """One, or one a fold."""
    tokenizer: Path | None
    """Of `input_ids`."""
    estimator_tokenizer: Path | None
    """Of the checkpoints, where it is another: labels are then moved to the tokens of `input_ids`."""
    provenance: Provenance
    units: int


@dataclass(frozen=True)
class Annotator:
    """A run with its label method, one a fold, and tokenizer loaded; no tokenizer for documents tokenized already."""

    run: Run
    labellers: tuple[Labeller, ...]
    tokenizer: Tokenizer | None
    estimator_tokenizer: Tokenizer | None = None

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
        random = np.random.default_rng(unit.index)
        for rows in read_rows(parquet, unit.start, unit.stop):
            if self.tokenizer is not None and self.estimator_tokenizer is not None:
                documents, labels = self._moved_labels(rows, self.tokenizer, self.estimator_tokenizer, random)
            else:
                documents = document_tokens(rows, self.tokenizer, self.run.provenance.vocabulary)
                labels = self._labels(documents, random)
            table = annotated_rows(rows, documents, labels, schema)
            counts.append(count(rows, table))
            yield table

    def _moved_labels(
        self, rows: pa.RecordBatch, tokenizer: Tokenizer, estimator_tokenizer: Tokenizer, random: np.random.Generator
    ) -> tuple[list[np.ndarray], Labels]:
        """Tokens of each text, and labels that were given to the estimator's tokens and moved to these."""
        texts = [text or "" for text in rows.column(TEXT_COLUMN).to_pylist()]
        ours, theirs = encode_with_ends(tokenizer, texts), encode_with_ends(estimator_tokenizer, texts)
        labels = self._labels([tokens.ids_T for tokens in theirs], random)
        moved = {
            name: [
                move_nats(nats_S, source.ends_T, target.ends_T)
                for nats_S, source, target in zip(values, theirs, ours, strict=True)
            ]
            for name, values in labels.items()
        }
        return [tokens.ids_T for tokens in ours], moved

    def _labels(self, documents: list[np.ndarray], random: np.random.Generator) -> Labels:
        """Each document's labels, by the checkpoint that was not trained on it where there are folds."""
        settings = self.run.provenance
        wanted = [sample_positions(len(ids), settings.share, random) for ids in documents]
        fold_M = [fold_of(ids, len(self.labellers)) for ids in documents]
        labels: Labels = {name: list(documents) for name in self.labellers[0].columns}
        for fold, labeller in enumerate(self.labellers):
            members = [m for m, own in enumerate(fold_M) if own == fold]
            found = label_documents(
                [documents[m] for m in members],
                [wanted[m] for m in members],
                labeller,
                window=settings.window,
                overlap=settings.overlap,
                batch_invariant=settings.batch_invariant,
            )
            for name, values in found.items():
                for m, labels_T in zip(members, values, strict=True):
                    labels[name][m] = labels_T
        return labels


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
