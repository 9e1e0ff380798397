"""Output folder of a run. A run locks the folder, then begins, resumes or extends the dataset in it.

The same command with a larger `--limit` extends a dataset by more rows of the same source. If a unit (a range of
rows) is the same in the old and the new plan, its labels are kept: its shard is rewritten with the name and the
provenance of the new plan. A row's labels are never in two shards. If a run is killed at any point, the same command
completes its dataset.
"""

import fcntl
import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from pipeline.data.atomic import is_unfinished, unfinished_name, write_text
from pipeline.data.columns import is_json, plain_field
from pipeline.data.files import File, local_file
from pipeline.data.hub import Repository
from pipeline.data.ledger import Ledger, PublishedLedger
from pipeline.data.naming import recorded
from pipeline.data.shards import open_shard, shard_schema, write_shard
from pipeline.engine.plan import Run, Unit
from schemas.annotations import DESCRIPTIONS, PROVENANCE_KEY, Provenance
from schemas.layout import LEDGER_FOLDER, Subset, require_contained, shard_name
from schemas.receipts import COMMITTED, LOCK_FILE, PLAN_FILE, RECEIPTS, Plan, PlannedFile, Receipt

GROWING_FILE = "growing"
"""Name of a file in the ledger's folder. The file exists while the dataset may hold shards of two plans."""

LOG = logging.getLogger(__name__)


class ExistingRun(NamedTuple):
    """Run to resume: its plan in the repository and its plan in the output folder. Both are None for a new run."""

    published: Plan | None
    """Plan in the repository, or None if the repository has no run."""
    in_folder: Plan | None
    """Plan in the output folder, or None if the folder has no run."""

    @property
    def plan(self) -> Plan | None:
        """Plan to resume: the repository's plan, or the folder's plan if the repository has none."""
        return self.published or self.in_folder

    def require_continued(self, run: Run, files: Sequence[File], output: str | None) -> None:
        """Raise if `run` cannot continue this existing run.

        Raises:
            ValueError: if the settings or the columns differ. In a folder, more rows of the same source are not an
                error, because the dataset can be extended. In a repository, they are an error.
        """
        for place, plan in ((output, self.published), (run.subset.root, self.in_folder)):
            if plan is not None:
                _require_continued(f"`output` {place}", run, plan.provenance)
                require_same_columns(f"`output` {place}", run.schema, plan, files)


def find_run(repository: Repository | None, subset: Subset) -> ExistingRun:
    """Find the existing run of a subset, in its folder and, if a repository is given, in the repository too.

    Raises:
        ValueError: if a plan is damaged, or the folder holds files that do not belong to a run.
    """
    return ExistingRun(PublishedLedger(repository, subset).plan() if repository else None, existing_plan(subset))


def existing_plan(subset: Subset) -> Plan | None:
    """Return the plan of the run in a subset's folder, or None if there is no run.

    Raises:
        ValueError: if the plan is damaged; if an entry of the folder leads out of it or is neither file nor folder; or
            if the folder has files but no run. If other subsets have runs in the folder, only files in this subset's
            own folders are an error.
    """
    require_contained(subset.root)
    if (plan := Ledger(subset).plan()) is not None:
        return plan
    has_others = any(subset.root.glob(f"{LEDGER_FOLDER}/*/{PLAN_FILE}"))
    folders = [subset.data, subset.tokenizer, subset.ledger] if has_others else [subset.root]
    lock = subset.root / LEDGER_FOLDER / LOCK_FILE
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    if subset.root.is_file() or any(not is_unfinished(file) and file != lock for file in files):
        raise ValueError(f"`output` {subset.root} is not empty and holds no annotation run; choose another folder")
    return None


def grows(existing: Provenance, requested: Provenance) -> bool:
    """True if the requested settings differ from the existing settings only by more rows of the same source."""
    rows = requested.source_rows
    return existing.source_rows < rows and replace(existing, source_rows=rows) == requested


def _require_continued(place: str, run: Run, existing: Provenance) -> None:
    require_growing(place, run.subset, existing, run.provenance, published=run.repository is not None)
    if not grows(existing, run.provenance):
        require_same(place, run.provenance, existing)


def require_growing(
    place: str, subset: Subset, existing: Provenance, requested: Provenance, *, published: bool
) -> None:
    """Raise if only the limit on documents differs, and the existing dataset cannot change to the new limit.

    A dataset on the Hub cannot grow, because its shards would be renamed, and readers know the old names.

    Raises:
        ValueError: if the limit is smaller than before, or if it is larger and the dataset is on the Hub.
    """
    if grows(requested, existing):
        raise ValueError(
            f"{place} holds {existing.source_rows:,} documents, more than the {requested.source_rows:,} of `limit`; "
            "give the larger limit again, or choose another `output`"
        )
    from_hub = any((subset.ledger / RECEIPTS).glob(COMMITTED))
    if grows(existing, requested) and (published or from_hub):
        raise ValueError(
            f"{place} was started with {existing.source_rows:,} documents, not {requested.source_rows:,}, and a "
            "published dataset cannot grow; choose another `output` or `subset`"
        )


def require_same(
    place: str, requested: Provenance, existing: Provenance, remedy: str = "choose another `output` or `subset`"
) -> None:
    """Raise if an existing run has different settings.

    Raises:
        ValueError: if any setting differs. The message lists all differences.
    """
    old, new = vars(existing), vars(requested)
    if differing := [f"{name} {old[name]} there, {new[name]} now" for name in old if old[name] != new[name]]:
        raise ValueError(f"{place} holds another run's dataset ({'; '.join(differing)}); {remedy}")


