"""The scheduler: it assigns units to workers, retries failed units, and quarantines units that cannot be labelled.

A unit is a range of rows. Units that have not been tried yet are assigned longest first. Units of equal length are
shuffled, so that the units of a bad file do not come all at once. A failed unit is retried by another worker if
possible, because the first worker may be at fault. The pool of workers decides where workers run, so the scheduler does
not depend on Ray.
"""

import heapq
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass

from pipeline.data.ledger import Ledger
from pipeline.data.naming import recorded
from pipeline.engine.annotator import OutputError, SourceError
from pipeline.engine.plan import Run, Unit
from pipeline.engine.throughput import Outcome, UnitResult
from pipeline.engine.unit_progress import Amount
from pipeline.engine.workers import CallResult, WorkerHandle, WorkerPool, describe
from schemas.layout import shard_name
from schemas.receipts import Quarantined

HOPELESS = 8  # failures in a row after which a worker is replaced, or a run without any success ends
REST = 10.0  # seconds that a worker pauses for each unit in a row that it could not read: the source may be down
PATIENCE = 1.0  # seconds without a result after which the caller gets None
SLOW = 3.0  # a unit is slow after this many times the mean duration of a unit

LOG = logging.getLogger(__name__)


class Scheduler:
    """Scheduler of a run's remaining units. `done` is the number of units that are already finished."""

    def __init__(self, run: Run, units: Sequence[Unit], pool: WorkerPool, *, done: int = 0) -> None:
        self.run, self.pool, self.done = run, pool, done
        self.backlog, self.unfinished = Backlog(units), set(units)
        self.started: dict[Unit, float] = {}
        """Time at which each unit in progress was first assigned."""
        self.finished, self.quarantined = 0, 0
        self.seconds = 0.0
        """Sum of the durations of all finished units, in seconds."""
        self.next_look = 0.0

    @property
    def ready_workers(self) -> int:
        """Number of workers that have loaded the model."""
        return len(self.pool.ready)

    @property
    def progress(self) -> Amount:
        """Number of rows and tokens labelled so far in units that are not committed yet. Any thread may read it.

        If two workers label the same unit, only the greater progress counts. If a worker's call fails, the progress of
        the call is dropped.
        """
        farthest: dict[Unit, Amount] = {}
        for worker in tuple(self.pool.ready):
            units = tuple(worker.units)
            for unit, labelled in self.pool.progress(worker).items():
                if unit in units and unit in self.unfinished:
                    farthest[unit] = max(labelled, farthest.get(unit, Amount()))
        return Amount(*(sum(part) for part in zip(*farthest.values(), strict=True))) if farthest else Amount()

    def outcomes(self) -> Generator[Outcome, None, None]:
        """Yield the outcome of each unit as soon as it is known, and None after each second without an outcome.

        Raises:
            ValueError: if workers cannot load the model, the output cannot be written, or the first units all fail.
        """
        try:
            while self.unfinished:
                self._look()
                result = self.pool.next_result(PATIENCE)
                yield self._settle(result) if result else None
        finally:
            self.pool.close()
            Ledger(self.run.subset).remove_unfinished()

    def delete_published(self, shards: Sequence[str]) -> None:
        """Delete published shards from the disks of all nodes."""
        if shards:
            self.pool.delete_published(shards)

    def _look(self) -> None:
        """Handle changes that the results of calls do not report.

        Workers are started if there is room for more. Units are assigned to idle workers, because a worker's pause
        may be over. When every unit has been assigned once, slow units are assigned to a second worker.
        """
        self.pool.scale_up(len(self.unfinished))
        if time.monotonic() >= self.next_look:
            self.next_look = time.monotonic() + PATIENCE
            self._assign_to_idle()
            if not self.backlog.fresh:
                self._start_slow_again()

    def _settle(self, result: CallResult) -> Outcome:
        """Handle a finished call, and assign the next units to its worker if the worker is alive.

        Return the outcome of the call's unit, or None if the unit has no outcome yet.
        """
        worker, unit, value, error = result
        outcome: Outcome = None
        if error is not None:
            outcome = self._failed(worker, unit, error)
        elif unit is None:
            self.pool.loaded(worker, value)
        elif unit in self.unfinished:  # else another worker has finished the unit already
            outcome = self._finished(worker, unit, value)
        self._assign_waiting(worker)
        return outcome

    def _finished(self, worker: WorkerHandle, unit: Unit, result: UnitResult) -> Outcome:
        self.unfinished.remove(unit)
        self.seconds += time.monotonic() - self.started.pop(unit)
        self.finished += 1
        worker.failures = 0
        self.backlog.attempts.pop(unit, None)
        return result

    def _assign_waiting(self, worker: WorkerHandle) -> None:
        """Assign a worker a unit to label and, if the pool allows two units at a time, a second unit to read ahead.

        There is no second unit if the first unit has failed before, or if few units are left. A worker that is loading
        the model or pausing gets no unit.
        """
        while worker in self.pool.ready and time.monotonic() >= worker.rests_until and (unit := self._next(worker)):
            self._assign(worker, unit)

    def _next(self, worker: WorkerHandle) -> Unit | None:
        if not worker.units:
            return self.backlog.take(worker, alone=self.ready_workers == 1)
        suspect = any(unit in self.backlog.attempts for unit in worker.units)
        plenty, room = len(self.backlog.fresh) > len(self.pool.workers), len(worker.units) < self.pool.units_at_a_time
        return self.backlog.fresh.popleft() if plenty and not suspect and room else None

    def _assign(self, worker: WorkerHandle, unit: Unit) -> None:
        self.started.setdefault(unit, time.monotonic())
        self.pool.assign(worker, unit)

    def _idle(self) -> list[WorkerHandle]:
        return [worker for worker in self.pool.ready if not worker.units]

    def _assign_to_idle(self) -> None:
        for worker in self._idle():
            self._assign_waiting(worker)

    def _start_slow_again(self) -> None:
        """Assign each slow unit to a second worker that is idle. The shard is the same, whichever worker is faster."""
        if not self.finished:
            return
        limit = time.monotonic() - SLOW * self.seconds / self.finished
        workers_of = Counter(unit for worker in self.pool.workers for unit in worker.units)
        slow = [unit for unit, since in self.started.items() if since < limit and workers_of[unit] == 1]
        for worker, unit in zip(self._idle(), slow, strict=False):
            if unit not in self.backlog.attempts:
                LOG.info("unit %d is slow; a second worker starts it too", unit.index)
                self._assign(worker, unit)

    def _failed(self, worker: WorkerHandle, unit: Unit | None, error: BaseException) -> Outcome:
        if isinstance(error, OutputError):
            raise ValueError(describe(error))
        if unit is None:
            self.pool.failed_to_start(worker, error)
            return None
        worker.failures += 1
        sound = isinstance(error, ValueError | SourceError)  # else the worker or its device failed
        if not sound or worker.failures >= HOPELESS:
            self.pool.dismiss(worker)
        elif isinstance(error, SourceError):
            worker.rests_until = time.monotonic() + REST * worker.failures
        if unit not in self.unfinished or any(unit in other.units for other in self.pool.workers):
            return None  # another worker has finished the unit or is still labelling it
        self.started.pop(unit, None)
        attempts = self.backlog.add(unit, Attempt(worker, worker.node, wrong=isinstance(error, ValueError)))
        if self.backlog.is_exhausted(unit, self.pool.nodes()):
            return self._quarantine(unit, error)
        LOG.warning("unit %d failed (attempt %d): %s", unit.index, attempts, describe(error))
        self.backlog.put_back(unit, at_once=not sound)
        self._assign_to_idle()
        return None

    def _quarantine(self, unit: Unit, error: BaseException) -> Quarantined:
        note = Quarantined(
            unit=unit.index,
            shard=shard_name(unit.index, self.run.units),
            file=recorded([unit.file.url])[0],
            start=unit.start,
            stop=unit.stop,
            reason=f"{describe(error)} ({len(self.backlog.attempts.pop(unit))} attempts)",
        )
        self.unfinished.remove(unit)
        self.quarantined += 1
        # Bad units fail fast, and the units in progress may be sound. So end the run only if as many units have failed.
        if not self.done + self.finished and self.quarantined >= max(min(HOPELESS, self.run.units), len(self.started)):
            raise ValueError(f"no unit succeeded; {note}")
        Ledger(self.run.subset).quarantine(note)
        LOG.error("%s", note)
        return note


