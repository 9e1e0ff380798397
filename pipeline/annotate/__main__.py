"""The main job: documents in, an annotated dataset out.

    python -m pipeline.annotate                                          # built-in sample documents
    python -m pipeline.annotate --input fineweb/*.parquet --output DIR   # your own
    python -m pipeline.annotate ... --workers 0                          # in this process, without Ray
    python -m pipeline.annotate ... --output hf://datasets/USER/NAME     # published while it grows
    ray job submit --working-dir . -- python -m pipeline.annotate ...    # on a cluster

Input and settings are checked before anything is written. The same command again goes on where a run stopped.
Exit code 0: complete; 3: complete but for units that were given up; 1: refused or failed.
"""

import logging
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from pipeline.annotate.config import Config
from pipeline.annotate.prepare import pin_checkpoint, pin_inputs, pin_longest, prepare
from pipeline.annotate.summary import print_examples, print_quarantine, print_summary
from pipeline.cli import INCOMPLETE, run
from pipeline.data.annotated import read_quarantine
from pipeline.data.atomic import write_text
from pipeline.data.hub import Repository
from pipeline.data.naming import recorded
from pipeline.data.sample import write_sample
from pipeline.data.tokenizer import CONFIG_FILE, tokenizer_sha256
from pipeline.engine.annotator import Annotator
from pipeline.engine.ledger import (
    end_staging,
    finished,
    forget,
    read_published,
    read_receipts,
    total,
    unpublished,
    write_published,
)
from pipeline.engine.output import (
    Plan,
    grows,
    locked,
    open_run,
    planned,
    require_growing,
    require_same,
    require_same_columns,
)
from pipeline.engine.plan import Device, Run, Unit, inspect
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.throughput import Outcome, Throughput, UnitResult
from pipeline.engine.workers import ThisProcessPool, WorkerPool
from pipeline.messages import say
from pipeline.models.checkpoint import copy_tokenizer
from pipeline.progress import Progress, State, stage
from pipeline.publish.card import folder_card, write_card
from pipeline.publish.origin import origin_of
from pipeline.publish.publisher import Publisher, published_plan, published_receipts
from pipeline.publish.section import THIS_FOLDER, SubsetInfo
from pipeline.publish.subset import publish_beginning, publish_end, with_totals
from schemas.receipts import REPORT_FILE

LOG = logging.getLogger(__name__)
DEFAULTS = Config()


def annotate(config: Config = DEFAULTS) -> int:
    """Label every token of every document with its entropy, in nats, and write an annotated dataset.

    Exit code 0: complete; 3: complete but for units that were given up and are listed; 1: refused or failed.
    """
    config.check_place()
    with tempfile.TemporaryDirectory() as scratch:
        sample = Path(scratch) / "sample.parquet"
        if not config.input:
            write_sample(sample)
        with stage("asking the Hub for what is published"):
            published = published_plan(config.repository, config.place) if config.repository else None
        staged = planned(config.place)
        begun = published or staged
        longest = pin_longest(config.longest_document, begun)
        config = replace(config, estimator=pin_checkpoint(config.estimator, begun), longest_document=longest)
        with stage("reading the inputs"):
            inputs = pin_inputs(config.input, begun)
            found = config.find(inputs or [str(sample)], config.place.root)
            source = inspect(found.files, config.column, found.choices, config.passed)
        found.tell()
        with stage("reading the checkpoint"):
            job, units = prepare(config, source, inputs, begun)
        for place, plan in ((config.output, published), (job.subset.root, staged)):
            if plan is not None:
                require_continuing(str(place), job, plan)
                require_same_columns(f"--output {place}", job.schema, plan, source.files)
        if config.dry_run:
            from pipeline.annotate.dry_run import estimate, print_estimate, workers_of

            print_estimate(estimate(job, units, source, config.tokens_per_second), workers_of(config))
            return 0
        with locked(job.subset.root):
            return annotate_units(job, units, config, inputs)


