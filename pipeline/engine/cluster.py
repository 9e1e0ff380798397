"""The Ray cluster: start or join it, count the workers that fit on it, and run training processes on it."""

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
"""Resources of a node, as a mapping from names, for example `GPU`, to amounts."""

LOCAL = "local"
VITAL = ("raylet", "gcs_server")  # Ray cannot run without these processes
ANSWER_SECONDS = 10.0
MOST_CORES = 4  # a core prepares and writes 1 million tokens/s, and a GPU labels at most a few million (computed)


def ray_address(address: str | None) -> str:
    """Return the address of the cluster to use.

    If no address is given, return RAY_ADDRESS, which is set in a Ray job, or else LOCAL. A RAY_ADDRESS that begins with
    http is that of a dashboard, for `ray job submit`, and is ignored.
    """
    named = os.environ.get("RAY_ADDRESS", "")
    return address or ("" if named.startswith(("http://", "https://")) else named) or LOCAL


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Start a private Ray on loopback if the address is LOCAL, else join the cluster at the address.

    On exit, end the private Ray or leave the cluster. If this process is already connected to a cluster, that
    connection is used instead and stays open. A cluster is never joined merely because it is running. A bare
    `ray.init()` would join any cluster that it finds.

    Raises:
        ConnectionError: if there is no cluster at the address, or a private Ray does not start.
    """
    _require_answer(address)
    if ray.is_initialized():
        yield
        return
    with ExitStack() as stack:
        try:
            ours = local_settings(stack.enter_context(private_folder())) if address == LOCAL else {}
            stack.callback(ray.shutdown, wait_for_processes=True)  # also after an interrupted start
            with signals_wait():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **ours)
        except Exception as error:  # Ray raises many kinds, among them a bare Exception
            raise _unreachable(address, str(error).partition("\n")[0]) from error
        yield


def run_in_processes(work: Callable[[], None], processes: int, address: str | None) -> None:
    """Run `work` in several processes on the cluster. The processes form a torch process group.

    Each process has a GPU if the cluster has GPUs.

    Raises:
        ValueError: if `work` raises a ValueError.
        WorkerGroupError: if `work` raises any other error. The message has that error's traceback.
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
    """Check that Ray still runs on this node.

    Ray does not tell a driver that its raylet (Ray's process on the node) was killed, by a person or for lack of
    memory. Most calls then wait forever, and some end the driver's process silently.

    Raises:
        ConnectionError: if this node is gone, or if this process started Ray and a VITAL process of Ray has ended.
    """
    started = worker._global_node  # None in a process that is connected by Ray's client
    ours = ray.get_runtime_context().get_node_id()
    ended: list[str] = [kind for kind, _ in started.dead_processes() if kind in VITAL] if started else []
    if not ended and any(node["NodeID"] == ours and not node["Alive"] for node in ray.nodes()):
        ended = ["this node"]
    if ended:
        raise ConnectionError(f"Ray is gone: {' and '.join(ended)} ended, perhaps killed; the same command resumes")


def _require_answer(address: str) -> None:
    """Raise if the address has a host and a port and nobody answers there. Ray itself would wait for minutes.

    Raises:
        ConnectionError: if nobody answers.
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
    """Share of the cluster that each worker takes. Fractions of a GPU or a core are allowed."""

    cpus: float | None = None
    """CPU cores per worker. None means 1 core, or up to MOST_CORES cores for a worker with a GPU."""
    gpus: float | None = None
    """GPUs per worker. None means 1 if the cluster has GPUs when the run starts, else 0."""

    def resolved(self, nodes: Sequence[Node] | None = None) -> "WorkerResources":
        """Return this share with numbers instead of None.

        The numbers are chosen for the given nodes, by default for the nodes that are alive now.
        """
        nodes = _nodes() if nodes is None else nodes
        gpus = self.gpus if self.gpus is not None else float(any(node.get("GPU") for node in nodes))
        return WorkerResources(cpus=_cores_with(gpus, nodes) if self.cpus is None else self.cpus, gpus=gpus)

    def room(self, nodes: Sequence[Node] | None = None) -> int:
        """Return the number of workers that fit on the nodes, by default on the nodes that are alive now."""
        nodes = _nodes() if nodes is None else nodes
        share = self.resolved(nodes)
        needs = {name: need for name, need in (("CPU", share.cpus), ("GPU", share.gpus)) if need}
        # 1 // 0.1 is 9, because the float 0.1 is a little more than a tenth
        return sum(min(int(has.get(name, 0) / need + 1e-9) for name, need in needs.items()) for has in nodes)

    def require_room(self) -> None:
        """Raise if no node has room for a worker.

        This check is for a cluster that does not grow, because a worker without room would wait forever.

        Raises:
            ValueError: if no node has room for a worker.
        """
        if not self.room():
            has = ", ".join(f"{_total(name):g} {name}" for name in ("CPU", "GPU"))
            raise ValueError(
                f"this machine has {has}, too little for a worker, which needs {self.resolved()}: request less"
            )

    def __str__(self) -> str:
        return f"{self.cpus or 0:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")


def has_gpus(address: str) -> bool:
    """True if the cluster at an address has GPUs now.

    If the address is LOCAL and Ray has not started, this machine is checked instead.

    Raises:
        ConnectionError: if there is no cluster at the address.
    """
    return any(node.get("GPU") for node in nodes_at(address))


def nodes_at(address: str) -> list[Node]:
    """Return the resources of each node of the cluster at an address.

    If the address is LOCAL and Ray has not started, return the resources of this machine.

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


def _cores_with(gpus: float, nodes: Sequence[Node]) -> float:
    """Return the number of CPU cores per worker.

    A worker without a GPU has 1 core. A worker with a GPU has its node's cores divided by its node's GPUs, but at least
    1 core and at most MOST_CORES. If nodes differ, the smallest share is returned.
    """
    if not gpus:
        return 1.0
    a_worker = [has.get("CPU", 0) * gpus // has["GPU"] for has in nodes if has.get("GPU")]
    return float(max(1, min(MOST_CORES, *a_worker))) if a_worker else 1.0


def _nodes() -> list[Node]:
    """Return the resources of each node that is alive now."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _total(resource: str) -> float:
    return float(ray.cluster_resources().get(resource, 0))
