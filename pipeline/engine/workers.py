"""Workers of a run: the pool that the scheduler uses, and the worker itself.

The pool's subclass decides where workers run: here in this process, in `ray_workers` as actors of a Ray cluster.
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
    """Id of the worker's node; None until the worker has loaded."""
    units: set[Unit] = field(default_factory=set)
    """Units that the worker was assigned and has not returned."""
    failures: int = 0
    """Units in a row that failed with the worker."""
    rests_until: float = 0.0
    """Time of `time.monotonic` until which the worker gets no unit."""


class CallResult(NamedTuple):
    """A finished call of a worker."""

    worker: WorkerHandle
    unit: Unit | None
    """Unit of the call; None if the call was the worker's start."""
    value: Any
    error: BaseException | None


class WorkerPool(ABC):
    """All workers of a run."""

    units_at_a_time = 1
    """Number of units that a worker is assigned at a time."""
    failed_starts_that_end = 1
    """Failed starts in a row that end a run in which no worker is loaded; with more workers, as many as there are."""

    def __init__(self) -> None:
        self.workers: set[WorkerHandle] = set()
        self.ready: set[WorkerHandle] = set()
        """Workers that have loaded the model."""
        self.failed_starts = 0

    @abstractmethod
    def scale_up(self, needed: int) -> None:
        """Start missing workers, at most `needed` in all."""

    @abstractmethod
    def assign(self, worker: WorkerHandle, unit: Unit) -> None:
        """Let a worker annotate a unit."""

    @abstractmethod
    def next_result(self, timeout: float) -> CallResult | None:
        """Return the next finished call, or None after `timeout` seconds."""

    @abstractmethod
    def progress(self, worker: WorkerHandle) -> dict[Unit, Amount]:
        """Return the last known labelled part of each of a worker's units; may be called from another thread."""

    @abstractmethod
    def delete_published(self, shards: Sequence[str]) -> None:
        """Delete published shards on every node."""

    @abstractmethod
    def nodes(self) -> set[str | None]:
        """Return the ids of the nodes that are alive."""

    @abstractmethod
    def close(self) -> None:
        """End all workers."""

    def loaded(self, worker: WorkerHandle, node: str) -> None:
        """Record that a worker has loaded the model, on a node."""
        worker.node, self.failed_starts = node, 0
        if worker in self.workers:
            self.ready.add(worker)

    def failed_to_start(self, worker: WorkerHandle, error: BaseException) -> None:
        """Record that a worker could not load the model.

        Raises:
            ValueError: if the model fits no worker, or too many starts in a row have failed.
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
        """End a worker; another one replaces it."""
        self.workers.discard(worker)
        self.ready.discard(worker)


def describe(error: BaseException) -> str:
    """Return an error in one line without credentials; its class is left out if the error is this project's."""
    is_own = isinstance(error, ValueError) or type(error).__module__.startswith("pipeline.")
    return redacted(("" if is_own else f"{type(error).__name__}: ") + " ".join(str(error).split()))


class AnnotatesUnits(Protocol):
    """An `Annotator`, or a test's replacement."""

    def annotate(self, unit: Unit, progress: UnitProgress) -> UnitResult: ...


Load = Callable[[Run, Device], AnnotatesUnits]


class Worker:
    """A worker, which labels one unit after another.

    The constructor does nothing that can fail, because the driver learns of errors only from methods.
    """

    def __init__(self, run: Run, load: Load, device: Device) -> None:
        self.run, self.device = run, device
        self.load_annotator = load
        self.annotator: AnnotatesUnits | None = None
        self.begun: dict[Unit, UnitProgress] = {}

    def load(self) -> str:
        """Load the checkpoint on this worker's device, never on another; return the id of the worker's node."""
        disable_progress_bars()
        self.annotator = self.load_annotator(self.run, self.device)
        return ""

    def annotate(self, unit: Unit) -> UnitResult:
        """Label a unit and commit its shard; return the receipt and the time spent in each stage."""
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
        """Return the labelled part of each unit in progress; may be called from another thread."""
        return {unit: progress.labelled for unit, progress in self.begun.copy().items()}

    def delete_published(self, shards: Sequence[str]) -> None:
        """Delete published shards that were labelled on this node."""
        for shard in shards:
            (self.run.subset.data / shard).unlink(missing_ok=True)


class ThisProcessPool(WorkerPool):
    """Pool of one worker, in this process; if it is dismissed, another one loads the checkpoint again."""

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
        """Queue a unit for the worker."""
        worker.units.add(unit)
        self.calls.append((worker, unit))

    def next_result(self, timeout: float) -> CallResult | None:
        """Make the next call and return its result; without a call to make, return None after `timeout` seconds."""
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
        """Return the labelled part of each of the worker's units."""
        labelled: dict[Unit, Amount] = worker.actor.progress()
        return labelled

    def delete_published(self, shards: Sequence[str]) -> None:
        """Delete published shards."""
        for worker in self.ready:
            worker.actor.delete_published(shards)

    def nodes(self) -> set[str | None]:
        """Return the id of this node, which is the empty string."""
        return {""}

    def close(self) -> None:
        """Drop the calls that are left."""
        self.calls.clear()
