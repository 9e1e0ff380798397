"""Repair: set damaged files aside, so that the annotate command makes them again. Nothing is deleted."""

import shlex
import shutil
from collections.abc import Collection, Iterator
from itertools import count
from pathlib import Path

from pipeline.data.atomic import write_text
from pipeline.data.ledger import Ledger
from pipeline.verify.consistency import Records
from pipeline.verify.stored import Fault, Stored
from schemas.receipts import RECEIPTS, Receipt

DAMAGED = "damaged"
"""Folder in the ledger; each repair gets a numbered folder inside."""


def set_aside(stored: Stored, faults: Collection[Fault]) -> list[Path]:
    """Move files with faults away, with their shards and receipts. Return the new paths; no other run may be at work.

    Raises:
        ValueError: if the plan is damaged or missing, because no other file can restore it, or if a folder is a link.
    """
    subset = stored.subset
    for folder in (subset.data, subset.ledger, subset.ledger / RECEIPTS, subset.ledger / DAMAGED):
        if folder.exists() and folder.resolve() != subset.root.resolve() / folder.relative_to(subset.root):
            raise ValueError(f"{folder} is a link; replace it with a copy of its target, and repair that")
    plan = Ledger(subset).plan_file
    if any(subset.root / fault.file == plan for fault in faults) or not plan.is_file():
        how = "damaged" if plan.is_file() else "missing"
        raise ValueError(f"{plan} is {how}; restore it, or annotate into another folder")
    aside = next(folder for number in count(1) if not (folder := subset.ledger / DAMAGED / str(number)).exists())
    shards = {fault.shard for fault in faults if fault.shard}
    named = {subset.root / fault.file for fault in faults}
    files = named | {subset.data / shard for shard in shards} | set(_receipts_of(stored, shards))
    return [
        _moved(file, aside / file.relative_to(subset.root), shards)
        for file in sorted(files)
        if file.is_symlink() or file.is_file()
    ]


def annotate_command(stored: Stored, records: Records) -> str:
    """Return the command that makes these files again, as far as the plan records it."""
    if records.plan is None:
        return "python -m pipeline.annotate ..."
    given = f"--input {' '.join(map(shlex.quote, records.plan.inputs))} " if records.plan.inputs else ""
    where = f"--output {shlex.quote(stored.place)} --subset {stored.subset.name}"
    return f"python -m pipeline.annotate {given}{where} --method {records.plan.provenance.method} ..."


def _receipts_of(stored: Stored, shards: Collection[str]) -> Iterator[Path]:
    """Yield files that contain a receipt of one of the shards."""
    for file in Ledger(stored.subset).receipt_files():
        if not file.is_symlink() and any(_shard(line) in shards for line in _lines(file)):
            yield file


def _moved(file: Path, target: Path, shards: Collection[str]) -> Path:
    """Move a file; from a file of several receipts, keep those of other shards."""
    kept = [line for line in _lines(file) if _shard(line) not in shards] if file.suffix == ".jsonl" else []
    target.parent.mkdir(parents=True, exist_ok=True)
    if kept:
        shutil.copy2(file, target)
        write_text(file, "".join(f"{line}\n" for line in kept))
    else:
        file.rename(target)
    return target


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines()


def _shard(line: str) -> str | None:
    try:
        return Receipt.from_json(line).shard
    except ValueError:
        return None
