"""The ledger of a run: its plan and a receipt for every committed shard, in `_ledger/SUBSET` beside the data.

A receipt is written after its shard is in place, so a unit with a receipt never needs doing again: to
resume a run is to give the same command. `datasets` does not read folders that begin with an underscore.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

from pipeline.data.shards import is_unfinished, write_text
from pipeline.engine.plan import Unit
from schemas.annotations import Provenance
from schemas.layout import LEDGER_FOLDER, Subset
from schemas.ledger import LOCK_FILE, PLAN_FILE, PUBLISHED_FILE, QUARANTINE, RECEIPTS, Counts, Quarantined, Receipt

RECEIPT_FILES = ("*.json", "*.jsonl")  # one for each unit that was labelled here; one for each commit of a repository


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keeps other runs from the folder meanwhile; a driver that is killed lets go of it.

    Raises:
        ValueError: if another run has it.
    """
    output.joinpath(LEDGER_FOLDER).mkdir(parents=True, exist_ok=True)
    with (output / LEDGER_FOLDER / LOCK_FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another run is writing to --output {output}; wait for it or choose another") from error
        yield


class Plan(NamedTuple):
    """What a run set out to do."""

    provenance: Provenance
    inputs: tuple[str, ...]
    """As they were given, before any was pinned to a commit."""


def planned(subset: Subset) -> Plan | None:
    """The plan of the run that writes a subset; None where there is no run.

    Raises:
        ValueError: if the folder holds anything but subsets, or other files stand where this one's belong.
    """
    plan_file = subset.ledger / PLAN_FILE
    if plan_file.is_file():
        try:
            return read_plan(plan_file.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{plan_file} is damaged ({error}); choose another folder, or delete this one") from error
    beside = any(subset.root.glob(f"{LEDGER_FOLDER}/*/{PLAN_FILE}"))
    places = [subset.data, subset.tokenizer, subset.ledger] if beside else [subset.root]
    lock = subset.root / LEDGER_FOLDER / LOCK_FILE
    found = [file for place in places for file in place.rglob("*") if file.is_file()]
    if subset.root.is_file() or any(not is_unfinished(file) and file != lock for file in found):
        raise ValueError(f"--output {subset.root} is not empty and holds no annotation run; choose another folder")
    return None


def read_plan(text: str) -> Plan:
    """What was written as a plan."""
    plan = json.loads(text)
    return Plan(Provenance.from_json(json.dumps(plan["run"])), tuple(plan["inputs"]))


def open_run(subset: Subset, provenance: Provenance, units: Sequence[Unit], inputs: Sequence[str] = ()) -> None:
    """Begins a run in an empty folder or goes on with the same one.

    What an interrupted run left is removed: files half written, shards without a receipt, and notes on units that
    were given up, which get another chance.

    Raises:
        ValueError: if the folder holds anything else, another run's dataset among them. Nothing is written then.
    """
    there = planned(subset)
    if there is None:
        write_text(subset.ledger / PLAN_FILE, _plan(provenance, units, inputs))
        return
    require_same(subset.root, provenance, there.provenance)
    _sweep(subset, keep={receipt.shard for receipt in read_receipts(subset)})


def finished(subset: Subset) -> set[int]:
    """The units that need no doing."""
    return {receipt.unit for receipt in read_receipts(subset)}


def record(subset: Subset, receipt: Receipt) -> None:
    """Writes a unit's receipt; its shard must be in place."""
    write_text(receipt_file(subset, receipt.unit), receipt.to_json())


def receipt_file(subset: Subset, unit: int) -> Path:
    """Where the receipt of a unit lies that was labelled here."""
    return subset.ledger / RECEIPTS / f"{unit:08d}.json"


def quarantine(subset: Subset, unit: Quarantined) -> None:
    """Writes down that a unit was given up, and why."""
    write_text(subset.ledger / QUARANTINE / f"{unit.unit:08d}.json", unit.to_json())


def remove_unfinished(subset: Subset) -> None:
    """Removes what workers that died left half written; no worker may be at work."""
    for file in filter(is_unfinished, subset.root.rglob("*")):
        file.unlink(missing_ok=True)


def read_receipts(subset: Subset) -> Iterator[Receipt]:
    """The receipts of units whose shards are in place, here or published, in the order of the units."""
    there = subset.shards()
    files = [file for kind in RECEIPT_FILES for file in (subset.ledger / RECEIPTS).glob(kind)]
    lines = (line for file in files for line in file.read_text().splitlines())
    receipts = [receipt for receipt in map(Receipt.from_json, lines) if receipt.shard in there]
    found = {receipt.unit: receipt for receipt in (*receipts, *read_published(subset))}
    return iter([found[unit] for unit in sorted(found)])


def read_published(subset: Subset) -> list[Receipt]:
    """The receipts of units whose shards are in the repository that this folder is staging for."""
    file = subset.ledger / PUBLISHED_FILE
    return [Receipt.from_json(line) for line in file.read_text().splitlines()] if file.is_file() else []


def unpublished(subset: Subset) -> list[Receipt]:
    """The receipts of units whose shards lie here and are not known to be in the repository."""
    there = {receipt.shard for receipt in read_published(subset)}
    return [receipt for receipt in read_receipts(subset) if receipt.shard not in there]


def write_published(subset: Subset, receipts: Sequence[Receipt]) -> None:
    """Writes down which units' shards are in the repository, and removes what lies here of them."""
    write_text(subset.ledger / PUBLISHED_FILE, as_lines(receipts))
    forget(subset, receipts)


def forget(subset: Subset, receipts: Iterable[Receipt]) -> None:
    """Removes shards that are published, and what was written down of them before."""
    for receipt in receipts:
        (subset.data / receipt.shard).unlink(missing_ok=True)
        receipt_file(subset, receipt.unit).unlink(missing_ok=True)


def as_lines(receipts: Iterable[Receipt]) -> str:
    """A receipt a line, as they stand in a repository."""
    return "".join(f"{receipt.to_json()}\n" for receipt in receipts)


class Total(NamedTuple):
    """All committed shards."""

    counts: Counts
    sha256: str
    """A digest of theirs: two datasets that share it are the same."""
    size: int
    """Bytes of their files."""


def total(subset: Subset) -> Total:
    """All committed shards, added in the order of the units, so that the sum of nats is always the same bits."""
    counts, digest, size = Counts(), hashlib.sha256(), 0
    for receipt in read_receipts(subset):
        counts += receipt.counts
        digest.update(receipt.sha256.encode())
        size += receipt.size
    return Total(counts, digest.hexdigest(), size)


def _plan(provenance: Provenance, units: Sequence[Unit], inputs: Sequence[str]) -> str:
    files = list(dict.fromkeys(unit.file for unit in units))
    number = {file: index for index, file in enumerate(files)}
    places = [[number[unit.file], unit.start, unit.stop] for unit in units]
    listed = [asdict(file) for file in files]
    return json.dumps({"run": asdict(provenance), "inputs": inputs, "files": listed, "units": places})


def require_same(place: object, wanted: Provenance, there: Provenance) -> None:
    """What a place has must be what is wanted.

    Raises:
        ValueError: if not, with all that differs.
    """
    differing = [
        field.name for field in fields(Provenance) if getattr(wanted, field.name) != getattr(there, field.name)
    ]
    if differing:
        shown = "; ".join(f"{name} {getattr(there, name)} there, {getattr(wanted, name)} now" for name in differing)
        raise ValueError(f"--output {place} holds another run's dataset ({shown}); choose another --output or --subset")


def _sweep(subset: Subset, keep: set[str]) -> None:
    orphans = [subset.data / shard for shard in subset.shards() - keep]
    for file in [*orphans, *(subset.ledger / QUARANTINE).glob("*.json")]:
        file.unlink()
    remove_unfinished(subset)
