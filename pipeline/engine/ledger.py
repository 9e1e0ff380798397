"""The ledger of a run: its plan and a receipt for every committed shard, in `_ledger/` beside the data.

A receipt is written after its shard is in place, so a unit with a receipt never needs doing again: to
resume a run is to give the same command. `datasets` does not read folders that begin with an underscore.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pipeline.data.shards import UNFINISHED, write_text
from pipeline.engine.plan import Unit
from schemas.annotations import DATA_FOLDER, LEDGER_FOLDER, Provenance


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a shard, or a whole dataset, holds; `nats` is the sum of its entropies."""

    rows: int = 0
    tokens: int = 0
    labelled_tokens: int = 0
    text_bytes: int = 0
    nats: float = 0.0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    @property
    def mean_entropy(self) -> float:
        """Nats a labelled token."""
        return self.nats / max(1, self.labelled_tokens)


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """A committed shard."""

    unit: int
    shard: str
    sha256: str
    counts: Counts


def total(receipts: Iterable[Receipt]) -> Counts:
    """The counts of all receipts, added in the order of their units, so that the sum of nats is always the same."""
    return sum((receipt.counts for receipt in sorted(receipts, key=lambda receipt: receipt.unit)), start=Counts())


def shards_sha256(receipts: Iterable[Receipt]) -> str:
    """One digest of all shards, in the order of their units: two datasets that share it are the same."""
    digests = (receipt.sha256 for receipt in sorted(receipts, key=lambda receipt: receipt.unit))
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def open_run(output: Path, provenance: Provenance, units: Sequence[Unit]) -> dict[int, Receipt]:
    """Begins a run in an empty folder or goes on with the same one; returns the receipts of finished units.

    Raises:
        ValueError: if the folder holds anything else, another run's dataset among them. Nothing is written then.
    """
    plan_file = output / LEDGER_FOLDER / "plan.json"
    if plan_file.is_file():
        _require_same(output, provenance, Provenance.from_json(json.dumps(json.loads(plan_file.read_text())["run"])))
        _sweep(output)
        return read_receipts(output)
    if output.is_file() or any(file.is_file() and not _unfinished(file) for file in output.rglob("*")):
        raise ValueError(f"--output {output} is not empty and holds no annotation run; choose another folder")
    plan = {"run": asdict(provenance), "units": [asdict(unit) for unit in units]}
    write_text(plan_file, json.dumps(plan, indent=1))
    return {}


def record(output: Path, receipt: Receipt) -> None:
    """Writes a unit's receipt; its shard must be in place."""
    write_text(output / LEDGER_FOLDER / "receipts" / f"{receipt.unit:06d}.json", json.dumps(asdict(receipt)))


def read_receipts(output: Path) -> dict[int, Receipt]:
    """The receipts of units whose shards are in place, by unit."""
    found = [json.loads(file.read_text()) for file in (output / LEDGER_FOLDER / "receipts").glob("*.json")]
    receipts = [Receipt(**{**values, "counts": Counts(**values["counts"])}) for values in found]
    return {receipt.unit: receipt for receipt in receipts if (output / DATA_FOLDER / receipt.shard).is_file()}


def _require_same(output: Path, wanted: Provenance, there: Provenance) -> None:
    differing = [
        field.name for field in fields(Provenance) if getattr(wanted, field.name) != getattr(there, field.name)
    ]
    if differing:
        shown = "; ".join(f"{name} {getattr(there, name)} there, {getattr(wanted, name)} now" for name in differing)
        raise ValueError(f"--output {output} holds another run's dataset ({shown}); delete it or choose another folder")


def _unfinished(file: Path) -> bool:
    return file.name.startswith(".") and file.suffix == UNFINISHED


def _sweep(output: Path) -> None:
    """Removes what an interrupted run left half written."""
    for file in output.rglob("*"):
        if _unfinished(file):
            file.unlink()
