"""Check an annotated dataset: compare shards with receipts, check all labels, and compute a sample of labels again.

    python -m pipeline.verify annotated
    python -m pipeline.verify hf://datasets/USER/NAME
    python -m pipeline.verify annotated --repair       # moves damaged shards away, to be labelled again

A line is printed for each fault. The exit code is 0 if everything matches the receipts. It is 1 if the dataset has a
fault or the command was refused.
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
from pipeline.verify.repair import command_again, set_aside
from pipeline.verify.stored import Fault, Stored, stored_subsets
from schemas.annotations import Provenance
from schemas.layout import LEDGER_FOLDER
from schemas.receipts import LOCK_FILE, Counts

SHARDS_AT_A_TIME = 8  # a disk does not get faster with more


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Config:
    """The dataset to check, and the extent of the check."""

    dataset: str
    """Folder that pipeline.annotate wrote, or hf://datasets/USER/NAME[@REVISION]."""
    subset: str | None = field(default=None, kw_only=True)
    """Subset to check. By default, all subsets are checked."""
    sample: int = field(default=5, kw_only=True)
    """Number of documents per subset to label again, spread over the shards. The new labels are compared with those in
    the dataset. 0 skips this check."""
    estimator: tuple[str, ...] = field(default=(), kw_only=True)
    """Checkpoint that labelled the dataset and now labels the sample again: a folder or a name on the Hub. If several
    checkpoints labelled together, give all of them in the order of annotation. By default, the checkpoints that the
    dataset names are used, if they ship with the project or have been fetched from the Hub before."""
    repair: bool = field(default=False, kw_only=True)
    """Move damaged shards and their receipts into the ledger's folder `damaged`. The annotate command that made the
    dataset then labels these shards again. Only datasets in a folder can be repaired. Nothing is deleted."""

    def __post_init__(self) -> None:
        if self.sample < 0:
            raise ValueError(f"--sample must be at least 0, not {self.sample}")
        if self.estimator and not self.sample:
            named = " ".join(self.estimator)
            raise ValueError(f"--estimator {named} labels a sample, but --sample is 0; leave one of them out")
        if self.repair and self.dataset.startswith(HUB):
            raise ValueError(
                f"--repair needs a folder; to repair {self.dataset}, run the annotate command that made it again"
            )


@dataclass
class Findings:
    """Faults and totals of a subset."""

    stored: Stored
    records: Records
    faults: list[Fault]
    rows: dict[str, int] = field(default_factory=dict)
    """Number of rows of each undamaged shard, by the name of the shard."""
    counts: Counts = field(default_factory=Counts)


def verify(config: Config) -> int:
    """Check that an annotated dataset has not changed: its shards, receipts, tokenizer and a sample of its labels.

    A line is printed for each fault.

    The exit code is 0 if everything matches the receipts, and 1 if there is a fault or the command was refused.
    """
    with unchanged(config):
        codes = [verify_subset(stored, config) for stored in stored_subsets(config.dataset, config.subset)]
    return max(codes)


