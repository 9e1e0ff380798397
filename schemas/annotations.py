"""The annotated dataset: its columns, their units, the alignment rule and the provenance in every file.

The one alignment rule: `entropy[i]` speaks of `input_ids[i]`. No shift, no special tokens, equal lengths.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa

from schemas.decoding import decoded, json_object
from schemas.rows import NO_BOUND, TEXT_COLUMN, features_metadata, read_features

SCHEMA_VERSION = 3
PROVENANCE_KEY = b"token_entropy.provenance"

INPUT_IDS = "input_ids"
ENTROPY = "entropy"
EXPECTED_ENTROPY = "expected_entropy"
NUM_TOKENS = "num_tokens"
MEAN_ENTROPY = "mean_entropy"

ROUNDING_NATS = 1 / 128
MOST_VOCABULARY = 2**24  # of token ids: sixteen times as many as the largest vocabularies have
MOST_WINDOW = 2**31 - 1
MOST_NATS = 1e6  # of a label: a loss in float32 is finite with it

SHIPPED_MODEL, UNRECORDED_MODEL = "shipped demonstration model", "a model that was not recorded"
BETTER_MODEL = "small, for demonstrations; --method causal --estimator NAME labels with a language model of your choice"

Method = Literal["second-order", "exact", "causal"]
Dtype = Literal["float32", "bfloat16"]
Device = Literal["cpu", "cuda"]

DESCRIPTIONS = {
    INPUT_IDS: "the encoding of the source's `text`, without special tokens, or the source's own `input_ids`",
    ENTROPY: "nats that token i carries given the tokens before it, an estimate of -ln p; at the index of its token",
    EXPECTED_ENTROPY: "nats expected of token i before it is seen",
    NUM_TOKENS: "length of each list",
    MEAN_ENTROPY: "mean of `entropy` over the labelled tokens; null where there are none",
}

LIMITS: dict[Method, str] = {
    "second-order": "Each label is what a model expects an exact label to be, from one pass over the text: it varies "
    "less than exact labels do, and carries the errors of the estimator that the model learned from.",
    "exact": "Each label is the difference of two code lengths that the estimator finds: right in the sum over a "
    "window, noisy at a single token, negative where the longer text was the cheaper one. It is kept as it is.",
    "causal": "Each label is the loss of a causal language model: never below the entropy in the mean, and above it by "
    "all that the model does not know.",
}


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Everything that the labels of a dataset depend on. Two runs that differ in any field make different datasets."""

    method: Method
    checkpoint_sha256: str
    tokenizer_sha256: str | None
    """None if the source came tokenized."""
    vocabulary: int
    window: int
    overlap: int
    share: float
    """Share of the tokens that are labelled; the others have null."""
    keep_text: bool
    source: tuple[str, ...]
    """Names of the inputs: the first URLs, and the number of local files."""
    source_sha256: str
    """Digest of the source files' names, sizes and Parquet footers."""
    source_rows: int
    text_column: str
    """Column of the source that was labelled: its documents' text, or their token ids if it came tokenized."""
    columns: tuple[str, ...] | None
    """Columns of the source that are passed on, or None for all."""
    rows_per_unit: int
    source_seen_by_estimator: Literal["yes", "no", "unknown"]
    folds: int = 1
    """Above 1: number of checkpoints, each of which labelled the documents that it was not trained on."""
    start_token: int | None = None
    """Id of the token that a causal model read before every window; None for the other methods."""
    estimator_tokenizer_sha256: str | None = None
    """Digest of the checkpoint's tokenizer, if labels were moved from its tokens to `input_ids` through their bytes."""
    dtype: Dtype = "float32"
    """Type that the checkpoint computed in."""
    choices: tuple[str, ...] = ()
    """The choice in each folder or dataset of the source with several configurations or splits."""
    batch_invariant: bool = False
    """True if every window was labelled alone, so that labels do not depend, by rounding, on other documents."""
    source_files: int = 0
    """Number of files; 0 if an older version wrote this."""
    model: str = UNRECORDED_MODEL
    """The checkpoint's name: USER/NAME@COMMIT of the Hub, or its folder's last part, or SHIPPED_MODEL."""
    names_of_text: bool = False
    """True if documents that are text files have their names as `id` and `file`; older runs lack them."""
    longest_document: int = NO_BOUND
    """Bytes of the longest document that was labelled, four per token id; older runs had no such bound."""
    rounding_nats: float = ROUNDING_NATS
    schema_version: int = SCHEMA_VERSION

    @property
    def labelled_by(self) -> str:
        """The model's name, with a hint at better labels if it is SHIPPED_MODEL."""
        return f"{self.model} ({BETTER_MODEL})" if self.model == SHIPPED_MODEL else self.model

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Provenance":
        """Read the output of `to_json`.

        Raises:
            ValueError: as `from_values` does.
        """
        return cls.from_values(json_object(text))

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "Provenance":
        """Read the object in the output of `to_json`.

        Raises:
            ValueError: if another version of the schema wrote it, or no run can have such a provenance.
        """
        if (version := values.get("schema_version")) != SCHEMA_VERSION:
            raise ValueError(
                f"labels of schema version {version!s:.20}, this reads {SCHEMA_VERSION}; annotate anew elsewhere"
            )
        provenance = decoded(cls, values)
        provenance.require_ranges()
        return provenance

    def require_ranges(self) -> None:
        """Refuse numbers that no run writes.

        Raises:
            ValueError: if there is one.
        """
        ranges = {
            "vocabulary": 0 < self.vocabulary <= MOST_VOCABULARY,
            "window": 0 < self.window <= MOST_WINDOW,
            "overlap": 0 <= self.overlap < self.window,
            "share": 0 < self.share <= 1,
            "rows_per_unit": self.rows_per_unit >= 1,
            "folds": self.folds >= 1,
            "start_token": self.start_token is None or self.start_token < MOST_VOCABULARY,
        }
        if wrong := [name for name, right in ranges.items() if not right]:
            raise ValueError(f"its {wrong[0]} is {getattr(self, wrong[0])}, which no run writes")


