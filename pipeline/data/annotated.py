"""Annotated datasets: find them in a folder or on the Hub, and read their rows in batches with checked labels.

All labels are read through this module. `pipeline.data.loader` shuffles the rows, divides them among ranks and packs
them.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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
from pipeline.data.shards import SHARD, inspect_shard, mending, numbers_per_token, open_shard, reading_shard
from pipeline.data.skipped import counted
from pipeline.data.source_documents import SourceDocuments
from pipeline.data.streams import DamagedError
from pipeline.data.tokenizer import TOKENIZER_FILE, id_count, load_tokenizer
from schemas.annotations import (
    ENTROPY,
    ENTROPY_COLUMNS,
    EXPECTED_ENTROPY,
    INPUT_IDS,
    LOGPROB_COLUMNS,
    MOST_NATS,
    MOST_PREDICTIONS,
    PER_TOKEN,
    PREDICTION_COLUMNS,
    PROVENANCE_KEY,
    Provenance,
)
from schemas.decoding import text_of
from schemas.layout import DATA_FOLDER, Subset, require_contained, shard_name, shards_in_all
from schemas.receipts import QUARANTINE, Receipt, from_lines
from schemas.rows import NO_BOUND, is_list, is_token_list
from schemas.sidecars import DIGEST, KEY_FIELDS, STORED_IN_SIDECARS

SUBSET_NAMED = re.compile(rf"/{DATA_FOLDER}/[^/]+/?$")
COMMIT_NAMED = re.compile("@[0-9a-f]{40}$")
SEPARATOR = "::"
"""Text between the name of a sidecar and the name of its documents."""
FOOTERS_AT_A_TIME = 16  # reading a footer from the Hub is mostly waiting

Row = dict[str, Any]
"""Values of a row, by column name.

