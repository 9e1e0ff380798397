"""Annotates the units it is given: in an actor of Ray's, or in the driver's own process. No Ray here."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from huggingface_hub.utils.tqdm import disable_progress_bars

from pipeline.engine.device import Device
from pipeline.engine.plan import Unit
from pipeline.engine.report import Annotated
from pipeline.engine.run import Run
from pipeline.engine.underway import Part, Underway

LOG = logging.getLogger(__name__)


class AnnotatesUnits(Protocol):
    """What a worker loads; an `Annotator`, unless a test wants something else."""

    def annotate(self, unit: Unit, underway: Underway) -> Annotated: ...


Load = Callable[[Run, Device], AnnotatesUnits]


class Worker:
    """Its constructor does nothing that can fail: the driver learns of an error only from a method."""

    def __init__(self, run: Run, load: Load, device: Device) -> None:
        self.run, self.device = run, device
        self.load_annotator = load
        self.at_work_on: dict[Unit, Underway] = {}

    def load(self) -> str:
        """Puts the checkpoint on this worker's device, never on another; returns the id of its node."""
        disable_progress_bars()
        self.annotator = self.load_annotator(self.run, self.device)
        return ""

    def annotate(self, unit: Unit) -> Annotated:
        """Labels a unit; returns its receipt, after the shard is committed, and where the time went."""
        LOG.info("%s begins", unit)
        underway = self.at_work_on[unit] = Underway()
        try:
            annotated = self.annotator.annotate(unit, underway)
        finally:
            del self.at_work_on[unit]
        receipt, stages, _ = annotated
        if stages.smaller_batches:
            LOG.warning("unit %d: %d batches did not fit the device's memory whole", unit.index, stages.smaller_batches)
        LOG.info("unit %d: %d tokens, %.1f s on the device", unit.index, receipt.counts.tokens, stages.seconds["label"])
        return annotated

    def underway(self) -> dict[Unit, Part]:
        """What is labelled of each unit that is begun; another thread may ask."""
        return {unit: underway.labelled for unit, underway in self.at_work_on.copy().items()}

    def forget(self, shards: Sequence[str]) -> None:
        """Removes shards that were labelled on this node and are published."""
        for shard in shards:
            (self.run.subset.data / shard).unlink(missing_ok=True)
