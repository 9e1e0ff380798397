"""The plan and the receipts of a run: beginning, going on, and refusing another run's folder."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data.annotations import read_quarantine
from pipeline.data.locations import File
from pipeline.engine.ledger import locked, open_run, planned, quarantine, read_receipts, record, total
from pipeline.engine.plan import Unit
from schemas.ledger import Counts, Quarantined, Receipt
from tests import builders

PROVENANCE = replace(builders.PROVENANCE, share=0.1, source=("a.parquet", "b.parquet"))
UNITS = [Unit(index, File(f"{name}.parquet", 9, "1"), 0, 2) for index, name in enumerate("ab")]


def receipt(unit: int) -> Receipt:
    return Receipt(
        unit=unit,
        shard=f"train-{unit:05d}-of-00002.parquet",
        sha256="d" * 64,
        counts=Counts(rows=2, tokens=10, labelled_tokens=9, text_bytes=40, nats=0.1 + 0.2),
    )


def finish(output: Path, unit: int) -> Receipt:
    """Puts a shard in place, then its receipt."""
    done = receipt(unit)
    (output / "data").mkdir(exist_ok=True)
    (output / "data" / done.shard).write_bytes(b"shard")
    record(output, done)
    return done


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("exists", [False, True])
def test_a_run_begins_in_an_empty_folder(tmp_path: Path, exists: bool) -> None:
    output = tmp_path / "run"
    if exists:
        output.mkdir()
    assert open_run(output, PROVENANCE, UNITS) == set()
    assert list(contents(output)) == ["_ledger/plan.json"]


def test_a_run_that_goes_on_knows_what_is_done(tmp_path: Path) -> None:
    open_run(tmp_path, PROVENANCE, UNITS)
    assert open_run(tmp_path, PROVENANCE, UNITS) == set()
    done = finish(tmp_path, 1)
    assert open_run(tmp_path, PROVENANCE, UNITS) == {1}
    assert list(read_receipts(tmp_path)) == [done]


def test_a_receipt_without_its_shard_does_not_count(tmp_path: Path) -> None:
    open_run(tmp_path, PROVENANCE, UNITS)
    kept, lost = finish(tmp_path, 0), finish(tmp_path, 1)
    (tmp_path / "data" / lost.shard).unlink()
    assert open_run(tmp_path, PROVENANCE, UNITS) == {0}
    assert list(read_receipts(tmp_path)) == [kept]


def test_a_shard_without_its_receipt_does_not_count(tmp_path: Path) -> None:
    open_run(tmp_path, PROVENANCE, UNITS)
    finish(tmp_path, 0)
    (tmp_path / "_ledger" / "receipts" / "00000000.json").unlink()
    assert open_run(tmp_path, PROVENANCE, UNITS) == set()


def test_an_orphan_and_a_note_on_a_unit_given_up_are_swept(tmp_path: Path) -> None:
    open_run(tmp_path, PROVENANCE, UNITS)
    finish(tmp_path, 0)
    before = contents(tmp_path)
    (tmp_path / "data" / receipt(1).shard).write_bytes(b"shard without a receipt")
    note = Quarantined(unit=1, shard=receipt(1).shard, file="b.parquet", start=0, stop=2, reason="it is broken")
    quarantine(tmp_path, note)
    assert read_quarantine(tmp_path) == [note]
    assert open_run(tmp_path, PROVENANCE, UNITS) == {0}
    assert contents(tmp_path) == before


def test_the_total_is_the_same_whatever_the_order_of_the_receipts(tmp_path: Path) -> None:
    totals = []
    for order in ((0, 1), (1, 0)):
        output = tmp_path / str(order)
        open_run(output, PROVENANCE, UNITS)
        for unit in order:
            finish(output, unit)
        totals.append(total(output))
    counts, digest = totals[0]
    assert totals[0] == totals[1] and len(digest) == 64
    assert (counts.rows, counts.tokens, counts.nats) == (4, 20, (0.1 + 0.2) * 2)


def test_a_second_run_is_kept_out_while_the_first_is_at_work(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "out"),
        pytest.raises(ValueError, match=r"another run is writing to --output .*out"),
        locked(tmp_path / "out"),
    ):
        raise AssertionError("two runs have the lock")
    with locked(tmp_path / "out"):
        assert planned(tmp_path / "out") is None


def test_another_run_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    open_run(tmp_path, PROVENANCE, UNITS)
    finish(tmp_path, 0)
    (tmp_path / "data" / ".train-00001-of-00002.parquet.unfinished").write_bytes(b"half")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"window 8 there, 16 now; share 0\.1 there, 0\.2 now") as refusal:
        open_run(tmp_path, replace(PROVENANCE, window=16, share=0.2), UNITS)
    assert "overlap" not in str(refusal.value) and "vocabulary" not in str(refusal.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [("method", "causal"), ("tokenizer_sha256", None), ("source", ("b.parquet", "a.parquet")), ("keep_text", True)],
)
def test_any_field_of_the_provenance_makes_another_run(tmp_path: Path, field: str, value: object) -> None:
    open_run(tmp_path, PROVENANCE, UNITS)
    changed = replace(PROVENANCE, **{field: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"another run's dataset .{field} "):
        open_run(tmp_path, changed, UNITS)


@pytest.mark.parametrize("name", ["notes.txt", "data/train-00000-of-00001.parquet", "_ledger/receipts/000000.json"])
def test_a_folder_with_other_files_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no annotation run"):
        open_run(tmp_path, PROVENANCE, UNITS)
    assert contents(tmp_path) == {name: b"mine"}


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="choose another folder"):
        open_run(tmp_path / "file", PROVENANCE, UNITS)
    assert (tmp_path / "file").read_text() == "mine"


def test_half_written_files_are_swept_when_a_run_goes_on(tmp_path: Path) -> None:
    open_run(tmp_path, PROVENANCE, UNITS)
    finish(tmp_path, 0)
    before = contents(tmp_path)
    for orphan in (".README.md", "data/.train-00001-of-00002.parquet", "_ledger/receipts/.000001.json"):
        (tmp_path / f"{orphan}.unfinished").write_bytes(b"half")
    open_run(tmp_path, PROVENANCE, UNITS)
    assert contents(tmp_path) == before


def test_a_run_killed_while_it_wrote_its_plan_begins_again(tmp_path: Path) -> None:
    (tmp_path / "_ledger").mkdir()
    (tmp_path / "_ledger" / ".plan.json.unfinished").write_text("{")
    assert open_run(tmp_path, PROVENANCE, UNITS) == set()