The value of `input_ids` is an int32 array [N], where N is the row's number of tokens. The value of a column of labels
is a float32 array [N], or [N, K] for a column with K numbers per token. A null label is NaN. Entropies and
log-probabilities are in nats. Labels that are token ids are also float32, which represents every id exactly. The values
of all remaining columns are Python objects."""


@dataclass(frozen=True)
class AnnotatedDataset:
    """Annotated dataset: its shards, the provenance that they share, and the folder of its tokenizer, if it has one."""

    source: str
    shards: tuple[File, ...]
    rows: tuple[int, ...]
    """Number of rows of each shard."""
    schema: pa.Schema
    """Schema of all columns."""
    provenance: Provenance
    tokenizer: Path | None
    documents: SourceDocuments | None = None
    """Documents of a sidecar, which are read where they are; None if the shards hold them."""

    def __len__(self) -> int:
        return sum(self.rows)

    @cached_property
    def vocabulary(self) -> int:
        """Number of rows that a model's embedding needs for the tokens of this dataset.

        This is the recorded vocabulary or, if the dataset has a tokenizer with higher ids, the highest id + 1. The
        recorded vocabulary of an older dataset is the number of tokens, which is too small if the tokenizer skips ids.
        """
        noted = self.provenance.vocabulary
        return noted if self.tokenizer is None else max(noted, id_count(load_tokenizer(self.tokenizer)))

    @property
    def place(self) -> str:
        """Path or URL of the subset's data folder, without the commit at which the dataset is read."""
        place, name, _ = _parts(self.source, self.shards[0])
        return f"{COMMIT_NAMED.sub('', place)}/{DATA_FOLDER}/{name}"

    @property
    def sha256(self) -> str:
        """Digest of the names, sizes and footers of all shards."""
        return hashlib.sha256("\n".join(info.sha256 for info in self.infos).encode()).hexdigest()

    @cached_property
    def infos(self) -> tuple[FileInfo, ...]:
        """Description of each shard, with its row groups and its digest.

        The footers of all shards are read again for these descriptions.

        Raises:
            ValueError, OSError: as inspect_file does.
        """
        with ThreadPoolExecutor(FOOTERS_AT_A_TIME) as pool:
            return tuple(pool.map(inspect_shard, self.shards))

    def columns(self, names: Sequence[str]) -> pa.Schema:
        """Return the schema of the named columns.

        Raises:
            ValueError: if no column is named, a column is named twice, or the shards lack a named column.
        """
        if unknown := set(names) - set(self.schema.names):
            has = ", ".join(self.schema.names)
            raise ValueError(f"{self.source} has no column {', '.join(sorted(unknown))}; it has {has}")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"name at least one column, and each only once, not {names}")
        return pa.schema([self.schema.field(name) for name in names])

    def batches(self, names: Sequence[str], start: int = 0, stop: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield batches of rows `start` to `stop` (exclusive), with the named columns.

        If `stop` is None, read to the end of the dataset. Tokens and labels are checked as in `read_labelled`.

        Raises:
            ValueError, OSError: as `columns` and `read_labelled` do.
        """
        schema, stop = self.columns(names), len(self) if stop is None else stop
        for shard, rows in zip(self.shards, self.rows, strict=True):
            if start < rows and stop > 0:
                yield from self.read(shard, max(0, start), min(stop, rows), schema)
            start, stop = start - rows, stop - rows

    def read(self, shard: File, start: int, stop: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yield batches of rows `start` to `stop` of a shard, with the columns of `schema`.

        Raises:
            ValueError: if the document of a row is not the one that was labelled.
            ValueError, OSError: as `read_labelled` does.
        """
        stored = [name for name in schema.names if name in STORED_IN_SIDECARS]
        if self.documents is None or len(stored) == len(schema.names):
            yield from read_labelled(shard, start, stop, schema, self.vocabulary)
            return
        labels = pa.schema([*(schema.field(name) for name in stored), *KEY_FIELDS])
        table = pa.Table.from_batches(read_labelled(shard, start, stop, labels, self.vocabulary), labels)
        for batch in self.documents.with_labels(table, schema):
            _require_labelled(batch, shard, start, self.vocabulary)
            start += len(batch)
            yield batch

    def corpus(self, start: int = 0, stop: int | None = None, *, expected: bool = False) -> Corpus:
        """Return rows `start` to `stop` (exclusive) as a corpus. If `stop` is None, read to the end of the dataset.

        The labels of the corpus are entropies in nats. NaN marks a token without a label. With `expected`, expected
        entropies are read too, if the dataset has them.

        Raises:
            ValueError, OSError: as `batches` does.
        """
        has_expected = expected and EXPECTED_ENTROPY in self.provenance.columns_of_labels
        names = (INPUT_IDS, ENTROPY, *([EXPECTED_ENTROPY] if has_expected else []))
        rows = pa.Table.from_batches(counted(self.batches(names, start, stop), self.source), self.columns(names))
        tokens = rows.column(INPUT_IDS).combine_chunks()
        nats = {name: rows.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False) for name in names[1:]}
        return Corpus(
            tokens_N=tokens.flatten().to_numpy(),
            offsets=np.concatenate([[0], np.cumsum(tokens.value_lengths().to_numpy(), dtype=np.int64)]),
            labels_N=nats[ENTROPY].astype(np.float32),
            expected_N=nats[EXPECTED_ENTROPY].astype(np.float32) if has_expected else None,
        )


