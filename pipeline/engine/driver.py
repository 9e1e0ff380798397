"""Hands units to workers until all are done. Only units and receipts pass through here, never data."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import RayError, RayTaskError

from pipeline.engine.annotation import Run
from pipeline.engine.ledger import Receipt
from pipeline.engine.plan import Unit
from pipeline.engine.worker import Worker

ATTEMPTS = 3


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Starts a Ray of our own on loopback (`local`), or joins the cluster at an address, and leaves it in the end.

    A bare `ray.init()` would join whatever cluster it finds; this never does. A caller who is connected already
    stays connected.
    """
    if ray.is_initialized():
        yield
        return
    ours: dict[str, Any] = {}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing of a local run leaves the machine
        # Ray swaps 127.0.0.1 for an outside address and listens there, unless it takes itself for a laptop's.
        ray_constants.ENABLE_RAY_CLUSTER = False
        ours = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **ours)
    try:
        yield
    finally:
        ray.shutdown()


def default_workers() -> int:
    """One worker a GPU of the cluster, or one a CPU where it has none."""
    return max(1, int(_cluster_total("GPU") or _cluster_total("CPU")))


def annotate_units(run: Run, units: Sequence[Unit], workers: int) -> Iterator[Receipt]:
    """Receipts of the units as they are committed.

    A worker gets its first unit when it has started, so workers that the cluster has no room for only wait. One
    that dies is replaced and its unit given out again.

    Raises:
        ValueError: if a unit or the start of a worker fails, or kills its worker three times.
    """
    waiting = list(reversed(units))
    deaths: Counter[Unit | None] = Counter()
    tasks: dict[Any, tuple[Any, Unit | None]] = {}
    for _ in range(min(workers, len(units))):
        _start_worker(run, tasks)
    pending = len(units)
    while pending:
        (done,), _ = ray.wait(list(tasks), num_returns=1)
        worker, unit = tasks.pop(done)
        try:
            receipt = ray.get(done)
        except RayTaskError as error:
            raise ValueError(f"{_shown(unit)}: {error.cause}") from error
        except RayError as error:  # the worker, its node or its memory is gone
            deaths[unit] += 1
            if deaths[unit] == ATTEMPTS:
                raise ValueError(f"{_shown(unit)} killed {ATTEMPTS} workers, the last by: {error}") from error
            waiting += [unit] if unit else []
            ray.kill(worker)
            _start_worker(run, tasks)
            continue
        if receipt is not None:
            pending -= 1
            yield receipt
        if waiting:
            unit = waiting.pop()
            tasks[worker.annotate.remote(unit)] = (worker, unit)


def _start_worker(run: Run, tasks: dict[Any, tuple[Any, Unit | None]]) -> None:
    actor: Any = Worker  # ray.remote made an actor class of it, which its type does not show
    worker = actor.options(num_cpus=1, num_gpus=1 if _cluster_total("GPU") else 0).remote(run)
    tasks[worker.load.remote()] = (worker, None)


def _shown(unit: Unit | None) -> str:
    return f"rows {unit.start} to {unit.stop} of {unit.file}" if unit else "starting a worker"


def _cluster_total(resource: str) -> float:
    return float(ray.cluster_resources().get(resource, 0))
