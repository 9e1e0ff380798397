"""A finished or begun dataset in a folder takes in more rows of its source: the same command with a larger `--limit`.

Units that are the same in both plans keep their labels: their shards are written again, with the name and the
provenance of the larger plan. At no moment are a row's labels in two shards. Killed anywhere, it goes on.
"""

import fcntl
import hashlib
import json
import logging
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from pipeline.data.atomic import is_unfinished, unfinished_name, write_text
from pipeline.data.columns import is_json, plain_field
from pipeline.data.files import File, local_file
from pipeline.data.naming import recorded, without_paths
from pipeline.data.shards import open_shard, shard_schema, write_shard
from pipeline.engine.ledger import discard_unsound, read_receipts, receipt_file, record, remove_unfinished
from pipeline.engine.plan import Unit
from schemas.annotations import DESCRIPTIONS, PROVENANCE_KEY, Provenance
from schemas.decoding import json_object, reading, text_of
from schemas.layout import LEDGER_FOLDER, Subset, require_contained, shard_name
from schemas.receipts import LOCK_FILE, PLAN_FILE, QUARANTINE, RECEIPTS, PlannedUnits, Receipt

GROWING_FILE = "growing"
"""In the ledger while shards of two plans may lie side by side."""

LOG = logging.getLogger(__name__)


def grows(there: Provenance, wanted: Provenance) -> bool:
    """True if all that differs is that more rows of the same source are wanted."""
    return there.source_rows < wanted.source_rows and replace(there, source_rows=wanted.source_rows) == wanted


def require_growing(place: str, subset: Subset, there: Provenance, wanted: Provenance, *, published: bool) -> None:
    """Refuses what a dataset can do with another limit than growing in a folder.

    Raises:
        ValueError: if fewer rows are wanted, or the dataset is one of the Hub, whose readers have its shards' names.
    """
    if grows(wanted, there):
        raise ValueError(
            f"--output {place} holds {there.source_rows:,} documents and --limit asks for {wanted.source_rows:,}; give "
            "the larger limit again, or choose another --output"
        )
    from_hub = any((subset.ledger / RECEIPTS).glob("*.jsonl"))
    if grows(there, wanted) and (published or from_hub):
        raise ValueError(
            f"--output {place} was begun with {there.source_rows:,} documents, not {wanted.source_rows:,}, and a "
            "published dataset does not grow; choose another --output or --subset"
        )


def begin_growing(subset: Subset) -> None:
    """To be called before the larger plan is written."""
    write_text(subset.ledger / GROWING_FILE, "")


def is_growing(subset: Subset) -> bool:
    """True if shards of two plans may lie here."""
    return (subset.ledger / GROWING_FILE).exists()


def finish_growing(subset: Subset, units: Sequence[Unit], schema: pa.Schema | None) -> None:
    """Makes all shards such as the plan's units have, where another plan's may lie; no other run may be at work."""
    if not is_growing(subset):
        return
    assert schema is not None
    for receipt in list(read_receipts(subset)):
        unit, shard, name = units[receipt.unit], subset.data / receipt.shard, shard_name(receipt.unit, len(units))
        if receipt.counts.rows != unit.stop - unit.start:  # the smaller limit cut it short
            _remove(subset, receipt)
        elif not _is_whole(shard, receipt):
            LOG.warning("%s does not hold what was written, and its rows are labelled anew", shard)
            _remove(subset, receipt)
        elif receipt.shard != name or _provenance(shard_schema(shard)) != _provenance(schema):
            _renew(subset, receipt, name, schema)
    (subset.ledger / GROWING_FILE).unlink()


def _is_whole(shard: Path, receipt: Receipt) -> bool:
    """True if a shard's bytes are those of its receipt: a new receipt would speak for damaged ones too."""
    with shard.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == receipt.sha256


def _provenance(schema: pa.Schema) -> bytes | None:
    return (schema.metadata or {}).get(PROVENANCE_KEY)


