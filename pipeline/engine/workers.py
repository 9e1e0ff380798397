"""Workers of a run: the pool that the scheduler uses, and the worker itself.

A subclass of the pool decides where workers run. ThisProcessPool, in this module, has a worker in this process.
RayWorkerPool, in `ray_workers`, has workers that are actors of a Ray cluster.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from huggingface_hub.utils.tqdm import disable_progress_bars

from pipeline.engine.plan import Run, Unit
from pipeline.engine.throughput import UnitResult
from pipeline.engine.unit_progress import Amount, UnitProgress
from pipeline.messages import redacted
from pipeline.models.checkpoint import UnfitModelError
from schemas.annotations import Device

LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class WorkerHandle:
    """A worker, as seen by the scheduler."""

    actor: Any
    node: str | None = None
    """Id of the worker's node, or None until the worker has loaded the model."""
    units: set[Unit] = field(default_factory=set)
    """Units that are assigned to the worker and not finished yet."""
    failures: int = 0
    """Number of units that failed on the worker since the last unit that succeeded on it."""
    rests_until: float = 0.0
    """End of the worker's pause, by `time.monotonic`. The worker gets no unit before that time."""


class CallResult(NamedTuple):
    """Result of a finished call to a worker."""

    worker: WorkerHandle
    unit: Unit | None
    """Unit that the call annotated, or None if the call started the worker."""
    value: Any
    error: BaseException | None


class WorkerPool(ABC):
    """Pool of all workers of a run."""

    units_at_a_time = 1
    """Maximum number of units that are assigned to a worker at the same time."""
    failed_starts_that_end = 1
    """Number of failed starts in a row that ends a run if no worker has loaded the model. If the pool has more workers
    than this number, the number of workers counts instead."""

    def __init__(self) -> None:
        self.workers: set[WorkerHandle] = set()
        self.ready: set[WorkerHandle] = set()
        """Workers that have loaded the model."""
        self.failed_starts = 0

    @abstractmethod
    def scale_up(self, needed: int) -> None:
        """Start missing workers, up to `needed` workers in all."""

    @abstractmethod
    def assign(self, worker: WorkerHandle, unit: Unit) -> None:
        """Call a worker to annotate a unit, without waiting for the result."""

    @abstractmethod
    def next_result(self, timeout: float) -> CallResult | None:
        """Return the result of the next finished call, or None if no call finishes within `timeout` seconds."""

    @abstractmethod
    def progress(self, worker: WorkerHandle) -> dict[Unit, Amount]:
        """Return the rows and tokens labelled so far in each unit of a worker, as far as they are known.

        Any thread may call this method.
        """

    @abstractmethod
    def delete_published(self, shards: Sequence[str]) -> None:
        """Delete published shards from the disks of all nodes."""

    @abstractmethod
    def nodes(self) -> set[str | None]:
        """Return the ids of the nodes that are alive."""

    @abstractmethod
    def close(self) -> None:
        """End all workers."""

    def loaded(self, worker: WorkerHandle, node: str) -> None:
        """Record that a worker on `node` has loaded the model."""
        worker.node, self.failed_starts = node, 0
        if worker in self.workers:
            self.ready.add(worker)

    def failed_to_start(self, worker: WorkerHandle, error: BaseException) -> None:
        """Record that a worker could not load the model.

        Raises:
            ValueError: if no worker can use the model for labelling, or if too many starts in a row have failed.
        """
        if isinstance(error, UnfitModelError):
            raise ValueError(describe(error))
        self.dismiss(worker)
        self.failed_starts += 1
        LOG.warning("a worker failed to start: %s", describe(error))
        if not self.ready and self.failed_starts >= max(self.failed_starts_that_end, len(self.workers)):
            several = f"{self.failed_starts} workers failed to start, the last one with: "
            raise ValueError(f"{several if self.failed_starts > 1 else ''}{describe(error)}")

    def dismiss(self, worker: WorkerHandle) -> None:
        """Remove a worker from the pool. A later call of `scale_up` replaces the worker."""
        self.workers.discard(worker)
        self.ready.discard(worker)


