"""Parts of units that are not committed: each counts once, what is lost counts no more, and a stopped one ends."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.windows import window_batches
from pipeline.engine.annotator import Part, StoppedError, Underway
from pipeline.engine.plan import Unit
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.workers import CallResult, ThisProcessPool, WorkerHandle
from tests.engine.fakes import FakeLabeller, load_fake, planned


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_windows_that_overlap_and_tokens_that_nobody_asks_for_do_not_count_twice(share: float) -> None:
    random = np.random.default_rng(0)
    documents = [random.integers(97, size=length) for length in (5, 0, 70, 33)]
    wanted = [random.random(len(ids)) < share for ids in documents]
    batches = window_batches(documents, wanted, window=16, overlap=8, budget=32)
    underway = Underway()
    underway.labelled = Part(10, 1000)
    told, seen = underway.chunk(4, 108, batches), [underway.labelled]
    for batch in batches:
        FakeLabeller().label([batch], told)
        seen.append(underway.labelled)
    assert seen == sorted(seen)
    assert underway.labelled == (pytest.approx((14, 1108)) if batches else (10, 1000))
    assert bool(batches) == (share > 0)


def test_what_is_stopped_ends_after_its_batch() -> None:
    documents = [np.arange(16)] * 3
    batches = window_batches(documents, [np.ones(16, bool)] * 3, window=16, overlap=8, budget=16)
    underway = Underway()
    told = underway.chunk(3, 48, batches)
    told(batches[0])
    underway.stopped = True
    with pytest.raises(StoppedError):
        FakeLabeller().label(batches[1:], told)
    assert underway.labelled == Part(2, 32)


class Watched(ThisProcessPool):
    """Workers whose parts a test sets."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]  # as they are
        self.parts: dict[WorkerHandle, dict[Unit, Part]] = {}

    def underway(self, hand: WorkerHandle) -> dict[Unit, Part]:
        return self.parts.get(hand, {})

    def ended(self, patience: float) -> CallResult | None:
        return None


def driven(folder: Path) -> tuple[Scheduler, Watched, Sequence[Unit]]:
    run, units = planned(folder)
    crew = Watched(run, load_fake, "cpu")
    driver = Scheduler(run, crew)
    next(driver.outcomes(units[:4]))
    return driver, crew, units


def test_a_unit_of_two_workers_a_committed_one_and_a_lost_one_count_once_or_not_at_all(tmp_path: Path) -> None:
    driver, crew, units = driven(tmp_path)
    first, second = (
        WorkerHandle(None, units={units[0], units[1]}),
        WorkerHandle(None, units={units[1], units[2], units[5]}),
    )
    crew.at_work = {first, second}
    assert driver.underway == Part(0, 0)
    crew.parts[first] = {units[0]: Part(1, 10), units[1]: Part(0.5, 5), units[3]: Part(9, 99)}  # it lost the last one
    crew.parts[second] = {units[1]: Part(1.5, 15), units[5]: Part(7, 70)}  # the last is committed already
    assert driver.underway == Part(2.5, 25)
    second.units.remove(units[1])  # it failed, and will be tried again
    assert driver.underway == Part(1.5, 15)
    crew.at_work.remove(first)  # it died
    assert driver.underway == Part(0, 0)
