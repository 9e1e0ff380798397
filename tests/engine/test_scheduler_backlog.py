"""Order of units, and the attempts after which a failed unit is quarantined."""

import time
from collections import Counter

import pytest

from pipeline.data.files import File
from pipeline.engine.plan import Unit
from pipeline.engine.scheduler import Attempt, Backlog

ALIVE: set[str | None] = {"node", "other"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list with the present time in seconds, which a test changes."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def units(files: int = 1, each: int = 10, rows: int = 4) -> list[Unit]:
    return [
        Unit(index, File(f"{index // each}.parquet", 1, ""), index % each * rows, (index % each + 1) * rows)
        for index in range(files * each)
    ]


def failed(worker: str, *, node: str = "node", wrong: bool = False) -> Attempt:
    return Attempt(worker, node, wrong)


def test_every_unit_comes_once_and_the_longest_first() -> None:
    short, long = units(), [Unit(100, File("long.parquet", 1, ""), 0, 99)]
    waiting = Backlog([*short, *long])
    taken = [waiting.take("a", alone=True) for _ in range(11)]
    assert taken[0] == long[0] and Counter(taken) == Counter([*short, *long])
    assert waiting.take("a", alone=True) is None


def test_the_first_units_are_of_many_files() -> None:
    waiting = Backlog(units(files=50, each=20))
    first = [unit.file.url for _ in range(8) if (unit := waiting.take("a", alone=True))]
    assert len(set(first)) >= 6


def test_a_unit_that_failed_comes_before_fresh_ones_after_its_pause(clock: list[float]) -> None:
    waiting = Backlog(units())
    unit = waiting.take("a", alone=True)
    assert unit is not None
    for pause in (10, 100):
        waiting.add(unit, failed("a"))
        waiting.put_back(unit, at_once=False)
        assert waiting.take("b", alone=True) not in (unit, None)
        clock[0] += pause - 1
        assert waiting.take("b", alone=True) not in (unit, None)
        clock[0] += 2
        assert waiting.take("b", alone=True) == unit


def test_a_unit_whose_worker_died_comes_at_once(clock: list[float]) -> None:
    waiting = Backlog(units())
    unit = waiting.take("a", alone=True)
    assert unit is not None
    waiting.add(unit, failed("a"))
    waiting.put_back(unit, at_once=True)
    assert waiting.take("b", alone=False) == unit


def test_a_failed_unit_is_kept_a_minute_for_other_workers(clock: list[float]) -> None:
    waiting = Backlog(units(each=2))
    unit = waiting.take("a", alone=False)
    assert unit is not None
    waiting.add(unit, failed("a"))
    waiting.put_back(unit, at_once=True)
    fresh = waiting.take("a", alone=False)
    assert fresh not in (unit, None) and waiting.take("a", alone=False) is None
    clock[0] += 61
    assert waiting.take("a", alone=False) == unit


@pytest.mark.parametrize(
    ("tries", "spent"),
    [
        ([failed("a"), failed("b")], False),
        ([failed("a"), failed("b"), failed("a")], True),
        ([failed("a", wrong=True)], False),
        ([failed("a", wrong=True), failed("b", wrong=True)], True),
        ([failed("a", wrong=True), failed("b")], False),
        ([failed("a", node="lost")] * 9, False),
        ([failed("a", node="lost")] * 10, True),
        ([failed("a", node="lost"), failed("b"), failed("c", node="other")], False),
    ],
)
def test_a_unit_is_quarantined_after_these_attempts(tries: list[Attempt], spent: bool) -> None:
    (unit,) = units(each=1)
    waiting = Backlog([unit])
    for each in tries:
        waiting.add(unit, each)
    assert waiting.is_exhausted(unit, ALIVE) == spent
