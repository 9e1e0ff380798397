"""Complete local runs to publish, labelled by a fast fake."""

from hashlib import sha256
from pathlib import Path

from pipeline.data.ledger import Ledger
from pipeline.engine.output import open_run
from pipeline.engine.plan import Run, Unit
from schemas.layout import Subset, shard_name
from schemas.receipts import Counts, Plan, Receipt
from tests.builders import write_documents
from tests.engine.fakes import load_fake, planned_run, token_rows


def planned(folder: Path, rows: int = 12, rows_per_unit: int = 2) -> tuple[Run, list[Unit]]:
    """Return a run that has not started, with its units."""
    file = write_documents(folder / "in.parquet", ["text"] * rows, input_ids=token_rows(rows))
    return planned_run(folder / "out", [file], rows_per_unit=rows_per_unit)


def annotated(folder: Path, rows: int = 12, rows_per_unit: int = 2) -> Run:
    """Return a run whose units are all done. Its dataset has no dataset card yet."""
    run, units = planned(folder, rows, rows_per_unit)
    open_run(run.subset, Plan(run.provenance, (), schema=run.schema), units)
    annotator = load_fake(run)
    for unit in units:
        annotator.annotate(unit)
    return run


def made_up(folder: Path, count: int) -> Subset:
    """Return a subset with `count` shards that are not Parquet files, and their receipts."""
    subset = Subset("exact", folder)
    subset.data.mkdir(parents=True)
    for unit in range(count):
        shard, content = shard_name(unit, count), b"shard %d" % unit
        (subset.data / shard).write_bytes(content)
        digest = sha256(content).hexdigest()
        Ledger(subset).record(Receipt(unit=unit, shard=shard, sha256=digest, size=len(content), counts=Counts(rows=1)))
    return subset
