"""Preparation of a run: check all settings against the source and the checkpoint, and collect what workers need.

Nothing is written here, so that a mistake leaves nothing behind.
"""

from collections.abc import Sequence
from typing import TypedDict

import pyarrow as pa

from pipeline.annotate.config import Config
from pipeline.data.documents import without_names
from pipeline.data.files import COMMIT, HUB, is_pin, pinned
from pipeline.data.naming import is_local, named_inputs, recorded, urls, without_paths
from pipeline.data.sample import SAMPLE_NAME
from pipeline.data.tokenizer import TOKENIZED_ALREADY, TokenSource, named_token, token_source
from pipeline.engine.plan import Run, Snapshot, Source, Unit, default_rows_per_unit, fast_dtype, plan_units
from pipeline.labels.calibration import read_calibration, require_applicable
from pipeline.models.checkpoint import KIND_OF_METHOD, SHIPPED, Checkpoint
from schemas.annotations import (
    COLUMNS_OF_METHOD,
    RANK,
    Device,
    Dtype,
    LabelColumn,
    Method,
    Provenance,
    annotated_schema,
)
from schemas.receipts import Plan


def pin_inputs(inputs: Sequence[str], existing: Plan | None) -> tuple[str, ...]:
    """Return the inputs, with every input on the Hub pinned to a commit. A resumed run keeps its original commits.

    Raises:
        ValueError: if the plan of the resumed run, which may have been forged, names another source for an input.
    """
    if not inputs or existing is None or without_paths(recorded(existing.inputs)) != without_paths(recorded(inputs)):
        return pinned(inputs)
    pairs = list(zip(inputs, existing.source, strict=True))  # only the pin of a Hub input differs from the input
    for named, pin in pairs:
        if not is_local(named) and not is_pin(pin, named if named.startswith(HUB) else recorded([named])[0]):
            raise ValueError(f"the plan of the run there reads {pin} for {named}; choose another --output or --subset")
    return tuple(pin if named.startswith(HUB) else named for named, pin in pairs)


def pin_checkpoint(named: str | None, existing: Plan | None) -> str | None:
    """Return the name of a checkpoint. If the resumed run has the same Hub checkpoint, the run's commit is added."""
    known = None if existing is None else existing.checkpoint
    name, _, revision = (known or "").partition("@")
    return f"{name}@{revision}" if named == name and COMMIT.fullmatch(revision) else named


def pin_longest(requested: int | None, existing: Plan | None) -> int | None:
    """Return the requested maximum size of a document, or that of the resumed run, or None if there is neither."""
    return existing.provenance.longest_document if requested is None and existing is not None else requested


def prepare(
    config: Config, source: Source, inputs: Sequence[str], existing: Plan | None = None
) -> tuple[Run, list[Unit]]:
    """Check all settings against the source and the checkpoint. Return the run and its units.

    `inputs` are the pinned inputs in which the files of the source were found. `existing` is the plan of the resumed
    run, if there is one, and gives the defaults of some settings.

    Raises:
        ValueError: if a setting contradicts another setting, the source or the checkpoint.
        ConnectionError: if there is no cluster at the address.
    """
    checkpoint = checkpoint_for(config)
    tokens = tokens_for(checkpoint.members[0], config)
    provenance = provenance_for(config, source, inputs, checkpoint, tokens, existing)
    passed = source.schema if provenance.names_of_text or not is_of_text(source) else without_names(source.schema)
    schema = annotated_schema(passed, provenance)
    require_applicable(provenance, schema)
    units = plan_units(source, rows_per_unit=provenance.rows_per_unit, limit=config.limit)
    folder, repository = checkpoint.folder.resolve(), checkpoint.repository
    run = Run(
        subset=config.place,
        checkpoints=tuple(member.folder.resolve() for member in checkpoint.members),
        tokenizer=tokens.folder.resolve() if tokens.folder else None,
        estimator_tokenizer=checkpoint.members[0].folder.resolve() if provenance.estimator_tokenizer_sha256 else None,
        provenance=provenance,
        source_schema=pa.schema([field for field in passed if field.name in {config.column.name, *schema.names}]),
        schema=schema,
        units=len(units),
        repository=config.repository,
        snapshot=Snapshot(repository, folder) if repository else None,
    )
    return run, units


