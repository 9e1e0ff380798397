"""The host path: a worker that reads, tokenizes, batches and writes, with labels of two columns that cost nothing.

Text is FineWeb's where the environment variable FINEWEB names a file of it. No document is read twice: repetition would
flatter a cache. Neither Ray nor torch.
"""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.data.documents import Column
from pipeline.data.locations import find_files
from pipeline.data.sample import write_sample
from pipeline.engine.annotation import with_tokenizers
from pipeline.engine.batches import Batch
from pipeline.engine.plan import Unit, inspect, plan_units
from pipeline.engine.run import Run
from pipeline.engine.stages import WORK
from pipeline.models.checkpoint import SHIPPED
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY, annotated_schema
from schemas.layout import Subset
from tests.builders import PROVENANCE

MOST_DOCUMENTS = 3000
LARGEST_NATS = 12.0


@dataclass(frozen=True)
class HostPath:
    """What was measured."""

    text: str
    tokens: int
    tokens_per_second: float
    """Of CPU time, of all threads."""
    shares: dict[str, float]
    """Of each stage in the time of all."""


class Costless:
    """Both columns of labels, from one array of random nats that is there already."""

    columns = (ENTROPY, EXPECTED_ENTROPY)
    batch_tokens = 2**14

    def __init__(self) -> None:
        self.nats_N = np.random.default_rng(0).gamma(1.5, 2, 2**20).clip(0, LARGEST_NATS).astype(np.float32)

    def label(self, batches: Iterable[Batch]) -> tuple[list[dict[str, np.ndarray]], int]:
        return [dict.fromkeys(self.columns, self._of(batch)) for batch in batches], 0

    def _of(self, batch: Batch) -> np.ndarray:
        return self.nats_N[: batch.ids_BT.size].reshape(batch.ids_BT.shape)


def host_path(folder: Path) -> HostPath:
    """Annotates FineWeb's documents, or the built-in ones, into a folder."""
    file, text = _documents(folder)
    run, unit = planned(file, folder / "out")
    annotator = with_tokenizers(run, (Costless(),))
    started = time.process_time()
    receipt, stages, _ = annotator.annotate(unit)
    spent = time.process_time() - started
    total = sum(stages.seconds[stage] for stage in WORK)
    shares = {stage: stages.seconds[stage] / total for stage in WORK if stages.seconds[stage]}
    return HostPath(text, receipt.counts.tokens, receipt.counts.tokens / spent, shares)


def planned(file: Path, output: Path) -> tuple[Run, Unit]:
    """A run of one unit with the shipped tokenizer, as second-order labels are planned."""
    source = inspect(find_files([str(file)]), Column())
    (unit,) = plan_units(source, rows_per_unit=source.rows, limit=MOST_DOCUMENTS)
    provenance = replace(PROVENANCE, method="second-order", vocabulary=8192, window=256, overlap=128)
    schema = annotated_schema(source.schema, provenance)
    tokenizer = SHIPPED / "tokenizer"
    return Run(Subset("host", output), (), tokenizer, None, provenance, source.schema, schema, 1), unit


def _documents(folder: Path) -> tuple[Path, str]:
    if "FINEWEB" in os.environ:
        return Path(os.environ["FINEWEB"]), "FineWeb"
    write_sample(folder / "sample.parquet")
    return folder / "sample.parquet", "the built-in documents"
