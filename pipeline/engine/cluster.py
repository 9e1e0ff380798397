"""The Ray cluster: joining or starting one, the workers that it has room for, and training processes on it."""

import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import worker
from ray._private.accelerators import get_all_accelerator_managers
from ray._private.utils import get_num_cpus

from pipeline.engine.local_ray import local_settings, private_folder, signals_wait

Node = dict[str, float]
"""Resources of a machine, by their names."""

LOCAL = "local"
VITAL = ("raylet", "gcs_server")  # Ray runs without its other processes, as the one that passes on logs
ANSWER_SECONDS = 10.0
MOST_CORES = 4  # a core reads, tokenizes and writes 1 million tokens a second, a GPU labels at most a few (computed)


def ray_address(address: str | None) -> str:
    """The address, or else that of the Ray job that this runs in, or else LOCAL."""
    return address or os.environ.get("RAY_ADDRESS") or LOCAL


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Starts a Ray of our own on loopback (LOCAL), or joins the cluster at an address, and leaves it in the end.

    A bare `ray.init()` would join whatever cluster it finds; this never does. A caller who is connected already
    stays connected.

    Raises:
        ConnectionError: if there is no cluster at the address, or none starts.
    """
    _require_answer(address)
    if ray.is_initialized():
        yield
        return
    with ExitStack() as stack:
        try:
            ours = local_settings(stack.enter_context(private_folder())) if address == LOCAL else {}
            stack.callback(ray.shutdown, wait_for_processes=True)  # what there is of it: a start may be cut short
            with signals_wait():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **ours)
        except Exception as error:  # Ray's are of many kinds, a bare Exception among them
            raise _unreachable(address, str(error).partition("\n")[0]) from error
        yield


def run_in_processes(work: Callable[[], None], processes: int, address: str | None) -> None:
    """Run `work` in the processes of one torch process group, each with a GPU where the cluster has any.

    Raises:
        ValueError: if `work` raises one; other errors of it come as Ray's, with where they happened.
    """
    with cluster(ray_address(address)), tempfile.TemporaryDirectory() as folder:
        from ray.train import RunConfig, ScalingConfig, WorkerGroupError  # loads torch, which takes seconds
        from ray.train.torch import TorchTrainer

        trainer: Any = TorchTrainer(
            lambda: work(),
            scaling_config=ScalingConfig(num_workers=processes, use_gpu=ray.cluster_resources().get("GPU", 0) > 0),
            run_config=RunConfig(storage_path=folder),
        )
        try:
            trainer.fit()
        except WorkerGroupError as error:
            for failure in error.worker_failures.values():
                if isinstance(failure, ValueError):
                    raise ValueError(str(failure)) from error
            raise


def require_ray() -> None:
    """Checks that Ray still runs on this node.

    A driver is not told when its raylet was killed, by a person or for want of memory: most calls then wait for ever,
    and some end the driver's process in silence.

    Raises:
        ConnectionError: if this process's node, or a vital process of the Ray that it started, is gone.
    """
    started = worker._global_node  # None where Ray's client connects
    ours = ray.get_runtime_context().get_node_id()
    ended: list[str] = [kind for kind, _ in started.dead_processes() if kind in VITAL] if started else []
    if not ended and any(node["NodeID"] == ours and not node["Alive"] for node in ray.nodes()):
        ended = ["this node"]
    if ended:
        raise ConnectionError(f"Ray is gone: {' and '.join(ended)} ended, perhaps killed; the same command resumes")


def _require_answer(address: str) -> None:
    """Where a host and a port are named; of a cluster that is not there, Ray itself waits for minutes.

    Raises:
        ConnectionError: if nobody answers there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise _unreachable(address, str(error)) from error


def _unreachable(address: str, reason: str) -> ConnectionError:
    failed = "cannot start Ray here" if address == LOCAL else f"cannot join a Ray cluster at {address}"
    return ConnectionError(f"{failed}: {reason}; {'try again' if address == LOCAL else 'check `address`'}")


@dataclass(frozen=True, kw_only=True)
class WorkerResources:
    """The share of the cluster that a worker takes; parts of a GPU or a core are fine."""

    cpus: float | None = None
    """None: 1, or with a GPU up to MOST_CORES."""
    gpus: float | None = None
    """None: one where the cluster has GPUs when the run starts."""

    def resolved(self, nodes: Sequence[Node] | None = None) -> "WorkerResources":
        """The same with the numbers of GPUs and of cores decided, by these nodes or those that are there now."""
        nodes = _nodes() if nodes is None else nodes
        gpus = self.gpus if self.gpus is not None else float(any(node.get("GPU") for node in nodes))
        return WorkerResources(cpus=_cores_beside(gpus, nodes) if self.cpus is None else self.cpus, gpus=gpus)

    def room(self, nodes: Sequence[Node] | None = None) -> int:
        """Workers that fit these nodes, or those that are there now."""
        nodes = _nodes() if nodes is None else nodes
        share = self.resolved(nodes)
        needs = {name: need for name, need in (("CPU", share.cpus), ("GPU", share.gpus)) if need}
        # 1 // 0.1 is 9: a tenth is a little more than a tenth
        return sum(min(int(has.get(name, 0) / need + 1e-9) for name, need in needs.items()) for has in nodes)

    def require_room(self) -> None:
        """For a cluster that does not grow.

        Raises:
            ValueError: if no node has room for a worker, so that it would wait for ever.
        """
        if not self.room():
            has = ", ".join(f"{_total(name):g} {name}" for name in ("CPU", "GPU"))
            raise ValueError(
                f"this machine has no room for a worker, which wants {self.resolved()}; it has {has}: ask for less"
            )

    def __str__(self) -> str:
        return f"{self.cpus or 0:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")


def has_gpus(address: str) -> bool:
    """True if the cluster at an address has GPUs now; for LOCAL before Ray has started, if this machine has.

    Raises:
        ConnectionError: if there is no cluster at the address.
    """
    return any(node.get("GPU") for node in nodes_at(address))


def nodes_at(address: str) -> list[Node]:
    """Resources of each node of the cluster at an address; for LOCAL before Ray has started, of this machine.

    Raises:
        ConnectionError: if there is no cluster at the address.
    """
    if address == LOCAL and not ray.is_initialized():
        managers = filter(_counts_gpus, get_all_accelerator_managers())
        gpus = sum(manager.get_current_node_num_accelerators() for manager in managers)
        return [{"CPU": float(get_num_cpus()), "GPU": float(gpus)}]
    with cluster(address):
        return _nodes()


def _counts_gpus(manager: Any) -> bool:
    return bool(manager.get_resource_name() == "GPU")


def _cores_beside(gpus: float, nodes: Sequence[Node]) -> float:
    """As many cores as leave none of the nodes' GPUs without a worker."""
    if not gpus:
        return 1.0
    a_worker = [has.get("CPU", 0) * gpus // has["GPU"] for has in nodes if has.get("GPU")]
    return float(max(1, min(MOST_CORES, *a_worker))) if a_worker else 1.0


def _nodes() -> list[Node]:
    """Resources of each node that is there now."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _total(resource: str) -> float:
    return float(ray.cluster_resources().get(resource, 0))
