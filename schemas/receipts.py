"""Records of a run: its plan, a receipt for every committed shard, and a note on every quarantined unit.

A unit is a range of rows of one source file. A run labels a unit as a whole and writes it as one shard.
"""

import hashlib
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import NamedTuple

import pyarrow as pa

from schemas.annotations import Provenance
from schemas.decoding import decoded, json_object
from schemas.layout import shard_name, shards_in_all

RECEIPTS, QUARANTINE = "receipts", "quarantine"
OWN, COMMITTED = "*.json", "*.jsonl"  # the receipt of one unit labelled here; all receipts of a commit to a repository
RECEIPT_FILES = (OWN, COMMITTED)
PLAN_FILE, LOCK_FILE, REPORT_FILE = "plan.json", "lock", "report.json"
PUBLISHED_FILE = "published.jsonl"  # receipts of shards in the repository that a folder is staging for
BIN_NATS, BINS = 0.5, 34
SHA256 = re.compile("[0-9a-f]{64}")
LARGEST_NATS = 3.5e38  # above the largest float32, the type of labels


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of rows, tokens and bytes in a shard or a whole dataset, and the sum of all entropies in nats."""

    rows: int = 0
    rows_without_text: int = 0
    """Rows whose text is null, empty or not text. Their lists of tokens and labels are empty."""
    rows_too_long: int = 0
    """Rows whose document is longer than `longest_document`. They are also counted in `rows_without_text`. Their lists
    of tokens and labels are empty."""
    rows_with_unknown_text: int = 0
    """Rows with characters that the tokenizer replaced by its unknown token, or dropped."""
    rows_with_replacements: int = 0
    """Rows whose text contains U+FFFD, the replacement for invalid Unicode. The run inserted it, or the text had it
    before."""
    rows_without_fit: int = 0
    """Rows whose domain has no fit of its own in the calibration. Their labels got the pooled fit."""
    rows_changed: int = 0
    """Rows of a joined dataset whose text is not the one that was labelled. They have no labels."""
    rows_unmatched: int = 0
    """Rows of a joined dataset whose document is not among the labelled documents. They have no labels."""
    tokens: int = 0
    labelled_tokens: int = 0
    text_bytes: int = 0
    arrow_bytes: int = 0
    """Size of the rows as Arrow data in memory, in bytes."""
    nats: float = 0.0
    histogram: tuple[int, ...] = ()
    """Number of labelled tokens in each bin of entropy: one bin below 0, then bins of BIN_NATS from 0 up. The last bin
    has no upper end."""

    def __add__(self, other: "Counts") -> "Counts":
        sums = {name: value + getattr(other, name) for name, value in vars(self).items() if name != "histogram"}
        histogram = tuple(map(sum, zip_longest(self.histogram, other.histogram, fillvalue=0)))
        return Counts(**sums, histogram=histogram)

    @property
    def mean_entropy(self) -> float:
        """Mean entropy of the labelled tokens in nats; 0 if no token is labelled."""
        return self.nats / max(1, self.labelled_tokens)

    def require_possible(self) -> None:
        """Raise if counts contradict each other.

        Raises:
            ValueError: naming the first count that no shard can have.
        """
        if len(self.histogram) not in (0, BINS):
            raise ValueError(f"histogram has {len(self.histogram)} bins, not {BINS}")
        if self.histogram and sum(self.histogram) != self.labelled_tokens:
            raise ValueError(f"histogram counts {sum(self.histogram)} tokens, labelled_tokens {self.labelled_tokens}")
        if self.labelled_tokens > self.tokens:
            raise ValueError(f"labelled_tokens is {self.labelled_tokens}, of {self.tokens} tokens")
        if abs(self.nats) > LARGEST_NATS * self.labelled_tokens:
            raise ValueError(f"nats is {self.nats}, the sum of {self.labelled_tokens} labels")


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """Receipt of a committed shard."""

    unit: int
    shard: str
    sha256: str
    size: int
    """Size of the shard's file in bytes."""
    counts: Counts

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Receipt":
        """Parse the output of `to_json`.

        Raises:
            ValueError: if `text` is not a valid receipt, for example because it names another unit's shard.
        """
        receipt = decoded(cls, json_object(text))
        require_name(receipt.unit, receipt.shard)
        if not SHA256.fullmatch(receipt.sha256):
            raise ValueError("sha256 is not a digest")
        receipt.counts.require_possible()
        return receipt


def as_lines(receipts: Iterable[Receipt]) -> str:
    """Return receipts as JSON Lines, the form in which a repository on the Hub stores them."""
    return "".join(f"{receipt.to_json()}\n" for receipt in receipts)


def from_lines(text: str) -> list[Receipt]:
    """Parse the output of `as_lines`.

    Raises:
        ValueError: if a line is not a valid receipt.
    """
    return list(map(Receipt.from_json, text.splitlines()))


class Total(NamedTuple):
    """Totals of several shards."""

    counts: Counts
    sha256: str
    """Digest of the shards' digests. Datasets with equal digests have identical shards."""
    size: int
    """Total size of the shards' files in bytes."""


