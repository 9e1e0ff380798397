"""Throughput: seconds per stage, fill of the batches, and the totals of a session."""

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd

from pipeline.data.windows import WindowBatch
from schemas.receipts import Counts, Quarantined, Receipt

WORK = ("read", "tokenize", "label", "write", "upload")
HELD = "held"
"""Time in which a unit holds the device: the device labels, or waits for rows or for labels to be written."""


@dataclass
class Stages:
    """Seconds that one or many units spent in each stage; stages overlap, so their sum exceeds the elapsed time."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*WORK, HELD), 0.0))
    tokens: int = 0
    """Tokens read by the checkpoint; tokens that two windows share count twice."""
    padded_tokens: int = 0
    """The same, including the padding of batches."""
    smaller_batches: int = 0
    """Number of batches that did not fit the device's memory and were labelled in parts."""

    def __add__(self, other: "Stages") -> "Stages":
        seconds = {stage: spent + other.seconds[stage] for stage, spent in self.seconds.items()}
        counts = {name: value + getattr(other, name) for name, value in asdict(self).items() if name != "seconds"}
        return Stages(seconds, **counts)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent in the context to a stage, which runs in one thread at a time."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started

    def add_batches(self, batches: Iterable[WindowBatch], parts: int) -> None:
        """Count labelled batches, of which `parts` were labelled in parts."""
        for batch in batches:
            self.tokens += int(batch.lengths_B.sum())
            self.padded_tokens += batch.ids_BT.size
        self.smaller_batches += parts

    @property
    def batch_fill(self) -> float:
        """Share of the tokens in batches that is not padding."""
        return self.tokens / max(1, self.padded_tokens)

    @property
    def device_wait(self) -> float:
        """Share of the time in which the device is held that it waits instead of labelling."""
        return 1 - self.seconds["label"] / max(1e-9, self.seconds[HELD])

    @property
    def bottleneck(self) -> str:
        """Stage that takes longest, and that should be made faster first."""
        return max(WORK, key=lambda stage: self.seconds[stage])


class UnitResult(NamedTuple):
    """A committed unit."""

    receipt: Receipt
    stages: Stages
    addition: CommitOperationAdd | None = None
    """Operation that adds the shard, whose content is uploaded, to the repository."""


Outcome = UnitResult | Quarantined | None
"""A committed unit, a quarantined one, or nothing in the last second."""


@dataclass
class Throughput:
    """Running totals of one session."""

    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    """Seconds from the start to the last outcome."""
    units: int = 0
    quarantined: int = 0
    counts: Counts = field(default_factory=Counts)
    stages: Stages = field(default_factory=Stages)

    def add(self, outcome: Outcome) -> None:
        """Count a unit's outcome."""
        self.seconds = time.monotonic() - self.started
        if isinstance(outcome, Quarantined):
            self.quarantined += 1
        elif outcome is not None:
            self.units += 1
            self.counts += outcome.receipt.counts
            self.stages += outcome.stages

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second over all workers, including their start."""
        return self.counts.tokens / max(1e-9, self.seconds)

    def stage_speeds(self) -> dict[str, float]:
        """Return the tokens per second that each stage of a worker would reach if it were the only stage."""
        spent = {stage: seconds for stage in WORK if (seconds := self.stages.seconds[stage])}
        return {stage: self.counts.tokens / seconds for stage, seconds in spent.items()}

    def to_json(self) -> str:
        """Return all figures as JSON."""
        return json.dumps(
            {
                "seconds": self.seconds,
                "units": self.units,
                "given_up": self.quarantined,
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
