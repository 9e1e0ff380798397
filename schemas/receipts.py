"""A run's records: its plan, a receipt for every committed shard, a note on every quarantined unit."""

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
OWN, COMMITTED = "*.json", "*.jsonl"  # receipts: of a unit that was labelled here; of a commit to a repository
RECEIPT_FILES = (OWN, COMMITTED)
PLAN_FILE, LOCK_FILE, REPORT_FILE = "plan.json", "lock", "report.json"
PUBLISHED_FILE = "published.jsonl"  # receipts of shards in the repository that a folder is staging for
BIN_NATS, BINS = 0.5, 34
SHA256 = re.compile("[0-9a-f]{64}")
LARGEST_NATS = 3.5e38  # of a label, which is float32


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a shard, or a whole dataset, holds; `nats` is the sum of its entropies."""

    rows: int = 0
    rows_without_text: int = 0
    """Null, empty or not text; their lists are empty."""
    rows_too_long: int = 0
    """Their documents are longer than `longest_document`; their lists are empty, and `rows_without_text` counts them
    too."""
    rows_with_unknown_text: int = 0
    """Something in them has no token: it became the tokenizer's unknown token, or nothing."""
    rows_with_replacements: int = 0
    """Their text holds U+FFFD, which stands for what was not valid Unicode here or before."""
    tokens: int = 0
    labelled_tokens: int = 0
    text_bytes: int = 0
    arrow_bytes: int = 0
    """Of the rows in memory."""
    nats: float = 0.0
    histogram: tuple[int, ...] = ()
    """Labelled tokens by entropy: below 0, then in bins of BIN_NATS from 0 on, the last of them without an end."""

    def __add__(self, other: "Counts") -> "Counts":
        sums = {name: value + getattr(other, name) for name, value in vars(self).items() if name != "histogram"}
        histogram = tuple(map(sum, zip_longest(self.histogram, other.histogram, fillvalue=0)))
        return Counts(**sums, histogram=histogram)

    @property
    def mean_entropy(self) -> float:
        """Nats a labelled token."""
        return self.nats / max(1, self.labelled_tokens)

    def require_possible(self) -> None:
        """Refuse figures that no shard can have.

        Raises:
            ValueError: if these are such.
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
    """A committed shard."""

    unit: int
    shard: str
    sha256: str
    size: int
    """Bytes of the file."""
    counts: Counts

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Receipt":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: if no unit can have such a receipt, one that names another file than the unit's shard among it.
        """
        receipt = decoded(cls, json_object(text))
        require_name(receipt.unit, receipt.shard)
        if not SHA256.fullmatch(receipt.sha256):
            raise ValueError("sha256 is not a digest")
        receipt.counts.require_possible()
        return receipt


def as_lines(receipts: Iterable[Receipt]) -> str:
    """A receipt per line, as a repository has them."""
    return "".join(f"{receipt.to_json()}\n" for receipt in receipts)


def from_lines(text: str) -> list[Receipt]:
    """Reads what `as_lines` wrote.

    Raises:
        ValueError: if no unit can have one of them.
    """
    return list(map(Receipt.from_json, text.splitlines()))


class Total(NamedTuple):
    """Some shards together."""

    counts: Counts
    sha256: str
    """A digest of theirs: two datasets that share it are the same."""
    size: int
    """Bytes of their files."""


def total(receipts: Iterable[Receipt]) -> Total:
    """The figures of receipts in the order of their units, so that the sum of nats is always the same bits."""
    counts, digest, size = Counts(), hashlib.sha256(), 0
    for receipt in receipts:
        counts += receipt.counts
        digest.update(receipt.sha256.encode())
        size += receipt.size
    return Total(counts, digest.hexdigest(), size)


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A note on a quarantined unit: which rows have no shard, and why."""

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
        """Reads what `to_json` wrote.

        Raises:
            ValueError: if no unit can have such a note.
        """
        note = decoded(cls, json_object(text))
        require_name(note.unit, note.shard)
        return note


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """A file of the source."""

    url: str
    size: int
    version: str


PlannedUnit = tuple[int, int, int]
"""Number of the file, first row, row after the last."""


@dataclass(frozen=True)
class Plan:
    """The plan of a run: what every label depends on, where its inputs are, and its units."""

    provenance: Provenance
    inputs: tuple[str, ...]
    """As they were given, before any was pinned to a commit."""
    checkpoint: str | None = None
    """If it is from the Hub, USER/NAME@COMMIT."""
    source: tuple[str, ...] = ()
    """The same inputs, those on the Hub at their commits."""
    schema: pa.Schema | None = None
    """Columns that are written; None only in a plan that an older version wrote."""
    tokenizer_config_sha256: str | None = None
    """Digest of the tokenizer's settings, which name the token before a document; None where there are none, and in a
    plan that an older version wrote."""
    files: tuple[PlannedFile, ...] = ()
    """Of the source, and the units below: empty before the plan is written."""
    units: tuple[PlannedUnit, ...] = ()

    @property
    def rows(self) -> list[int]:
        """Number of rows of each unit."""
        return [stop - start for _, start, stop in self.units]

    def to_json(self) -> str:
        names = ("inputs", "checkpoint", "source", "tokenizer_config_sha256")
        values = {"run": asdict(self.provenance), **{name: getattr(self, name) for name in names}}
        if self.schema is not None:
            values["schema"] = b64encode(pa.schema([*self.schema]).serialize()).decode()
        return json.dumps({**values, "files": [asdict(file) for file in self.files], "units": self.units})

    @classmethod
    def from_json(cls, text: str | bytes) -> "Plan":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: if no run can have such a plan.
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
    """A plan's JSON besides its provenance."""

    inputs: tuple[str, ...]
    checkpoint: str | None = None
    source: tuple[str, ...] | None = None
    """None in a plan that an older version wrote, whose provenance has them."""
    schema: str | None = None
    """Arrow's own bytes in base64."""
    tokenizer_config_sha256: str | None = None
    files: tuple[PlannedFile, ...]
    units: tuple[PlannedUnit, ...]

    def require_possible(self) -> None:
        if self.source is not None and len(self.source) != len(self.inputs):
            raise ValueError(f"source names {len(self.source)} inputs, and inputs {len(self.inputs)}")
        if not all(file < len(self.files) and start < stop for file, start, stop in self.units):
            raise ValueError("units has one that is no rows of a file")


def _read_schema(text: str) -> pa.Schema:
    try:
        return pa.ipc.read_schema(pa.py_buffer(b64decode(text, validate=True)))
    except (pa.ArrowException, ValueError, OSError) as error:
        raise ValueError(f"schema holds no columns: {error}") from error


def require_name(unit: int, shard: str) -> None:
    """Refuse a shard's name that is not the one of its unit: it could be any path.

    Raises:
        ValueError: if it is another.
    """
    shards = shards_in_all(shard)
    if unit >= shards or shard != shard_name(unit, shards):
        raise ValueError(f"shard is {shard!a:.60}, which is not a name of unit {unit}")
