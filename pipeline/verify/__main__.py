"""Checks an annotated dataset: every shard against its receipt, every label's form, some labels against their model.

    python -m pipeline.verify annotated
    python -m pipeline.verify hf://datasets/USER/NAME
    python -m pipeline.verify annotated --repair       # sets damaged shards aside, to be made anew

Each fault is a line. Exit code 0: all is as the receipts say; 1: something is not, or the command was refused.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cyclopts

from pipeline.cli import run
from pipeline.data.files import HUB
from pipeline.data.tokenizer import TOKENIZER_FILE, id_count, load_tokenizer
from pipeline.engine.output import locked
from pipeline.messages import say
from pipeline.progress import stage
from pipeline.verify.consistency import Records, check_card, check_records, check_tokenizer, read_records
from pipeline.verify.content import Rules, check_shard, shard_provenance
from pipeline.verify.repair import annotate_command, set_aside
from pipeline.verify.stored import Fault, Stored, stored_subsets
from schemas.annotations import Provenance
from schemas.layout import LEDGER_FOLDER
from schemas.receipts import LOCK_FILE, Counts

MOST_AT_A_TIME = 8  # shards: a disk gives no more beyond
"""Shards that are read side by side, at most."""


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Config:
    """What to check, and how much of it."""

    dataset: str
    """Folder that pipeline.annotate wrote, or hf://datasets/USER/NAME, there with an @REVISION if one is wanted."""
    subset: str | None = field(default=None, kw_only=True)
    """The one to check; all by default."""
    sample: int = field(default=5, kw_only=True)
    """Documents of each subset, spread over its shards, to label anew and compare; 0 for none."""
    estimator: str | None = field(default=None, kw_only=True)
    """The checkpoint that labelled the dataset, a folder or a name on the Hub, for the sample. By default the one that
    the dataset names, if it came with the project or has been fetched from the Hub before."""
    repair: bool = field(default=False, kw_only=True)
    """Move damaged shards and their receipts into the ledger's folder `damaged`, so that the same annotate command
    makes them anew. For a folder; nothing is deleted."""

    def __post_init__(self) -> None:
        if self.sample < 0:
            raise ValueError(f"--sample must be at least 0, not {self.sample}")
        if self.estimator is not None and not self.sample:
            raise ValueError(f"--estimator {self.estimator} labels a sample, and --sample 0 asks for none")
        if self.repair and self.dataset.startswith(HUB):
            raise ValueError(
                f"--repair is for a folder; to mend {self.dataset}, annotate to it again with the command that made it"
            )


@dataclass
class Findings:
    """Of one subset."""

    stored: Stored
    records: Records
    faults: list[Fault]
    rows: dict[str, int] = field(default_factory=dict)
    """Of each shard that is sound."""
    counts: Counts = field(default_factory=Counts)


def verify(config: Config) -> int:
    """Check that an annotated dataset is what was written: shards, receipts, tokenizer, and a sample of its labels.

    Exit code 0: all is as the receipts say; 1: something is not, and a line for each fault says what.
    """
    with unchanged(config):
        codes = [verify_subset(stored, config) for stored in stored_subsets(config.dataset, config.subset)]
    return max(codes)


@contextmanager
def unchanged(config: Config) -> Iterator[None]:
    """Keeps runs that write from a folder meanwhile; nothing is written here but by a repair.

    Raises:
        ValueError: if a run is at work in it.
    """
    lock = Path(config.dataset, LEDGER_FOLDER, LOCK_FILE)
    if config.repair and lock.parent.is_dir():
        with locked(Path(config.dataset)):
            yield
    elif config.dataset.startswith(HUB) or lock.is_symlink() or not lock.is_file():
        yield
    else:
        with lock.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"a run is at work in {config.dataset}; wait for it") from error
            yield


def verify_subset(stored: Stored, config: Config) -> int:
    """Prints what is wrong with a subset, then a line in all."""
    records = read_records(stored)
    if records.plan is None and not records.receipts and not records.faults:
        say(f"{stored.subset.name}: there is no ledger, so that nothing says what bytes its shards had")
    found = Findings(stored, records, check_records(stored, records))
    provenance = check_content(found)
    found.faults += check_card(stored, records, sound=not found.faults)
    say(*map(str, found.faults))
    if provenance is not None and config.sample:
        check_labels(found, provenance, config)
    faulty = {fault.shard for fault in found.faults}
    given_up = [note for shard, note in records.quarantined.items() if shard not in faulty]
    say(*(f"{stored.named(note.shard)}: was given up and has no shard: {note}" for note in given_up))
    say(summary(found))
    if config.repair and found.faults:
        repair(found)
    return 1 if found.faults else 0