def _renew(subset: Subset, receipt: Receipt, name: str, schema: pa.Schema) -> None:
    """Writes a shard again. Where this is killed, the unit has no shard with a receipt, and is labelled anew."""
    shard = subset.data / name
    unfinished = unfinished_name(shard)
    digest = write_shard(unfinished, _tables(subset.data / receipt.shard, schema), schema)
    size = unfinished.stat().st_size
    _remove(subset, receipt)
    unfinished.replace(shard)
    record(subset, replace(receipt, shard=name, sha256=digest, size=size))


def _remove(subset: Subset, receipt: Receipt) -> None:
    receipt_file(subset, receipt.unit).unlink()
    (subset.data / receipt.shard).unlink()


def _tables(shard: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    with open_shard(local_file(shard)) as parquet:
        for group in range(parquet.num_row_groups):
            yield parquet.read_row_group(group).replace_schema_metadata(schema.metadata)


REMEDY = "choose another folder, or delete this one"


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keeps other runs from the folder meanwhile; a driver that is killed lets go of it.

    Raises:
        ValueError: if another run has it, or something of it lies elsewhere.
    """
    require_contained(output)
    output.joinpath(LEDGER_FOLDER).mkdir(parents=True, exist_ok=True)
    with (output / LEDGER_FOLDER / LOCK_FILE).open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another run is at work in {output}; wait for it, or choose another folder") from error
        yield


class Plan(NamedTuple):
    """What a run set out to do."""

    provenance: Provenance
    inputs: tuple[str, ...]
    """As they were given, before any was pinned to a commit."""
    checkpoint: str | None = None
    """If it is from the Hub, USER/NAME@COMMIT."""
    source: tuple[str, ...] = ()
    """The same inputs, those on the Hub at their commits."""
    schema: pa.Schema | None = None
    """Columns that are written; None only in a plan that an older version wrote."""
    tokenizer_config_sha256: str | None = None
    """Digest of the tokenizer's settings, which name the token before a document; None where there are none."""
    units: int = 0
    """Number of shards, once it is written down."""


def planned(subset: Subset) -> Plan | None:
    """The plan of the run that writes a subset; None where there is no run.

    Raises:
        ValueError: if the folder holds anything but subsets, or other files stand where this one's belong, or something
            of it lies elsewhere, or the plan is damaged.
    """
    require_contained(subset.root)
    plan_file = subset.ledger / PLAN_FILE
    if plan_file.exists():
        with reading(plan_file, REMEDY):
            return read_plan(text_of(plan_file))
    beside = any(subset.root.glob(f"{LEDGER_FOLDER}/*/{PLAN_FILE}"))
    places = [subset.data, subset.tokenizer, subset.ledger] if beside else [subset.root]
    lock = subset.root / LEDGER_FOLDER / LOCK_FILE
    found = [file for place in places for file in place.rglob("*") if file.is_file()]
    if subset.root.is_file() or any(not is_unfinished(file) and file != lock for file in found):
        raise ValueError(f"--output {subset.root} is not empty and holds no annotation run; choose another folder")
    return None


def read_plan(text: str) -> Plan:
    """Reads a plan.

    Raises:
        ValueError: if no run can have such a plan.
    """
    values = json_object(text)
    run = values.pop("run", None)
    if not isinstance(run, dict):
        raise ValueError("run is not an object")
    provenance = Provenance.from_values(run)
    plan = PlannedUnits.from_values(values)
    source = provenance.source if plan.source is None else plan.source  # older versions had all inputs in the former
    schema = None if plan.schema is None else _read_schema(plan.schema)
    return Plan(provenance, plan.inputs, plan.checkpoint, source, schema, plan.tokenizer_config_sha256, len(plan.units))


def _read_schema(text: str) -> pa.Schema:
    try:
        return pa.ipc.read_schema(pa.py_buffer(b64decode(text, validate=True)))
    except (pa.ArrowException, ValueError, OSError) as error:
        raise ValueError(f"schema holds no columns: {error}") from error


def plan_without_paths(text: str) -> str:
    """A plan as it is published: URLs stay, paths of this disk do not.

    Raises:
        ValueError: if no run can have such a plan.
    """
    read_plan(text)
    plan = json.loads(text)
    listed = {key: without_paths(plan[key]) for key in ("inputs", "source") if plan.get(key) is not None}
    files = [{**file, "url": without_paths([file["url"]])[0]} for file in plan["files"]]
    return json.dumps({**plan, **listed, "files": files})


def open_run(subset: Subset, plan: Plan, units: Sequence[Unit]) -> None:
    """Begins a run in an empty folder or goes on with the same one, which may have had a smaller limit.

    What an interrupted run left is removed: files half written, shards without a receipt, and notes on units that
    were given up, which get another chance. So are receipts that are damaged or whose shards are gone or cut, with a
    warning.

    Raises:
        ValueError: if the folder holds anything else, another run's dataset among them. Nothing is written then.
    """
    there = planned(subset)
    if there is None:
        write_text(subset.ledger / PLAN_FILE, _written(plan, units))
        return
    if grows(there.provenance, plan.provenance):
        begin_growing(subset)
        write_text(subset.ledger / PLAN_FILE, _written(plan, units))
    else:
        require_same(f"--output {subset.root}", plan.provenance, there.provenance)
    discard_unsound(subset, len(units))
    growing = is_growing(subset)
    _sweep(
        subset,
        keep={
            receipt.shard
            for receipt in read_receipts(subset)
            if receipt.shard == shard_name(receipt.unit, len(units)) or (growing and receipt.unit < len(units))
        },
    )
    finish_growing(subset, units, plan.schema)


def require_same(
    place: str, wanted: Provenance, there: Provenance, remedy: str = "choose another --output or --subset"
) -> None:
    """What a place has must be what is wanted.

    Raises:
        ValueError: if not, with all that differs.
    """
    differing = [
        field.name for field in fields(Provenance) if getattr(wanted, field.name) != getattr(there, field.name)
    ]
    if differing:
        shown = "; ".join(f"{name} {getattr(there, name)} there, {getattr(wanted, name)} now" for name in differing)
        raise ValueError(f"{place} holds another run's dataset ({shown}); {remedy}")


def require_same_columns(place: str, wanted: pa.Schema, there: Plan, files: Sequence[File]) -> None:
    """Raise if a run that is resumed has written columns of other types, so that its shards would differ.

    Raises:
        ValueError: if so, naming the column.
    """
    for field in wanted:
        if there.schema is None:
            # Until plans had columns, these were written as text.
            changed = pa.types.is_nested(field.type) or pa.types.is_null(field.type) or is_json(field)
            same = field.name in DESCRIPTIONS or not changed or all(file.format != "JSON lines" for file in files)
        else:
            same = field.name in there.schema.names and plain_field(there.schema.field(field.name)).equals(field)
        if not same:
            told = f"{place} was begun by another version, which wrote column `{field.name}` with another type"
            raise ValueError(f"{told}; complete it with that version, or choose another --output or --subset")


def _written(plan: Plan, units: Sequence[Unit]) -> str:
    files = list(dict.fromkeys(unit.file for unit in units))
    number = {file: index for index, file in enumerate(files)}
    places = [[number[unit.file], unit.start, unit.stop] for unit in units]
    listed = [{"url": recorded([file.url])[0], "size": file.size, "version": file.version} for file in files]
    named = {name: getattr(plan, name) for name in ("inputs", "checkpoint", "source", "tokenizer_config_sha256")}
    what = {"run": asdict(plan.provenance), **named}
    if plan.schema is not None:
        what["schema"] = b64encode(pa.schema([*plan.schema]).serialize()).decode()
    return json.dumps({**what, "files": listed, "units": places})


def _sweep(subset: Subset, keep: set[str]) -> None:
    orphans = [subset.data / shard for shard in subset.shards() - keep]
    for file in [*orphans, *(subset.ledger / QUARANTINE).glob("*.json")]:
        file.unlink()
    remove_unfinished(subset)
