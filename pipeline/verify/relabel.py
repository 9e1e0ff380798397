"""Check of a sample of documents: label them again with the dataset's checkpoint and compare with the stored labels.

Windows are labelled one at a time instead of in batches. This changes labels only by rounding.
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
from pipeline.data.shards import LABELS, inspect_shard, numbers_per_token
from pipeline.data.windows import window_batches
from pipeline.engine.annotator import Annotator, ChunkReading, LabelledBatch, LabelledReading, load_annotator
from pipeline.engine.plan import Run, reading_tokenizers
from pipeline.labels.torch_labeller import device_here
from pipeline.models.checkpoint import KIND_OF_METHOD, SHIPPED, Checkpoint, checkpoint_sha256
from pipeline.verify.stored import Fault, Stored
from schemas.annotations import (
    ENTROPY_COLUMNS,
    INPUT_IDS,
    ROUNDING_NATS,
    SHIPPED_MODEL,
    TOP_LOGPROBS,
    Dtype,
    Method,
    Provenance,
)

MOST_TOKENS = 4096  # most tokens of a document that are labelled again, from its beginning
COMPARED = (*ENTROPY_COLUMNS, TOP_LOGPROBS)
"""Columns to compare. Their values change only by rounding when documents are labelled again. The remaining columns may
change more: ranks and ids if probabilities are nearly equal, and `rest_logprob` if it is a small difference of large
numbers."""
TOLERANCE: Mapping[Dtype, float] = {"float32": 1.5 * ROUNDING_NATS, "bfloat16": 0.125}
"""Largest tolerated difference in nats, by data type. In float32, the tolerance applies to every label, and covers half
a rounding step of the stored labels and the effect of another order of summation. In bfloat16, the tolerance applies to
the median difference in a document. For comparison, labels in bfloat16 have a median difference of 0.023 from labels in
float32."""


class LeftOutError(Exception):
    """Raised if the sample cannot be labelled again. The message gives the reason."""


class SampledRow(NamedTuple):
    """Place of a sampled document: the name of its shard, and the index of its row in the shard."""

    shard: str
    row: int


@dataclass(frozen=True)
class Relabelled:
    """Totals and faults of the documents that were labelled again."""

    documents: int
    tokens: int
    faults: list[Fault]


def spread_rows(rows: Mapping[str, int], count: int) -> list[SampledRow]:
    """Return `count` evenly spread rows, or all rows if there are fewer. `rows` has the number of rows by shard."""
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
    stored: Stored, provenance: Provenance, named: Sequence[str], documents: Sequence[SampledRow]
) -> Relabelled:
    """Label the documents again and compare the new labels with the stored labels.

    If no checkpoints are `named`, those of the provenance are used.

    Raises:
        LeftOutError: if a checkpoint of the provenance is missing on this machine or has changed since it labelled the
            dataset, or if labelling needs text that was not kept.
        ValueError: if the named checkpoints are not those that labelled the dataset.
    """
    annotator = load_annotator(_run(stored, provenance, named), device_here())
    faults, tokens = list[Fault](), 0
    for document in documents:
        with stored.content(document.shard) as content:
            schema = inspect_shard(content.file).schema
            text = {provenance.text_column} if provenance.is_moved else set()
            by = {provenance.calibration.by} if provenance.calibration is not None else set()
            names = {INPUT_IDS, *COMPARED, *text, *by} & set(schema.names)
            read = pa.schema([field for field in schema if field.name in names])
            (row,) = read_rows(content.file, document.row, document.row + 1, read, LABELS)
        tokens += min(MOST_TOKENS, len(row.column(INPUT_IDS).flatten()))
        name = stored.named(document.shard)
        faults += [Fault(name, what, document.shard) for what in _differing(annotator, row, document)]
    return Relabelled(len(documents), tokens, faults)


def _run(stored: Stored, provenance: Provenance, named: Sequence[str]) -> Run:
    """Return the settings of the run that labelled the dataset, with the paths of checkpoints on this machine.

    Raises:
        LeftOutError, ValueError: as `check_sample`.
    """
    if provenance.sidecar:
        raise LeftOutError("a sidecar holds no documents")
    if provenance.is_moved and not provenance.keep_text:
        raise LeftOutError("labels were moved from another tokenizer, and the text was not kept")
    models = [member.model for member in provenance.members] or [provenance.model]
    checkpoints = [*map(Checkpoint.find, named)] or [_checkpoint(model, provenance.method) for model in models]
    folds = [fold for checkpoint in checkpoints for fold in checkpoint.folds]
    if len(folds) != len(models) * provenance.folds or checkpoint_sha256(*folds) != provenance.checkpoint_sha256:
        which = "is not the checkpoint that labelled" if len(models) == 1 else "are not the checkpoints that labelled"
        message = f"{' '.join(named or models)} {which} {stored.place}"
        if not named:
            raise LeftOutError(f"{message}; name {'it' if len(models) == 1 else 'them'} with `estimator`")
        raise ValueError(f"{message}; name {' '.join(models)} with `estimator`, or leave `estimator` out")
    tokenizer = stored.subset.tokenizer if provenance.tokenizer_sha256 else None
    firsts = [checkpoint.folds[0].folder for checkpoint in checkpoints]
    others = reading_tokenizers(provenance, firsts)
    nothing = pa.schema([])
    folders = tuple(fold.folder for fold in folds)
    return Run(stored.subset, folders, tokenizer, others, provenance, nothing, nothing, 0)


def _checkpoint(model: str, method: Method) -> Checkpoint:
    """Return a checkpoint named in the provenance, without downloading it: a dataset must not cause a download.

    Raises:
        LeftOutError: if the checkpoint is not available on this machine.
    """
    if model == SHIPPED_MODEL:
        return Checkpoint(SHIPPED / KIND_OF_METHOD[method])
    name, _, commit = model.partition("@")
    if commit:
        try:
            return Checkpoint(Path(snapshot_download(name, revision=commit, local_files_only=True)), model)
        except (OSError, ValueError):
            raise LeftOutError(f"{model} is not on this disk; fetch it with `estimator` {model}") from None
    raise LeftOutError(f"the provenance does not say where to find the checkpoint {model}; name it with `estimator`")


def _differing(annotator: Annotator, row: pa.RecordBatch, document: SampledRow) -> Iterator[str]:
    """Yield a line per label column in which the document's labels and new labels differ by more than the tolerance."""
    stored = {
        name: numbers_per_token(name, row.column(name)).astype(np.float32)[:MOST_TOKENS]
        for name in COMPARED
        if name in annotator.run.provenance.label_shapes and name in row.schema.names
    }
    relabelled = _labelled_again(annotator, row)
    for name, numbers in stored.items():
        off_N = np.abs(relabelled[name].T[: len(numbers)] - numbers)[~np.isnan(numbers)]
        strict = annotator.run.provenance.dtype == "float32"
        off = 0.0 if not len(off_N) else float(off_N.max() if strict else np.median(off_N))
        if not off <= TOLERANCE[annotator.run.provenance.dtype]:
            which = "a label is" if strict else "half of the labels are at least"
            yield f"row {document.row:,}: in `{name}`, {which} {off:.3f} nats off what the checkpoint gives now"


