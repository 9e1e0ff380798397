"""The Ray actor that annotates units: one a GPU, a share of one, or one a CPU core."""

import logging
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import ray
from huggingface_hub.utils.tqdm import disable_progress_bars
from ray.util.metrics import Counter, Gauge

from pipeline.engine.annotation import Annotated
from pipeline.engine.plan import Unit
from pipeline.engine.run import Run

UNITS_AT_A_TIME = 2  # one is labelled while the next is read

LOG = logging.getLogger(__name__)

Device = Literal["cpu", "cuda"]


class AnnotatesUnits(Protocol):
    """What a worker loads; an `Annotator`, unless a test wants something else."""

    def annotate(self, unit: Unit) -> Annotated: ...


Load = Callable[[Run, Device], AnnotatesUnits]


@ray.remote(max_restarts=0, max_task_retries=0)
class Worker:
    """Its constructor does nothing that can fail: the driver learns of an error only from a method.

    Ray restarts nothing by itself: a call to a restarting actor fails at once, so the driver starts another one.
    """

    def __init__(self, run: Run, load: Load, device: Device) -> None:
        self.run, self.device = run, device
        self.load_annotator = load

    def load(self) -> str:
        """Puts the checkpoint on this worker's device, no other than was decided; returns the id of its node."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        disable_progress_bars()
        self.annotator = self.load_annotator(self.run, self.device)
        self.metrics = Metrics()
        return str(ray.get_runtime_context().get_node_id())

    def annotate(self, unit: Unit) -> Annotated:
        """Labels a unit; returns its receipt, after the shard is committed, and where the time went."""
        LOG.info("%s begins", unit)
        annotated = self.annotator.annotate(unit)
        receipt, stages, _ = annotated
        self.metrics.record(annotated)
        if stages.smaller_batches:
            LOG.warning("unit %d: %d batches did not fit the device's memory whole", unit.index, stages.smaller_batches)
        LOG.info("unit %d: %d tokens, %.1f s on the device", unit.index, receipt.counts.tokens, stages.seconds["label"])
        return annotated

    def forget(self, shards: Sequence[str]) -> None:
        """Removes shards that were labelled on this node and are published."""
        for shard in shards:
            (self.run.subset.data / shard).unlink(missing_ok=True)


class Metrics:
    """What Ray's dashboard, and a Prometheus that asks Ray, show of a worker."""

    def __init__(self) -> None:
        self.units = Counter("token_entropy_units", "Units committed")
        self.tokens = Counter("token_entropy_tokens", "Tokens in committed units")
        self.fill = Gauge("token_entropy_batch_fill", "Share of the last unit's batches that is no padding")
        self.wait = Gauge("token_entropy_device_wait", "Share of its time on the last unit that the device waited")

    def record(self, annotated: Annotated) -> None:
        """Adds a unit."""
        receipt, stages, _ = annotated
        self.units.inc()
        if receipt.counts.tokens:  # Ray refuses to count up by nothing
            self.tokens.inc(receipt.counts.tokens)
        self.fill.set(stages.batch_fill)
        self.wait.set(stages.device_wait)
