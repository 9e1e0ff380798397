"""Publish a dataset that was annotated into a folder, with the same result as annotating to the Hub.

    python -m pipeline.publish annotated hf://datasets/USER/NAME

The folder does not change. Published shards are not sent again, so the same command resumes interrupted publishing. A
shard is never sent if its digest differs from the digest in its receipt. Files outside the folder are not sent either.
The exit code is 0 if every shard is published, and 3 if some shards are not labelled yet. It is 1 if the command was
refused or failed, or if some shards are damaged.
"""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cyclopts

from pipeline.cli import INCOMPLETE, run
from pipeline.data.hub import Repository
from pipeline.data.ledger import Ledger, PublishedLedger
from pipeline.data.naming import load_call
from pipeline.data.shards import shard_schema
from pipeline.engine.output import existing_plan, locked, require_same
from pipeline.messages import say
from pipeline.publish.origin import origin_of
from pipeline.publish.publisher import Publisher
from pipeline.publish.section import SubsetInfo
from pipeline.publish.subset import publish_beginning, publish_end, with_totals
from schemas.layout import LEDGER_FOLDER, Subset, shards_in_all
from schemas.receipts import PLAN_FILE, RECEIPTS, Plan, Receipt

LOG = logging.getLogger(__name__)


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Config:
    """The dataset to publish, and the repository to publish it in."""

    folder: Path
    """Folder that pipeline.annotate wrote."""
    repository: str
    """Repository to publish to: hf://datasets/USER/NAME. It is created if it does not exist."""
    subset: str | None = field(default=None, kw_only=True)
    """Subset to publish. By default, all subsets are published."""
    private: bool = field(default=False, kw_only=True)
    """Make the repository private if this command creates it."""


class Left(NamedTuple):
    """Shards that were not published: the number of unlabelled shards, and the names of damaged shards."""

    unlabelled: int
    damaged: list[str]


def publish(config: Config) -> int:
    """Publish an annotated dataset on the Hugging Face Hub.

    The exit code is 0 if every shard is published, and 3 if some shards are not labelled yet.

    The exit code is 1 if the command was refused or failed, or if some shards are damaged.
    """
    repository = Repository.at(config.repository)
    existing = sorted(file.parent.name for file in config.folder.glob(f"{LEDGER_FOLDER}/*/{PLAN_FILE}"))
    requested = existing if config.subset is None else [config.subset]
    if not existing or not set(requested) <= set(existing):
        has = f"it has {', '.join(existing)}" if existing else "make one with pipeline.annotate"
        raise ValueError(f"no annotated dataset {config.subset or ''} in {config.folder}; {has}")
    with locked(config.folder):
        repository.prepare(private=config.private)
        left = [publish_subset(Subset(name, config.folder.resolve()), repository) for name in requested]
    if damaged := [shard for each in left for shard in each.damaged]:
        raise ValueError(
            f"{len(damaged):,} shards do not match their receipts and were not sent, {damaged[0]} first; run "
            f"`python -m pipeline.verify {shlex.quote(str(config.folder))} --repair`, then the same pipeline.annotate "
            "command, then this one again"
        )
    if any(each.unlabelled for each in left):
        return INCOMPLETE
    say(f"load it with {load_call(repository.name, requested[0], repository.revision)}")
    return 0


def publish_subset(subset: Subset, repository: Repository) -> Left:
    """Publish the labelled shards of a subset, and return what was not published.

    Raises:
        ValueError: if no shard is labelled, if the folder has shards of two plans, or if another run has published a
            subset of this name in the repository.
    """
    plan, receipts, published = existing_plan(subset), Ledger(subset).receipts(), PublishedLedger(repository, subset)
    if plan is None or not receipts:
        raise ValueError(f"{subset.root} has no shard of {subset.name} yet; annotate first")
    _require_of_plan(subset, plan, receipts)
    if any(Path(name).is_absolute() for name in plan.provenance.source):
        LOG.warning("the shards of %s contain the paths of their inputs; annotate again to leave them out", subset.name)
    info = SubsetInfo(
        subset=subset,
        path=repository.name,
        revision=repository.revision,
        provenance=plan.provenance,
        schema=shard_schema(subset.data / receipts[0].shard),
        origin=origin_of(plan.source),
    )
    if (existing := published.plan()) is not None:
        remedy = "publish to another repository, or annotate under another --subset"
        require_same(repository.url, plan.provenance, existing.provenance, remedy)
    units = len(plan.units)
    digests = {receipt.shard: receipt.sha256 for receipt in published.receipts(units)}
    if receipts_left := [receipt for receipt in receipts if digests.get(receipt.shard) != receipt.sha256]:
        publish_beginning(repository, info)
    with Publisher(repository, subset, keeps=True) as publisher:
        damaged = [receipt.shard for receipt in receipts_left if not publisher.add(receipt)]
    in_repository = published.receipts(units)
    publish_end(repository, with_totals(info, in_repository))
    unlabelled = units - len({receipt.unit for receipt in (*receipts, *in_repository)})
    remedy = "run the same pipeline.annotate command again, then this one"
    missing = f"; {unlabelled:,} are not labelled yet: {remedy}" if unlabelled else ""
    say(f"{subset.name}: {len(in_repository):,} of {units:,} shards are in {repository.url}{missing}")
    return Left(unlabelled, damaged)


def _require_of_plan(subset: Subset, plan: Plan, receipts: Sequence[Receipt]) -> None:
    """Raise if the folder has shards of two plans.

    This happens if a run that adds rows to the dataset is interrupted.
    """
    others = next((receipt for receipt in receipts if shards_in_all(receipt.shard) != len(plan.units)), None)
    if others is not None:
        raise ValueError(
            f"{subset.ledger / RECEIPTS} has a receipt of {others.shard}, but the plan has {len(plan.units):,} shards; "
            "run the same pipeline.annotate command again"
        )


if __name__ == "__main__":
    run(publish, "pipeline.publish")
