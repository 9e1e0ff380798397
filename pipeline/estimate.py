"""`--dry-run`: what a run will read, write and take, from a look at a few documents."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan
from statistics import fmean, stdev

from pipeline.engine.annotation import with_tokenizers
from pipeline.engine.errors import UnitError
from pipeline.engine.labelling import device_here, load_annotator
from pipeline.engine.plan import FEWEST_ROWS, Source, Unit
from pipeline.engine.run import Run
from pipeline.engine.stages import Stages
from schemas.annotations import INPUT_IDS

SAMPLED_UNITS, SAMPLED_ROWS = 16, 32
MANY_FILES = 100  # a shard costs a part of a second and two files
MEASURED_SECONDS = 20.0
DEVICE = device_here()
LABEL_BYTES, TOKEN_BYTES = 1.4, 1.5  # a token of FineWeb in each entropy column, and in `input_ids`


@dataclass(frozen=True)
class Estimate:
    """Figures of a run that was not carried out."""

    units: int
    rows_a_unit: int
    """Of the largest."""
    rows: int
    files: int
    source_bytes: int
    sampled_rows: int
    empty_rows: int
    """Of these, those without a token."""
    tokens: float
    error: float
    """Standard error of `tokens`, as a share of it; NaN where a single document was looked at."""
    label_columns: int
    share: float
    """Of the tokens that are labelled."""
    passed: tuple[str, ...]
    """Columns of the source that are passed on."""
    tokens_per_second: float
    measured: bool

    @property
    def worker_hours(self) -> float:
        """Of one worker, its start left out."""
        return self.tokens / max(1e-9, self.tokens_per_second) / 3600


def estimate(job: Run, units: Sequence[Unit], source: Source, tokens_per_second: float | None) -> Estimate:
    """Reads and tokenizes the first rows of units from all over the source; labels some where no speed is given."""
    try:
        lengths, measured = look(job, units, measure=not tokens_per_second)
    except UnitError as reason:
        raise ValueError(str(reason)) from reason
    rows = job.provenance.source_rows
    error = stdev(lengths) / len(lengths) ** 0.5 / max(1e-9, fmean(lengths)) if len(lengths) > 1 else nan
    return Estimate(
        units=len(units),
        rows_a_unit=max(unit.stop - unit.start for unit in units),
        rows=rows,
        files=len({unit.file for unit in units}),
        source_bytes=round(sum(file.size for file in source.files) * rows / source.rows),
        sampled_rows=len(lengths),
        empty_rows=lengths.count(0),
        tokens=rows * fmean(lengths),
        error=error,
        label_columns=1 + (job.provenance.method == "second-order"),
        share=job.provenance.share,
        passed=tuple(name for name in job.schema.names if name in job.source_schema.names and name != INPUT_IDS),
        tokens_per_second=tokens_per_second or measured,
        measured=not tokens_per_second,
    )


def look(job: Run, units: Sequence[Unit], *, measure: bool) -> tuple[list[int], float]:
    """Tokens of documents from all over the source and, if that is to be measured, tokens labelled in a second."""
    annotator = load_annotator(job, DEVICE) if measure else with_tokenizers(job, ())
    stages, lengths, labelled = Stages(), list[int](), 0
    for unit in units[:: -(-len(units) // SAMPLED_UNITS)]:
        for slab in annotator.slabs(replace(unit, stop=min(unit.stop, unit.start + SAMPLED_ROWS)), stages):
            lengths += [len(ids) for ids in slab.tokens]
            if measure and stages.seconds["label"] < MEASURED_SECONDS:
                annotator.label(slab, stages)
                labelled += sum(len(ids) for ids in slab.tokens)
    return lengths, labelled / max(1e-9, stages.seconds["label"])


def print_estimate(plan: Estimate) -> None:
    """The plan in figures."""
    device = "GPU" if DEVICE == "cuda" else "CPU core"
    origin = f"measured on one {device} here" if plan.measured else "given"
    sizes = (LABEL_BYTES * plan.label_columns * plan.share, TOKEN_BYTES)
    labels, ids = (plan.tokens * size / 1e9 for size in sizes)
    print(f"units          {plan.units:,} of {plan.rows_a_unit:,} rows at the most{_of_small_files(plan)}")
    print(f"source         {plan.rows:,} documents, {plan.source_bytes / 1e9:,.3f} GB in {plan.files:,} files")
    looked_at = f"{plan.sampled_rows:,} documents from all over it{_empty(plan)}"
    print(f"tokens         {plan.tokens:,.0f} ± {plan.error:.1%}, by {looked_at}")
    columns = f"{plan.label_columns} column{'s' if plan.label_columns > 1 else ''}"
    print(f"labels         {labels:,.3f} GB, {LABEL_BYTES} bytes for each of a labelled token's {columns}")
    print(f"token ids      {ids:,.3f} GB, {TOKEN_BYTES} bytes a token")
    print(f"passed on      {', '.join(plan.passed) or 'no column'}; as large as in the source")
    print(f"tokens/s       {plan.tokens_per_second:,.0f} a worker, {origin}")
    print(f"time           {plan.worker_hours:,.2f} hours of one worker, over N workers an Nth of it")


def _empty(plan: Estimate) -> str:
    return f", {plan.empty_rows:,} of them without text" if plan.empty_rows else ""


def _of_small_files(plan: Estimate) -> str:
    """What to do about a shard for each of very many files."""
    if plan.files < max(MANY_FILES, plan.units) or plan.rows_a_unit >= FEWEST_ROWS:
        return ""
    return "; a shard a file: join small files into one of JSON lines for fewer"
