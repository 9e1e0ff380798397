"""The ledger of a run, in `_ledger/SUBSET` beside the data: receipts of shards, notes on units that were given up.

A receipt is written after its shard is in place, so a unit with a receipt never needs doing again: to
resume a run is to give the same command. `datasets` does not read folders that begin with an underscore.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.data.shards import is_unfinished, write_text
from schemas.layout import Subset
from schemas.ledger import PUBLISHED_FILE, QUARANTINE, RECEIPTS, Counts, Quarantined, Receipt

RECEIPT_FILES = ("*.json", "*.jsonl")  # one for each unit that was labelled here; one for each commit of a repository


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
    lines = (line for file in files for line in file.read_text(encoding="utf-8").splitlines())
    receipts = [receipt for receipt in map(Receipt.from_json, lines) if receipt.shard in there]
    found = {receipt.unit: receipt for receipt in (*receipts, *read_published(subset))}
    return iter([found[unit] for unit in sorted(found)])


def read_published(subset: Subset) -> list[Receipt]:
    """The receipts of units whose shards are in the repository that this folder is staging for."""
    file = subset.ledger / PUBLISHED_FILE
    return [Receipt.from_json(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


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
