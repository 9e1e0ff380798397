"""The ledger: valid receipts, published shards, and records that are read as they were written."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.data.ledger import Ledger
from schemas.layout import Subset
from schemas.receipts import RECEIPTS, Counts, Plan, PlannedFile, Quarantined, Receipt, total
from tests.builders import PROVENANCE


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Subset("exact", tmp_path))


def finish(ledger: Ledger, unit: int) -> Receipt:
    """Write a shard, then its receipt."""
    receipt = Receipt(
        unit=unit,
        shard=f"train-{unit:05d}-of-00003.parquet",
        sha256="d" * 64,
        size=5,
        counts=Counts(rows=2, tokens=10, labelled_tokens=9, text_bytes=40, nats=0.1 + 0.2),
    )
    ledger.subset.data.mkdir(parents=True, exist_ok=True)
    (ledger.subset.data / receipt.shard).write_bytes(b"shard")
    ledger.record(receipt)
    return receipt


def test_a_plan_is_read_as_it_was_written(ledger: Ledger) -> None:
    assert ledger.plan() is None
    schema, file = pa.schema([("text", pa.string())]), PlannedFile(url="a.parquet", size=9, version="1")
    plan = Plan(PROVENANCE, ("a.parquet",), "user/name@1", ("a.parquet",), schema, "d", (file,), ((0, 0, 2), (0, 2, 5)))
    ledger.write_plan(plan)
    assert ledger.plan() == plan and plan.rows == [2, 3]


def test_a_receipt_is_valid_only_with_a_shard_of_its_size(ledger: Ledger) -> None:
    kept, gone, cut = (finish(ledger, unit) for unit in range(3))
    (ledger.subset.data / gone.shard).unlink()
    (ledger.subset.data / cut.shard).write_bytes(b"shar")
    assert ledger.receipts() == [kept] and ledger.finished() == {0}
    ledger.discard_unsound(3)
    assert ledger.receipt_files() == [ledger.receipt_file(0)]


def test_a_receipt_with_the_name_of_another_unit_is_refused(ledger: Ledger) -> None:
    finish(ledger, 0)
    ledger.receipt_file(0).rename(ledger.receipt_file(1))
    with pytest.raises(ValueError, match=r"00000001.json is damaged \(it is not the receipt of its unit\); delete it"):
        ledger.receipts()
    ledger.receipt_file(1).rename(ledger.folder / RECEIPTS / "a.jsonl")
    assert ledger.finished() == {0}


def test_the_total_is_the_same_whatever_the_order_of_the_receipts(tmp_path: Path) -> None:
    totals = []
    for order in ((0, 1), (1, 0)):
        ledger = Ledger(Subset("exact", tmp_path / str(order)))
        for unit in order:
            finish(ledger, unit)
        totals.append(total(ledger.receipts()))
    counts, digest, size = totals[0]
    assert totals[0] == totals[1] and len(digest) == 64 and size == 10
    assert (counts.rows, counts.tokens, counts.nats) == (4, 20, (0.1 + 0.2) * 2)


def test_notes_come_in_the_order_of_their_units(ledger: Ledger) -> None:
    note = Quarantined(unit=1, shard="train-00001-of-00002.parquet", file="a", start=0, stop=2, reason="it is broken")
    notes = [replace(note, unit=0, shard="train-00000-of-00002.parquet"), note]
    for each in reversed(notes):
        ledger.quarantine(each)
    assert ledger.quarantined() == notes


def test_units_with_published_shards_are_finished(ledger: Ledger) -> None:
    here, published = finish(ledger, 0), finish(ledger, 1)
    ledger.write_published([published])
    assert ledger.finished() == {0} and ledger.finished(staging=True) == {0, 1}
    assert ledger.unpublished() == [here] and ledger.subset.shards() == {here.shard}
    ledger.add_published([here])
    assert ledger.published() == [published, here] and ledger.unpublished() == []


def test_turning_a_staging_folder_into_an_output_is_logged(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    ledger.end_staging()
    assert caplog.text == ""
    ledger.write_published([finish(ledger, 1)])
    ledger.end_staging()
    assert "was a staging folder; what was published from it is labelled again" in caplog.text
    assert ledger.published() == [] and ledger.finished(staging=True) == set()
