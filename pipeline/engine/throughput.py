"""Throughput of a run: seconds per stage, padding of batches, and totals of a session (one start of the command)."""

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
"""Key of the seconds in which a unit holds the device. The device then labels, or it waits for rows to be read or for
labels to be written."""


@dataclass
class Stages:
    """Seconds spent in each stage and tokens read, of one unit or summed over several units.

    Stages overlap, so the sum of their seconds may exceed the elapsed time.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*WORK, HELD), 0.0))
    tokens: int = 0
    """Number of tokens that the checkpoint has read. A token that two windows share is counted twice."""
    padded_tokens: int = 0
    """Number of tokens that the checkpoint has read, including the padding of batches."""
    smaller_batches: int = 0
    """Number of batches that did not fit the device's memory and were labelled in parts."""

    def __add__(self, other: "Stages") -> "Stages":
        seconds = {stage: spent + other.seconds[stage] for stage, spent in self.seconds.items()}
        counts = {name: value + getattr(other, name) for name, value in asdict(self).items() if name != "seconds"}
        return Stages(seconds, **counts)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent in the `with` block to a stage. Only one thread at a time may time the same stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started

    def add_batches(self, batches: Iterable[WindowBatch], parts: int) -> None:
        """Add the counts of labelled batches.

        `parts` is the number of batches that did not fit the device's memory, and were labelled in parts.
        """
        for batch in batches:
            self.tokens += int(batch.lengths_B.sum())
            self.padded_tokens += batch.ids_BT.size
        self.smaller_batches += parts

    @property
    def batch_fill(self) -> float:
        """Share of real tokens among all tokens in batches. The rest is padding."""
        return self.tokens / max(1, self.padded_tokens)

    @property
    def device_wait(self) -> float:
        """Share of time in which the device does not label, out of the time for which units hold the device."""
        return 1 - self.seconds["label"] / max(1e-9, self.seconds[HELD])

    @property
    def bottleneck(self) -> str:
        """Name of the slowest stage, which should be made faster first."""
        return max(WORK, key=lambda stage: self.seconds[stage])


class UnitResult(NamedTuple):
    """Result of a committed unit."""

    receipt: Receipt
    stages: Stages
    addition: CommitOperationAdd | None = None
    """Operation that adds the uploaded shard to the repository, or None if the run has no repository."""


Outcome = UnitResult | Quarantined | None
"""Outcome of a unit, which is committed or quarantined. None if no unit ended in the last second."""


@dataclass
class Throughput:
    """Running totals of one session (one start of the command)."""

    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    """Seconds from the start of the session to the last outcome."""
    units: int = 0
    quarantined: int = 0
    counts: Counts = field(default_factory=Counts)
    stages: Stages = field(default_factory=Stages)

    def add(self, outcome: Outcome) -> None:
        """Add a unit's outcome to the totals."""
        self.seconds = time.monotonic() - self.started
        if isinstance(outcome, Quarantined):
            self.quarantined += 1
        elif outcome is not None:
            self.units += 1
            self.counts += outcome.receipt.counts
            self.stages += outcome.stages

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all workers together. The start-up time of workers is included."""
        return self.counts.tokens / max(1e-9, self.seconds)

    def stage_speeds(self) -> dict[str, float]:
        """Return a mapping from each stage to the tokens per second of a worker that would have only this stage.

        Stages in which no time was spent are left out.
        """
        spent = {stage: seconds for stage in WORK if (seconds := self.stages.seconds[stage])}
        return {stage: self.counts.tokens / seconds for stage, seconds in spent.items()}

    def to_json(self) -> str:
        """Return all totals and speeds as JSON."""
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
