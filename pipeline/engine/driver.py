"""Hands units to workers until all are done. Only units and receipts pass through here, never data."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

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
    ours: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == "local" else {}
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

    A worker that dies is restarted and its unit given out again.

    Raises:
        ValueError: if a unit fails, or its worker dies three times.
    """
    gpus = 1 if _cluster_total("GPU") else 0
    waiting = list(reversed(units))
    actor: Any = Worker  # ray.remote made an actor class of it, which the type does not show
    idle = [actor.options(num_cpus=1, num_gpus=gpus).remote(run) for _ in range(min(workers, len(units)))]
    running: dict[ray.ObjectRef[Receipt], tuple[ActorHandle[Worker], Unit]] = {}
    deaths: dict[int, int] = {}
    while waiting or running:
        while waiting and idle:
            worker, unit = idle.pop(), waiting.pop()
            running[worker.annotate.remote(unit)] = (worker, unit)
        (done,), _ = ray.wait(list(running), num_returns=1)
        worker, unit = running.pop(done)
        idle.append(worker)
        try:
            yield ray.get(done)
        except RayTaskError as error:
            raise ValueError(f"rows {unit.start} to {unit.stop} of {unit.file}: {error.cause!r}") from error
        except RayActorError as error:
            deaths[unit.index] = deaths.get(unit.index, 0) + 1
            if deaths[unit.index] == ATTEMPTS:
                raise ValueError(
                    f"rows {unit.start} to {unit.stop} of {unit.file} killed their worker thrice"
                ) from error
            waiting.append(unit)


def _cluster_total(resource: str) -> float:
    return float(ray.cluster_resources().get(resource, 0))