def check_content(found: Findings) -> Provenance | None:
    """Reads every shard that may be read; returns what the subset's labels depend on, if a shard or the plan says."""
    stored, records = found.stored, found.records
    faulty = {fault.shard for fault in found.faults}
    shards = [name for name in stored.files if name not in faulty]
    provenance = records.plan.provenance if records.plan else None
    if provenance is None:
        provenance = first_provenance(found, shards)
    if provenance is None:
        return None
    if records.plan is None:
        found.faults += check_tokenizer(stored, provenance)
    rules = Rules(provenance, vocabulary(stored, provenance), columns(records))
    with stage(f"reading {len(shards):,} shards"), ThreadPoolExecutor(min(MOST_AT_A_TIME, os.cpu_count() or 1)) as pool:
        check = partial(checked, stored, records, rules)
        for shard, (fault, counts) in zip(shards, pool.map(check, shards), strict=True):
            if fault is None:
                found.rows[shard] = counts.rows
            else:
                found.faults.append(fault)
            found.counts += counts
    return provenance


def checked(stored: Stored, records: Records, rules: Rules, shard: str) -> tuple[Fault | None, Counts]:
    """A shard's first fault, and what it holds."""
    return check_shard(stored, shard, records.receipts.get(shard, []), rules)


def first_provenance(found: Findings, shards: Sequence[str]) -> Provenance | None:
    """Of the first shard that has one."""
    for shard in shards:
        try:
            return shard_provenance(found.stored, shard)
        except ValueError as error:
            found.faults.append(Fault(found.stored.named(shard), str(error), shard))
    return None


def vocabulary(stored: Stored, provenance: Provenance) -> int:
    """Number of ids; older datasets noted how many tokens there are, which is less where ids are left out."""
    file = stored.subset.tokenizer / TOKENIZER_FILE
    try:
        return max(provenance.vocabulary, id_count(load_tokenizer(file.parent)) if file.is_file() else 0)
    except ValueError:
        return provenance.vocabulary  # a fault of its own


def columns(records: Records) -> tuple[str, ...] | None:
    """Names that the plan has; older ones have none."""
    return None if records.plan is None or records.plan.schema is None else tuple(records.plan.schema.names)


def check_labels(found: Findings, provenance: Provenance, config: Config) -> None:
    """Labels a sample of the sound shards anew, and prints what is wrong with it."""
    with stage("labelling a sample"):
        from pipeline.verify.relabel import (
            LeftOutError,
            check_sample,
            sampled,
        )  # imports torch, which takes seconds

        documents = sampled(found.rows, config.sample)
        try:
            if any(fault.file.endswith(TOKENIZER_FILE) for fault in found.faults):
                raise LeftOutError("the tokenizer is not that of the run")
            sample = check_sample(found.stored, provenance, config.estimator, documents)
        except LeftOutError as reason:
            say(f"{found.stored.subset.name}: no document was labelled anew: {reason}")
            return
    found.faults += sample.faults
    say(*map(str, sample.faults))
    say(f"{found.stored.subset.name}: labelled anew {sample.documents} documents, {sample.tokens:,} tokens of them")


def summary(found: Findings) -> str:
    """One line in all."""
    counts, name = found.counts, found.stored.subset.name
    if not found.faults:
        held = "as their receipts say" if found.records.receipts else "in order, as far as can be told without receipts"
        given_up = f" and {len(found.records.quarantined):,} given up" if found.records.quarantined else ""
        has = f"{len(found.rows):,} shards{given_up}, {counts.rows:,} documents, {counts.tokens:,} tokens"
        return f"{name}: {has}: all {held}"
    bad = {fault.shard for fault in found.faults if fault.shard}
    others = len([fault for fault in found.faults if not fault.shard])
    more = f", {others:,} other fault{'s' if others > 1 else ''}" if others else ""
    return f"{name}: {len(bad):,} of {len(bad) + len(found.rows):,} shards {'is' if len(bad) == 1 else 'are'} bad{more}"


def repair(found: Findings) -> None:
    """Sets bad shards aside, and says what to do then."""
    for place in set_aside(found.stored, found.faults):
        say(f"moved to {place.relative_to(found.stored.subset.root)}")
    say("give the command again that made the dataset, with all its flags:")
    say(f"  {annotate_command(found.stored, found.records)}")


if __name__ == "__main__":
    run(verify, "pipeline.verify", resumes=False)
