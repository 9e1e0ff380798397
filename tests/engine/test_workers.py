"""A run whose only worker is the driver's own process: the same shards and handling of failures, without Ray."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.data.ledger import Ledger
from pipeline.engine import scheduler
from pipeline.engine.plan import Run, Unit
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.throughput import UnitResult
from pipeline.engine.unit_progress import UnitProgress
from pipeline.engine.workers import AnnotatesUnits, Load, ThisProcessPool
from pipeline.labels.torch_labeller import device_here
from schemas.annotations import Device
from schemas.layout import Subset, shard_name
from schemas.receipts import Quarantined
from tests.engine.fakes import (
    FAILS_ONCE,
    NOT_FINITE,
    Unreachable,
    load_fake,
    load_faulty,
    planned,
    shards,
    undisturbed,
)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "PAUSE", 0.1)
    monkeypatch.setattr(scheduler, "REST", 0.1)
    monkeypatch.setattr(scheduler, "PATIENCE", 0.05)


def quarantined(run: Run, units: Sequence[Unit], load: Load = load_faulty) -> list[Quarantined]:
    """Carry out the run. Return the notes on quarantined units."""
    outcomes = Scheduler(run, units, ThisProcessPool(run, load, "cpu")).outcomes()
    return [outcome for outcome in outcomes if isinstance(outcome, Quarantined)]


@pytest.mark.parametrize("fault", [{}, {3: FAILS_ONCE}], ids=["sound", "its device fails once"])
def test_every_unit_is_labelled(tmp_path: Path, fault: dict[int, int]) -> None:
    run, units = planned(tmp_path, fault)
    assert quarantined(run, units) == []
    assert run.subset.root.with_suffix(".marks").is_dir() == bool(fault)
    assert shards(run.subset.root) == undisturbed(run, units, tmp_path / "plain")


def test_only_the_unit_that_cannot_be_labelled_is_quarantined(tmp_path: Path) -> None:
    run, units = planned(tmp_path, {4: NOT_FINITE})
    (note,) = quarantined(run, units)
    assert [note] == Ledger(run.subset).quarantined()
    assert note.unit == 2 and "not trained (2 attempts)" in note.reason
    others = undisturbed(run, [unit for unit in units if unit.index != 2], tmp_path / "plain")
    assert shards(run.subset.root) == others


def test_a_checkpoint_that_cannot_be_loaded_ends_the_run_at_once(tmp_path: Path) -> None:
    tries = []

    def load(run: Run, device: Device) -> AnnotatesUnits:
        tries.append(device)
        raise ValueError("the checkpoint is broken; save it again")

    run, units = planned(tmp_path)
    with pytest.raises(ValueError, match=r"^the checkpoint is broken; save it again$"):
        quarantined(run, units, load)
    assert tries == ["cpu"]


class UnreachableTwice(Unreachable):
    refusals = 2


def test_a_source_that_is_down_for_a_moment_costs_no_unit(tmp_path: Path) -> None:
    run, units = planned(tmp_path)
    assert quarantined(run, units, UnreachableTwice) == []
    assert len(Ledger(run.subset).receipts()) == 6


def test_an_output_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    run, units = planned(tmp_path)
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot write to .*file/out"):
        quarantined(replace(run, subset=Subset("exact", tmp_path / "file" / "out")), units)


def test_an_interrupt_ends_the_run_within_a_unit_and_the_rest_is_left_for_the_next(tmp_path: Path) -> None:
    class Interrupted(Unreachable):
        def annotate(self, unit: Unit, progress: UnitProgress) -> UnitResult:
            self.asked += 1
            if self.asked > 3:
                raise KeyboardInterrupt
            return self.annotator.annotate(unit, progress)

    run, units = planned(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        quarantined(run, units, Interrupted)
    done = {receipt.unit for receipt in Ledger(run.subset).receipts()}
    assert len(done) == 3
    assert quarantined(run, [unit for unit in units if unit.index not in done]) == []
    assert shards(run.subset.root) == undisturbed(run, units, tmp_path / "plain")


def test_shards_that_are_published_are_removed(tmp_path: Path) -> None:
    run, units = planned(tmp_path)
    scheduler_of_run = Scheduler(run, units, ThisProcessPool(run, load_fake, "cpu"))
    kept, *published = [shard_name(unit.index, len(units)) for unit in units]
    outcomes = scheduler_of_run.outcomes()
    assert sum(next(outcomes) is not None for _ in range(1 + len(units))) == len(
        units
    )  # the first call is the worker's start
    scheduler_of_run.delete_published(published)
    assert run.subset.shards() == {kept}
    outcomes.close()


def test_a_gpu_is_used_if_there_is_one_and_otherwise_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert device_here(None) == ("cuda" if there else "cpu") and device_here(0) == "cpu"
        if there:
            assert device_here(1) == "cuda"
        else:
            with pytest.raises(ValueError, match=r"`gpus_per_worker` 1, but torch sees no GPU here; leave it out"):
                device_here(1)