def total(receipts: Iterable[Receipt]) -> Total:
    """Return the totals of receipts. Pass the receipts in the order of their units, so that totals are reproducible."""
    counts, digest, size = Counts(), hashlib.sha256(), 0
    for receipt in receipts:
        counts += receipt.counts
        digest.update(receipt.sha256.encode())
        size += receipt.size
    return Total(counts, digest.hexdigest(), size)


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """Note on a quarantined unit: its rows, which have no shard, and the reason."""

    unit: int
    shard: str
    file: str
    start: int
    stop: int
    reason: str

    def __str__(self) -> str:
        return f"unit {self.unit}, rows {self.start} to {self.stop} of {self.file}: {self.reason}"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Quarantined":
        """Parse the output of `to_json`.

        Raises:
            ValueError: if `text` is not a valid note.
        """
        note = decoded(cls, json_object(text))
        require_name(note.unit, note.shard)
        return note


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """Source file, with its size in bytes and its version."""

    url: str
    size: int
    version: str


PlannedUnit = tuple[int, int, int]
"""A unit as three numbers: the index of its file in `Plan.files`, its first row, and the row after its last row."""


@dataclass(frozen=True)
class Plan:
    """Plan of a run: the provenance of its labels, the location of its inputs, and its units."""

    provenance: Provenance
    inputs: tuple[str, ...]
    """Inputs as the user gave them, not pinned to commits."""
    checkpoint: str | None = None
    """USER/NAME@COMMIT if the checkpoint is from the Hub, otherwise None."""
    source: tuple[str, ...] = ()
    """The same inputs as in `inputs`, except that inputs on the Hub are pinned to commits."""
    schema: pa.Schema | None = None
    """Schema of the shards; None only in plans of older versions."""
    tokenizer_config_sha256: str | None = None
    """Digest of `tokenizer_config.json`, which names the token that precedes a document. None if there is no such file,
    and in plans of older versions."""
    files: tuple[PlannedFile, ...] = ()
    """Source files. Until the plan is written, `files` and `units` are empty."""
    units: tuple[PlannedUnit, ...] = ()

    @property
    def rows(self) -> list[int]:
        """Number of rows in each unit."""
        return [stop - start for _, start, stop in self.units]

    def to_json(self) -> str:
        names = ("inputs", "checkpoint", "source", "tokenizer_config_sha256")
        values = {"run": asdict(self.provenance), **{name: getattr(self, name) for name in names}}
        if self.schema is not None:
            values["schema"] = b64encode(pa.schema([*self.schema]).serialize()).decode()
        return json.dumps({**values, "files": [asdict(file) for file in self.files], "units": self.units})

    @classmethod
    def from_json(cls, text: str | bytes) -> "Plan":
        """Parse the output of `to_json`.

        Raises:
            ValueError: if `text` is not a valid plan.
        """
        values = json_object(text)
        run = values.pop("run", None)
        if not isinstance(run, dict):
            raise ValueError("run is not an object")
        provenance = Provenance.from_values(run)
        written = decoded(_WrittenPlan, values)
        written.require_possible()
        return cls(
            provenance=provenance,
            inputs=written.inputs,
            checkpoint=written.checkpoint,
            source=provenance.source if written.source is None else written.source,
            schema=None if written.schema is None else _read_schema(written.schema),
            tokenizer_config_sha256=written.tokenizer_config_sha256,
            files=written.files,
            units=written.units,
        )


@dataclass(frozen=True, kw_only=True)
class _WrittenPlan:
    """A plan's JSON without the provenance."""

    inputs: tuple[str, ...]
    checkpoint: str | None = None
    source: tuple[str, ...] | None = None
    """Pinned inputs, as in `Plan.source`; None in plans of older versions, which have them only in the provenance."""
    schema: str | None = None
    """Arrow's serialized schema in base64."""
    tokenizer_config_sha256: str | None = None
    files: tuple[PlannedFile, ...]
    units: tuple[PlannedUnit, ...]

    def require_possible(self) -> None:
        if self.source is not None and len(self.source) != len(self.inputs):
            raise ValueError(f"source names {len(self.source)} inputs, and inputs {len(self.inputs)}")
        if not all(file < len(self.files) and start < stop for file, start, stop in self.units):
            raise ValueError("units holds one without rows, or of a file that is not in the plan")


def _read_schema(text: str) -> pa.Schema:
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(b64decode(text, validate=True)))
        _require_names(schema)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise ValueError(f"schema cannot be read: {error}") from error
    return schema


def _require_names(fields: Iterable[pa.Field]) -> None:
    """Raise unless every field has a name in UTF-8. Arrow reads other bytes too, and fails when the name is used.

    Raises:
        ValueError: naming the bytes that are not UTF-8.
    """
    for field in fields:
        _ = field.name
        _require_names(field.type.field(index) for index in range(field.type.num_fields))


def require_name(unit: int, shard: str) -> None:
    """Raise unless `shard` is the name of this unit's shard. An untrusted name could be any path.

    Raises:
        ValueError: if `shard` is not the name of a shard, or is the name of another unit's shard.
    """
    shards = shards_in_all(shard)
    if unit >= shards or shard != shard_name(unit, shards):
        raise ValueError(f"shard is {shard!a:.60}, which is not the shard of unit {unit}")