def annotated_schema(source: pa.Schema, provenance: Provenance) -> pa.Schema:
    """The columns of a plain schema that are passed on, with their features of `datasets`, then the labels.

    Raises:
        ValueError: if the source has a column of one of our names, or lacks one that was named.
    """
    tokenized = provenance.tokenizer_sha256 is None
    text = {TEXT_COLUMN if tokenized else provenance.text_column}
    names = set(source.names if provenance.columns is None else provenance.columns)
    if unknown := names - set(source.names):
        raise ValueError(f"the source has no column {', '.join(sorted(unknown))}; it has {', '.join(source.names)}")
    names = names | text if provenance.keep_text else names - text
    names -= {provenance.text_column} if tokenized else set()
    passed = [field for field in source if field.name in names]
    labels = [
        pa.field(INPUT_IDS, pa.list_(pa.int32())),
        pa.field(ENTROPY, pa.list_(pa.float32())),
        *([pa.field(EXPECTED_ENTROPY, pa.list_(pa.float32()))] if provenance.method == "second-order" else []),
        pa.field(NUM_TOKENS, pa.int32()),
        pa.field(MEAN_ENTROPY, pa.float32()),
    ]
    taken = {field.name for field in passed} & {field.name for field in labels}
    if taken:
        advice = "rename them, or name those to pass on with `columns`"
        if INPUT_IDS in taken and not tokenized:
            advice += f"; to label its tokens, give `tokenizer` none `text_column` {INPUT_IDS}"
        raise ValueError(f"the source has columns that annotation writes: {', '.join(sorted(taken))}; {advice}")
    features = {name: feature for name, feature in read_features(source, "the source").items() if name in names}
    metadata = {**features_metadata(features), PROVENANCE_KEY: provenance.to_json().encode()}
    return pa.schema([*passed, *labels], metadata=metadata)
