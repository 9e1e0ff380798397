"""The annotated dataset: its columns, their units, the alignment rule and the provenance in every file.

Alignment: `entropy[i]` is the label of `input_ids[i]`. Labels are not shifted, and there are no special tokens. All
lists of a row have equal lengths. Columns of predictions are lists of lists of K numbers: the list at index i is
about `input_ids[i]`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import pyarrow as pa

from schemas.calibrations import Calibration
from schemas.decoding import decoded, json_object
from schemas.rows import NO_BOUND, TEXT_COLUMN, features_metadata, read_features

SCHEMA_VERSION = 3
PROVENANCE_KEY = b"token_entropy.provenance"

INPUT_IDS = "input_ids"
ENTROPY: Final = "entropy"
EXPECTED_ENTROPY: Final = "expected_entropy"
RANK: Final = "rank"
TOP_IDS: Final = "top_ids"
TOP_LOGPROBS: Final = "top_logprobs"
REST_LOGPROB: Final = "rest_logprob"
SAMPLED_IDS: Final = "sampled_ids"
ENTROPY_DEVIATION: Final = "entropy_deviation"
NUM_TOKENS = "num_tokens"
MEAN_ENTROPY = "mean_entropy"

ROUNDING_NATS = 1 / 128
# Rounding changes a probability by at most a share of 1/2048. The probabilities of a token's ids and of all other ids
# then add up to 1, with an error of at most 1/2048. With steps of 1/128, 50 of SmolLM2's log-probabilities would take
# 59 bytes instead of 77, and the error would be up to 1/256.
LOGPROB_ROUNDING_NATS = 1 / 1024
LEAST_REST = 1e-7  # smallest probability of all other ids that float32 log-probabilities can tell from 0
NO_PROBABILITY = -1000.0
"""Log-probability at places of `top_ids` that no further id could fill."""
MOST_PREDICTIONS = 1024  # largest `top_k` and `sampled_ids`: more than 2 kB per token
MOST_VOCABULARY = 2**24  # limit for token ids: sixteen times the largest vocabularies
MOST_WINDOW = 2**31 - 1
MOST_NATS = 1e6  # limit for a label, so that a loss in float32 stays finite

SHIPPED_MODEL, UNRECORDED_MODEL = "shipped demonstration model", "a model that was not recorded"
BETTER_MODEL = "small, for demonstrations; --method causal --estimator NAME labels with a language model of your choice"

Method = Literal["second-order", "exact", "causal"]
Dtype = Literal["float32", "bfloat16"]
Device = Literal["cpu", "cuda"]

LabelColumn = Literal["entropy", "expected_entropy", "rank", "entropy_deviation"]
COLUMNS_OF_METHOD: dict[Method, tuple[LabelColumn, ...]] = {
    "second-order": (ENTROPY, EXPECTED_ENTROPY),
    "exact": (ENTROPY,),
    "causal": (ENTROPY, EXPECTED_ENTROPY, RANK),
}
"""Label columns that each method can write. Several checkpoints that label together also write ENTROPY_DEVIATION."""

DESCRIPTIONS = {
    INPUT_IDS: "the encoding of the source's `text`, without special tokens, or the source's own `input_ids`",
    ENTROPY: "nats that token i carries given the tokens before it, an estimate of -ln p; at the index of the token",
    EXPECTED_ENTROPY: "nats expected of token i before it is seen",
    RANK: "number of tokens that the model found more probable than token i",
    TOP_IDS: "the `top_k` most probable ids for token i, most probable first; the inner list is null without a "
    "prediction",
    TOP_LOGPROBS: "ln p of each id in `top_ids`, in multiples of 1/1024 nat",
    REST_LOGPROB: "ln of the probability of all other ids together, at least ln 1e-7",
    SAMPLED_IDS: "S ids drawn from the model's prediction of token i by systematic sampling: the mean number of times "
    "that an id occurs is S p",
    ENTROPY_DEVIATION: "standard deviation of the checkpoints' labels of token i, in nats (sample deviation, M - 1)",
    NUM_TOKENS: "length of each list",
    MEAN_ENTROPY: "mean of `entropy` over the labelled tokens; null where there are none",
}

Shape = tuple[int, ...]
"""Shape of the value that a column has for one token: () for a single number, (K,) for K numbers."""

ENTROPY_COLUMNS = (ENTROPY, EXPECTED_ENTROPY, ENTROPY_DEVIATION)
"""Columns of labels in nats."""
LOGPROB_COLUMNS = (TOP_LOGPROBS, REST_LOGPROB)
ID_COLUMNS = (TOP_IDS, SAMPLED_IDS)
PREDICTION_COLUMNS = (TOP_IDS, TOP_LOGPROBS, SAMPLED_IDS)
"""Columns of labels with a list of numbers per token."""
PREDICTED = (TOP_IDS, TOP_LOGPROBS, REST_LOGPROB)
"""Columns of `--top-k`, which together describe a prediction."""
PER_TOKEN = (*ENTROPY_COLUMNS, RANK, TOP_IDS, TOP_LOGPROBS, REST_LOGPROB, SAMPLED_IDS)
"""All columns of labels: those with a number per token, and those with a list of numbers per token."""


def label_type(name: str, shape: Shape = (), vocabulary: int = 0) -> pa.DataType:
    """Return the Arrow type of the label column `name`: for each row, a list with one value per token.

    A value is a number, or a list of numbers if `shape` is (K,). The width of token ids depends on `vocabulary`, the
    number of ids.
    """
    value = pa.int32() if name == RANK else pa.float32()
    if name in ID_COLUMNS:
        value = pa.uint16() if vocabulary <= 2**16 else pa.uint32()
    return pa.list_(pa.list_(value, *shape) if shape else value)


LIMITS: dict[Method, str] = {
    "second-order": "Each label is a model's prediction of the exact label, from one pass over the text. Labels vary "
    "less than exact ones do, and carry the errors of the estimator that the model learned from.",
    "exact": "Each label is the difference of two code lengths that the estimator finds. The sum over a window is "
    "right, but a single label is noisy, and negative where the longer text was cheaper. Labels are not clipped.",
    "causal": "Each label is the loss of a causal language model. In the mean it is never below the entropy, and "
    "exceeds it by whatever the model does not know.",
}

COMBINATIONS = {
    "mean probability": "Several models labelled together: a label is -ln of the mean of the probabilities that they "
    "give the token.",
    "mean of nats": "Several checkpoints labelled together: a label is the mean of their labels.",
    "mean of moved nats": "Several models with different tokenizers labelled together: a label is the mean of their "
    "nats, moved to these tokens, and not -ln of a mean probability.",
}
"""Descriptions of an ensemble's labels. Each key names a way of combining the members' labels."""


@dataclass(frozen=True, kw_only=True)
class EnsembleMember:
    """A checkpoint of an ensemble, in which several checkpoints label together."""

    model: str
    """Name of the checkpoint, as in `Provenance.model`."""
    tokenizer_sha256: str | None = None
    """Digest of the checkpoint's tokenizer if it is not the tokenizer of `input_ids`, otherwise None."""
    start_token: int | None = None
    """Id of the token that a causal model read before every window; None for the other methods."""

    def __str__(self) -> str:
        start = "" if self.start_token is None else f", start token {self.start_token}"
        tokenizer = "" if self.tokenizer_sha256 is None else f", tokenizer {self.tokenizer_sha256}"
        return f"{self.model}{start}{tokenizer}"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Everything that a dataset's labels depend on. Two runs that differ in any field make different datasets."""

    method: Method
    checkpoint_sha256: str
    tokenizer_sha256: str | None
    """Digest of the tokenizer; None if the source was already tokenized."""
    vocabulary: int
    window: int
    overlap: int
    share: float
    """Share of the tokens that are labelled. The entropy of an unlabelled token is null."""
    keep_text: bool
    source: tuple[str, ...]
    """Names of the inputs: the first few URLs, then the number of local files and the name of their folder."""
    source_sha256: str
    """Digest of the source files' names, sizes and Parquet footers."""
    source_rows: int
    text_column: str
    """Column of the source that holds the labelled documents, as text or as token ids."""
    columns: tuple[str, ...] | None
    """Columns of the source that are copied to the dataset; None for all."""
    rows_per_unit: int
    source_seen_by_estimator: Literal["yes", "no", "unknown"]
    folds: int = 1
    """Number of cross-validation folds. If there are several, each fold's documents were labelled by a checkpoint that
    was trained on the other folds."""
    start_token: int | None = None
    """Id of the token that a causal model read before every window; None for the other methods, and for an ensemble
    whose members read different tokens."""
    estimator_tokenizer_sha256: str | None = None
    """Digest of the checkpoint's tokenizer if it is not the tokenizer of `input_ids`, otherwise None. Labels were then
    transferred from the checkpoint's tokens to `input_ids` through the bytes of the text. None for an ensemble with
    several tokenizers."""
    dtype: Dtype = "float32"
    """Precision in which the checkpoint computed the labels."""
    choices: tuple[str, ...] = ()
    """Chosen configuration or split of each input that has several to choose from."""
    batch_invariant: bool = False
    """True if every window was labelled by itself, so that labels do not depend on other documents through rounding."""
    source_files: int = 0
    """Number of source files; 0 in the provenance of an older version."""
    model: str = UNRECORDED_MODEL
    """Name of the checkpoint: USER/NAME@COMMIT on the Hub, the last component of a folder's path, or SHIPPED_MODEL. For
    an ensemble, the names of all members."""
    names_of_text: bool = False
    """True if the source consists of text files, whose paths are written to the columns `id` and `file`. False in older
    runs."""
    longest_document: int = NO_BOUND
    """Maximum size of a document: its bytes of text, or four times its number of token ids. Longer documents have no
    labels. Older runs had no limit."""
    label_columns: tuple[LabelColumn, ...] = ()
    """Columns of labels that have one number per token. Empty in older runs, whose columns are determined by the method
    (see `columns_of_labels`)."""
    top_k: int = 0
    """Number of most probable ids per token in the columns `top_ids` and `top_logprobs`; 0 without these columns."""
    sampled_ids: int = 0
    """Number of sampled ids per token in the column `sampled_ids`; 0 if the dataset lacks this column."""
    predicted_vocabulary: int = 0
    """Number of token ids in the model's output distribution. It may exceed `vocabulary`. 0 if the dataset has neither
    `top_ids` nor `sampled_ids`."""
    members: tuple[EnsembleMember, ...] = ()
    """Members of an ensemble, in the order in which `checkpoint_sha256` covers their files; empty for a single
    checkpoint."""
    calibration: Calibration | None = None
    """Calibration of the labels. It was applied after labels were transferred to the tokens of `input_ids`. None if the
    labels are not calibrated."""
    sidecar: bool = False
    """True if the dataset holds labels and the keys of documents, without text and token ids (see schemas.sidecars)."""
    joined_sha256: str | None = None
    """Digest of the sidecar whose labels were joined to the documents; None if the run labelled the documents."""
    rounding_nats: float = ROUNDING_NATS
    schema_version: int = SCHEMA_VERSION

    @property
    def columns_of_labels(self) -> tuple[LabelColumn, ...]:
        """Names of the label columns that have one number per token, `entropy` first.

        These are `label_columns`. Older runs have no `label_columns`, and their columns depend only on the method.
        """
        older: tuple[LabelColumn, ...] = (ENTROPY, EXPECTED_ENTROPY) if self.method == "second-order" else (ENTROPY,)
        return self.label_columns or older

    @property
    def label_shapes(self) -> Mapping[str, Shape]:
        """Shape of a token's value in each column of labels, `entropy` first."""
        shapes: dict[str, Shape] = dict.fromkeys((ENTROPY, *self.columns_of_labels), ())
        if self.top_k:
            shapes |= {TOP_IDS: (self.top_k,), TOP_LOGPROBS: (self.top_k,), REST_LOGPROB: ()}
        return shapes | ({SAMPLED_IDS: (self.sampled_ids,)} if self.sampled_ids else {})

    @property
    def label_types(self) -> Mapping[str, pa.DataType]:
        """Type of each column of labels, `entropy` first."""
        vocabulary = self.predicted_vocabulary
        return {name: label_type(name, shape, vocabulary) for name, shape in self.label_shapes.items()}

    @property
    def labeller(self) -> str:
        """Name of the model. For an ensemble, this is the way of combining labels, then the names of the members."""
        return f"{self.combination} of {self.model}" if self.members else self.model

    @property
    def labelled_by(self) -> str:
        """Name of the model as in `labeller`. For SHIPPED_MODEL, a hint at better models follows the name."""
        return f"{self.labeller} ({BETTER_MODEL})" if self.model == SHIPPED_MODEL else self.labeller

    @property
    def has_several_tokenizers(self) -> bool:
        """True if the members of an ensemble have different tokenizers."""
        return len({member.tokenizer_sha256 for member in self.members}) > 1

    @property
    def is_moved(self) -> bool:
        """True if labels were transferred to `input_ids` from the tokens of another tokenizer."""
        return any((self.estimator_tokenizer_sha256, *(member.tokenizer_sha256 for member in self.members)))

    @property
    def combination(self) -> str:
        """Name of the way in which the labels of an ensemble's members are combined, a key of COMBINATIONS."""
        if self.has_several_tokenizers:
            return "mean of moved nats"
        return "mean probability" if self.method == "causal" else "mean of nats"

    @property
    def limits(self) -> str:
        """Limits of the labels, in sentences for cards and reports."""
        return " ".join([LIMITS[self.method], *([COMBINATIONS[self.combination]] if self.members else [])])

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Provenance":
        """Parse the output of `to_json`.

        Raises:
            ValueError: if `text` is not a JSON object, or `from_values` refuses its values.
        """
        return cls.from_values(json_object(text))

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "Provenance":
        """Return the provenance from the values of its JSON object.

        Raises:
            ValueError: if the schema version is not SCHEMA_VERSION, or a value is one that no run writes.
        """
        if (version := values.get("schema_version")) != SCHEMA_VERSION:
            raise ValueError(
                f"labels of schema version {version!s:.20}, but this version reads {SCHEMA_VERSION}; annotate again "
                "into another folder"
            )
        provenance = decoded(cls, values)
        provenance.require_ranges()
        return provenance

    def require_ranges(self) -> None:
        """Raise if a number is out of range.

        Raises:
            ValueError: if a field has a number that no run writes, or if the calibration is impossible. The message
                names the first such field, or says what is wrong with the calibration.
        """
        ranges = {
            "vocabulary": 0 < self.vocabulary <= MOST_VOCABULARY,
            "window": 0 < self.window <= MOST_WINDOW,
            "overlap": 0 <= self.overlap < self.window,
            "share": 0 < self.share <= 1,
            "rows_per_unit": self.rows_per_unit >= 1,
            "folds": self.folds >= 1,
            "start_token": self.start_token is None or self.start_token < MOST_VOCABULARY,
            "top_k": 0 <= self.top_k <= MOST_PREDICTIONS,
            "sampled_ids": 0 <= self.sampled_ids <= MOST_PREDICTIONS,
            "predicted_vocabulary": 0 <= self.predicted_vocabulary <= MOST_VOCABULARY,
            "members": len(self.members) != 1
            and all((each.start_token or 0) < MOST_VOCABULARY for each in self.members),
            "label_columns": ENTROPY_DEVIATION not in self.label_columns or len(self.members) > 1,
        }
        if wrong := [name for name, right in ranges.items() if not right]:
            raise ValueError(f"its {wrong[0]} is {getattr(self, wrong[0])}, which no run writes")
        if self.calibration is not None:
            self.calibration.require_possible()


def annotated_schema(source: pa.Schema, provenance: Provenance) -> pa.Schema:
    """Return the schema of an annotated dataset: the columns copied from the source, then the label columns.

    Copied columns keep the features that the `datasets` library gave them.

    Raises:
        ValueError: if a copied column has the name of a label column, or the source lacks a column to copy.
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
        *(pa.field(name, kind) for name, kind in provenance.label_types.items()),
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
