"""The host path: all that a worker does except labelling, in its own process on one core, without Ray or torch.

`python -m tests.benchmarks.host_path FILE FOLDER` prints JSON: the tokens per CPU second of all threads, and each
stage's share of the CPU time. Speed and shares are measured with separate tokenizers, so that no tokenizer reads a row
twice. The first unit is not counted, because the process loads what it needs during that unit.
"""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from pipeline.data.counts import count
from pipeline.data.documents import Column, document_tokens, read_rows
from pipeline.data.files import find_files
from pipeline.data.sample import sample_documents
from pipeline.data.shards import annotated_rows, write_shard
from pipeline.data.tokenizer import load_tokenizer
from pipeline.data.windows import WindowBatch, gather, window_batches
from pipeline.engine.annotator import with_tokenizers
from pipeline.engine.plan import Run, Unit, inspect, plan_units
from pipeline.models.checkpoint import SHIPPED
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY, ROUNDING_NATS, Shape, annotated_schema
from schemas.layout import Subset
from tests.builders import PROVENANCE

UNITS = 4
VALUES = 2**22
"""Number of entropies that are drawn once. The labels of a batch are a random slice of them."""
BATCH_TOKENS = 2**14


@dataclass(frozen=True)
class HostPath:
    """Measurement of the host path: a description of the documents, the speed, and the share of each stage."""

    text: str
    tokens_per_second: float
    """Tokens per second of CPU time."""
    shares: dict[str, float]
    """Share of the total CPU time that each stage takes, by the stage's name."""


def measured(folder: Path, documents: int) -> HostPath:
    """Return the host path's speed on this number of documents, measured in another process.

    The documents are the first of the file that the environment variable FINEWEB names, or else built-in ones.
    """
    named = os.environ.get("FINEWEB")
    table = (pq.read_table(named) if named else sample_documents()).slice(0, documents)
    pq.write_table(table, folder / "in.parquet")
    command = [sys.executable, "-m", "tests.benchmarks.host_path", str(folder / "in.parquet"), str(folder / "out")]
    one_thread = {**os.environ, "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=one_thread).stdout
    return HostPath(f"{len(table):,} {'rows of FineWeb' if named else 'built-in documents'}", **json.loads(printed))


def planned(file: Path, output: Path, rows_per_unit: int) -> tuple[Run, list[Unit]]:
    """Plan a run with the shipped tokenizer and the columns of second-order labels."""
    source = inspect(find_files([str(file)]), Column())
    units = plan_units(source, rows_per_unit=rows_per_unit, limit=None)
    provenance = replace(PROVENANCE, method="second-order", vocabulary=8192, window=256, overlap=128)
    schema, tokenizer = annotated_schema(source.schema, provenance), SHIPPED / "tokenizer"
    subset = Subset("host-path", output)
    return Run(subset, (), tokenizer, (None,), provenance, source.schema, schema, len(units)), units


class FreeLabels:
    """Labeller whose labels cost nothing, with the distribution of labels of English text."""

    batch_tokens = BATCH_TOKENS
    border = None

    def __init__(self) -> None:
        self.columns: Mapping[str, Shape] = {ENTROPY: (), EXPECTED_ENTROPY: ()}
        self.random = np.random.default_rng(0)
        nats = self.random.gamma(1.5, 2.0, VALUES) / ROUNDING_NATS
        self.values = (np.round(nats) * ROUNDING_NATS).astype(np.float32)

    def label(
        self, batches: Iterable[WindowBatch], labelled: Callable[[WindowBatch], None] = lambda batch: None
    ) -> tuple[list[dict[str, np.ndarray]], int]:
        return [{name: self._drawn(batch.ids_BT.shape) for name in self.columns} for batch in batches], 0

    def _drawn(self, shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape))
        start = int(self.random.integers(VALUES - size))
        return self.values[start : start + size].reshape(shape)


def tokens_a_second(job: Run, units: Sequence[Unit]) -> float:
    """Annotate all units, from reading the rows to writing the receipts, and return the tokens per CPU second.

    The first unit is not counted.
    """
    annotator = with_tokenizers(job, (FreeLabels(),))
    annotator.annotate(units[0])
    started = time.process_time()
    tokens = sum(annotator.annotate(unit).receipt.counts.tokens for unit in units[1:])
    return tokens / (time.process_time() - started)


@dataclass(frozen=True)
class OneByOne:
    """The stages of the host path carried out one after another, with the CPU seconds of each."""

    job: Run
    tokenizer: Tokenizer
    labels: FreeLabels = field(default_factory=FreeLabels)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def shares(self, units: Sequence[Unit]) -> dict[str, float]:
        """Return each stage's share of the CPU time of all units except the first."""
        for unit in units:
            tables = list(self._tables(unit))
            self._timed("write", write_shard, self.job.subset.root / f"{unit.index}.parquet", tables, self.job.schema)
            if unit is units[0]:
                self.seconds.clear()
        return {stage: spent / sum(self.seconds.values()) for stage, spent in self.seconds.items()}

    def _tables(self, unit: Unit) -> Iterator[pa.Table]:
        job = self.job
        given = read_rows(unit.file, unit.start, unit.stop, job.source_schema, job.column)
        while (rows := self._timed("read", next, given, None)) is not None:
            vocabulary = job.provenance.vocabulary
            documents = self._timed("tokenize", document_tokens, rows, job.column, self.tokenizer, vocabulary)
            batches = self._timed("batch", self._batches, documents)
            values, _ = self.labels.label(batches)
            yield self._timed("gather and Arrow", self._table, rows, documents, zip(batches, values, strict=True))

    def _batches(self, documents: list[np.ndarray]) -> list[WindowBatch]:
        settings = self.job.provenance
        wanted = [np.ones(len(ids), bool) for ids in documents]
        return window_batches(documents, wanted, window=settings.window, overlap=settings.overlap, budget=BATCH_TOKENS)

    def _table(
        self,
        rows: pa.RecordBatch,
        documents: list[np.ndarray],
        labelled: Iterable[tuple[WindowBatch, dict[str, np.ndarray]]],
    ) -> pa.Table:
        table = annotated_rows(rows, documents, gather(documents, labelled, self.labels.columns), self.job.schema)
        count(rows, table, self.job.column, self.tokenizer)
        return table

    def _timed(self, stage: str, work: Callable[..., Any], *given: Any) -> Any:
        started = time.process_time()
        result = work(*given)
        self.seconds[stage] += time.process_time() - started
        return result


def main(file: Path, folder: Path) -> None:
    rows = pq.read_metadata(file).num_rows
    job, units = planned(file, folder, -(-rows // UNITS))
    assert job.tokenizer is not None
    shares = OneByOne(job, load_tokenizer(job.tokenizer)).shares(units)
    print(json.dumps({"tokens_per_second": tokens_a_second(job, units), "shares": shares}))


if __name__ == "__main__":
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    main(*map(Path, sys.argv[1:]))
