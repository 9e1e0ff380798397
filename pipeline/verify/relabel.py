"""Labels a sample of documents again with the checkpoint that labelled a dataset, and compares with the stored labels.

Every window is labelled alone, which differs from a batch of several by rounding only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from huggingface_hub import snapshot_download

from pipeline.data.corpus import fold_of
from pipeline.data.documents import read_rows
from pipeline.data.shards import ENTROPY_COLUMNS, TOKENS, inspect_shard
from pipeline.data.windows import gather, window_batches
from pipeline.engine.annotator import Annotator, LabelledBatch, load_annotator, moved
from pipeline.engine.plan import Run
from pipeline.labels.labeller import device_here
from pipeline.labels.retokenize import encode_with_ends
from pipeline.models.checkpoint import KIND_OF_METHOD, SHIPPED, Checkpoint
from pipeline.verify.stored import Fault, Stored
from schemas.annotations import INPUT_IDS, ROUNDING_NATS, SHIPPED_MODEL, Dtype, Provenance

MOST_TOKENS = 4096  # of each document, from its beginning
TOLERANCE: Mapping[Dtype, float] = {"float32": 1.5 * ROUNDING_NATS, "bfloat16": 0.125}
"""Nats. In float32 no label may differ by more: half a step of rounding, and the effect of another order of sums. In
bfloat16 the median of a document may not; it differs from float32's labels by 0.023 in the median."""


class LeftOutError(Exception):
    """The reason why no document can be labelled again."""


class SampledRow(NamedTuple):
    """A row of a shard."""

    shard: str
    row: int


@dataclass(frozen=True)
class Relabelled:
    """Totals and faults of the documents that were labelled again."""

    documents: int
    tokens: int
    faults: list[Fault]


