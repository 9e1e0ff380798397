"""Where a unit's time goes: seconds of each stage, and how full the device's batches were."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TypeVar

from pipeline.data.windows import Batch

Item = TypeVar("Item")

WORK = ("read", "tokenize", "label", "write", "upload")
HELD = "held"
"""The unit has the device: it labels, or the device waits for rows or for labels to be written."""


@dataclass
class Stages:
    """Seconds that a unit, or many, spent in each stage; they overlap, so their sum is more than the time passed."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*WORK, HELD), 0.0))
    tokens: int = 0
    """Read by the checkpoint, with what windows share counted twice."""
    padded_tokens: int = 0
    """The same with the padding of batches."""
    smaller_batches: int = 0
    """Times that a batch did not fit the device's memory and was labelled in parts."""

    def __add__(self, other: "Stages") -> "Stages":
        seconds = {stage: spent + other.seconds[stage] for stage, spent in self.seconds.items()}
        counts = {name: value + getattr(other, name) for name, value in asdict(self).items() if name != "seconds"}
        return Stages(seconds, **counts)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time spent inside to a stage, which runs in one thread at a time."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started

    def timed_items(self, stage: str, items: Iterator[Item]) -> Iterator[Item]:
        """The items; the time until each of them is there is added to a stage."""
        end = object()
        while True:
            with self.timed(stage):
                item = next(items, end)
            if item is end:
                return
            yield item  # type: ignore[misc]  # it is not the end

    def untimed_items(self, stage: str, items: Iterator[Item]) -> Iterator[Item]:
        """The items; the time until each of them is there is taken from a stage that is being timed."""
        started = time.perf_counter()
        for item in items:
            self.seconds[stage] -= time.perf_counter() - started
            yield item
            started = time.perf_counter()
        self.seconds[stage] -= time.perf_counter() - started

    def add_batches(self, batches: Iterable[Batch], parts: int) -> None:
        """Counts labelled batches, of which some were labelled in parts."""
        for batch in batches:
            self.tokens += int(batch.lengths_B.sum())
            self.padded_tokens += batch.ids_BT.size
        self.smaller_batches += parts

    @property
    def batch_fill(self) -> float:
        """Share of the tokens in batches that is no padding."""
        return self.tokens / max(1, self.padded_tokens)

    @property
    def device_wait(self) -> float:
        """Share of its time that the device waits for something to label."""
        return 1 - self.seconds["label"] / max(1e-9, self.seconds[HELD])

    @property
    def bottleneck(self) -> str:
        """The stage that takes longest: what to make faster first."""
        return max(WORK, key=lambda stage: self.seconds[stage])
