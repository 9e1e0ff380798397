"""The workers of a run: a pool of them, as the scheduler sees it, and the worker itself.

Where workers run is up to a pool's subclass: here in this process, in `ray_workers` as actors of a Ray cluster.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from huggingface_hub.utils.tqdm import disable_progress_bars

from pipeline.engine.annotator import Amount, UnitProgress
from pipeline.engine.plan import Run, Unit
from pipeline.engine.throughput import UnitResult
from pipeline.messages import redacted
from pipeline.models.checkpoint import UnfitModelError
from schemas.annotations import Device

LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class WorkerHandle:
    """A worker as the scheduler knows it."""

    actor: Any
    node: str | None = None
    """Known when it has loaded."""
    units: set[Unit] = field(default_factory=set)
    """Those that it was assigned and has not returned."""
    failures: int = 0
    """Units in a row that failed with it."""
    rests_until: float = 0.0


class CallResult(NamedTuple):
    """A finished call of a worker."""

    worker: WorkerHandle
    unit: Unit | None
    """None: the worker's start."""
    value: Any
    error: BaseException | None


class WorkerPool(ABC):
    """All workers of a run."""

    units_at_a_time = 1
    """Units that a worker is assigned at a time."""
    failed_starts_that_end = 1
    """Failed starts in a row, or as many as there are workers, that end a run while no worker has loaded."""

    def __init__(self) -> None:
        self.workers: set[WorkerHandle] = set()
        self.ready: set[WorkerHandle] = set()
        """Those that have loaded."""
        self.failed_starts = 0

    @abstractmethod
    def scale_up(self, needed: int) -> None:
        """Start workers where some are missing, at most as many as are needed."""

    @abstractmethod
    def assign(self, worker: WorkerHandle, unit: Unit) -> None:
        """Let a worker annotate a unit."""

    @abstractmethod
    def next_result(self, timeout: float) -> CallResult | None:
        """Next finished call, or None after `timeout` seconds."""

    @abstractmethod
    def progress(self, worker: WorkerHandle) -> dict[Unit, Amount]:
        """The labelled part of each of a worker's units, as last heard; another thread may ask."""

    @abstractmethod
    def delete_published(self, shards: Sequence[str]) -> None:
        """Delete published shards on every node."""

    @abstractmethod
    def nodes(self) -> set[str | None]:
        """Nodes that are alive."""

    @abstractmethod
    def close(self) -> None:
        """End all workers."""

    def loaded(self, worker: WorkerHandle, node: str) -> None:
        """A worker has loaded, on a node."""
        worker.node, self.failed_starts = node, 0
        if worker in self.workers:
            self.ready.add(worker)

    def failed_to_start(self, worker: WorkerHandle, error: BaseException) -> None:
        """A worker could not load.

        Raises:
            ValueError: if none can.
        """
        if isinstance(error, UnfitModelError):
            raise ValueError(describe(error))
        self.dismiss(worker)
        self.failed_starts += 1
        LOG.warning("a worker failed at its start: %s", describe(error))
        if not self.ready and self.failed_starts >= max(self.failed_starts_that_end, len(self.workers)):
            several = f"{self.failed_starts} workers failed at their start, the last by: "
            raise ValueError(f"{several if self.failed_starts > 1 else ''}{describe(error)}")

    def dismiss(self, worker: WorkerHandle) -> None:
        """End a worker; another one takes its place."""
        self.workers.discard(worker)
        self.ready.discard(worker)


def describe(error: BaseException) -> str:
    """The error in one line without credentials; those of this project need no name before their message."""
    is_own = isinstance(error, ValueError) or type(error).__module__.startswith("pipeline.")
    return redacted(("" if is_own else f"{type(error).__name__}: ") + " ".join(str(error).split()))


class AnnotatesUnits(Protocol):
    """An `Annotator`, or what a test puts there."""

    def annotate(self, unit: Unit, progress: UnitProgress) -> UnitResult: ...


Load = Callable[[Run, Device], AnnotatesUnits]


class Worker:
    """Its constructor does nothing that can fail: the driver learns of an error only from a method."""

    def __init__(self, run: Run, load: Load, device: Device) -> None:
        self.run, self.device = run, device
        self.load_annotator = load
        self.annotator: AnnotatesUnits | None = None
        self.begun: dict[Unit, UnitProgress] = {}

    def load(self) -> str:
        """Load the checkpoint on this worker's device, never on another; return the id of its node."""
        disable_progress_bars()
        self.annotator = self.load_annotator(self.run, self.device)
        return ""

    def annotate(self, unit: Unit) -> UnitResult:
        """Label a unit; return its receipt, after the shard is committed, and where the time went."""
        assert self.annotator is not None, "load first"
        LOG.info("%s begins", unit)
        progress = self.begun[unit] = UnitProgress()
        try:
            result = self.annotator.annotate(unit, progress)
        finally:
            del self.begun[unit]
        receipt, stages, _ = result
        if stages.smaller_batches:
            LOG.warning("unit %d: %d batches did not fit the device's memory whole", unit.index, stages.smaller_batches)
        LOG.info("unit %d: %d tokens, %.1f s on the device", unit.index, receipt.counts.tokens, stages.seconds["label"])
        return result

    def progress(self) -> dict[Unit, Amount]:
        """The labelled part of each unit that is begun; another thread may ask."""
        return {unit: progress.labelled for unit, progress in self.begun.copy().items()}

    def delete_published(self, shards: Sequence[str]) -> None:
        """Delete shards that were labelled on this node and are published."""
        for shard in shards:
            (self.run.subset.data / shard).unlink(missing_ok=True)


class ThisProcessPool(WorkerPool):
    """One worker in this process. If it is dismissed, another takes its place, which loads the checkpoint anew."""

    def __init__(self, run: Run, load: Load, device: Device) -> None:
        super().__init__()
        self.run, self.load, self.device = run, load, device
        self.calls: deque[tuple[WorkerHandle, Unit | None]] = deque()

    def scale_up(self, needed: int) -> None:
        """Start the worker."""
        if needed and not self.workers:
            worker = WorkerHandle(Worker(self.run, self.load, self.device))
            self.workers.add(worker)
            self.calls.append((worker, None))

    def assign(self, worker: WorkerHandle, unit: Unit) -> None:
        """Let the worker annotate a unit when its turn comes."""
        worker.units.add(unit)
        self.calls.append((worker, unit))

    def next_result(self, timeout: float) -> CallResult | None:
        """Make the next call and return when it has ended; wait where there is none to make."""
        if not self.calls:
            time.sleep(timeout)
            return None
        worker, unit = self.calls.popleft()
        try:
            value, error = worker.actor.load() if unit is None else worker.actor.annotate(unit), None
        except Exception as raised:
            value, error = None, raised
        worker.units -= {unit}
        return CallResult(worker, unit, value, error)

    def progress(self, worker: WorkerHandle) -> dict[Unit, Amount]:
        """The worker's own answer."""
        labelled: dict[Unit, Amount] = worker.actor.progress()
        return labelled

    def delete_published(self, shards: Sequence[str]) -> None:
        """Delete published shards."""
        for worker in self.ready:
            worker.actor.delete_published(shards)

    def nodes(self) -> set[str | None]:
        """This one, which has no name."""
        return {""}

    def close(self) -> None:
        """Nothing outlives the process."""
        self.calls.clear()
