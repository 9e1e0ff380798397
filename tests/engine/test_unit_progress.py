"""Progress of uncommitted units: a labelled part is counted once, a lost part is not counted, and stopped units end."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.windows import window_batches
from pipeline.engine.plan import Unit
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.unit_progress import Amount, StoppedError, UnitProgress
from pipeline.engine.workers import CallResult, ThisProcessPool, WorkerHandle
from tests.engine.fakes import FakeLabeller, load_fake, planned


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_tokens_that_windows_share_or_nobody_requests_do_not_count_twice(share: float) -> None:
    random = np.random.default_rng(0)
    documents = [random.integers(97, size=length) for length in (5, 0, 70, 33)]
    wanted = [random.random(len(ids)) < share for ids in documents]
    batches = window_batches(documents, wanted, window=16, overlap=8, budget=32)
    progress = UnitProgress()
    progress.labelled = Amount(10, 1000)
    seen = [progress.labelled]
    with progress.chunk(Amount(4, 108), batches) as count_batch:
        for batch in batches:
            FakeLabeller().label([batch], count_batch)
            seen.append(progress.labelled)
    assert seen == sorted(seen)
    assert seen[-1] == (pytest.approx((14, 1108)) if batches else (10, 1000))
    assert progress.labelled == (14, 1108)
    assert bool(batches) == (share > 0)


def test_a_stopped_unit_ends_after_its_batch() -> None:
    documents = [np.arange(16)] * 3
    batches = window_batches(documents, [np.ones(16, bool)] * 3, window=16, overlap=8, budget=16)
    progress = UnitProgress()
    with pytest.raises(StoppedError), progress.chunk(Amount(3, 48), batches) as count_batch:
        count_batch(batches[0])
        progress.stopped.set()
        FakeLabeller().label(batches[1:], count_batch)
    assert progress.labelled == Amount(2, 32)


class Watched(ThisProcessPool):
    """Pool of workers whose labelled parts are set by a test."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]  # passed on unchanged
        self.parts: dict[WorkerHandle, dict[Unit, Amount]] = {}

    def progress(self, worker: WorkerHandle) -> dict[Unit, Amount]:
        return self.parts.get(worker, {})

    def next_result(self, patience: float) -> CallResult | None:
        return None


def scheduled(folder: Path) -> tuple[Scheduler, Watched, Sequence[Unit]]:
    run, units = planned(folder)
    pool = Watched(run, load_fake, "cpu")
    scheduler = Scheduler(run, units[:4], pool)
    next(scheduler.outcomes())
    return scheduler, pool, units


def test_a_unit_of_two_workers_a_committed_one_and_a_lost_one_count_once_or_not_at_all(tmp_path: Path) -> None:
    scheduler, pool, units = scheduled(tmp_path)
    first, second = (
        WorkerHandle(None, units={units[0], units[1]}),
        WorkerHandle(None, units={units[1], units[2], units[5]}),
    )
    pool.ready = {first, second}
    assert scheduler.progress == Amount(0, 0)
    pool.parts[first] = {
        units[0]: Amount(1, 10),
        units[1]: Amount(0.5, 5),
        units[3]: Amount(9, 99),
    }  # the last unit is no longer assigned to this worker
    pool.parts[second] = {units[1]: Amount(1.5, 15), units[5]: Amount(7, 70)}  # the last unit is already committed
    assert scheduler.progress == Amount(2.5, 25)
    second.units.remove(units[1])  # the unit failed and will be retried
    assert scheduler.progress == Amount(1.5, 15)
    pool.ready.remove(first)  # the worker died
    assert scheduler.progress == Amount(0, 0)
