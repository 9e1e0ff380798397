"""A sample of documents, labelled again with the checkpoint that labelled a dataset and compared with what is stored.

Every window is labelled by itself, which differs from a batch of several by rounding alone.
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
from pipeline.models.checkpoint import KIND_OF_METHOD, SHIPPED, checkpoint_members, checkpoint_sha256, find_checkpoint
from pipeline.verify.stored import Fault, Stored
from schemas.annotations import INPUT_IDS, ROUNDING_NATS, SHIPPED_MODEL, Dtype, Provenance

MOST_TOKENS = 4096  # of a document, its first ones
TOLERANCE: Mapping[Dtype, float] = {"float32": 1.5 * ROUNDING_NATS, "bfloat16": 0.125}
"""Nats. In float32 no label may be further off than half a step of rounding and what another order of sums makes. In
bfloat16, whose labels differ from float32's by 0.023 in the median, the median of a document's labels may not be."""


class LeftOutError(Exception):
    """No document can be labelled again, for this reason."""


class SampledRow(NamedTuple):
    """A row of a shard."""

    shard: str
    row: int


@dataclass(frozen=True)
class Sample:
    """The documents that were labelled anew."""

    documents: int
    tokens: int
    faults: list[Fault]


def sampled(rows: Mapping[str, int], wanted: int) -> list[SampledRow]:
    """Rows spread evenly over shards, of which `rows` has the number of each."""
    ends = np.cumsum([*rows.values()])
    total = int(ends[-1]) if len(ends) else 0
    wanted = min(wanted, total)
    places = [(2 * number + 1) * total // (2 * wanted) for number in range(wanted)]
    shards = [int(np.searchsorted(ends, place, side="right")) for place in places]
    names = [*rows]
    return [
        SampledRow(names[shard], place - int(ends[shard]) + rows[names[shard]])
        for shard, place in zip(shards, places, strict=True)
    ]


def check_sample(
    stored: Stored, provenance: Provenance, checkpoint: str | None, documents: Sequence[SampledRow]
) -> Sample:
    """Labels the documents anew.

    Raises:
        LeftOutError: if the provenance's checkpoint is not at hand, or the labels' text is not kept.
        ValueError: if the checkpoint that is named is another than labelled the dataset.
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
    return Sample(len(documents), tokens, faults)


def _run(stored: Stored, provenance: Provenance, named: str | None) -> Run:
    """The checkpoint that labelled the dataset.

    Raises:
        LeftOutError, ValueError: as check_sample does.
    """
    moves = provenance.estimator_tokenizer_sha256 is not None
    if moves and not provenance.keep_text:
        raise LeftOutError("labels were moved here from another tokenizer, and the text is not kept")
    folder = _checkpoint(provenance) if named is None else find_checkpoint(named)
    members = checkpoint_members(folder)
    if checkpoint_sha256(*members) != provenance.checkpoint_sha256:
        told = f"{named or provenance.model} is another checkpoint than labelled {stored.place}"
        if named is None:
            raise LeftOutError(f"{told}; name that one with --estimator")
        raise ValueError(f"{told}, {provenance.model}; name that one with --estimator, or leave it out")
    tokenizer = stored.subset.tokenizer if provenance.tokenizer_sha256 else None
    nothing = pa.schema([])
    return Run(stored.subset, members, tokenizer, members[0] if moves else None, provenance, nothing, nothing, 0)


def _checkpoint(provenance: Provenance) -> Path:
    """The checkpoint that a provenance names, if it is here: a dataset of a stranger's makes nobody fetch a model."""
    if provenance.model == SHIPPED_MODEL:
        return SHIPPED / KIND_OF_METHOD[provenance.method]
    name, _, commit = provenance.model.partition("@")
    if commit:
        try:
            return Path(snapshot_download(name, revision=commit, local_files_only=True))
        except (OSError, ValueError):
            raise LeftOutError(f"{provenance.model} is not here; --estimator {provenance.model} fetches it") from None
    raise LeftOutError(f"the checkpoint {provenance.model} has no place in the provenance; name it with --estimator")


def _differing(annotator: Annotator, row: pa.RecordBatch, document: SampledRow) -> Iterator[str]:
    """The entropies of a document that are not those that the checkpoint gives now."""
    stored = {
        name: row.column(name).flatten().to_numpy(zero_copy_only=False).astype(np.float32)[:MOST_TOKENS]
        for name in annotator.labellers[0].columns
        if name in row.schema.names
    }
    found = _labelled_anew(annotator, row)
    for name, stored_N in stored.items():
        labelled_N = ~np.isnan(stored_N)
        off_N = np.abs(found[name][: len(stored_N)] - stored_N)[labelled_N]
        strict = annotator.run.provenance.dtype == "float32"
        off = 0.0 if not len(off_N) else float(off_N.max() if strict else np.median(off_N))
        if not off <= TOLERANCE[annotator.run.provenance.dtype]:
            which = "" if strict else "half of "
            yield f"row {document.row:,}: {which}`{name}` is {off:.3f} nats or more off what its checkpoint gives now"


def _labelled_anew(annotator: Annotator, row: pa.RecordBatch) -> dict[str, np.ndarray]:
    """Entropies of the first tokens of a document."""
    settings, ends = annotator.run.provenance, None
    ids_N = row.column(INPUT_IDS).flatten().to_numpy()
    if annotator.estimator_tokenizer is not None and annotator.tokenizer is not None:
        text = [row.column(settings.text_column)[0].as_py() or ""]
        ways = (annotator.estimator_tokenizer, annotator.tokenizer)
        (read,), (written,) = (encode_with_ends(way, text) for way in ways)
        ids_N, ends = read.ids_T, [(read.ends_T, written.ends_T)]
    wanted_N = np.arange(len(ids_N)) < MOST_TOKENS
    if ends is not None:
        wanted_N[:] = True
    batches: list[LabelledBatch] = []
    for fold, labeller in enumerate(annotator.labellers):
        own_N = wanted_N & (fold_of(ids_N, settings.folds) == fold)
        windows = window_batches(
            [ids_N], [own_N], window=settings.window, overlap=settings.overlap, budget=1, border=labeller.border
        )
        values, _ = labeller.label(windows)
        batches += zip(windows, values, strict=True)
    labels = gather([ids_N], batches, annotator.labellers[0].columns)
    return {name: (nats if ends is None else moved(nats, ends))[0] for name, nats in labels.items()}
