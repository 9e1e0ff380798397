"""Checks of a shard: its bytes must match its receipt, and its rows must follow the rules of the subset.

Only a few rows are in memory at a time.

Shapes: B rows per batch, N labels.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.data.counts import histogram
from pipeline.data.documents import read_rows
from pipeline.data.files import File
from pipeline.data.shards import LABELS, inspect_shard, mean_entropies, numbers_per_token, open_shard
from pipeline.data.streams import DamagedError
from pipeline.verify.stored import Content, Fault, Stored
from schemas.annotations import (
    ENTROPY,
    ENTROPY_COLUMNS,
    ID_COLUMNS,
    INPUT_IDS,
    LOGPROB_COLUMNS,
    LOGPROB_ROUNDING_NATS,
    MEAN_ENTROPY,
    NUM_TOKENS,
    PROVENANCE_KEY,
    REST_LOGPROB,
    TOP_LOGPROBS,
    Provenance,
)
from schemas.receipts import Counts, Receipt
from schemas.sidecars import KEY_FIELDS

COMPARED = ("rows", "tokens", "labelled_tokens", "nats", "histogram")
"""Fields of `Counts` that can be computed from the rows of a shard, and are compared with its receipt."""
MASS_TOLERANCE = LOGPROB_ROUNDING_NATS  # twice what rounding of the log-probabilities explains


@dataclass(frozen=True)
class Rules:
    """Provenance, vocabulary and columns that all shards of a subset must have."""

    provenance: Provenance
    vocabulary: int
    columns: tuple[str, ...] | None = None
    """Names of the columns in order; None if the plan does not list columns."""

    @property
    def required(self) -> frozenset[str]:
        """Columns that a shard must have: `entropy`, and `input_ids` if the dataset was written with token ids."""
        has_tokens = not self.provenance.sidecar and INPUT_IDS in (self.columns or (INPUT_IDS,))
        return frozenset((ENTROPY, INPUT_IDS) if has_tokens else (ENTROPY,))

    @property
    def types(self) -> Mapping[str, pa.DataType]:
        """Types of the columns that annotation adds."""
        keys = {field.name: field.type for field in KEY_FIELDS} if self.provenance.sidecar else {}
        tokens, labels = {INPUT_IDS: pa.list_(pa.int32())}, self.provenance.label_types
        return {**keys, **tokens, **labels, NUM_TOKENS: pa.int32(), MEAN_ENTROPY: pa.float32()}


def shard_provenance(stored: Stored, shard: str) -> Provenance:
    """Return the provenance in a shard's footer.

    Raises:
        ValueError: if the footer has no provenance, or if the provenance cannot be read.
    """
    with stored.content(shard) as content, open_shard(content.file) as parquet:
        return _provenance(parquet.schema_arrow)


def check_shard(stored: Stored, shard: str, receipts: Sequence[Receipt], rules: Rules) -> tuple[Fault | None, Counts]:
    """Check a shard. Return its first fault and empty counts, or None and its counts if there is no fault.

    Raises:
        OSError: if the disk or store of the shard cannot be reached.
    """
    with stored.content(shard) as content:
        try:
            matching = [receipt for receipt in receipts if receipt.sha256 == content.sha256]
            _require_bytes(content, receipts, matching)
            _require_schema(content.file, rules)
            counts = _counted(content.file, rules, every_column=not receipts)
            for receipt in matching[:1]:
                _require_counts(receipt.counts, counts)
        except ValueError as error:
            what = str(error.damage if isinstance(error, DamagedError) else error)
            what = what.replace(f"{content.file.url} ", "").replace(content.file.url, "it")
            return Fault(stored.named(shard), what, shard), Counts()
    return None, counts


def _require_bytes(content: Content, receipts: Sequence[Receipt], matching: Sequence[Receipt]) -> None:
    if receipts and content.file.size not in (receipt.size for receipt in matching or receipts):
        raise ValueError(f"has {content.file.size:,} bytes, its receipt says {receipts[-1].size:,}")
    if receipts and not matching:
        wanted = receipts[-1].sha256
        raise ValueError(f"is not what was written: its sha256 is {content.sha256}, its receipt's {wanted}")


def _require_schema(file: File, rules: Rules) -> None:
    with open_shard(file) as parquet:
        schema = parquet.schema_arrow
    own = {name: kind for name, kind in rules.types.items() if name in schema.names}
    if not rules.required <= own.keys():
        raise ValueError("lacks tokens or labels")
    wrong = [name for name, kind in own.items() if schema.field(name).type != kind]
    if wrong:
        raise ValueError(f"column `{wrong[0]}` holds {schema.field(wrong[0]).type}, not {own[wrong[0]]}")
    if rules.columns is not None and tuple(schema.names) != rules.columns:
        raise ValueError(f"has columns {', '.join(schema.names)}, but the plan has {', '.join(rules.columns)}")
    if _provenance(schema) != rules.provenance:
        raise ValueError("its provenance differs from that of the plan or of the other shards")


def _provenance(schema: pa.Schema) -> Provenance:
    try:
        return Provenance.from_json((schema.metadata or {})[PROVENANCE_KEY].decode())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its provenance cannot be read ({error})") from error


def _counted(file: File, rules: Rules, *, every_column: bool) -> Counts:
    """Return the counts of a shard, and check each batch of rows.

    With `every_column`, columns of the source are read too, so that damage to these columns is found. Otherwise, only
    the columns that annotation adds are read. Damage to other columns is then found by the digest in the receipt.
    """
    schema = inspect_shard(file).schema
    if not every_column:
        schema = pa.schema([field for field in schema if field.name in rules.types])
    return count_rows(_checked(read_rows(file, 0, sys.maxsize, schema, LABELS), rules))


def count_rows(batches: Iterable[pa.RecordBatch]) -> Counts:
    """Return totals of annotated rows: counts of rows, tokens and labels, and the sum and histogram of the labels."""
    counts = Counts()
    for batch in batches:
        labels_N = batch.column(ENTROPY).flatten().drop_null().to_numpy()
        counts += Counts(
            rows=len(batch),
            tokens=len(batch.column(ENTROPY).flatten()),
            labelled_tokens=len(labels_N),
            nats=float(labels_N.sum(dtype=np.float64)),
            histogram=histogram(labels_N),
        )
    return counts


def _checked(batches: Iterable[pa.RecordBatch], rules: Rules) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in batches:
        _require_rows(batch, start, rules)
        start += len(batch)
        yield batch


def _require_rows(batch: pa.RecordBatch, start: int, rules: Rules) -> None:
    """Check all rows of a batch. `start` is the number of rows before the batch.

    Raises:
        ValueError: if a row breaks a rule. The message names the first row that breaks the rule.
    """
    for what, wrong_B in _broken(batch, rules):
        if wrong_B.any():
            raise ValueError(f"row {start + int(np.argmax(wrong_B)):,}: {what}")


def _broken(batch: pa.RecordBatch, rules: Rules) -> Iterator[tuple[str, np.ndarray]]:
    """Yield an error message and an array [B] for each rule. The array is True for rows that break the rule."""
    has_tokens = INPUT_IDS in batch.schema.names
    length_B = _lengths(batch.column(INPUT_IDS if has_tokens else ENTROPY))
    yield f"has no list of {'tokens' if has_tokens else 'labels'}", length_B < 0
    if has_tokens:
        known_N = batch.column(INPUT_IDS).flatten().fill_null(-1).to_numpy()
        outside = f"a token id is null or outside the vocabulary of {rules.vocabulary:,}"
        yield outside, _rows_with((known_N < 0) | (known_N >= rules.vocabulary), length_B)
    for name in rules.provenance.label_shapes.keys() & set(batch.schema.names):
        labels = batch.column(name)
        yield f"`{name}` does not have one label per token", _lengths(labels) != length_B
        values = numbers_per_token(name, labels, null=0)
        if name in ID_COLUMNS:
            unknown = ~(values < rules.provenance.predicted_vocabulary)
            yield f"an id in `{name}` is outside the model's vocabulary", _rows_with(unknown, length_B)
        elif name in (*ENTROPY_COLUMNS, *LOGPROB_COLUMNS):
            yield f"a label in `{name}` is not finite", _rows_with(~np.isfinite(values), length_B)
        else:
            yield f"a label in `{name}` is negative", _rows_with(values < 0, length_B)
    if {TOP_LOGPROBS, REST_LOGPROB} <= set(batch.schema.names):
        top_NK, rest_N = (
            np.exp(numbers_per_token(name, batch.column(name), null=-np.inf)) for name in (TOP_LOGPROBS, REST_LOGPROB)
        )
        total_N = top_NK.sum(axis=1, dtype=np.float64) + rest_N
        off_N = (np.abs(total_N - 1) > MASS_TOLERANCE) & (total_N > 0)
        yield "a token's probabilities and the rest do not add up to 1", _rows_with(off_N, length_B)
    if NUM_TOKENS in batch.schema.names:
        given_B = batch.column(NUM_TOKENS).fill_null(-1).to_numpy()
        yield f"`{NUM_TOKENS}` is not the number of its tokens", given_B != length_B
    if MEAN_ENTROPY in batch.schema.names:
        own, mean = batch.column(MEAN_ENTROPY), mean_entropies(batch.column(ENTROPY))
        own_B, mean_B = (each.to_numpy(zero_copy_only=False) for each in (own, mean))
        yield f"`{MEAN_ENTROPY}` is not the mean of its labels", ~np.isclose(own_B, mean_B, 1e-6, 1e-6, equal_nan=True)


def _lengths(lists: pa.Array) -> np.ndarray:
    """Return the length of each list, or -1 for a list that is null."""
    lengths: np.ndarray = lists.value_lengths().fill_null(-1).to_numpy()
    return lengths


def _rows_with(wrong: np.ndarray, length_B: np.ndarray) -> np.ndarray:
    """Return an array [B] that is True for each row with at least one wrong token.

    `wrong` is True for each wrong token [N] or each wrong value [N, K], with K values per token. N counts the tokens of
    all rows. `length_B` has the number of tokens of each row.
    """
    wrong_N = wrong if wrong.ndim == 1 else wrong.any(axis=1)
    running = np.append(0, np.cumsum(wrong_N))
    ends_B = np.cumsum(np.maximum(length_B, 0))
    wrong_B: np.ndarray = running[ends_B] > running[ends_B - np.maximum(length_B, 0)]
    return wrong_B


def _require_counts(receipt: Counts, counted: Counts) -> None:
    differing = [name for name in COMPARED if getattr(receipt, name) != getattr(counted, name)]
    if differing:
        name = differing[0]
        what = name.replace("_", " ")
        raise ValueError(f"its receipt says {getattr(receipt, name)} {what}, but it has {getattr(counted, name)}")
