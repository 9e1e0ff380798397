"""`python -m tests.engine.drive INPUT OUTPUT ADDRESS SECONDS`: an annotation with made-up labels, without torch.

A batch takes SECONDS.
"""

import sys
from functools import partial
from pathlib import Path

from pipeline.data.ledger import Ledger
from pipeline.engine import ray_workers
from pipeline.engine.cluster import WorkerResources, cluster
from pipeline.engine.output import locked, open_run
from pipeline.engine.ray_workers import RayWorkerPool
from pipeline.engine.scheduler import Scheduler
from schemas.receipts import Plan
from tests.engine.fakes import load_fake, planned_run


def main(input_file: str, output: str, address: str, seconds: str) -> None:
    ray_workers.LOOK = 0.5
    run, units = planned_run(Path(output), [Path(input_file)], rows_per_unit=1)
    with locked(run.subset.root), cluster(address):
        open_run(run.subset, Plan(run.provenance, (), schema=run.schema), units)
        done = Ledger(run.subset).finished()
        left = [unit for unit in units if unit.index not in done]
        load = partial(load_fake, seconds=float(seconds))
        scheduler = Scheduler(
            run, left, RayWorkerPool(run, load, workers=2, share=WorkerResources(cpus=1)), done=len(done)
        )
        for _ in scheduler.outcomes():
            pass


if __name__ == "__main__":
    main(*sys.argv[1:])
