"""Dry run: estimate from a sample of documents how much data a run will read and write, and how long it will take."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan
from statistics import fmean, stdev
from typing import Literal, NamedTuple

import numpy as np

from pipeline.annotate.config import Config
from pipeline.engine.annotator import Chunk, ChunkReading, SourceError, load_annotator, with_tokenizers
from pipeline.engine.plan import FEWEST_ROWS, Run, Source, Unit
from pipeline.engine.throughput import Stages
from pipeline.engine.unit_progress import UnitProgress
from pipeline.labels.torch_labeller import DeviceError, device_here
from pipeline.messages import say
from pipeline.models.checkpoint_files import weights_size
from pipeline.progress import stage
from schemas.annotations import INPUT_IDS, Device

SAMPLED_UNITS, SAMPLED_ROWS = 16, 32
MANY_FILES = 100  # number of files from which joining is advised: a shard costs a fraction of a second and two files
LOOK_SECONDS, MEASURED_SECONDS = 10.0, 30.0
FIRST_TOKENS, GROWTH = 32, 4  # tokens of the first measurement, and the factor from one measurement to the next
DEVICE = device_here()
LABEL_BYTES, TOKEN_BYTES = 1.4, 1.5  # bytes per token of FineWeb, in each entropy column and in `input_ids`
TOP_BYTES, SAMPLED_BYTES = 3.4, 1.2  # bytes for each of 8 to 50 ids: with its log-probability, and drawn


class Workers(NamedTuple):
    """Workers that a run would have."""

    requested: int | Literal["auto"]
    room: int
    """Number of workers that fit on the machine or the cluster now."""
    where: str
    """Place of the workers as text: `this machine` or `the cluster`."""
    device: Device


@dataclass(frozen=True)
class Estimate:
    """Estimated sizes and speed of a run."""

    units: int
    rows_a_unit: int
    """Number of rows of the largest unit. A unit is a range of rows."""
    rows: int
    files: int
    source_bytes: int
    sampled_rows: int
    empty_rows: int
    """Number of sampled rows that have no tokens."""
    tokens: float
    error: float
    """Standard error of `tokens`, relative to `tokens`; NaN if only one document was sampled."""
    label_columns: int
    """Number of label columns with one number per token."""
    share: float
    """Share of the tokens that the run labels."""
    passed: tuple[str, ...]
    """Columns of the source that are copied to the output."""
    speed: "Speed"
    top_k: int = 0
    sampled_ids: int = 0
    members: int = 1
    """Number of checkpoints that label each token together (an ensemble); 1 for a single checkpoint."""
    parameters: int = 0
    """Number of parameters of an ensemble's checkpoints together; 0 for a single checkpoint."""

    @property
    def worker_hours(self) -> float:
        """Hours that one worker needs, without its start-up time."""
        return self.tokens / max(1e-9, self.speed.tokens_per_second) / 3600

    def hours(self, workers: int) -> float:
        """Return the hours that a number of workers need. Workers take whole units, so some may be idle at the end."""
        return self.worker_hours * -(-self.units // workers) / self.units


@dataclass(frozen=True)
class Speed:
    """Speed of a worker, given or measured."""

    tokens_per_second: float
    measured_tokens: int = 0
    """Number of tokens that were labelled to measure the speed, or 0 if the speed was given."""
    seconds: float = 0.0
    """Duration of the measurement in seconds."""


def estimate(job: Run, units: Sequence[Unit], source: Source, tokens_per_second: float | None) -> Estimate:
    """Estimate a run's sizes and speed from a sample: the first rows of evenly spaced units.

    The sampled rows are read and tokenized. If no speed is given, some of these rows are labelled to measure the speed.

    Raises:
        ValueError: if rows cannot be read, or the device has too little memory.
    """
    try:
        with stage("reading and tokenizing some documents"):
            chunks = sample_documents(job, units)
        speed = Speed(tokens_per_second) if tokens_per_second else measure(job, chunks)
    except (SourceError, DeviceError) as reason:
        raise ValueError(str(reason)) from reason
    rows, lengths = job.provenance.source_rows, [len(ids) for chunk in chunks for ids in chunk.tokens]
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
        label_columns=list(job.provenance.label_shapes.values()).count(()),
        share=job.provenance.share,
        passed=tuple(name for name in job.schema.names if name in job.source_schema.names and name != INPUT_IDS),
        speed=speed,
        top_k=job.provenance.top_k,
        sampled_ids=job.provenance.sampled_ids,
        members=len(job.provenance.members) or 1,
        parameters=parameters_of(job),
    )


