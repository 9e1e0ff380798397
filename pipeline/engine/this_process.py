"""`--workers 0`: the driver's own process is the one worker, without Ray, as with a DataLoader's `num_workers=0`.

A unit is labelled while the driver waits for it, so that Ctrl-C ends it as it ends any other program. Whatever kills
the worker, kills the run; the same command resumes.
"""

import time
from collections import deque
from collections.abc import Sequence

from pipeline.engine.crew import Crew, Ended, Hand
from pipeline.engine.device import Device
from pipeline.engine.plan import Unit
from pipeline.engine.run import Run
from pipeline.engine.underway import Part
from pipeline.engine.worker import Load, Worker


class ThisProcess(Crew):
    """One worker. If it is dismissed, another takes its place, which loads the checkpoint anew."""

    def __init__(self, run: Run, load: Load, device: Device) -> None:
        super().__init__()
        self.run, self.load, self.device = run, load, device
        self.calls: deque[tuple[Hand, Unit | None]] = deque()

    def keep(self, needed: int) -> None:
        """Starts the worker."""
        if needed and not self.hands:
            hand = Hand(Worker(self.run, self.load, self.device))
            self.hands.add(hand)
            self.calls.append((hand, None))

    def give(self, hand: Hand, unit: Unit) -> None:
        """Lets the worker annotate a unit when its turn comes."""
        hand.units.add(unit)
        self.calls.append((hand, unit))

    def ended(self, patience: float) -> Ended | None:
        """Makes the next call and returns when it has ended; waits where there is none to make."""
        if not self.calls:
            time.sleep(patience)
            return None
        hand, unit = self.calls.popleft()
        try:
            result, error = hand.actor.load() if unit is None else hand.actor.annotate(unit), None
        except Exception as raised:
            result, error = None, raised
        hand.units -= {unit}
        return Ended(hand, unit, result, error)

    def underway(self, hand: Hand) -> dict[Unit, Part]:
        """What the worker says."""
        labelled: dict[Unit, Part] = hand.actor.underway()
        return labelled

    def forget(self, shards: Sequence[str]) -> None:
        """Removes shards that are published."""
        for hand in self.at_work:
            hand.actor.forget(shards)

    def nodes(self) -> set[str | None]:
        """This one, which has no name."""
        return {""}

    def close(self) -> None:
        """Nothing outlives the process."""
        self.calls.clear()
