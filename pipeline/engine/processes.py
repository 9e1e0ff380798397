"""A function run in several processes of a Ray cluster that know of each other, as a distributed training needs."""

import tempfile
from collections.abc import Callable
from typing import Any

import ray

from pipeline.engine.cluster import cluster, ray_address


def run_in_processes(work: Callable[[], None], processes: int, address: str | None) -> None:
    """Runs `work` in so many processes of one torch process group, each with a GPU where the cluster has any.

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
