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
from pipeline.data.shards import ENTROPY_COLUMNS, TOKENS, inspect_shard
from pipeline.data.windows import gather, window_batches
from pipeline.engine.annotator import Annotator, LabelledBatch, load_annotator, moved
from pipeline.engine.plan import Run
from pipeline.labels.calibration import calibrated
from pipeline.labels.labeller import device_here
from pipeline.labels.retokenize import encode_with_ends
from pipeline.models.checkpoint import KIND_OF_METHOD, SHIPPED, Checkpoint
from pipeline.verify.stored import Fault, Stored
from schemas.annotations import INPUT_IDS, ROUNDING_NATS, SHIPPED_MODEL, Dtype, Provenance

MOST_TOKENS = 4096  # labelled per document, from its beginning
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
    stored: Stored, provenance: Provenance, checkpoint: str | None, documents: Sequence[SampledRow]
) -> Relabelled:
    """Label the documents again and compare the new labels with the stored labels.

    If `checkpoint` is None, the checkpoint named in the provenance is used.

    Raises:
        LeftOutError: if the checkpoint named in the provenance is not available on this machine or did not label the
            dataset, or if labelling needs text that was not kept.
        ValueError: if `checkpoint` did not label the dataset.
    """
    annotator = load_annotator(_run(stored, provenance, checkpoint), device_here())
    faults, tokens = list[Fault](), 0
    for document in documents:
        with stored.content(document.shard) as content:
            schema = inspect_shard(content.file).schema
            text = {provenance.text_column} if annotator.estimator_tokenizer else set()
            by = {provenance.calibration.by} if provenance.calibration is not None else set()
            names = {INPUT_IDS, *ENTROPY_COLUMNS, *text, *by} & set(schema.names)
            read = pa.schema([field for field in schema if field.name in names])
            (row,) = read_rows(content.file, document.row, document.row + 1, read, TOKENS)
        tokens += min(MOST_TOKENS, len(row.column(INPUT_IDS).flatten()))
        name = stored.named(document.shard)
        faults += [Fault(name, what, document.shard) for what in _differing(annotator, row, document)]
    return Relabelled(len(documents), tokens, faults)


def _run(stored: Stored, provenance: Provenance, named: str | None) -> Run:
    """Return the settings of the run that labelled the dataset, with the checkpoint's path on this machine.

    Raises:
        LeftOutError, ValueError: as `check_sample`.
    """
    moves = provenance.estimator_tokenizer_sha256 is not None
    if moves and not provenance.keep_text:
        raise LeftOutError("labels were moved from another tokenizer, and the text was not kept")
    checkpoint = _checkpoint(provenance) if named is None else Checkpoint.find(named)
    members = tuple(member.folder for member in checkpoint.members)
    if checkpoint.sha256 != provenance.checkpoint_sha256:
        message = f"{named or provenance.model} is not the checkpoint that labelled {stored.place}"
        if named is None:
            raise LeftOutError(f"{message}; name that checkpoint with `estimator`")
        raise ValueError(f"{message}; name {provenance.model} with `estimator`, or leave `estimator` out")
    tokenizer = stored.subset.tokenizer if provenance.tokenizer_sha256 else None
    nothing = pa.schema([])
    return Run(stored.subset, members, tokenizer, members[0] if moves else None, provenance, nothing, nothing, 0)


def _checkpoint(provenance: Provenance) -> Checkpoint:
    """Return the checkpoint named in the provenance, without downloading it: a dataset must not cause a download.

    Raises:
        LeftOutError: if the checkpoint is not available on this machine.
    """
    if provenance.model == SHIPPED_MODEL:
        return Checkpoint(SHIPPED / KIND_OF_METHOD[provenance.method])
    name, _, commit = provenance.model.partition("@")
    if commit:
        try:
            return Checkpoint(Path(snapshot_download(name, revision=commit, local_files_only=True)), provenance.model)
        except (OSError, ValueError):
            raise LeftOutError(
                f"{provenance.model} is not on this disk; fetch it with `estimator` {provenance.model}"
            ) from None
    raise LeftOutError(
        f"the provenance does not say where to find the checkpoint {provenance.model}; name it with `estimator`"
    )


def _differing(annotator: Annotator, row: pa.RecordBatch, document: SampledRow) -> Iterator[str]:
    """Yield a line per label column in which the document's labels and new labels differ by more than the tolerance."""
    stored = {
        name: row.column(name).flatten().to_numpy(zero_copy_only=False).astype(np.float32)[:MOST_TOKENS]
        for name in ENTROPY_COLUMNS
        if name in annotator.labellers[0].columns and name in row.schema.names
    }
    relabelled = _labelled_again(annotator, row)
    for name, stored_N in stored.items():
        labelled_N = ~np.isnan(stored_N)
        off_N = np.abs(relabelled[name][: len(stored_N)] - stored_N)[labelled_N]
        strict = annotator.run.provenance.dtype == "float32"
        off = 0.0 if not len(off_N) else float(off_N.max() if strict else np.median(off_N))
        if not off <= TOLERANCE[annotator.run.provenance.dtype]:
            which = "a label is" if strict else "half of the labels are at least"
            yield f"row {document.row:,}: in `{name}`, {which} {off:.3f} nats off what the checkpoint gives now"


def _labelled_again(annotator: Annotator, row: pa.RecordBatch) -> dict[str, np.ndarray]:
    """Label the first MOST_TOKENS tokens of a document again, and return the labels by column.

    If the labels are converted to another tokenizer's tokens, all tokens are labelled.
    """
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
    if ends is not None:
        labels = {name: moved(nats, ends) for name, nats in labels.items()}
    return {name: nats for name, (nats,) in calibrated(labels, settings.calibration, row).items()}
