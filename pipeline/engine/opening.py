"""A run begins in an empty folder, or goes on in its own: its lock and its plan, and what an interrupted run left."""

import fcntl
import json
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from pipeline.data.atomic import is_unfinished, write_text
from pipeline.data.columns import is_json, plain_field
from pipeline.data.files import File
from pipeline.data.naming import recorded, without_paths
from pipeline.engine.growth import begin_growing, finish_growing, grows, is_growing
from pipeline.engine.ledger import discard_unsound, read_receipts, remove_unfinished
from pipeline.engine.plan import Unit
from schemas.annotations import DESCRIPTIONS, Provenance
from schemas.decoding import json_object, reading, text_of
from schemas.layout import LEDGER_FOLDER, Subset, require_contained, shard_name
from schemas.receipts import LOCK_FILE, PLAN_FILE, QUARANTINE, PlannedUnits

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