def find_annotations(source: str) -> AnnotatedDataset:
    """Find the annotated dataset in a folder, or at `hf://datasets/user/name` with an optional `@revision`.

    Without a revision, the newest commit is used. If the dataset has several subsets, `source` must be the data folder
    of one of them, as in `folder/data/exact`. A sidecar is named with its documents, as in `labels::fineweb/*.parquet`;
    these must be the files that were labelled.

    Raises:
        ValueError: if there is no annotated dataset; if the dataset is unfinished, or has several subsets and `source`
            names none of them; if a link in the dataset leads out of the dataset's folder; if a sidecar's documents
            are not named, or are not found.
        ConnectionError: if the Hub cannot be reached.
    """
    named, joined, documents = source.partition(SEPARATOR)
    dataset = find_shards(named)
    if dataset.provenance.sidecar and not documents:
        raise ValueError(
            f"{source} is a sidecar, which has no documents: name them too, as in {source}{SEPARATOR}DOCUMENTS, "
            "or join them with pipeline.join"
        )
    if not joined:
        return dataset
    if not dataset.provenance.sidecar:
        raise ValueError(f"{named} has its documents; leave {SEPARATOR}{documents} out")
    found = SourceDocuments.find(documents, dataset.provenance, dataset.tokenizer)
    schema = plain_schema(found.annotated_schema(dataset.provenance), source)
    return replace(dataset, source=source, schema=schema, documents=found)


def find_shards(source: str) -> AnnotatedDataset:
    """Find the shards of an annotated dataset or of a sidecar.

    The documents of a sidecar are not looked up, and `source` must not name them.

    Raises:
        ValueError, ConnectionError: as `find_annotations`, but never because of a sidecar's documents.
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
    """Yield batches of rows `start` to `stop` of a shard, with the columns of `schema`. Tokens and labels are checked.

    Raises:
        ValueError: if a token id is null or outside the vocabulary; if a label is infinite, not a number or larger than
            MOST_NATS in absolute value; if tokens and labels are both read and a row has different numbers of them.
        ValueError, OSError: as read_rows does.
    """
    with reading_shard(file):
        for batch in read_rows(file, start, stop, schema, Column(schema.names[0], longest=NO_BOUND)):
            _require_labelled(batch, file, start, vocabulary)
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
    """Download a subset's tokenizer and its notes on quarantined units from the Hub.

    Return the folder that holds the copies. A unit is the range of rows of one shard.
    """
    uri, places = parse_hf_uri(place), Subset(name)
    wanted = [f"{places.tokenizer.as_posix()}/*", f"{(places.ledger / QUARANTINE).as_posix()}/*"]
    return Path(snapshot_download(uri.id, repo_type="dataset", revision=uri.revision, allow_patterns=wanted))


class _Footer(NamedTuple):
    """Contents of a shard's footer: number of rows, schema and provenance."""

    rows: int
    schema: pa.Schema
    provenance: Provenance


def _read_footer(shard: File) -> _Footer:
    with open_shard(shard) as parquet:
        rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
    tokens = DIGEST if DIGEST in schema.names else INPUT_IDS
    if not {tokens, ENTROPY} <= set(schema.names) or PROVENANCE_KEY not in (schema.metadata or {}):
        raise ValueError(
            f"{shard.url} was not written by pipeline.annotate: it lacks labels or their provenance; name another"
        )
    _require_lists(shard, schema)
    try:
        return _Footer(rows, schema, Provenance.from_json(schema.metadata[PROVENANCE_KEY].decode()))
    except ValueError as error:
        raise DamagedError(f"the provenance in {shard.url} cannot be read ({error})", mending(shard)) from error


def _require_lists(shard: File, schema: pa.Schema) -> None:
    """Check the types of the columns of tokens and labels.

    Raises:
        DamagedError: if a column does not have the type that `_holds` describes.
    """
    for name in {INPUT_IDS, *PER_TOKEN} & {*schema.names}:
        kind = schema.field(name).type
        if not _holds(name, kind):
            raise DamagedError(f"column `{name}` of {shard.url} holds {kind}, not lists of numbers", mending(shard))
    for key in KEY_FIELDS:
        at = schema.get_field_index(key.name)
        if at >= 0 and DIGEST in schema.names and schema.field(at).type != key.type:
            raise DamagedError(f"column `{key.name}` of {shard.url} holds {schema.field(at).type}", mending(shard))