def require_continuing(place: str, job: Run, there: Plan) -> None:
    """Refuses another run's dataset; a folder's own may get more rows of its source.

    Raises:
        ValueError: if the place has another run's, or the same with more rows, or fewer and is published.
    """
    wanted, published = job.provenance, job.repository is not None
    require_growing(place, job.subset, there.provenance, wanted, published=published)
    if grows(there.provenance, wanted):
        rows, more = there.provenance.source_rows, wanted.source_rows
        say(f"grows          from {rows:,} to {more:,} documents, {wanted.rows_per_unit:,} in a shard as before")
    else:
        require_same(f"--output {place}", wanted, there.provenance)


def annotate_units(job: Run, units: Sequence[Unit], config: Config, inputs: tuple[str, ...]) -> int:
    """Labels what is not labelled yet, completes the dataset and shows it; returns the exit code."""
    facts = facts_of(job, inputs)
    folder_card(facts)  # what it cannot describe, or be added to, is refused before anything is labelled
    if job.repository is not None:
        with stage("preparing the repository"):
            job.repository.prepare(private=config.private)
    checkpoint = job.snapshot.name if job.snapshot else None
    with stage("looking at what is there"):
        named = tokenizer_sha256(job.tokenizer, CONFIG_FILE) if job.tokenizer else None
        written = Plan(job.provenance, recorded(config.input), checkpoint, recorded(inputs), job.schema, named)
        open_run(job.subset, written, units)
    if job.tokenizer is not None:
        copy_tokenizer(job.tokenizer, job.subset.tokenizer)
    if job.repository is None:
        end_staging(job.subset)
        report = label(units, job, config)
        receipts = list(read_receipts(job.subset))
        write_card(with_totals(facts, receipts))
    else:
        report = label_and_publish(units, job, config, job.repository, facts)
        receipts = read_published(job.subset)
    print_summary(config.output or str(job.subset.root), job.provenance, total(receipts).counts, report)
    given_up = read_quarantine(job.subset)
    print_quarantine(given_up)
    print_examples(job.subset, job.repository, complete=len(receipts) == len(units))
    if not config.input and job.repository is None:
        from pipeline.report.page import write_report

        with stage("writing the report"):
            page = write_report(str(job.subset.data), job.subset.root.with_name(f"{job.subset.root.name}-report"))
        say("", f"{page} shows every token in the colour of its entropy")
    else:
        say("", f"python -m pipeline.report {shlex.quote(labels_named(job, config))} shows every token in its colour")
    if (lacking := len(units) - len(receipts)) > len(given_up):
        say("", f"{lacking:,} of {len(units):,} shards are not there; the same command completes them")
    return INCOMPLETE if lacking else 0


def labels_named(job: Run, config: Config) -> str:
    """The labels as pipeline.report takes them: the dataset, or one of several subsets."""
    if job.repository is not None:
        return f"{job.repository.url}/{job.subset.in_repository.data}"
    place, subsets = config.output or job.subset.root.name, job.subset.data.parent.iterdir()
    return place if len(list(subsets)) == 1 else str(Path(place, job.subset.in_repository.data))


def label_and_publish(
    units: Sequence[Unit], job: Run, config: Config, repository: Repository, facts: SubsetInfo
) -> Throughput:
    """Labels what the repository lacks, beginning with what an interrupted run left on this disk."""
    write_published(job.subset, published_receipts(repository, job.subset, len(units)))
    if len(read_published(job.subset)) < len(units):
        publish_beginning(repository, facts)
    with Publisher(repository, job.subset, keeps=False) as publisher:
        damaged = [receipt for receipt in unpublished(job.subset) if not publisher.add(receipt)]
        if damaged:
            LOG.warning("%d staged shards are damaged and labelled anew: %s", len(damaged), damaged[0].shard)
            forget(job.subset, damaged)
        report = label(units, job, config, publisher)
    receipts = published_receipts(repository, job.subset, len(units))
    write_published(job.subset, receipts)
    publish_end(repository, with_totals(facts, receipts))
    return report


