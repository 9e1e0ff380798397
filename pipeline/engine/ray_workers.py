"""Workers on Ray: actors that are started while the cluster has room, and killed when they are dismissed."""

import logging
import os
import queue
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.metrics import Counter, Gauge

from pipeline.engine.annotator import Amount
from pipeline.engine.cluster import WorkerResources, require_ray
from pipeline.engine.plan import Run, Unit
from pipeline.engine.throughput import UnitResult
from pipeline.engine.workers import CallResult, Load, Worker, WorkerHandle, WorkerPool
from pipeline.messages import log_to_stderr
from schemas.annotations import Device

PATIENCE = 10.0  # seconds that the driver waits for workers to delete shards
LOOK = 5.0  # seconds between checks of the cluster
# Every ASK seconds all workers are asked how far they are; less often if that would be more than ASKED_A_SECOND.
ASK, ASKED_A_SECOND = 2.0, 100

LOG = logging.getLogger(__name__)


class WorkerLostError(Exception):
    """Raised if a worker died or its node is gone; another worker may label the rows."""


class RayWorkerPool(WorkerPool):
    """Pool of `workers` actors on a Ray cluster; None for as many as fit the cluster, which may grow."""

    units_at_a_time = 2  # one is labelled while the next is read
    failed_starts_that_end = 3

    def __init__(self, run: Run, load: Load, *, workers: int | None, share: WorkerResources) -> None:
        super().__init__()
        self.run, self.load = run, load
        self.size, self.share = workers, share.resolved()
        self.results: queue.SimpleQueue[tuple[WorkerHandle, Unit | None, Any]] = queue.SimpleQueue()
        self.next_look, self.room = 0.0, 1
        self.next_question = 0.0
        self.answers: dict[WorkerHandle, dict[Unit, Amount]] = {}

    def scale_up(self, needed: int) -> None:
        """Start missing workers, at most `needed` in all; look for them every LOOK seconds and after a worker's death.

        Raises:
            ConnectionError: if Ray is gone.
        """
        if time.monotonic() >= self.next_question:
            self._ask_progress()
        if time.monotonic() < self.next_look:
            return
        require_ray()
        self.next_look = time.monotonic() + LOOK
        before, self.room = self.room, self.share.room()
        # Twice the room: workers that wait for room make an autoscaling cluster grow.
        requested = self.size or max(1, 2 * self.room)
        for _ in range(min(requested, needed) - len(self.workers)):
            self._start()
        if before and not self.room:
            LOG.warning("no node has room for a worker, which needs %s", self.share)

    def _start(self) -> None:
        actor: Any = Actor  # the type does not show that ray.remote made it an actor class
        device: Device = "cuda" if self.share.gpus else "cpu"
        options = {
            "num_cpus": self.share.cpus,
            "num_gpus": self.share.gpus,
            "max_concurrency": self.units_at_a_time + 1,
        }
        worker = WorkerHandle(actor.options(**options).remote(self.run, self.load, device))
        self.workers.add(worker)
        self._expect(worker, None, worker.actor.load.remote())

    def assign(self, worker: WorkerHandle, unit: Unit) -> None:
        """Let a worker annotate a unit."""
        worker.units.add(unit)
        self.answers.get(worker, {}).pop(unit, None)  # from an earlier attempt
        self._expect(worker, unit, worker.actor.annotate.remote(unit))

    def _expect(self, worker: WorkerHandle, unit: Unit | None, reference: Any) -> None:
        """Queue a call's result when the call ends; the driver's work per unit does not grow with the workers."""
        reference.future().add_done_callback(lambda future: self.results.put((worker, unit, future)))

    def _ask_progress(self) -> None:
        """Ask all workers how far they are with their units, without waiting for the answers."""
        self.next_question = time.monotonic() + max(ASK, len(self.ready) / ASKED_A_SECOND)
        for worker in self.ready:
            worker.actor.progress.remote().future().add_done_callback(partial(self._answered, worker))

    def _answered(self, worker: WorkerHandle, answer: Any) -> None:
        if worker in self.workers and answer.exception() is None:  # another call's result tells of a worker's end
            self.answers[worker] = answer.result()

    def progress(self, worker: WorkerHandle) -> dict[Unit, Amount]:
        """Return the labelled part of each of the worker's units, from its last answer."""
        return self.answers.get(worker, {})

    def next_result(self, timeout: float) -> CallResult | None:
        """Return the next finished call, or None after `timeout` seconds."""
        try:
            worker, unit, future = self.results.get(timeout=timeout)
        except queue.Empty:
            return None
        worker.units -= {unit}
        error = future.exception()
        return CallResult(worker, unit, None if error else future.result(), _cause(error))

    def dismiss(self, worker: WorkerHandle) -> None:
        """End a worker; another one replaces it."""
        if worker in self.workers:
            ray.kill(worker.actor)
        if worker in self.ready:  # else it died at its start, and its replacement might do the same: do not hurry
            self.next_look = 0.0
        super().dismiss(worker)
        self.answers.pop(worker, None)

    def delete_published(self, shards: Sequence[str]) -> None:
        """Delete published shards on every node; return when they are deleted, or after PATIENCE seconds."""
        one_per_node = {worker.node: worker for worker in self.ready}.values()
        if calls := [worker.actor.delete_published.remote(shards) for worker in one_per_node]:
            ray.wait(calls, num_returns=len(calls), timeout=PATIENCE)

    def nodes(self) -> set[str | None]:
        """Return the ids of the nodes that are alive."""
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}

    def close(self) -> None:
        """End all workers."""
        for worker in self.workers:
            ray.kill(worker.actor)


