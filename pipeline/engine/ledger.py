"""The ledger of a run: its plan and a receipt for every committed shard, in `_ledger/` beside the data.

A receipt is written after its shard is in place, so a unit with a receipt never needs doing again: to
resume a run is to give the same command. `datasets` does not read folders that begin with an underscore.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

from pipeline.data.shards import is_unfinished, write_text
from pipeline.engine.plan import Unit
from schemas.annotations import DATA_FOLDER, LEDGER_FOLDER, Provenance
from schemas.ledger import LOCK_FILE, PLAN_FILE, QUARANTINE, RECEIPTS, Counts, Quarantined, Receipt


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


def planned(output: Path) -> Plan | None:
    """The plan of the run in a folder; None where there is no run.

    Raises:
        ValueError: if the folder holds anything else.
    """
    plan_file = output / LEDGER_FOLDER / PLAN_FILE
    if plan_file.is_file():
        plan = json.loads(plan_file.read_text())
        return Plan(Provenance.from_json(json.dumps(plan["run"])), tuple(plan.get("inputs", ())))
    lock = output / LEDGER_FOLDER / LOCK_FILE
    if output.is_file() or any(
        file.is_file() and not is_unfinished(file) and file != lock for file in output.rglob("*")
    ):
        raise ValueError(f"--output {output} is not empty and holds no annotation run; choose another folder")
    return None


def open_run(output: Path, provenance: Provenance, units: Sequence[Unit], inputs: Sequence[str] = ()) -> set[int]:
    """Begins a run in an empty folder or goes on with the same one; returns which units are finished.

    What an interrupted run left is removed: files half written, shards without a receipt, and notes on units that
    were given up, which get another chance.

    Raises:
        ValueError: if the folder holds anything else, another run's dataset among them. Nothing is written then.
    """
    there = planned(output)
    if there is None:
        write_text(output / LEDGER_FOLDER / PLAN_FILE, _plan(provenance, units, inputs))
        return set()
    _require_same(output, provenance, there.provenance)
    shard_of_unit = {receipt.unit: receipt.shard for receipt in read_receipts(output)}
    _sweep(output, keep=set(shard_of_unit.values()))
    return set(shard_of_unit)


def record(output: Path, receipt: Receipt) -> None:
    """Writes a unit's receipt; its shard must be in place."""
    write_text(output / LEDGER_FOLDER / RECEIPTS / f"{receipt.unit:08d}.json", receipt.to_json())


def quarantine(output: Path, unit: Quarantined) -> None:
    """Writes down that a unit was given up, and why."""
    write_text(output / LEDGER_FOLDER / QUARANTINE / f"{unit.unit:08d}.json", unit.to_json())


def remove_unfinished(output: Path) -> None:
    """Removes what workers that died left half written; no worker may be at work."""
    for file in filter(is_unfinished, output.rglob("*")):
        file.unlink(missing_ok=True)


def read_receipts(output: Path) -> Iterator[Receipt]:
    """The receipts of units whose shards are in place, in the order of the units."""
    shards = {file.name for file in (output / DATA_FOLDER).glob("*.parquet")}
    for file in sorted((output / LEDGER_FOLDER / RECEIPTS).glob("*.json")):
        receipt = Receipt.from_json(file.read_text())
        if receipt.shard in shards:
            yield receipt


def total(output: Path) -> tuple[Counts, str]:
    """The counts of all committed shards, and one digest of them: two datasets that share it are the same.

    They are added in the order of the units, so that the sum of nats is always the same bits.
    """
    counts, digest = Counts(), hashlib.sha256()
    for receipt in read_receipts(output):
        counts += receipt.counts
        digest.update(receipt.sha256.encode())
    return counts, digest.hexdigest()


def _plan(provenance: Provenance, units: Sequence[Unit], inputs: Sequence[str]) -> str:
    files = list(dict.fromkeys(unit.file for unit in units))
    number = {file: index for index, file in enumerate(files)}
    places = [[number[unit.file], unit.start, unit.stop] for unit in units]
    listed = [asdict(file) for file in files]
    return json.dumps({"run": asdict(provenance), "inputs": inputs, "files": listed, "units": places})


def _require_same(output: Path, wanted: Provenance, there: Provenance) -> None:
    differing = [
        field.name for field in fields(Provenance) if getattr(wanted, field.name) != getattr(there, field.name)
    ]
    if differing:
        shown = "; ".join(f"{name} {getattr(there, name)} there, {getattr(wanted, name)} now" for name in differing)
        raise ValueError(f"--output {output} holds another run's dataset ({shown}); delete it or choose another folder")


def _sweep(output: Path, keep: set[str]) -> None:
    orphans = [file for file in (output / DATA_FOLDER).glob("*.parquet") if file.name not in keep]
    for file in [*orphans, *(output / LEDGER_FOLDER / QUARANTINE).glob("*.json")]:
        file.unlink()
    remove_unfinished(output)
