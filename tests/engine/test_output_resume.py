"""A run's folder: begun, resumed, and refused if another run uses it."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data.files import File
from pipeline.data.ledger import Ledger
from pipeline.engine.output import existing_plan, locked, open_run
from pipeline.engine.plan import Unit
from schemas.annotations import Provenance
from schemas.layout import Subset
from schemas.receipts import Counts, Plan, Quarantined, Receipt
from tests import builders

PROVENANCE = replace(builders.PROVENANCE, share=0.1, source=("a.parquet", "b.parquet"))
UNITS = [Unit(index, File(f"{name}.parquet", 9, "1"), 0, 2) for index, name in enumerate("ab")]


def receipt(unit: int) -> Receipt:
    return Receipt(
        unit=unit,
        shard=f"train-{unit:05d}-of-00002.parquet",
        sha256="d" * 64,
        size=5,
        counts=Counts(rows=2, tokens=10, labelled_tokens=9, text_bytes=40, nats=0.1 + 0.2),
    )


def finish(output: Path, unit: int) -> Receipt:
    """Write a shard, then its receipt."""
    done = receipt(unit)
    subset = Subset("exact", output)
    subset.data.mkdir(parents=True, exist_ok=True)
    (subset.data / done.shard).write_bytes(b"shard")
    Ledger(subset).record(done)
    return done


def begin(output: Path, provenance: Provenance = PROVENANCE, name: str = "exact") -> set[int]:
    """Begin or resume a run; return the finished units."""
    open_run(Subset(name, output), Plan(provenance, ()), UNITS)
    return Ledger(Subset(name, output)).finished()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("exists", [False, True])
def test_a_run_begins_in_an_empty_folder(tmp_path: Path, exists: bool) -> None:
    output = tmp_path / "run"
    if exists:
        output.mkdir()
    assert begin(output) == set()
    assert list(contents(output)) == ["_ledger/exact/plan.json"]


def test_a_resumed_run_knows_the_finished_units(tmp_path: Path) -> None:
    begin(tmp_path)
    assert begin(tmp_path) == set()
    done = finish(tmp_path, 1)
    assert begin(tmp_path) == {1}
    assert Ledger(Subset("exact", tmp_path)).receipts() == [done]


def test_a_shard_without_its_receipt_does_not_count(tmp_path: Path) -> None:
    begin(tmp_path)
    finish(tmp_path, 0)
    (tmp_path / "_ledger" / "exact" / "receipts" / "00000000.json").unlink()
    assert begin(tmp_path) == set()


def test_an_orphan_and_a_note_on_a_quarantined_unit_are_removed(tmp_path: Path) -> None:
    begin(tmp_path)
    finish(tmp_path, 0)
    before = contents(tmp_path)
    (tmp_path / "data" / "exact" / receipt(1).shard).write_bytes(b"shard without a receipt")
    note = Quarantined(unit=1, shard=receipt(1).shard, file="b.parquet", start=0, stop=2, reason="it is broken")
    Ledger(Subset("exact", tmp_path)).quarantine(note)
    assert Ledger(Subset("exact", tmp_path)).quarantined() == [note]
    assert begin(tmp_path) == {0}
    assert contents(tmp_path) == before


def test_a_second_run_is_refused_while_the_first_is_writing(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "out"),
        pytest.raises(ValueError, match=r"another run is writing to .*out"),
        locked(tmp_path / "out"),
    ):
        raise AssertionError("two runs have the lock")
    with locked(tmp_path / "out"):
        assert existing_plan(Subset("exact", tmp_path / "out")) is None


def test_another_run_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    begin(tmp_path)
    finish(tmp_path, 0)
    (tmp_path / "data" / "exact" / ".train-00001-of-00002.parquet.unfinished").write_bytes(b"half")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"window 8 there, 16 now; share 0\.1 there, 0\.2 now") as refusal:
        begin(tmp_path, replace(PROVENANCE, window=16, share=0.2))
    assert "overlap" not in str(refusal.value) and "vocabulary" not in str(refusal.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [("method", "causal"), ("tokenizer_sha256", None), ("source", ("b.parquet", "a.parquet")), ("keep_text", True)],
)
def test_any_field_of_the_provenance_makes_another_run(tmp_path: Path, field: str, value: object) -> None:
    begin(tmp_path)
    changed = replace(PROVENANCE, **{field: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"another run's dataset .{field} "):
        begin(tmp_path, changed)


@pytest.mark.parametrize("name", ["notes.txt", "data/train-00000-of-00001.parquet", "_ledger/receipts/000000.json"])
def test_a_folder_with_other_files_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="is not empty and holds no annotation run"):
        begin(tmp_path)
    assert contents(tmp_path) == {name: b"mine"}


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="choose another folder"):
        begin(tmp_path / "file")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_half_written_files_are_removed_when_a_run_resumes(tmp_path: Path) -> None:
    begin(tmp_path)
    finish(tmp_path, 0)
    before = contents(tmp_path)
    for orphan in (".README.md", "data/exact/.train-00001-of-00002.parquet", "_ledger/exact/receipts/.000001.json"):
        (tmp_path / f"{orphan}.unfinished").write_bytes(b"half")
    begin(tmp_path)
    assert contents(tmp_path) == before


def test_half_written_files_elsewhere_are_not_removed_through_a_link(tmp_path: Path) -> None:
    begin(tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".mine.unfinished").write_text("mine", encoding="utf-8")
    (tmp_path / "out" / "notes").symlink_to(tmp_path / "mine")
    begin(tmp_path / "out")
    assert contents(tmp_path / "mine") == {".mine.unfinished": b"mine"}


def test_a_run_killed_while_it_wrote_its_plan_begins_again(tmp_path: Path) -> None:
    (tmp_path / "_ledger" / "exact").mkdir(parents=True)
    (tmp_path / "_ledger" / "exact" / ".plan.json.unfinished").write_text("{", encoding="utf-8")
    assert begin(tmp_path) == set()


def test_several_subsets_fit_one_folder(tmp_path: Path) -> None:
    begin(tmp_path)
    finish(tmp_path, 0)
    assert begin(tmp_path, replace(PROVENANCE, window=16), "wider") == set()
    assert begin(tmp_path) == {0}


def test_a_subset_does_not_adopt_files_of_its_name_that_no_run_wrote(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / "data" / "other").mkdir(parents=True)
    (tmp_path / "data" / "other" / "mine.parquet").write_bytes(b"mine")
    with pytest.raises(ValueError, match="holds no annotation run"):
        begin(tmp_path, name="other")


def test_shards_that_were_published_before_the_run_was_killed_are_removed(tmp_path: Path) -> None:
    begin(tmp_path)
    Ledger(Subset("exact", tmp_path)).write_published([finish(tmp_path, 0)])
    assert begin(tmp_path) == set() and Subset("exact", tmp_path).shards() == set()
    assert Ledger(Subset("exact", tmp_path)).finished(staging=True) == {0}
