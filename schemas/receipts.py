"""What a run writes down about itself: its plan, a receipt for every committed shard, a note on every unit given up."""

import json
import re
from dataclasses import asdict, dataclass
from itertools import zip_longest

from schemas.decoding import decoded, json_object
from schemas.layout import shard_name, shards_in_all

RECEIPTS, QUARANTINE = "receipts", "quarantine"
OWN, COMMITTED = "*.json", "*.jsonl"  # receipts: of a unit that was labelled here; of a commit to a repository
RECEIPT_FILES = (OWN, COMMITTED)
PLAN_FILE, LOCK_FILE, REPORT_FILE = "plan.json", "lock", "report.json"
PUBLISHED_FILE = "published.jsonl"  # receipts of what is in the repository that a folder is staging for
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


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A unit that was given up: which rows have no shard, and why."""

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


@dataclass(frozen=True, kw_only=True)
class PlannedUnits:
    """What a plan holds besides its provenance."""

    inputs: tuple[str, ...]
    """As they were given."""
    checkpoint: str | None = None
    source: tuple[str, ...] | None = None
    """The inputs at their commits; None in a plan that an older version wrote."""
    schema: str | None = None
    """Columns that are written, Arrow's own bytes in base64."""
    tokenizer_config_sha256: str | None = None
    """None where the tokenizer has no settings, and in a plan that an older version wrote."""
    files: tuple[PlannedFile, ...]
    units: tuple[tuple[int, int, int], ...]
    """Number of the file, first row, row after the last."""

    @classmethod
    def from_values(cls, values: object) -> "PlannedUnits":
        """Reads a plan's object.

        Raises:
            ValueError: if no run can have such a plan.
        """
        plan = decoded(cls, values)
        if plan.source is not None and len(plan.source) != len(plan.inputs):
            raise ValueError(f"source names {len(plan.source)} inputs, and inputs {len(plan.inputs)}")
        if not all(file < len(plan.files) and start < stop for file, start, stop in plan.units):
            raise ValueError("units has one that is no rows of a file")
        return plan


def require_name(unit: int, shard: str) -> None:
    """Refuse a shard's name that is not the one of its unit: it could be any path.

    Raises:
        ValueError: if it is another.
    """
    shards = shards_in_all(shard)
    if unit >= shards or shard != shard_name(unit, shards):
        raise ValueError(f"shard is {shard!a:.60}, which is not a name of unit {unit}")
