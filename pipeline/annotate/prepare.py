"""From what the main job is told to a run that workers can carry out: every setting checked against the source.

Nothing is written here, so that a mistake leaves nothing behind.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import pyarrow as pa

from pipeline.annotate.config import Config
from pipeline.data.documents import without_names
from pipeline.data.files import COMMIT, HUB, is_pin, pinned
from pipeline.data.naming import is_local, named_inputs, recorded, urls, without_paths
from pipeline.data.sample import SAMPLE_NAME
from pipeline.data.tokenizer import TOKENIZED_ALREADY, TokenSource, named_token, token_source, tokenizer_sha256
from pipeline.engine.plan import Run, Snapshot, Source, Unit, default_rows_per_unit, fast_dtype, plan_units
from pipeline.models.checkpoint import (
    KIND_OF_METHOD,
    SHIPPED,
    CheckpointKind,
    checkpoint_kind,
    checkpoint_members,
    checkpoint_sha256,
    context_and_vocabulary,
    find_checkpoint,
    require_kind,
)
from schemas.annotations import SHIPPED_MODEL, Device, Dtype, Method, Provenance, annotated_schema
from schemas.receipts import Plan


def pin_inputs(inputs: Sequence[str], there: Plan | None) -> tuple[str, ...]:
    """The inputs with the commit of every Hub repository: today's, or that of the run that is gone on with.

    Raises:
        ValueError: if that run's plan, which anybody can have written, has other inputs than those that are named.
    """
    if not inputs or there is None or without_paths(recorded(there.inputs)) != without_paths(recorded(inputs)):
        return pinned(inputs)
    pairs = list(zip(inputs, there.source, strict=True))  # a pin of the Hub alone holds more than the input
    for named, pin in pairs:
        if not is_local(named) and not is_pin(pin, named if named.startswith(HUB) else recorded([named])[0]):
            raise ValueError(f"the plan of the run there reads {pin} for {named}; choose another --output or --subset")
    return tuple(pin if named.startswith(HUB) else named for named, pin in pairs)


def pin_checkpoint(named: str | None, there: Plan | None) -> str | None:
    """The checkpoint at the commit that the run has, which is gone on with, if it is the one that is named."""
    known = None if there is None else there.checkpoint
    name, _, revision = (known or "").partition("@")
    return f"{name}@{revision}" if named == name and COMMIT.fullmatch(revision) else named


def pin_longest(wanted: int | None, there: Plan | None) -> int | None:
    """The bound on documents that was asked for, or else that of the run that is resumed, which may have had none."""
    return there.provenance.longest_document if wanted is None and there is not None else wanted


def dtype_for(config: Config, there: Plan | None) -> Dtype:
    """The precision that was asked for, or that of the run that is resumed, or else what suits the workers' device.

    Raises:
        ValueError: if a GPU is asked for in this process and there is none.
        ConnectionError: if there is no cluster at the address.
    """
    if config.dtype != "auto":
        return config.dtype
    return there.provenance.dtype if there is not None else fast_dtype(device_for(config))


def device_for(config: Config) -> Device:
    """The kind of device that labels will be computed on."""
    if config.workers == 0 or (config.dry_run and config.gpus_per_worker is None):
        from pipeline.labels.labeller import device_here  # imports torch, which takes seconds

        return device_here(config.gpus_per_worker)
    if config.gpus_per_worker is None:
        from pipeline.engine.cluster import has_gpus, ray_address  # Ray may be missing where this process labels

        return "cuda" if has_gpus(ray_address(config.address)) else "cpu"
    return "cuda" if config.gpus_per_worker else "cpu"


def prepare(config: Config, source: Source, inputs: Sequence[str], there: Plan | None = None) -> tuple[Run, list[Unit]]:
    """Checks all settings against the source, found at `inputs`, and a resumed run's plan; returns what workers need.

    Raises:
        ValueError: if the settings do not fit together.
        ConnectionError: if there is no cluster at the address.
    """
    checkpoint = checkpoint_folder(config)
    members = checkpoint_members(checkpoint)
    for member in members:
        require_kind_for(member, config.method)
    context, model_vocabulary = context_and_vocabulary(members[0])
    tokens = tokens_for(members[0], model_vocabulary, config)
    other = other_tokenizer(members[0], tokens)
    window, overlap = windows_for(config, context)
    require_sound(members, KIND_OF_METHOD[config.method])
    rows = rows_to_label(source, config.limit)
    provenance = Provenance(
        method=config.method,
        checkpoint_sha256=checkpoint_sha256(*members),
        tokenizer_sha256=tokenizer_sha256(tokens.folder) if tokens.folder else None,
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
        rows_per_unit=config.rows_per_unit or (there and there.provenance.rows_per_unit) or default_rows_per_unit(rows),
        source_seen_by_estimator=config.source_seen_by_estimator if len(members) == 1 else "no",
        folds=len(members),
        start_token=start_token_id(members[0], config) if config.method == "causal" else None,
        dtype=dtype_for(config, there),
        batch_invariant=config.batch_invariant,
        longest_document=config.longest,
        estimator_tokenizer_sha256=tokenizer_sha256(other) if other else None,
        names_of_text=is_of_text(source) and (there is None or there.provenance.names_of_text),
        **names_for(config, source, inputs, checkpoint, there),
    )
    found = source.schema if provenance.names_of_text or not is_of_text(source) else without_names(source.schema)
    schema = annotated_schema(found, provenance)
    read = pa.schema([field for field in found if field.name in {config.column.name, *schema.names}])
    units = plan_units(source, rows_per_unit=provenance.rows_per_unit, limit=config.limit)
    folder = tokens.folder.resolve() if tokens.folder else None
    checkpoints, snapshot = tuple(member.resolve() for member in members), snapshot_of(config, checkpoint)
    written = (config.place, checkpoints, folder, other, provenance, read, schema, len(units), config.repository)
    return Run(*written, snapshot), units


def is_of_text(source: Source) -> bool:
    """True for text files, whose names are passed on unless an older run, which is gone on with, left them out."""
    return all(file.format == "text" for file in source.files)


class Names(TypedDict):
    """What a dataset calls its inputs and its model, which no label depends on."""

    source: tuple[str, ...]
    source_files: int
    model: str


def names_for(config: Config, source: Source, inputs: Sequence[str], checkpoint: Path, there: Plan | None) -> Names:
    """The names of a run that is resumed, whatever folders were moved since; those of a new run else."""
    if there is not None and recorded(urls(there.source)) == recorded(urls(inputs)):
        run = there.provenance
        return Names(source=run.source, source_files=run.source_files, model=run.model)
    return Names(
        source=named_inputs(inputs, source.files) if config.input else (SAMPLE_NAME,),
        source_files=len(source.files),
        model=model_name(config, checkpoint),
    )


def model_name(config: Config, checkpoint: Path) -> str:
    """Name of a checkpoint on the Hub with its commit, last part of a folder, or SHIPPED_MODEL."""
    snapshot, folder = snapshot_of(config, checkpoint), checkpoint.resolve()
    if folder.is_relative_to(SHIPPED.resolve()):
        return SHIPPED_MODEL
    return snapshot.name if snapshot else folder.name


def require_kind_for(checkpoint: Path, method: Method) -> None:
    """Checks that a checkpoint is of the kind that the method labels with.

    Raises:
        ValueError: if not, with the method that does.
    """
    kind, wanted = checkpoint_kind(checkpoint), KIND_OF_METHOD[method]
    for other, its_kind in KIND_OF_METHOD.items():
        if kind == its_kind != wanted:
            raise ValueError(
                f"{checkpoint} holds a checkpoint of kind {kind}: give --method {other} with it, or name one of kind "
                f"{wanted} for --method {method}"
            )
    require_kind(checkpoint, wanted)


def rows_to_label(source: Source, limit: int | None) -> int:
    """Number of the source's rows up to the limit.

    Raises:
        ValueError: if there are none.
    """
    if source.rows == 0:
        raise ValueError("the input has no rows; name files that have some with --input")
    return min(source.rows, limit or source.rows)


def require_sound(checkpoints: Sequence[Path], kind: CheckpointKind) -> None:
    """Checks that checkpoints can be loaded, before any worker starts; not those that came with the project.

    Raises:
        ValueError: if one cannot.
    """
    others = [folder for folder in checkpoints if not folder.is_relative_to(SHIPPED)]
    if others:
        from pipeline.models.loading import require_complete  # imports torch, which takes seconds

        for folder in others:
            require_complete(folder, kind)


def windows_for(config: Config, context: int | None) -> tuple[int, int]:
    """Tokens of a window, and those that it shares with the next.

    Raises:
        ValueError: if the checkpoint cannot read such windows, or names no context and no window is given.
    """
    longest = config.window if context is None else context
    if longest is None:
        raise ValueError("the checkpoint's config.json names no context; give a window with --window, as its card does")
    window = longest if config.window is None else config.window
    overlap = config.overlap if config.overlap is not None else window // 2
    if not 0 <= overlap < window <= longest:
        raise ValueError(
            f"the checkpoint needs 0 <= overlap < window <= {longest}, not --overlap {overlap} and --window {window}"
        )
    return window, overlap


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
    return named_token(checkpoint, config.start_token)


def checkpoint_folder(config: Config) -> Path:
    """The checkpoint that was named, or the shipped one for the method."""
    if config.estimator is not None:
        return find_checkpoint(config.estimator)
    if config.method == "causal":
        raise ValueError("--method causal needs --estimator, a causal language model, its folder or Hub name")
    return SHIPPED / KIND_OF_METHOD[config.method]


def snapshot_of(config: Config, checkpoint: Path) -> Snapshot | None:
    """Where other nodes fetch the checkpoint from, if a name on the Hub was given and no folder."""
    named, folder = config.estimator, checkpoint.resolve()
    if named is None or checkpoint == Path(named):
        return None
    return Snapshot(f"{named.partition('@')[0]}@{folder.name}", folder)
