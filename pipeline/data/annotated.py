"""Annotated datasets: found in a folder or on the Hub, and read in batches of rows whose labels are checked.

All labels are read here; `pipeline.data.loader` shuffles the rows, divides them among ranks and packs them.
"""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from huggingface_hub import parse_hf_uri, snapshot_download

from pipeline.data.columns import plain_schema
from pipeline.data.corpus import Corpus
from pipeline.data.documents import Column, FileInfo, read_rows
from pipeline.data.files import HUB, File, find_files, pinned
from pipeline.data.ledger import Ledger
from pipeline.data.shards import ENTROPY_COLUMNS, PER_TOKEN, SHARD, inspect_shard, mending, open_shard, reading_shard
from pipeline.data.skipped import counted
from pipeline.data.streams import DamagedError
from pipeline.data.tokenizer import TOKENIZER_FILE, id_count, load_tokenizer
from schemas.annotations import ENTROPY, INPUT_IDS, MOST_NATS, PROVENANCE_KEY, Provenance
from schemas.decoding import text_of
from schemas.layout import DATA_FOLDER, Subset, require_contained, shard_name, shards_in_all
from schemas.receipts import QUARANTINE, Receipt, from_lines
from schemas.rows import NO_BOUND, is_list, is_token_list

SUBSET_NAMED = re.compile(rf"/{DATA_FOLDER}/[^/]+/?$")
COMMIT_NAMED = re.compile("@[0-9a-f]{40}$")
FOOTERS_AT_A_TIME = 16  # of shards: reading one from the Hub is mostly waiting

Row = dict[str, Any]
"""Values by column: `input_ids` int32 [N], entropies float32 [N] in nats (NaN for null), others as Python values."""


