"""The workers of a run as its driver sees them: started, given units, and dismissed. Where they run is a subclass's."""

import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from huggingface_hub.utils.tqdm import disable_progress_bars

from pipeline.engine.annotator import Part, Underway
from pipeline.engine.plan import Run, Unit
from pipeline.engine.throughput import UnitResult
from pipeline.messages import redacted
from pipeline.models.checkpoint import UnfitModelError
from schemas.annotations import Device

LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class WorkerHandle:
    """A worker."""

    actor: Any
    node: str | None = None
    """Known when it has loaded."""
    units: set[Unit] = field(default_factory=set)
    failures: int = 0
    """Units in a row that it could not do."""
    rests_until: float = 0.0


class CallResult(NamedTuple):
    """A call that is over."""

    hand: WorkerHandle
    unit: Unit | None
    """None: the worker's start."""
    result: Any
    error: BaseException | None


class WorkerPool(ABC):
    """All workers of a run."""

    units_at_a_time = 1
    """Units that a worker is given at a time."""
    failed_starts_that_end = 1
    """Failed starts in a row, or as many as there are workers, that end a run in which no worker is at work."""

    def __init__(self) -> None:
        self.hands: set[WorkerHandle] = set()
        self.at_work: set[WorkerHandle] = set()
        """Those that have loaded."""
        self.failed_starts = 0

    @abstractmethod
    def keep(self, needed: int) -> None:
        """Starts workers where some are missing, no more than are needed."""

    @abstractmethod
    def give(self, hand: WorkerHandle, unit: Unit) -> None:
        """Lets a worker annotate a unit."""

    @abstractmethod
    def ended(self, patience: float) -> CallResult | None:
        """Next call that has ended, or None after `patience` seconds without one."""

    @abstractmethod
    def underway(self, hand: WorkerHandle) -> dict[Unit, Part]:
        """What is labelled of a worker's units, as far as is known here; another thread may ask."""

    @abstractmethod
    def forget(self, shards: Sequence[str]) -> None:
        """Has shards that are published removed on every node."""

    @abstractmethod
    def nodes(self) -> set[str | None]:
        """Nodes that are alive."""

    @abstractmethod
    def close(self) -> None:
        """Ends all workers."""

    def started(self, hand: WorkerHandle, node: str) -> None:
        """A worker has loaded, on a node."""
        hand.node, self.failed_starts = node, 0
        if hand in self.hands:
            self.at_work.add(hand)

    def failed_to_start(self, hand: WorkerHandle, error: BaseException) -> None:
        """A worker could not load.

        Raises:
            ValueError: if none can.
        """
        if isinstance(error, UnfitModelError):
            raise ValueError(describe(error))
        self.dismiss(hand)
        self.failed_starts += 1
        LOG.warning("a worker failed at its start: %s", describe(error))
        if not self.at_work and self.failed_starts >= max(self.failed_starts_that_end, len(self.hands)):
            several = f"{self.failed_starts} workers failed at their start, the last by: "
            raise ValueError(f"{several if self.failed_starts > 1 else ''}{describe(error)}")

    def dismiss(self, hand: WorkerHandle) -> None:
        """Ends a worker; another one takes its place."""
        self.hands.discard(hand)
        self.at_work.discard(hand)


def describe(error: BaseException) -> str:
    """What happened, in one line without credentials; errors of this project need no name before it."""
    named = isinstance(error, ValueError) or type(error).__module__.startswith("pipeline.")
    return redacted(("" if named else f"{type(error).__name__}: ") + " ".join(str(error).split()))


class AnnotatesUnits(Protocol):
    """What a worker loads; an `Annotator`, unless a test wants something else."""

    def annotate(self, unit: Unit, underway: Underway) -> UnitResult: ...


Load = Callable[[Run, Device], AnnotatesUnits]


class Worker:
    """Its constructor does nothing that can fail: the driver learns of an error only from a method."""

    def __init__(self, run: Run, load: Load, device: Device) -> None:
        self.run, self.device = run, device
        self.load_annotator = load
        self.at_work_on: dict[Unit, Underway] = {}

    def load(self) -> str:
        """Puts the checkpoint on this worker's device, never on another; returns the id of its node."""
        disable_progress_bars()
        self.annotator = self.load_annotator(self.run, self.device)
        return ""

    def annotate(self, unit: Unit) -> UnitResult:
        """Labels a unit; returns its receipt, after the shard is committed, and where the time went."""
        LOG.info("%s begins", unit)
        underway = self.at_work_on[unit] = Underway()
        try:
            annotated = self.annotator.annotate(unit, underway)
        finally:
            del self.at_work_on[unit]
        receipt, stages, _ = annotated
        if stages.smaller_batches:
            LOG.warning("unit %d: %d batches did not fit the device's memory whole", unit.index, stages.smaller_batches)
        LOG.info("unit %d: %d tokens, %.1f s on the device", unit.index, receipt.counts.tokens, stages.seconds["label"])
        return annotated

    def underway(self) -> dict[Unit, Part]:
        """What is labelled of each unit that is begun; another thread may ask."""
        return {unit: underway.labelled for unit, underway in self.at_work_on.copy().items()}

    def forget(self, shards: Sequence[str]) -> None:
        """Removes shards that were labelled on this node and are published."""
        for shard in shards:
            (self.run.subset.data / shard).unlink(missing_ok=True)


class ThisProcessPool(WorkerPool):
    """One worker. If it is dismissed, another takes its place, which loads the checkpoint anew."""

    def __init__(self, run: Run, load: Load, device: Device) -> None:
        super().__init__()
        self.run, self.load, self.device = run, load, device
        self.calls: deque[tuple[WorkerHandle, Unit | None]] = deque()

    def keep(self, needed: int) -> None:
        """Starts the worker."""
        if needed and not self.hands:
            hand = WorkerHandle(Worker(self.run, self.load, self.device))
            self.hands.add(hand)
            self.calls.append((hand, None))

    def give(self, hand: WorkerHandle, unit: Unit) -> None:
        """Lets the worker annotate a unit when its turn comes."""
        hand.units.add(unit)
        self.calls.append((hand, unit))

    def ended(self, patience: float) -> CallResult | None:
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
        return CallResult(hand, unit, result, error)

    def underway(self, hand: WorkerHandle) -> dict[Unit, Part]:
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
