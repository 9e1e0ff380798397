"""`python -m tests.engine.lose_node INPUT OUTPUT SECONDS`: a run while one node joins the cluster and another is lost.

A batch takes SECONDS. The command prints the largest number of workers on the two nodes together, whether a node was
lost, the number of committed units, and the number of workers that remain.
"""

import json
import sys
from functools import partial
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from pipeline.engine import ray_workers
from pipeline.engine.cluster import WorkerResources
from pipeline.engine.ray_workers import RayWorkerPool
from pipeline.engine.scheduler import Scheduler
from tests.engine.fakes import load_fake, planned_run


def main(input_file: str, output: str, seconds: str) -> None:
    ray_workers.LOOK = 0.5
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes.add_node(num_cpus=1, num_gpus=1)
    ray.init(address=nodes.address, log_to_driver=False)
    run, units = planned_run(Path(output), [Path(input_file)], rows_per_unit=1)
    load = partial(load_fake, seconds=float(seconds))
    scheduler = Scheduler(run, units, RayWorkerPool(run, load, workers=None, share=WorkerResources(cpus=0.2, gpus=0.5)))
    most, committed, lost = 0, 0, False
    for outcome in scheduler.outcomes():
        committed += outcome is not None
        most = max(most, scheduler.ready_workers)
        if committed == 3 and len(nodes.worker_nodes) == 1 and not lost:
            nodes.add_node(num_cpus=1, num_gpus=1)
        if most == 4 and not lost:
            ours = ray.get_runtime_context().get_node_id()  # the driver needs its own node
            nodes.remove_node(next(node for node in nodes.worker_nodes if node.node_id != ours), allow_graceful=False)
            lost = True
    print(json.dumps({"most": most, "lost": lost, "committed": committed, "left": scheduler.ready_workers}))
    ray.shutdown()
    nodes.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