@dataclass(frozen=True)
class AnnotatedDataset:
    """Shards of an annotated dataset, their provenance, and the tokenizer's folder, if any."""

    source: str
    shards: tuple[File, ...]
    rows: tuple[int, ...]
    """Number of rows of each shard."""
    schema: pa.Schema
    """All columns."""
    provenance: Provenance
    tokenizer: Path | None

    def __len__(self) -> int:
        return sum(self.rows)

    @cached_property
    def vocabulary(self) -> int:
        """Number of rows that a model's embedding needs for these tokens.

        Older datasets recorded the number of tokens, which is smaller if the tokenizer skips ids.
        """
        noted = self.provenance.vocabulary
        return noted if self.tokenizer is None else max(noted, id_count(load_tokenizer(self.tokenizer)))

    @property
    def place(self) -> str:
        """Location of the subset, without the commit at which it is read."""
        place, name, _ = _parts(self.source, self.shards[0])
        return f"{COMMIT_NAMED.sub('', place)}/{DATA_FOLDER}/{name}"

    @cached_property
    def infos(self) -> tuple[FileInfo, ...]:
        """Row groups and digest of each shard, from a second reading of its footer.

        Raises:
            ValueError, OSError: as inspect_file does.
        """
        with ThreadPoolExecutor(FOOTERS_AT_A_TIME) as pool:
            return tuple(pool.map(inspect_shard, self.shards))

    def columns(self, names: Sequence[str]) -> pa.Schema:
        """Return the schema of the named columns.

        Raises:
            ValueError: if no column is named, one is named twice, or the shards lack one.
        """
        if unknown := set(names) - set(self.schema.names):
            has = ", ".join(self.schema.names)
            raise ValueError(f"{self.source} has no column {', '.join(sorted(unknown))}; it has {has}")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"name at least one column, and each only once, not {names}")
        return pa.schema([self.schema.field(name) for name in names])

    def batches(self, names: Sequence[str], start: int = 0, stop: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield rows `start` to `stop` with the named columns, as `read_labelled` does.

        Raises:
            ValueError, OSError: as columns and read_labelled do.
        """
        schema, stop = self.columns(names), len(self) if stop is None else stop
        for shard, rows in zip(self.shards, self.rows, strict=True):
            if start < rows and stop > 0:
                yield from read_labelled(shard, max(0, start), min(stop, rows), schema, self.vocabulary)
            start, stop = start - rows, stop - rows

    def corpus(self, start: int = 0, stop: int | None = None) -> Corpus:
        """Return the tokens and entropies of rows `start` to `stop`; NaN marks a token without a label.

        Raises:
            ValueError, OSError: as batches does.
        """
        names = (INPUT_IDS, ENTROPY)
        rows = pa.Table.from_batches(counted(self.batches(names, start, stop), self.source), self.columns(names))
        tokens, labels = (rows.column(name).combine_chunks() for name in names)
        return Corpus(
            tokens_N=tokens.flatten().to_numpy(),
            offsets=np.concatenate([[0], np.cumsum(tokens.value_lengths().to_numpy(), dtype=np.int64)]),
            labels_N=labels.flatten().to_numpy(zero_copy_only=False).astype(np.float32),
        )


def find_annotations(source: str) -> AnnotatedDataset:
    """Find the annotated dataset in a folder, or at `hf://datasets/user/name` with an optional `@revision`.

    The newest revision is the default. If the dataset has several subsets, name the data folder of one, as in
    `folder/data/exact`.

    Raises:
        ValueError: if there is no annotated dataset, it is unfinished, it has several subsets, or it has a link out of
            its folder.
        ConnectionError: if the Hub cannot be reached.
    """
    (source,) = pinned((source,))
    shards = _shards(source)
    place, name, _ = _parts(source, shards[0])
    others = {_parts(source, shard)[1] for shard in shards} - {name}
    if others:
        listed = ", ".join(sorted({name, *others}))
        raise ValueError(f"{source} has subsets {listed}; name one, as in {place}/{DATA_FOLDER}/{name}")
    subset = Subset(name, _beside_data(place, name) if place.startswith(HUB) else Path(place))
    if not place.startswith(HUB):
        require_contained(Path(place))
    with ThreadPoolExecutor(FOOTERS_AT_A_TIME) as pool:
        footers = list(pool.map(_read_footer, shards))
    _require_received(subset, source, shards, [footer.rows for footer in footers])
    names = {_parts(source, shard)[2] for shard in shards} | {note.shard for note in Ledger(subset).quarantined()}
    return AnnotatedDataset(
        source=source,
        shards=tuple(shards),
        rows=tuple(footer.rows for footer in footers),
        schema=plain_schema(footers[0].schema, shards[0].url),
        provenance=_shared_provenance(source, names, {footer.provenance for footer in footers}),
        tokenizer=subset.tokenizer if (subset.tokenizer / TOKENIZER_FILE).is_file() else None,
    )


def read_labelled(file: File, start: int, stop: int, schema: pa.Schema, vocabulary: int) -> Iterator[pa.RecordBatch]:
    """Yield rows `start` to `stop` of a shard with the columns of `schema`, after checking tokens and labels.

    Raises:
        ValueError: if a token is null or outside the vocabulary, a label is not finite or beyond MOST_NATS, or tokens
            and labels are both read and differ in number.
        ValueError, OSError: as read_rows does.
    """
    with reading_shard(file):
        for batch in read_rows(file, start, stop, schema, Column(schema.names[0], longest=NO_BOUND)):
            if INPUT_IDS in batch.schema.names:
                _require_tokens(batch.column(INPUT_IDS), file, vocabulary)
            _require_labels(batch, file, start)
            start += len(batch)
            yield batch


def as_rows(batch: pa.RecordBatch) -> list[Row]:
    """Convert a batch to one dictionary per row."""
    columns = [_values(name, batch.column(name)) for name in batch.schema.names]
    return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


def _shards(source: str) -> list[File]:
    whole = f"{source.rstrip('/')}/{DATA_FOLDER}"
    is_subset = SUBSET_NAMED.search(source) and not Path(whole).is_dir()  # a dataset may lie in a folder named data
    named = source if is_subset else whole
    try:
        return find_files([named])
    except ValueError as error:
        hint = f"no {DATA_FOLDER}/SUBSET/*.parquet; make one with pipeline.annotate"
        raise ValueError(f"{source} is not an annotated dataset: {hint}") from error


def _parts(source: str, shard: File) -> tuple[str, str, str]:
    """Split a shard's URL into the dataset's location, the subset's name and the shard's name.

    Raises:
        ValueError: if the shard is not in the data folder of a subset.
    """
    found = SHARD.fullmatch(shard.url)
    if found is None:
        raise ValueError(f"{source} is not an annotated dataset: {shard.url} is not in {DATA_FOLDER}/SUBSET")
    return found[1], found[2], found[3]


def _beside_data(place: str, name: str) -> Path:
    """Download a subset's tokenizer and notes on quarantined units from the Hub; return the folder of the copy."""
    uri, places = parse_hf_uri(place), Subset(name)
    wanted = [f"{places.tokenizer.as_posix()}/*", f"{(places.ledger / QUARANTINE).as_posix()}/*"]
    return Path(snapshot_download(uri.id, repo_type="dataset", revision=uri.revision, allow_patterns=wanted))


class _Footer(NamedTuple):
    """A shard's footer."""

    rows: int
    schema: pa.Schema
    provenance: Provenance


def _read_footer(shard: File) -> _Footer:
    with open_shard(shard) as parquet:
        rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
    if not {INPUT_IDS, ENTROPY} <= set(schema.names) or PROVENANCE_KEY not in (schema.metadata or {}):
        raise ValueError(
            f"{shard.url} was not written by pipeline.annotate: it lacks labels or their provenance; name another"
        )
    _require_lists(shard, schema)
    try:
        return _Footer(rows, schema, Provenance.from_json(schema.metadata[PROVENANCE_KEY].decode()))
    except ValueError as error:
        raise DamagedError(f"the provenance in {shard.url} cannot be read ({error})", mending(shard)) from error


def _require_lists(shard: File, schema: pa.Schema) -> None:
    """Check the types of tokens and labels; any width is accepted.

    Raises:
        DamagedError: if a column holds anything but lists of numbers.
    """
    for name in {INPUT_IDS, *PER_TOKEN} & {*schema.names}:
        kind = schema.field(name).type
        of_nats = name in ENTROPY_COLUMNS
        if not (is_list(kind) and pa.types.is_floating(kind.value_type) if of_nats else is_token_list(kind)):
            raise DamagedError(f"column `{name}` of {shard.url} holds {kind}, not lists of numbers", mending(shard))


def _require_received(subset: Subset, source: str, shards: Sequence[File], rows: Sequence[int]) -> None:
    """Compare the size and the number of rows of each shard with its receipt, if there is one on this machine.

    Raises:
        DamagedError: if the size or the number of rows differs, or a receipt cannot be read.
    """
    received: dict[str, Receipt] = {}
    for file in Ledger(subset).receipt_files():
        try:
            received |= {receipt.shard: receipt for receipt in from_lines(text_of(file))}
        except ValueError as error:
            raise DamagedError(f"{file} cannot be read ({error})", mending(shards[0])) from error
    for shard, count in zip(shards, rows, strict=True):
        receipt = received.get(_parts(source, shard)[2])
        if receipt is not None and (receipt.size, receipt.counts.rows) != (shard.size, count):
            has = f"{shard.size:,} bytes and {count:,} rows"
            wanted = f"its receipt says {receipt.size:,} and {receipt.counts.rows:,}"
            raise DamagedError(f"{shard.url} has {has}, but {wanted}", mending(shard))


def _shared_provenance(source: str, names: set[str], found: set[Provenance]) -> Provenance:
    """Return the provenance that all shards share.

    Raises:
        ValueError: if the shards, together with the quarantined ones, are not all the shards of one run.
    """
    # Provenances are compared, not their bytes: older versions wrote fewer fields, which have defaults now.
    units = shards_in_all(min(names))
    # Compare the numbers first: the total in the name of an untrusted file may be huge.
    if len(found) > 1 or units != len(names) or names != {shard_name(index, units) for index in range(units)}:
        raise ValueError(f"{source} does not hold one finished run; run the same annotate command again")
    return found.pop()


def _require_tokens(tokens: pa.Array, file: File, vocabulary: int) -> None:
    ids = tokens.flatten()
    if tokens.null_count or ids.null_count:
        raise ValueError(f"{file.url} has a null in `{INPUT_IDS}`; annotate its source again")
    ids_N = ids.to_numpy()
    if len(ids_N) and not 0 <= ids_N.min() <= ids_N.max() < vocabulary:
        ids = f"token ids from {ids_N.min()} to {ids_N.max()}"
        raise ValueError(f"{file.url} has {ids}, beyond its vocabulary of {vocabulary:,}; annotate its source again")


def _require_labels(batch: pa.RecordBatch, file: File, first_row: int) -> None:
    """Check every entropy column of the batch."""
    for name in set(PER_TOKEN) & set(batch.schema.names):
        labels = batch.column(name)
        nats = labels.flatten().drop_null().to_numpy()
        if not np.isfinite(nats).all():
            raise ValueError(f"{file.url} has a label in `{name}` that is not finite; annotate its source again")
        if len(nats) and np.abs(nats).max() > MOST_NATS:
            largest = f"a label of {nats[np.abs(nats).argmax()]:.3g} nats in `{name}`"
            raise ValueError(f"{file.url} has {largest}, more than a token can have; annotate its source again")
        if INPUT_IDS in batch.schema.names:
            tokens_M = batch.column(INPUT_IDS).value_lengths().to_numpy(zero_copy_only=False)
            labels_M = labels.value_lengths().to_numpy(zero_copy_only=False)
            if not np.array_equal(tokens_M, labels_M):
                row = int(np.argmax(tokens_M != labels_M))
                wrong = f"{labels_M[row]} labels in `{name}` for {tokens_M[row]} tokens"
                raise ValueError(f"row {first_row + row} of {file.url} has {wrong}; annotate its source again")


def _values(name: str, column: pa.Array) -> Sequence[Any]:
    if name not in (INPUT_IDS, *PER_TOKEN):
        return _python_values(column)
    numbers_N = column.flatten().to_numpy(zero_copy_only=False)
    numbers_N = numbers_N.astype(np.int32 if name == INPUT_IDS else np.float32)  # a copy, which may be written to
    return np.split(numbers_N, np.cumsum(column.value_lengths().to_numpy())[:-1])


def _python_values(column: pa.Array) -> list[Any]:
    """Return the column's values; bytes of text that are not UTF-8 become U+FFFD."""
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeDecodeError:
        if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
            raise
        stored = column.view(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()).to_pylist()
        return [None if value is None else value.decode(errors="replace") for value in stored]