@contextmanager
def unchanged(config: Config) -> Iterator[None]:
    """Lock the dataset's folder, so that no run writes to it meanwhile. Only --repair changes anything in the folder.

    Raises:
        ValueError: if a run is writing to the folder.
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
                raise ValueError(f"another run is writing to {config.dataset}; wait for it") from error
            yield


def verify_subset(stored: Stored, config: Config) -> int:
    """Check a subset, print its faults and a summary, and return the exit code."""
    records = read_records(stored)
    if records.plan is None and not records.receipts and not records.faults:
        say(f"{stored.subset.name}: there is no ledger, so the bytes of its shards cannot be checked")
    findings = Findings(stored, records, check_records(stored, records))
    provenance = check_content(findings)
    findings.faults += check_card(stored, records, sound=not findings.faults)
    say(*map(str, findings.faults))
    if provenance is not None and config.sample:
        check_labels(findings, provenance, config)
    faulty = {fault.shard for fault in findings.faults}
    quarantined = [note for shard, note in records.quarantined.items() if shard not in faulty]
    say(*(f"{stored.named(note.shard)}: was quarantined and has no shard: {note}" for note in quarantined))
    say(summary(findings))
    if config.repair and findings.faults:
        repair(findings, config)
    return 1 if findings.faults else 0


def check_content(findings: Findings) -> Provenance | None:
    """Check the content of every shard that has no fault so far, and return the subset's provenance.

    If neither the plan nor a shard has a provenance, check no content and return None.
    """
    stored, records = findings.stored, findings.records
    faulty = {fault.shard for fault in findings.faults}
    shards = [name for name in stored.files if name not in faulty]
    provenance = records.plan.provenance if records.plan else None
    if provenance is None:
        provenance = first_provenance(findings, shards)
    if provenance is None:
        return None
    if records.plan is None:
        findings.faults += check_tokenizer(stored, provenance)
    rules = Rules(provenance, vocabulary(stored, provenance), columns(records))
    threads = min(SHARDS_AT_A_TIME, os.cpu_count() or 1)
    with stage(f"reading {len(shards):,} shards"), ThreadPoolExecutor(threads) as pool:
        check = partial(checked, stored, records, rules)
        for shard, (fault, counts) in zip(shards, pool.map(check, shards), strict=True):
            if fault is None:
                findings.rows[shard] = counts.rows
            else:
                findings.faults.append(fault)
            findings.counts += counts
    return provenance


def checked(stored: Stored, records: Records, rules: Rules, shard: str) -> tuple[Fault | None, Counts]:
    """Check the content of a shard. Return its first fault (None if it has no fault) and its counts."""
    return check_shard(stored, shard, records.receipts.get(shard, []), rules)


def first_provenance(findings: Findings, shards: Sequence[str]) -> Provenance | None:
    """Return the provenance of the first shard whose provenance can be read, or None if this fails for all shards.

    Each provenance that cannot be read is recorded as a fault.
    """
    for shard in shards:
        try:
            return shard_provenance(findings.stored, shard)
        except ValueError as error:
            findings.faults.append(Fault(findings.stored.named(shard), str(error), shard))
    return None


def vocabulary(stored: Stored, provenance: Provenance) -> int:
    """Return the number of token ids, including unused ids.

    Older datasets recorded the number of tokens, which does not include unused ids, so the tokenizer is read too.
    """
    file = stored.subset.tokenizer / TOKENIZER_FILE
    try:
        return max(provenance.vocabulary, id_count(load_tokenizer(file.parent)) if file.is_file() else 0)
    except ValueError:
        return provenance.vocabulary  # the unreadable tokenizer is reported elsewhere


def columns(records: Records) -> tuple[str, ...] | None:
    """Return the names of the columns in the plan, or None if there is no plan or if an older plan lacks columns."""
    return None if records.plan is None or records.plan.schema is None else tuple(records.plan.schema.names)


def check_labels(findings: Findings, provenance: Provenance, config: Config) -> None:
    """Label a sample of documents from undamaged shards again, and print a line for each fault."""
    with stage("labelling a sample"):
        from pipeline.verify.relabel import (  # imports torch, which takes seconds
            LeftOutError,
            check_sample,
            spread_rows,
        )

        rows = spread_rows(findings.rows, config.sample)
        try:
            if any(fault.file.endswith(TOKENIZER_FILE) for fault in findings.faults):
                raise LeftOutError("the tokenizer is not the run's")
            sample = check_sample(findings.stored, provenance, config.estimator, rows)
        except LeftOutError as reason:
            say(f"{findings.stored.subset.name}: no document was labelled again: {reason}")
            return
    findings.faults += sample.faults
    say(*map(str, sample.faults))
    say(f"{findings.stored.subset.name}: {sample.documents} documents labelled again, {sample.tokens:,} tokens of them")


def summary(findings: Findings) -> str:
    """Return the line that sums up the check of a subset. It is printed after the subset's faults."""
    counts, name, records, sound = findings.counts, findings.stored.subset.name, findings.records, len(findings.rows)
    if not findings.faults:
        valid = "match their receipts" if records.receipts else "are valid, as far as can be told without receipts"
        quarantined = f" and {len(records.quarantined):,} quarantined" if records.quarantined else ""
        has = f"{sound:,} shards{quarantined}, {counts.rows:,} documents, {counts.tokens:,} tokens"
        return f"{name}: {has}: all {valid}"
    bad = {fault.shard for fault in findings.faults if fault.shard}
    others = len([fault for fault in findings.faults if not fault.shard])
    more = f", {others:,} other fault{'s' if others > 1 else ''}" if others else ""
    missing = bad.difference(findings.stored.files)
    kinds = {"bad": len(bad - missing), "missing": len(missing)}
    of_all = f" of {len(bad) + sound:,} shards"
    told = [f"{count:,}{of_all} {'is' if count == 1 else 'are'} {kind}" for kind, count in kinds.items() if count]
    return f"{name}: {', '.join(told) or f'0{of_all} are bad'}{more}"


def repair(findings: Findings, config: Config) -> None:
    """Move bad shards away, and print the command that makes them again."""
    for moved in set_aside(findings.stored, findings.faults):
        say(f"moved to {moved.relative_to(findings.stored.subset.root)}")
    command = command_again(findings.stored, findings.records, config.estimator)
    rest = ", with its other flags instead of `...`, such as --estimator" if command.endswith("...") else ""
    rest = ", with the sidecar instead of `...`" if command.endswith("--labels ...") else rest
    say(f"the command that made the dataset makes these rows again{rest}:")
    say(f"  {command}")


if __name__ == "__main__":
    run(verify, "pipeline.verify", resumes=False)
