"""Joiner: it reads a unit's documents, finds their labels in a sidecar, and writes the shard.

Documents are joined in blocks. The labels may be in another order than the documents, and need not fit in memory: they
are read at most once per block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from pipeline.data.counts import count
from pipeline.data.documents import document_tokens, read_rows
from pipeline.data.label_index import CHANGED, UNKNOWN, LabelIndex, StoredLabels
from pipeline.data.shards import ShardWriter, token_lists
from pipeline.data.sidecar_keys import digests
from pipeline.data.tokenizer import load_tokenizer
from pipeline.engine.plan import Run, Unit
from schemas.annotations import INPUT_IDS, NUM_TOKENS
from schemas.layout import shard_name
from schemas.receipts import Counts, Receipt
from schemas.rows import ID_COLUMN

Unmatched = Literal["refuse", "keep"]
BLOCK_BYTES = 64_000_000


@dataclass(frozen=True)
class Joiner:
    """Writer of the shards of a joined dataset."""

    run: Run
    index: LabelIndex
    labels: StoredLabels
    unmatched: Unmatched

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """Tokenizer of the documents; None if they are token ids, or no token ids are to be written."""
        has_tokens = INPUT_IDS in self.run.schema.names
        return load_tokenizer(self.run.tokenizer) if self.run.tokenizer is not None and has_tokens else None

    def write(self, unit: Unit) -> Receipt:
        """Write the shard of a unit, and return its receipt.

        Raises:
            ValueError: if `unmatched` is `refuse`, and a document has no labels or its text differs from the labelled
                text.
            ValueError, OSError: as read_rows does.
        """
        subset, shard = self.run.subset, shard_name(unit.index, self.run.units)
        counts, start = Counts(), unit.start
        batches = read_rows(unit.file, unit.start, unit.stop, self.run.source_schema, self.run.column)
        with ShardWriter(subset.data / shard, self.run.schema) as writer:
            for block in _blocks(batches):
                found = [self._search(rows) for rows in block]
                labels, done = self.labels.take(np.concatenate(found)), 0
                for rows, rows_B in zip(block, found, strict=True):
                    counts += self._counted_unmatched(rows_B, unit, start)
                    table = self._table(rows, rows_B, labels.slice(done, len(rows)))
                    counts += count(rows, table, self.run.column, self.tokenizer)
                    writer.write(table)
                    start, done = start + len(rows), done + len(rows)
            digest, size = writer.finish()
        return Receipt(unit=unit.index, shard=shard, sha256=digest, size=size, counts=counts)

    def _search(self, rows: pa.RecordBatch) -> np.ndarray:
        """Return the index of each document's row in the sidecar, int64 [B].

        The index is UNKNOWN or CHANGED for a document without a row.
        """
        ids = rows.column(ID_COLUMN) if self.index.has_ids else None
        return self.index.rows(digests(rows.column(self.run.column.name)), ids)

    def _counted_unmatched(self, rows_B: np.ndarray, unit: Unit, start: int) -> Counts:
        wrong_B = rows_B < 0
        if self.unmatched == "refuse" and wrong_B.any():
            at = int(np.argmax(wrong_B))
            what = "has another text than the labelled one" if rows_B[at] == CHANGED else "has no labels"
            raise ValueError(
                f"row {start + at} of {unit.file.url}, counted from 0, {what}; annotate this file, or keep such "
                "documents without labels with `unmatched` keep"
            )
        return Counts(rows_changed=int((rows_B == CHANGED).sum()), rows_unmatched=int((rows_B == UNKNOWN).sum()))

    def _table(self, rows: pa.RecordBatch, rows_B: np.ndarray, labels: pa.Table) -> pa.Table:
        columns = {name: rows.column(name) for name in rows.schema.names}
        columns |= {name: labels.column(name) for name in labels.column_names}
        if INPUT_IDS in self.run.schema.names:
            tokens = document_tokens(rows, self.run.column, self.tokenizer, self.run.provenance.vocabulary)
            columns[INPUT_IDS] = token_lists(tokens)
            lengths_B = np.array([len(ids) for ids in tokens])
            _require_lengths(lengths_B, labels, rows_B)
            if (rows_B < 0).any():
                columns |= _without_labels(labels, lengths_B, rows_B < 0)
        return pa.table([columns[name] for name in self.run.schema.names], schema=self.run.schema)


def _blocks(batches: Iterator[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    block: list[pa.RecordBatch] = []
    for batch in batches:
        block.append(batch)
        if sum(each.nbytes for each in block) >= BLOCK_BYTES:
            yield block
            block = []
    if block:
        yield block


def _require_lengths(lengths_B: np.ndarray, labels: pa.Table, rows_B: np.ndarray) -> None:
    """Raise if a document has more or fewer tokens than labels.

    The only explanation is that it was labelled with a tokenizer that encodes it differently.
    """
    labels_B = labels.column(NUM_TOKENS).fill_null(0).to_numpy()
    wrong_B = (lengths_B != labels_B) & (rows_B >= 0)
    if wrong_B.any():
        at = int(np.argmax(wrong_B))
        raise ValueError(
            f"a document has {lengths_B[at]:,} tokens and {labels_B[at]:,} labels: the installed `tokenizers` encodes "
            "it otherwise than the one that labelled it; install that version, or annotate the documents again"
        )


def _without_labels(labels: pa.Table, lengths_B: np.ndarray, wrong_B: np.ndarray) -> dict[str, pa.Array]:
    """Return the columns of labels of all documents [B], and the column of their numbers of tokens.

    Where `wrong_B` is True, a document has no labels. Its lists get a null for each of its `lengths_B` tokens.
    """
    columns: dict[str, pa.Array] = {NUM_TOKENS: pa.array(lengths_B, pa.int32())}
    for name in labels.column_names:
        if pa.types.is_list(kind := labels.schema.field(name).type):
            values: Sequence[object] = labels.column(name).to_pylist()
            rows = zip(values, lengths_B, wrong_B, strict=True)
            columns[name] = pa.array([[None] * size if wrong else own for own, size, wrong in rows], kind)
    return columns
