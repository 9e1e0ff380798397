"""Units that wait for a worker, and what was tried with those that failed. Knows nothing of Ray.

Fresh units come longest first, those of equal length spread over the files, so that one bad file does not come all at
once. A unit that failed comes again after a pause, and to another worker if there is one that takes it in time: the
fault may be the worker's.
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
from pipeline.engine.annotator import OutputError, Part, SourceError
from pipeline.engine.plan import Run, Unit
from pipeline.engine.throughput import Outcome, UnitResult
from pipeline.engine.workers import CallResult, WorkerHandle, WorkerPool, describe
from schemas.layout import shard_name
from schemas.receipts import Quarantined

ATTEMPTS = 3
NODES_LOST = 10  # with as many nodes a unit is given up though none of its workers died alone
PAUSE = 10.0  # seconds until the second try of what a sound worker could not do; ten times as many until the third
GRACE = 60.0  # seconds that a unit is kept for other workers than those that failed with it


@dataclass(frozen=True)
class Attempt:
    """One that failed."""

    worker: Hashable
    node: str | None
    wrong: bool
    """Whether the rows, or their labels, were found to be wrong."""


class Backlog:
    """Of one run. Times are of `time.monotonic`."""

    def __init__(self, units: Sequence[Unit]) -> None:
        spread = random.Random(0).sample(units, len(units))
        self.fresh = deque(sorted(spread, key=lambda unit: unit.start - unit.stop))
        self.again: list[tuple[float, int, Unit]] = []
        self.tries: dict[Unit, list[Attempt]] = {}

    def add_try(self, unit: Unit, failed: Attempt) -> None:
        """Writes down that a unit failed."""
        self.tries.setdefault(unit, []).append(failed)

    def is_spent(self, unit: Unit, alive: set[str | None]) -> bool:
        """Whether trying again is of no use; nodes that are not alive were lost, which is not the unit's fault.

        What two workers find wrong is wrong.
        """
        tries = self.tries[unit]
        counted = sum(failed.node in alive for failed in tries)
        return counted >= ATTEMPTS or len(tries) >= NODES_LOST or sum(failed.wrong for failed in tries) >= ATTEMPTS - 1

    def put_back(self, unit: Unit, *, at_once: bool) -> None:
        """To be taken again; not at once if the worker lives and nothing but time can help."""
        pause = 0.0 if at_once else PAUSE ** len(self.tries[unit])
        heapq.heappush(self.again, (time.monotonic() + pause, unit.index, unit))

    def take(self, worker: Hashable, *, alone: bool) -> Unit | None:
        """The next unit for a worker that has none, and whether it is the only one."""
        now, kept, taken = time.monotonic(), [], None
        while taken is None and self.again and self.again[0][0] <= now:
            entry = heapq.heappop(self.again)
            if alone or entry[0] + GRACE < now or worker not in [failed.worker for failed in self.tries[entry[2]]]:
                taken = entry[2]
            else:
                kept.append(entry)
        for entry in kept:
            heapq.heappush(self.again, entry)
        return taken or (self.fresh.popleft() if self.fresh else None)


HOPELESS = 8  # failures in a row and no success: a worker is replaced, a run ended
REST = 10.0  # seconds that a worker stops for each unit in a row that it cannot read: the source may be down
PATIENCE = 1.0  # seconds until the caller hears that nothing has happened
SLOW = 3.0  # times the mean that a unit takes at the end of a run before an idle worker starts it too

LOG = logging.getLogger(__name__)


class Scheduler:
    """One run over its units, of which `done` are finished already."""

    def __init__(self, run: Run, crew: WorkerPool, *, done: int = 0) -> None:
        self.run, self.crew = run, crew
        self.done, self.given_up = done, 0
        self.running: dict[Unit, float] = {}
        self.finished, self.seconds = 0, 0.0
        self.next_look = 0.0
        self.unfinished: set[Unit] = set()

    @property
    def loaded(self) -> int:
        """Workers that are at work."""
        return len(self.crew.at_work)

    @property
    def underway(self) -> Part:
        """What is labelled of units that are not committed; another thread may ask.

        Of a unit that two workers are at, the farther one counts. What a worker had of a unit is lost with its call.
        """
        farthest: dict[Unit, Part] = {}
        for hand in tuple(self.crew.at_work):
            units = tuple(hand.units)
            for unit, labelled in self.crew.underway(hand).items():
                if unit in units and unit in self.unfinished:
                    farthest[unit] = max(labelled, farthest.get(unit, Part()))
        return Part(*(sum(part) for part in zip(*farthest.values(), strict=True))) if farthest else Part()

    def outcomes(self, units: Sequence[Unit]) -> Generator[Outcome, None, None]:
        """What becomes of every unit, as it happens.

        Raises:
            ValueError: if workers cannot load, the output cannot be written, or unit after unit fails from the start.
        """
        self.backlog, self.unfinished = Backlog(units), set(units)
        try:
            while self.unfinished:
                self._look()
                ended = self.crew.ended(PATIENCE)
                yield self._settle(ended) if ended else None
        finally:
            self.crew.close()
            Ledger(self.run.subset).remove_unfinished()

    def forget(self, shards: Sequence[str]) -> None:
        """Has shards that are published removed from every node."""
        if shards:
            self.crew.forget(shards)

    def _look(self) -> None:
        """Sees to what no event tells of: room for workers, pauses that are over, units that hold up the end."""
        self.crew.keep(len(self.unfinished))
        if time.monotonic() >= self.next_look:
            self.next_look = time.monotonic() + PATIENCE
            for hand in self._idle():
                self._hand_out(hand)
            if not self.backlog.fresh:
                self._help_the_slow()

    def _settle(self, ended: CallResult) -> Outcome:
        """Takes what became of a call, and gives its worker, if it lives, the next units."""
        hand, unit, result, error = ended
        outcome: Outcome = None
        if error is not None:
            outcome = self._failed(hand, unit, error)
        elif unit is None:
            self.crew.started(hand, result)
        elif unit in self.unfinished:  # else another worker was faster with it
            outcome = self._finished(hand, unit, result)
        self._hand_out(hand)
        return outcome

    def _finished(self, hand: WorkerHandle, unit: Unit, result: UnitResult) -> Outcome:
        self.unfinished.remove(unit)
        self.seconds += time.monotonic() - self.running.pop(unit)
        self.finished += 1
        hand.failures = 0
        self.backlog.tries.pop(unit, None)
        return result

    def _hand_out(self, hand: WorkerHandle) -> None:
        """Gives a worker what is waiting: a unit to label and one to read ahead, a suspect by itself."""
        while hand in self.crew.at_work and time.monotonic() >= hand.rests_until and (unit := self._next(hand)):
            self._give(hand, unit)

    def _next(self, hand: WorkerHandle) -> Unit | None:
        if not hand.units:
            return self.backlog.take(hand, alone=self.loaded == 1)
        suspect = any(unit in self.backlog.tries for unit in hand.units)
        plenty, room = len(self.backlog.fresh) > len(self.crew.hands), len(hand.units) < self.crew.units_at_a_time
        return self.backlog.fresh.popleft() if plenty and not suspect and room else None

    def _give(self, hand: WorkerHandle, unit: Unit) -> None:
        self.running.setdefault(unit, time.monotonic())
        self.crew.give(hand, unit)

    def _idle(self) -> list[WorkerHandle]:
        return [hand for hand in self.crew.at_work if not hand.units]

    def _help_the_slow(self) -> None:
        """Gives units that take long to idle workers too. Their shards will be the same, whoever is first."""
        if not self.finished:
            return
        limit = time.monotonic() - SLOW * self.seconds / self.finished
        workers_of = Counter(unit for hand in self.crew.hands for unit in hand.units)
        slow = [unit for unit, since in self.running.items() if since < limit and workers_of[unit] == 1]
        for hand, unit in zip(self._idle(), slow, strict=False):
            if unit not in self.backlog.tries:
                LOG.info("unit %d takes long; a second worker begins it", unit.index)
                self._give(hand, unit)

    def _failed(self, hand: WorkerHandle, unit: Unit | None, error: BaseException) -> Outcome:
        if isinstance(error, OutputError):
            raise ValueError(describe(error))
        if unit is None:
            self.crew.failed_to_start(hand, error)
            return None
        hand.failures += 1
        sound = isinstance(error, ValueError | SourceError)  # else it or its device is gone, or not to be trusted
        if not sound or hand.failures >= HOPELESS:
            self.crew.dismiss(hand)
        elif isinstance(error, SourceError):
            hand.rests_until = time.monotonic() + REST * hand.failures
        if unit not in self.unfinished or any(unit in other.units for other in self.crew.hands):
            return None  # another worker has done it or is still at it
        self.backlog.add_try(unit, Attempt(hand, hand.node, wrong=isinstance(error, ValueError)))
        return self._try_again(unit, error, at_once=not sound)

    def _try_again(self, unit: Unit, error: BaseException, *, at_once: bool) -> Outcome:
        """Gives a unit another try, or up."""
        self.running.pop(unit, None)
        if self.backlog.is_spent(unit, self.crew.nodes()):
            return self._give_up(unit, error)
        LOG.warning("unit %d failed, try %d: %s", unit.index, len(self.backlog.tries[unit]), describe(error))
        self.backlog.put_back(unit, at_once=at_once)
        for other in self._idle():
            self._hand_out(other)
        return None

    def _give_up(self, unit: Unit, error: BaseException) -> Quarantined:
        note = Quarantined(
            unit=unit.index,
            shard=shard_name(unit.index, self.run.units),
            file=recorded([unit.file.url])[0],
            start=unit.start,
            stop=unit.stop,
            reason=f"{describe(error)} ({len(self.backlog.tries.pop(unit))} tries)",
        )
        self.unfinished.remove(unit)
        self.given_up += 1
        # Bad units fail in a moment: those at work, which may be sound, must not outnumber them.
        if not self.done + self.finished and self.given_up >= max(min(HOPELESS, self.run.units), len(self.running)):
            raise ValueError(f"no unit succeeds; {note}")
        Ledger(self.run.subset).quarantine(note)
        LOG.error("%s", note)
        return note