def parameters_of(job: Run) -> int:
    """Return the number of parameters of an ensemble's members together; 0 for a single checkpoint."""
    if not job.provenance.members:
        return 0
    return sum(weights_size(folder).numbers for folder in job.checkpoints[:: job.provenance.folds])


def sample_documents(job: Run, units: Sequence[Unit]) -> list[Chunk]:
    """Read and tokenize the first documents of evenly spaced units. Return them in chunks."""
    annotator, chunks = with_tokenizers(job, ()), list[Chunk]()
    some = units[:: -(-len(units) // SAMPLED_UNITS)]
    for unit in some:
        enough = time.monotonic() + LOOK_SECONDS / len(some)
        for chunk in annotator.chunks(replace(unit, stop=min(unit.stop, unit.start + SAMPLED_ROWS)), Stages()):
            chunks.append(chunk)
            if time.monotonic() > enough:
                break
    return chunks


def measure(job: Run, chunks: Sequence[Chunk]) -> Speed:
    """Measure the speed of a worker on this machine, by labelling the first tokens of the sampled documents.

    The measurement is repeated, each time with four times as many tokens, until all sampled tokens are labelled or the
    next measurement is expected to end after MEASURED_SECONDS. The last measurement, which has the most tokens, gives
    the speed. The first measurement is done twice, because a device is slower when it is first used.
    """
    with stage("loading the model"):
        annotator = load_annotator(job, DEVICE)
    readings = range(len(chunks[0].readings))
    documents = [[ids for chunk in chunks for ids in chunk.readings[index].documents] for index in readings]
    read = sum(len(ids) for of_reading in documents for ids in of_reading)
    written = sum(len(ids) for chunk in chunks for ids in chunk.tokens)
    deadline, tokens, growth = time.monotonic() + MEASURED_SECONDS, FIRST_TOKENS, 1
    with stage(f"measuring for at most {MEASURED_SECONDS:.0f} s"):
        while True:
            parts, stages = [beginning(of_reading, tokens) for of_reading in documents], Stages()
            batches = [annotator.batches(index, parts[index], np.random.default_rng(0)) for index in readings]
            sample = [ChunkReading(part, None, each) for part, each in zip(parts, batches, strict=True)]
            annotator.label(chunks[0]._replace(tokens=parts[0], readings=sample), stages, UnitProgress())
            seconds, labelled = stages.seconds["label"], sum(len(ids) for part in parts for ids in part)
            if (labelled == read and growth > 1) or time.monotonic() + growth * seconds > deadline:
                return Speed(labelled / max(1e-9, seconds) * written / max(1, read), labelled, seconds)
            tokens, growth = tokens * growth, GROWTH


def beginning(documents: Sequence[np.ndarray], tokens: int) -> list[np.ndarray]:
    """Return the first documents, up to `tokens` tokens in all. The last document may be truncated."""
    ends = np.cumsum([0, *map(len, documents)])
    return [ids[: max(0, tokens - start)] for ids, start in zip(documents, ends, strict=False) if start < tokens]


def workers_of(config: Config) -> Workers | None:
    """Return the workers that a run would have, or None if this process would label.

    Raises:
        ConnectionError: if there is no cluster at the address.
    """
    if config.workers == 0:
        return None
    from pipeline.engine.cluster import LOCAL, WorkerResources, nodes_at, ray_address

    address = ray_address(config.address)
    with stage("asking the cluster for its room"):
        nodes = nodes_at(address)
    share = WorkerResources(cpus=config.cpus_per_worker, gpus=config.gpus_per_worker).resolved(nodes)
    where = "this machine" if address == LOCAL else "the cluster"
    return Workers(config.workers, share.room(nodes), where, "cuda" if share.gpus else "cpu")


def print_estimate(plan: Estimate, workers: Workers | None) -> None:
    """Print the estimate.

    The time is printed for one worker and, if `workers` is given, also for these workers. `workers` is None if this
    process would label.
    """
    device = "GPU" if DEVICE == "cuda" else "CPU core"
    measured = f"measured on one {device} here with {plan.speed.measured_tokens:,} tokens in {plan.speed.seconds:.1f} s"
    faster = "; workers have GPUs, which are faster" if workers and workers.device != DEVICE == "cpu" else ""
    origin = f"{measured}{faster}" if plan.speed.measured_tokens else "given"
    sizes = (LABEL_BYTES * plan.label_columns * plan.share, TOKEN_BYTES)
    labels, ids = (plan.tokens * size / 1e9 for size in sizes)
    say(f"units          {plan.units:,} of at most {plan.rows_a_unit:,} rows{_of_small_files(plan)}")
    say(f"source         {plan.rows:,} documents, {plan.source_bytes / 1e9:,.3f} GB in {plan.files:,} files")
    sample = f"{plan.sampled_rows:,} documents from all over the source{_empty(plan)}"
    say(f"tokens         {plan.tokens:,.0f} ± {plan.error:.1%}, estimated from {sample}")
    if plan.members > 1:
        flop = f"{2 * plan.parameters / 1e9:,.3g} GFLOP per token, except for attention"
        say(f"checkpoints    {plan.members} together, {plan.parameters / 1e6:,.3g} M parameters, {flop}")
    columns = f"{plan.label_columns} column{'s' if plan.label_columns > 1 else ''}"
    say(f"labels         {labels:,.3f} GB, {LABEL_BYTES} bytes for each of a labelled token's {columns}")
    for count, size, name in ((plan.top_k, TOP_BYTES, "top_ids"), (plan.sampled_ids, SAMPLED_BYTES, "sampled_ids")):
        if count:
            total = plan.tokens * count * size * plan.share / 1e9
            say(f"{name:<14} {total:,.3f} GB, {size} bytes for each of a labelled token's {count:,} ids")
    say(f"token ids      {ids:,.3f} GB, {TOKEN_BYTES} bytes per token")
    say(f"passed on      {', '.join(plan.passed) or 'no column'}; as large as in the source")
    say(f"tokens/s       {plan.speed.tokens_per_second:,.0f} per worker, {origin}")
    say(f"time           {_duration(plan.worker_hours)} of one worker{_of_workers(plan, workers) if workers else ''}")


def _empty(plan: Estimate) -> str:
    return f", {plan.empty_rows:,} of them without text" if plan.empty_rows else ""


def _of_small_files(plan: Estimate) -> str:
    """Return advice to join files if there are many small files with a shard each, else an empty string."""
    if plan.files < max(MANY_FILES, plan.units) or plan.rows_a_unit >= FEWEST_ROWS:
        return ""
    return "; one shard per file: join small files into one file of JSON lines for fewer"


def _of_workers(plan: Estimate, workers: Workers) -> str:
    """Return the time for the requested workers and the time for the workers that fit now, as text."""
    asked = workers.room if workers.requested == "auto" else workers.requested
    fitting = min(asked, workers.room)
    message = "" if workers.requested == "auto" else f"; {_hours(plan, asked)}"
    if workers.requested == "auto" or fitting < asked:
        message += f"; {workers.where} has room for {_hours(plan, fitting) if fitting else 'none'} now"
    return message


def _hours(plan: Estimate, workers: int) -> str:
    """Return the time for a number of workers, as text. Each worker is assumed to be as fast as one worker alone."""
    idle = f", {workers - plan.units:,} of them without a unit" if workers > plan.units else ""
    return f"{workers:,} that are as fast, {_duration(plan.hours(workers))}{idle}"


def _duration(hours: float) -> str:
    return f"{hours:,.2f} hours" if hours >= 0.1 else f"{hours * 60:.1f} minutes"
