"""A finished or begun dataset in a folder takes in more rows of its source: the same command with a larger `--limit`.

Units that are the same in both plans keep their labels: their shards are written again, with the name and the
provenance of the larger plan. At no moment are a row's labels in two shards. Killed anywhere, it goes on.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from pipeline.data.atomic import unfinished_name, write_text
from pipeline.data.files import local_file
from pipeline.data.shards import open_shard, shard_schema, write_shard
from pipeline.engine.ledger import read_receipts, receipt_file, record
from pipeline.engine.plan import Unit
from schemas.annotations import PROVENANCE_KEY, Provenance
from schemas.layout import Subset, shard_name
from schemas.receipts import RECEIPTS, Receipt

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