def require_same_columns(place: str, requested: pa.Schema, existing: Plan, files: Sequence[File]) -> None:
    """Raise if the new shards would differ from an existing run's shards in a column or its type.

    Raises:
        ValueError: if the existing run lacks a column, or wrote a column with another type. The message names the
            column.
    """
    for field in requested:
        if existing.schema is None:
            # An older version, whose plans do not list the columns, wrote columns of these types as text.
            changed = pa.types.is_nested(field.type) or pa.types.is_null(field.type) or is_json(field)
            same = field.name in DESCRIPTIONS or not changed or all(file.format != "JSON lines" for file in files)
        else:
            same = field.name in existing.schema.names and plain_field(existing.schema.field(field.name)).equals(field)
        if not same:
            message = f"{place} was started by another version, which wrote column `{field.name}` with another type"
            raise ValueError(f"{message}; complete it with that version, or choose another `output` or `subset`")


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Lock the output folder against other runs. The system releases the lock if the process is killed.

    Raises:
        ValueError: if another run holds the lock, or if an entry of the folder leads out of it or is neither file nor
            folder.
    """
    require_contained(output)
    output.joinpath(LEDGER_FOLDER).mkdir(parents=True, exist_ok=True)
    with (output / LEDGER_FOLDER / LOCK_FILE).open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another run is writing to {output}; wait for it, or choose another folder") from error
        yield


def open_run(subset: Subset, plan: Plan, units: Sequence[Unit]) -> None:
    """Begin a run in an empty folder, or resume an earlier run, which may have had a smaller limit.

    The leftovers of an interrupted run are removed: half-written files, shards without a receipt, and the notes on
    quarantined units, so that these units are retried. A receipt is removed with a warning if it is damaged, or if its
    shard is missing or truncated.

    Raises:
        ValueError: if the folder holds the dataset of a run with other settings, or files that do not belong to a run.
            Nothing is written in this case.
    """
    ledger, existing = Ledger(subset), existing_plan(subset)
    if existing is None:
        ledger.write_plan(_with_units(plan, units))
        return
    if grows(existing.provenance, plan.provenance):
        write_text(subset.ledger / GROWING_FILE, "")
        ledger.write_plan(_with_units(plan, units))
    else:
        require_same(f"`output` {subset.root}", plan.provenance, existing.provenance)
    ledger.discard_unsound(len(units))
    growing = (subset.ledger / GROWING_FILE).exists()
    _sweep(
        ledger,
        keep={
            receipt.shard
            for receipt in ledger.receipts()
            if receipt.shard == shard_name(receipt.unit, len(units)) or (growing and receipt.unit < len(units))
        },
    )
    if growing:
        _grow(ledger, units, plan.schema)
        (subset.ledger / GROWING_FILE).unlink()


def _with_units(plan: Plan, units: Sequence[Unit]) -> Plan:
    files = list(dict.fromkeys(unit.file for unit in units))
    number = {file: index for index, file in enumerate(files)}
    return replace(
        plan,
        files=tuple(PlannedFile(url=recorded([file.url])[0], size=file.size, version=file.version) for file in files),
        units=tuple((number[unit.file], unit.start, unit.stop) for unit in units),
    )


def _sweep(ledger: Ledger, keep: set[str]) -> None:
    orphans = [ledger.subset.data / shard for shard in ledger.subset.shards() - keep]
    for file in [*orphans, *ledger.note_files()]:
        file.unlink()
    ledger.remove_unfinished()


def _grow(ledger: Ledger, units: Sequence[Unit], schema: pa.Schema | None) -> None:
    """Turn the shards of an earlier plan into shards of a plan with more rows of the same source.

    A shard is kept if its unit has the same rows in both plans and its bytes are undamaged. Other shards are deleted.
    """
    assert schema is not None
    for receipt in ledger.receipts():
        unit, shard = units[receipt.unit], ledger.subset.data / receipt.shard
        name = shard_name(receipt.unit, len(units))
        if receipt.counts.rows != unit.stop - unit.start:  # the smaller limit cut it short
            ledger.delete([receipt])
        elif not _is_whole(shard, receipt):
            LOG.warning("%s does not hold what was written, and its rows are labelled again", shard)
            ledger.delete([receipt])
        elif receipt.shard != name or _provenance(shard_schema(shard)) != _provenance(schema):
            _renew(ledger, receipt, name, schema)


def _is_whole(shard: Path, receipt: Receipt) -> bool:
    """True if a shard has the SHA-256 of its receipt.

    Without this check, the copy of a damaged shard would get a valid receipt, and the damage would be hidden.
    """
    with shard.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == receipt.sha256


def _provenance(schema: pa.Schema) -> bytes | None:
    return (schema.metadata or {}).get(PROVENANCE_KEY)


def _renew(ledger: Ledger, receipt: Receipt, name: str, schema: pa.Schema) -> None:
    """Rewrite a shard and its receipt with a new name and schema.

    If the run is killed after the old receipt is deleted and before the new one is written, the unit has no receipt and
    is labelled again.
    """
    shard = ledger.subset.data / name
    unfinished = unfinished_name(shard)
    digest = write_shard(unfinished, _tables(ledger.subset.data / receipt.shard, schema), schema)
    size = unfinished.stat().st_size
    ledger.delete([receipt])
    unfinished.replace(shard)
    ledger.record(replace(receipt, shard=name, sha256=digest, size=size))


def _tables(shard: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    with open_shard(local_file(shard)) as parquet:
        for group in range(parquet.num_row_groups):
            yield parquet.read_row_group(group).replace_schema_metadata(schema.metadata)
