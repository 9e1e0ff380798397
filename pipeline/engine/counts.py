"""What rows hold, counted before and after annotation.

N labelled tokens.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from pipeline.data.documents import Column
from pipeline.data.longest import too_long_rows
from pipeline.data.tally import empty_rows, replaced_rows
from pipeline.data.unknown_text import documents_with_unknown_text
from schemas.annotations import ENTROPY, INPUT_IDS, NUM_TOKENS
from schemas.receipts import BIN_NATS, BINS, Counts


def count(source: pa.RecordBatch, annotated: pa.Table, column: Column, tokenizer: Tokenizer | None) -> Counts:
    """Counts of some rows, before and after annotation; no tokenizer where they came tokenized."""
    entropies = pc.list_flatten(annotated.column(ENTROPY)).drop_null().to_numpy()
    given = source.column(column.name)
    return Counts(
        rows=len(source),
        rows_without_text=empty_rows(given),
        rows_too_long=too_long_rows(source),
        rows_with_replacements=replaced_rows(given),
        rows_with_unknown_text=documents_with_unknown_text(tokenizer, given, annotated.column(INPUT_IDS))
        if tokenizer
        else 0,
        tokens=pc.sum(annotated.column(NUM_TOKENS)).as_py() or 0,
        labelled_tokens=len(entropies),
        text_bytes=0 if column.tokenized else pc.sum(pc.binary_length(given)).as_py() or 0,
        arrow_bytes=annotated.nbytes,
        nats=float(entropies.sum(dtype=np.float64)),
        histogram=histogram(entropies),
    )


def histogram(entropies_N: np.ndarray) -> tuple[int, ...]:
    """How many entropies, in nats, fall below 0, into each of the bins above it, and beyond them."""
    bins_N = np.clip(np.floor(entropies_N / BIN_NATS) + 1, 0, BINS - 1).astype(np.int64)
    return tuple(np.bincount(bins_N, minlength=BINS).tolist())
