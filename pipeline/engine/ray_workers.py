"""Ray's workers: actors of a cluster, started while it has room, called, and killed when they are dismissed."""

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

PATIENCE = 10.0  # seconds for what a worker does besides its units
LOOK = 5.0  # seconds between looks at the cluster
ASK, ASKED_A_SECOND = 2.0, 100  # seconds until all workers are asked how far they are, or as they are so many longer

LOG = logging.getLogger(__name__)


class WorkerLostError(Exception):
    """The worker died, or its node is gone; another worker may label the rows."""


class RayWorkerPool(WorkerPool):
    """`workers` is how many to keep, None for all that the cluster has room for and more."""

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
        """Start workers now and then, and when one has died; at most as many as are needed.

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
        # Twice what there is room for: workers that wait for room make a cluster that can grow do so.
        requested = self.size or max(1, 2 * self.room)
        for _ in range(min(requested, needed) - len(self.workers)):
            self._start()
        if before and not self.room:
            LOG.warning("no node has room for a worker, which wants %s", self.share)

    def _start(self) -> None:
        actor: Any = Actor  # ray.remote made an actor class of it, which its type does not show
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
        self.answers.get(worker, {}).pop(unit, None)  # of an earlier try
        self._expect(worker, unit, worker.actor.annotate.remote(unit))

    def _expect(self, worker: WorkerHandle, unit: Unit | None, reference: Any) -> None:
        """Queues a call's result when it has ended: the driver's work for a unit does not grow with the workers."""
        reference.future().add_done_callback(lambda future: self.results.put((worker, unit, future)))

    def _ask_progress(self) -> None:
        """Asks all workers how far they are with their units; nobody waits for the answers."""
        self.next_question = time.monotonic() + max(ASK, len(self.ready) / ASKED_A_SECOND)
        for worker in self.ready:
            worker.actor.progress.remote().future().add_done_callback(partial(self._answered, worker))

    def _answered(self, worker: WorkerHandle, answer: Any) -> None:
        if worker in self.workers and answer.exception() is None:  # a worker's end shows in another call's result
            self.answers[worker] = answer.result()

    def progress(self, worker: WorkerHandle) -> dict[Unit, Amount]:
        """The worker's last answer."""
        return self.answers.get(worker, {})

    def next_result(self, timeout: float) -> CallResult | None:
        """Next finished call, or None after `timeout` seconds."""
        try:
            worker, unit, future = self.results.get(timeout=timeout)
        except queue.Empty:
            return None
        worker.units -= {unit}
        error = future.exception()
        return CallResult(worker, unit, None if error else future.result(), _cause(error))

    def dismiss(self, worker: WorkerHandle) -> None:
        """End a worker; another one takes its place."""
        if worker in self.workers:
            ray.kill(worker.actor)
        if worker in self.ready:  # else it died at its start: another one at once might do the same
            self.next_look = 0.0
        super().dismiss(worker)
        self.answers.pop(worker, None)

    def delete_published(self, shards: Sequence[str]) -> None:
        """Delete published shards on every node; return when they are, or after PATIENCE seconds."""
        one_per_node = {worker.node: worker for worker in self.ready}.values()
        if calls := [worker.actor.delete_published.remote(shards) for worker in one_per_node]:
            ray.wait(calls, num_returns=len(calls), timeout=PATIENCE)

    def nodes(self) -> set[str | None]:
        """Nodes that are alive."""
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}

    def close(self) -> None:
        """End all workers."""
        for worker in self.workers:
            ray.kill(worker.actor)


def _cause(error: BaseException | None) -> BaseException | None:
    """The worker's own error, or the loss of the worker: below its first line Ray gives advice."""
    if isinstance(error, RayTaskError):
        cause: BaseException = error.cause
        return cause
    if isinstance(error, RayError):
        lines = [line for line in str(error).splitlines() if line.strip()]
        return WorkerLostError(lines[0] if lines else type(error).__name__)
    return error


@ray.remote(max_restarts=0, max_task_retries=0)
class Actor(Worker):
    """A worker in a process of its own: one per GPU, a share of one, or one per CPU core.

    Ray restarts nothing by itself: a call to a restarting actor fails at once, so the driver starts another one.
    """

    metrics: "Metrics | None" = None

    def load(self) -> str:
        log_to_stderr(logging.INFO)
        context = ray.get_runtime_context()
        cores = context.get_assigned_resources().get("CPU", 1.0)
        os.environ["RAYON_NUM_THREADS"] = str(max(1, int(cores)))  # the tokenizer's, which takes all cores by itself
        super().load()
        self.metrics = Metrics()
        return str(context.get_node_id())

    def annotate(self, unit: Unit) -> UnitResult:
        result = super().annotate(unit)
        if self.metrics is not None:
            self.metrics.record(result)
        return result


class Metrics:
    """A worker's figures in Ray's dashboard, and in a Prometheus that asks Ray."""

    def __init__(self) -> None:
        self.units = Counter("token_entropy_units", "Units committed")
        self.tokens = Counter("token_entropy_tokens", "Tokens in committed units")
        self.fill = Gauge("token_entropy_batch_fill", "Share of the last unit's batches that is no padding")
        self.wait = Gauge("token_entropy_device_wait", "Share of its time on the last unit that the device waited")

    def record(self, result: UnitResult) -> None:
        """Adds a unit."""
        receipt, stages, _ = result
        self.units.inc()
        if receipt.counts.tokens:  # Ray refuses to count up by nothing
            self.tokens.inc(receipt.counts.tokens)
        self.fill.set(stages.batch_fill)
        self.wait.set(stages.device_wait)
