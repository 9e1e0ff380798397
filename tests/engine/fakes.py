"""Label method without torch, so that workers start within a second, and the faults that tests trigger in it.

Special tokens trigger a fault in the batch that holds them. A fault that happens only once leaves a mark next to the
output.
"""

import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.documents import Column
from pipeline.data.files import find_files
from pipeline.data.windows import WindowBatch, gather, window_batches
from pipeline.engine.annotator import Annotator, SourceError, WindowLabeller, with_tokenizers
from pipeline.engine.plan import Run, Unit, inspect, plan_units
from pipeline.engine.throughput import Stages, UnitResult
from pipeline.engine.unit_progress import UnitProgress
from schemas.annotations import ENTROPY, INPUT_IDS, Shape, annotated_schema
from schemas.layout import Subset
from schemas.receipts import Counts, Receipt
from tests.builders import PROVENANCE, write_documents

KILLS_ONCE, KILLS_ALWAYS, FAILS_ONCE, NOT_FINITE = 96, 95, 94, 93


@dataclass(frozen=True)
class FakeLabeller:
    """Labeller whose labels depend on the tokens and on the batch.

    A token's label depends on the token, on the tokens before it in its window, on the size of the batch and on the
    window's row in the batch.
    """

    seconds: float = 0.0
    """Seconds that a batch takes."""
    columns: Mapping[str, Shape] = field(default_factory=lambda: {ENTROPY: ()})
    batch_tokens: int = 16384
    border: int | None = None

    def label(
        self, batches: Iterable[WindowBatch], labelled: Callable[[WindowBatch], None] = lambda batch: None
    ) -> tuple[list[dict[str, np.ndarray]], int]:
        values = []
        for batch in batches:
            time.sleep(self.seconds)
            sums_BT = np.cumsum(batch.ids_BT, axis=1) % 1013 / 101 + batch.ids_BT / 7
            sums_BT += np.arange(len(sums_BT))[:, None] + batch.ids_BT.size / 100  # like a device's rounding
            values.append({ENTROPY: sums_BT.astype(np.float32)})
            labelled(batch)
        return values, 0


