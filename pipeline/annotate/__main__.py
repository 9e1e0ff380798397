"""Annotation: read documents, write an annotated dataset.

    python -m pipeline.annotate                                          # built-in sample documents
    python -m pipeline.annotate --input fineweb/*.parquet --output DIR   # your own documents
    python -m pipeline.annotate ... --workers 0                          # in this process, without Ray
    python -m pipeline.annotate ... --output hf://datasets/USER/NAME     # published while it grows
    ray job submit --working-dir . -- python -m pipeline.annotate ...    # on a cluster

The input and all settings are checked before anything is written. The same command resumes an interrupted run.
The exit code is 0 if the dataset is complete, 3 if some shards are missing, and 1 if the run was refused or failed.
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
from pipeline.annotate.members import pin_checkpoints
from pipeline.annotate.prepare import pin_inputs, pin_longest, prepare
from pipeline.annotate.summary import print_examples, print_quarantine, print_summary
from pipeline.cli import INCOMPLETE, run
from pipeline.data.atomic import write_text
from pipeline.data.hub import Repository
from pipeline.data.ledger import Ledger, PublishedLedger
from pipeline.data.naming import recorded
from pipeline.data.sample import write_sample
from pipeline.data.tokenizer import CONFIG_FILE, tokenizer_sha256
from pipeline.engine.annotator import load_annotator
from pipeline.engine.output import find_run, grows, locked, open_run
from pipeline.engine.plan import Run, Unit, inspect
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.throughput import Outcome, Throughput, UnitResult
from pipeline.engine.workers import ThisProcessPool, WorkerPool
from pipeline.messages import say
from pipeline.models.checkpoint import copy_tokenizer
from pipeline.progress import Progress, State, stage
from pipeline.publish.card import folder_card, write_card
from pipeline.publish.origin import origin_of
from pipeline.publish.publisher import Publisher
from pipeline.publish.section import THIS_FOLDER, SubsetInfo
from pipeline.publish.subset import publish_beginning, publish_end, with_totals
from schemas.receipts import REPORT_FILE, Plan, total

LOG = logging.getLogger(__name__)
DEFAULTS = Config()


def annotate(config: Config = DEFAULTS) -> int:
    """Label every token of every document with its entropy, in nats, and write an annotated dataset.

    The exit code is 0 if the dataset is complete, and 1 if the run was refused or failed. It is 3 if some rows could
    not be labelled and are quarantined. A list of these rows is printed at the end.
    """
    config.check_place()
    with tempfile.TemporaryDirectory() as scratch:
        sample = Path(scratch) / "sample.parquet"
        if not config.input:
            write_sample(sample)
        with stage("asking the Hub for the published shards"):
            existing = find_run(config.repository, config.place)
        resumed = existing.plan
        longest = pin_longest(config.longest_document, resumed)
        config = replace(config, estimator=pin_checkpoints(config.estimator, resumed), longest_document=longest)
        with stage("reading the inputs"):
            inputs = pin_inputs(config.input, resumed)
            listing = config.find(inputs or [str(sample)], config.place.root)
            source = inspect(listing.files, config.column, listing.choices, config.passed)
        listing.tell()
        with stage("reading the checkpoint"):
            job, units = prepare(config, source, inputs, resumed)
        existing.require_continued(job, source.files, config.output)
        if existing.in_folder is not None and grows(existing.in_folder.provenance, job.provenance):
            rows, more = existing.in_folder.provenance.source_rows, job.provenance.source_rows
            a_shard = f"{job.provenance.rows_per_unit:,} in a shard as before"
            say(f"grows          from {rows:,} to {more:,} documents, {a_shard}")
        if job.provenance.calibration is not None:
            say(f"calibration    {job.provenance.calibration}")
        if config.dry_run:
            from pipeline.annotate.dry_run import estimate, print_estimate, workers_of

            print_estimate(estimate(job, units, source, config.tokens_per_second), workers_of(config))
            return 0
        with locked(job.subset.root):
            return annotate_units(job, units, config, inputs)


def annotate_units(job: Run, units: Sequence[Unit], config: Config, inputs: tuple[str, ...]) -> int:
    """Label the remaining units, complete the dataset and print a summary. Return the exit code."""
    ledger, info = Ledger(job.subset), info_of(job, inputs)
    folder_card(info)  # raises, before anything is labelled, if no card can be written
    if job.repository is not None:
        with stage("preparing the repository"):
            job.repository.prepare(private=config.private)
    checkpoint = job.snapshots[0].name if job.snapshots and not job.provenance.members else None
    with stage("looking at the output"):
        named = tokenizer_sha256(job.tokenizer, CONFIG_FILE) if job.tokenizer else None
        written = Plan(job.provenance, recorded(config.input), checkpoint, recorded(inputs), job.schema, named)
        open_run(job.subset, written, units)
    if job.tokenizer is not None:
        copy_tokenizer(job.tokenizer, job.subset.tokenizer)
    if job.repository is None:
        ledger.end_staging()
        report = label(units, job, config)
        receipts = ledger.receipts()
        write_card(with_totals(info, receipts))
    else:
        report = label_and_publish(units, job, config, job.repository, info)
        receipts = ledger.published()
    print_summary(config.output or str(job.subset.root), job.provenance, total(receipts).counts, report)
    quarantined = ledger.quarantined()
    print_quarantine(quarantined)
    sidecar = job.provenance.sidecar
    print_examples(job.subset, job.repository, complete=len(receipts) == len(units), sidecar=sidecar)
    if not config.input and job.repository is None and not sidecar:
        from pipeline.report.page import write_report

        with stage("writing the report"):
            page = write_report(str(job.subset.data), job.subset.root.with_name(f"{job.subset.root.name}-report"))
        say("", f"{page} shows every token in the colour of its entropy")
    elif not sidecar:
        say("", f"python -m pipeline.report {shlex.quote(labels_named(job, config))} shows every token in its colour")
    if (lacking := len(units) - len(receipts)) > len(quarantined):
        say("", f"{lacking:,} of {len(units):,} shards are missing; the same command completes them")
    return INCOMPLETE if lacking else 0


def labels_named(job: Run, config: Config) -> str:
    """Return the path to give to `pipeline.report` for the labels of a run.

    This is the dataset's folder if the folder holds only this subset. Otherwise, and always on the Hub, this is the
    path of the subset's shards.
    """
    if job.repository is not None:
        return f"{job.repository.url}/{job.subset.in_repository.data}"
    place, subsets = config.output or job.subset.root.name, job.subset.data.parent.iterdir()
    return place if len(list(subsets)) == 1 else str(Path(place, job.subset.in_repository.data))


def label_and_publish(
    units: Sequence[Unit], job: Run, config: Config, repository: Repository, info: SubsetInfo
) -> Throughput:
    """Publish the shards that an interrupted run left on this disk, then label and publish the missing shards.

    Return the totals of this session (one start of the command).
    """
    ledger, published = Ledger(job.subset), PublishedLedger(repository, job.subset)
    ledger.write_published(published.receipts(len(units)))
    if len(ledger.published()) < len(units):
        publish_beginning(repository, info)
    with Publisher(repository, job.subset, keeps=False) as publisher:
        damaged = [receipt for receipt in ledger.unpublished() if not publisher.add(receipt)]
        if damaged:
            LOG.warning("%d staged shards are damaged and labelled again: %s", len(damaged), damaged[0].shard)
            ledger.delete(damaged)
        report = label(units, job, config, publisher)
    receipts = published.receipts(len(units))
    ledger.write_published(receipts)
    publish_end(repository, with_totals(info, receipts))
    return report


def info_of(job: Run, inputs: Sequence[str]) -> SubsetInfo:
    """Return the information on a run for the dataset card, without the totals, which are not known yet."""
    return SubsetInfo(
        subset=job.subset,
        path=job.repository.name if job.repository else THIS_FOLDER,
        revision=job.repository.revision if job.repository else "main",
        provenance=job.provenance,
        schema=job.schema,
        origin=origin_of(inputs),
    )


def label(units: Sequence[Unit], job: Run, config: Config, publisher: Publisher | None = None) -> Throughput:
    """Label the remaining units while showing a progress bar.

    Return the totals of this session (one start of the command). If no units remain, no worker is started.
    """
    done = Ledger(job.subset).finished(staging=publisher is not None)
    left = [unit for unit in units if unit.index not in done]
    if not left:
        return Throughput()
    report, rows = Throughput(), job.provenance.source_rows
    left_rows = sum(unit.stop - unit.start for unit in left)
    say(f"to label       {left_rows:,} documents in {len(left):,} units, in {job.provenance.dtype}")
    with noting_interrupts(job), pool_of(job, config) as pool:
        scheduler = Scheduler(job, left, pool, done=len(done))
        with Progress(rows, rows - left_rows, partial(state_of, report, scheduler)), logging_redirect_tqdm():
            for outcome in scheduler.outcomes():
                report.add(outcome)
                if publisher is not None:
                    publish_outcome(outcome, publisher, scheduler, last=report.units + report.quarantined == len(left))
    write_text(job.subset.ledger / REPORT_FILE, report.to_json())
    return report


def state_of(report: Throughput, scheduler: Scheduler) -> State:
    """Return the state that the progress bar shows: the committed units plus the labelled parts of unfinished units."""
    progress, counts = scheduler.progress, report.counts
    return State(
        counts.rows + progress.rows, counts.tokens + progress.tokens, scheduler.ready_workers, report.quarantined
    )


@contextmanager
def noting_interrupts(job: Run) -> Iterator[None]:
    """Add to a KeyboardInterrupt a note that says how many units are done."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        done = Ledger(job.subset).finished(staging=job.repository is not None)
        interrupt.add_note(f"{len(done):,} of {job.units:,} units are done")
        raise


@contextmanager
def pool_of(job: Run, config: Config) -> Iterator[WorkerPool]:
    """Yield the pool of workers that the settings request: this process, or workers on a Ray cluster."""
    if config.workers == 0:
        with stage("loading torch"):
            from pipeline.labels.torch_labeller import device_here

            device = device_here(config.gpus_per_worker)
        say("workers        none: this process labels the documents")
        yield ThisProcessPool(job, load_annotator, device)
        return
    with stage("loading Ray"):  # imported late, because `--workers 0` works without Ray
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
        yield RayWorkerPool(
            job, load_annotator, workers=None if config.workers == "auto" else config.workers, share=share
        )


def publish_outcome(outcome: Outcome, publisher: Publisher, scheduler: Scheduler, *, last: bool) -> None:
    """Publish the shard of a committed unit, and delete published shards from the disks of all nodes.

    `last` is True for the last outcome of the run. All remaining shards are then published before this function
    returns, because afterwards there are no workers to delete published shards.
    """
    if isinstance(outcome, UnitResult):
        publisher.add(outcome.receipt, outcome.addition)
    if last:
        publisher.close()
    scheduler.delete_published(publisher.taken())


if __name__ == "__main__":
    run(annotate, "pipeline.annotate")