def _cause(error: BaseException | None) -> BaseException | None:
    """Return the worker's own error, or a WorkerLostError with the first line of Ray's error, without Ray's advice."""
    if isinstance(error, RayTaskError):
        cause: BaseException = error.cause
        return cause
    if isinstance(error, RayError):
        lines = [line for line in str(error).splitlines() if line.strip()]
        return WorkerLostError(lines[0] if lines else type(error).__name__)
    return error


@ray.remote(max_restarts=0, max_task_retries=0)
class Actor(Worker):
    """A worker in a process of its own, on a GPU, a fraction of a GPU or a CPU core.

    Ray restarts no actor, because a call to a restarting actor fails at once; the driver starts a new one instead.
    """

    metrics: "Metrics | None" = None

    def load(self) -> str:
        log_to_stderr(logging.INFO)
        context = ray.get_runtime_context()
        cores = context.get_assigned_resources().get("CPU", 1.0)
        os.environ["RAYON_NUM_THREADS"] = str(max(1, int(cores)))  # for the tokenizer, which takes all cores by default
        super().load()
        self.metrics = Metrics()
        return str(context.get_node_id())

    def annotate(self, unit: Unit) -> UnitResult:
        result = super().annotate(unit)
        if self.metrics is not None:
            self.metrics.record(result)
        return result


class Metrics:
    """A worker's metrics, for Ray's dashboard and for Prometheus."""

    def __init__(self) -> None:
        self.units = Counter("token_entropy_units", "Units committed")
        self.tokens = Counter("token_entropy_tokens", "Tokens in committed units")
        self.fill = Gauge("token_entropy_batch_fill", "Share of the last unit's batches that is not padding")
        self.wait = Gauge("token_entropy_device_wait", "Share of its time on the last unit that the device waited")

    def record(self, result: UnitResult) -> None:
        """Add a unit."""
        receipt, stages, _ = result
        self.units.inc()
        if receipt.counts.tokens:  # Ray refuses to add 0 to a counter
            self.tokens.inc(receipt.counts.tokens)
        self.fill.set(stages.batch_fill)
        self.wait.set(stages.device_wait)
