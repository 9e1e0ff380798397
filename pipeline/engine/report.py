"""What a run did since it was started, and where its time went: the bottleneck names itself."""

import json
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd

from pipeline.engine.stages import WORK, Stages
from schemas.receipts import Counts, Quarantined, Receipt


class Annotated(NamedTuple):
    """A unit that is done."""

    receipt: Receipt
    stages: Stages
    addition: CommitOperationAdd | None = None
    """Adds the shard to the repository, which has its content."""


Outcome = Annotated | Quarantined | None
"""A committed unit, a unit that was given up, or nothing in the last second."""


@dataclass
class Report:
    """Running totals of one session."""

    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    """From the start to the last outcome."""
    units: int = 0
    given_up: int = 0
    counts: Counts = field(default_factory=Counts)
    stages: Stages = field(default_factory=Stages)

    def add(self, outcome: Outcome) -> None:
        """Counts what became of a unit."""
        self.seconds = time.monotonic() - self.started
        if isinstance(outcome, Quarantined):
            self.given_up += 1
        elif outcome is not None:
            self.units += 1
            self.counts += outcome.receipt.counts
            self.stages += outcome.stages

    @property
    def tokens_per_second(self) -> float:
        """Over all workers, their start included."""
        return self.counts.tokens / max(1e-9, self.seconds)

    def stage_speeds(self) -> dict[str, float]:
        """Tokens a second of each stage in a worker, were it the only one."""
        spent = {stage: seconds for stage in WORK if (seconds := self.stages.seconds[stage])}
        return {stage: self.counts.tokens / seconds for stage, seconds in spent.items()}

    def to_json(self) -> str:
        """Every figure."""
        return json.dumps(
            {
                "seconds": self.seconds,
                "units": self.units,
                "given_up": self.given_up,
                "rows": self.counts.rows,
                "tokens": self.counts.tokens,
                "tokens_per_second": self.tokens_per_second,
                "stages": {
                    stage: {"seconds": self.stages.seconds[stage], "tokens_per_second": speed}
                    for stage, speed in self.stage_speeds().items()
                },
                "bottleneck": self.stages.bottleneck,
                "device_wait": self.stages.device_wait,
                "batch_fill": self.stages.batch_fill,
                "smaller_batches": self.stages.smaller_batches,
            },
            indent=2,
        )