def describe(error: BaseException) -> str:
    """Return an error in one line, without credentials.

    The line begins with the error's class, except for a ValueError or an error of this project.
    """
    is_own = isinstance(error, ValueError) or type(error).__module__.startswith("pipeline.")
    return redacted(("" if is_own else f"{type(error).__name__}: ") + " ".join(str(error).split()))


class AnnotatesUnits(Protocol):
    """Interface of `Annotator`, which tests implement in their own way."""

    def annotate(self, unit: Unit, progress: UnitProgress) -> UnitResult: ...


Load = Callable[[Run, Device], AnnotatesUnits]


class Worker:
    """A worker, which labels one unit after another.

    The constructor does nothing that can fail, because the driver receives only the errors of method calls.
    """

    def __init__(self, run: Run, load: Load, device: Device) -> None:
        self.run, self.device = run, device
        self.load_annotator = load
        self.annotator: AnnotatesUnits | None = None
        self.begun: dict[Unit, UnitProgress] = {}

    def load(self) -> str:
        """Load the checkpoint on this worker's device, never on another device. Return the id of the worker's node.

        Without Ray, the id is the empty string.
        """
        disable_progress_bars()
        self.annotator = self.load_annotator(self.run, self.device)
        return ""

    def annotate(self, unit: Unit) -> UnitResult:
        """Label a unit, commit its shard and return the result, with the receipt and the time spent in each stage."""
        assert self.annotator is not None, "load first"
        LOG.info("%s starts", unit)
        progress = self.begun[unit] = UnitProgress()
        try:
            result = self.annotator.annotate(unit, progress)
        finally:
            del self.begun[unit]
        receipt, stages, _ = result
        if stages.smaller_batches:
            LOG.warning("unit %d: %d batches did not fit the device's memory", unit.index, stages.smaller_batches)
        LOG.info("unit %d: %d tokens, %.1f s on the device", unit.index, receipt.counts.tokens, stages.seconds["label"])
        return result

    def progress(self) -> dict[Unit, Amount]:
        """Return the rows and tokens labelled so far in each unit in progress. Any thread may call this method."""
        return {unit: progress.labelled for unit, progress in self.begun.copy().items()}

    def delete_published(self, shards: Sequence[str]) -> None:
        """Delete published shards from the disk of this node."""
        for shard in shards:
            (self.run.subset.data / shard).unlink(missing_ok=True)


class ThisProcessPool(WorkerPool):
    """Pool of a single worker, in this process. If the worker is dismissed, a new worker loads the checkpoint again."""

    def __init__(self, run: Run, load: Load, device: Device) -> None:
        super().__init__()
        self.run, self.load, self.device = run, load, device
        self.calls: deque[tuple[WorkerHandle, Unit | None]] = deque()

    def scale_up(self, needed: int) -> None:
        """Start the worker if it is missing and units are left."""
        if needed and not self.workers:
            worker = WorkerHandle(Worker(self.run, self.load, self.device))
            self.workers.add(worker)
            self.calls.append((worker, None))

    def assign(self, worker: WorkerHandle, unit: Unit) -> None:
        """Queue a unit for the worker."""
        worker.units.add(unit)
        self.calls.append((worker, unit))

    def next_result(self, timeout: float) -> CallResult | None:
        """Make the next queued call and return its result.

        If no call is queued, return None after `timeout` seconds.
        """
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
        """Return the rows and tokens labelled so far in each unit in progress."""
        labelled: dict[Unit, Amount] = worker.actor.progress()
        return labelled

    def delete_published(self, shards: Sequence[str]) -> None:
        """Delete published shards from this disk."""
        for worker in self.ready:
            worker.actor.delete_published(shards)

    def nodes(self) -> set[str | None]:
        """Return the id of this node, which is the empty string."""
        return {""}

    def close(self) -> None:
        """Remove all calls from the queue."""
        self.calls.clear()