ATTEMPTS = 3
NODES_LOST = 10  # failed attempts after which a unit is quarantined even if each time the whole node was lost
PAUSE = 10.0  # seconds until the second attempt if the worker was sound; ten times as long until the third
GRACE = 60.0  # seconds after its pause for which a failed unit is reserved for workers that have not failed with it


@dataclass(frozen=True)
class Attempt:
    """A failed attempt at a unit."""

    worker: Hashable
    node: str | None
    wrong: bool
    """True if the attempt failed because a row or a label is invalid. Other failures may be temporary."""


class Backlog:
    """Units that wait for a worker, and the failed attempts of every unit. Times are those of `time.monotonic`."""

    def __init__(self, units: Sequence[Unit]) -> None:
        spread = random.Random(0).sample(units, len(units))
        self.fresh = deque(sorted(spread, key=lambda unit: unit.start - unit.stop))
        self.failed: list[tuple[float, int, Unit]] = []
        """Heap of the failed units. An entry has the time from which the unit may be retried, the unit's index, and the
        unit."""
        self.attempts: dict[Unit, list[Attempt]] = {}

    def add(self, unit: Unit, failed: Attempt) -> int:
        """Add a failed attempt to a unit, and return the unit's number of failed attempts."""
        self.attempts.setdefault(unit, []).append(failed)
        return len(self.attempts[unit])

    def is_exhausted(self, unit: Unit, alive: set[str | None]) -> bool:
        """True if a unit should not be retried, because one of three limits has been reached.

        The first limit is two failures that found an invalid row or label. The second limit is ATTEMPTS failures on
        nodes that are still alive. A failure on a lost node does not count here, because it may not be the unit's
        fault. The third limit is NODES_LOST failures of any kind.
        """
        attempts = self.attempts[unit]
        counted, wrong = (sum(failed.node in alive for failed in attempts), sum(failed.wrong for failed in attempts))
        return counted >= ATTEMPTS or len(attempts) >= NODES_LOST or wrong >= ATTEMPTS - 1

    def put_back(self, unit: Unit, *, at_once: bool) -> None:
        """Queue a failed unit for a retry: at once, or after a pause that is longer after each failed attempt."""
        pause = 0.0 if at_once else PAUSE ** len(self.attempts[unit])
        heapq.heappush(self.failed, (time.monotonic() + pause, unit.index, unit))

    def take(self, worker: Hashable, *, alone: bool) -> Unit | None:
        """Return the next unit for an idle worker, or None if no unit can start now.

        A failed unit cannot start before its pause ends. For GRACE seconds after the pause, the unit is reserved for
        workers that have not failed with it. If `alone` is True, this is the only worker, and no unit is reserved.
        """
        now, kept, taken = time.monotonic(), [], None
        while taken is None and self.failed and self.failed[0][0] <= now:
            entry = heapq.heappop(self.failed)
            failed_here = worker in [failed.worker for failed in self.attempts[entry[2]]]
            if alone or entry[0] + GRACE < now or not failed_here:
                taken = entry[2]
            else:
                kept.append(entry)
        for entry in kept:
            heapq.heappush(self.failed, entry)
        return taken or (self.fresh.popleft() if self.fresh else None)