def _labelled_again(annotator: Annotator, row: pa.RecordBatch) -> dict[str, np.ndarray]:
    """Label the first MOST_TOKENS tokens of a document again, and return the labels by column.

    If the labels are converted to another tokenizer's tokens, all tokens are labelled.
    """
    settings = annotator.run.provenance
    if settings.is_moved:
        _, read = annotator.read([row.column(settings.text_column)[0].as_py() or ""])
    else:
        read = [([row.column(INPUT_IDS).flatten().to_numpy()], None)]
    labelled: list[LabelledReading] = []
    for reading, (documents, ends) in enumerate(read):
        (ids_N,) = documents
        wanted_N = np.full(len(ids_N), True) if settings.is_moved else np.arange(len(ids_N)) < MOST_TOKENS
        batches: list[LabelledBatch] = []
        for fold, labeller in enumerate(annotator.labellers_of(reading)):
            own_N = wanted_N & (fold_of(ids_N, settings.folds) == fold)
            windows = window_batches(
                [ids_N], [own_N], window=settings.window, overlap=settings.overlap, budget=1, border=labeller.border
            )
            values, _ = labeller.label(windows)
            batches += zip(windows, values, strict=True)
        labelled.append((ChunkReading(documents, ends, []), batches))
    return {name: arrays[0] for name, arrays in annotator.labels(labelled, row).items()}