def _holds(name: str, kind: pa.DataType) -> bool:
    """True if a type is right for a column of tokens or labels.

    A column of tokens, ranks or ids must hold lists of integers. A column of entropies or log-probabilities must hold
    lists of floating-point numbers of any precision. A column with K numbers per token has a list of K numbers in place
    of each number.
    """
    if name in PREDICTION_COLUMNS:
        lists = is_list(kind) and pa.types.is_fixed_size_list(kind.value_type)
        if not lists or kind.value_type.list_size > MOST_PREDICTIONS:
            return False
        kind = kind.value_type
    if name in (*ENTROPY_COLUMNS, *LOGPROB_COLUMNS):
        return is_list(kind) and bool(pa.types.is_floating(kind.value_type))
    return is_token_list(kind)


def _require_received(subset: Subset, source: str, shards: Sequence[File], rows: Sequence[int]) -> None:
    """Check the size and the number of rows of each shard against the shard's receipt.

    A shard is not checked if its receipt is not on this machine.

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

    `names` are the names of all shards, including those of quarantined units, which have no file. `found` are the
    distinct provenances in the shards' footers.

    Raises:
        ValueError: if the provenances differ, or the names are not those of all shards of one run.
    """
    # Parsed provenances are compared, since older versions wrote fewer fields, which have defaults now.
    units = shards_in_all(min(names))
    # Compare the numbers first: the total in the name of an untrusted file may be huge.
    if len(found) > 1 or units != len(names) or names != {shard_name(index, units) for index in range(units)}:
        raise ValueError(f"{source} does not hold one finished run; run the same annotate command again")
    return found.pop()


def _require_labelled(batch: pa.RecordBatch, file: File, first_row: int, vocabulary: int) -> None:
    if INPUT_IDS in batch.schema.names:
        _require_tokens(batch.column(INPUT_IDS), file, vocabulary)
    _require_labels(batch, file, first_row)


def _require_tokens(tokens: pa.Array, file: File, vocabulary: int) -> None:
    ids = tokens.flatten()
    if tokens.null_count or ids.null_count:
        raise ValueError(f"{file.url} has a null in `{INPUT_IDS}`; annotate its source again")
    ids_N = ids.to_numpy()
    if len(ids_N) and not 0 <= ids_N.min() <= ids_N.max() < vocabulary:
        ids = f"token ids from {ids_N.min()} to {ids_N.max()}"
        raise ValueError(f"{file.url} has {ids}, beyond its vocabulary of {vocabulary:,}; annotate its source again")


def _require_labels(batch: pa.RecordBatch, file: File, first_row: int) -> None:
    """Check that all labels are finite and within MOST_NATS, and that each row has one label or null for each token."""
    for name in set(PER_TOKEN) & set(batch.schema.names):
        labels = batch.column(name)
        numbers = labels.flatten().flatten() if name in PREDICTION_COLUMNS else labels.flatten().drop_null()
        nats = numbers.to_numpy(zero_copy_only=False)  # a null inside of a list becomes NaN
        if not np.isfinite(nats).all():
            raise ValueError(f"{file.url} has a label in `{name}` that is not finite; annotate its source again")
        if name in (*ENTROPY_COLUMNS, *LOGPROB_COLUMNS) and len(nats) and np.abs(nats).max() > MOST_NATS:
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
    numbers_N = numbers_per_token(name, column) if name in PER_TOKEN else column.flatten().to_numpy()
    numbers_N = numbers_N.astype(np.int32 if name == INPUT_IDS else np.float32)  # a writable copy
    return np.split(numbers_N, np.cumsum(column.value_lengths().to_numpy())[:-1])


def _python_values(column: pa.Array) -> list[Any]:
    """Return the column's values as Python objects. In text, bytes that are not UTF-8 become U+FFFD."""
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeDecodeError:
        if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
            raise
        stored = column.view(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()).to_pylist()
        return [None if value is None else value.decode(errors="replace") for value in stored]
