"""Damaged files are set aside, nothing is deleted, and the same run restores them bit-identically."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.data.ledger import Ledger
from pipeline.engine.output import open_run
from pipeline.publish.card import write_card
from pipeline.publish.origin import origin_of
from pipeline.publish.section import THIS_FOLDER, SubsetInfo
from pipeline.publish.subset import with_totals
from schemas.layout import Subset, shard_name
from schemas.receipts import Plan, as_lines
from tests.engine.fakes import load_fake
from tests.publish.datasets import planned
from tests.verify.datasets import DATA, RECEIPTS, SHARDS, SUBSET, made, verified

SHARD = shard_name(2, SHARDS)
FILE, RECEIPT = f"{DATA}/{SHARD}", f"{RECEIPTS}/00000002.json"


def files(dataset: Path) -> dict[str, bytes]:
    """Return all files except the lock and the files that were set aside."""
    return {
        file.relative_to(dataset).as_posix(): file.read_bytes()
        for file in dataset.rglob("*")
        if file.is_file() and "damaged" not in file.parts and file.name != "lock"
    }


def complete(folder: Path) -> None:
    """Label the missing units and write the card, as the annotate command does when it is run again."""
    run, units = planned(folder)
    open_run(run.subset, Plan(run.provenance, (), schema=run.schema), units)
    done, annotator = Ledger(run.subset).finished(), load_fake(run)
    for unit in units:
        if unit.index not in done:
            annotator.annotate(unit)
    named = {"subset": run.subset, "path": THIS_FOLDER, "provenance": run.provenance, "schema": run.schema}
    write_card(with_totals(SubsetInfo(**named, origin=origin_of(())), Ledger(run.subset).receipts()))


def flipped(dataset: Path) -> None:
    content = bytearray((dataset / FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (dataset / FILE).write_bytes(content)


def several(dataset: Path) -> None:
    flipped(dataset)
    (dataset / DATA / "notes.txt").write_text("a note")
    (dataset / RECEIPTS / "00000004.json").write_text("{")


DAMAGE: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "a bit": (flipped, {FILE, RECEIPT}),
    "a shard cut short": (lambda at: os.truncate(at / FILE, 9), {FILE, RECEIPT}),
    "a shard is gone": (lambda at: (at / FILE).unlink(), {RECEIPT}),
    "a receipt is gone": (lambda at: (at / RECEIPT).unlink(), {FILE}),
    "several": (
        several,
        {FILE, RECEIPT, f"{DATA}/notes.txt", f"{DATA}/{shard_name(4, SHARDS)}", f"{RECEIPTS}/00000004.json"},
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_are_set_aside_and_made_again_bit_identically(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = made(tmp_path)
    sound = files(dataset)
    damage, aside = DAMAGE[name]
    damage(dataset)
    damaged = files(dataset)
    code, lines = verified(dataset, capsys, repair=True)
    assert code == 1
    moved = {line.removeprefix("moved to ") for line in lines if line.startswith("moved to ")}
    assert moved == {f"_ledger/{SUBSET}/damaged/1/{file}" for file in aside}
    assert {file: (dataset / f"_ledger/{SUBSET}/damaged/1/{file}").read_bytes() for file in aside} == {
        file: damaged[file] for file in aside
    }
    assert files(dataset) == {file: content for file, content in damaged.items() if file not in aside}
    (command,) = (line for line in lines if line.startswith("  python -m pipeline.annotate "))
    assert f"--output {dataset} --subset {SUBSET} --method exact " in command and command.endswith(" ...")
    complete(tmp_path)
    assert files(dataset) == sound
    assert verified(dataset, capsys)[0] == 0


def test_a_second_repair_has_a_folder_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = made(tmp_path)
    for number in (1, 2):
        flipped(dataset)
        verified(dataset, capsys, repair=True)
        assert (dataset / f"_ledger/{SUBSET}/damaged/{number}/{FILE}").is_file()
        complete(tmp_path)
    assert verified(dataset, capsys)[0] == 0


def test_receipts_of_other_shards_in_the_same_file_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a folder that was downloaded from the Hub, one file holds the receipts of several shards."""
    dataset = made(tmp_path)
    receipts = Ledger(Subset(SUBSET, dataset)).receipts()
    shutil.rmtree(dataset / RECEIPTS)
    (dataset / RECEIPTS).mkdir()
    (dataset / RECEIPTS / "all.jsonl").write_text(as_lines(receipts), encoding="utf-8")
    assert verified(dataset, capsys)[0] == 0
    flipped(dataset)
    verified(dataset, capsys, repair=True)
    kept = [receipt for receipt in receipts if receipt.shard != SHARD]
    assert (dataset / RECEIPTS / "all.jsonl").read_text(encoding="utf-8") == as_lines(kept)
    aside = dataset / f"_ledger/{SUBSET}/damaged/1/{RECEIPTS}/all.jsonl"
    assert aside.read_text(encoding="utf-8") == as_lines(receipts)
    complete(tmp_path)
    assert Ledger(Subset(SUBSET, dataset)).receipts() == receipts
    assert verified(dataset, capsys)[0] == 0


def test_a_sound_dataset_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = made(tmp_path)
    before = files(dataset)
    code, lines = verified(dataset, capsys, repair=True)
    assert code == 0 and len(lines) == 1
    assert files(dataset) == before and not (dataset / f"_ledger/{SUBSET}/damaged").exists()


@pytest.mark.parametrize("plan", ["{", None])
def test_a_damaged_plan_cannot_be_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], plan: str | None
) -> None:
    dataset = made(tmp_path)
    flipped(dataset)
    (dataset / f"_ledger/{SUBSET}/plan.json").unlink()
    if plan is not None:
        (dataset / f"_ledger/{SUBSET}/plan.json").write_text(plan, encoding="utf-8")
    before = files(dataset)
    with pytest.raises(ValueError, match=r"plan\.json is (damaged|missing); restore it, or"):
        verified(dataset, capsys, repair=True)
    assert files(dataset) == before


@pytest.mark.parametrize("folder", [DATA, f"_ledger/{SUBSET}", RECEIPTS])
def test_files_behind_a_link_are_not_moved(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = made(tmp_path)
    flipped(dataset)
    elsewhere = tmp_path / "elsewhere"
    (dataset / folder).rename(elsewhere)
    (dataset / folder).symlink_to(elsewhere)
    before = {file: file.read_bytes() for file in elsewhere.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match="is a link that leads out of"):
        verified(dataset, capsys, repair=True)
    assert {file: file.read_bytes() for file in elsewhere.rglob("*") if file.is_file()} == before
