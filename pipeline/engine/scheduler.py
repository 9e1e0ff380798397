"""The scheduler: gives units to workers, retries those that failed, and quarantines those that cannot be labelled.

Fresh units come longest first, those of equal length spread over the files, so that one bad file does not come all at
once. A failed unit is retried after a pause, by another worker if there is one that takes it in time: the fault may be
the worker's. Where workers run is up to their pool; nothing of Ray is known here.
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
from pipeline.engine.annotator import Amount, OutputError, SourceError
from pipeline.engine.plan import Run, Unit
from pipeline.engine.throughput import Outcome, UnitResult
from pipeline.engine.workers import CallResult, WorkerHandle, WorkerPool, describe
from schemas.layout import shard_name
from schemas.receipts import Quarantined

HOPELESS = 8  # failures in a row and no success: a worker is replaced, a run ended
REST = 10.0  # seconds that a worker stops for each unit in a row that it cannot read: the source may be down
PATIENCE = 1.0  # seconds until the caller hears that nothing has happened
SLOW = 3.0  # times the mean that a unit takes at the end of a run before an idle worker starts it too

LOG = logging.getLogger(__name__)


class Scheduler:
    """One run over its units that are left, of which `done` others are finished already."""

    def __init__(self, run: Run, units: Sequence[Unit], pool: WorkerPool, *, done: int = 0) -> None:
        self.run, self.pool, self.done = run, pool, done
        self.backlog, self.unfinished = Backlog(units), set(units)
        self.started: dict[Unit, float] = {}
        """Times at which units at work were first assigned."""
        self.finished, self.quarantined = 0, 0
        self.seconds = 0.0
        """Of all finished units together."""
        self.next_look = 0.0

    @property
    def ready_workers(self) -> int:
        """Number of workers that have loaded."""
        return len(self.pool.ready)

    @property
    def progress(self) -> Amount:
        """The labelled part of units that are not committed; another thread may ask.

        Of a unit that two workers label, the farther one counts. What a worker had of a unit is lost with its call.
        """
        farthest: dict[Unit, Amount] = {}
        for worker in tuple(self.pool.ready):
            units = tuple(worker.units)
            for unit, labelled in self.pool.progress(worker).items():
                if unit in units and unit in self.unfinished:
                    farthest[unit] = max(labelled, farthest.get(unit, Amount()))
        return Amount(*(sum(part) for part in zip(*farthest.values(), strict=True))) if farthest else Amount()

    def outcomes(self) -> Generator[Outcome, None, None]:
        """The outcome of every unit, as it happens; None after a second without one.

        Raises:
            ValueError: if workers cannot load, the output cannot be written, or unit after unit fails from the start.
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
        """Delete published shards on every node."""
        if shards:
            self.pool.delete_published(shards)

    def _look(self) -> None:
        """Handles what no event announces: room for workers, pauses that are over, slow units at the end."""
        self.pool.scale_up(len(self.unfinished))
        if time.monotonic() >= self.next_look:
            self.next_look = time.monotonic() + PATIENCE
            self._assign_to_idle()
            if not self.backlog.fresh:
                self._start_slow_again()

    def _settle(self, result: CallResult) -> Outcome:
        """Handles a finished call, and assigns its worker, if it lives, the next units."""
        worker, unit, value, error = result
        outcome: Outcome = None
        if error is not None:
            outcome = self._failed(worker, unit, error)
        elif unit is None:
            self.pool.loaded(worker, value)
        elif unit in self.unfinished:  # else another worker was faster with it
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
        """Assigns a worker a unit to label and one to read ahead; a suspect is assigned by itself."""
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
        """Assigns slow units to idle workers too. Their shards will be the same, whoever is first."""
        if not self.finished:
            return
        limit = time.monotonic() - SLOW * self.seconds / self.finished
        workers_of = Counter(unit for worker in self.pool.workers for unit in worker.units)
        slow = [unit for unit, since in self.started.items() if since < limit and workers_of[unit] == 1]
        for worker, unit in zip(self._idle(), slow, strict=False):
            if unit not in self.backlog.attempts:
                LOG.info("unit %d takes long; a second worker begins it", unit.index)
                self._assign(worker, unit)

    def _failed(self, worker: WorkerHandle, unit: Unit | None, error: BaseException) -> Outcome:
        if isinstance(error, OutputError):
            raise ValueError(describe(error))
        if unit is None:
            self.pool.failed_to_start(worker, error)
            return None
        worker.failures += 1
        sound = isinstance(error, ValueError | SourceError)  # else it or its device is gone, or not to be trusted
        if not sound or worker.failures >= HOPELESS:
            self.pool.dismiss(worker)
        elif isinstance(error, SourceError):
            worker.rests_until = time.monotonic() + REST * worker.failures
        if unit not in self.unfinished or any(unit in other.units for other in self.pool.workers):
            return None  # another worker has done it or is still at it
        self.started.pop(unit, None)
        attempts = self.backlog.add(unit, Attempt(worker, worker.node, wrong=isinstance(error, ValueError)))
        if self.backlog.is_exhausted(unit, self.pool.nodes()):
            return self._quarantine(unit, error)
        LOG.warning("unit %d failed, try %d: %s", unit.index, attempts, describe(error))
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
            reason=f"{describe(error)} ({len(self.backlog.attempts.pop(unit))} tries)",
        )
        self.unfinished.remove(unit)
        self.quarantined += 1
        # Bad units fail in a moment: those at work, which may be sound, must not outnumber them.
        if not self.done + self.finished and self.quarantined >= max(min(HOPELESS, self.run.units), len(self.started)):
            raise ValueError(f"no unit succeeds; {note}")
        Ledger(self.run.subset).quarantine(note)
        LOG.error("%s", note)
        return note


