"""The ledger of a subset: the plan of its run, a receipt for every shard, notes on quarantined units.

It lies in `_ledger/SUBSET` next to the data, in a folder and in a repository of the Hub; `datasets` does not read
folders that begin with an underscore. A receipt is written after its shard is in place, so a unit with a receipt never
needs doing again: the same command resumes a run.
"""

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.data.atomic import is_unfinished, write_text
from pipeline.data.hub import Repository
from schemas.decoding import reading, text_of
from schemas.layout import Subset, shards_in_all
from schemas.receipts import (
    OWN,
    PLAN_FILE,
    PUBLISHED_FILE,
    QUARANTINE,
    RECEIPT_FILES,
    RECEIPTS,
    Plan,
    Quarantined,
    Receipt,
    as_lines,
    from_lines,
)

RELABELS = "delete it, and the same pipeline.annotate command labels its rows anew"
READS_AT_A_TIME = 16  # from the Hub

LOG = logging.getLogger(__name__)


class Ledger:
    """The ledger of a subset in a folder."""

    def __init__(self, subset: Subset) -> None:
        self.subset, self.folder = subset, subset.ledger
        self.plan_file = self.folder / PLAN_FILE
        self.published_file = self.folder / PUBLISHED_FILE

    def plan(self) -> Plan | None:
        """The plan of the run that writes the subset; None where there is no run.

        Raises:
            ValueError: if it is damaged.
        """
        if not self.plan_file.exists():
            return None
        with reading(self.plan_file, "choose another folder, or delete this one"):
            return Plan.from_json(text_of(self.plan_file))

    def write_plan(self, plan: Plan) -> None:
        """Write the plan, before its first unit is labelled."""
        write_text(self.plan_file, plan.to_json())

    def receipt_file(self, unit: int) -> Path:
        """Path of the receipt of a unit that was labelled here."""
        return self.folder / RECEIPTS / f"{unit:08d}.json"

    def receipt_files(self) -> list[Path]:
        """Every file of receipts: of single units, then of commits to a repository."""
        return [file for kind in RECEIPT_FILES for file in sorted((self.folder / RECEIPTS).glob(kind))]

    def note_files(self) -> list[Path]:
        """Every note on a quarantined unit."""
        return sorted((self.folder / QUARANTINE).glob("*.json"))

    def receipts_in(self, file: Path) -> list[Receipt]:
        """The receipts in a file.

        Raises:
            ValueError: if it is damaged, or has the name of another unit.
        """
        receipts = from_lines(text_of(file))
        if file.match(OWN) and [self.receipt_file(receipt.unit) for receipt in receipts] != [file]:
            raise ValueError("it is not the receipt of its unit")
        return receipts

    def receipts(self) -> list[Receipt]:
        """The receipts of units whose shards lie here with the size they were written with, in the order of the units.

        Raises:
            ValueError: if a receipt is damaged, or two of a unit differ.
        """
        of_unit: dict[int, Receipt] = {}
        for file in self.receipt_files():
            with reading(file, RELABELS):
                receipts = self.receipts_in(file)
            for receipt in filter(self._has_shard, receipts):
                if of_unit.setdefault(receipt.unit, receipt) != receipt:
                    another = f"{file} has another receipt of unit {receipt.unit} than an earlier file"
                    raise ValueError(f"{another}; {RELABELS}")
        return [of_unit[unit] for unit in sorted(of_unit)]

    def finished(self, *, staging: bool = False) -> set[int]:
        """The units that need no labelling; in a staging folder also those that are published."""
        return {receipt.unit for receipt in (*self.receipts(), *(self.published() if staging else ()))}

    def record(self, receipt: Receipt) -> None:
        """Write a unit's receipt; its shard must be in place."""
        write_text(self.receipt_file(receipt.unit), receipt.to_json())

    def discard_unsound(self, units: int) -> None:
        """Remove receipts that are damaged, or whose shards are gone or have another size: the units are relabelled."""
        reasons = []
        for file in sorted((self.folder / RECEIPTS).glob(OWN)):
            try:
                (receipt,) = self.receipts_in(file)
            except ValueError as error:
                reason = f"{file} is damaged ({error})"
            else:
                if self._has_shard(receipt) and receipt.unit < units:
                    continue
                reason = f"{self.subset.data / receipt.shard} is missing, or not as large as it was written"
            reasons.append(reason)
            file.unlink()
        if reasons:
            LOG.warning("%d units of %s are labelled anew: %s", len(reasons), self.subset.name, reasons[0])

    def _has_shard(self, receipt: Receipt) -> bool:
        try:
            return (self.subset.data / receipt.shard).stat().st_size == receipt.size
        except (FileNotFoundError, NotADirectoryError):
            return False

    def quarantine(self, note: Quarantined) -> None:
        """Write why a unit was quarantined."""
        write_text(self.folder / QUARANTINE / f"{note.unit:08d}.json", note.to_json())

    def quarantined(self) -> list[Quarantined]:
        """The units that have no shard, in their order, and why.

        Raises:
            ValueError: if a note is damaged.
        """
        notes = []
        for file in self.note_files():
            with reading(file, "delete it, and the same pipeline.annotate command tries the unit again"):
                notes.append(Quarantined.from_json(text_of(file)))
        return notes

    def published(self) -> list[Receipt]:
        """The receipts of units whose shards are in the repository that this folder is staging for.

        Raises:
            ValueError: if their file is damaged.
        """
        with reading(self.published_file, "delete it: the same pipeline.annotate command asks the repository again"):
            return from_lines(text_of(self.published_file)) if self.published_file.exists() else []

    def unpublished(self) -> list[Receipt]:
        """The receipts of units whose shards lie here and, as far as is written here, not in the repository."""
        published = {receipt.shard for receipt in self.published()}
        return [receipt for receipt in self.receipts() if receipt.shard not in published]

    def write_published(self, receipts: Sequence[Receipt]) -> None:
        """Write which units' shards are in the repository, and delete those here."""
        write_text(self.published_file, as_lines(receipts))
        self.delete(receipts)

    def add_published(self, receipts: Iterable[Receipt]) -> None:
        """Write that more shards are in the repository."""
        with self.published_file.open("a", encoding="utf-8") as file:
            file.write(as_lines(receipts))

    def delete(self, receipts: Iterable[Receipt]) -> None:
        """Delete receipts, then their shards: published ones, or damaged ones to be relabelled."""
        for receipt in receipts:
            self.receipt_file(receipt.unit).unlink(missing_ok=True)
            (self.subset.data / receipt.shard).unlink(missing_ok=True)

    def end_staging(self) -> None:
        """Make a staging folder an output: units that are in the repository alone are labelled here too."""
        if self.published_file.exists():
            LOG.warning("%s was a staging folder; what was published from it is labelled again", self.subset.root)
            self.published_file.unlink()

    def remove_unfinished(self) -> None:
        """Remove files that killed workers left half written; no worker may be at work."""
        for file in filter(is_unfinished, self.subset.root.rglob("*")):
            file.unlink(missing_ok=True)