def provenance_for(
    config: Config,
    source: Source,
    inputs: Sequence[str],
    checkpoint: Checkpoint,
    tokens: TokenSource,
    existing: Plan | None,
) -> Provenance:
    """Return the provenance: everything that the labels depend on, and the names of the inputs and of the model."""
    first = checkpoint.members[0]
    window, overlap = windows_for(config, first.context)
    require_loadable(checkpoint, config.method)
    rows = rows_to_label(source, config.limit)
    return Provenance(
        method=config.method,
        checkpoint_sha256=checkpoint.sha256,
        tokenizer_sha256=tokens.sha256,
        vocabulary=tokens.vocabulary,
        window=window,
        overlap=overlap,
        share=config.share,
        keep_text=config.keep_text,
        text_column=config.column.name,
        columns=config.columns,
        source_sha256=source.sha256,
        choices=source.choices,
        source_rows=rows,
        rows_per_unit=config.rows_per_unit
        or (existing.provenance.rows_per_unit if existing else None)
        or default_rows_per_unit(rows),
        source_seen_by_estimator=config.source_seen_by_estimator if len(checkpoint.members) == 1 else "no",
        folds=len(checkpoint.members),
        start_token=start_token_for(first, config) if config.method == "causal" else None,
        dtype=dtype_for(config, existing),
        batch_invariant=config.batch_invariant,
        longest_document=config.longest,
        estimator_tokenizer_sha256=first.tokenizer_sha256 if labels_move(first, tokens) else None,
        label_columns=label_columns_for(config, labels_move(first, tokens), existing),
        calibration=None if config.calibration is None else read_calibration(config.calibration),
        names_of_text=is_of_text(source) and (existing is None or existing.provenance.names_of_text),
        **names_for(config, source, inputs, checkpoint, existing),
    )


def checkpoint_for(config: Config) -> Checkpoint:
    """Return the checkpoint that `estimator` names, by default the one that comes with the project for the method.

    Raises:
        ValueError: if there is no such checkpoint, or if the method needs a checkpoint of another kind.
    """
    if config.estimator is None and config.method == "causal":
        raise ValueError("--method causal needs a causal language model: name its folder or Hub name with --estimator")
    expected = KIND_OF_METHOD[config.method]
    checkpoint = Checkpoint.find(config.estimator) if config.estimator is not None else Checkpoint(SHIPPED / expected)
    for member in checkpoint.members:
        for method, kind in KIND_OF_METHOD.items():
            if member.kind == kind != expected:
                raise ValueError(
                    f"{member.folder} holds a checkpoint of kind {kind}: give --method {method} with it, or name one "
                    f"of kind {expected} for --method {config.method}"
                )
        member.require_kind(expected)
    return checkpoint


def require_loadable(checkpoint: Checkpoint, method: Method) -> None:
    """Check that a checkpoint can be loaded, before any worker starts.

    A checkpoint that comes with the project is not checked.

    Raises:
        ValueError: if the checkpoint cannot be loaded.
    """
    if not checkpoint.is_shipped:
        from pipeline.models.loading import require_complete  # imports torch, which takes seconds

        for member in checkpoint.members:
            require_complete(member.folder, KIND_OF_METHOD[method])


def tokens_for(checkpoint: Checkpoint, config: Config) -> TokenSource:
    """Return the source of token ids that the settings name, by default the checkpoint's tokenizer.

    Raises:
        ValueError: if the checkpoint would read ids that are not in its vocabulary.
    """
    named, known = config.tokenizer or str(checkpoint.folder), checkpoint.vocabulary
    implied = known if named == TOKENIZED_ALREADY else None
    tokens = token_source(named, implied if config.vocabulary is None else config.vocabulary)
    read = token_source(str(checkpoint.folder), None) if labels_move(checkpoint, tokens) else tokens
    if read.vocabulary > known:
        raise ValueError(
            f"{read.vocabulary} token ids do not fit the {known} that {checkpoint.folder} knows; "
            "name another tokenizer or checkpoint"
        )
    return tokens


def labels_move(checkpoint: Checkpoint, tokens: TokenSource) -> bool:
    """True if the checkpoint's tokenizer differs from the tokenizer of `tokens`.

    The nats of the checkpoint's tokens must then be divided among the written tokens that cover the same bytes.
    """
    return tokens.folder is not None and checkpoint.tokenizer_sha256 not in (None, tokens.sha256)