ATTEMPTS = 3
NODES_LOST = 10  # with as many nodes a unit is quarantined though none of its workers died alone
PAUSE = 10.0  # seconds until the second try of what a sound worker could not do; ten times as many until the third
GRACE = 60.0  # seconds that a unit is kept for other workers than those that failed with it


@dataclass(frozen=True)
class Attempt:
    """A failed attempt at a unit."""

    worker: Hashable
    node: str | None
    wrong: bool
    """Whether the rows, or their labels, were found to be wrong."""


class Backlog:
    """Units that wait for a worker, and the failed attempts at them. Times are of `time.monotonic`."""

    def __init__(self, units: Sequence[Unit]) -> None:
        spread = random.Random(0).sample(units, len(units))
        self.fresh = deque(sorted(spread, key=lambda unit: unit.start - unit.stop))
        self.failed: list[tuple[float, int, Unit]] = []
        """A heap: when each may be taken again, and its number."""
        self.attempts: dict[Unit, list[Attempt]] = {}

    def add(self, unit: Unit, failed: Attempt) -> int:
        """Adds a failed attempt; returns how many the unit has now."""
        self.attempts.setdefault(unit, []).append(failed)
        return len(self.attempts[unit])

    def is_exhausted(self, unit: Unit, alive: set[str | None]) -> bool:
        """True if retrying is of no use; nodes that are not alive were lost, which is not the unit's fault.

        What two workers find wrong is wrong.
        """
        attempts = self.attempts[unit]
        counted, wrong = (sum(failed.node in alive for failed in attempts), sum(failed.wrong for failed in attempts))
        return counted >= ATTEMPTS or len(attempts) >= NODES_LOST or wrong >= ATTEMPTS - 1

    def put_back(self, unit: Unit, *, at_once: bool) -> None:
        """To be taken again; not at once if the worker lives and nothing but time can help."""
        pause = 0.0 if at_once else PAUSE ** len(self.attempts[unit])
        heapq.heappush(self.failed, (time.monotonic() + pause, unit.index, unit))

    def take(self, worker: Hashable, *, alone: bool) -> Unit | None:
        """The next unit for a worker that has none; `alone` if it is the only worker."""
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
