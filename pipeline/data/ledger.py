"""Ledger of a subset: the plan of its run, a receipt for every shard, and notes on quarantined units.

A unit is a range of rows that becomes one shard. The ledger is stored in `_ledger/SUBSET` next to the data, both in a
folder and in a repository on the Hub. `datasets` ignores folders whose names begin with an underscore. A unit's receipt
is written after its shard is in place. Running the same command again therefore resumes the run without labelling a
unit twice.
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

RELABELS = "delete it, and the same pipeline.annotate command labels its rows again"
READS_AT_A_TIME = 16  # files read from the Hub in parallel

LOG = logging.getLogger(__name__)


class Ledger:
    """Ledger of a subset in a local folder."""

    def __init__(self, subset: Subset) -> None:
        self.subset, self.folder = subset, subset.ledger
        self.plan_file = self.folder / PLAN_FILE
        self.published_file = self.folder / PUBLISHED_FILE

    def plan(self) -> Plan | None:
        """Return the plan of the run that writes the subset, or None if there is no plan.

        Raises:
            ValueError: if the plan is damaged.
        """
        if not self.plan_file.exists():
            return None
        with reading(self.plan_file, "choose another folder, or delete this one"):
            return Plan.from_json(text_of(self.plan_file))

    def write_plan(self, plan: Plan) -> None:
        """Write the plan. This must be done before the first unit is labelled."""
        write_text(self.plan_file, plan.to_json())

    def receipt_file(self, unit: int) -> Path:
        """Return the path of a unit's receipt, in the ledger of the folder that holds the unit's shard."""
        return self.folder / RECEIPTS / f"{unit:08d}.json"

    def receipt_files(self) -> list[Path]:
        """List all files of receipts: first files with one unit's receipt, then files with a commit's receipts."""
        return [file for kind in RECEIPT_FILES for file in sorted((self.folder / RECEIPTS).glob(kind))]

    def note_files(self) -> list[Path]:
        """List the files of notes on quarantined units."""
        return sorted((self.folder / QUARANTINE).glob("*.json"))

    def receipts_in(self, file: Path) -> list[Receipt]:
        """Read the receipts in a file.

        Raises:
            ValueError: if the file is damaged, or is named after a unit other than the one in its receipt.
        """
        receipts = from_lines(text_of(file))
        if file.match(OWN) and [self.receipt_file(receipt.unit) for receipt in receipts] != [file]:
            raise ValueError("it is not the receipt of its unit")
        return receipts

    def receipts(self) -> list[Receipt]:
        """Return the receipts of all units whose shards are in this folder and have the recorded size.

        The receipts are in the order of units.

        Raises:
            ValueError: if a receipt is damaged, or two receipts of a unit differ.
        """
        of_unit: dict[int, Receipt] = {}
        for file in self.receipt_files():
            with reading(file, RELABELS):
                receipts = self.receipts_in(file)
            for receipt in filter(self._has_shard, receipts):
                if of_unit.setdefault(receipt.unit, receipt) != receipt:
                    another = f"{file} has a different receipt of unit {receipt.unit} than an earlier file"
                    raise ValueError(f"{another}; {RELABELS}")
        return [of_unit[unit] for unit in sorted(of_unit)]

    def finished(self, *, staging: bool = False) -> set[int]:
        """Return the numbers of the units that need no labelling.

        These are the units whose shards and receipts are in this folder. If `staging` is True, shards are published
        from this folder to a repository, and the units that are already published are included.
        """
        return {receipt.unit for receipt in (*self.receipts(), *(self.published() if staging else ()))}

    def record(self, receipt: Receipt) -> None:
        """Write the receipt of a unit whose shard is already in place."""
        write_text(self.receipt_file(receipt.unit), receipt.to_json())

    def discard_unsound(self, units: int) -> None:
        """Delete receipts that are damaged, or whose shards are missing or have another size.

        The units of these receipts will be labelled again. `units` is the number of units in the plan. A receipt of a
        unit that is not in the plan is deleted too.
        """
        reasons = []
        for file in sorted((self.folder / RECEIPTS).glob(OWN)):
            try:
                (receipt,) = self.receipts_in(file)
            except ValueError as error:
                reason = f"{file} is damaged ({error})"
            else:
                if self._has_shard(receipt) and receipt.unit < units:
                    continue
                reason = f"{self.subset.data / receipt.shard} is missing or has changed in size"
            reasons.append(reason)
            file.unlink()
        if reasons:
            LOG.warning("%d units of %s are labelled again: %s", len(reasons), self.subset.name, reasons[0])

    def _has_shard(self, receipt: Receipt) -> bool:
        try:
            return (self.subset.data / receipt.shard).stat().st_size == receipt.size
        except (FileNotFoundError, NotADirectoryError):
            return False

    def quarantine(self, note: Quarantined) -> None:
        """Write a note that says why a unit was quarantined."""
        write_text(self.folder / QUARANTINE / f"{note.unit:08d}.json", note.to_json())

    def quarantined(self) -> list[Quarantined]:
        """Return the notes on quarantined units, in the order of units. These units have no shards.

        Raises:
            ValueError: if a note is damaged.
        """
        notes = []
        for file in self.note_files():
            with reading(file, "delete it, and the same pipeline.annotate command tries the unit again"):
                notes.append(Quarantined.from_json(text_of(file)))
        return notes

    def published(self) -> list[Receipt]:
        """Return the receipts of units whose shards are recorded as published.

        Only a staging folder, from which shards are published to a repository, has this record. For any other folder,
        the list is empty.

        Raises:
            ValueError: if the record is damaged.
        """
        with reading(self.published_file, "delete it: the same pipeline.annotate command asks the repository again"):
            return from_lines(text_of(self.published_file)) if self.published_file.exists() else []

    def unpublished(self) -> list[Receipt]:
        """Return the receipts of units whose shards are in this folder and are not yet recorded as published."""
        published = {receipt.shard for receipt in self.published()}
        return [receipt for receipt in self.receipts() if receipt.shard not in published]

    def write_published(self, receipts: Sequence[Receipt]) -> None:
        """Write the record of published units, and delete the receipts and shards of these units from this folder."""
        write_text(self.published_file, as_lines(receipts))
        self.delete(receipts)

    def add_published(self, receipts: Iterable[Receipt]) -> None:
        """Add receipts to the record of published units."""
        with self.published_file.open("a", encoding="utf-8") as file:
            file.write(as_lines(receipts))

    def delete(self, receipts: Iterable[Receipt]) -> None:
        """Delete receipts and then their shards, which are already published or are to be labelled again."""
        for receipt in receipts:
            self.receipt_file(receipt.unit).unlink(missing_ok=True)
            (self.subset.data / receipt.shard).unlink(missing_ok=True)

    def end_staging(self) -> None:
        """Turn a staging folder into an output folder by deleting the record of published units.

        Units whose shards exist only in the repository will be labelled again.
        """
        if self.published_file.exists():
            LOG.warning("%s was a staging folder; what was published from it is labelled again", self.subset.root)
            self.published_file.unlink()

    def remove_unfinished(self) -> None:
        """Delete the unfinished files of killed workers. No worker may be running."""
        for file in filter(is_unfinished, self.subset.root.rglob("*")):
            file.unlink(missing_ok=True)


class PublishedLedger:
    """Ledger of a subset in a repository on the Hub.

    Its methods read the ledger at the commit `head`. If `head` is None, they read the branch's current commit.
    """

    def __init__(self, repository: Repository, subset: Subset) -> None:
        self.repository, self.subset = repository, subset.in_repository

    def plan(self, head: str | None = None) -> Plan | None:
        """Return the plan of the run that publishes the subset, or None if there is no plan.

        Raises:
            ValueError: if the plan is damaged.
        """
        head, file = head or self.repository.head(), (self.subset.ledger / PLAN_FILE).as_posix()
        remedy = "restore it from the repository's history, or write to another repository"
        with reading(f"{self.repository.url}/{file}", remedy):
            text = self.repository.text(file, head) if head else None
            return None if text is None else Plan.from_json(text)

    def receipts(self, units: int, head: str | None = None) -> list[Receipt]:
        """Return the receipts of all units whose shards are in the repository, in the order of units.

        `units` is the number of units in the plan. Receipts of a plan with another number of units are ignored.

        Raises:
            ValueError: if a receipt is damaged.
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
        with reading(f"{self.repository.url}/{path}", "delete it there: the same command publishes its shards again"):
            return from_lines(self.repository.text(path, head) or "")
