"""What the main job is told, and the check of it: flags become a run that workers can carry out.

Nothing is written here, so that a mistake leaves nothing behind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal

import cyclopts
import pyarrow as pa
from huggingface_hub.constants import HF_HOME

from pipeline.data.documents import Column
from pipeline.data.hub import Repository
from pipeline.data.locations import pinned
from pipeline.data.sample import SAMPLE_NAME
from pipeline.data.tokenizer import TOKENIZED_ALREADY, TokenSource, load_tokenizer, token_source, tokenizer_sha256
from pipeline.engine.annotation import Run
from pipeline.engine.ledger import Plan
from pipeline.engine.plan import Source, Unit, default_rows_per_unit, plan_units
from pipeline.models.checkpoint import (
    SHIPPED,
    Kind,
    checkpoint_members,
    checkpoint_sha256,
    context_and_vocabulary,
    find_checkpoint,
    require_kind,
)
from schemas.annotations import INPUT_IDS, Dtype, Method, Provenance, annotated_schema
from schemas.documents import TEXT_COLUMN
from schemas.layout import Subset

LEAST_SHARE = 0.0001  # of a core or a GPU: Ray counts no finer
KIND_OF_METHOD: dict[Method, Kind] = {"second-order": "second-order", "exact": "estimator", "causal": "causal"}


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """What to label, with what, and where to write it."""

    input: tuple[str, ...] = ()
    """Parquet files, JSON lines (.jsonl) or text (.txt, .md: a document a file), plain, .gz or .zst: paths, folders (of
    Parquet and JSON lines), globs, hf://datasets/USER/NAME/PATH or any URL that fsspec reads; built-in sample documents
    by default."""
    text_column: str | None = None
    """Column of the documents; `text` by default, `input_ids` with --tokenizer none."""
    columns: tuple[str, ...] | None = None
    """Columns of the input to pass on; all by default."""
    output: str | None = None
    """Folder for the dataset, or hf://datasets/USER/NAME to publish it while it grows; `annotated`, or
    `annotated-sample` for the built-in documents, by default."""
    subset: str | None = None
    """Name of what is written: other labels, or other documents, can stand beside it; the method by default."""
    staging: Path | None = None
    """With an output on the Hub, folder for shards until they are published; one below HF_HOME by default."""
    private: bool = False
    """Create the repository as a private one."""
    method: Method = "second-order"
    """second-order: one pass, needs a second-order checkpoint. exact: differences of code lengths, a few hundred
    times dearer, needs an estimator. causal: the loss of a causal language model."""
    estimator: str | None = None
    """Checkpoint for the method: a folder, one with the folds of a cross-fitting, or a model `user/name` of the Hub;
    the one that comes with the project by default."""
    tokenizer: str | None = None
    """Tokenizer folder, or `none` for an input column `input_ids` in place of `text`; the checkpoint's by default. With
    another than the checkpoint's, labels are moved from its tokens to these through the bytes that both cover."""
    vocabulary: int | None = None
    """Number of token ids, with --tokenizer none; the checkpoint's by default."""
    window: int | None = None
    """Tokens labelled in one pass; the checkpoint's context by default."""
    overlap: int | None = None
    """Tokens that a window shares with the next in longer documents; half the window by default."""
    share: float = 1.0
    """Share of the tokens to label, in random runs of eight; the rest is null; exact labels cost in proportion."""
    start_token: str | None = None
    """For --method causal, the text of the token that stood between documents when the model was trained; what its
    tokenizer declares as beginning, or else end, of sequence by default."""
    dtype: Dtype = "float32"
    """What the checkpoint computes in; bfloat16 is for GPUs."""
    batch_invariant: bool = False
    """Label every window by itself, so that a document's labels are the same bits whatever is labelled beside it."""
    workers: int | Literal["auto"] = "auto"
    """Worker processes; as many as the cluster has room for, and more when it grows, by default."""
    gpus_per_worker: float | None = None
    """GPUs, or a part of one, that a worker takes; one where the cluster has any, by default."""
    cpus_per_worker: float = 1.0
    """CPU cores, or a part of one, that a worker takes; labelling uses one, reading and writing a little more."""
    limit: int | None = None
    """Rows to label at the most, from the first on."""
    rows_per_unit: int | None = None
    """Rows in a shard at the most; a sixteenth of the rows, from 8 to 16,384, by default."""
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
        for name in ("limit", "workers", "rows_per_unit", "window"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        for name, most in (("share", 1.0), ("tokens_per_second", inf)):
            value = getattr(self, name)
            if value is not None and not 0 < value <= most:
                limit = "" if most == inf else f" and at most {most:g}"
                raise ValueError(f"--{name.replace('_', '-')} must be above 0{limit}, not {value}")
        self._check_worker()
        self._check_output()
        if self.column.name in (self.columns or ()) and not self.keep_text:
            raise ValueError(f"--columns names {self.column.name}, which is labelled; --keep-text passes it on")

    def _check_output(self) -> None:
        if "://" in (self.output or "") and self.repository is None:
            raise ValueError(f"--output {self.output} is no folder; write to one, or to hf://datasets/USER/NAME")
        if self.staging is not None and self.repository is None:
            raise ValueError("--staging is for an --output at hf://datasets/USER/NAME")
        assert self.place  # its name is looked at

    def _check_worker(self) -> None:
        for name, need in (("cpus", self.cpus_per_worker), ("gpus", self.gpus_per_worker)):
            if need and not (LEAST_SHARE <= need <= 1 or (need > 1 and need == round(need))):
                raise ValueError(
                    f"--{name}-per-worker must be 0, a part from {LEAST_SHARE} to 1, or a whole number, not {need}"
                )
        if not self.gpus_per_worker and not self.cpus_per_worker:
            raise ValueError("a worker must take something: --cpus-per-worker or --gpus-per-worker above 0")

    @property
    def column(self) -> Column:
        """The column that documents are read from."""
        tokenized = self.tokenizer == TOKENIZED_ALREADY
        return Column(self.text_column or (INPUT_IDS if tokenized else TEXT_COLUMN), tokenized)

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


def frozen(inputs: Sequence[str], there: Plan | None) -> tuple[str, ...]:
    """The inputs with the commit of every Hub repository: today's, or that of the run that is gone on with."""
    if inputs and there is not None and there.inputs == tuple(inputs):
        return there.provenance.source
    return pinned(inputs)


def prepare(config: Config, source: Source, inputs: Sequence[str]) -> tuple[Run, list[Unit]]:
    """Checks every setting against the source, found at `inputs`, and returns what workers need.

    Raises:
        ValueError: if the settings do not fit together.
    """
    checkpoint = checkpoint_folder(config)
    members = checkpoint_members(checkpoint)
    for member in members:
        require_kind(member, KIND_OF_METHOD[config.method])
    context, model_vocabulary = min(map(context_and_vocabulary, members))
    tokens = tokens_for(members[0], model_vocabulary, config)
    other = other_tokenizer(members[0], tokens)
    window = config.window if config.window is not None else context
    overlap = config.overlap if config.overlap is not None else window // 2
    if not 0 <= overlap < window <= context:
        raise ValueError(
            f"the checkpoint needs 0 <= overlap < window <= {context}, not --overlap {overlap} and --window {window}"
        )
    rows = min(source.rows, config.limit or source.rows)
    if rows == 0:
        raise ValueError("the input has no rows; name files that have some with --input")
    provenance = Provenance(
        method=config.method,
        checkpoint_sha256=checkpoint_sha256(*members),
        tokenizer_sha256=tokenizer_sha256(tokens.folder) if tokens.folder else None,
        vocabulary=tokens.vocabulary,
        window=window,
        overlap=overlap,
        share=config.share,
        keep_text=config.keep_text,
        source=tuple(inputs) if config.input else (SAMPLE_NAME,),
        text_column=config.column.name,
        columns=config.columns,
        source_sha256=source.sha256,
        source_rows=rows,
        rows_per_unit=config.rows_per_unit or default_rows_per_unit(rows),
        source_seen_by_estimator=config.source_seen_by_estimator if len(members) == 1 else "no",
        folds=len(members),
        start_token=start_token_id(members[0], config) if config.method == "causal" else None,
        dtype=config.dtype,
        batch_invariant=config.batch_invariant,
        estimator_tokenizer_sha256=tokenizer_sha256(other) if other else None,
    )
    schema = annotated_schema(source.schema, provenance)
    passed = set(schema.names) - {INPUT_IDS}  # which is ours
    read = pa.schema([field for field in source.schema if field.name in {config.column.name, *passed}])
    units = plan_units(source, rows_per_unit=provenance.rows_per_unit, limit=config.limit)
    folder = tokens.folder.resolve() if tokens.folder else None
    checkpoints = tuple(member.resolve() for member in members)
    run = Run(config.place, checkpoints, folder, other, provenance, read, schema, len(units), config.repository)
    return run, units


def tokens_for(checkpoint: Path, model_vocabulary: int, config: Config) -> TokenSource:
    """The tokens that were asked for, or the checkpoint's own; ids that it reads must be ids that it knows."""
    named = config.tokenizer or str(checkpoint)
    implied = model_vocabulary if named == TOKENIZED_ALREADY else None
    tokens = token_source(named, implied if config.vocabulary is None else config.vocabulary)
    other = other_tokenizer(checkpoint, tokens)
    read = tokens.vocabulary if other is None else token_source(str(other), None).vocabulary
    if read > model_vocabulary:
        raise ValueError(f"{read} token ids do not fit the {model_vocabulary} that {checkpoint} knows; name another")
    return tokens


def other_tokenizer(checkpoint: Path, tokens: TokenSource) -> Path | None:
    """The checkpoint's folder where its tokenizer is not the one asked for, so that its labels must be moved."""
    own = tokenizer_sha256(checkpoint)
    same = tokens.folder is None or own in (None, tokenizer_sha256(tokens.folder))
    return None if same else checkpoint.resolve()


def start_token_id(checkpoint: Path, config: Config) -> int:
    """The token that was asked for, or what the checkpoint declares."""
    if config.start_token is None:
        from pipeline.models.loading import declared_start  # imports torch, which takes seconds

        return declared_start(checkpoint)
    found = load_tokenizer(checkpoint).token_to_id(config.start_token)
    if found is None:
        raise ValueError(
            f"--start-token {config.start_token} is no token of {checkpoint}; name one that its tokenizer has"
        )
    return found


def checkpoint_folder(config: Config) -> Path:
    """The checkpoint that was named, or the shipped one for the method."""
    if config.estimator is not None:
        return find_checkpoint(config.estimator)
    if config.method == "causal":
        raise ValueError("--method causal needs --estimator, a causal language model, its folder or Hub name")
    return SHIPPED / KIND_OF_METHOD[config.method]
