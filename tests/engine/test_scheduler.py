"""The driver with a real Ray: workers that die, fail or find no room, and units that cannot be labelled."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from pipeline.data.ledger import Ledger
from pipeline.engine import ray_workers, scheduler
from pipeline.engine.annotator import Annotator
from pipeline.engine.cluster import WorkerResources
from pipeline.engine.plan import Run, Unit
from pipeline.engine.ray_workers import RayWorkerPool
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.throughput import UnitResult
from pipeline.engine.unit_progress import UnitProgress
from pipeline.engine.workers import Load
from pipeline.models.checkpoint import UnfitModelError
from schemas.annotations import Device
from schemas.layout import Subset, shard_name
from schemas.receipts import Quarantined, Receipt
from tests.builders import write_documents
from tests.engine.fakes import (
    FAILS_ONCE,
    KILLS_ALWAYS,
    KILLS_ONCE,
    NOT_FINITE,
    Unreachable,
    load_fake,
    load_faulty,
    planned,
    planned_run,
    shards,
    token_rows,
    undisturbed,
)

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "PAUSE", 1.0)
    monkeypatch.setattr(scheduler, "REST", 0.1)
    monkeypatch.setattr(ray_workers, "LOOK", 0.2)


def carry_out(
    run: Run, units: Sequence[Unit], workers: int = 1, load: Load = load_faulty
) -> list[Receipt | Quarantined]:
    pool = RayWorkerPool(run, load, workers=workers, share=WorkerResources(cpus=0.5))
    outcomes = Scheduler(run, units, pool).outcomes()
    return [outcome if isinstance(outcome, Quarantined) else outcome[0] for outcome in outcomes if outcome]


def test_a_private_ray_listens_only_on_loopback() -> None:
    ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = {
        connection.laddr.ip
        for process in ours
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening and all(ip.removeprefix("::ffff:").startswith("127.") for ip in listening), listening


def test_room_is_counted_in_whole_workers() -> None:
    cores = int(ray.cluster_resources()["CPU"])
    shares = (
        WorkerResources(cpus=0.1),
        WorkerResources(),
        WorkerResources(cpus=cores * 0.75),
        WorkerResources(cpus=cores + 1),
    )
    assert [share.room() for share in shares] == [10 * cores, cores, 1, 0]
    with pytest.raises(ValueError, match=rf"has {cores} CPU.*, too little for a worker, which needs {cores + 1} CPU"):
        shares[-1].require_room()


def test_a_worker_with_a_gpu_gets_the_cores_that_its_node_has_per_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def cores(*nodes: tuple[float, float], gpus: float | None = None) -> float | None:
        resources = [{"CPU": cpu, "GPU": gpu} if gpu else {"CPU": cpu} for cpu, gpu in nodes]
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": has} for has in resources])
        return WorkerResources(gpus=gpus).resolved().cpus

    assert cores((192, 8), (64, 0)) == 4  # not more than a worker can use
    assert cores((16, 8), (192, 8)) == 2  # with more, half of the first node's GPUs would have no worker
    assert cores((4, 8)) == cores((8, 0)) == cores((8, 0), gpus=1) == 1
    assert cores((16, 4), gpus=0.5) == 2
    assert cores((16, 4), gpus=0) == 1
    assert WorkerResources(cpus=3, gpus=1).resolved() == WorkerResources(cpus=3, gpus=1)


def test_workers_without_room_only_wait(tmp_path: Path) -> None:
    run, units = planned(tmp_path)
    receipts = carry_out(run, units, workers=9)
    assert sorted(receipts, key=lambda receipt: receipt.unit) == Ledger(run.subset).receipts()
    assert shards(run.subset.root) == undisturbed(run, units, tmp_path / "plain")


@pytest.mark.parametrize("fault", [KILLS_ONCE, FAILS_ONCE])
def test_units_of_a_worker_that_dies_are_assigned_again(tmp_path: Path, fault: int) -> None:
    run, units = planned(tmp_path, {3: fault})
    receipts = carry_out(run, units)
    assert run.subset.root.with_suffix(".marks").is_dir(), "the fault did not happen"
    assert sorted(receipt.unit for receipt in receipts) == list(range(6))
    assert shards(run.subset.root) == undisturbed(run, units, tmp_path / "plain")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (KILLS_ALWAYS, "(3 attempts)"),
        pytest.param(NOT_FINITE, "not trained (2 attempts)", marks=pytest.mark.long),
        pytest.param(999, "999 do not fit", marks=pytest.mark.long),
    ],
)
def test_only_the_unit_that_cannot_be_labelled_is_quarantined(tmp_path: Path, fault: int, reason: str) -> None:
    run, units = planned(tmp_path, {4: fault})
    outcomes = carry_out(run, units, workers=2)
    (note,) = [outcome for outcome in outcomes if isinstance(outcome, Quarantined)]
    assert [note] == Ledger(run.subset).quarantined()
    assert (note.unit, note.start, note.stop) == (2, 4, 6) and note.file == units[0].file.url and reason in note.reason
    others = undisturbed(run, [unit for unit in units if unit.index != 2], tmp_path / "plain")
    assert shards(run.subset.root) == others


def test_a_run_without_a_successful_unit_ends_with_the_reason(tmp_path: Path) -> None:
    run, units = planned(tmp_path, dict.fromkeys(range(12), NOT_FINITE))
    with pytest.raises(ValueError, match=r"no unit succeeded; unit \d, rows .*in.parquet: the checkpoint gives"):
        carry_out(run, units)
    assert Ledger(run.subset).receipts() == []
    assert not any((run.subset.data).iterdir())


def test_a_file_that_changes_after_the_plan_is_quarantined(tmp_path: Path) -> None:
    files = [
        write_documents(tmp_path / name, ["text"] * 4, input_ids=token_rows(4)) for name in ("a.parquet", "b.parquet")
    ]
    run, units = planned_run(tmp_path / "out", files)
    expected = undisturbed(run, units[:2], tmp_path / "plain")
    files[1].write_bytes(files[1].read_bytes()[:-100])
    outcomes = carry_out(run, units)
    reasons = [outcome.reason for outcome in outcomes if isinstance(outcome, Quarantined)]
    assert len(reasons) == 2 and all("changed since the run was planned" in reason for reason in reasons)
    assert shards(run.subset.root) == expected


def test_a_damaged_part_of_a_file_is_quarantined_and_the_rest_labelled(tmp_path: Path) -> None:
    file, documents = tmp_path / "in.parquet", token_rows(12)
    pq.write_table(pa.table({"input_ids": documents}), file, row_group_size=4)
    expected = undisturbed(*planned_run(tmp_path / "plain", [file], rows_per_unit=4), tmp_path / "plain")
    start = pq.ParquetFile(file).metadata.row_group(1).column(0).dictionary_page_offset
    with file.open("r+b") as stream:
        stream.seek(start)
        stream.write(b"\xff" * 60)
    run, units = planned_run(tmp_path / "out", [file], rows_per_unit=4)
    (note,) = [outcome for outcome in carry_out(run, units) if isinstance(outcome, Quarantined)]
    assert note.unit == 1 and "in.parquet is not a readable Parquet file" in note.reason
    assert shards(run.subset.root) == {name: content for name, content in expected.items() if name != note.shard}


def load_short_of_memory(run: Run, device: Device) -> Annotator:
    """Load an annotator that is out of memory at the first attempt of every batch."""
    # Workers import this module to load annotators; the others load within a second, because they import no torch.
    from pipeline.engine.annotator import load_annotator
    from pipeline.labels.torch_labeller import TorchLabeller
    from tests.labels.test_torch_labeller import LimitedDevice

    annotator = load_annotator(run, device)
    (labeller,) = annotator.labellers
    assert isinstance(labeller, TorchLabeller)
    return replace(annotator, labellers=(replace(labeller, of_windows=LimitedDevice(labeller, once=True)),))


@pytest.mark.long
def test_a_device_that_is_out_of_memory_for_a_moment_changes_no_bit(tmp_path: Path) -> None:
    from pipeline.engine.annotator import load_annotator
    from tests.tiny_models import tiny_estimator

    tiny_estimator().save_pretrained(tmp_path / "model")
    run, units = planned(tmp_path)
    run = replace(run, checkpoints=(tmp_path / "model",))
    carry_out(run, units, load=load_short_of_memory)
    plain = load_annotator(replace(run, subset=Subset("exact", tmp_path / "plain")), "cpu")
    for unit in units:
        plain.annotate(unit)
    assert len(shards(run.subset.root)) == 6 and shards(run.subset.root) == shards(tmp_path / "plain")


def load_and_die(run: Run, device: str) -> Annotator:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def load_on_a_broken_device(run: Run, device: str) -> Annotator:
    """Load an annotator, or fail in the first worker, as if its device were broken."""
    try:
        run.subset.root.with_suffix(".broken").touch(exist_ok=False)
    except FileExistsError:
        return load_fake(run)
    raise RuntimeError("no device")


def load_what_is_not_there(run: Run, device: str) -> Annotator:
    raise ValueError("the checkpoint is broken")


def load_an_unfit_model(run: Run, device: str) -> Annotator:
    raise UnfitModelError("it reads the future")


def test_a_model_that_no_worker_can_use_ends_the_run_at_once_with_one_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, units = planned(tmp_path)
    with pytest.raises(ValueError, match=r"^it reads the future$"):
        carry_out(run, units, load=load_an_unfit_model)
    assert "future" not in caplog.text


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (load_and_die, "3 workers failed to start"),
        pytest.param(load_what_is_not_there, "is broken", marks=pytest.mark.long),
    ],
)
def test_workers_that_cannot_load_end_the_run(tmp_path: Path, load: Load, message: str) -> None:
    run, units = planned(tmp_path)
    with pytest.raises(ValueError, match=message):
        carry_out(run, units, load=load)


def test_a_worker_whose_device_is_broken_is_replaced(tmp_path: Path) -> None:
    run, units = planned(tmp_path)
    assert len(carry_out(run, units, load=load_on_a_broken_device)) == 6
    assert shards(run.subset.root) == undisturbed(run, units, tmp_path / "plain")


class Unsound:
    """Annotator of a run in which one worker fails with each of its units, like a device that computes nonsense.

    The annotators of the other workers do not fail.
    """

    def __init__(self, run: Run, device: str) -> None:
        self.annotator = load_fake(run)
        self.error: ValueError | None = ValueError("the checkpoint gives entropy that is not finite")
        try:
            run.subset.root.with_suffix(".unsound").touch(exist_ok=False)
        except FileExistsError:
            self.error = None

    def annotate(self, unit: Unit, progress: UnitProgress) -> UnitResult:
        if self.error is not None:
            raise self.error
        time.sleep(0.1)
        return self.annotator.annotate(unit, progress)


def test_units_that_one_worker_fails_with_are_labelled_by_another(tmp_path: Path) -> None:
    run, units = planned(tmp_path, rows=40)
    outcomes = carry_out(run, units, workers=2, load=Unsound)
    assert [outcome for outcome in outcomes if isinstance(outcome, Quarantined)] == []
    assert shards(run.subset.root) == undisturbed(run, units, tmp_path / "plain")


def test_a_source_that_is_down_for_a_moment_costs_no_unit(tmp_path: Path) -> None:
    run, units = planned(tmp_path)
    receipts = carry_out(run, units, load=Unreachable)
    assert sorted(receipt.unit for receipt in receipts if isinstance(receipt, Receipt)) == list(range(6))


def test_a_bad_file_does_not_end_a_run_whose_other_files_are_good(tmp_path: Path) -> None:
    bad, good = [[*ids, NOT_FINITE] for ids in token_rows(20)], token_rows(60)
    files = [
        write_documents(tmp_path / name, ["text"] * len(documents), input_ids=documents)
        for name, documents in (("a.parquet", bad), ("b.parquet", good))
    ]
    run, units = planned_run(tmp_path / "out", files)
    outcomes = carry_out(run, units)
    assert sorted(outcome.unit for outcome in outcomes if isinstance(outcome, Quarantined)) == list(range(10))
    assert len(Ledger(run.subset).receipts()) == 30


class Slow:
    """Annotator that never finishes a unit in the worker that begins first. It works normally in every other worker."""

    def __init__(self, run: Run, device: str) -> None:
        self.annotator, self.mark = load_fake(run), run.subset.root.with_suffix(".slow")

    def annotate(self, unit: Unit, progress: UnitProgress) -> UnitResult:
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError:
            return self.annotator.annotate(unit, progress)
        signal.pause()
        raise AssertionError


def test_a_unit_that_never_ends_is_started_by_an_idle_worker_too(tmp_path: Path) -> None:
    run, units = planned(tmp_path)
    receipts = carry_out(run, units, workers=2, load=Slow)
    assert sorted(receipt.unit for receipt in receipts if isinstance(receipt, Receipt)) == list(range(6))
    assert shards(run.subset.root) == undisturbed(run, units, tmp_path / "plain")


def test_an_output_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    run, units = planned(tmp_path)
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot write to .*file/out"):
        carry_out(replace(run, subset=Subset("exact", tmp_path / "file" / "out")), units)


def test_shards_that_are_published_are_removed_by_the_workers(tmp_path: Path) -> None:
    run, units = planned(tmp_path)
    scheduler = Scheduler(run, units, RayWorkerPool(run, load_fake, workers=1, share=WorkerResources(cpus=1)))
    kept, *published = [shard_name(unit.index, len(units)) for unit in units]
    outcomes = scheduler.outcomes()
    done = 0
    while done < len(units):
        done += next(outcomes) is not None
    scheduler.delete_published(published)
    assert run.subset.shards() == {kept}
    outcomes.close()
