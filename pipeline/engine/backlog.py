"""Units that wait for a worker, and what was tried with those that failed. Knows nothing of Ray.

Fresh units come longest first, those of equal length spread over the files, so that one bad file does not come all at
once. A unit that failed comes again after a pause, and to another worker if there is one that takes it in time: the
fault may be the worker's.
"""

import heapq
import random
import time
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from pipeline.engine.plan import Unit

ATTEMPTS = 3
NODES_LOST = 10  # with as many nodes a unit is given up though none of its workers died alone
PAUSE = 10.0  # seconds until the second try of what a sound worker could not do; ten times as many until the third
GRACE = 60.0  # seconds that a unit is kept for other workers than those that failed with it


@dataclass(frozen=True)
class Try:
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
        self.tries: dict[Unit, list[Try]] = {}

    def add_try(self, unit: Unit, failed: Try) -> None:
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