def facts_of(job: Run, inputs: Sequence[str]) -> SubsetInfo:
    """What the card says of a run that has not begun."""
    return SubsetInfo(
        subset=job.subset,
        path=job.repository.name if job.repository else THIS_FOLDER,
        revision=job.repository.revision if job.repository else "main",
        provenance=job.provenance,
        schema=job.schema,
        origin=origin_of(inputs),
    )


def label(units: Sequence[Unit], job: Run, config: Config, publisher: Publisher | None = None) -> Throughput:
    """Labels the units that are not done, with a progress bar; starts no worker where there are none."""
    done = finished(job.subset, staging=publisher is not None)
    left = [unit for unit in units if unit.index not in done]
    if not left:
        return Throughput()
    report, rows = Throughput(), job.provenance.source_rows
    left_rows = sum(unit.stop - unit.start for unit in left)
    say(f"to label       {left_rows:,} documents in {len(left):,} units, in {job.provenance.dtype}")
    with interrupts_told(job), crew_of(job, config) as crew:
        driver = Scheduler(job, crew, done=len(done))
        with Progress(rows, rows - left_rows, partial(state_of, report, driver)), logging_redirect_tqdm():
            for outcome in driver.outcomes(left):
                report.add(outcome)
                if publisher is not None:
                    publish_outcome(outcome, publisher, driver, last=report.units + report.given_up == len(left))
    write_text(job.subset.ledger / REPORT_FILE, report.to_json())
    return report


def state_of(report: Throughput, driver: Scheduler) -> State:
    """Progress: the committed units, and the labelled parts of the others."""
    underway, counts = driver.underway, report.counts
    return State(counts.rows + underway.rows, counts.tokens + underway.tokens, driver.loaded, report.given_up)


@contextmanager
def interrupts_told(job: Run) -> Iterator[None]:
    """Notes how far the run is on what interrupts it."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        done = finished(job.subset, staging=job.repository is not None)
        interrupt.add_note(f"{len(done):,} of {job.units:,} units are done")
        raise


@contextmanager
def crew_of(job: Run, config: Config) -> Iterator[WorkerPool]:
    """The workers that were asked for: this process alone, or those of a Ray cluster."""
    if config.workers == 0:
        with stage("loading torch"):
            from pipeline.engine.labeller import device_here

            device = device_here(config.gpus_per_worker)
        say("workers        none: this process labels")
        yield ThisProcessPool(job, load, device)
        return
    with stage("loading Ray"):  # which may be missing where this process labels
        from pipeline.engine.cluster import LOCAL, WorkerResources, cluster, ray_address
        from pipeline.engine.ray_workers import RayWorkerPool

    share = WorkerResources(cpus=config.cpus_per_worker, gpus=config.gpus_per_worker)
    address = ray_address(config.address)
    say(f"workers        of Ray, {'started here' if address == LOCAL else f'at {address}'}")
    with ExitStack() as stack:
        with stage("starting Ray" if address == LOCAL else "joining Ray"):
            stack.enter_context(cluster(address))
        if address == LOCAL:
            share.require_room()
        yield RayWorkerPool(job, load, workers=None if config.workers == "auto" else config.workers, share=share)


def load(job: Run, device: Device) -> Annotator:
    """A worker's checkpoints and tokenizers, on its device; where Ray's workers label, the driver needs no torch."""
    from pipeline.engine.labeller import load_annotator

    return load_annotator(job, device)


def publish_outcome(outcome: Outcome, publisher: Publisher, driver: Scheduler, *, last: bool) -> None:
    """Has a shard published, and those that are published forgotten, while there are workers to do it."""
    if isinstance(outcome, UnitResult):
        publisher.add(outcome.receipt, outcome.addition)
    if last:
        publisher.close()
    driver.forget(publisher.taken())


if __name__ == "__main__":
    run(annotate, "pipeline.annotate")