def windows_for(config: Config, context: int | None) -> tuple[int, int]:
    """Return the length of a window and the overlap of neighbouring windows, both in tokens.

    Raises:
        ValueError: if the checkpoint cannot read windows of the requested length or overlap, or if no length is
            requested and the checkpoint declares no context length.
    """
    longest = config.window if context is None else context
    if longest is None:
        raise ValueError("the checkpoint's config.json names no context; give --window, which its card may tell")
    window = longest if config.window is None else config.window
    overlap = config.overlap if config.overlap is not None else window // 2
    if not 0 <= overlap < window <= longest:
        raise ValueError(
            f"the checkpoint needs 0 <= overlap < window <= {longest}, not --overlap {overlap} and --window {window}"
        )
    return window, overlap


def label_columns_for(config: Config, moved: bool, existing: Plan | None) -> tuple[LabelColumn, ...]:
    """Return the requested columns of labels, or those of the run that is resumed, or the method's default.

    `moved` is True if the written tokens are not those that the checkpoint reads.

    Raises:
        ValueError: if ranks are requested and `moved` is True. Unlike nats, ranks cannot be divided among tokens.
    """
    run = existing.provenance if existing is not None and existing.provenance.method == config.method else None
    default = tuple(name for name in COLUMNS_OF_METHOD[config.method] if name != RANK)
    requested = config.label_columns or (run.columns_of_labels if run else default)
    if moved and RANK in requested:
        raise ValueError(f"a {RANK} cannot be moved to the tokens of another tokenizer; leave it or --tokenizer out")
    columns = tuple(name for name in COLUMNS_OF_METHOD[config.method] if name in requested)
    return run.label_columns if run and run.columns_of_labels == columns else columns  # older runs recorded none


def start_token_for(checkpoint: Checkpoint, config: Config) -> int:
    """Return the id of the requested start token or, by default, of the one that the checkpoint declares."""
    if config.start_token is None:
        from pipeline.models.loading import declared_start  # imports torch, which takes seconds

        return declared_start(checkpoint.folder)
    return named_token(checkpoint.folder, config.start_token)


def dtype_for(config: Config, existing: Plan | None) -> Dtype:
    """Return the requested precision.

    By default, return the precision of the resumed run or, for a new run, the fastest precision on the workers' device.

    Raises:
        ValueError: if labelling in this process on a GPU is requested, and this machine has no GPU.
        ConnectionError: if there is no cluster at the address.
    """
    if config.dtype != "auto":
        return config.dtype
    return existing.provenance.dtype if existing is not None else fast_dtype(device_for(config))


def device_for(config: Config) -> Device:
    """Return the kind of device that labels will be computed on."""
    if config.workers == 0 or (config.dry_run and config.gpus_per_worker is None):
        from pipeline.labels.labeller import device_here  # imports torch, which takes seconds

        return device_here(config.gpus_per_worker)
    if config.gpus_per_worker is None:
        from pipeline.engine.cluster import has_gpus, ray_address  # late, because `--workers 0` works without Ray

        return "cuda" if has_gpus(ray_address(config.address)) else "cpu"
    return "cuda" if config.gpus_per_worker else "cpu"


def rows_to_label(source: Source, limit: int | None) -> int:
    """Return the number of rows to label: all rows of the source, or the first `limit` rows.

    Raises:
        ValueError: if the source has no rows.
    """
    if source.rows == 0:
        raise ValueError("the input has no rows; name files that have some with --input")
    return min(source.rows, limit or source.rows)


def is_of_text(source: Source) -> bool:
    """True if all input files are text files.

    Their file names are then copied to the output, unless an older version, which did not copy them, started the run.
    """
    return all(file.format == "text" for file in source.files)


class Names(TypedDict):
    """Names of a run's inputs and of its model. Labels do not depend on these names."""

    source: tuple[str, ...]
    source_files: int
    model: str


def names_for(
    config: Config, source: Source, inputs: Sequence[str], checkpoint: Checkpoint, existing: Plan | None
) -> Names:
    """Return the names of a run's inputs and model.

    A resumed run keeps its original names, even if folders have been moved since.
    """
    if existing is not None and recorded(urls(existing.source)) == recorded(urls(inputs)):
        run = existing.provenance
        return Names(source=run.source, source_files=run.source_files, model=run.model)
    return Names(
        source=named_inputs(inputs, source.files) if config.input else (SAMPLE_NAME,),
        source_files=len(source.files),
        model=checkpoint.name,
    )