@dataclass(frozen=True)
class FaultyLabeller(FakeLabeller):
    """Labeller with the labels of FakeLabeller, and with faults that special tokens trigger."""

    marks: Path = Path()

    def label(
        self, batches: Iterable[WindowBatch], labelled: Callable[[WindowBatch], None] = lambda batch: None
    ) -> tuple[list[dict[str, np.ndarray]], int]:
        batches = list(batches)
        for batch in batches:
            self._fail(batch)
        values, parts = super().label(batches, labelled)
        for batch, labels in zip(batches, values, strict=True):
            labels[ENTROPY][batch.ids_BT == NOT_FINITE] = np.inf
        return values, parts

    def _fail(self, batch: WindowBatch) -> None:
        if KILLS_ALWAYS in batch.ids_BT or (KILLS_ONCE in batch.ids_BT and self._first_time("killed")):
            os.kill(os.getpid(), signal.SIGKILL)
        if FAILS_ONCE in batch.ids_BT and self._first_time("failed"):
            raise RuntimeError("the device can no longer be trusted")

    def _first_time(self, name: str) -> bool:
        self.marks.mkdir(exist_ok=True)
        try:
            (self.marks / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def load_fake(run: Run, device: str = "cpu", seconds: float = 0.0) -> Annotator:
    """Return the annotator that a worker loads instead of a checkpoint."""
    return with_tokenizers(run, (FakeLabeller(seconds),))


def load_faulty(run: Run, device: str) -> Annotator:
    """Return an annotator like that of `load_fake`, but with the faults of FaultyLabeller."""
    return with_tokenizers(run, (FaultyLabeller(marks=run.subset.root.with_suffix(".marks")),))


class NoOp:
    """Annotator that does nothing with a unit."""

    def __init__(self, run: Run, device: str) -> None:
        pass

    def annotate(self, unit: Unit, progress: UnitProgress) -> UnitResult:
        receipt = Receipt(unit=unit.index, shard="", sha256="0" * 64, size=0, counts=Counts(rows=1))
        return UnitResult(receipt, Stages())


class Unreachable:
    """Annotator that cannot read any rows in its first `refusals` calls."""

    refusals = 3

    def __init__(self, run: Run, device: str) -> None:
        self.annotator, self.asked = load_fake(run), 0

    def annotate(self, unit: Unit, progress: UnitProgress) -> UnitResult:
        self.asked += 1
        if self.asked <= self.refusals:
            raise SourceError("cannot read https://host/in.parquet: 503")
        return self.annotator.annotate(unit, progress)


def planned_run(
    output: Path, inputs: Sequence[Path], *, rows_per_unit: int = 2, **changed: Any
) -> tuple[Run, list[Unit]]:
    """Plan a run over files of tokenized documents, as `pipeline.annotate` does. Token ids must be below 97.

    `changed` are fields of the run's provenance, by name, that differ from the defaults.
    """
    source = inspect(find_files([str(path) for path in inputs]), Column(INPUT_IDS, tokenized=True))
    units = plan_units(source, rows_per_unit=rows_per_unit, limit=None)
    settings = {
        "method": "exact",
        "tokenizer_sha256": None,
        "vocabulary": 97,
        "window": 16,
        "overlap": 8,
        "source_sha256": source.sha256,
        "source_rows": source.rows,
        "rows_per_unit": rows_per_unit,
        "text_column": INPUT_IDS,
    }
    provenance = replace(PROVENANCE, **{**settings, **changed})
    schema = annotated_schema(source.schema, provenance)
    return Run(Subset("exact", output), (), None, (None,), provenance, source.schema, schema, len(units)), units


def planned(folder: Path, faults: dict[int, int] | None = None, rows: int = 12) -> tuple[Run, list[Unit]]:
    """Plan a run over documents in units of two rows. `faults` maps a row to a token that is added to its document."""
    documents = token_rows(rows)
    for row, token in (faults or {}).items():
        documents[row].append(token)
    file = write_documents(folder / "in.parquet", ["text"] * rows, input_ids=documents)
    return planned_run(folder / "out", [file])


def changed(run: Run, **settings: Any) -> Run:
    """Return the run with changed settings, and with the schema of its shards under these settings."""
    provenance = replace(run.provenance, **settings)
    return replace(run, provenance=provenance, schema=annotated_schema(run.source_schema, provenance))


def token_rows(rows: int) -> list[list[int]]:
    """Return documents of 20, 21, ... tokens, all below the tokens that trigger faults."""
    return [np.random.default_rng(row).integers(NOT_FINITE, size=20 + row).tolist() for row in range(rows)]


def shards(output: Path) -> dict[str, bytes]:
    """Return the bytes of every shard. Outputs with equal bytes hold the same dataset."""
    return {file.name: file.read_bytes() for file in sorted((output / "data").rglob("*.parquet"))}


def undisturbed(run: Run, units: Sequence[Unit], output: Path) -> dict[str, bytes]:
    """Carry out the run without Ray and without faults, one unit after another. Return the shards."""
    annotator = load_fake(replace(run, subset=Subset("exact", output)))
    for unit in units:
        annotator.annotate(unit)
    return shards(output)


def label_documents(
    documents: Sequence[np.ndarray],
    labeller: WindowLabeller,
    *,
    window: int,
    overlap: int,
    wanted: Sequence[np.ndarray] | None = None,
    budget: int | None = None,
) -> dict[str, list[np.ndarray]]:
    """Label documents at the `wanted` positions (by default everywhere) through windows and batches, as a unit does."""
    everywhere = [np.ones(len(ids), bool) for ids in documents]
    batches = window_batches(
        documents,
        wanted or everywhere,
        window=window,
        overlap=overlap,
        budget=budget or labeller.batch_tokens,
        border=labeller.border,
    )
    values, _ = labeller.label(batches)
    return gather(documents, zip(batches, values, strict=True), labeller.columns)