def spread_rows(rows: Mapping[str, int], count: int) -> list[SampledRow]:
    """Evenly spread rows, `count` or all, of shards with these numbers of rows."""
    ends = np.cumsum([*rows.values()])
    total = int(ends[-1]) if len(ends) else 0
    count = min(count, total)
    chosen = [(2 * number + 1) * total // (2 * count) for number in range(count)]
    shards = [int(np.searchsorted(ends, row, side="right")) for row in chosen]
    names = [*rows]
    return [
        SampledRow(names[shard], row - int(ends[shard]) + rows[names[shard]])
        for shard, row in zip(shards, chosen, strict=True)
    ]


def check_sample(
    stored: Stored, provenance: Provenance, checkpoint: str | None, documents: Sequence[SampledRow]
) -> Relabelled:
    """Labels the documents again.

    Raises:
        LeftOutError: if the provenance's checkpoint is not available here, or the labels' text was not kept.
        ValueError: if another checkpoint labelled the dataset than the one that is named.
    """
    annotator = load_annotator(_run(stored, provenance, checkpoint), device_here())
    faults, tokens = list[Fault](), 0
    for document in documents:
        with stored.content(document.shard) as content:
            schema = inspect_shard(content.file).schema
            text = {provenance.text_column} if annotator.estimator_tokenizer else set()
            names = {INPUT_IDS, *ENTROPY_COLUMNS, *text} & set(schema.names)
            read = pa.schema([field for field in schema if field.name in names])
            (row,) = read_rows(content.file, document.row, document.row + 1, read, TOKENS)
        tokens += min(MOST_TOKENS, len(row.column(INPUT_IDS).flatten()))
        name = stored.named(document.shard)
        faults += [Fault(name, what, document.shard) for what in _differing(annotator, row, document)]
    return Relabelled(len(documents), tokens, faults)


def _run(stored: Stored, provenance: Provenance, named: str | None) -> Run:
    """A run with the checkpoint that labelled the dataset.

    Raises:
        LeftOutError, ValueError: as check_sample does.
    """
    moves = provenance.estimator_tokenizer_sha256 is not None
    if moves and not provenance.keep_text:
        raise LeftOutError("labels were moved here from another tokenizer, and the text is not kept")
    checkpoint = _checkpoint(provenance) if named is None else Checkpoint.find(named)
    members = tuple(member.folder for member in checkpoint.members)
    if checkpoint.sha256 != provenance.checkpoint_sha256:
        message = f"{named or provenance.model} is another checkpoint than labelled {stored.place}"
        if named is None:
            raise LeftOutError(f"{message}; name that one with `estimator`")
        raise ValueError(f"{message}, {provenance.model}; name that one with `estimator`, or leave it out")
    tokenizer = stored.subset.tokenizer if provenance.tokenizer_sha256 else None
    nothing = pa.schema([])
    return Run(stored.subset, members, tokenizer, members[0] if moves else None, provenance, nothing, nothing, 0)


def _checkpoint(provenance: Provenance) -> Checkpoint:
    """The checkpoint that a provenance names, if it is here: a stranger's dataset makes nobody download a model."""
    if provenance.model == SHIPPED_MODEL:
        return Checkpoint(SHIPPED / KIND_OF_METHOD[provenance.method])
    name, _, commit = provenance.model.partition("@")
    if commit:
        try:
            return Checkpoint(Path(snapshot_download(name, revision=commit, local_files_only=True)), provenance.model)
        except (OSError, ValueError):
            raise LeftOutError(f"{provenance.model} is not here; `estimator` {provenance.model} fetches it") from None
    raise LeftOutError(f"the checkpoint {provenance.model} has no place in the provenance; name it with `estimator`")


def _differing(annotator: Annotator, row: pa.RecordBatch, document: SampledRow) -> Iterator[str]:
    """A line for each label column of a document that differs from the checkpoint's labels."""
    stored = {
        name: row.column(name).flatten().to_numpy(zero_copy_only=False).astype(np.float32)[:MOST_TOKENS]
        for name in annotator.labellers[0].columns
        if name in row.schema.names
    }
    relabelled = _labelled_again(annotator, row)
    for name, stored_N in stored.items():
        labelled_N = ~np.isnan(stored_N)
        off_N = np.abs(relabelled[name][: len(stored_N)] - stored_N)[labelled_N]
        strict = annotator.run.provenance.dtype == "float32"
        off = 0.0 if not len(off_N) else float(off_N.max() if strict else np.median(off_N))
        if not off <= TOLERANCE[annotator.run.provenance.dtype]:
            which = "" if strict else "half of "
            yield f"row {document.row:,}: {which}`{name}` is {off:.3f} nats or more off what its checkpoint gives now"


def _labelled_again(annotator: Annotator, row: pa.RecordBatch) -> dict[str, np.ndarray]:
    """Labels of the first tokens of a document, by column."""
    settings, ends = annotator.run.provenance, None
    ids_N = row.column(INPUT_IDS).flatten().to_numpy()
    if annotator.estimator_tokenizer is not None and annotator.tokenizer is not None:
        text = [row.column(settings.text_column)[0].as_py() or ""]
        tokenizers = (annotator.estimator_tokenizer, annotator.tokenizer)
        (read,), (written,) = (encode_with_ends(tokenizer, text) for tokenizer in tokenizers)
        ids_N, ends = read.ids_T, [(read.ends_T, written.ends_T)]
    labelled_N = np.arange(len(ids_N)) < MOST_TOKENS
    if ends is not None:
        labelled_N[:] = True
    batches: list[LabelledBatch] = []
    for fold, labeller in enumerate(annotator.labellers):
        own_N = labelled_N & (fold_of(ids_N, settings.folds) == fold)
        windows = window_batches(
            [ids_N], [own_N], window=settings.window, overlap=settings.overlap, budget=1, border=labeller.border
        )
        values, _ = labeller.label(windows)
        batches += zip(windows, values, strict=True)
    labels = gather([ids_N], batches, annotator.labellers[0].columns)
    return {name: (nats if ends is None else moved(nats, ends))[0] for name, nats in labels.items()}
