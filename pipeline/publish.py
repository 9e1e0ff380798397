"""Publishes a dataset that was annotated into a folder, in the layout and with the ledger that it would have had.

    python -m pipeline.publish annotated hf://datasets/USER/NAME

The folder stays as it is. What is published already is not sent again, so the same command goes on where one stopped.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import cyclopts
import pyarrow.parquet as pq

from pipeline.command_line import run
from pipeline.data.hub import Repository
from pipeline.data.loadable import load_call
from pipeline.data.visible import say
from pipeline.engine.ledger import read_receipts
from pipeline.engine.opening import locked, planned, require_same
from pipeline.publishing.facts import Facts
from pipeline.publishing.publisher import Publisher, published_plan, published_receipts
from pipeline.publishing.source import source_facts
from pipeline.publishing.subset import publish_beginning, publish_end, with_totals
from schemas.layout import LEDGER_FOLDER, Subset, shards_in_all
from schemas.ledger import PLAN_FILE

LOG = logging.getLogger(__name__)


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Config:
    """What to publish, and where."""

    folder: Path
    """Folder that pipeline.annotate wrote."""
    repository: str
    """hf://datasets/USER/NAME; created if there is none."""
    subset: str | None = field(default=None, kw_only=True)
    """The one to publish; all by default."""
    private: bool = field(default=False, kw_only=True)
    """Create the repository as a private one."""


def publish(config: Config) -> None:
    """Publish an annotated dataset on the Hugging Face Hub."""
    repository = Repository.at(config.repository)
    found = sorted(file.parent.name for file in config.folder.glob(f"{LEDGER_FOLDER}/*/{PLAN_FILE}"))
    wanted = found if config.subset is None else [config.subset]
    if not found or not set(wanted) <= set(found):
        has = f"it has {', '.join(found)}" if found else "make one with pipeline.annotate"
        raise ValueError(f"no annotated dataset {config.subset or ''} in {config.folder}; {has}")
    with locked(config.folder):
        repository.prepare(private=config.private)
        for name in wanted:
            publish_subset(Subset(name, config.folder.resolve()), repository)
    say(f"{load_call(repository.name, wanted[0], repository.revision)} has it")


def publish_subset(subset: Subset, repository: Repository) -> None:
    """Publishes what is complete of a subset.

    Raises:
        ValueError: if nothing is, or the repository has another run's subset of this name.
    """
    plan, receipts = planned(subset), list(read_receipts(subset))
    if plan is None or not receipts:
        raise ValueError(f"{subset.root} has no shard of {subset.name} yet; annotate first")
    if any(Path(name).is_absolute() for name in plan.provenance.source):
        LOG.warning("the shards of %s hold the paths of their inputs; annotate anew to publish none", subset.name)
    schema = pq.read_schema(subset.data / receipts[0].shard)
    facts = Facts(
        subset=subset,
        place=repository.name,
        revision=repository.revision,
        provenance=plan.provenance,
        schema=schema,
        source=source_facts(plan.source),
    )
    there = published_plan(repository, subset)
    if there is not None:
        remedy = "publish to another repository, or annotate under another --subset"
        require_same(repository.url, plan.provenance, there.provenance, remedy)
    if len(published_receipts(repository, subset)) < len(receipts):
        publish_beginning(repository, facts)
    with Publisher(repository, subset, keeps=True) as publisher:
        for receipt in receipts:
            publisher.add(receipt)
    publish_end(repository, with_totals(facts))
    say(f"{subset.name}: {len(receipts):,} of {shards_in_all(receipts[0].shard):,} shards are in {repository.url}")


if __name__ == "__main__":
    run(publish, "pipeline.publish")
