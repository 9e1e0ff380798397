"""The ledger of a run, in `_ledger/SUBSET` beside the data: receipts of shards, notes on units that were given up.

A receipt is written after its shard is in place, so a unit with a receipt never needs doing again: to
resume a run is to give the same command. `datasets` does not read folders that begin with an underscore.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.data.atomic import is_unfinished, write_text
from schemas.decoding import reading, text_of
from schemas.layout import Subset
from schemas.receipts import OWN, PUBLISHED_FILE, QUARANTINE, RECEIPT_FILES, RECEIPTS, Counts, Quarantined, Receipt

REMEDY = "delete it, and the same pipeline.annotate command labels its rows anew"

LOG = logging.getLogger(__name__)


def finished(subset: Subset, *, staging: bool = False) -> set[int]:
    """The units that need no doing; in a staging folder those that are published too."""
    published = read_published(subset) if staging else []
    return {receipt.unit for receipt in (*read_receipts(subset), *published)}


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
    """The receipts of units whose shards lie here, as large as they were written, in the order of the units.

    Raises:
        ValueError: if a receipt is damaged, or two of a unit differ.
    """
    found: dict[int, Receipt] = {}
    for kind in RECEIPT_FILES:
        for file in sorted((subset.ledger / RECEIPTS).glob(kind)):
            for receipt in _receipts(subset, file):
                if _is_in_place(subset, receipt) and found.setdefault(receipt.unit, receipt) != receipt:
                    raise ValueError(
                        f"{file} has another receipt of unit {receipt.unit} than an earlier file; {REMEDY}"
                    )
    return iter([found[unit] for unit in sorted(found)])


def discard_unsound(subset: Subset, units: int) -> None:
    """Removes damaged receipts, and those whose shards are gone or have another size: these units are labelled anew."""
    reasons = []
    for file in sorted((subset.ledger / RECEIPTS).glob(OWN)):
        try:
            (receipt,) = _receipts(subset, file)
        except ValueError as error:
            reason = str(error).removesuffix(f"; {REMEDY}")
        else:
            if _is_in_place(subset, receipt) and receipt.unit < units:
                continue
            reason = f"{subset.data / receipt.shard} is missing, or not as large as it was written"
        reasons.append(reason)
        file.unlink()
    if reasons:
        LOG.warning("%d units of %s are labelled anew: %s", len(reasons), subset.name, reasons[0])


def _receipts(subset: Subset, file: Path) -> list[Receipt]:
    """The receipts of a file."""
    with reading(file, REMEDY):
        receipts = list(map(Receipt.from_json, text_of(file).splitlines()))
        if file.match(OWN) and [receipt_file(subset, receipt.unit) for receipt in receipts] != [file]:
            raise ValueError("it is not the receipt of its unit")
    return receipts


def _is_in_place(subset: Subset, receipt: Receipt) -> bool:
    try:
        return (subset.data / receipt.shard).stat().st_size == receipt.size
    except (FileNotFoundError, NotADirectoryError):
        return False


def read_published(subset: Subset) -> list[Receipt]:
    """The receipts of units whose shards are in the repository that this folder is staging for."""
    file = subset.ledger / PUBLISHED_FILE
    with reading(file, "delete it: the same pipeline.annotate command asks the repository again"):
        return list(map(Receipt.from_json, text_of(file).splitlines())) if file.exists() else []


def unpublished(subset: Subset) -> list[Receipt]:
    """The receipts of units whose shards lie here and are not known to be in the repository."""
    there = {receipt.shard for receipt in read_published(subset)}
    return [receipt for receipt in read_receipts(subset) if receipt.shard not in there]


def end_staging(subset: Subset) -> None:
    """Makes a staging folder an output: what is in the repository alone is labelled here too."""
    file = subset.ledger / PUBLISHED_FILE
    if file.exists():
        LOG.warning("%s was a staging folder; what was published from it is labelled again", subset.root)
        file.unlink()


def write_published(subset: Subset, receipts: Sequence[Receipt]) -> None:
    """Writes down which units' shards are in the repository, and removes what lies here of them."""
    write_text(subset.ledger / PUBLISHED_FILE, as_lines(receipts))
    forget(subset, receipts)


def forget(subset: Subset, receipts: Iterable[Receipt]) -> None:
    """Removes what was written down of shards that are published, and then these."""
    for receipt in receipts:
        receipt_file(subset, receipt.unit).unlink(missing_ok=True)
        (subset.data / receipt.shard).unlink(missing_ok=True)


def as_lines(receipts: Iterable[Receipt]) -> str:
    """A receipt a line, as they stand in a repository."""
    return "".join(f"{receipt.to_json()}\n" for receipt in receipts)


class Total(NamedTuple):
    """Some shards together."""

    counts: Counts
    sha256: str
    """A digest of theirs: two datasets that share it are the same."""
    size: int
    """Bytes of their files."""


def total(receipts: Iterable[Receipt]) -> Total:
    """The figures of receipts in the order of their units, so that the sum of nats is always the same bits."""
    counts, digest, size = Counts(), hashlib.sha256(), 0
    for receipt in receipts:
        counts += receipt.counts
        digest.update(receipt.sha256.encode())
        size += receipt.size
    return Total(counts, digest.hexdigest(), size)
