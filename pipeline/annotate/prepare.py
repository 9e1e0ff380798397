"""Preparation of a run: check all settings against the source and the checkpoint, and collect what workers need.

Nothing is written here, so that a mistake leaves nothing behind.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict

import pyarrow as pa

from pipeline.annotate.config import Config
from pipeline.annotate.members import checkpoints_for, labels_move, members_for, require_loadable
from pipeline.data.documents import without_names
from pipeline.data.files import HUB, is_pin, pinned
from pipeline.data.naming import is_local, named_inputs, recorded, urls, without_paths
from pipeline.data.sample import SAMPLE_NAME
from pipeline.data.tokenizer import TOKENIZED_ALREADY, TokenSource, load_tokenizer, token_source
from pipeline.engine.plan import (
    Run,
    Snapshot,
    Source,
    Unit,
    default_rows_per_unit,
    fast_dtype,
    plan_units,
    reading_tokenizers,
)
from pipeline.labels.calibration import read_calibration, require_applicable
from pipeline.labels.moved_predictions import is_byte_level
from pipeline.models.checkpoint import Checkpoint, checkpoint_sha256
from schemas.annotations import (
    RANK,
    Device,
    Dtype,
    EnsembleMember,
    LabelColumn,
    Provenance,
    annotated_schema,
)
from schemas.receipts import Plan
from schemas.rows import ID_COLUMN
from schemas.sidecars import sidecar_schema


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


def pin_longest(requested: int | None, existing: Plan | None) -> int | None:
    """Return the requested maximum size of a document.

    If no size is requested, return the maximum size of the resumed run. For a new run, return None.
    """
    return existing.provenance.longest_document if requested is None and existing is not None else requested


def prepare(
    config: Config, source: Source, inputs: Sequence[str], existing: Plan | None = None
) -> tuple[Run, list[Unit]]:
    """Check all settings against the source and the checkpoint. Return the run and its units.

    Arguments and errors are those of `prepare_run`.
    """
    run = prepare_run(config, source, inputs, existing)
    units = plan_units(source, rows_per_unit=run.provenance.rows_per_unit, limit=config.limit)
    return replace(run, units=len(units)), units


def prepare_run(config: Config, source: Source, inputs: Sequence[str], existing: Plan | None = None) -> Run:
    """Check all settings against the source and the checkpoint. Return the run, before it is divided into units.

    `inputs` are the pinned inputs in which the files of the source were found. `existing` is the plan of the resumed
    run, if there is one, and gives the defaults of some settings.

    Raises:
        ValueError: if a setting contradicts another setting, the source or the checkpoint.
        ConnectionError: if there is no cluster at the address.
    """
    checkpoints = checkpoints_for(config)
    tokens = tokens_for([checkpoint.folds[0] for checkpoint in checkpoints], config)
    provenance = provenance_for(config, source, inputs, checkpoints, tokens, existing)
    passed = source.schema if provenance.names_of_text or not is_of_text(source) else without_names(source.schema)
    schema = (sidecar_schema if provenance.sidecar else annotated_schema)(passed, provenance)
    require_applicable(provenance, passed if provenance.sidecar else schema)
    domain = None if provenance.calibration is None else provenance.calibration.by
    copied = {ID_COLUMN, domain} if provenance.sidecar else {*schema.names}
    return Run(
        subset=config.place,
        checkpoints=tuple(fold.folder.resolve() for checkpoint in checkpoints for fold in checkpoint.folds),
        tokenizer=tokens.folder.resolve() if tokens.folder else None,
        estimator_tokenizers=reading_tokenizers(
            provenance, [checkpoint.folds[0].folder.resolve() for checkpoint in checkpoints]
        ),
        provenance=provenance,
        source_schema=pa.schema([field for field in passed if field.name in {config.column.name, *copied}]),
        schema=schema,
        units=0,
        repository=config.repository,
        snapshots=tuple(Snapshot(each.repository, each.folder.resolve()) for each in checkpoints if each.repository),
    )


def provenance_for(
    config: Config,
    source: Source,
    inputs: Sequence[str],
    checkpoints: Sequence[Checkpoint],
    tokens: TokenSource,
    existing: Plan | None,
) -> Provenance:
    """Return the provenance: everything that the labels depend on, and the names of the inputs and of the models."""
    firsts = [checkpoint.folds[0] for checkpoint in checkpoints]
    window, overlap = windows_for(config, [first.context for first in firsts])
    for checkpoint in checkpoints:
        require_loadable(checkpoint, config.method)
    names = names_for(config, source, inputs, checkpoints, existing)
    members = members_for(config, checkpoints, tokens, names["models"])
    same = len({member.tokenizer_sha256 for member in members}) == 1
    moved = any(member.tokenizer_sha256 for member in members)
    rows = rows_to_label(source, config.limit)
    return Provenance(
        method=config.method,
        checkpoint_sha256=checkpoint_sha256(*(fold for checkpoint in checkpoints for fold in checkpoint.folds)),
        tokenizer_sha256=tokens.sha256,
        vocabulary=tokens.vocabulary,
        window=window,
        overlap=overlap,
        share=config.share,
        keep_text=config.keep_text,
        sidecar=config.sidecar,
        text_column=config.column.name,
        columns=config.columns,
        source_sha256=source.sha256,
        choices=source.choices,
        source_rows=rows,
        rows_per_unit=rows_per_unit_for(config, rows, existing),
        source_seen_by_estimator=config.source_seen_by_estimator if len(checkpoints[0].folds) == 1 else "no",
        folds=len(checkpoints[0].folds),
        start_token=shared_start(members) if same else None,
        dtype=dtype_for(config, existing),
        batch_invariant=config.batch_invariant,
        longest_document=config.longest,
        estimator_tokenizer_sha256=members[0].tokenizer_sha256 if same else None,
        label_columns=label_columns_for(config, moved, existing),
        members=members if len(members) > 1 else (),
        calibration=None if config.calibration is None else read_calibration(config.calibration),
        **checked_predictions(config, firsts, tokens, moved, existing),
        names_of_text=is_of_text(source) and (existing is None or existing.provenance.names_of_text),
        source=names["source"],
        source_files=names["source_files"],
        model=" + ".join(member.model for member in members),
    )


def shared_start(members: Sequence[EnsembleMember]) -> int | None:
    """Return the start token that all members read, or None if they read different ones."""
    starts = {member.start_token for member in members}
    return starts.pop() if len(starts) == 1 else None


def rows_per_unit_for(config: Config, rows: int, existing: Plan | None) -> int:
    """Return the requested number of rows per unit.

    If no number is requested, return the number of the run that is resumed. Without such a run, return the default.
    """
    return config.rows_per_unit or (existing.provenance.rows_per_unit if existing else default_rows_per_unit(rows))


def tokens_for(checkpoints: Sequence[Checkpoint], config: Config) -> TokenSource:
    """Return the requested source of token ids. By default, this is the tokenizer of the first checkpoint.

    Raises:
        ValueError: if a checkpoint would read ids that are not in its vocabulary.
    """
    named = config.tokenizer or str(checkpoints[0].folder)
    implied = min(each.vocabulary for each in checkpoints) if named == TOKENIZED_ALREADY else None
    tokens = token_source(named, implied if config.vocabulary is None else config.vocabulary)
    for checkpoint in checkpoints:
        known = checkpoint.vocabulary
        read = token_source(str(checkpoint.folder), None) if labels_move(checkpoint, tokens) else tokens
        if read.vocabulary > known:
            raise ValueError(
                f"{read.vocabulary} token ids do not fit the {known} that {checkpoint.folder} knows; "
                "name another tokenizer or checkpoint"
            )
    return tokens


def windows_for(config: Config, contexts: Sequence[int | None]) -> tuple[int, int]:
    """Return the length of a window and the overlap of neighbouring windows, both in tokens.

    `contexts` are the context lengths that the checkpoints declare.

    Raises:
        ValueError: if a checkpoint cannot read windows of the requested length or overlap, or if no length is
            requested and no checkpoint declares a context length.
    """
    longest = min((context for context in contexts if context is not None), default=config.window)
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
    """Return the requested columns of labels.

    If no columns are requested, return the columns of the run that is resumed. Without such a run, return the method's
    default columns. `moved` is True if the written tokens differ from the tokens that the checkpoint reads.

    Raises:
        ValueError: if ranks are requested and `moved` is True. Unlike nats, ranks cannot be divided among tokens.
    """
    run = existing.provenance if existing is not None and existing.provenance.method == config.method else None
    default = tuple(name for name in config.possible_columns if name != RANK)
    requested = config.label_columns or (run.columns_of_labels if run else default)
    if moved and RANK in requested:
        raise ValueError(f"a {RANK} cannot be moved to the tokens of another tokenizer; leave it or --tokenizer out")
    columns = tuple(name for name in config.possible_columns if name in requested)
    return run.label_columns if run and run.columns_of_labels == columns else columns  # older runs recorded none


class Predictions(TypedDict):
    """Fields of the provenance about the columns `top_ids`, `top_logprobs` and `sampled_ids`."""

    top_k: int
    sampled_ids: int
    predicted_vocabulary: int


def checked_predictions(
    config: Config, checkpoints: Sequence[Checkpoint], tokens: TokenSource, moved: bool, existing: Plan | None
) -> Predictions:
    """Return the result of `predictions_for`, after checking that most probable ids can be moved if they must be.

    Raises:
        ValueError: as `predictions_for` and `require_movable_predictions` do.
    """
    vocabulary = tokens.vocabulary if moved else max(checkpoint.vocabulary for checkpoint in checkpoints)
    predictions = predictions_for(config, vocabulary, moved, existing)
    if predictions["top_k"] and moved:
        require_movable_predictions(checkpoints, tokens)
    return predictions


def predictions_for(config: Config, vocabulary: int, moved: bool, existing: Plan | None) -> Predictions:
    """Return the number of most probable ids and the number of sampled ids to write per token.

    A number that is not requested is taken from the resumed run, if that run has the same label method. Otherwise the
    number is 0. `vocabulary` is the number of ids that can be predicted. `moved` is True if the dataset's tokens differ
    from the tokens that the checkpoint reads.

    Raises:
        ValueError: if `vocabulary` is smaller than the requested number of most probable ids, or if sampled ids are
            requested and `moved` is True.
    """
    run = existing.provenance if existing is not None and existing.provenance.method == config.method else None
    top_k, sampled = config.top_k, config.sampled_ids
    top_k = (run.top_k if run else 0) if top_k is None else top_k
    sampled = (run.sampled_ids if run else 0) if sampled is None else sampled
    if moved and sampled:
        raise ValueError(
            "ids of --sampled-ids cannot be moved to the tokens of another tokenizer; leave it or --tokenizer out"
        )
    known = vocabulary if top_k or sampled else 0
    if top_k > known:
        raise ValueError(f"--top-k {top_k:,} is more than the {known:,} ids that the model predicts; give fewer")
    return Predictions(top_k=top_k, sampled_ids=sampled, predicted_vocabulary=known)


def require_movable_predictions(checkpoints: Sequence[Checkpoint], tokens: TokenSource) -> None:
    """Raise if the checkpoints' most probable ids cannot be transferred to the dataset's tokens.

    Raises:
        ValueError: if the checkpoints have several tokenizers, or if one of the tokenizers is not byte-level.
    """
    if len({checkpoint.tokenizer_sha256 for checkpoint in checkpoints}) > 1:
        raise ValueError("--top-k needs checkpoints with the same tokenizer; leave it or a checkpoint out")
    own = load_tokenizer(checkpoints[0].folder)
    if tokens.tokenizer is None or not (is_byte_level(own) and is_byte_level(tokens.tokenizer)):
        raise ValueError(
            "ids of --top-k can be moved only between byte-level tokenizers, such as those of GPT-2, Llama 3 and Qwen; "
            "leave it or --tokenizer out"
        )


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
        from pipeline.labels.torch_labeller import device_here  # imports torch, which takes seconds

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

    The names of text files are then copied to the output. They are not copied if an older version started the run.
    """
    return all(file.format == "text" for file in source.files)


class Names(TypedDict):
    """Names of a run's inputs and of its model. Labels do not depend on these names."""

    source: tuple[str, ...]
    source_files: int
    models: tuple[str, ...]


def names_for(
    config: Config, source: Source, inputs: Sequence[str], checkpoints: Sequence[Checkpoint], existing: Plan | None
) -> Names:
    """Return the names of a run's inputs and models.

    A resumed run keeps its original names, even if folders have been moved since.
    """
    models = tuple(checkpoint.name for checkpoint in checkpoints)
    if existing is not None and recorded(urls(existing.source)) == recorded(urls(inputs)):
        run = existing.provenance
        known = tuple(member.model for member in run.members) or (run.model,)
        models = known if len(known) == len(models) else models
        return Names(source=run.source, source_files=run.source_files, models=models)
    return Names(
        source=named_inputs(inputs, source.files) if config.input else (SAMPLE_NAME,),
        source_files=len(source.files),
        models=models,
    )
