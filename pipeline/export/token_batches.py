"""Documents of an annotated dataset as arrays for other trainers: ids, labels as whole numbers, and what to train on.

Every document ends in a separator, which has no label. Documents without tokens are left out and counted.

Shapes: N tokens of a batch, D documents or blocks of a batch.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.data.annotated import AnnotatedDataset
from pipeline.data.label_units import MOST_UNITS, NO_LABEL, short_units
from schemas.annotations import ENTROPY, INPUT_IDS

BINS = MOST_UNITS - NO_LABEL
MOST_BLOCK = 2**24
"""Maximum number of tokens of a block, which is held in memory."""


class TokenBatch(NamedTuple):
    """Several documents, joined end to end."""

    ids_N: np.ndarray
    """Token ids, int64."""
    labels_N: np.ndarray
    """Entropies in units of 1/128 nat, int16; NO_LABEL for a token without a label."""
    trained_N: np.ndarray
    """True for tokens to train on."""
    lengths_D: np.ndarray
    """Number of tokens of each document or block, int64. The separator of a document is counted."""
    documents: int = 0
    """Number of documents with tokens."""
    empty: int = 0
    """Number of documents without tokens, which are left out."""
    unfilled: int = 0
    """Number of tokens that are left out because they do not fill a block."""


@dataclass(frozen=True)
class TrainedRange:
    """Range of entropies, in units of 1/128 nat, of the tokens to train on. Tokens without a label are trained on."""

    lowest: int = NO_LABEL
    highest: int = MOST_UNITS

    def mask(self, labels_N: np.ndarray) -> np.ndarray:
        """Return True for the tokens to train on."""
        mask_N: np.ndarray = (labels_N == NO_LABEL) | ((labels_N >= self.lowest) & (labels_N <= self.highest))
        return mask_N


def token_batches(
    dataset: AnnotatedDataset, start: int, stop: int, separator: int | None, trained: TrainedRange
) -> Iterator[TokenBatch]:
    """Yield rows `start` to `stop` of a dataset in batches. `separator` is None if documents end without one.

    Raises:
        ValueError: if a label is too large for 16 bits, or as `AnnotatedDataset.batches` does.
    """
    for rows in dataset.batches((INPUT_IDS, ENTROPY), start, stop):
        yield _batch(rows, separator, trained)


def _batch(rows: pa.RecordBatch, separator: int | None, trained: TrainedRange) -> TokenBatch:
    lengths = rows.column(INPUT_IDS).value_lengths().fill_null(0).to_numpy().astype(np.int64)
    lengths_D = lengths[lengths > 0]
    ids_N = rows.column(INPUT_IDS).flatten().to_numpy().astype(np.int64)
    labels_N = short_units(rows.column(ENTROPY).flatten().to_numpy(zero_copy_only=False))
    if separator is not None:
        ends = np.cumsum(lengths_D)
        ids_N, labels_N = np.insert(ids_N, ends, separator), np.insert(labels_N, ends, NO_LABEL)
        lengths_D = lengths_D + 1
    documents = len(lengths_D)
    return TokenBatch(ids_N, labels_N, trained.mask(labels_N), lengths_D, documents, len(lengths) - documents)


def in_blocks(batches: Iterable[TokenBatch], block: int) -> Iterator[TokenBatch]:
    """Join documents end to end, and cut them into blocks of `block` tokens.

    The tokens after the last whole block are left out and counted.
    """
    rest: list[np.ndarray] = [np.empty(0, np.int64), np.empty(0, np.int16), np.empty(0, bool)]
    for batch in batches:
        joined = [np.concatenate(pair) for pair in zip(rest, batch[:3], strict=True)]
        blocks = len(joined[0]) // block
        ids_N, labels_N, trained_N = (values_N[: blocks * block] for values_N in joined)
        rest = [values_N[blocks * block :] for values_N in joined]
        yield TokenBatch(ids_N, labels_N, trained_N, np.full(blocks, block), batch.documents, batch.empty)
    ids_N, labels_N, trained_N = (values_N[:0] for values_N in rest)
    yield TokenBatch(ids_N, labels_N, trained_N, np.empty(0, np.int64), unfilled=len(rest[0]))


def quantile(dataset: AnnotatedDataset, share: float) -> int:
    """Return a quantile of all labels, in units of 1/128 nat.

    The quantile is the smallest label q such that at least the given share of all labels is at most q. All labels are
    read once and counted, so the quantile is exact. For a share of 0, it is the smallest label of all.

    Raises:
        ValueError: if no token has a label, or as `token_batches` does.
    """
    counts = np.zeros(BINS + 1, np.int64)
    for rows in dataset.batches((ENTROPY,)):
        labels_N = short_units(rows.column(ENTROPY).flatten().to_numpy(zero_copy_only=False))
        counts += np.bincount(labels_N[labels_N != NO_LABEL].astype(np.int64) - NO_LABEL, minlength=BINS + 1)
    if not counts.any():
        raise ValueError(f"no token of {dataset.source} has a label; annotate its documents again")
    wanted = math.ceil(Fraction(repr(share)) * int(counts.sum()))  # as a float, 0.07 * 100 is above 7
    return int(np.searchsorted(np.cumsum(counts), max(1, wanted))) + NO_LABEL
