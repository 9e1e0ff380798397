"""The main job: documents in, an annotated dataset out.

    python -m pipeline.annotate                                          # built-in sample documents
    python -m pipeline.annotate --input fineweb/*.parquet --output DIR   # your own
    ray job submit --working-dir . -- python -m pipeline.annotate ...    # on a cluster

Input and settings are checked before anything is written. The same command again goes on where a run stopped.
Exit code 0: complete; 3: complete but for units that were given up; 1: refused or failed.
"""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from pipeline.command_line import run
from pipeline.data.annotations import read_quarantine
from pipeline.data.dataset_card import dataset_card
from pipeline.data.locations import find_files
from pipeline.data.sample import write_sample
from pipeline.data.shards import write_text
from pipeline.engine.annotation import Run
from pipeline.engine.cluster import LOCAL, Share, chosen, cluster
from pipeline.engine.driver import Driver
from pipeline.engine.ledger import locked, open_run, planned, total
from pipeline.engine.plan import Unit, inspect
from pipeline.engine.report import Report
from pipeline.models.checkpoint import copy_tokenizer
from pipeline.progress import Progress
from pipeline.settings import Config, frozen, prepare
from pipeline.summary import print_examples, print_quarantine, print_summary
from schemas.annotations import CARD_FILE, LEDGER_FOLDER, TOKENIZER_FOLDER
from schemas.ledger import REPORT_FILE

INCOMPLETE = 3
DEFAULTS = Config()


def annotate(config: Config = DEFAULTS) -> int:
    """Label every token of every document with its entropy, in nats, and write an annotated dataset.

    Exit code 0: complete; 3: complete but for units that were given up and are listed; 1: refused or failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        sample = Path(scratch) / "sample.parquet"
        if not config.input:
            write_sample(sample)
        inputs = frozen(config.input, planned(config.folder))
        source = inspect(find_files(inputs or [str(sample)]), config.column)
        job, units = prepare(config, source, inputs)
        if config.dry_run:
            from pipeline.estimate import estimate, print_estimate

            print_estimate(estimate(job, units, source, config.tokens_per_second), job.provenance.rows_per_unit)
            return 0
        with locked(job.output):
            return carry_out(job, units, config)


def carry_out(job: Run, units: Sequence[Unit], config: Config) -> int:
    """Labels what is not labelled yet, completes the dataset and shows it; returns the exit code."""
    done = open_run(job.output, job.provenance, units, config.input)
    if job.tokenizer is not None:
        copy_tokenizer(job.tokenizer, job.output / TOKENIZER_FOLDER)
    report = label([unit for unit in units if unit.index not in done], job, config)
    counts, shards_sha256 = total(job.output)
    write_text(job.output / CARD_FILE, dataset_card(job.provenance, counts, shards_sha256))
    print_summary(job.output, counts, report)
    given_up = read_quarantine(job.output)
    print_quarantine(given_up)
    print_examples(job.output)
    return INCOMPLETE if given_up else 0


def label(units: Sequence[Unit], job: Run, config: Config) -> Report:
    """Labels the units on Ray, with a progress bar; does not start Ray where there are none."""
    if not units:
        return Report()
    from pipeline.engine.labelling import load_annotator

    share = Share(cpus=config.cpus_per_worker, gpus=config.gpus_per_worker)
    workers = None if config.workers == "auto" else config.workers
    address = chosen(config.address)
    report, rows = Report(), job.provenance.source_rows
    with (
        cluster(address),
        Progress(rows, rows - sum(unit.stop - unit.start for unit in units)) as progress,
        logging_redirect_tqdm(),
    ):
        if address == LOCAL:
            share.require_room()
        driver = Driver(job, load_annotator, workers=workers, share=share, done=job.units - len(units))
        for outcome in driver.outcomes(units):
            report.add(outcome)
            progress.show(report, driver.loaded)
    write_text(job.output / LEDGER_FOLDER / REPORT_FILE, report.to_json())
    return report


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    run(annotate, "pipeline.annotate")