class PublishedLedger:
    """The ledger of a subset in a repository of the Hub, at its head or at a commit `head`."""

    def __init__(self, repository: Repository, subset: Subset) -> None:
        self.repository, self.subset = repository, subset.in_repository

    def plan(self, head: str | None = None) -> Plan | None:
        """The plan of the run that publishes the subset; None where there is none.

        Raises:
            ValueError: if it is damaged.
        """
        head, file = head or self.repository.head(), (self.subset.ledger / PLAN_FILE).as_posix()
        remedy = "take it back in the repository's history, or write to another"
        with reading(f"{self.repository.url}/{file}", remedy):
            text = self.repository.text(file, head) if head else None
            return None if text is None else Plan.from_json(text)

    def receipts(self, units: int, head: str | None = None) -> list[Receipt]:
        """The receipts of those of a plan's units whose shards are in the repository, in the order of the units.

        Raises:
            ValueError: if one is damaged.
        """
        head = head or self.repository.head()
        assert head is not None, "prepare the repository first"
        shards = self.repository.files(self.subset.data.as_posix(), head)
        files = sorted(self.repository.files((self.subset.ledger / RECEIPTS).as_posix(), head))
        with ThreadPoolExecutor(READS_AT_A_TIME) as pool:
            receipts = [one for some in pool.map(lambda path: self._receipts_in(path, head), files) for one in some]
        committed = [one for one in receipts if shards.get((self.subset.data / one.shard).as_posix()) == one.sha256]
        of_unit = {one.unit: one for one in committed if shards_in_all(one.shard) == units}
        return [of_unit[unit] for unit in sorted(of_unit)]

    def _receipts_in(self, path: str, head: str) -> list[Receipt]:
        with reading(f"{self.repository.url}/{path}", "delete it there: the same command publishes its shards anew"):
            return from_lines(self.repository.text(path, head) or "")
