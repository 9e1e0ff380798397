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

from pipeline.engine.cluster import WorkerResources, require_ray
from pipeline.engine.plan import Run, Unit
from pipeline.engine.throughput import UnitResult
from pipeline.engine.unit_progress import Amount
from pipeline.engine.workers import CallResult, Load, Worker, WorkerHandle, WorkerPool
from pipeline.messages import log_to_stderr
from schemas.annotations import Device

PATIENCE = 10.0  # seconds that the driver waits for workers to delete shards
LOOK = 5.0  # seconds between checks of the cluster
# Seconds between two requests for the progress of all workers. The interval is longer if otherwise more than
# ASKED_A_SECOND workers would be asked per second.
ASK, ASKED_A_SECOND = 2.0, 100

LOG = logging.getLogger(__name__)


class WorkerLostError(Exception):
    """Raised if a worker has died or its node is gone. Another worker may still label the rows."""


class RayWorkerPool(WorkerPool):
    """Pool of workers that are actors on a Ray cluster.

    `workers` is the number of workers. If it is None, the pool has as many workers as fit on the cluster, and more when
    the cluster grows. `share` is the share of the cluster that each worker takes.
    """

    units_at_a_time = 2  # the second unit is read while the first is labelled
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
        """Start missing workers, up to `needed` workers in all.

        The cluster is checked every LOOK seconds, and at once after a worker has died.

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
        """Call a worker to annotate a unit, without waiting for the result."""
        worker.units.add(unit)
        self.answers.get(worker, {}).pop(unit, None)  # its progress in an earlier attempt
        self._expect(worker, unit, worker.actor.annotate.remote(unit))

    def _expect(self, worker: WorkerHandle, unit: Unit | None, reference: Any) -> None:
        """Add a call's result to the queue when the call ends.

        Because the driver does not poll, its work per unit does not grow with the number of workers.
        """
        reference.future().add_done_callback(lambda future: self.results.put((worker, unit, future)))

    def _ask_progress(self) -> None:
        """Ask all workers for the progress of their units, without waiting for the answers."""
        self.next_question = time.monotonic() + max(ASK, len(self.ready) / ASKED_A_SECOND)
        for worker in self.ready:
            worker.actor.progress.remote().future().add_done_callback(partial(self._answered, worker))

    def _answered(self, worker: WorkerHandle, answer: Any) -> None:
        if worker in self.workers and answer.exception() is None:  # the result of another call reports a worker's death
            self.answers[worker] = answer.result()

    def progress(self, worker: WorkerHandle) -> dict[Unit, Amount]:
        """Return the rows and tokens labelled so far in each unit of a worker, as the worker last reported them."""
        return self.answers.get(worker, {})

    def next_result(self, timeout: float) -> CallResult | None:
        """Return the result of the next finished call, or None if no call finishes within `timeout` seconds."""
        try:
            worker, unit, future = self.results.get(timeout=timeout)
        except queue.Empty:
            return None
        worker.units -= {unit}
        error = future.exception()
        return CallResult(worker, unit, None if error else future.result(), _cause(error))

    def dismiss(self, worker: WorkerHandle) -> None:
        """Kill a worker. A later call of `scale_up` replaces the worker."""
        if worker in self.workers:
            ray.kill(worker.actor)
        if worker in self.ready:  # a worker that died at its start is replaced later: the next might die too
            self.next_look = 0.0
        super().dismiss(worker)
        self.answers.pop(worker, None)

    def delete_published(self, shards: Sequence[str]) -> None:
        """Delete published shards from the disks of all nodes. Wait at most PATIENCE seconds for the deletion."""
        one_per_node = {worker.node: worker for worker in self.ready}.values()
        if calls := [worker.actor.delete_published.remote(shards) for worker in one_per_node]:
            ray.wait(calls, num_returns=len(calls), timeout=PATIENCE)

    def nodes(self) -> set[str | None]:
        """Return the ids of the nodes that are alive."""
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}

    def close(self) -> None:
        """Kill all workers."""
        for worker in self.workers:
            ray.kill(worker.actor)


def _cause(error: BaseException | None) -> BaseException | None:
    """Return the error that a worker raised, or None if its call succeeded.

    For an error of Ray itself, return a WorkerLostError with the first line of Ray's message, without Ray's advice.
    """
    if isinstance(error, RayTaskError):
        cause: BaseException = error.cause
        return cause
    if isinstance(error, RayError):
        lines = [line for line in str(error).splitlines() if line.strip()]
        return WorkerLostError(lines[0] if lines else type(error).__name__)
    return error


@ray.remote(max_restarts=0, max_task_retries=0)
class Actor(Worker):
    """A worker in a process of its own, on a CPU core, a whole GPU or a fraction of a GPU.

    Ray is told not to restart an actor that died, because calls to a restarting actor fail at once. Instead, the driver
    starts a new actor.
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
        self.wait = Gauge("token_entropy_device_wait", "Share of the last unit's device time spent waiting")

    def record(self, result: UnitResult) -> None:
        """Add a finished unit to the metrics."""
        receipt, stages, _ = result
        self.units.inc()
        if receipt.counts.tokens:  # Ray refuses to add 0 to a counter
            self.tokens.inc(receipt.counts.tokens)
        self.fill.set(stages.batch_fill)
        self.wait.set(stages.device_wait)
