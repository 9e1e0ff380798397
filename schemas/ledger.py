"""What a run writes down about itself: its plan, a receipt for every committed shard, a note on every unit given up."""

import json
from dataclasses import asdict, dataclass
from itertools import zip_longest

RECEIPTS, QUARANTINE = "receipts", "quarantine"
PLAN_FILE, LOCK_FILE, REPORT_FILE = "plan.json", "lock", "report.json"
PUBLISHED_FILE = "published.jsonl"  # receipts of what is in the repository that a folder is staging for
BIN_NATS, BINS = 0.5, 34


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
        values = json.loads(text)
        counts = {**values["counts"], "histogram": tuple(values["counts"]["histogram"])}
        return cls(**{**values, "counts": Counts(**counts)})


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
        return cls(**json.loads(text))
